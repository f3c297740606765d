//! `tandem demo`: a proof on one machine that acknowledged writes survive a switchover and a crash.
//!
//! Two storage nodes and a witness run as real processes on loopback; clients write over NBD, others make files over NFS, and
//! both keep a ledger of what was acknowledged; at the end every acknowledged block and file is read back from both copies.

mod boxes;
mod control;
mod files;
mod ledger;
mod load;
mod nbd;
mod scenario;
mod timeline;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use boxes::{Machines, WorkDirectory};
use scenario::{Findings, play};
use timeline::Timeline;

/// Runs the demo: about `seconds` of load, in `keep` (which stays) or in a temporary directory. The exit code is 0 only
/// if every acknowledged block and file is on both copies. Processes and temporary files are gone afterwards; after a failure the
/// directory stays, and its path is told.
pub fn main(seconds: u64, keep: Option<PathBuf>) -> ExitCode {
    let directory = match WorkDirectory::new(keep) {
        Ok(directory) => directory,
        Err(error) => {
            eprintln!("tandem: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = run(directory.path(), seconds);
    let good = result.as_ref().is_ok_and(Findings::good);
    let interrupted = result.as_ref().is_err_and(|error| error.is::<Interrupted>());
    if let Some(path) = directory.finish(!good && !interrupted) {
        eprintln!("The machines' directories, logs included, are in {}", path.display());
    }
    match result {
        Ok(findings) => {
            findings.losses.iter().for_each(|loss| eprintln!("LOST: {loss}"));
            println!("{}", findings.line());
        }
        Err(error) => eprintln!("tandem: the demo failed: {error:#}"),
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The user or the system asked the demo to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

fn run(directory: &Path, seconds: u64) -> anyhow::Result<Findings> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the first process starts: a signal must never leave one behind.
    let (mut terminated, mut interrupted, mut hung_up) = {
        let _context = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?)
    };
    let timeline = Timeline::begin();
    let mut machines = Machines::start(directory)?;
    let result = runtime.block_on(async {
        tokio::select! {
            findings = play(&machines, directory, seconds, &timeline) => findings,
            _ = terminated.recv() => bail!(Interrupted),
            _ = interrupted.recv() => bail!(Interrupted),
            _ = hung_up.recv() => bail!(Interrupted),
        }
    });
    let dead = machines.first_dead();
    machines.stop();
    match dead {
        Some((name, log)) if result.is_err() => {
            result.with_context(|| format!("the process of {name} has ended; see {}", log.display()))
        }
        _ => result,
    }
}
