//! Cases that went wrong once, or nearly: files on their way out, full filesystems, what cannot be in an inode, what several
//! tasks do at the worst moment.

use std::fs;
use std::process::Command;
use std::rc::Rc;

use block_device::RamDevice;
use bytes::Bytes;
use filesystem::InodeNumber;
use filesystem::engine::{Failure, Filesystem, Place, Rename};
use filesystem::store::Refusal;
use filesystem::units::ROOT_INODE;

use crate::device::SlowDevice;
use crate::{Mounted, NOW, SHAPES, block_on, close, create, expect_clean, image, open, options};

const USUAL: &[&str] = SHAPES[0];
const SMALL_BLOCKS: &[&str] = SHAPES[1];
const INDIRECT: &[&str] = SHAPES[3];

fn filled(length: usize, byte: u8) -> Bytes {
    Bytes::from(vec![byte; length])
}

async fn write(mounted: &Mounted, file: InodeNumber, offset: u64, data: Bytes) {
    let length = data.len();
    assert_eq!(mounted.write(file, offset, data, NOW).await.expect("room").value, length);
}

async fn remove(mounted: &Mounted, name: &str) {
    let place = Place { directory: ROOT_INODE, name: name.as_bytes() };
    mounted.run(|handle| handle.remove(place, false, NOW)).await.expect("it was there");
}

async fn expect_filled(mounted: &Mounted, file: InodeNumber, offset: u64, length: usize, byte: u8) {
    let read = mounted.read(file, offset, length).await.expect("readable").value;
    assert_eq!(read.len(), length, "from {offset}");
    assert!(read.iter().all(|read| *read == byte), "{offset}: not all of {length} bytes are {byte}");
}

#[test]
fn a_file_on_its_way_out_cannot_be_held() {
    block_on(async {
        let opened = open(image(USUAL, 24 << 20), 1, 1 << 20).await;
        let mounted = &opened.0;
        let file = create(mounted, "a").await;
        write(mounted, file, 0, filled(5000, 1)).await;
        mounted.fsync(file).await.expect("durable");
        assert!(mounted.hold(file));
        remove(mounted, "a").await;
        mounted.let_go(file);
        assert!(!mounted.hold(file));
        assert_eq!(mounted.write(file, 0, filled(9, 9), NOW).await, Err(Failure::Refused(Refusal::Stale)));
        while mounted.run(|handle| handle.stat(file)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        let next = create(mounted, "b").await;
        assert_eq!(next, file, "the same number again");
        assert!(mounted.hold(next));
        assert!(mounted.read(next, 0, 100).await.expect("readable").value.is_empty());
        mounted.let_go(next);
        expect_clean(&close(opened).await, "after a late hold");
    });
}

#[test]
fn what_nobody_has_open_goes_with_its_name() {
    block_on(async {
        let opened = open(image(USUAL, 24 << 20), 14, 4 << 20).await;
        let mounted = &opened.0;
        let before = mounted.statistics();
        for name in ["a", "b"] {
            let file = create(mounted, name).await;
            write(mounted, file, 0, filled(300_000, 1)).await;
            mounted.fsync(file).await.expect("durable");
            write(mounted, file, 300_000, filled(300_000, 2)).await;
        }
        let place = |name| Place { directory: ROOT_INODE, name };
        let replaced = mounted.run(|handle| handle.rename(place(b"a"), place(b"b"), Rename::Replace, NOW)).await;
        assert!(replaced.expect("both are there").value.is_some_and(|(_, without_name)| without_name));
        remove(mounted, "b").await;
        assert_eq!(mounted.run(|handle| handle.orphans()).await.expect("readable").value, []);
        let after = mounted.statistics();
        assert_eq!((after.files_free, after.blocks_free), (before.files_free, before.blocks_free));
        expect_clean(&close(opened).await, "after removals");
    });
}

#[test]
fn what_comes_between_stopping_and_closing_is_written() {
    for size in [5000, 1 << 20] {
        block_on(async {
            let (mounted, driver) = open(image(USUAL, 24 << 20), 2, 4 << 20).await;
            let file = create(&mounted, "a").await;
            mounted.stop();
            driver.await.expect("it ends");
            write(&mounted, file, 0, filled(size, 7)).await;
            mounted.close().await.expect("it closes");
            let image = Rc::into_inner(mounted).expect("nobody else").into_device().into_inner();
            let opened = open(image, 2, 4 << 20).await;
            expect_filled(&opened.0, file, 0, size, 7).await;
            expect_clean(&close(opened).await, "after a late write");
        });
    }
}

#[test]
fn syncing_what_is_no_file_harms_nobody() {
    block_on(async {
        let opened = open(image(USUAL, 24 << 20), 3, 1 << 20).await;
        let stale = Err(Failure::Refused(Refusal::Stale));
        assert_eq!(opened.0.fsync(InodeNumber(0x7fff_ffff)).await, stale);
        assert_eq!(opened.0.fsync(InodeNumber(4000)).await, stale);
        create(&opened.0, "b").await;
        close(opened).await;
    });
}

#[test]
fn data_in_allocated_blocks_is_durable_when_only_a_leaf_of_the_map_changed() {
    block_on(async {
        let opened = open(image(USUAL, 24 << 20), 4, 4 << 20).await;
        let mounted = &opened.0;
        let file = create(mounted, "a").await;
        mounted.allocate(file, 0..400 * 4096, false, NOW).await.expect("room");
        for at in 0..20 {
            write(mounted, file, at * 8192, filled(4096, 1)).await;
        }
        mounted.fsync(file).await.expect("durable");
        let written = mounted.write(file, 200 * 4096, filled(60 * 4096, 9), NOW).await.expect("room");
        // The times of the inode are durable already.
        mounted.durable(written.transaction.expect("it changes the inode")).await.expect("durable");
        mounted.fsync(file).await.expect("durable");
        let crashed = open(mounted.device().snapshot(), 4, 4 << 20).await;
        expect_filled(&crashed.0, file, 200 * 4096, 60 * 4096, 9).await;
        close(crashed).await;
    });
}

#[test]
fn what_was_taken_in_is_written_although_nothing_else_has_room() {
    block_on(async {
        // Parts of an allocated range, which need nodes of the map.
        let opened = open(image(SMALL_BLOCKS, 9 << 20), 5, 4 << 20).await;
        let mounted = &opened.0;
        let (file, rest) = (create(mounted, "a").await, create(mounted, "b").await);
        mounted.allocate(file, 0..1000 * 1024, false, NOW).await.expect("room");
        let mut at = 0;
        while mounted.allocate(rest, at..at + 1024, false, NOW).await.is_ok() {
            at += 1024;
        }
        for at in 0..400 {
            write(mounted, file, at * 2048, filled(1024, 1)).await;
        }
        mounted.fsync(file).await.expect("an allocated range has its room");
        expect_clean(&close(opened).await, "after a full filesystem");
        // And blocks with holes between them.
        let opened = open(image(SMALL_BLOCKS, 9 << 20), 6, 16 << 20).await;
        let mounted = &opened.0;
        let file = create(mounted, "a").await;
        let mut at = 0;
        while mounted.run(|handle| Ok(handle.available_blocks())).await.expect("counted").value >= 3
            && mounted.write(file, at * 2048, filled(1024, 1), NOW).await.is_ok()
        {
            at += 1;
        }
        mounted.fsync(file).await.expect("what was taken in has its room");
        expect_clean(&close(opened).await, "after a full filesystem");
    });
}

#[test]
fn ranges_that_reach_beyond_everything_are_cut_to_the_file() {
    block_on(async {
        let opened = open(image(USUAL, 24 << 20), 7, 1 << 20).await;
        let mounted = &opened.0;
        let file = create(mounted, "a").await;
        write(mounted, file, 0, filled(9000, 1)).await;
        mounted.punch(file, (1 << 60) + 5..(1 << 60) + 10, NOW).await.expect("nothing is there");
        expect_filled(mounted, file, 0, 9000, 1).await;
        mounted.punch(file, 10..u64::MAX, NOW).await.expect("it can be punched");
        expect_filled(mounted, file, 10, 8990, 0).await;
        let too_large = Err(Failure::TooLarge("the file"));
        assert_eq!(mounted.write(file, u64::MAX - 3, filled(9, 1), NOW).await, too_large);
        assert_eq!(mounted.truncate(file, u64::MAX, NOW).await, Err(Failure::TooLarge("the file")));
        assert_eq!(mounted.allocate(file, 0..u64::MAX, true, NOW).await, Err(Failure::TooLarge("the file")));
        expect_clean(&close(opened).await, "after odd ranges");
    });
}

/// A closed filesystem with a file of 9000 bytes, changed by debugfs; opened again.
async fn changed(shape: &[&str], commands: &[&str]) -> ((Rc<Mounted>, tokio::task::JoinHandle<()>), InodeNumber) {
    let opened = open(image(shape, 24 << 20), 8, 1 << 20).await;
    let file = create(&opened.0, "a").await;
    write(&opened.0, file, 0, filled(9000, 1)).await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    fs::write(&path, close(opened).await.to_vec()).expect("written");
    for command in commands {
        let status = Command::new("/sbin/debugfs").args(["-w", "-R", command]).arg(&path).output();
        assert!(status.expect("debugfs runs").status.success());
    }
    (open(RamDevice::from_image(&fs::read(&path).expect("read")), 8, 1 << 20).await, file)
}

#[test]
fn a_length_that_cannot_be_is_named() {
    for (shape, size) in [(USUAL, "0x7000000000000000"), (INDIRECT, "0x10000000000")] {
        block_on(async {
            let ((mounted, _driver), file) = changed(shape, &[&format!("sif /a size {size}")]).await;
            let failure = mounted.read(file, 1 << 39, 4096).await.expect_err("it is no file");
            assert!(matches!(&failure, Failure::Corrupt(_)), "{failure}");
            assert!(failure.to_string().contains("longer than its map"), "{failure}");
            assert!(matches!(mounted.write(file, 0, filled(1, 1), NOW).await, Err(Failure::Corrupt(_))));
        });
    }
}

#[test]
fn a_file_that_maps_the_filesystem_itself_is_not_written() {
    block_on(async {
        let ((mounted, driver), file) = changed(INDIRECT, &["sif /a block[0] 1", "sif /a block[1] 2"]).await;
        let before = mounted.device().snapshot().to_vec();
        write(&mounted, file, 0, filled(2048, 1)).await;
        let failure = mounted.fsync(file).await.expect_err("the superblock is no data");
        assert!(failure.to_string().contains("the filesystem itself"), "{failure}");
        driver.await.expect("it ends without a panic");
        assert!(mounted.close().await.is_err());
        let after = mounted.device().snapshot().to_vec();
        assert_eq!(before[2048..3072], after[2048..3072], "the descriptors are untouched");
    });
}

#[test]
fn syncing_everything_waits_for_what_others_are_writing() {
    for seed in 0..4 {
        block_on(async {
            let opened = open(image(USUAL, 96 << 20), seed, 64 << 20).await;
            let mounted = &opened.0;
            let (one, two) = (create(mounted, "one").await, create(mounted, "two").await);
            write(mounted, one, 0, filled(16 << 20, 1)).await;
            write(mounted, two, 0, filled(15 << 20, 2)).await;
            let other = Rc::clone(mounted);
            let syncing = tokio::task::spawn_local(async move { other.fsync(two).await });
            mounted.sync().await.expect("durable");
            let crashed = open(mounted.device().snapshot(), seed, 4 << 20).await;
            for at in 0..15 {
                expect_filled(&crashed.0, two, at << 20, 1 << 20, 2).await;
            }
            syncing.await.expect("it ends").expect("durable");
        });
    }
}

#[test]
fn what_is_overwritten_while_it_is_synced_is_synced_all_the_same() {
    for turns in 0..40 {
        block_on(async {
            let opened = open(image(SMALL_BLOCKS, 24 << 20), turns, 4 << 20).await;
            let mounted = &opened.0;
            let file = create(mounted, "a").await;
            write(mounted, file, 0, filled(300 << 10, 1)).await;
            let other = Rc::clone(mounted);
            let syncing = tokio::task::spawn_local(async move { other.fsync(file).await });
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            // Part of what is being synced; before its place was chosen, after that, or when it is there.
            write(mounted, file, 100 << 10, filled(20 << 10, 2)).await;
            syncing.await.expect("it ends").expect("durable");
            let crashed = open(mounted.device().snapshot(), turns, 4 << 20).await;
            let read = crashed.0.read(file, 0, 300 << 10).await.expect("readable").value;
            assert_eq!(read.len(), 300 << 10);
            assert!(read.iter().all(|byte| matches!(byte, 1 | 2)), "after {turns} turns synced data is gone");
            close(crashed).await;
        });
    }
}

#[test]
fn a_volume_that_fails_makes_nobody_wait_forever() {
    block_on(async {
        let device = SlowDevice::new(image(USUAL, 24 << 20), 9);
        let (mounted, _) = Filesystem::open(device, &options(64 << 10)).await.expect("it opens");
        let mounted = Rc::new(mounted);
        let driver = Rc::clone(&mounted);
        let driver = tokio::task::spawn_local(async move { driver.drive().await });
        let file = create(&mounted, "f").await;
        write(&mounted, file, 0, filled(60 << 10, 1)).await;
        mounted.device().fail();
        assert!(matches!(mounted.fsync(file).await, Err(Failure::ReadOnly(_))));
        assert!(matches!(mounted.write(file, 0, filled(10 << 10, 1), NOW).await, Err(Failure::ReadOnly(_))));
        driver.await.expect("it ends");
    });
}

#[test]
fn much_that_goes_through_the_log_goes_in_parts() {
    block_on(async {
        let opened = open(image(SMALL_BLOCKS, 24 << 20), 10, 4 << 20).await;
        let mounted = &opened.0;
        let file = create(mounted, "a").await;
        write(mounted, file, 0, filled(600 << 10, 1)).await;
        mounted.fsync(file).await.expect("durable");
        for at in 0..400 {
            mounted.punch(file, at * 1024 + 10..at * 1024 + 20, NOW).await.expect("punched");
        }
        write(mounted, file, 0, filled(600 << 10, 2)).await;
        mounted.fsync(file).await.expect("durable");
        expect_filled(mounted, file, 0, 600 << 10, 2).await;
        expect_clean(&close(opened).await, "after many blocks in the log");
    });
}

#[test]
fn one_operation_cannot_wait_for_itself() {
    block_on(async {
        let opened = open(image(SMALL_BLOCKS, 64 << 20), 11, 1 << 20).await;
        let mounted = &opened.0;
        let file = create(mounted, "a").await;
        for at in 0..6000 {
            write(mounted, file, at * 2048, filled(1024, 9)).await;
        }
        mounted.fsync(file).await.expect("durable");
        let data = filled(10, 1);
        let refused = Err(Failure::Refused(Refusal::NotSupported));
        let cut_and_written = mounted.run(|handle| {
            handle.truncate(file, 0, NOW)?;
            handle.write(file, 0, &data, NOW)
        });
        assert_eq!(cut_and_written.await.map(|done| done.value), refused);
        let written_and_punched = mounted.run(|handle| {
            handle.write(file, 0, &data, NOW)?;
            handle.punch(file, 0..4096, NOW)
        });
        assert_eq!(written_and_punched.await.map(|done| done.value), Err(Failure::Refused(Refusal::NotSupported)));
        expect_filled(mounted, file, 0, 1024, 9).await;
        close(opened).await;
    });
}

#[test]
fn an_open_file_without_a_name_that_was_being_cut_is_cut_after_a_crash() {
    block_on(async {
        let opened = open(image(SMALL_BLOCKS, 64 << 20), 12, 16 << 20).await;
        let mounted = &opened.0;
        let file = create(mounted, "a").await;
        for at in 0..6000 {
            write(mounted, file, at * 2048, filled(1024, 9)).await;
        }
        mounted.fsync(file).await.expect("durable");
        assert!(mounted.hold(file));
        remove(mounted, "a").await;
        let cut = mounted.truncate(file, 1000, NOW).await.expect("it can be cut");
        mounted.durable(cut.transaction.expect("a change")).await.expect("durable");
        let device = SlowDevice::new(mounted.device().snapshot(), 12);
        let (crashed, _) = Filesystem::open(device, &options(1 << 20)).await.expect("it opens");
        crashed.reclaim_orphans(&[file].into()).await.expect("a sound list");
        assert!(crashed.hold(file));
        crashed.truncate(file, 12_000_000, NOW).await.expect("it can grow");
        expect_filled(&crashed, file, 0, 1000, 9).await;
        for at in 1..12 {
            expect_filled(&crashed, file, at * 1_000_000, 1_000_000, 0).await;
        }
    });
}

#[test]
fn blocks_are_counted_when_allocated_ones_go_through_the_log() {
    for (shape, block) in [(SMALL_BLOCKS, 1024), (USUAL, 4096)] {
        block_on(async {
            let opened = open(image(shape, 24 << 20), 13, 4 << 20).await;
            let mounted = &opened.0;
            let file = create(mounted, "a").await;
            write(mounted, file, 0, filled(400 * block as usize, 1)).await;
            mounted.fsync(file).await.expect("durable");
            for at in [200, 202, 204, 206, 208, 210] {
                mounted.punch(file, at * block + 10..at * block + 20, NOW).await.expect("punched");
            }
            mounted.zero(file, 0..400 * block, false, NOW).await.expect("zeroed");
            for at in 0..6 {
                write(mounted, file, (200 + at * 2) * block, filled(block as usize, 5)).await;
            }
            write(mounted, file, 0, filled(50 * block as usize, 5)).await;
            mounted.fsync(file).await.expect("durable");
            expect_clean(&close(opened).await, "after converting blocks through the log");
        });
    }
}

/// Lets go of files in the given order; after each the list has the others in theirs.
async fn let_go_one_by_one(mounted: &Filesystem<SlowDevice>, list: &mut Vec<InodeNumber>, order: &[InodeNumber]) {
    for file in order {
        mounted.let_go(*file);
        while mounted.run(|handle| handle.stat(*file)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        list.retain(|other| other != file);
        assert_eq!(&mounted.run(|handle| handle.orphans()).await.expect("a sound list").value, list);
    }
}

#[test]
fn files_without_names_leave_the_list_in_any_order_before_and_after_a_crash() {
    block_on(async {
        let opened = open(image(SMALL_BLOCKS, 64 << 20), 13, 16 << 20).await;
        let mounted = &opened.0;
        let mut list = Vec::new();
        for number in 0..60 {
            let name = format!("file-{number}");
            let file = create(mounted, &name).await;
            write(mounted, file, 0, filled(3000, 7)).await;
            assert!(mounted.hold(file));
            remove(mounted, &name).await;
            list.insert(0, file);
        }
        let random = |count: usize, seed: usize| (0..count).map(move |at| (at * 7 + seed) % count);
        let order: Vec<_> = random(60, 3).map(|at| list[at]).take(25).collect();
        let_go_one_by_one(mounted, &mut list, &order).await;
        // Its first, its last, and a neighbour of each.
        let ends = [list[0], list[34], list[1], list[33]];
        let_go_one_by_one(mounted, &mut list, &ends).await;
        mounted.sync().await.expect("durable");
        if let Some(newest) = mounted.newest_change() {
            mounted.durable(newest).await.expect("durable");
        }
        let device = SlowDevice::new(mounted.device().snapshot(), 13);
        let (crashed, _) = Filesystem::open(device, &options(1 << 20)).await.expect("it opens");
        let kept = list.iter().copied().skip(2).collect();
        crashed.reclaim_orphans(&kept).await.expect("a sound list");
        list.drain(..2);
        let crashed = Rc::new(crashed);
        let driven = Rc::clone(&crashed);
        let driver = tokio::task::spawn_local(async move { driven.drive().await });
        assert!(list.iter().all(|file| crashed.hold(*file)));
        let order: Vec<_> = random(29, 5).map(|at| list[at]).collect();
        let_go_one_by_one(&crashed, &mut list, &order).await;
        assert!(list.is_empty());
        expect_clean(&close((crashed, driver)).await, "after files without names");
    });
}
