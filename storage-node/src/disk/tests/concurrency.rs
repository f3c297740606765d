//! Thousands of operations at once against a model, and ends in the middle of them.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const BLOCKS: u64 = 4096;

/// What each block holds, or may hold while operations on it are in flight.
fn pattern(number: u64) -> [u8; 4096] {
    let mut out = [0; 4096];
    for (at, word) in out.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at as u64).to_le_bytes());
    }
    out
}

#[test]
fn thousands_of_random_operations_agree_with_a_model() {
    let seed: u64 = 20_240_611;
    println!("seed {seed}");
    let place = Place::new(BLOCKS * 4096);
    let mut model: Vec<Option<u64>> = vec![None; BLOCKS as usize];
    on_shard(async {
        let mut random = StdRng::seed_from_u64(seed);
        let client = Client::open(&place.found).await;
        let mut number = 0;
        for _round in 0..60 {
            // Operations of one round touch disjoint blocks: the caller orders what must be ordered.
            let mut receivers = Vec::new();
            let mut at = random.random_range(0..8);
            while at + 24 < BLOCKS {
                let count = random.random_range(1..=16);
                let target = BlockRange::new(at, count);
                let slots = at as usize..(at + count) as usize;
                match random.random_range(0..10) {
                    0 => {
                        let kind = if random.random() { WriteKind::Discard } else { WriteKind::Zeroes };
                        model[slots].fill(None);
                        let op = erase(kind, target, false);
                        receivers.push((client.start(op), None));
                    }
                    1..=5 => {
                        let mut data = vec![0; random.random_range(0..3)];
                        let skip = data.len();
                        for slot in slots {
                            number += 1;
                            model[slot] = Some(number);
                            data.extend_from_slice(&pattern(number));
                        }
                        let data = Bytes::from(data).slice(skip..);
                        let fua = random.random_range(0..20) == 0;
                        let op = if random.random_range(0..8) == 0 {
                            batch_op(vec![vec![target]], data)
                        } else {
                            data_op(target, fua, data)
                        };
                        receivers.push((client.start(op), None));
                    }
                    _ => {
                        let expected = model[slots].to_vec();
                        receivers.push((client.start(read_op(target)), Some((target, expected))));
                    }
                }
                at += count + random.random_range(0..40);
            }
            receivers.push((client.start(DiskOp::Flush), None));
            client.ring.submit();
            for (receive, read) in receivers {
                let ended = ended(receive.await.unwrap()).unwrap();
                let Some((target, expected)) = read else { continue };
                compare(&ended.unwrap(), &expected, target);
            }
        }
        assert_eq!(client.store.in_flight(), 0);
        client.store.close(true).await.unwrap();
    });
    on_shard(async {
        let client = Client::open(&place.rescan()).await;
        for start in (0..BLOCKS).step_by(256) {
            let target = BlockRange::new(start, 256);
            compare(&client.read(start, 256).await, &model[start as usize..start as usize + 256], target);
        }
    });
}

fn compare(read: &Bytes, expected: &[Option<u64>], target: BlockRange) {
    for ((block, expected), number) in read.chunks(4096).zip(expected).zip(target.blocks()) {
        let expected = expected.map_or([0; 4096], pattern);
        assert!(block == expected, "block {number} differs");
    }
}

#[test]
fn a_sink_may_start_the_next_operation() {
    let place = Place::new(BLOCKS * 4096);
    on_shard(async {
        let ring = Ring::start(8).unwrap();
        let slot: Rc<RefCell<Option<Store>>> = Rc::default();
        let (send, receive) = oneshot::channel();
        let send = Cell::new(Some(send));
        let sink = {
            let slot = Rc::clone(&slot);
            Rc::new(move |done: DiskDone| {
                done.result.unwrap();
                if done.tag == 500 {
                    let _ = send.take().unwrap().send(());
                    return;
                }
                let store = slot.borrow();
                store.as_ref().unwrap().start(done.tag + 1, read_op(BlockRange::new(done.tag, 1)));
            })
        };
        let opened = Store::open(Rc::clone(&ring), &place.found, BOOT, LOCK_WAIT, sink).await.unwrap();
        let store = opened.store;
        *slot.borrow_mut() = Some(store);
        slot.borrow().as_ref().unwrap().start(0, DiskOp::Flush);
        ring.submit();
        receive.await.unwrap();
        let store = slot.borrow_mut().take();
        drop(store);
    });
}

/// Starts a few hundred writes and reads, submits them and forgets their ends.
fn start_many(client: &Client) {
    for at in 0..400 {
        let target = BlockRange::new(at * 8, 8);
        let data = Bytes::from(vec![at as u8; 8 * 4096 + 1]).slice(1..);
        client.start(data_op(target, at % 50 == 0, data));
        client.start(read_op(BlockRange::new(3500 + at % 500, 4)));
    }
    let groups = (3400..3420).map(|at| vec![BlockRange::new(at, 1)]).collect();
    client.start(batch_op(groups, blocks(3, 20)));
    client.start(DiskOp::PersistState { last_in_sync: proto::ConfigVersion(1), suspect: false });
    client.ring.submit();
}

#[test]
fn a_dropped_store_is_silent_and_keeps_its_lock_until_its_operations_have_ended() {
    let place = Place::new(BLOCKS * 4096);
    on_shard(async {
        let client = Client::open(&place.found).await;
        start_many(&client);
        let Client { store, ring, waiting, .. } = client;
        drop(store);
        let before = waiting.borrow().len();
        assert!(before > 0);
        // A successor on the same shard gets the lock when the last operation of the former one has ended.
        let next = Client::open_on(ring, &place.found, BOOT, LOCK_WAIT).await.unwrap();
        assert_eq!(waiting.borrow().len(), before, "the sink of a dropped store was called");
        next.heat_all().await;
        next.write(0, blocks(8, 1)).await.unwrap();
        assert_eq!(next.read(0, 1).await, blocks(8, 1));
        next.store.close(true).await.unwrap();
    });
}

#[test]
fn a_runtime_dropped_in_the_middle_waits_for_the_kernel_and_frees_the_store() {
    let place = Place::new(BLOCKS * 4096);
    for _ in 0..10 {
        let kept = on_shard(async {
            let client = Client::open(&place.found).await;
            start_many(&client);
            client
        });
        // The completion task is gone; starting is harmless, and dropping releases the lock.
        start_many(&kept);
        drop(kept);
        on_shard(async {
            let ring = Ring::start(8).unwrap();
            Client::open_on(ring, &place.found, BOOT, Duration::ZERO).await.map(|_| ()).unwrap();
        });
    }
}
