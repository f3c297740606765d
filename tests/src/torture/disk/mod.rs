//! A disk whose power can be cut: a file system that runs as a process of its own and forgets what was not flushed.

pub mod content;
pub mod file;
pub mod mount;
mod server;
pub mod tree;

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub use mount::DiskFaults;
pub use server::{serve, unsupported};

/// The name of the subcommand of the `torture` program that serves a disk.
pub const SUBCOMMAND: &str = "disk";

/// A mounted disk, served by its own process, so that it outlives every cut of the box that uses it.
#[derive(Debug)]
pub struct VolatileDisk {
    mount_point: PathBuf,
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl VolatileDisk {
    /// Mounts an empty disk on a directory. `program` is the `torture` program.
    pub fn mount(program: &Path, mount_point: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg(SUBCOMMAND).arg(mount_point).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the disk's process has no pipes"));
        };
        let mut disk = Self { mount_point: mount_point.to_owned(), child, orders, answers: BufReader::new(answers) };
        disk.answer()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Cuts the power and switches it on again. No process may have a file of the disk open. Says what became of the
    /// unflushed changes.
    pub fn cut(&mut self, seed: u64) -> io::Result<String> {
        self.order(&format!("cut {seed}"))
    }

    /// Sets what the disk does wrong from now on.
    pub fn set_faults(&mut self, faults: DiskFaults) -> io::Result<()> {
        let DiskFaults { reads, writes, flushes, lying } = faults;
        self.order(&format!("faults {reads} {writes} {flushes} {lying}")).map(drop)
    }

    fn order(&mut self, line: &str) -> io::Result<String> {
        writeln!(self.orders, "{line}")?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match line.trim().strip_prefix("ok") {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(io::Error::other(format!("the disk on {}: {line:?}", self.mount_point.display()))),
        }
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        // It unmounts and ends when its input ends.
        let _ = writeln!(self.orders, "end");
        let _ = self.child.wait();
    }
}
