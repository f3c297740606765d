//! What ext4 keeps on disk: decoded, checked and edited, byte by byte as the kernel's documentation describes it
//! (Documentation/filesystems/ext4). Pure: no device, no clock, and no panic on any input.

pub mod acl;
pub mod bitmap;
pub mod checksum;
pub mod dirent;
pub mod extent;
pub mod features;
pub mod file_kind;
pub mod geometry;
pub mod group;
pub mod hash;
pub mod htree;
pub mod indirect;
pub mod inode;
pub mod inode_flags;
pub mod mmp;
pub mod orphan;
pub mod superblock;
pub mod timestamp;
pub mod xattr;

use std::fmt;

use thiserror::Error;

/// The kinds of structures that can be found broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Structure {
    /// The superblock.
    Superblock,
    /// A block group's descriptor.
    GroupDescriptor,
    /// A block bitmap.
    BlockBitmap,
    /// An inode bitmap.
    InodeBitmap,
    /// An inode.
    Inode,
    /// A node of an extent tree, in an inode or a block of its own.
    ExtentTree,
    /// A block of an indirect map.
    IndirectMap,
    /// A block of a directory; the number is that of its inode.
    Directory,
    /// A root or node of a directory's hash tree; the number is that of its inode.
    HashTree,
    /// Extended attributes, in an inode or a block of their own.
    ExtendedAttributes,
    /// The list or file of orphans.
    Orphans,
    /// The journal's superblock.
    JournalSuperblock,
    /// A block of the journal.
    JournalBlock,
    /// A block of the state ring; the number is that in its file.
    StateRing,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::GroupDescriptor => "group descriptor",
            Self::BlockBitmap => "block bitmap of group",
            Self::InodeBitmap => "inode bitmap of group",
            Self::Inode => "inode",
            Self::ExtentTree => "extent tree, block",
            Self::IndirectMap => "indirect map, block",
            Self::Directory => "directory, inode",
            Self::HashTree => "index of directory, inode",
            Self::ExtendedAttributes => "extended attributes, block or inode",
            Self::Orphans => "list of orphans, inode or block",
            Self::JournalSuperblock => "journal superblock",
            Self::JournalBlock => "journal block",
            Self::StateRing => "state ring, block",
        })
    }
}

/// Something on disk that cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the filesystem is inconsistent: {structure} {at}: {what}")]
pub struct Corrupt {
    /// What kind of thing it is.
    pub structure: Structure,
    /// Its number: that of the block, inode or group, as the kind has it.
    pub at: u64,
    /// What is wrong with it.
    pub what: &'static str,
}

impl Corrupt {
    /// A finding.
    pub fn new(structure: Structure, at: u64, what: &'static str) -> Self {
        Self { structure, at, what }
    }
}

/// Text in a field of fixed length: what is before its first zero.
pub(crate) fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}
