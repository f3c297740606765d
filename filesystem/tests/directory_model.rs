//! Directories in memory against a map of names: random operations, collisions, growth to the end, stops and bit flips.

mod directory;

use directory::{
    MemoryBlocks, Model, assert_reads_as, directory as new_directory, empty, names_with_one_tea_hash, random_name,
};
use filesystem::directory::{Cookie, Directory, DirectoryBlocks, Insertion, Name, check};
use filesystem::layout::dirent::EntryType;
use filesystem::layout::hash::HashVersion;
use filesystem::{InodeNumber, Stop};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn insert(directory: &mut Directory, blocks: &mut MemoryBlocks, name: &[u8], inode: u32) -> Insertion {
    let done = directory.insert(blocks, Name::new(name).unwrap(), InodeNumber(inode), EntryType::File).unwrap();
    if let Insertion::Done { indexed } = done {
        directory.indexed = indexed;
    }
    done
}

/// Random operations on names of the pool, the share of insertions going up and down so that it grows and shrinks.
fn run_against_model(mut directory: Directory, block_bytes: usize, pool: &[Vec<u8>], operations: u32, seed: u64) {
    println!("seed {seed}, block {block_bytes}, {:?}", directory.hashing);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut blocks = empty(&directory, block_bytes);
    let mut model = Model::new();
    for operation in 0..operations {
        let inserts = if (operation * 4 / operations).is_multiple_of(2) { 70 } else { 30 };
        let bytes = pool.choose(&mut rng).unwrap();
        let name = Name::new(bytes).unwrap();
        let before = model.get(bytes).copied();
        let inode = InodeNumber(rng.random_range(11..1_000_000));
        match rng.random_range(0..120) {
            0..100 if rng.random_range(0..100) < inserts => {
                let done = insert(&mut directory, &mut blocks, bytes, inode.0);
                match (done, before) {
                    (Insertion::Exists(found), Some(before)) => assert_eq!((found.inode, found.kind), before),
                    (Insertion::Done { .. }, None) => {
                        model.insert(bytes.clone(), (inode, EntryType::File));
                    }
                    other => panic!("{other:?}"),
                }
            }
            0..100 => {
                let removed = directory.remove(&mut blocks, name).unwrap();
                assert_eq!(removed.map(|found| (found.inode, found.kind)), before);
                model.remove(bytes);
            }
            100..110 => {
                let replaced = directory.replace(&mut blocks, name, inode, EntryType::Symlink).unwrap();
                assert_eq!(replaced.map(|found| (found.inode, found.kind)), before);
                if before.is_some() {
                    model.insert(bytes.clone(), (inode, EntryType::Symlink));
                }
            }
            110..119 => {
                let found = directory.lookup(&mut blocks, bytes).unwrap();
                assert_eq!(found.map(|found| (found.inode, found.kind)), before);
            }
            _ => {
                directory.replace_parent(&mut blocks, inode).unwrap();
                let parent = directory.lookup(&mut blocks, b"..").unwrap().unwrap();
                assert_eq!((parent.inode, parent.kind), (inode, EntryType::Directory));
                assert_eq!(directory.is_empty(&mut blocks).unwrap(), model.is_empty());
            }
        }
        if operation % 1000 == 999 {
            assert_reads_as(&directory, &mut blocks, &model, rng.random_range(1..2000));
        }
    }
    println!("{} blocks, {:?}", blocks.len_blocks(), check(&directory, &mut blocks).unwrap());
    for name in model.keys() {
        assert!(!directory.is_empty(&mut blocks).unwrap());
        assert!(directory.remove(&mut blocks, Name::new(name).unwrap()).unwrap().is_some());
    }
    assert!(directory.is_empty(&mut blocks).unwrap());
    assert_reads_as(&directory, &mut blocks, &Model::new(), 10);
}

fn pool(rng: &mut ChaCha8Rng, count: usize, lengths: std::ops::RangeInclusive<usize>) -> Vec<Vec<u8>> {
    (0..count).map(|_| random_name(rng, lengths.clone())).collect()
}

#[test]
fn indexed_directories_are_maps_of_names() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (block_bytes, lengths, count) in
        [(1024, 1..=20, 20_000), (1024, 200..=255, 3_000), (1024, 1..=255, 4_000), (4096, 1..=255, 8_000)]
    {
        let pool = pool(&mut rng, count, lengths);
        for version in [HashVersion::HalfMd4, HashVersion::Tea, HashVersion::Legacy] {
            run_against_model(new_directory(version), block_bytes, &pool, 40_000, rng.random());
        }
    }
}

#[test]
fn directories_without_index_types_or_checksums_are_maps_of_names() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let pool = pool(&mut rng, 1_000, 1..=100);
    let full = new_directory(HashVersion::HalfMd4);
    let linear = Directory { dir_index: false, ..full };
    run_against_model(linear, 1024, &pool, 10_000, rng.random());
    let mut plain = full;
    plain.format.checksum = None;
    run_against_model(plain, 1024, &pool, 20_000, rng.random());
    run_against_model(Directory { dir_index: false, ..plain }, 4096, &pool, 10_000, rng.random());
    // The index's flag of a filesystem that has none any more is dropped, and the rest is read as entries.
    let mut blocks = empty(&plain, 1024);
    for (number, name) in pool.iter().enumerate() {
        insert(&mut plain, &mut blocks, name, number as u32 + 11);
    }
    assert!(plain.indexed);
    plain.dir_index = false;
    let before = check(&plain, &mut blocks).unwrap().entries;
    assert_eq!(insert(&mut plain, &mut blocks, b"another one", 11), Insertion::Done { indexed: false });
    assert_eq!(check(&plain, &mut blocks).unwrap().entries, before + 1);
}

#[test]
fn colliding_names_go_on_over_blocks_and_are_read_together() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for signed in [true, false] {
        let mut directory = new_directory(HashVersion::Tea);
        directory.hashing.signed = signed;
        let mut names = pool(&mut rng, 300, 1..=255);
        let groups = [(900, 15), (200, 8), (40, 4), (3, 1)].map(|(count, blocks)| {
            let group = names_with_one_tea_hash(&mut rng, count, blocks);
            let hash = directory.hashing.hash(&group[0]);
            assert!(group.iter().all(|name| directory.hashing.hash(name) == hash));
            names.extend_from_slice(&group);
            group
        });
        names.shuffle(&mut rng);
        let mut blocks = empty(&directory, 1024);
        let mut model = Model::new();
        for (number, name) in names.iter().enumerate() {
            insert(&mut directory, &mut blocks, name, number as u32 + 11);
            model.insert(name.clone(), (InodeNumber(number as u32 + 11), EntryType::File));
        }
        let summary = check(&directory, &mut blocks).unwrap();
        println!("{summary:?}");
        assert!(summary.continued > 200 && summary.index_blocks > 2);
        for wanted in [1, 2, 7, 10_000] {
            assert_reads_as(&directory, &mut blocks, &model, wanted);
        }
        let mut after = Cookie::START;
        let mut largest = 0;
        loop {
            let batch = directory.read(&mut blocks, after, 1).unwrap();
            let Some(first) = batch.entries.first() else { break };
            assert!(batch.entries.iter().all(|entry| entry.cookie == first.cookie));
            for group in &groups {
                let here = batch.entries.iter().filter(|entry| group.contains(&entry.name)).count();
                assert!(here == 0 || here == group.len(), "names at one position were cut apart");
                largest = largest.max(here);
            }
            after = first.cookie;
        }
        assert_eq!(largest, 900);
        let fresh = Directory { indexed: false, ..directory };
        run_against_model(fresh, 1024, &names, 30_000, 5);
        run_against_model(fresh, 4096, &names, 10_000, 6);
    }
}

#[test]
fn a_reader_goes_on_where_it_was_while_names_come_and_go() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for dir_index in [true, false] {
        let mut directory = Directory { dir_index, ..new_directory(HashVersion::HalfMd4) };
        let mut blocks = empty(&directory, 1024);
        let names = pool(&mut rng, 900, 4..=40);
        let (stays, rest) = names.split_at(20);
        for (number, name) in stays.iter().enumerate() {
            insert(&mut directory, &mut blocks, name, number as u32 + 11);
        }
        assert_eq!(blocks.len_blocks(), 1);
        // The directory gets its index, and grows, while it is read.
        let mut seen = Vec::new();
        let mut after = Cookie::START;
        let mut rest = rest.iter();
        loop {
            let batch = directory.read(&mut blocks, after, 3).unwrap();
            for entry in &batch.entries {
                after = entry.cookie;
                seen.push(entry.name.clone());
                if !stays.contains(&entry.name) && entry.cookie > Cookie::DOT_DOT {
                    directory.remove(&mut blocks, Name::new(&entry.name).unwrap()).unwrap();
                }
            }
            for name in rest.by_ref().take(100) {
                insert(&mut directory, &mut blocks, name, 500);
            }
            if batch.at_end {
                break;
            }
        }
        assert_eq!(directory.indexed, dir_index);
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count, "a name was read twice");
        assert!(stays.iter().all(|name| seen.contains(name)), "a name was left out");
    }
}

#[test]
fn a_directory_of_small_blocks_takes_hundreds_of_thousands_of_names() {
    let mut directory = new_directory(HashVersion::HalfMd4);
    let mut blocks = empty(&directory, 1024);
    let mut model = Model::new();
    for number in 0..220_000_u32 {
        let name = format!("f{number}").into_bytes();
        insert(&mut directory, &mut blocks, &name, number + 11);
        model.insert(name, (InodeNumber(number + 11), EntryType::File));
    }
    let summary = check(&directory, &mut blocks).unwrap();
    println!("{summary:?}");
    assert!(summary.index_blocks > 2, "two levels");
    assert_reads_as(&directory, &mut blocks, &model, 5000);
}

#[test]
fn a_full_index_is_told_and_leaves_the_directory_as_it_was() {
    let mut directory = new_directory(HashVersion::HalfMd4);
    let mut blocks = empty(&directory, 1024);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut count = 0;
    loop {
        let name = random_name(&mut rng, 250..=255);
        let edits = blocks.edits;
        match directory.insert(&mut blocks, Name::new(&name).unwrap(), InodeNumber(11), EntryType::File) {
            Ok(Insertion::Done { indexed }) => directory.indexed = indexed,
            Err(Stop::TooLarge(_)) => {
                assert_eq!(blocks.edits, edits);
                break;
            }
            other => panic!("{other:?}"),
        }
        count += 1;
    }
    println!("{count} names in {} blocks", blocks.len_blocks());
    assert!(count > 10_000);
    assert_eq!(check(&directory, &mut blocks).unwrap().entries, count);
    // There is room where something leaves.
    let first = directory.read(&mut blocks, Cookie::DOT_DOT, 1).unwrap().entries.remove(0);
    directory.remove(&mut blocks, Name::new(&first.name).unwrap()).unwrap();
    insert(&mut directory, &mut blocks, &first.name, 12);
}

#[test]
fn a_stop_at_any_block_leaves_a_rerun_to_do_the_whole() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let mut directory = new_directory(HashVersion::HalfMd4);
    let mut blocks = empty(&directory, 1024);
    let names = pool(&mut rng, 1_500, 100..=255);
    let mut model = Model::new();
    let mut stops = 0;
    for (number, name) in names.iter().enumerate() {
        let inode = InodeNumber(number as u32 + 11);
        let known = Name::new(name).unwrap();
        // As an executor does: a private copy of the edits, dropped at a stop.
        for calls in 0.. {
            let mut edits = blocks.clone();
            edits.calls_left = Some(calls * rng.random_range(1..4));
            match directory.insert(&mut edits, known, inode, EntryType::File) {
                Ok(Insertion::Done { indexed }) => {
                    directory.indexed = indexed;
                    model.insert(name.clone(), (inode, EntryType::File));
                }
                Ok(Insertion::Exists(_)) => {}
                Err(Stop::Missing(_)) => {
                    stops += 1;
                    continue;
                }
                Err(stop) => panic!("{stop}"),
            }
            blocks = MemoryBlocks { calls_left: None, ..edits };
            break;
        }
        if number % 100 == 99 {
            assert_reads_as(&directory, &mut blocks, &model, 50);
        }
    }
    println!("{stops} stops");
    assert!(stops > 5_000);
    assert_reads_as(&directory, &mut blocks, &model, 1);
}

#[test]
fn flipped_bits_neither_panic_nor_loop() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for (round, checksums) in [true, false].into_iter().enumerate() {
        let mut directory = new_directory(HashVersion::HalfMd4);
        if !checksums {
            directory.format.checksum = None;
        }
        let names = pool(&mut rng, 3_000, 100..=255);
        let mut sound = empty(&directory, 1024);
        let one_block = sound.clone();
        for (number, name) in names.iter().enumerate() {
            insert(&mut directory, &mut sound, name, number as u32 + 11);
        }
        assert!(check(&directory, &mut sound).unwrap().index_blocks > 1);
        let mut stops = 0;
        for case in 0..3_000 {
            let linear = case % 4 == 3;
            let mut blocks = if linear { one_block.clone() } else { sound.clone() };
            for _ in 0..rng.random_range(1..6) {
                // Mostly in the index, the rest anywhere.
                let at = if rng.random() { 0 } else { rng.random_range(0..blocks.blocks.len()) };
                let byte = if rng.random() { rng.random_range(0..64) } else { rng.random_range(0..1024) };
                blocks.blocks[at][byte] ^= 1 << rng.random_range(0..8);
            }
            let directory = Directory { indexed: directory.indexed && !linear, ..directory };
            // More calls than any sound operation makes: an endless loop would not come back from a stop.
            blocks.calls_left = Some(1_000_000);
            let name = names.choose(&mut rng).unwrap();
            let new = random_name(&mut rng, 200..=255);
            let inode = InodeNumber(11);
            let results = [
                directory.lookup(&mut blocks, name).err(),
                directory.read(&mut blocks, Cookie(rng.random::<u64>() >> 1), 100).err(),
                directory.is_empty(&mut blocks).err(),
                check(&directory, &mut blocks).err(),
                directory.remove(&mut blocks, Name::new(name).unwrap()).err(),
                directory.insert(&mut blocks, Name::new(&new).unwrap(), inode, EntryType::File).err(),
                directory.replace(&mut blocks, Name::new(&new).unwrap(), inode, EntryType::Fifo).err(),
                directory.replace_parent(&mut blocks, inode).err(),
            ];
            for stop in results.into_iter().flatten() {
                assert!(matches!(stop, Stop::Corrupt(_)), "{stop}");
                stops += 1;
            }
        }
        println!("round {round}: {stops} findings");
        assert!(stops > 1_000);
    }
}
