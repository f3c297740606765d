//! The indirect map against a plain table of blocks, with every call of the store failing at some time.

use std::collections::BTreeMap;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::map::store_for_tests::{Device, Faults, TestStore};

const BLOCK_SIZE: u32 = 1024;
const NODES: std::ops::Range<u64> = 1 << 31..(1 << 31) + (1 << 16);
const DEVICE_BLOCKS: u64 = NODES.end;

struct Bench {
    map: IndirectMap,
    device: Device,
    model: BTreeMap<u32, u64>,
    random: ChaCha8Rng,
    next_data: u64,
    nodes: u64,
    stops: u32,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Insert(u32, BlockRun),
    Remove(u32, u32, Limits),
}

impl Bench {
    fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Self {
            map: IndirectMap::new([0; ROOT_SIZE], InodeNumber(12), BLOCK_SIZE, DEVICE_BLOCKS, BlockNumber(1)),
            device: Device::default(),
            model: BTreeMap::new(),
            random: ChaCha8Rng::seed_from_u64(seed),
            next_data: 1,
            nodes: 0,
            stops: 0,
        }
    }

    fn attempt(
        &mut self,
        operation: Operation,
        faults: Faults,
    ) -> (Result<Progress, Stop>, IndirectMap, Device, [u32; 2]) {
        let mut map = self.map.clone();
        let mut store = TestStore {
            device: self.device.clone(),
            faults,
            block_size: BLOCK_SIZE as usize,
            nodes: NODES,
            random: &mut self.random,
            allocations: 0,
            accesses: 0,
        };
        let result = match operation {
            Operation::Insert(file, run) => {
                map.insert(&mut store, FileBlock(file), run).map(|change| Progress { change, stopped_at: None })
            }
            Operation::Remove(from, to, limits) => map.remove(&mut store, FileBlock(from), FileBlock(to), limits),
        };
        (result, map, store.device, [store.allocations, store.accesses])
    }

    fn run(&mut self, operation: Operation, faults_too: bool) -> Progress {
        self.device.freed.clear();
        if faults_too {
            self.run_with_faults(operation);
        }
        let (result, map, device, _) = self.attempt(operation, Faults::default());
        let progress = result.unwrap_or_else(|stop| panic!("{operation:?}: {stop}"));
        (self.map, self.device) = (map, device);
        self.nodes += progress.change.nodes_added;
        self.nodes -= progress.change.nodes_removed;
        assert_eq!(self.nodes, self.device.nodes.len() as u64);
        match operation {
            Operation::Insert(file, run) => {
                self.model.extend((0..run.count).map(|offset| (file + offset, run.start.0 + u64::from(offset))));
            }
            Operation::Remove(from, to, limits) => {
                let from = progress.stopped_at.map_or(from, |stopped| stopped.0);
                let freed: Vec<_> = self.device.freed.iter().copied().collect();
                let mut expected: Vec<_> = self.model.range(from..to).map(|(_, physical)| *physical).collect();
                expected.sort_unstable();
                assert_eq!(freed, expected, "{operation:?}");
                assert!(freed.len() as u64 <= limits.blocks_max && progress.change.data_freed == freed.len() as u64);
                self.model.retain(|file, _| !(from..to).contains(file));
            }
        }
        progress
    }

    fn run_with_faults(&mut self, operation: Operation) {
        let (_, _, _, [allocations, accesses]) = self.attempt(operation, Faults::default());
        for call in 0..allocations {
            let (result, map, ..) = self.attempt(operation, Faults { no_space_from: Some(call), missing_at: None });
            assert_eq!((result, &map), (Err(Stop::NoSpace), &self.map));
            self.stops += 1;
        }
        for call in (0..accesses).filter(|call| accesses < 50 || call % (accesses / 25) == 0) {
            let (result, map, ..) = self.attempt(operation, Faults { no_space_from: None, missing_at: Some(call) });
            assert!(matches!(result, Err(Stop::Missing(_))));
            assert_eq!(map, self.map);
            self.stops += 1;
        }
    }

    fn extents(&mut self) -> Vec<Extent> {
        let mut store = TestStore {
            device: self.device.clone(),
            faults: Faults::default(),
            block_size: BLOCK_SIZE as usize,
            nodes: NODES,
            random: &mut self.random,
            allocations: 0,
            accesses: 0,
        };
        let mut at = FileBlock(0);
        let mut extents = Vec::new();
        while let Some(extent) = self.map.next(&mut store, at).unwrap() {
            at = FileBlock(extent.end());
            extents.push(extent);
        }
        extents
    }

    fn check(&mut self) {
        let extents = self.extents();
        let mapped = extents.iter().flat_map(|extent| (extent.file.0..).zip(extent.run.start.0..extent.run.end().0));
        assert!(mapped.eq(self.model.iter().map(|(file, physical)| (*file, *physical))), "map and model differ");
    }

    fn fresh_run(&mut self, count: u32) -> BlockRun {
        let start = self.next_data + u64::from(self.random.random_bool(0.3));
        self.next_data = start + u64::from(count);
        BlockRun::new(BlockNumber(start), count)
    }
}

#[test]
fn random_operations_match_the_model() {
    let file_blocks = file_blocks_max(BLOCK_SIZE);
    // Around the places where the levels begin.
    let centres = [0, 12, 12 + 256, 12 + 256 + 65_536, 12 + 256 + 65_536 + 65_536, file_blocks - 40];
    let mut bench = Bench::new(1);
    for step in 0..12_000 {
        let spread = *[5, 40, 400].choose(&mut bench.random).unwrap();
        let centre: u32 = *centres.choose(&mut bench.random).unwrap();
        let at = bench.random.random_range(centre.saturating_sub(spread)..(centre + spread).min(file_blocks));
        let length = *[1, 1, 3, 20, 300].choose(&mut bench.random).unwrap();
        let next = bench.model.range(at..).next().map_or(file_blocks, |(file, _)| *file);
        let count = length.min(next - at);
        let operation = if count > 0 && step / 300 % 2 == 0 {
            Operation::Insert(at, bench.fresh_run(count))
        } else {
            let blocks_max = *[1, 7, u64::MAX].choose(&mut bench.random).unwrap();
            let nodes_max = *[1, 2, u32::MAX].choose(&mut bench.random).unwrap();
            Operation::Remove(at, at + length, Limits { blocks_max, nodes_max })
        };
        bench.run(operation, step % 23 == 0);
        if step % 5 == 0 {
            bench.check();
        }
    }
    assert!(bench.stops > 200 && !bench.model.is_empty());
    let mut to = u32::MAX;
    while let Some(stopped) =
        bench.run(Operation::Remove(0, to, Limits { blocks_max: 100, nodes_max: 4 }), false).stopped_at
    {
        assert!(stopped.0 < to, "a call has to get on");
        to = stopped.0;
        bench.check();
    }
    assert!(bench.model.is_empty() && bench.device.nodes.is_empty());
    assert_eq!(*bench.map.root(), [0; ROOT_SIZE]);
}

#[test]
fn the_bounds_are_kept() {
    let mut bench = Bench::new(2);
    let file_blocks = file_blocks_max(BLOCK_SIZE);
    let run = BlockRun::new(BlockNumber(5), 2);
    let (result, ..) = bench.attempt(Operation::Insert(file_blocks - 1, run), Faults::default());
    assert_eq!(result, Err(Stop::TooLarge("the file")));
    let (result, ..) =
        bench.attempt(Operation::Insert(0, BlockRun::new(BlockNumber(u64::from(u32::MAX)), 2)), Faults::default());
    assert_eq!(result, Err(Stop::TooLarge("the file")));
    bench.run(Operation::Insert(file_blocks - 1, BlockRun::new(BlockNumber(5), 1)), true);
    assert_eq!(bench.nodes, 3);
    bench.check();
    let (result, ..) =
        bench.attempt(Operation::Insert(file_blocks - 1, BlockRun::new(BlockNumber(9), 1)), Faults::default());
    assert!(matches!(result, Err(Stop::Corrupt(_))), "it is mapped already");
}

#[test]
fn pointers_out_of_the_device_are_found() {
    let mut bench = Bench::new(3);
    bench.run(Operation::Insert(0, BlockRun::new(BlockNumber(5), 300)), false);
    bench.map.device_blocks = 250;
    let (result, ..) = bench.attempt(Operation::Remove(0, 300, Limits::NONE), Faults::default());
    assert!(matches!(result, Err(Stop::Corrupt(_))));
}

#[test]
fn holes_of_one_table_are_passed_by_at_once() {
    let mut bench = Bench::new(5);
    for at in [2, 20, 267] {
        bench.run(Operation::Insert(at, BlockRun::new(BlockNumber(5 + u64::from(at)), 1)), false);
    }
    let mut store = Loose { device: bench.device.clone() };
    // In the inode up to a block that is mapped, or the last direct pointer; in a table of 256 pointers up to its end.
    for (at, count) in [(0, 2), (3, 9), (12, 8), (21, 246), (268, 1 << 16)] {
        let found = bench.map.lookup(&mut store, FileBlock(at)).unwrap();
        assert_eq!(found, Mapping::Hole { count }, "at {at}");
    }
}

#[test]
fn flipped_bits_are_found_or_harmless() {
    let mut bench = Bench::new(4);
    for at in [0, 1000, 70_000] {
        let run = bench.fresh_run(600);
        bench.run(Operation::Insert(at, run), false);
    }
    let (sound, root) = (bench.device.clone(), bench.map.clone());
    // Few blocks, so that pointers into the device's data and to nodes in use twice are met as well.
    for round in 0..2000 {
        let mut store = Loose { device: sound.clone() };
        let mut map = root.clone();
        for _ in 0..3 {
            let bit = 1u8 << bench.random.random_range(0..8);
            let blocks = store.device.blocks.len();
            let block = store.device.blocks.values_mut().nth(bench.random.random_range(0..blocks)).unwrap();
            let block = std::rc::Rc::make_mut(block);
            let bytes = if bench.random.random_bool(0.3) { map.root.as_mut_slice() } else { block };
            let at = bench.random.random_range(0..bytes.len());
            bytes[at] ^= bit;
        }
        let found = map.lookup(&mut store, FileBlock(bench.random.random_range(0..80_000)));
        assert!(matches!(found, Ok(_) | Err(Stop::Corrupt(_) | Stop::Missing(_))), "round {round}: {found:?}");
        let limits = Limits { blocks_max: 5000, nodes_max: 50 };
        let removed = map.remove(&mut store, FileBlock(0), FileBlock(u32::MAX), limits);
        assert!(matches!(removed, Ok(_) | Err(Stop::Corrupt(_) | Stop::Missing(_))), "round {round}: {removed:?}");
    }
}

/// A store that believes everything.
struct Loose {
    device: Device,
}

impl BlockStore for Loose {
    fn block(&mut self, at: BlockNumber) -> Result<&[u8], Stop> {
        self.device.blocks.get(&at.0).map(|block| block.as_slice()).ok_or(Stop::Missing(at))
    }

    fn block_mut(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        let block = self.device.blocks.get_mut(&at.0).ok_or(Stop::Missing(at))?;
        Ok(std::rc::Rc::make_mut(block).as_mut_slice())
    }

    fn new_block(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        self.block_mut(at)
    }

    fn allocate(&mut self, _goal: BlockNumber) -> Result<BlockNumber, Stop> {
        Err(Stop::NoSpace)
    }

    fn free(&mut self, _run: BlockRun, _metadata: bool) -> Result<(), Stop> {
        Ok(())
    }
}
