//! Single blocks of an index.

use super::*;

fn format(checksum: bool) -> DirectoryFormat {
    DirectoryFormat {
        verified: false,
        directory: InodeNumber(12),
        file_types: true,
        checksum: checksum.then_some(Seed(7)),
        inode_max: InodeNumber(1000),
    }
}

fn root(format: &DirectoryFormat) -> Vec<u8> {
    let mut block = vec![0; 1024];
    init_root(format, &mut block, InodeNumber(2), HashVersion::Tea, FileBlock(1)).unwrap();
    block
}

fn entries(count: u32) -> Vec<IndexEntry> {
    (0..count).map(|index| IndexEntry { hash: index * 10, block: FileBlock(index + 1) }).collect()
}

#[test]
fn limits_are_those_of_the_block() {
    for (checksum, in_root, in_node) in [(true, 123, 126), (false, 124, 127)] {
        let format = format(checksum);
        let block = root(&format);
        let (info, index) = IndexBlock::root(&format, &block).unwrap();
        assert_eq!(info, RootInfo { version: HashVersion::Tea, levels: 0 });
        assert_eq!((index.count(), index.limit()), (1, in_root));
        let mut node = vec![0; 1024];
        init_node(&format, &mut node, &entries(in_node)).unwrap();
        let index = IndexBlock::node(&format, &node).unwrap();
        assert_eq!((index.count(), index.limit()), (in_node as usize, in_node as usize));
        assert_eq!(index.entries().collect::<Vec<_>>(), entries(in_node));
        assert!(init_node(&format, &mut node, &entries(in_node + 1)).is_err());
        assert!(init_node(&format, &mut node, &[]).is_err());
    }
}

#[test]
fn a_hash_is_looked_for_from_the_last_entry_not_above_it() {
    let format = format(true);
    let mut block = vec![0; 1024];
    let entries = [0, 10, 20, 21, 21, 30].map(|hash| IndexEntry { hash, block: FileBlock(hash + 1) });
    init_node(&format, &mut block, &entries).unwrap();
    let index = IndexBlock::node(&format, &block).unwrap();
    for (hash, position) in [(0, 0), (8, 0), (10, 1), (18, 1), (20, 2), (22, 4), (30, 5), (u32::MAX, 5)] {
        assert_eq!(index.position_of(hash), position);
    }
}

#[test]
fn the_parent_of_a_root_is_replaced_under_its_checksum() {
    let format = format(true);
    let mut block = root(&format);
    set_parent(&format, &mut block, InodeNumber(77)).unwrap();
    IndexBlock::root(&format, &block).unwrap();
    assert_eq!(format.dots(&block).unwrap()[1].inode, InodeNumber(77));
}

#[test]
fn what_a_root_cannot_be_is_found() {
    let format = format(false);
    for (offset, byte, what) in [
        (0, 13, "a root is not covered by '.' and '..'"),
        (24, 1, "a root's information has an unknown form"),
        (28, 3, "a root names an unknown hash"),
        (29, 9, "a root's information has an unknown form"),
        (30, 2, "an index has too many levels"),
        (31, 1, "a root's information has an unknown form"),
        (32, 5, "the limit of an index block is not that of its size"),
        (34, 0, "an index block has no entry"),
        (34, 200, "an index block has more entries than room"),
    ] {
        let mut block = root(&format);
        block[offset] = byte;
        assert_eq!(IndexBlock::root(&format, &block).unwrap_err().what, what);
    }
    let mut block = root(&format);
    let unordered = [0, 20, 10].map(|hash| IndexEntry { hash, block: FileBlock(1) });
    write_root_entries(&format, &mut block, &unordered).unwrap();
    assert_eq!(IndexBlock::root(&format, &block).unwrap_err().what, "an index block is out of order");
}

#[test]
fn a_checksum_covers_what_is_in_use() {
    let format = format(true);
    let mut block = root(&format);
    write_root_entries(&format, &mut block, &entries(5)).unwrap();
    for at in 0..32 + 5 * 8 {
        let mut broken = block.clone();
        broken[at] ^= 1;
        assert!(IndexBlock::root(&format, &broken).is_err(), "byte {at}");
    }
    block[32 + 5 * 8] ^= 1;
    assert!(IndexBlock::root(&format, &block).is_ok(), "what lies behind the last entry does not count");
}
