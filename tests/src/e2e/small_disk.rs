//! A small file system of its own under a directory, to be filled up.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::run;

/// An ext4 file system in a file, mounted through a loop device; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    mount_point: PathBuf,
}

/// The file that takes all the space.
const BALLAST: &str = "ballast";

impl SmallDisk {
    /// Makes a file system of so many bytes in `image` and mounts it on `mount_point`.
    ///
    /// # Panics
    /// Without root, mkfs.ext4 or loop devices; ask [`Self::unsupported`] first.
    pub fn mount(image: &Path, mount_point: &Path, bytes: u64) -> Self {
        Self::try_mount(image, mount_point, bytes).unwrap_or_else(|why| panic!("{why}"))
    }

    fn try_mount(image: &Path, mount_point: &Path, bytes: u64) -> Result<Self, String> {
        let made =
            File::create(image).and_then(|file| file.set_len(bytes)).and_then(|()| fs::create_dir_all(mount_point));
        made.map_err(|error| format!("{}: {error}", image.display()))?;
        for command in [
            // No blocks kept back for root, or root would never see it full.
            Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image),
            Command::new("mount").args(["-o", "loop"]).arg(image).arg(mount_point),
        ] {
            let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
            if !output.status.success() {
                return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
        }
        Ok(Self { mount_point: mount_point.to_path_buf() })
    }

    /// Why this machine cannot mount one, or nothing.
    pub fn unsupported() -> Option<String> {
        let home = tempfile::tempdir().ok()?;
        Self::try_mount(&home.path().join("image"), &home.path().join("mnt"), 4 << 20).err()
    }

    /// Takes every byte that is left.
    pub fn fill(&self) {
        let path = self.mount_point.join(BALLAST);
        let mut file = File::create(path).unwrap_or_else(|error| panic!("ballast: {error}"));
        let mut chunk = vec![0x55; 1 << 20];
        while !chunk.is_empty() {
            // Smaller and smaller pieces, until not even one byte fits.
            if file.write_all(&chunk).is_err() {
                chunk.truncate(chunk.len() / 2);
            }
        }
        // Delayed allocation: only now is it certain that the space is gone.
        let _ = file.sync_all();
    }

    /// Gives it back.
    pub fn free(&self) {
        let _ = fs::remove_file(self.mount_point.join(BALLAST));
        run(&mut Command::new("sync"));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a failed test may leave a process of its node for the cluster to end a moment later.
        let _ = Command::new("umount").arg("-l").arg(&self.mount_point).status();
    }
}
