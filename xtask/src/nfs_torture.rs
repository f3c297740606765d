//! `cargo xtask torture --nfs N`: builds the product and the guests' rounds, and has Linux kernels work on a volume over NFS
//! while boxes and processes fail.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{posix, shell, tools};

const BINARY: &str = "nfs_torture";

#[derive(Args, Clone, Default)]
pub(crate) struct NfsTortureOptions {
    /// Rounds of programs on a volume that Linux kernels have mounted over NFS.
    #[arg(long, value_name = "N")]
    pub(crate) nfs: Option<u64>,
    /// NFS: only these workloads, separated by commas, all of them in every round; otherwise one a guest and round, drawn.
    #[arg(long, value_name = "NAMES", requires = "nfs")]
    workload: Option<String>,
    /// NFS: what the guests mount with (4.2).
    #[arg(long, value_parser = ["3", "4.1", "4.2"], requires = "nfs")]
    vers: Option<String>,
    /// NFS: what goes wrong meanwhile (all).
    #[arg(long, value_parser = ["none", "switchover", "kill", "box", "all"], requires = "nfs")]
    faults: Option<String>,
    /// NFS: seconds between switchovers, and at most between other faults (20).
    #[arg(long, requires = "nfs")]
    seconds: Option<u64>,
    /// NFS: guests (2).
    #[arg(long, requires = "nfs")]
    guests: Option<u8>,
    /// NFS: how much a workload does (full).
    #[arg(long, value_parser = ["short", "full"], requires = "nfs")]
    scale: Option<String>,
    /// NFS: changes of our own client in a round, at least (2000).
    #[arg(long, requires = "nfs")]
    operations: Option<u64>,
}

#[cfg(test)]
impl NfsTortureOptions {
    /// So many rounds, all else as it is by itself.
    pub(crate) fn of_rounds(rounds: u64) -> Self {
        Self { nfs: Some(rounds), ..Self::default() }
    }
}

/// Builds and runs it. Packages and suites that cannot be had are named by the program, which leaves their workloads out.
pub(crate) fn run(options: &NfsTortureOptions, rounds: u64, seed: Option<u64>, round: Option<u64>) -> Result<()> {
    tools::ensure(&[])?;
    if let Some(why) = posix::missing() {
        println!("{why}");
    }
    shell::build_release(&["tandem", BINARY])?;
    let mut command = Command::new(shell::release_binary(BINARY));
    command.args(arguments(options, rounds, seed, round)).env("TANDEM_BIN", shell::release_binary("tandem"));
    shell::run_visibly(&mut command)
}

fn arguments(options: &NfsTortureOptions, rounds: u64, seed: Option<u64>, round: Option<u64>) -> Vec<String> {
    let text = |number: Option<u64>| number.map(|number| number.to_string());
    let named = [
        ("--rounds", Some(rounds.to_string())),
        ("--seed", text(seed)),
        ("--round", text(round)),
        ("--workload", options.workload.clone()),
        ("--vers", options.vers.clone()),
        ("--faults", options.faults.clone()),
        ("--seconds", text(options.seconds)),
        ("--guests", text(options.guests.map(u64::from))),
        ("--scale", options.scale.clone()),
        ("--operations", text(options.operations)),
    ];
    named.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?])).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_handed_on() {
        let options =
            NfsTortureOptions { nfs: Some(3), faults: Some("kill".into()), guests: Some(1), ..Default::default() };
        let line = arguments(&options, 3, Some(7), None).join(" ");
        assert_eq!(line, "--rounds 3 --seed 7 --faults kill --guests 1");
    }
}
