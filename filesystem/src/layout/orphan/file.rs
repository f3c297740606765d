//! A block of the file of orphans: numbers of inodes in any order, 0 for a free slot, and a tail (ext4 on-disk format,
//! "Orphan file").

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::checksum::Seed;
use crate::layout::{Corrupt, Structure};
use crate::units::{BlockNumber, InodeNumber};

/// The magic number in the tail of every block.
pub const MAGIC: u32 = 0x0b10_ca04;

/// ext4 on-disk format, "Orphan file": the end of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Tail {
    magic: U32,
    checksum: U32,
}

const TAIL_BYTES: usize = size_of::<Tail>();

/// A place for one orphan in a block, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// How many orphans a block has room for.
pub fn slots(block_bytes: usize) -> u32 {
    (block_bytes.saturating_sub(TAIL_BYTES) / 4) as u32
}

/// Checks the tail. `seed` is that of the file's inode ([`Seed::of_inode`]), where metadata has checksums. Errors: magic
/// number, checksum.
pub fn check(block: &[u8], at: BlockNumber, seed: Option<Seed>) -> Result<(), Corrupt> {
    let (entries, tail) = split(block, at)?;
    if tail.magic.get() != MAGIC {
        return Err(broken(at, "the magic number is wrong"));
    }
    if seed.is_some_and(|seed| checksum(entries, at, seed) != tail.checksum.get()) {
        return Err(broken(at, "the checksum is wrong"));
    }
    Ok(())
}

/// The orphans in a block and their slots. The tail is not looked at; numbers are not compared with the filesystem's.
pub fn orphans(block: &[u8]) -> impl Iterator<Item = (Slot, InodeNumber)> {
    numbers(block).filter(|(_, number)| *number != 0).map(|(slot, number)| (slot, InodeNumber(number)))
}

/// The first free slot.
pub fn free_slot(block: &[u8]) -> Option<Slot> {
    numbers(block).find(|(_, number)| *number == 0).map(|(slot, _)| slot)
}

/// Puts an orphan into a slot that is free, and the checksum right. Errors: no such slot; it is not free.
pub fn put(
    block: &mut [u8],
    slot: Slot,
    orphan: InodeNumber,
    at: BlockNumber,
    seed: Option<Seed>,
) -> Result<(), Corrupt> {
    replace(block, slot, (InodeNumber(0), orphan), at, seed)
}

/// Frees the slot of an orphan, and puts the checksum right. Errors: no such slot; it holds something else.
pub fn clear(
    block: &mut [u8],
    slot: Slot,
    orphan: InodeNumber,
    at: BlockNumber,
    seed: Option<Seed>,
) -> Result<(), Corrupt> {
    replace(block, slot, (orphan, InodeNumber(0)), at, seed)
}

fn replace(
    block: &mut [u8],
    slot: Slot,
    (before, after): (InodeNumber, InodeNumber),
    at: BlockNumber,
    seed: Option<Seed>,
) -> Result<(), Corrupt> {
    split(block, at)?;
    if slot.0 >= slots(block.len()) {
        return Err(broken(at, "there is no such slot"));
    }
    let offset = slot.0 as usize * 4;
    let place = block.get_mut(offset..offset + 4).ok_or_else(|| broken(at, "there is no such slot"))?;
    if place != before.0.to_le_bytes() {
        return Err(broken(at, "the slot holds something else"));
    }
    place.copy_from_slice(&after.0.to_le_bytes());
    if let Some(seed) = seed {
        let (entries, mut tail) = split(block, at)?;
        tail.checksum = U32::new(checksum(entries, at, seed));
        let start = block.len() - TAIL_BYTES;
        block[start..].copy_from_slice(tail.as_bytes());
    }
    Ok(())
}

fn split(block: &[u8], at: BlockNumber) -> Result<(&[u8], Tail), Corrupt> {
    let (entries, tail) = block.split_last_chunk::<TAIL_BYTES>().ok_or_else(|| broken(at, "the block is too short"))?;
    Ok((entries, zerocopy::transmute!(*tail)))
}

fn numbers(block: &[u8]) -> impl Iterator<Item = (Slot, u32)> {
    let entries = block.get(..slots(block.len()) as usize * 4).unwrap_or(&[]);
    let words = entries.chunks_exact(4).map(|word| word.iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte)));
    (0..).map(Slot).zip(words)
}

/// Over the block's number and the slots.
fn checksum(entries: &[u8], at: BlockNumber, seed: Seed) -> u32 {
    seed.then(&at.0.to_le_bytes()).sum(entries)
}

fn broken(at: BlockNumber, what: &'static str) -> Corrupt {
    Corrupt::new(Structure::Orphans, at.0, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: BlockNumber = BlockNumber(77);
    const SEED: Option<Seed> = Some(Seed(5));

    fn empty() -> Vec<u8> {
        let mut block = vec![0; 1024];
        block[1016..1020].copy_from_slice(&MAGIC.to_le_bytes());
        let sum = checksum(&block[..1016], AT, Seed(5));
        block[1020..].copy_from_slice(&sum.to_le_bytes());
        block
    }

    #[test]
    fn all_slots_can_be_filled_and_freed() {
        let mut block = empty();
        for number in 1..=slots(1024) {
            let slot = free_slot(&block).unwrap();
            assert_eq!(slot, Slot(number - 1));
            put(&mut block, slot, InodeNumber(number), AT, SEED).unwrap();
            check(&block, AT, SEED).unwrap();
        }
        assert_eq!((free_slot(&block), orphans(&block).count()), (None, 254));
        clear(&mut block, Slot(100), InodeNumber(101), AT, SEED).unwrap();
        assert_eq!(free_slot(&block), Some(Slot(100)));
        for (slot, orphan) in orphans(&block.clone()) {
            clear(&mut block, slot, orphan, AT, SEED).unwrap();
        }
        assert_eq!(block, empty());
    }

    #[test]
    fn a_wrong_slot_or_inode_is_refused() {
        let mut block = empty();
        put(&mut block, Slot(3), InodeNumber(12), AT, SEED).unwrap();
        assert!(put(&mut block, Slot(3), InodeNumber(13), AT, SEED).is_err());
        assert!(clear(&mut block, Slot(3), InodeNumber(13), AT, SEED).is_err());
        for slot in [254, 255, 256, u32::MAX] {
            assert!(put(&mut block, Slot(slot), InodeNumber(13), AT, SEED).is_err());
        }
        assert!(put(&mut [0; 7], Slot(0), InodeNumber(13), AT, SEED).is_err());
        check(&block, AT, SEED).unwrap();
    }

    #[test]
    fn every_flipped_bit_is_found_by_the_checksum() {
        let good = empty();
        for bit in 0..good.len() * 8 {
            let mut block = good.clone();
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&block, AT, SEED).is_err(), "bit {bit}");
        }
        assert!(check(&good, BlockNumber(78), SEED).is_err());
        assert!(check(&[], AT, SEED).is_err());
    }
}
