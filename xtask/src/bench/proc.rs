//! What processes have used, from proc(5).

use std::fs;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// A process's children.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let numbers = |text: String| text.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>();
    tasks.map(of).flat_map(numbers).collect()
}

/// A process and all that descend from it: a node is a parent and its worker.
fn tree(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() {
        found.extend(children(found[at]));
        at += 1;
    }
    found
}

/// The threads of a process and all that descend from it: number and name.
pub(super) fn threads(pid: u32) -> Vec<(u32, String)> {
    let of = |pid: u32| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let named = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        Some((task.file_name().to_str()?.parse().ok()?, name.trim_end().to_owned()))
    };
    tree(pid).into_iter().flat_map(of).filter_map(named).collect()
}

/// Processor time of a process and its descendants so far, in seconds; that of children who have ended does not count.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")? as f64;
    Ok(cpu_ticks(pid)? as f64 / per_second)
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

/// Resident memory of a process and its descendants, in bytes.
pub(super) fn resident_bytes(pid: u32) -> Result<u64> {
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
        assert!(threads(pid).iter().any(|(tid, name)| *tid == pid && !name.is_empty()));
    }
}
