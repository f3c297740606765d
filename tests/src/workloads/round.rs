//! A round: workloads on the guests at once, faults meanwhile, and all judges afterwards.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::faults::{Disturber, Faults};
use super::locks::HeldLocks;
use super::replay::{Figures, Replays};
use super::rig::{Rig, Running};
use super::{Scale, Version, WORKLOADS, Workload};

/// Between two looks at what is under way.
const POLL: Duration = Duration::from_millis(50);
/// How long whoever counts operations of our own client waits for the last of them.
const REPLAYS_LIMIT: Duration = Duration::from_secs(3600);

/// What rounds are like.
#[derive(Clone, Debug)]
pub struct RoundOptions {
    /// Decides about workloads and faults, with the number of the round.
    pub seed: u64,
    /// How much each workload does.
    pub scale: Scale,
    /// What the guests mount with.
    pub version: Version,
    /// What goes wrong.
    pub faults: Faults,
    /// Seconds between faults, at most.
    pub interval: Duration,
    /// Only these workloads, one after another on each guest; otherwise each guest gets one at random.
    pub only: Vec<&'static Workload>,
    /// Operations of our own client meanwhile, at least; none leaves it out.
    pub replayed_operations: u64,
}

/// What a round did.
#[derive(Clone, Debug, Default)]
pub struct RoundFigures {
    /// Workloads that ended well and were verified, with their seconds.
    pub done: Vec<(&'static str, f64)>,
    /// Switchovers, killed workers, dead boxes.
    pub faults: [u64; 3],
    /// Times that locks were looked at and found held.
    pub looks: u64,
    /// Our own client.
    pub replayed: Figures,
}

/// The workloads that can run here, and why the others cannot.
pub fn available(version: Version) -> (Vec<&'static Workload>, Vec<(&'static str, String)>) {
    let (mut can, mut cannot) = (Vec::new(), Vec::new());
    for workload in WORKLOADS.iter().filter(|workload| workload.applies_to(version)) {
        match workload.missing() {
            None => can.push(workload),
            Some(why) => cannot.push((workload.name, why)),
        }
    }
    (can, cannot)
}

/// What each guest has to do in a round, one after another. A shared workload is the only one of its round.
fn plan(options: &RoundOptions, guests: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<&'static Workload>> {
    if !options.only.is_empty() {
        let mut queues = vec![Vec::new(); guests];
        let mut next = 0;
        for workload in &options.only {
            queues[if workload.is_shared { 0 } else { next % guests }].push(*workload);
            next += usize::from(!workload.is_shared);
        }
        return queues;
    }
    let (mut can, _) = available(options.version);
    can.shuffle(rng);
    match can.first() {
        Some(first) if first.is_shared => vec![vec![*first]],
        _ => can.into_iter().filter(|workload| !workload.is_shared).take(guests).map(|only| vec![only]).collect(),
    }
}

/// Does a round on a rig whose guests have nothing mounted, and leaves it so.
///
/// # Errors
/// What was found wrong.
pub fn round(rig: &mut Rig, options: &RoundOptions, number: u64) -> Result<RoundFigures, String> {
    let work = AssertUnwindSafe(|| Round::new(options, number).run(rig));
    // The harness raises where it waits in vain.
    catch_unwind(work).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned())
    })
}

struct Round<'a> {
    options: &'a RoundOptions,
    seed: u64,
    rng: ChaCha8Rng,
    figures: RoundFigures,
}

impl<'a> Round<'a> {
    fn new(options: &'a RoundOptions, number: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(number);
        let seed = u64::from(rng.random::<u32>());
        Self { options, seed, rng, figures: RoundFigures::default() }
    }

    fn run(mut self, rig: &mut Rig) -> Result<RoundFigures, String> {
        let queues = plan(self.options, rig.guests.len(), &mut self.rng);
        rig.mount();
        let held = HeldLocks::start(rig);
        let replays = (self.options.replayed_operations > 0)
            .then(|| Replays::start(&rig.cluster.network, self.seed, self.options.replayed_operations));
        let fault_rng = ChaCha8Rng::seed_from_u64(self.rng.random());
        let mut disturber = Disturber::new(self.options.faults, self.options.interval, fault_rng);
        self.work(rig, &queues, &mut disturber, replays.as_ref())?;
        if let Some(replays) = replays {
            let deadline = Instant::now() + REPLAYS_LIMIT;
            let enough = self.options.replayed_operations;
            while !replays.is_finished() && replays.operations() < enough && Instant::now() < deadline {
                disturber.disturb(rig, Some(&replays));
                std::thread::sleep(POLL);
            }
            self.figures.replayed = replays.finish()?;
        }
        self.figures.faults = [disturber.switchovers, disturber.kills, disturber.boxes];
        self.figures.looks = held.finish(rig)?;
        // What is verified comes from the server, and from the box that serves last.
        rig.unmount();
        rig.mount();
        for (guest, workload) in
            queues.iter().enumerate().flat_map(|(at, queue)| queue.iter().map(move |one| (at, *one)))
        {
            let running = rig.begin_verification(workload, guest, self.options.scale, self.seed);
            self.wait(rig, workload, &running)?;
            rig.clear(workload, guest);
        }
        rig.unmount();
        rig.judge_volume()?;
        rig.panic().map_or(Ok(self.figures), Err)
    }

    /// All queues, side by side. A shared workload runs on all guests, so it waits until the others have nothing to do.
    fn work(
        &mut self,
        rig: &mut Rig,
        queues: &[Vec<&'static Workload>],
        disturber: &mut Disturber,
        replays: Option<&Replays>,
    ) -> Result<(), String> {
        let (shared, alone): (Vec<_>, Vec<_>) = queues
            .iter()
            .map(|queue| queue.iter().copied().partition::<Vec<&'static Workload>, _>(|one| one.is_shared))
            .unzip();
        for phase in [shared, alone] {
            let mut next = vec![0; phase.len()];
            let mut running: Vec<Option<(Running, Instant)>> = phase.iter().map(|_| None).collect();
            loop {
                for (guest, queue) in phase.iter().enumerate() {
                    if let Some((job, started)) = &running[guest] {
                        let workload = queue[next[guest]];
                        if self.has_ended(rig, workload, job, *started)? {
                            running[guest] = None;
                            next[guest] += 1;
                        }
                    }
                    if running[guest].is_none() && next[guest] < queue.len() {
                        let job = rig.begin(queue[next[guest]], guest, self.options.scale, self.seed);
                        running[guest] = Some((job, Instant::now()));
                    }
                }
                if running.iter().all(Option::is_none) {
                    break;
                }
                disturber.disturb(rig, replays);
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }

    fn has_ended(
        &mut self,
        rig: &mut Rig,
        workload: &'static Workload,
        job: &Running,
        started: Instant,
    ) -> Result<bool, String> {
        let took = started.elapsed();
        match rig.ended(job) {
            None if took < workload.limit => Ok(false),
            None => Err(format!("{} has not ended after {took:?}:\n{}", workload.name, rig.output(job))),
            Some(outcome) => {
                outcome?;
                self.figures.done.push((workload.name, took.as_secs_f64()));
                Ok(true)
            }
        }
    }

    fn wait(&mut self, rig: &mut Rig, workload: &'static Workload, job: &Running) -> Result<(), String> {
        let started = Instant::now();
        loop {
            match rig.ended(job) {
                Some(outcome) => return outcome.map(drop).map_err(|why| format!("verification of {why}")),
                None if started.elapsed() >= workload.limit => {
                    return Err(format!("the verification of {} does not end: {}", workload.name, rig.output(job)));
                }
                None => std::thread::sleep(POLL),
            }
        }
    }
}

/// Rounds of torture, each with a line.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// What each is like.
    pub options: RoundOptions,
    /// How many.
    pub rounds: u64,
    /// Only this one.
    pub only_round: Option<u64>,
    /// The volume's size.
    pub size: String,
    /// Guests.
    pub guests: u8,
}

impl Campaign {
    /// Runs them. A finding keeps its cluster's directory; the next round starts another. Gives the number of findings.
    pub fn run(&self) -> u64 {
        let numbers = self.only_round.map_or(0..self.rounds, |round| round..round + 1);
        let (mut rig, mut total, mut findings) = (None, RoundFigures::default(), 0);
        let started = Instant::now();
        for number in numbers.clone() {
            let began = Instant::now();
            let mut current = match rig.take() {
                Some(rig) => rig,
                None => Rig::start(&self.size, self.guests, self.options.version),
            };
            match round(&mut current, &self.options, number) {
                Ok(figures) => {
                    println!("round {number}: {figures}; {} s", began.elapsed().as_secs());
                    total.add(&figures);
                    rig = Some(current);
                }
                Err(why) => {
                    findings += 1;
                    println!("FINDING in round {number} (--seed {} --round {number}): {why}", self.options.seed);
                    current.guests.iter().for_each(|guest| println!("{}", crate::e2e::node::tail(&guest.console())));
                    println!("kept: {}", current.home().display());
                }
            }
        }
        let home: Option<PathBuf> = rig.as_ref().map(|rig| rig.home().to_owned());
        drop(rig);
        if let Some(home) = home {
            // Nothing was found on it.
            let _ = std::fs::remove_dir_all(home);
        }
        println!(
            "total: {} rounds, {total}, {findings} findings, seed {}, {} s",
            numbers.count(),
            self.options.seed,
            started.elapsed().as_secs()
        );
        findings
    }
}

impl RoundFigures {
    fn add(&mut self, other: &Self) {
        self.done.extend(&other.done);
        self.looks += other.looks;
        self.faults = std::array::from_fn(|at| self.faults[at] + other.faults[at]);
        let (sum, more) = (&mut self.replayed, other.replayed);
        sum.operations += more.operations;
        sum.replays += more.replays;
        sum.replays_after_takeover += more.replays_after_takeover;
        sum.lost += more.lost;
    }
}

impl std::fmt::Display for RoundFigures {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut done = String::new();
        match self.done.len() {
            0..=16 => {
                for (name, seconds) in &self.done {
                    write!(done, "{name} {seconds:.0} s, ")?;
                }
            }
            many => write!(done, "{many} workloads, ")?,
        }
        let [switchovers, kills, boxes] = self.faults;
        let Figures { operations, replays, replays_after_takeover, lost } = self.replayed;
        write!(
            formatter,
            "{done}{switchovers} switchovers, {kills} kills, {boxes} dead boxes, locks seen held {} times, our client: \
             {operations} changes, {replays} replays compared ({replays_after_takeover} over a takeover), {lost} replies lost",
            self.looks
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_workload_has_all_guests_and_the_others_are_spread() {
        let find = |name| Workload::of_name(name).unwrap_or(&WORKLOADS[0]);
        let only = vec![find("locks"), find("git"), find("fio"), find("fsx")];
        let options = RoundOptions {
            seed: 1,
            scale: Scale::Short,
            version: Version::V42,
            faults: Faults::None,
            interval: Duration::from_secs(1),
            only,
            replayed_operations: 0,
        };
        let names = |queues: Vec<Vec<&Workload>>| -> Vec<Vec<&str>> {
            queues.iter().map(|queue| queue.iter().map(|one| one.name).collect()).collect()
        };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(names(plan(&options, 2, &mut rng)), [vec!["locks", "git", "fsx"], vec!["fio"]]);
        assert_eq!(names(plan(&options, 1, &mut rng)), [vec!["locks", "git", "fio", "fsx"]]);
    }
}
