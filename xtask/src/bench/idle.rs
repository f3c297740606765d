//! What an idle node costs: resident memory and processor time with many volumes.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::cluster::DemoCluster;
use super::proc::{cpu_seconds, resident_bytes};
use crate::shell;

const GIB: u64 = 1 << 30;

#[derive(Args)]
pub(crate) struct IdleOptions {
    /// Volumes, each of 100 GB and sparse.
    #[arg(long, default_value_t = 10)]
    volumes: usize,
    /// How long to watch.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where the figures go.
    #[arg(long, default_value = "bench-idle.json")]
    output: PathBuf,
}

/// Starts the cluster, lets it settle, and watches each node's processes.
pub(crate) fn run(options: &IdleOptions) -> Result<()> {
    let parent = shell::target_dir().join("bench");
    fs::create_dir_all(&parent)?;
    let home = tempfile::Builder::new().prefix("idle-").tempdir_in(&parent)?;
    let cluster = DemoCluster::start(home.path(), 100 * GIB, options.volumes)?;
    std::thread::sleep(Duration::from_secs(5));
    let before: Vec<f64> = cluster.nodes().iter().map(|node| cpu_seconds(node.pid)).collect::<Result<_>>()?;
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(options.seconds));
    let elapsed = started.elapsed().as_secs_f64();
    let mut figures = Vec::new();
    for (node, before) in cluster.nodes().iter().zip(before) {
        let cpu_percent = (cpu_seconds(node.pid)? - before) / elapsed * 100.0;
        let resident_mib = resident_bytes(node.pid)? as f64 / (1 << 20) as f64;
        println!("{:10} resident {resident_mib:.1} MiB, {cpu_percent:.2} % of one core", node.name);
        figures.push(json!({ "node": node.name, "resident_mib": resident_mib, "cpu_percent": cpu_percent }));
    }
    let report = json!({ "volumes": options.volumes, "seconds": elapsed, "nodes": figures });
    fs::write(&options.output, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("wrote {}", options.output.display());
    Ok(())
}
