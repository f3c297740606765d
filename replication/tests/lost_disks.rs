//! Disks lost or given up one after the other: who serves, what clients are told, and that nothing waits for ever.

mod common;

use common::{A, B, C, Pair, is_local_write, read, write};
use proto::NodeId;
use replication::event::{Control, DiskReport, Event, IoResult, Request};
use replication::{Action, Notice, Refusal};

/// The operation on the local disk of `node` that is held back ends so.
fn end_held(pair: &mut Pair, node: NodeId, result: IoResult) {
    let Some((by, Action::WriteLocal { io, .. } | Action::ReadLocal { io, .. })) = pair.held.pop() else {
        panic!("nothing is held")
    };
    assert_eq!(by, node);
    pair.hold(|_, _| false);
    pair.event(node, Event::LocalDone { io, result });
}

/// A is primary without a disk, and serves through B, the one member.
fn served_through_the_peer() -> Pair {
    let mut pair = Pair::serving();
    pair.commits = true;
    pair.hold(|node, action| node == A && is_local_write(action));
    pair.client(A, 1, write(0, 1));
    end_held(&mut pair, A, IoResult::Failed);
    assert_eq!(pair.answer(1), Some(Ok(())));
    assert_eq!(pair.config().in_sync.keys().copied().collect::<Vec<_>>(), [B]);
    pair
}

/// As above, and then B loses its disk while A waits for a read and a write of B.
fn without_any_disk(how: IoResult) -> Pair {
    let mut pair = served_through_the_peer();
    pair.hold(|node, action| node == B && (is_local_write(action) || matches!(action, Action::ReadLocal { .. })));
    pair.client(A, 2, read(0, 1));
    pair.client(A, 3, write(7, 1));
    assert_eq!((pair.answer(2), pair.answer(3)), (None, None));
    end_held(&mut pair, B, how);
    // The other one ends too: a store is opened again only when nothing is in flight.
    end_held(&mut pair, B, IoResult::Failed);
    pair
}

fn stops(pair: &Pair, node: NodeId) -> usize {
    pair.count(node, |action| *action == Action::Stopped)
}

fn refused_detaches(pair: &Pair, node: NodeId) -> usize {
    pair.count(node, |action| matches!(action, Action::Notify(Notice::DetachRefused { .. })))
}

fn detaches(pair: &Pair, node: NodeId) -> usize {
    pair.count(node, |action| matches!(action, Action::DetachDisk { .. }))
}

#[test]
fn without_any_disk_clients_get_errors_at_once() {
    for how in [IoResult::Failed, IoResult::NoSpace] {
        let mut pair = without_any_disk(how);
        assert_eq!((pair.answer(2), pair.answer(3)), (Some(Err(Refusal::Io)), Some(Err(Refusal::Io))));
        for (op, request) in [(4, read(0, 1)), (5, write(3, 1)), (6, Request::Flush)] {
            pair.client(A, op, request);
            assert_eq!(pair.answer(op), Some(Err(Refusal::Io)), "operation {op}");
        }
        assert!(!pair.replicas[&A].status(pair.now).serving);
        pair.wait(5000);
        pair.client(A, 7, read(0, 1));
        assert_eq!(pair.answer(7), Some(Err(Refusal::Io)), "nothing has changed");
    }
}

#[test]
fn service_comes_back_with_the_disk_of_the_last_member() {
    let mut pair = without_any_disk(IoResult::Failed);
    pair.attach(B, DiskReport { failed: true, suspect: true, ..pair.report(B) });
    pair.wait(5000);
    assert_eq!(pair.role(B), "primary", "it begins an epoch of its own, on record as a possible loss");
    assert!(pair.config().unflushed_loss.is_some());
    pair.client(B, 8, read(0, 1));
    assert_eq!(pair.answer(8), Some(Ok(())));
    pair.attach(A, DiskReport { failed: true, suspect: true, ..pair.report(A) });
    pair.wait(5000);
    assert_eq!((pair.role(A), pair.config().in_sync.len()), ("secondary", 2));
}

#[test]
fn service_comes_back_through_a_disk_that_was_full() {
    let mut pair = without_any_disk(IoResult::NoSpace);
    pair.attach(B, pair.report(B));
    pair.wait(5000);
    let primary = pair.config().primary;
    pair.client(primary, 8, read(0, 1));
    pair.client(primary, 9, write(0, 1));
    assert_eq!((pair.answer(8), pair.answer(9)), (Some(Ok(())), Some(Ok(()))));
}

/// The disk that comes back first is the one that has missed writes: it serves nothing, and is resynced later.
#[test]
fn the_copy_that_was_dropped_does_not_serve_in_place_of_the_lost_one() {
    let mut pair = without_any_disk(IoResult::Failed);
    pair.attach(A, DiskReport { failed: true, suspect: true, ..pair.report(A) });
    pair.wait(5000);
    pair.client(A, 8, read(0, 1));
    assert_eq!(pair.answer(8), Some(Err(Refusal::Io)));
    pair.attach(B, DiskReport { failed: true, suspect: true, ..pair.report(B) });
    pair.wait(10_000);
    assert_eq!((pair.role(A), pair.role(B), pair.config().in_sync.len()), ("secondary", "primary", 2));
}

/// Both lose their disks at once, and the member that is not primary leaves the set first.
#[test]
fn a_primary_left_behind_as_the_last_member_without_a_disk_refuses_what_waits() {
    let mut pair = Pair::serving();
    pair.hold(|node, action| node == A && is_local_write(action));
    pair.client(A, 1, write(0, 1));
    end_held(&mut pair, A, IoResult::Failed);
    pair.control(B, Control::Stop);
    pair.lose(B);
    pair.operator(replication::config::VolumeCommand::Resign { by: (B, common::run_of(B)) });
    assert_eq!(pair.answer(1), Some(Err(Refusal::Io)));
}

#[test]
fn a_stop_without_any_disk_ends() {
    let mut pair = without_any_disk(IoResult::Failed);
    pair.control(A, Control::Stop);
    assert_eq!(stops(&pair, A), 1);
    let mut pair = Pair::serving();
    pair.commits = true;
    pair.lose(B);
    pair.wait(1000);
    assert_eq!(pair.config().in_sync.len(), 1);
    pair.hold(|node, action| node == A && is_local_write(action));
    pair.client(A, 1, write(0, 1));
    end_held(&mut pair, A, IoResult::Failed);
    pair.control(A, Control::Stop);
    assert_eq!(stops(&pair, A), 1);
}

#[test]
fn a_stop_of_the_secondary_does_not_wait_for_a_dead_primary() {
    for taking_over in [false, true] {
        let mut pair = Pair::serving();
        pair.client(A, 1, write(0, 1));
        pair.lose(A);
        pair.wait(if taking_over { 2000 } else { 100 });
        pair.control(B, Control::Stop);
        pair.wait(100);
        assert_eq!((pair.role(B), stops(&pair, B)), ("stopped", 1));
    }
}

#[test]
fn a_copy_is_not_detached_while_no_other_member_is_live() {
    for (lost, asked) in [(B, A), (A, B)] {
        let mut pair = Pair::serving();
        pair.lose(lost);
        pair.control(asked, Control::Detach);
        assert_eq!((refused_detaches(&pair, asked), detaches(&pair, asked)), (1, 0), "{asked}");
    }
    // A path that swallows everything, noticed by silence only.
    for asked in [A, B] {
        let mut pair = Pair::serving();
        pair.hold(move |node, action| node != asked && matches!(action, Action::Send { .. }));
        pair.wait(700);
        pair.control(asked, Control::Detach);
        assert_eq!((refused_detaches(&pair, asked), detaches(&pair, asked)), (1, 0), "{asked}");
    }
}

#[test]
fn of_three_copies_one_is_detached_as_long_as_another_is_live() {
    let mut pair = Pair::three();
    pair.lose(C);
    pair.control(B, Control::Detach);
    assert_eq!((refused_detaches(&pair, B), detaches(&pair, B)), (0, 1), "the primary is live");
    let mut pair = Pair::three();
    pair.lose(A);
    pair.control(B, Control::Detach);
    assert_eq!((refused_detaches(&pair, B), detaches(&pair, B)), (1, 0), "nothing is known of the third");
    pair.event(B, Event::LeaderHears { node: C, alive: true });
    pair.control(B, Control::Detach);
    assert_eq!((refused_detaches(&pair, B), detaches(&pair, B)), (1, 1));
}

/// After a restart: the store of the only member cannot be opened, and its primary must learn of it.
#[test]
fn a_store_that_cannot_be_opened_is_a_lost_disk() {
    let mut pair = Pair::blank();
    pair.commits = true;
    pair.tell_config();
    pair.attach(A, pair.report(A));
    pair.wait(200);
    pair.client(A, 1, write(0, 1));
    assert_eq!(pair.answer(1), None, "B has not opened its store yet");
    pair.event(B, Event::DiskUnavailable);
    pair.wait(2000);
    assert_eq!((pair.role(B), pair.answer(1)), ("diskless", Some(Ok(()))), "A goes on alone");
    pair.event(A, Event::DiskUnavailable);
    assert_eq!(pair.role(A), "primary", "a store that is open is none that cannot be opened");
}
