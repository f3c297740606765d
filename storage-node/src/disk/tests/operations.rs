//! Reading, writing, zeroing, discarding, batches and flushes of one store.

use super::super::ring::{Fault, IN_FLIGHT_MAX, Request, WAITING_MAX};
use super::super::store::OPERATIONS_MAX;
use super::*;
use replication::local_copy::MetaPage;
use smallvec::smallvec;

const MIB: u64 = 1 << 20;

fn range(start: u64, count: u64) -> BlockRange {
    BlockRange::new(start, count)
}

#[test]
fn data_comes_back_and_the_rest_reads_as_zeros() {
    let place = Place::new(8 * MIB);
    on_shard(async {
        let client = Client::open(&place.found).await;
        client.write(5, blocks(7, 3)).await.unwrap();
        let read = client.read(4, 5).await;
        assert!(read.as_ptr().addr().is_multiple_of(4096));
        assert_eq!(read, [&[0; 4096][..], &[7; 3 * 4096], &[0; 4096]].concat());
        assert_eq!(client.store.in_flight(), 0);
    });
    // The data area is a plain image at the offset that the store tells.
    let image = std::fs::read(&place.found.path).unwrap();
    let data = &image[place.found.data_offset as usize..];
    assert_eq!(data.len() as u64, 8 * MIB);
    assert!(data[5 * 4096..8 * 4096].iter().all(|byte| *byte == 7));
}

#[test]
fn misaligned_and_shared_data_is_written_as_given() {
    let place = Place::new(8 * MIB);
    on_shard(async {
        let client = Client::open(&place.found).await;
        let pool: Bytes = (0..64 * 4096u32).map(|i| (i / 7) as u8).collect::<Vec<u8>>().into();
        for shift in [1, 3, 511, 512, 4095] {
            let data = pool.slice(shift..shift + 4 * 4096);
            client.write(10, data.clone()).await.unwrap();
            assert_eq!(client.read(10, 4).await, data, "shift {shift}");
        }
    });
}

#[test]
fn operations_that_do_not_fit_the_store_end_with_einval_and_only_later() {
    let place = Place::new(MIB);
    on_shard(async {
        let client = Client::open(&place.found).await;
        let data = |range, data| DiskOp::Write { range, kind: WriteKind::Data, fua: false, data, sums: smallvec![1] };
        let bad = [
            read_op(range(256, 1)),
            read_op(range(u64::MAX, 2)),
            data(range(0, 2), Some(blocks(1, 1))),
            data(range(0, 2), Some(blocks(1, 2))),
            data(range(0, 1), None),
            erase(WriteKind::Discard, range(255, 2), false),
            batch_op(vec![vec![range(0, 1)], vec![range(1, 1)]], blocks(1, 3)),
            DiskOp::Batch { groups: vec![vec![range(0, u64::MAX)]], data: blocks(1, 1), sums: smallvec![1] },
            DiskOp::Batch { groups: vec![vec![range(0, 1)]], data: blocks(1, 1), sums: smallvec![] },
            DiskOp::Repair { range: range(0, 1), data: blocks(1, 1), sums: smallvec![] },
            DiskOp::Repair { range: range(256, 1), data: blocks(1, 1), sums: smallvec![1] },
            DiskOp::Expect { range: range(0, 1), sums: smallvec![] },
            DiskOp::Expect { range: range(256, 1), sums: smallvec![1] },
            DiskOp::Heat { extents: vec![1] },
            DiskOp::Heat { extents: vec![0, 0] },
            DiskOp::Bitmap { pages: vec![(MetaPage::Bitmap { slot: 3, page: 0 }, Box::new([0; 4096]))] },
            DiskOp::Bitmap { pages: vec![(MetaPage::Bitmap { slot: 0, page: 2 }, Box::new([0; 4096]))] },
            DiskOp::Bitmap { pages: vec![(MetaPage::Log(0), Box::new([0; 4096]))] },
        ];
        for op in bad {
            let mut receive = client.start(op.clone());
            assert!(receive.try_recv().is_err(), "the sink was called from within start");
            assert_eq!(ended(receive.await.unwrap()), Err(DiskError::Misuse(libc::EINVAL)), "{op:?}");
        }
        assert_eq!(client.run(read_op(range(256, 0))).await, Ok(Some(Bytes::new())));
        client.run(DiskOp::Heat { extents: vec![0] }).await.unwrap();
    });
}

#[test]
fn discard_makes_a_hole_that_reads_as_zeros() {
    let place = Place::new(8 * MIB);
    on_shard(async {
        let client = Client::open(&place.found).await;
        client.write(0, blocks(9, 1024)).await.unwrap();
        for fua in [false, true] {
            client.ring.take_trace();
            client.run(erase(WriteKind::Discard, range(100, 200), fua)).await.unwrap();
            assert_eq!(client.ring.take_trace().len(), if fua { 2 } else { 1 }, "a flush follows with fua");
        }
        let read = client.read(0, 1024).await;
        assert!(read[..100 * 4096].iter().chain(&read[300 * 4096..]).all(|byte| *byte == 9));
        assert!(read[100 * 4096..300 * 4096].iter().all(|byte| *byte == 0));
        assert_eq!(
            client.store.allocation(range(50, 1000)).unwrap(),
            [(range(50, 50), false), (range(100, 200), true), (range(300, 724), false), (range(1024, 26), true)]
        );
        assert_eq!(client.store.allocation(range(120, 4)).unwrap(), [(range(120, 4), true)]);
        assert_eq!(client.store.allocation(range(2048, 1)), Err(DiskError::Misuse(libc::EINVAL)));
        assert_eq!(client.store.allocation(range(2048, 0)), Ok(vec![]));
    });
}

#[test]
fn zeroes_read_back_with_and_without_help_of_the_file_system() {
    let place = Place::new(8 * MIB);
    on_shard(async {
        let client = Client::open(&place.found).await;
        for kind in [WriteKind::Zeroes, WriteKind::Discard] {
            for unsupported in [false, true] {
                client.write(0, blocks(9, 1024)).await.unwrap();
                if unsupported {
                    // What an unsupported call would have done is undone by the data written before the next check.
                    client.ring.inject(Fault::Fallocate(libc::EOPNOTSUPP));
                }
                client.ring.take_trace();
                client.run(erase(kind, range(1, 700), true)).await.unwrap();
                let trace = client.ring.take_trace();
                assert_eq!(trace.iter().filter(|(kind, _)| *kind == "write").count(), if unsupported { 3 } else { 0 });
                assert_eq!(trace.last().unwrap().0, "flush");
                let read = client.read(0, 1024).await;
                assert!(read[..4096].iter().chain(&read[701 * 4096..]).all(|byte| *byte == 9));
                assert!(read[4096..701 * 4096].iter().all(|byte| *byte == 0), "{kind:?} {unsupported}");
            }
        }
    });
}

#[test]
fn a_batch_writes_its_groups_in_order_with_a_flush_after_each() {
    let place = Place::new(8 * MIB);
    on_shard(async {
        let client = Client::open(&place.found).await;
        let groups = vec![vec![range(0, 2), range(2, 1), range(20, 1)], vec![], vec![range(0, 1)], vec![range(9, 1)]];
        let data = [blocks(1, 2), blocks(2, 1), blocks(3, 1), blocks(4, 1), blocks(5, 1)].concat();
        client.ring.take_trace();
        client.run(batch_op(groups, data)).await.unwrap();
        let base = place.found.data_offset;
        let at = |block: u64| ("write", base + block * 4096);
        let flush = ("flush", 0);
        assert_eq!(client.ring.take_trace(), [at(0), at(20), flush, at(0), flush, at(9), flush]);
        let read = client.read(0, 21).await;
        let first_of: Vec<u8> = read.chunks(4096).map(|block| block[0]).collect();
        assert_eq!((&first_of[..3], first_of[9], first_of[20]), (&[4, 1, 2][..], 5, 3));
        client.run(batch_op(vec![vec![]], Bytes::new())).await.unwrap();
        assert_eq!(client.ring.take_trace().last(), Some(&flush));
    });
}

#[test]
fn a_batch_stops_at_its_first_error() {
    for fault in [Fault::Transfer(libc::EIO), Fault::Flush(libc::EIO)] {
        let place = Place::new(8 * MIB);
        on_shard(async {
            let client = Client::open(&place.found).await;
            client.ring.inject(fault);
            let groups = vec![vec![range(0, 1), range(4, 1)], vec![range(9, 1)]];
            let ended = client.run(batch_op(groups, blocks(6, 3))).await;
            assert_eq!(ended, Err(DiskError::Io(libc::EIO)));
            assert_eq!(client.store.in_flight(), 0);
        });
        assert_eq!(place.raw_block(9), [0; 4096], "{fault:?}");
    }
}

#[test]
fn a_batch_of_many_writes_goes_through_a_small_ring() {
    let place = Place::new(64 * MIB);
    on_shard(async {
        let ring = Ring::start(4).unwrap();
        let client = Client::open_on(ring, &place.found, BOOT, LOCK_WAIT).await.unwrap();
        client.heat_all().await;
        let group: Vec<BlockRange> = (0..3000).map(|i| range((i * 7919) % 16384, 1)).collect();
        let data: Vec<u8> = (0..3000u32).flat_map(|i| i.to_le_bytes().repeat(1024)).collect();
        client.run(batch_op(vec![group.clone()], data)).await.unwrap();
        for (number, at) in group.iter().enumerate().step_by(37) {
            assert_eq!(client.read(at.start, 1).await[..4], (number as u32).to_le_bytes());
        }
    });
}

#[test]
fn a_failed_flush_is_never_followed_by_a_good_one() {
    let place = Place::new(8 * MIB);
    let fua = |data| data_op(range(0, 1), true, data);
    for failing in [DiskOp::Flush, fua(blocks(1, 1))] {
        on_shard(async {
            let client = Client::open(&place.found).await;
            let eio = Err(DiskError::Io(libc::EIO));
            client.run(DiskOp::Flush).await.unwrap();
            client.ring.inject(Fault::Flush(libc::EIO));
            assert_eq!(client.run(failing.clone()).await, eio);
            client.ring.take_trace();
            assert_eq!(client.run(DiskOp::Flush).await, eio);
            assert_eq!(client.run(fua(blocks(2, 1))).await, eio);
            assert_eq!(client.run(erase(WriteKind::Discard, range(9, 1), true)).await, eio);
            let persist = DiskOp::PersistState { last_in_sync: proto::ConfigVersion(4), suspect: false };
            assert_eq!(client.run(persist).await, eio);
            assert!(client.ring.take_trace().iter().all(|(kind, _)| *kind != "flush"));
            assert!(client.store.close(true).await.is_err());
        });
        assert!(!place.rescan().clean);
    }
}

#[test]
fn short_transfers_are_continued_and_errors_are_told() {
    let place = Place::new(8 * MIB);
    on_shard(async {
        let client = Client::open(&place.found).await;
        let data: Bytes = (0..16 * 4096u32).map(|i| (i / 5) as u8).collect::<Vec<u8>>().into();
        client.ring.inject(Fault::Short(4096));
        client.ring.inject(Fault::Short(8192));
        client.write(3, data.clone()).await.unwrap();
        client.ring.inject(Fault::Short(512));
        assert_eq!(client.read(3, 16).await, data);
        client.ring.inject(Fault::Transfer(libc::EINTR));
        assert_eq!(client.read(3, 16).await, data);
        for (fault, error) in [
            (Fault::Short(0), DiskError::Io(0)),
            (Fault::Transfer(libc::EIO), DiskError::Io(libc::EIO)),
            (Fault::Transfer(libc::ENOSPC), DiskError::OutOfSpace),
        ] {
            let place = Place::new(8 * MIB);
            let client = Client::open(&place.found).await;
            client.ring.inject(fault);
            assert_eq!(client.run(read_op(range(0, 1))).await, Err(error));
        }
    });
}

#[test]
fn too_many_operations_are_refused_and_the_others_end() {
    let place = Place::new(8 * MIB);
    on_shard(async {
        let client = Client::open(&place.found).await;
        let all: Vec<_> = (0..OPERATIONS_MAX as u64).map(|i| client.start(read_op(range(i % 2048, 1)))).collect();
        assert_eq!(client.store.room(), 0);
        let over = client.start(DiskOp::Flush);
        client.ring.submit();
        assert_eq!(ended(over.await.unwrap()), Err(DiskError::Misuse(libc::EBUSY)));
        for receive in all {
            receive.await.unwrap().result.unwrap();
        }
        assert_eq!((client.store.in_flight(), client.store.room()), (0, OPERATIONS_MAX));
    });
}

#[test]
fn a_full_queue_of_the_ring_refuses_without_calling_back_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::sync::Arc::new(std::fs::File::create(directory.path().join("file")).unwrap());
    on_shard(async {
        let ring = Ring::start(8).unwrap();
        type Ends = RefCell<Vec<(usize, Option<DiskError>)>>;
        let ends: Rc<Ends> = Rc::default();
        let total = IN_FLIGHT_MAX + WAITING_MAX + 3;
        for number in 0..total {
            let ends = Rc::clone(&ends);
            let done = Box::new(move |result: Result<_, DiskError>| ends.borrow_mut().push((number, result.err())));
            ring.request(&file, Request::Flush, done);
        }
        assert_eq!(ring.room(), 0);
        assert!(ends.borrow().is_empty());
        ring.run(&file, Request::Flush).await.unwrap_err();
        let refused = Some(DiskError::Io(libc::EBUSY));
        let refusals: Vec<usize> = ends.borrow().iter().filter(|end| end.1 == refused).map(|end| end.0).collect();
        assert_eq!(refusals, [total - 3, total - 2, total - 1]);
        // The rest is dropped with the runtime: nothing waits for a quarter of a million flushes.
    });
}
