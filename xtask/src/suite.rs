//! `cargo xtask test`: everything that shows that the workspace works, in one go and one build profile.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{crash_fs, fuzz_fs, fuzz_nfs, interop_fs, mutants, posix, shell, sim, tools, torture};

/// Where tests write the names of what they skip (see `tests/src/e2e/skip.rs`).
pub(crate) const SKIP_LOG: &str = "TANDEM_SKIP_LOG";

#[derive(Args)]
pub(crate) struct TestOptions {
    /// Seeds of the short simulation.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Images of power losses under the filesystem engine.
    #[arg(long, default_value_t = 600)]
    crash_images: u64,
    /// Mutants of the short form.
    #[arg(long, default_value_t = 1)]
    mutants: usize,
    /// Seeds per mutant in the short form.
    #[arg(long, default_value_t = 2000)]
    mutant_seeds: u64,
    /// Leave the system's packages alone.
    #[arg(long)]
    no_install: bool,
    /// Only tests whose names contain this; leaves out the simulation, the crash images, the demo, posix and the mutants.
    filter: Option<String>,
}

/// One step and how it went.
struct Step {
    name: &'static str,
    outcome: Result<()>,
    took: Duration,
}

/// Runs all steps, prints a summary, and fails if a step failed.
pub(crate) fn run(options: &TestOptions) -> Result<()> {
    let mut skipped: Vec<String> = Vec::new();
    if !options.no_install {
        skipped
            .extend(tools::ensure(&[])?.iter().map(|package| format!("package {package}: cannot be installed here")));
    }
    // Tests run these suites, too, in a kernel's guest.
    let posix_missing = if options.filter.is_none() { posix::missing() } else { None };
    let mut steps = Vec::new();
    let mut step = |name, work: &mut dyn FnMut() -> Result<()>| {
        println!("== {name}");
        let started = Instant::now();
        let outcome = work();
        let fine = outcome.is_ok();
        steps.push(Step { name, outcome, took: started.elapsed() });
        fine
    };
    let skip_log = SkipLog::create()?;
    let mut tally = Tally::default();
    let built = step("build", &mut || shell::run_visibly(&mut shell::cargo(&["build", "--release", "--workspace", "--bins"])))
            // A second build of one package: the same with fault points, under another name.
            && step("build for torture", &mut || shell::run_visibly(&mut shell::cargo(torture::BUILD)));
    if built {
        step("tests", &mut || run_tests(options, &skip_log, &mut tally));
        if options.filter.is_none() {
            step("simulation", &mut || {
                shell::run_visibly(&mut sim::command(&shell::release_binary("sim"), options.seeds, 0))
            });
            step("crash images", &mut || crash_fs::run_some(options.crash_images, &skip_log.path));
            step("hostile images", &mut fuzz_fs::run_short);
            step("hostile messages", &mut fuzz_nfs::run_short);
            step("filesystem interop", &mut || {
                let mut command = interop_fs::short(&shell::release_binary(interop_fs::BINARY));
                shell::run_visibly(command.env(SKIP_LOG, &skip_log.path))
            });
            step("demo", &mut || {
                shell::run_visibly(Command::new(shell::release_binary("tandem")).args(["demo", "--seconds", "10"]))
            });
            match posix_missing {
                Some(why) => skipped.push(why),
                None => drop(step("posix", &mut posix::run_short)),
            }
            if options.mutants > 0 {
                step("mutants", &mut || mutants::run_some(options.mutants, options.mutant_seeds));
            }
        }
    }
    skipped.extend(skip_log.read()?);
    summarize(&steps, &skipped, tally)
}

fn run_tests(options: &TestOptions, skip_log: &SkipLog, tally: &mut Tally) -> Result<()> {
    let mut command = shell::cargo(&["test", "--release", "--workspace", "--no-fail-fast"]);
    command.env(SKIP_LOG, &skip_log.path).env("TANDEM_BIN", shell::release_binary("tandem"));
    if let Some(filter) = &options.filter {
        command.arg("--").arg(filter);
    }
    println!("+ {}", shell::describe(&command));
    let mut cargo = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = cargo.stdout.take().context("cargo's output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        tally.count(&line);
    }
    let status = cargo.wait()?;
    if !status.success() {
        bail!("{} ended with {status}", shell::describe(&command));
    }
    Ok(())
}

/// How many tests passed and failed, over all test programs.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// Adds what a line `test result: ok. 3 passed; 1 failed; …` says; other lines say nothing.
    fn count(&mut self, line: &str) {
        let Some(results) = line.strip_prefix("test result: ") else { return };
        let words: Vec<&str> = results.split([' ', ';']).collect();
        for pair in words.windows(2) {
            match (pair[0].parse::<u64>(), pair[1]) {
                (Ok(number), "passed") => self.passed += number,
                (Ok(number), "failed") => self.failed += number,
                _ => {}
            }
        }
    }
}

/// Prints what was left out, each step, and as the last line how many tests and steps passed and failed.
fn summarize(steps: &[Step], skipped: &[String], mut tally: Tally) -> Result<()> {
    println!("== summary");
    for reason in skipped {
        println!("skipped: {reason}");
    }
    let mut failed = Vec::new();
    for step in steps {
        match &step.outcome {
            Ok(()) => {
                println!("passed: {} ({} s)", step.name, step.took.as_secs());
                tally.passed += 1;
            }
            Err(error) => {
                println!("FAILED: {} ({} s): {error:#}", step.name, step.took.as_secs());
                failed.push(step.name);
                tally.failed += 1;
            }
        }
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// A file into which tests write what they leave out, since cargo hides the output of tests that pass.
struct SkipLog {
    path: PathBuf,
    _home: tempfile::TempDir,
}

impl SkipLog {
    fn create() -> Result<Self> {
        let home = tempfile::tempdir().context("temporary directory")?;
        let path = home.path().join("skipped");
        std::fs::write(&path, "")?;
        Ok(Self { path, _home: home })
    }

    /// The names and reasons, each once.
    fn read(&self) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(&self.path)?;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines.dedup();
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_fails_the_run_and_a_skipped_test_does_not() {
        let step = |outcome| Step { name: "x", outcome, took: Duration::ZERO };
        assert!(summarize(&[step(Ok(()))], &["uml: not installed".to_owned()], Tally::default()).is_ok());
        assert!(summarize(&[step(Ok(())), step(Err(anyhow::anyhow!("no")))], &[], Tally::default()).is_err());
    }

    #[test]
    fn result_lines_are_added_up() {
        let mut tally = Tally::default();
        tally.count("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s");
        tally.count("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured");
        tally.count("test a::b ... ok, 7 passed");
        assert_eq!(tally, Tally { passed: 15, failed: 2 });
    }

    #[test]
    fn the_skip_log_names_each_once() {
        let log = SkipLog::create().expect("temporary file");
        std::fs::write(&log.path, "b: why\na: why\nb: why\n").expect("write");
        assert_eq!(log.read().expect("read"), ["a: why", "b: why"]);
    }
}
