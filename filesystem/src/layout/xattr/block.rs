//! Attributes in a block of their own: a header, entries in order of their names, values at the end. Offsets of values
//! count from the block's start. Several inodes may share a block when the kernel found theirs equal.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::region::{self, END_BYTES, Entry};
use super::{Attribute, MAGIC, hash};
use crate::layout::checksum::Seed;
use crate::layout::{Corrupt, Structure};
use crate::units::BlockNumber;

/// ext4 on-disk format, "Extended Attributes", `ext4_xattr_header`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderOnDisk {
    magic: U32,
    references: U32,
    blocks: U32,
    hash: U32,
    checksum: U32,
    reserved: [U32; 3],
}

const HEADER_BYTES: usize = size_of::<HeaderOnDisk>();

/// Where the checksum stands in the header.
const CHECKSUM_OFFSET: usize = 16;

/// Bytes for entries and values in a block of `block_bytes`.
pub fn room(block_bytes: usize) -> usize {
    block_bytes.saturating_sub(HEADER_BYTES + END_BYTES)
}

/// How many inodes use this block; never 0. `seed` is the filesystem's where metadata has checksums. Errors: header,
/// checksum.
pub fn references(block: &[u8], at: BlockNumber, seed: Option<Seed>) -> Result<u32, Corrupt> {
    Ok(header(block, at, seed)?.references.get())
}

/// The entries of a block. Errors: header, checksum, entries or values where they cannot be. Hashes and the order of the
/// names are not looked at, as in the kernel.
pub fn entries(block: &[u8], at: BlockNumber, seed: Option<Seed>) -> Result<Vec<Entry<'_>>, Corrupt> {
    header(block, at, seed)?;
    region::entries(block, HEADER_BYTES, at.0)
}

/// Writes a block of one inode, all of it; a header that is there keeps its reserved bytes. They fit into [`room`].
pub(crate) fn write(block: &mut [u8], attributes: &[Attribute], at: BlockNumber, seed: Option<Seed>) {
    let mut sorted: Vec<&Attribute> = attributes.iter().collect();
    sorted.sort_by(|one, other| one.name.cmp(&other.name));
    let hashes = region::write(block, HEADER_BYTES, &sorted, true);
    if let Ok((header, _)) = HeaderOnDisk::mut_from_prefix(block) {
        header.magic = U32::new(MAGIC);
        header.references = U32::new(1);
        header.blocks = U32::new(1);
        header.hash = U32::new(hash::block(hashes));
        header.checksum = U32::new(0);
    }
    seal(block, at, seed);
}

/// Counts one inode less, in a block that [`references`] found more than one for.
pub(crate) fn drop_reference(block: &mut [u8], at: BlockNumber, seed: Option<Seed>) {
    if let Ok((header, _)) = HeaderOnDisk::mut_from_prefix(block) {
        header.references = U32::new(header.references.get().saturating_sub(1));
    }
    seal(block, at, seed);
}

/// Everything that can be checked: also hashes, the order of the names, and that none is there twice.
pub fn check(block: &[u8], at: BlockNumber, seed: Option<Seed>) -> Result<(), Corrupt> {
    let found = entries(block, at, seed)?;
    region::check(&found, false, at.0)?;
    if !found.iter().map(Entry::name).is_sorted() {
        return Err(broken(at, "the names are not in order"));
    }
    let stored = header(block, at, seed)?.hash.get();
    if stored != 0 && stored != hash::block(found.iter().map(|entry| entry.hash)) {
        return Err(broken(at, "the block's hash is wrong"));
    }
    Ok(())
}

fn header(block: &[u8], at: BlockNumber, seed: Option<Seed>) -> Result<HeaderOnDisk, Corrupt> {
    let (header, _) = HeaderOnDisk::read_from_prefix(block).map_err(|_| broken(at, "the block is too short"))?;
    if header.magic.get() != MAGIC {
        return Err(broken(at, "the magic number is wrong"));
    }
    if header.blocks.get() != 1 {
        return Err(broken(at, "it claims to be more than one block"));
    }
    if header.references.get() == 0 {
        return Err(broken(at, "it is in use and counts no inode"));
    }
    if seed.is_some_and(|seed| checksum(block, at, seed) != header.checksum.get()) {
        return Err(broken(at, "the checksum is wrong"));
    }
    Ok(header)
}

/// Where metadata has checksums, puts it in.
fn seal(block: &mut [u8], at: BlockNumber, seed: Option<Seed>) {
    let Some(seed) = seed else { return };
    let sum = checksum(block, at, seed);
    if let Ok((header, _)) = HeaderOnDisk::mut_from_prefix(block) {
        header.checksum = U32::new(sum);
    }
}

/// Over the block's number and the block, its checksum taken as 0 (ext4 on-disk format, "Checksums").
fn checksum(block: &[u8], at: BlockNumber, seed: Seed) -> u32 {
    let (before, rest) = block.split_at(CHECKSUM_OFFSET.min(block.len()));
    let after = rest.get(4..).unwrap_or(&[]);
    seed.then(&at.0.to_le_bytes()).then(before).then(&[0; 4]).sum(after)
}

fn broken(at: BlockNumber, what: &'static str) -> Corrupt {
    Corrupt::new(Structure::ExtendedAttributes, at.0, what)
}
