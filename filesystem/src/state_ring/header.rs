//! The first block of the ring's file: its measures, and how often the filesystem was started. It is written last when the ring
//! is made, so that a ring with a header is whole.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{RING_BLOCKS_MIN, RingShape};
use crate::layout::checksum::Seed;
use crate::layout::{Corrupt, Structure};

/// "TDRH".
const MAGIC: u32 = 0x4852_4454;
const VERSION: u32 = 1;

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHeader {
    /// The measures.
    pub shape: RingShape,
    /// Starts of the filesystem with this ring.
    pub starts: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: U32,
    checksum: U32,
    version: U32,
    block_bytes: U32,
    blocks: U32,
    reserved: U32,
    starts: U64,
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
        Ok(Some(Self { shape, starts: raw.starts.get() }))
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
            reserved: 0.into(),
            starts: self.starts.into(),
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

    #[test]
    fn it_comes_back_and_every_flipped_bit_of_it_is_found() {
        let header = RingHeader { shape: RingShape { block_bytes: 1024, blocks: 99 }, starts: 5 };
        let mut block = vec![0; 1024];
        assert_eq!(RingHeader::decode(&block), Ok(None));
        header.encode(&mut block);
        assert_eq!(RingHeader::decode(&block), Ok(Some(header)));
        for bit in 0..32 * 8 {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(RingHeader::decode(&flipped).is_err(), "bit {bit}");
        }
        assert!(RingHeader::decode(&block[..512]).is_err());
    }
}
