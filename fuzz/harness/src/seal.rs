//! Checksums put right after a structure was damaged, so that the damage is looked at and not only its checksum.
//!
//! Written from the format's description (ext4 on-disk format, "Checksums"), not with the engine's own code; that both agree
//! is what `survey`'s test shows on the seeds.

use filesystem::layout::checksum::Seed;
use filesystem::layout::geometry::{DescriptorChecksum, Geometry};
use filesystem::units::{BlockNumber, InodeNumber};

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |field| u16::from_le_bytes([field[0], field[1]]))
}

/// The superblock's 1024 bytes.
pub(crate) fn superblock(bytes: &mut [u8]) {
    let sum = Seed::START.sum(&bytes[..1020]);
    put32(bytes, 1020, sum);
}

/// The descriptor of a group.
pub(crate) fn descriptor(geometry: &Geometry, group: u32, bytes: &mut [u8]) {
    let number = group.to_le_bytes();
    match geometry.descriptor_checksum {
        DescriptorChecksum::None => {}
        DescriptorChecksum::Crc32c(seed) => {
            put16(bytes, 0x1e, 0);
            let sum = seed.then(&number).sum(bytes);
            put16(bytes, 0x1e, sum as u16);
        }
        DescriptorChecksum::Crc16(uuid) => {
            let parts = [&uuid[..], &number, &bytes[..0x1e], &bytes[0x20..]];
            let sum = parts.iter().flat_map(|part| part.iter()).fold(!0_u16, |sum, byte| {
                (0..8).fold(sum ^ u16::from(*byte), |sum, _| if sum & 1 != 0 { sum >> 1 ^ 0xa001 } else { sum >> 1 })
            });
            put16(bytes, 0x1e, sum);
        }
    }
}

/// A bitmap's checksum lies in its group's descriptor, which is to be sealed after this.
pub(crate) fn bitmap(geometry: &Geometry, blocks: bool, bitmap: &[u8], descriptor: &mut [u8]) {
    let Some(seed) = geometry.checksum_seed else { return };
    let bits = if blocks { geometry.clusters_per_group() } else { geometry.inodes_per_group };
    let sum = seed.sum(bitmap.get(..bits as usize / 8).unwrap_or(bitmap));
    let (low, high) = if blocks { (0x18, 0x38) } else { (0x1a, 0x3a) };
    put16(descriptor, low, sum as u16);
    put16(descriptor, high, (sum >> 16) as u16);
}

/// An inode.
pub(crate) fn inode(seed: Seed, number: InodeNumber, bytes: &mut [u8]) {
    let seed = seed.of_inode(number, generation(bytes));
    let has_high = bytes.len() > 128 && get16(bytes, 0x80) >= 4;
    put16(bytes, 0x7c, 0);
    if has_high {
        put16(bytes, 0x82, 0);
    }
    let sum = seed.sum(bytes);
    put16(bytes, 0x7c, sum as u16);
    if has_high {
        put16(bytes, 0x82, (sum >> 16) as u16);
    }
}

/// The generation of an inode, which checksums of its blocks begin with.
pub(crate) fn generation(inode: &[u8]) -> u32 {
    u32::from(get16(inode, 0x64)) | u32::from(get16(inode, 0x66)) << 16
}

/// A block of entries; `seed` is the directory's.
pub(crate) fn entries(seed: Seed, block: &mut [u8]) {
    let body = block.len().saturating_sub(12);
    let sum = seed.sum(&block[..body]);
    put32(block, body + 8, sum);
}

/// A root (entries at 32) or node (at 8) of a directory's index.
pub(crate) fn index(seed: Seed, entries_at: usize, block: &mut [u8]) {
    let (limit, count) = (usize::from(get16(block, entries_at)), usize::from(get16(block, entries_at + 2)));
    let (tail, end) = (entries_at + limit * 8, entries_at + count * 8);
    let (Some(body), Some(reserved)) = (block.get(..end), block.get(tail..tail + 4)) else { return };
    let sum = seed.then(body).then(reserved).sum(&[0; 4]);
    put32(block, tail + 4, sum);
}

/// A node of an extent tree in a block of its own; `seed` is the inode's.
pub(crate) fn extents(seed: Seed, block: &mut [u8]) {
    let tail = 12 + 12 * usize::from(get16(block, 4));
    let Some(body) = block.get(..tail) else { return };
    let sum = seed.sum(body);
    put32(block, tail, sum);
}

/// A block of extended attributes.
pub(crate) fn attributes(seed: Seed, at: BlockNumber, block: &mut [u8]) {
    put32(block, 0x10, 0);
    let sum = seed.then(&at.0.to_le_bytes()).sum(block);
    put32(block, 0x10, sum);
}

/// A block of the file of orphans; `seed` is that inode's.
pub(crate) fn orphans(seed: Seed, at: BlockNumber, block: &mut [u8]) {
    let body = block.len().saturating_sub(8);
    let sum = seed.then(&at.0.to_le_bytes()).sum(&block[..body]);
    put32(block, body + 4, sum);
}

/// The journal's superblock.
pub(crate) fn journal_superblock(block: &mut [u8]) {
    let Some(body) = block.get_mut(..1024) else { return };
    body[0xfc..0x100].fill(0);
    let sum = Seed::START.sum(body);
    body[0xfc..0x100].copy_from_slice(&sum.to_be_bytes());
}
