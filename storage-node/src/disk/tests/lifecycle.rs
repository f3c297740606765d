//! Opening and closing: what is recorded, what makes a store suspect, and who holds its lock.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use proto::ConfigVersion;
use replication::ScrubReport;

use super::super::layout::SLOT_OFFSETS;
use super::super::ring::Fault;
use super::*;

const SIZE: u64 = 8 << 20;

#[test]
fn opening_records_the_boot_and_not_clean_and_closing_records_clean() {
    let place = Place::new(SIZE);
    assert!(place.found.clean && !place.found.suspect);
    on_shard(async {
        let client = Client::open(&place.found).await;
        assert!(client.store.found().clean && !client.store.found().suspect);
        let during = place.rescan();
        assert_eq!((during.clean, during.boot, during.suspect), (false, BOOT, false));
        client.store.close(true).await.unwrap();
        let after = place.rescan();
        assert_eq!((after.clean, after.boot, after.suspect), (true, BOOT, false));
    });
}

#[test]
fn a_store_is_suspect_after_a_power_loss_but_not_after_a_crash_of_the_process() {
    let place = Place::new(SIZE);
    on_shard(async {
        Client::open(&place.found).await.store.close(false).await.unwrap();
        let same_boot = Client::open(&place.rescan()).await;
        assert!(!same_boot.store.found().suspect);
        same_boot.store.close(false).await.unwrap();
        let other_boot = Client::open_at(&place.rescan(), Boot(78)).await.unwrap();
        assert!(other_boot.store.found().suspect);
        assert_eq!(other_boot.store.found().boot, BOOT);
        // Still so after an orderly stop, until the copy is declared good.
        other_boot.store.close(true).await.unwrap();
        let again = Client::open_at(&place.rescan(), Boot(78)).await.unwrap();
        assert!(again.store.found().suspect);
        again.run(DiskOp::PersistState { last_in_sync: ConfigVersion(5), suspect: false }).await.unwrap();
        again.store.close(true).await.unwrap();
        let found = place.rescan();
        assert_eq!((found.suspect, found.last_in_sync), (false, ConfigVersion(5)));
        assert!(!Client::open_at(&found, Boot(79)).await.unwrap().store.found().suspect);
    });
}

#[test]
fn a_failed_disk_is_suspect_until_its_copy_is_declared_good() {
    let place = Place::new(SIZE);
    on_shard(async {
        let client = Client::open(&place.found).await;
        client.ring.inject(Fault::Flush(libc::EIO));
        client.run(DiskOp::Flush).await.unwrap_err();
        client.store.mark_failed().await.unwrap();
        client.store.close(false).await.unwrap();
        assert!(place.rescan().suspect);
        let client = Client::open(&place.rescan()).await;
        assert!(client.store.found().suspect);
        client.run(DiskOp::PersistState { last_in_sync: ConfigVersion(1), suspect: false }).await.unwrap();
        client.store.close(true).await.unwrap();
        assert!(!place.rescan().suspect);
    });
}

#[test]
fn a_state_under_way_when_the_disk_is_marked_does_not_take_the_mark_back() {
    let place = Place::new(SIZE);
    on_shard(async {
        let client = Client::open(&place.found).await;
        let good = client.start(DiskOp::PersistState { last_in_sync: ConfigVersion(1), suspect: false });
        client.ring.submit();
        tokio::task::yield_now().await;
        client.store.mark_failed().await.unwrap();
        good.await.unwrap().result.unwrap();
        client.store.close(false).await.unwrap();
        let found = place.rescan();
        assert_eq!((found.suspect, found.last_in_sync), (true, ConfigVersion(1)));
    });
}

#[test]
fn states_are_recorded_in_the_order_of_their_start_and_in_both_slots() {
    let place = Place::new(SIZE);
    on_shard(async {
        let client = Client::open(&place.found).await;
        let last: Vec<_> = (1..=40)
            .map(|v| client.start(DiskOp::PersistState { last_in_sync: ConfigVersion(v), suspect: v % 2 == 0 }))
            .collect();
        client.ring.submit();
        for receive in last {
            receive.await.unwrap().result.unwrap();
        }
    });
    for slot in SLOT_OFFSETS {
        let good = std::fs::read(&place.found.path).unwrap();
        let file = OpenOptions::new().write(true).open(&place.found.path).unwrap();
        file.write_all_at(&[0xee; 4096], slot).unwrap();
        assert_eq!(place.rescan().last_in_sync, ConfigVersion(40), "slot at {slot} damaged");
        file.write_all_at(&good, 0).unwrap();
    }
}

#[test]
fn a_torn_superblock_write_leaves_the_state_before_or_after_it() {
    let place = Place::new(SIZE);
    on_shard(async { Client::open(&place.found).await.store.close(true).await.unwrap() });
    let before = std::fs::read(&place.found.path).unwrap();
    on_shard(async {
        let client = Client::open(&place.rescan()).await;
        client.run(DiskOp::PersistState { last_in_sync: ConfigVersion(6), suspect: true }).await.unwrap();
        client.store.close(true).await.unwrap();
    });
    let after = std::fs::read(&place.found.path).unwrap();
    for slot in SLOT_OFFSETS.map(|offset| offset as usize) {
        for sectors in 0..=8 {
            let mut torn = before.clone();
            torn[slot..slot + sectors * 512].copy_from_slice(&after[slot..slot + sectors * 512]);
            std::fs::write(&place.found.path, torn).unwrap();
            let version = place.rescan().last_in_sync;
            assert!([ConfigVersion(0), ConfigVersion(6)].contains(&version));
        }
    }
}

#[test]
fn opening_repairs_a_damaged_slot() {
    for damaged in SLOT_OFFSETS {
        let place = Place::new(SIZE);
        on_shard(async { Client::open(&place.found).await.store.close(true).await.unwrap() });
        let file = OpenOptions::new().write(true).open(&place.found.path).unwrap();
        file.write_all_at(&[0xaa; 4096], damaged).unwrap();
        on_shard(async { Client::open(&place.rescan()).await.store.close(true).await.unwrap() });
        let other = SLOT_OFFSETS.into_iter().find(|offset| *offset != damaged).unwrap();
        file.write_all_at(&[0xaa; 4096], other).unwrap();
        assert!(place.rescan().clean, "the slot at {damaged} was repaired");
    }
}

#[test]
fn a_store_is_open_once_and_handed_over_when_it_is_closed() {
    let place = Place::new(SIZE);
    on_shard(async {
        let first = Client::open(&place.found).await;
        let ring = Ring::start(8).unwrap();
        let Err(refusal) = Client::open_on(Rc::clone(&ring), &place.found, BOOT, Duration::from_millis(50)).await
        else {
            panic!("two owners")
        };
        assert!(refusal.to_string().contains("still in use"), "{refusal}");
        assert!(place.pool.remove(&place.found).unwrap_err().to_string().contains("open"));
        first.write(1, blocks(4, 1)).await.unwrap();
        let found = place.found.clone();
        let next = tokio::task::spawn_local(async move { Client::open_on(ring, &found, BOOT, LOCK_WAIT).await });
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        first.store.close(true).await.unwrap();
        let next = next.await.unwrap().unwrap();
        assert!(next.store.found().clean, "the successor sees what the former owner recorded last");
        assert_eq!(next.read(1, 1).await, blocks(4, 1));
    });
}

#[test]
fn the_lock_is_taken_over_from_another_process() {
    let place = Place::new(SIZE);
    // A process that locks the file as a node does, says so, and ends when its input does.
    let child = Command::new("flock")
        .args(["-x", place.found.path.to_str().unwrap(), "sh", "-c", "echo locked; read line || true"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return skipped("there is no flock program") };
    let mut said = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    on_shard(async {
        let ring = Ring::start(8).unwrap();
        assert!(Client::open_on(Rc::clone(&ring), &place.found, BOOT, Duration::ZERO).await.is_err());
        let found = place.found.clone();
        let next = tokio::task::spawn_local(async move { Client::open_on(ring, &found, BOOT, LOCK_WAIT).await });
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        next.await.unwrap().unwrap();
    });
    child.wait().unwrap();
}

#[test]
fn a_place_that_changed_since_the_scan_is_refused() {
    let place = Place::new(SIZE);
    let other = FoundStore { disk_id: DiskId(99), ..place.found.clone() };
    on_shard(async {
        let refusal = Client::open_at(&other, BOOT).await.err().unwrap();
        assert!(refusal.to_string().contains("scan again"), "{refusal}");
        place.pool.remove(&place.found).unwrap();
        assert!(matches!(Client::open_at(&place.found, BOOT).await, Err(StoreError::Io { .. })));
    });
    assert!(std::fs::read_dir(place.directory.path()).unwrap().next().is_none());
}

#[test]
fn a_slot_that_cannot_be_read_is_borne_and_repaired_and_a_failing_write_refuses_the_opening() {
    let place = Place::new(SIZE);
    on_shard(async {
        let ring = Ring::start(8).unwrap();
        ring.inject(Fault::Transfer(libc::EIO));
        let client = Client::open_on(Rc::clone(&ring), &place.found, BOOT, LOCK_WAIT).await.unwrap();
        client.store.close(true).await.unwrap();
        // Both slots unreadable.
        ring.inject(Fault::Transfer(libc::EIO));
        ring.inject(Fault::Transfer(libc::EIO));
        let refusal = Client::open_on(Rc::clone(&ring), &place.found, BOOT, LOCK_WAIT).await.err().unwrap();
        assert!(refusal.to_string().contains("cannot be read"), "{refusal}");
        ring.inject(Fault::Flush(libc::EIO));
        let refusal = Client::open_on(Rc::clone(&ring), &place.found, BOOT, LOCK_WAIT).await.err().unwrap();
        assert!(matches!(&refusal, StoreError::Io { source, .. } if source.raw_os_error() == Some(libc::EIO)));
        // A refused opening holds no lock.
        Client::open_on(ring, &place.found, BOOT, Duration::ZERO).await.map(|_| ()).unwrap();
    });
}

#[test]
fn scrubs_are_remembered_by_both_slots_whether_it_was_closed_in_order_or_not() {
    let report =
        |verify_only, done_blocks| ScrubReport { verify_only, done_blocks, repaired: 2, ..ScrubReport::default() };
    for clean in [true, false] {
        let place = Place::new(SIZE);
        on_shard(async {
            let client = Client::open(&place.found).await;
            assert_eq!((client.store.last_scrub(), client.store.past_scrubs().under_way), (None, None));
            client.store.record_scrubs(Some(report(true, SIZE / 4096)), Some(report(false, 7)));
            client.store.close(clean).await.unwrap();
            // Whichever slot is lost.
            let good = std::fs::read(&place.found.path).unwrap();
            for slot in SLOT_OFFSETS {
                let file = OpenOptions::new().write(true).open(&place.found.path).unwrap();
                file.write_all_at(&good, 0).unwrap();
                file.write_all_at(&[0xee; 4096], slot).unwrap();
                let again = Client::open(&place.rescan()).await;
                let (_, last) = again.store.last_scrub().expect("it was recorded");
                assert_eq!((last.verify_only, last.repaired, last.blocks), (true, 2, SIZE / 4096));
                let under_way = again.store.past_scrubs().under_way.expect("it goes on");
                assert_eq!((under_way.done_blocks, under_way.repaired), (7, 2));
                again.store.close(false).await.unwrap();
            }
        });
    }
}
