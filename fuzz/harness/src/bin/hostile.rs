//! Runs a target over inputs of its own making, without a fuzzer: `hostile --target lookup --inputs 10000000 --seed 1`.
//!
//! Inputs are drawn at random, or are earlier ones with changes; nothing tells which were worth keeping. The last line says
//! what was found; an input that found something is written to a file, and the run ends with an error.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fuzz_harness::Target;
use fuzz_harness::hunt::Hunt;
use peak_alloc::PeakAlloc;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

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

fn main() -> ExitCode {
    let options = Options::parse();
    let Some(target) = Target::of_name(&options.target) else {
        eprintln!("no target {}", options.target);
        return ExitCode::FAILURE;
    };
    fuzz_harness::seed::seeds();
    let hunt = Hunt {
        command: "fuzz-fs",
        target: target.name(),
        run: Box::new(move |input| target.run(input)),
        found: options.found,
        allocated: &ALLOCATED,
    };
    let mut maker = Maker { random: ChaCha8Rng::seed_from_u64(options.seed), kept: Vec::new() };
    hunt.run(options.inputs, || maker.next(), &options.replay)
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
