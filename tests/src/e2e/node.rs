//! One node of a test cluster: its configuration, its process, its log.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::network::{Network, NodeAddresses};
use super::process::Process;
use super::wait::eventually;

const START_LIMIT: Duration = Duration::from_secs(20);

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Stores volumes.
    Storage,
    /// Only votes.
    Witness,
}

/// A node and, while it runs, its process.
#[derive(Debug)]
pub struct Node {
    /// Its name in the cluster.
    pub name: String,
    /// Its index in the network.
    pub index: usize,
    /// What it is for.
    pub kind: NodeKind,
    /// Where it listens.
    pub addresses: NodeAddresses,
    /// Variables for the environment of its next start.
    pub environment: Vec<(String, String)>,
    /// What its next start takes for the kernel's boot id, of a box that has lost power; it needs root.
    pub boot_id: Option<String>,
    home: PathBuf,
    network: Network,
    process: Option<Process>,
}

impl Node {
    /// Writes the configuration of a node into `home/<name>`. It does not start it.
    pub fn configure(name: &str, index: usize, kind: NodeKind, network: &Network, home: &Path, extra: &str) -> Self {
        let home = home.join(name);
        let node = Self {
            name: name.to_owned(),
            index,
            kind,
            addresses: network.addresses(index),
            environment: Vec::new(),
            boot_id: None,
            home,
            network: network.clone(),
            process: None,
        };
        must(fs::create_dir_all(node.data_dir()), "creating the data directory");
        node.write_config(extra);
        node
    }

    /// Writes the configuration again, with other additions.
    pub fn write_config(&self, extra: &str) {
        let NodeAddresses { peer, admin, nbd, metrics } = self.addresses;
        let plaintext = !peer.ip().is_loopback();
        // The export listens on every address where a floating one may come and go.
        let (listen_nbd, advertise) = match plaintext {
            true => (format!("0.0.0.0:{}", nbd.port()), format!("\n[advertise]\nnbd = \"{nbd}\"\n")),
            false => (nbd.to_string(), String::new()),
        };
        let text = format!(
            "name = \"{}\"\ndata_dir = \"{}\"\ninsecure_plaintext = {plaintext}\n{extra}\n[listen]\npeer = \"{peer}\"\n\
             admin = \"{admin}\"\nnbd = \"{listen_nbd}\"\nmetrics = \"{metrics}\"\n{advertise}",
            self.name,
            self.data_dir().display()
        );
        must(fs::write(self.config_path(), text), "writing the configuration");
    }

    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.home.join("tandem.toml")
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Everything that it has printed, over all its runs.
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Where its output goes.
    pub fn log_path(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Starts it and waits until its admin API listens.
    pub fn start(&mut self) {
        self.start_unwatched();
        let (address, network) = (self.addresses.admin, self.network.clone());
        eventually(
            START_LIMIT,
            &format!("{} listens on {address} (log: {})", self.name, self.log_path().display()),
            || {
                let running = self.is_running();
                assert!(running, "{} ended at once:\n{}", self.name, tail(&self.log()));
                network.connect(address).is_ok()
            },
        );
    }

    /// Starts it and returns at once.
    pub fn start_unwatched(&mut self) {
        assert!(!self.is_running(), "{} runs already", self.name);
        let mut command = self.command();
        command.arg(match self.kind {
            NodeKind::Storage => "node",
            NodeKind::Witness => "witness",
        });
        command.arg("--config").arg(self.config_path());
        command.env("RUST_BACKTRACE", "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(must(Process::start(command, &self.log_path()), "starting a node"));
    }

    /// Its program, to be given arguments.
    fn command(&self) -> Command {
        let Some(boot_id) = &self.boot_id else { return self.network.command_at(self.index, &binary()) };
        let file = self.home.join("boot_id");
        must(fs::write(&file, format!("{boot_id}\n")), "writing a boot id");
        let mut command = self.network.command_at(self.index, Path::new("unshare"));
        let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
        command.args(["--mount", "sh", "-c", script]).arg(file).arg(binary());
        command
    }

    /// Whether its parent process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Its process.
    ///
    /// # Panics
    /// If it was never started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap_or_else(|| panic!("{} was never started", self.name))
    }

    /// `kill -9` of parent and worker, as when the box dies.
    pub fn kill(&mut self) {
        self.process().kill_tree();
    }

    /// `kill -9` of the worker only; its parent lives and tells the peers.
    pub fn kill_worker(&mut self) {
        let workers: Vec<u32> = self.process().tree().into_iter().skip(1).collect();
        assert!(!workers.is_empty(), "{} has no worker", self.name);
        workers.into_iter().for_each(|pid| super::process::send(pid, Signal::SIGKILL));
    }

    /// SIGTERM, and the wait for its end.
    pub fn stop(&mut self, limit: Duration) {
        self.process().signal(Signal::SIGTERM);
        let ended = self.process().wait_for_end(limit);
        assert!(ended, "{} did not end within {limit:?} of SIGTERM:\n{}", self.name, tail(&self.log()));
    }
}

/// The binary under test: `TANDEM_BIN`, or the one beside this test's own profile directory, built if it is missing.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TANDEM_BIN") {
        return PathBuf::from(path);
    }
    let own = must(std::env::current_exe(), "the test's own path");
    let profile = own.ancestors().find(|path| path.ends_with("release") || path.ends_with("debug"));
    let profile = profile.unwrap_or_else(|| panic!("{} is in no profile directory; set TANDEM_BIN", own.display()));
    let path = profile.join("tandem");
    if !path.exists() {
        let mut build = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--package", "storage-node", "--bin", "tandem"]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        super::process::run(&mut build);
    }
    path
}

/// The last lines of a log.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[track_caller]
fn must<T>(outcome: std::io::Result<T>, what: &str) -> T {
    outcome.unwrap_or_else(|error| panic!("{what}: {error}"))
}
