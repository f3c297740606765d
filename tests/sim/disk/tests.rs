//! The raw disk keeps what it promised, loses the rest at will, and does harm where it is told to.

use std::rc::Rc;

use proto::{BlockRange, VolumeId};
use replication::IoId;
use replication::local_copy::PAGE_BYTES;

use super::super::scheduler::{Rng, SECOND};
use super::*;

const LOG: MetaPage = MetaPage::Log(0);

struct Bench {
    disk: RawDisk,
    rng: Rng,
    token: u64,
}

impl Bench {
    fn new(seed: u64) -> Self {
        Self { disk: RawDisk::new(4096), rng: Rng::new(seed), token: 0 }
    }

    fn submit(&mut self, op: DiskOp) -> u64 {
        self.token += 1;
        self.disk.submit(self.token, 1, Whose::State(IoId(self.token)), op, 0, &mut self.rng);
        self.token
    }

    fn land(&mut self, token: u64) -> Option<Outcome> {
        self.disk.land(token, Some(1), &mut self.rng).map(|landed| landed.outcome)
    }

    fn run(&mut self, op: DiskOp) -> Option<Outcome> {
        let token = self.submit(op);
        self.land(token)
    }

    fn write(&mut self, block: u64, value: u32) {
        let data: Blocks = Rc::from([[value, value]]);
        let done = self.run(DiskOp::WriteData { range: BlockRange::new(block, 1), data: Some(data), fua: false });
        assert!(matches!(done, Some(Outcome::Done)));
    }

    fn write_page(&mut self, byte: u8, durable: bool) {
        let bytes = Rc::new(Box::new([byte; PAGE_BYTES]));
        assert!(matches!(self.run(DiskOp::WritePage { page: LOG, bytes, durable }), Some(Outcome::Done)));
    }
}

#[test]
fn power_cut_keeps_flushed_and_may_lose_the_rest() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..500 {
        let mut bench = Bench::new(seed);
        bench.write(0, 10);
        let flush = bench.submit(DiskOp::Flush);
        bench.write(0, 11);
        bench.land(flush);
        bench.disk.power_cut(&mut bench.rng);
        match bench.disk.visible(0) {
            [10, 10] => lost += 1,
            [11, 11] => kept += 1,
            [a, b] => {
                assert!([10, 11].contains(&a) && [10, 11].contains(&b), "a flushed block went back");
                torn += 1;
            }
        }
    }
    assert!(kept > 0 && lost > 0 && torn > 0);
}

#[test]
fn power_cut_tears_a_page_that_was_being_written_and_no_durable_one() {
    let (mut old, mut new, mut torn) = (0, 0, 0);
    for seed in 0..500 {
        let mut bench = Bench::new(seed);
        bench.write_page(1, true);
        let bytes = Rc::new(Box::new([2; PAGE_BYTES]));
        bench.submit(DiskOp::WritePage { page: LOG, bytes, durable: true });
        bench.disk.power_cut(&mut bench.rng);
        let page = bench.disk.area(1, MetaPage::Log);
        let second = page.iter().filter(|byte| **byte == 2).count();
        assert!(page.iter().all(|byte| [1, 2].contains(byte)) && second % 512 == 0);
        match second {
            0 => old += 1,
            PAGE_BYTES => new += 1,
            _ => torn += 1,
        }
    }
    assert!(old > 0 && new > 0 && torn > 0);
}

#[test]
fn operation_of_a_dead_process_lands_soon_or_never() {
    let mut bench = Bench::new(1);
    let write = DiskOp::WriteData { range: BlockRange::new(0, 1), data: None, fua: true };
    bench.disk.submit(1, 1, Whose::State(IoId(1)), write.clone(), 10 * SECOND, &mut bench.rng);
    bench.disk.submit(2, 2, Whose::State(IoId(1)), write, 10 * SECOND, &mut bench.rng);
    bench.disk.abandon(1, 0, &mut bench.rng);
    assert!(bench.land(1).is_none() && bench.land(2).is_some());
    assert!(bench.disk.idle());
}

#[test]
fn lying_disk_loses_what_it_called_flushed_and_the_harm_is_known() {
    let mut lost = 0;
    for seed in 0..100 {
        let mut bench = Bench::new(seed);
        bench.disk.silent.lying = true;
        bench.write(0, 10);
        assert!(matches!(bench.run(DiskOp::Flush), Some(Outcome::Done)));
        assert!(!bench.disk.harm.doubtful);
        bench.disk.power_cut(&mut bench.rng);
        assert!(bench.disk.harm.doubtful);
        lost += u32::from(bench.disk.visible(0) != [10, 10]);
    }
    assert!(lost > 0);
}

#[test]
fn lost_misdirected_and_rotten_blocks_are_known_until_they_are_written_again() {
    let mut bench = Bench::new(7);
    bench.write(3, 10);
    bench.disk.silent.lost_permille = 1000;
    bench.write(3, 11);
    assert_eq!(bench.disk.visible(3), [10, 10]);
    assert!(bench.disk.harm.damaged.contains(&3));
    bench.disk.silent = SilentFaults { misdirected_permille: 1000, ..SilentFaults::default() };
    bench.write(4, 12);
    let elsewhere = bench.disk.written().find(|(block, content)| *block != 4 && *content == [12, 12]);
    assert!(elsewhere.is_some_and(|(block, _)| bench.disk.harm.damaged.contains(&block)));
    bench.disk.silent = SilentFaults::default();
    bench.disk.rot_block(9, &mut bench.rng);
    assert_ne!(bench.disk.visible(9), [0, 0]);
    for block in 0..4096 {
        bench.write(block, 13);
    }
    assert!(bench.disk.harm.damaged.is_empty() && !bench.disk.harm.ever.is_empty());
}

#[test]
fn full_disk_refuses_new_extents_only() {
    let mut bench = Bench::new(2);
    assert!(matches!(bench.run(DiskOp::Reserve(0)), Some(Outcome::Done)));
    bench.disk.faults.full = true;
    assert!(matches!(bench.run(DiskOp::Reserve(0)), Some(Outcome::Done)));
    assert!(matches!(bench.run(DiskOp::Reserve(1)), Some(Outcome::NoSpace)));
}

#[test]
fn store_open_at_power_loss_is_suspect_and_a_clean_one_is_not() {
    let fence = (Epoch(0), ConfigVersion(0));
    let geometry = Geometry { volume: VolumeId(100), blocks: 4096, log_pages: 2, cached_pages_max: 1 };
    let mut store = Store::new(DiskId(1), geometry);
    let opened = store.open(Boot(1), fence);
    assert!(!opened.report.suspect);
    assert_eq!(opened.hot, Hot::Extents(Vec::new()), "a new store has nothing to compare");
    assert!(!store.open(Boot(1), fence).report.suspect, "a new process, the same power-on");
    store.close_clean();
    assert!(!store.open(Boot(2), fence).report.suspect);
    assert!(store.open(Boot(3), fence).report.suspect);
}
