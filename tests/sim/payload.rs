//! Content that a process holds or sends, with the checksums that travel beside it.

use std::rc::Rc;

use proto::BlockRange;

use super::disk::Blocks;

/// Blocks and their sums. Digests are modelled by the blocks alone, a message of sums has sums alone.
#[derive(Clone, Debug)]
pub struct Payload {
    /// Content.
    pub blocks: Blocks,
    /// One checksum a block, or none.
    pub sums: Rc<[u32]>,
}

impl Default for Payload {
    fn default() -> Self {
        Self { blocks: [].into(), sums: [].into() }
    }
}

impl Payload {
    /// Blocks with sums that are known.
    pub fn new(blocks: Blocks, sums: Rc<[u32]>) -> Self {
        Self { blocks, sums }
    }

    /// The content of the blocks `ranges`, in order, summed here: client's data, or a frame that brings no sums.
    pub fn summed<'a>(volume: usize, ranges: impl IntoIterator<Item = &'a BlockRange>, blocks: Blocks) -> Self {
        let numbers = ranges.into_iter().flat_map(|range| range.blocks());
        let sums =
            numbers.zip(blocks.iter()).map(|(block, content)| super::sums::sum(volume, block, *content)).collect();
        Self { blocks, sums }
    }

    /// Length in blocks.
    pub fn count(&self) -> u64 {
        self.blocks.len().max(self.sums.len()) as u64
    }

    /// `count` blocks from `first` on, which must lie within.
    pub fn part(&self, first: u64, count: u64) -> Self {
        if (first, count) == (0, self.count()) {
            return self.clone();
        }
        let (first, end) = (first as usize, (first + count) as usize);
        let cut = |sums: &Rc<[u32]>| sums.get(first..end).map_or_else(|| [].into(), Rc::from);
        Self { blocks: self.blocks.get(first..end).map_or_else(|| [].into(), Rc::from), sums: cut(&self.sums) }
    }
}
