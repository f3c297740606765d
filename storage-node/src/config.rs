//! The configuration file of one node: its fields, their defaults, and errors that name the file, the line and what is
//! allowed.
//!
//! ```toml
//! name = "alpha"
//! data_dir = "/var/lib/tandem"
//! insecure_plaintext = false
//! scrub_period_days = 14
//! extent_idle_seconds = 30
//! filesystem_cache_bytes_max = 268435456
//!
//! [listen]
//! peer = "127.0.0.1:7400"
//! admin = "127.0.0.1:7401"
//! nbd = "127.0.0.1:10809"
//! nfs = "127.0.0.1"
//! metrics = "127.0.0.1:7402"
//! ```
//!
//! What a node does (store, or only vote) is not written here: `tandem node` and `tandem witness` say it.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::Micros;
use replication::Timing;
use serde::Deserialize;
use thiserror::Error;

use crate::net::address_text::host_of;

/// Characters allowed in a node's name.
pub const NODE_NAME_CHARS_MAX: usize = 63;
/// Characters of a domain.
pub const DOMAIN_CHARS_MAX: usize = 255;
/// Shards a node may be told to run.
pub const SHARDS_MAX: usize = 256;
/// Raw devices a node may be given.
pub const DEVICES_MAX: usize = 256;

/// Longest period of scrubs.
pub const SCRUB_PERIOD_DAYS_MAX: u64 = 365;
/// Longest time after which an idle extent becomes cold.
pub const EXTENT_IDLE_SECONDS_MAX: u64 = 3600;

/// Least cache of a filesystem: the bitmaps of a large one, and some more.
pub const FILESYSTEM_CACHE_BYTES_MIN: usize = 16 << 20;

const DAY_SECONDS: u64 = 24 * 3600;

/// Longest timer, in milliseconds (one hour).
pub const TIMER_MS_MAX: u64 = 3_600_000;

/// Why a configuration is refused. The text names the file and what is allowed.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not TOML, or a field is unknown or of the wrong type.
    #[error("{path}:{line}: {why}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong and what is allowed.
        why: String,
    },
    /// A value is not allowed.
    #[error("{path}: {field}: {why}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The field, as written in the file.
        field: &'static str,
        /// What is wrong and what is allowed.
        why: String,
    },
}

/// One node's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Name of the node, unique in the cluster: letters, digits, `-`, `_` and `.`, at most 63.
    pub name: String,
    /// Directory of the node's own state: identity, Raft log, fences, and the stores of its volumes. Made if missing.
    pub data_dir: PathBuf,
    /// Where to listen.
    #[serde(default)]
    pub listen: Listen,
    /// What to tell the others instead of the listening addresses, e.g. when listening on `0.0.0.0`.
    #[serde(default)]
    pub advertise: Advertise,
    /// Raw block devices (or preallocated files) beside `data_dir`; each holds one volume.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
    /// Allows listening, without encryption, on addresses that are not loopback.
    #[serde(default)]
    pub insecure_plaintext: bool,
    /// Data plane threads; default one per core.
    #[serde(default)]
    pub shards: Option<usize>,
    /// When a read may be answered.
    #[serde(default)]
    pub reads: Reads,
    /// Days within which every copy is read whole and compared, in the background; 0: only on request.
    #[serde(default = "scrub_period_days_default")]
    pub scrub_period_days: u64,
    /// Seconds without a write after which an extent becomes cold: it is not compared any more after a crash.
    #[serde(default = "extent_idle_seconds_default")]
    pub extent_idle_seconds: u64,
    /// Bytes that the engine of one open filesystem keeps in memory, beyond what is changed and not written home yet.
    #[serde(default = "filesystem_cache_bytes_max_default")]
    pub filesystem_cache_bytes_max: usize,
    /// Domain of owners' names over NFS (`name@domain`, by the node's own name service); without it owners go as numbers. It must
    /// be the same on every node.
    #[serde(default)]
    pub idmap_domain: Option<String>,
    /// Timers of the replication protocol. They must be the same on every node.
    #[serde(default)]
    pub timing: TimingConfig,
    /// Timers of the consensus group. They must be the same on every node.
    #[serde(default)]
    pub raft: RaftTiming,
}

/// Listening addresses, `IP:port`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Replication, Raft, and the supervisors' goodbyes.
    pub peer: SocketAddr,
    /// The admin API.
    pub admin: SocketAddr,
    /// NBD clients; not used by a witness.
    pub nbd: SocketAddr,
    /// NFS clients of services without a floating address, while this node is primary; the port is the service's. Default:
    /// the address of `nbd`. Not used by a witness.
    pub nfs: Option<IpAddr>,
    /// Metrics for Prometheus, by HTTP; none unless given.
    pub metrics: Option<SocketAddr>,
}

/// Addresses that the other nodes and clients use, `host:port`; each defaults to the listening address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Advertise {
    /// For the peer listener.
    pub peer: Option<String>,
    /// For the admin API.
    pub admin: Option<String>,
    /// For NBD.
    pub nbd: Option<String>,
    /// Host, without a port, for NFS; it defaults to what clients of NBD use unless `listen.nfs` is given.
    pub nfs: Option<String>,
}

/// When the primary may answer a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reads {
    /// While it holds a lease, by its own clock.
    Lease,
    /// After a peer has confirmed a beacon sent after the read arrived; one round trip, and no trust in the clock.
    Confirmed,
    /// `confirmed` in a virtual machine, where a pause may not show in any clock, else `lease`.
    #[default]
    Auto,
}

/// Replication timers in milliseconds; those left out keep their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimingConfig {
    /// Between beacons (default 100).
    pub beacon_interval_ms: Option<u64>,
    /// The primary's lease, from sending a beacon (default 1000).
    pub lease_ms: Option<u64>,
    /// A secondary's grace, from receiving a beacon (default 1500); at least a tenth longer than the lease.
    pub grace_ms: Option<u64>,
    /// Silence after which the primary drops a member (default 600).
    pub shrink_after_ms: Option<u64>,
    /// An operation older than this counts as failed (default 5000).
    pub io_timeout_ms: Option<u64>,
    /// Silence of the others after which a member that lost power may serve alone (default 30000).
    pub cold_wait_ms: Option<u64>,
}

/// Consensus timers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftTiming {
    /// Length of a tick in milliseconds.
    pub tick_ms: u64,
    /// Least election timeout in ticks; it is drawn between this and twice this.
    pub election_ticks: usize,
}

fn scrub_period_days_default() -> u64 {
    Timing::default().scrub_period.map_or(0, |period| period.0 / 1_000_000 / DAY_SECONDS)
}

fn extent_idle_seconds_default() -> u64 {
    Timing::default().extent_idle.0 / 1_000_000
}

fn filesystem_cache_bytes_max_default() -> usize {
    256 << 20
}

impl Default for Listen {
    fn default() -> Self {
        let loopback = |port| SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
        Self { peer: loopback(7400), admin: loopback(7401), nbd: loopback(10809), nfs: None, metrics: None }
    }
}

impl Default for RaftTiming {
    fn default() -> Self {
        Self { tick_ms: 50, election_ticks: 10 }
    }
}

impl NodeConfig {
    /// Reads and checks the file at `path`. A relative `data_dir` or device counts from the file's directory.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        let mut config = Self::parse(&text, path)?;
        let base = path.parent().map(Path::to_path_buf).unwrap_or_default();
        config.data_dir = base.join(&config.data_dir);
        config.devices = config.devices.iter().map(|device| base.join(device)).collect();
        Ok(config)
    }

    /// Parses and checks `text`; `path` only names the file in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
            ConfigError::Syntax { path: path.to_path_buf(), line, why: error.message().replace('\n', " ") }
        })?;
        config.check().map_err(|(field, why)| ConfigError::Value { path: path.to_path_buf(), field, why })?;
        Ok(config)
    }

    /// `host:port` told to others for the peer, admin and NBD listeners.
    pub fn addresses(&self) -> [String; 3] {
        let or = |advertised: &Option<String>, listen: SocketAddr| advertised.clone().unwrap_or(listen.to_string());
        [
            or(&self.advertise.peer, self.listen.peer),
            or(&self.advertise.admin, self.listen.admin),
            or(&self.advertise.nbd, self.listen.nbd),
        ]
    }

    /// Where NFS services without a floating address listen; the port is the service's.
    pub fn nfs_listen(&self) -> IpAddr {
        self.listen.nfs.unwrap_or(self.listen.nbd.ip())
    }

    /// Host told to clients of such services.
    pub fn nfs_host(&self) -> String {
        match (&self.advertise.nfs, self.listen.nfs) {
            (Some(host), _) => host.clone(),
            (None, Some(address)) => address.to_string(),
            (None, None) => {
                let [_, _, nbd] = self.addresses();
                host_of(&nbd).trim_matches(['[', ']']).to_owned()
            }
        }
    }

    /// Data plane threads to start.
    pub fn shard_count(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        self.shards.unwrap_or_else(cores).clamp(1, SHARDS_MAX)
    }

    /// True when a listener is reachable from other machines.
    pub fn listens_beyond_loopback(&self) -> bool {
        let addresses = [self.listen.peer.ip(), self.listen.admin.ip(), self.listen.nbd.ip(), self.nfs_listen()];
        let metrics = self.listen.metrics.map(|metrics| metrics.ip());
        addresses.iter().chain(&metrics).any(|address| !address.is_loopback())
    }

    /// Timers for the replicas. `virtual_machine` decides what `reads = "auto"` means.
    pub fn replica_timing(&self, virtual_machine: bool) -> Timing {
        let or = |given: Option<u64>, default: Micros| given.map_or(default, Micros::from_millis);
        let default = Timing::default();
        Timing {
            beacon_interval: or(self.timing.beacon_interval_ms, default.beacon_interval),
            lease: or(self.timing.lease_ms, default.lease),
            grace: or(self.timing.grace_ms, default.grace),
            shrink_after: or(self.timing.shrink_after_ms, default.shrink_after),
            io_timeout: or(self.timing.io_timeout_ms, default.io_timeout),
            cold_wait: or(self.timing.cold_wait_ms, default.cold_wait),
            confirmed_reads: match self.reads {
                Reads::Lease => false,
                Reads::Confirmed => true,
                Reads::Auto => virtual_machine,
            },
            extent_idle: Micros::from_secs(self.extent_idle_seconds),
            scrub_period: (self.scrub_period_days > 0).then(|| Micros::from_secs(self.scrub_period_days * DAY_SECONDS)),
            ..default
        }
    }

    /// Length of a Raft tick.
    pub fn raft_tick(&self) -> Duration {
        Duration::from_millis(self.raft.tick_ms)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let name_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > NODE_NAME_CHARS_MAX || !self.name.chars().all(name_ok) {
            let allowed = "allowed are 1 to 63 letters, digits, `-`, `_` and `.`";
            return Err(("name", format!("`{}` is no node name; {allowed}", self.name)));
        }
        if self.data_dir.as_os_str().is_empty() {
            return Err(("data_dir", "it is empty; give a directory".into()));
        }
        if let Some(shards) = self.shards
            && !(1..=SHARDS_MAX).contains(&shards)
        {
            return Err(("shards", format!("{shards} is outside 1 to {SHARDS_MAX}")));
        }
        if self.devices.len() > DEVICES_MAX {
            return Err(("devices", format!("{} devices; at most {DEVICES_MAX} are allowed", self.devices.len())));
        }
        if self.scrub_period_days > SCRUB_PERIOD_DAYS_MAX {
            let allowed = format!("allowed are 1 to {SCRUB_PERIOD_DAYS_MAX}, and 0 for none");
            return Err(("scrub_period_days", format!("{} is too long; {allowed}", self.scrub_period_days)));
        }
        if !(1..=EXTENT_IDLE_SECONDS_MAX).contains(&self.extent_idle_seconds) {
            let given = self.extent_idle_seconds;
            return Err(("extent_idle_seconds", format!("{given} is outside 1 to {EXTENT_IDLE_SECONDS_MAX}")));
        }
        if self.filesystem_cache_bytes_max < FILESYSTEM_CACHE_BYTES_MIN {
            let why = format!("it must be at least {FILESYSTEM_CACHE_BYTES_MIN} (16 MiB)");
            return Err(("filesystem_cache_bytes_max", why));
        }
        self.check_idmap_domain()?;
        self.check_addresses()?;
        self.check_timing()
    }

    fn check_addresses(&self) -> Result<(), (&'static str, String)> {
        let listed = [
            ("listen.peer", self.listen.peer, &self.advertise.peer),
            ("listen.admin", self.listen.admin, &self.advertise.admin),
            ("listen.nbd", self.listen.nbd, &self.advertise.nbd),
        ];
        for (index, (field, listen, advertised)) in listed.iter().enumerate() {
            if listen.port() == 0 {
                return Err((field, "port 0 is not allowed; others must know the port".into()));
            }
            if !listen.ip().is_loopback() && !self.insecure_plaintext {
                let why = "is not a loopback address, and traffic is not encrypted yet; \
                           listen on 127.0.0.1 or set insecure_plaintext = true";
                return Err((field, format!("{listen} {why}")));
            }
            if listen.ip().is_unspecified() && advertised.is_none() {
                let why = "is no address that others can reach; name one in the same field of [advertise]";
                return Err((field, format!("{listen} {why}")));
            }
            if listed[..index].iter().any(|(_, other, _)| other == listen) {
                return Err((field, format!("{listen} is used by another listener")));
            }
        }
        self.check_metrics()?;
        self.check_nfs()?;
        for (field, advertised) in [
            ("advertise.peer", &self.advertise.peer),
            ("advertise.admin", &self.advertise.admin),
            ("advertise.nbd", &self.advertise.nbd),
        ] {
            let well_formed = |text: &str| {
                text.rsplit_once(':')
                    .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
            };
            if let Some(text) = advertised
                && !well_formed(text)
            {
                return Err((field, format!("`{text}` is not host:port")));
            }
        }
        Ok(())
    }

    fn check_idmap_domain(&self) -> Result<(), (&'static str, String)> {
        let Some(domain) = &self.idmap_domain else { return Ok(()) };
        let is_label = |label: &str| {
            !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        match domain.len() <= DOMAIN_CHARS_MAX && domain.split('.').all(is_label) {
            true => Ok(()),
            false => {
                let why =
                    format!("`{domain}` is no domain; write it like example.org, up to {DOMAIN_CHARS_MAX} characters");
                Err(("idmap_domain", why))
            }
        }
    }

    fn check_metrics(&self) -> Result<(), (&'static str, String)> {
        let Some(metrics) = self.listen.metrics else { return Ok(()) };
        let others = [self.listen.peer, self.listen.admin, self.listen.nbd];
        let why = match () {
            () if metrics.port() == 0 => "port 0 is not allowed; whoever reads the metrics must know the port",
            () if !metrics.ip().is_loopback() && !self.insecure_plaintext => {
                "is not a loopback address, and traffic is not encrypted yet; set insecure_plaintext = true"
            }
            () if others.contains(&metrics) => "is used by another listener",
            () => return Ok(()),
        };
        Err(("listen.metrics", format!("{metrics} {why}")))
    }

    fn check_nfs(&self) -> Result<(), (&'static str, String)> {
        if let Some(address) = self.listen.nfs {
            if !address.is_loopback() && !self.insecure_plaintext {
                let why = "is not a loopback address, and traffic is not encrypted yet; set insecure_plaintext = true";
                return Err(("listen.nfs", format!("{address} {why}")));
            }
            if address.is_unspecified() && self.advertise.nfs.is_none() {
                let why = "is no address that others can reach; name one in the same field of [advertise]";
                return Err(("listen.nfs", format!("{address} {why}")));
            }
        }
        match &self.advertise.nfs {
            Some(host) if host.is_empty() || (host.contains(':') && host.parse::<Ipv6Addr>().is_err()) => {
                let why = "is no host; write a name or an address, without a port: that is the service's";
                Err(("advertise.nfs", format!("`{host}` {why}")))
            }
            _ => Ok(()),
        }
    }

    fn check_timing(&self) -> Result<(), (&'static str, String)> {
        let given = &self.timing;
        let all = [
            given.beacon_interval_ms,
            given.lease_ms,
            given.grace_ms,
            given.shrink_after_ms,
            given.io_timeout_ms,
            given.cold_wait_ms,
        ];
        if all.iter().flatten().any(|ms| *ms > TIMER_MS_MAX) {
            return Err(("timing", format!("a timer is longer than {TIMER_MS_MAX} milliseconds")));
        }
        let timing = self.replica_timing(false);
        if timing.beacon_interval.0 == 0 || timing.beacon_interval.0 * 3 > timing.lease.0 {
            return Err(("timing.beacon_interval_ms", "it must be at least 1 and at most a third of lease_ms".into()));
        }
        // The difference is what covers the drift between two boxes' clocks.
        if timing.grace.0 * 10 < timing.lease.0 * 11 {
            return Err(("timing.grace_ms", "it must be at least 1.1 times lease_ms".into()));
        }
        if timing.shrink_after.0 >= timing.grace.0 || timing.shrink_after.0 < timing.beacon_interval.0 * 2 {
            let why = "it must be at least twice beacon_interval_ms, and less than grace_ms";
            return Err(("timing.shrink_after_ms", why.into()));
        }
        if timing.io_timeout.0 < timing.shrink_after.0 {
            return Err(("timing.io_timeout_ms", "it must be at least shrink_after_ms".into()));
        }
        if !(5..=10_000).contains(&self.raft.tick_ms) {
            return Err(("raft.tick_ms", "it must be between 5 and 10000".into()));
        }
        if !(5..=1000).contains(&self.raft.election_ticks) {
            return Err(("raft.election_ticks", "it must be between 5 and 1000".into()));
        }
        Ok(())
    }
}

/// True when this kernel runs under a hypervisor, by the flag that x86 processors show in `/proc/cpuinfo`. Where it
/// cannot be known it counts as true: that costs a round trip, the other mistake costs correctness.
pub fn runs_in_virtual_machine() -> bool {
    match std::fs::read_to_string("/proc/cpuinfo") {
        Ok(text) => virtual_by_cpuinfo(&text),
        Err(_) => true,
    }
}

fn virtual_by_cpuinfo(text: &str) -> bool {
    match text.lines().find(|line| line.starts_with("flags")) {
        Some(flags) => flags.split_ascii_whitespace().any(|flag| flag == "hypervisor"),
        None => true,
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
