//! What the engine asks of the store, step by step.

use proto::BlockRange;
use proto::checksum::BlockSums;
use proto::peer::message::WriteKind;
use replication::local_copy::{CopyOp, CopyResult, Hot, MetaPage, RawOp, RawResult, ReadCheck, log_pages_for};

use super::rig::{EXTENT, Rig, bitmap_page, geometry, ok};

fn rig() -> Rig {
    Rig::new(geometry(600, 0, 4, 100), 1)
}

fn log_writes(rig: &Rig) -> usize {
    rig.raws.iter().filter(|(_, op, _)| matches!(op, RawOp::WritePage { page: MetaPage::Log(_), .. })).count()
}

/// Ends the raw operations that are in flight now, not those that follow from them.
fn end_present(rig: &mut Rig) {
    let present: Vec<_> = rig.raws.iter().map(|(raw, ..)| *raw).collect();
    for raw in present {
        let at = rig.raws.iter().position(|(other, ..)| *other == raw).expect("in flight");
        rig.end_raw(at);
    }
}

/// What kinds of raw operations are in flight, sorted.
fn kinds(rig: &Rig) -> Vec<&'static str> {
    let kind = |op: &RawOp| match op {
        RawOp::ReadData { tag: None, .. } => "learn",
        RawOp::ReadData { .. } => "read",
        RawOp::WriteData { .. } => "write",
        RawOp::ReadPage { .. } => "load",
        RawOp::WritePage { page: MetaPage::Log(_), durable: true, .. } => "log",
        RawOp::WritePage { page: MetaPage::Index { .. }, durable: true, .. } => "index",
        RawOp::WritePage { page: MetaPage::Sums { .. }, durable: false, .. } => "sums",
        RawOp::WritePage { page: MetaPage::Bitmap { .. }, durable: false, .. } => "bitmap",
        RawOp::WritePage { page: MetaPage::Bitmap { .. }, durable: true, .. } => "durable bitmap",
        RawOp::WritePage { .. } => "wrong page write",
        RawOp::Flush => "flush",
        RawOp::Reserve { .. } => "reserve",
    };
    let mut kinds: Vec<_> = rig.raws.iter().map(|(_, op, _)| kind(op)).collect();
    kinds.sort_unstable();
    kinds
}

fn heat(extents: impl IntoIterator<Item = u64>) -> CopyOp {
    CopyOp::Heat { extents: extents.into_iter().collect() }
}

fn refuse_reserve_of_5(op: &RawOp) -> Option<RawResult> {
    matches!(op, RawOp::Reserve { extent: 5 }).then_some(RawResult::NoSpace)
}

fn refuse_sums_pages(op: &RawOp) -> Option<RawResult> {
    matches!(op, RawOp::WritePage { page: MetaPage::Sums { .. }, .. }).then_some(RawResult::NoSpace)
}

fn refuse_data_writes(op: &RawOp) -> Option<RawResult> {
    matches!(op, RawOp::WriteData { .. }).then_some(RawResult::NoSpace)
}

fn fail_flushes(op: &RawOp) -> Option<RawResult> {
    matches!(op, RawOp::Flush).then_some(RawResult::Failed)
}

#[test]
fn a_hot_extent_costs_nothing() {
    let mut rig = rig();
    rig.heat(&[3]);
    let tag = rig.start(heat([3]), Vec::new());
    assert!(rig.raws.is_empty());
    assert_eq!(rig.ended.remove(&tag), Some(ok()));
    rig.write(BlockRange::new(3 * EXTENT, 1));
    let before = rig.raws_done;
    rig.write(BlockRange::new(3 * EXTENT + 7, 9));
    assert_eq!(rig.raws_done, before + 1, "one raw write");
}

#[test]
fn heats_that_arrive_during_a_transaction_share_the_next() {
    let mut rig = rig();
    let first = rig.start(heat([0]), Vec::new());
    end_present(&mut rig);
    assert_eq!(kinds(&rig), ["log"]);
    let others: Vec<u64> = (1..50).map(|extent| rig.start(heat([extent]), Vec::new())).collect();
    while let Some(at) = rig.raws.iter().position(|(_, op, _)| matches!(op, RawOp::Reserve { .. })) {
        rig.end_raw(at);
    }
    assert_eq!(kinds(&rig), ["log"], "one transaction is in flight");
    end_present(&mut rig);
    assert_eq!(rig.ended.remove(&first), Some(ok()));
    assert_eq!((kinds(&rig), log_writes(&rig)), (vec!["log"], 1));
    end_present(&mut rig);
    assert!(rig.raws.is_empty() && others.iter().all(|tag| rig.ended.remove(tag) == Some(ok())));
    assert_eq!(rig.copy.hot_extents(), 50);
}

#[test]
fn an_extent_is_hot_only_once_it_is_logged_and_its_page_is_loaded() {
    let mut rig = rig();
    rig.heat(&[0]);
    rig.cool(&[0]);
    let (mut rig, _) = rig.reopen();
    let tag = rig.start(heat([0]), Vec::new());
    assert_eq!(kinds(&rig), ["load", "reserve"], "side by side");
    end_present(&mut rig);
    assert_eq!(kinds(&rig), ["log"]);
    assert!(!rig.ended.contains_key(&tag));
    assert_eq!(rig.finish(tag), ok());
    let second = rig.start(heat([1]), Vec::new());
    end_present(&mut rig);
    let (_, hot) = rig.cut();
    let Hot::Extents(hot) = hot else { panic!("the log is whole") };
    assert!(hot.starts_with(&[0]), "operation {second} may have left its mark or not: {hot:?}");
}

#[test]
fn cooling_goes_in_the_order_that_makes_a_crash_harmless() {
    let mut rig = rig();
    rig.heat(&[0, 1, 300]);
    rig.write(BlockRange::new(10, 5));
    let (mut rig, hot) = rig.cut();
    assert_eq!(hot, Hot::Extents(vec![0, 1, 300]));
    rig.write(BlockRange::new(EXTENT + 100, 1));
    let bitmaps = vec![bitmap_page(3)];
    rig.start(CopyOp::Cool { extents: vec![0, 1, 300], bitmaps }, Vec::new());
    for expected in [
        // All of 0 and 300, and what lies on both sides of the block just written.
        vec!["learn", "learn", "learn", "learn"],
        vec!["bitmap", "sums", "sums", "sums"],
        vec!["flush"],
        vec!["index", "index"],
        vec!["log"],
        vec![],
    ] {
        assert_eq!(kinds(&rig), expected);
        end_present(&mut rig);
    }
    assert_eq!((rig.copy.hot_extents(), rig.copy.counters().unverified), (0, 3 * EXTENT - 1));
}

#[test]
fn coolings_of_one_index_page_take_turns() {
    let mut rig = rig();
    rig.heat(&[0, 1, 2]);
    for extent in 0..3 {
        rig.start(CopyOp::Cool { extents: vec![extent], bitmaps: Vec::new() }, Vec::new());
    }
    end_present(&mut rig);
    assert_eq!(kinds(&rig), ["flush", "flush", "flush"]);
    end_present(&mut rig);
    assert_eq!(kinds(&rig), ["index"]);
    end_present(&mut rig);
    assert_eq!(kinds(&rig), ["index", "log"], "the other two go together");
    while rig.step() {}
    assert_eq!(rig.ended.len(), 3);
    let (mut rig, _) = rig.reopen();
    assert!(rig.bad_blocks(0..3).is_empty());
    assert_eq!(rig.copy.counters(), Default::default());
}

#[test]
fn who_wants_an_extent_that_is_being_cooled_waits_and_gets_it() {
    let mut rig = rig();
    rig.heat(&[0, 1]);
    rig.start(CopyOp::Cool { extents: vec![0, 1], bitmaps: Vec::new() }, Vec::new());
    let tag = rig.start(heat([0]), Vec::new());
    assert_eq!(rig.finish(tag), ok());
    rig.write(BlockRange::new(0, 1));
    assert_eq!(rig.copy.hot_extents(), 1);
    assert_eq!(rig.cut().1, Hot::Extents(vec![0]));
}

#[test]
fn without_space_an_extent_stays_cold_and_the_others_become_hot() {
    let mut rig = rig();
    rig.refuse = Some(refuse_reserve_of_5);
    let (refused, granted) = (rig.start(heat([4, 5]), Vec::new()), rig.start(heat([4, 6]), Vec::new()));
    assert_eq!(rig.finish(refused), CopyResult::NoSpace);
    assert_eq!(rig.ended.remove(&granted), Some(ok()));
    assert_eq!(rig.copy.hot_extents(), 2);
    rig.refuse = None;
    rig.heat(&[5]);
    rig.write(BlockRange::new(5 * EXTENT, 1));
}

#[test]
fn a_write_without_space_leaves_its_sums_unknown() {
    let mut rig = rig();
    rig.heat(&[0]);
    rig.write(BlockRange::new(0, 4));
    rig.refuse = Some(refuse_data_writes);
    let (tag, _) = rig.start_write(BlockRange::new(1, 2), WriteKind::Data, false);
    assert_eq!(rig.finish(tag), CopyResult::NoSpace);
    rig.refuse = None;
    assert_eq!(rig.copy.sum_of(1), None);
    assert!(rig.bad_blocks([0]).is_empty());
}

#[test]
fn a_cooling_without_space_for_its_pages_leaves_the_extents_hot() {
    let mut rig = rig();
    rig.heat(&[0, 1]);
    rig.refuse = Some(refuse_sums_pages);
    let cool = rig.start(CopyOp::Cool { extents: vec![0, 1], bitmaps: Vec::new() }, Vec::new());
    let heat = rig.start(heat([1]), Vec::new());
    assert_eq!(rig.finish(cool), CopyResult::NoSpace);
    assert_eq!(rig.ended.remove(&heat), Some(ok()));
    rig.refuse = None;
    rig.write(BlockRange::new(EXTENT, 1));
    assert_eq!(rig.copy.hot_extents(), 2);
    rig.cool(&[0, 1]);
}

#[test]
fn after_a_failure_every_operation_fails() {
    let mut rig = rig();
    rig.heat(&[0, 1]);
    rig.refuse = Some(fail_flushes);
    let cool = rig.start(CopyOp::Cool { extents: vec![0], bitmaps: Vec::new() }, Vec::new());
    let reheat = rig.start(heat([0]), Vec::new());
    assert_eq!(rig.finish(cool), CopyResult::Failed);
    assert_eq!(rig.ended.remove(&reheat), Some(CopyResult::Failed));
    rig.refuse = None;
    assert_eq!(rig.run(CopyOp::Flush), CopyResult::Failed, "a failed flush is never retried into success");
    assert!(rig.raws.is_empty());
}

#[test]
fn every_raw_operation_may_fail_and_its_operations_end_failed() {
    for fails_at in 0..40 {
        let mut rig = Rig::new(geometry(600, 0, 4, 1), fails_at);
        rig.heat(&[0, 1, 2, 256]);
        rig.cool(&[0, 1]);
        let begun = [
            rig.start(heat([0, 1, 3]), Vec::new()),
            rig.start(CopyOp::Cool { extents: vec![2, 256], bitmaps: Vec::new() }, Vec::new()),
            rig.start(heat([2, 4]), Vec::new()),
            rig.start(CopyOp::Read { range: BlockRange::new(1000, 1100), check: ReadCheck::Verify }, Vec::new()),
            rig.start(CopyOp::Flush, Vec::new()),
            rig.start(CopyOp::Bitmap { pages: vec![bitmap_page(1), bitmap_page(2)] }, Vec::new()),
        ];
        for _ in 0..fails_at {
            rig.step();
        }
        rig.refuse = Some(|_| Some(RawResult::Failed));
        let left = rig.raws.len();
        while rig.step() {}
        assert!(begun.iter().all(|tag| rig.ended.contains_key(tag)), "every operation ends");
        let failed = rig.ended.values().filter(|result| **result == CopyResult::Failed).count();
        assert_eq!(failed > 0, left > 0);
    }
}

#[test]
fn a_batch_flushes_each_group_before_the_next_and_stops_at_a_failure() {
    let mut rig = rig();
    rig.heat(&[0]);
    let ranges = [BlockRange::new(0, 2), BlockRange::new(8, 1), BlockRange::new(4, 3)];
    let payload: Vec<u64> = (0..6).map(|_| rig.token()).collect();
    let sums: BlockSums = [rig.sums_of(ranges[0], &payload), rig.sums_of(ranges[1], &payload[2..])]
        .into_iter()
        .chain([rig.sums_of(ranges[2], &payload[3..])])
        .flatten()
        .collect();
    let groups = vec![vec![ranges[0], ranges[1]], vec![ranges[2]]];
    let tag = rig.start(CopyOp::Batch { groups: groups.clone(), sums: sums.clone() }, payload.clone());
    for expected in [vec!["write", "write"], vec!["flush"], vec!["write"], vec!["flush"], vec![]] {
        assert_eq!(kinds(&rig), expected);
        end_present(&mut rig);
    }
    assert_eq!(rig.ended.remove(&tag), Some(ok()));
    let held: Vec<u64> = [0, 1, 8, 4, 5, 6].map(|block| rig.store.block(block)).to_vec();
    assert_eq!(held, payload);
    assert!(rig.bad_blocks([0]).is_empty());
    rig.refuse = Some(fail_flushes);
    let before = rig.raws_done;
    let tag = rig.start(CopyOp::Batch { groups, sums }, payload);
    assert_eq!(rig.finish(tag), CopyResult::Failed);
    assert_eq!(rig.raws_done, before + 3, "the second group is not written");
}

#[test]
fn bitmap_pages_are_durable_one_after_the_other() {
    let mut rig = rig();
    let tag = rig.start(CopyOp::Bitmap { pages: vec![bitmap_page(1), bitmap_page(2)] }, Vec::new());
    for expected in [vec!["durable bitmap"], vec!["durable bitmap"], vec![]] {
        assert_eq!(kinds(&rig), expected);
        end_present(&mut rig);
    }
    assert_eq!(rig.ended.remove(&tag), Some(ok()));
    assert_eq!(rig.store.page(bitmap_page(0).0)[0], 2);
    assert_eq!(rig.run(CopyOp::Bitmap { pages: Vec::new() }), ok());
}

#[test]
fn pages_of_cold_extents_are_a_bounded_cache() {
    let mut rig = Rig::new(geometry(20, 0, 4, 3), 5);
    let all: Vec<u64> = (0..20).collect();
    rig.heat(&all);
    for &extent in &all {
        rig.write(BlockRange::new(extent * EXTENT, 1));
    }
    rig.cool(&all);
    let cached = |rig: &Rig| all.iter().filter(|extent| rig.copy.sum_of(*extent * EXTENT).is_some()).count();
    assert_eq!(cached(&rig), 3);
    for _ in 0..3 {
        assert!(rig.bad_blocks(all.clone()).is_empty());
        assert_eq!(cached(&rig), 3);
    }
    // One read of all of them needs all pages at once; afterwards the bound holds again.
    assert!(matches!(rig.read(BlockRange::new(0, 20 * EXTENT)), CopyResult::Ok { .. }));
    assert_eq!(cached(&rig), 3);
}

#[test]
fn a_resum_takes_the_sums_from_the_data() {
    let mut rig = rig();
    rig.heat(&[0]);
    rig.write(BlockRange::new(0, 4));
    rig.store.damage_block(2);
    let range = BlockRange::new(0, 4);
    let tag = rig.start(CopyOp::Read { range, check: ReadCheck::Resum }, Vec::new());
    assert_eq!(rig.finish(tag), CopyResult::Ok { sums: rig.store.sums(range) });
    assert!(rig.bad_blocks([0]).is_empty());
}

#[test]
#[should_panic(expected = "is Cold")]
fn a_write_to_a_cold_extent_is_our_own_mistake() {
    rig().write(BlockRange::new(0, 1));
}

#[test]
fn the_log_has_eight_pages_a_group_and_at_least_256() {
    let group = 32_256 * EXTENT;
    assert_eq!([1, group, 32 * group].map(log_pages_for), [256; 3]);
    assert_eq!([32 * group + 1, 100 * group].map(log_pages_for), [264, 800]);
}
