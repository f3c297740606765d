//! `cargo xtask crash-fs`: builds the judge of power losses under the filesystem engine, and runs it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::{shell, suite};

/// The binary that records runs and judges images.
const BINARY: &str = "crash-fs";

#[derive(Args)]
pub(crate) struct CrashFsOptions {
    /// Images to judge.
    #[arg(long, default_value_t = 100_000)]
    images: u64,
    /// Seed of the first run; each run has the one after.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Judge only this image of the seed's run.
    #[arg(long, requires = "seed")]
    image: Option<u64>,
    /// Workers; as many as there are processors if it is left out.
    #[arg(long)]
    jobs: Option<u64>,
}

/// Runs the judge in place of this process, so that its output and exit code are the user's.
pub(crate) fn run(options: &CrashFsOptions) -> Result<()> {
    shell::build_release(&[BINARY])?;
    Err(command(options).exec()).context("cannot start the judge of crash images")
}

/// The short form: `images` images of the first seeds. What is left out is noted in `skip_log`.
pub(crate) fn run_some(images: u64, skip_log: &Path) -> Result<()> {
    let options = CrashFsOptions { images, seed: 0, image: None, jobs: None };
    shell::run_visibly(command(&options).env(suite::SKIP_LOG, skip_log))
}

fn command(options: &CrashFsOptions) -> Command {
    let mut command = Command::new(shell::release_binary(BINARY));
    command.args(arguments(options)).arg("--keep").arg(shell::target_dir().join("crash-fs"));
    command
}

fn arguments(options: &CrashFsOptions) -> Vec<String> {
    let CrashFsOptions { images, seed, image, jobs } = *options;
    let all = [("--images", Some(images)), ("--seed", Some(seed)), ("--image", image), ("--jobs", jobs)];
    let given = all.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?.to_string()]));
    given.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_passed_on() {
        let of = |image, jobs| arguments(&CrashFsOptions { images: 10, seed: 3, image, jobs }).join(" ");
        assert_eq!(of(None, None), "--images 10 --seed 3");
        assert_eq!(of(Some(4), Some(1)), "--images 10 --seed 3 --image 4 --jobs 1");
    }
}
