//! Runs a target over inputs of its own making, without a fuzzer: `hostile --target lookup --inputs 10000000 --seed 1`.
//!
//! Inputs are drawn at random, or are earlier ones with changes; nothing tells which were worth keeping. The last line says
//! what was found; an input that found something is written to a file, and the run ends with an error.
#![forbid(unsafe_code)]

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use clap::Parser;
use fuzz_harness::Target;
use nix::time::{ClockId, clock_gettime};
use peak_alloc::PeakAlloc;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// One input must not allocate more than this.
const GROWTH_MAX_BYTES: usize = 64 << 20;
/// Nor leave more than this behind.
const LEFT_MAX_BYTES: usize = 1 << 20;
/// Nor take longer.
const HANG: Duration = Duration::from_secs(1);
/// An input that has not ended after this ends the run.
const STUCK: Duration = Duration::from_secs(20);
const INPUT_BYTES_MAX: usize = 512;
/// Earlier inputs that new ones are made of.
const KEPT_MAX: usize = 256;

#[derive(Parser)]
#[command(about = "Hostile images for the filesystem engine")]
struct Options {
    /// What is done with them: mount, recovery, lookup, readdir, read, attributes or change.
    #[arg(long)]
    target: String,
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    inputs: u64,
    /// What they are made from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Inputs in these files instead.
    #[arg(long, num_args = 1..)]
    replay: Vec<PathBuf>,
    /// Where inputs that found something are written.
    #[arg(long, default_value = ".")]
    found: PathBuf,
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

fn main() -> ExitCode {
    let options = Options::parse();
    let Some(target) = Target::of_name(&options.target) else {
        eprintln!("no target {}", options.target);
        return ExitCode::FAILURE;
    };
    fuzz_harness::seed::seeds();
    let current = Arc::new(Current::default());
    watch(Arc::clone(&current), options.found.clone(), target);
    let mut tally = Tally::default();
    let mut count = 0;
    if options.replay.is_empty() {
        let mut maker = Maker { random: ChaCha8Rng::seed_from_u64(options.seed), kept: Vec::new() };
        while count < options.inputs {
            count += 1;
            let input = maker.next();
            one(target, &input, count, &current, &mut tally, &options);
        }
    }
    for path in &options.replay {
        let Ok(input) = fs::read(path) else {
            eprintln!("{} cannot be read", path.display());
            return ExitCode::FAILURE;
        };
        count += 1;
        one(target, &input, count, &current, &mut tally, &options);
    }
    let Tally { panics, hangs, growth, slowest, widest, opened, done, broken } = tally;
    println!("opened {opened}, operations done {done}, stopped by something broken {broken}");
    println!("slowest input {} ms, widest {} KiB", slowest.as_millis(), widest >> 10);
    println!("fuzz-fs: target={} inputs={count} panics={panics} hangs={hangs} growth={growth}", target.name());
    if panics + hangs + growth > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs one input and counts what it finds.
fn one(target: Target, input: &[u8], number: u64, current: &Current, tally: &mut Tally, options: &Options) {
    {
        let mut bytes = current.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.clear();
        bytes.extend_from_slice(input);
    }
    current.number.store(number, Ordering::Release);
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let started = cpu_time();
    let result = panic::catch_unwind(AssertUnwindSafe(|| target.run(input)));
    let panicked = result.is_err();
    let reached = result.unwrap_or_default();
    let took = cpu_time().saturating_sub(started);
    let widest = ALLOCATED.peak_usage().saturating_sub(before);
    let left = ALLOCATED.current_usage().saturating_sub(before);
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
        keep(&options.found, target, found, input);
        eprintln!(
            "input {number}: panicked {panicked}, {} ms, {} KiB, left {left} bytes",
            took.as_millis(),
            widest >> 10
        );
    }
}

/// Writes an input to a file of its own.
fn keep(directory: &std::path::Path, target: Target, found: u64, input: &[u8]) {
    let path = directory.join(format!("{}-{found}", target.name()));
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
fn watch(current: Arc<Current>, found: PathBuf, target: Target) {
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
                println!("fuzz-fs: target={} inputs={number} panics=0 hangs=1 growth=0", target.name());
                std::process::exit(1);
            }
            (seen, since) = (number, now);
        }
    });
}

struct Maker {
    random: ChaCha8Rng,
    kept: Vec<Vec<u8>>,
}

impl Maker {
    fn next(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let input = match random.random_range(0..4) {
            0 if !self.kept.is_empty() => {
                let mut input = self.kept[random.random_range(0..self.kept.len())].clone();
                for _ in 0..random.random_range(1..4) {
                    let at = random.random_range(0..input.len());
                    input[at] = random.random();
                }
                input
            }
            _ => {
                let mut input = vec![0; random.random_range(8..INPUT_BYTES_MAX / 4)];
                random.fill(&mut input[..]);
                input
            }
        };
        let place = random.random_range(0..KEPT_MAX);
        match self.kept.get_mut(place) {
            Some(kept) => kept.clone_from(&input),
            None => self.kept.push(input.clone()),
        }
        input
    }
}
