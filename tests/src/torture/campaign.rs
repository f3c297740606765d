//! Rounds of faults, each with its own seed, and what they found.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
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
    /// Only so many of them, drawn (fault points).
    pub sample: Option<u64>,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Whether links can be cut.
    pub namespaces: bool,
    /// The disks lie: a flush does nothing. Then the campaign must find something, or it could find nothing ever.
    pub lying: bool,
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
    /// Bytes at the end of the volume that the load leaves alone.
    const SPARE_BYTES: u64 = 0;

    /// Does one round: faults, recovery, and the check. Writes its schedule into `told` as it goes, and gives the number
    /// of faults.
    fn round(&mut self, rig: &mut Rig, rng: &mut ChaCha8Rng, told: &mut String) -> Result<u64, String>;
}

/// Runs all rounds of the plan.
pub fn run<R: Rounds>(rounds: &mut R, plan: &Plan) -> Tally {
    let mut campaign = Campaign::new(plan);
    for number in &plan.rounds {
        campaign.round(rounds, *number);
    }
    campaign.end()
}

/// Rounds under way, and the cluster that they share.
pub struct Campaign<'a> {
    plan: &'a Plan,
    /// With the number of rounds that it has seen.
    rig: Option<(Rig, u64)>,
    tally: Tally,
}

impl<'a> Campaign<'a> {
    /// Nothing has begun.
    pub fn new(plan: &'a Plan) -> Self {
        Self { plan, rig: None, tally: Tally::default() }
    }

    /// Does one round and prints a line. A finding ends the cluster that it was found on.
    pub fn round<R: Rounds>(&mut self, rounds: &mut R, number: u64) {
        let started = Instant::now();
        let mut rng = round_rng(self.plan.seed, number);
        let mut told = String::new();
        let started_or_taken = caught(|| self.take_or_start(number, R::SPARE_BYTES));
        let outcome = started_or_taken.and_then(|(mut rig, age)| {
            let outcome = caught(|| rounds.round(&mut rig, &mut rng, &mut told));
            // A panic may go unnoticed by every client, since the parent starts another worker.
            let outcome = outcome.and_then(|faults| rig.panic().map_or(Ok(faults), Err));
            self.tally.operations += rig.load.take_operations();
            match &outcome {
                Ok(_) => self.rig = (!rig.spent).then_some((rig, age + 1)),
                Err(why) => report(&mut rig, why),
            }
            outcome
        });
        self.count(number, &told, started.elapsed(), outcome);
    }

    /// Counts and prints a round that was done elsewhere, or here.
    pub fn count(&mut self, number: u64, told: &str, took: Duration, outcome: Result<u64, String>) {
        self.tally.rounds += 1;
        match outcome {
            Ok(faults) => {
                self.tally.faults += faults;
                println!("round {number}: {told}; fine after {}", seconds(took));
            }
            Err(why) => {
                self.tally.findings += 1;
                println!("FINDING in round {number} (--seed {} --round {number}): {told}: {why}", self.plan.seed);
            }
        }
    }

    /// Rounds that found something wrong so far.
    pub fn findings(&self) -> u64 {
        self.tally.findings
    }

    /// Ends the cluster; the next round starts another.
    pub fn end_cluster(&mut self) {
        self.rig = None;
    }

    /// Ends everything.
    pub fn end(self) -> Tally {
        self.tally
    }

    fn take_or_start(&mut self, number: u64, spare_bytes: u64) -> Result<(Rig, u64), String> {
        match self.rig.take() {
            Some((rig, age)) if age < ROUNDS_PER_CLUSTER => Ok((rig, age)),
            old => {
                drop(old);
                let options = RigOptions { spare_bytes, ..options(self.plan, number) };
                let rig = Rig::start(&options).map_err(|error| format!("no cluster: {error}"))?;
                Ok((rig, 0))
            }
        }
    }
}

/// Makes a finding of a panic, as the harness under the rounds raises where it waits in vain.
fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // What a panic leaves half done ends with the cluster.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned())
    })
}

/// The cluster for a round.
pub fn options(plan: &Plan, number: u64) -> RigOptions {
    RigOptions {
        program: plan.program.clone(),
        size_bytes: plan.size_bytes,
        spare_bytes: 0,
        namespaces: plan.namespaces,
        lying: plan.lying,
        writers: 3,
        readers: 1,
        seed: plan.seed ^ number,
    }
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

fn report(rig: &mut Rig, why: &str) {
    println!("{}", rig.logs(LOG_LINES));
    println!("{why}\nkept: {}", rig.keep());
}

fn seconds(duration: Duration) -> String {
    format!("{}.{} s", duration.as_secs(), duration.subsec_millis() / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_harness_is_a_finding_with_its_words() {
        assert_eq!(caught(|| Ok::<_, String>(1)), Ok(1));
        let limit = 7;
        assert_eq!(caught::<()>(|| panic!("waited {limit} s in vain")), Err("waited 7 s in vain".to_owned()));
        assert_eq!(caught::<()>(|| panic!("no cluster")), Err("no cluster".to_owned()));
    }
}
