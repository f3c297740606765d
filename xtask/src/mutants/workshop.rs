//! A copy of the tree in which mutants are built, all at once, and run, one at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::list::Mutant;
use super::weave;
use crate::{shell, sim};

/// What the library of the tests holds in the copy: a change of the core costs the rebuild of no more than this.
const TESTS: &str =
    "//! The simulator and the model check alone.\n\npub mod model;\n#[path = \"../sim/mod.rs\"]\npub mod sim;\n";
/// The features of the dependencies are those of the workspace's own builds, which are copied.
const BUILD: &[&str] = &["build", "--release", "--workspace", "--bin", "sim", "--bin", "model", "--quiet"];

/// How a mutant fared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The simulator failed: by which seed and which rule, as far as its output tells it, and after how many seeds.
    Killed {
        seed: Option<u64>,
        by: String,
        seeds: Option<u64>,
    },
    /// The model check broke a rule.
    KilledByModel {
        by: String,
    },
    Survived {
        tried: String,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed { seed: Some(seed), by, seeds: Some(seeds) } => {
                write!(f, "killed by seed {seed} ({by}), seeds tried: {seeds}")
            }
            Self::Killed { by, .. } => write!(f, "killed ({by})"),
            Self::KilledByModel { by } => write!(f, "killed by the model check ({by})"),
            Self::Survived { tried } => write!(f, "SURVIVED {tried}"),
        }
    }
}

/// The copy with every mutant in it, and its target directory.
pub(super) struct Workshop {
    target: PathBuf,
}

impl Workshop {
    /// Copies the tree below the target directory, puts all mutants into it, and builds. The first use also copies what
    /// cargo has built of the dependencies.
    pub(super) fn prepare(root: &Path, mutants: &[Mutant]) -> Result<Self> {
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
        copy_tree(root, &tree, &changed_sources(root, mutants)?)?;
        let mut command = shell::cargo(BUILD);
        command.current_dir(&tree).env("CARGO_TARGET_DIR", &target);
        shell::output(&mut command).context("with all mutants in it")?;
        Ok(Self { target })
    }

    /// Runs the simulator with that mutant awake until a seed fails.
    pub(super) fn simulate(&self, number: usize, mutant: &Mutant, seeds: u64, from_zero: bool) -> Result<Verdict> {
        let binary = self.target.join("release/sim");
        let known = mutant.killed_by.filter(|_| !from_zero);
        let first = known.map(|seed| run_simulator(&binary, number, 1, seed)).transpose()?;
        let verdict = match first {
            Some(killed @ Verdict::Killed { .. }) => killed,
            _ => run_simulator(&binary, number, seeds, 0)?,
        };
        if let Verdict::Killed { seed: Some(seed), .. } = verdict
            && matches!(run_simulator(&binary, 0, 1, seed)?, Verdict::Killed { .. })
        {
            bail!("the unchanged core fails seed {seed}; mend that first");
        }
        Ok(verdict)
    }

    /// Runs the model check with that mutant awake, in the budget that the list names for it.
    pub(super) fn check_model(&self, number: usize, arguments: &str) -> Result<Verdict> {
        let mut command = Command::new(self.target.join("release/model"));
        command.args(arguments.split_whitespace()).env(weave::VARIABLE, number.to_string());
        let output = command.stdin(Stdio::null()).output().context("cannot start the model check")?;
        let text = String::from_utf8_lossy(&output.stdout);
        match output.status.code() {
            Some(0) => Ok(Verdict::Survived { tried: text.lines().last().unwrap_or_default().to_owned() }),
            Some(1) => {
                let by = text.lines().find_map(|line| line.strip_prefix("broken: ")).unwrap_or("?").to_owned();
                Ok(Verdict::KilledByModel { by })
            }
            _ => bail!("the model check ended with {}", output.status),
        }
    }
}

/// The sources that are not as in the tree: those with mutants, the root of the core, and that of the tests.
fn changed_sources(root: &Path, mutants: &[Mutant]) -> Result<BTreeMap<PathBuf, String>> {
    let mut by_file: BTreeMap<&str, Vec<(usize, &Mutant)>> = BTreeMap::new();
    for (index, mutant) in mutants.iter().enumerate() {
        by_file.entry(&mutant.file).or_default().push((index + 1, mutant));
    }
    let mut changed = BTreeMap::new();
    for (file, mutants) in by_file {
        let place = root.join(file);
        let woven = weave::weave(&fs::read_to_string(&place)?, &mutants).with_context(|| format!("in {file}"))?;
        changed.insert(place, woven);
    }
    let core = root.join("replication/src/lib.rs");
    let source = fs::read_to_string(&core)?;
    changed.insert(core, source + weave::SWITCH);
    changed.insert(root.join("tests/src/lib.rs"), TESTS.to_owned());
    Ok(changed)
}

fn run_simulator(binary: &Path, number: usize, seeds: u64, first: u64) -> Result<Verdict> {
    let mut command = sim::command(binary, seeds, first);
    command.env(weave::VARIABLE, number.to_string());
    let output = command.stdin(Stdio::null()).output().context("cannot start the simulator")?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let (seed, rule) = found_in(&text).unzip();
    let seeds_tried = seed.map(|seed| seed - first.min(seed) + 1);
    match output.status.code() {
        Some(0) => Ok(Verdict::Survived { tried: format!("{seeds} seeds") }),
        Some(1) => Ok(Verdict::Killed { seed, by: rule.unwrap_or("violation").to_owned(), seeds: seeds_tried }),
        Some(101) => Ok(Verdict::Killed { seed, by: "assertion".to_owned(), seeds: seeds_tried }),
        _ => bail!("the simulator ended with {}: {}", output.status, text.lines().last().unwrap_or_default()),
    }
}

/// Seed and rule of the first line `seed N: RULE: …`.
fn found_in(text: &str) -> Option<(u64, &str)> {
    text.lines().find_map(|line| {
        let (seed, rest) = line.strip_prefix("seed ")?.split_once(": ")?;
        Some((seed.parse().ok()?, rest.split(':').next().unwrap_or(rest)))
    })
}

/// Makes `to` a copy of `from` without what cargo and git keep there, and with some sources changed. Files that are equal
/// already are not touched, so that cargo does not rebuild them.
fn copy_tree(from: &Path, to: &Path, changed: &BTreeMap<PathBuf, String>) -> Result<()> {
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
            copy_tree(&source, &copy, changed)?;
            continue;
        }
        let content = changed.get(&source).map_or_else(|| fs::read(&source), |text| Ok(text.clone().into_bytes()))?;
        if fs::read(&copy).ok().as_ref() != Some(&content) {
            fs::write(&copy, content)?;
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
        let verdict = |script: &str| run_simulator(&fake_simulator(home.path(), script), 0, 9, 0);
        assert_eq!(verdict("exit 0").expect("ran"), Verdict::Survived { tried: "9 seeds".into() });
        let killed = Verdict::Killed { seed: Some(8), by: "lost write".into(), seeds: Some(9) };
        assert_eq!(verdict("echo 'trace: seed 1'; echo 'seed 8: lost write: x'; exit 1").expect("ran"), killed);
        let killed = Verdict::Killed { seed: Some(7), by: "assertion".into(), seeds: Some(8) };
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
        let changed = BTreeMap::from([(from.join("a/x.rs"), "changed".to_owned())]);
        copy_tree(&from, &to, &changed).expect("copies");
        assert_eq!(fs::read_to_string(to.join("a/x.rs")).expect("copied"), "changed");
        let stamp = fs::metadata(to.join("a/x.rs")).expect("copied").modified().expect("time");
        assert!(!to.join("a/target").exists());
        fs::remove_file(from.join("y.rs")).expect("remove");
        copy_tree(&from, &to, &changed).expect("copies again");
        assert!(!to.join("y.rs").exists());
        assert_eq!(fs::metadata(to.join("a/x.rs")).expect("kept").modified().expect("time"), stamp);
    }
}
