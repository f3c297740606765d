//! What a resync compares, what it sends, and what it waits for.

mod common;

use common::{A, B, Pair, write};
use proto::peer::message::Message;
use proto::{BlockRange, EXTENT_BLOCKS, NodeId};
use replication::config::VolumeCommand;
use replication::event::{Event, PayloadId};
use replication::{Action, Timing};

const SIZE_BYTES: u64 = 128 << 20;
const EXTENTS: u64 = SIZE_BYTES / (EXTENT_BLOCKS * proto::BLOCK_BYTES);
const BLOCKS: u64 = EXTENTS * EXTENT_BLOCKS;

/// What a step finds: which blocks differ, from the peer's or from zeros (`None`).
type Content = fn(BlockRange, Option<PayloadId>) -> Vec<BlockRange>;

/// B has taken over from A, and all of A's copy may differ: the resync has begun, and its comparisons are held back.
fn begun() -> Pair {
    let mut pair = Pair::serving_size(SIZE_BYTES);
    for extent in 0..EXTENTS {
        pair.client(A, 1 + extent, write(extent * EXTENT_BLOCKS, 1));
    }
    pair.cut();
    pair.wait(1700);
    pair.commit(|command| matches!(command, VolumeCommand::TakeOver { .. }));
    pair.connected = true;
    pair.commits = true;
    pair.hold(|node, action| node == B && matches!(action, Action::CompareDigests { .. }));
    pair
}

/// Goes on to the end of the resync.
fn finish(pair: &mut Pair, content: Content) {
    for _ in 0..300 {
        pair.wait(10);
        while !pair.held.is_empty() {
            let (node, action) = pair.held.remove(0);
            let Action::CompareDigests { io, range, theirs } = action else { panic!("{action:?} is held") };
            pair.event(node, Event::DigestsCompared { io, differing: content(range, theirs) });
        }
    }
    assert_eq!((pair.role(A), pair.role(B)), ("secondary", "primary"));
}

fn requested(pair: &Pair, node: NodeId) -> Vec<BlockRange> {
    let range = |message: &Message| match message {
        Message::DigestRequest { range, .. } => Some(*range),
        _ => None,
    };
    pair.sent(node).filter_map(|(_, message)| range(message)).collect()
}

fn sent(pair: &Pair, node: NodeId) -> Vec<BlockRange> {
    let range = |message: &Message| match message {
        Message::ResyncData { range, .. } => Some(*range),
        _ => None,
    };
    pair.sent(node).filter_map(|(_, message)| range(message)).collect()
}

fn blocks(ranges: &[BlockRange]) -> u64 {
    ranges.iter().map(|range| range.count).sum()
}

#[test]
fn a_copy_that_differs_everywhere_is_soon_compared_only_now_and_then() {
    let mut pair = begun();
    finish(&mut pair, |range, _| vec![range]);
    assert_eq!(blocks(&sent(&pair, B)), BLOCKS, "all of it is sent once");
    let (compared, timing) = (requested(&pair, B).len() as u64, Timing::default());
    let steps = BLOCKS / timing.resync_chunk_blocks;
    let before = u64::from(timing.resync_compares_in_vain) + timing.resync_chunks_in_flight as u64;
    assert!((before..before + steps / 16).contains(&compared), "{compared} of {steps} steps are compared");
}

#[test]
fn a_copy_that_is_equal_is_compared_to_the_end_and_sent_nothing() {
    let mut pair = begun();
    finish(&mut pair, |_, _| Vec::new());
    assert_eq!((blocks(&requested(&pair, B)), blocks(&sent(&pair, B))), (BLOCKS, 0));
}

#[test]
fn zeros_are_compared_before_they_are_sent_whatever_was_found_before() {
    // The second half of the volume holds nothing, on both copies.
    const DATA: BlockRange = BlockRange { start: 0, count: BLOCKS / 2 };
    let mut pair = begun();
    finish(&mut pair, |range, _| if range.overlaps(DATA) { vec![range] } else { Vec::new() });
    assert_eq!(blocks(&sent(&pair, B)), DATA.count);
    let compared = requested(&pair, B);
    assert!(blocks(&compared) < BLOCKS, "not all of the data is compared");
    let zeros: Vec<BlockRange> = compared.into_iter().filter(|range| !range.overlaps(DATA)).collect();
    assert_eq!(blocks(&zeros), BLOCKS - DATA.count, "each of the zeros is compared, once");
}

#[test]
fn what_follows_an_equal_block_is_compared_again() {
    // Only the first quarter differs; after it, all that is not zeros is equal.
    const DIFFERS: BlockRange = BlockRange { start: 0, count: BLOCKS / 4 };
    let mut pair = begun();
    finish(
        &mut pair,
        |range, theirs| if theirs.is_none() || range.overlaps(DIFFERS) { vec![range] } else { Vec::new() },
    );
    let in_vain = blocks(&sent(&pair, B)) - DIFFERS.count;
    assert!(in_vain < BLOCKS / 2, "{in_vain} equal blocks are sent");
}

#[test]
fn steps_go_on_while_a_flush_is_under_way() {
    let mut pair = begun();
    pair.hold(|node, action| match action {
        Action::CompareDigests { .. } => node == B,
        Action::FlushLocal { .. } => node == A,
        _ => false,
    });
    for _ in 0..300 {
        pair.wait(10);
        let held = std::mem::take(&mut pair.held);
        let (compare, flushes) =
            held.into_iter().partition(|(_, action)| matches!(action, Action::CompareDigests { .. }));
        pair.held = flushes;
        for (node, action) in compare {
            let Action::CompareDigests { io, range, .. } = action else { unreachable!("just picked") };
            pair.event(node, Event::DigestsCompared { io, differing: vec![range] });
        }
    }
    assert_eq!(blocks(&sent(&pair, B)), BLOCKS, "the flush holds nothing back");
    assert_eq!(pair.held.len(), 1, "one flush at a time");
    assert_eq!(pair.role(A), "resyncing", "not in sync before it is flushed");
    pair.hold(|_, _| false);
    pair.release(|_, _| true);
    pair.wait(1000);
    assert_eq!(pair.role(A), "secondary");
}
