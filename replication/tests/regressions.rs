//! Defects that the core once had, each with the test that failed.

mod common;

use common::{A, B, C, Pair, V, disk_of, is_local_flush, is_local_write, run_of, write};
use proto::RequestId;
use proto::peer::message::{Message, Seq};
use replication::config::{Command, CommandBody, Outcome, VolumeCommand};
use replication::event::{Control, DiskReport, Event, IoResult, Request};
use replication::{Action, Refusal};

fn stops(pair: &Pair, node: proto::NodeId) -> usize {
    pair.count(node, |action| *action == Action::Stopped)
}

/// `on_config` starts nothing of what was queued while the lost disk still counted.
#[test]
fn operations_that_came_before_a_lost_disk_has_left_the_set_are_served_through_the_peer() {
    let mut pair = Pair::serving();
    pair.control(A, Control::Detach);
    pair.client(A, 1, write(0, 1));
    pair.client(A, 2, Request::Flush);
    assert_eq!((pair.answer(1), pair.answer(2)), (None, None));
    pair.commit(|command| matches!(command, VolumeCommand::Shrink { .. }));
    assert_eq!((pair.answer(1), pair.answer(2)), (Some(Ok(())), Some(Ok(()))));
    assert!(pair.replicas[&A].status(pair.now).serving);
}

/// `on_io_done` returns for `Purpose::StopFlush` before it looks at the result.
#[test]
fn a_failed_last_flush_marks_the_copy_as_failed() {
    let mut pair = Pair::serving();
    pair.hold(|node, action| node == B && is_local_flush(action));
    pair.control(B, Control::Stop);
    let Some((_, Action::FlushLocal { io })) = pair.held.pop() else { panic!("no flush") };
    pair.event(B, Event::LocalDone { io, result: IoResult::Failed });
    assert_eq!(pair.count(B, |action| *action == Action::DetachDisk { failed: true }), 1);
}

/// `progress_stop` waits for the flush's own end after the hung disk was given up.
#[test]
fn a_last_flush_that_hangs_ends_the_stop() {
    let mut pair = Pair::serving();
    pair.hold(|node, action| node == B && is_local_flush(action));
    pair.control(B, Control::Stop);
    pair.wait(6000);
    assert_eq!(pair.count(B, |action| *action == Action::DetachDisk { failed: true }), 1);
    assert_eq!(stops(&pair, B), 1);
}

/// The stop of a primary lives in its role, and `leave` drops it.
#[test]
fn a_stop_survives_a_handoff_that_commits_meanwhile() {
    let mut pair = Pair::serving();
    pair.control(A, Control::Switchover { to: B });
    pair.hold(|_, action| is_local_flush(action));
    pair.control(A, Control::Stop);
    pair.commit(|command| matches!(command, VolumeCommand::Handoff { .. }));
    pair.hold(|_, _| false);
    pair.release(|_, _| true);
    pair.wait(1000);
    assert_eq!(stops(&pair, A), 1);
}

/// As above, deposed by a take-over while the last flush waits for the peer.
#[test]
fn a_stop_survives_a_take_over() {
    let mut pair = Pair::serving();
    pair.cut();
    pair.client(A, 1, write(0, 1));
    pair.control(A, Control::Stop);
    pair.wait(1700);
    pair.commit(|command| matches!(command, VolumeCommand::TakeOver { .. }));
    assert_eq!(pair.answer(1), Some(Err(Refusal::NotPrimary(B))));
    pair.wait(1000);
    assert_eq!(stops(&pair, A), 1);
}

/// The last member's disk failed and was attached again: it is still primary by the configuration, in the same run, so
/// `record_in_sync` takes the copy for whole at the next configuration before the Resume has committed.
#[test]
fn the_mark_of_a_failed_last_copy_outlives_a_change_of_the_configuration() {
    for moved in [false, true] {
        let mut pair = Pair::serving();
        pair.cut();
        pair.wait(700);
        pair.commit(|command| matches!(command, VolumeCommand::Shrink { .. }));
        pair.hold(|node, action| node == A && is_local_write(action));
        pair.client(A, 1, write(0, 1));
        let Some((_, Action::WriteLocal { io, .. })) = pair.held.pop() else { panic!("no write") };
        pair.event(A, Event::LocalDone { io, result: IoResult::Failed });
        assert_eq!(pair.answer(1), Some(Err(Refusal::Io)));
        pair.attach(A, DiskReport { failed: true, suspect: true, ..pair.report(A) });
        let resume =
            VolumeCommand::Resume { by: (A, run_of(A)), disk_id: common::disk_of(A), cold_ok: true, failed: true };
        assert_eq!(pair.proposed(A), std::slice::from_ref(&resume));
        pair.proposals.clear();
        // The proposal is lost, and the node hears of the configuration again or of a newer one.
        match moved {
            true => pair.operator(VolumeCommand::RemoveReplica { node: B }),
            false => pair.tell_config(),
        }
        pair.wait(1000);
        let again = pair.proposed(A);
        assert!(!again.is_empty() && again.iter().all(|command| *command == resume), "{moved}: {again:?}");
    }
}

/// Flushes of the stream are counted, not bounded.
#[test]
fn flushes_of_a_stream_are_bounded() {
    let mut pair = Pair::serving();
    let (link, envelope) = pair
        .orders
        .iter()
        .rev()
        .find_map(|(node, action)| match action {
            Action::Send { link, envelope, .. } if *node == A => Some((*link, *envelope)),
            _ => None,
        })
        .expect("a message");
    pair.hold(|node, action| node == B && is_local_flush(action));
    for seq in 1..20_000 {
        let message = Message::Flush { seq: Seq(seq) };
        pair.event(B, Event::Frame { link, envelope, message, payload: None });
    }
    assert!(pair.held.len() < 10_000, "{} flushes at once", pair.held.len());
}

/// A node that registers a new run changes the configuration and not its version: a handoff that was proposed before may
/// still commit, so clients must not be served again.
#[test]
fn a_configuration_of_the_same_version_does_not_end_the_wait_for_a_handoffs_fate() {
    let mut pair = Pair::serving();
    pair.control(A, Control::Switchover { to: B });
    pair.wait(50);
    pair.cut();
    pair.wait(200);
    assert_eq!(pair.role(A), "primary, suspended");
    let mut config = pair.config().clone();
    config.replicas.get_mut(&B).expect("B").incarnation = proto::Incarnation(999);
    pair.event(A, Event::Config(Box::new(config)));
    pair.client(A, 1, write(0, 1));
    pair.wait(200);
    assert_eq!((pair.role(A), pair.count(A, is_local_write)), ("primary, suspended", 0));
}

/// The stop of a secondary took two copies for a pair by a configuration that was older than the stream: what it had
/// received in the meantime and a third copy had not, no log told of any more.
#[test]
fn a_stop_forgets_nothing_while_the_secondary_lags_behind_its_primary() {
    for lags in [false, true] {
        let mut pair = Pair::serving();
        pair.client(A, 1, write(0, 1));
        if lags {
            let command = VolumeCommand::AddReplica { node: C, disk_id: disk_of(C) };
            let body = CommandBody::Volume { volume: V, expect_version: pair.config().version, command };
            assert_eq!(pair.state.apply(&Command { request: RequestId(900), body }), Outcome::Applied);
            pair.event(A, Event::Config(Box::new(pair.config().clone())));
        }
        pair.client(A, 2, write(1024, 1));
        pair.control(B, Control::Stop);
        assert_eq!((stops(&pair, B), pair.stores[&B].hot.len()), (1, if lags { 2 } else { 0 }));
    }
}
