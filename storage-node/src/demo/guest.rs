//! What a program does inside the demo's Linux kernel: it makes, syncs, renames, links and removes files on the mounted volume by
//! plain system calls, holds a lock, and reads everything back. It speaks with the demo through files in a shared directory;
//! [`Share`] and [`Entry`] say how, for both sides.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;

use super::files::{Verified, content_of, judge};

/// The directory of the volume where it works.
pub(super) const DIRECTORY: &str = "kernel";
/// The file of the volume that it has locked all the time, all of it.
pub(super) const LOCKED: &str = "kernel-locked";
/// Files that it keeps.
const FILES_KEPT: u64 = 100;
/// Between two looks for what it is told.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// What makes the kernel read from the server again what it has read or written.
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// What is told in the shared directory, by the names of its files.
pub(super) mod told {
    /// The guest is up; its kernel's release.
    pub(in super::super) const READY: &str = "ready";
    /// To the guest: what to mount.
    pub(in super::super) const SERVER: &str = "server";
    /// It is mounted; the kernel's line about it (proc_pid_mounts(5)).
    pub(in super::super) const MOUNTED: &str = "mounted";
    /// What was acknowledged; it grows, by one [`super::Entry`] a line.
    pub(in super::super) const LEDGER: &str = "ledger";
    /// To the guest: end the round, and change nothing more.
    pub(in super::super) const STOP: &str = "stop";
    /// It does so, and holds the lock no longer.
    pub(in super::super) const STOPPED: &str = "stopped";
    /// To the guest: end.
    pub(in super::super) const END: &str = "end";
    /// It has unmounted.
    pub(in super::super) const ENDED: &str = "ended";
    /// Why it cannot go on.
    pub(in super::super) const FAILED: &str = "failed";

    /// To the guest: read everything back for the time of this number.
    pub(in super::super) fn verify(number: u32) -> String {
        format!("verify-{number}")
    }

    /// What it found: a line with how many files are intact and how many are not, and a line for each of the first of these.
    pub(in super::super) fn verified(number: u32) -> String {
        format!("verified-{number}")
    }
}

/// The directory that the demo and the guest share.
#[derive(Clone, Debug)]
pub(super) struct Share(pub(super) PathBuf);

impl Share {
    /// Tells the other side, whole or not at all.
    pub(super) fn tell(&self, name: &str, text: &str) -> io::Result<()> {
        let fresh = self.0.join(format!("{name}.new"));
        fs::write(&fresh, text)?;
        fs::rename(fresh, self.0.join(name))
    }

    /// What the other side has told, if it has.
    pub(super) fn told(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.0.join(name)).ok()
    }
}

/// Something that the kernel has acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Name of the file.
    pub(super) name: String,
    /// What its bytes were made of; none: it was removed.
    pub(super) seed: Option<u64>,
    /// The longest that a system call took since the entry before.
    pub(super) waited: Duration,
}

impl Entry {
    /// A line without its end: name, seed or `-`, and microseconds.
    fn line(&self) -> String {
        let seed = self.seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string());
        format!("{} {seed} {}", self.name, self.waited.as_micros())
    }

    /// What such a line says.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let [name, seed, waited] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let seed = if seed == "-" { None } else { Some(seed.parse().ok()?) };
        Some(Self { name: name.to_owned(), seed, waited: Duration::from_micros(waited.parse().ok()?) })
    }

    /// What is there from now on.
    pub(super) fn apply(self, files: &mut BTreeMap<String, u64>) {
        match self.seed {
            Some(seed) => files.insert(self.name, seed),
            None => files.remove(&self.name),
        };
    }
}

/// Works on the volume mounted at `mount`, as told in the directory `share`, until it is told to end.
pub fn main(share: &Path, mount: &Path) -> ExitCode {
    let share = Share(share.to_path_buf());
    match serve(&share, mount, || fs::write(DROP_CACHES, "3")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If it cannot be told either, the demo waits in vain and shows the console.
            eprintln!("{error:#}");
            let _ = share.tell(told::FAILED, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(share: &Share, mount: &Path, forget: impl Fn() -> io::Result<()>) -> anyhow::Result<()> {
    let mut worker = Worker::start(share, mount)?;
    let mut round = 0;
    while share.told(told::STOP).is_none() {
        worker.round(round)?;
        round += 1;
    }
    let Worker { directory, files, locked, .. } = worker;
    drop(locked);
    share.tell(told::STOPPED, "")?;
    let mut number = 1;
    while share.told(told::END).is_none() {
        if share.told(&told::verify(number)).is_none() {
            std::thread::sleep(LOOK_INTERVAL);
            continue;
        }
        forget().with_context(|| format!("writing {DROP_CACHES}"))?;
        let found = read_all(&directory).context("reading everything back")?;
        share.tell(&told::verified(number), &report(&judge(&files, &found, "the mount")))?;
        number += 1;
    }
    Ok(())
}

struct Worker {
    directory: PathBuf,
    ledger: File,
    /// [`LOCKED`], and locked.
    locked: File,
    files: BTreeMap<String, u64>,
    waited: Duration,
}

impl Worker {
    fn start(share: &Share, mount: &Path) -> anyhow::Result<Self> {
        let ledger = OpenOptions::new().append(true).create(true).open(share.0.join(told::LEDGER))?;
        let directory = mount.join(DIRECTORY);
        fs::create_dir(&directory).context("mkdir")?;
        let path = mount.join(LOCKED);
        let locked = OpenOptions::new().read(true).write(true).create_new(true).open(path).context("create")?;
        locked.try_lock().context("flock")?;
        Ok(Self { directory, ledger, locked, files: BTreeMap::new(), waited: Duration::ZERO })
    }

    /// A file made, written, synced, renamed, now and then linked; the oldest is removed. Each of these would fail if it were
    /// done twice, and the write under the lock if that were lost.
    fn round(&mut self, round: u64) -> anyhow::Result<()> {
        let seed: u64 = rand::random();
        let (fresh, kept, second) = (self.at("new"), format!("file-{round}"), format!("link-{round}"));
        let file = self.call("create", || OpenOptions::new().write(true).create_new(true).open(&fresh))?;
        self.call("write", || file.write_all_at(&content_of(seed), 0))?;
        self.call("fsync", || file.sync_all())?;
        drop(file);
        let (from, to) = (fresh, self.at(&kept));
        self.call("rename", || fs::rename(from, &to))?;
        self.note(&kept, Some(seed))?;
        if round.is_multiple_of(4) {
            let link = self.at(&second);
            self.call("link", || fs::hard_link(&to, link))?;
            self.note(&second, Some(seed))?;
        }
        let locked = self.locked.try_clone()?;
        self.call("write under the lock", || {
            locked.write_all_at(&round.to_le_bytes(), 0)?;
            locked.sync_data()
        })?;
        if let Some(old) = round.checked_sub(FILES_KEPT) {
            self.remove(&format!("file-{old}"))?;
            if old.is_multiple_of(4) {
                self.remove(&format!("link-{old}"))?;
            }
        }
        Ok(())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        let path = self.at(name);
        self.call("unlink", || fs::remove_file(path))?;
        self.note(name, None)
    }

    /// Calls the kernel, and takes the time. Errors: its own, with what it was.
    fn call<T>(&mut self, what: &str, call: impl FnOnce() -> io::Result<T>) -> anyhow::Result<T> {
        let began = Instant::now();
        let result = call().with_context(|| format!("on the mounted volume: {what}"));
        self.waited = self.waited.max(began.elapsed());
        result
    }

    /// Tells what was acknowledged.
    fn note(&mut self, name: &str, seed: Option<u64>) -> anyhow::Result<()> {
        let entry = Entry { name: name.to_owned(), seed, waited: std::mem::take(&mut self.waited) };
        // One write, so that no part of a line stands there for long.
        self.ledger.write_all(format!("{}\n", entry.line()).as_bytes()).context("the shared directory")?;
        entry.apply(&mut self.files);
        Ok(())
    }
}

fn read_all(directory: &Path) -> io::Result<BTreeMap<String, Bytes>> {
    let read = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?.into()))
    };
    fs::read_dir(directory)?.map(read).collect()
}

fn report(verified: &Verified) -> String {
    let mut text = format!("{} {}\n", verified.intact, verified.lost);
    verified.losses.iter().for_each(|loss| text.extend([loss, "\n"]));
    text
}

/// What [`report`] wrote.
pub(super) fn parse_report(text: &str) -> anyhow::Result<Verified> {
    let mut lines = text.lines();
    let counts = lines.next().and_then(|line| line.split_once(' '));
    let Some((intact, lost)) = counts else { bail!("not a report: {text:?}") };
    Ok(Verified { intact: intact.parse()?, lost: lost.parse()?, losses: lines.map(str::to_owned).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_it_was_written_and_anything_else_is_none() {
        let kept = Entry { name: "file-1".into(), seed: Some(u64::MAX), waited: Duration::from_micros(77) };
        let gone = Entry { name: "file-1".into(), seed: None, waited: Duration::ZERO };
        let mut files = BTreeMap::new();
        for entry in [kept, gone] {
            assert_eq!(Entry::parse(&entry.line()), Some(entry.clone()));
            entry.clone().apply(&mut files);
            assert_eq!(files.get("file-1").copied(), entry.seed);
        }
        for line in ["", "file-1", "file-1 5", "file-1 x 5", "file-1 5 5 5", "file-1 5 -5"] {
            assert_eq!(Entry::parse(line), None, "{line}");
        }
    }

    #[test]
    fn a_report_keeps_counts_and_losses() {
        let verified = Verified { intact: 7, lost: 2, losses: vec!["a is gone".into(), "b is not b".into()] };
        let parsed = parse_report(&report(&verified)).unwrap();
        assert_eq!((parsed.intact, parsed.lost, parsed.losses), (7, 2, verified.losses));
        assert!(parse_report("").is_err());
    }

    /// On a directory of this machine, which stands in for the mounted volume.
    #[test]
    fn what_the_ledger_says_is_there_and_what_is_spoilt_is_found() {
        let home = tempfile::tempdir().unwrap();
        let (share, mount) = (Share(home.path().join("share")), home.path().join("mount"));
        fs::create_dir(&share.0).unwrap();
        fs::create_dir(&mount).unwrap();
        let seen = || {
            let text = share.told(told::LEDGER).unwrap_or_default();
            let mut files = BTreeMap::new();
            text.lines().filter_map(Entry::parse).for_each(|entry| entry.apply(&mut files));
            (text.lines().count(), files)
        };
        let ask = |name: &str, answer: &str| {
            share.tell(name, "").unwrap();
            while share.told(answer).is_none() {
                std::thread::yield_now();
            }
            share.told(answer).unwrap()
        };
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| serve(&share, &mount, || Ok(())));
            // Enough that the oldest are gone again.
            while seen().0 < 200 && !serving.is_finished() {
                std::thread::yield_now();
            }
            assert!(File::open(mount.join(LOCKED)).unwrap().try_lock().is_err(), "it is held");
            ask(told::STOP, told::STOPPED);
            let (_, files) = seen();
            assert!(files.len() >= FILES_KEPT as usize && !files.contains_key("file-0"), "{files:?}");
            let verified = parse_report(&ask(&told::verify(1), &told::verified(1))).unwrap();
            assert_eq!((verified.intact, verified.lost), (files.len() as u64, 0));
            let spoilt = files.keys().next().unwrap();
            fs::remove_file(mount.join(DIRECTORY).join(spoilt)).unwrap();
            let verified = parse_report(&ask(&told::verify(2), &told::verified(2))).unwrap();
            assert_eq!((verified.intact, verified.lost), (files.len() as u64 - 1, 1));
            share.tell(told::END, "").unwrap();
            serving.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_second_worker_is_refused_and_says_why() {
        let home = tempfile::tempdir().unwrap();
        let share = Share(home.path().to_path_buf());
        fs::create_dir(home.path().join(DIRECTORY)).unwrap();
        assert_eq!(main(&share.0, home.path()), ExitCode::FAILURE);
        assert!(share.told(told::FAILED).unwrap().contains("mkdir"));
    }
}
