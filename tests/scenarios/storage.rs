//! Activity log, bitmaps and checksums at work: what is compared after a crash, and what must not be forgotten.

use proto::{BlockRange, EXTENT_BLOCKS, Micros, NodeId};
use replication::Timing;
use replication::config::VolumeCommand;
use replication::event::Control;
use replication::local_copy::Counters;
use tandem_tests::sim::client::Wish;
use tandem_tests::sim::disk::SilentFaults;
use tandem_tests::sim::scenario::{Answer, Scenario};
use tandem_tests::sim::setup::Setup;

/// Blocks of the scripted volume: three extents.
const BLOCKS: u64 = 3 * EXTENT_BLOCKS;
/// An extent becomes cold after this.
const IDLE_MILLISECONDS: u64 = 200;

fn restless() -> Scenario {
    let plain = Setup::scripted();
    let timing = Timing { extent_idle: Micros::from_millis(IDLE_MILLISECONDS), ..plain.timing };
    Scenario::with(Setup { timing, ..plain })
}

/// Writes a value of its own to a few blocks of every extent, and waits until all extents are cold on both boxes.
fn filled() -> Scenario {
    let mut s = restless();
    for block in (0..BLOCKS).step_by(EXTENT_BLOCKS as usize / 2) {
        s.write_done(1, block, 500 + block as u32);
    }
    all_cold(&mut s, &[1, 2]);
    s
}

fn all_cold(s: &mut Scenario, nodes: &[usize]) {
    s.run_until("all extents are cold", 10_000, |s| nodes.iter().all(|node| s.hot_extents(*node) == 0));
}

#[test]
fn extent_with_an_unacknowledged_write_stays_in_the_log() {
    let mut s = filled();
    s.world.cut(0, 1, 60_000_000);
    let write = s.write(1, EXTENT_BLOCKS, 77);
    s.run(IDLE_MILLISECONDS * 2);
    assert_eq!(s.answer(write), Answer::Open, "the secondary does not get it");
    assert_eq!(s.hot_extents(1), 1, "its fate is open, so it may differ");
    s.power_off(1);
    s.served_by(2, 20_000);
    s.run(2_000);
    s.rejoin(1);
    s.power_on(1);
    s.both_in_sync();
    assert_ne!(s.read_done(2, EXTENT_BLOCKS), [77, 77]);
    s.finish();
}

#[test]
fn reboot_of_the_secondary_compares_only_what_was_hot_or_written_meanwhile() {
    let mut s = filled();
    s.write_done(1, EXTENT_BLOCKS + 7, 77);
    s.power_off(2);
    s.write_done(1, 2 * EXTENT_BLOCKS + 9, 78);
    let before = s.resynced();
    s.power_on(2);
    s.both_in_sync();
    let after = s.resynced();
    assert!(after.compared - before.compared <= 2 * EXTENT_BLOCKS, "extent 0 was cold on both boxes: {after:?}");
    assert!(after.sent - before.sent <= 2 * EXTENT_BLOCKS && after.sent > before.sent);
    s.finish();
}

#[test]
fn reboot_of_the_primary_compares_only_what_was_hot_or_written_meanwhile() {
    let mut s = filled();
    s.write_done(1, EXTENT_BLOCKS + 7, 77);
    s.power_off(1);
    s.served_by(2, 20_000);
    let before = s.resynced();
    s.power_on(1);
    s.both_in_sync();
    let after = s.resynced();
    assert!(after.compared - before.compared <= EXTENT_BLOCKS, "extents 0 and 2 were cold on both boxes: {after:?}");
    s.finish();
}

#[test]
fn equal_blocks_are_not_sent_after_a_reboot() {
    let mut s = filled();
    for block in 0..32 {
        s.write_done(1, block, 700 + block as u32);
    }
    s.flush_done(1);
    s.power_off(2);
    s.run_until("the secondary is dropped", 10_000, |s| s.in_sync() == [1]);
    let before = s.resynced();
    s.power_on(2);
    s.both_in_sync();
    assert_eq!(s.resynced().sent, before.sent, "everything was flushed on both boxes");
    s.finish();
}

#[test]
fn solo_writes_survive_a_reboot_of_the_primary_in_its_bitmap() {
    let mut s = filled();
    s.cut(1, 2);
    s.run_until("the primary drops the secondary", 5_000, |s| s.in_sync() == [1]);
    for block in [3, EXTENT_BLOCKS + 3] {
        s.write_done(1, block, 900 + block as u32);
    }
    s.flush_done(1);
    all_cold(&mut s, &[1]);
    s.power_off(1);
    s.run(500);
    s.power_on(1);
    s.served_by(1, 30_000);
    let before = s.resynced();
    s.join(1, 2);
    s.both_in_sync();
    let after = s.resynced();
    assert!(after.sent >= before.sent + 2, "both solo writes are brought: {after:?}");
    assert!(after.compared - before.compared < EXTENT_BLOCKS, "single blocks were written: {after:?}");
    s.finish();
}

#[test]
fn added_again_a_replica_never_inherits_a_bitmap() {
    let mut s = filled();
    s.cut(1, 2);
    s.run_until("the primary drops the secondary", 5_000, |s| s.in_sync() == [1]);
    s.write_done(1, 3, 901);
    s.world.operator_commands(0, VolumeCommand::RemoveReplica { node: NodeId(2) });
    s.run(500);
    s.world.operator_commands(0, VolumeCommand::AddReplica { node: NodeId(2), disk_id: proto::DiskId(9_999) });
    s.run(500);
    let before = s.resynced();
    s.join(1, 2);
    s.both_in_sync();
    assert_eq!(s.resynced().compared - before.compared, BLOCKS, "whatever the new copy holds, all of it is compared");
    s.finish();
}

#[test]
fn hot_extents_of_a_joiner_stay_in_its_log_until_the_source_holds_them() {
    let mut s = filled();
    s.world.cut(0, 1, 60_000_000);
    s.write(1, EXTENT_BLOCKS, 77);
    s.run(20);
    s.power_off(1);
    s.served_by(2, 20_000);
    s.world.cut(1, 0, 60_000_000);
    s.power_on(1);
    s.run(IDLE_MILLISECONDS * 20);
    assert_eq!(s.in_sync(), [2]);
    assert!(s.hot_extents(1) >= 1, "nobody else knows yet that the extent may differ");
    s.kill_worker(1);
    s.rejoin(1);
    s.both_in_sync();
    s.finish();
}

#[test]
fn rotten_block_is_healed_by_a_read_through_the_primary() {
    let mut s = filled();
    s.world.setup.flawed = Some(0);
    s.world.rot_block(0, 0, EXTENT_BLOCKS);
    assert_eq!(s.read_done(1, EXTENT_BLOCKS), [500 + EXTENT_BLOCKS as u32; 2]);
    s.finish();
}

#[test]
fn partial_write_over_a_rotten_block_keeps_its_other_half() {
    let mut s = filled();
    s.world.setup.flawed = Some(0);
    s.world.rot_block(0, 0, EXTENT_BLOCKS);
    let half = s.ask(1, Wish::write_halves(2 * EXTENT_BLOCKS, 1, 8, false));
    s.run_until("the write is done", 5_000, |s| s.answer(half) == Answer::Done);
    assert_eq!(s.read_done(1, EXTENT_BLOCKS), [8, 500 + EXTENT_BLOCKS as u32]);
    s.finish();
}

/// With its only good copy away, a rotten block costs an error for itself and nothing else.
#[test]
fn rotten_block_of_a_sole_copy_fails_alone() {
    let mut s = filled();
    s.world.setup.flawed = Some(0);
    s.power_off(2);
    s.run_until("the secondary is dropped", 10_000, |s| s.in_sync() == [1]);
    s.world.judge_harm(0);
    s.world.rot_block(0, 0, EXTENT_BLOCKS);
    let bad = s.ask(1, Wish::read(BlockRange::new(EXTENT_BLOCKS, 1)));
    s.run_until("the read is answered", 10_000, |s| s.answer(bad) != Answer::Open);
    assert_eq!(s.answer(bad), Answer::Refused);
    assert_eq!(s.read_done(1, 0), [500, 500]);
    s.write_done(1, EXTENT_BLOCKS, 44);
    assert_eq!(s.read_done(1, EXTENT_BLOCKS), [44, 44]);
    s.finish();
}

/// Box 2 goes while an extent is hot on it, so that all of the extent is compared when it is back; meanwhile block
/// `EXTENT_BLOCKS` rots on the only copy in sync.
fn rotten_while_alone(last: Option<u32>) -> Scenario {
    let mut s = filled();
    s.world.setup.flawed = Some(0);
    s.write_done(1, EXTENT_BLOCKS + 7, 77);
    s.flush_done(1);
    s.power_off(2);
    s.run_until("the secondary is dropped", 10_000, |s| s.in_sync() == [1]);
    if let Some(value) = last {
        s.write_done(1, EXTENT_BLOCKS, value);
    }
    s.world.rot_block(0, 0, EXTENT_BLOCKS);
    s.power_on(2);
    s.both_in_sync();
    s
}

fn counters(s: &mut Scenario, node: usize) -> Counters {
    let run = s.world.boxes[node - 1].volume(0);
    run.and_then(|run| run.engine.as_ref()).map_or(Counters::default(), |engine| engine.copy.counters())
}

/// A resync from the only copy in sync never puts its rot in the place of what may be the last good copy.
#[test]
fn rotten_block_of_a_sole_copy_is_healed_from_the_copy_that_it_resyncs() {
    let mut s = rotten_while_alone(None);
    assert_eq!(s.read_done(1, EXTENT_BLOCKS), [500 + EXTENT_BLOCKS as u32; 2]);
    let healed = counters(&mut s, 1);
    assert_eq!((healed.mismatches, healed.repaired), (1, 1));
    assert_eq!(counters(&mut s, 2).mismatches, 0, "it was good there all the time");
    assert_eq!(s.world.boxes[0].stores[0].as_ref().unwrap().raw.visible(EXTENT_BLOCKS)[0], 500 + EXTENT_BLOCKS as u32);
    s.finish();
}

#[test]
fn rotten_block_of_a_sole_copy_is_good_on_the_other_box_after_a_switchover() {
    let mut s = rotten_while_alone(None);
    s.control(1, Control::Switchover { to: NodeId(2) });
    s.served_by(2, 20_000);
    assert_eq!(s.read_done(2, EXTENT_BLOCKS), [500 + EXTENT_BLOCKS as u32; 2]);
    s.finish();
}

/// What the target holds of such a block is old: nobody may take it for good.
#[test]
fn rotten_block_that_nobody_else_has_fails_on_both_copies_and_alone() {
    for switch in [false, true] {
        let mut s = rotten_while_alone(Some(900));
        let primary = if switch { 2 } else { 1 };
        if switch {
            s.control(1, Control::Switchover { to: NodeId(2) });
            s.served_by(2, 20_000);
        }
        let bad = s.read(primary, EXTENT_BLOCKS);
        s.run_until("the read is answered", 10_000, |s| s.answer(bad) != Answer::Open);
        assert_eq!(s.answer(bad), Answer::Refused);
        assert_eq!(s.read_done(primary, EXTENT_BLOCKS + 7), [77, 77]);
        if switch {
            s.write_done(primary, EXTENT_BLOCKS, 44);
            assert_eq!(s.read_done(primary, EXTENT_BLOCKS), [44, 44]);
        }
        s.finish();
    }
}

/// The disk of the only copy in sync loses writes of checksums: those of a block written meanwhile are old, and fit what the
/// other box still holds of it, which is not to be served for that.
#[test]
fn old_block_that_fits_an_old_checksum_is_refused_and_not_served() {
    let mut s = filled();
    s.world.setup.flawed = Some(0);
    s.power_off(2);
    s.run_until("the secondary is dropped", 10_000, |s| s.in_sync() == [1]);
    let lose_sums = |s: &mut Scenario, lost_sums| {
        s.world.boxes[0].stores[0].as_mut().unwrap().raw.silent = SilentFaults { lost_sums, ..SilentFaults::default() };
    };
    lose_sums(&mut s, true);
    s.write_done(1, EXTENT_BLOCKS, 900);
    s.flush_done(1);
    all_cold(&mut s, &[1]);
    lose_sums(&mut s, false);
    s.kill_worker(1);
    s.power_on(2);
    s.both_in_sync();
    for primary in [1, 2] {
        if s.primary() != primary {
            s.control(s.primary(), Control::Switchover { to: NodeId(primary as u64) });
        }
        s.served_by(primary, 20_000);
        let bad = s.read(primary, EXTENT_BLOCKS);
        s.run_until("the read is answered", 10_000, |s| s.answer(bad) != Answer::Open);
        assert_eq!(s.answer(bad), Answer::Refused, "at {primary}");
    }
    s.write_done(2, EXTENT_BLOCKS, 44);
    assert_eq!(s.read_done(2, EXTENT_BLOCKS), [44, 44]);
    s.finish();
}

/// The sums that were taken over are as durable as those of a write once the extent is cold.
#[test]
fn expected_sums_outlive_the_power_of_both_boxes() {
    let mut s = rotten_while_alone(Some(900));
    all_cold(&mut s, &[1, 2]);
    s.power_off(1);
    s.served_by(2, 20_000);
    let bad = s.read(2, EXTENT_BLOCKS);
    s.run(3_000);
    assert_eq!(s.answer(bad), Answer::Refused);
    s.power_on(1);
    s.both_in_sync();
    s.finish();
}
