//! Runs seeds: one with a full record, or many on all cores with results in the order of seeds.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use super::cluster::{Stats, Violation, World};
use super::scheduler::{NEVER, SECOND};
use super::setup::Setup;

/// Lines of the trace that a violation prints.
const TRACE_LINES: usize = 400;
/// Seeds named for each rule that was broken.
const SEEDS_PER_RULE_MAX: usize = 8;

/// What came of one seed.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Equal for equal runs.
    pub hash: u64,
    /// Counters.
    pub stats: Stats,
    /// What went wrong.
    pub violation: Option<Violation>,
    /// The last lines before it, if the run was recorded.
    pub trace: Vec<String>,
}

/// Sums over many seeds.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Seeds run.
    pub seeds: u64,
    /// Counters.
    pub stats: Stats,
    /// Runs that broke a rule.
    pub violations: u64,
    /// By rule: how many, and the first seeds that broke it.
    pub rules: BTreeMap<&'static str, (u64, Vec<u64>)>,
    /// The first of them.
    pub first: Option<Report>,
    /// Over all runs' hashes, in order.
    pub hash: u64,
}

impl Totals {
    /// Adds a report; reports come in the order of seeds.
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.hash = (self.hash ^ report.hash).wrapping_mul(0x0000_0100_0000_01b3);
        self.stats.faults += report.stats.faults;
        self.stats.acknowledged += report.stats.acknowledged;
        self.stats.unavailable += report.stats.unavailable;
        self.stats.events += report.stats.events;
        self.stats.losses += report.stats.losses;
        if let Some(violation) = &report.violation {
            self.violations += 1;
            let (count, seeds) = self.rules.entry(violation.rule).or_default();
            *count += 1;
            if seeds.len() < SEEDS_PER_RULE_MAX {
                seeds.push(report.seed);
            }
            self.first.get_or_insert(report);
        }
    }

    /// The line that programs read.
    pub fn line(&self) -> String {
        let (faults, acknowledged) = (self.stats.faults, self.stats.acknowledged);
        format!("sim: seeds={} faults={faults} acknowledged={acknowledged} violations={}", self.seeds, self.violations)
    }
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static QUIET: RefCell<bool> = const { RefCell::new(false) };
}

/// Keeps a panic's message for the report of its seed instead of printing it.
fn catch_panics_quietly() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.with_borrow(|quiet| *quiet) {
                PANIC.with_borrow_mut(|message| *message = Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// Runs one world to its end; a panic inside is a violation.
pub fn conclude(world: &mut World) {
    catch_panics_quietly();
    QUIET.with_borrow_mut(|quiet| *quiet = true);
    let result = catch_unwind(AssertUnwindSafe(|| {
        while !world.operator.done && world.violation.is_none() {
            let next = world.now + SECOND;
            world.run_until(next);
        }
    }));
    QUIET.with_borrow_mut(|quiet| *quiet = false);
    if result.is_err() {
        let message = PANIC.with_borrow_mut(Option::take).unwrap_or_default();
        world.violate(None, "panic", message);
    }
}

/// Runs one seed; `recording` keeps the trace, `whole` all of it even if a rule is broken.
pub fn run_seed(seed: u64, recording: bool, whole: bool) -> Report {
    let setup = Setup { trace_disk: recording && whole, ..Setup::random(seed) };
    let mut world = World::new(setup, recording);
    if recording {
        let line = format!("{:?}", world.setup);
        world.note(None, || line);
    }
    conclude(&mut world);
    let (volume, until, lines) = match &world.violation {
        Some(violation) if !whole => (violation.volume, violation.at, TRACE_LINES),
        _ => (None, NEVER, usize::MAX),
    };
    Report {
        seed,
        hash: world.trace.hash(),
        stats: world.stats,
        trace: world.trace.tail(volume, until, lines),
        violation: world.violation,
    }
}

/// Runs `count` seeds from `first` on all cores. With `stop_early` nothing is started after the first violation.
pub fn run_seeds(first: u64, count: u64, stop_early: bool) -> Totals {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()) as u64;
    let next = AtomicU64::new(first);
    let failed = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    let mut totals = Totals::default();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next, failed) = (sender.clone(), &next, &failed);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || (stop_early && failed.load(Ordering::Relaxed)) {
                        return;
                    }
                    let report = run_seed(seed, false, false);
                    failed.fetch_or(report.violation.is_some(), Ordering::Relaxed);
                    if sender.send(report).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut wanted = first;
        for report in receiver {
            early.insert(report.seed, report);
            while let Some(report) = early.remove(&wanted) {
                wanted += 1;
                totals.add(report);
            }
        }
        early.into_values().for_each(|report| totals.add(report));
    });
    totals
}
