//! The side-by-side measurement of the block path.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::report::{Report, Row};
use super::targets::Target;
use super::{fio, floor, gluster, plot, report};
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

/// Jobs on several volumes of Tandem at once: name, job file, volumes.
const VOLUMES: &[(&str, &str, usize)] = &[
    ("randwrite-4k-qd32-x1", "randwrite-4k-qd32", 1),
    ("randwrite-4k-qd32-x2", "randwrite-4k-qd32", 2),
    ("randwrite-4k-qd32-x4", "randwrite-4k-qd32", 4),
];
const VOLUMES_MAX: usize = 4;

const GLUSTER: &str = "gluster";

/// What the disk itself is asked before and after everything else: whether it was the same disk all the time.
const DISK: &[&str] = &["randwrite-4k-qd1", "randwrite-4k-qd32", "randread-4k-qd32", "write-1m-qd8"];

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
    /// Only these targets: raw, qemu, quorum, nbdkit, gluster (not by itself with `--quick`), tandem (and `--compare`'s).
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// Only workloads whose names contain one of these; all of them are measured, also with `--quick`.
    #[arg(long, value_delimiter = ',')]
    workload: Vec<String>,
    /// Another build of Tandem as one more target: a directory with its `tandem` and `cluster`, such as another checkout's
    /// `target/release`.
    #[arg(long)]
    compare: Option<PathBuf>,
    /// A directory with the `tandem` and the `cluster` to measure; left out, this workspace's are built.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Where the images lie; a directory on the disk to measure.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the figures go.
    #[arg(long, default_value = "bench-block.json")]
    output: PathBuf,
    /// Draws the ratios into this file, as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// Measures, prints a table, and writes the figures.
pub(crate) fn run(options: &BlockOptions) -> Result<()> {
    let mut packages = vec!["fio", "qemu-utils", "qemu-system-common", "nbdkit"];
    if wanted(options, GLUSTER) {
        packages.extend(gluster::PACKAGES);
    }
    let missing = tools::ensure(&packages)?;
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
    let disk = |report: &mut Report, when| -> Result<()> {
        let raw = targets.iter().filter(|target| target.name == "raw");
        for (target, workload) in raw.flat_map(|target| DISK.iter().map(move |workload| (target, *workload))) {
            let sample = fio::run(target, &jobs.join(format!("{workload}.fio")), size_bytes, 2, home.path())?;
            println!("the disk {when}, {workload}: {:.0} IOPS", sample.iops);
            report.add_disk(when, workload, sample);
        }
        Ok(())
    };
    disk(&mut report, "before")?;
    for round in 1..=rounds {
        report.add_round_trip(floor::round_trip_us(Duration::from_secs(1))?);
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
    disk(&mut report, "after")?;
    drop(targets);
    measure_volumes(options, &mut report, size_bytes / VOLUMES_MAX as u64, &jobs, home.path())?;
    println!("{}", report::table(&report));
    if let Some(plot) = &options.plot {
        plot::draw(&report, plot)?;
        println!("drew {}", plot.display());
    }
    fs::write(&options.output, serde_json::to_string_pretty(&report.summary())? + "\n")?;
    println!("wrote {}", options.output.display());
    Ok(())
}

/// Tandem alone, with a job on one of its volumes, on two, and on four at once.
fn measure_volumes(
    options: &BlockOptions,
    report: &mut Report,
    size_bytes: u64,
    jobs: &Path,
    scratch: &Path,
) -> Result<()> {
    let named = |name: &str| options.workload.iter().any(|wanted| name.contains(wanted.as_str()));
    let tandem = options.targets.is_empty() || options.targets.iter().any(|target| target == "tandem");
    let wanted = |name: &str| if options.workload.is_empty() { !options.quick } else { named(name) };
    let wanted: Vec<_> = VOLUMES.iter().filter(|(name, _, _)| tandem && wanted(name)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let target = Target::tandem_volumes(options.binaries.as_deref(), scratch, size_bytes, VOLUMES_MAX)?;
    println!("filling {VOLUMES_MAX} volumes");
    fio::fill(&target, size_bytes, scratch)?;
    for round in 1..=report.rounds() {
        for (name, job, volumes) in &wanted {
            let before = target.cpu_seconds()?;
            let job = jobs.join(format!("{job}.fio"));
            let mut sample = fio::run_on(&target, *volumes, &job, size_bytes, report.seconds(), scratch)?;
            sample.cpu_per_operation_us = cpu_per_operation(&target, before, &sample, report.seconds())?;
            println!("round {round} {name}: {:.0} IOPS, least share {:.2}", sample.iops, sample.least_share);
            report.add(Row { workload: name, target: target.name, sample });
        }
    }
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

/// Whether a target takes part: if it is named, or if none is.
fn wanted(options: &BlockOptions, target: &str) -> bool {
    match options.targets.as_slice() {
        [] => target != GLUSTER || !options.quick,
        named => named.iter().any(|name| name == target),
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
    sample.cpu_per_operation_us = cpu_per_operation(target, before, &sample, seconds)?;
    Ok(sample)
}

/// In microseconds, since a moment when the target had used `before` seconds.
fn cpu_per_operation(target: &Target, before: f64, sample: &fio::Sample, seconds: u64) -> Result<f64> {
    // fio counts operations after its first second only, the kernel counts time from the start.
    let measured = seconds as f64 / (seconds + fio::RAMP_SECONDS) as f64;
    Ok((target.cpu_seconds()? - before) * measured * 1e6 / sample.operations)
}

fn start_targets(options: &BlockOptions, home: &Path, size_bytes: u64) -> Result<Vec<Target>> {
    type Start<'a> = &'a dyn Fn(&Path, u64) -> Result<Target>;
    let tandem = |directory: &Path, size_bytes| Target::tandem(options.binaries.as_deref(), directory, size_bytes);
    let known: [(&str, Start<'_>); 6] = [
        ("raw", &Target::raw),
        ("qemu", &Target::qemu_single),
        ("quorum", &Target::qemu_quorum),
        ("nbdkit", &Target::nbdkit),
        (GLUSTER, &Target::gluster),
        ("tandem", &tandem),
    ];
    let mut targets = Vec::new();
    for (name, start) in known.into_iter().filter(|(name, _)| wanted(options, name)) {
        let programs: &[&str] = match name {
            "qemu" | "quorum" => &["qemu-storage-daemon"],
            "nbdkit" => &["nbdkit"],
            GLUSTER => &gluster::PROGRAMS,
            _ => &[],
        };
        if let Some(missing) = programs.iter().find(|program| !shell::program_exists(program)) {
            println!("skipped: {name}: no {missing}");
            continue;
        }
        match start(home, size_bytes).with_context(|| format!("starting {name}")) {
            Ok(target) => targets.push(target),
            // Namespaces and mounts are not permitted everywhere.
            Err(error) if name == GLUSTER => println!("skipped: {name}: {error:#}"),
            Err(error) => return Err(error),
        }
    }
    if let Some(release) = &options.compare {
        targets.push(Target::other_tandem(release, home, size_bytes).context("starting the build to compare with")?);
    }
    if targets.is_empty() {
        bail!("no target; known are raw, qemu, quorum, nbdkit, gluster and tandem");
    }
    Ok(targets)
}
