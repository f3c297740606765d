//! Blocks of pointers, and what is under which pointer of an inode without extents (ext4 on-disk format, "The Contents of
//! inode.i_block", section "Direct/Indirect Block Addressing").

use crate::units::BlockNumber;

/// Pointers in the inode that lead to data.
pub const DIRECT: u32 = 12;
/// Levels of blocks of pointers.
pub const LEVELS_MAX: u32 = 3;

const POINTER_SIZE: usize = 4;

/// How many pointers are in a block.
pub fn pointers_per_block(block_size: u32) -> u32 {
    block_size / POINTER_SIZE as u32
}

/// How many blocks are under one pointer with so many levels of blocks of pointers below it: 0 for one to data.
pub fn blocks_under(level: u32, block_size: u32) -> u64 {
    u64::from(pointers_per_block(block_size)).pow(level)
}

/// How many blocks a file can have.
pub fn file_blocks_max(block_size: u32) -> u32 {
    let under: u64 = (1..=LEVELS_MAX).map(|level| blocks_under(level, block_size)).sum();
    u32::try_from(u64::from(DIRECT) + under).unwrap_or(u32::MAX)
}

/// The pointer at `position`; 0 is a hole. None outside of the bytes.
pub fn pointer(bytes: &[u8], position: usize) -> Option<BlockNumber> {
    let at = position.checked_mul(POINTER_SIZE)?;
    let pointer = bytes.get(at..)?.first_chunk()?;
    Some(BlockNumber(u64::from(u32::from_le_bytes(*pointer))))
}

/// Changes the pointer at `position`. None outside of the bytes, and for a block whose number has more than 32 bits.
pub fn set_pointer(bytes: &mut [u8], position: usize, to: BlockNumber) -> Option<()> {
    let at = position.checked_mul(POINTER_SIZE)?;
    let pointer: &mut [u8; POINTER_SIZE] = bytes.get_mut(at..)?.first_chunk_mut()?;
    *pointer = u32::try_from(to.0).ok()?.to_le_bytes();
    Some(())
}

/// True when there is no pointer but to holes.
pub fn is_empty(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_files_are_those_of_the_documentation() {
        assert_eq!(file_blocks_max(1024), 12 + 256 + 256 * 256 + 256 * 256 * 256);
        assert_eq!(file_blocks_max(4096), 12 + 1024 + 1024 * 1024 + 1024 * 1024 * 1024);
        assert_eq!(file_blocks_max(65536), u32::MAX);
    }

    #[test]
    fn pointers_stay_inside_their_bytes() {
        let mut bytes = [0; 8];
        set_pointer(&mut bytes, 1, BlockNumber(0x0102_0304)).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(pointer(&bytes, 1), Some(BlockNumber(0x0102_0304)));
        assert_eq!((pointer(&bytes, 2), pointer(&bytes, usize::MAX)), (None, None));
        assert_eq!(set_pointer(&mut bytes, 0, BlockNumber(1 << 32)), None);
    }
}
