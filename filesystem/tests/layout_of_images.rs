//! Superblock, descriptors and bitmaps of images that mke2fs made in many profiles, field by field against dumpe2fs.

mod layout_images;

use std::collections::BTreeSet;

use filesystem::layout::bitmap::{Bitmap, BitmapKind, uninit_block_bitmap, uninit_inode_bitmap};
use filesystem::layout::features::Reason;
use filesystem::layout::geometry::Geometry;
use filesystem::layout::group::GroupDescriptor;
use filesystem::layout::superblock::{HashSign, Superblock};
use filesystem::units::GroupNumber;

use layout_images::{DumpedGroup, GIB, Image, MIB, OURS};

/// Decodes everything, and compares.
fn agrees_with_dumpe2fs(image: &Image) {
    let superblock = image.superblock();
    let (head, dumped) = image.dump();
    compare_superblock(&superblock, &|name| head.get(name).cloned().unwrap_or_default());
    assert_eq!(superblock.encode()[..], image.read(1024, 1024), "an unchanged superblock stays");
    let geometry = superblock.geometry();
    assert_eq!(dumped.len(), geometry.group_count as usize);
    let descriptors = image.descriptors(geometry);
    for (index, (descriptor, dumped)) in descriptors.iter().zip(&dumped).enumerate() {
        let group = GroupNumber(index as u32);
        compare_group(geometry, group, descriptor, dumped);
        let (_, bytes) = image.descriptor_bytes(geometry, group);
        let mut again = bytes.clone();
        descriptor.encode(geometry, group, &mut again).unwrap();
        assert_eq!(again, bytes, "an unchanged descriptor stays");
        compare_bitmaps(image, geometry, group, &descriptors, dumped);
    }
    let free: u64 = descriptors.iter().map(|descriptor| u64::from(descriptor.free_clusters)).sum();
    assert_eq!(free * u64::from(geometry.cluster_blocks), superblock.free_blocks());
    assert_eq!(descriptors.iter().map(|descriptor| descriptor.free_inodes).sum::<u32>(), superblock.free_inodes());
}

fn compare_superblock(superblock: &Superblock, field: &dyn Fn(&str) -> String) {
    let geometry = superblock.geometry();
    let same = |name: &str, value: u64| assert_eq!(field(name), value.to_string(), "{name}");
    let names: BTreeSet<String> = superblock.features().names().iter().map(Reason::to_string).collect();
    let dumped = field("Filesystem features");
    let dumped = dumped.split_whitespace().filter(|name| *name != "(none)").map(str::to_owned);
    assert_eq!(names, dumped.collect());
    same("Inode count", geometry.inode_count.into());
    same("Block count", geometry.block_count);
    same("Reserved block count", superblock.reserved_blocks());
    same("Free blocks", superblock.free_blocks());
    same("Free inodes", superblock.free_inodes().into());
    same("First block", geometry.first_data_block.into());
    same("Block size", geometry.block_size.into());
    same("Blocks per group", geometry.blocks_per_group.into());
    same("Inodes per group", geometry.inodes_per_group.into());
    same("Inode blocks per group", geometry.inode_table_blocks().into());
    same("Mount count", superblock.mount_count().into());
    let optional = |name: &str, value: u64| {
        let dumped = field(name);
        assert_eq!(if dumped.is_empty() { "0" } else { &dumped }, value.to_string(), "{name}");
    };
    optional("Overhead clusters", superblock.overhead().into());
    optional("Reserved GDT blocks", geometry.reserved_descriptor_blocks.into());
    optional("Journal inode", superblock.journal_inode().map_or(0, |inode| inode.0.into()));
    optional("Orphan file inode", superblock.orphan_file_inode().map_or(0, |inode| inode.0.into()));
    optional("MMP block number", superblock.multi_mount_block().map_or(0, |block| block.0));
    if !field("Inode size").is_empty() {
        same("Inode size", geometry.inode_size.into());
        same("First inode", geometry.first_inode.0.into());
    }
    if geometry.wide_blocks {
        same("Group descriptor size", geometry.descriptor_size.into());
    }
    if geometry.cluster_blocks > 1 {
        same("Cluster size", u64::from(geometry.cluster_blocks) * u64::from(geometry.block_size));
    }
    if let Some(seed) = geometry.checksum_seed.filter(|_| !field("Checksum seed").is_empty()) {
        assert_eq!(field("Checksum seed"), format!("0x{:08x}", seed.0));
    }
    compare_names(superblock, field);
}

fn compare_names(superblock: &Superblock, field: &dyn Fn(&str) -> String) {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(field("Filesystem UUID").replace('-', ""), hex(&superblock.uuid()));
    let label = String::from_utf8_lossy(superblock.label()).into_owned();
    assert_eq!(field("Filesystem volume name"), if label.is_empty() { "<none>".to_owned() } else { label });
    let state = superblock.state();
    assert_eq!(field("Filesystem state"), if state.clean { "clean" } else { "not clean" });
    assert!(!state.errors && !state.orphans);
    let seed: Vec<u8> = superblock.hash_seed().iter().flat_map(|word| word.to_le_bytes()).collect();
    if !field("Directory Hash Seed").is_empty() {
        assert_eq!(field("Directory Hash Seed").replace('-', ""), hex(&seed));
        assert_eq!(
            field("Default directory hash"),
            ["legacy", "half_md4", "tea"][superblock.default_hash_version() as usize]
        );
        assert_eq!(
            field("Filesystem flags").contains("unsigned_directory_hash"),
            superblock.hash_sign() == HashSign::Unsigned
        );
    }
    let backup = superblock.journal_backup();
    assert_eq!(!field("Journal backup").is_empty(), backup.is_some());
    if let Some(backup) = backup {
        let size = field("Total journal size");
        assert_eq!(size, format!("{}k", backup.size / 1024));
    }
}

fn compare_group(geometry: &Geometry, group: GroupNumber, descriptor: &GroupDescriptor, dumped: &DumpedGroup) {
    let at = |name: &str| dumped.number(name).unwrap_or_else(|| panic!("{name} in {}", dumped.text));
    let blocks = geometry.group_blocks(group).unwrap();
    let span = format!("(Blocks {}-{})", blocks.start, blocks.end().0 - 1);
    assert!(dumped.text.contains(&span), "{span} in {}", dumped.text);
    assert_eq!(at("Block bitmap at "), descriptor.block_bitmap.0);
    assert_eq!(at("Inode bitmap at "), descriptor.inode_bitmap.0);
    let table = descriptor.inode_table_run(geometry);
    assert_eq!(dumped.range("Inode table at "), Some((table.start.0, table.end().0 - 1)));
    let clusters = dumped.count(" free blocks").or(dumped.count(" free clusters"));
    assert_eq!(clusters, Some(descriptor.free_clusters.into()));
    assert_eq!(dumped.count(" free inodes"), Some(descriptor.free_inodes.into()));
    assert_eq!(dumped.count(" directories"), Some(descriptor.directories.into()));
    assert_eq!(dumped.count(" unused inodes").unwrap_or(0), descriptor.unused_inodes.into());
    assert_eq!(dumped.text.contains("BLOCK_UNINIT"), descriptor.is_block_bitmap_uninit());
    assert_eq!(dumped.text.contains("INODE_UNINIT"), descriptor.is_inode_bitmap_uninit());
    if geometry.checksum_seed.is_some() {
        let csum = |name: &str| {
            let line = dumped.rest(name);
            u32::from_str_radix(line.rsplit_once("csum 0x").unwrap().1, 16).unwrap()
        };
        assert_eq!(csum("Block bitmap at"), descriptor.block_bitmap_checksum);
        assert_eq!(csum("Inode bitmap at"), descriptor.inode_bitmap_checksum);
    }
    assert_eq!(dumped.text.contains("superblock at"), geometry.has_superblock(group));
    let ends = ["superblock at ", "Group descriptors at ", "Group descriptor at ", "Reserved GDT blocks at "];
    let ranges: Vec<(u64, u64)> = ends.iter().filter_map(|name| dumped.range(name)).collect();
    let base = geometry.base_blocks(group);
    assert_eq!(ranges.iter().map(|(first, last)| last - first + 1).sum::<u64>(), base.count.into());
    assert!(ranges.iter().all(|(first, last)| *first >= base.start.0 && *last < base.end().0));
}

fn compare_bitmaps(
    image: &Image,
    geometry: &Geometry,
    group: GroupNumber,
    all: &[GroupDescriptor],
    dumped: &DumpedGroup,
) {
    let descriptor = &all[group.0 as usize];
    let mut blocks = image.block(geometry, descriptor.block_bitmap);
    if descriptor.is_block_bitmap_uninit() {
        uninit_block_bitmap(geometry, group, all, &mut blocks).unwrap();
    }
    let bitmap = Bitmap::new(geometry, BitmapKind::Blocks, group, &blocks).unwrap();
    if !descriptor.is_block_bitmap_uninit() {
        bitmap.verify(geometry, descriptor).unwrap();
    }
    assert!(bitmap.is_padded());
    assert_eq!(bitmap.count_free(), descriptor.free_clusters);
    let free = bitmap.free_runs(0, u32::MAX).map(|run| {
        let block = |bit| geometry.block_of_bit(group, bit).0;
        (block(run.start), block(run.start + run.count - 1))
    });
    assert_eq!(ranges(free), dumped.rest("Free blocks:"), "group {group}");

    let mut inodes = image.block(geometry, descriptor.inode_bitmap);
    if descriptor.is_inode_bitmap_uninit() {
        uninit_inode_bitmap(geometry, group, &mut inodes).unwrap();
    }
    let bitmap = Bitmap::new(geometry, BitmapKind::Inodes, group, &inodes).unwrap();
    if !descriptor.is_inode_bitmap_uninit() {
        bitmap.verify(geometry, descriptor).unwrap();
    }
    assert!(bitmap.is_padded());
    assert_eq!(bitmap.count_free(), descriptor.free_inodes);
    let free = bitmap.free_runs(0, u32::MAX).map(|run| {
        let inode = |bit| u64::from(geometry.inode_of_bit(group, bit).0);
        (inode(run.start), inode(run.start + run.count - 1))
    });
    assert_eq!(ranges(free), dumped.rest("Free inodes:"), "group {group}");
}

fn ranges(runs: impl Iterator<Item = (u64, u64)>) -> String {
    let words: Vec<String> =
        runs.map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") }).collect();
    words.join(", ")
}

/// Makes each image, compares all of it, and what may be done with it.
fn each_agrees(profiles: &[(u64, String, &[&str])]) {
    for (size, arguments, read_only) in profiles {
        println!("{} MiB {arguments}", size / MIB);
        let image = Image::make(*size, arguments);
        let why: Vec<String> = image.superblock().read_only().iter().map(Reason::to_string).collect();
        assert_eq!(why, *read_only);
        agrees_with_dumpe2fs(&image);
        if *size < GIB && (read_only.is_empty() || *read_only == ["quota"]) {
            image.populate();
            agrees_with_dumpe2fs(&image);
        }
    }
}

fn with(more: &str) -> String {
    format!("-O {OURS}{more}")
}

#[test]
fn images_to_be_written_agree_with_dumpe2fs() {
    let old = "none,has_journal,ext_attr,dir_index,filetype,sparse_super,large_file,resize_inode";
    let profiles = [
        (8 * MIB, with(" -b 4096 -L ours"), &[][..]),
        (64 * MIB, with(" -b 4096 -J size=4"), &[]),
        (700 * MIB, with(" -b 4096 -J size=4"), &[]),
        (130 * MIB, with(" -b 4096 -J size=4 -I 512 -N 7000"), &[]),
        (8 * MIB, with(" -b 1024"), &[]),
        (100 * MIB + 5 * 1024, with(" -b 1024 -J size=4"), &[]),
        (100 * MIB, with(" -b 2048 -J size=4"), &[]),
        (100 * MIB, with(" -b 1024 -I 128 -J size=4"), &[]),
        (300 * MIB, with(" -b 4096 -I 128 -J size=4"), &[]),
        (300 * MIB, with(",orphan_file -b 4096 -J size=4"), &[]),
        (300 * MIB, with(",^metadata_csum_seed -b 4096 -J size=4"), &[]),
        (300 * MIB, with(",^64bit -b 4096 -J size=4"), &[]),
        (100 * MIB, with(",^64bit,^flex_bg -b 1024 -J size=4"), &[]),
        (300 * MIB, with(",^metadata_csum,^metadata_csum_seed -b 4096 -J size=4"), &[]),
        (100 * MIB, with(",^metadata_csum,^metadata_csum_seed,uninit_bg -b 1024 -J size=4"), &[]),
        (100 * MIB, with(",^metadata_csum,^metadata_csum_seed,uninit_bg,^64bit -b 1024 -J size=4"), &[]),
        (300 * MIB, with(",^metadata_csum,^metadata_csum_seed,uninit_bg -b 4096 -J size=4 -G 2"), &[]),
        (300 * MIB, with(",^sparse_super,^resize_inode -b 4096 -J size=4"), &[]),
        (100 * MIB, with(",^sparse_super,^resize_inode -b 1024 -g 1024 -G 4 -J size=4"), &[]),
        (100 * MIB, format!("-O {old} -b 1024 -I 128 -J size=4"), &[]),
        (300 * MIB, format!("-O {old} -b 4096 -I 128 -J size=4"), &[]),
        (100 * MIB, format!("-O {old},uninit_bg -b 2048 -I 256 -J size=4"), &[]),
        (100 * MIB, with(",fast_commit -b 1024 -J size=4"), &[]),
        (100 * MIB, with(",stable_inodes -b 4096 -J size=4"), &[]),
    ];
    each_agrees(&profiles);
}

#[test]
fn images_to_be_read_agree_with_dumpe2fs() {
    let profiles = [
        (200 * MIB, with(",bigalloc,^resize_inode -b 4096 -J size=4"), &["bigalloc"][..]),
        (200 * MIB, with(",bigalloc,^resize_inode -b 1024 -C 4096 -J size=4"), &["bigalloc"]),
        (200 * MIB, with(",quota -b 4096 -J size=4"), &["quota"]),
        (200 * MIB, with(",quota,project -b 4096 -J size=4"), &["quota", "project"]),
        (200 * MIB, with(",casefold -b 4096 -J size=4"), &["casefold"]),
        (200 * MIB, with(",mmp -b 4096 -J size=4"), &["mmp"]),
        (200 * MIB, with(",inline_data -b 4096 -J size=4"), &["inline_data"]),
        (200 * MIB, with(",ea_inode -b 4096 -J size=4"), &["ea_inode"]),
        (200 * MIB, with(",verity -b 4096 -J size=4"), &["verity"]),
        (200 * MIB, with(",meta_bg,^resize_inode -b 1024 -J size=4"), &["meta_bg"]),
        (300 * MIB, with(",meta_bg,^resize_inode,^flex_bg,^64bit -b 1024 -J size=4"), &["meta_bg"]),
        (300 * MIB, with(",meta_bg,^resize_inode,bigalloc -b 1024 -C 2048 -J size=4"), &["meta_bg", "bigalloc"]),
        (200 * MIB, with(",sparse_super2 -b 1024 -J size=4"), &["sparse_super2"]),
        (200 * MIB, with(",sparse_super2,^resize_inode -b 4096 -E num_backup_sb=1 -J size=4"), &["sparse_super2"]),
        (64 * MIB, "-O none -b 1024 -I 128".to_owned(), &["no journal"]),
        (64 * MIB, "-O none -b 4096 -r 0".to_owned(), &["no journal"]),
    ];
    each_agrees(&profiles);
}

#[test]
fn large_images_agree_with_dumpe2fs() {
    let profiles = [
        (100 * GIB, with(" -b 4096 -J size=4 -i 1048576"), &[][..]),
        (100 * GIB, with(",^metadata_csum,^metadata_csum_seed,uninit_bg,^64bit -b 4096 -J size=4 -i 1048576"), &[]),
        (12 * GIB, with(",meta_bg,^resize_inode -b 1024 -J size=4 -i 1048576"), &["meta_bg"]),
        (100 * GIB, with(",bigalloc,^resize_inode -b 4096 -C 65536 -J size=4 -i 1048576"), &["bigalloc"]),
    ];
    each_agrees(&profiles);
}
