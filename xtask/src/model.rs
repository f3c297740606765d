//! `cargo xtask model`: builds the model check of the replication core and runs it with a budget.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::shell;

#[derive(Args)]
pub(crate) struct ModelOptions {
    /// Crashes of a worker or a box.
    #[arg(long)]
    crashes: Option<u8>,
    /// Partitions, each of which may end.
    #[arg(long)]
    partitions: Option<u8>,
    /// Writes of the client.
    #[arg(long)]
    writes: Option<u8>,
    /// Reads of the client.
    #[arg(long)]
    reads: Option<u8>,
    /// Steps of the clock.
    #[arg(long)]
    ticks: Option<u8>,
    /// Things that may be late or never happen.
    #[arg(long)]
    delays: Option<u8>,
    /// Stop after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Passed on to the model (--flushes N, --switchovers N, --power 0|1, --open N, --threads N, --states N, --bfs).
    #[arg(last = true)]
    rest: Vec<String>,
}

/// The whole workspace decides on the features of the dependencies, as for the simulator.
const BUILD: &[&str] = &["build", "--release", "--workspace", "--bin", "model"];

/// Builds the model and runs it in place of this process, so that its output and exit code are the user's.
pub(crate) fn run(options: &ModelOptions) -> Result<()> {
    shell::run_visibly(&mut shell::cargo(BUILD))?;
    let mut command = Command::new(shell::release_binary("model"));
    command.args(arguments(options)).args(&options.rest);
    Err(command.exec()).context("cannot start the model check")
}

fn arguments(options: &ModelOptions) -> Vec<String> {
    let small = |value: Option<u8>| value.map(u64::from);
    let given = [
        ("--crashes", small(options.crashes)),
        ("--partitions", small(options.partitions)),
        ("--writes", small(options.writes)),
        ("--reads", small(options.reads)),
        ("--ticks", small(options.ticks)),
        ("--delays", small(options.delays)),
        ("--seconds", options.seconds),
    ];
    let words = |(name, value): (&str, Option<u64>)| value.map(|value| [name.to_owned(), value.to_string()]);
    given.into_iter().filter_map(words).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_is_passed_on() {
        let options = ModelOptions {
            crashes: Some(2),
            partitions: None,
            writes: None,
            reads: Some(0),
            ticks: None,
            delays: None,
            seconds: None,
            rest: Vec::new(),
        };
        assert_eq!(arguments(&options).join(" "), "--crashes 2 --reads 0");
    }
}
