//! Rounds of faults, each with its own seed, and what they found.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::rig::{Rig, RigOptions};

/// After so many rounds the cluster is built anew: long enough to let damage add up, short enough to bound its log.
const ROUNDS_PER_CLUSTER: u64 = 250;
/// Lines of each node's log in the report of a finding.
const LOG_LINES: usize = 40;

/// What a campaign is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The `torture` program, which serves the disks.
    pub program: PathBuf,
    /// Decides about everything but timing.
    pub seed: u64,
    /// Numbers of the rounds.
    pub rounds: Vec<u64>,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Whether links can be cut.
    pub namespaces: bool,
}

/// What a campaign has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Rounds that ended.
    pub rounds: u64,
    /// Faults in them.
    pub faults: u64,
    /// Rounds that found something wrong.
    pub findings: u64,
    /// Operations of the load that ended well.
    pub operations: u64,
}

/// One kind of campaign.
pub trait Rounds {
    /// What its faults are called.
    const FAULTS: &'static str;

    /// Does one round: faults, recovery, and the check. Writes its schedule into `told` as it goes, and gives the number
    /// of faults.
    fn round(&mut self, rig: &mut Rig, rng: &mut ChaCha8Rng, told: &mut String) -> Result<u64, String>;
}

/// Runs all rounds of the plan, printing one line for each. A finding ends the cluster that it was found on.
pub fn run<R: Rounds>(rounds: &mut R, plan: &Plan) -> Tally {
    let mut tally = Tally::default();
    let mut rig: Option<(Rig, u64)> = None;
    for number in &plan.rounds {
        let started = Instant::now();
        let mut rng = round_rng(plan.seed, *number);
        let mut told = String::new();
        let outcome = match take_or_start(rig.take(), plan, *number) {
            Ok((mut current, age)) => {
                let outcome = rounds.round(&mut current, &mut rng, &mut told).and_then(|faults| {
                    // A panic may go unnoticed by every client, since the parent starts another worker.
                    current.panic().map_or(Ok(faults), Err)
                });
                if let Err(why) = &outcome {
                    report(&mut current, why);
                }
                tally.operations += current.load.take_operations();
                if outcome.is_ok() {
                    rig = Some((current, age + 1));
                }
                outcome
            }
            Err(why) => Err(why),
        };
        tally.rounds += 1;
        let took = started.elapsed();
        match outcome {
            Ok(faults) => {
                tally.faults += faults;
                println!("round {number}: {told}; fine after {}", seconds(took));
            }
            Err(why) => {
                tally.findings += 1;
                println!("FINDING in round {number} (--seed {} --round {number}): {told}: {why}", plan.seed);
            }
        }
    }
    tally
}

/// The randomness of a round depends on nothing before it, so that it can be repeated alone.
pub fn round_rng(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

/// Adds to the schedule of a round.
pub fn tell(told: &mut String, what: std::fmt::Arguments<'_>) {
    if !told.is_empty() {
        told.push_str(", ");
    }
    // Writing to a string does not fail.
    let _ = told.write_fmt(what);
}

/// A pause drawn up to `limit_ms`, slept and told by the caller.
pub fn pause(rng: &mut impl Rng, limit_ms: u64) -> u64 {
    let milliseconds = rng.random_range(0..=limit_ms);
    std::thread::sleep(Duration::from_millis(milliseconds));
    milliseconds
}

fn take_or_start(rig: Option<(Rig, u64)>, plan: &Plan, number: u64) -> Result<(Rig, u64), String> {
    match rig {
        Some((rig, age)) if age < ROUNDS_PER_CLUSTER => Ok((rig, age)),
        old => {
            drop(old);
            let options = RigOptions {
                program: plan.program.clone(),
                size_bytes: plan.size_bytes,
                namespaces: plan.namespaces,
                writers: 3,
                readers: 1,
                seed: plan.seed ^ number,
            };
            Ok((Rig::start(&options).map_err(|error| format!("no cluster: {error}"))?, 0))
        }
    }
}

fn report(rig: &mut Rig, why: &str) {
    println!("{}", rig.logs(LOG_LINES));
    println!("{why}\nkept: {}", rig.keep());
}

fn seconds(duration: Duration) -> String {
    format!("{}.{} s", duration.as_secs(), duration.subsec_millis() / 100)
}
