//! A copy of the tree in which mutants are built and run.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::list::Mutant;
use crate::{shell, sim};

/// How a mutant fared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The simulator failed; the seed as far as its output tells it.
    Killed {
        seed: Option<u64>,
        by: String,
    },
    Survived {
        seeds: u64,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed { seed: Some(seed), by } => write!(f, "killed by seed {seed} ({by})"),
            Self::Killed { seed: None, by } => write!(f, "killed ({by})"),
            Self::Survived { seeds } => write!(f, "SURVIVED {seeds} seeds"),
        }
    }
}

/// The copy, its target directory, and the untouched sources to restore from.
pub(super) struct Workshop {
    original: PathBuf,
    tree: PathBuf,
    target: PathBuf,
}

impl Workshop {
    /// Copies the tree below the target directory. The first use also copies what cargo has built of the dependencies, so
    /// that a mutant costs the rebuild of the core and the simulator only.
    pub(super) fn prepare(root: &Path) -> Result<Self> {
        let home = shell::target_dir().join("mutants");
        let (tree, target) = (home.join("tree"), home.join("target"));
        fs::create_dir_all(&home)?;
        if !target.join("release").is_dir() && shell::target_dir().join("release").is_dir() {
            fs::create_dir_all(&target)?;
            for part in ["deps", "build", ".fingerprint"] {
                let from = shell::target_dir().join("release").join(part);
                if from.is_dir() {
                    fs::create_dir_all(target.join("release"))?;
                    shell::output(Command::new("cp").arg("-a").arg(&from).arg(target.join("release")))?;
                }
            }
        }
        copy_tree(root, &tree)?;
        sim::build()?;
        Ok(Self { original: root.to_path_buf(), tree, target })
    }

    /// Builds the simulator with the mutant and runs it until a seed fails.
    pub(super) fn judge(&self, mutant: &Mutant, seeds: u64) -> Result<Verdict> {
        let source = fs::read_to_string(self.original.join(&mutant.file))?;
        let place = self.tree.join(&mutant.file);
        fs::write(&place, mutant.mutate(&source)?)?;
        let verdict = self.build(mutant).and_then(|()| self.simulate(mutant, seeds));
        fs::write(&place, source)?;
        let verdict = verdict?;
        if let Verdict::Killed { seed: Some(seed), .. } = verdict {
            self.expect_clean(seed)?;
        }
        Ok(verdict)
    }

    /// A seed that the unchanged core fails, too, says nothing about a mutant.
    fn expect_clean(&self, seed: u64) -> Result<()> {
        match run_simulator(&shell::release_binary("sim"), 1, seed)? {
            Verdict::Survived { .. } => Ok(()),
            Verdict::Killed { .. } => bail!("the unchanged core fails seed {seed}; mend that first"),
        }
    }

    fn build(&self, mutant: &Mutant) -> Result<()> {
        let mut command = shell::cargo(sim::BUILD);
        command.arg("--quiet").current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target);
        let output = command.stderr(Stdio::piped()).output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("mutant {} does not build:\n{}", mutant.name, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn simulate(&self, mutant: &Mutant, seeds: u64) -> Result<Verdict> {
        let binary = self.target.join("release/sim");
        if let Some(seed) = mutant.killed_by {
            let verdict = run_simulator(&binary, 1, seed)?;
            if matches!(verdict, Verdict::Killed { .. }) {
                return Ok(verdict);
            }
        }
        run_simulator(&binary, seeds, 0)
    }
}

fn run_simulator(binary: &Path, seeds: u64, first: u64) -> Result<Verdict> {
    let output =
        sim::command(binary, seeds, first).stdin(Stdio::null()).output().context("cannot start the simulator")?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(Verdict::Survived { seeds });
    }
    match output.status.code() {
        Some(1) => Ok(Verdict::Killed { seed: seed_in(&text), by: "violation".to_owned() }),
        Some(101) => Ok(Verdict::Killed { seed: seed_in(&text), by: "assertion".to_owned() }),
        _ => bail!("the simulator ended with {}: {}", output.status, text.lines().last().unwrap_or_default()),
    }
}

/// The seed of the first line `seed N: …`.
fn seed_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("seed ")?.split_once(':')?.0.parse().ok())
}

/// Makes `to` a copy of `from` without what cargo and git keep there. Files that are equal already are not touched, so that
/// cargo does not rebuild them.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut kept = Vec::new();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        kept.push(name.clone());
        let (source, copy) = (entry.path(), to.join(&name));
        if entry.file_type()?.is_dir() {
            copy_tree(&source, &copy)?;
        } else if fs::read(&source)? != fs::read(&copy).unwrap_or_default() || !copy.exists() {
            fs::copy(&source, &copy)?;
        }
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if !kept.contains(&entry.file_name()) {
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn fake_simulator(directory: &Path, script: &str) -> PathBuf {
        let path = directory.join("sim");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        path
    }

    #[test]
    fn the_exit_code_of_the_simulator_decides() {
        let home = tempfile::tempdir().expect("temporary directory");
        let verdict = |script: &str| run_simulator(&fake_simulator(home.path(), script), 9, 0);
        assert_eq!(verdict("exit 0").expect("ran"), Verdict::Survived { seeds: 9 });
        let killed = Verdict::Killed { seed: Some(41), by: "violation".into() };
        assert_eq!(verdict("echo 'trace: seed 1'; echo 'seed 41: lost write'; exit 1").expect("ran"), killed);
        let killed = Verdict::Killed { seed: Some(7), by: "assertion".into() };
        assert_eq!(verdict("echo 'seed 7: x' >&2; exit 101").expect("ran"), killed);
        assert!(verdict("exit 2").is_err(), "a wrong option is no kill");
        assert!(verdict("kill -9 $$").is_err(), "running out of memory is no kill");
    }

    #[test]
    fn a_copy_follows_its_original_and_leaves_equal_files_alone() {
        let home = tempfile::tempdir().expect("temporary directory");
        let (from, to) = (home.path().join("from"), home.path().join("to"));
        fs::create_dir_all(from.join("a/target")).expect("create");
        fs::write(from.join("a/x.rs"), "one").expect("write");
        fs::write(from.join("y.rs"), "two").expect("write");
        copy_tree(&from, &to).expect("copies");
        let stamp = fs::metadata(to.join("a/x.rs")).expect("copied").modified().expect("time");
        assert!(!to.join("a/target").exists());
        fs::remove_file(from.join("y.rs")).expect("remove");
        copy_tree(&from, &to).expect("copies again");
        assert!(!to.join("y.rs").exists());
        assert_eq!(fs::metadata(to.join("a/x.rs")).expect("kept").modified().expect("time"), stamp);
    }
}
