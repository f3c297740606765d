//! The kernel's side: operations and a reader on a loop mount.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, SeekFrom, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;

use super::Finding;
use super::operation::{New, Operation, Outcome, Taking};
use super::tree::{Content, Entry, Fingerprint, Time, Tree};

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;
/// Files up to this size are read whole, holes too.
const WHOLE_BYTES: u64 = 1 << 20;

/// A loop mount of an image, until dropped.
pub struct Mount {
    root: PathBuf,
    mounted: bool,
    _home: tempfile::TempDir,
}

impl Mount {
    /// Mounts an image. Errors: the kernel would not.
    pub fn new(image: &Path, options: &str) -> Result<Self, Finding> {
        let home = tempfile::tempdir().map_err(|error| Finding::Unclean(format!("a directory: {error}")))?;
        let root = home.path().join("mount");
        let made = fs::create_dir(&root);
        let options = format!("loop,noatime{}{options}", if options.is_empty() { "" } else { "," });
        let mounted = Command::new("mount").args(["-t", "ext4", "-o", &options]).args([image, &root]).output();
        match (made, mounted) {
            (Ok(()), Ok(output)) if output.status.success() => Ok(Self { root, mounted: true, _home: home }),
            (_, Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                Err(Finding::Unclean(format!("mount -o {options}: {}", said.trim())))
            }
            (_, Err(error)) => Err(Finding::Unclean(format!("mount: {error}"))),
        }
    }

    /// Unmounts. Errors: it is in use.
    pub fn unmount(mut self) -> Result<(), Finding> {
        self.mounted = false;
        let output = Command::new("umount").arg(&self.root).output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            other => Err(Finding::Unclean(format!("umount: {other:?}"))),
        }
    }

    fn path(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    /// Everything that waits goes to the image.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.root)?)?)
    }

    /// A file that stays open.
    pub fn open(&self, path: &[u8]) -> io::Result<File> {
        File::open(self.path(path))
    }

    /// Does an operation.
    pub fn apply(&self, operation: &Operation) -> Outcome {
        match self.execute(operation) {
            Ok(()) => Outcome::Done,
            Err(error) if error.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) => Outcome::NoSpace,
            Err(error) => Outcome::Refused(error.to_string()),
        }
    }

    fn execute(&self, operation: &Operation) -> io::Result<()> {
        let write = |path: &[u8]| OpenOptions::new().write(true).open(self.path(path));
        match operation {
            Operation::Create { path, new, mode } => self.create(&self.path(path), new, *mode),
            Operation::Write { path, at, data } => write(path)?.write_all_at(data, *at),
            Operation::Truncate { path, size } => write(path)?.set_len(*size),
            Operation::Allocate { path, at, length, keep } => {
                let flags = if *keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
                Ok(rustix::fs::fallocate(write(path)?, flags, *at, *length)?)
            }
            Operation::Punch { path, at, length } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(write(path)?, flags, *at, *length)?)
            }
            Operation::Zero { path, at, length, keep } => {
                let keep = if *keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
                Ok(rustix::fs::fallocate(write(path)?, FallocateFlags::ZERO_RANGE | keep, *at, *length)?)
            }
            Operation::Fsync { path } => self.open(path)?.sync_all(),
            Operation::Link { from, to } => fs::hard_link(self.path(from), self.path(to)),
            Operation::Remove { path, directory: true } => fs::remove_dir(self.path(path)),
            Operation::Remove { path, directory: false } => fs::remove_file(self.path(path)),
            Operation::Rename { from, to, how } => {
                let flags = match how {
                    Taking::Replace => RenameFlags::empty(),
                    Taking::NoReplace => RenameFlags::NOREPLACE,
                    Taking::Exchange => RenameFlags::EXCHANGE,
                };
                Ok(rustix::fs::renameat_with(CWD, self.path(from), CWD, self.path(to), flags)?)
            }
            Operation::Mode { path, mode } => fs::set_permissions(self.path(path), Permissions::from_mode(*mode)),
            Operation::Owner { path, user, group } => {
                std::os::unix::fs::lchown(self.path(path), Some(*user), Some(*group))
            }
            Operation::Times { path, accessed, modified } => {
                let time = |time: &Time| Timespec { tv_sec: time.0, tv_nsec: i64::from(time.1) };
                let times = Timestamps { last_access: time(accessed), last_modification: time(modified) };
                Ok(rustix::fs::utimensat(CWD, self.path(path), &times, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            Operation::SetAttribute { path, name, value } => {
                Ok(rustix::fs::lsetxattr(self.path(path), &name[..], value, XattrFlags::empty())?)
            }
            Operation::RemoveAttribute { path, name } => Ok(rustix::fs::lremovexattr(self.path(path), &name[..])?),
        }
    }

    fn create(&self, path: &Path, new: &New, mode: u32) -> io::Result<()> {
        let node = |kind, device| rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device);
        match new {
            New::File => drop(OpenOptions::new().write(true).create_new(true).open(path)?),
            New::Directory => {
                fs::create_dir(path)?;
                // What the directory above it gave it stays.
                let inherited = fs::metadata(path)?.mode() & 0o2000;
                return fs::set_permissions(path, Permissions::from_mode(mode | inherited));
            }
            New::Link(target) => return std::os::unix::fs::symlink(OsStr::from_bytes(target), path),
            New::Fifo => node(FileType::Fifo, 0)?,
            New::Socket => node(FileType::Socket, 0)?,
            New::Character(major, minor) => node(FileType::CharacterDevice, rustix::fs::makedev(*major, *minor))?,
            New::Block(major, minor) => node(FileType::BlockDevice, rustix::fs::makedev(*major, *minor))?,
        }
        fs::set_permissions(path, Permissions::from_mode(mode))
    }

    /// Reads everything.
    pub fn tree(&self) -> Result<Tree, Finding> {
        let failed = |error: io::Error| Finding::Unclean(format!("the kernel cannot read the tree: {error}"));
        let mut tree = Tree::new();
        tree.insert(Vec::new(), entry(&self.root).map_err(failed)?);
        // The second look at a file with room that is allocated and not written takes pages that the first one has
        // brought into memory for data.
        let mut seen: BTreeMap<u64, Content> = BTreeMap::new();
        let mut waiting = vec![Vec::new()];
        while let Some(directory) = waiting.pop() {
            for name in fs::read_dir(self.path(&directory)).map_err(failed)? {
                let name = name.map_err(failed)?.file_name().into_vec();
                let path = super::operation::join(&directory, &name);
                let mut entry = entry(&self.path(&path)).map_err(failed)?;
                entry.content = seen.entry(entry.inode).or_insert(entry.content).clone();
                if entry.mode & 0o170_000 == 0o040_000 {
                    waiting.push(path.clone());
                }
                tree.insert(path, entry);
            }
        }
        Ok(tree)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            // Nothing can be done about a failure here; the directory that stays behind tells of it.
            let _ = Command::new("umount").arg("-l").arg(&self.root).status();
        }
    }
}

/// A file as the kernel shows it, at a path outside or inside of a mount.
pub fn entry(path: &Path) -> io::Result<Entry> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    let content = if kind.is_file() {
        file_content(&File::open(path)?, metadata.len())?
    } else if kind.is_symlink() {
        Content::Link(fs::read_link(path)?.into_os_string().into_vec())
    } else if kind.is_block_device() || kind.is_char_device() {
        Content::Device(rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()))
    } else {
        Content::Nothing
    };
    let created = metadata.created().ok().and_then(|time| {
        let since = time.duration_since(UNIX_EPOCH).ok()?;
        Some((since.as_secs() as i64, since.subsec_nanos()))
    });
    Ok(Entry {
        inode: metadata.ino(),
        mode: metadata.mode(),
        user: metadata.uid(),
        group: metadata.gid(),
        links: metadata.nlink(),
        size: metadata.len(),
        content,
        attributes: attributes(path)?,
        accessed: (metadata.atime(), metadata.atime_nsec() as u32),
        modified: (metadata.mtime(), metadata.mtime_nsec() as u32),
        changed: (metadata.ctime(), metadata.ctime_nsec() as u32),
        created,
    })
}

fn file_content(file: &File, size: u64) -> io::Result<Content> {
    let (mut written, mut print) = (Vec::new(), Fingerprint::default());
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        written.push((start, at));
    }
    let whole = [(0, size)];
    let mut buffer = vec![0; READ_BYTES];
    for (start, end) in if size <= WHOLE_BYTES { &whole[..] } else { &written } {
        let mut at = *start;
        while at < *end {
            let length = (end - at).min(READ_BYTES as u64) as usize;
            file.read_exact_at(&mut buffer[..length], at)?;
            print.add(at, &buffer[..length]);
            at += length as u64;
        }
    }
    Ok(Content::File { hash: print.finish(), written })
}

fn attributes(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut buffer = vec![0_u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut buffer[..])?;
    let names: Vec<Vec<u8>> =
        buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    let mut all = BTreeMap::new();
    for name in names {
        let length = rustix::fs::lgetxattr(path, &name[..], &mut buffer[..])?;
        all.insert(name, buffer[..length].to_vec());
    }
    Ok(all)
}
