//! `cargo xtask sim`: builds the simulator and runs it over seeds.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::shell;

#[derive(Args)]
pub(crate) struct SimOptions {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Passed on to the simulator.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Builds the simulator in the release profile.
pub(crate) fn build() -> Result<()> {
    shell::run_visibly(&mut shell::cargo(&["build", "--release", "--package", "tandem-tests", "--bin", "sim"]))
}

/// The command that runs `seeds` seeds from `first`.
pub(crate) fn command(binary: &std::path::Path, seeds: u64, first: Option<u64>) -> Command {
    let mut command = Command::new(binary);
    command.arg("--seeds").arg(seeds.to_string());
    if let Some(seed) = first {
        command.arg("--seed").arg(seed.to_string());
    }
    command
}

/// Runs the simulator in place of this process, so that its output and exit code are the user's.
pub(crate) fn run(options: &SimOptions) -> Result<()> {
    build()?;
    let mut command = command(&shell::release_binary("sim"), options.seeds, options.seed);
    command.args(&options.rest);
    Err(command.exec()).context("cannot start the simulator")
}
