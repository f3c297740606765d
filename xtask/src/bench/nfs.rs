//! NFS: a replicated pair behind a floating address and nfs-ganesha on one local file system, under one real kernel client and
//! under the load generator; and what a client sees of switchovers and dead boxes. `benches/nfs_peers`, `nfs_load` and
//! `nfs_failover` do the measuring, and print the tables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::shell;

#[derive(Args)]
pub(crate) struct NfsOptions {
    /// One round of small amounts: a few minutes.
    #[arg(long)]
    quick: bool,
    /// Rounds, in each of which the servers take turns.
    #[arg(long)]
    rounds: Option<usize>,
    /// Only these clients: generator, kernel.
    #[arg(long, value_delimiter = ',')]
    parts: Vec<String>,
    /// Where the figures go.
    #[arg(long, default_value = "bench-nfs.json")]
    output: PathBuf,
    /// A directory with `tandem`, `nfs-load` and `nfs-peers` that are used instead of building them.
    #[arg(long)]
    binaries: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct FailoverOptions {
    /// Planned switchovers.
    #[arg(long, default_value_t = 100)]
    switchovers: usize,
    /// Kills of the primary's worker.
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Deaths of the primary's box: its link goes down, and all its processes are killed.
    #[arg(long, default_value_t = 50)]
    boxes: usize,
    /// 5, 5 and 3 of them: a minute or two.
    #[arg(long, conflicts_with_all = ["switchovers", "kills", "boxes"])]
    quick: bool,
    /// How long the client hears nothing before it tries another connection, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    silence_ms: u64,
    /// Where the figures go.
    #[arg(long, default_value = "bench-failover.json")]
    output: PathBuf,
    /// A directory with `tandem` and `nfs-failover` that are used instead of building them.
    #[arg(long)]
    binaries: Option<PathBuf>,
}

/// Both servers, side by side.
pub(crate) fn run(options: &NfsOptions) -> Result<()> {
    let programs = Programs::ready(options.binaries.as_deref(), &["tandem", "nfs-load", "nfs-peers"])?;
    in_scratch("nfs-", |home| {
        let mut command = programs.command("nfs-peers");
        command.arg("--directory").arg(home).arg("--output").arg(&options.output);
        command.arg("--generator").arg(programs.path("nfs-load"));
        if options.quick {
            command.arg("--quick");
        }
        if let Some(rounds) = options.rounds {
            command.args(["--rounds", &rounds.to_string()]);
        }
        if !options.parts.is_empty() {
            command.args(["--parts", &options.parts.join(",")]);
        }
        shell::run_visibly(&mut command)
    })
}

/// Switchovers, killed processes, dead boxes.
pub(crate) fn run_failovers(options: &FailoverOptions) -> Result<()> {
    let programs = Programs::ready(options.binaries.as_deref(), &["tandem", "nfs-failover"])?;
    let FailoverOptions { switchovers, kills, boxes, .. } = options;
    let counts = if options.quick { [5, 5, 3] } else { [*switchovers, *kills, *boxes] };
    in_scratch("failover-", |home| {
        let mut command = programs.command("nfs-failover");
        command.arg("--directory").arg(home).arg("--output").arg(&options.output);
        for (name, count) in ["--switchovers", "--kills", "--boxes"].iter().zip(counts) {
            command.args([name, &*count.to_string()]);
        }
        command.args(["--silence-ms", &options.silence_ms.to_string()]);
        shell::run_visibly(&mut command)
    })
}

/// Where the programs are.
struct Programs(Option<PathBuf>);

impl Programs {
    /// Those of a directory, or else of this workspace, which are built.
    fn ready(binaries: Option<&Path>, names: &[&str]) -> Result<Self> {
        let binaries = binaries.map(fs::canonicalize).transpose()?;
        if binaries.is_none() {
            shell::build_release(names)?;
        }
        Ok(Self(binaries))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.as_ref().map_or_else(|| shell::release_binary(name), |directory| directory.join(name))
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.path(name));
        command.env("TANDEM_BIN", self.path("tandem"));
        command
    }
}

/// Runs something in a new directory, which is kept if it fails: it has the nodes' logs.
fn in_scratch(prefix: &str, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = shell::target_dir().join("bench");
    fs::create_dir_all(&parent)?;
    let home = tempfile::Builder::new().prefix(prefix).tempdir_in(&parent)?;
    let done = work(home.path());
    if done.is_err() {
        eprintln!("its directory is kept: {}", home.keep().display());
    }
    done
}
