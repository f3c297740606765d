//! Runs a target of the NFS gateway over inputs of its own making, without a fuzzer:
//! `hostile-messages --target nfs-compound --inputs 10000000 --seed 1`.
//!
//! Inputs are sound ones with changes; nothing tells which were worth keeping. The last line says what was found; an input that
//! found something is written to a file, and the run ends with an error.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fuzz_harness::hunt::Hunt;
use fuzz_harness::nfs::{MessageMaker, NfsTarget};
use peak_alloc::PeakAlloc;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

#[derive(Parser)]
#[command(about = "Hostile messages and records for the NFS gateway")]
struct Options {
    /// Which decoder reads them, or nfs-service.
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
    /// Writes the sound inputs into this directory, for a fuzzer to begin with, and does nothing else.
    #[arg(long)]
    write_seeds: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let Some(target) = NfsTarget::of_name(&options.target) else {
        eprintln!("no target {}", options.target);
        return ExitCode::FAILURE;
    };
    let seeds = target.seeds();
    if let Some(directory) = options.write_seeds {
        for (number, seed) in seeds.iter().enumerate() {
            if let Err(error) = fs::write(directory.join(format!("seed-{number}")), seed) {
                eprintln!("{} cannot be written to: {error}", directory.display());
                return ExitCode::FAILURE;
            }
        }
        return ExitCode::SUCCESS;
    }
    let hunt = Hunt {
        command: "fuzz-nfs",
        target: target.name(),
        run: Box::new(move |input| target.run(input)),
        found: options.found,
        allocated: &ALLOCATED,
    };
    let mut maker = MessageMaker::new(ChaCha8Rng::seed_from_u64(options.seed), seeds);
    hunt.run(options.inputs, || maker.make(), &options.replay)
}
