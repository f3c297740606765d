//! Attributes of an inode in the words of FUSE.

use std::time::{Duration, SystemTime};

use filesystem::InodeNumber;
use filesystem::layout::dirent::EntryType;
use filesystem::layout::file_kind::{DeviceNumber, FileKind};
use filesystem::layout::inode::Inode;
use filesystem::layout::timestamp::Timestamp;
use fuser::{FileAttr, FileType, INodeNo};

/// FUSE calls the root directory 1, and has no other number for it.
const FUSE_ROOT: u64 = 1;

/// The inode that a request means. Numbers that no inode can have become 0, which the engine refuses.
pub(super) fn inode_number(ino: INodeNo) -> InodeNumber {
    match ino.0 {
        FUSE_ROOT => filesystem::units::ROOT_INODE,
        other => InodeNumber(u32::try_from(other).unwrap_or(0)),
    }
}

/// The other way round.
pub(super) fn fuse_number(number: InodeNumber) -> INodeNo {
    match number {
        filesystem::units::ROOT_INODE => INodeNo(FUSE_ROOT),
        InodeNumber(other) => INodeNo(u64::from(other)),
    }
}

/// What stat(2) tells of an inode. `block_bytes` is the size of blocks.
pub(super) fn file_attributes(number: InodeNumber, inode: &Inode, block_bytes: u32) -> FileAttr {
    FileAttr {
        ino: fuse_number(number),
        size: inode.size,
        blocks: inode.sectors,
        atime: system_time(inode.accessed),
        mtime: system_time(inode.modified),
        ctime: system_time(inode.changed),
        crtime: system_time(inode.created.unwrap_or_default()),
        kind: inode.mode.kind().map_or(FileType::RegularFile, file_type),
        perm: inode.mode.permissions(),
        nlink: u32::from(inode.links),
        uid: inode.user,
        gid: inode.group,
        rdev: inode.device().map_or(0, device_word),
        blksize: block_bytes,
        flags: 0,
    }
}

/// The kind of file.
pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharacterDevice => FileType::CharDevice,
        FileKind::Directory => FileType::Directory,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Socket => FileType::Socket,
    }
}

/// The kind as an entry of a directory has it; None when the entry does not tell.
pub(super) fn entry_file_type(kind: EntryType) -> Option<FileType> {
    Some(match kind {
        EntryType::Fifo => FileType::NamedPipe,
        EntryType::CharacterDevice => FileType::CharDevice,
        EntryType::Directory => FileType::Directory,
        EntryType::BlockDevice => FileType::BlockDevice,
        EntryType::File => FileType::RegularFile,
        EntryType::Symlink => FileType::Symlink,
        EntryType::Socket => FileType::Socket,
        _ => return None,
    })
}

/// The number of a device in the 32 bits in which FUSE carries it (include/linux/kdev_t.h, `new_encode_dev`).
fn device_word(device: DeviceNumber) -> u32 {
    device.minor & 0xff | device.major << 8 | (device.minor & !0xff) << 12
}

/// The number of a device from those 32 bits.
pub(super) fn device_of_word(word: u32) -> DeviceNumber {
    DeviceNumber { major: word >> 8 & 0xfff, minor: word & 0xff | word >> 12 & 0xf_ff00 }
}

fn system_time(time: Timestamp) -> SystemTime {
    let nanoseconds = Duration::from_nanos(u64::from(time.nanoseconds));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    whole.and_then(|whole| whole.checked_add(nanoseconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A moment as the engine has it.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => {
            Timestamp { seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanoseconds: after.subsec_nanos() }
        }
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
            match before.subsec_nanos() {
                0 => Timestamp { seconds, nanoseconds: 0 },
                some => Timestamp { seconds: seconds.saturating_sub(1), nanoseconds: 1_000_000_000 - some },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_1970_come_back() {
        for (seconds, nanoseconds) in [(0, 0), (1, 5), (-1, 999_999_999), (-2, 0), (-7, 1), (1 << 33, 3)] {
            let time = Timestamp { seconds, nanoseconds };
            assert_eq!(timestamp(system_time(time)), time);
        }
    }

    #[test]
    fn numbers_of_devices_come_back() {
        for (major, minor) in [(0, 0), (8, 1), (259, 70_000), (4095, 0xf_ffff)] {
            let device = DeviceNumber { major, minor };
            assert_eq!(device_of_word(device_word(device)), device);
        }
    }

    #[test]
    fn the_root_has_the_number_that_fuse_gives_it() {
        assert_eq!(inode_number(INodeNo(1)), filesystem::units::ROOT_INODE);
        assert_eq!(fuse_number(filesystem::units::ROOT_INODE), INodeNo(1));
        assert_eq!(inode_number(INodeNo(1 << 40)), InodeNumber(0));
        assert_eq!(fuse_number(InodeNumber(12)), INodeNo(12));
    }
}
