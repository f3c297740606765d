//! The engine as the kernel's FUSE client sees it: which inodes the kernel knows, and how an operation becomes an answer.
//!
//! Permissions are the kernel's concern (`default_permissions`). Changes of names and attributes become durable in the
//! background, as on a local filesystem, and with fsync.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::SystemTime;

use filesystem::engine::{Filesystem, Handle};
use filesystem::layout::inode::Inode;
use filesystem::layout::timestamp::Timestamp;
use filesystem::{InodeNumber, Stop};
use fuser::{Errno, FileAttr, Generation};

use super::attributes::{file_attributes, timestamp};
use super::errno::errno;
use crate::image_file::ImageFile;

/// Bytes of a name (NAME_MAX).
const NAME_BYTES_MAX: usize = 255;

/// A mounted filesystem.
pub(super) struct Mount {
    pub(super) engine: Filesystem<ImageFile>,
    /// How often the kernel was told of an inode and has not forgotten it yet.
    known: RefCell<BTreeMap<InodeNumber, u64>>,
}

/// An inode as the kernel is told of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) attributes: FileAttr,
    pub(super) generation: Generation,
}

impl Entry {
    /// Of an inode as it is.
    pub(super) fn new(number: InodeNumber, inode: &Inode, block_bytes: u32) -> Self {
        let generation = Generation(u64::from(inode.generation));
        Self { attributes: file_attributes(number, inode, block_bytes), generation }
    }
}

impl Mount {
    /// Of a filesystem that was opened, and of which the kernel knows nothing yet.
    pub(super) fn new(engine: Filesystem<ImageFile>) -> Self {
        Self { engine, known: RefCell::default() }
    }

    /// Runs an operation to its end.
    pub(super) async fn run<T>(&self, op: impl FnMut(&mut Handle<'_>) -> Result<T, Stop>) -> Result<T, Errno> {
        self.engine.run(op).await.map(|done| done.value).map_err(|failure| errno(&failure))
    }

    /// The kernel is to be told of an inode once more. While it knows of it, it may have it open, also without a name. Errors:
    /// ENOENT when it lost its last name since it was looked up, and is on its way out; then the kernel must not be told.
    pub(super) fn tell(&self, number: InodeNumber) -> Result<(), Errno> {
        let mut known = self.known.borrow_mut();
        if !known.contains_key(&number) && !self.engine.hold(number) {
            return Err(Errno::ENOENT);
        }
        *known.entry(number).or_insert(0) += 1;
        Ok(())
    }

    /// The kernel has forgotten some of that.
    pub(super) fn forget(&self, number: InodeNumber, count: u64) {
        let mut known = self.known.borrow_mut();
        let Some(left) = known.get_mut(&number) else { return };
        *left = left.saturating_sub(count);
        if *left == 0 {
            known.remove(&number);
            self.engine.let_go(number);
        }
    }

    /// The kernel knows nothing any more: it does not say so when it unmounts.
    pub(super) fn forget_all(&self) {
        let known = std::mem::take(&mut *self.known.borrow_mut());
        known.into_keys().for_each(|number| self.engine.let_go(number));
    }

    /// What stat(2) tells; also of a file without a name.
    pub(super) async fn attributes(&self, number: InodeNumber) -> Result<FileAttr, Errno> {
        self.run(|handle| Ok(entry(handle, number)?.attributes)).await
    }
}

/// An inode as the kernel is told of it.
pub(super) fn entry(handle: &mut Handle<'_>, number: InodeNumber) -> Result<Entry, Stop> {
    let inode = handle.stat(number)?;
    Ok(Entry::new(number, &inode, handle.geometry().block_size))
}

/// A name that is short enough to be one: FUSE passes on longer ones.
pub(super) fn checked(name: &OsStr) -> Result<&[u8], Errno> {
    match name.as_bytes() {
        name if name.len() > NAME_BYTES_MAX => Err(Errno::ENAMETOOLONG),
        name => Ok(name),
    }
}

/// The time.
pub(super) fn now() -> Timestamp {
    timestamp(SystemTime::now())
}
