//! The side-by-side measurement of the block path.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::report::{Report, Row};
use super::targets::Target;
use super::{fio, report};
use crate::{shell, tools};

/// The job files of `benches/fio`; the first ones make up `--quick`.
const WORKLOADS: &[&str] = &[
    "randwrite-4k-qd1",
    "randwrite-4k-qd32",
    "randread-4k-qd32",
    "write-1m-qd8",
    "randwrite-4k-flush",
    "randwrite-4k-qd4",
    "randwrite-4k-qd128",
    "randread-4k-qd1",
    "randread-4k-qd4",
    "randread-4k-qd128",
    "randrw-4k-qd32",
    "randwrite-64k-qd8",
    "read-1m-qd8",
];
const QUICK: usize = 5;

const MIB: u64 = 1 << 20;

#[derive(Args)]
pub(crate) struct BlockOptions {
    /// One short round on a small volume.
    #[arg(long)]
    quick: bool,
    /// Rounds; the median of each figure counts.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds per measurement.
    #[arg(long)]
    seconds: Option<u64>,
    /// Size of each target in MiB.
    #[arg(long)]
    size_mib: Option<u64>,
    /// Only these targets: raw, qemu, quorum, tandem (and `--compare`'s).
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// Only workloads whose names contain one of these; all of them are measured, also with `--quick`.
    #[arg(long, value_delimiter = ',')]
    workload: Vec<String>,
    /// Another build of Tandem as one more target: a directory with its `tandem` and `cluster`, such as another checkout's
    /// `target/release`.
    #[arg(long)]
    compare: Option<PathBuf>,
    /// Where the images lie; a directory on the disk to measure.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the figures go.
    #[arg(long, default_value = "bench-block.json")]
    output: PathBuf,
}

/// Measures, prints a table, and writes the figures.
pub(crate) fn run(options: &BlockOptions) -> Result<()> {
    let missing = tools::ensure(&["fio", "qemu-utils", "qemu-system-common"])?;
    if missing.contains(&"fio") {
        bail!("fio is not installed");
    }
    let parent = options.dir.clone().unwrap_or_else(|| shell::target_dir().join("bench"));
    fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
    let home = tempfile::Builder::new().prefix("block-").tempdir_in(&parent)?;
    let size_bytes = options.size_mib.unwrap_or(if options.quick { 512 } else { 2048 }) * MIB;
    let seconds = options.seconds.unwrap_or(if options.quick { 3 } else { 8 });
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 3 });
    let targets = start_targets(options, home.path(), size_bytes)?;
    for target in &targets {
        println!("filling {}", target.name);
        fio::fill(target, size_bytes, home.path())?;
    }
    let jobs = shell::workspace_root().join("benches/fio");
    let mut report = Report::new(size_bytes, seconds, rounds);
    for round in 1..=rounds {
        for workload in workloads(options) {
            // Targets take turns within a round, so that a drift of the machine hits all alike.
            for target in &targets {
                let sample = measure(target, &jobs, workload, size_bytes, seconds, home.path())?;
                println!(
                    "round {round} {workload} {}: {:.0} IOPS, {:.0} us, p99 {:.0} us, {:.1} us of processor time each",
                    target.name,
                    sample.iops,
                    sample.latency_mean_us,
                    sample.latency_p99_us,
                    sample.cpu_per_operation_us
                );
                report.add(Row { workload, target: target.name, sample });
            }
        }
    }
    println!("{}", report::table(&report));
    fs::write(&options.output, serde_json::to_string_pretty(&report.summary())? + "\n")?;
    println!("wrote {}", options.output.display());
    Ok(())
}

fn workloads(options: &BlockOptions) -> Vec<&'static str> {
    let named = |workload: &&str| options.workload.iter().any(|wanted| workload.contains(wanted.as_str()));
    match (options.workload.is_empty(), options.quick) {
        (false, _) => WORKLOADS.iter().copied().filter(named).collect(),
        (true, true) => WORKLOADS[..QUICK].to_vec(),
        (true, false) => WORKLOADS.to_vec(),
    }
}

fn measure(
    target: &Target,
    jobs: &Path,
    workload: &str,
    size: u64,
    seconds: u64,
    scratch: &Path,
) -> Result<fio::Sample> {
    let before = target.cpu_seconds()?;
    let mut sample = fio::run(target, &jobs.join(format!("{workload}.fio")), size, seconds, scratch)
        .with_context(|| format!("{workload} on {}", target.name))?;
    // fio counts operations after its first second only, the kernel counts time from the start.
    let measured = seconds as f64 / (seconds + fio::RAMP_SECONDS) as f64;
    sample.cpu_per_operation_us = (target.cpu_seconds()? - before) * measured * 1e6 / sample.operations;
    Ok(sample)
}

fn start_targets(options: &BlockOptions, home: &Path, size_bytes: u64) -> Result<Vec<Target>> {
    type Start = fn(&Path, u64) -> Result<Target>;
    let known: [(&str, Start); 4] = [
        ("raw", Target::raw),
        ("qemu", Target::qemu_single),
        ("quorum", Target::qemu_quorum),
        ("tandem", Target::tandem),
    ];
    let mut targets = Vec::new();
    for (name, start) in known {
        if !options.targets.is_empty() && !options.targets.iter().any(|wanted| wanted == name) {
            continue;
        }
        if name.starts_with('q') && !shell::program_exists("qemu-storage-daemon") {
            println!("skipped: {name}: no qemu-storage-daemon");
            continue;
        }
        targets.push(start(home, size_bytes).with_context(|| format!("starting {name}"))?);
    }
    if let Some(release) = &options.compare {
        targets.push(Target::other_tandem(release, home, size_bytes).context("starting the build to compare with")?);
    }
    if targets.is_empty() {
        bail!("no target; known are raw, qemu, quorum and tandem");
    }
    Ok(targets)
}
