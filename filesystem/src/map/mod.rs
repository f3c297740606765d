//! Where the blocks of a file are: by an extent tree or by an indirect map, as the inode's flag says.
//!
//! A map is a copy of the 60 bytes in the inode with what its operations need to know. An operation changes the copy only
//! when it comes to its end; the caller then puts it back into the inode, and brings the inode's count of sectors up to
//! date with the [`Change`]. Nothing here knows the length of the file, or its data.

pub mod extent_check;
mod extent_edit;
mod extent_path;
pub mod extents;
pub mod indirect;
#[cfg(test)]
mod store_for_tests;

use crate::layout::checksum::Seed;
use crate::layout::extent::{Extent, ROOT_SIZE};
use crate::layout::inode::{Inode, InodeRules};
use crate::layout::inode_flags::InodeFlags;
use crate::store::{BlockStore, Stop};
use crate::units::{BlockNumber, BlockRun, FileBlock, InodeNumber};

pub use extents::ExtentTree;
pub use indirect::IndirectMap;

/// What is at a block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// That block and as many as follow it on the device, as far as one entry tells.
    Mapped {
        /// From the block that was asked for.
        run: BlockRun,
        /// Reserved, and to be read as zeros.
        unwritten: bool,
    },
    /// Nothing for at least so many blocks of the file.
    Hole {
        /// Up to the next that is mapped, where one step tells; never more than that. 0 only beyond the largest file.
        count: u32,
    },
}

/// What an operation did to the blocks that are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Blocks of the map that were allocated.
    pub nodes_added: u64,
    /// Blocks of the map that were given back.
    pub nodes_removed: u64,
    /// Blocks of data that were given back.
    pub data_freed: u64,
}

/// How much one call may do, so that it fits into a transaction.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Blocks of data to give back.
    pub blocks_max: u64,
    /// Nodes of the map whose entries are changed.
    pub nodes_max: u32,
}

impl Limits {
    /// No limit but the map's own.
    pub const NONE: Self = Self { blocks_max: u64::MAX, nodes_max: u32::MAX };
}

/// How far a call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it did.
    pub change: Change,
    /// What of the range remains to be done, when the limits did not let it come to its end: from the range's start up to
    /// here for a removal, from here to the range's end for a conversion.
    pub stopped_at: Option<FileBlock>,
}

/// The map of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileMap {
    /// With the flag [`InodeFlags::EXTENTS`].
    Extents(ExtentTree),
    /// Without.
    Indirect(IndirectMap),
}

impl FileMap {
    /// The map of an inode that has one: a regular file, a directory, or a symbolic link that is not in the inode. New nodes
    /// come near `goal`.
    pub fn of_inode(inode: &Inode, number: InodeNumber, rules: &InodeRules, goal: BlockNumber) -> Self {
        let root = inode.map;
        let seed = rules.seed.map(|seed| Seed::of_inode(seed, number, inode.generation));
        if inode.flags.contains(InodeFlags::EXTENTS) {
            Self::Extents(ExtentTree::new(root, number, seed, rules.device_blocks, goal))
        } else {
            Self::Indirect(IndirectMap::new(root, number, rules.block_size, rules.device_blocks, goal))
        }
    }

    /// What belongs into the inode.
    pub fn root(&self) -> &[u8; ROOT_SIZE] {
        match self {
            Self::Extents(tree) => tree.root(),
            Self::Indirect(map) => map.root(),
        }
    }

    /// What is at `at`. Errors: those of the store, and what is found broken.
    pub fn lookup<S: BlockStore + ?Sized>(&self, store: &mut S, at: FileBlock) -> Result<Mapping, Stop> {
        match self {
            Self::Extents(tree) => tree.lookup(store, at),
            Self::Indirect(map) => map.lookup(store, at),
        }
    }

    /// The mapped blocks from `at` on or after it, clipped to begin there. None when nothing more is mapped. Errors: those
    /// of the store, and what is found broken.
    pub fn next<S: BlockStore + ?Sized>(&self, store: &mut S, at: FileBlock) -> Result<Option<Extent>, Stop> {
        match self {
            Self::Extents(tree) => tree.next(store, at),
            Self::Indirect(map) => map.next(store, at),
        }
    }

    /// Maps blocks that are not mapped. An indirect map cannot hold unwritten ones.
    ///
    /// Errors: [`Stop::TooLarge`], those of the store, and what is found broken.
    ///
    /// # Panics
    /// When unwritten blocks are given to an indirect map.
    pub fn insert<S: BlockStore + ?Sized>(&mut self, store: &mut S, extent: Extent) -> Result<Change, Stop> {
        match self {
            Self::Extents(tree) => tree.insert(store, extent),
            Self::Indirect(map) => {
                assert!(!extent.unwritten, "an indirect map has no unwritten blocks");
                map.insert(store, extent.file, extent.run)
            }
        }
    }

    /// Gives back what is mapped from `from` and before `to`, beginning at the end. Errors: those of the store, and what is
    /// found broken.
    pub fn remove<S: BlockStore + ?Sized>(
        &mut self,
        store: &mut S,
        from: FileBlock,
        to: FileBlock,
        limits: Limits,
    ) -> Result<Progress, Stop> {
        match self {
            Self::Extents(tree) => tree.remove(store, from, to, limits),
            Self::Indirect(map) => map.remove(store, from, to, limits),
        }
    }
}
