//! The extents of a copy in memory: whether each is hot, its index entry, its checksum page.
//!
//! Checksum pages of cold extents are a cache, bounded, replaced in the order of a clock. Those of hot extents stay. An
//! extent that an operation in flight needs is pinned. Nothing here does I/O.

use std::collections::{BTreeSet, VecDeque};

use proto::checksum::{Salt, crc32};
use proto::{BlockRange, EXTENT_BLOCKS, VolumeId};

use super::codec::u32_at;
use super::{Geometry, PAGE_BYTES, Page};

const BLOCKS: usize = EXTENT_BLOCKS as usize;
/// Bad blocks that are remembered, so that each counts once; one more is counted each time it is found.
const BAD_BLOCKS_MAX: usize = 65_536;

/// What the index says of an extent's checksum page. Not believed while the extent is hot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Entry {
    /// Never written: all its blocks are zeros, and there is no page.
    #[default]
    Never,
    /// The page on stable media has this checksum.
    Present { crc: u32, generation: u32 },
    /// The page, whatever it holds, is not to be believed.
    Unknown,
}

/// Where an extent is in its life. Legal moves: cold → heating → hot → cooling → cold, heating → cold, cooling → hot, and
/// cold → cooling where sums are settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Heat {
    #[default]
    Cold,
    Heating,
    Hot,
    Cooling,
}

/// The checksums of an extent's blocks. Those beyond the volume's end are known zeros.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    sums: [u32; BLOCKS],
    known: [u64; BLOCKS / 64],
    /// Differs from what a load of the page would give.
    learned: bool,
}

impl Sums {
    fn knows(&self, at: usize) -> bool {
        self.known[at / 64] & 1 << (at % 64) != 0
    }

    fn get(&self, at: usize) -> Option<u32> {
        self.knows(at).then(|| self.sums[at])
    }

    fn set(&mut self, at: usize, sum: u32) {
        self.sums[at] = sum;
        self.known[at / 64] |= 1 << (at % 64);
    }
}

#[derive(Debug, Default)]
struct Extent {
    heat: Heat,
    entry: Entry,
    sums: Option<Box<Sums>>,
    /// Operations in flight that need the sums.
    pins: u32,
    /// Writes in flight.
    writes: u32,
    /// In the clock's queue.
    queued: bool,
    /// Used since the clock's hand last passed.
    used: bool,
}

/// See the module's header.
#[derive(Debug)]
pub(super) struct Extents {
    volume: VolumeId,
    salt: Salt,
    blocks: u64,
    all: Vec<Extent>,
    hot: u64,
    /// Blocks that were found bad and have not been written since.
    bad: BTreeSet<u64>,
    /// Cold extents whose sums are in memory.
    cached: usize,
    cached_max: usize,
    clock: VecDeque<u64>,
    /// Cold extents that may have learned sums.
    unsettled: BTreeSet<u64>,
}

impl Extents {
    pub(super) fn new(geometry: &Geometry, entries: Vec<Entry>) -> Self {
        let all = entries.into_iter().map(|entry| Extent { entry, ..Extent::default() }).collect();
        Self {
            volume: geometry.volume,
            salt: Salt::of(geometry.volume),
            blocks: geometry.blocks,
            all,
            hot: 0,
            bad: BTreeSet::new(),
            cached: 0,
            cached_max: geometry.cached_pages_max,
            clock: VecDeque::new(),
            unsettled: BTreeSet::new(),
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.all.len() as u64
    }

    pub(super) fn hot(&self) -> u64 {
        self.hot
    }

    pub(super) fn heat(&self, extent: u64) -> Heat {
        self.all[extent as usize].heat
    }

    pub(super) fn entry(&self, extent: u64) -> Entry {
        self.all[extent as usize].entry
    }

    pub(super) fn set_entry(&mut self, extent: u64, entry: Entry) {
        self.all[extent as usize].entry = entry;
    }

    /// The extents that a range touches.
    pub(super) fn of(range: BlockRange) -> std::ops::Range<u64> {
        range.start / EXTENT_BLOCKS..range.end().div_ceil(EXTENT_BLOCKS)
    }

    /// The blocks of an extent that exist.
    pub(super) fn range(&self, extent: u64) -> BlockRange {
        let start = extent * EXTENT_BLOCKS;
        BlockRange::new(start, EXTENT_BLOCKS.min(self.blocks - start))
    }

    /// An extent was hot when the store was last in use: nothing is known of it.
    pub(super) fn recover_hot(&mut self, extent: u64) {
        self.set_entry(extent, Entry::Unknown);
        self.set_heat(extent, Heat::Hot);
    }

    pub(super) fn set_heat(&mut self, extent: u64, heat: Heat) {
        let state = &mut self.all[extent as usize];
        let was = std::mem::replace(&mut state.heat, heat);
        let stands = |heat| matches!(heat, Heat::Hot | Heat::Cooling);
        self.hot = self.hot + u64::from(stands(heat)) - u64::from(stands(was));
        if let Some(sums) = &state.sums {
            if heat == Heat::Cold && sums.learned {
                self.unsettled.insert(extent);
            }
            match (was, heat) {
                (Heat::Cold, Heat::Cold) => {}
                (Heat::Cold, _) => self.cached -= 1,
                (_, Heat::Cold) => self.cache(extent),
                _ => {}
            }
        }
    }

    pub(super) fn pin(&mut self, range: BlockRange) {
        for extent in Self::of(range) {
            let state = &mut self.all[extent as usize];
            state.pins += 1;
            state.used = true;
        }
    }

    pub(super) fn unpin(&mut self, range: BlockRange) {
        for extent in Self::of(range) {
            self.all[extent as usize].pins -= 1;
        }
        self.evict();
    }

    pub(super) fn write_begins(&mut self, range: BlockRange) {
        for extent in Self::of(range) {
            let state = &mut self.all[extent as usize];
            assert!(state.heat == Heat::Hot, "a write to extent {extent}, which is {:?}", state.heat);
            state.writes += 1;
        }
    }

    pub(super) fn write_ends(&mut self, range: BlockRange) {
        for extent in Self::of(range) {
            self.all[extent as usize].writes -= 1;
        }
    }

    pub(super) fn writes(&self, extent: u64) -> u32 {
        self.all[extent as usize].writes
    }

    /// Whether the sums must be loaded before they can be asked for.
    pub(super) fn must_load(&self, extent: u64) -> bool {
        let state = &self.all[extent as usize];
        state.sums.is_none() && matches!(state.entry, Entry::Present { .. })
    }

    /// A load has ended. False if the page is damaged: nothing is known then.
    pub(super) fn loaded(&mut self, extent: u64, page: &Page) -> bool {
        let Entry::Present { crc, generation } = self.entry(extent) else { unreachable!("loaded without need") };
        if self.page_crc(extent, generation, page) != crc {
            self.set_entry(extent, Entry::Unknown);
            return false;
        }
        let mut sums = [0; BLOCKS];
        for (at, sum) in sums.iter_mut().enumerate() {
            *sum = u32_at(&page[..], 4 * at);
        }
        self.hold(extent, Sums { sums, known: [u64::MAX; BLOCKS / 64], learned: false });
        true
    }

    /// The sum of a block, if it is known. Its extent needs no load.
    pub(super) fn sum(&self, block: u64) -> Option<u32> {
        let state = &self.all[(block / EXTENT_BLOCKS) as usize];
        match (&state.sums, state.entry) {
            (Some(sums), _) => sums.get((block % EXTENT_BLOCKS) as usize),
            (None, Entry::Never) => Some(self.salt.zeros(block)),
            (None, _) => None,
        }
    }

    /// The sum of a block full of zeros.
    pub(super) fn zeros(&self, block: u64) -> u32 {
        self.salt.zeros(block)
    }

    /// Sets the sum of a block. Its extent needs no load.
    pub(super) fn set_sum(&mut self, block: u64, sum: u32) {
        self.set_sums(BlockRange::new(block, 1), &[sum]);
    }

    /// Sets the sums of blocks, one for each. Their extents need no load.
    pub(super) fn set_sums(&mut self, range: BlockRange, sums: &[u32]) {
        assert_eq!(sums.len() as u64, range.count, "one sum a block");
        let mut left = sums;
        for (extent, first, count) in parts(range) {
            let (now, rest) = left.split_at(count);
            let own = self.sums_mut(extent);
            for (at, &sum) in (first..).zip(now) {
                own.set(at, sum);
            }
            own.learned = true;
            if self.heat(extent) == Heat::Cold {
                self.unsettled.insert(extent);
            }
            left = rest;
        }
        self.mended(range);
    }

    /// True when the sums of all these blocks are known and are `sums`. Their extents need no load.
    pub(super) fn are(&self, range: BlockRange, sums: &[u32]) -> bool {
        let mut left = sums;
        parts(range).all(|(extent, first, count)| {
            let (now, rest) = left.split_at(count);
            left = rest;
            match &self.all[extent as usize].sums {
                Some(own) => own.sums[first..first + count] == *now && (first..first + count).all(|at| own.knows(at)),
                None => {
                    (extent * EXTENT_BLOCKS + first as u64..).zip(now).all(|(block, sum)| self.sum(block) == Some(*sum))
                }
            }
        })
    }

    /// How many of these blocks were not known to be bad.
    pub(super) fn newly_bad(&self, ranges: &[BlockRange]) -> u64 {
        ranges.iter().flat_map(|range| range.blocks()).filter(|block| !self.bad.contains(block)).count() as u64
    }

    /// These blocks are bad.
    pub(super) fn note_bad(&mut self, ranges: &[BlockRange]) {
        let room = BAD_BLOCKS_MAX.saturating_sub(self.bad.len());
        self.bad.extend(ranges.iter().flat_map(|range| range.blocks()).take(room));
    }

    /// These blocks were written anew as they should be.
    pub(super) fn mended(&mut self, range: BlockRange) {
        if !self.bad.is_empty() {
            range.blocks().for_each(|block| _ = self.bad.remove(&block));
        }
    }

    /// The blocks may hold anything.
    pub(super) fn forget(&mut self, range: BlockRange) {
        for block in range.blocks() {
            let at = (block % EXTENT_BLOCKS) as usize;
            self.sums_mut(block / EXTENT_BLOCKS).known[at / 64] &= !(1 << (at % 64));
        }
    }

    /// Runs of blocks of a hot extent whose sums are unknown.
    pub(super) fn unknown_runs(&mut self, extent: u64) -> Vec<BlockRange> {
        let range = self.range(extent);
        let sums = self.sums_mut(extent);
        let mut runs = Vec::new();
        for block in range.blocks().filter(|block| sums.get((block % EXTENT_BLOCKS) as usize).is_none()) {
            push_block(&mut runs, block);
        }
        runs
    }

    /// The checksum page of an extent, all of whose sums are known, as it is to be written, and the entry that names it.
    pub(super) fn page(&mut self, extent: u64) -> (Page, Entry) {
        let generation = match self.entry(extent) {
            Entry::Present { generation, .. } => generation.wrapping_add(1),
            Entry::Never | Entry::Unknown => 1,
        };
        let sums = self.sums_mut(extent);
        assert!(sums.known.iter().all(|word| *word == u64::MAX), "extent {extent} has unknown sums");
        sums.learned = false;
        let mut page = Box::new([0; PAGE_BYTES]);
        for (bytes, sum) in page.chunks_exact_mut(4).zip(&sums.sums) {
            bytes.copy_from_slice(&sum.to_le_bytes());
        }
        let crc = self.page_crc(extent, generation, &page);
        (page, Entry::Present { crc, generation })
    }

    /// Whether there may be cold extents with sums in memory that are not yet on stable media.
    pub(super) fn is_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Takes up to `max` of those extents, ascending.
    pub(super) fn take_unsettled(&mut self, max: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        while taken.len() < max {
            let Some(extent) = self.unsettled.pop_first() else { break };
            let state = &self.all[extent as usize];
            // It may be hot by now, or its sums may have left the cache.
            if state.heat == Heat::Cold && state.sums.as_ref().is_some_and(|sums| sums.learned) {
                taken.push(extent);
            }
        }
        taken
    }

    fn sums_mut(&mut self, extent: u64) -> &mut Sums {
        if self.all[extent as usize].sums.is_none() {
            let sums = match self.entry(extent) {
                Entry::Never => self.zero_sums(extent),
                Entry::Unknown => self.no_sums(extent),
                Entry::Present { .. } => unreachable!("the page of extent {extent} has not been loaded"),
            };
            self.hold(extent, sums);
        }
        self.all[extent as usize].sums.as_mut().expect("just made")
    }

    fn zero_sums(&self, extent: u64) -> Sums {
        let mut sums = [0; BLOCKS];
        for block in self.range(extent).blocks() {
            sums[(block % EXTENT_BLOCKS) as usize] = self.salt.zeros(block);
        }
        Sums { sums, known: [u64::MAX; BLOCKS / 64], learned: false }
    }

    fn no_sums(&self, extent: u64) -> Sums {
        let mut sums = Sums { sums: [0; BLOCKS], known: [0; BLOCKS / 64], learned: false };
        for at in self.range(extent).count as usize..BLOCKS {
            sums.set(at, 0);
        }
        sums
    }

    fn hold(&mut self, extent: u64, sums: Sums) {
        let state = &mut self.all[extent as usize];
        assert!(state.sums.is_none(), "extent {extent} has sums");
        state.sums = Some(Box::new(sums));
        if state.heat == Heat::Cold {
            self.cache(extent);
        }
    }

    fn cache(&mut self, extent: u64) {
        self.cached += 1;
        let state = &mut self.all[extent as usize];
        state.used = true;
        if !std::mem::replace(&mut state.queued, true) {
            self.clock.push_back(extent);
        }
    }

    /// Forgets sums of cold extents until no more than the most allowed are held, or all that are left are in use.
    pub(super) fn evict(&mut self) {
        if self.cached <= self.cached_max {
            return;
        }
        let mut tries = 2 * self.clock.len();
        while self.cached > self.cached_max && tries > 0 {
            tries -= 1;
            let Some(extent) = self.clock.pop_front() else { return };
            let state = &mut self.all[extent as usize];
            if state.heat != Heat::Cold || state.sums.is_none() {
                state.queued = false;
            } else if state.pins > 0 || std::mem::replace(&mut state.used, false) {
                self.clock.push_back(extent);
            } else {
                state.sums = None;
                state.queued = false;
                self.cached -= 1;
            }
        }
    }

    /// Volume, extent and generation are summed as well: a page of another place or time does not match.
    fn page_crc(&self, extent: u64, generation: u32, page: &Page) -> u32 {
        let place = [self.volume.0.to_le_bytes().as_slice(), &extent.to_le_bytes(), &generation.to_le_bytes()].concat();
        crc32(&[&place, &page[..]])
    }

    /// Panics if the state contradicts itself.
    pub(super) fn check_invariants(&self) {
        let cold = |extent: &&Extent| extent.heat == Heat::Cold;
        let cached = self.all.iter().filter(cold).filter(|extent| extent.sums.is_some());
        assert!(cached.clone().all(|extent| extent.queued), "a cached page that the clock does not know");
        assert_eq!(cached.count(), self.cached);
        assert_eq!(self.all.iter().filter(|extent| extent.queued).count(), self.clock.len());
        let hot = self.all.iter().filter(|extent| matches!(extent.heat, Heat::Hot | Heat::Cooling));
        assert_eq!(hot.count() as u64, self.hot);
        assert!(self.all.iter().all(|extent| extent.writes == 0 || extent.heat == Heat::Hot));
    }
}

/// The parts of a range by extent: its number, the first block within it, how many blocks.
fn parts(range: BlockRange) -> impl Iterator<Item = (u64, usize, usize)> {
    Extents::of(range).map(move |extent| {
        let start = extent * EXTENT_BLOCKS;
        let first = range.start.max(start) - start;
        (extent, first as usize, ((range.end() - start).min(EXTENT_BLOCKS) - first) as usize)
    })
}

/// Adds a block beyond the last one to runs.
pub(super) fn push_block(runs: &mut Vec<BlockRange>, block: u64) {
    match runs.last_mut() {
        Some(last) if last.end() == block => last.count += 1,
        _ => runs.push(BlockRange::new(block, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_a_range_over_several_extents_are_set_and_compared_as_one() {
        let geometry = Geometry { volume: VolumeId(3), blocks: 3 * EXTENT_BLOCKS, log_pages: 1, cached_pages_max: 3 };
        let mut extents = Extents::new(&geometry, vec![Entry::Never, Entry::Unknown, Entry::Never]);
        let range = BlockRange::new(EXTENT_BLOCKS - 2, EXTENT_BLOCKS + 3);
        let sums: Vec<u32> = (0..range.count as u32).collect();
        assert!(!extents.are(range, &sums));
        extents.set_sums(range, &sums);
        assert!(extents.are(range, &sums));
        assert!(range.blocks().zip(&sums).all(|(block, sum)| extents.sum(block) == Some(*sum)));
        let last = range.end() - 1;
        extents.set_sum(last, 7);
        assert!(!extents.are(range, &sums), "one differs");
        extents.set_sum(last, *sums.last().unwrap());
        extents.forget(BlockRange::new(EXTENT_BLOCKS, 1));
        assert!(!extents.are(range, &sums), "one is unknown");
        let untouched = BlockRange::new(2 * EXTENT_BLOCKS + 9, 2);
        let zeros: Vec<u32> = untouched.blocks().map(|block| extents.zeros(block)).collect();
        assert!(extents.are(untouched, &zeros));
    }
}
