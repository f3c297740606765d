//! The flags of an inode (ext4 on-disk format, "Index Nodes", i_flags).

use std::ops::BitOr;

/// A set of flags. Those without a name are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct InodeFlags(pub u32);

impl InodeFlags {
    /// None.
    pub const NONE: Self = Self(0);
    /// Secure deletion; not implemented by anybody.
    pub const SECURE_DELETION: Self = Self(0x1);
    /// To be kept for undeletion; not implemented by anybody.
    pub const UNDELETABLE: Self = Self(0x2);
    /// Compressed; not implemented by anybody.
    pub const COMPRESSED: Self = Self(0x4);
    /// Writes are synchronous.
    pub const SYNC: Self = Self(0x8);
    /// Cannot be changed.
    pub const IMMUTABLE: Self = Self(0x10);
    /// Can only grow.
    pub const APPEND: Self = Self(0x20);
    /// Not for dump(1).
    pub const NO_DUMP: Self = Self(0x40);
    /// The access time is not kept.
    pub const NO_ATIME: Self = Self(0x80);
    /// Encrypted.
    pub const ENCRYPTED: Self = Self(0x800);
    /// A directory with a hash tree.
    pub const INDEX: Self = Self(0x1000);
    /// AFS magic directory.
    pub const AFS_DIRECTORY: Self = Self(0x2000);
    /// The data goes through the journal.
    pub const JOURNAL_DATA: Self = Self(0x4000);
    /// The tail is not to be merged; not used by ext4.
    pub const NO_TAIL: Self = Self(0x8000);
    /// Changes of the directory are synchronous.
    pub const DIRECTORY_SYNC: Self = Self(0x1_0000);
    /// The top of a directory hierarchy.
    pub const TOP_DIRECTORY: Self = Self(0x2_0000);
    /// The number of blocks is in blocks of the filesystem, not in sectors.
    pub const HUGE_FILE: Self = Self(0x4_0000);
    /// Mapped by extents.
    pub const EXTENTS: Self = Self(0x8_0000);
    /// Under fs-verity.
    pub const VERITY: Self = Self(0x10_0000);
    /// Holds the value of an extended attribute.
    pub const ATTRIBUTE_VALUE: Self = Self(0x20_0000);
    /// Blocks beyond the end of the file; no longer used.
    pub const BLOCKS_BEYOND_END: Self = Self(0x40_0000);
    /// Direct access to persistent memory.
    pub const DAX: Self = Self(0x200_0000);
    /// The content is in the inode.
    pub const INLINE_DATA: Self = Self(0x1000_0000);
    /// Children get the same project.
    pub const PROJECT_INHERIT: Self = Self(0x2000_0000);
    /// Names are compared without case.
    pub const CASEFOLD: Self = Self(0x4000_0000);

    /// True when all of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These, with or without `other`.
    pub fn with(self, other: Self, set: bool) -> Self {
        if set { Self(self.0 | other.0) } else { Self(self.0 & !other.0) }
    }
}

impl BitOr for InodeFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_without_a_name_are_kept() {
        let flags = InodeFlags(0x8000_0100) | InodeFlags::EXTENTS;
        assert!(flags.contains(InodeFlags::EXTENTS) && !flags.contains(InodeFlags::EXTENTS | InodeFlags::INDEX));
        assert_eq!(flags.with(InodeFlags::EXTENTS, false), InodeFlags(0x8000_0100));
    }
}
