//! `cargo xtask torture`: builds the product with fault points, and cuts power, kills and breaks it at random moments.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::nfs_torture::{self, NfsTortureOptions};
use crate::shell;

/// What cargo is told. The whole workspace decides on the features of the dependencies, as in every other command: with
/// `--package` they would differ, and be built once more. The binary has a name of its own, so that the product beside
/// it stays free of fault points.
pub(crate) const BUILD: &[&str] = &[
    "build",
    "--release",
    "--workspace",
    "--bin",
    "tandem-torture",
    "--bin",
    "torture",
    "--features",
    "storage-node/fault-points",
];

/// What is done if nothing is asked for: some of each kind, in about a quarter of an hour.
const EVERYTHING: [(&str, u64); 4] = [("cuts", 40), ("kills", 40), ("points", 1), ("flips", 1000)];

#[derive(Args)]
pub(crate) struct TortureOptions {
    /// Rounds of power cuts: of one box, of both, of all three.
    #[arg(long, value_name = "N")]
    cuts: Option<u64>,
    /// Rounds of killed and stopped processes, cut links, failing disks.
    #[arg(long, value_name = "N")]
    kills: Option<u64>,
    /// Kill a box at each of its durable steps, so many times each.
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "1")]
    points: Option<u64>,
    /// So many single bits flipped in the stores of a pair, many a round, in every area.
    #[arg(long, value_name = "N")]
    flips: Option<u64>,
    #[command(flatten)]
    nfs: NfsTortureOptions,
    /// Decides about everything but timing; drawn and printed if it is left out.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this round of the seed.
    #[arg(long, requires = "seed")]
    round: Option<u64>,
    /// Clusters at the same time.
    #[arg(long)]
    jobs: Option<u64>,
    /// Bytes of the volume.
    #[arg(long)]
    size: Option<u64>,
}

/// Builds, and runs each kind that is asked for. All run, also after one that found something.
pub(crate) fn run(options: &TortureOptions) -> Result<()> {
    let kinds = chosen(options);
    let mut failed = Vec::new();
    if !kinds.is_empty() {
        shell::run_visibly(&mut shell::cargo(BUILD))?;
    }
    for (kind, count) in kinds {
        let mut command = Command::new(shell::release_binary("torture"));
        command.args(arguments(kind, count, options)).env("TANDEM_BIN", shell::release_binary("tandem-torture"));
        if let Err(error) = shell::run_visibly(&mut command) {
            eprintln!("{error:#}");
            failed.push(kind);
        }
    }
    if let Some(rounds) = options.nfs.nfs
        && let Err(error) = nfs_torture::run(&options.nfs, rounds, options.seed, options.round)
    {
        eprintln!("{error:#}");
        failed.push("nfs");
    }
    if !failed.is_empty() {
        bail!("findings in: {}", failed.join(", "));
    }
    Ok(())
}

fn chosen(options: &TortureOptions) -> Vec<(&'static str, u64)> {
    let TortureOptions { cuts, kills, points, flips, .. } = *options;
    let kinds = [("cuts", cuts), ("kills", kills), ("points", points), ("flips", flips)];
    if options.nfs.nfs.is_none() && kinds.iter().all(|(_, count)| count.is_none()) {
        return EVERYTHING.to_vec();
    }
    kinds.into_iter().filter_map(|(kind, count)| Some((kind, count?))).collect()
}

fn arguments(kind: &str, count: u64, options: &TortureOptions) -> Vec<String> {
    let mut arguments = vec![kind.to_owned(), "--count".to_owned(), count.to_string()];
    let more =
        [("--seed", options.seed), ("--round", options.round), ("--jobs", options.jobs), ("--size", options.size)];
    for (name, value) in more {
        if let Some(value) = value {
            arguments.extend([name.to_owned(), value.to_string()]);
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_that_is_asked_for_runs_with_the_same_seed() {
        let options = TortureOptions {
            cuts: Some(1000),
            kills: None,
            points: Some(1),
            flips: None,
            nfs: NfsTortureOptions::default(),
            seed: Some(7),
            round: None,
            jobs: Some(2),
            size: None,
        };
        assert_eq!(chosen(&options), [("cuts", 1000), ("points", 1)]);
        assert_eq!(arguments("cuts", 1000, &options).join(" "), "cuts --count 1000 --seed 7 --jobs 2");
    }

    #[test]
    fn everything_runs_if_nothing_is_asked_for() {
        let none = TortureOptions {
            cuts: None,
            kills: None,
            points: None,
            flips: None,
            nfs: NfsTortureOptions::default(),
            seed: None,
            round: None,
            jobs: None,
            size: None,
        };
        assert_eq!(chosen(&none), EVERYTHING);
        let nfs = NfsTortureOptions::of_rounds(1);
        assert_eq!(chosen(&TortureOptions { flips: Some(50), ..none }), [("flips", 50)]);
        assert!(chosen(&TortureOptions { flips: None, nfs, ..none }).is_empty());
    }
}
