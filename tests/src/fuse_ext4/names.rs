//! Operations on names.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use filesystem::attributes::acl::Kind;
use filesystem::directory::{Cookie, ReadEntry};
use filesystem::engine::{Handle, NewFile, Place, Rename};
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::{InodeNumber, Refusal, Stop};
use fuser::{Errno, FileType, INodeNo, RenameFlags};

use super::attributes::{device_of_word, entry_file_type, inode_number};
use super::mount::{Entry, Mount, checked, entry, now};

/// Permissions of symbolic links, which nobody looks at.
const SYMLINK_PERMISSIONS: u16 = 0o777;
/// Entries read at a time.
const ENTRIES: usize = 128;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) user: u32,
    pub(super) group: u32,
    /// Permissions that new files do not get, unless their directory has a default ACL.
    pub(super) umask: u16,
}

/// An entry of a directory.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) number: InodeNumber,
    pub(super) name: OsString,
    pub(super) kind: FileType,
    /// Where a reader goes on behind it.
    pub(super) offset: u64,
    /// What it names, if that was asked for; never of `.` and `..`.
    pub(super) entry: Option<Entry>,
}

impl Mount {
    /// What a name names. The kernel knows of it from now on, as of everything in which an [`Entry`] is given here.
    pub(super) async fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<Entry, Errno> {
        let (directory, name) = (inode_number(parent), checked(name)?);
        let found = self.run(|handle| {
            let number = handle.lookup(directory, name)?;
            Ok((number, entry(handle, number)?))
        });
        let (number, entry) = found.await?;
        self.tell(number)?;
        Ok(entry)
    }

    /// Makes a file of any kind but a symbolic link. `mode` is that of stat(2), `device` is 32 bits for a device.
    pub(super) async fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        device: u32,
        caller: Caller,
    ) -> Result<Entry, Errno> {
        let mut mode = Mode(mode as u16);
        if mode.0 == mode.permissions() {
            mode = Mode::new(FileKind::Regular, mode.permissions());
        }
        let is_device = matches!(mode.kind(), Some(FileKind::CharacterDevice | FileKind::BlockDevice));
        let device = is_device.then(|| device_of_word(device));
        self.create(
            parent,
            name,
            &NewFile { mode, user: caller.user, group: caller.group, device, target: &[] },
            caller.umask,
        )
        .await
    }

    /// Makes a directory.
    pub(super) async fn make_directory(
        &self,
        parent: INodeNo,
        name: &OsStr,
        permissions: u32,
        caller: Caller,
    ) -> Result<Entry, Errno> {
        let mode = Mode::new(FileKind::Directory, permissions as u16);
        let new = NewFile { mode, user: caller.user, group: caller.group, device: None, target: &[] };
        self.create(parent, name, &new, caller.umask).await
    }

    /// Makes a symbolic link.
    pub(super) async fn make_symlink(
        &self,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        caller: Caller,
    ) -> Result<Entry, Errno> {
        let target = target.as_os_str().as_bytes();
        let mode = Mode::new(FileKind::Symlink, SYMLINK_PERMISSIONS);
        let new = NewFile { mode, user: caller.user, group: caller.group, device: None, target };
        match self.create(parent, name, &new, 0).await {
            // The only thing that can be too long here.
            Err(errno) if errno.code() == Errno::EFBIG.code() => Err(Errno::ENAMETOOLONG),
            made => made,
        }
    }

    /// The umask is applied here, since only here it is known whether the directory has a default ACL (acl(5)).
    async fn create(&self, parent: INodeNo, name: &OsStr, new: &NewFile<'_>, umask: u16) -> Result<Entry, Errno> {
        let place = Place { directory: inode_number(parent), name: checked(name)? };
        let made = self.run(|handle| {
            let mut new = *new;
            if umask != 0 && handle.acl(place.directory, Kind::Default)?.is_none() {
                new.mode = Mode(new.mode.0 & !umask);
            }
            let number = handle.create(place, &new, now())?.inode;
            Ok((number, entry(handle, number)?))
        });
        let (number, entry) = made.await?;
        self.tell(number)?;
        Ok(entry)
    }

    /// The target of a symbolic link.
    pub(super) async fn target(&self, ino: INodeNo) -> Result<Vec<u8>, Errno> {
        let number = inode_number(ino);
        match self.run(|handle| handle.read_link(number)).await {
            Err(errno) if errno.code() == Errno::EPERM.code() => Err(Errno::EINVAL),
            read => read,
        }
    }

    /// Gives a file another name.
    pub(super) async fn link(&self, ino: INodeNo, parent: INodeNo, name: &OsStr) -> Result<Entry, Errno> {
        let number = inode_number(ino);
        let place = Place { directory: inode_number(parent), name: checked(name)? };
        let linked = self.run(|handle| {
            handle.link(number, place, now())?;
            entry(handle, number)
        });
        let entry = linked.await?;
        self.tell(number)?;
        Ok(entry)
    }

    /// Takes a name away, of a directory or of anything else.
    pub(super) async fn remove(&self, parent: INodeNo, name: &OsStr, directory: bool) -> Result<(), Errno> {
        let place = Place { directory: inode_number(parent), name: checked(name)? };
        self.run(|handle| handle.remove(place, directory, now())).await.map(drop)
    }

    /// Moves a name.
    pub(super) async fn rename(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let how = if flags.is_empty() {
            Rename::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            Rename::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            Rename::Exchange
        } else {
            return Err(Errno::EINVAL);
        };
        let from = Place { directory: inode_number(from.0), name: checked(from.1)? };
        let to = Place { directory: inode_number(to.0), name: checked(to.1)? };
        self.run(|handle| handle.rename(from, to, how, now())).await.map(drop)
    }

    /// Entries of a directory behind an offset; none at its end. Inodes are looked at if `with_inodes`, but the kernel does not
    /// know of them yet.
    pub(super) async fn list(&self, ino: INodeNo, offset: u64, with_inodes: bool) -> Result<Vec<Listed>, Errno> {
        let directory = inode_number(ino);
        let read = self.run(|handle| {
            let entries = match handle.read_directory(directory, Cookie(offset), ENTRIES) {
                // A directory that was removed while somebody has it open has no entries (POSIX.1-2017, rmdir).
                Err(Stop::Refused(Refusal::Stale)) => return Ok(Vec::new()),
                read => read?.entries,
            };
            let offsets = offsets(offset, &entries);
            entries.iter().zip(offsets).map(|(read, offset)| listed(handle, read, offset, with_inodes)).collect()
        });
        read.await
    }
}

/// Where a reader goes on behind each entry. Of several at one position only the last may say so: if the others are what a
/// buffer has room for, the reader gets them again rather than never the rest.
fn offsets(start: u64, entries: &[ReadEntry]) -> Vec<u64> {
    let mut before = start;
    let mut offsets = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let cookie = entry.cookie.0;
        if entries.get(index + 1).is_some_and(|next| next.cookie.0 == cookie) {
            offsets.push(before);
        } else {
            offsets.push(cookie);
            before = cookie;
        }
    }
    offsets
}

fn listed(handle: &mut Handle<'_>, read: &ReadEntry, offset: u64, with_inodes: bool) -> Result<Listed, Stop> {
    let is_dots = read.name == b"." || read.name == b"..";
    let told = entry_file_type(read.kind);
    let found = if with_inodes || told.is_none() { Some(entry(handle, read.inode)?) } else { None };
    let kind = told.or(found.map(|found| found.attributes.kind)).unwrap_or(FileType::RegularFile);
    let entry = found.filter(|_| with_inodes && !is_dots);
    Ok(Listed { number: read.inode, name: OsString::from_vec(read.name.clone()), kind, offset, entry })
}

#[cfg(test)]
mod tests {
    use filesystem::layout::dirent::EntryType;

    use super::*;

    #[test]
    fn a_reader_never_goes_on_in_the_middle_of_a_position() {
        let entry = |cookie| ReadEntry {
            cookie: Cookie(cookie),
            name: b"x".to_vec(),
            inode: InodeNumber(12),
            kind: EntryType::File,
        };
        assert_eq!(offsets(3, &[entry(5), entry(7), entry(7), entry(7), entry(9)]), [5, 5, 5, 7, 9]);
        assert_eq!(offsets(3, &[entry(7), entry(7)]), [3, 7]);
    }
}
