//! The first block of the ring's file: its measures, how often the filesystem was started, and whether somebody else had it in
//! between. It is written last when the ring is made, so that a ring with a header is whole.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{RING_BLOCKS_MIN, RingShape};
use crate::layout::checksum::Seed;
use crate::layout::{Corrupt, Structure};

/// "TDRH".
const MAGIC: u32 = 0x4852_4454;
const VERSION: u32 = 2;

/// What everybody else who mounts a filesystem for writing, or repairs it, changes in its superblock, and we do not once it has
/// a ring: so a mark that is not the one that the ring knows tells of such a one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountMark {
    /// Mounts since the last check.
    pub mounts: u16,
    /// Time of the last one, in seconds since 1970.
    pub mounted: u64,
    /// Time of the last check, likewise.
    pub checked: u64,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHeader {
    /// The measures.
    pub shape: RingShape,
    /// Starts of the filesystem with this ring.
    pub starts: u64,
    /// As it was at the last of these starts.
    pub mark: MountMark,
    /// The last start before which somebody else had the filesystem; 0 if nobody ever had.
    pub disturbed: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: U32,
    checksum: U32,
    version: U32,
    block_bytes: U32,
    blocks: U32,
    mounts: U32,
    starts: U64,
    mounted: U64,
    checked: U64,
    disturbed: U64,
}

impl RingHeader {
    /// From the block; None when it is zeros: the ring is not whole yet. Errors: it is no header, or one of another version.
    pub fn decode(block: &[u8]) -> Result<Option<Self>, Corrupt> {
        let broken = |what| Corrupt::new(Structure::StateRing, 0, what);
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let (raw, _) = Raw::ref_from_prefix(block).map_err(|_| broken("its header is cut short"))?;
        if raw.magic.get() != MAGIC || raw.checksum.get() != raw.sum() {
            return Err(broken("its header is none, or its checksum is wrong"));
        }
        if raw.version.get() != VERSION {
            return Err(broken("its version is unknown"));
        }
        if raw.block_bytes.get() as usize != block.len() || raw.blocks.get() < RING_BLOCKS_MIN {
            return Err(broken("its measures cannot be"));
        }
        let shape = RingShape { block_bytes: block.len(), blocks: raw.blocks.get() };
        let mounts = u16::try_from(raw.mounts.get()).map_err(|_| broken("it tells of too many mounts"))?;
        let mark = MountMark { mounts, mounted: raw.mounted.get(), checked: raw.checked.get() };
        Ok(Some(Self { shape, starts: raw.starts.get(), mark, disturbed: raw.disturbed.get() }))
    }

    /// At one more start, with what the superblock says then.
    pub fn next(&self, mark: MountMark, starts_max: u64) -> Self {
        let starts = self.starts.saturating_add(1).min(starts_max);
        let disturbed = if self.starts > 0 && mark != self.mark { starts } else { self.disturbed };
        Self { shape: self.shape, starts, mark, disturbed }
    }

    /// Into the whole block.
    pub fn encode(&self, block: &mut [u8]) {
        block.fill(0);
        let mut raw = Raw {
            magic: MAGIC.into(),
            checksum: 0.into(),
            version: VERSION.into(),
            block_bytes: (self.shape.block_bytes as u32).into(),
            blocks: self.shape.blocks.into(),
            mounts: u32::from(self.mark.mounts).into(),
            starts: self.starts.into(),
            mounted: self.mark.mounted.into(),
            checked: self.mark.checked.into(),
            disturbed: self.disturbed.into(),
        };
        raw.checksum = raw.sum().into();
        block.iter_mut().zip(raw.as_bytes()).for_each(|(to, from)| *to = *from);
    }
}

impl Raw {
    /// Of all behind the checksum.
    fn sum(&self) -> u32 {
        Seed::START.sum(self.as_bytes().get(8..).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: RingShape = RingShape { block_bytes: 1024, blocks: 99 };

    #[test]
    fn a_start_behind_a_foreign_mount_or_repair_is_noted_until_the_next_one() {
        let mark = MountMark { mounts: 1, mounted: 100, checked: 50 };
        let first = RingHeader { shape: SHAPE, starts: 0, mark: MountMark::default(), disturbed: 0 }.next(mark, 9);
        assert_eq!((first.starts, first.disturbed), (1, 0), "a new ring has seen nothing");
        let second = first.next(mark, 9);
        assert_eq!((second.starts, second.disturbed), (2, 0));
        for other in [
            MountMark { mounts: 2, ..mark },
            MountMark { mounted: 101, ..mark },
            MountMark { mounts: 0, checked: 60, ..mark },
        ] {
            let third = second.next(other, 9);
            assert_eq!((third.starts, third.disturbed), (3, 3));
            assert_eq!(third.next(other, 9).disturbed, 3, "it is remembered");
            assert_eq!(third.next(mark, 9).disturbed, 4);
        }
    }

    #[test]
    fn it_comes_back_and_every_flipped_bit_of_it_is_found() {
        let mark = MountMark { mounts: 3, mounted: 1 << 33, checked: 9 };
        let header = RingHeader { shape: SHAPE, starts: 5, mark, disturbed: 4 };
        let mut block = vec![0; 1024];
        assert_eq!(RingHeader::decode(&block), Ok(None));
        header.encode(&mut block);
        assert_eq!(RingHeader::decode(&block), Ok(Some(header)));
        for bit in 0..size_of::<Raw>() * 8 {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(RingHeader::decode(&flipped).is_err(), "bit {bit}");
        }
        assert!(RingHeader::decode(&block[..512]).is_err());
    }
}
