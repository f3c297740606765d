//! Processor time that a server's processes have used, from proc(5): what says how much of a rate one core would carry.

use std::fs;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// A server: a process with all that descend from it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Processes {
    first: Vec<u32>,
}

impl Processes {
    /// Those of these processes.
    pub(crate) fn new(first: Vec<u32>) -> Self {
        Self { first }
    }

    /// True if there is nothing to be measured.
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Seconds of user and system time so far. Errors: one of them has ended.
    pub(crate) fn seconds(&self) -> Result<f64> {
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")? as f64;
        let mut all = self.first.clone();
        let mut at = 0;
        while let Some(pid) = all.get(at).copied() {
            all.extend(children(pid));
            at += 1;
        }
        let ticks = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
            ticks_in(&stat)
        };
        Ok(all.into_iter().map(ticks).sum::<Result<u64>>()? as f64 / per_second)
    }
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks
        .map(of)
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// User and system time (fields 14 and 15 of `stat`); the name in parentheses may hold anything.
fn ticks_in(stat: &str) -> Result<u64> {
    let (_, behind) = stat.rsplit_once(')').context("no name in stat")?;
    let mut fields = behind.split_whitespace().skip(11).map(str::parse::<u64>);
    let mut field = || fields.next().context("stat is too short")?.context("no number in stat");
    Ok(field()? + field()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_read_behind_any_name() {
        assert_eq!(ticks_in("7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 0 0 20").expect("valid"), 42);
        assert!(ticks_in("7 (a) S 1").is_err());
    }

    #[test]
    fn a_process_that_has_ended_is_an_error() {
        assert!(Processes::new(vec![std::process::id()]).seconds().is_ok());
        assert!(Processes::new(vec![u32::MAX]).seconds().is_err());
    }
}
