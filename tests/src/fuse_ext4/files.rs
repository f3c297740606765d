//! Attributes and extended attributes of an inode.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::SystemTime;

use filesystem::InodeNumber;
use filesystem::engine::AttributeChanges;
use filesystem::layout::timestamp::Timestamp;
use filesystem::layout::xattr::SetMode;
use fuser::{Errno, FileAttr, TimeOrNow};
use nix::libc;

use super::attributes::timestamp;
use super::mount::{Mount, entry, now};

/// What setattr of the kernel's FUSE client asks for; None stays.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    pub(super) permissions: Option<u16>,
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) accessed: Option<TimeOrNow>,
    pub(super) modified: Option<TimeOrNow>,
}

impl Mount {
    /// Changes attributes; gives them as they are then.
    pub(super) async fn set_attributes(&self, number: InodeNumber, wanted: Wanted) -> Result<FileAttr, Errno> {
        let Wanted { permissions, user, group, size, accessed, modified } = wanted;
        let (accessed, modified) = (accessed.map(moment), modified.map(moment));
        let changes = AttributeChanges { mode: permissions, user, group, accessed, modified };
        let changed = self.run(|handle| {
            let now = now();
            if let Some(size) = size {
                handle.truncate(number, size, now)?;
            }
            handle.set_attributes(number, &changes, now)?;
            Ok(entry(handle, number)?.attributes)
        });
        changed.await
    }

    /// The value of an extended attribute.
    pub(super) async fn extended(&self, number: InodeNumber, name: &OsStr) -> Result<Vec<u8>, Errno> {
        self.run(|handle| handle.get_attribute(number, name.as_bytes())).await
    }

    /// The names of all extended attributes, each with a zero byte behind it.
    pub(super) async fn extended_names(&self, number: InodeNumber) -> Result<Vec<u8>, Errno> {
        let names = self.run(|handle| handle.list_attributes(number)).await?;
        Ok(names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect())
    }

    /// Sets an extended attribute; `flags` are those of setxattr(2).
    pub(super) async fn set_extended(
        &self,
        number: InodeNumber,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<(), Errno> {
        let how = match flags {
            0 => SetMode::Any,
            libc::XATTR_CREATE => SetMode::Create,
            libc::XATTR_REPLACE => SetMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        self.run(|handle| handle.set_attribute(number, (name.as_bytes(), value), how, now())).await
    }

    /// Takes an extended attribute away.
    pub(super) async fn remove_extended(&self, number: InodeNumber, name: &OsStr) -> Result<(), Errno> {
        self.run(|handle| handle.remove_attribute(number, name.as_bytes(), now())).await
    }
}

fn moment(time: TimeOrNow) -> Timestamp {
    match time {
        TimeOrNow::SpecificTime(time) => timestamp(time),
        TimeOrNow::Now => timestamp(SystemTime::now()),
    }
}
