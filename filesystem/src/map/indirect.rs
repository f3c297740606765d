//! The map of an inode without extents: pointers to blocks, in the inode and under up to three levels of blocks (ext4
//! on-disk format, "The Contents of inode.i_block", section "Direct/Indirect Block Addressing").
//!
//! It has no checksums, and no unwritten blocks.

use super::{Change, Limits, Mapping, Progress};
use crate::layout::extent::{Extent, ROOT_SIZE};
use crate::layout::indirect::{DIRECT, LEVELS_MAX, blocks_under, file_blocks_max, is_empty, pointer, set_pointer};
use crate::layout::{Corrupt, Structure};
use crate::store::{BlockStore, Stop};
use crate::units::{BlockNumber, BlockRun, FileBlock, InodeNumber};

/// An indirect map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndirectMap {
    root: [u8; ROOT_SIZE],
    inode: InodeNumber,
    block_size: u32,
    device_blocks: u64,
    goal: BlockNumber,
}

/// Where pointers are.
#[derive(Clone, Copy)]
enum Table {
    Root,
    Block(BlockNumber),
}

/// A pointer of the root, and what it stands for.
#[derive(Clone, Copy)]
struct Top {
    position: usize,
    /// Levels of blocks of pointers under it.
    level: u32,
    /// The first block of the file under it, and how many there are.
    first: u64,
    count: u64,
}

/// A removal under way.
struct Removal {
    from: u64,
    to: u64,
    blocks_left: u64,
    nodes_left: u32,
    /// Everything at this block of the file and after it is done.
    done_from: u64,
    change: Change,
}

impl Removal {
    fn is_out_of_budget(&self) -> bool {
        self.blocks_left == 0 || self.nodes_left == 0
    }
}

impl IndirectMap {
    /// The map with this root. `block_size` is in bytes. New blocks of pointers come near `goal`.
    pub fn new(
        root: [u8; ROOT_SIZE],
        inode: InodeNumber,
        block_size: u32,
        device_blocks: u64,
        goal: BlockNumber,
    ) -> Self {
        Self { root, inode, block_size, device_blocks, goal }
    }

    /// What belongs into the inode.
    pub fn root(&self) -> &[u8; ROOT_SIZE] {
        &self.root
    }

    /// What is at `at`. Errors: those of the store, and pointers out of the device.
    pub fn lookup<S: BlockStore + ?Sized>(&self, store: &mut S, at: FileBlock) -> Result<Mapping, Stop> {
        let file_blocks = u64::from(file_blocks_max(self.block_size));
        let Some(top) = self.top_of(u64::from(at.0)) else { return Ok(Mapping::Hole { count: 0 }) };
        let mut table = Table::Root;
        let mut position = top.position;
        let mut offset = u64::from(at.0) - top.first;
        for level in (0..=top.level).rev() {
            let under = blocks_under(level, self.block_size);
            let target = self.target(store, table, position)?;
            if target.0 == 0 {
                let under = if level == 0 { self.holes_from(store, table, position)? } else { under };
                let left = (under - offset).min(file_blocks - u64::from(at.0));
                return Ok(Mapping::Hole { count: u32::try_from(left).unwrap_or(u32::MAX) });
            }
            if level == 0 {
                let run = self.run_from(store, table, position, target)?;
                return Ok(Mapping::Mapped { run, unwritten: false });
            }
            let under = blocks_under(level - 1, self.block_size);
            (table, position) = (Table::Block(target), (offset / under) as usize);
            offset %= under;
        }
        Err(self.broken(table, "a pointer leads nowhere").into())
    }

    /// The mapped blocks at `at`, or the first after it. None when nothing more is mapped. Errors: those of the store, and
    /// pointers out of the device.
    pub fn next<S: BlockStore + ?Sized>(&self, store: &mut S, at: FileBlock) -> Result<Option<Extent>, Stop> {
        let mut at = at;
        loop {
            match self.lookup(store, at)? {
                Mapping::Mapped { run, unwritten } => return Ok(Some(Extent { file: at, run, unwritten })),
                Mapping::Hole { count: 0 } => return Ok(None),
                Mapping::Hole { count } => at = FileBlock(at.0.saturating_add(count)),
            }
        }
    }

    /// Maps blocks that are not mapped. Errors: [`Stop::TooLarge`] beyond the largest file and for blocks whose number has
    /// more than 32 bits, [`Stop::NoSpace`] when a block of pointers is needed and none is free, those of the store, and
    /// what is found broken; also when some of the blocks are mapped already.
    pub fn insert<S: BlockStore + ?Sized>(
        &mut self,
        store: &mut S,
        file: FileBlock,
        run: BlockRun,
    ) -> Result<Change, Stop> {
        let end = u64::from(file.0) + u64::from(run.count);
        if end > u64::from(file_blocks_max(self.block_size)) || run.end().0 > 1 << 32 {
            return Err(Stop::TooLarge("the file"));
        }
        let mut map = self.clone();
        let mut change = Change::default();
        for offset in 0..run.count {
            map.set(store, u64::from(file.0 + offset), run.start.plus(u64::from(offset)), &mut change)?;
        }
        *self = map;
        Ok(change)
    }

    /// Gives back what is mapped from `from` and before `to`, beginning at the end, and the blocks of pointers that become
    /// empty. Stops where the limits are reached, of which `nodes_max` counts blocks of pointers to data. Errors: those of
    /// the store, and pointers out of the device.
    pub fn remove<S: BlockStore + ?Sized>(
        &mut self,
        store: &mut S,
        from: FileBlock,
        to: FileBlock,
        limits: Limits,
    ) -> Result<Progress, Stop> {
        let mut map = self.clone();
        let mut removal = Removal {
            from: u64::from(from.0),
            to: u64::from(to.0),
            blocks_left: limits.blocks_max,
            nodes_left: limits.nodes_max,
            done_from: u64::from(to.0),
            change: Change::default(),
        };
        for position in (0..DIRECT + LEVELS_MAX).rev() {
            let top = self.top_at(position);
            map.remove_under(store, Table::Root, top, &mut removal)?;
        }
        *self = map;
        let stopped = removal.done_from > removal.from && removal.is_out_of_budget();
        let stopped_at = stopped.then(|| FileBlock(u32::try_from(removal.done_from).unwrap_or(u32::MAX)));
        Ok(Progress { change: removal.change, stopped_at })
    }

    /// Removes what is under one pointer, and then the block of pointers that it leads to when that has become empty.
    fn remove_under<S: BlockStore + ?Sized>(
        &mut self,
        store: &mut S,
        table: Table,
        entry: Top,
        removal: &mut Removal,
    ) -> Result<(), Stop> {
        if entry.first >= removal.to || entry.first + entry.count <= removal.from || removal.is_out_of_budget() {
            return Ok(());
        }
        let target = self.target(store, table, entry.position)?;
        if target.0 != 0 && entry.level == 0 {
            self.set_target(store, table, entry.position, BlockNumber(0))?;
            store.free(BlockRun::new(target, 1), false)?;
            removal.change.data_freed += 1;
            removal.blocks_left -= 1;
        } else if target.0 != 0 {
            let below = Table::Block(target);
            let under = blocks_under(entry.level - 1, self.block_size);
            let covered = entry.first.max(removal.from)..(entry.first + entry.count).min(removal.to);
            let positions = (covered.start - entry.first) / under..=(covered.end - 1 - entry.first) / under;
            for position in positions.rev() {
                let first = entry.first + position * under;
                let child = Top { position: position as usize, level: entry.level - 1, first, count: under };
                self.remove_under(store, below, child, removal)?;
            }
            if is_empty(store.block(target)?) {
                self.set_target(store, table, entry.position, BlockNumber(0))?;
                store.free(BlockRun::new(target, 1), true)?;
                removal.change.nodes_removed += 1;
            }
            if entry.level == 1 {
                removal.nodes_left = removal.nodes_left.saturating_sub(1);
            }
            if removal.is_out_of_budget() {
                return Ok(());
            }
        }
        removal.done_from = removal.done_from.min(entry.first.max(removal.from));
        Ok(())
    }

    fn set<S: BlockStore + ?Sized>(
        &mut self,
        store: &mut S,
        at: u64,
        to: BlockNumber,
        change: &mut Change,
    ) -> Result<(), Stop> {
        let top = self.top_of(at).ok_or(Stop::TooLarge("the file"))?;
        let (mut table, mut position, mut offset) = (Table::Root, top.position, at - top.first);
        for level in (0..top.level).rev() {
            let mut target = self.target(store, table, position)?;
            if target.0 == 0 {
                target = store.allocate(self.goal)?;
                store.new_block(target)?;
                self.set_target(store, table, position, target)?;
                change.nodes_added += 1;
            }
            let under = blocks_under(level, self.block_size);
            (table, position) = (Table::Block(target), (offset / under) as usize);
            offset %= under;
        }
        if self.target(store, table, position)?.0 != 0 {
            return Err(self.broken(table, "a block is mapped already").into());
        }
        self.set_target(store, table, position, to)
    }

    /// The pointers from `position` on that lead to blocks that follow one another.
    fn run_from<S: BlockStore + ?Sized>(
        &self,
        store: &mut S,
        table: Table,
        position: usize,
        start: BlockNumber,
    ) -> Result<BlockRun, Stop> {
        let (bytes, end) = match table {
            Table::Root => (self.root.as_slice(), DIRECT as usize),
            Table::Block(at) => (store.block(at)?, usize::MAX),
        };
        let follows = |count: &u32| {
            let next = position + *count as usize;
            let expected = start.plus(u64::from(*count));
            next < end && expected.0 < self.device_blocks && pointer(bytes, next) == Some(expected)
        };
        let more = (1..).take_while(follows).count();
        Ok(BlockRun::new(start, 1 + more as u32))
    }

    /// Pointers to nothing that follow one another in one table, that at `position` among them.
    fn holes_from<S: BlockStore + ?Sized>(&self, store: &mut S, table: Table, position: usize) -> Result<u64, Stop> {
        let (bytes, end) = match table {
            Table::Root => (self.root.as_slice(), DIRECT as usize),
            Table::Block(at) => (store.block(at)?, usize::MAX),
        };
        let follows = |next: &usize| *next < end && pointer(bytes, *next) == Some(BlockNumber(0));
        Ok(1 + (position + 1..).take_while(follows).count() as u64)
    }

    fn target<S: BlockStore + ?Sized>(
        &self,
        store: &mut S,
        table: Table,
        position: usize,
    ) -> Result<BlockNumber, Stop> {
        let bytes = match table {
            Table::Root => self.root.as_slice(),
            Table::Block(at) => store.block(at)?,
        };
        let target = pointer(bytes, position).ok_or_else(|| self.broken(table, "a pointer leads nowhere"))?;
        if target.0 >= self.device_blocks {
            return Err(self.broken(table, "a pointer leads out of the device").into());
        }
        Ok(target)
    }

    fn set_target<S: BlockStore + ?Sized>(
        &mut self,
        store: &mut S,
        table: Table,
        position: usize,
        to: BlockNumber,
    ) -> Result<(), Stop> {
        let bytes = match table {
            Table::Root => self.root.as_mut_slice(),
            Table::Block(at) => store.block_mut(at)?,
        };
        set_pointer(bytes, position, to).ok_or(Stop::TooLarge("the file"))
    }

    fn top_of(&self, at: u64) -> Option<Top> {
        if at >= u64::from(file_blocks_max(self.block_size)) {
            return None;
        }
        let tops = (0..DIRECT + LEVELS_MAX).map(|position| self.top_at(position));
        tops.into_iter().find(|top| at < top.first + top.count)
    }

    fn top_at(&self, position: u32) -> Top {
        let level = (position + 1).saturating_sub(DIRECT);
        let before: u64 = (1..level).map(|level| blocks_under(level, self.block_size)).sum();
        let first = u64::from(position.min(DIRECT)) + before;
        Top { position: position as usize, level, first, count: blocks_under(level, self.block_size) }
    }

    fn broken(&self, table: Table, what: &'static str) -> Corrupt {
        match table {
            Table::Root => Corrupt::new(Structure::Inode, u64::from(self.inode.0), what),
            Table::Block(at) => Corrupt::new(Structure::IndirectMap, at.0, what),
        }
    }
}

#[cfg(test)]
#[path = "indirect_tests.rs"]
mod tests;
