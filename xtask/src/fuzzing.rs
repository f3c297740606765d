//! Hostile inputs for what reads bytes of strangers: with cargo-fuzz where there is a nightly compiler, and without it by a program
//! that makes inputs by itself.
//!
//! What the targets do is in `fuzz/harness`. The fuzzer finds inputs that come further; how much memory each of them takes is
//! then counted by running what it kept once more, without it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Given to the fuzzer, whose clock runs on while others have the processor: what took it longer than a second is kept and
/// measured once more.
const LIMITS: &[&str] = &["-timeout=20", "-report_slow_units=1", "-rss_limit_mb=512"];
/// Files that one command line replays.
const REPLAYED_AT_ONCE: usize = 1000;

/// Targets that one command runs.
pub(crate) struct Campaign {
    /// The command.
    pub(crate) command: &'static str,
    pub(crate) targets: &'static [&'static str],
    /// The program that makes inputs.
    pub(crate) program: &'static str,
    /// Bytes of an input of the fuzzer.
    pub(crate) input_bytes_max: usize,
    /// The program can write inputs for the fuzzer to begin with.
    pub(crate) writes_seeds: bool,
}

impl Campaign {
    /// Runs the targets, or the one that is named. Fails if anything was found.
    pub(crate) fn run(&self, only: Option<&str>, inputs: impl Fn(&str) -> u64, seed: u64, stable: bool) -> Result<()> {
        shell::build_release(&[self.program])?;
        let targets: Vec<&str> =
            self.targets.iter().copied().filter(|name| only.is_none_or(|one| one == *name)).collect();
        if targets.is_empty() {
            bail!("the targets are {}", self.targets.join(", "));
        }
        let fuzzer = !stable && has_fuzzer();
        if !fuzzer && !stable {
            println!("no nightly compiler with cargo-fuzz: inputs are made at random");
        }
        let mut clean = true;
        for target in targets {
            let found = match fuzzer {
                true => self.fuzz(target, inputs(target))?,
                false => self.random(target, inputs(target), seed)?,
            };
            println!("{}", found.line(self.command, target));
            clean &= found.is_clean();
        }
        if !clean {
            bail!("something was found");
        }
        Ok(())
    }

    /// A step of `cargo xtask test`, for which the program was built.
    pub(crate) fn run_short(&self, inputs: impl Fn(&str) -> u64) -> Result<()> {
        for target in self.targets {
            let found = self.random(target, inputs(target), 1)?;
            println!("{}", found.line(self.command, target));
            if !found.is_clean() {
                bail!("{target}: something was found");
            }
        }
        Ok(())
    }

    fn random(&self, target: &str, inputs: u64, seed: u64) -> Result<Found> {
        let kept = self.findings()?;
        let mut command = Command::new(shell::release_binary(self.program));
        command.args(["--target", target, "--inputs", &inputs.to_string(), "--seed", &seed.to_string(), "--found"]);
        counted(command.arg(kept))
    }

    /// Where inputs that found something are put.
    fn findings(&self) -> Result<PathBuf> {
        let kept = shell::target_dir().join(self.command);
        fs::create_dir_all(&kept)?;
        Ok(kept)
    }

    fn fuzz(&self, target: &str, inputs: u64) -> Result<Found> {
        let home = shell::workspace_root().join("fuzz");
        let corpus = shell::target_dir().join("fuzz-corpus").join(target);
        fs::create_dir_all(&corpus)?;
        if self.writes_seeds {
            let mut command = Command::new(shell::release_binary(self.program));
            shell::run_visibly(command.args(["--target", target, "--write-seeds"]).arg(&corpus))?;
        }
        let kept = self.findings()?;
        let mut command = nightly(&["fuzz", "run", "-s", "none", "--fuzz-dir"]);
        command.arg(&home).arg("--target-dir").arg(shell::target_dir().join("fuzz")).arg(target).arg(&corpus).arg("--");
        command
            .arg(format!("-runs={inputs}"))
            .arg(format!("-artifact_prefix={}/{target}-", kept.display()))
            .args(LIMITS);
        command.arg(format!("-max_len={}", self.input_bytes_max));
        println!("+ {}", shell::describe(&command));
        let output = command.stdout(Stdio::inherit()).stderr(Stdio::piped()).output().context("cannot start cargo")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let mut found = judged(&said);
        if !output.status.success() && found.is_clean() {
            bail!("{} ended with {}: {said}", shell::describe(&command), output.status);
        }
        if !found.is_clean() {
            eprintln!(
                "{}",
                said.lines().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        let memory = self.replay(target, &corpus)?;
        found = found.plus(Found { inputs: 0, ..memory });
        Ok(found)
    }

    /// What the fuzzer kept, once more, with memory counted.
    fn replay(&self, target: &str, corpus: &Path) -> Result<Found> {
        let mut files: Vec<PathBuf> = fs::read_dir(corpus)?.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
        let kept = self.findings()?;
        let slow = format!("{target}-slow-unit");
        for file in fs::read_dir(&kept)? {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with(&slow) {
                files.push(file.path());
            }
        }
        files.sort();
        let mut all = Found::default();
        for some in files.chunks(REPLAYED_AT_ONCE) {
            let mut command = Command::new(shell::release_binary(self.program));
            command.args(["--target", target, "--found"]).arg(&kept).arg("--replay").args(some);
            let output = command.stderr(Stdio::inherit()).output().context("cannot start the program")?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let found = said.lines().rev().find_map(Found::parse).context("the program ended without a result")?;
            all = all.plus(found);
        }
        println!("{} inputs that the fuzzer kept, replayed with memory counted", all.inputs);
        Ok(all)
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    inputs: u64,
    panics: u64,
    hangs: u64,
    growth: u64,
}

impl Found {
    fn line(&self, command: &str, target: &str) -> String {
        let Self { inputs, panics, hangs, growth } = self;
        format!("{command}: target={target} inputs={inputs} panics={panics} hangs={hangs} growth={growth}")
    }

    /// From a line as [`Self::line`] makes it.
    fn parse(line: &str) -> Option<Self> {
        let mut found = Self::default();
        for word in line.strip_prefix("fuzz-")?.split_once(": ")?.1.split(' ') {
            match word.split_once('=')? {
                ("inputs", number) => found.inputs = number.parse().ok()?,
                ("panics", number) => found.panics = number.parse().ok()?,
                ("hangs", number) => found.hangs = number.parse().ok()?,
                ("growth", number) => found.growth = number.parse().ok()?,
                _ => {}
            }
        }
        Some(found)
    }

    fn plus(self, other: Self) -> Self {
        Self {
            inputs: self.inputs + other.inputs,
            panics: self.panics + other.panics,
            hangs: self.hangs + other.hangs,
            growth: self.growth + other.growth,
        }
    }

    fn is_clean(&self) -> bool {
        self.panics + self.hangs + self.growth == 0
    }
}

fn has_fuzzer() -> bool {
    let output = nightly(&["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    output.is_ok_and(|status| status.success())
}

/// `cargo +nightly`, by the proxy that rustup puts into the path.
fn nightly(args: &[&str]) -> Command {
    let mut command = shell::cargo(&[]);
    let mut found = Command::new("cargo");
    found.arg("+nightly").args(args).current_dir(shell::workspace_root());
    // The compiler of the running cargo is another.
    for (name, value) in command.env("RUSTUP_TOOLCHAIN", "nightly").get_envs() {
        match value {
            Some(value) => found.env(name, value),
            None => found.env_remove(name),
        };
    }
    found.env_remove("RUSTC").env_remove("CARGO");
    found
}

/// Runs the program and reads its last line.
fn counted(command: &mut Command) -> Result<Found> {
    println!("+ {}", shell::describe(command));
    let output = command.stderr(Stdio::inherit()).output().context("cannot start the program")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = said.lines().rev().find_map(Found::parse);
    said.lines().filter(|line| Found::parse(line).is_none()).for_each(|line| println!("{line}"));
    match last {
        Some(found) => Ok(found),
        // An abort: out of memory, or of stack.
        None => bail!("{} ended with {} and without a result", shell::describe(command), output.status),
    }
}

/// What libFuzzer's output tells: it ends at the first finding.
fn judged(said: &str) -> Found {
    let done = |line: &str| line.strip_prefix("Done ")?.split(' ').next()?.parse::<u64>().ok();
    let step = |line: &str| line.strip_prefix('#')?.split(['\t', ' ', ':']).next()?.parse::<u64>().ok();
    let inputs = said.lines().rev().find_map(|line| done(line).or_else(|| step(line))).unwrap_or(0);
    let has = |word: &str| u64::from(said.contains(word));
    let (hangs, growth) = (has("libFuzzer: timeout"), has("libFuzzer: out-of-memory"));
    let panics = u64::from(hangs + growth == 0 && said.contains("ERROR: libFuzzer"));
    Found { inputs, panics, hangs, growth }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back() {
        let found = Found { inputs: 10, panics: 1, hangs: 2, growth: 3 };
        assert_eq!(found.line("fuzz-fs", "read"), "fuzz-fs: target=read inputs=10 panics=1 hangs=2 growth=3");
        assert_eq!(Found::parse(&found.line("fuzz-fs", "read")), Some(found));
        assert_eq!(Found::parse("opened 3"), None);
    }

    #[test]
    fn the_fuzzers_end_is_understood() {
        let clean = "#2\tINITED\n#1000\tpulse  cov: 9\nDone 5000 runs in 1 second(s)\n";
        assert_eq!(judged(clean), Found { inputs: 5000, ..Found::default() });
        let panicked = "#7\tNEW\n==1== ERROR: libFuzzer: deadly signal\n";
        assert_eq!(judged(panicked), Found { inputs: 7, panics: 1, ..Found::default() });
        let hung = "#7\tNEW\n==1== ERROR: libFuzzer: timeout after 1 seconds\n";
        assert_eq!(judged(hung), Found { inputs: 7, hangs: 1, ..Found::default() });
    }
}
