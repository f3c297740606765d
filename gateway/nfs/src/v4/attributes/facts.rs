//! What attributes are made of: of a file of the volume, or of a directory that is stored nowhere.

use filesystem::engine::{Statistics, change_attribute};
use filesystem::layout::file_kind::{DeviceNumber, FileKind};
use filesystem::layout::inode::{Inode, SECTOR_SIZE};
use filesystem::layout::timestamp::Timestamp;

use crate::ids::FileId;
use crate::v4::file_handle::FileHandle;

/// The file number of the root of a filesystem that has its own root elsewhere: what every Unix expects to see above it.
const ROOT_FILEID: u64 = 1;

/// What is the same for all files of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// The number of its volume.
    pub volume: u64,
    /// The volume's name: that of its root in the directory above.
    pub name: Vec<u8>,
    /// Seconds after which a silent client may be forgotten.
    pub lease_seconds: u32,
    /// Bytes that one READ or WRITE takes at most.
    pub io_bytes_max: u32,
    /// Bytes of the largest file.
    pub file_bytes_max: u64,
    /// What tells this run of the service from others: unstable data that one took is not known to the next.
    pub write_verifier: [u8; 8],
    /// When the service was set up: the times of what is stored nowhere.
    pub since: Timestamp,
}

/// What is to be told of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Its handle.
    pub handle: FileHandle,
    /// Its kind.
    pub kind: FileKind,
    /// Another number after every change.
    pub change: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes on the device.
    pub used: u64,
    /// Of which filesystem: two numbers (RFC 8881 §3.3.5).
    pub fsid: (u64, u64),
    /// Its number.
    pub fileid: u64,
    /// The number of the directory that it covers, if it is the root of a filesystem; else its own.
    pub mounted_on: u64,
    /// Permissions.
    pub mode: u16,
    /// Names.
    pub links: u32,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Of a device.
    pub device: Option<DeviceNumber>,
    /// Last access.
    pub accessed: Timestamp,
    /// Last change of the attributes.
    pub changed: Timestamp,
    /// Last change of the content.
    pub modified: Timestamp,
    /// When it was made, if that is known.
    pub created: Option<Timestamp>,
}

impl ServiceFacts {
    /// What the service calls itself to its clients, the same on whichever box it runs (RFC 8881 §2.10.5, `so_major_id`).
    pub fn identity(&self) -> Vec<u8> {
        format!("tandem {:016x}", self.volume).into_bytes()
    }

    /// The volume's filesystem.
    pub fn fsid(&self) -> (u64, u64) {
        (self.volume, 1)
    }

    /// The directory above the volumes.
    pub fn root(&self) -> FileFacts {
        FileFacts {
            handle: FileHandle::Root,
            kind: FileKind::Directory,
            // What is in it may change, so it is told to be another one whenever its service starts.
            change: u64::from_be_bytes(self.write_verifier),
            size: 4096,
            used: 0,
            fsid: (0, 0),
            fileid: ROOT_FILEID,
            mounted_on: ROOT_FILEID,
            mode: 0o555,
            links: 2,
            user: 0,
            group: 0,
            device: None,
            accessed: self.since,
            changed: self.since,
            modified: self.since,
            created: Some(self.since),
        }
    }

    /// A volume that is served elsewhere: what may be asked of it is little.
    pub fn referral(&self, volume: u64) -> FileFacts {
        let root = self.root();
        let fileid = referral_fileid(volume);
        FileFacts { handle: FileHandle::Referral(volume), fsid: (volume, 1), mounted_on: fileid, fileid, ..root }
    }

    /// A file of the volume.
    pub fn file(&self, file: FileId, inode: &Inode) -> FileFacts {
        let fileid = u64::from(file.inode.0);
        let is_root = file.inode == filesystem::units::ROOT_INODE;
        FileFacts {
            handle: FileHandle::File(self.volume, file),
            kind: inode.mode.kind().unwrap_or(FileKind::Regular),
            change: change_attribute(inode),
            size: inode.size,
            used: inode.sectors.saturating_mul(SECTOR_SIZE),
            fsid: self.fsid(),
            fileid,
            mounted_on: if is_root { referral_fileid(self.volume) } else { fileid },
            mode: inode.mode.permissions(),
            links: u32::from(inode.links),
            user: inode.user,
            group: inode.group,
            device: inode.device(),
            accessed: inode.accessed,
            changed: inode.changed,
            modified: inode.modified,
            created: inode.created,
        }
    }
}

/// The file number, in the directory above, of a volume's root.
pub fn referral_fileid(volume: u64) -> u64 {
    // Never 0 nor that of the directory itself.
    volume.checked_add(2).unwrap_or(2)
}

/// How full a filesystem is; the directory above the volumes holds nothing.
pub const NOTHING_STORED: Statistics = Statistics {
    block_size: 4096,
    blocks: 0,
    blocks_free: 0,
    blocks_available: 0,
    files: 0,
    files_free: 0,
    name_bytes_max: 255,
    id: 0,
};
