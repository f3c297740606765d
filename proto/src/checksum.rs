//! Checksums of blocks: `crc32fast` over the volume's salt, the block's number and its bytes.
//!
//! The number in the sum tells a block that was written to, or read from, the wrong place; the salt one of another volume.

use smallvec::SmallVec;

use crate::{BlockRange, VolumeId};

/// Checksums of consecutive blocks, one for each.
pub type BlockSums = SmallVec<[u32; 8]>;

/// What a volume's checksums begin with; the same on every copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt(u64);

impl Salt {
    /// The salt of a volume.
    pub fn of(volume: VolumeId) -> Self {
        Self((volume.0 as u64) ^ ((volume.0 >> 64) as u64))
    }

    /// The checksum of block `block` with this content (4096 bytes).
    pub fn sum(self, block: u64, data: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.0.to_le_bytes());
        hasher.update(&block.to_le_bytes());
        hasher.update(data);
        hasher.finalize()
    }

    /// The checksums of the blocks of `range`, whose content is `data`.
    pub fn sums(self, range: BlockRange, data: &[u8]) -> BlockSums {
        let blocks = data.chunks(crate::BLOCK_BYTES as usize);
        range.blocks().zip(blocks).map(|(block, data)| self.sum(block, data)).collect()
    }

    /// The checksums of the blocks of several ranges, whose content is `data`, one range after the other.
    pub fn sums_of_ranges(self, ranges: impl IntoIterator<Item = BlockRange>, data: &[u8]) -> BlockSums {
        let blocks = data.chunks(crate::BLOCK_BYTES as usize);
        let numbers = ranges.into_iter().flat_map(BlockRange::blocks);
        numbers.zip(blocks).map(|(block, data)| self.sum(block, data)).collect()
    }

    /// The checksum of block `block` when it holds zeros.
    pub fn zeros(self, block: u64) -> u32 {
        self.sum(block, &[0; crate::BLOCK_BYTES as usize])
    }
}
