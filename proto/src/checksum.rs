//! Checksums of blocks: `crc32fast` over the volume's salt, the block's number and its bytes.
//!
//! The number in the sum tells a block that was written to, or read from, the wrong place; the salt one of another volume.

use smallvec::SmallVec;

use crate::{BLOCK_BYTES, BlockRange, VolumeId};

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
        let mut hasher = crc32fast::Hasher::new_with_initial(crc32fast::hash(&self.start(block)));
        hasher.update(data);
        hasher.finalize()
    }

    /// The checksums of the blocks of `range`, whose content is `data`.
    pub fn sums(self, range: BlockRange, data: &[u8]) -> BlockSums {
        let blocks = data.chunks(BLOCK_BYTES as usize);
        range.blocks().zip(blocks).map(|(block, data)| self.sum(block, data)).collect()
    }

    /// The checksums of the blocks of several ranges, whose content is `data`, one range after the other.
    pub fn sums_of_ranges(self, ranges: impl IntoIterator<Item = BlockRange>, data: &[u8]) -> BlockSums {
        let blocks = data.chunks(BLOCK_BYTES as usize);
        let numbers = ranges.into_iter().flat_map(BlockRange::blocks);
        numbers.zip(blocks).map(|(block, data)| self.sum(block, data)).collect()
    }

    /// The checksum of block `block` when it holds zeros. Costs no pass over 4096 bytes.
    pub fn zeros(self, block: u64) -> u32 {
        !append_block_of_zeros(!crc32fast::hash(&self.start(block)))
    }

    /// What is summed before the content.
    fn start(self, block: u64) -> [u8; 16] {
        let mut start = [0; 16];
        start[..8].copy_from_slice(&self.0.to_le_bytes());
        start[8..].copy_from_slice(&block.to_le_bytes());
        start
    }
}

/// The checksum to set for a block of which nobody has the right data, when `sum` is what it should have had: neither what
/// has `sum` fits it nor anything else but by chance, and it does not lead back to `sum`.
pub fn of_lost(sum: u32) -> u32 {
    sum.wrapping_add(1)
}

/// CRC-32 (IEEE) of these parts, one after the other.
pub fn crc32(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// The register of a CRC-32 after 4096 more bytes of zeros. The register is linear in each of its bits.
fn append_block_of_zeros(register: u32) -> u32 {
    let [a, b, c, d] = register.to_le_bytes();
    let [first, second, third, fourth] = &ZEROS_TABLES;
    first[usize::from(a)] ^ second[usize::from(b)] ^ third[usize::from(c)] ^ fourth[usize::from(d)]
}

/// For each byte of the register, what it becomes.
static ZEROS_TABLES: [[u32; 256]; 4] = zeros_tables();

/// What each bit of the register becomes; a linear map over GF(2).
type Map = [u32; 32];

const fn zeros_tables() -> [[u32; 256]; 4] {
    let map = map_of_a_block_of_zeros();
    let mut tables = [[0; 256]; 4];
    let mut byte = 0;
    while byte < 4 {
        let mut value = 0;
        while value < 256 {
            tables[byte][value] = apply(&map, (value as u32) << (8 * byte));
            value += 1;
        }
        byte += 1;
    }
    tables
}

const fn map_of_a_block_of_zeros() -> Map {
    // One bit of zero shifts the reflected register right and folds in the polynomial of IEEE 802.3.
    let mut map = [0; 32];
    map[0] = 0xedb8_8320;
    let mut bit = 1;
    while bit < 32 {
        map[bit] = 1 << (bit - 1);
        bit += 1;
    }
    // Squared 15 times: 2^15 bits are 4096 bytes.
    let mut squarings = (BLOCK_BYTES * 8).ilog2();
    while squarings > 0 {
        let half = map;
        let mut bit = 0;
        while bit < 32 {
            map[bit] = apply(&half, half[bit]);
            bit += 1;
        }
        squarings -= 1;
    }
    map
}

const fn apply(map: &Map, register: u32) -> u32 {
    let mut out = 0;
    let mut bit = 0;
    while bit < 32 {
        if register & (1 << bit) != 0 {
            out ^= map[bit];
        }
        bit += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_zeros_is_that_of_a_block_full_of_them() {
        let zeros = [0; BLOCK_BYTES as usize];
        for volume in [0, 1, 0x1234_5678_9abc_def0_0fed_cba9_8765_4321, u128::MAX] {
            let salt = Salt::of(VolumeId(volume));
            for block in (0..2000).chain([u64::from(u32::MAX), 1 << 32, u64::MAX]) {
                assert_eq!(salt.zeros(block), salt.sum(block, &zeros), "{volume:x} {block}");
            }
        }
    }

    #[test]
    fn a_sum_is_the_crc_of_salt_and_number_and_content() {
        let data: Vec<u8> = (0..BLOCK_BYTES).map(|at| (at * 7 % 251) as u8).collect();
        let salt = Salt::of(VolumeId(5 << 64 | 3));
        let parts: [&[u8]; 3] = [&6u64.to_le_bytes(), &77u64.to_le_bytes(), &data];
        assert_eq!(salt.sum(77, &data), crc32(&parts));
        assert_eq!(salt.sum(77, &data), crc32(&[&parts.concat()]));
    }

    #[test]
    fn volume_and_place_are_part_of_a_sum() {
        let data = [9; BLOCK_BYTES as usize];
        let (one, other) = (Salt::of(VolumeId(1)), Salt::of(VolumeId(2)));
        assert_ne!(one.sum(0, &data), one.sum(1, &data));
        assert_ne!(one.sum(0, &data), other.sum(0, &data));
        let range = BlockRange::new(3, 2);
        assert_eq!(one.sums(range, &[9; 2 * BLOCK_BYTES as usize]).as_slice(), [one.sum(3, &data), one.sum(4, &data)]);
    }
}
