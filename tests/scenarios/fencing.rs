//! Who may serve: cold members, failed disks, lost races, late releases.

use replication::Control;
use tandem_tests::sim::disk::DiskFaults;
use tandem_tests::sim::scenario::{Answer, Scenario};

/// A member that lost power, and with it unflushed writes, must not serve before one that did not.
#[test]
fn rebooted_member_does_not_beat_an_intact_one() {
    let mut s = Scenario::new();
    for block in 0..16 {
        s.write_done(1, block, 100 + block as u32);
    }
    s.power_off(3);
    s.power_off(2);
    s.run(100);
    s.power_on(2);
    s.run(600);
    // The intact primary's process dies; the rebooted secondary and the witness form a majority.
    s.kill_worker(1);
    s.power_on(3);
    s.run_until("somebody serves", 30_000, |s| s.world.in_order(0));
    assert_eq!(s.losses(), 0, "the intact copy was there all the time");
    let primary = s.primary();
    for block in 0..16 {
        assert_eq!(s.read_done(primary, block), [100 + block as u32; 2]);
    }
    s.finish();
}

/// A primary that was shrunk for a failed disk comes back: it must not resume with that disk.
#[test]
fn primary_shrunk_for_a_failed_disk_does_not_resume() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 7);
    s.disk(1, DiskFaults { error_permille: 1000, ..DiskFaults::default() });
    let write = s.write(1, 3, 8);
    s.run_until("the failed disk's copy is dropped", 10_000, |s| s.in_sync() == [2]);
    s.kill_worker(1);
    s.served_by(2, 20_000);
    let content = s.read_done(2, 3);
    assert!(content == [8, 8] || (content == [7, 7] && s.answer(write) != Answer::Done));
    s.finish();
}

/// The secondary fences itself, loses the race to the primary's Shrink, and must come back in sync later.
#[test]
fn fence_of_a_lost_race_does_not_outlive_it() {
    let mut s = Scenario::new();
    s.cut(1, 2);
    s.run_until("the primary drops the secondary", 5_000, |s| s.in_sync() == [1]);
    s.write_done(1, 3, 7);
    s.join(1, 2);
    s.both_in_sync();
    s.finish();
}

/// A secondary that fenced itself for a take-over that cannot commit refuses its primary only until the version moves.
#[test]
fn fence_of_a_vain_take_over_is_left_again() {
    let mut s = Scenario::new();
    s.power_off(3);
    s.cut(1, 2);
    s.run(4_000);
    s.join(1, 2);
    s.run_until("the pair serves without the witness", 30_000, |s| s.world.in_order(0));
    s.finish();
}

/// A hand-over that is called off: a release of the lease must not end grants given after it.
#[test]
fn late_lease_release_does_not_end_newer_grants() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 7);
    s.control(1, Control::Switchover { to: proto::NodeId(2) });
    s.run(1);
    s.world.cut(0, 1, 900_000);
    let write = s.write(1, 3, 8);
    s.run(1_200);
    s.isolate(1);
    s.run_until("node 2 serves", 20_000, |s| s.primary() == 2 && s.world.volumes[0].newest.is_some());
    s.served_by(2, 20_000);
    s.write_done(2, 3, 9);
    s.run(2_000);
    s.rejoin(1);
    s.run(500);
    let _ = s.answer(write);
    s.finish();
}
