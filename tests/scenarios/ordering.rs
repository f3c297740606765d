//! Writes and reads that meet: in one block, across epochs, before a peer has them.

use tandem_tests::sim::client::Wish;
use tandem_tests::sim::disk::DiskFaults;
use tandem_tests::sim::scenario::{Answer, Scenario};

/// Two writes of half a block each at the same time: both must be there.
#[test]
fn two_small_writes_to_one_block() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 7);
    let left = s.ask(1, Wish::write_halves(6, 1, 8, false));
    let right = s.ask(1, Wish::write_halves(7, 1, 9, false));
    s.run_until("both are done", 5_000, |s| s.answer(left) == Answer::Done && s.answer(right) == Answer::Done);
    assert_eq!(s.read_done(1, 3), [8, 9]);
    s.finish();
}

/// A write hangs in the old primary's disk and lands late: it must not overwrite what the new primary wrote.
#[test]
fn late_local_write_of_the_old_epoch() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 7);
    s.disk(1, DiskFaults { stuck_permille: 1000, ..DiskFaults::default() });
    let late = s.write(1, 3, 8);
    s.run(20);
    s.heal_disk(1);
    s.isolate(1);
    s.served_by(2, 10_000);
    s.write_done(2, 3, 9);
    s.rejoin(1);
    s.both_in_sync();
    assert_ne!(s.answer(late), Answer::Done);
    s.run(15_000);
    assert_eq!(s.read_done(2, 3), [9, 9]);
    s.finish();
}

/// A read behind a write whose copy is not on the peer yet: if it returns the new value, that value must survive.
#[test]
fn read_does_not_overtake_a_write() {
    let mut s = Scenario::new();
    s.write_done(1, 3, 7);
    s.world.cut(0, 1, 30_000_000);
    let write = s.write(1, 3, 8);
    s.run(1);
    let read = s.read(1, 3);
    s.run(300);
    assert_eq!(s.answer(write), Answer::Open);
    assert_eq!(s.answer(read), Answer::Open, "the value it would return is not on every member");
    s.power_off(1);
    s.served_by(2, 20_000);
    assert_eq!(s.read_done(2, 3), [7, 7]);
    s.finish();
}

/// Writes to many extents' worth of blocks while one is unacknowledged, then the primary dies: the copies must agree.
#[test]
fn unacknowledged_write_is_reconciled_when_its_primary_returns() {
    let mut s = Scenario::new();
    s.world.cut(0, 1, 30_000_000);
    for block in 0..16 {
        s.write(1, block, 60 + block as u32);
    }
    s.run(50);
    s.power_off(1);
    s.served_by(2, 20_000);
    s.power_on(1);
    s.both_in_sync();
    s.finish();
}
