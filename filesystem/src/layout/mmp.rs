//! The multi-mount mark (feature `mmp`): a block in which whoever has the filesystem mounted counts up, so that nobody
//! else mounts it. Only read here.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::geometry::Geometry;
use super::superblock::corrupt;
use super::{Corrupt, until_zero};

const MAGIC: u32 = 0x004d_4d50;
/// Nobody has it mounted.
const SEQUENCE_CLEAN: u32 = 0xff4d_4d50;
/// Bytes before the checksum, which is the last word of 1024 bytes.
const CHECKSUMMED_BYTES: usize = 1020;

/// What the mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MultiMount {
    /// Nobody has the filesystem mounted.
    Free,
    /// Somebody has it mounted or checks it, or went away without saying so.
    Held {
        /// The name of that machine, as far as it is text.
        node: String,
        /// When the mark was last changed, in seconds since 1970.
        since: u64,
    },
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawMark {
    magic: U32,
    sequence: U32,
    time: U64,
    node: [u8; 64],
    device: [u8; 32],
    check_interval: U16,
    pad: U16,
    reserved: [U32; 226],
    checksum: U32,
}

/// Reads the block that [`super::superblock::Superblock::multi_mount_block`] names. Errors: it is no such mark.
pub fn multi_mount(geometry: &Geometry, block: &[u8]) -> Result<MultiMount, Corrupt> {
    let (mark, _) = RawMark::ref_from_prefix(block).map_err(|_| corrupt("its multi-mount mark is cut short"))?;
    if mark.magic.get() != MAGIC {
        return Err(corrupt("its multi-mount mark is missing"));
    }
    let sum = geometry.checksum_seed.zip(block.get(..CHECKSUMMED_BYTES)).map(|(seed, bytes)| seed.sum(bytes));
    if sum.is_some_and(|sum| sum != mark.checksum.get()) {
        return Err(corrupt("the checksum of its multi-mount mark is wrong"));
    }
    if mark.sequence.get() == SEQUENCE_CLEAN {
        return Ok(MultiMount::Free);
    }
    let node = String::from_utf8_lossy(until_zero(&mark.node)).into_owned();
    Ok(MultiMount::Held { node, since: mark.time.get() })
}
