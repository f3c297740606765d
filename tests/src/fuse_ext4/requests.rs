//! FUSE's requests, handed to the thread that owns the engine; each is answered from there when it is done, in any order.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use filesystem::engine::Statistics;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::libc;
use tokio::sync::mpsc;

use super::attributes::inode_number;
use super::data::With;
use super::files::Wanted;
use super::mount::{Entry, Mount};
use super::names::Caller;

/// How long the kernel may keep names and attributes: not at all, so that everything is asked of the engine.
const KEEP: Duration = Duration::ZERO;
/// Bits of a umask.
const PERMISSIONS: u16 = 0o777;

/// A request at work, on the engine's thread.
pub(super) type Work = Pin<Box<dyn Future<Output = ()>>>;
/// A request on its way there.
pub(super) type Job = Box<dyn FnOnce(Rc<Mount>) -> Work + Send>;

/// What the kernel calls.
pub(super) struct Requests {
    pub(super) jobs: mpsc::Sender<Option<Job>>,
    /// Files are read and written past the page cache.
    pub(super) direct: bool,
}

impl Requests {
    /// Hands a request over. The kernel waits while there are too many on their way.
    fn hand_over<F: Future<Output = ()> + 'static>(&self, job: impl FnOnce(Rc<Mount>) -> F + Send + 'static) {
        // After the engine's thread has ended nobody answers; the dropped reply tells the kernel EIO.
        let _ = self.jobs.blocking_send(Some(Box::new(|mount| Box::pin(job(mount)))));
    }

    fn open_flags(&self) -> FopenFlags {
        if self.direct { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() }
    }
}

impl Caller {
    fn of(request: &Request, umask: u32) -> Self {
        Self { user: request.uid(), group: request.gid(), umask: umask as u16 & PERMISSIONS }
    }
}

impl Filesystem for Requests {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            // The kernel looks at ACLs for permissions, and leaves the umask to us, since a default ACL stands in for it.
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
        ];
        for flag in wanted {
            // What an older kernel lacks is done without.
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.hand_over(move |mount| async move { answer_entry(reply, mount.lookup(parent, &name).await) });
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.hand_over(move |mount| async move { mount.forget(inode_number(ino), count) });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.hand_over(move |mount| async move { answer_attributes(reply, mount.attributes(inode_number(ino)).await) });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        user: Option<u32>,
        group: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let permissions = mode.map(|mode| mode as u16);
        let wanted = Wanted { permissions, user, group, size, accessed, modified };
        self.hand_over(move |mount| async move {
            answer_attributes(reply, mount.set_attributes(inode_number(ino), wanted).await);
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.hand_over(move |mount| async move {
            match mount.target(ino).await {
                Ok(target) => reply.data(&target),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let (name, caller) = (name.to_owned(), Caller::of(request, umask));
        self.hand_over(move |mount| async move {
            answer_entry(reply, mount.make(parent, &name, mode, device, caller).await);
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (name, caller) = (name.to_owned(), Caller::of(request, umask));
        self.hand_over(move |mount| async move {
            answer_entry(reply, mount.make_directory(parent, &name, mode, caller).await);
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.hand_over(move |mount| async move { answer(reply, mount.remove(parent, &name, false).await) });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.hand_over(move |mount| async move { answer(reply, mount.remove(parent, &name, true).await) });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target, caller) = (name.to_owned(), target.to_owned(), Caller::of(request, 0));
        self.hand_over(move |mount| async move {
            answer_entry(reply, mount.make_symlink(parent, &name, &target, caller).await);
        });
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
        let (name, to_name) = (name.to_owned(), to_name.to_owned());
        self.hand_over(move |mount| async move {
            answer(reply, mount.rename((parent, &name), (to_parent, &to_name), flags).await);
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.hand_over(move |mount| async move { answer_entry(reply, mount.link(ino, parent, &name).await) });
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), self.open_flags());
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, caller, open_flags) = (name.to_owned(), Caller::of(request, umask), self.open_flags());
        self.hand_over(move |mount| async move {
            let mut made = mount.make(parent, &name, mode, 0, caller).await;
            let exists = made.as_ref().is_err_and(|errno| errno.code() == Errno::EEXIST.code());
            if exists && flags & libc::O_EXCL == 0 {
                made = mount.lookup(parent, &name).await;
            }
            match made {
                Ok(Entry { attributes, generation }) => {
                    reply.created(&KEEP, &attributes, generation, FileHandle(0), open_flags);
                }
                Err(errno) => reply.error(errno),
            }
        });
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
        self.hand_over(move |mount| async move {
            match mount.read(inode_number(ino), offset, size).await {
                Ok(data) => reply.data(&data),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = Bytes::copy_from_slice(data);
        let unprivileged = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // Past the page cache no fsync follows for such files.
        let durable = self.direct && flags.0 & (libc::O_DSYNC | libc::O_SYNC) != 0;
        self.hand_over(move |mount| async move {
            match mount.write(inode_number(ino), offset, data, With { unprivileged, durable }).await {
                Ok(written) => reply.written(written),
                Err(errno) => reply.error(errno),
            }
        });
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
        let range = offset..offset.saturating_add(length);
        self.hand_over(move |mount| async move { answer(reply, mount.allocate(inode_number(ino), range, mode).await) });
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.hand_over(move |mount| async move {
            match mount.seek(inode_number(ino), offset, whence).await {
                Ok(at) => reply.offset(at),
                Err(errno) => reply.error(errno),
            }
        });
    }

    /// Comes with every close(2), which promises nothing.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.hand_over(move |mount| async move { answer(reply, mount.sync(inode_number(ino)).await) });
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.hand_over(move |mount| async move { answer(reply, mount.sync(inode_number(ino)).await) });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.hand_over(move |mount| async move {
            match mount.list(ino, offset, false).await {
                Ok(entries) => {
                    for one in entries {
                        let number = INodeNo(u64::from(one.number.0));
                        if reply.add(number, one.offset, one.kind, &one.name) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.hand_over(move |mount| async move {
            let entries = match mount.list(ino, offset, true).await {
                Ok(entries) => entries,
                Err(errno) => return reply.error(errno),
            };
            let own = match mount.attributes(inode_number(ino)).await {
                Ok(attributes) => attributes,
                Err(errno) => return reply.error(errno),
            };
            for one in entries {
                // Of `.` and `..` the kernel takes the number and kind only.
                let number = INodeNo(u64::from(one.number.0));
                let dots = Entry { attributes: FileAttr { ino: number, ..own }, generation: fuser::Generation(0) };
                if one.entry.is_some() && mount.tell(one.number).is_err() {
                    // It is gone since it was read.
                    continue;
                }
                let Entry { attributes, generation } = one.entry.unwrap_or(dots);
                if reply.add(attributes.ino, one.offset, &one.name, &KEEP, &attributes, generation) {
                    // There was no room for it.
                    if one.entry.is_some() {
                        mount.forget(one.number, 1);
                    }
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.hand_over(move |mount| async move {
            let Statistics {
                block_size, blocks, blocks_free, blocks_available, files, files_free, name_bytes_max, ..
            } = mount.engine.statistics();
            let (files, files_free) = (u64::from(files), u64::from(files_free));
            reply.statfs(
                blocks,
                blocks_free,
                blocks_available,
                files,
                files_free,
                block_size,
                name_bytes_max,
                block_size,
            );
        });
    }

    fn setxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32, reply: ReplyEmpty) {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.hand_over(move |mount| async move {
            answer(reply, mount.set_extended(inode_number(ino), &name, &value, flags).await);
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_owned();
        self.hand_over(move |mount| async move {
            answer_sized(reply, size, mount.extended(inode_number(ino), &name).await)
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.hand_over(move |mount| async move {
            answer_sized(reply, size, mount.extended_names(inode_number(ino)).await);
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.hand_over(
            move |mount| async move { answer(reply, mount.remove_extended(inode_number(ino), &name).await) },
        );
    }
}

/// The data, or its length when that is what was asked for.
fn answer_sized(reply: ReplyXattr, size: u32, outcome: Result<Vec<u8>, Errno>) {
    match outcome {
        Ok(data) if size == 0 => reply.size(data.len() as u32),
        Ok(data) if data.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(data) => reply.data(&data),
        Err(errno) => reply.error(errno),
    }
}

fn answer(reply: ReplyEmpty, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn answer_entry(reply: ReplyEntry, outcome: Result<Entry, Errno>) {
    match outcome {
        Ok(Entry { attributes, generation }) => reply.entry(&KEEP, &attributes, generation),
        Err(errno) => reply.error(errno),
    }
}

fn answer_attributes(reply: ReplyAttr, outcome: Result<FileAttr, Errno>) {
    match outcome {
        Ok(attributes) => reply.attr(&KEEP, &attributes),
        Err(errno) => reply.error(errno),
    }
}
