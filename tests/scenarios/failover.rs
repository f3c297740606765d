//! The plain cases: a primary or a secondary goes, and comes back.

use replication::Control;
use tandem_tests::sim::disk::DiskFaults;
use tandem_tests::sim::scenario::{Answer, Scenario};
use tandem_tests::sim::setup::Setup;

#[test]
fn secondary_takes_over_when_the_primary_loses_power() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 7);
    s.power_off(1);
    s.served_by(2, 10_000);
    assert_eq!(s.read_done(2, 3), [7, 7]);
    assert_eq!(s.losses(), 0);
    s.finish();
}

#[test]
fn primary_goes_on_alone_when_the_secondary_loses_power() {
    let mut s = Scenario::new();
    s.power_off(2);
    s.write_done(1, 3, 7);
    assert_eq!(s.in_sync(), [1], "an acknowledgement without the secondary needs its Shrink first");
    s.power_on(2);
    s.both_in_sync();
    s.finish();
}

#[test]
fn isolated_primary_acknowledges_nothing_and_serves_no_stale_read() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 7);
    s.isolate(1);
    let lost = s.write(1, 3, 8);
    s.served_by(2, 10_000);
    s.write_done(2, 3, 9);
    let stale = s.read(1, 3);
    s.run(3_000);
    assert_ne!(s.answer(lost), tandem_tests::sim::scenario::Answer::Done);
    assert_ne!(s.answer(stale), tandem_tests::sim::scenario::Answer::Done);
    s.finish();
}

#[test]
fn planned_switchover_loses_nothing() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 7);
    s.control(1, Control::Switchover { to: proto::NodeId(2) });
    s.served_by(2, 5_000);
    assert_eq!(s.in_sync(), [1, 2], "a drained hand-over keeps both copies in sync");
    assert_eq!(s.read_done(2, 3), [7, 7]);
    s.finish();
}

/// Whoever asks the new primary before the other box has answered its first beacon waits for no further interval.
#[test]
fn first_read_after_a_switchover_is_confirmed_as_soon_as_the_other_box_is_there() {
    let mut setup = Setup::scripted();
    setup.timing.confirmed_reads = true;
    let mut s = Scenario::with(setup);
    s.write_done(1, 3, 7);
    s.control(1, Control::Switchover { to: proto::NodeId(2) });
    s.run_until("node 2 is primary, and knows it", 5_000, |s| {
        let run = s.world.boxes[1].volume(0);
        run.and_then(|run| run.config.as_ref()).is_some_and(|config| config.primary.0 == 2)
    });
    let begun = s.world.now;
    let read = s.read(2, 3);
    s.run_until("the read is done", 5_000, |s| s.answer(read) == Answer::Done);
    let (took, interval) = (s.world.now - begun, s.world.setup.timing.beacon_interval.0);
    assert!(took < interval / 2, "{took} of {interval} µs");
    s.finish();
}

#[test]
fn flushed_writes_survive_power_loss_of_both_boxes() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 7);
    s.flush_done(1);
    s.write_done(1, 4, 8);
    s.power_off(1);
    s.power_off(2);
    s.run(500);
    s.power_on(1);
    s.power_on(2);
    s.run_until("somebody serves", 30_000, |s| s.world.in_order(0));
    assert_eq!(s.losses(), 1, "a cold start says that unflushed writes may be missing");
    let primary = s.primary();
    assert_eq!(s.read_done(primary, 3), [7, 7]);
    s.finish();
}

/// Both disks fail one after the other: clients are told so, and the disk that was lost last brings the service back.
#[test]
fn last_disk_lost_behind_a_primary_without_one_is_an_error_and_not_a_wait() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 7);
    s.flush_done(1);
    let broken = DiskFaults { error_permille: 1000, ..DiskFaults::default() };
    s.disk(1, broken);
    s.write(1, 4, 8);
    s.run_until("the primary serves through the secondary", 10_000, |s| s.in_sync() == [2]);
    assert_eq!(s.read_done(1, 3), [7, 7]);
    s.disk(2, broken);
    for _ in 0..3 {
        let read = s.read(1, 3);
        s.run_until("the read is answered", 2_000, |s| s.answer(read) != Answer::Open);
        assert_eq!(s.answer(read), Answer::Refused);
    }
    s.heal_disk(1);
    s.heal_disk(2);
    s.served_by(2, 60_000);
    assert_eq!(s.read_done(2, 3), [7, 7]);
    s.both_in_sync();
    s.finish();
}

/// Both boxes are asked to give their disks up while they do not hear each other: one goes on in any case.
#[test]
fn detaching_both_disks_at_once_leaves_one_to_serve() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 7);
    s.cut(1, 2);
    s.run(700);
    s.control(1, Control::Detach);
    s.control(2, Control::Detach);
    s.run_until("one goes on alone", 20_000, |s| s.in_sync().len() == 1);
    let primary = s.in_sync()[0];
    s.served_by(primary, 20_000);
    assert_eq!(s.read_done(primary, 3), [7, 7]);
    s.rejoin(1);
    s.finish();
}
