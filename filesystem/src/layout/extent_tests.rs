//! Nodes of extent trees, alone.

use super::*;

const RULES: NodeRules = NodeRules { inode: InodeNumber(12), seed: Some(Seed(77)), device_blocks: 1 << 40 };
const AT: BlockNumber = BlockNumber(500);

fn extent(file: u32, start: u64, count: u32, unwritten: bool) -> Extent {
    Extent { file: FileBlock(file), run: BlockRun::new(BlockNumber(start), count), unwritten }
}

fn leaf(extents: &[Extent]) -> Vec<u8> {
    let entries: Vec<Entry> = extents.iter().map(Extent::entry).collect();
    node(0, &entries)
}

fn node(depth: u16, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let mut node = NodeMut(&mut bytes);
    node.init(depth, block_entries_max(1024)).unwrap();
    node.splice(0..0, entries).unwrap();
    node.seal(RULES.seed).unwrap();
    bytes
}

fn refusal(bytes: &[u8], depth: u16) -> &'static str {
    RULES.block(bytes, AT, depth).err().expect("the node is refused").what
}

#[test]
fn an_entry_has_the_documented_bytes() {
    let bytes = extent(0x0102_0304, 0x1122_3344_5566, 5, true).entry().0;
    assert_eq!(bytes, [4, 3, 2, 1, 5, 0x80, 0x22, 0x11, 0x66, 0x55, 0x44, 0x33]);
    let bytes = Entry::index(0x0102_0304, BlockNumber(0x1122_3344_5566)).0;
    assert_eq!(bytes, [4, 3, 2, 1, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0]);
    assert_eq!(empty_root()[..12], [0x0a, 0xf3, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn lengths_tell_written_from_unwritten() {
    for (count, unwritten) in [(1, false), (WRITTEN_MAX, false), (1, true), (UNWRITTEN_MAX, true)] {
        let original = extent(9, 100, count, unwritten);
        assert_eq!(original.entry().extent(), original);
    }
}

#[test]
fn a_full_block_of_every_size_keeps_room_for_the_checksum() {
    for size in [1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        let max = block_entries_max(size);
        assert!(size_of::<Header>() + max * ENTRY_SIZE + TAIL_SIZE <= size);
    }
    assert_eq!(block_entries_max(4096), 340);
}

#[test]
fn what_a_leaf_cannot_hold_is_refused() {
    let good = [extent(0, 10, 5, false), extent(5, 90, 1, true)];
    assert_eq!(RULES.block(&leaf(&good), AT, 0).unwrap().entries().len(), 2);
    let cases = [
        vec![extent(0, 10, 5, false), extent(4, 90, 1, true)],
        vec![extent(8, 10, 5, false), extent(4, 90, 1, true)],
        vec![extent(0, 0, 5, false)],
        vec![extent(0, 10, 0, false)],
        vec![extent(0, (1 << 40) - 1, 2, false)],
        vec![extent(u32::MAX - 1, 10, 2, false)],
    ];
    for extents in cases {
        assert!(RULES.block(&leaf(&extents), AT, 0).is_err(), "{extents:?}");
    }
}

#[test]
fn what_a_node_cannot_be_is_refused() {
    let index = |key, child| Entry::index(key, BlockNumber(child));
    assert!(RULES.block(&node(2, &[index(0, 9), index(5, 8)]), AT, 2).is_ok());
    assert_eq!(refusal(&node(1, &[index(0, 9), index(0, 8)]), 1), "indices are out of order");
    assert_eq!(refusal(&node(1, &[index(0, 0)]), 1), "a child is not on the device");
    assert_eq!(refusal(&node(1, &[index(0, 1 << 40)]), 1), "a child is not on the device");
    assert_eq!(refusal(&node(1, &[]), 1), "a node above the leaves is empty");
    assert_eq!(refusal(&node(1, &[index(0, 9)]), 0), "its depth is not one less than its parent's");
    assert_eq!(refusal(&node(6, &[index(0, 9)]), 6), "the tree is too deep");
    let good = leaf(&[extent(0, 10, 5, false)]);
    for (at, value, what) in [
        (0, 0, "the magic number of an extent tree's node is missing"),
        (2, 85, "there are more entries than fit"),
        (4, 85, "the number of entries that fit is wrong"),
        (4, 0, "the number of entries that fit is wrong"),
        (8, 1, "the checksum does not match"),
    ] {
        let mut bytes = good.clone();
        bytes[at] = value;
        assert_eq!(refusal(&bytes, 0), what);
    }
    assert_eq!(refusal(&good[..11], 0), "there is no room for a header");
}

#[test]
fn edits_stay_inside_the_node() {
    let mut bytes = leaf(&[extent(0, 10, 5, false), extent(5, 90, 1, true)]);
    let entry = extent(7, 7, 7, false).entry();
    let mut node = NodeMut(&mut bytes);
    assert_eq!(node.splice(0..3, &[]), None);
    assert_eq!(node.splice(0..0, &[entry; 83]), None);
    assert_eq!(node.set_key(84, 1), None);
    node.splice(0..1, &[]).unwrap();
    assert_eq!(bytes[24..36], [0; 12], "what is no longer used is zeroed");
    assert_eq!(NodeMut(&mut [0; 8]).init(0, 1), None);
    let mut short = vec![0; 20];
    let mut node = NodeMut(&mut short);
    node.init(0, 4).unwrap();
    assert_eq!(node.splice(0..0, &[entry]), None);
    assert_eq!(node.seal(RULES.seed), None);
}

#[test]
fn joining_asks_for_both_sides_the_kind_and_the_length() {
    let left = extent(0, 100, 10, false);
    assert_eq!(left.joined(&extent(10, 110, 5, false)), Some(extent(0, 100, 15, false)));
    assert_eq!(left.joined(&extent(10, 111, 5, false)), None);
    assert_eq!(left.joined(&extent(11, 110, 5, false)), None);
    assert_eq!(left.joined(&extent(10, 110, 5, true)), None);
    let long = extent(0, 100, UNWRITTEN_MAX, true);
    assert_eq!(long.joined(&extent(UNWRITTEN_MAX, 100 + u64::from(UNWRITTEN_MAX), 1, true)), None);
}
