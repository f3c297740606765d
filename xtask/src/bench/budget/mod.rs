//! `cargo xtask bench budget`: where the time of one replicated 4 KiB write at depth 1 goes.
//!
//! fio writes to a pair through NBD while the kernel traces the system calls of fio and of both nodes' shards, the wake-ups
//! among them, and the disk's requests. The same run without the trace, before and after, tells what tracing costs.

mod cut;
mod events;
mod ftrace;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use self::cut::Side;
use self::events::{Numbers, Tid, Trace};
use self::ftrace::Recording;
use self::table::{Budget, Surroundings};
use super::targets::Target;
use super::{fio, floor, proc};
use crate::{shell, tools};

const WORKLOAD: &str = "randwrite-4k-qd1.fio";
const MIB: u64 = 1 << 20;
/// How the nodes' threads are named that do the work of volumes.
const SHARD: &str = "shard-";
/// The trace begins so long after what fio counts, and ends so long before.
const MARGIN: Duration = Duration::from_millis(300);

#[derive(Args)]
pub(crate) struct BudgetOptions {
    /// Size of the volume in MiB; it is filled first.
    #[arg(long, default_value_t = 512)]
    size_mib: u64,
    /// Seconds of each of the three runs of fio; the second one is traced.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// A directory with the `tandem` and the `cluster` to measure; left out, this workspace's are built.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Where the stores lie; a directory on the disk to measure.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the figures go.
    #[arg(long, default_value = "bench-budget.json")]
    output: PathBuf,
    /// Keeps the kernel's trace, as text.
    #[arg(long)]
    trace: Option<PathBuf>,
}

/// Measures, prints a table, and writes the figures.
pub(crate) fn run(options: &BudgetOptions) -> Result<()> {
    let root = match ftrace::root() {
        Ok(root) => root,
        Err(why) => {
            println!("skipped: the kernel's trace cannot be taken: {why}");
            return Ok(());
        }
    };
    if tools::ensure(&["fio"])?.contains(&"fio") {
        bail!("fio is not installed");
    }
    let parent = options.dir.clone().unwrap_or_else(|| shell::target_dir().join("bench"));
    fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
    let home = tempfile::Builder::new().prefix("budget-").tempdir_in(&parent)?;
    let (home, size_bytes) = (home.path(), options.size_mib * MIB);
    let (raw, pair) = (Target::raw(home, size_bytes)?, Target::tandem(options.binaries.as_deref(), home, size_bytes)?);
    for target in [&raw, &pair] {
        println!("filling {}", target.name);
        fio::fill(target, size_bytes, home)?;
    }
    let job = shell::workspace_root().join("benches/fio").join(WORKLOAD);
    let of = |target: &Target| fio::run(target, &job, size_bytes, options.seconds, home);
    let disk = of(&raw)?;
    let round_trip_us = floor::round_trip_us(Duration::from_secs(1))?;
    let before = of(&pair)?;
    let (text, threads, traced) = traced(options, root, &pair, &job, home)?;
    let after = of(&pair)?;
    if let Some(path) = &options.trace {
        fs::write(path, &text).with_context(|| format!("writing {}", path.display()))?;
    }
    let cut = cut::cut(&Trace::parse(&text, &Numbers::HERE), &threads);
    let surroundings = Surroundings {
        untraced_before_us: before.latency_mean_us,
        untraced_after_us: after.latency_mean_us,
        traced_us: traced.latency_mean_us,
        disk_us: disk.latency_p50_us,
        round_trip_us,
    };
    let begun = cut.begun;
    let budget = Budget::new(&cut, surroundings)
        .with_context(|| format!("none of {begun} traced writes has every step: the path has changed"))?;
    println!("{}", budget.table());
    fs::write(&options.output, serde_json::to_string_pretty(&budget.summary())? + "\n")?;
    println!("wrote {}", options.output.display());
    Ok(())
}

/// One run of fio with the trace in its middle: the trace's text, whose threads are in it, and fio's figures.
fn traced(
    options: &BudgetOptions,
    root: &Path,
    pair: &Target,
    job: &Path,
    home: &Path,
) -> Result<(String, BTreeMap<Tid, Side>, fio::Sample)> {
    let running = fio::Running::start(pair, job, options.size_mib * MIB, options.seconds, home)?;
    thread::sleep(Duration::from_secs(fio::RAMP_SECONDS) + MARGIN);
    let mut threads: BTreeMap<Tid, Side> =
        proc::threads(running.pid()).into_iter().map(|(tid, _)| (tid, Side::Client)).collect();
    for (index, node) in pair.nodes().iter().enumerate() {
        let shards = proc::threads(node.pid).into_iter().filter(|(_, name)| name.starts_with(SHARD));
        threads.extend(shards.map(|(tid, _)| (tid, Side::Node(index))));
    }
    let recording = Recording::start(root, &threads.keys().copied().collect::<Vec<_>>())?;
    thread::sleep(Duration::from_secs(options.seconds) - 2 * MARGIN);
    recording.stop()?;
    // Reading takes a processor for a while, so fio comes to its end first.
    let sample = running.finish()?;
    Ok((recording.text()?, threads, sample))
}
