//! The process behind a disk: mounts it, obeys its owner's orders, one a line, and unmounts at the end of its input.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, MountOption};
use nix::mount::{MntFlags, umount2};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::file::Fates;
use super::mount::{DiskFaults, SharedDisk};

/// How long the files of killed processes may stay open.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);
/// How long a session may take to end after that.
const END_LIMIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// Serves a disk on `mount_point` until standard input ends.
pub fn serve(mount_point: &Path) -> io::Result<()> {
    let disk = SharedDisk::default();
    let mut session = mount(&disk, mount_point)?;
    say("ok")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["cut", seed] => {
                let seed = seed.parse().map_err(io::Error::other)?;
                end(unmount(session, mount_point)?);
                let Fates { kept, lost, torn } = disk.lock().tree.cut(&mut ChaCha8Rng::seed_from_u64(seed));
                session = mount(&disk, mount_point)?;
                say(&format!("ok {kept} kept, {lost} lost, {torn} torn"))?;
            }
            ["faults", reads, writes, flushes, lying] => {
                let [reads, writes, flushes, lying] = [reads, writes, flushes, lying].map(|word| word == "true");
                disk.lock().faults = DiskFaults { reads, writes, flushes, lying };
                say("ok")?;
            }
            ["end"] => break,
            _ => say(&format!("unknown order {line}"))?,
        }
    }
    unmount(session, mount_point).map(drop)
}

/// Why this machine cannot mount such a disk, or nothing.
pub fn unsupported() -> Option<String> {
    let home = tempfile::tempdir().ok()?;
    match mount(&SharedDisk::default(), home.path()).and_then(|session| unmount(session, home.path())?.join()) {
        Ok(()) => None,
        Err(error) => Some(format!("no FUSE file system can be mounted: {error}")),
    }
}

fn mount(disk: &SharedDisk, mount_point: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("tandem-torture".to_owned())];
    fuser::spawn_mount(disk.clone(), mount_point, &config)
}

/// Unmounts as soon as nobody has a file open. Past the limit the connection is cut off, and what is open with it.
fn unmount(session: BackgroundSession, mount_point: &Path) -> io::Result<BackgroundSession> {
    let deadline = Instant::now() + UNMOUNT_LIMIT;
    while let Err(error) = umount2(mount_point, MntFlags::empty()) {
        if Instant::now() >= deadline {
            let _ = umount2(mount_point, MntFlags::MNT_FORCE);
            umount2(mount_point, MntFlags::MNT_DETACH)?;
            // Not joined: it ends when the last open file does, and with this process at the latest.
            drop(session);
            return Err(io::Error::other(format!("{} was still in use: {error}", mount_point.display())));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(session)
}

/// Waits for the end of a session whose disk is unmounted, but not for long: a network namespace of another cluster may hold
/// a copy of the mount, through which nothing comes.
fn end(session: BackgroundSession) {
    let deadline = Instant::now() + END_LIMIT;
    while !session.guard.is_finished() && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
