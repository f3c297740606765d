//! Cells of a disk behind a volatile write cache: what reads return, what the cache holds, what is on the media.
//!
//! A cell is a block of data or a page of metadata; one that was never written holds zeros and takes no memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::RangeBounds;

use super::super::scheduler::Rng;

/// Versions of one cell held in the volatile cache; older ones are written back.
const VERSIONS_MAX: usize = 4;

/// What a cell holds.
pub(super) trait Content: Clone + PartialEq + Debug {
    /// Zeros.
    fn zeros() -> Self;
    /// A mixture of two versions, as a power cut in the midst of a write leaves it.
    fn torn(&self, other: &Self, rng: &mut Rng) -> Self;
}

#[derive(Clone, Debug)]
struct Cell<V> {
    visible: V,
    media: V,
    /// What completed since the last write-back: cache sequence and content, oldest first.
    cached: Vec<(u64, V)>,
}

/// All cells of one kind.
#[derive(Clone, Debug)]
pub(super) struct Layer<K, V> {
    cells: BTreeMap<K, Cell<V>>,
    /// Cells with something in `cached`.
    unflushed: BTreeSet<K>,
}

impl<K: Ord + Copy, V: Content> Default for Layer<K, V> {
    fn default() -> Self {
        Self { cells: BTreeMap::new(), unflushed: BTreeSet::new() }
    }
}

impl<K: Ord + Copy, V: Content> Layer<K, V> {
    /// Content as reads see it.
    pub(super) fn get(&self, key: K) -> V {
        self.cells.get(&key).map_or_else(V::zeros, |cell| cell.visible.clone())
    }

    /// The cells of `keys` that were ever written, as reads see them.
    pub(super) fn range(&self, keys: impl RangeBounds<K>) -> impl Iterator<Item = (K, &V)> {
        self.cells.range(keys).map(|(key, cell)| (*key, &cell.visible))
    }

    /// True when something would be lost without power.
    pub(super) fn has_unflushed(&self) -> bool {
        !self.unflushed.is_empty()
    }

    /// Stores `value`; `durable` puts it on the media at once. `sequence` grows with every call.
    pub(super) fn store(&mut self, key: K, value: V, durable: bool, sequence: u64) {
        let fresh = || Cell { visible: V::zeros(), media: V::zeros(), cached: Vec::new() };
        let cell = self.cells.entry(key).or_insert_with(fresh);
        cell.visible = value.clone();
        if durable {
            cell.media = value;
            cell.cached.clear();
            self.unflushed.remove(&key);
            return;
        }
        self.unflushed.insert(key);
        cell.cached.push((sequence, value));
        if cell.cached.len() > VERSIONS_MAX {
            cell.media = cell.cached.remove(0).1;
        }
    }

    /// Puts on the media everything in the cache up to sequence `mark`.
    pub(super) fn write_back(&mut self, mark: u64) {
        let cells = &mut self.cells;
        self.unflushed.retain(|key| {
            let Some(cell) = cells.get_mut(key) else { return false };
            let covered = cell.cached.partition_point(|version| version.0 <= mark);
            if covered > 0 {
                cell.media = cell.cached[covered - 1].1.clone();
                cell.cached.drain(..covered);
            }
            !cell.cached.is_empty()
        });
    }

    /// A write-back has failed: half of what it concerned is dropped, and reads go back (as after a failed fsync).
    pub(super) fn drop_some(&mut self, rng: &mut Rng) {
        let cells = &mut self.cells;
        self.unflushed.retain(|key| {
            let Some(cell) = cells.get_mut(key) else { return false };
            let dropped = rng.chance(500);
            if dropped {
                cell.cached.clear();
                cell.visible = cell.media.clone();
            }
            !dropped
        });
    }

    /// Power is lost: of each cell in the cache any version since the last write-back is left, or a mixture of two.
    pub(super) fn power_cut(&mut self, rng: &mut Rng) {
        for key in std::mem::take(&mut self.unflushed) {
            let Some(cell) = self.cells.get_mut(&key) else { continue };
            let versions = std::mem::take(&mut cell.cached);
            let survivor = |index: u64| match index {
                0 => &cell.media,
                n => &versions[n as usize - 1].1,
            };
            let choices = versions.len() as u64 + 1;
            let first = rng.below(choices);
            let second = if rng.chance(850) { first } else { rng.below(choices) };
            let value =
                if first == second { survivor(first).clone() } else { survivor(first).torn(survivor(second), rng) };
            (cell.media, cell.visible) = (value.clone(), value);
        }
    }

    /// The medium changes a cell by itself.
    pub(super) fn decay(&mut self, key: K, change: impl FnOnce(V) -> V) {
        let value = change(self.get(key));
        self.store(key, value, true, 0);
    }
}
