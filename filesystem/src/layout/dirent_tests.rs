//! Single blocks of entries.

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

fn new(name: &[u8], inode: u32) -> NewEntry<'_> {
    NewEntry { name, inode: InodeNumber(inode), kind: EntryType::File }
}

/// A block with `.`, `..`, `a`, `bb` and `ccc`.
fn filled(format: &DirectoryFormat) -> Vec<u8> {
    let mut block = vec![0; 1024];
    format.init_directory(&mut block, InodeNumber(2)).unwrap();
    for (name, inode) in [(&b"a"[..], 21), (b"bb", 22), (b"ccc", 23)] {
        assert!(format.insert(&mut block, new(name, inode)).unwrap());
    }
    block
}

#[test]
fn a_new_directory_has_itself_and_its_parent() {
    for format in [format(true), format(false)] {
        let mut block = vec![0xff; 1024];
        format.init_directory(&mut block, InodeNumber(2)).unwrap();
        format.verify(&block).unwrap();
        let [dot, dot_dot] = format.dots(&block).unwrap();
        assert_eq!((dot.inode, dot_dot.inode), (InodeNumber(12), InodeNumber(2)));
        assert_eq!(format.count(&block).unwrap(), 2);
    }
}

#[test]
fn a_removed_entry_leaves_room_and_no_name() {
    let format = format(true);
    let mut block = filled(&format);
    let entry = format.find(&block, b"bb").unwrap().unwrap();
    let offset = entry.offset;
    format.remove(&mut block, offset).unwrap();
    assert!(!block.windows(2).any(|bytes| bytes == b"bb"));
    assert_eq!(format.find(&block, b"bb").unwrap(), None);
    assert!(format.remove(&mut block, offset).is_err());
    assert!(format.insert(&mut block, new(b"dd", 24)).unwrap());
    assert_eq!(format.find(&block, b"dd").unwrap().unwrap().offset, offset);
}

#[test]
fn the_first_entry_becomes_free_when_removed() {
    let format = format(false);
    let mut block = vec![0; 1024];
    format.init_empty(&mut block);
    assert!(format.insert(&mut block, new(&[b'x'; 255], 30)).unwrap());
    format.remove(&mut block, 0).unwrap();
    assert_eq!(format.count(&block).unwrap(), 0);
    assert_eq!(format.widest_gap(&block).unwrap(), 1024);
}

#[test]
fn an_insertion_that_does_not_fit_changes_nothing() {
    let format = format(true);
    let mut block = vec![0; 1024];
    format.init_empty(&mut block);
    for byte in b'a'..b'd' {
        assert!(format.insert(&mut block, new(&[byte; 255], 30)).unwrap());
    }
    let before = block.clone();
    assert!(!format.insert(&mut block, new(&[b'd'; 255], 30)).unwrap());
    assert_eq!(block, before);
    assert!(format.insert(&mut block, new(&[b'd'; 200], 30)).unwrap());
}

#[test]
fn broken_entries_are_found() {
    let format = format(false);
    // Of the entry of `a`, at 24: a field's offset, its new bytes, and the finding.
    for (offset, bytes, what) in [
        (24, &[0xff; 4][..], "an entry's inode does not exist"),
        (28, &[8, 0], "an entry is too short"),
        (28, &[0, 0], "an entry is too short"),
        (28, &[14, 0], "an entry's length is not a multiple of 4"),
        (28, &[0xf0, 0xff], "an entry crosses the end of its block"),
        (28, &[0xe0, 0x03], "an entry ends too close to the end of its block"),
        (30, &[5], "a name is longer than its entry"),
        (30, &[0], "an entry has no name"),
    ] {
        let mut block = filled(&format);
        block[offset..offset + bytes.len()].copy_from_slice(bytes);
        assert_eq!(format.count(&block).unwrap_err().what, what);
        assert_eq!(format.find(&block, b"ccc").unwrap_err().what, what);
        assert!(format.insert(&mut block, new(b"d", 25)).is_err());
        assert!(format.remove(&mut block, 48).is_err());
    }
}

#[test]
fn a_changed_byte_or_a_missing_tail_fails_the_checksum() {
    let format = format(true);
    let block = filled(&format);
    format.verify(&block).unwrap();
    for at in 0..block.len() {
        let mut broken = block.clone();
        broken[at] ^= 0x10;
        assert!(format.verify(&broken).is_err(), "byte {at}");
    }
    assert!(format.verify(&[]).is_err());
}

#[test]
fn names_are_legal_by_length_and_bytes() {
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'a'; 256]] {
        assert!(!is_legal_name(name));
    }
    for name in [&b"..."[..], b".a", b" ", b"\xff\xfe", &[b'a'; 255]] {
        assert!(is_legal_name(name));
    }
    assert!(is_sound_name(b".") && is_sound_name(b".."));
}

#[test]
fn types_are_told_only_where_the_filesystem_has_them() {
    for number in 0..=7 {
        assert_eq!(EntryType::from_disk(number).to_disk(), number);
    }
    assert_eq!(EntryType::from_disk(0xde), EntryType::Unknown);
    let without = DirectoryFormat { file_types: false, ..format(true) };
    let mut block = filled(&without);
    let entry = without.find(&block, b"a").unwrap().unwrap();
    assert_eq!(entry.kind, EntryType::Unknown);
    let offset = entry.offset;
    without.set_inode(&mut block, offset, InodeNumber(40), EntryType::Fifo).unwrap();
    assert_eq!(block[offset + 7], 0);
    assert_eq!(without.find(&block, b"a").unwrap().unwrap().inode, InodeNumber(40));
}
