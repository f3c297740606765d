//! Superblocks, descriptors and bitmaps that we wrote, judged by dumpe2fs and e2fsck; features that debugfs set; and
//! bytes that are wrong.

mod layout_images;

use filesystem::layout::bitmap::{BitRun, Bitmap, BitmapKind, uninit_block_bitmap, uninit_inode_bitmap};
use filesystem::layout::features::Reason;
use filesystem::layout::group::{BLOCK_UNINIT, GroupDescriptor, INODE_UNINIT};
use filesystem::layout::mmp::{MultiMount, multi_mount};
use filesystem::layout::superblock::{ErrorRecord, Seconds, State, Superblock, Unusable};
use filesystem::units::{BlockNumber, GroupNumber, InodeNumber};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use layout_images::{Image, MIB, OURS};

fn ours(more: &str) -> Image {
    Image::make(100 * MIB, &format!("-O {OURS}{more} -J size=4"))
}

/// Images that differ in how descriptors and bitmaps are checked.
fn kinds() -> Vec<Image> {
    let crc16 = ",^metadata_csum,^metadata_csum_seed,uninit_bg";
    let none = ",^metadata_csum,^metadata_csum_seed";
    let more = [
        " -b 1024".to_owned(),
        ",^64bit -b 1024".to_owned(),
        ",^flex_bg -b 1024".to_owned(),
        format!("{crc16} -b 1024"),
        format!("{crc16},^64bit -b 1024"),
        format!("{none} -b 1024"),
    ];
    more.iter().map(|more| ours(more)).collect()
}

#[test]
fn edits_of_the_superblock_are_read_by_dumpe2fs() {
    for image in kinds() {
        let mut superblock = image.superblock();
        superblock.set_mount_count(7);
        superblock.set_mount_time(Seconds(1_000_000_000));
        superblock.set_write_time(Seconds(1_000_000_001));
        superblock.set_kib_written(4_000_000);
        image.write(1024, &superblock.encode());
        assert_eq!(image.complaints(), None);
        let (head, _) = image.dump();
        assert_eq!(head["Mount count"], "7");
        assert_eq!(head["Last mount time"], "Sun Sep  9 01:46:40 2001");
        assert_eq!(head["Last write time"], "Sun Sep  9 01:46:41 2001");
        assert_eq!(head["Lifetime writes"], "3906 MB");

        let mut error = ErrorRecord {
            time: Seconds(1_000_000_000),
            inode: Some(InodeNumber(12)),
            block: BlockNumber(345),
            function: "first_place".to_owned(),
            line: 67,
            code: 6,
        };
        superblock.record_error(&error);
        error.function = "a name that is longer than the field".to_owned();
        superblock.record_error(&error);
        superblock.set_needs_recovery(true);
        superblock.set_last_orphan(Some(InodeNumber(13)));
        superblock.set_free_blocks(1234);
        superblock.set_free_inodes(56);
        superblock.set_state(State { clean: false, errors: true, orphans: true });
        image.write(1024, &superblock.encode());
        let (head, _) = image.dump();
        assert_eq!(head["FS Error count"], "2");
        assert_eq!(head["First error function"], "first_place");
        assert_eq!(head["First error line #"], "67");
        assert_eq!(head["First error inode #"], "12");
        assert_eq!(head["First error block #"], "345");
        assert_eq!(head["Last error function"], &error.function[..32]);
        assert_eq!(head["First orphan inode"], "13");
        assert_eq!(head["Free blocks"], "1234");
        assert_eq!(head["Free inodes"], "56");
        assert_eq!(head["Filesystem state"], "not clean with errors");
        assert!(head["Filesystem features"].contains("needs_recovery"));
        let again = image.superblock();
        assert_eq!(again.last_error().map(|last| last.function), Some(error.function[..32].to_owned()));
        assert_eq!(again.state(), superblock.state());
        // dumpe2fs 1.47.0 does not know the upper bytes of times.
        superblock.set_write_time(Seconds((1 << 40) - 2));
        superblock.set_mount_time(Seconds(1 << 32));
        let again = Superblock::decode(&superblock.encode()).unwrap();
        assert_eq!((again.write_time(), again.mount_time()), (Seconds((1 << 40) - 2), Seconds(1 << 32)));
        assert!(again.needs_recovery());
    }
}

#[test]
fn bitmaps_that_were_made_up_and_written_are_clean_to_e2fsck() {
    for image in kinds() {
        image.populate();
        let superblock = image.superblock();
        let geometry = superblock.geometry();
        let mut descriptors = image.descriptors(geometry);
        let all = descriptors.clone();
        for (index, descriptor) in descriptors.iter_mut().enumerate() {
            let group = GroupNumber(index as u32);
            let mut block = vec![0xee; geometry.block_size as usize];
            if descriptor.is_block_bitmap_uninit() {
                uninit_block_bitmap(geometry, group, &all, &mut block).unwrap();
                descriptor.flags &= !BLOCK_UNINIT;
                Bitmap::new(geometry, BitmapKind::Blocks, group, &block).unwrap().seal(geometry, descriptor);
                image.write_block(geometry, descriptor.block_bitmap, &block);
            }
            if descriptor.is_inode_bitmap_uninit() {
                uninit_inode_bitmap(geometry, group, &mut block).unwrap();
                descriptor.flags &= !INODE_UNINIT;
                Bitmap::new(geometry, BitmapKind::Inodes, group, &block).unwrap().seal(geometry, descriptor);
                image.write_block(geometry, descriptor.inode_bitmap, &block);
            }
            let (offset, mut bytes) = image.descriptor_bytes(geometry, group);
            descriptor.encode(geometry, group, &mut bytes).unwrap();
            image.write(offset, &bytes);
        }
        assert_eq!(image.complaints(), None);
        assert!(image.dump().1.iter().all(|group| !group.text.contains("_UNINIT")));
    }
}

#[test]
fn a_block_taken_for_nothing_is_what_e2fsck_finds_and_all_it_finds() {
    for image in kinds() {
        let superblock = image.superblock();
        let geometry = superblock.geometry();
        let group = GroupNumber(0);
        let mut descriptor = image.descriptors(geometry).remove(0);
        let mut block = image.block(geometry, descriptor.block_bitmap);
        let mut bitmap = Bitmap::new(geometry, BitmapKind::Blocks, group, &mut block).unwrap();
        let run = bitmap.free_run(0, 1, 1).unwrap_or(BitRun { start: 0, count: 0 });
        assert_eq!(run.count, 1);
        bitmap.take(run).unwrap();
        bitmap.seal(geometry, &mut descriptor);
        image.write_block(geometry, descriptor.block_bitmap, &block);
        let (offset, mut bytes) = image.descriptor_bytes(geometry, group);
        descriptor.encode(geometry, group, &mut bytes).unwrap();
        image.write(offset, &bytes);
        let said = image.complaints().unwrap();
        let bit = format!("Block bitmap differences:  -{}", geometry.block_of_bit(group, run.start));
        assert!(said.contains(&bit) && !said.contains("checksum"), "{said}");
    }
}

const READ_WRITE: &[&str] = &[
    "filetype",
    "needs_recovery",
    "extent",
    "64bit",
    "flex_bg",
    "metadata_csum_seed",
    "sparse_super",
    "large_file",
    "huge_file",
    "uninit_bg",
    "dir_nlink",
    "extra_isize",
    "metadata_csum",
    "orphan_present",
];
const READ_ONLY: &[&str] = &["meta_bg", "mmp", "ea_inode", "inline_data", "casefold"];

#[test]
fn every_bit_that_debugfs_can_set_has_its_access() {
    let base = Image::make(8 * MIB, &format!("-O {OURS} -b 4096"));
    for (set, bit) in ["C", "I", "R"].iter().flat_map(|set| (0..32).map(move |bit| (set, bit))) {
        let image = base.copy();
        image.debugfs(&format!("feature FEATURE_{set}{bit}"));
        let (head, _) = if *set == "C" { image.dump() } else { Default::default() };
        assert!(*set != "C" || !head.is_empty());
        let bytes = image.read(1024, 1024);
        let at = 0x5c + 4 * ["C", "I", "R"].iter().position(|other| other == set).unwrap();
        let mask = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_ne!(mask & 1 << bit, 0, "debugfs did not set FEATURE_{set}{bit}");
        let (reasons, refused) = match image.decode() {
            Ok(superblock) => (superblock.read_only().to_vec(), false),
            Err(Unusable::Refused { why }) => (why, true),
            Err(other) => panic!("FEATURE_{set}{bit}: {other}"),
        };
        let names: Vec<String> = reasons.iter().map(Reason::to_string).collect();
        match *set {
            "C" if bit == 9 => assert_eq!((names, refused), (vec!["sparse_super2".to_owned()], false)),
            "C" => assert_eq!((names, refused), (vec![], false)),
            _ => {
                let known = expected(set, bit);
                let writes = READ_WRITE.contains(&known);
                let refuses = *set == "I" && !writes && !READ_ONLY.contains(&known);
                assert_eq!(refused, refuses, "FEATURE_{set}{bit} {names:?}");
                assert_eq!(names.is_empty(), writes, "FEATURE_{set}{bit} {names:?}");
                assert!(writes || names == [known], "FEATURE_{set}{bit} {names:?}");
            }
        }
    }
}

/// The name that e2fsprogs has for a bit.
fn expected(set: &str, bit: u32) -> &'static str {
    let names: &[&str] = match set {
        "I" => &[
            "compression",
            "filetype",
            "needs_recovery",
            "journal_dev",
            "meta_bg",
            "",
            "extent",
            "64bit",
            "mmp",
            "flex_bg",
            "ea_inode",
            "",
            "dirdata",
            "metadata_csum_seed",
            "large_dir",
            "inline_data",
            "encrypt",
            "casefold",
        ],
        _ => &[
            "sparse_super",
            "large_file",
            "btree_dir",
            "huge_file",
            "uninit_bg",
            "dir_nlink",
            "extra_isize",
            "snapshot",
            "quota",
            "bigalloc",
            "metadata_csum",
            "replica",
            "read-only",
            "project",
            "shared_blocks",
            "verity",
            "orphan_present",
        ],
    };
    match names.get(bit as usize) {
        Some(name) if !name.is_empty() => name,
        _ => Box::leak(format!("FEATURE_{set}{bit}").into_boxed_str()),
    }
}

#[test]
fn what_cannot_be_worked_with_is_refused_by_name() {
    let refused = |image: &Image| match image.decode() {
        Err(Unusable::Refused { why }) => why.iter().map(Reason::to_string).collect::<Vec<_>>(),
        other => panic!("not refused: {:?}", other.err()),
    };
    assert_eq!(refused(&Image::make(100 * MIB, &format!("-O {OURS},encrypt"))), ["encrypt"]);
    assert_eq!(refused(&Image::make(100 * MIB, &format!("-O {OURS},large_dir"))), ["large_dir"]);
    assert_eq!(refused(&Image::make(16 * MIB, "-O journal_dev -b 4096")), ["journal_dev"]);

    let external = ours("");
    external.debugfs("ssv journal_inum 0");
    external.debugfs("ssv journal_dev 0x801");
    assert_eq!(refused(&external), ["a journal on another device"]);

    let fast = ours(",fast_commit");
    assert_eq!(fast.superblock().read_only(), []);
    fast.debugfs("feature needs_recovery");
    assert_eq!(refused(&fast), ["fast commits to be replayed"]);

    let large = Image::make(100 * MIB, &format!("-O {OURS} -b 8192"));
    assert_eq!(large.decode().err(), Some(Unusable::Unsupported("blocks larger than 4 KiB")));
    assert_eq!(Superblock::decode(&[0; 1024]).err(), Some(Unusable::NotExt4));
    assert!(Superblock::decode(&[0; 1023]).is_err());
}

#[test]
fn the_multi_mount_mark_tells_whether_somebody_has_it_mounted() {
    let image = ours(",mmp");
    let superblock = image.superblock();
    let at = superblock.multi_mount_block().unwrap();
    let mark = |image: &Image| multi_mount(superblock.geometry(), &image.block(superblock.geometry(), at));
    assert_eq!(mark(&image), Ok(MultiMount::Free));
    // debugfs cannot leave the mark held, so it is made here, and dumpe2fs reads it.
    let mut block = image.block(superblock.geometry(), at);
    block[4..8].copy_from_slice(&5u32.to_le_bytes());
    block[16..80].fill(0);
    block[16..25].copy_from_slice(b"elsewhere");
    let sum = superblock.geometry().checksum_seed.unwrap().sum(&block[..1020]);
    block[1020..1024].copy_from_slice(&sum.to_le_bytes());
    image.write_block(superblock.geometry(), at, &block);
    let (head, _) = image.dump();
    assert_eq!((&*head["mmp_sequence"], &*head["mmp_node_name"]), ("0x000005", "elsewhere"));
    assert!(matches!(mark(&image), Ok(MultiMount::Held { node, .. }) if node == "elsewhere"));
    block[9] ^= 1;
    assert!(multi_mount(superblock.geometry(), &block).is_err());
}

#[test]
fn every_flipped_bit_of_a_checked_superblock_or_descriptor_is_found() {
    for image in kinds() {
        let bytes = image.read(1024, 1024);
        let superblock = image.superblock();
        let geometry = superblock.geometry();
        for bit in 0..8192 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = Superblock::decode(&bytes).is_err();
            assert!(found || geometry.checksum_seed.is_none(), "bit {bit} of the superblock");
        }
        let checked = geometry.descriptor_checksum != filesystem::layout::geometry::DescriptorChecksum::None;
        for group in (0..geometry.group_count).map(GroupNumber) {
            let (_, bytes) = image.descriptor_bytes(geometry, group);
            for bit in 0..bytes.len() * 8 {
                let mut bytes = bytes.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                let found = GroupDescriptor::decode(geometry, group, &bytes).is_err();
                assert!(found || !checked, "bit {bit} of the descriptor of group {group}");
            }
        }
    }
}

#[test]
fn random_bytes_never_panic() {
    let image = ours(",^metadata_csum,^metadata_csum_seed -b 1024");
    let good = image.read(1024, 1024);
    let seed = 2026;
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut accepted = 0;
    for _ in 0..200_000 {
        let mut bytes = good.clone();
        for _ in 0..random.random_range(1..4) {
            let (at, value) = (random.random_range(0..0x180), random.random());
            bytes[at] = value;
        }
        let Ok(superblock) = Superblock::decode(&bytes) else { continue };
        accepted += 1;
        let geometry = superblock.geometry();
        for group in [0, 1, geometry.group_count - 1, geometry.group_count, u32::MAX].map(GroupNumber) {
            let _ = geometry.descriptor_place(group);
            let _ = geometry.base_blocks(group);
            let mut raw = [0u8; 4096];
            random.fill(&mut raw[..64]);
            raw[4..12].fill(0);
            let Ok(descriptor) = GroupDescriptor::decode(geometry, group, &raw) else { continue };
            let _ = uninit_block_bitmap(geometry, group, [&descriptor], &mut raw);
            let _ = uninit_inode_bitmap(geometry, group, &mut raw);
        }
        let _ = (superblock.journal_backup(), superblock.last_error(), superblock.encode());
    }
    assert!(accepted > 1000, "{accepted}");
}
