//! Replication links over loopback sockets.

use std::future::Future;

use block_device::AlignedBuf;
use bytes::Bytes;
use proto::peer::codec::{self, PAYLOAD_BYTES_MAX, PayloadSum, RANGES_MAX};
use proto::peer::message::{Message, NackReason, Seq, Worth, WriteKind};
use proto::peer::version::SUPPORTED;
use proto::{BLOCK_BYTES, BlockRange};
use smallvec::{SmallVec, smallvec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;

use super::test_peers::{
    PLAIN, Running, VOLUME, envelope, identity, links, listen, ready, ready_at, start, streams, sums_of,
};
use super::{Incoming, LINK_HELD_BYTES_MAX, LINK_QUEUED_BYTES_MAX, LinkEvent, ReadyLink};

const NONE: SmallVec<[Bytes; 1]> = SmallVec::new_const();

fn on_shard<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    LocalSet::new().block_on(&runtime, test);
}

fn write(seq: u64, blocks: u64) -> Message {
    Message::Write { seq: Seq(seq), range: BlockRange::new(seq, blocks), kind: WriteKind::Data, fua: false }
}

/// Content that differs in every block and byte position.
fn content(seed: u64, blocks: u64) -> Bytes {
    let mut buf = AlignedBuf::zeroed((blocks * BLOCK_BYTES) as usize);
    for (place, word) in buf.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ place as u64).to_le_bytes());
    }
    buf.freeze()
}

fn frame(message: &Message, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (sum, sums) = (PayloadSum::for_message(SUPPORTED.max, message, &[payload]), sums_of(message, payload));
    codec::encode(SUPPORTED.max, &envelope(), message, sum, &sums, &mut out).expect("valid");
    out.extend_from_slice(payload);
    out
}

/// A link whose other side is a bare stream that sends `bytes`; gives the reason of Down.
async fn reason_after(bytes: &[u8]) -> String {
    let (mut hostile, stream) = streams().await;
    let mut link = start(ready(stream, 2));
    hostile.write_all(bytes).await.expect("taken by the kernel");
    link.down().await
}

#[test]
fn a_ready_link_can_move_to_another_thread() {
    fn check<T: Send + 'static>() {}
    check::<ReadyLink>();
}

#[test]
fn frames_of_all_sizes_arrive_in_order_whole_and_aligned() {
    on_shard(async {
        let (one, mut two) = links().await;
        let sizes = [1, 1, 0, 3, 16, 0, 17, 40, 1, 256, 1, 1, 0, 900];
        for (seq, blocks) in sizes.into_iter().enumerate() {
            match blocks {
                0 => one.send(&Message::Flush { seq: Seq(seq as u64) }, NONE),
                _ => {
                    let data = content(seq as u64, blocks);
                    let cut = data.len() / 3;
                    let parts = smallvec![data.slice(..cut), data.slice(cut..cut + 10), data.slice(cut + 10..)];
                    one.send(&write(seq as u64, blocks), parts);
                }
            }
        }
        one.sender.flush();
        for (seq, blocks) in sizes.into_iter().enumerate() {
            let (message, payload) = two.frame().await;
            if blocks == 0 {
                assert_eq!((message, payload), (Message::Flush { seq: Seq(seq as u64) }, None));
            } else {
                assert_eq!(message, write(seq as u64, blocks));
                let payload = payload.expect("data");
                assert_eq!(payload, content(seq as u64, blocks));
                assert_eq!(payload.as_ptr() as usize % 4096, 0);
            }
        }
    });
}

#[test]
fn frames_leave_without_a_flush_too() {
    on_shard(async {
        let (one, mut two) = links().await;
        for seq in 0..3 {
            one.send(&Message::Ack { seq: Seq(seq) }, NONE);
            assert_eq!(two.frame().await.0, Message::Ack { seq: Seq(seq) });
        }
    });
}

#[test]
fn data_of_a_peer_of_version_1_is_given_checksums_on_receipt() {
    on_shard(async {
        let (first, second) = streams().await;
        let (one, mut two) = (start(ready_at(first, 2, SUPPORTED.min)), start(ready_at(second, 1, SUPPORTED.min)));
        let groups = vec![vec![BlockRange::new(7, 2)], vec![BlockRange::new(3, 1)]];
        let batch = Message::WriteBatch { seq: Seq(2), groups };
        for message in [write(1, 3), batch] {
            // The receiver's checksums are looked at in `frame`.
            one.send(&message, smallvec![content(1, 3)]);
            assert_eq!(two.frame().await, (message, Some(content(1, 3))));
        }
    });
}

#[test]
fn checksums_of_blocks_that_are_known_to_be_bad_arrive_as_sent() {
    on_shard(async {
        let (one, mut two) = links().await;
        let range = BlockRange::new(5, 2);
        let message = Message::ResyncData { seq: Seq(1), range, kind: WriteKind::Data, worth: Worth::Bad };
        one.sender.send(&envelope(), &message, smallvec![content(1, 2)], &[11, 12]);
        let Some(LinkEvent::Frame { message: found, payload, sums, .. }) = two.events.recv().await else {
            panic!("no frame")
        };
        assert_eq!((found, payload.expect("data"), sums.as_slice()), (message, content(1, 2), &[11, 12][..]));
    });
}

#[test]
fn the_longest_batch_passes() {
    on_shard(async {
        let (one, mut two) = links().await;
        let groups: Vec<_> = (0..RANGES_MAX as u64).map(|block| BlockRange::new(block * 2, 1)).collect();
        let message = Message::WriteBatch { seq: Seq(1), groups: vec![groups] };
        let data = content(5, PAYLOAD_BYTES_MAX / BLOCK_BYTES);
        let parts = (0..RANGES_MAX).map(|block| data.slice(block * 4096..(block + 1) * 4096)).collect();
        one.send(&message, parts);
        one.send(&Message::PreSync, NONE);
        let (found, payload) = two.frame().await;
        assert!(found == message && payload.expect("data") == data);
        assert_eq!(two.frame().await.0, Message::PreSync);
    });
}

#[test]
fn a_hundred_thousand_frames_pass_both_ways_with_their_content() {
    const FRAMES: u64 = 100_000;
    const WINDOW: u64 = 128;
    on_shard(async {
        let (mut one, mut two) = links().await;
        let receiving = tokio::task::spawn_local(async move {
            for seq in 0..FRAMES {
                let (message, payload) = two.frame().await;
                assert_eq!(message, write(seq, 1));
                assert_eq!(payload.expect("data"), content(seq, 1));
                two.send(&Message::Ack { seq: Seq(seq) }, NONE);
                if two.events.is_empty() {
                    two.sender.flush();
                }
            }
            two
        });
        let mut acked = 0;
        for seq in 0..FRAMES {
            while seq - acked >= WINDOW {
                one.sender.flush();
                assert_eq!(one.frame().await.0, Message::Ack { seq: Seq(acked) });
                acked += 1;
            }
            one.send(&write(seq, 1), smallvec![content(seq, 1)]);
        }
        while acked < FRAMES {
            assert_eq!(one.frame().await.0, Message::Ack { seq: Seq(acked) });
            acked += 1;
        }
        drop(receiving.await.expect("every frame as sent"));
        assert!(one.down().await.contains("closed by the other side"));
    });
}

#[test]
fn garbage_closes_the_link_and_nothing_else_happens() {
    on_shard(async {
        assert!(reason_after(b"GET / HTTP/1.1\r\n\r\n").await.contains("no frame"));
        assert!(reason_after(&[0; 4]).await.contains("no frame"));
        assert!(reason_after(&[0xff; 100_000]).await.contains("no frame"));
    });
}

#[test]
fn damage_anywhere_closes_the_link_before_the_frame_is_delivered() {
    on_shard(async {
        let clean = frame(&write(1, 20), &content(1, 20));
        for (at, why) in [(9, "header"), (40, "header"), (72, "body"), (200, "block"), (70_000, "block")] {
            let mut bytes = clean.clone();
            bytes[at] ^= 0x10;
            let reason = reason_after(&bytes).await;
            assert!(reason.contains(why), "{at}: {reason}");
        }
    });
}

#[test]
fn an_oversized_length_closes_the_link_without_waiting_for_the_bytes() {
    on_shard(async {
        let mut bytes = frame(&write(1, 1), &content(1, 1));
        bytes.truncate(codec::HEADER_BYTES);
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..68]);
        bytes[68..].copy_from_slice(&crc.to_le_bytes());
        let reason = reason_after(&bytes).await;
        assert!(reason.contains("over the bound"), "{reason}");
    });
}

#[test]
fn frames_before_the_damage_are_delivered_and_none_after() {
    on_shard(async {
        let (mut hostile, stream) = streams().await;
        let mut link = start(ready(stream, 2));
        let mut bytes = frame(&Message::Ack { seq: Seq(1) }, &[]);
        bytes.extend_from_slice(&[7; 80]);
        bytes.extend(frame(&Message::Ack { seq: Seq(2) }, &[]));
        hostile.write_all(&bytes).await.unwrap();
        assert_eq!(link.frame().await.0, Message::Ack { seq: Seq(1) });
        assert!(link.down().await.contains("no frame"));
        link.send(&Message::PreSync, NONE);
        link.sender.flush();
        link.sender.close("again");
    });
}

#[test]
fn an_end_inside_a_frame_is_told_from_one_between_frames() {
    on_shard(async {
        let bytes = frame(&write(1, 20), &content(1, 20));
        for (cut, inside) in [(0, false), (10, true), (100, true), (70_000, true)] {
            let (mut other, stream) = streams().await;
            let mut link = start(ready(stream, 2));
            other.write_all(&bytes[..cut]).await.unwrap();
            drop(other);
            assert_eq!(link.down().await.contains("middle of a frame"), inside, "cut at {cut}");
        }
    });
}

#[test]
fn bytes_that_trickle_in_one_by_one_make_the_same_frames() {
    on_shard(async {
        let (mut other, stream) = streams().await;
        let mut link = start(ready(stream, 2));
        let groups = vec![vec![BlockRange::new(1, 1)], vec![BlockRange::new(3, 1)]];
        let batch = Message::WriteBatch { seq: Seq(1), groups };
        let bytes = frame(&batch, &content(1, 2));
        for byte in &bytes[..300] {
            other.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        other.write_all(&bytes[300..]).await.unwrap();
        assert_eq!(link.frame().await, (batch, Some(content(1, 2))));
    });
}

#[test]
fn a_peer_that_does_not_read_fills_the_queue_and_loses_the_link() {
    on_shard(async {
        let (other, stream) = streams().await;
        let mut link = start(ready(stream, 2));
        let data = Bytes::from(content(1, 256).to_vec());
        let mut sent = 0;
        while link.events.is_empty() {
            link.send(&write(1, 256), smallvec![data.clone()]);
            sent += data.len();
            assert!(sent < 2 * LINK_QUEUED_BYTES_MAX, "the queue is bounded");
            tokio::task::yield_now().await;
        }
        assert!(sent > LINK_QUEUED_BYTES_MAX, "and the bound is used: {sent}");
        let reason = link.down().await;
        assert!(reason.contains("too slow"), "{reason}");
        assert!(data.is_unique(), "the queue's payloads are freed");
        drop(other);
    });
}

#[test]
fn receivers_that_hold_payloads_stop_the_reading_until_they_let_go() {
    const BLOCKS: u64 = 2048;
    let frame_bytes = (BLOCKS * BLOCK_BYTES) as usize;
    on_shard(async {
        let (one, mut two) = links().await;
        let data = content(1, BLOCKS);
        let mut held = Vec::new();
        while held.len() * frame_bytes < LINK_HELD_BYTES_MAX {
            one.send(&write(held.len() as u64, BLOCKS), smallvec![data.clone()]);
            held.push(two.frame().await.1.expect("data"));
        }
        one.send(&write(99, BLOCKS), smallvec![data.clone()]);
        one.sender.flush();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(two.events.is_empty(), "nothing is read over the bound");
        held.pop();
        let (message, payload) = two.frame().await;
        assert_eq!(message, write(99, BLOCKS));
        assert!(payload.expect("data") == data);
    });
}

#[test]
fn what_was_queued_before_a_close_still_arrives_and_both_sides_go_down() {
    on_shard(async {
        let (mut one, mut two) = links().await;
        let nack = Message::Nack { reason: NackReason::StaleEpoch };
        // Unread bytes at the closing side must not destroy the nack on its way.
        two.send(&write(1, 8), smallvec![content(1, 8)]);
        two.sender.flush();
        one.send(&nack, NONE);
        one.sender.close("fenced");
        one.sender.close("later reason");
        assert_eq!(one.down().await, "fenced");
        assert_eq!(two.frame().await.0, nack);
        assert!(two.down().await.contains("closed by the other side"));
    });
}

#[test]
fn no_frame_is_delivered_after_a_close() {
    on_shard(async {
        let (mut one, two) = links().await;
        for seq in 0..10 {
            two.send(&Message::Ack { seq: Seq(seq) }, NONE);
        }
        two.sender.flush();
        one.sender.close("done");
        assert_eq!(one.down().await, "done");
    });
}

#[test]
fn dropping_the_last_sender_closes_the_link() {
    on_shard(async {
        let (one, mut two) = links().await;
        let Running { sender, mut events } = one;
        let clone = sender.clone();
        drop(sender);
        clone.send(&envelope(), &Message::PreSync, NONE, &[]);
        clone.flush();
        assert_eq!(two.frame().await.0, Message::PreSync);
        drop(clone);
        assert!(matches!(events.recv().await, Some(super::LinkEvent::Down { .. })));
        two.down().await;
    });
}

#[test]
fn an_invalid_frame_is_never_sent() {
    on_shard(async {
        let (mut one, mut two) = links().await;
        one.send(&write(1, 2), smallvec![content(1, 1)]);
        let reason = one.down().await;
        assert!(reason.contains("invalid frame"), "{reason}");
        drop(one);
        assert!(two.down().await.contains("closed by the other side"));
    });
}

#[test]
fn a_dialled_link_keeps_what_follows_the_handshake_until_it_is_started_elsewhere() {
    on_shard(async {
        let mut listening = listen(Some(identity(1))).await;
        let dialled = ReadyLink::dial(&PLAIN, &listening.address, identity(2), identity(1).node, VOLUME).await.unwrap();
        assert_eq!((dialled.peer, dialled.incarnation), (identity(1).node, identity(1).incarnation));
        let Some(Incoming::Replication(accepted)) = listening.incoming.recv().await else { panic!("no link") };
        assert_eq!((accepted.peer, accepted.volume), (identity(2).node, VOLUME));
        let mut one = start(dialled);
        one.send(&write(1, 20), smallvec![content(1, 20)]);
        one.sender.flush();
        let elsewhere = std::thread::spawn(move || {
            on_shard(async move {
                let mut two = start(accepted);
                assert_eq!(two.frame().await, (write(1, 20), Some(content(1, 20))));
                two.send(&Message::Ack { seq: Seq(1) }, NONE);
                two.down().await;
            });
        });
        assert_eq!(one.frame().await.0, Message::Ack { seq: Seq(1) });
        one.sender.close("done");
        tokio::task::spawn_blocking(move || elsewhere.join()).await.unwrap().expect("the other shard");
    });
}

#[test]
fn a_closed_link_ends_the_stream_towards_its_peer() {
    on_shard(async {
        let (mut other, stream) = streams().await;
        let mut link = start(ready(stream, 2));
        link.send(&Message::HandoffReady, NONE);
        link.sender.close("done");
        let mut received = Vec::new();
        other.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, frame(&Message::HandoffReady, &[]));
        assert_eq!(link.down().await, "done");
    });
}
