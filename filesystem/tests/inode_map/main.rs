//! Inodes and maps of images made by mke2fs, against debugfs; ours, against e2fsck.

mod image;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use filesystem::layout::extent::{Extent, FILE_BLOCKS_MAX};
use filesystem::layout::file_kind::{DeviceNumber, FileKind};
use filesystem::layout::inode::Inode;
use filesystem::layout::inode_flags::InodeFlags;
use filesystem::layout::timestamp::Timestamp;
use filesystem::map::{ExtentTree, FileMap, Limits};
use filesystem::{BlockNumber, BlockRun, BlockStore, FileBlock, InodeNumber};
use image::{Image, ImageStore, field};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const CHECKSUMS: &str = "metadata_csum,metadata_csum_seed,64bit,huge_file,extent,^resize_inode";
const ROOM: usize = 900;

/// A file with data in every second block of 1 KiB from each of some places on.
fn sparse_file(path: &Path, places: &[(u64, u64)], length: u64) {
    let file = File::create(path).unwrap();
    for (first, count) in places {
        for block in (*first..*first + *count * 2).step_by(2) {
            file.write_all_at(&[(block % 251 + 1) as u8; 1024], block * 1024).unwrap();
        }
    }
    file.set_len(length).unwrap();
}

fn map_of(image: &Image, number: InodeNumber, inode: &Inode) -> FileMap {
    FileMap::of_inode(inode, number, &image.rules, BlockNumber(1))
}

fn tree_of(image: &Image, number: InodeNumber, inode: &Inode) -> ExtentTree {
    match map_of(image, number, inode) {
        FileMap::Extents(tree) => tree,
        FileMap::Indirect(_) => panic!("inode {number} has no extents"),
    }
}

fn extents_of(map: &FileMap, store: &mut ImageStore<'_>) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut at = FileBlock(0);
    while let Some(extent) = map.next(store, at).unwrap() {
        at = FileBlock(extent.end());
        extents.push(extent);
    }
    extents
}

fn content(image: &Image, inode: &Inode, extents: &[Extent]) -> Vec<u8> {
    let size = image.rules.block_size as usize;
    let mut bytes = vec![0; inode.size as usize];
    for extent in extents.iter().filter(|extent| !extent.unwritten) {
        for offset in 0..extent.run.count {
            let at = (extent.file.0 + offset) as usize * size;
            let Some(to) = bytes.get_mut(at..) else { continue };
            let length = to.len().min(size);
            to[..length].copy_from_slice(&image.read_block(extent.run.start.plus(offset.into()))[..length]);
        }
    }
    bytes
}

/// File block, block, count, unwritten: the leaves in `dump_extents`.
fn dumped_extents(image: &Image, number: InodeNumber) -> Vec<Extent> {
    let dump = image.debugfs(&format!("dump_extents -l <{number}>"));
    let mut extents = Vec::new();
    for line in dump.lines().filter(|line| line.contains('/')) {
        let numbers = line.replace(['/', '-'], " ");
        let words: Vec<u64> = numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [_, _, _, _, first, _, start, _, count] = words[..] else { panic!("{line}") };
        let run = BlockRun::new(BlockNumber(start), count as u32);
        extents.push(Extent { file: FileBlock(first as u32), run, unwritten: line.contains("Uninit") });
    }
    extents
}

/// File block and block: what `stat` lists of an inode without extents, and how many blocks of pointers.
fn listed_blocks(image: &Image, number: InodeNumber) -> (Vec<(u32, u64)>, usize) {
    let stat = image.debugfs(&format!("stat <{number}>"));
    let (_, list) = stat.split_once("BLOCKS:").expect("a list of blocks");
    let list = list.split("TOTAL").next().unwrap();
    let (mut blocks, mut pointers) = (Vec::new(), 0);
    for item in list.trim().split(", ") {
        let (file, at) = item.trim_start_matches('(').split_once("):").unwrap();
        let bounds = |text: &str| -> Vec<u64> { text.split('-').map_while(|word| word.trim().parse().ok()).collect() };
        let (file, at) = (bounds(file), bounds(at));
        if file.is_empty() {
            pointers += 1;
            continue;
        }
        let range = file[0]..=*file.last().unwrap();
        blocks.extend(range.zip(at[0]..).map(|(file, at)| (file as u32, at)));
    }
    (blocks, pointers)
}

fn blocks_of(extents: &[Extent]) -> Vec<(u32, u64)> {
    extents.iter().flat_map(|extent| (extent.file.0..extent.end()).zip(extent.run.start.0..)).collect()
}

/// Blocks of 1 KiB in sectors.
fn set_blocks(inode: &mut Inode, blocks: u64) {
    inode.sectors = blocks * 2;
}

#[test]
fn fields_are_those_that_debugfs_shows() {
    for inode_size in ["256", "128"] {
        let features = if inode_size == "256" { CHECKSUMS } else { "metadata_csum,extent,huge_file" };
        let image = Image::make("8M", &["-b", "1024", "-I", inode_size, "-O", features], |source| {
            std::fs::write(source.join("file"), b"content").unwrap();
            std::os::unix::fs::symlink("short", source.join("short")).unwrap();
            std::os::unix::fs::symlink("x".repeat(60), source.join("long")).unwrap();
        });
        let requests = "mknod block b 259 300\nmknod character c 5 1\nmknod pipe p\nsif file uid 70000\nsif file gid 80000\n\
            sif file generation 77\nsif file version 5\nsif file atime 0x90000000\nsif file flags 0x800c0";
        let large = "\nsif file version_hi 9\nsif file atime_extra 0x15\nsif file projid 3";
        let all = if inode_size == "256" { requests.to_owned() + large } else { requests.to_owned() };
        image.change(&[all]);
        let is_large = inode_size == "256";
        let number = image.number("file");
        let stat = image.debugfs("stat file");
        let inode = image.inode(number);
        assert_eq!((inode.user, inode.group, inode.generation, inode.links), (70_000, 80_000, 77, 1));
        assert_eq!(inode.size.to_string(), field(&stat, "Size:"));
        assert_eq!(inode.sectors.to_string(), field(&stat, "Blockcount:"));
        assert_eq!(format!("{:04o}", inode.mode.permissions()), field(&stat, "Mode:"));
        assert_eq!(inode.flags, InodeFlags::EXTENTS | InodeFlags::NO_DUMP | InodeFlags::NO_ATIME);
        let base = -0x7000_0000;
        let read = if is_large { (base + (1 << 32), 5) } else { (base, 0) };
        assert_eq!(inode.accessed, Timestamp { seconds: read.0, nanoseconds: read.1 });
        assert_eq!((inode.version, inode.project), if is_large { (9 << 32 | 5, 3) } else { (5, 0) });
        assert_eq!(
            format!("{:#010x}", inode.modified.encode(false).0),
            field(&stat, "mtime:").split(':').next().unwrap()
        );
        assert_eq!(image.inode(image.number("short")).fast_symlink(), Some(&b"short"[..]));
        assert_eq!(image.inode(image.number("long")).fast_symlink(), None);
        let device = |name| image.inode(image.number(name)).device();
        assert_eq!(device("block"), Some(DeviceNumber { major: 259, minor: 300 }));
        assert_eq!(device("character"), Some(DeviceNumber { major: 5, minor: 1 }));
        assert_eq!(image.inode(image.number("pipe")).mode.kind(), Some(FileKind::Fifo));
        change_and_compare(&image, number, is_large);
    }
}

fn change_and_compare(image: &Image, number: InodeNumber, is_large: bool) {
    let before = image.inode_bytes(number);
    image.put_inode(number, &image.inode(number));
    assert_eq!(image.inode_bytes(number), before, "what was decoded is encoded the same");
    let mut inode = image.inode(number);
    (inode.user, inode.group, inode.generation) = (0x8001_0002, 5, 0xabcd_ef01);
    inode.modified = Timestamp { seconds: -1, nanoseconds: 7 };
    inode.version = 0x77_0000_0066;
    // The extents' checksums follow from the generation; this file has none outside of the inode.
    image.put_inode(number, &inode);
    let stat = image.debugfs(&format!("stat <{number}>"));
    assert_eq!(field(&stat, "User:"), (0x8001_0002_u32 as i32).to_string(), "{stat}");
    assert_eq!(field(&stat, "Generation:"), 0xabcd_ef01_u32.to_string());
    assert_eq!(field(&stat, "Version:"), if is_large { "0x00000077:00000066" } else { "0x00000066" });
    let modified = field(&stat, "mtime:");
    assert_eq!(modified, if is_large { "0xffffffff:0000001c" } else { "0xffffffff" });
    image.assert_clean();
}

#[test]
fn extents_and_content_are_those_that_debugfs_shows() {
    let image = Image::make("8M", &["-b", "1024", "-O", CHECKSUMS], |source| {
        sparse_file(&source.join("deep"), &[(0, 700), (60_000, 300)], 61_000_000 + 500_001);
        std::fs::write(source.join("plain"), vec![7; 100_000]).unwrap();
        std::fs::write(source.join("empty"), b"").unwrap();
    });
    for (name, depth) in [("deep", 2), ("plain", 0), ("empty", 0)] {
        let number = image.number(name);
        let inode = image.inode(number);
        let mut store = image.store(1);
        let contents = tree_of(&image, number, &inode).check(&mut store).unwrap();
        assert_eq!((contents.depth, contents.extents.clone()), (depth, dumped_extents(&image, number)), "{name}");
        let extents = extents_of(&map_of(&image, number, &inode), &mut store);
        assert_eq!(extents, contents.extents);
        let data: u64 = extents.iter().map(|extent| u64::from(extent.run.count)).sum();
        assert_eq!(inode.sectors, 2 * (data + contents.nodes.len() as u64));
        assert!(content(&image, &inode, &extents) == std::fs::read(image.source(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_tree_that_we_build_and_edit_passes_e2fsck() {
    let image = Image::make("8M", &["-b", "1024", "-O", CHECKSUMS], |source| {
        sparse_file(&source.join("deep"), &[(0, 700)], 1_500_000);
    });
    let mut random = ChaCha8Rng::seed_from_u64(1);
    println!("seed 1");
    let number = image.number("deep");
    let mut inode = image.inode(number);
    let mut store = image.store(ROOM);
    let old = tree_of(&image, number, &inode).check(&mut store).unwrap();
    let data = old.extents.len() as u64;
    old.nodes.iter().for_each(|at| store.free(BlockRun::new(*at, 1), true).unwrap());
    let seed = image.rules.seed.map(|seed| seed.of_inode(number, inode.generation));
    let mut tree = ExtentTree::empty(number, seed, image.rules.device_blocks, BlockNumber(1));
    let mut shuffled = old.extents.clone();
    shuffled.shuffle(&mut random);
    let mut nodes = 0;
    for extent in shuffled {
        nodes += tree.insert(&mut store, extent).unwrap().nodes_added;
    }
    store.commit();
    inode.map = *tree.root();
    set_blocks(&mut inode, data + nodes);
    image.put_inode(number, &inode);
    image.assert_clean();
    assert_eq!(dumped_extents(&image, number), old.extents);
    let source = std::fs::read(image.source("deep")).unwrap();
    assert!(image.dump("deep") == source);
    edit_and_judge(&image, number, &mut random);
}

/// Rounds of random edits, each followed by e2fsck and a comparison with what debugfs reads.
fn edit_and_judge(image: &Image, number: InodeNumber, random: &mut ChaCha8Rng) {
    for round in 0..12 {
        let mut inode = image.inode(number);
        let mut tree = tree_of(image, number, &inode);
        let mut store = image.store(ROOM);
        let mut sectors = inode.sectors;
        for _ in 0..120 {
            let at = FileBlock(random.random_range(0..1400));
            let to = FileBlock(at.0 + random.random_range(1..12));
            let change = match random.random_range(0..4) {
                0 if tree.next(&mut store, at).unwrap().is_none_or(|extent| extent.file > at) => {
                    let run = BlockRun::new(store.data_block(0x33), 1);
                    sectors += 2;
                    tree.insert(&mut store, Extent { file: at, run, unwritten: random.random() }).unwrap()
                }
                0 | 1 => tree.convert(&mut store, at, to, random.random(), Limits::NONE).unwrap().change,
                _ if round % 3 == 2 => tree.remove(&mut store, at, to, Limits::NONE).unwrap().change,
                _ => Default::default(),
            };
            sectors = sectors + 2 * change.nodes_added - 2 * (change.nodes_removed + change.data_freed);
        }
        let extents = tree.check(&mut store).unwrap().extents;
        store.commit();
        (inode.map, inode.sectors) = (*tree.root(), sectors);
        image.put_inode(number, &inode);
        image.assert_clean();
        assert_eq!(dumped_extents(image, number), extents);
        assert!(image.dump("deep") == content(image, &inode, &extents), "round {round}");
    }
    truncate_and_judge(image, number);
}

fn truncate_and_judge(image: &Image, number: InodeNumber) {
    let mut steps = 0;
    loop {
        let mut inode = image.inode(number);
        let mut map = map_of(image, number, &inode);
        let mut store = image.store(ROOM);
        let limits = Limits { blocks_max: 150, nodes_max: 4 };
        let progress = map.remove(&mut store, FileBlock(0), FileBlock(FILE_BLOCKS_MAX), limits).unwrap();
        store.commit();
        inode.map = *map.root();
        inode.sectors = inode.sectors + 2 * progress.change.nodes_added
            - 2 * (progress.change.nodes_removed + progress.change.data_freed);
        image.put_inode(number, &inode);
        image.assert_clean();
        steps += 1;
        if progress.stopped_at.is_none() {
            assert_eq!(inode.sectors, 0);
            break;
        }
    }
    assert!(steps > 2);
}

#[test]
fn an_indirect_map_reads_and_edits_as_e2fsprogs_does() {
    let image = Image::make("8M", &["-b", "1024", "-O", "^extent,^64bit,^metadata_csum,^resize_inode"], |source| {
        // Direct, indirect, double and triple.
        sparse_file(&source.join("deep"), &[(0, 300), (40_000, 100), (65_700, 400)], 70_000_001);
    });
    let number = image.number("deep");
    let mut inode = image.inode(number);
    let mut map = map_of(&image, number, &inode);
    assert!(matches!(map, FileMap::Indirect(_)));
    let mut store = image.store(ROOM);
    let extents = extents_of(&map, &mut store);
    let (listed, pointers) = listed_blocks(&image, number);
    assert_eq!(blocks_of(&extents), listed);
    assert_eq!(inode.sectors, 2 * (listed.len() + pointers) as u64);
    assert!(content(&image, &inode, &extents) == std::fs::read(image.source("deep")).unwrap());
    for first in [1, 101, 801, 1000, 20_000, 65_701, 66_801, 68_000] {
        for file in (first..first + 40).step_by(2) {
            let run = BlockRun::new(store.data_block(0x44), 1);
            let change = map.insert(&mut store, Extent { file: FileBlock(file), run, unwritten: false }).unwrap();
            inode.sectors += 2 + 2 * change.nodes_added;
        }
    }
    let removed = map.remove(&mut store, FileBlock(5), FileBlock(300), Limits::NONE).unwrap().change;
    inode.sectors -= 2 * (removed.data_freed + removed.nodes_removed);
    let extents = extents_of(&map, &mut store);
    store.commit();
    inode.map = *map.root();
    image.put_inode(number, &inode);
    image.assert_clean();
    assert_eq!(listed_blocks(&image, number).0, blocks_of(&extents));
    assert!(image.dump("deep") == content(&image, &inode, &extents));
    truncate_and_judge(&image, number);
}
