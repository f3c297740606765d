//! The state ring: records of the gateways (results of requests, opens, locks, handles) in a file whose blocks are written
//! through the journal, so that a record and the change of the tree that it tells of are there both or not at all.
//!
//! The file's first block is the [`header`]; the others are a circle. Blocks are written in order, numbered from 1 without end,
//! block `n` at the `n - 1`th place modulo the circle's length. A transaction starts a fresh block and fills it and those that
//! follow. Of a record with an identity that was written before only the newest counts, and a deletion is a record too.
//! What counts in the oldest blocks is copied forward before they are overwritten. Nothing else is remembered on disk: where
//! the circle ends is where the highest number is.
//!
//! Pure: blocks come by [`RingBlocks`]. What payloads mean, and where the file lies, is not known here.

pub mod append;
pub mod block;
pub mod header;
pub mod index;
pub mod note;
pub mod scan;

use crate::store::Stop;
use crate::units::FileBlock;

/// Bytes of the circle and its header unless somebody wants another size.
pub const RING_BYTES_DEFAULT: u64 = 64 << 20;
/// The fewest blocks of a circle.
pub const RING_BLOCKS_MIN: u32 = 16;

/// What tells records apart. A record replaces the one with the same identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId {
    /// What kind of state it is; known to the gateways.
    pub kind: u16,
    /// Which of its kind: a slot, an open, a handle.
    pub key: u128,
}

/// A record that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its identity.
    pub id: RecordId,
    /// Higher than that of every record that was appended before it.
    pub sequence: u64,
    /// What it says.
    pub payload: Vec<u8>,
}

/// The measures of a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingShape {
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Blocks of the circle, without the header.
    pub blocks: u32,
}

/// The blocks of the ring's file as an operation sees them; errors are those of a [`crate::BlockStore`].
pub trait RingBlocks {
    /// The content of a block.
    fn block(&mut self, at: FileBlock) -> Result<&[u8], Stop>;

    /// The content of a block, to be edited.
    fn block_mut(&mut self, at: FileBlock) -> Result<&mut [u8], Stop>;

    /// A block whose former content does not matter, zeroed.
    fn new_block(&mut self, at: FileBlock) -> Result<&mut [u8], Stop>;
}

impl RingShape {
    /// The one of a file of at most `bytes` bytes, but never fewer than [`RING_BLOCKS_MIN`] blocks.
    pub fn of_file(block_bytes: usize, bytes: u64) -> Self {
        let blocks = (bytes / block_bytes.max(1) as u64).saturating_sub(1);
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX - 1).max(RING_BLOCKS_MIN);
        Self { block_bytes, blocks }
    }

    /// Blocks of the file: the circle and its header.
    pub fn file_blocks(self) -> u32 {
        self.blocks.saturating_add(1)
    }

    /// Where the block of this number lies.
    pub fn place(self, number: u64) -> FileBlock {
        let circle = u64::from(self.blocks.max(1));
        FileBlock(1 + (number.wrapping_sub(1) % circle) as u32)
    }

    /// Bytes that records, with their headers, can take in one block.
    pub fn room(self) -> usize {
        self.block_bytes.saturating_sub(block::BLOCK_HEADER_BYTES)
    }

    /// The longest payload.
    pub fn payload_bytes_max(self) -> usize {
        self.room().saturating_sub(block::RECORD_HEADER_BYTES).min(usize::from(u16::MAX))
    }
}
