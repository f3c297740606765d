//! Which blocks a copy may lack, at 4 KiB granularity.
//!
//! One slot per 4 MiB extent; an extent that is wholly clean or wholly dirty takes no memory of its own. This is the
//! bitmap in memory; `tracker` says whose it is and `bitmap_pages` how it is kept on disk.

use proto::{BlockRange, EXTENT_BLOCKS};

const WORDS: usize = (EXTENT_BLOCKS / 64) as usize;

/// The bits of one extent, the first block's lowest.
pub(crate) type ExtentBits = [u64; WORDS];

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Extent {
    #[default]
    Clean,
    Dirty,
    Mixed(Box<[u64; WORDS]>),
}

/// A set of blocks of one volume.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct DirtyBitmap {
    blocks: u64,
    extents: Vec<Extent>,
    count: u64,
}

impl DirtyBitmap {
    /// Nothing dirty, for a volume of `blocks` blocks.
    pub(crate) fn clean(blocks: u64) -> Self {
        let extents = vec![Extent::Clean; blocks.div_ceil(EXTENT_BLOCKS) as usize];
        Self { blocks, extents, count: 0 }
    }

    /// Everything dirty.
    pub(crate) fn dirty(blocks: u64) -> Self {
        let mut bitmap = Self::clean(blocks);
        bitmap.set(BlockRange::new(0, blocks));
        bitmap
    }

    /// Dirty blocks.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// True when nothing is dirty.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Marks a range.
    pub(crate) fn set(&mut self, range: BlockRange) {
        self.change(range, true);
    }

    /// Unmarks a range.
    pub(crate) fn clear(&mut self, range: BlockRange) {
        self.change(range, false);
    }

    /// Marks everything that `other` marks, and empties it.
    pub(crate) fn absorb(&mut self, other: &mut DirtyBitmap) {
        let mut from = 0;
        while let Some(run) = other.next_run(from, u64::MAX) {
            self.set(run);
            from = run.end();
        }
        *other = Self::clean(other.blocks);
    }

    /// Marks all blocks of an extent.
    pub(crate) fn set_extent(&mut self, extent: u64) {
        self.set(extent_range(extent));
    }

    /// The bits of an extent; those past the end of the volume may be set.
    pub(crate) fn extent_bits(&self, extent: u64) -> ExtentBits {
        match self.extents.get(extent as usize) {
            None | Some(Extent::Clean) => [0; WORDS],
            Some(Extent::Dirty) => [u64::MAX; WORDS],
            Some(Extent::Mixed(words)) => **words,
        }
    }

    /// Replaces the bits of an extent; one past the end of the volume has none.
    pub(crate) fn set_extent_bits(&mut self, extent: u64, bits: &ExtentBits) {
        let range = extent_range(extent);
        if bits.iter().all(|word| *word == 0) {
            self.clear(range);
        } else if bits.iter().all(|word| *word == u64::MAX) {
            self.set(range);
        } else {
            let blocks = (0..EXTENT_BLOCKS).filter(|bit| bits[(bit / 64) as usize] >> (bit % 64) & 1 == 1);
            self.clear(range);
            blocks.for_each(|bit| self.set(BlockRange::new(range.start + bit, 1)));
        }
    }

    /// Extents with a mark, ascending.
    pub(crate) fn marked_extents(&self) -> impl Iterator<Item = u64> + '_ {
        (0u64..).zip(&self.extents).filter(|(_, extent)| **extent != Extent::Clean).map(|(number, _)| number)
    }

    /// The first run of marked blocks at or after `from`, at most `blocks_max` long.
    pub(crate) fn next_run(&self, from: u64, blocks_max: u64) -> Option<BlockRange> {
        let start = self.find(from, true)?;
        let end = self.find(start, false).unwrap_or(self.blocks).min(start.saturating_add(blocks_max));
        Some(BlockRange::new(start, end - start))
    }

    /// The first block at or after `from` whose mark is `marked`.
    fn find(&self, from: u64, marked: bool) -> Option<u64> {
        let mut block = from;
        while block < self.blocks {
            let extent_end = (block / EXTENT_BLOCKS + 1) * EXTENT_BLOCKS;
            match &self.extents[(block / EXTENT_BLOCKS) as usize] {
                Extent::Clean if !marked => return Some(block),
                Extent::Dirty if marked => return Some(block),
                Extent::Mixed(words) => {
                    let bit = block % EXTENT_BLOCKS;
                    let word = words[(bit / 64) as usize];
                    let wanted = if marked { word } else { !word } >> (bit % 64);
                    if wanted == 0 {
                        block += 64 - bit % 64;
                        continue;
                    }
                    block += u64::from(wanted.trailing_zeros());
                    return (block < self.blocks).then_some(block);
                }
                _ => block = extent_end,
            }
        }
        None
    }

    fn change(&mut self, range: BlockRange, marked: bool) {
        let end = range.end().min(self.blocks);
        let mut block = range.start;
        while block < end {
            let index = block / EXTENT_BLOCKS;
            let extent_start = index * EXTENT_BLOCKS;
            let extent_blocks = EXTENT_BLOCKS.min(self.blocks - extent_start);
            let stop = end.min(extent_start + extent_blocks);
            let whole = block == extent_start && stop == extent_start + extent_blocks;
            let before = self.extent_count(index, extent_blocks);
            self.change_extent(index as usize, block - extent_start, stop - extent_start, whole, marked);
            self.count = self.count - before + self.extent_count(index, extent_blocks);
            block = stop;
        }
    }

    fn change_extent(&mut self, index: usize, first: u64, last: u64, whole: bool, marked: bool) {
        let extent = &mut self.extents[index];
        if whole {
            *extent = if marked { Extent::Dirty } else { Extent::Clean };
            return;
        }
        let fill = match extent {
            Extent::Clean if !marked => return,
            Extent::Dirty if marked => return,
            Extent::Clean => Some(0),
            Extent::Dirty => Some(u64::MAX),
            Extent::Mixed(_) => None,
        };
        if let Some(fill) = fill {
            *extent = Extent::Mixed(Box::new([fill; WORDS]));
        }
        let Extent::Mixed(words) = extent else { return };
        for bit in first..last {
            let mask = 1 << (bit % 64);
            let word = &mut words[(bit / 64) as usize];
            *word = if marked { *word | mask } else { *word & !mask };
        }
        if !marked && words.iter().all(|word| *word == 0) {
            *extent = Extent::Clean;
        }
    }

    fn extent_count(&self, index: u64, extent_blocks: u64) -> u64 {
        match &self.extents[index as usize] {
            Extent::Clean => 0,
            Extent::Dirty => extent_blocks,
            Extent::Mixed(words) => {
                let tail = words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
                // Bits past the end of the volume, set when a short last extent turned from Dirty to Mixed.
                let beyond = (extent_blocks..EXTENT_BLOCKS)
                    .filter(|bit| words[(bit / 64) as usize] >> (bit % 64) & 1 == 1)
                    .count() as u64;
                tail - beyond
            }
        }
    }
}

/// The blocks of an extent; those past the end of the volume are for the caller to leave out.
pub(crate) fn extent_range(extent: u64) -> BlockRange {
    BlockRange::new(extent * EXTENT_BLOCKS, EXTENT_BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_set_of_blocks() {
        let blocks = 2 * EXTENT_BLOCKS + 37;
        let mut bitmap = DirtyBitmap::dirty(blocks);
        let mut model: std::collections::BTreeSet<u64> = (0..blocks).collect();
        let mut state = 7u64;
        for step in 0..2000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let start = (state >> 33) % blocks;
            let count = 1 + (state >> 13) % (if step % 10 == 0 { 1500 } else { 40 });
            let range = BlockRange::new(start, count.min(blocks - start));
            if state >> 62 & 1 == 0 {
                bitmap.clear(range);
                model.retain(|block| !range.blocks().contains(block));
            } else {
                bitmap.set(range);
                model.extend(range.blocks());
            }
            assert_eq!(bitmap.count(), model.len() as u64);
            let run = bitmap.next_run(start, 16);
            let first = model.range(start..).next().copied();
            assert_eq!(run.map(|run| run.start), first);
            if let Some(run) = run {
                assert!(run.blocks().all(|block| model.contains(&block)));
                assert!(run.count == 16 || !model.contains(&run.end()));
            }
        }
    }

    #[test]
    fn absorbing_unites_and_empties() {
        let mut a = DirtyBitmap::clean(3000);
        let mut b = DirtyBitmap::clean(3000);
        a.set(BlockRange::new(10, 5));
        b.set(BlockRange::new(12, 2000));
        a.absorb(&mut b);
        assert_eq!((a.count(), b.count()), (2002, 0));
    }
}
