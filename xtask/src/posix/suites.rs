//! The suites: pjdfstest and fsx, crates installed below the target directory, never into the user's home.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use super::mount::Mounted;
use crate::shell;

/// Crates and the versions whose cases and sequences the documents speak of.
const CRATES: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];
/// Cases of pjdfstest that do not pass, each with its reason.
const EXCEPTIONS: &str = "tests/posix/pjdfstest-exceptions.txt";
/// In the names of the cases that mount read-only.
const REMOUNTING: &str = "erofs";
/// Seconds that pjdfstest waits for a time to change; those of the engine are in nanoseconds.
const NAP_SECONDS: f64 = 0.01;

/// Installs the suites if they are not there; gives the directory of their programs.
pub(super) fn install() -> Result<PathBuf> {
    let root = shell::target_dir().join("tools");
    let list = fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    for (name, version) in CRATES {
        if list.contains(&format!("\"{name} {version} ")) {
            continue;
        }
        println!("installing {name} {version} below {}", root.display());
        let mut install = shell::cargo(&["install", name, "--version", version, "--locked", "--quiet", "--root"]);
        shell::run_visibly(install.arg(&root))?;
    }
    Ok(root.join("bin"))
}

/// What became of pjdfstest's cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PjdfstestTally {
    pub(super) passed: u64,
    pub(super) total: u64,
    /// Cases that failed or were left out, and are not listed as such; or are listed and passed.
    pub(super) unexpected: u64,
}

impl PjdfstestTally {
    pub(super) fn is_fine(self) -> bool {
        self.unexpected == 0
    }
}

/// Runs pjdfstest on a mount. `home` is on another filesystem.
///
/// Its cases of read-only mounts run in a process of their own: an earlier case leaves a file open, which stands against
/// mounting anything read-only, the kernel's ext4 too.
pub(super) fn pjdfstest(tools: &Path, mount: &Path, home: &Path, pattern: Option<&str>) -> Result<PjdfstestTally> {
    let run = |remounts: bool, patterns: &[&str]| -> Result<String> {
        let config = home.join("pjdfstest.toml");
        fs::write(&config, pjdfstest_config(remounts)?)?;
        let mut command = Command::new(tools.join("pjdfstest"));
        command.env("NO_COLOR", "1").arg("-c").arg(&config).arg("-p").arg(mount).arg("-s").arg(home).args(patterns);
        println!("+ {}", shell::describe(&command));
        let Output { stdout, stderr, .. } = command.output().context("cannot start pjdfstest")?;
        let text = String::from_utf8_lossy(&stdout).into_owned();
        ensure!(!cases(&text).is_empty(), "pjdfstest ran no case: {}", String::from_utf8_lossy(&stderr).trim());
        Ok(text)
    };
    let (most, remounting) = (run(false, pattern.as_slice())?, run(true, &[REMOUNTING])?);
    let of_both = cases(&most).into_iter().filter(|(name, _)| !name.contains(REMOUNTING));
    let wanted = |name: &str| pattern.is_none_or(|pattern| name.contains(pattern));
    let cases: Vec<_> = of_both.chain(cases(&remounting)).filter(|(name, _)| wanted(name)).collect();
    let exceptions = fs::read_to_string(shell::workspace_root().join(EXCEPTIONS)).context(EXCEPTIONS)?;
    let (tally, surprises) = judge(&cases, &exceptions);
    if !surprises.is_empty() {
        println!("{most}\n{remounting}");
    }
    surprises.iter().for_each(|surprise| println!("pjdfstest: {surprise}"));
    println!("pjdfstest: {} of {} cases passed", tally.passed, tally.total);
    Ok(tally)
}

/// Which of its optional cases are run, and as whom.
fn pjdfstest_config(remounts: bool) -> Result<String> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
    let users = two_users(&read("/etc/passwd")?, &read("/etc/group")?).context("two users that are not root")?;
    let [one, other] = users.map(|(user, group)| format!("[{user:?}, {group:?}]"));
    Ok(format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutime_now = {{}}\nutimensat = {{}}\n\
         [settings]\nnaptime = {NAP_SECONDS}\nallow_remount = {remounts}\n[dummy_auth]\nentries = [{one}, {other}]\n"
    ))
}

/// Names of two users with different groups, and of their groups.
fn two_users(passwd: &str, group: &str) -> Option<[(String, String); 2]> {
    let groups: Vec<Vec<&str>> = group.lines().map(|line| line.split(':').collect()).collect();
    let mut found: Vec<(String, String)> = Vec::new();
    for line in passwd.lines() {
        let [user, _, id, number, ..] = line.split(':').collect::<Vec<_>>()[..] else { continue };
        let named = groups.iter().find(|group| group.get(2) == Some(&number)).and_then(|group| group.first());
        if let Some(name) = named.filter(|name| id != "0" && found.iter().all(|(_, other)| other != *name)) {
            found.push((user.to_owned(), (*name).to_owned()));
        }
    }
    found.truncate(2);
    found.try_into().ok()
}

/// Lines of its output that tell of a case: its name, and `ok`, `FAILED` or `skipped`.
fn cases(output: &str) -> Vec<(&str, &str)> {
    let words = output.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let case = |words: Vec<_>| match words[..] {
        [name, outcome @ ("ok" | "FAILED" | "skipped")] => Some((name, outcome)),
        _ => None,
    };
    output
        .lines()
        .zip(words)
        .filter(|(line, _)| !line.starts_with(char::is_whitespace))
        .filter_map(|(_, words)| case(words))
        .collect()
}

/// Compares with the list, whose lines are `skipped|FAILED NAME: reason`.
fn judge(cases: &[(&str, &str)], exceptions: &str) -> (PjdfstestTally, Vec<String>) {
    let listed =
        |name: &str, outcome: &str| exceptions.lines().any(|line| line.starts_with(&format!("{outcome} {name}: ")));
    let is_listed = |name: &str| listed(name, "FAILED") || listed(name, "skipped");
    let surprise = |(name, outcome): &(&str, &str)| match *outcome {
        "ok" if is_listed(name) => Some(format!("{name} passed, and is listed in {EXCEPTIONS}")),
        "ok" => None,
        outcome if listed(name, outcome) => None,
        outcome => Some(format!("{name} {outcome}")),
    };
    let surprises: Vec<String> = cases.iter().filter_map(surprise).collect();
    let passed = cases.iter().filter(|(_, outcome)| *outcome == "ok").count() as u64;
    (PjdfstestTally { passed, total: cases.len() as u64, unexpected: surprises.len() as u64 }, surprises)
}

/// One seed of fsx on a file of its own.
pub(super) struct FsxRun<'a> {
    pub(super) tools: &'a Path,
    pub(super) mounted: &'a Mounted,
    pub(super) home: &'a Path,
    pub(super) seed: u64,
    pub(super) operations: u64,
}

impl FsxRun<'_> {
    /// Runs it. Errors: what it found, and the command that finds it again.
    pub(super) fn execute(&self) -> Result<()> {
        let config = self.home.join(format!("fsx-{}.toml", self.seed));
        fs::write(&config, fsx_config(self.seed, self.mounted.direct))?;
        let mut command = Command::new(self.tools.join("fsx"));
        command.arg("-N").arg(self.operations.to_string()).arg("-S").arg(self.seed.to_string());
        command
            .arg("-f")
            .arg(&config)
            .arg("-P")
            .arg(self.home)
            .arg(self.mounted.path().join(format!("fsx-{}", self.seed)));
        println!("+ {}", shell::describe(&command));
        let output = command.output().context("cannot start fsx")?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        ensure!(
            output.status.success(),
            "{} ended with {}: {} {}",
            shell::describe(&command),
            output.status,
            said(&output.stdout),
            said(&output.stderr)
        );
        Ok(())
    }
}

/// Every second pair of seeds uses a longer file and larger operations. Files past the page cache cannot be mapped.
fn fsx_config(seed: u64, direct: bool) -> String {
    let (length, most) = if (seed / 2).is_multiple_of(2) { (256 << 10, 64 << 10) } else { (8 << 20, 256 << 10) };
    let mapped = if direct { 0 } else { 5 };
    format!(
        "flen = {length}\n[opsize]\nmax = {most}\n[weights]\nread = 10\nwrite = 10\nmapread = {mapped}\nmapwrite = {mapped}\n\
         invalidate = {}\ntruncate = 5\nclose_open = 1\nfsync = 0.1\nfdatasync = 0.1\nposix_fallocate = 2\npunch_hole = 2\n\
         sendfile = 2\nposix_fadvise = 1\ncopy_file_range = 2\n",
        u32::from(!direct),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_told_from_what_is_said_about_them() {
        let output = "a::b      ok\nc::d   FAILED\n\tthe reason FAILED\n   1: e::f ok\ng::h  skipped\n\tfor a reason\n\
                      \nSummary: 1 failed, 1 skipped, 1 passed, 0 expected failures, 3 total\n";
        assert_eq!(cases(output), [("a::b", "ok"), ("c::d", "FAILED"), ("g::h", "skipped")]);
    }

    #[test]
    fn what_is_listed_is_expected_and_has_to_happen() {
        let cases = [("a", "ok"), ("b", "FAILED"), ("c", "skipped"), ("d", "skipped"), ("e", "ok")];
        let (tally, surprises) = judge(&cases, "FAILED b: why\nskipped c: why\nFAILED d: why\nFAILED e: why\n");
        assert_eq!((tally.passed, tally.total, tally.unexpected), (2, 5, 2));
        assert_eq!(surprises, ["d skipped".to_owned(), format!("e passed, and is listed in {EXCEPTIONS}")]);
    }

    #[test]
    fn two_users_have_different_groups_and_are_not_root() {
        let passwd = "root:x:0:0::\nsync:x:4:9::\na:x:5:1::\nb:x:6:1::\nc:x:7:2::\n";
        let group = "root:x:0:\nga:x:1:\ngc:x:2:\n";
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert_eq!(two_users(passwd, group), Some([pair("a", "ga"), pair("c", "gc")]));
        assert_eq!(two_users("root:x:0:0::\na:x:5:1::\n", group), None);
    }
}
