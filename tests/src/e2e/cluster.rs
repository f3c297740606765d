//! A cluster of two storage nodes and a witness, made of real processes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::cli::{CliOutcome, VolumeState};
use super::namespace::NamespaceNetwork;
use super::nbd::{NbdConnection, NbdError};
use super::network::Network;
use super::node::{Node, NodeKind, binary, tail};
use super::wait::{eventually, eventually_some};

/// The longest that a volume may take to serve again after any single fault.
pub const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// The longest that a resync of a test's volume may take.
pub const RESYNC_LIMIT: Duration = Duration::from_secs(90);

const NBD_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a node that may be stopped is given to let a client in.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// One cluster at a time: leases and elections are judged by the clock, and a test machine may have two cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What kind of cluster a test wants.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// Each node in its own network namespace.
    pub namespaces: bool,
    /// Lines for every node's configuration file, top level.
    pub extra_config: String,
    /// A directory for everything, which is kept; otherwise a temporary one.
    pub directory: Option<PathBuf>,
}

/// A running cluster. Dropping it ends all its processes; after a failed test its directory stays.
#[derive(Debug)]
pub struct Cluster {
    /// `alpha`, `beta` and `witness`, in this order.
    pub nodes: Vec<Node>,
    /// What connects them.
    pub network: Network,
    home: PathBuf,
    keep: bool,
    allow_panics: bool,
    _turn: Option<MutexGuard<'static, ()>>,
}

/// Index of the first storage node, primary of every new volume.
pub const ALPHA: usize = 0;
/// Index of the second storage node.
pub const BETA: usize = 1;
/// Index of the witness.
pub const WITNESS: usize = 2;

impl Cluster {
    /// Starts a cluster on loopback with one healthy volume `vol`.
    pub fn with_volume(size: &str) -> Self {
        let cluster = Self::start(&ClusterOptions::default());
        cluster.create_volume("vol", size);
        cluster
    }

    /// Starts the processes and joins them into a cluster of three voters.
    pub fn start(options: &ClusterOptions) -> Self {
        let mut cluster = Self::configure(options);
        cluster.form();
        cluster
    }

    /// Starts a cluster in namespaces with one healthy volume `vol` of 256 MiB, which is exported to all of the network behind
    /// the floating address.
    pub fn with_files() -> Self {
        let cluster = Self::start(&ClusterOptions { namespaces: true, ..ClusterOptions::default() });
        cluster.must(
            ALPHA,
            &["volume", "create", "vol", "--size", "256M", "--node", "alpha", "--node", "beta", "--fs", "ext4"],
        );
        cluster.wait_healthy("vol");
        cluster.serve_files("vol");
        cluster
    }

    /// Serves a volume's files behind the floating address, to all of the network.
    pub fn serve_files(&self, volume: &str) {
        let address = format!("{}/24@eth0", self.network.floating_ip());
        self.must(ALPHA, &["nfs", "serve", volume, "--address", &address]);
        self.must(ALPHA, &["export", "add", volume, "10.213.0.0/24", "--rw", "--squash", "none"]);
    }

    /// Writes all configurations and starts nothing.
    pub fn configure(options: &ClusterOptions) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let home = options.directory.clone().unwrap_or_else(scratch_directory);
        let network = match options.namespaces {
            true => Network::Namespaces(Arc::new(NamespaceNetwork::new(3))),
            false => Network::Loopback,
        };
        let kinds = [("alpha", NodeKind::Storage), ("beta", NodeKind::Storage), ("witness", NodeKind::Witness)];
        let nodes = kinds
            .into_iter()
            .enumerate()
            .map(|(index, (name, kind))| Node::configure(name, index, kind, &network, &home, &options.extra_config))
            .collect();
        let keep = options.directory.is_some();
        Self { nodes, network, home, keep, allow_panics: false, _turn: Some(turn) }
    }

    /// Starts all nodes and joins them.
    pub fn form(&mut self) {
        for node in &mut self.nodes {
            node.start();
        }
        self.must(ALPHA, &["cluster", "init"]);
        let member = self.nodes[ALPHA].addresses.admin.to_string();
        for index in [BETA, WITNESS] {
            self.must(index, &["cluster", "join", &member]);
        }
    }

    /// The directory with everything of this cluster.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Says that a node's panic is part of the test.
    pub fn allow_panics(&mut self) {
        self.allow_panics = true;
    }

    /// Runs the command line against a node.
    pub fn cli(&self, at: usize, args: &[&str]) -> CliOutcome {
        let mut command = self.network.client_command(&binary().to_string_lossy());
        command.args(["--json", "--admin", &self.nodes[at].addresses.admin.to_string()]).args(args);
        CliOutcome::of(command)
    }

    /// Runs the command line and expects it to be done.
    #[track_caller]
    pub fn must(&self, at: usize, args: &[&str]) -> Value {
        let outcome = self.cli(at, args);
        assert_eq!(outcome.code, 0, "{args:?} at {}: {}{}", self.nodes[at].name, outcome.stdout, outcome.stderr);
        serde_json::from_str(&outcome.stdout).unwrap_or(Value::Null)
    }

    /// Creates a volume with its primary on alpha and waits until both copies are in sync.
    pub fn create_volume(&self, name: &str, size: &str) {
        self.must(ALPHA, &["volume", "create", name, "--size", size, "--node", "alpha", "--node", "beta", "--wait"]);
        self.wait_healthy(name);
    }

    /// A volume's state as any node that answers tells it.
    pub fn volume(&self, name: &str) -> Option<VolumeState> {
        (0..self.nodes.len()).find_map(|at| self.volume_at(at, name))
    }

    /// A volume's state as this node tells it.
    pub fn volume_at(&self, at: usize, name: &str) -> Option<VolumeState> {
        self.cli(at, &["volume", "show", name]).json().map(|json| VolumeState::from_json(&json))
    }

    /// Waits until both copies are in sync and nothing is amiss.
    #[track_caller]
    pub fn wait_healthy(&self, name: &str) -> VolumeState {
        let mut last = None;
        eventually_some(RESYNC_LIMIT, &format!("{name} is healthy"), || {
            last = self.volume(name).or(last.take());
            last.clone().filter(|state| state.level == "healthy" && state.in_sync.len() == 2)
        })
    }

    /// Waits until this node is the primary on record.
    #[track_caller]
    pub fn wait_primary(&self, name: &str, index: usize) {
        let wanted = self.nodes[index].name.clone();
        eventually(RECOVERY_LIMIT, &format!("{wanted} is primary of {name}"), || {
            self.volume(name).is_some_and(|state| state.primary == wanted)
        });
    }

    /// Hands the primary role to a node.
    pub fn switchover(&self, name: &str, to: usize) {
        self.must(to, &["volume", "switchover", name, "--to", &self.nodes[to].name.clone()]);
    }

    /// The index of the node that serves the volume: the one that lets a client in.
    pub fn serving(&self, name: &str) -> Option<usize> {
        [ALPHA, BETA].into_iter().find(|index| self.connect(*index, name).map(NbdConnection::disconnect).is_ok())
    }

    /// An NBD connection to one node.
    pub fn connect(&self, index: usize, name: &str) -> Result<NbdConnection, NbdError> {
        self.connect_within(index, name, NBD_TIMEOUT)
    }

    fn connect_within(&self, index: usize, name: &str, limit: Duration) -> Result<NbdConnection, NbdError> {
        let stream = self.network.connect(self.nodes[index].addresses.nbd)?;
        let mut connection = NbdConnection::negotiate(stream, name, limit)?;
        connection.set_timeout(NBD_TIMEOUT)?;
        Ok(connection)
    }

    /// An NBD connection to whichever node serves, as soon as one does.
    #[track_caller]
    pub fn connect_serving(&self, name: &str) -> NbdConnection {
        eventually_some(RECOVERY_LIMIT, &format!("a node serves {name}"), || {
            // A stopped node accepts and says nothing: do not wait for it as for one that serves.
            [ALPHA, BETA].into_iter().find_map(|index| self.connect_within(index, name, PROBE_LIMIT).ok())
        })
    }

    /// The URI of a volume at a node.
    pub fn uri(&self, index: usize, name: &str) -> String {
        format!("nbd://{}/{name}", self.nodes[index].addresses.nbd)
    }

    fn report(&self) {
        eprintln!("the cluster's directory is kept: {}", self.home.display());
        for node in &self.nodes {
            eprintln!("---- {} ({})\n{}", node.name, node.log_path().display(), tail(&node.log()));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let panicked: Vec<String> =
            self.nodes.iter().filter(|node| node.log().contains("panicked at")).map(|node| node.name.clone()).collect();
        if failed || (!panicked.is_empty() && !self.allow_panics) {
            self.report();
        }
        // The processes must be gone before their directory.
        self.nodes.clear();
        if failed {
            return;
        }
        assert!(self.allow_panics || panicked.is_empty(), "a panic in the log of {panicked:?}");
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.home);
        }
    }
}

/// A new directory on the disk where the binary under test lies (a RAM disk under /tmp may lack O_DIRECT).
pub fn scratch_directory() -> PathBuf {
    let parent = match std::env::var_os("TANDEM_E2E_DIR") {
        Some(path) => PathBuf::from(path),
        None => binary().ancestors().nth(2).map_or_else(std::env::temp_dir, |target| target.join("e2e")),
    };
    let made = std::fs::create_dir_all(&parent)
        .and_then(|()| tempfile::Builder::new().prefix("run-").tempdir_in(&parent).map(tempfile::TempDir::keep));
    made.unwrap_or_else(|error| panic!("no scratch directory below {}: {error}", parent.display()))
}
