//! Blocks that are bad on one copy, or on both: who is asked, what is mended, and what a client is told.

mod common;

use common::{A, B, C, Pair, read, write};
use proto::peer::message::{Message, WriteKind};
use proto::{BlockRange, Micros};
use replication::event::{Control, Coverage, Event, Request};
use replication::{Action, Notice, PastScrubs, Refusal, ScrubReport};

const BAD: BlockRange = BlockRange { start: 5, count: 1 };

/// Every local read of `BAD` at these nodes finds it bad from now on.
fn spoil(pair: &mut Pair, nodes: &'static [proto::NodeId]) {
    pair.hold(move |node, action| {
        nodes.contains(&node) && matches!(action, Action::ReadLocal { range, .. } if range.contains(BAD))
    });
}

/// Lets the held reads find what they find, until none is held.
fn find_bad(pair: &mut Pair) {
    for _ in 0..20 {
        let Some((node, Action::ReadLocal { io, .. })) = pair.held.pop() else { return };
        pair.event(node, Event::Corrupt { io, bad: vec![BAD] });
    }
    panic!("the core never gives up");
}

fn repairs(pair: &Pair, node: proto::NodeId) -> usize {
    pair.count(node, |action| matches!(action, Action::RepairLocal { range, .. } if *range == BAD))
}

#[test]
fn a_block_that_is_bad_here_is_taken_from_the_peer_and_read_again() {
    let mut pair = Pair::serving();
    spoil(&mut pair, &[A]);
    pair.client(A, 1, read(4, 4));
    let Some((_, Action::ReadLocal { io, .. })) = pair.held.pop() else { panic!("no read") };
    pair.hold(|_, _| false);
    pair.event(A, Event::Corrupt { io, bad: vec![BAD] });
    assert_eq!(repairs(&pair, A), 1);
    assert_eq!(pair.answer(1), Some(Ok(())));
    let asked = |message: &Message| matches!(message, Message::ReadRequest { range, .. } if *range == BAD);
    assert_eq!(pair.sent(A).filter(|(_, message)| asked(message)).count(), 1);
    assert_eq!(pair.count(A, |action| *action == Action::Release(replication::PayloadId::Io(io))), 1);
}

#[test]
fn a_block_that_is_bad_on_both_copies_fails_only_the_read_that_needs_it() {
    let mut pair = Pair::serving();
    spoil(&mut pair, &[A, B]);
    pair.client(A, 1, read(4, 4));
    find_bad(&mut pair);
    assert_eq!(pair.answer(1), Some(Err(Refusal::Io)));
    assert_eq!(repairs(&pair, A), 0);
    pair.client(A, 2, read(6, 4));
    assert_eq!(pair.answer(2), Some(Ok(())));
    pair.client(A, 3, write(5, 1));
    assert_eq!(pair.answer(3), Some(Ok(())), "a write of the whole block needs nothing of the old one");
    assert_eq!((pair.role(A), pair.role(B)), ("primary", "secondary"), "no disk is given up for it");
}

/// Peers whose copy `node` has asked for.
fn asked(pair: &Pair, node: proto::NodeId) -> usize {
    pair.sent(node).filter(|(_, message)| matches!(message, Message::ReadRequest { .. })).count()
}

#[test]
fn every_member_is_asked_before_a_read_fails() {
    for (bad, asks, mended, answer) in [
        (&[A, B] as &'static [proto::NodeId], 2, 1, Ok(())),
        (&[A, C], 1, 1, Ok(())),
        (&[A, B, C], 2, 0, Err(Refusal::Io)),
    ] {
        let mut pair = Pair::three();
        spoil(&mut pair, bad);
        pair.client(A, 1, read(4, 4));
        while pair.answer(1).is_none() {
            let Some((node, Action::ReadLocal { io, .. })) = pair.held.pop() else { panic!("no read of {bad:?}") };
            if repairs(&pair, A) > 0 {
                pair.hold(|_, _| false);
                pair.event(node, Event::LocalDone { io, result: replication::IoResult::Ok });
            } else {
                pair.event(node, Event::Corrupt { io, bad: vec![BAD] });
            }
        }
        assert_eq!((asked(&pair, A), repairs(&pair, A), pair.answer(1)), (asks, mended, Some(answer)), "{bad:?}");
    }
}

#[test]
fn a_primary_without_a_disk_asks_every_member() {
    for (bad, answer) in [(&[B] as &'static [proto::NodeId], Ok(())), (&[B, C], Err(Refusal::Io))] {
        let mut pair = Pair::three();
        pair.commits = true;
        pair.control(A, Control::Detach);
        assert_eq!(pair.config().in_sync.len(), 2);
        spoil(&mut pair, bad);
        pair.client(A, 1, read(4, 4));
        find_bad(&mut pair);
        assert_eq!((asked(&pair, A), pair.answer(1)), (2, Some(answer)), "{bad:?}");
        let edge = Request::Write { range: BAD, kind: WriteKind::Data, fua: false, coverage: Coverage::Partial };
        pair.client(A, 2, edge);
        find_bad(&mut pair);
        assert_eq!((asked(&pair, A), pair.answer(2)), (4, Some(answer)), "{bad:?}");
    }
}

#[test]
fn a_copy_that_is_wrong_like_ours_is_passed_over() {
    let mut pair = Pair::three();
    spoil(&mut pair, &[A]);
    pair.client(A, 1, read(5, 1));
    let Some((_, Action::ReadLocal { io, .. })) = pair.held.pop() else { panic!("no read") };
    pair.hold(|_, action| matches!(action, Action::RepairLocal { .. }));
    pair.event(A, Event::Corrupt { io, bad: vec![BAD] });
    let Some((_, Action::RepairLocal { io, .. })) = pair.held.pop() else { panic!("no repair") };
    pair.hold(|_, _| false);
    pair.event(A, Event::Corrupt { io, bad: vec![BAD] });
    assert_eq!((repairs(&pair, A), pair.answer(1)), (2, Some(Ok(()))));
}

/// No member has all of a run of bad blocks, but each block is good somewhere.
#[test]
fn blocks_that_are_good_on_different_members_are_all_mended() {
    let mut pair = Pair::three();
    let run = BlockRange::new(4, 2);
    spoil(&mut pair, &[A, B, C]);
    pair.client(A, 1, read(4, 2));
    let Some((_, Action::ReadLocal { io, .. })) = pair.held.pop() else { panic!("no read") };
    let bad_at = |node| BlockRange::new(if node == B { 4 } else { 5 }, 1);
    pair.hold(move |node, action| match action {
        Action::ReadLocal { range, .. } => node != A && range.contains(bad_at(node)),
        _ => false,
    });
    pair.event(A, Event::Corrupt { io, bad: vec![run] });
    while let Some((node, Action::ReadLocal { io, .. })) = pair.held.pop() {
        pair.event(node, Event::Corrupt { io, bad: vec![bad_at(node)] });
    }
    assert_eq!(pair.answer(1), Some(Ok(())));
}

#[test]
fn the_edge_of_a_partial_write_is_mended_before_it_is_merged() {
    let mut pair = Pair::serving();
    pair.hold(|node, action| node == A && matches!(action, Action::MergeEdges { .. }));
    let request = Request::Write { range: BAD, kind: WriteKind::Data, fua: false, coverage: Coverage::Partial };
    pair.client(A, 1, request);
    let Some((_, Action::MergeEdges { io, .. })) = pair.held.pop() else { panic!("no merge") };
    pair.event(A, Event::Corrupt { io, bad: vec![BAD] });
    assert_eq!(repairs(&pair, A), 1);
    assert_eq!(pair.answer(1), None);
    pair.release(|_, _| true);
    assert_eq!(pair.answer(1), Some(Ok(())));
}

#[test]
fn a_repair_goes_on_when_the_peer_is_back() {
    let mut pair = Pair::serving();
    spoil(&mut pair, &[A]);
    pair.client(A, 1, read(5, 1));
    let Some((_, Action::ReadLocal { io, .. })) = pair.held.pop() else { panic!("no read") };
    pair.hold(|node, action| node == B && matches!(action, Action::ReadLocal { .. }));
    pair.event(A, Event::Corrupt { io, bad: vec![BAD] });
    pair.cut();
    assert_eq!(pair.answer(1), None);
    pair.hold(|_, _| false);
    pair.release(|_, _| true);
    pair.connected = true;
    pair.wait(300);
    assert_eq!(pair.answer(1), Some(Ok(())));
}

#[test]
fn a_scrub_in_the_background_is_due_by_the_calendar_and_goes_on_where_it_was() {
    const DAY: Micros = Micros::from_secs(24 * 3600);
    let pair = Pair::scrubbed(PastScrubs { ended_ago: Micros(13 * DAY.0), under_way: None });
    assert_eq!(pair.replicas[&A].status(pair.now).scrub, None, "a period is 14 days");
    let under_way = ScrubReport { blocks: 4096, done_blocks: 1024, bad_here: 3, repaired: 3, ..ScrubReport::default() };
    let pair = Pair::scrubbed(PastScrubs { ended_ago: Micros(15 * DAY.0), under_way: Some(under_way) });
    let read = |node| {
        pair.orders.iter().filter_map(move |(by, action)| match action {
            Action::ReadLocal { range, .. } if *by == node => Some(range.start),
            _ => None,
        })
    };
    assert_eq!((read(A).next(), read(B).next()), (Some(1024), Some(1024)), "both copies read on");
    let recorded = |action: &Action| *action == Action::RecordScrub { ended: None, under_way: Some(under_way) };
    assert_eq!(pair.count(A, recorded), 1);
    let status = pair.replicas[&A].status(pair.now).scrub.expect("it goes on");
    assert_eq!((status.done_blocks, status.bad_here, status.repaired), (1280, 3, 3));
}

#[test]
fn only_a_scrub_that_mends_ends_the_one_in_the_background() {
    let under_way = ScrubReport { blocks: 4096, done_blocks: 1024, ..ScrubReport::default() };
    for verify_only in [true, false] {
        let mut pair = Pair::scrubbed(PastScrubs { ended_ago: Micros(0), under_way: Some(under_way) });
        pair.control(A, Control::Scrub { verify_only });
        pair.wait(1000);
        let left = Some(under_way).filter(|_| verify_only);
        let ended = Action::RecordScrub { ended: Some(last_scrub(&pair)), under_way: left };
        assert_eq!(pair.count(A, |action| *action == ended), 1, "verify_only: {verify_only}");
    }
}

fn last_scrub(pair: &Pair) -> ScrubReport {
    let done = |action: &Action| match action {
        Action::Notify(Notice::Scrub { report, done: true }) => Some(*report),
        _ => None,
    };
    pair.orders.iter().rev().find_map(|(_, action)| done(action)).expect("a scrub has ended")
}

fn scrub(pair: &mut Pair, verify_only: bool) -> ScrubReport {
    pair.control(A, Control::Scrub { verify_only });
    for _ in 0..2000 {
        pair.wait(10);
        while let Some((node, action)) = pair.held.pop() {
            let Action::ReadLocal { io, .. } = action else { panic!("only reads are held") };
            pair.event(node, Event::Corrupt { io, bad: vec![BAD] });
        }
        if pair.replicas[&A].status(pair.now).scrub.is_none() {
            return last_scrub(pair);
        }
    }
    panic!("the scrub does not end");
}

#[test]
fn a_scrub_of_good_copies_finds_nothing() {
    let mut pair = Pair::serving();
    let report = scrub(&mut pair, false);
    assert_eq!(report, ScrubReport { blocks: 4096, done_blocks: 4096, ..ScrubReport::default() });
    let read_at = |pair: &Pair, node| {
        let blocks = |action: &Action| if let Action::ReadLocal { range, .. } = action { range.count } else { 0 };
        pair.orders.iter().filter(|(by, _)| *by == node).map(|(_, action)| blocks(action)).sum::<u64>()
    };
    assert_eq!((read_at(&pair, A), read_at(&pair, B)), (4096, 4096));
}

#[test]
fn a_scrub_mends_the_bad_copy_and_a_verify_only_tells() {
    for (node, verify_only) in [(A, false), (A, true), (B, false), (B, true)] {
        let mut pair = Pair::serving();
        spoil(&mut pair, if node == A { &[A] } else { &[B] });
        let report = scrub(&mut pair, verify_only);
        assert_eq!((report.bad_here, report.bad_at_peers), if node == A { (1, 0) } else { (0, 1) });
        assert_eq!(report.repaired, u64::from(!verify_only));
        let sent = |message: &Message| matches!(message, Message::ResyncData { range, .. } if *range == BAD);
        let pushed = pair.sent(A).filter(|(_, message)| sent(message)).count();
        let mended = (repairs(&pair, A), pushed);
        let expected = if verify_only { (0, 0) } else { (usize::from(node == A), usize::from(node == B)) };
        assert_eq!(mended, expected, "{node} {verify_only}");
    }
}

#[test]
fn a_block_that_is_bad_on_both_copies_stands_in_the_way_of_no_other() {
    let mut pair = Pair::serving();
    spoil(&mut pair, &[A, B]);
    pair.control(A, Control::Scrub { verify_only: false });
    for _ in 0..20 {
        pair.wait(10);
        while let Some((node, Action::ReadLocal { io, .. })) = pair.held.pop() {
            let bad = vec![if node == A { BlockRange::new(4, 3) } else { BAD }];
            pair.event(node, Event::Corrupt { io, bad });
        }
    }
    let report = scrub_on(&mut pair);
    assert_eq!((report.bad_here, report.bad_at_peers, report.repaired), (3, 1, 2));
    let mended = |block: u64| {
        let range = BlockRange::new(block, 1);
        pair.count(A, |action| matches!(action, Action::RepairLocal { range: at, .. } if *at == range))
    };
    assert_eq!([mended(4), mended(5), mended(6)], [1, 0, 1]);
}

#[test]
fn of_two_good_copies_that_differ_the_primary_keeps_its_own() {
    let mut pair = Pair::serving();
    pair.hold(|_, action| matches!(action, Action::CompareSums { range, .. } if range.contains(BAD)));
    pair.control(A, Control::Scrub { verify_only: false });
    let Some((_, Action::CompareSums { io, .. })) = pair.held.pop() else { panic!("no comparison") };
    pair.event(A, Event::SumsCompared { io, differing: vec![BAD] });
    pair.hold(|_, _| false);
    let report = scrub_on(&mut pair);
    assert_eq!((report.differing, report.repaired), (1, 1));
}

/// Waits for the scrub that is under way.
fn scrub_on(pair: &mut Pair) -> ScrubReport {
    for _ in 0..2000 {
        pair.wait(10);
        if pair.replicas[&A].status(pair.now).scrub.is_none() {
            return last_scrub(pair);
        }
    }
    panic!("the scrub does not end");
}

#[test]
fn a_scrub_survives_the_loss_of_the_peer_and_counts_what_it_could_not_see() {
    let mut pair = Pair::serving();
    pair.commits = true;
    pair.hold(|node, action| node == B && matches!(action, Action::ReadLocal { .. }));
    pair.control(A, Control::Scrub { verify_only: false });
    pair.cut();
    pair.hold(|_, _| false);
    let report = scrub_on(&mut pair);
    assert_eq!((report.done_blocks, report.bad_here, report.bad_at_peers, report.differing), (4096, 0, 0, 0));
    assert!(report.skipped_steps > 0);
}

#[test]
fn a_write_to_a_step_waits_for_it_and_is_no_difference() {
    let mut pair = Pair::serving();
    pair.hold(|node, action| node == B && matches!(action, Action::ReadLocal { .. }));
    pair.control(A, Control::Scrub { verify_only: false });
    pair.client(A, 1, write(5, 1));
    assert_eq!(pair.answer(1), None, "the step holds its range");
    pair.hold(|_, _| false);
    pair.release(|_, _| true);
    assert_eq!(pair.answer(1), Some(Ok(())));
    assert_eq!(scrub_on(&mut pair).differing, 0);
}

/// `abort_scrub_step` let the range go while the repair was still being written, so that a client's write and the old data
/// were on their way to one block at once.
#[test]
fn a_scrub_given_up_in_the_middle_of_a_repair_keeps_its_range_until_the_repair_has_landed() {
    let mut pair = Pair::serving();
    spoil(&mut pair, &[A]);
    pair.control(A, Control::Scrub { verify_only: false });
    let Some((_, Action::ReadLocal { io, .. })) = pair.held.pop() else { panic!("no read") };
    pair.hold(|node, action| node == A && matches!(action, Action::RepairLocal { .. }));
    pair.event(A, Event::Corrupt { io, bad: vec![BAD] });
    let Some((_, Action::RepairLocal { io, .. })) = pair.held.pop() else { panic!("no repair") };
    pair.cut();
    pair.connected = true;
    pair.wait(300);
    pair.client(A, 1, write(5, 1));
    let written =
        |pair: &Pair| pair.count(A, |action| matches!(action, Action::WriteLocal { range, .. } if *range == BAD));
    assert_eq!(written(&pair), 0, "the repair is still on its way to the disk");
    pair.event(A, Event::LocalDone { io, result: replication::IoResult::Ok });
    assert_eq!((written(&pair), pair.answer(1)), (1, Some(Ok(()))));
}

/// B leaves while the extent of `BAD` is hot on it, and is restarted: it will not vouch for any of it.
fn leave_hot(pair: &mut Pair) {
    pair.client(A, 1, write(20, 1));
    assert_eq!(pair.answer(1), Some(Ok(())));
    pair.cut();
    pair.wait(1000);
    pair.control(B, Control::Detach);
    assert_eq!(pair.stores[&B].hot.len(), 1);
    pair.attach(B, pair.report(B));
}

/// The resync of a copy from the only one in sync, of which `BAD` does not match its sum: the target must keep what it
/// holds, which may be right, and know what it should be.
#[test]
fn a_resync_overwrites_nothing_with_a_block_that_is_bad_at_the_source() {
    let mut pair = Pair::serving();
    pair.commits = true;
    leave_hot(&mut pair);
    spoil(&mut pair, &[A]);
    pair.connected = true;
    pair.wait(2000);
    let Some((_, Action::ReadLocal { io, .. })) = pair.held.pop() else { panic!("no step of a resync") };
    pair.hold(|node, action| match action {
        Action::PersistActivityLog { .. } => node == B,
        Action::CompareDigests { .. } => node == A,
        _ => false,
    });
    pair.event(A, Event::Corrupt { io, bad: vec![BAD] });
    let compared = pair.held.iter().position(|(node, _)| *node == A).map(|at| pair.held.remove(at));
    let Some((_, Action::CompareDigests { io, .. })) = compared else { panic!("not compared") };
    pair.event(A, Event::DigestsCompared { io, differing: vec![BlockRange::new(4, 4)] });
    let told = |action: &Action| matches!(action, Action::ExpectLocal { range, lost: false, .. } if *range == BAD);
    if !pair.held.is_empty() {
        assert_eq!(pair.count(B, told), 0, "its extent is not hot yet");
        pair.hold(|_, _| false);
        pair.release(|_, _| true);
    }
    let written = |range: BlockRange| {
        pair.count(B, |action| matches!(action, Action::WriteLocal { range: at, .. } if *at == range))
    };
    assert_eq!((pair.count(B, told), written(BlockRange::new(4, 1)), written(BlockRange::new(6, 2))), (1, 1, 1));
    let over = |action: &Action| matches!(action, Action::WriteLocal { range, .. } if range.overlaps(BAD));
    assert_eq!(pair.count(B, over), 0);
    pair.hold(|_, _| false);
    pair.wait(2000);
    assert_eq!(pair.role(B), "secondary", "the block does not keep it out of sync");
    spoil(&mut pair, &[A]);
    pair.client(A, 2, read(5, 1));
    let Some((_, Action::ReadLocal { io, .. })) = pair.held.pop() else { panic!("no read") };
    pair.hold(|_, _| false);
    pair.event(A, Event::Corrupt { io, bad: vec![BAD] });
    assert_eq!((repairs(&pair, A), pair.answer(2)), (1, Some(Ok(()))), "and heals the source");
}

/// The same when the block was written while the target was away: whatever it holds is old, and must not be taken for good
/// though it fit the checksum, which may be as old if the disk has lost a write of it.
#[test]
fn a_block_that_is_bad_at_the_source_and_old_at_the_target_is_lost() {
    let mut pair = Pair::serving();
    pair.commits = true;
    leave_hot(&mut pair);
    pair.client(A, 2, write(BAD.start, 1));
    assert_eq!(pair.answer(2), Some(Ok(())));
    spoil(&mut pair, &[A]);
    pair.connected = true;
    pair.wait(2000);
    let Some((_, Action::ReadLocal { io, .. })) = pair.held.pop() else { panic!("no step of a resync") };
    pair.hold(|_, _| false);
    pair.event(A, Event::Corrupt { io, bad: vec![BlockRange::new(4, 3)] });
    let expected = pair.orders.iter().filter_map(|(node, action)| match action {
        Action::ExpectLocal { range, lost, .. } if *node == B => Some((*range, *lost)),
        _ => None,
    });
    let expected: Vec<(BlockRange, bool)> = expected.collect();
    assert_eq!(expected, [(BlockRange::new(4, 1), false), (BAD, true), (BlockRange::new(6, 1), false)]);
}
