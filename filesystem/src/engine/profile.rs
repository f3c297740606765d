//! What of a filesystem's features matters to its inodes and names.

use crate::layout::features::{compat, incompat, ro_compat};
use crate::layout::hash::{HashVersion, Hashing};
use crate::layout::superblock::{HashSign, Superblock};

/// The same for all inodes and directories, and for as long as the filesystem is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Counts of sectors have 48 bits.
    pub huge_file: bool,
    /// Files are mapped by extents.
    pub extents: bool,
    /// Entries of directories tell their types.
    pub file_types: bool,
    /// Directories may have an index.
    pub dir_index: bool,
    /// A directory may have more directories in it than links can be counted.
    pub dir_nlink: bool,
    /// Inodes may have extended attributes.
    pub attributes: bool,
    /// How new indexes hash names.
    pub hashing: Hashing,
}

impl Profile {
    /// As the superblock has it. A hash without a known number is taken for the usual one, and a sign that was never
    /// settled for that of x86, as the kernel does there.
    pub fn of(superblock: &Superblock) -> Self {
        let features = superblock.features();
        Self {
            huge_file: features.has_ro_compat(ro_compat::HUGE_FILE),
            extents: features.has_incompat(incompat::EXTENT),
            file_types: features.has_incompat(incompat::FILETYPE),
            dir_index: features.has_compat(compat::DIR_INDEX),
            dir_nlink: features.has_ro_compat(ro_compat::DIR_NLINK),
            attributes: features.has_compat(compat::EXT_ATTR),
            hashing: Hashing {
                version: HashVersion::from_disk(superblock.default_hash_version()).unwrap_or(HashVersion::HalfMd4),
                signed: superblock.hash_sign() != HashSign::Unsigned,
                seed: superblock.hash_seed(),
            },
        }
    }
}
