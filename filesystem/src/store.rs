//! The blocks as an operation sees them: what trees and directories are read from and edited in.
//!
//! An operation runs to its end without waiting. What it needs and is not at hand stops it: its edits are dropped, what was
//! missing is fetched, and it runs again from the start.

use thiserror::Error;

use crate::layout::Corrupt;
use crate::units::{BlockNumber, BlockRun, InodeNumber};

/// Why an operation did not come to its end. None of its edits took effect.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Stop {
    /// This block is not at hand: to be fetched, and the operation run again.
    #[error("block {0} is not in memory")]
    Missing(BlockNumber),
    /// The device holds something that cannot be: the filesystem turns read-only.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// No block or inode is free.
    #[error("no space left on the volume")]
    NoSpace,
    /// The tree is not as the operation needs it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A file, directory or extended attribute would grow past what its format can hold.
    #[error("{0} cannot grow any further")]
    TooLarge(&'static str),
    /// This has to happen before the operation is run again.
    #[error("something else has to end first")]
    Wait(Wait),
}

/// What an operation may have to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nobody moves, maps or frees blocks of this file.
    Quiet(InodeNumber),
    /// Nothing of this file waits to be written.
    Clean(InodeNumber),
    /// The blocks behind this file's end are given back.
    Whole(InodeNumber),
    /// Some of the data that waits is written.
    Memory,
    /// Blocks are read or written no longer that were freed meanwhile.
    Blocks,
}

/// What stands against an operation in the tree itself, by the names that POSIX has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// ENOENT.
    #[error("no such file or directory")]
    NotFound,
    /// EEXIST.
    #[error("the name exists")]
    Exists,
    /// ENOTDIR.
    #[error("not a directory")]
    NotDirectory,
    /// EISDIR.
    #[error("is a directory")]
    IsDirectory,
    /// ENOTEMPTY.
    #[error("the directory is not empty")]
    NotEmpty,
    /// EMLINK.
    #[error("too many links")]
    TooManyLinks,
    /// ENAMETOOLONG, or EINVAL for what is no name at all.
    #[error("not a name: 1 to 255 bytes, without / and NUL, and neither . nor ..")]
    BadName,
    /// EINVAL: a directory would be moved into itself.
    #[error("a directory cannot be moved into itself")]
    IntoItself,
    /// ESTALE: the inode is not in use, or by another file.
    #[error("the file is gone")]
    Stale,
    /// EPERM: what is asked for cannot be done to this kind of file.
    #[error("not possible with this kind of file")]
    WrongKind,
    /// ENODATA.
    #[error("no such attribute")]
    NoAttribute,
    /// ENOSPC: the inode and one block have no room for it beside the others.
    #[error("the attributes of the file leave no room for it")]
    NoRoomForAttribute,
    /// E2BIG: more than the 64 KiB that the value of an attribute may ever have.
    #[error("the attribute is too big")]
    AttributeTooBig,
    /// ERANGE: nothing, more than 255 bytes, or a zero byte after the namespace.
    #[error("not a name of an attribute")]
    BadAttributeName,
    /// EINVAL.
    #[error("not a valid access control list")]
    BadAcl,
    /// EOPNOTSUPP: the namespace of an attribute, a feature that the filesystem lacks, or one that is not known here.
    #[error("not supported")]
    NotSupported,
    /// Nothing of POSIX: the gateways' state takes as much of the state ring as it may. Later there may be room.
    #[error("the state ring has no room")]
    StateRingFull,
    /// EPERM: the file is the server's own, or state is to be kept and there is no state ring.
    #[error("kept for the server itself")]
    Reserved,
}

/// Blocks of metadata, and where new ones come from. Every slice has the length of one block of the filesystem.
pub trait BlockStore {
    /// The content of a block. Errors: [`Stop::Missing`].
    fn block(&mut self, at: BlockNumber) -> Result<&[u8], Stop>;

    /// The content of a block, to be edited; the edit belongs to the running operation. Errors: [`Stop::Missing`].
    fn block_mut(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop>;

    /// A block whose former content does not matter, zeroed, to be written as metadata by the running operation.
    fn new_block(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop>;

    /// Takes a free block, near `goal` if that can be. Errors: [`Stop::NoSpace`], and those of the bitmaps' blocks.
    fn allocate(&mut self, goal: BlockNumber) -> Result<BlockNumber, Stop>;

    /// Gives blocks back. `metadata` tells that they may be in the journal, which then has to revoke them.
    fn free(&mut self, run: BlockRun, metadata: bool) -> Result<(), Stop>;
}
