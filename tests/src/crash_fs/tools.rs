//! Judges that are not ours: e2fsck and the Linux kernel.
//!
//! They need files. Those lie in memory (`/dev/shm`) where there is one, sparse, in a directory per worker.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use block_device::{Allocation, BatchWrite, BlockDevice, BlockError, ByteRange, RamDevice};
use bytes::Bytes;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::model::{Node, Tree};
use super::schedule::run_alone;
use crate::e2e::skip::find_program;

/// Words by which e2fsck asks; with `-n` it answers itself, and may still exit with 0.
const QUESTIONS: [&str; 3] = ["Fix?", "Clear?", "Connect"];

/// The path of a program of e2fsprogs or util-linux, or its bare name.
pub(super) fn program(name: &str) -> PathBuf {
    find_program(name).unwrap_or_else(|| name.into())
}

/// Where one worker's images lie for the tools.
pub(super) struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let builder = || tempfile::Builder::new().prefix("crash-fs-").to_owned();
        let directory = builder().tempdir_in(memory).or_else(|_| builder().tempdir());
        Ok(Self { directory: directory.context("a temporary directory")? })
    }

    /// Puts an image into a file.
    pub(super) fn put(&self, image: &RamDevice) -> Result<PathBuf> {
        let path = self.directory.path().join("image");
        write_sparse(image, &path)?;
        Ok(path)
    }
}

/// Writes an image to a file, holes as holes.
pub(super) fn write_sparse(image: &RamDevice, path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.set_len(image.size_bytes())?;
    let all = ByteRange { offset: 0, length: image.size_bytes() };
    for part in run_alone(image.allocation(all))?? {
        if !part.hole {
            file.write_all_at(&run_alone(image.read(part.range))??, part.range.offset)?;
        }
    }
    Ok(())
}

/// What e2fsck finds in a file that is to be in order: nothing, or what it said.
pub(super) fn unclean(path: &Path) -> Result<Option<String>> {
    let output = e2fsck("-fn", path)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let is_clean = output.status.code() == Some(0) && !QUESTIONS.iter().any(|word| said.contains(word));
    Ok((!is_clean).then(|| format!("e2fsck -fn: {}: {said}", output.status)))
}

/// Has e2fsck replay the log and mend what needs no question; what it said if it wants a person.
pub(super) fn repaired(path: &Path) -> Result<Option<String>> {
    let output = e2fsck("-p", path)?;
    let is_fine = matches!(output.status.code(), Some(0 | 1));
    Ok((!is_fine).then(|| format!("e2fsck -p: {}: {}", output.status, String::from_utf8_lossy(&output.stdout))))
}

fn e2fsck(how: &str, path: &Path) -> Result<Output> {
    Command::new(program("e2fsck")).arg(how).arg(path).output().context("e2fsck (e2fsprogs) does not start")
}

/// A file as a device that is only read.
pub(super) struct ImageFile(File, u64);

impl ImageFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self(file, length))
    }
}

impl BlockDevice for ImageFile {
    fn size_bytes(&self) -> u64 {
        self.1
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        let mut data = vec![0; range.length as usize];
        self.0.read_exact_at(&mut data, range.offset).map_err(|_| BlockError::Io)?;
        Ok(data.into())
    }

    async fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), BlockError> {
        Err(BlockError::Io)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Err(BlockError::Io)
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn discard(&self, _: ByteRange, _: bool) -> Result<(), BlockError> {
        Err(BlockError::Io)
    }

    async fn write_zeroes(&self, _: ByteRange, _: bool, _: bool) -> Result<(), BlockError> {
        Err(BlockError::Io)
    }

    async fn write_batch(&self, _: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        Err(BlockError::Io)
    }

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        Ok(vec![Allocation { range, hole: false }])
    }
}

/// An image that the kernel has mounted, until dropped.
pub(super) struct Mount {
    at: PathBuf,
    is_mounted: bool,
}

/// What became of an attempt to mount.
pub(super) enum Mounting {
    Mounted(Mount),
    /// The kernel does not want it: this is what it said.
    Refused(String),
    /// There is no loop device to be had.
    NoDevice(String),
}

impl Mount {
    /// Mounts a file. Errors: the programs do not start.
    pub(super) fn attempt(bench: &Bench, path: &Path) -> Result<Mounting> {
        let output = Command::new(program("losetup")).args(["--find", "--show"]).arg(path).output();
        let output = output.context("losetup does not start")?;
        if !output.status.success() {
            return Ok(Mounting::NoDevice(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let mut mount = Self { at: bench.directory.path().join("mount"), is_mounted: false };
        fs::create_dir_all(&mount.at)?;
        let output = Command::new(program("mount")).args(["-t", "ext4", &device]).arg(&mount.at).output()?;
        // As soon as nothing is mounted from it, whoever ends that.
        Command::new(program("losetup")).args(["--detach", &device]).output()?;
        if !output.status.success() {
            return Ok(Mounting::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        mount.is_mounted = true;
        Ok(Mounting::Mounted(mount))
    }

    /// The tree as the kernel shows it. Generations and extended attributes are left out.
    pub(super) fn tree(&self) -> Result<Tree> {
        let mut tree = Tree::default();
        let root = read_node(&mut tree, &self.at)?;
        let mut waiting = vec![(root, self.at.clone())];
        while let Some((directory, path)) = waiting.pop() {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                let path = entry.path();
                let inode = read_node(&mut tree, &path)?;
                if entry.file_type()?.is_dir() {
                    waiting.push((inode, path));
                }
                tree.names.insert((directory, entry.file_name().into_encoded_bytes()), inode);
            }
        }
        Ok(tree)
    }

    /// Unmounts it, so that the file can be looked at.
    pub(super) fn end(mut self) -> Result<()> {
        ensure!(self.unmount(), "{} cannot be unmounted", self.at.display());
        Ok(())
    }

    fn unmount(&mut self) -> bool {
        let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let was_mounted = std::mem::take(&mut self.is_mounted);
        !was_mounted || ran(Command::new(program("umount")).arg(&self.at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn read_node(tree: &mut Tree, path: &Path) -> Result<u32> {
    let found = fs::symlink_metadata(path)?;
    let inode = u32::try_from(found.ino())?;
    let target = match found.is_symlink() && found.size() < 60 {
        true => Some(fs::read_link(path)?.into_os_string().into_encoded_bytes()),
        false => None,
    };
    let size = if found.is_dir() { 0 } else { found.size() };
    if found.is_file() {
        tree.contents.insert(inode, fs::read(path)?);
    }
    let (mode, links) = (found.mode() as u16, found.nlink() as u16);
    let (user, group) = (found.uid(), found.gid());
    tree.nodes.insert(inode, Node { mode, links, size, target, user, group, ..Node::default() });
    Ok(inode)
}

/// Why no image can be mounted here; none when they can. From then on the calling thread and those that it starts have mounts
/// of their own: nobody else keeps them busy, and none outlives the process.
pub(super) fn mounting_unsupported(image: &RamDevice) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("mounting needs root".to_owned());
    }
    let attempt = || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS).context("mounts of its own")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let bench = Bench::new()?;
        match Mount::attempt(&bench, &bench.put(image)?)? {
            Mounting::Mounted(mount) => mount.end(),
            Mounting::Refused(why) | Mounting::NoDevice(why) => bail!("{why}"),
        }
    };
    attempt().err().map(|error| format!("no loop mount of ext4: {error:#}"))
}
