//! Runs inputs one after the other, and counts those that find something: with a panic, with too much of the processor's time, or
//! with too much memory. An input that found something is written to a file.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use peak_alloc::PeakAlloc;

use crate::Reached;

/// One input must not allocate more than this.
const GROWTH_MAX_BYTES: usize = 64 << 20;
/// Nor leave more than this behind.
const LEFT_MAX_BYTES: usize = 1 << 20;
/// Nor take longer.
const HANG: Duration = Duration::from_secs(1);
/// An input that has not ended after this ends the run.
const STUCK: Duration = Duration::from_secs(20);

/// Does what an input says.
pub type Work = Box<dyn Fn(&[u8]) -> Reached>;

/// What is looked for, and how.
pub struct Hunt {
    /// The command that is told the result: the last line begins with it.
    pub command: &'static str,
    /// The target's name.
    pub target: &'static str,
    /// What is done with an input.
    pub run: Work,
    /// Where inputs that found something are written.
    pub found: PathBuf,
    /// The program's allocator, which counts.
    pub allocated: &'static PeakAlloc,
}

#[derive(Default)]
struct Tally {
    panics: u64,
    hangs: u64,
    growth: u64,
    slowest: Duration,
    widest: usize,
    opened: u64,
    done: u64,
    broken: u64,
}

/// The input under way, for the watch.
#[derive(Default)]
struct Current {
    number: AtomicU64,
    bytes: Mutex<Vec<u8>>,
}

impl Hunt {
    /// Runs so many inputs, or those in the files if there are any. The last line says what was found.
    pub fn run(&self, inputs: u64, mut next: impl FnMut() -> Vec<u8>, replay: &[PathBuf]) -> ExitCode {
        let current = Arc::new(Current::default());
        watch(Arc::clone(&current), self.found.clone(), (self.command, self.target));
        let mut tally = Tally::default();
        let mut count = 0;
        while replay.is_empty() && count < inputs {
            count += 1;
            self.one(&next(), count, &current, &mut tally);
        }
        for path in replay {
            let Ok(input) = fs::read(path) else {
                eprintln!("{} cannot be read", path.display());
                return ExitCode::FAILURE;
            };
            count += 1;
            self.one(&input, count, &current, &mut tally);
        }
        let Tally { panics, hangs, growth, slowest, widest, opened, done, broken } = tally;
        println!("opened {opened}, operations done {done}, stopped by something broken {broken}");
        println!("slowest input {} ms, widest {} KiB", slowest.as_millis(), widest >> 10);
        let (command, target) = (self.command, self.target);
        println!("{command}: target={target} inputs={count} panics={panics} hangs={hangs} growth={growth}");
        if panics + hangs + growth > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    /// Runs one input and counts what it finds.
    fn one(&self, input: &[u8], number: u64, current: &Current, tally: &mut Tally) {
        {
            let mut bytes = current.bytes.lock().unwrap_or_else(PoisonError::into_inner);
            bytes.clear();
            bytes.extend_from_slice(input);
        }
        current.number.store(number, Ordering::Release);
        let before = self.allocated.current_usage();
        self.allocated.reset_peak_usage();
        let started = cpu_time();
        let result = panic::catch_unwind(AssertUnwindSafe(|| (self.run)(input)));
        let panicked = result.is_err();
        let reached = result.unwrap_or_default();
        let took = cpu_time().saturating_sub(started);
        let widest = self.allocated.peak_usage().saturating_sub(before);
        let left = self.allocated.current_usage().saturating_sub(before);
        let (hung, grown) = (took > HANG, widest > GROWTH_MAX_BYTES || (left > LEFT_MAX_BYTES && !panicked));
        tally.slowest = tally.slowest.max(took);
        tally.widest = tally.widest.max(widest);
        tally.opened += u64::from(reached.opened);
        tally.done += u64::from(reached.done);
        tally.broken += u64::from(reached.broken);
        tally.panics += u64::from(panicked);
        tally.hangs += u64::from(hung);
        tally.growth += u64::from(grown);
        if panicked || hung || grown {
            let found = tally.panics + tally.hangs + tally.growth;
            keep(&self.found, self.target, found, input);
            eprintln!(
                "input {number}: panicked {panicked}, {} ms, {} KiB, left {left} bytes",
                took.as_millis(),
                widest >> 10
            );
        }
    }
}

/// Writes an input to a file of its own.
fn keep(directory: &Path, target: &str, found: u64, input: &[u8]) {
    let path = directory.join(format!("{}-{found}", target));
    match fs::write(&path, input) {
        Ok(()) => eprintln!("kept as {}", path.display()),
        Err(error) => eprintln!("{} cannot be written: {error}", path.display()),
    }
}

/// What this thread has computed for: others that want the same processor do not count.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Ends the program when an input does not end.
fn watch(current: Arc<Current>, found: PathBuf, (command, target): (&'static str, &'static str)) {
    thread::spawn(move || {
        let (mut seen, mut since) = (0, Duration::ZERO);
        loop {
            thread::sleep(STUCK);
            let number = current.number.load(Ordering::Acquire);
            let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
            if number == seen && number > 0 {
                // Where others have the processor, it may not have been its turn.
                if now.saturating_sub(since) < STUCK / 2 {
                    continue;
                }
                let input = current.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone();
                keep(&found, target, 0, &input);
                println!("{command}: target={target} inputs={number} panics=0 hangs=1 growth=0");
                std::process::exit(1);
            }
            (seen, since) = (number, now);
        }
    });
}
