//! What a store knows of its content: checksums, the activity log, bitmaps, and damage to each of them.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use replication::local_copy::MetaPage;

use super::super::layout::{Layout, SLOT_OFFSETS};
use super::super::ring::Fault;
use super::*;

const SIZE: u64 = 16 << 20;
const EXTENT: u64 = 1024;

fn range(start: u64, count: u64) -> BlockRange {
    BlockRange::new(start, count)
}

/// Content of a block that differs from that of every other.
fn content(start: u64, count: u64) -> Bytes {
    (start..start + count).flat_map(|block| (block ^ 0x5a5a_0000).to_le_bytes().repeat(512)).collect::<Vec<u8>>().into()
}

impl Place {
    fn overwrite(&self, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.found.path).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn flip(&self, offset: u64) {
        let file = OpenOptions::new().read(true).write(true).open(&self.found.path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    }

    fn data_at(&self, block: u64) -> u64 {
        self.found.data_offset + block * 4096
    }

    /// A store that holds `content` in blocks 100 to 199 and 1500 to 1599, cold and closed in order.
    fn written() -> Place {
        let place = Place::new(SIZE);
        on_shard(async {
            let client = Client::open(&place.found).await;
            client.write(100, content(100, 100)).await.unwrap();
            client.write(1500, content(1500, 100)).await.unwrap();
            client.cool_all().await;
            client.store.close(true).await.unwrap();
        });
        place
    }

    async fn reopen(&self) -> Client {
        Client::open_at(&self.rescan(), BOOT).await.unwrap()
    }
}

#[test]
fn a_reopened_cold_store_verifies_what_it_reads() {
    let place = Place::written();
    on_shard(async {
        let client = place.reopen().await;
        assert_eq!((&client.hot, client.store.hot_extents()), (&Hot::Extents(vec![]), 0));
        let done = client.run_whole(read_op(range(90, 120))).await;
        assert_eq!(done.result, Ok(()));
        let data = done.data.unwrap();
        assert_eq!(data, [&[0; 10 * 4096][..], &content(100, 100), &[0; 10 * 4096]].concat());
        assert_eq!(done.sums, Salt::of(VOLUME).sums(range(90, 120), &data));
        assert_eq!(client.read(1500, 100).await, content(1500, 100));
        assert_eq!(client.read(2048, 64).await, blocks(0, 64), "what was never written is known to be zeros");
        let counters = client.store.counters();
        assert_eq!((counters.mismatches, counters.unverified, counters.pages_damaged), (0, 0, 0));
    });
}

#[test]
fn a_flipped_bit_is_found_and_repaired_from_a_good_copy_only() {
    let place = Place::written();
    for block in [120, 121, 130] {
        place.flip(place.data_at(block) + 77);
    }
    on_shard(async {
        let client = place.reopen().await;
        let done = client.run_whole(read_op(range(100, 100))).await;
        let bad = vec![range(120, 2), range(130, 1)];
        assert_eq!(done.result, Err(DiskError::Corrupt(bad.clone())));
        let (data, good) = (done.data.unwrap(), content(100, 100));
        assert_eq!(data[..20 * 4096], good[..20 * 4096], "the other blocks are good");
        assert_eq!(
            done.sums,
            Salt::of(VOLUME).sums(range(100, 100), &good),
            "the sums are those of what should be there"
        );
        let repair = |data: Bytes| {
            let range = range(120, 11);
            DiskOp::Repair { range, sums: Salt::of(VOLUME).sums(range, &data), data }
        };
        let wrong = client.run(repair(blocks(3, 11))).await;
        assert!(matches!(&wrong, Err(DiskError::Corrupt(_))), "{wrong:?}");
        assert!(matches!(client.run(read_op(range(120, 1))).await, Err(DiskError::Corrupt(_))));
        client.run(repair(content(120, 11))).await.unwrap();
        assert_eq!(client.read(100, 100).await, good);
        let counters = client.store.counters();
        assert!(counters.mismatches >= 3 && counters.repaired >= 3, "{counters:?}");
        client.store.close(true).await.unwrap();
        assert_eq!(place.reopen().await.read(100, 100).await, good);
    });
}

#[test]
fn a_read_that_was_wrong_once_is_borne() {
    let place = Place::written();
    on_shard(async {
        let client = place.reopen().await;
        client.read(100, 1).await;
        client.ring.inject(Fault::Flip);
        assert_eq!(client.read(100, 100).await, content(100, 100));
        let counters = client.store.counters();
        assert_eq!((counters.mismatches, counters.reread), (1, 1));
    });
}

#[test]
fn a_block_that_lies_in_the_place_of_another_is_found() {
    let place = Place::written();
    let from = place.raw_block(150);
    place.overwrite(place.data_at(110), &from);
    place.overwrite(place.data_at(1510), &place.raw_block(3));
    on_shard(async {
        let client = place.reopen().await;
        assert_eq!(client.run(read_op(range(100, 20))).await, Err(DiskError::Corrupt(vec![range(110, 1)])));
        // A write that was acknowledged and never done leaves what was there before.
        assert_eq!(client.run(read_op(range(1500, 20))).await, Err(DiskError::Corrupt(vec![range(1510, 1)])));
    });
}

#[test]
fn damage_to_metadata_is_borne_and_never_gives_wrong_data() {
    let layout = Layout::for_volume(SIZE);
    let areas = [
        ("superblock", SLOT_OFFSETS[0] + 200),
        ("superblock", SLOT_OFFSETS[1] + 200),
        ("log", layout.activity_log.offset + 4096 + 100),
        ("log", layout.activity_log.offset + 2 * 4096 + 100),
        ("index", layout.index_first.offset + 20),
        ("index", layout.index_second.offset + 20),
        ("sums", layout.checksums.offset + 480),
        ("sums", layout.checksums.offset + 4096 + 2000),
    ];
    for (name, offset) in areas {
        let place = Place::written();
        place.flip(offset);
        on_shard(async {
            let client = place.reopen().await;
            assert_eq!(client.read(100, 100).await, content(100, 100), "{name} at {offset}");
            assert_eq!(client.read(1500, 100).await, content(1500, 100), "{name} at {offset}");
            if name == "index" || name == "sums" {
                assert!(client.store.counters().pages_damaged > 0, "{name} at {offset}");
            }
            // The store works on, and is whole again once it was hot and cold.
            client.heat_all().await;
            client.write(200, content(200, 10)).await.unwrap();
            client.cool_all().await;
            client.store.close(true).await.unwrap();
        });
        on_shard(async {
            assert_eq!(place.reopen().await.read(100, 110).await, content(100, 110), "{name} at {offset}");
        });
    }
}

#[test]
fn sums_learnt_after_damage_are_there_after_a_restart() {
    let place = Place::written();
    let layout = Layout::for_volume(SIZE);
    place.flip(layout.checksums.offset + 40);
    on_shard(async {
        let client = place.reopen().await;
        assert_eq!(client.read(100, 100).await, content(100, 100));
        client.store.close(true).await.unwrap();
    });
    // Rot that only the sums which were learnt can show, beyond what was read as well.
    place.flip(place.data_at(105));
    place.flip(place.data_at(1000));
    on_shard(async {
        let client = place.reopen().await;
        let bad = |start, count| client.run(DiskOp::Read { range: range(start, count), check: ReadCheck::Verify });
        assert!(matches!(bad(100, 100).await.unwrap_err(), DiskError::Corrupt(bad) if bad == [range(105, 1)]));
        assert!(matches!(bad(990, 20).await.unwrap_err(), DiskError::Corrupt(bad) if bad == [range(1000, 1)]));
        assert_eq!((client.store.counters().pages_damaged, client.store.counters().unverified), (0, 0));
    });
}

#[test]
fn metadata_that_cannot_be_read_counts_as_damaged() {
    let place = Place::written();
    on_shard(async {
        let ring = Ring::start(8).unwrap();
        let fault = Fault::TransferAt(Layout::for_volume(SIZE).activity_log.offset, libc::EIO);
        // Once in the large read, once in that of the page.
        ring.inject(fault);
        ring.inject(fault);
        let client = Client::open_on(ring, &place.rescan(), BOOT, LOCK_WAIT).await.unwrap();
        assert_eq!(client.read(100, 100).await, content(100, 100));
    });
}

#[test]
fn what_was_hot_at_the_end_is_told_at_the_next_opening() {
    for clean in [false, true] {
        let place = Place::written();
        on_shard(async {
            let client = place.reopen().await;
            client.run(DiskOp::Heat { extents: vec![1, 3] }).await.unwrap();
            client.run(DiskOp::Heat { extents: vec![0] }).await.unwrap();
            client.write(3 * EXTENT, content(3 * EXTENT, 5)).await.unwrap();
            client.run(DiskOp::Cool { extents: vec![0], bitmaps: vec![] }).await.unwrap();
            assert_eq!(client.store.hot_extents(), 2);
            client.store.close(clean).await.unwrap();
        });
        on_shard(async {
            let client = place.reopen().await;
            assert_eq!(client.hot, Hot::Extents(vec![1, 3]));
            assert_eq!(client.read(3 * EXTENT, 5).await, content(3 * EXTENT, 5));
            assert!(client.store.counters().unverified > 0, "the sums of a hot extent are taken from its data");
        });
    }
}

#[test]
fn a_store_dropped_in_the_middle_of_its_work_reports_its_hot_extents() {
    let place = Place::written();
    on_shard(async {
        let client = place.reopen().await;
        client.run(DiskOp::Heat { extents: vec![2] }).await.unwrap();
        for at in 0..200 {
            client.start(data_op(range(2 * EXTENT + at, 1), false, content(7 * at, 1)));
        }
        client.start(DiskOp::Heat { extents: vec![0, 1] });
        client.ring.submit();
    });
    on_shard(async {
        let client = place.reopen().await;
        let Hot::Extents(hot) = &client.hot else { panic!("the log is whole") };
        assert!(hot.contains(&2), "{hot:?}");
        // Each block holds the old or the new content, and is not called bad.
        let data = client.read(2 * EXTENT, 200).await;
        for (at, block) in data.chunks(4096).enumerate() {
            assert!(block == [0; 4096] || block == content(7 * at as u64, 1), "block {at}");
        }
        assert_eq!(client.read(100, 100).await, content(100, 100));
    });
}

#[test]
fn bitmaps_come_back_as_written() {
    let place = Place::new(SIZE);
    let page = |byte: u8| Box::new([byte; 4096]);
    on_shard(async {
        let client = Client::open(&place.found).await;
        assert!(client.bitmaps.iter().flatten().all(|byte| *byte == 0));
        let pages = vec![(MetaPage::Bitmap { slot: 1, page: 0 }, page(5))];
        client.ring.take_trace();
        client.run(DiskOp::Bitmap { pages }).await.unwrap();
        let bitmaps = Layout::for_volume(SIZE).bitmaps;
        assert_eq!(client.ring.take_trace(), [("write", bitmaps.offset + bitmaps.length / 3)]);
        let bitmaps = vec![(MetaPage::Bitmap { slot: 0, page: 0 }, page(6))];
        client.run(DiskOp::Cool { extents: vec![2], bitmaps }).await.unwrap();
        client.store.close(false).await.unwrap();
        let client = place.reopen().await;
        assert_eq!(client.bitmaps.iter().map(|bitmap| bitmap[0]).collect::<Vec<_>>(), [6, 5, 0]);
    });
}

#[test]
fn a_write_to_a_hot_extent_is_one_request_to_the_kernel() {
    let place = Place::new(SIZE);
    on_shard(async {
        let client = Client::open(&place.found).await;
        client.ring.take_trace();
        client.write(5, content(5, 1)).await.unwrap();
        assert_eq!(client.ring.take_trace(), [("write", place.data_at(5))]);
        client.run(data_op(range(6, 1), true, content(6, 1))).await.unwrap();
        client.run(DiskOp::Heat { extents: vec![0, 1] }).await.unwrap();
        client.read(5, 2).await;
        assert_eq!(client.ring.take_trace(), [("write", place.data_at(6)), ("read", place.data_at(5))]);
    });
}

#[test]
fn a_store_of_the_first_format_is_refused_and_left_as_it_is() {
    let place = Place::new(SIZE);
    for slot in SLOT_OFFSETS {
        let mut bytes = [0; 4096];
        OpenOptions::new().read(true).open(&place.found.path).unwrap().read_exact_at(&mut bytes, slot).unwrap();
        bytes[16..20].fill(0);
        bytes[20] = 1;
        let crc = crc32fast::hash(&bytes);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        place.overwrite(slot, &bytes);
    }
    let before = std::fs::read(&place.found.path).unwrap();
    let refusal = place.pool.scan(None).remove(0).unwrap_err().to_string();
    assert!(refusal.contains("format version 1"), "{refusal}");
    assert!(on_shard(Client::open_at(&place.found, BOOT)).is_err());
    assert!(std::fs::read(&place.found.path).unwrap() == before);
}

#[test]
fn a_failed_durable_write_of_metadata_is_like_a_failed_flush() {
    let place = Place::new(SIZE);
    on_shard(async {
        let client = place.reopen().await;
        client.ring.inject(Fault::Flush(libc::EIO));
        let eio = Err(DiskError::Io(libc::EIO));
        assert_eq!(client.run(DiskOp::Heat { extents: vec![1] }).await, eio);
        assert_eq!(client.run(DiskOp::Flush).await, eio);
        let persist = DiskOp::PersistState { last_in_sync: proto::ConfigVersion(4), suspect: false };
        assert_eq!(client.run(persist).await, eio);
        assert!(client.store.close(true).await.is_err());
    });
}

#[test]
fn expected_sums_are_taken_over_without_a_write_and_kept_once_the_extent_is_cold() {
    let place = Place::written();
    let range = range(110, 4);
    let mut should = content(110, 4).to_vec();
    should[4096..8192].fill(9);
    let expect = || DiskOp::Expect { range, sums: Salt::of(VOLUME).sums(range, &should) };
    let bad = || Err(DiskError::Corrupt(vec![BlockRange::new(111, 1)]));
    let before = place.raw_block(111);
    on_shard(async {
        let client = place.reopen().await;
        client.run(DiskOp::Heat { extents: vec![0] }).await.unwrap();
        client.ring.take_trace();
        client.run(expect()).await.unwrap();
        assert_eq!(client.ring.take_trace(), []);
        assert_eq!(client.run(read_op(range)).await, bad());
        assert_eq!(client.read(114, 50).await, content(114, 50), "the others are as they were");
    });
    // The process has died with the extent hot: it says so, nothing is known of its sums, and its blocks are untouched.
    on_shard(async {
        let client = place.reopen().await;
        assert_eq!(client.hot, Hot::Extents(vec![0]));
        assert_eq!(client.read(110, 4).await, content(110, 4));
        client.run(expect()).await.unwrap();
        client.write(120, content(7, 1)).await.unwrap();
        client.run(DiskOp::Cool { extents: vec![0], bitmaps: vec![] }).await.unwrap();
        client.store.close(true).await.unwrap();
    });
    on_shard(async {
        let client = place.reopen().await;
        assert_eq!(client.run(read_op(range)).await, bad());
        assert_eq!(place.raw_block(111), before);
        let data = Bytes::from(should.clone());
        client.run(DiskOp::Repair { range, sums: Salt::of(VOLUME).sums(range, &data), data }).await.unwrap();
        assert_eq!(client.read(110, 4).await, should);
    });
}
