//! A cluster whose boxes stand on disks that forget, with a load on its volume: what every campaign works on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::disk::{DiskFaults, VolatileDisk};
use super::load::Load;
use super::pattern::BLOCK_BYTES;
use crate::e2e::cli::VolumeState;
use crate::e2e::cluster::{ALPHA, BETA, scratch_directory};
use crate::e2e::nbd::NbdConnection;
use crate::e2e::process::{is_alive, send};
use crate::e2e::{Cluster, ClusterOptions};

/// The volume's name.
pub const VOLUME: &str = "vol";
/// How long a client waits for an answer before it tries the other box.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);
/// The longest that it may take until both copies are in sync again.
const HEALTH_LIMIT: Duration = Duration::from_secs(120);
pub(super) const POLL: Duration = Duration::from_millis(10);

const BOXES: u64 = 3;
/// The longest that killed processes may take to end, with all requests they have with the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The longest that an orderly stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What to build.
#[derive(Clone, Debug)]
pub struct RigOptions {
    /// The `torture` program, which serves the disks.
    pub program: PathBuf,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Bytes at its end that the load leaves alone.
    pub spare_bytes: u64,
    /// Each box in its own network namespace, so that links can be cut.
    pub namespaces: bool,
    /// Whether the disks lie: a flush does nothing.
    pub lying: bool,
    /// Writers and readers of the load.
    pub writers: u64,
    /// See `writers`.
    pub readers: u64,
    /// For the load.
    pub seed: u64,
}

/// Timers shorter than the defaults, so that a round of faults takes seconds, and extents become cold and hot all the time.
const TIMING: &str = "extent_idle_seconds = 1\nscrub_period_days = 0\n[timing]\nbeacon_interval_ms = 50\nlease_ms = 600\ngrace_ms = 800\nshrink_after_ms = 400\n";

/// Cluster, disks and load.
pub struct Rig {
    /// Runs on the volume from the start.
    pub load: Load,
    /// The boxes.
    pub cluster: Cluster,
    disks: Vec<VolatileDisk>,
    boots: [u64; BOXES as usize],
    size_bytes: u64,
    /// No further round is to take place on it.
    pub spent: bool,
    /// Pages of log, index or checksums were damaged: the checksums of extents may be unknown until these are written again.
    pub metadata_lost: bool,
    keep: bool,
}

impl Rig {
    /// Starts everything and waits until both copies are in sync.
    pub fn start(options: &RigOptions) -> io::Result<Self> {
        Self::start_with(options, |cluster, _| {
            cluster.form();
            cluster.create_volume(VOLUME, &options.size_bytes.to_string());
        })
    }

    /// The same, where `form` makes a cluster with a volume of the boxes, which stand on their disks.
    pub fn start_with(options: &RigOptions, form: impl FnOnce(&mut Cluster, &mut [VolatileDisk])) -> io::Result<Self> {
        let cluster_options = ClusterOptions {
            namespaces: options.namespaces,
            extra_config: TIMING.to_owned(),
            directory: Some(scratch_directory()),
        };
        let mut cluster = Cluster::configure(&cluster_options);
        // A panic is a finding of the campaign, told with its seed.
        cluster.allow_panics();
        let mount = |node: &crate::e2e::node::Node| VolatileDisk::mount(&options.program, &node.data_dir());
        let mut disks = cluster.nodes.iter().map(mount).collect::<io::Result<Vec<_>>>()?;
        for (index, node) in cluster.nodes.iter_mut().enumerate() {
            node.environment = vec![boot_id(index as u64)];
        }
        form(&mut cluster, &mut disks);
        for disk in &mut disks {
            disk.set_faults(DiskFaults { lying: options.lying, ..DiskFaults::default() })?;
        }
        let blocks = (options.size_bytes - options.spare_bytes) / BLOCK_BYTES as u64;
        let load = Load::start(connector(&cluster), blocks, options.writers, options.readers, options.seed);
        Ok(Self {
            load,
            cluster,
            disks,
            boots: std::array::from_fn(|index| index as u64),
            size_bytes: options.size_bytes,
            spent: false,
            metadata_lost: false,
            keep: false,
        })
    }

    /// Kills all processes of these boxes at one moment.
    pub fn kill(&mut self, boxes: &[usize]) {
        let running: Vec<usize> =
            boxes.iter().copied().filter(|index| self.cluster.nodes[*index].is_running()).collect();
        let tree: Vec<u32> = running.iter().flat_map(|index| self.cluster.nodes[*index].process().tree()).collect();
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            tree.iter().for_each(|pid| send(*pid, signal));
        }
        running.iter().for_each(|index| self.cluster.nodes[*index].kill());
        wait_for(KILL_LIMIT, || tree.iter().all(|pid| is_gone(*pid)));
    }

    /// Cuts the power of boxes whose processes were killed. Says what became of unflushed writes.
    pub fn cut(&mut self, index: usize, seed: u64) -> Result<String, String> {
        self.disks[index].cut(seed).map_err(|error| error.to_string())
    }

    /// Bytes of the volume.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Stops a box in order (SIGTERM) and waits for its end.
    pub fn stop(&mut self, index: usize) -> Result<(), String> {
        let node = &mut self.cluster.nodes[index];
        node.process().signal(Signal::SIGTERM);
        match node.process().wait_for_end(STOP_LIMIT) {
            true => Ok(()),
            false => Err(format!("{} did not end within {STOP_LIMIT:?} of SIGTERM", node.name)),
        }
    }

    /// The disk of a box.
    pub fn disk(&mut self, index: usize) -> &mut VolatileDisk {
        &mut self.disks[index]
    }

    /// Switches a box on, as another boot if its power was cut.
    pub fn power_on(&mut self, index: usize, other_boot: bool) {
        self.power_on_with(index, other_boot, &[]);
    }

    /// The same, with more variables in the environment of this one start.
    pub fn power_on_with(&mut self, index: usize, other_boot: bool, more: &[(String, String)]) {
        self.boots[index] += u64::from(other_boot) * BOXES;
        let node = &mut self.cluster.nodes[index];
        node.environment = vec![boot_id(self.boots[index])];
        node.environment.extend_from_slice(more);
        node.start_unwatched();
    }

    /// Whether all running nodes call this node's copy an in-sync member. One that does not answer says no.
    pub fn is_surely_in_sync(&mut self, index: usize) -> bool {
        let name = self.cluster.nodes[index].name.clone();
        let running: Vec<usize> =
            (0..self.cluster.nodes.len()).filter(|at| self.cluster.nodes[*at].is_running()).collect();
        running
            .into_iter()
            .all(|at| self.cluster.volume_at(at, VOLUME).is_some_and(|state| state.in_sync.contains(&name)))
    }

    /// Whether both copies are in sync and nothing is amiss.
    pub fn is_healthy(&self) -> bool {
        self.cluster.volume(VOLUME).is_some_and(|state| state.level == "healthy" && state.in_sync.len() == 2)
    }

    /// A node that answers the command line.
    pub fn some_answering_node(&self) -> Option<usize> {
        (0..self.cluster.nodes.len()).find(|at| self.cluster.volume_at(*at, VOLUME).is_some())
    }

    /// Waits until both copies are in sync again. The error says what the cluster says.
    pub fn wait_healthy(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + HEALTH_LIMIT;
        let mut last = None;
        while Instant::now() < deadline {
            for node in &mut self.cluster.nodes {
                if !node.is_running() {
                    return Err(format!("{} ended by itself", node.name));
                }
            }
            // All of them: one that was away may still believe what held before.
            let states: Vec<_> =
                (0..self.cluster.nodes.len()).filter_map(|at| self.cluster.volume_at(at, VOLUME)).collect();
            let healthy = |state: &VolumeState| state.level == "healthy" && state.in_sync.len() == 2;
            let agree = states.iter().all(|state| healthy(state) && state.epoch == states[0].epoch);
            if agree && states.len() == self.cluster.nodes.len() {
                return Ok(());
            }
            last = states.into_iter().find(|state| !healthy(state)).or(last);
            std::thread::sleep(POLL);
        }
        let text = last.map_or_else(|| "no node answers".to_owned(), |state| state.text);
        Err(format!("not healthy within {HEALTH_LIMIT:?}: {text}"))
    }

    /// Pauses the load, flushes, reads every block, compares the copies, and lets the load go on.
    pub fn check(&mut self) -> Result<(), String> {
        self.load.pause()?;
        self.read_everything()?;
        self.wait_healthy()?;
        self.compare_copies()?;
        self.load.resume();
        self.no_findings()
    }

    /// Flushes a paused load, reads every block as a client does, and judges it.
    pub fn read_everything(&mut self) -> Result<(), String> {
        let connect = connector(&self.cluster);
        let deadline = Instant::now() + HEALTH_LIMIT;
        let mut last = "nobody serves it".to_owned();
        loop {
            if let Some(mut connection) = connect() {
                match self.load.verify(&mut connection)? {
                    Ok(()) => {
                        connection.disconnect();
                        return Ok(());
                    }
                    // On a busy machine leases end and another box takes over in between.
                    Err(error) => last = format!("{error:?}"),
                }
            }
            if Instant::now() >= deadline {
                return Err(format!("the healthy volume cannot be read within {HEALTH_LIMIT:?}: {last}"));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Fails if a reader of the load has found something wrong.
    pub fn no_findings(&self) -> Result<(), String> {
        let findings = self.load.findings();
        if findings.is_empty() { Ok(()) } else { Err(findings.join("\n")) }
    }

    /// Where the disk of a box is mounted.
    pub fn mount_point(&self, index: usize) -> &Path {
        self.disks[index].mount_point()
    }

    /// The last lines of all logs.
    pub fn logs(&self, lines: usize) -> String {
        let tail = |text: &str| {
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        };
        self.cluster.nodes.iter().map(|node| format!("---- {}\n{}\n", node.name, tail(&node.log()))).collect()
    }

    /// Keeps everything for whoever looks into a finding: logs, and copies of what the disks hold. Says where.
    pub fn keep(&mut self) -> String {
        self.keep = true;
        let home = self.cluster.home().to_owned();
        for (node, disk) in self.cluster.nodes.iter().zip(&self.disks) {
            let copied = copy_tree(disk.mount_point(), &home.join(&node.name).join("disk"));
            if let Err(error) = copied {
                eprintln!("the disk of {} could not be copied: {error}", node.name);
            }
        }
        home.display().to_string()
    }

    /// The first panic in any node's log.
    pub fn panic(&self) -> Option<String> {
        self.cluster.nodes.iter().find_map(|node| {
            let log = node.log();
            let line = log.lines().find(|line| line.contains("panicked at"))?;
            Some(format!("{} panicked: {line}", node.name))
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The processes before their disks.
        for node in &mut self.cluster.nodes {
            if node.is_running() {
                node.kill();
            }
        }
        self.disks.clear();
        if !self.keep {
            let _ = std::fs::remove_dir_all(self.cluster.home());
        }
    }
}

/// A connector that tries one storage node after the other.
pub fn connector(cluster: &Cluster) -> crate::e2e::writer::Connector {
    let (network, nodes) = (cluster.network.clone(), [ALPHA, BETA].map(|index| cluster.nodes[index].addresses.nbd));
    Arc::new(move || {
        nodes.iter().find_map(|address| {
            let stream = network.connect(*address).ok()?;
            let mut connection = NbdConnection::negotiate(stream, VOLUME, Duration::from_secs(1)).ok()?;
            connection.set_timeout(CLIENT_LIMIT).ok()?;
            Some(connection)
        })
    })
}

/// Whether a process and all its threads have ended. A process counts as dead to its parent while other threads of it still
/// end, and hold its locks.
fn is_gone(pid: u32) -> bool {
    !is_alive(pid) && std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) <= 1
}

/// Polls until `fact` or the end of the limit; says which.
pub fn wait_for(limit: Duration, mut fact: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !fact() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

fn boot_id(number: u64) -> (String, String) {
    ("TANDEM_TEST_BOOT_ID".to_owned(), format!("00000000-0000-4000-8000-{:012x}", number + 1))
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_tree(&entry.path(), &target)?,
            false => std::fs::copy(entry.path(), target).map(drop)?,
        }
    }
    Ok(())
}
