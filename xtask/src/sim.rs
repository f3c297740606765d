//! `cargo xtask sim`: builds the simulator and runs it over seeds.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::shell;

const SEEDS_DEFAULT: u64 = 1000;

#[derive(Args)]
pub(crate) struct SimOptions {
    /// How many seeds to run.
    #[arg(long)]
    seeds: Option<u64>,
    /// One seed, with its trace; or the first one, if --seeds is given too.
    #[arg(long)]
    seed: Option<u64>,
    /// Passed on to the simulator.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// What cargo is told to build the simulator. The whole workspace decides on the features of the dependencies, as in every
/// other command: with `--package` they would differ, and be built once more.
pub(crate) const BUILD: &[&str] = &["build", "--release", "--workspace", "--bin", "sim"];

/// Builds the simulator in the release profile.
pub(crate) fn build() -> Result<()> {
    shell::run_visibly(&mut shell::cargo(BUILD))
}

/// The command that runs `seeds` seeds from `first` on and stops at the first violation.
pub(crate) fn command(binary: &Path, seeds: u64, first: u64) -> Command {
    let mut command = Command::new(binary);
    command.args(["--seeds", &seeds.to_string(), "--first", &first.to_string(), "--stop"]);
    command
}

/// Runs the simulator in place of this process, so that its output and exit code are the user's.
pub(crate) fn run(options: &SimOptions) -> Result<()> {
    build()?;
    let mut command = Command::new(shell::release_binary("sim"));
    command.args(arguments(options)).args(&options.rest);
    Err(command.exec()).context("cannot start the simulator")
}

fn arguments(options: &SimOptions) -> Vec<String> {
    match (options.seeds, options.seed) {
        (None, Some(seed)) => vec!["--seed".to_owned(), seed.to_string()],
        (seeds, first) => {
            let (seeds, first) = (seeds.unwrap_or(SEEDS_DEFAULT), first.unwrap_or(0));
            vec!["--seeds".to_owned(), seeds.to_string(), "--first".to_owned(), first.to_string()]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_traced_and_many_start_at_the_given_one() {
        let of = |seeds, seed| arguments(&SimOptions { seeds, seed, rest: Vec::new() }).join(" ");
        assert_eq!(of(None, Some(7)), "--seed 7");
        assert_eq!(of(Some(10), Some(7)), "--seeds 10 --first 7");
        assert_eq!(of(None, None), "--seeds 1000 --first 0");
    }
}
