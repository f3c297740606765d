//! `tandem demo`: a proof on one machine that acknowledged writes survive a switchover and a crash.
//!
//! Two storage nodes and a witness run as real processes on loopback; clients write over NBD, others make files over NFS, and
//! both keep a ledger of what was acknowledged; at the end every acknowledged block and file is read back from both copies. With
//! `--mount` the machines are in network namespaces, and a Linux kernel is one of the clients.

mod boxes;
mod control;
mod files;
mod findings;
mod ground;
mod guest;
mod kernel;
mod ledger;
mod load;
mod nbd;
mod process;
mod scenario;
mod timeline;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use boxes::{Machines, WorkDirectory};
use findings::Findings;
use ground::Ground;
pub use guest::main as guest_main;
use kernel::{Guest, KernelClient};
use scenario::play;
use timeline::Timeline;

/// What the demo is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// About so many seconds of load.
    pub seconds: u64,
    /// Work there, and keep it; otherwise in a temporary directory.
    pub keep: Option<PathBuf>,
    /// Have a Linux kernel mount the files.
    pub mount: bool,
    /// Where that kernel is; otherwise where it is built, or on the path.
    pub kernel_client: Option<PathBuf>,
}

/// Runs the demo. The exit code is 0 only if every acknowledged block and file is on both copies. Processes, network namespaces and
/// temporary files are gone afterwards; after a failure the directory stays, and its path is told.
pub fn main(options: Options) -> ExitCode {
    // First: where something is missing, nothing is made.
    let prepared = options.mount.then(|| KernelClient::find(options.kernel_client.as_deref())).transpose();
    let prepared = prepared.and_then(|kernel| Ok((kernel, WorkDirectory::new(options.keep)?)));
    let (kernel, directory) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("tandem: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = run(directory.path(), options.seconds, kernel.as_ref());
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

/// What has to be waited for, and can be interrupted.
struct Waiting {
    runtime: Runtime,
    signals: [Signal; 3],
}

impl Waiting {
    fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _context = runtime.enter();
            [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?]
        };
        Ok(Self { runtime, signals })
    }

    /// Errors: those of `work`, or [`Interrupted`].
    fn wait<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let [terminated, interrupted, hung_up] = &mut self.signals;
        self.runtime.block_on(async {
            tokio::select! {
                result = work => result,
                _ = terminated.recv() => bail!(Interrupted),
                _ = interrupted.recv() => bail!(Interrupted),
                _ = hung_up.recv() => bail!(Interrupted),
            }
        })
    }
}

fn run(directory: &Path, seconds: u64, kernel: Option<&KernelClient>) -> anyhow::Result<Findings> {
    // Before the first process or namespace: a signal must never leave one behind.
    let mut waiting = Waiting::new()?;
    let timeline = Timeline::begin();
    let ground = if kernel.is_some() { Ground::namespaces()? } else { Ground::Loopback };
    // A kernel that does not boot here is told of before anything else is begun.
    let guest = match kernel {
        None => None,
        Some(kernel) => {
            let mut guest = Guest::boot(kernel, directory)?;
            let release = waiting.wait(guest.await_up())?;
            timeline.step(&format!("a client boots: Linux {release}, as a program, on a network with three machines"));
            Some(guest)
        }
    };
    let mut machines = Machines::start(directory, &ground)?;
    let result = waiting.wait(play(&ground, &machines, guest, (directory, seconds), &timeline));
    let dead = machines.first_dead();
    machines.stop();
    match dead {
        Some((name, log)) if result.is_err() => {
            result.with_context(|| format!("the process of {name} has ended; see {}", log.display()))
        }
        _ => result,
    }
}
