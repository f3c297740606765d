//! What an idle node costs: resident memory and processor time with many volumes.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use super::cluster::DemoCluster;
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
    let ticks_per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")? as f64;
    let before: Vec<u64> = cluster.nodes().iter().map(|node| cpu_ticks(node.pid)).collect::<Result<_>>()?;
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(options.seconds));
    let elapsed = started.elapsed().as_secs_f64();
    let mut figures = Vec::new();
    for (node, before) in cluster.nodes().iter().zip(before) {
        let cpu_percent = (cpu_ticks(node.pid)? - before) as f64 / ticks_per_second / elapsed * 100.0;
        let resident_mib = resident_bytes(node.pid)? as f64 / (1 << 20) as f64;
        println!("{:10} resident {resident_mib:.1} MiB, {cpu_percent:.2} % of one core", node.name);
        figures.push(json!({ "node": node.name, "resident_mib": resident_mib, "cpu_percent": cpu_percent }));
    }
    let report = json!({ "volumes": options.volumes, "seconds": elapsed, "nodes": figures });
    fs::write(&options.output, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("wrote {}", options.output.display());
    Ok(())
}

/// A process and all that descend from it: a node is a parent and its worker.
fn tree(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() {
        let tasks = fs::read_dir(format!("/proc/{}/task", found[at])).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        at += 1;
    }
    found
}

fn cpu_ticks(pid: u32) -> Result<u64> {
    tree(pid).into_iter().map(|pid| ticks_in(&fs::read_to_string(format!("/proc/{pid}/stat"))?)).sum()
}

/// User and system time (fields 14 and 15 of proc(5) `stat`); the name in parentheses may hold anything.
fn ticks_in(stat: &str) -> Result<u64> {
    let after_name = stat.rsplit_once(')').context("no name in stat")?.1;
    let field = |index: usize| -> Result<u64> {
        Ok(after_name.split_whitespace().nth(index).context("stat is too short")?.parse::<u64>()?)
    };
    Ok(field(11)? + field(12)?)
}

fn resident_bytes(pid: u32) -> Result<u64> {
    tree(pid).into_iter().map(|pid| resident_in(&fs::read_to_string(format!("/proc/{pid}/status"))?)).sum()
}

fn resident_in(status: &str) -> Result<u64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("VmRSS is empty")?.parse::<u64>()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 1 0";
        assert_eq!(ticks_in(stat).expect("valid"), 42);
        assert!(ticks_in("7 (a) S 1").is_err());
        assert_eq!(resident_in("VmPeak: 1 kB\nVmRSS:\t  10 kB\n").expect("valid"), 10240);
    }

    #[test]
    fn this_very_process_can_be_measured() {
        let pid = std::process::id();
        assert!(resident_bytes(pid).expect("own status") > 0);
        assert!(cpu_ticks(pid).is_ok());
    }
}
