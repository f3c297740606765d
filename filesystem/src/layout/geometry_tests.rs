//! Geometry by numbers worked out by hand; images of mke2fs are in `tests/geometry.rs`.

use super::*;

/// A filesystem of ours, of this many blocks of 4 KiB.
pub(crate) fn ours(block_count: u64) -> Geometry {
    let group_count = block_count.div_ceil(32768) as u32;
    Geometry {
        block_size: 4096,
        block_count,
        first_data_block: 0,
        blocks_per_group: 32768,
        cluster_blocks: 1,
        group_count,
        inode_count: group_count * 8192,
        inodes_per_group: 8192,
        inode_size: 256,
        first_inode: InodeNumber(11),
        descriptor_size: 64,
        wide_blocks: true,
        checksum_seed: Some(Seed(7)),
        descriptor_checksum: DescriptorChecksum::Crc32c(Seed(7)),
        flex_groups: 16,
        flex: true,
        backups: Backups::Sparse,
        reserved_descriptor_blocks: 10,
        first_meta_group: None,
    }
}

#[test]
fn backups_lie_in_powers_of_three_five_and_seven() {
    let geometry = ours(32768 * 400);
    let holders: Vec<u32> = (0..400).filter(|group| geometry.has_superblock(GroupNumber(*group))).collect();
    assert_eq!(holders, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343]);
    let named = Geometry { backups: Backups::Named([1, 399]), ..geometry };
    let holders: Vec<u32> = (0..400).filter(|group| named.has_superblock(GroupNumber(*group))).collect();
    assert_eq!(holders, [0, 1, 399]);
}

#[test]
fn inodes_are_counted_from_one() {
    let geometry = ours(32768 * 4);
    assert_eq!(geometry.group_of_inode(InodeNumber(0)), None);
    assert_eq!(geometry.group_of_inode(InodeNumber(1)), Some((GroupNumber(0), 0)));
    assert_eq!(geometry.group_of_inode(InodeNumber(8192)), Some((GroupNumber(0), 8191)));
    assert_eq!(geometry.group_of_inode(InodeNumber(8193)), Some((GroupNumber(1), 0)));
    assert_eq!(geometry.group_of_inode(InodeNumber(4 * 8192 + 1)), None);
    assert_eq!(geometry.inode_of_bit(GroupNumber(1), 0), InodeNumber(8193));
    let place = geometry.inode_place(InodeNumber(8192 + 18), BlockNumber(1000));
    assert_eq!(place, Some(Place { block: BlockNumber(1001), offset: 256 }));
    assert_eq!(geometry.inode_place(InodeNumber(18), BlockNumber(u64::MAX)), None);
}

#[test]
fn the_last_group_is_as_short_as_the_volume() {
    let geometry = ours(32768 * 3 + 5000);
    assert_eq!(geometry.group_blocks(GroupNumber(3)), Ok(BlockRun::new(BlockNumber(98304), 5000)));
    assert!(geometry.group_blocks(GroupNumber(4)).is_err());
    assert_eq!(geometry.group_of_block(BlockNumber(98304 + 4999)), Some((GroupNumber(3), 4999)));
    assert_eq!(geometry.group_of_block(BlockNumber(98304 + 5000)), None);
}

#[test]
fn the_boot_block_is_in_no_group_of_small_blocks() {
    let geometry = Geometry { block_size: 1024, first_data_block: 1, blocks_per_group: 8192, ..ours(32769) };
    assert_eq!(geometry.group_of_block(BlockNumber(0)), None);
    assert_eq!(geometry.group_of_block(BlockNumber(1)), Some((GroupNumber(0), 0)));
    assert_eq!(geometry.block_of_bit(GroupNumber(1), 3), BlockNumber(8196));
    assert_eq!(geometry.superblock_place(), Place { block: BlockNumber(1), offset: 0 });
    assert_eq!(ours(9).superblock_place(), Place { block: BlockNumber(0), offset: 1024 });
}

#[test]
fn descriptors_of_meta_groups_lie_in_them() {
    let geometry = Geometry { first_meta_group: Some(1), reserved_descriptor_blocks: 0, ..ours(32768 * 400) };
    let place = |group| geometry.descriptor_place(GroupNumber(group)).map(|place| (place.block.0, place.offset));
    assert_eq!(place(63), Ok((1, 63 * 64)));
    assert_eq!(place(64), Ok((64 * 32768, 0)));
    assert_eq!(place(193), Ok((192 * 32768, 64)));
    // 243 holds a copy of the superblock, and is neither first, second nor last of its meta group.
    assert_eq!(geometry.base_blocks(GroupNumber(243)).count, 1);
    assert_eq!(geometry.base_blocks(GroupNumber(127)).count, 1);
    assert_eq!(geometry.base_blocks(GroupNumber(3)).count, 2);
    assert_eq!(geometry.base_blocks(GroupNumber(66)).count, 0);
    assert_eq!(ours(32768 * 400).base_blocks(GroupNumber(3)).count, 1 + 7 + 10);
}
