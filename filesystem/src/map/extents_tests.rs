//! The extent tree against a plain table of blocks, with every call of the store failing at some time.

use std::collections::BTreeMap;
use std::rc::Rc;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::layout::extent::{UNWRITTEN_MAX, WRITTEN_MAX};
use crate::map::store_for_tests::{Device, Faults, TestStore};

const INODE: InodeNumber = InodeNumber(12);
const SEED: Seed = Seed(0x1234_5678);
const NODES: std::ops::Range<u64> = 1 << 33..(1 << 33) + (1 << 20);
const DEVICE_BLOCKS: u64 = NODES.end;

/// Block of the file to block of the device, and whether it is unwritten.
type Model = BTreeMap<u32, (u64, bool)>;

struct Bench {
    tree: ExtentTree,
    device: Device,
    model: Model,
    block_size: usize,
    random: ChaCha8Rng,
    next_data: u64,
    metadata_blocks: u64,
    depth_seen: u16,
    stops: u32,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Insert(Extent),
    Convert { from: u32, to: u32, unwritten: bool, nodes_max: u32 },
    Remove { from: u32, to: u32, limits: Limits },
}

impl Bench {
    fn new(block_size: usize, seed: u64) -> Self {
        println!("seed {seed}");
        Self {
            tree: ExtentTree::empty(INODE, Some(SEED), DEVICE_BLOCKS, BlockNumber(1)),
            device: Device::default(),
            model: Model::new(),
            block_size,
            random: ChaCha8Rng::seed_from_u64(seed),
            next_data: 1,
            metadata_blocks: 0,
            depth_seen: 0,
            stops: 0,
        }
    }

    fn with_store<T>(&mut self, faults: Faults, run: impl FnOnce(&mut TestStore<'_>) -> T) -> (T, Device, u32, u32) {
        let mut store = TestStore {
            device: self.device.clone(),
            faults,
            block_size: self.block_size,
            nodes: NODES,
            random: &mut self.random,
            allocations: 0,
            accesses: 0,
        };
        let result = run(&mut store);
        (result, store.device, store.allocations, store.accesses)
    }

    fn attempt(
        &mut self,
        operation: Operation,
        faults: Faults,
    ) -> (Result<Progress, Stop>, ExtentTree, Device, u32, u32) {
        let mut tree = self.tree.clone();
        let (result, device, allocations, accesses) = self.with_store(faults, |store| match operation {
            Operation::Insert(extent) => tree.insert(store, extent).map(|change| Progress { change, stopped_at: None }),
            Operation::Convert { from, to, unwritten, nodes_max } => {
                let limits = Limits { nodes_max, ..Limits::NONE };
                tree.convert(store, FileBlock(from), FileBlock(to), unwritten, limits)
            }
            Operation::Remove { from, to, limits } => tree.remove(store, FileBlock(from), FileBlock(to), limits),
        });
        (result, tree, device, allocations, accesses)
    }

    /// Runs an operation to its end; before that, sometimes, with every fault that it can meet.
    fn run(&mut self, operation: Operation, faults_too: bool) -> Progress {
        self.device.freed.clear();
        if faults_too {
            self.run_with_faults(operation);
        }
        let (result, tree, device, ..) = self.attempt(operation, Faults::default());
        let progress = result.unwrap_or_else(|stop| panic!("{operation:?}: {stop}"));
        (self.tree, self.device) = (tree, device);
        self.metadata_blocks += progress.change.nodes_added;
        self.metadata_blocks -= progress.change.nodes_removed;
        self.apply_to_model(operation, &progress);
        progress
    }

    fn run_with_faults(&mut self, operation: Operation) {
        let (_, _, _, allocations, accesses) = self.attempt(operation, Faults::default());
        for call in 0..allocations {
            let faults = Faults { no_space_from: Some(call), ..Faults::default() };
            let (result, tree, ..) = self.attempt(operation, faults);
            assert_eq!(result, Err(Stop::NoSpace), "{operation:?} at allocation {call}");
            assert_eq!(tree, self.tree, "the root changed though {operation:?} failed");
            self.stops += 1;
        }
        for call in (0..accesses).filter(|call| accesses < 50 || call % (accesses / 25) == 0) {
            let faults = Faults { missing_at: Some(call), ..Faults::default() };
            let (result, tree, ..) = self.attempt(operation, faults);
            assert!(matches!(result, Err(Stop::Missing(_))), "{operation:?} at access {call}: {result:?}");
            assert_eq!(tree, self.tree, "the root changed though {operation:?} failed");
            self.stops += 1;
        }
    }

    fn apply_to_model(&mut self, operation: Operation, progress: &Progress) {
        match operation {
            Operation::Insert(extent) => {
                for offset in 0..extent.run.count {
                    let physical = extent.run.start.0 + u64::from(offset);
                    assert_eq!(self.model.insert(extent.file.0 + offset, (physical, extent.unwritten)), None);
                }
            }
            Operation::Convert { from, to, unwritten, .. } => {
                let to = progress.stopped_at.map_or(to, |stopped| stopped.0);
                self.model.range_mut(from..to).for_each(|(_, value)| value.1 = unwritten);
            }
            Operation::Remove { from, to, limits } => {
                let from = progress.stopped_at.map_or(from, |stopped| stopped.0);
                let removed: Vec<_> = self.model.range(from..to).map(|(file, value)| (*file, value.0)).collect();
                let freed: Vec<_> = self.device.freed.iter().copied().collect();
                let mut expected: Vec<_> = removed.iter().map(|(_, physical)| *physical).collect();
                expected.sort_unstable();
                assert_eq!(freed, expected, "{operation:?}");
                assert_eq!(progress.change.data_freed, removed.len() as u64);
                assert!(progress.change.data_freed <= limits.blocks_max);
                self.model.retain(|file, _| removed.binary_search_by_key(file, |(file, _)| *file).is_err());
            }
        }
    }

    fn check(&mut self) {
        let tree = self.tree.clone();
        let (contents, device, ..) = self.with_store(Faults::default(), |store| tree.check(store));
        assert_eq!(device, self.device, "a check edits nothing");
        let contents = contents.expect("the tree is sound");
        let mut reachable: Vec<_> = contents.nodes.iter().map(|at| at.0).collect();
        reachable.sort_unstable();
        assert_eq!(reachable, self.device.nodes.iter().copied().collect::<Vec<_>>(), "nodes leak or are lost");
        assert_eq!(self.metadata_blocks, reachable.len() as u64, "the counts of nodes are wrong");
        let mapped = contents.extents.iter().flat_map(|extent| {
            let physical = extent.run.start.0..extent.run.end().0;
            (extent.file.0..extent.end()).zip(physical.map(|at| (at, extent.unwritten)))
        });
        assert!(mapped.eq(self.model.iter().map(|(file, value)| (*file, *value))), "the tree differs from the model");
        self.depth_seen = self.depth_seen.max(contents.depth);
    }

    fn check_lookup(&mut self, at: u32) {
        let tree = self.tree.clone();
        let (mapping, ..) = self.with_store(Faults::default(), |store| tree.lookup(store, FileBlock(at)));
        match mapping.unwrap() {
            Mapping::Mapped { run, unwritten } => {
                for (offset, physical) in (run.start.0..run.end().0).enumerate() {
                    assert_eq!(self.model.get(&(at + offset as u32)), Some(&(physical, unwritten)));
                }
            }
            Mapping::Hole { count } => {
                let next = self.model.range(at..).next().map_or(FILE_BLOCKS_MAX, |(file, _)| *file);
                assert_eq!(at + count, next);
            }
        }
    }

    fn fresh_run(&mut self, count: u32, gap: u64) -> BlockRun {
        let start = self.next_data + gap;
        self.next_data = start + u64::from(count);
        BlockRun::new(BlockNumber(start), count)
    }

    /// As much of a range as is a hole from its start.
    fn hole_at(&self, at: u32, count_max: u32) -> u32 {
        if self.model.contains_key(&at) {
            return 0;
        }
        self.model.range(at..).next().map_or(count_max, |(file, _)| (file - at).min(count_max))
    }

    fn random_operation(&mut self, file_blocks: u32, inserts_of_ten: u32) -> Option<Operation> {
        let at = self.random.random_range(0..file_blocks);
        let length = *[1, 1, 1, 2, 5, 40].choose(&mut self.random).unwrap();
        let to = at + length;
        let kind = self.random.random_range(0..10);
        let unwritten = self.random.random_bool(0.4);
        if kind < inserts_of_ten {
            let count = self.hole_at(at, length);
            // What follows the block before it on the device is joined with it; so is, at times, what is before the next.
            let left = at.checked_sub(1).and_then(|left| self.model.get(&left)).map(|left| left.0 + 1);
            let is_used = |start: u64| self.model.values().any(|(physical, _)| *physical == start);
            let joined = left.filter(|start| count == 1 && *start < self.next_data && !is_used(*start));
            let run = match joined {
                Some(start) => BlockRun::new(BlockNumber(start), 1),
                None => self.fresh_run(count, u64::from(self.random.clone().random_bool(0.5))),
            };
            return (count > 0).then_some(Operation::Insert(Extent { file: FileBlock(at), run, unwritten }));
        }
        if kind < 8 {
            let nodes_max = *[1, 3, u32::MAX].choose(&mut self.random).unwrap();
            return Some(Operation::Convert { from: at, to, unwritten, nodes_max });
        }
        let blocks_max = *[1, 7, u64::MAX].choose(&mut self.random).unwrap();
        let nodes_max = *[1, 2, u32::MAX].choose(&mut self.random).unwrap();
        Some(Operation::Remove { from: at, to, limits: Limits { blocks_max, nodes_max } })
    }
}

fn one(file: u32, physical: u64, count: u32, unwritten: bool) -> Extent {
    Extent { file: FileBlock(file), run: BlockRun::new(BlockNumber(physical), count), unwritten }
}

fn truncate_in_steps(bench: &mut Bench, from: u32, limits: Limits, faults_too: bool) -> u32 {
    let mut to = FILE_BLOCKS_MAX;
    let mut calls = 0;
    loop {
        let progress = bench.run(Operation::Remove { from, to, limits }, faults_too);
        calls += 1;
        let Some(stopped) = progress.stopped_at else { return calls };
        assert!(stopped.0 < to, "a call has to get on");
        to = stopped.0;
        bench.check();
    }
}

#[test]
fn random_operations_match_the_model() {
    for (seed, file_blocks, count) in [(1, 60, 6000), (2, 400, 6000), (3, 3000, 6000), (4, 100_000, 3000)] {
        let mut bench = Bench::new(1024, seed);
        for step in 0..count {
            let inserts = if step / 500 % 2 == 0 { 7 } else { 3 };
            let Some(operation) = bench.random_operation(file_blocks, inserts) else { continue };
            bench.run(operation, step % 17 == 0);
            bench.check();
            let at = bench.random.random_range(0..file_blocks + 50);
            bench.check_lookup(at);
        }
        assert!(bench.stops > 100);
        truncate_in_steps(&mut bench, 0, Limits { blocks_max: 50, nodes_max: 3 }, false);
        bench.check();
        assert!(bench.model.is_empty() && bench.device.nodes.is_empty());
        assert_eq!(*bench.tree.root(), empty_root());
    }
}

#[test]
fn alternating_blocks_in_random_order_make_a_deep_tree_that_shrinks_back() {
    let mut bench = Bench::new(1024, 5);
    // Blocks of 128 bytes hold nine entries: the tree gets as deep as the format allows with few extents.
    bench.block_size = 128;
    let mut order: Vec<u32> = (0..6000).map(|index| index * 2).collect();
    rand::seq::SliceRandom::shuffle(order.as_mut_slice(), &mut bench.random);
    for (step, file) in order.into_iter().enumerate() {
        let run = bench.fresh_run(1, 1);
        let unwritten = file % 3 == 0;
        bench.run(Operation::Insert(Extent { file: FileBlock(file), run, unwritten }), step % 97 == 0);
        if step % 11 == 0 {
            bench.check();
        }
    }
    bench.check();
    assert!(bench.depth_seen >= 4, "depth {}", bench.depth_seen);
    for step in 0..5000 {
        let Some(operation) = bench.random_operation(12_000, 2) else { continue };
        bench.run(operation, step % 53 == 0);
        if step % 7 == 0 {
            bench.check();
        }
    }
    let calls = truncate_in_steps(&mut bench, 1, Limits { blocks_max: 100, nodes_max: 20 }, false);
    assert!(calls > 3);
    bench.check();
    let depth = bench.tree.rules.root(bench.tree.root()).unwrap().depth();
    assert_eq!((depth, bench.device.nodes.len()), (0, 0), "what fits into the root is in the root");
}

#[test]
fn a_tree_of_1_kib_blocks_gets_three_deep() {
    let mut bench = Bench::new(1024, 6);
    for index in 0..40_000 {
        let run = bench.fresh_run(1, 1);
        // Downwards, so that nodes are split in their middle and every first key changes.
        let file = (40_000 - index) * 2;
        bench.run(Operation::Insert(Extent { file: FileBlock(file), run, unwritten: false }), index % 4999 == 0);
        if index % 2003 == 0 {
            bench.check();
        }
    }
    bench.check();
    assert_eq!(bench.depth_seen, 3);
    bench.run(Operation::Remove { from: 1000, to: 79_000, limits: Limits::NONE }, false);
    bench.check();
    bench.run(Operation::Remove { from: 0, to: FILE_BLOCKS_MAX, limits: Limits::NONE }, true);
    bench.check();
    assert_eq!(*bench.tree.root(), empty_root());
}

#[test]
fn a_file_written_from_its_start_has_full_leaves() {
    let mut bench = Bench::new(1024, 7);
    for index in 0..84 * 20 {
        let run = bench.fresh_run(1, 1);
        bench.run(Operation::Insert(Extent { file: FileBlock(index), run, unwritten: false }), false);
    }
    bench.check();
    assert!(bench.device.nodes.len() <= 22, "{} nodes", bench.device.nodes.len());
}

#[test]
fn neighbours_of_a_kind_are_joined_up_to_the_longest() {
    let mut bench = Bench::new(1024, 8);
    bench.run(Operation::Insert(one(0, 1000, 10, false)), true);
    bench.run(Operation::Insert(one(20, 1020, 10, false)), true);
    bench.run(Operation::Insert(one(10, 1010, 10, false)), true);
    bench.check();
    assert_eq!(bench.tree.rules.root(bench.tree.root()).unwrap().entries().len(), 1);
    bench.run(Operation::Insert(one(30, 1030, 2, true)), true);
    assert_eq!(bench.tree.rules.root(bench.tree.root()).unwrap().entries().len(), 2);
    bench.run(Operation::Convert { from: 31, to: 32, unwritten: false, nodes_max: 1 }, true);
    bench.check();
    assert_eq!(bench.tree.rules.root(bench.tree.root()).unwrap().entries().len(), 3);
    bench.run(Operation::Convert { from: 0, to: 40, unwritten: false, nodes_max: 9 }, true);
    bench.check();
    assert_eq!(bench.tree.rules.root(bench.tree.root()).unwrap().entries().len(), 1);
}

#[test]
fn long_runs_become_extents_of_lengths_that_the_format_has() {
    let mut bench = Bench::new(1024, 9);
    bench.run(Operation::Insert(one(5, 1000, 3 * WRITTEN_MAX, false)), true);
    bench.check();
    let lengths = |bench: &Bench| -> Vec<_> {
        let root = bench.tree.rules.root(bench.tree.root()).unwrap();
        root.entries().iter().map(|entry| (entry.extent().run.count, entry.extent().unwritten)).collect()
    };
    assert_eq!(lengths(&bench), [(WRITTEN_MAX, false); 3]);
    bench.run(Operation::Convert { from: 5, to: 5 + WRITTEN_MAX, unwritten: true, nodes_max: 1 }, true);
    bench.check();
    let halves = [(UNWRITTEN_MAX, true), (1, true), (WRITTEN_MAX, false), (WRITTEN_MAX, false)];
    assert_eq!(lengths(&bench), halves);
    let part = 5 + WRITTEN_MAX + 100;
    bench.run(Operation::Convert { from: part, to: part + 1, unwritten: true, nodes_max: 1 }, true);
    bench.check();
    bench
        .run(Operation::Remove { from: 0, to: FILE_BLOCKS_MAX, limits: Limits { blocks_max: 10, nodes_max: 1 } }, true);
    bench.check();
}

#[test]
fn the_last_block_of_the_largest_file_can_be_mapped_and_no_more() {
    let mut bench = Bench::new(1024, 10);
    bench.run(Operation::Insert(one(FILE_BLOCKS_MAX - 1, 7, 1, false)), true);
    bench.check_lookup(FILE_BLOCKS_MAX - 1);
    bench.check_lookup(FILE_BLOCKS_MAX);
    let (result, ..) = bench.attempt(Operation::Insert(one(FILE_BLOCKS_MAX, 8, 1, false)), Faults::default());
    assert_eq!(result, Err(Stop::TooLarge("the file")));
}

#[test]
fn what_is_mapped_cannot_be_mapped_again() {
    let mut bench = Bench::new(1024, 11);
    for index in 0..200 {
        bench.run(Operation::Insert(one(index * 10, 1000 + u64::from(index) * 10, 5, false)), false);
    }
    for extent in [one(4, 9000, 1, false), one(8, 9000, 3, false), one(9, 9000, 500, true), one(0, 9000, 5, false)] {
        let (result, ..) = bench.attempt(Operation::Insert(extent), Faults::default());
        assert!(matches!(result, Err(Stop::Corrupt(_))), "{extent:?}: {result:?}");
    }
}

#[test]
fn a_range_that_ends_before_it_begins_is_empty() {
    let mut bench = Bench::new(1024, 13);
    bench.run(Operation::Insert(one(0, 1000, 20, false)), false);
    let empty = Operation::Remove { from: 10, to: 5, limits: Limits::NONE };
    let turned = Operation::Convert { from: 10, to: 5, unwritten: true, nodes_max: 9 };
    for operation in [empty, turned] {
        let (result, tree, ..) = bench.attempt(operation, Faults::default());
        assert_eq!(result, Ok(Progress { change: Change::default(), stopped_at: None }));
        assert_eq!(tree, bench.tree);
    }
}

#[test]
fn flipped_bits_are_found_or_harmless() {
    let mut bench = Bench::new(1024, 12);
    for index in 0..3000 {
        let run = bench.fresh_run(1, 1);
        bench.run(Operation::Insert(Extent { file: FileBlock(index * 2), run, unwritten: index % 2 == 0 }), false);
    }
    let (sound_tree, sound_device) = (bench.tree.clone(), bench.device.clone());
    let nodes: Vec<u64> = sound_device.nodes.iter().copied().collect();
    let mut found = 0;
    for round in 0..4000 {
        (bench.tree, bench.device) = (sound_tree.clone(), sound_device.clone());
        // Without checksums in every second round: then the structure itself has to be found wrong.
        bench.tree.rules.seed = (round % 2 == 0).then_some(SEED);
        for _ in 0..bench.random.random_range(1..4) {
            let bit = 1 << bench.random.random_range(0..8);
            let in_root = bench.random.random_bool(0.3);
            let node = bench.device.blocks.get_mut(nodes.choose(&mut bench.random).unwrap()).unwrap();
            let node = Rc::make_mut(node);
            let bytes = if in_root { bench.tree.root.as_mut_slice() } else { node };
            let at = bench.random.random_range(0..bytes.len());
            bytes[at] ^= bit;
        }
        let Some(operation) = bench.random_operation(7000, 4) else { continue };
        let mut tree = bench.tree.clone();
        let mut store = LooseStore { blocks: bench.device.blocks.clone(), next: NODES.end - 1 };
        let checked = tree.check(&mut store);
        found += u32::from(checked.is_err());
        let result = match operation {
            Operation::Insert(extent) => tree.insert(&mut store, extent).map(|_| ()),
            Operation::Convert { from, to, unwritten, .. } => {
                tree.convert(&mut store, FileBlock(from), FileBlock(to), unwritten, Limits::NONE).map(|_| ())
            }
            Operation::Remove { from, .. } => {
                tree.remove(&mut store, FileBlock(from), FileBlock(FILE_BLOCKS_MAX), Limits::NONE).map(|_| ())
            }
        };
        let allowed = matches!(result, Ok(()) | Err(Stop::Corrupt(_) | Stop::Missing(_)));
        assert!(allowed, "round {round}: {result:?}");
    }
    assert!(found > 1000, "{found}");
}

/// A store that believes everything.
struct LooseStore {
    blocks: BTreeMap<u64, Rc<Vec<u8>>>,
    next: u64,
}

impl BlockStore for LooseStore {
    fn block(&mut self, at: BlockNumber) -> Result<&[u8], Stop> {
        self.blocks.get(&at.0).map(|block| block.as_slice()).ok_or(Stop::Missing(at))
    }

    fn block_mut(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        self.blocks.get_mut(&at.0).map(|block| Rc::make_mut(block).as_mut_slice()).ok_or(Stop::Missing(at))
    }

    fn new_block(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        self.blocks.insert(at.0, Rc::new(vec![0; 1024]));
        self.block_mut(at)
    }

    fn allocate(&mut self, _goal: BlockNumber) -> Result<BlockNumber, Stop> {
        self.next -= 1;
        Ok(BlockNumber(self.next))
    }

    fn free(&mut self, _run: BlockRun, _metadata: bool) -> Result<(), Stop> {
        Ok(())
    }
}
