//! Sets of attributes, alone.

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Attribute, AttributeSet, EditError, Entry, Name, Room, SetMode, StoredValue, block, body};
use crate::layout::checksum::Seed;
use crate::units::{BlockNumber, InodeNumber};

const AT: BlockNumber = BlockNumber(99);
const SEED: Option<Seed> = Some(Seed(0x1234));
const INODE: InodeNumber = InodeNumber(12);

fn name(full: &str) -> Name {
    Name::parse(full.as_bytes()).unwrap()
}

fn attribute(full: &str, value: &[u8]) -> Attribute {
    Attribute { name: name(full), value: value.to_vec() }
}

fn some() -> Vec<Attribute> {
    vec![attribute("user.b", b"12345"), attribute("security.selinux", b""), attribute("user.\u{e4}", b"1234")]
}

#[test]
fn what_is_written_is_read_in_both_forms() {
    let mut bytes = vec![0xee; 96];
    body::write(&mut bytes, &some());
    body::check(&bytes, INODE).unwrap();
    let in_body = body::entries(&bytes, INODE).unwrap();
    let mut bytes = vec![0; 1024];
    block::write(&mut bytes, &some(), AT, SEED);
    block::check(&bytes, AT, SEED).unwrap();
    let in_block = block::entries(&bytes, AT, SEED).unwrap();
    let set = AttributeSet::new(&in_body, &in_block).unwrap();
    assert_eq!(set.body, some());
    assert_eq!(set.block, [some()[0].clone(), some()[2].clone(), some()[1].clone()]);
}

#[test]
fn the_body_is_what_the_extra_size_leaves() {
    let mut inode = vec![0; 256];
    assert_eq!(body::range(&inode, INODE).unwrap(), 0..0);
    inode[128] = 32;
    assert_eq!(body::range(&inode, INODE).unwrap(), 160..256);
    assert_eq!(body::range(&inode[..128], INODE).unwrap(), 0..0);
    inode[128] = 124;
    assert_eq!(body::range(&inode, INODE).unwrap(), 0..0);
    for wrong in [33, 132] {
        inode[128] = wrong;
        assert!(body::range(&inode, INODE).is_err());
    }
}

#[test]
fn values_move_until_one_more_fits() {
    let room = Room { body: 88, block: 200 };
    let mut set = AttributeSet::default();
    // 20 bytes for the entry, 20 for the value: two in the body, the third goes to the block.
    for suffix in ["a", "b", "c"] {
        set.set(&name(&format!("user.{suffix}")), &[1; 20], SetMode::Any, room).unwrap();
    }
    assert_eq!((set.body.len(), set.block.len()), (2, 1));
    // 180 fit into the block only when `c` leaves it, and 40 + 48 into the body only without `a` or `b`.
    assert_eq!(set.set(&name("user.d"), &[2; 160], SetMode::Any, room), Err(EditError::NoSpace));
    set.remove(&name("user.a")).unwrap();
    set.set(&name("user.d"), &[2; 160], SetMode::Any, room).unwrap();
    assert_eq!((set.body.len(), set.block.len()), (2, 1));
    assert_eq!(set.get(&name("user.d")), Some([2; 160].as_slice()));
}

#[test]
fn modes_are_obeyed() {
    let room = Room { body: 88, block: 200 };
    let mut set = AttributeSet::default();
    let user = name("user.a");
    assert_eq!(set.set(&user, b"1", SetMode::Replace, room), Err(EditError::Missing));
    assert_eq!(set.remove(&user), Err(EditError::Missing));
    set.set(&user, b"1", SetMode::Create, room).unwrap();
    assert_eq!(set.set(&user, b"2", SetMode::Create, room), Err(EditError::Exists));
    set.set(&user, b"3", SetMode::Replace, room).unwrap();
    assert_eq!(set.get(&user), Some(b"3".as_slice()));
}

#[test]
fn a_value_in_an_inode_is_shown_and_forbids_edits() {
    let mut bytes = vec![0; 1024];
    block::write(&mut bytes, &some(), AT, None);
    bytes[32 + 4] = 17;
    let entries = block::entries(&bytes, AT, None).unwrap();
    assert!(matches!(entries[0].value, StoredValue::InInode { inode: 17, length: 5 }));
    assert_eq!(AttributeSet::new(&[], &entries), Err(EditError::ValueInInode));
}

#[test]
fn both_hashes_are_accepted_and_others_not() {
    let mut bytes = vec![0; 1024];
    block::write(&mut bytes, &[attribute("user.\u{e4}", b"1234")], AT, None);
    let signed = super::hash::entry("\u{e4}".as_bytes(), b"1234", super::hash::CharSign::Signed);
    let unsigned = bytes[44..48].to_vec();
    assert_ne!(unsigned, signed.to_le_bytes());
    bytes[44..48].copy_from_slice(&signed.to_le_bytes());
    bytes[12..16].copy_from_slice(&signed.to_le_bytes());
    block::check(&bytes, AT, None).unwrap();
    bytes[12] ^= 1;
    assert!(block::check(&bytes, AT, None).is_err());
    bytes[44] ^= 1;
    assert!(block::check(&bytes, AT, None).is_err());
}

#[test]
fn broken_headers_and_places_are_found() {
    let mut good = vec![0; 1024];
    block::write(&mut good, &some(), AT, None);
    let sealed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        block::entries(&bytes, AT, None).map(|entries| entries.len())
    };
    assert_eq!(sealed(100, 0), Ok(3));
    // Magic, references, blocks; offset on another value, offset and length beyond the end, name that eats the end.
    for (at, byte) in [(3, 0), (4, 0), (8, 2), (34, 0xf4), (35, 4), (42, 1), (32, 255)] {
        assert!(sealed(at, byte).is_err(), "byte {at}");
    }
    assert!(block::entries(&good[..31], AT, None).is_err());
    assert!(block::entries(&good, AT, SEED).is_err(), "no checksum was written");
    block::write(&mut good, &some(), AT, SEED);
    assert!(block::entries(&good, BlockNumber(98), SEED).is_err());
}

/// Uses whatever damaged bytes show.
fn use_all(entries: &[Entry<'_>]) {
    for entry in entries {
        let _ = (entry.name().full(), entry.value);
    }
    if let Ok(mut set) = AttributeSet::new(entries, entries) {
        let _ = set.set(&name("user.new"), &[7; 300], SetMode::Any, Room { body: 88, block: 988 });
    }
}

#[test]
fn flipped_bits_never_panic() {
    let seed = 0xEA02;
    println!("seed {seed:#x}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut in_body = vec![0; 96];
    body::write(&mut in_body, &some());
    let mut in_block = vec![0; 1024];
    block::write(&mut in_block, &some(), AT, None);
    for round in 0..60_000 {
        let (mut small, mut large) = (in_body.clone(), in_block.clone());
        for _ in 0..random.random_range(1..=4) {
            let near_start = random.random_range(0..96);
            small[random.random_range(0..96)] ^= 1 << random.random_range(0..8);
            large[near_start] ^= 1 << random.random_range(0..8);
        }
        if round % 100 == 0 {
            random.fill_bytes(&mut small[4..]);
            random.fill_bytes(&mut large[32..]);
        }
        if let Ok(entries) = body::entries(&small, INODE) {
            use_all(&entries);
            // What was read fits where it came from.
            if let Ok(set) = AttributeSet::new(&entries, &[]) {
                body::write(&mut [0; 96], &set.body);
            }
        }
        if let Ok(entries) = block::entries(&large, AT, None) {
            use_all(&entries);
            if let Ok(set) = AttributeSet::new(&[], &entries) {
                block::write(&mut [0; 1024], &set.block, AT, SEED);
            }
        }
        let _ = (body::check(&small, INODE), block::check(&large, AT, None));
    }
}
