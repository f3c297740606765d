//! File handles: opaque to clients, and the same on whichever box serves.

use filesystem::InodeNumber;

use crate::ids::FileId;

/// The longest that may come in (RFC 8881 §3.1, `NFS4_FHSIZE`).
pub const HANDLE_BYTES_MAX: usize = 128;
/// Bytes of ours; NFSv3 takes 64.
pub const HANDLE_BYTES: usize = 20;
const VERSION: u8 = 1;

/// What a client can have a handle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileHandle {
    /// The directory above the volumes, which is not stored anywhere.
    Root,
    /// A file of the service's own volume, or of one that was once: the volume's number, and the file.
    File(u64, FileId),
    /// The root of another volume, which another service has.
    Referral(u64),
}

impl FileHandle {
    /// As it goes over the wire.
    pub fn to_bytes(self) -> [u8; HANDLE_BYTES] {
        let (kind, volume, inode, generation) = match self {
            Self::Root => (0, 0, 0, 0),
            Self::File(volume, file) => (1, volume, file.inode.0, file.generation),
            Self::Referral(volume) => (2, volume, 0, 0),
        };
        let mut bytes = [0; HANDLE_BYTES];
        (bytes[0], bytes[1]) = (VERSION, kind);
        bytes[4..12].copy_from_slice(&volume.to_be_bytes());
        bytes[12..16].copy_from_slice(&inode.to_be_bytes());
        bytes[16..].copy_from_slice(&generation.to_be_bytes());
        bytes
    }

    /// From the wire; none for what was never given out.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HANDLE_BYTES] = bytes.try_into().ok()?;
        let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let volume = u64::from(number(4)) << 32 | u64::from(number(8));
        let handle = match bytes[1] {
            0 => Self::Root,
            1 => Self::File(volume, FileId { inode: InodeNumber(number(12)), generation: number(16) }),
            2 => Self::Referral(volume),
            _ => return None,
        };
        (handle.to_bytes() == *bytes).then_some(handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_come_back_and_others_are_refused() {
        let file = FileId { inode: InodeNumber(77), generation: 0x0102_0304 };
        for handle in [FileHandle::Root, FileHandle::File(5, file), FileHandle::Referral(u64::MAX)] {
            let bytes = handle.to_bytes();
            assert_eq!(FileHandle::from_bytes(&bytes), Some(handle));
            assert_eq!(FileHandle::from_bytes(&bytes[..19]), None);
            for at in [0, 1, 2, 3] {
                let mut other = bytes;
                other[at] ^= 0x80;
                assert_eq!(FileHandle::from_bytes(&other), None, "byte {at} of {handle:?}");
            }
        }
    }
}
