//! An image of our profile, its FUSE mount, and what e2fsck says of it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

/// The features of volumes that we make (docs/filesystem.md).
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
                        huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed,resize_inode";
/// Memory of the mount past the page cache: so little that operations wait for it.
const TIGHT_MEMORY: [&str; 4] = ["--cache", "4194304", "--data", "1048576"];
/// What e2fsck says about what it would change, even when it calls the filesystem clean.
const FINDINGS: [&str; 3] = ["Fix?", "Clear?", "Connect"];

/// Makes a sparse image with a filesystem of our profile.
pub(super) fn make_image(path: &Path, bytes: u64) -> Result<()> {
    File::create(path)?.set_len(bytes)?;
    let mut make = Command::new("/sbin/mke2fs");
    make.args(["-q", "-t", "ext4", "-b", "4096", "-I", "256", "-J", "size=16", "-O", FEATURES]).arg(path);
    shell::output(&mut make).map(drop)
}

/// What e2fsck finds wrong, without changing anything; nothing when it is clean.
pub(super) fn complaints(image: &Path) -> Result<Vec<String>> {
    let output = Command::new("/sbin/e2fsck").arg("-fn").arg(image).output().context("cannot start e2fsck")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let is_clean = output.status.success() && !FINDINGS.iter().any(|finding| text.contains(finding));
    Ok(if is_clean { Vec::new() } else { vec![format!("e2fsck -fn ended with {}:\n{text}", output.status)] })
}

/// A mount, served by a process of its own; unmounted when it is dropped.
pub(super) struct Mounted {
    mount_point: PathBuf,
    server: Child,
    pub(super) direct: bool,
}

impl Mounted {
    /// Mounts an image on a directory, which is made; `direct` past the page cache.
    pub(super) fn mount(image: &Path, mount_point: &Path, direct: bool) -> Result<Self> {
        fs::create_dir_all(mount_point)?;
        let mut command = Command::new(shell::release_binary("fuse-ext4"));
        command.arg(image).arg(mount_point).stdin(Stdio::piped()).stdout(Stdio::piped());
        if direct {
            command.arg("--direct").args(TIGHT_MEMORY);
        }
        let mut server = command.spawn().with_context(|| format!("cannot start {}", shell::describe(&command)))?;
        let stdout = server.stdout.take().context("its output")?;
        let mounted = Self { mount_point: mount_point.to_owned(), server, direct };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.trim() == "mounted", "{} did not mount", shell::describe(&command));
        Ok(mounted)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Unmounts, and leaves a clean filesystem. Errors: the process says it did not.
    pub(super) fn unmount(mut self) -> Result<()> {
        match self.end()? {
            status if status.success() => Ok(()),
            status => bail!("the mount's process ended with {status}"),
        }
    }

    /// It unmounts and ends when its input ends.
    fn end(&mut self) -> std::io::Result<std::process::ExitStatus> {
        drop(self.server.stdin.take());
        self.server.wait()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
