//! Inodes decoded and encoded.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const NUMBER: InodeNumber = InodeNumber(13);
const RULES: InodeRules =
    InodeRules { block_size: 4096, device_blocks: 1 << 40, seed: Some(Seed(0xdead_beef)), huge_file: true };

fn full() -> Inode {
    let time = |seconds| Timestamp { seconds, nanoseconds: 123_456_789 };
    Inode {
        user: 0x1234_5678,
        group: 0x9abc_def0,
        size: 0x0012_3456_789a,
        links: 7,
        sectors: 0xabcd_1234_5678,
        version: 0x1122_3344_5566_7788,
        accessed: time(-5),
        modified: time(1 << 33),
        changed: time(0),
        created: Some(time(1 << 31)),
        deleted_or_next_orphan: 99,
        attributes_block: BlockNumber(0x12_3456_789a),
        project: 44,
        ..Inode::fresh(Mode::new(FileKind::Regular, 0o644), 0xfeed, 256)
    }
}

fn encoded(inode: &Inode, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    inode.encode(&mut bytes, NUMBER, &RULES).unwrap();
    bytes
}

#[test]
fn every_field_comes_back() {
    for size in [256, 512, 4096] {
        let bytes = encoded(&full(), size);
        assert_eq!(Inode::decode(&bytes, NUMBER, &RULES).unwrap(), full());
        full().check(NUMBER, &RULES).unwrap();
    }
}

#[test]
fn a_small_inode_has_whole_seconds_and_half_a_version() {
    let inode = Inode { created: None, extra_size: 0, project: 0, ..full() };
    let back = Inode::decode(&encoded(&inode, 128), NUMBER, &RULES).unwrap();
    let second = |seconds| Timestamp { seconds, nanoseconds: 0 };
    assert_eq!(back.version, 0x5566_7788);
    assert_eq!((back.accessed, back.modified, back.changed), (second(-5), second(i32::MAX.into()), second(0)));
    assert_eq!((back.created, back.size, back.user), (None, inode.size, inode.user));
    assert_eq!(Inode::fresh(Mode::new(FileKind::Fifo, 0), 1, 128).extra_size, 0);
}

#[test]
fn fields_beyond_the_extra_size_are_not_there() {
    for (extra_size, created, project) in [(4, false, 0), (16, false, 0), (20, true, 0), (28, true, 0), (32, true, 44)]
    {
        let mut bytes = vec![0x5a; 256];
        let inode = Inode { extra_size, created: full().created.filter(|_| created), ..full() };
        inode.encode(&mut bytes, NUMBER, &RULES).unwrap();
        let after = &bytes[BASE_SIZE + usize::from(extra_size)..];
        assert!(after.iter().all(|byte| *byte == 0x5a), "what follows belongs to the attributes");
        let back = Inode::decode(&bytes, NUMBER, &RULES).unwrap();
        assert_eq!((back.created.is_some(), back.project), (created, project));
        assert_eq!(back.version >> 32 != 0, extra_size >= 28);
    }
}

#[test]
fn bytes_without_a_meaning_are_kept() {
    let mut bytes = vec![0xa5; 256];
    full().encode(&mut bytes, NUMBER, &RULES).unwrap();
    assert_eq!(bytes[0x70..0x74], [0xa5; 4], "the address of a fragment");
    assert_eq!(bytes[0x7e..0x80], [0xa5; 2], "a reserved field");
    assert!(bytes[160..].iter().all(|byte| *byte == 0xa5));
    let before = bytes.clone();
    Inode::decode(&bytes, NUMBER, &RULES).unwrap().encode(&mut bytes, NUMBER, &RULES).unwrap();
    assert_eq!(bytes, before);
}

#[test]
fn the_checksum_covers_every_bit_and_the_number_and_generation() {
    for (size, extra_size) in [(128, 0), (256, 0), (256, 32)] {
        let inode = Inode { extra_size, created: None, ..full() };
        let bytes = encoded(&inode, size);
        assert!(Inode::decode(&bytes, InodeNumber(14), &RULES).is_err());
        for bit in 0..size * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Inode::decode(&flipped, NUMBER, &RULES).is_err(), "bit {bit} of {size} bytes");
        }
    }
}

#[test]
fn sectors_are_counted_in_blocks_only_when_they_have_to_be() {
    let cases =
        [(u64::from(u32::MAX), false), (1 << 32, false), ((1 << 48) - 1, false), (1 << 48, true), (1 << 50, true)];
    for (sectors, in_blocks) in cases {
        let inode = Inode { sectors, ..full() };
        let back = Inode::decode(&encoded(&inode, 256), NUMBER, &RULES).unwrap();
        assert_eq!((back.sectors, back.flags.contains(InodeFlags::HUGE_FILE)), (sectors, in_blocks));
    }
    let mut bytes = [0; 256];
    let inode = Inode { sectors: 1 << 52, ..full() };
    assert_eq!(inode.encode(&mut bytes, NUMBER, &RULES), Err(Stop::TooLarge("the file")));
    let small = InodeRules { huge_file: false, ..RULES };
    let inode = Inode { sectors: 1 << 32, ..full() };
    assert_eq!(inode.encode(&mut bytes, NUMBER, &small), Err(Stop::TooLarge("the file")));
}

#[test]
fn short_targets_and_devices_are_in_the_inode() {
    let mut link = Inode::fresh(Mode::new(FileKind::Symlink, 0o777), 1, 256);
    for target in [&b"a"[..], &[b'x'; 59]] {
        link.set_fast_symlink(target).unwrap();
        assert_eq!(link.fast_symlink(), Some(target));
        link.check(NUMBER, &RULES).unwrap();
    }
    assert_eq!((link.set_fast_symlink(b""), link.set_fast_symlink(&[b'x'; 60])), (None, None));
    link.size = 60;
    assert_eq!(link.fast_symlink(), None);
    let mut device = Inode::fresh(Mode::new(FileKind::BlockDevice, 0o600), 1, 256);
    device.set_device(DeviceNumber { major: 259, minor: 70_000 }).unwrap();
    assert_eq!(device.device(), Some(DeviceNumber { major: 259, minor: 70_000 }));
    assert_eq!(full().device(), None);
}

#[test]
fn what_cannot_be_is_found() {
    let bad = |inode: Inode| inode.check(NUMBER, &RULES).is_err();
    let fresh = |kind| Inode::fresh(Mode::new(kind, 0), 1, 256);
    assert!(bad(Inode { mode: Mode(0), ..full() }));
    assert!(bad(Inode { mode: Mode(0x3000), ..full() }));
    assert!(bad(Inode { attributes_block: BlockNumber(1 << 40), ..full() }));
    assert!(bad(Inode { size: 1 << 45, ..full() }));
    assert!(bad(Inode { size: 100, ..fresh(FileKind::Directory) }));
    assert!(bad(Inode { size: 4097, ..fresh(FileKind::Symlink) }));
    assert!(bad(fresh(FileKind::Symlink)));
    for extra_size in [2, 33, 132, u16::MAX] {
        let mut bytes = encoded(&full(), 256);
        bytes[128..130].copy_from_slice(&extra_size.to_le_bytes());
        assert!(Inode::decode(&bytes, NUMBER, &InodeRules { seed: None, ..RULES }).is_err());
        let inode = Inode { extra_size, ..full() };
        assert!(inode.encode(&mut bytes, NUMBER, &RULES).is_err());
    }
    assert!(Inode::decode(&[0; 127], NUMBER, &RULES).is_err());
}

#[test]
fn random_bytes_are_decoded_or_refused() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    println!("seed 1");
    let rules = InodeRules { seed: None, ..RULES };
    let mut decoded = 0;
    for round in 0..100_000 {
        let mut bytes = vec![0; *[100, 128, 129, 132, 256].get(round % 5).unwrap()];
        random.fill(bytes.as_mut_slice());
        if let (Some(size), true) = (bytes.get_mut(128..130), round % 3 > 0) {
            size.copy_from_slice(&[random.random_range(0..33) * 4, 0]);
        }
        let Ok(inode) = Inode::decode(&bytes, NUMBER, &rules) else { continue };
        decoded += 1;
        let _ = (inode.check(NUMBER, &rules), inode.fast_symlink(), inode.device());
        let mut back = bytes.clone();
        if inode.encode(&mut back, NUMBER, &rules).is_ok() {
            let back = Inode::decode(&back, NUMBER, &rules).unwrap();
            // That flag follows from the count.
            let flags = back.flags.with(InodeFlags::HUGE_FILE, inode.flags.contains(InodeFlags::HUGE_FILE));
            assert_eq!(Inode { flags, ..back }, inode);
        }
    }
    assert!(decoded > 1000);
}
