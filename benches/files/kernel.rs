//! The same on the kernel's ext4: an image on a loop device, an fsync after each operation, operations in flight as threads.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::engine::entry;

/// A mounted image; unmounted when it is dropped.
pub(crate) struct Mount {
    pub(crate) at: PathBuf,
    pub(crate) took: Duration,
}

impl Mount {
    pub(crate) fn new(image: &Path, at: &Path) -> Result<Self> {
        // Tables that were never written stay so: writing them would be work beside what is measured.
        Self::with_options(image, at, "loop,noinit_itable")
    }

    pub(crate) fn with_options(image: &Path, at: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(at)?;
        let started = Instant::now();
        let status = Command::new("mount").args(["-o", options]).arg(image).arg(at).status()?;
        if !status.success() {
            bail!("mount ended with {status}");
        }
        Ok(Self { at: at.to_owned(), took: started.elapsed() })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}

fn make(path: &Path) -> Result<()> {
    Ok(File::create(path)?.sync_all()?)
}

pub(crate) fn creates(directory: &Path, in_flight: usize, time: Duration) -> Result<f64> {
    fs::create_dir_all(directory)?;
    let (count, started) = (AtomicUsize::new(0), Instant::now());
    thread::scope(|scope| {
        let one = |task: usize| {
            let count = &count;
            scope.spawn(move || -> Result<()> {
                while started.elapsed() < time {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    make(&directory.join(format!("new-{in_flight}-{task}-{number}")))?;
                }
                Ok(())
            })
        };
        let tasks: Vec<_> = (0..in_flight).map(one).collect();
        tasks.into_iter().try_for_each(|task| task.join().expect("no thread panics"))
    })?;
    Ok(count.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}

/// A removal is durable when the directory is.
pub(crate) fn removes(directory: &Path, in_flight: usize, count: usize) -> Result<f64> {
    let (next, started) = (AtomicUsize::new(0), Instant::now());
    thread::scope(|scope| {
        let one = |_| {
            let next = &next;
            scope.spawn(move || -> Result<()> {
                let synced = File::open(directory)?;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok(());
                    }
                    fs::remove_file(directory.join(entry(number)))?;
                    synced.sync_all()?;
                }
            })
        };
        let tasks: Vec<_> = (0..in_flight).map(one).collect();
        tasks.into_iter().try_for_each(|task| task.join().expect("no thread panics"))
    })?;
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

pub(crate) fn fill(directory: &Path, count: usize) -> Result<f64> {
    fs::create_dir_all(directory)?;
    let started = Instant::now();
    for number in 0..count {
        File::create(directory.join(entry(number))).with_context(|| format!("entry {number}"))?;
    }
    File::open(directory)?.sync_all()?;
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

pub(crate) fn lookups(directory: &Path, count: usize, time: Duration) -> Result<f64> {
    let names: Vec<PathBuf> =
        (0..count.min(1000)).map(|step| directory.join(entry(step * count / count.min(1000)))).collect();
    names.iter().try_for_each(|name| fs::symlink_metadata(name).map(drop))?;
    let (mut done, started) = (0_u64, Instant::now());
    while started.elapsed() < time {
        for name in &names {
            fs::symlink_metadata(name)?;
            done += 1;
        }
    }
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

pub(crate) fn list(directory: &Path) -> Result<f64> {
    let started = Instant::now();
    let mut bytes = 0;
    for file in fs::read_dir(directory)? {
        bytes += file?.metadata()?.size();
    }
    std::hint::black_box(bytes);
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

pub(crate) fn stream(path: &Path, bytes: u64) -> Result<(f64, f64)> {
    let mut piece = vec![7; 1 << 20];
    let started = Instant::now();
    let mut file = File::create(path)?;
    for _ in 0..bytes >> 20 {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    let written = bytes as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut file = File::open(path)?;
    while file.read(&mut piece)? > 0 {}
    Ok((written, bytes as f64 / started.elapsed().as_secs_f64()))
}
