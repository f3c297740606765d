//! The extent tree of an inode: what is where, and the operations that change it (ext4 on-disk format, "The Contents of
//! inode.i_block", section "Extent Tree").
//!
//! How nodes are split, joined and removed is in `extent_edit`, how they are found in `extent_path`.

use super::extent_edit::Edit;
use super::extent_path::{node_of, path_to};
use super::{Change, Limits, Mapping, Progress};
use crate::layout::checksum::Seed;
use crate::layout::extent::{Extent, FILE_BLOCKS_MAX, NodeRules, ROOT_SIZE, empty_root};
use crate::layout::{Corrupt, Structure};
use crate::store::{BlockStore, Stop};
use crate::units::{BlockNumber, BlockRun, FileBlock, InodeNumber};

/// Empty leaves that are passed in one search. The kernel tolerates them, nobody makes them.
const EMPTY_LEAVES_MAX: usize = 64;

/// An extent tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentTree {
    pub(super) root: [u8; ROOT_SIZE],
    pub(super) rules: NodeRules,
    pub(super) goal: BlockNumber,
}

impl ExtentTree {
    /// The tree with this root. `seed` is that of the inode, when the filesystem has checksums. New nodes come near `goal`.
    pub fn new(
        root: [u8; ROOT_SIZE],
        inode: InodeNumber,
        seed: Option<Seed>,
        device_blocks: u64,
        goal: BlockNumber,
    ) -> Self {
        Self { root, rules: NodeRules { inode, seed, device_blocks }, goal }
    }

    /// A tree without extents, for the inode of the same parameters.
    pub fn empty(inode: InodeNumber, seed: Option<Seed>, device_blocks: u64, goal: BlockNumber) -> Self {
        Self::new(empty_root(), inode, seed, device_blocks, goal)
    }

    /// What belongs into the inode.
    pub fn root(&self) -> &[u8; ROOT_SIZE] {
        &self.root
    }

    /// What is at `at`: the rest of its extent, or the hole up to the next one. Errors: those of the store, and what is
    /// found broken on the way.
    pub fn lookup<S: BlockStore + ?Sized>(&self, store: &mut S, at: FileBlock) -> Result<Mapping, Stop> {
        Ok(match self.next(store, at)? {
            Some(extent) if extent.file == at => Mapping::Mapped { run: extent.run, unwritten: extent.unwritten },
            next => Mapping::Hole { count: next.map_or(FILE_BLOCKS_MAX, |extent| extent.file.0) - at.0 },
        })
    }

    /// The extent at `at`, clipped to begin there, or the first after it. None when there is none. Errors: those of the
    /// store, and what is found broken on the way.
    pub fn next<S: BlockStore + ?Sized>(&self, store: &mut S, at: FileBlock) -> Result<Option<Extent>, Stop> {
        let mut from = at.0;
        for _ in 0..EMPTY_LEAVES_MAX {
            let path = path_to(store, &self.root, &self.rules, from)?;
            let leaf = node_of(store, &self.root, &self.rules, path.leaf().place)?;
            let position = leaf.position_after(at.0);
            let before = position.checked_sub(1).and_then(|position| leaf.extent(position));
            if let Some(extent) = before.filter(|extent| extent.end() > at.0) {
                return Ok(Some(extent.part(at.0, extent.end())));
            }
            if let Some(extent) = leaf.extent(position) {
                return Ok(Some(extent));
            }
            match path.upper {
                Some(upper) => from = upper,
                None => return Ok(None),
            }
        }
        Err(self.broken("many leaves are empty").into())
    }

    /// The last extent that begins before `before`. Errors: those of the store, and what is found broken on the way.
    pub fn previous<S: BlockStore + ?Sized>(&self, store: &mut S, before: FileBlock) -> Result<Option<Extent>, Stop> {
        let Some(mut at) = before.0.checked_sub(1) else { return Ok(None) };
        for _ in 0..EMPTY_LEAVES_MAX {
            let path = path_to(store, &self.root, &self.rules, at)?;
            let leaf = node_of(store, &self.root, &self.rules, path.leaf().place)?;
            if let Some(position) = leaf.position_after(at).checked_sub(1) {
                return Ok(leaf.extent(position));
            }
            match path.lower.filter(|_| !path.is_leftmost()).and_then(|lower| lower.checked_sub(1)) {
                Some(lower) => at = lower.min(at),
                None => return Ok(None),
            }
        }
        Err(self.broken("many leaves are empty").into())
    }

    /// Maps blocks that are not mapped, joining them with the extents beside them where that can be. An extent longer than
    /// the format has becomes several. An empty one changes nothing.
    ///
    /// Errors: [`Stop::TooLarge`] beyond the largest file, [`Stop::NoSpace`] when a node is needed and no block is free,
    /// those of the store, and what is found broken; also when some of the blocks are mapped already.
    pub fn insert<S: BlockStore + ?Sized>(&mut self, store: &mut S, extent: Extent) -> Result<Change, Stop> {
        let end = u64::from(extent.file.0) + u64::from(extent.run.count);
        if end > u64::from(FILE_BLOCKS_MAX) {
            return Err(Stop::TooLarge("the file"));
        }
        self.edit(store, |edit| {
            pieces_of(&extent).try_for_each(|piece| edit.insert(&piece))?;
            Ok(())
        })
        .map(|((), change)| change)
    }

    /// Makes what is mapped from `from` and before `to` written or unwritten. Holes stay. Goes upwards, and stops where
    /// `limits.nodes_max` extents were changed.
    ///
    /// Errors: [`Stop::NoSpace`] when a node is needed and no block is free, those of the store, and what is found broken.
    pub fn convert<S: BlockStore + ?Sized>(
        &mut self,
        store: &mut S,
        from: FileBlock,
        to: FileBlock,
        unwritten: bool,
        limits: Limits,
    ) -> Result<Progress, Stop> {
        let (stopped_at, change) = self.edit(store, |edit| {
            let mut at = from.0;
            let mut changed = 0;
            while let Some(extent) = edit.next(FileBlock(at))?.filter(|extent| extent.file < to) {
                let part = extent.part(extent.file.0, extent.end().min(to.0));
                if part.unwritten != unwritten {
                    if changed == limits.nodes_max {
                        return Ok(Some(extent.file));
                    }
                    edit.convert(&part)?;
                    changed += 1;
                }
                at = part.end();
            }
            Ok(None)
        })?;
        Ok(Progress { change, stopped_at })
    }

    /// Gives back what is mapped from `from` and before `to`, beginning at the end; to truncate, `to` is
    /// [`FILE_BLOCKS_MAX`]. Stops where the limits are reached, of which `nodes_max` counts leaves.
    ///
    /// Errors: [`Stop::NoSpace`] when an extent has to be split, a node is needed for that and no block is free; those of
    /// the store, and what is found broken.
    pub fn remove<S: BlockStore + ?Sized>(
        &mut self,
        store: &mut S,
        from: FileBlock,
        to: FileBlock,
        limits: Limits,
    ) -> Result<Progress, Stop> {
        let (stopped_at, change) = self.edit(store, |edit| {
            let mut to = to.0;
            let mut nodes = 0;
            while to > from.0
                && let Some(last) = edit.previous(FileBlock(to))?.filter(|last| last.end() > from.0)
            {
                let blocks_left = limits.blocks_max.saturating_sub(edit.change.data_freed);
                to = to.min(last.end());
                if blocks_left == 0 || nodes == limits.nodes_max {
                    return Ok(Some(FileBlock(to)));
                }
                to = edit.remove_in_leaf(from.0, to, blocks_left)?;
                nodes += 1;
            }
            Ok(None)
        })?;
        Ok(Progress { change, stopped_at })
    }

    /// Runs an edit on a copy of the root, which takes the root's place when it succeeds.
    fn edit<S: BlockStore + ?Sized, T>(
        &mut self,
        store: &mut S,
        run: impl FnOnce(&mut Edit<'_, S>) -> Result<T, Stop>,
    ) -> Result<(T, Change), Stop> {
        let mut edit = Edit { store, tree: self.clone(), change: Change::default() };
        let result = run(&mut edit)?;
        let Edit { tree, change, .. } = edit;
        *self = tree;
        Ok((result, change))
    }

    pub(super) fn broken(&self, what: &'static str) -> Corrupt {
        Corrupt::new(Structure::Inode, u64::from(self.rules.inode.0), what)
    }
}

/// The same blocks as extents of lengths that the format has.
pub(super) fn pieces_of(extent: &Extent) -> impl Iterator<Item = Extent> + use<> {
    let Extent { file, run, unwritten } = *extent;
    let count_max = Extent::count_max(unwritten);
    (0..run.count).step_by(count_max as usize).map(move |offset| Extent {
        file: FileBlock(file.0 + offset),
        run: BlockRun::new(run.start.plus(u64::from(offset)), count_max.min(run.count - offset)),
        unwritten,
    })
}

#[cfg(test)]
#[path = "extents_tests.rs"]
mod tests;
