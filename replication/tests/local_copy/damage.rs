//! Bits flip, pages vanish, writes go astray: bad data of cold extents is found, good data is never condemned.

use std::collections::BTreeSet;

use proto::BlockRange;
use proto::checksum::BlockSums;
use proto::peer::message::WriteKind;
use replication::local_copy::{Areas, CopyOp, CopyResult, Hot, LocalCopy, MetaPage, PAGE_BYTES, ReadCheck};

use super::rig::{EXTENT, Rig, geometry, ok};
use super::store::Rng;

/// Extents 0..3 written and cooled one after the other, so that every copy of the index is in use; 3 and 4 never.
fn cooled(seed: u64) -> Rig {
    let mut rig = Rig::new(geometry(5, 0, 4, 100), seed);
    for extent in [0, 1, 2, 0] {
        rig.heat(&[extent]);
        rig.write(BlockRange::new(extent * EXTENT + 3, 50));
        rig.write(BlockRange::new(extent * EXTENT + 1000, 24));
        rig.cool(&[extent]);
    }
    rig.reopen().0
}

fn set(blocks: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
    blocks.into_iter().collect()
}

fn repaired(rig: &mut Rig, block: u64, token: u64) {
    assert_eq!(rig.repair(BlockRange::new(block, 1), vec![token]), ok());
    assert_eq!(rig.store.block(block), token);
}

#[test]
fn a_bad_block_of_a_cold_extent_is_found_and_repaired_and_only_that_one() {
    for round in 0..100 {
        let mut rig = cooled(round);
        let extent = rig.rng.below(5);
        let block = extent * EXTENT + rig.rng.below(EXTENT);
        let good = rig.store.block(block);
        rig.store.damage_block(block);
        assert_eq!(rig.bad_blocks(0..5), set([block]));
        assert_eq!(rig.bad_blocks(0..5), set([block]));
        assert_eq!((rig.copy.counters().mismatches, rig.copy.counters().reread), (1, 0), "found twice, counted once");
        repaired(&mut rig, block, good);
        assert_eq!(rig.copy.counters().repaired, 1);
        assert_eq!(rig.bad_blocks(0..5), set([]));
        rig.store.damage_block(block);
        assert_eq!(rig.bad_blocks(0..5), set([block]));
        assert_eq!(rig.copy.counters().mismatches, 2, "it was written in between");
    }
}

#[test]
fn a_bad_block_of_a_hot_extent_with_known_sums_is_found() {
    let mut rig = cooled(1);
    rig.heat(&[0, 4]);
    rig.store.damage_block(7);
    rig.store.damage_block(4 * EXTENT);
    assert_eq!(rig.bad_blocks(0..5), set([7, 4 * EXTENT]));
}

#[test]
fn a_lost_and_a_misdirected_write_are_found() {
    let mut rig = cooled(2);
    rig.heat(&[1]);
    rig.lose_data_writes = true;
    rig.write(BlockRange::new(EXTENT + 5, 2));
    rig.write(BlockRange::new(EXTENT + 500, 1));
    rig.lose_data_writes = false;
    let strayed = rig.token();
    rig.store.write(BlockRange::new(2 * EXTENT + 9, 1), WriteKind::Data, &[strayed], true);
    rig.store.write(BlockRange::new(3 * EXTENT + 9, 1), WriteKind::Data, &[strayed], true);
    let lost = [EXTENT + 5, EXTENT + 6, EXTENT + 500, 2 * EXTENT + 9, 3 * EXTENT + 9];
    assert_eq!(rig.bad_blocks(0..5), set(lost));
    rig.cool(&[1]);
    let (mut rig, _) = rig.reopen();
    assert_eq!(rig.bad_blocks(0..5), set(lost), "also once all is cold and opened again");
}

#[test]
fn a_block_that_is_right_when_read_again_is_good() {
    let mut rig = cooled(3);
    let good = rig.store.block(4);
    rig.store.damage_block(4);
    let tag = rig.start(CopyOp::Read { range: BlockRange::new(0, 8), check: ReadCheck::Verify }, Vec::new());
    while rig.copy.counters().mismatches == 0 {
        assert!(rig.step());
    }
    assert_eq!(rig.raws.len(), 1, "the one block is read again");
    rig.store.write(BlockRange::new(4, 1), WriteKind::Data, &[good], true);
    assert!(matches!(rig.finish(tag), CopyResult::Ok { .. }));
    assert_eq!(rig.copy.counters().reread, 1);
}

#[test]
fn a_flipped_bit_anywhere_in_the_metadata_never_condemns_good_data_nor_hides_bad_data_of_others() {
    let mut hidden = 0;
    let stores: Vec<Rig> = (0..7).map(cooled).collect();
    for round in 0..1000 {
        let (mut rig, _) = Rig::open(stores[round % 7].store.clone(), Rng(round as u64));
        let pages = rig.store.pages();
        let page = pages[rig.rng.below(pages.len() as u64) as usize];
        let bit = rig.rng.below(8 * PAGE_BYTES as u64) as usize;
        rig.store.flip(page, bit);
        let (mut rig, hot) = rig.reopen();
        assert_eq!(rig.bad_blocks(0..5), set([]), "bit {bit} of {page:?}");
        // Opened anew, so that nothing has been learnt, with a bad block beside the flipped bit.
        let (mut rig, _) = rig.reopen();
        let block = rig.rng.below(5 * EXTENT);
        rig.store.damage_block(block);
        let found = rig.bad_blocks(0..5);
        let known = match page {
            MetaPage::Log(_) => hot == Hot::Extents(Vec::new()),
            MetaPage::Sums { extent } => extent != block / EXTENT,
            // The entry of an extent that became cold before the surviving copy was written still holds.
            MetaPage::Index { .. } => (1..3).contains(&(block / EXTENT)),
            MetaPage::Bitmap { .. } => true,
        };
        assert!(found.is_subset(&set([block])));
        assert!(!found.is_empty() || !known, "bad block {block} is hidden by bit {bit} of {page:?}");
        hidden += u32::from(found.is_empty());
    }
    assert!(hidden > 0, "the case that a sum is lost was met");
}

#[test]
fn a_damaged_checksum_page_is_learnt_anew_and_settled() {
    let mut rig = cooled(4);
    rig.store.flip(MetaPage::Sums { extent: 1 }, 77);
    assert_eq!(rig.bad_blocks(0..5), set([]));
    assert_eq!((rig.copy.counters().pages_damaged, rig.copy.counters().unverified), (1, EXTENT));
    assert!(rig.copy.is_unsettled());
    rig.store.damage_block(EXTENT + 8);
    assert_eq!(rig.bad_blocks(0..5), set([EXTENT + 8]), "what was learnt holds");
    rig.run(CopyOp::Settle);
    assert!(!rig.copy.is_unsettled());
    let (mut rig, _) = rig.reopen();
    assert_eq!(rig.bad_blocks(0..5), set([EXTENT + 8]), "also after a restart");
    assert_eq!(rig.copy.counters().pages_damaged, 0);
}

#[test]
fn a_power_cut_while_sums_are_settled_condemns_nothing_also_beside_writes_to_the_same_extents() {
    let mut cut_short = 0;
    for seed in 0..400 {
        let mut rig = cooled(seed);
        let damaged = [rig.rng.below(3), rig.rng.below(3)];
        damaged.iter().for_each(|extent| rig.store.flip(MetaPage::Sums { extent: *extent }, 77));
        assert_eq!(rig.bad_blocks(0..5), set([]));
        let settling = rig.start(CopyOp::Settle, Vec::new());
        // The extent is wanted hot again in the middle of it, and written to.
        for _ in 0..rig.rng.below(4) {
            rig.step();
        }
        let extent = damaged[0];
        let heating = rig.start(CopyOp::Heat { extents: vec![extent] }, Vec::new());
        if rig.rng.one_in(2) {
            assert_eq!(rig.finish(heating), ok());
            rig.write(BlockRange::new(extent * EXTENT + 5, 3));
            if rig.rng.one_in(2) {
                rig.cool(&[extent]);
            }
        }
        for _ in 0..rig.rng.below(12) {
            rig.step();
        }
        cut_short += u32::from(!rig.ended.iter().any(|(tag, _)| *tag == settling));
        rig.copy.check_invariants();
        let (mut rig, _) = rig.cut();
        assert_eq!(rig.bad_blocks(0..5), set([]), "seed {seed}");
    }
    assert!(cut_short > 20, "{cut_short} settlings were cut short");
}

#[test]
fn a_damaged_page_of_an_extent_that_is_made_hot_is_learnt_anew() {
    let mut rig = cooled(5);
    rig.store.flip(MetaPage::Sums { extent: 0 }, 8000);
    rig.heat(&[0]);
    assert_eq!((rig.copy.counters().pages_damaged, rig.copy.sum_of(3)), (1, None));
    rig.write(BlockRange::new(3, 1));
    rig.cool(&[0]);
    let (mut rig, hot) = rig.reopen();
    assert_eq!(hot, Hot::Extents(Vec::new()));
    assert_eq!(rig.bad_blocks(0..5), set([]));
    assert_eq!(rig.copy.counters(), Default::default());
}

#[test]
fn a_checksum_page_in_a_wrong_place_or_of_an_older_time_is_noticed() {
    let mut rig = cooled(6);
    let old = rig.store.page(MetaPage::Sums { extent: 1 });
    let other = rig.store.page(MetaPage::Sums { extent: 2 });
    rig.store.set_page(MetaPage::Sums { extent: 2 }, old.clone());
    rig.store.set_page(MetaPage::Sums { extent: 0 }, other);
    rig.heat(&[1]);
    rig.write(BlockRange::new(EXTENT + 3, 1));
    rig.cool(&[1]);
    rig.store.set_page(MetaPage::Sums { extent: 1 }, old);
    let (mut rig, _) = rig.reopen();
    assert_eq!(rig.bad_blocks(0..5), set([]));
    assert_eq!(rig.copy.counters().pages_damaged, 3);
}

#[test]
fn an_index_page_that_rotted_after_its_extent_was_first_written_does_not_make_it_zeros() {
    let mut rig = Rig::new(geometry(5, 0, 4, 100), 7);
    rig.heat(&[0]);
    rig.cool(&[0]);
    rig.heat(&[3]);
    rig.write(BlockRange::new(3 * EXTENT, 4));
    rig.cool(&[3]);
    // The second write of the index went to copy 0.
    rig.store.flip(MetaPage::Index { copy: 0, page: 0 }, 30_000);
    let (mut rig, hot) = rig.reopen();
    assert_eq!(hot, Hot::Extents(Vec::new()));
    assert_eq!(rig.bad_blocks(0..5), set([]));
    assert_eq!(rig.copy.counters().unverified, 4 * EXTENT, "only extent 0 is known");
    // The next write of the page says so durably, and is whole again.
    rig.heat(&[0]);
    rig.cool(&[0]);
    let (mut rig, _) = rig.reopen();
    assert_eq!(rig.copy.counters().pages_damaged, 0);
    assert_eq!(rig.bad_blocks(0..5), set([]));
    assert_eq!(rig.copy.counters().unverified, 4 * EXTENT);
}

#[test]
fn both_copies_of_an_index_page_damaged_leave_nothing_known_and_nothing_condemned() {
    let mut rig = cooled(8);
    for copy in 0..2 {
        rig.store.flip(MetaPage::Index { copy, page: 0 }, 5);
    }
    let (mut rig, _) = rig.reopen();
    assert_eq!(rig.bad_blocks(0..5), set([]));
    assert_eq!((rig.copy.counters().pages_damaged, rig.copy.counters().unverified), (2, 5 * EXTENT));
    rig.store.damage_block(0);
    assert_eq!(rig.bad_blocks(0..5), set([0]));
}

#[test]
fn a_damaged_newest_transaction_makes_every_extent_of_its_group_hot() {
    let mut rig = cooled(9);
    // Eight transactions so far; the next two, which list extents 1 and then 1 and 4, go to slots 1 and 2.
    rig.heat(&[1]);
    rig.heat(&[4]);
    for (damaged, all) in [(0, false), (1, false), (2, true), (3, true)] {
        let (mut again, _) = Rig::open(rig.store.clone(), Rng(1));
        again.store.flip(MetaPage::Log(damaged), 9999);
        let (mut again, hot) = again.reopen();
        let expected = if all { Hot::All } else { Hot::Extents(vec![1, 4]) };
        assert_eq!(hot, expected, "slot {damaged}");
        assert_eq!(again.bad_blocks(0..5), set([]));
        assert_eq!(again.copy.hot_extents(), if all { 5 } else { 2 });
        assert_eq!(again.copy.counters().pages_damaged, 1);
        // The log is whole again, and what goes cold now stays cold.
        let (mut again, hot) = again.reopen();
        assert_eq!((hot, again.copy.counters().pages_damaged), (expected_after(all), 0), "slot {damaged}");
        again.cool(&[1]);
        again.heat(&[1]);
        let left = if all { (0..5).collect() } else { vec![1, 4] };
        assert_eq!(again.reopen().1, Hot::Extents(left), "slot {damaged}");
    }
}

/// What is hot once a damaged log has been mended.
fn expected_after(all: bool) -> Hot {
    Hot::Extents(if all { (0..5).collect() } else { vec![1, 4] })
}

#[test]
fn a_power_cut_while_a_damaged_log_is_mended_forgets_no_hot_extent() {
    let mut in_doubt = 0;
    for seed in 0..300 {
        let mut rig = cooled(seed);
        rig.heat(&[1]);
        rig.heat(&[4]);
        let (mut rig, _) = rig.reopen();
        let slots = 1 + rig.rng.below(4);
        for _ in 0..slots {
            let slot = rig.rng.below(4) as u32;
            rig.store.flip(MetaPage::Log(slot), 9999);
        }
        let mut store = rig.store.clone();
        let (mut copy, _) = store.with_areas(|areas| LocalCopy::open(store.geometry, areas));
        for (page, bytes) in copy.mend_log() {
            store.write_page(page, bytes, false);
        }
        store.cut(&mut rig.rng);
        let (_, hot) = Rig::open(store, Rng(seed));
        in_doubt += u32::from(hot == Hot::All);
        match hot {
            Hot::All => {}
            Hot::Extents(extents) => assert!([1, 4].iter().all(|extent| extents.contains(extent)), "seed {seed}"),
        }
    }
    assert!(in_doubt > 20, "{in_doubt} logs were in doubt after the cut");
}

#[test]
fn a_newest_transaction_that_became_zeros_makes_every_extent_hot() {
    let mut rig = cooled(9);
    rig.heat(&[1]);
    // The ninth transaction went to slot 1, where the fifth had been.
    rig.store.set_page(MetaPage::Log(1), Box::new([0; PAGE_BYTES]));
    assert_eq!(rig.reopen().1, Hot::All);
}

#[test]
fn a_log_without_a_valid_page_makes_everything_hot() {
    let mut rig = cooled(10);
    for slot in 0..4 {
        rig.store.flip(MetaPage::Log(slot), 1);
    }
    let (rig, hot) = rig.reopen();
    assert_eq!((hot, rig.copy.hot_extents()), (Hot::All, 5));
    assert_eq!(rig.reopen().1, Hot::Extents((0..5).collect()), "it has been written anew");
}

#[test]
fn one_group_of_many_is_damaged_by_itself() {
    let geometry = geometry(32_256 + 10, 0, 8, 10);
    let mut rig = Rig::new(geometry, 11);
    rig.heat(&[0, 32_255, 32_256, 32_260]);
    rig.store.flip(MetaPage::Log(4), 0);
    let (rig, hot) = Rig::open(rig.store, rig.rng);
    assert_eq!(hot, Hot::Extents(vec![0, 32_255, 32_256, 32_260]), "slot 0 of the second group was never written");
    let mut rig = rig;
    rig.store.flip(MetaPage::Log(5), 7);
    let (_, hot) = Rig::open(rig.store, rig.rng);
    let group: Vec<u64> = [0, 32_255].into_iter().chain(32_256..32_266).collect();
    assert_eq!(hot, Hot::Extents(group));
}

#[test]
fn areas_of_any_length_and_content_never_panic() {
    let geometry = geometry(300, 7, 6, 10);
    let mut rng = Rng(12);
    for round in 0..300 {
        let mut area = |pages: u64| -> Vec<u8> {
            let length = [0, 1, 4095, 4096, pages * 4096, pages * 4096 + 17][rng.below(6) as usize];
            (0..length).map(|_| if round % 3 == 0 { 0 } else { rng.next() as u8 }).collect()
        };
        let (log, first, second) = (area(6), area(2), area(2));
        let (copy, hot) = LocalCopy::open(geometry, Areas { log: &log, index: [&first, &second] });
        copy.check_invariants();
        let whole = log.len() >= 6 * 4096 && log[..6 * 4096].iter().all(|byte| *byte == 0);
        assert_eq!(hot, if whole { Hot::Extents(Vec::new()) } else { Hot::All });
    }
}

#[test]
fn a_peers_copy_that_does_not_match_our_sum_corrects_nothing() {
    let mut rig = cooled(13);
    // The sum that was taken of the data was wrong from the start: the wrong token was written with it.
    rig.heat(&[1]);
    let block = EXTENT + 3;
    let range = BlockRange::new(block, 1);
    let token = rig.token();
    let wrong = rig.sums_of(range, &[token + 1_000_000]);
    let write = CopyOp::Write { range, kind: WriteKind::Data, fua: false, sums: wrong };
    let tag = rig.start(write, vec![token]);
    assert_eq!(rig.finish(tag), ok());
    rig.cool(&[1]);
    let should = rig.sums_of(range, &[token + 1_000_000]);
    assert_eq!(rig.read(range), CopyResult::Corrupt { bad: vec![range], sums: should });
    let bad = || CopyResult::Corrupt { bad: vec![range], sums: BlockSums::new() };
    let other = rig.token();
    let around = BlockRange::new(block - 1, 3);
    let held: Vec<u64> = around.blocks().map(|block| rig.store.block(block)).collect();
    assert_eq!(rig.repair(around, vec![held[0], other, held[2]]), bad());
    assert_eq!(rig.repair(around, held), bad(), "it may be wrong as ours is");
    assert_eq!(rig.copy.counters().repaired, 4, "its neighbours match, both times");
}

/// The sums of a bad block are those that it should have, also where no sums are kept for long: a peer is told of them.
#[test]
fn a_read_of_bad_blocks_tells_what_their_sums_should_be() {
    let mut rig = Rig::new(geometry(5, 0, 4, 0), 7);
    rig.heat(&[0, 1]);
    rig.write(BlockRange::new(3, 50));
    rig.cool(&[0, 1]);
    let range = BlockRange::new(0, 60);
    let held: Vec<u64> = range.blocks().map(|block| rig.store.block(block)).collect();
    let should = rig.sums_of(range, &held);
    [10, 11, 55].into_iter().for_each(|block| rig.store.damage_block(block));
    let bad = vec![BlockRange::new(10, 2), BlockRange::new(55, 1)];
    assert_eq!(rig.read(range), CopyResult::Corrupt { bad, sums: should });
}

#[test]
fn expected_sums_condemn_what_does_not_match_them_and_nothing_else() {
    for round in 0..20 {
        let mut rig = cooled(round);
        let range = BlockRange::new(EXTENT + 10, 4);
        let mut should: Vec<u64> = range.blocks().map(|block| rig.store.block(block)).collect();
        let held = should.clone();
        should[1] = rig.token();
        rig.heat(&[1]);
        // Blocks whose sums have been lost are known again, too.
        let (mut rig, _) = if round % 2 == 0 { (rig, Hot::All) } else { rig.reopen() };
        let sums = rig.sums_of(range, &should);
        assert_eq!(rig.run(CopyOp::Expect { range, sums }), ok());
        let bad = set([range.start + 1]);
        assert_eq!(rig.bad_blocks(0..5), bad);
        rig.cool(&[1]);
        let (mut rig, _) = rig.reopen();
        assert_eq!(rig.bad_blocks(0..5), bad, "also once all is cold and opened again");
        let now: Vec<u64> = range.blocks().map(|block| rig.store.block(block)).collect();
        assert_eq!(now, held, "no data was written");
        repaired(&mut rig, range.start + 1, should[1]);
        assert_eq!(rig.bad_blocks(0..5), set([]));
    }
}
