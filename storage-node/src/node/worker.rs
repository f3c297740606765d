//! The worker process: configuration, listeners, signals, and how it ends.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use proto::{Boot, Incarnation, NodeId};
use rand::Rng;
use replication::config::NodeKind;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::core::{Core, End, Storage};
use super::data_dir::{DataDir, DataDirError};
use super::detached::DetachedDisks;
use super::fences::Fences;
use super::membership::{EnterError, Membership};
use super::operations::{Operations, init_command};
use super::{export, stop};
use crate::admin;
use crate::config::{ConfigError, NodeConfig};
use crate::disk::{FenceFile, StoreError, StorePool};
use crate::metrics;
use crate::net::transport::Transport;
use crate::peer::{Identity, PeerListener};
use crate::raft::RaftError;
use crate::supervisor::SupervisorSockets;
use crate::supervisor::{Announcement, EXIT_FAILED, EXIT_FATAL, UP_LINE};
use crate::volume::Shards;

/// Messages from other nodes that may wait to be handed on.
const INCOMING_QUEUED_MAX: usize = 1024;
/// Number of the node that founds a cluster.
const FOUNDER: NodeId = NodeId(1);
/// Threads of the control plane.
const CONTROL_THREADS: usize = 2;

/// What the supervisor tells its worker on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerArguments {
    /// The configuration file.
    pub config: PathBuf,
    /// Storage node or witness.
    pub kind: NodeKind,
    /// The supervisor; 0 when there is none. With one, standard output belongs to it.
    pub supervisor_pid: u32,
}

impl WorkerArguments {
    /// As command line arguments.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let kind = if self.kind == NodeKind::Witness { "witness" } else { "storage" };
        vec![self.config.clone().into_os_string(), kind.into(), self.supervisor_pid.to_string().into()]
    }

    /// From command line arguments; `None` when they are not those of `to_arguments`.
    pub fn parse(arguments: &[OsString]) -> Option<Self> {
        let [config, kind, supervisor_pid] = arguments else { return None };
        let kind = match kind.to_str()? {
            "storage" => NodeKind::Storage,
            "witness" => NodeKind::Witness,
            _ => return None,
        };
        Some(Self { config: config.into(), kind, supervisor_pid: supervisor_pid.to_str()?.parse().ok()? })
    }
}

/// Tells the supervisor who runs and who is to hear of its end.
#[derive(Debug, Default)]
pub(crate) struct Announcer {
    supervised: bool,
    /// What it keeps for this worker.
    pub(crate) sockets: Option<Arc<SupervisorSockets>>,
    last: Mutex<Option<Announcement>>,
}

impl Announcer {
    /// Tells it that the node came up: from now on a failure is worth another try.
    pub(crate) fn up(&self) {
        if self.supervised {
            let _ = std::io::stdout().lock().write_all(UP_LINE.as_bytes());
        }
    }

    /// Tells it, if that changed.
    pub(crate) fn announce(&self, identity: Identity, peers: impl Iterator<Item = String>) {
        let announcement = Announcement::new(identity, peers.collect());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.supervised || last.as_ref() == Some(&announcement) {
            return;
        }
        // A supervisor that is gone takes this process with it.
        let _ = std::io::stdout().lock().write_all(announcement.to_line().as_bytes());
        *last = Some(announcement);
    }
}

/// Runs the worker; the whole life of the process. `arguments` are those of [`WorkerArguments::to_arguments`].
pub fn worker_main(arguments: Vec<OsString>) -> ExitCode {
    let Some(arguments) = WorkerArguments::parse(&arguments) else {
        eprintln!("`tandem worker` is started by `tandem node` and `tandem witness`, not by hand");
        return ExitCode::from(EXIT_FATAL);
    };
    crate::supervisor::start_logging();
    abort_on_panic();
    if let Err(why) = become_child(&arguments) {
        error!("{why:#}");
        return ExitCode::from(EXIT_FAILED);
    }
    match run(arguments) {
        Ok(End::Orderly | End::No) => ExitCode::SUCCESS,
        Ok(End::Failed) => ExitCode::from(EXIT_FAILED),
        Ok(End::Fatal) => ExitCode::from(EXIT_FATAL),
        Err(why) => {
            error!("{why:#}");
            ExitCode::from(if is_final(&why) { EXIT_FATAL } else { EXIT_FAILED })
        }
    }
}

/// True for a failure that another start would meet again.
fn is_final(why: &anyhow::Error) -> bool {
    let data_dir = why.downcast_ref::<DataDirError>();
    why.is::<ConfigError>()
        || matches!(data_dir, Some(DataDirError::InUse { .. } | DataDirError::Damaged { .. }))
        || matches!(why.downcast_ref(), Some(StoreError::Refused { .. }))
}

/// A thread that ends unnoticed would leave a volume silent: the process ends instead, and the supervisor says so.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// Ties this process's life to the supervisor's, and takes signals again that the supervisor had blocked.
fn become_child(arguments: &WorkerArguments) -> anyhow::Result<()> {
    SigSet::all().thread_unblock().context("cannot unblock signals")?;
    if arguments.supervisor_pid != 0 {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("cannot follow the supervisor")?;
        let parent = nix::unistd::getppid().as_raw();
        anyhow::ensure!(parent.unsigned_abs() == arguments.supervisor_pid, "the supervisor is gone");
    }
    Ok(())
}

fn run(arguments: WorkerArguments) -> anyhow::Result<End> {
    let config = NodeConfig::load(&arguments.config)?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let (end, ended) = watch::channel(End::No);
    let storage = match arguments.kind {
        NodeKind::Storage => Some(open_storage(&config, &data_dir, &end)?),
        NodeKind::Witness => None,
    };
    let transport = Transport { insecure_plaintext: config.insecure_plaintext };
    // Before there is any child, which would inherit it.
    let sockets = SupervisorSockets::from_stdin().context("cannot reach the supervisor")?;
    let announcer = Announcer { supervised: arguments.supervisor_pid != 0, sockets, last: Mutex::default() };
    let join_request = data_dir.join_request()?;
    let incarnation = Incarnation(rand::rng().random_range(1..=u64::MAX));
    let core = Arc::new(Core::new(
        config,
        arguments.kind,
        transport,
        data_dir,
        storage,
        boot_of_this_box()?,
        incarnation,
        arguments.supervisor_pid,
        join_request,
        announcer,
        end,
    ));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control plane")?;
    let end = runtime.block_on(serve(core, ended))?;
    // What still runs is of no use to anybody, and may hang on a disk.
    runtime.shutdown_background();
    Ok(end)
}

fn open_storage(config: &NodeConfig, data_dir: &DataDir, end: &watch::Sender<End>) -> anyhow::Result<Storage> {
    let pool = StorePool::new(&data_dir.stores(), &config.devices)?;
    let file = FenceFile::open(&data_dir.fences())?;
    let detached = DetachedDisks::open(data_dir.detached())?;
    let shards = Shards::spawn(config.shard_count()).context("cannot start the data plane (io_uring is needed)")?;
    let end = end.clone();
    let fences = Fences::start(file, move |_| {
        end.send_replace(End::Failed);
    })
    .context("cannot start a thread")?;
    Ok(Storage { pool, shards, fences, detached })
}

/// The kernel's id of this power-on.
fn boot_of_this_box() -> anyhow::Result<Boot> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = match crate::fault::boot_id() {
        Some(text) => text,
        None => std::fs::read_to_string(path).with_context(|| path.to_string())?,
    };
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let id = u128::from_str_radix(&digits, 16).with_context(|| format!("{path} holds no id"))?;
    Ok(Boot(id))
}

async fn serve(core: Arc<Core>, mut ended: watch::Receiver<End>) -> anyhow::Result<End> {
    let listen = core.config.listen.clone();
    info!(name = %core.config.name, data_dir = %core.config.data_dir.display(), peer = %listen.peer, admin = %listen.admin, "starting");
    take_signals(&core)?;
    if core.config.listens_beyond_loopback() {
        warn!("listening WITHOUT ENCRYPTION on addresses that other machines reach (insecure_plaintext = true)");
    }
    let (incoming, incoming_queue) = mpsc::channel(INCOMING_QUEUED_MAX);
    let admin_listener =
        core.transport.listen(&listen.admin.to_string()).await.with_context(|| listen_failed("admin", listen.admin))?;
    let peer_listener =
        PeerListener::start(core.transport.clone(), &listen.peer.to_string(), core.identity.subscribe(), incoming)
            .await
            .with_context(|| listen_failed("peer", listen.peer))?;
    tokio::spawn(hand_on_incoming(Arc::clone(&core), incoming_queue));
    if core.storage.is_some() {
        let listener =
            core.transport.listen(&listen.nbd.to_string()).await.with_context(|| listen_failed("nbd", listen.nbd))?;
        info!(address = %listen.nbd, "NBD listens");
        tokio::spawn(export::serve(listener, Arc::clone(&core)));
    }
    let metrics_listener = match listen.metrics {
        Some(at) => Some(core.transport.listen(&at.to_string()).await.with_context(|| listen_failed("metrics", at))?),
        None => None,
    };
    enter(&core).await?;
    let operations = Arc::new(Operations::new(Arc::clone(&core)));
    tokio::spawn(Operations::clone(&operations).measure());
    if let (Some(address), Some(listener)) = (listen.metrics, metrics_listener) {
        info!(%address, "metrics for Prometheus at http://{address}/metrics");
        tokio::spawn(metrics::server::serve(listener, operations.clone(), core.closing.clone()));
    }
    let closing = core.closing.clone();
    let transport = core.transport.clone();
    let admin_core = Arc::clone(&core);
    tokio::spawn(async move {
        let served = admin::serve(admin_listener, transport, operations, closing.cancelled_owned()).await;
        if let Err(why) = served {
            error!("the admin API has ended: {why}");
            admin_core.ask_end(End::Failed);
        }
    });
    core.announcer.up();
    let end = *ended.wait_for(|end| *end != End::No).await.context("nobody decides about the end")?;
    if end == End::Orderly {
        info!("stopping");
        tokio::select! {
            () = stop::stop(&core) => {}
            _ = ended.wait_for(|end| *end != End::Orderly) => warn!("stopping at once"),
        }
    }
    drop(peer_listener);
    info!("stopped");
    Ok(end)
}

/// Takes the place in the cluster that this node has, if it has one and may.
async fn enter(core: &Arc<Core>) -> anyhow::Result<()> {
    if let Some(why) = core.data_dir.out_of_service()? {
        core.stay_out(&why).await;
        return Ok(());
    }
    let Some(held) = core.data_dir.identity()? else {
        info!("in no cluster yet: run `tandem cluster init` on the first node, `tandem cluster join` on others");
        return Ok(());
    };
    let bootstrap = (held.founding && held.node == FOUNDER).then(|| init_command(core, held.cluster));
    match Membership::start(core, held, bootstrap, &[]).await {
        Ok(_) => Ok(()),
        // It goes on, without a vote and without volumes, so that whoever asks it is told what to do.
        Err(EnterError::Raft(why @ RaftError::LogRefused { .. })) => {
            core.stay_out(&why.to_string()).await;
            Ok(())
        }
        Err(why) => Err(why.into()),
    }
}

fn listen_failed(which: &str, address: std::net::SocketAddr) -> String {
    format!("cannot listen on {address} (listen.{which})")
}

async fn hand_on_incoming(core: Arc<Core>, mut queue: mpsc::Receiver<crate::peer::Incoming>) {
    while let Some(incoming) = queue.recv().await {
        if let Some(membership) = core.membership() {
            membership.on_incoming(incoming);
        }
    }
}

/// The first SIGTERM or SIGINT asks for an orderly end, the second for one at once.
fn take_signals(core: &Arc<Core>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot take SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot take SIGINT")?;
    let core = Arc::clone(core);
    tokio::spawn(async move {
        let mut end = End::Orderly;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            core.ask_end(end);
            end = End::Failed;
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_arguments_survive_the_command_line() {
        let arguments = WorkerArguments { config: "/etc/a b.toml".into(), kind: NodeKind::Witness, supervisor_pid: 77 };
        assert_eq!(WorkerArguments::parse(&arguments.to_arguments()), Some(arguments));
        assert_eq!(WorkerArguments::parse(&["x".into()]), None);
        assert_eq!(WorkerArguments::parse(&["x".into(), "both".into(), "1".into()]), None);
    }
}
