//! `cargo xtask interop-fs`: the kernel and the filesystem engine change the same images in turns, and replay each other's logs.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::shell;

/// The binary of the tests.
pub(crate) const BINARY: &str = "interop_fs";

#[derive(Args)]
pub(crate) struct InteropFsOptions {
    /// Rounds, each with the next shape of filesystem.
    #[arg(long, default_value_t = 12)]
    rounds: u64,
    /// Decides about all operations.
    #[arg(long)]
    seed: Option<u64>,
    /// The first round.
    #[arg(long)]
    first: Option<u64>,
    /// Where images are kept that something was found on.
    #[arg(long)]
    keep: Option<String>,
}

/// Builds, and runs the rounds. All run, also after one that found something.
pub(crate) fn run(options: &InteropFsOptions) -> Result<()> {
    shell::build_release(&[BINARY])?;
    let mut command = Command::new(shell::release_binary(BINARY));
    command.arg("--rounds").arg(options.rounds.to_string());
    for (name, value) in [("--seed", options.seed), ("--first", options.first)] {
        if let Some(value) = value {
            command.arg(name).arg(value.to_string());
        }
    }
    if let Some(keep) = &options.keep {
        command.args(["--keep", keep]);
    }
    shell::run_visibly(&mut command)
}

/// A few rounds, and one part of the documentation, with the binary at `path`: what the tests run.
pub(crate) fn short(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.args(["--rounds", "4", "--first", "5", "--documents", "book"]);
    command
}
