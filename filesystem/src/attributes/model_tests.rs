//! Attributes against a map from names to values, on blocks in memory that may be missing at any access.

use std::collections::{BTreeMap, BTreeSet};

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{AttributeError, Change, Format, Place, acl, get, list, release, remove, set};
use crate::layout::acl::{Acl, AclEntry, Permissions, Tag};
use crate::layout::checksum::Seed;
use crate::layout::xattr::{EditError, Name, SetMode, block, body};
use crate::store::{BlockStore, Stop};
use crate::units::{BlockNumber, BlockRun, InodeNumber};

const GOAL: BlockNumber = BlockNumber(100);

/// A store whose edits are dropped with the clone that an operation works on.
#[derive(Clone)]
struct Memory {
    block_bytes: usize,
    blocks: BTreeMap<BlockNumber, Vec<u8>>,
    free: BTreeSet<BlockNumber>,
    /// Accesses left until one stops the operation.
    stop_after: Option<u32>,
}

impl Memory {
    fn new(block_bytes: usize, free: u64) -> Self {
        let free = (GOAL.0..GOAL.0 + free).map(BlockNumber).collect();
        Self { block_bytes, blocks: BTreeMap::new(), free, stop_after: None }
    }

    fn access(&mut self, at: BlockNumber) -> Result<(), Stop> {
        match &mut self.stop_after {
            Some(0) => Err(Stop::Missing(at)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl BlockStore for Memory {
    fn block(&mut self, at: BlockNumber) -> Result<&[u8], Stop> {
        self.access(at)?;
        Ok(&self.blocks[&at])
    }

    fn block_mut(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        self.access(at)?;
        Ok(self.blocks.get_mut(&at).unwrap())
    }

    fn new_block(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        self.access(at)?;
        assert!(!self.free.contains(&at));
        self.blocks.insert(at, vec![0; self.block_bytes]);
        Ok(self.blocks.get_mut(&at).unwrap())
    }

    fn allocate(&mut self, goal: BlockNumber) -> Result<BlockNumber, Stop> {
        assert_eq!(goal, GOAL);
        self.access(goal)?;
        self.free.pop_first().ok_or(Stop::NoSpace)
    }

    fn free(&mut self, run: BlockRun, metadata: bool) -> Result<(), Stop> {
        self.access(run.start)?;
        assert!(metadata && run.count == 1);
        self.blocks.remove(&run.start).unwrap();
        assert!(self.free.insert(run.start));
        Ok(())
    }
}

struct Inode {
    body: Vec<u8>,
    block: Option<BlockNumber>,
    blocks: i8,
}

impl Inode {
    /// Of an inode of this size with 32 extra bytes.
    fn new(inode_bytes: usize) -> Self {
        Self { body: vec![0; inode_bytes.saturating_sub(160)], block: None, blocks: 0 }
    }

    fn place(&self) -> Place<'_> {
        Place { inode: InodeNumber(12), body: &self.body, block: self.block }
    }

    fn take(&mut self, change: Change) {
        if let Some(bytes) = change.body {
            assert_eq!(bytes.len(), self.body.len());
            self.body = bytes;
        }
        self.block = change.block;
        self.blocks += change.blocks;
    }
}

fn format(block_bytes: usize) -> Format {
    Format { block_bytes, seed: Some(Seed(77)) }
}

fn name(full: &[u8]) -> Name {
    Name::parse(full).unwrap()
}

fn check(memory: &mut Memory, inode: &Inode, model: &BTreeMap<Name, Vec<u8>>, free: usize) {
    let format = format(memory.block_bytes);
    body::check(&inode.body, InodeNumber(12)).unwrap();
    if let Some(at) = inode.block {
        let bytes = memory.block(at).unwrap();
        block::check(bytes, at, format.seed).unwrap();
        assert_eq!(block::references(bytes, at, format.seed), Ok(1));
        assert!(!block::entries(bytes, at, format.seed).unwrap().is_empty());
    }
    assert_eq!(inode.blocks, i8::from(inode.block.is_some()));
    assert_eq!(memory.free.len() + inode.blocks as usize, free);
    assert!(list(memory, format, inode.place()).unwrap().iter().eq(model.keys()));
}

/// One random edit on a clone of the store, which is kept if the edit came to its end.
fn edit(memory: &mut Memory, inode: &mut Inode, model: &mut BTreeMap<Name, Vec<u8>>, random: &mut ChaCha8Rng) -> bool {
    let format = format(memory.block_bytes);
    let namespace = [b"user.".as_slice(), b"trusted.", b"security."].choose(random).copied().unwrap();
    let length = if random.random_ratio(1, 50) { random.random_range(100..=255) } else { random.random_range(1..=3) };
    let name = name(&[namespace, &vec![*b"ab\xfe".choose(random).unwrap(); length]].concat());
    let there = model.contains_key(&name);
    let mut working = memory.clone();
    working.stop_after = random.random_ratio(1, 4).then(|| random.random_range(0..5));
    if random.random_ratio(2, 5) {
        match remove(&mut working, format, inode.place(), &name, GOAL) {
            Ok(change) => {
                assert!(model.remove(&name).is_some());
                inode.take(change);
                *memory = working;
            }
            Err(AttributeError::Edit(EditError::Missing)) => assert!(!there),
            Err(error) => assert!(matches!(error, AttributeError::Stop(Stop::Missing(_))), "{error}"),
        }
    } else {
        let most = if random.random_ratio(1, 8) { memory.block_bytes + 20 } else { 60 };
        let value = vec![random.random(); random.random_range(0..=most)];
        let mode = *[SetMode::Any, SetMode::Any, SetMode::Create, SetMode::Replace].choose(random).unwrap();
        match set(&mut working, format, inode.place(), (&name, &value), mode, GOAL) {
            Ok(change) => {
                model.insert(name, value);
                inode.take(change);
                *memory = working;
            }
            Err(AttributeError::Edit(EditError::Exists)) => assert!(there && mode == SetMode::Create),
            Err(AttributeError::Edit(EditError::Missing)) => assert!(!there && mode == SetMode::Replace),
            Err(AttributeError::Edit(EditError::NoSpace)) => {
                let size = |name: &Name, value: &[u8]| {
                    (16 + name.suffix().len()).next_multiple_of(4) + value.len().next_multiple_of(4)
                };
                let others: usize = model.iter().filter(|(key, _)| **key != name).map(|(k, v)| size(k, v)).sum();
                let all = others + size(&name, &value);
                let (in_body, in_block) = (body::room(inode.body.len()), block::room(memory.block_bytes));
                let alone = size(&name, &value) > in_body.max(in_block);
                assert!(alone || all > in_block, "{all} bytes fit into {in_block}");
                return true;
            }
            Err(error) => assert!(matches!(error, AttributeError::Stop(Stop::Missing(_))), "{error}"),
        }
    }
    memory.stop_after = None;
    false
}

#[test]
fn random_edits_agree_with_a_map() {
    for (block_bytes, inode_bytes) in [(1024, 128), (1024, 256), (1024, 512), (4096, 128), (4096, 256), (4096, 512)] {
        let seed = (block_bytes * 1000 + inode_bytes) as u64;
        println!("seed {seed}");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (mut memory, mut inode) = (Memory::new(block_bytes, 4), Inode::new(inode_bytes));
        let mut model = BTreeMap::new();
        let mut full = 0;
        for _ in 0..20_000 {
            full += u32::from(edit(&mut memory, &mut inode, &mut model, &mut random));
            check(&mut memory, &inode, &model, 4);
            let probe = name(b"user.aa");
            let read = get(&mut memory, format(block_bytes), inode.place(), &probe).ok();
            assert_eq!(read.as_ref(), model.get(&probe));
        }
        assert!(full > 50, "the limit was met {full} times");
        for (name, value) in &model {
            assert_eq!(get(&mut memory, format(block_bytes), inode.place(), name).as_ref(), Ok(value));
        }
    }
}

/// Two inodes with a block between them, as the kernel makes it.
fn shared() -> (Memory, Inode) {
    let mut memory = Memory::new(1024, 3);
    let mut inode = Inode::new(128);
    for full in [b"user.one", b"user.two"] {
        let value = (&name(full), b"value".as_slice());
        let change = set(&mut memory, format(1024), inode.place(), value, SetMode::Any, GOAL).unwrap();
        inode.take(change);
    }
    let at = inode.block.unwrap();
    let bytes = memory.blocks.get_mut(&at).unwrap();
    // One more than two, less the one that is dropped: sealed with two.
    bytes[4] = 3;
    block::drop_reference(bytes, at, Some(Seed(77)));
    (memory, inode)
}

#[test]
fn a_shared_block_is_left_to_the_others() {
    let (mut memory, mut inode) = shared();
    let old = inode.place().block.unwrap();
    let before = memory.blocks[&old].clone();
    let value = (&name(b"user.one"), b"other".as_slice());
    let change = set(&mut memory, format(1024), inode.place(), value, SetMode::Any, GOAL).unwrap();
    assert_eq!((change.blocks, change.block.is_some()), (0, true));
    inode.take(change);
    assert_ne!(inode.block, Some(old));
    assert_eq!(block::references(&memory.blocks[&old], old, Some(Seed(77))), Ok(1));
    assert_eq!(memory.blocks[&old][32..], before[32..], "the others see what they saw");
    assert_eq!(get(&mut memory, format(1024), inode.place(), &name(b"user.one")).unwrap(), b"other");
    assert_eq!(get(&mut memory, format(1024), inode.place(), &name(b"user.two")).unwrap(), b"value");
}

#[test]
fn the_last_attribute_of_a_shared_block_leaves_it_in_place() {
    let (mut memory, mut inode) = shared();
    let old = inode.block.unwrap();
    let change = remove(&mut memory, format(1024), inode.place(), &name(b"user.one"), GOAL).unwrap();
    inode.take(change);
    let change = remove(&mut memory, format(1024), inode.place(), &name(b"user.two"), GOAL).unwrap();
    assert_eq!((change.block, change.blocks), (None, -1));
    assert_eq!(block::references(&memory.blocks[&old], old, Some(Seed(77))), Ok(1));
    release(&mut memory, format(1024), old).unwrap();
    assert!(memory.blocks.is_empty());
    assert_eq!(memory.free.len(), 3);
}

#[test]
fn released_blocks_are_freed_by_the_last() {
    let (mut memory, inode) = shared();
    let at = inode.block.unwrap();
    release(&mut memory, format(1024), at).unwrap();
    assert_eq!(memory.free.len(), 2);
    release(&mut memory, format(1024), at).unwrap();
    assert_eq!(memory.free.len(), 3);
}

#[test]
fn a_full_volume_stops_the_operation() {
    let mut memory = Memory::new(1024, 0);
    let inode = Inode::new(128);
    let value = (&name(b"user.one"), b"value".as_slice());
    let stopped = set(&mut memory, format(1024), inode.place(), value, SetMode::Any, GOAL);
    assert_eq!(stopped, Err(AttributeError::Stop(Stop::NoSpace)));
}

#[test]
fn what_is_set_again_writes_nothing() {
    let (mut memory, inode) = shared();
    let value = (&name(b"user.one"), b"value".as_slice());
    let change = set(&mut memory, format(1024), inode.place(), value, SetMode::Any, GOAL).unwrap();
    assert_eq!(change, Change { body: None, block: inode.block, blocks: 0 });
}

#[test]
fn an_acl_that_is_only_a_mode_is_not_kept() {
    let (mut memory, mut inode) = (Memory::new(1024, 1), Inode::new(256));
    let entry = |tag, bits| AclEntry { tag, permissions: Permissions::new(bits).unwrap() };
    let owners = [entry(Tag::Owner, 6), entry(Tag::User(5), 7), entry(Tag::OwningGroup, 4)];
    let rich = Acl::new(owners.into_iter().chain([entry(Tag::Mask, 5), entry(Tag::Other, 0)])).unwrap();
    let write = |memory: &mut Memory, inode: &mut Inode, acl: Option<&Acl>, mode| {
        let written = acl::write(memory, format(1024), inode.place(), (acl::Kind::Access, acl), mode, GOAL);
        let (change, mode) = written.unwrap();
        let changed = change.is_some();
        if let Some(change) = change {
            inode.take(change);
        }
        (changed, mode)
    };
    assert_eq!(write(&mut memory, &mut inode, Some(&rich), 0o102777), (true, 0o102650));
    let read = acl::read(&mut memory, format(1024), inode.place(), acl::Kind::Access);
    assert_eq!(read, Ok(Some(rich)));
    assert_eq!(write(&mut memory, &mut inode, Some(&Acl::of_mode(0o751)), 0o100650), (true, 0o100751));
    assert_eq!(acl::read(&mut memory, format(1024), inode.place(), acl::Kind::Access), Ok(None));
    assert_eq!(write(&mut memory, &mut inode, None, 0o100751), (false, 0o100751));
}
