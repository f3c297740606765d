//! A block group's descriptor (ext4 on-disk format, "Block Group Descriptors"): where its bitmaps and inode table lie,
//! and what is free in it. Where the descriptor itself lies is in [`Geometry::descriptor_place`].

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::geometry::{DESCRIPTOR_BYTES_WIDE, DescriptorChecksum, Geometry};
use super::{Corrupt, Structure};
use crate::units::{BlockNumber, BlockRun, GroupNumber};

/// No inode of the group is in use, and its inode bitmap was never written.
pub const INODE_UNINIT: u16 = 0x1;
/// The block bitmap was never written.
pub const BLOCK_UNINIT: u16 = 0x2;
/// The inode table was zeroed.
pub const INODE_ZEROED: u16 = 0x4;

/// Where the checksum lies in a descriptor, and the first byte after it.
const CHECKSUM_AT: usize = 0x1e;
const AFTER_CHECKSUM: usize = 0x20;

/// What a descriptor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescriptor {
    /// The block bitmap's block.
    pub block_bitmap: BlockNumber,
    /// The inode bitmap's block.
    pub inode_bitmap: BlockNumber,
    /// The first block of the inode table.
    pub inode_table: BlockNumber,
    /// Free blocks; free clusters with bigalloc.
    pub free_clusters: u32,
    /// Free inodes.
    pub free_inodes: u32,
    /// Inodes in use that are directories.
    pub directories: u32,
    /// Inodes at the end of the table that never were in use, and whose bytes mean nothing. 0 without checksums.
    pub unused_inodes: u32,
    /// The flags as they are on disk: [`INODE_UNINIT`] and so on. Without a descriptor checksum they mean nothing.
    pub flags: u16,
    /// The checksum of the block bitmap: its lower 16 bits only, in descriptors of 32 bytes.
    pub block_bitmap_checksum: u32,
    /// The same of the inode bitmap.
    pub inode_bitmap_checksum: u32,
    /// Whether flags mean anything.
    checked: bool,
}

/// The first 32 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLow {
    block_bitmap: U32,
    inode_bitmap: U32,
    inode_table: U32,
    free_blocks_count: U16,
    free_inodes_count: U16,
    used_dirs_count: U16,
    flags: U16,
    exclude_bitmap: U32,
    block_bitmap_csum: U16,
    inode_bitmap_csum: U16,
    itable_unused: U16,
    checksum: U16,
}

/// The 32 that follow with `64bit`: the upper halves.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHigh {
    block_bitmap: U32,
    inode_bitmap: U32,
    inode_table: U32,
    free_blocks_count: U16,
    free_inodes_count: U16,
    used_dirs_count: U16,
    itable_unused: U16,
    exclude_bitmap: U32,
    block_bitmap_csum: U16,
    inode_bitmap_csum: U16,
    reserved: U32,
}

impl GroupDescriptor {
    /// Decodes the descriptor of `group` at the start of `bytes`, and checks it: checksum, counts, and places. Errors:
    /// what is wrong with it.
    pub fn decode(geometry: &Geometry, group: GroupNumber, bytes: &[u8]) -> Result<Self, Corrupt> {
        let bytes = bytes.get(..geometry.descriptor_size as usize).ok_or(broken(group, "it is cut short"))?;
        let stored = bytes.get(CHECKSUM_AT..AFTER_CHECKSUM).and_then(|field| field.try_into().ok());
        if checksum(geometry, group, bytes).is_some_and(|sum| stored.map(u16::from_le_bytes) != Some(sum)) {
            return Err(broken(group, "its checksum is wrong"));
        }
        let descriptor = Self::decode_verified(geometry, group, bytes)?;
        descriptor.check(geometry, group)?;
        Ok(descriptor)
    }

    /// Decodes a descriptor that [`Self::decode`] has found right, or that was written by [`Self::encode`]. Errors: `bytes` is
    /// too short.
    pub fn decode_verified(geometry: &Geometry, group: GroupNumber, bytes: &[u8]) -> Result<Self, Corrupt> {
        let bytes = bytes.get(..geometry.descriptor_size as usize).ok_or(broken(group, "it is cut short"))?;
        let (low, rest) = RawLow::ref_from_prefix(bytes).map_err(|_| broken(group, "it is cut short"))?;
        let high = RawHigh::ref_from_prefix(rest).ok().map(|(high, _)| high).filter(|_| is_wide(geometry));
        let block =
            |low: U32, high: Option<U32>| BlockNumber(u64::from(low.get()) | u64::from(high.map_or(0, U32::get)) << 32);
        let count = |low: U16, high: Option<U16>| u32::from(low.get()) | u32::from(high.map_or(0, U16::get)) << 16;
        let checked = geometry.descriptor_checksum != DescriptorChecksum::None;
        let unused = count(low.itable_unused, high.map(|high| high.itable_unused));
        Ok(Self {
            block_bitmap: block(low.block_bitmap, high.map(|high| high.block_bitmap)),
            inode_bitmap: block(low.inode_bitmap, high.map(|high| high.inode_bitmap)),
            inode_table: block(low.inode_table, high.map(|high| high.inode_table)),
            free_clusters: count(low.free_blocks_count, high.map(|high| high.free_blocks_count)),
            free_inodes: count(low.free_inodes_count, high.map(|high| high.free_inodes_count)),
            directories: count(low.used_dirs_count, high.map(|high| high.used_dirs_count)),
            unused_inodes: if checked { unused } else { 0 },
            flags: low.flags.get(),
            block_bitmap_checksum: count(low.block_bitmap_csum, high.map(|high| high.block_bitmap_csum)),
            inode_bitmap_checksum: count(low.inode_bitmap_csum, high.map(|high| high.inode_bitmap_csum)),
            checked,
        })
    }

    /// Writes it over the descriptor of `group` at the start of `bytes`, with its checksum. What has no field here stays
    /// as it is. Errors: `bytes` is too short, or the descriptor says what cannot be.
    pub fn encode(&self, geometry: &Geometry, group: GroupNumber, bytes: &mut [u8]) -> Result<(), Corrupt> {
        self.check(geometry, group)?;
        let bytes = bytes.get_mut(..geometry.descriptor_size as usize).ok_or(broken(group, "it is cut short"))?;
        let (low, rest) = RawLow::mut_from_prefix(bytes).map_err(|_| broken(group, "it is cut short"))?;
        low.block_bitmap.set(self.block_bitmap.0 as u32);
        low.inode_bitmap.set(self.inode_bitmap.0 as u32);
        low.inode_table.set(self.inode_table.0 as u32);
        low.free_blocks_count.set(self.free_clusters as u16);
        low.free_inodes_count.set(self.free_inodes as u16);
        low.used_dirs_count.set(self.directories as u16);
        low.flags.set(self.flags);
        if self.checked {
            low.itable_unused.set(self.unused_inodes as u16);
        }
        low.block_bitmap_csum.set(self.block_bitmap_checksum as u16);
        low.inode_bitmap_csum.set(self.inode_bitmap_checksum as u16);
        if is_wide(geometry) {
            let (high, _) = RawHigh::mut_from_prefix(rest).map_err(|_| broken(group, "it is cut short"))?;
            high.block_bitmap.set((self.block_bitmap.0 >> 32) as u32);
            high.inode_bitmap.set((self.inode_bitmap.0 >> 32) as u32);
            high.inode_table.set((self.inode_table.0 >> 32) as u32);
            high.free_blocks_count.set((self.free_clusters >> 16) as u16);
            high.free_inodes_count.set((self.free_inodes >> 16) as u16);
            high.used_dirs_count.set((self.directories >> 16) as u16);
            if self.checked {
                high.itable_unused.set((self.unused_inodes >> 16) as u16);
            }
            high.block_bitmap_csum.set((self.block_bitmap_checksum >> 16) as u16);
            high.inode_bitmap_csum.set((self.inode_bitmap_checksum >> 16) as u16);
        }
        if let Some(sum) = checksum(geometry, group, bytes)
            && let Some(field) = bytes.get_mut(CHECKSUM_AT..AFTER_CHECKSUM)
        {
            field.copy_from_slice(&sum.to_le_bytes());
        }
        Ok(())
    }

    /// True when the block bitmap was never written: see [`super::bitmap::uninit_block_bitmap`].
    pub fn is_block_bitmap_uninit(&self) -> bool {
        self.checked && self.flags & BLOCK_UNINIT != 0
    }

    /// True when the inode bitmap was never written: see [`super::bitmap::uninit_inode_bitmap`].
    pub fn is_inode_bitmap_uninit(&self) -> bool {
        self.checked && self.flags & INODE_UNINIT != 0
    }

    /// The blocks of the inode table.
    pub fn inode_table_run(&self, geometry: &Geometry) -> BlockRun {
        BlockRun::new(self.inode_table, geometry.inode_table_blocks())
    }

    /// The three runs of blocks it points to, wherever they lie.
    pub fn metadata(&self, geometry: &Geometry) -> [BlockRun; 3] {
        [BlockRun::new(self.block_bitmap, 1), BlockRun::new(self.inode_bitmap, 1), self.inode_table_run(geometry)]
    }

    fn check(&self, geometry: &Geometry, group: GroupNumber) -> Result<(), Corrupt> {
        let own = geometry.group_blocks(group)?;
        if self.free_clusters > geometry.clusters_in_group(group)? {
            return Err(broken(group, "more blocks are free than it has"));
        }
        let inodes = geometry.inodes_per_group;
        if self.free_inodes > inodes || self.unused_inodes > inodes || self.directories > inodes - self.free_inodes {
            return Err(broken(group, "its inodes are miscounted"));
        }
        // The kernel's `ext4_check_descriptors` asks for the same.
        let base = geometry.base_blocks(GroupNumber(0));
        for run in self.metadata(geometry) {
            let end = run.start.0.checked_add(u64::from(run.count)).ok_or(broken(group, "it points past the end"))?;
            if run.start.0 < u64::from(geometry.first_data_block) || end > geometry.block_count {
                return Err(broken(group, "it points outside the device"));
            }
            if run.start < base.end() && end > base.start.0 {
                return Err(broken(group, "it points into the superblock or descriptors"));
            }
            if !geometry.flex && (run.start < own.start || end > own.end().0) {
                return Err(broken(group, "it points outside its group"));
            }
        }
        Ok(())
    }
}

fn is_wide(geometry: &Geometry) -> bool {
    geometry.wide_blocks && geometry.descriptor_size >= DESCRIPTOR_BYTES_WIDE
}

/// The checksum that a whole descriptor should have; None when it should have none.
fn checksum(geometry: &Geometry, group: GroupNumber, bytes: &[u8]) -> Option<u16> {
    let before = bytes.get(..CHECKSUM_AT)?;
    let after = bytes.get(AFTER_CHECKSUM..)?;
    let group = group.0.to_le_bytes();
    match geometry.descriptor_checksum {
        DescriptorChecksum::None => None,
        // The checksum's own field counts as zero here, and is left out there.
        DescriptorChecksum::Crc32c(seed) => Some(seed.then(&group).then(before).then(&[0; 2]).sum(after) as u16),
        DescriptorChecksum::Crc16(uuid) => {
            let sum = [&uuid[..], &group, before, after].iter().fold(!0, |sum, bytes| crc16(sum, bytes));
            Some(sum)
        }
    }
}

/// CRC-16 with the polynomial x^16 + x^15 + x^2 + 1, bits reflected.
fn crc16(sum: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(sum, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte), |sum, _| if sum & 1 != 0 { sum >> 1 ^ 0xa001 } else { sum >> 1 })
    })
}

fn broken(group: GroupNumber, what: &'static str) -> Corrupt {
    Corrupt::new(Structure::GroupDescriptor, u64::from(group.0), what)
}

const _: () = assert!(size_of::<RawLow>() == 32 && size_of::<RawHigh>() == 32);

#[cfg(test)]
mod tests {
    use super::super::geometry::tests::ours;
    use super::*;

    fn descriptor() -> GroupDescriptor {
        GroupDescriptor {
            block_bitmap: BlockNumber(100),
            inode_bitmap: BlockNumber(101),
            inode_table: BlockNumber(102),
            free_clusters: 20_000,
            free_inodes: 8_000,
            directories: 2,
            unused_inodes: 7_000,
            flags: INODE_ZEROED,
            block_bitmap_checksum: 0x1234_5678,
            inode_bitmap_checksum: 0x9abc_def0,
            checked: true,
        }
    }

    #[test]
    fn crc16_is_that_of_arc() {
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }

    #[test]
    fn what_is_written_is_read_and_unknown_bytes_stay() {
        let geometry = ours(32768 * 4);
        let mut bytes = [0x5a; 70];
        descriptor().encode(&geometry, GroupNumber(2), &mut bytes).unwrap();
        assert_eq!(GroupDescriptor::decode(&geometry, GroupNumber(2), &bytes), Ok(descriptor()));
        assert_eq!(bytes[0x14..0x18], [0x5a; 4]);
        assert_eq!(bytes[0x3c..], [0x5a; 10]);
        let moved = GroupDescriptor::decode(&geometry, GroupNumber(3), &bytes);
        assert_eq!(moved, Err(broken(GroupNumber(3), "its checksum is wrong")));
        assert!(GroupDescriptor::decode(&geometry, GroupNumber(2), &bytes[..63]).is_err());
    }

    #[test]
    fn what_cannot_be_is_neither_read_nor_written() {
        let geometry = Geometry { descriptor_checksum: DescriptorChecksum::None, ..ours(32768 * 4) };
        let wrong = |edit: &dyn Fn(&mut GroupDescriptor)| {
            let mut descriptor = GroupDescriptor { checked: false, ..descriptor() };
            edit(&mut descriptor);
            let result = descriptor.encode(&geometry, GroupNumber(2), &mut [0; 64]);
            result.err().map(|corrupt| corrupt.what)
        };
        assert_eq!(wrong(&|_| ()), None);
        assert_eq!(wrong(&|d| d.block_bitmap = BlockNumber(u64::MAX)), Some("it points past the end"));
        assert_eq!(wrong(&|d| d.inode_table = BlockNumber(131_000)), Some("it points outside the device"));
        assert_eq!(wrong(&|d| d.inode_bitmap = BlockNumber(1)), Some("it points into the superblock or descriptors"));
        assert_eq!(wrong(&|d| d.free_clusters = 32_769), Some("more blocks are free than it has"));
        assert_eq!(wrong(&|d| d.directories = 193), Some("its inodes are miscounted"));
        assert_eq!(wrong(&|d| d.free_inodes = 8_193), Some("its inodes are miscounted"));
        let own = Geometry { flex: false, ..geometry };
        let result = descriptor().encode(&own, GroupNumber(2), &mut [0; 64]);
        assert_eq!(result, Err(broken(GroupNumber(2), "it points outside its group")));
    }
}
