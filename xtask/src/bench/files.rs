//! The filesystem engine beside the kernel's ext4: `benches/files` does the measuring, and prints the table.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use super::cluster::DemoCluster;
use crate::shell;

#[derive(Args)]
pub(crate) struct FilesOptions {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Names in the large directory.
    #[arg(long, default_value_t = 1_000_000)]
    entries: usize,
    /// The engine's budget of memory, in MiB.
    #[arg(long, default_value_t = 256)]
    budget_mib: usize,
    /// Only these parts: opening, creates, large, listing, streams, nameless, recovery.
    #[arg(long, value_delimiter = ',', conflicts_with = "pair")]
    parts: Vec<String>,
    /// Measure the filesystem of a volume on a pair instead, through the admin API: all three nodes on this machine.
    #[arg(long)]
    pair: bool,
    /// With `--pair`: no rates, but so many times `kill -9` of the primary under load, and how long files are away.
    #[arg(long, default_value_t = 0, requires = "pair")]
    failovers: usize,
    /// Where the figures of the failovers go.
    #[arg(long, default_value = "bench-files-failovers.json")]
    output: PathBuf,
}

/// Bytes of the volume on the pair; it is sparse.
const PAIR_BYTES: u64 = 8 << 30;

/// Builds the program and runs it on the disk that has the target directory.
pub(crate) fn run(options: &FilesOptions) -> Result<()> {
    if options.failovers > 0 {
        return run_failovers(options);
    }
    if options.pair {
        return run_on_pair(options);
    }
    shell::build_release(&["bench-files"])?;
    let home = shell::target_dir().join("bench");
    fs::create_dir_all(&home)?;
    let mut command = Command::new(shell::release_binary("bench-files"));
    command.arg("--directory").arg(home).args(["--seconds", &options.seconds.to_string()]);
    command.args(["--entries", &options.entries.to_string(), "--budget-mib", &options.budget_mib.to_string()]);
    if !options.parts.is_empty() {
        command.args(["--parts", &options.parts.join(",")]);
    }
    shell::run_visibly(&mut command)
}

/// Starts a pair, makes a filesystem in a volume, and measures it.
fn run_on_pair(options: &FilesOptions) -> Result<()> {
    shell::build_release(&["bench-files-pair"])?;
    let parent = shell::target_dir().join("bench");
    fs::create_dir_all(&parent)?;
    let home = tempfile::Builder::new().prefix("files-pair-").tempdir_in(&parent)?;
    let cluster = DemoCluster::start(&home.path().join("pair"), PAIR_BYTES, 1)?;
    let admin: Vec<&str> = cluster.nodes().iter().map(|node| node.admin.as_str()).collect();
    let first = admin.first().context("a cluster has nodes")?;
    let mut make = Command::new(shell::release_binary("tandem"));
    shell::run_visibly(make.args(["--admin", first, "fs", "make", "vol"]))?;
    let mut command = Command::new(shell::release_binary("bench-files-pair"));
    command.args(["--admin", &admin.join(","), "--volume", "vol", "--seconds", &options.seconds.to_string()]);
    shell::run_visibly(&mut command)
}

/// Kills primaries: the program has a cluster of its own, since it has to start them again.
fn run_failovers(options: &FilesOptions) -> Result<()> {
    shell::build_release(&["bench-files-pair", "tandem"])?;
    let parent = shell::target_dir().join("bench");
    fs::create_dir_all(&parent)?;
    let home = tempfile::Builder::new().prefix("files-failovers-").tempdir_in(&parent)?;
    let mut command = Command::new(shell::release_binary("bench-files-pair"));
    command.args(["--failovers", &options.failovers.to_string(), "--seconds", &options.seconds.to_string()]);
    command.arg("--directory").arg(home.path()).arg("--output").arg(&options.output);
    shell::run_visibly(&mut command)
}
