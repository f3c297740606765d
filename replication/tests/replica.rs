//! One primary and one secondary, seen from outside: facts in, orders out.

mod common;

use std::collections::BTreeSet;

use common::{A, B, Pair, V, disk_of, is_local_flush, is_local_write, read, run_of, write};
use proto::peer::message::{Envelope, Message, NackReason, Seq, WriteKind};
use proto::peer::version::SUPPORTED;
use proto::{BlockRange, ConfigVersion, DiskId, EXTENT_BLOCKS, Epoch, NodeId, SessionId};
use replication::config::{NodeCommand, VolumeCommand};
use replication::event::{Control, Coverage, DiskReport, Event, IoResult, LinkId, OpId, PayloadId, Request};
use replication::primary::CLIENT_OPERATIONS_MAX;
use replication::{Action, Refusal};

fn is_shrink(command: &VolumeCommand) -> bool {
    matches!(command, VolumeCommand::Shrink { .. })
}

fn is_take_over(command: &VolumeCommand) -> bool {
    matches!(command, VolumeCommand::TakeOver { .. })
}

fn is_handoff(command: &VolumeCommand) -> bool {
    matches!(command, VolumeCommand::Handoff { .. })
}

#[test]
fn a_write_is_acknowledged_only_when_both_copies_have_it() {
    for first in [A, B] {
        let second = if first == A { B } else { A };
        let mut pair = Pair::serving();
        pair.hold(|_, action| is_local_write(action));
        pair.client(A, 1, write(0, 2));
        assert_eq!(pair.held.len(), 2, "local disk and peer work in parallel");
        pair.release(|node, _| node == first);
        assert_eq!(pair.answer(1), None, "only {first} has it");
        pair.release(|node, _| node == second);
        assert_eq!(pair.answer(1), Some(Ok(())));
    }
}

#[test]
fn nothing_is_acknowledged_alone_before_the_shrink_is_applied() {
    let mut pair = Pair::serving();
    pair.cut();
    pair.client(A, 1, write(0, 1));
    pair.client(A, 2, Request::Flush);
    pair.wait(500);
    assert!(pair.proposed(A).is_empty(), "the peer may come back at once");
    pair.wait(300);
    assert!(pair.proposed(A).iter().any(is_shrink));
    pair.wait(10_000);
    assert_eq!((pair.answer(1), pair.answer(2)), (None, None), "a proposal is no commitment");
    pair.commit(is_shrink);
    assert_eq!((pair.answer(1), pair.answer(2)), (Some(Ok(())), Some(Ok(()))));
}

#[test]
fn a_proposal_without_effect_is_repeated_as_the_same_request() {
    let mut pair = Pair::serving();
    pair.cut();
    pair.wait(2000);
    let requests: BTreeSet<_> =
        pair.proposals.iter().filter(|(by, _)| *by == A).map(|(_, command)| command.request).collect();
    let proposals = pair.proposed(A).len();
    assert!(proposals >= 3 && requests.len() == 1, "{proposals} proposals, {requests:?}");
}

#[test]
fn a_read_waits_for_the_lease() {
    let mut pair = Pair::serving();
    pair.client(A, 1, read(0, 1));
    assert_eq!(pair.answer(1), Some(Ok(())), "with a lease it is answered at once");
    pair.cut();
    pair.wait(1100);
    pair.client(A, 2, read(0, 1));
    assert_eq!(pair.count(A, |action| matches!(action, Action::ReadLocal { .. })), 2, "the data is at hand");
    assert_eq!(pair.answer(2), None, "another node may be primary");
    pair.commit(is_shrink);
    assert_eq!(pair.answer(2), Some(Ok(())), "a sole member needs no lease");
}

#[test]
fn a_read_behind_a_write_waits_until_the_peer_has_the_write() {
    let mut pair = Pair::serving();
    pair.hold(|node, action| node == B && is_local_write(action));
    pair.client(A, 1, write(3, 2));
    pair.client(A, 2, read(4, 1));
    pair.client(A, 3, read(5, 1));
    assert_eq!((pair.answer(2), pair.answer(3)), (None, Some(Ok(()))), "only the overlapping read waits");
    pair.release(|_, _| true);
    assert_eq!((pair.answer(1), pair.answer(2)), (Some(Ok(())), Some(Ok(()))));
}

/// What B answers to a Hello of A with this epoch and version, for this copy.
fn hello(pair: &mut Pair, epoch: Epoch, version: ConfigVersion, disk_id: DiskId) -> Option<NackReason> {
    let link = LinkId(9000);
    let session = SessionId(77);
    let before = pair.orders.len();
    pair.event(B, Event::LinkUp { peer: A, link, outbound: false, protocol: SUPPORTED.max });
    let message = Message::Hello { incarnation: run_of(A), disk_id, stamp: pair.now };
    pair.event(B, Event::Frame { link, envelope: Envelope { epoch, version, session }, message, payload: None });
    let reply = pair.orders[before..].iter().find_map(|(node, action)| match action {
        Action::Send { link: on, envelope, message, .. } if (*node, *on) == (B, link) => {
            assert_eq!(envelope.session, session);
            Some(message.clone())
        }
        _ => None,
    });
    match reply.expect("an answer") {
        Message::Nack { reason } => Some(reason),
        Message::HelloReply { disk_id, incarnation, .. } => {
            assert_eq!((disk_id, incarnation), (disk_of(B), run_of(B)));
            None
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hello_is_judged_by_epoch_version_and_copy() {
    let mut pair = Pair::serving();
    let (epoch, version) = (pair.config().epoch, pair.config().version);
    assert_eq!(hello(&mut pair, Epoch(0), version, disk_of(B)), Some(NackReason::StaleEpoch));
    assert_eq!(hello(&mut pair, epoch.next(), version, disk_of(B)), Some(NackReason::NotYet));
    assert_eq!(hello(&mut pair, epoch, version.next(), disk_of(B)), Some(NackReason::NotYet));
    assert_eq!(hello(&mut pair, epoch, version, disk_of(A)), Some(NackReason::WrongDisk));
    assert_eq!(hello(&mut pair, epoch, version, disk_of(B)), None);
}

#[test]
fn a_fenced_copy_refuses_what_its_fence_covers_until_the_version_has_moved() {
    let mut pair = Pair::serving();
    let (epoch, version) = (pair.config().epoch, pair.config().version);
    pair.cut();
    pair.wait(2000);
    assert_eq!(pair.role(B), "fenced");
    assert_eq!(hello(&mut pair, epoch, version, disk_of(B)), Some(NackReason::StaleEpoch));
    // The take-over loses the race: the primary has dropped the fenced copy.
    pair.commit(is_shrink);
    assert_eq!(pair.role(B), "outdated");
    assert_eq!(hello(&mut pair, epoch, version.next(), disk_of(B)), None);
}

#[test]
fn a_hello_of_a_run_that_is_known_to_have_ended_is_refused() {
    let mut pair = Pair::serving();
    let (epoch, version) = (pair.config().epoch, pair.config().version);
    pair.hold(|_, action| matches!(action, Action::PersistFence { .. }));
    pair.event(B, Event::Goodbye { node: A, incarnation: run_of(A) });
    assert!(matches!(hello(&mut pair, epoch, version, disk_of(B)), Some(NackReason::StaleEpoch | NackReason::NotYet)));
}

#[test]
fn the_fence_is_durable_before_the_take_over_is_proposed() {
    let mut pair = Pair::serving();
    pair.hold(|_, action| matches!(action, Action::PersistFence { .. }));
    pair.cut();
    pair.wait(1300);
    assert!(pair.held.is_empty(), "within the grace the primary may still serve reads");
    pair.wait(10_000);
    let (epoch, version) = (pair.config().epoch, pair.config().version);
    assert_eq!(pair.held, [(B, Action::PersistFence { epoch, version })]);
    assert!(pair.proposed(B).is_empty());
    pair.release(|_, _| true);
    assert_eq!(pair.proposed(B), [VolumeCommand::TakeOver { by: (B, run_of(B)), cold_ok: false, failed: false }]);
}

#[test]
fn a_goodbye_of_the_primary_spares_the_grace_and_one_of_another_run_does_not() {
    let mut pair = Pair::serving();
    pair.cut();
    pair.event(B, Event::Goodbye { node: A, incarnation: proto::Incarnation(1) });
    assert!(pair.proposed(B).is_empty());
    pair.event(B, Event::Goodbye { node: A, incarnation: run_of(A) });
    assert!(pair.proposed(B).iter().any(is_take_over));
}

#[test]
fn a_take_over_while_the_raft_leader_hears_the_primary_waits_one_grace_longer() {
    let mut pair = Pair::serving();
    pair.cut();
    for _ in 0..25 {
        pair.event(B, Event::LeaderHears { node: A, alive: true });
        pair.wait(100);
    }
    assert!(pair.proposed(B).is_empty(), "the primary may drop it by itself");
    for _ in 0..7 {
        pair.event(B, Event::LeaderHears { node: A, alive: true });
        pair.wait(100);
    }
    assert!(pair.proposed(B).iter().any(is_take_over));
}

#[test]
fn a_deposed_primary_refuses_everything_and_names_its_successor() {
    let mut pair = Pair::serving();
    pair.cut();
    pair.client(A, 1, write(0, 1));
    pair.client(A, 2, read(9, 1));
    pair.wait(1600);
    pair.client(A, 3, read(9, 1));
    assert!((1..=3).all(|op| pair.answer(op).is_none()), "a lease ends with its session");
    pair.commit(is_take_over);
    assert!((1..=3).all(|op| pair.answer(op) == Some(Err(Refusal::NotPrimary(B)))));
    assert_eq!((pair.role(A), pair.role(B)), ("outdated", "primary"));
    pair.client(A, 4, read(0, 1));
    assert_eq!(pair.answer(4), Some(Err(Refusal::NotPrimary(B))));
    pair.client(B, 5, write(0, 1));
    assert_eq!(pair.answer(5), Some(Ok(())), "the sole member of its epoch");
    assert!(!pair.proposed(A).iter().any(is_take_over));
}

#[test]
fn a_handoff_is_proposed_only_when_all_is_drained_and_flushed() {
    let mut pair = Pair::serving();
    pair.hold(|_, action| is_local_write(action) || is_local_flush(action));
    pair.client(A, 1, write(0, 1));
    pair.release(|node, action| node == B && is_local_write(action));
    pair.control(A, Control::Switchover { to: B });
    assert_eq!(pair.role(A), "primary, suspended");
    pair.client(A, 2, write(8, 1));
    assert!(!pair.held.iter().any(|(_, action)| is_local_flush(action)), "not drained yet");
    pair.release(|_, action| is_local_write(action));
    assert_eq!(pair.answer(1), Some(Ok(())));
    assert_eq!(pair.held.len(), 2, "a flush on each copy, and no write");
    assert!(pair.held.iter().all(|(_, action)| is_local_flush(action)));
    pair.release(|node, _| node == A);
    assert!(!pair.proposed(A).iter().any(is_handoff), "the target has not flushed");
    pair.release(|_, _| true);
    assert_eq!(pair.proposed(A), [VolumeCommand::Handoff { by: (A, run_of(A)), epoch: Epoch(1), to: B }]);
    assert_eq!(pair.answer(2), None, "its fate decides who serves it");
    pair.hold(|_, _| false);
    pair.commit(is_handoff);
    assert_eq!(pair.answer(2), Some(Err(Refusal::NotPrimary(B))));
    assert_eq!((pair.role(A), pair.role(B)), ("secondary", "primary"));
    pair.wait(300);
    pair.client(B, 3, read(0, 1));
    pair.client(B, 4, write(0, 1));
    assert_eq!((pair.answer(3), pair.answer(4)), (Some(Ok(())), Some(Ok(()))), "both are members of the new epoch");
    assert_eq!(pair.config().in_sync.len(), 2);
}

#[test]
fn a_handoff_of_unknown_fate_is_killed_before_clients_are_served_again() {
    let mut pair = Pair::serving();
    pair.control(A, Control::Switchover { to: B });
    assert!(pair.proposed(A).iter().any(is_handoff));
    pair.client(A, 1, write(0, 1));
    pair.wait(5500);
    assert!(pair.proposed(A).iter().any(|command| matches!(command, VolumeCommand::Renew { .. })));
    assert_eq!(pair.answer(1), None, "the handoff may still commit");
    pair.commit(|command| matches!(command, VolumeCommand::Renew { .. }));
    assert_eq!(pair.answer(1), Some(Ok(())));
    assert_eq!(pair.role(A), "primary");
}

#[test]
fn a_partial_write_merges_its_edges_before_it_touches_or_sends_anything() {
    let mut pair = Pair::serving();
    pair.hold(|_, action| matches!(action, Action::MergeEdges { .. }));
    let range = BlockRange::new(4, 3);
    let partial = Request::Write { range, kind: WriteKind::Data, fua: true, coverage: Coverage::Partial };
    pair.client(A, 1, partial);
    let [(A, Action::MergeEdges { op: OpId(1), range: merged, .. })] = pair.held[..] else { panic!("{:?}", pair.held) };
    assert_eq!(merged, range);
    let touched = |pair: &Pair| pair.count(A, is_local_write) + pair.count(B, is_local_write);
    assert_eq!(touched(&pair), 0);
    pair.client(A, 2, write(6, 1));
    assert_eq!(touched(&pair), 0, "a write to the same block waits for its turn");
    pair.release(|_, _| true);
    assert_eq!((pair.answer(1), pair.answer(2), touched(&pair)), (Some(Ok(())), Some(Ok(())), 4));
    let fua = |action: &Action| matches!(action, Action::WriteLocal { fua: true, range: whole, .. } if *whole == range);
    assert_eq!((pair.count(A, fua), pair.count(B, fua)), (1, 1));
}

#[test]
fn an_edge_that_cannot_be_read_detaches_the_disk() {
    let mut pair = Pair::serving();
    pair.hold(|_, action| matches!(action, Action::MergeEdges { .. }));
    let range = BlockRange::new(4, 1);
    pair.client(A, 1, Request::Write { range, kind: WriteKind::Data, fua: false, coverage: Coverage::Partial });
    let Some((_, Action::MergeEdges { io, .. })) = pair.held.pop() else { panic!("no merge") };
    pair.event(A, Event::EdgesMerged { io, result: IoResult::Failed });
    assert_eq!(pair.count(A, |action| *action == Action::DetachDisk { failed: true }), 1);
    assert_eq!(pair.answer(1), None, "it has touched nothing and waits for who serves next");
    assert_eq!(pair.proposed(A), [VolumeCommand::Shrink { by: (A, run_of(A)), epoch: Epoch(1), victims: vec![A] }]);
}

#[test]
fn a_primary_that_lost_its_disk_completes_nothing_until_it_has_left_the_set_and_then_serves_through_the_peer() {
    let mut pair = Pair::serving();
    pair.hold(|node, action| node == A && is_local_write(action));
    pair.client(A, 1, write(0, 1));
    let Some((_, Action::WriteLocal { io, .. })) = pair.held.pop() else { panic!("no write") };
    pair.event(A, Event::LocalDone { io, result: IoResult::Failed });
    pair.wait(1000);
    assert_eq!(pair.answer(1), None, "B has it, and so must every member");
    pair.commit(is_shrink);
    assert_eq!(pair.answer(1), Some(Ok(())), "the one member has it");
    pair.wait(200);
    let edge = BlockRange::new(7, 1);
    let partial = Request::Write { range: edge, kind: WriteKind::Data, fua: false, coverage: Coverage::Partial };
    let before = pair.orders.len();
    for (op, request) in [(2, write(5, 1)), (3, read(5, 1)), (4, partial), (5, Request::Flush)] {
        pair.client(A, op, request);
        assert_eq!(pair.answer(op), Some(Ok(())), "operation {op}");
    }
    let touched = |(node, action): &&(NodeId, Action)| {
        *node == A && matches!(action, Action::ReadLocal { .. } | Action::WriteLocal { .. } | Action::FlushLocal { .. })
    };
    assert_eq!(pair.orders[before..].iter().filter(touched).count(), 0, "A has no disk");
    // The disk comes back: B becomes primary and brings it up to date, in part.
    pair.hold(|_, _| false);
    pair.commits = true;
    let before = pair.orders.len();
    pair.attach(A, DiskReport { failed: true, suspect: true, ..pair.report(A) });
    pair.wait(10_000);
    assert_eq!((pair.role(A), pair.role(B)), ("secondary", "primary"));
    let resynced = pair.orders[before..].iter().filter_map(|(node, action)| match action {
        Action::Send { message: Message::DigestRequest { range, .. }, .. } if *node == B => Some(range.count),
        _ => None,
    });
    assert_eq!(resynced.sum::<u64>(), EXTENT_BLOCKS, "the one extent that was written to");
}

#[test]
fn a_failed_flush_of_a_member_detaches_its_disk_and_is_not_repeated() {
    let mut pair = Pair::serving();
    pair.hold(|node, action| node == B && is_local_flush(action));
    pair.client(A, 1, Request::Flush);
    let Some((B, Action::FlushLocal { io })) = pair.held.pop() else { panic!("no flush") };
    pair.event(B, Event::LocalDone { io, result: IoResult::Failed });
    assert_eq!(pair.role(B), "diskless");
    assert!(pair.sent(B).any(|(_, message)| *message == Message::Nack { reason: NackReason::DiskFailed }));
    pair.wait(100);
    assert!(pair.held.is_empty() && pair.answer(1).is_none());
    assert!(pair.proposed(B).contains(&VolumeCommand::Resign { by: (B, run_of(B)) }), "it leaves by itself");
    pair.commit(is_shrink);
    assert_eq!(pair.answer(1), Some(Ok(())));
}

#[test]
fn an_operation_that_hangs_counts_as_failed() {
    let mut pair = Pair::serving();
    pair.hold(|node, action| node == B && is_local_write(action));
    pair.client(A, 1, write(0, 1));
    pair.wait(4900);
    assert_eq!(pair.role(B), "secondary");
    pair.wait(300);
    assert_eq!(pair.role(B), "diskless");
}

#[test]
fn operations_over_the_bound_are_refused_and_the_others_kept() {
    let mut pair = Pair::blank();
    pair.tell_config();
    let bound = CLIENT_OPERATIONS_MAX as u64;
    for op in 0..bound {
        pair.client(A, op, write(0, 1));
    }
    assert_eq!(pair.count(A, |action| matches!(action, Action::Refuse { .. })), 0);
    pair.client(A, bound, write(0, 1));
    assert_eq!(pair.answer(bound), Some(Err(Refusal::TooMany)));
    assert_eq!(pair.count(A, |action| *action == Action::Release(PayloadId::Client(OpId(bound)))), 1);
    assert_eq!(pair.replicas[&A].status(pair.now).operations, CLIENT_OPERATIONS_MAX);
}

#[test]
fn what_waited_for_the_disk_is_served_in_order() {
    let mut pair = Pair::blank();
    pair.tell_config();
    for op in 1..=4 {
        pair.client(A, op, write(0, op));
    }
    for node in [A, B] {
        pair.attach(node, pair.report(node));
    }
    pair.wait(200);
    let counts: Vec<u64> = pair
        .orders
        .iter()
        .filter_map(|(node, action)| match action {
            Action::WriteLocal { range, .. } if *node == B => Some(range.count),
            _ => None,
        })
        .collect();
    assert_eq!(counts, [1, 2, 3, 4]);
    assert!((1..=4).all(|op| pair.answer(op) == Some(Ok(()))));
}

#[test]
fn a_frame_of_another_session_or_out_of_bounds_touches_nothing() {
    let mut pair = Pair::serving();
    let (envelope, _) = pair.sent(A).last().expect("a beacon");
    let link = pair.orders.iter().rev().find_map(|(node, action)| match action {
        Action::Send { link, .. } if *node == A => Some(*link),
        _ => None,
    });
    let link = link.expect("a link");
    let data = |range| Message::Write { seq: Seq(1), range, kind: WriteKind::Data, fua: false };
    let frame = |pair: &mut Pair, envelope: Envelope, range| {
        pair.event(B, Event::Frame { link, envelope, message: data(range), payload: Some(PayloadId::Frame(1 << 40)) });
        assert_eq!(pair.orders.pop_release(), 1, "the payload is let go");
        pair.count(B, is_local_write)
    };
    let range = BlockRange::new(0, 1);
    assert_eq!(frame(&mut pair, Envelope { session: SessionId(1), ..envelope }, range), 0);
    assert_eq!(frame(&mut pair, Envelope { epoch: Epoch(0), ..envelope }, range), 0);
    assert_eq!(frame(&mut pair, envelope, BlockRange::new(4 * EXTENT_BLOCKS - 1, 2)), 0);
    assert_eq!(pair.count(B, |action| matches!(action, Action::CloseLink { .. })), 1, "out of bounds ends the session");
}

/// Counts and forgets the releases of the hostile frame's payload.
trait PopRelease {
    fn pop_release(&mut self) -> usize;
}

impl PopRelease for Vec<(proto::NodeId, Action)> {
    fn pop_release(&mut self) -> usize {
        let before = self.len();
        self.retain(|(_, action)| *action != Action::Release(PayloadId::Frame(1 << 40)));
        before - self.len()
    }
}

#[test]
fn a_dropped_copy_gets_only_what_it_lacks_from_the_primary_that_dropped_it() {
    let mut pair = Pair::serving();
    pair.cut();
    pair.wait(700);
    pair.commit(is_shrink);
    pair.client(A, 1, write(10, 3));
    assert_eq!(pair.answer(1), Some(Ok(())));
    pair.connected = true;
    pair.commits = true;
    pair.wait(3000);
    assert_eq!(pair.role(B), "secondary");
    let sent: Vec<BlockRange> = pair
        .sent(A)
        .filter_map(|(_, message)| match message {
            Message::ResyncData { range, .. } => Some(*range),
            _ => None,
        })
        .collect();
    assert_eq!(sent, [BlockRange::new(10, 3)]);
    assert!(!pair.sent(A).any(|(_, message)| matches!(message, Message::DigestRequest { .. })));
}

#[test]
fn after_a_take_over_only_extents_that_were_hot_are_compared() {
    let mut pair = Pair::serving();
    for (op, block) in [(1, 0), (2, 2 * EXTENT_BLOCKS + 1)] {
        pair.client(A, op, write(block, 1));
    }
    pair.cut();
    pair.wait(1700);
    pair.commit(is_take_over);
    pair.connected = true;
    pair.commits = true;
    pair.wait(3000);
    assert_eq!((pair.role(A), pair.role(B)), ("secondary", "primary"));
    let compared: u64 = pair
        .sent(B)
        .map(|(_, message)| match message {
            Message::DigestRequest { range, .. } => range.count,
            _ => 0,
        })
        .sum();
    assert_eq!(compared, 2 * EXTENT_BLOCKS);
}

#[test]
fn a_copy_is_flushed_between_presync_and_admit_and_its_acks_are_required_meanwhile() {
    let mut pair = Pair::serving();
    pair.cut();
    pair.wait(700);
    pair.commit(is_shrink);
    pair.hold(|node, action| node == B && is_local_flush(action));
    pair.connected = true;
    pair.wait(2500);
    assert_eq!(pair.role(B), "presync");
    let is_admit = |command: &VolumeCommand| matches!(command, VolumeCommand::Admit { .. });
    assert!(!pair.proposed(A).iter().any(is_admit), "not flushed");
    pair.hold(|node, action| node == B && is_local_write(action));
    pair.client(A, 1, write(0, 1));
    assert_eq!(pair.answer(1), None, "its ack is required");
    pair.release(|_, action| is_local_flush(action));
    assert!(pair.proposed(A).iter().any(is_admit));
    pair.release(|_, _| true);
    assert_eq!(pair.answer(1), Some(Ok(())));
    pair.commit(is_admit);
    assert_eq!(pair.role(B), "secondary");
}

#[test]
fn an_admit_of_unknown_fate_keeps_its_copy_required_until_the_version_moves() {
    let mut pair = Pair::serving();
    pair.cut();
    pair.wait(700);
    pair.commit(is_shrink);
    pair.connected = true;
    pair.wait(2500);
    assert!(pair.proposed(A).iter().any(|command| matches!(command, VolumeCommand::Admit { .. })));
    pair.cut();
    pair.client(A, 1, write(0, 1));
    pair.wait(3000);
    assert_eq!(pair.answer(1), None, "the Admit may have committed");
    assert!(pair.proposed(A).iter().any(|command| matches!(command, VolumeCommand::Renew { .. })));
    pair.commit(|command| matches!(command, VolumeCommand::Renew { .. }));
    assert_eq!(pair.answer(1), Some(Ok(())), "the Admit is dead");
}

#[test]
fn a_stopping_primary_drains_flushes_and_releases_its_lease_so_that_the_other_serves_at_once() {
    let mut pair = Pair::serving();
    pair.hold(|_, action| is_local_flush(action));
    pair.control(A, Control::Stop);
    pair.client(A, 1, write(0, 1));
    assert_eq!(pair.held.len(), 2);
    assert_eq!(pair.count(A, |action| *action == Action::Stopped), 0);
    pair.hold(|_, _| false);
    pair.release(|_, _| true);
    assert_eq!(pair.count(A, |action| *action == Action::Stopped), 1);
    assert_eq!((pair.role(A), pair.answer(1)), ("stopped", Some(Err(Refusal::Stopped))));
    assert!(pair.sent(A).any(|(_, message)| matches!(message, Message::LeaseRelease { .. })));
    assert!(pair.proposed(B).iter().any(is_take_over), "without waiting for the grace");
}

#[test]
fn the_last_copy_in_sync_is_not_detached_on_request() {
    let mut pair = Pair::serving();
    pair.cut();
    pair.wait(700);
    pair.commit(is_shrink);
    pair.control(A, Control::Detach);
    assert_eq!((pair.role(A), pair.count(A, |action| matches!(action, Action::DetachDisk { .. }))), ("primary", 0));
}

/// The state table of `docs/protocol.md`: every move that a replica may make. Those to a primary from outside the in-sync set
/// are a ForcePrimary's; `outdated` to `secondary` is an Admit that commits after its session has ended.
const MOVES: [(&str, &[&str]); 9] = [
    ("unknown", &["primary", "primary, suspended", "secondary", "outdated", "fenced", "diskless", "stopped"]),
    ("primary", &["primary, suspended", "secondary", "outdated", "diskless", "stopped"]),
    ("primary, suspended", &["primary", "secondary", "outdated", "diskless", "stopped"]),
    ("secondary", &["primary", "primary, suspended", "outdated", "fenced", "diskless", "stopped"]),
    ("fenced", &["primary", "primary, suspended", "secondary", "outdated", "diskless", "stopped"]),
    ("outdated", &["resyncing", "secondary", "diskless", "primary", "primary, suspended", "stopped"]),
    ("resyncing", &["presync", "outdated", "diskless", "primary", "primary, suspended", "stopped"]),
    ("presync", &["secondary", "outdated", "diskless", "primary", "primary, suspended", "stopped"]),
    ("diskless", &["outdated", "secondary", "fenced", "primary", "primary, suspended", "stopped"]),
];

#[test]
fn every_state_is_reached_and_every_move_is_in_the_table() {
    let mut moves = BTreeSet::new();
    // A switchover, a cut that the primary wins, a rejoin, a detach and attach, and an orderly stop of both.
    let mut pair = Pair::serving();
    moves.extend(Pair::serving().moves);
    pair.commits = true;
    pair.control(A, Control::Switchover { to: B });
    pair.wait(500);
    assert_eq!((pair.role(A), pair.role(B)), ("secondary", "primary"));
    pair.cut();
    pair.wait(1000);
    assert_eq!((pair.role(A), pair.role(B)), ("outdated", "primary"));
    pair.connected = true;
    pair.wait(4000);
    assert_eq!(pair.role(A), "secondary");
    pair.control(A, Control::Detach);
    pair.wait(1000);
    assert_eq!(pair.role(A), "diskless");
    pair.attach(A, DiskReport { suspect: true, ..pair.report(A) });
    pair.wait(10_000);
    assert_eq!(pair.role(A), "secondary");
    pair.control(A, Control::Stop);
    pair.wait(1000);
    pair.control(B, Control::Stop);
    assert_eq!((pair.role(A), pair.role(B)), ("stopped", "stopped"));
    moves.extend(std::mem::take(&mut pair.moves));
    // A cut that the secondary wins, and one whose race it loses.
    for wins in [is_take_over, is_shrink] {
        let mut pair = Pair::serving();
        pair.cut();
        pair.wait(1700);
        assert_eq!(pair.role(B), "fenced");
        pair.commit(wins);
        pair.wait(100);
        moves.extend(std::mem::take(&mut pair.moves));
    }
    let mut reached: BTreeSet<&str> = moves.iter().flat_map(|(from, to)| [*from, *to]).collect();
    for (from, to) in &moves {
        println!("{from} -> {to}");
        let legal = MOVES.iter().find(|(state, _)| state == from).map_or(&[][..], |(_, to)| to);
        assert!(legal.contains(to), "{from} -> {to} is not in the table");
    }
    for state in MOVES.iter().map(|(state, _)| *state).chain(["stopped"]) {
        assert!(reached.remove(state), "{state} was not reached");
    }
    assert!(reached.is_empty(), "states that the table lacks: {reached:?}");
}

#[test]
fn a_deleted_volume_stops_its_replicas() {
    let mut pair = Pair::serving();
    let command = NodeCommand::DeleteVolume { volume: V };
    let body = replication::config::CommandBody::Node(command);
    pair.state.apply(&replication::config::Command { request: proto::RequestId(5), body });
    pair.hold(|_, action| is_local_write(action));
    pair.client(A, 1, write(0, 1));
    for node in [A, B] {
        pair.event(node, Event::VolumeRemoved);
        assert_eq!(pair.role(node), "stopped");
    }
    assert_eq!(pair.answer(1), Some(Err(Refusal::NotPrimary(proto::NodeId::NONE))));
}
