//! Modes, kinds of files, and the numbers of devices as an inode holds them (ext4 on-disk format, "Index Nodes", i_mode).

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A named pipe.
    Fifo,
    /// A device of characters.
    CharacterDevice,
    /// A directory.
    Directory,
    /// A device of blocks.
    BlockDevice,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A socket's name.
    Socket,
}

/// The kind and the permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mode(pub u16);

const KIND_MASK: u16 = 0xf000;

impl Mode {
    /// Runs as its owner.
    pub const SET_USER: u16 = 0o4000;
    /// Runs as its group; new files in a directory get its group.
    pub const SET_GROUP: u16 = 0o2000;
    /// Only owners remove from the directory.
    pub const STICKY: u16 = 0o1000;

    /// From a kind and the lower twelve bits of `permissions`.
    pub fn new(kind: FileKind, permissions: u16) -> Self {
        let kind = match kind {
            FileKind::Fifo => 0x1000,
            FileKind::CharacterDevice => 0x2000,
            FileKind::Directory => 0x4000,
            FileKind::BlockDevice => 0x6000,
            FileKind::Regular => 0x8000,
            FileKind::Symlink => 0xa000,
            FileKind::Socket => 0xc000,
        };
        Self(kind | permissions & !KIND_MASK)
    }

    /// The kind; None when there is no such kind, as in an inode that was never used.
    pub fn kind(self) -> Option<FileKind> {
        Some(match self.0 & KIND_MASK {
            0x1000 => FileKind::Fifo,
            0x2000 => FileKind::CharacterDevice,
            0x4000 => FileKind::Directory,
            0x6000 => FileKind::BlockDevice,
            0x8000 => FileKind::Regular,
            0xa000 => FileKind::Symlink,
            0xc000 => FileKind::Socket,
            _ => return None,
        })
    }

    /// The lower twelve bits.
    pub fn permissions(self) -> u16 {
        self.0 & !KIND_MASK
    }
}

/// The number of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// The driver; 12 bits.
    pub major: u32,
    /// The device; 20 bits.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the first two words of `i_block`: the old encoding of 16 bits is in the first, the new one of 32 bits in the
    /// second when the first is 0.
    pub fn decode(words: [u32; 2]) -> Self {
        match words {
            [0, new] => Self { major: new >> 8 & 0xfff, minor: new & 0xff | new >> 12 & 0xf_ff00 },
            [old, _] => Self { major: old >> 8 & 0xff, minor: old & 0xff },
        }
    }

    /// The two words of [`DeviceNumber::decode`], old when both numbers are small enough. None when one is too large.
    pub fn encode(self) -> Option<[u32; 2]> {
        let Self { major, minor } = self;
        if major > 0xfff || minor > 0xf_ffff {
            return None;
        }
        if major <= 0xff && minor <= 0xff {
            return Some([major << 8 | minor, 0]);
        }
        Some([0, minor & 0xff | major << 8 | (minor & !0xff) << 12])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_has_its_kind_and_permissions() {
        let mode = Mode::new(FileKind::Directory, 0o1755);
        assert_eq!((mode.0, mode.kind(), mode.permissions()), (0o41755, Some(FileKind::Directory), 0o1755));
        let known = (0..16).filter(|kind| Mode(kind << 12).kind().is_some()).count();
        assert_eq!(known, 7);
        for kind in (0..16).filter_map(|kind| Mode(kind << 12).kind()) {
            assert_eq!(Mode::new(kind, 0).kind(), Some(kind));
        }
    }

    #[test]
    fn device_numbers_come_back_in_both_encodings() {
        for (major, minor) in [(0, 1), (8, 1), (255, 255), (256, 0), (1, 256), (4095, 0xf_ffff), (259, 70_000)] {
            let device = DeviceNumber { major, minor };
            let words = device.encode().unwrap();
            assert_eq!(DeviceNumber::decode(words), device);
            assert_eq!(words[1] != 0, major > 255 || minor > 255);
        }
        assert_eq!(DeviceNumber { major: 4096, minor: 0 }.encode(), None);
        assert_eq!(DeviceNumber { major: 259, minor: 0x12345 }.encode(), Some([0, 0x1231_0345]));
    }
}
