//! Blocks in memory for the tests of the maps: what is allocated is known, and every call can be made to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::store::{BlockStore, Stop};
use crate::units::{BlockNumber, BlockRun};

/// What the device holds when no operation runs.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Device {
    pub(crate) blocks: BTreeMap<u64, Rc<Vec<u8>>>,
    pub(crate) nodes: BTreeSet<u64>,
    /// Given back as data, run by run.
    pub(crate) freed: BTreeSet<u64>,
}

/// Which calls fail.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// This call of `allocate`, counted from 0, and all after it.
    pub(crate) no_space_from: Option<u32>,
    /// This call of `block` or `block_mut`, counted from 0.
    pub(crate) missing_at: Option<u32>,
}

/// One operation on a device.
pub(crate) struct TestStore<'a> {
    pub(crate) device: Device,
    pub(crate) faults: Faults,
    pub(crate) block_size: usize,
    /// Where nodes are taken from, beyond all data.
    pub(crate) nodes: std::ops::Range<u64>,
    pub(crate) random: &'a mut ChaCha8Rng,
    pub(crate) allocations: u32,
    pub(crate) accesses: u32,
}

impl TestStore<'_> {
    fn access(&mut self, at: BlockNumber) -> Result<(), Stop> {
        let call = self.accesses;
        self.accesses += 1;
        if self.faults.missing_at == Some(call) { Err(Stop::Missing(at)) } else { Ok(()) }
    }
}

impl BlockStore for TestStore<'_> {
    fn block(&mut self, at: BlockNumber) -> Result<&[u8], Stop> {
        self.access(at)?;
        assert!(self.device.nodes.contains(&at.0), "read of block {at}, which is not a node");
        Ok(self.device.blocks.get(&at.0).expect("every node has content"))
    }

    fn block_mut(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        self.access(at)?;
        assert!(self.device.nodes.contains(&at.0), "edit of block {at}, which is not a node");
        Ok(Rc::make_mut(self.device.blocks.get_mut(&at.0).expect("every node has content")).as_mut_slice())
    }

    fn new_block(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        assert!(self.device.nodes.contains(&at.0), "new block {at} was not allocated");
        let zeros = Rc::new(vec![0; self.block_size]);
        let block = self.device.blocks.entry(at.0).or_default();
        *block = zeros;
        Ok(Rc::make_mut(block).as_mut_slice())
    }

    fn allocate(&mut self, _goal: BlockNumber) -> Result<BlockNumber, Stop> {
        let call = self.allocations;
        self.allocations += 1;
        if self.faults.no_space_from.is_some_and(|from| call >= from) {
            return Err(Stop::NoSpace);
        }
        loop {
            let at = self.random.random_range(self.nodes.clone());
            if self.device.nodes.insert(at) {
                return Ok(BlockNumber(at));
            }
        }
    }

    fn free(&mut self, run: BlockRun, metadata: bool) -> Result<(), Stop> {
        for at in run.start.0..run.end().0 {
            if metadata {
                assert!(self.device.nodes.remove(&at), "block {at} is freed as a node and is none");
                self.device.blocks.remove(&at);
            } else {
                assert!(self.device.freed.insert(at), "data block {at} is freed twice");
            }
        }
        Ok(())
    }
}
