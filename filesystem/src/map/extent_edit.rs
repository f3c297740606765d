//! One edit of an extent tree: entries of a leaf are replaced, and the nodes above follow.
//!
//! A full node is split, a full root moves into a block of its own, an empty node is removed, and what fits into the root
//! moves back into it. The key of an index is always the first of its node, since e2fsck asks for that.

use std::ops::Range;

use smallvec::SmallVec;

use super::Change;
use super::extent_path::{Path, Place, Step, node_of, path_to};
use super::extents::{ExtentTree, pieces_of};
use crate::layout::extent::{DEPTH_MAX, Entry, Extent, Node, NodeMut, ROOT_SIZE, block_entries_max};
use crate::store::{BlockStore, Stop};
use crate::units::{BlockNumber, BlockRun, FileBlock};

/// Times that room is made before a change of one leaf; one split or growth each, and every level may need one.
const ROOM_ATTEMPTS_MAX: usize = 4 * (DEPTH_MAX as usize + 1);
/// Entries of the root.
const ROOT_ENTRIES_MAX: usize = ROOT_SIZE / size_of::<Entry>() - 1;

/// An edit under way, on a copy of the root.
pub(super) struct Edit<'a, S: BlockStore + ?Sized> {
    pub(super) store: &'a mut S,
    pub(super) tree: ExtentTree,
    pub(super) change: Change,
}

/// Extents that take the place of some in a leaf.
type Extents = SmallVec<[Extent; 6]>;

impl<S: BlockStore + ?Sized> Edit<'_, S> {
    pub(super) fn next(&mut self, at: FileBlock) -> Result<Option<Extent>, Stop> {
        self.tree.next(self.store, at)
    }

    pub(super) fn previous(&mut self, before: FileBlock) -> Result<Option<Extent>, Stop> {
        self.tree.previous(self.store, before)
    }

    /// Adds an extent of a length that the format has, where nothing is mapped.
    pub(super) fn insert(&mut self, extent: &Extent) -> Result<(), Stop> {
        for _ in 0..ROOM_ATTEMPTS_MAX {
            let path = self.path_to(extent.file.0)?;
            let leaf = self.node(path.leaf().place)?;
            let position = leaf.position_after(extent.file.0);
            let is_behind = |left: Extent| left.end() <= extent.file.0;
            let free_left = position.checked_sub(1).and_then(|left| leaf.extent(left)).is_none_or(is_behind);
            let free_right = leaf.extent(position).is_none_or(|right| extent.end() <= right.file.0);
            if !free_left || !free_right || path.upper.is_some_and(|upper| extent.end() > upper) {
                return Err(self.tree.broken("a block is mapped already").into());
            }
            let at_end = position == leaf.entries().len();
            let (range, extents) = with_neighbours(&leaf, position..position, &[*extent]);
            let touches_next_leaf = at_end && path.upper == Some(extent.end()) && extents.last() == Some(extent);
            if touches_next_leaf && self.join_next_leaf(extent)? {
                return Ok(());
            }
            if self.replace_or_make_room(&path, range, &extents, at_end)? {
                return Ok(());
            }
        }
        Err(self.tree.broken("splitting nodes makes no room").into())
    }

    /// Makes a part of an extent of the other kind.
    pub(super) fn convert(&mut self, part: &Extent) -> Result<(), Stop> {
        for _ in 0..ROOM_ATTEMPTS_MAX {
            let path = self.path_to(part.file.0)?;
            let leaf = self.node(path.leaf().place)?;
            let position = leaf.position_after(part.file.0).saturating_sub(1);
            let Some(whole) = leaf.extent(position).filter(|whole| whole.end() >= part.end()) else {
                return Err(self.tree.broken("an extent is gone").into());
            };
            let mut new = Extents::new();
            new.push(whole.part(whole.file.0, part.file.0));
            new.extend(pieces_of(&Extent { unwritten: !part.unwritten, ..*part }));
            new.push(whole.part(part.end(), whole.end()));
            new.retain(|piece| piece.run.count > 0);
            let at_end = position + 1 == leaf.entries().len();
            let (range, extents) = with_neighbours(&leaf, position..position + 1, &new);
            if self.replace_or_make_room(&path, range, &extents, at_end)? {
                return Ok(());
            }
        }
        Err(self.tree.broken("splitting nodes makes no room").into())
    }

    /// Gives back what the leaf of the last extent before `to` maps from `from` on, at most `blocks_max` blocks. Returns
    /// where the first of them was.
    pub(super) fn remove_in_leaf(&mut self, from: u32, to: u32, blocks_max: u64) -> Result<u32, Stop> {
        let last = to.saturating_sub(1);
        for _ in 0..ROOM_ATTEMPTS_MAX {
            let path = self.path_to(last)?;
            let leaf = self.node(path.leaf().place)?;
            let end = leaf.position_after(last);
            let removal = Removal::plan(&leaf, end, from, to, blocks_max);
            let at_end = end == leaf.entries().len();
            let Some(lowest) = removal.runs.last().map(|(lowest, _)| *lowest) else {
                return Err(self.tree.broken("an extent is gone").into());
            };
            if self.replace_or_make_room(&path, removal.start..end, &removal.left_over, at_end)? {
                for (_, run) in removal.runs {
                    self.change.data_freed += u64::from(run.count);
                    self.store.free(run, false)?;
                }
                return Ok(lowest);
            }
        }
        Err(self.tree.broken("splitting nodes makes no room").into())
    }

    /// Joins an extent with the first of the leaf that follows, when the two can be.
    fn join_next_leaf(&mut self, extent: &Extent) -> Result<bool, Stop> {
        let path = self.path_to(extent.end())?;
        let first = self.node(path.leaf().place)?.extent(0);
        let Some(joined) = first.and_then(|first| extent.joined(&first)) else { return Ok(false) };
        self.replace(&path, 0..1, &[joined])?;
        Ok(true)
    }

    /// Replaces extents of a path's leaf if they fit. If not, makes some room: the path then no longer holds.
    fn replace_or_make_room(
        &mut self,
        path: &Path,
        range: Range<usize>,
        extents: &[Extent],
        at_end: bool,
    ) -> Result<bool, Stop> {
        let leaf = path.leaf();
        if leaf.entries - range.len().min(leaf.entries) + extents.len() > leaf.max {
            self.make_room(path, at_end)?;
            return Ok(false);
        }
        self.replace(path, range, extents)?;
        Ok(true)
    }

    fn replace(&mut self, path: &Path, range: Range<usize>, extents: &[Extent]) -> Result<(), Stop> {
        let new: SmallVec<[Entry; 6]> = extents.iter().map(Extent::entry).collect();
        let shrinks = new.len() < range.len();
        let level = path.steps.len() - 1;
        self.replace_entries(path, level, range, &new)?;
        if shrinks { self.pull_into_root() } else { Ok(()) }
    }

    /// Replaces entries of the node at `level` of the path. A node that becomes empty is removed, and so on upwards; a new
    /// first key goes up to where it is not the first.
    fn replace_entries(&mut self, path: &Path, level: usize, range: Range<usize>, new: &[Entry]) -> Result<(), Stop> {
        let (mut range, mut new) = (range, new);
        for (level, step) in path.steps.iter().enumerate().take(level + 1).rev() {
            let remains = step.entries - range.len().min(step.entries) + new.len();
            let Place::Block(at) = step.place else {
                self.change_node(Place::Root, |node| {
                    node.splice(range.clone(), new)?;
                    if remains == 0 { node.init(0, ROOT_ENTRIES_MAX) } else { Some(()) }
                })?;
                return Ok(());
            };
            if remains > 0 {
                let first_changes = range.start == 0;
                self.change_node(step.place, |node| node.splice(range.clone(), new))?;
                return if first_changes { self.spread_first_key(path, level) } else { Ok(()) };
            }
            self.store.free(BlockRun::new(at, 1), true)?;
            self.change.nodes_removed += 1;
            let above = level.checked_sub(1).and_then(|level| path.steps.get(level));
            let position = above.map_or(0, |step| step.position);
            (range, new) = (position..position + 1, &[]);
        }
        Ok(())
    }

    /// Makes the keys above the node at `level` that node's first.
    fn spread_first_key(&mut self, path: &Path, level: usize) -> Result<(), Stop> {
        let Some(place) = path.steps.get(level).map(|step| step.place) else { return Ok(()) };
        let Some(key) = self.node(place)?.entries().first().map(Entry::key) else { return Ok(()) };
        for step in path.steps.iter().take(level).rev() {
            let known = self.node(step.place)?.entries().get(step.position).map(Entry::key);
            if known != Some(key) {
                self.change_node(step.place, |node| node.set_key(step.position, key))?;
            }
            if step.position > 0 {
                break;
            }
        }
        Ok(())
    }

    /// Splits the lowest full node whose parent is not full, or makes the tree deeper.
    fn make_room(&mut self, path: &Path, at_end: bool) -> Result<(), Stop> {
        for (level, step) in path.steps.iter().enumerate().rev() {
            let Some(parent) = level.checked_sub(1).and_then(|above| path.steps.get(above)) else {
                return self.grow(step);
            };
            if parent.entries < parent.max {
                let is_leaf = level + 1 == path.steps.len();
                let at_end = if is_leaf { at_end } else { step.position + 1 == step.entries };
                return self.split(parent, step, at_end);
            }
        }
        Ok(())
    }

    /// Moves the upper half of a node into a new one; where the tree grows at the node's end only its last entry, so that
    /// a file written from its start to its end has full nodes.
    fn split(&mut self, parent: &Step, step: &Step, at_end: bool) -> Result<(), Stop> {
        let middle = if at_end { step.entries.saturating_sub(1) } else { step.entries / 2 };
        let upper: Vec<Entry> = self.node(step.place)?.entries().iter().skip(middle).copied().collect();
        let (Some(key), false) = (upper.first().map(Entry::key), middle == 0) else {
            return Err(step.place.broken(&self.tree.rules, "a full node is too small to be split").into());
        };
        let new = self.new_node(step.depth, &upper)?;
        self.change_node(step.place, |node| node.splice(middle..step.entries, &[]))?;
        let after = parent.position + 1;
        self.change_node(parent.place, |node| node.splice(after..after, &[Entry::index(key, new)]))
    }

    /// Moves the entries of the root into a block of their own.
    fn grow(&mut self, root: &Step) -> Result<(), Stop> {
        if root.depth >= DEPTH_MAX {
            return Err(Stop::TooLarge("the extent tree"));
        }
        let entries: Vec<Entry> = self.node(Place::Root)?.entries().to_vec();
        let Some(key) = entries.first().map(Entry::key) else {
            return Err(self.tree.broken("an empty root has no room").into());
        };
        let new = self.new_node(root.depth, &entries)?;
        self.change_node(Place::Root, |node| {
            node.splice(0..root.entries, &[Entry::index(key, new)])?;
            node.set_depth(root.depth + 1)
        })
    }

    /// Moves the entries of the root's only child into the root when they fit, so that the tree is no deeper than it has to
    /// be.
    fn pull_into_root(&mut self) -> Result<(), Stop> {
        for _ in 0..DEPTH_MAX {
            let root = self.node(Place::Root)?;
            let (depth, [only]) = (root.depth(), root.entries()) else { return Ok(()) };
            let (Some(depth), at) = (depth.checked_sub(1), only.child()) else { return Ok(()) };
            let child = self.tree.rules.block(self.store.block(at)?, at, depth)?;
            if child.entries().len() > ROOT_ENTRIES_MAX {
                return Ok(());
            }
            let entries: SmallVec<[Entry; ROOT_ENTRIES_MAX]> = child.entries().iter().copied().collect();
            self.change_node(Place::Root, |node| {
                node.splice(0..1, &entries)?;
                node.set_depth(depth)
            })?;
            self.store.free(BlockRun::new(at, 1), true)?;
            self.change.nodes_removed += 1;
        }
        Ok(())
    }

    fn new_node(&mut self, depth: u16, entries: &[Entry]) -> Result<BlockNumber, Stop> {
        let at = self.store.allocate(self.tree.goal)?;
        self.change.nodes_added += 1;
        let mut node = NodeMut(self.store.new_block(at)?);
        let max = block_entries_max(node.0.len());
        let built = node.init(depth, max).and_then(|()| node.splice(0..0, entries));
        let sealed = built.and_then(|()| node.seal(self.tree.rules.seed));
        sealed.ok_or_else(|| self.tree.broken("a node does not fit into a block"))?;
        Ok(at)
    }

    /// Changes a node and brings its checksum up to date.
    fn change_node(&mut self, place: Place, change: impl FnOnce(&mut NodeMut<'_>) -> Option<()>) -> Result<(), Stop> {
        let rules = self.tree.rules;
        let changed = match place {
            Place::Root => change(&mut NodeMut(&mut self.tree.root)),
            Place::Block(at) => {
                let mut node = NodeMut(self.store.block_mut(at)?);
                change(&mut node).and_then(|()| node.seal(rules.seed))
            }
        };
        Ok(changed.ok_or_else(|| place.broken(&rules, "the entries do not fit"))?)
    }

    fn path_to(&mut self, at: u32) -> Result<Path, Stop> {
        path_to(self.store, &self.tree.root, &self.tree.rules, at)
    }

    fn node(&mut self, place: Place) -> Result<Node<'_>, Stop> {
        node_of(self.store, &self.tree.root, &self.tree.rules, place)
    }
}

/// What is to be removed from a leaf.
struct Removal {
    /// The first entry that changes.
    start: usize,
    /// What of the entries stays: a part of the first, a part of the last.
    left_over: Extents,
    /// What goes, from the last to the first, each with its file block.
    runs: Vec<(u32, BlockRun)>,
}

impl Removal {
    /// Of the entries before `end`, what is from `from` and before `to`, at most `blocks_max` blocks of its end.
    fn plan(leaf: &Node<'_>, end: usize, from: u32, to: u32, blocks_max: u64) -> Self {
        let mut plan = Self { start: end, left_over: Extents::new(), runs: Vec::new() };
        let mut left = u32::try_from(blocks_max).unwrap_or(u32::MAX);
        while let Some(extent) = plan.start.checked_sub(1).and_then(|position| leaf.extent(position)) {
            if extent.end() <= from || left == 0 {
                break;
            }
            plan.start -= 1;
            let high = extent.end().min(to);
            let low = extent.file.0.max(from).max(high.saturating_sub(left));
            if high < extent.end() {
                plan.left_over.push(extent.part(high, extent.end()));
            }
            if low > extent.file.0 {
                plan.left_over.insert(0, extent.part(extent.file.0, low));
            }
            plan.runs.push((low, extent.part(low, high).run));
            left -= high - low;
            if low > extent.file.0 {
                break;
            }
        }
        plan
    }
}

/// `new` in the place of a leaf's extents in `range`, joined with those beside them.
fn with_neighbours(leaf: &Node<'_>, range: Range<usize>, new: &[Extent]) -> (Range<usize>, Extents) {
    let start = range.start.saturating_sub(1);
    let end = (range.end + 1).min(leaf.entries().len());
    let left = (start..range.start).filter_map(|position| leaf.extent(position));
    let right = (range.end..end).filter_map(|position| leaf.extent(position));
    let mut extents = Extents::new();
    for extent in left.chain(new.iter().copied()).chain(right) {
        match extents.last().and_then(|last| last.joined(&extent)) {
            Some(joined) => {
                extents.pop();
                extents.push(joined);
            }
            None => extents.push(extent),
        }
    }
    (start..end, extents)
}
