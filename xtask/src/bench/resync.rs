//! What a full resync costs: its speed when nobody else wants the disk, what clients feel of it, and whether holes stay holes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::cluster::DemoCluster;
use super::fio;
use super::targets::Target;
use crate::{shell, tools};

const MIB: u64 = 1 << 20;
const VOLUME: &str = "vol";
/// The box whose copy is taken away and made anew.
const BOX: &str = "beta";
const POLL: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(900);
/// Part of the volume that is written: the rest are holes.
const WRITTEN_PERCENT: u64 = 75;

#[derive(Args)]
pub(crate) struct ResyncOptions {
    /// Size of the volume in MiB; three quarters of it are written.
    #[arg(long, default_value_t = 4096)]
    size_mib: u64,
    /// Rounds; each resyncs idle, measures clients alone, and measures them beside a resync.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement of clients.
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// The clients' workload, of `benches/fio`.
    #[arg(long, default_value = "randwrite-4k-qd4")]
    workload: String,
    /// Where the figures go.
    #[arg(long, default_value = "bench-resync.json")]
    output: PathBuf,
}

/// A pair, and what is asked of it by its command line.
struct Pair {
    target: Target,
    admin: String,
    stores: [PathBuf; 2],
}

impl Pair {
    fn start(home: &Path, size_bytes: u64) -> Result<Self> {
        let cluster = DemoCluster::start(&home.join("pair"), size_bytes, 1)?;
        let admin = cluster.nodes().first().context("no node")?.admin.clone();
        let pair = Self { target: Target::pair("tandem", cluster), admin, stores: Default::default() };
        let stores = [pair.store("alpha")?, pair.store(BOX)?];
        Ok(Self { stores, ..pair })
    }

    fn cli(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(shell::release_binary("tandem"));
        command.args(args).args(["--json", "--admin", &self.admin]);
        let output = shell::output(&mut command).with_context(|| format!("tandem {}", args.join(" ")))?;
        Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
    }

    fn replica(&self, name: &str) -> Result<Value> {
        let shown = self.cli(&["volume", "show", VOLUME])?;
        let replicas = shown["replicas"].as_array().cloned().unwrap_or_default();
        Ok(replicas.into_iter().find(|replica| replica["node_name"] == name).unwrap_or(Value::Null))
    }

    fn store(&self, name: &str) -> Result<PathBuf> {
        let replica = self.replica(name)?;
        Ok(replica["path"].as_str().with_context(|| format!("no path of {name}'s store"))?.into())
    }

    fn in_sync(&self) -> Result<bool> {
        Ok(self.replica(BOX)?["in_sync"] == true)
    }

    /// Takes the second copy away and makes a new, empty one: the resync begins.
    fn begin_resync(&mut self) -> Result<()> {
        self.cli(&["volume", "detach", VOLUME, "--node", BOX])?;
        wait("the copy leaves the set", || Ok(!self.in_sync()?))?;
        self.cli(&["volume", "remove-replica", VOLUME, "--node", BOX])?;
        wait("the copy is gone", || Ok(self.replica(BOX)?.is_null()))?;
        self.cli(&["volume", "add-replica", VOLUME, "--node", BOX])?;
        wait("the new copy has a store", || Ok(self.store(BOX).is_ok_and(|path| path.exists())))?;
        self.stores[1] = self.store(BOX)?;
        Ok(())
    }

    fn allocated_bytes(&self) -> Result<[u64; 2]> {
        let of = |path: &PathBuf| Ok::<_, anyhow::Error>(fs::metadata(path)?.blocks() * 512);
        Ok([of(&self.stores[0])?, of(&self.stores[1])?])
    }
}

/// Measures, prints the figures, and writes them.
pub(crate) fn run(options: &ResyncOptions) -> Result<()> {
    if tools::ensure(&["fio"])?.contains(&"fio") {
        bail!("fio is not installed");
    }
    let parent = shell::target_dir().join("bench");
    fs::create_dir_all(&parent)?;
    let home = tempfile::Builder::new().prefix("resync-").tempdir_in(&parent)?;
    let size_bytes = options.size_mib * MIB;
    let written_bytes = size_bytes / 100 * WRITTEN_PERCENT / MIB * MIB;
    let job = shell::workspace_root().join("benches/fio").join(format!("{}.fio", options.workload));
    let jobs = shell::workspace_root().join("benches/fio");
    let mut pair = Pair::start(home.path(), size_bytes)?;
    println!("writing {} MiB of {}", written_bytes / MIB, options.size_mib);
    fio::fill(&pair.target, written_bytes, home.path())?;
    let raw = Target::raw(home.path(), written_bytes.min(1024 * MIB))?;
    fio::fill(&raw, written_bytes.min(1024 * MIB), home.path())?;
    let mut rounds = Vec::new();
    for round in 1..=options.rounds {
        let disk = |name: &str| fio::run(&raw, &jobs.join(name), written_bytes.min(1024 * MIB), 2, home.path());
        let (write, read) = (disk("write-1m-qd8.fio")?, disk("read-1m-qd8.fio")?);
        // Both boxes' stores are on one disk: it reads every byte for the one and writes it for the other.
        let copy_bytes_per_second = disk("copy-1m-qd16.fio")?.bytes_per_second / 2.0;
        let added = Instant::now();
        pair.begin_resync()?;
        wait("the resync begins", || Ok(pair.replica(BOX)?["role"] == "resyncing" || pair.in_sync()?))?;
        let began_after_seconds = added.elapsed().as_secs_f64();
        let started = Instant::now();
        wait("the resync ends", || pair.in_sync())?;
        let idle = written_bytes as f64 / started.elapsed().as_secs_f64();
        let clients = |pair: &Pair| fio::run(&pair.target, &job, written_bytes, options.seconds, home.path());
        let alone = clients(&pair)?;
        pair.begin_resync()?;
        let started = Instant::now();
        let beside = clients(&pair)?;
        let outlasted = !pair.in_sync()?;
        wait("the resync ends", || pair.in_sync())?;
        let busy_seconds = started.elapsed().as_secs_f64();
        let allocated = pair.allocated_bytes()?;
        println!(
            "round {round}: idle {:.0} MB/s (disk writes {:.0}, reads {:.0}, copies {:.0}; begun {began_after_seconds:.1} s \
             after the copy was taken away); clients' p99 {:.0} us alone, {:.0} us beside \
             the resync ({:.2} x), {:.0} and {:.0} IOPS; it took {busy_seconds:.1} s{}; {:.0} and {:.0} MiB allocated",
            idle / 1e6,
            write.bytes_per_second / 1e6,
            read.bytes_per_second / 1e6,
            copy_bytes_per_second / 1e6,
            alone.latency_p99_us,
            beside.latency_p99_us,
            beside.latency_p99_us / alone.latency_p99_us,
            alone.iops,
            beside.iops,
            if outlasted { "" } else { " and ended before the clients did" },
            allocated[0] as f64 / MIB as f64,
            allocated[1] as f64 / MIB as f64,
        );
        rounds.push(json!({
            "idle_bytes_per_second": idle,
            "disk_write_bytes_per_second": write.bytes_per_second,
            "disk_read_bytes_per_second": read.bytes_per_second,
            "disk_copy_bytes_per_second": copy_bytes_per_second,
            "began_after_seconds": began_after_seconds,
            "clients_alone": alone,
            "clients_beside": beside,
            "resync_outlasted_clients": outlasted,
            "beside_clients_seconds": busy_seconds,
            "allocated_bytes": allocated,
        }));
    }
    let report = json!({ "size_bytes": size_bytes, "written_bytes": written_bytes, "rounds": rounds });
    fs::write(&options.output, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("wrote {}", options.output.display());
    Ok(())
}

fn wait(what: &str, mut until: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !until()? {
        if Instant::now() > deadline {
            bail!("not within {LIMIT:?}: {what}");
        }
        thread::sleep(POLL);
    }
    Ok(())
}
