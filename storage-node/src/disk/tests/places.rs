//! Creating, scanning and removing stores in directories and on raw devices.

use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use super::super::layout::SLOT_OFFSETS;
use super::super::rehome_stores;
use super::super::superblock::SLOT_BYTES;
use super::*;

const SIZE: u64 = 8 << 20;

/// The only refusal of a scan, as text.
fn refusal_of(place: &Place) -> String {
    let results = place.pool.scan(Some(ClusterId(1)));
    assert_eq!(results.len(), 1, "{results:?}");
    match &results[0] {
        Err(error @ StoreError::Refused { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

fn patch(place: &Place, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(&place.found.path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Replaces a value in both slots and seals them again.
fn reseal(place: &Place, at: usize, bytes: &[u8]) {
    for slot in SLOT_OFFSETS {
        let file = OpenOptions::new().read(true).write(true).open(&place.found.path).unwrap();
        let mut content = [0; 4096];
        file.read_exact_at(&mut content, slot).unwrap();
        content[at..at + bytes.len()].copy_from_slice(bytes);
        content[16..20].fill(0);
        let crc = crc32fast::hash(&content);
        content[16..20].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&content, slot).unwrap();
    }
}

#[test]
fn what_was_created_is_found_and_what_was_removed_is_gone() {
    let place = Place::new(SIZE);
    let found = place.rescan();
    assert_eq!((found.volume, found.disk_id, found.size_bytes), (VolumeId(2), DiskId(3), SIZE));
    assert!(found.data_offset.is_multiple_of(4 << 20));
    assert_eq!(fs::metadata(&found.path).unwrap().len(), found.data_offset + SIZE);
    let again = place.pool.create(&spec(SIZE), &|_, _| {}).unwrap();
    assert_eq!(again.disk_id, found.disk_id, "a repeated creation gives the same store");
    let other = StoreSpec { disk_id: DiskId(4), ..spec(SIZE) };
    assert!(place.pool.create(&other, &|_, _| {}).unwrap_err().to_string().contains("already here"));
    place.pool.remove(&found).unwrap();
    place.pool.remove(&found).unwrap();
    assert!(place.pool.scan(None).is_empty());
}

#[test]
fn sizes_that_no_volume_can_have_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let pool = StorePool::new(&directory.path().join("made/on/demand"), &[]).unwrap();
    for size in [0, 4095, 5000, (16 << 40) + 4096, u64::MAX] {
        assert!(matches!(pool.create(&spec(size), &|_, _| {}), Err(StoreError::Refused { .. })), "{size}");
    }
    assert!(pool.scan(None).is_empty());
}

#[test]
fn a_large_sparse_store_is_made_quickly_and_takes_little_space() {
    let directory = tempfile::tempdir().unwrap();
    let pool = StorePool::new(directory.path(), &[]).unwrap();
    let started = Instant::now();
    let found = pool.create(&spec(100 << 30), &|_, _| {}).unwrap();
    println!("100 GiB took {:?}", started.elapsed());
    let metadata = fs::metadata(&found.path).unwrap();
    let taken = metadata.blocks() * 512;
    // Log, bitmaps and indexes are really written; checksums and data are holes.
    assert!((8 << 20..32 << 20).contains(&taken), "{taken}");
    assert_eq!(metadata.len(), found.data_offset + (100 << 30));
}

#[test]
fn preallocation_writes_the_data_area_and_tells_its_progress() {
    let directory = tempfile::tempdir().unwrap();
    let pool = StorePool::new(directory.path(), &[]).unwrap();
    let last = Cell::new((0, 0));
    let found = pool
        .create(&StoreSpec { preallocate: true, ..spec(SIZE) }, &|done, total| {
            assert!(done >= last.get().0 && done <= total);
            last.set((done, total));
        })
        .unwrap();
    assert!(last.get().0 == last.get().1 && last.get().0 >= SIZE);
    on_shard(async {
        let client = Client::open(&found).await;
        let all = BlockRange::new(0, SIZE / 4096);
        assert_eq!(client.store.allocation(all).unwrap(), [(all, false)], "nothing is left unwritten");
        assert_eq!(client.read(0, SIZE / 4096).await, blocks(0, SIZE as usize / 4096));
    });
}

#[test]
fn an_interrupted_creation_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let pool = StorePool::new(directory.path(), &[]).unwrap();
    let wanted = StoreSpec { preallocate: true, ..spec(SIZE) };
    let during = Cell::new((9, 9));
    let half = |done: u64, total: u64| {
        if done > total / 2 {
            during.set((pool.scan(None).len(), fs::read_dir(directory.path()).unwrap().count()));
            std::panic::resume_unwind(Box::new("interrupted"));
        }
    };
    assert!(catch_unwind(AssertUnwindSafe(|| pool.create(&wanted, &half))).is_err());
    assert_eq!(during.get(), (0, 1), "while a store is being made, a scan neither lists nor removes it");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    // A process that died cannot remove its file; the next scan or creation does.
    let leftover = directory.path().join(format!("{}.tandem.creating", VolumeId(9)));
    fs::write(&leftover, [1; 8192]).unwrap();
    assert!(pool.scan(None).is_empty());
    assert!(!leftover.exists());
    let leftover = directory.path().join(format!("{}.tandem.creating", VolumeId(2)));
    fs::write(&leftover, [1; 8192]).unwrap();
    pool.create(&wanted, &|_, _| {}).unwrap();
    assert!(!leftover.exists());
}

#[test]
fn foreign_damaged_and_truncated_files_are_refused() {
    let place = Place::new(SIZE);
    patch(&place, SLOT_OFFSETS[0], &[0x55; 4096]);
    assert_eq!(place.rescan().volume, VolumeId(2), "one slot is enough");
    patch(&place, SLOT_OFFSETS[1] + 100, &[0x55]);
    assert!(refusal_of(&place).contains("no superblock"));
    patch(&place, SLOT_OFFSETS[1], &[0x55; 4096]);
    assert!(refusal_of(&place).contains("not a store of Tandem"));

    let place = Place::new(SIZE);
    let full = place.found.data_offset + SIZE;
    for length in [full - 4096, 600 << 10, 4096] {
        OpenOptions::new().write(true).open(&place.found.path).unwrap().set_len(length).unwrap();
        let text = refusal_of(&place);
        assert!(text.contains("truncated") && text.contains(&full.to_string()), "{text}");
        let refused = on_shard(Client::open_at(&place.found, BOOT)).err().unwrap();
        assert!(refused.to_string().contains("truncated"));
    }
    for length in [4095, 100, 0] {
        OpenOptions::new().write(true).open(&place.found.path).unwrap().set_len(length).unwrap();
        assert!(refusal_of(&place).contains("not a store of Tandem"));
    }
    fs::remove_file(&place.found.path).unwrap();
    fs::create_dir(&place.found.path).unwrap();
    assert!(matches!(place.pool.scan(None)[..], [Err(StoreError::Io { .. })]));
}

#[test]
fn newer_formats_unknown_features_and_other_clusters_are_refused() {
    let place = Place::new(SIZE);
    reseal(&place, 20, &3u32.to_le_bytes());
    assert!(refusal_of(&place).contains("upgrade this box"));
    assert!(on_shard(Client::open_at(&place.found, BOOT)).is_err());
    reseal(&place, 20, &2u32.to_le_bytes());
    place.rescan();
    reseal(&place, 24, &(1u64 << 40).to_le_bytes());
    assert!(refusal_of(&place).contains("0x10000000000"));
    reseal(&place, 24, &0u64.to_le_bytes());
    reseal(&place, 48, &5u128.to_le_bytes());
    assert!(refusal_of(&place).contains("belongs to cluster"));
    assert!(place.pool.scan(None)[0].is_ok());
}

#[test]
fn a_copied_store_file_is_refused() {
    let place = Place::new(SIZE);
    let copy = place.directory.path().join("copy.tandem");
    fs::copy(&place.found.path, &copy).unwrap();
    let results = place.pool.scan(None);
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    let text = results.iter().find_map(|r| r.as_ref().err()).unwrap().to_string();
    assert!(text.contains("must be named"), "{text}");
}

fn device_place(size: u64) -> Option<(TempDir, LoopDevice, StorePool)> {
    let directory = tempfile::tempdir().unwrap();
    let Some(device) = LoopDevice::new(directory.path(), size) else {
        skipped("a loop device needs root");
        return None;
    };
    let pool = StorePool::new(&directory.path().join("stores"), &[PathBuf::from(device.path())]).unwrap();
    Some((directory, device, pool))
}

#[test]
fn a_blank_device_takes_a_volume_and_gives_it_back() {
    let Some((_directory, device, pool)) = device_place(64 << 20) else { return };
    assert!(pool.scan(None).is_empty());
    // What an earlier use left behind the first MiB never shows in the volume.
    let raw = OpenOptions::new().read(true).write(true).open(device.path()).unwrap();
    raw.write_all_at(&vec![0xdd; 40 << 20], 4 << 20).unwrap();
    raw.sync_all().unwrap();
    let found = pool.create(&spec(SIZE), &|_, _| {}).unwrap();
    assert_eq!(found.path, device.path());
    assert_eq!(pool.create(&spec(SIZE), &|_, _| {}).unwrap().disk_id, found.disk_id);
    let other = StoreSpec { volume: VolumeId(8), disk_id: DiskId(8), ..spec(SIZE) };
    let in_directory = pool.create(&other, &|_, _| {}).unwrap();
    assert!(in_directory.path != found.path, "a device holds one volume");
    on_shard(async {
        let client = Client::open(&found).await;
        let count = SIZE / 4096;
        assert_eq!(client.read(0, count).await, blocks(0, count as usize));
        client.write(0, blocks(6, 1024)).await.unwrap();
        for (kind, start) in [(WriteKind::Discard, 10), (WriteKind::Zeroes, 50)] {
            let range = BlockRange::new(start, 20);
            client.run(erase(kind, range, true)).await.unwrap();
            assert_eq!(client.read(start, 20).await, blocks(0, 20), "{kind:?}");
        }
        assert_eq!(client.read(30, 20).await, blocks(6, 20));
        let all = BlockRange::new(0, count);
        assert_eq!(client.store.allocation(all).unwrap(), [(all, false)]);
        let ring = Ring::start(8).unwrap();
        assert!(Client::open_on(ring, &found, BOOT, Duration::ZERO).await.is_err(), "a device is open once");
        client.store.close(true).await.unwrap();
    });
    assert_eq!(pool.scan(None).iter().filter(|r| r.is_ok()).count(), 2);
    pool.remove(&found).unwrap();
    let left: Vec<_> = pool.scan(None).into_iter().map(|r| r.unwrap().volume).collect();
    assert_eq!(left, [VolumeId(8)]);
}

#[test]
fn an_interrupted_creation_leaves_a_device_blank() {
    let Some((_directory, device, pool)) = device_place(64 << 20) else { return };
    let interrupt = |done: u64, _| {
        if done > 0 {
            std::panic::resume_unwind(Box::new("interrupted"));
        }
    };
    assert!(catch_unwind(AssertUnwindSafe(|| pool.create(&spec(SIZE), &interrupt))).is_err());
    assert!(pool.scan(None).is_empty());
    assert_eq!(pool.create(&spec(SIZE), &|_, _| {}).unwrap().path, device.path());
}

#[test]
fn a_device_with_anything_in_its_first_mib_is_refused() {
    let Some((_directory, device, pool)) = device_place(64 << 20) else { return };
    let raw = OpenOptions::new().read(true).write(true).open(device.path()).unwrap();
    for offset in [0, 1080, (1 << 20) - 1] {
        raw.write_all_at(&vec![0; 1 << 20], 0).unwrap();
        raw.write_all_at(&[0x53], offset).unwrap();
        raw.sync_all().unwrap();
        let text = pool.create(&spec(SIZE), &|_, _| {}).unwrap_err().to_string();
        assert!(text.contains("not empty") && text.contains("file system"), "{text}");
        assert!(pool.scan(None)[0].as_ref().unwrap_err().to_string().contains("not a store"));
        let mut byte = [0];
        raw.read_exact_at(&mut byte, offset).unwrap();
        assert_eq!(byte, [0x53], "what is there is left as it is");
    }
}

#[test]
fn a_file_named_as_a_device_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("not-a-device");
    fs::write(&file, vec![0; 4 << 20]).unwrap();
    let pool = StorePool::new(&directory.path().join("stores"), &[file, PathBuf::from("/nonexistent")]).unwrap();
    let results = pool.scan(None);
    assert!(results[0].as_ref().unwrap_err().to_string().contains("not a block device"));
    assert!(matches!(results[1], Err(StoreError::Io { .. })));
}

#[test]
fn the_stores_of_a_recovered_cluster_are_rehomed_also_after_an_interruption() {
    let place = Place::new(SIZE);
    let [old, new, other] = [1, 2, 3].map(ClusterId);
    let before = fs::read(&place.found.path).unwrap();
    let rehomed = || rehome_stores(place.directory.path(), &[], old, new).unwrap();
    assert_eq!(rehome_stores(place.directory.path(), &[], other, new).unwrap(), 0, "of a third cluster");
    assert_eq!(fs::read(&place.found.path).unwrap(), before);
    assert_eq!(rehomed(), 1);
    let found = |cluster| place.pool.scan(Some(cluster)).remove(0);
    let what =
        |found: FoundStore| (found.volume, found.disk_id, found.last_in_sync, found.suspect, found.clean, found.boot);
    assert_eq!(what(found(new).unwrap()), what(place.found.clone()), "nothing else of it changes");
    assert!(found(old).is_err());
    for interrupted in SLOT_OFFSETS {
        patch(&place, interrupted, &before[interrupted as usize..][..SLOT_BYTES]);
        assert!(found(new).is_err() && found(old).is_err(), "half rehomed, it is nobody's: slot at {interrupted}");
        assert_eq!(rehomed(), 1);
        assert_eq!(what(found(new).unwrap()), what(place.found.clone()));
    }
    let nowhere = place.directory.path().join("nowhere");
    assert_eq!(rehome_stores(&nowhere, &[], old, new).unwrap(), 0, "a witness has no stores");
    on_shard(async { drop(Client::open(&found(new).unwrap()).await) });
}
