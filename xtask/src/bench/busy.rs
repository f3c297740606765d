//! What busy volumes cost in memory, and whether it grows: several workloads in turn on all volumes at once, for as long as
//! one likes, and each node's resident memory meanwhile.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::cluster::{DemoCluster, NodeProcess};
use super::fio;
use super::proc::resident_bytes;
use super::targets::Target;
use crate::{shell, tools};

const MIB: u64 = 1 << 20;
const POLL: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(crate) struct BusyOptions {
    /// Volumes, all busy at once.
    #[arg(long, default_value_t = 10)]
    volumes: usize,
    /// Size of each volume in MiB.
    #[arg(long, default_value_t = 256)]
    size_mib: u64,
    /// How long; a pass through the workloads that has begun is finished.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Seconds of each workload in a pass.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// The workloads of a pass, of `benches/fio`.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "randrw-4k-qd32,randwrite-4k-qd128,randwrite-64k-qd8,write-1m-qd8,read-1m-qd8,randwrite-4k-flush"
    )]
    workload: Vec<String>,
    /// Measure the `tandem` of this directory, with its `cluster`, instead of building this workspace.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Where the figures go.
    #[arg(long, default_value = "bench-busy.json")]
    output: PathBuf,
}

/// One workload of one pass.
#[derive(Serialize)]
struct Step {
    pass: usize,
    workload: String,
    iops: f64,
    bytes_per_second: f64,
    /// Highest resident memory of each node, parent and worker together.
    resident_bytes_max: Vec<u64>,
}

/// Starts the cluster, writes each volume in full, and keeps all of them busy.
pub(crate) fn run(options: &BusyOptions) -> Result<()> {
    if tools::ensure(&["fio"])?.contains(&"fio") {
        bail!("fio is not installed");
    }
    let parent = shell::target_dir().join("bench");
    fs::create_dir_all(&parent)?;
    let home = tempfile::Builder::new().prefix("busy-").tempdir_in(&parent)?;
    let size_bytes = options.size_mib * MIB;
    let pair = home.path().join("pair");
    let cluster = DemoCluster::start_with(options.binaries.as_deref(), &pair, size_bytes, options.volumes)?;
    let nodes = cluster.nodes().to_vec();
    let idle = resident(&nodes)?;
    let target = Target::pair("tandem", cluster);
    println!("writing {} volumes of {} MiB", options.volumes, options.size_mib);
    fio::fill(&target, size_bytes, home.path())?;
    let jobs = shell::workspace_root().join("benches/fio");
    let deadline = Instant::now() + Duration::from_secs(60 * options.minutes);
    let mut steps: Vec<Step> = Vec::new();
    let mut passes = 0;
    while Instant::now() < deadline {
        passes += 1;
        for workload in &options.workload {
            let job = jobs.join(format!("{workload}.fio"));
            let mut highest = resident(&nodes)?;
            let sample = thread::scope(|scope| {
                let clients = scope.spawn(|| fio::run(&target, &job, size_bytes, options.seconds, home.path()));
                while !clients.is_finished() {
                    for (highest, now) in highest.iter_mut().zip(resident(&nodes)?) {
                        *highest = now.max(*highest);
                    }
                    thread::sleep(POLL);
                }
                clients.join().map_err(|_| anyhow!("fio's thread panicked"))?
            })?;
            let (iops, bytes_per_second) = (sample.iops, sample.bytes_per_second);
            println!("pass {passes:3} {workload:20} {iops:8.0} IOPS, at most {}", in_mib(&nodes, &highest));
            let resident_bytes_max = highest;
            steps.push(Step { pass: passes, workload: workload.clone(), iops, bytes_per_second, resident_bytes_max });
        }
    }
    for (node, resident) in nodes.iter().zip(&idle) {
        println!("{:10} {:.1} MiB before", node.name, *resident as f64 / MIB as f64);
    }
    println!("{passes} passes; highest of the second, middle and last: ");
    for workload in &options.workload {
        let of = |pass: usize| {
            let step = steps.iter().find(|step| step.pass == pass && step.workload == *workload);
            step.map(|step| in_mib(&nodes, &step.resident_bytes_max)).unwrap_or_default()
        };
        println!("{workload:20} {} | {} | {}", of(2.min(passes)), of(passes.div_ceil(2)), of(passes));
    }
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let report = json!({ "volumes": options.volumes, "size_bytes": size_bytes, "nodes": names, "idle_bytes": idle,
        "steps": steps });
    fs::write(&options.output, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("wrote {}", options.output.display());
    Ok(())
}

fn resident(nodes: &[NodeProcess]) -> Result<Vec<u64>> {
    nodes.iter().map(|node| resident_bytes(node.pid)).collect()
}

fn in_mib(nodes: &[NodeProcess], bytes: &[u64]) -> String {
    let one = |(node, bytes): (&NodeProcess, &u64)| format!("{} {:.1} MiB", node.name, *bytes as f64 / MIB as f64);
    nodes.iter().zip(bytes).map(one).collect::<Vec<_>>().join(", ")
}
