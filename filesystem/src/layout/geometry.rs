//! The numbers of a filesystem that never change while it is in use, and where they put things (ext4 on-disk format,
//! "Layout", "Meta Block Groups", "Special inodes"). Growing a filesystem makes a new [`Geometry`].

use super::Corrupt;
use super::checksum::Seed;
use super::features::{Features, compat, incompat, ro_compat};
use super::superblock::{RawSuperblock, SUPERBLOCK_OFFSET, Unusable, corrupt, wide};
use crate::units::{BlockNumber, BlockRun, GroupNumber, InodeNumber};

/// The shortest descriptor, and the only one without `64bit`.
pub const DESCRIPTOR_BYTES_MIN: u32 = 32;

/// The shortest descriptor with `64bit`.
pub const DESCRIPTOR_BYTES_WIDE: u32 = 64;

/// Inodes of revision 0, and the shortest of revision 1.
pub const INODE_BYTES_MIN: u32 = 128;

/// The first inode that is not reserved, in revision 0; in revision 1 it may be a later one.
const FIRST_INODE_MIN: u32 = 11;

/// log2 of (block size / 1024) up to which blocks are supported: 4 KiB.
const LOG_BLOCK_SIZE_MAX: u32 = 2;

/// log2 of (block size / 1024) that the format allows: 64 KiB.
const LOG_BLOCK_SIZE_LIMIT: u32 = 6;

/// The kernel takes a larger exponent of the flex group size as none.
const LOG_GROUPS_PER_FLEX_MAX: u8 = 31;

/// The checksum at the end of a group's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorChecksum {
    /// None, and no bitmap may be called uninitialized.
    None,
    /// CRC16, with `uninit_bg`; what it starts from is the volume's UUID.
    Crc16([u8; 16]),
    /// CRC32C, with `metadata_csum`; the seed is [`Geometry::checksum_seed`].
    Crc32c(Seed),
}

/// Which groups hold a copy of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backups {
    /// All of them.
    All,
    /// 0, 1 and powers of 3, 5 and 7 (`sparse_super`).
    Sparse,
    /// 0 and these two (`sparse_super2`); 0 stands for none.
    Named([u32; 2]),
}

/// The numbers; those of a decoded superblock are consistent with each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a block: 1024, 2048 or 4096.
    pub block_size: u32,
    /// Blocks of the filesystem, from block 0.
    pub block_count: u64,
    /// The first block that belongs to a group: 1 with 1 KiB blocks, else 0.
    pub first_data_block: u32,
    /// Blocks of every group but the last.
    pub blocks_per_group: u32,
    /// Blocks that one bit of a block bitmap stands for: 1, except with bigalloc.
    pub cluster_blocks: u32,
    /// Number of groups.
    pub group_count: u32,
    /// All inodes.
    pub inode_count: u32,
    /// Inodes of every group.
    pub inodes_per_group: u32,
    /// Bytes of an inode.
    pub inode_size: u32,
    /// The first inode that is not reserved.
    pub first_inode: InodeNumber,
    /// Bytes of a group's descriptor.
    pub descriptor_size: u32,
    /// True with `64bit`: numbers and counts of blocks have upper halves.
    pub wide_blocks: bool,
    /// What checksums of metadata go on from, with `metadata_csum`.
    pub checksum_seed: Option<Seed>,
    /// The checksum of descriptors.
    pub descriptor_checksum: DescriptorChecksum,
    /// Groups whose bitmaps and inode tables lie together; 1 without `flex_bg`.
    pub flex_groups: u32,
    /// True with `flex_bg`: bitmaps and tables may lie in any group.
    pub flex: bool,
    /// Which groups hold a copy of the superblock.
    pub backups: Backups,
    /// Blocks kept behind the descriptors for more descriptors, in every group that holds a copy of them.
    pub reserved_descriptor_blocks: u32,
    /// With `meta_bg`, the first block of descriptors that lies in the groups it describes.
    pub first_meta_group: Option<u32>,
}

/// A place inside a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The block.
    pub block: BlockNumber,
    /// Bytes from its start.
    pub offset: u32,
}

impl Geometry {
    /// Takes the numbers from a superblock, checking each against the others.
    pub(crate) fn of(raw: &RawSuperblock, features: Features) -> Result<Self, Unusable> {
        let block_size = block_size(raw)?;
        let cluster_blocks = cluster_blocks(raw, features, block_size)?;
        let wide_blocks = features.has_incompat(incompat::WIDE_BLOCKS);
        let block_count = wide(raw.blocks_count_lo, raw.blocks_count_hi, wide_blocks);
        let seed = if features.has_incompat(incompat::METADATA_CSUM_SEED) {
            Seed(raw.checksum_seed.get())
        } else {
            Seed::of_uuid(&raw.uuid)
        };
        let checksum_seed = features.has_ro_compat(ro_compat::METADATA_CSUM).then_some(seed);
        let flex = features.has_incompat(incompat::FLEX_BG);
        let log_flex = raw.log_groups_per_flex;
        let in_flex = flex && (1..=LOG_GROUPS_PER_FLEX_MAX).contains(&log_flex);
        let mut geometry = Self {
            block_size,
            block_count,
            first_data_block: first_data_block(raw, block_size, cluster_blocks)?,
            blocks_per_group: blocks_per_group(raw, block_size, cluster_blocks)?,
            cluster_blocks,
            group_count: 0,
            inode_count: raw.inodes_count.get(),
            inodes_per_group: raw.inodes_per_group.get(),
            inode_size: inode_size(raw, block_size)?,
            first_inode: first_inode(raw),
            descriptor_size: descriptor_size(raw, wide_blocks, block_size)?,
            wide_blocks,
            checksum_seed,
            descriptor_checksum: match checksum_seed {
                // With both features the kernel takes the newer one.
                Some(seed) => DescriptorChecksum::Crc32c(seed),
                None if features.has_ro_compat(ro_compat::UNINIT_BG) => DescriptorChecksum::Crc16(raw.uuid),
                None => DescriptorChecksum::None,
            },
            flex_groups: if in_flex { 1 << log_flex } else { 1 },
            flex,
            backups: if features.has_compat(compat::SPARSE_SUPER2) {
                Backups::Named(raw.backup_bgs.map(|group| group.get()))
            } else if features.has_ro_compat(ro_compat::SPARSE_SUPER) {
                Backups::Sparse
            } else {
                Backups::All
            },
            reserved_descriptor_blocks: u32::from(raw.reserved_gdt_blocks.get()),
            first_meta_group: features.has_incompat(incompat::META_BG).then_some(raw.first_meta_bg.get()),
        };
        geometry.group_count = geometry.count_groups()?;
        geometry.check()?;
        Ok(geometry)
    }

    fn count_groups(&self) -> Result<u32, Corrupt> {
        let grouped = self.block_count.saturating_sub(u64::from(self.first_data_block));
        if grouped == 0 {
            return Err(corrupt("it has no blocks"));
        }
        u32::try_from(grouped.div_ceil(u64::from(self.blocks_per_group)))
            .map_err(|_| corrupt("it has more groups than can be numbered"))
    }

    fn check(&self) -> Result<(), Corrupt> {
        let per_group = self.inodes_per_group;
        if per_group < self.block_size / self.inode_size || per_group > self.block_size * 8 {
            return Err(corrupt("the inodes of a group fit no bitmap"));
        }
        if u64::from(self.inode_count) != u64::from(self.group_count) * u64::from(per_group) {
            return Err(corrupt("the count of inodes is not that of all groups"));
        }
        if self.first_inode.0 < FIRST_INODE_MIN || self.first_inode.0 > self.inode_count {
            return Err(corrupt("its first inode is out of range"));
        }
        if self.reserved_descriptor_blocks > self.block_size / 4 {
            return Err(corrupt("too many descriptor blocks are reserved"));
        }
        let first_meta = self.first_meta_group.unwrap_or(0);
        if first_meta > self.descriptor_blocks() {
            return Err(corrupt("its first meta group is out of range"));
        }
        // What group 0 must hold before its first file; the other copies are not looked at while it is in use.
        let base = 1
            + u64::from(self.reserved_descriptor_blocks)
            + u64::from(self.first_meta_group.unwrap_or(self.descriptor_blocks()));
        let first_group = self.group_blocks(GroupNumber(0)).map_or(0, |run| run.count);
        if base >= u64::from(first_group) {
            return Err(corrupt("its descriptors do not fit the first group"));
        }
        Ok(())
    }

    /// Descriptors in one block.
    pub fn descriptors_per_block(&self) -> u32 {
        self.block_size / self.descriptor_size
    }

    /// Blocks that all descriptors take.
    pub fn descriptor_blocks(&self) -> u32 {
        self.group_count.div_ceil(self.descriptors_per_block())
    }

    /// Bits of a block bitmap that stand for something, in every group but the last.
    pub fn clusters_per_group(&self) -> u32 {
        self.blocks_per_group / self.cluster_blocks
    }

    /// The same for this group. Errors: there is no such group.
    pub fn clusters_in_group(&self, group: GroupNumber) -> Result<u32, Corrupt> {
        Ok(self.group_blocks(group)?.count.div_ceil(self.cluster_blocks))
    }

    /// Blocks of an inode table.
    pub fn inode_table_blocks(&self) -> u32 {
        let bytes = u64::from(self.inodes_per_group) * u64::from(self.inode_size);
        bytes.div_ceil(u64::from(self.block_size)) as u32
    }

    /// The blocks of a group; the last group may be short. Errors: there is no such group.
    pub fn group_blocks(&self, group: GroupNumber) -> Result<BlockRun, Corrupt> {
        if group.0 >= self.group_count {
            return Err(corrupt("something is in a group that does not exist"));
        }
        let start = self.group_start(group.0);
        let left = self.block_count.saturating_sub(start.0);
        let count = left.min(u64::from(self.blocks_per_group)) as u32;
        Ok(BlockRun::new(start, count))
    }

    fn group_start(&self, group: u32) -> BlockNumber {
        BlockNumber(u64::from(self.first_data_block) + u64::from(group) * u64::from(self.blocks_per_group))
    }

    /// The group that a block belongs to, and the bit of its bitmap that stands for it. None for the boot block before
    /// the first group, and beyond the end.
    pub fn group_of_block(&self, block: BlockNumber) -> Option<(GroupNumber, u32)> {
        let grouped = block.0.checked_sub(u64::from(self.first_data_block))?;
        if block.0 >= self.block_count {
            return None;
        }
        let (group, inside) = (grouped / u64::from(self.blocks_per_group), grouped % u64::from(self.blocks_per_group));
        Some((GroupNumber(group as u32), inside as u32 / self.cluster_blocks))
    }

    /// The first block that a bit of a group's block bitmap stands for.
    pub fn block_of_bit(&self, group: GroupNumber, bit: u32) -> BlockNumber {
        self.group_start(group.0).plus(u64::from(bit) * u64::from(self.cluster_blocks))
    }

    /// The group that an inode belongs to, and its bit in the inode bitmap; the same is its index in the table. None for
    /// 0 and beyond the last.
    pub fn group_of_inode(&self, inode: InodeNumber) -> Option<(GroupNumber, u32)> {
        let index = inode.0.checked_sub(1)?;
        (inode.0 <= self.inode_count)
            .then(|| (GroupNumber(index / self.inodes_per_group), index % self.inodes_per_group))
    }

    /// The inode of a bit of a group's inode bitmap.
    pub fn inode_of_bit(&self, group: GroupNumber, bit: u32) -> InodeNumber {
        InodeNumber(group.0.wrapping_mul(self.inodes_per_group).wrapping_add(bit).wrapping_add(1))
    }

    /// Where an inode lies, given where its group's table starts. None as for [`Geometry::group_of_inode`].
    pub fn inode_place(&self, inode: InodeNumber, table: BlockNumber) -> Option<Place> {
        let (_, index) = self.group_of_inode(inode)?;
        let per_block = self.block_size / self.inode_size;
        let block = BlockNumber(table.0.checked_add(u64::from(index / per_block))?);
        Some(Place { block, offset: index % per_block * self.inode_size })
    }

    /// Where the primary superblock lies.
    pub fn superblock_place(&self) -> Place {
        let size = u64::from(self.block_size);
        Place { block: BlockNumber(SUPERBLOCK_OFFSET / size), offset: (SUPERBLOCK_OFFSET % size) as u32 }
    }

    /// Where a group's descriptor lies; the primary copy. Errors: there is no such group.
    pub fn descriptor_place(&self, group: GroupNumber) -> Result<Place, Corrupt> {
        if group.0 >= self.group_count {
            return Err(corrupt("something is in a group that does not exist"));
        }
        let per_block = self.descriptors_per_block();
        let (index, slot) = (group.0 / per_block, group.0 % per_block);
        let block = match self.first_meta_group {
            Some(first) if index >= first => {
                let home = index * per_block;
                let after = u64::from(self.has_superblock(GroupNumber(home)));
                self.base_start(home).plus(after)
            }
            _ => self.superblock_place().block.plus(1 + u64::from(index)),
        };
        Ok(Place { block, offset: slot * self.descriptor_size })
    }

    /// True when the group holds the superblock or a copy of it.
    pub fn has_superblock(&self, group: GroupNumber) -> bool {
        match self.backups {
            Backups::All => true,
            Backups::Named(named) => group.0 == 0 || named.contains(&group.0),
            Backups::Sparse => group.0 <= 1 || [3, 5, 7].iter().any(|base| is_power(group.0, *base)),
        }
    }

    /// The blocks that the superblock, descriptors, and blocks reserved for descriptors take in a group; they start it.
    pub fn base_blocks(&self, group: GroupNumber) -> BlockRun {
        let copy = self.has_superblock(group);
        let per_block = self.descriptors_per_block();
        let descriptors = match self.first_meta_group {
            Some(first) if group.0 / per_block >= first => {
                // A block of descriptors lies in the first, second and last group of those it describes.
                let inside = group.0 % per_block;
                u32::from(inside <= 1 || inside == per_block - 1)
            }
            Some(first) if copy => first + self.reserved_descriptor_blocks,
            None if copy => self.descriptor_blocks() + self.reserved_descriptor_blocks,
            _ => 0,
        };
        BlockRun::new(self.base_start(group.0), u32::from(copy) + descriptors)
    }

    /// Where the superblock of a group would lie. With 1 KiB blocks group 0 starts at block 0 only under bigalloc; the
    /// boot block is then in it.
    fn base_start(&self, group: u32) -> BlockNumber {
        let start = self.group_start(group);
        if start.0 == 0 { self.superblock_place().block } else { start }
    }
}

fn block_size(raw: &RawSuperblock) -> Result<u32, Unusable> {
    match raw.log_block_size.get() {
        log @ 0..=LOG_BLOCK_SIZE_MAX => Ok(1024 << log),
        log if log <= LOG_BLOCK_SIZE_LIMIT => Err(Unusable::Unsupported("blocks larger than 4 KiB")),
        _ => Err(corrupt("its block size is out of range").into()),
    }
}

fn cluster_blocks(raw: &RawSuperblock, features: Features, block_size: u32) -> Result<u32, Corrupt> {
    let log = raw.log_cluster_size.get().checked_sub(raw.log_block_size.get());
    let log = log.ok_or(corrupt("its clusters are smaller than its blocks"))?;
    if !features.has_ro_compat(ro_compat::BIGALLOC) {
        return if log == 0 { Ok(1) } else { Err(corrupt("its clusters are not blocks")) };
    }
    // The kernel's limit of a cluster is 2^30 bytes.
    if log + block_size.ilog2() > 30 {
        return Err(corrupt("its cluster size is out of range"));
    }
    Ok(1 << log)
}

fn first_data_block(raw: &RawSuperblock, block_size: u32, cluster_blocks: u32) -> Result<u32, Corrupt> {
    let first = raw.first_data_block.get();
    let expected = u32::from(block_size == 1024 && cluster_blocks == 1);
    if first != expected {
        return Err(corrupt("its first data block is out of place"));
    }
    Ok(first)
}

fn blocks_per_group(raw: &RawSuperblock, block_size: u32, cluster_blocks: u32) -> Result<u32, Corrupt> {
    let (blocks, clusters) = (raw.blocks_per_group.get(), raw.clusters_per_group.get());
    if clusters == 0 || clusters > block_size * 8 || clusters % 8 != 0 {
        return Err(corrupt("the blocks of a group fit no bitmap"));
    }
    if u64::from(blocks) != u64::from(clusters) * u64::from(cluster_blocks) {
        return Err(corrupt("the blocks of a group are not its clusters"));
    }
    Ok(blocks)
}

fn inode_size(raw: &RawSuperblock, block_size: u32) -> Result<u32, Corrupt> {
    if raw.rev_level.get() == 0 {
        return Ok(INODE_BYTES_MIN);
    }
    let size = u32::from(raw.inode_size.get());
    if !size.is_power_of_two() || size < INODE_BYTES_MIN || size > block_size {
        return Err(corrupt("its inode size is out of range"));
    }
    Ok(size)
}

fn first_inode(raw: &RawSuperblock) -> InodeNumber {
    InodeNumber(if raw.rev_level.get() == 0 { FIRST_INODE_MIN } else { raw.first_ino.get() })
}

fn descriptor_size(raw: &RawSuperblock, wide_blocks: bool, block_size: u32) -> Result<u32, Corrupt> {
    if !wide_blocks {
        return Ok(DESCRIPTOR_BYTES_MIN);
    }
    let size = u32::from(raw.desc_size.get());
    if !size.is_power_of_two() || size < DESCRIPTOR_BYTES_WIDE || size > block_size {
        return Err(corrupt("its descriptor size is out of range"));
    }
    Ok(size)
}

fn is_power(number: u32, base: u32) -> bool {
    let mut number = number;
    while number > 1 && number.is_multiple_of(base) {
        number /= base;
    }
    number == 1
}

#[cfg(test)]
#[path = "geometry_tests.rs"]
pub(crate) mod tests;
