//! The disk as a FUSE file system. Every read and write of a program arrives here: nothing stays in the page cache.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::libc;

use super::file::VolatileFile;
use super::tree::{Directory, Node, ROOT, Tree};

/// How long the kernel may keep names and attributes: all changes come through it, and a cut unmounts.
const KEEP: Duration = Duration::from_secs(3600);
/// Space that the disk claims to have.
const DISK_BYTES: u64 = 1 << 40;
const BLOCK_BYTES: u32 = 4096;
/// The name of files on which faults are done: stores of volumes, not the node's own small files.
const STORE_SUFFIX: &str = ".tandem";

/// What the disk does wrong, on stores only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// Reads end with EIO.
    pub reads: bool,
    /// Writes end with EIO.
    pub writes: bool,
    /// Flushes, and durable writes, end with EIO.
    pub flushes: bool,
    /// Flushes succeed and do nothing.
    pub lying: bool,
}

/// What the mounted file system and its owner share.
#[derive(Debug, Default)]
pub struct Disk {
    /// Files and names.
    pub tree: Tree,
    /// What goes wrong.
    pub faults: DiskFaults,
    /// Files with [`STORE_SUFFIX`].
    stores: std::collections::HashSet<u64>,
}

/// A disk that can be mounted.
#[derive(Clone, Debug, Default)]
pub struct SharedDisk(Arc<Mutex<Disk>>);

impl SharedDisk {
    /// The disk, for oneself.
    pub fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    fn attributes(&self, number: u64) -> Option<FileAttr> {
        let (kind, perm, size, allocated) = match self.tree.node(number)? {
            Node::Directory(_) => (FileType::Directory, 0o755, 0, 0),
            Node::File(file) => {
                (FileType::RegularFile, 0o600, file.current().length(), file.current().allocated_bytes())
            }
        };
        let time = SystemTime::UNIX_EPOCH;
        Some(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: allocated / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        })
    }

    /// Makes a node under a name that must be free.
    fn make(&mut self, parent: u64, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        let directory = self.tree.directory(parent).ok_or(Errno::ENOTDIR)?;
        if directory.current.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let number = self.tree.make(parent, name, node);
        self.note_name(number, name);
        self.attributes(number).ok_or(Errno::EIO)
    }

    fn note_name(&mut self, number: u64, name: &OsStr) {
        if name.to_string_lossy().ends_with(STORE_SUFFIX) {
            self.stores.insert(number);
        }
    }

    /// Removes a name that must lead to a directory, an empty one, or to none.
    fn remove(&mut self, parent: u64, name: &OsStr, directory: bool) -> Result<(), Errno> {
        let number = self.tree.lookup(parent, name).ok_or(Errno::ENOENT)?;
        match (self.tree.directory(number), directory) {
            (Some(found), true) if !found.current.is_empty() => return Err(Errno::ENOTEMPTY),
            (Some(_), false) => return Err(Errno::EISDIR),
            (None, true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        self.tree.unlink(parent, name);
        Ok(())
    }

    fn file_for(&mut self, number: u64, faulty: bool) -> Result<&mut VolatileFile, Errno> {
        if faulty && self.stores.contains(&number) {
            return Err(Errno::EIO);
        }
        self.tree.file(number).ok_or(Errno::ENOENT)
    }
}

/// Writes with these flags are durable when they return. The kernel sets O_DSYNC in the request's flags for RWF_DSYNC
/// and O_SYNC, too (fs/fuse/file.c, `fuse_write_flags`), and sends no FSYNC after it for files opened for direct I/O.
fn is_durable(flags: OpenFlags) -> bool {
    flags.0 & (libc::O_DSYNC | libc::O_SYNC) != 0
}

impl Filesystem for SharedDisk {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disk = self.lock();
        match disk.tree.lookup(parent.0, name).and_then(|number| disk.attributes(number)) {
            Some(attributes) => reply.entry(&KEEP, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.lock().attributes(ino.0) {
            Some(attributes) => reply.attr(&KEEP, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = self.lock();
        if let Some(size) = size {
            match disk.tree.file(ino.0) {
                Some(file) => file.set_length(size),
                None => return reply.error(Errno::EISDIR),
            }
        }
        match disk.attributes(ino.0) {
            Some(attributes) => reply.attr(&KEEP, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        match self.lock().make(parent.0, name, Node::Directory(Directory::default())) {
            Ok(attributes) => reply.entry(&KEEP, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.lock().remove(parent.0, name, false));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.lock().remove(parent.0, name, true));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut disk = self.lock();
        let target = disk.tree.lookup(to_parent.0, to_name);
        if flags.contains(RenameFlags::RENAME_NOREPLACE) && target.is_some() {
            return reply.error(Errno::EEXIST);
        }
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return reply.error(Errno::EINVAL);
        }
        if !disk.tree.rename((parent.0, name), (to_parent.0, to_name)) {
            return reply.error(Errno::ENOENT);
        }
        if let Some(number) = disk.tree.lookup(to_parent.0, to_name) {
            disk.note_name(number, to_name);
        }
        reply.ok();
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mut disk = self.lock();
        match disk.tree.file(ino.0) {
            Some(file) if flags.0 & libc::O_TRUNC != 0 => file.set_length(0),
            Some(_) => {}
            None => return reply.error(Errno::ENOENT),
        }
        reply.opened(FileHandle(0), opened());
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        match self.lock().make(parent.0, name, Node::File(VolatileFile::default())) {
            Ok(attributes) => reply.created(&KEEP, &attributes, Generation(0), FileHandle(0), opened()),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut disk = self.lock();
        let faulty = disk.faults.reads;
        match disk.file_for(ino.0, faulty) {
            Ok(file) => reply.data(&file.current().read(offset, u64::from(size))),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut disk = self.lock();
        let durable = is_durable(flags);
        let faulty = disk.faults.writes || (durable && disk.faults.flushes);
        match disk.file_for(ino.0, faulty) {
            Ok(file) => {
                file.write(offset, data, durable);
                reply.written(data.len() as u32);
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Comes with every close(2), which promises nothing.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut disk = self.lock();
        let DiskFaults { flushes, lying, .. } = disk.faults;
        let lies = lying && disk.stores.contains(&ino.0);
        answer(
            reply,
            disk.file_for(ino.0, flushes).map(|file| {
                if !lies {
                    file.sync()
                }
            }),
        );
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.lock().tree.sync_directory(ino.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let disk = self.lock();
        let Some(directory) = disk.tree.directory(ino.0) else { return reply.error(Errno::ENOTDIR) };
        let own = [(OsStr::new("."), ino.0), (OsStr::new(".."), ROOT)];
        let names = directory.current.iter().map(|(name, number)| (name.as_os_str(), *number));
        for (index, (name, number)) in own.into_iter().chain(names).enumerate().skip(offset as usize) {
            let kind = match disk.tree.directory(number) {
                Some(_) => FileType::Directory,
                None => FileType::RegularFile,
            };
            if reply.add(INodeNo(number), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = DISK_BYTES / u64::from(BLOCK_BYTES);
        reply.statfs(blocks, blocks, blocks, 1 << 20, 1 << 20, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mut disk = self.lock();
        let faulty = disk.faults.writes;
        let file = match disk.file_for(ino.0, faulty) {
            Ok(file) => file,
            Err(errno) => return reply.error(errno),
        };
        let keep_length = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 if keep_length => {}
            0 => file.reserve(offset.saturating_add(length)),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => file.zero(offset, length, keep_length),
            _ => return reply.error(Errno::EOPNOTSUPP),
        }
        reply.ok();
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let mut disk = self.lock();
        let Some(file) = disk.tree.file(ino.0) else { return reply.error(Errno::EINVAL) };
        let from = u64::try_from(offset).unwrap_or(u64::MAX);
        let found = match whence {
            libc::SEEK_DATA => file.current().next_data(from),
            libc::SEEK_HOLE => file.current().next_hole(from),
            _ => return reply.error(Errno::EINVAL),
        };
        match found.and_then(|at| i64::try_from(at).ok()) {
            Some(at) => reply.offset(at),
            None => reply.error(Errno::ENXIO),
        }
    }
}

fn opened() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
}

fn answer(reply: ReplyEmpty, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
