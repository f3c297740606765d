//! What each copy outside the in-sync set lacks, as a member knows it.
//!
//! Every member tracks every copy that is not one: the primary as it writes, the others as they take its writes. So
//! whoever becomes primary next can bring such a copy back in part. A tracker begins when its copy leaves the set and
//! ends when it is back; it counts only while its holder has been a member without a break, and only for the very
//! registration that it was begun for.
//!
//! On disk a tracker is a bitmap (`bitmap_pages`). Its pages are written before the activity log forgets an extent, so
//! that after a crash the page's bits and the hot extents together are never less than what the copy lacks.

use std::collections::BTreeMap;

use proto::{BlockRange, ConfigVersion, NodeId};

use crate::bitmap_pages::{self, EXTENTS_PER_PAGE, Header, Image};
use crate::config::{Registration, VolumeConfig};
use crate::dirty_bitmap::{DirtyBitmap, ExtentBits, extent_range};
use crate::local_copy::{MetaPage, Page};

/// What one copy lacks.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Tracker {
    header: Header,
    /// The area that holds it.
    slot: u8,
    /// The header page is written, or is being written.
    header_written: bool,
    /// Blocks that the copy may lack.
    pub(crate) dirty: DirtyBitmap,
    /// Blocks it has acknowledged outside membership, and not flushed.
    pub(crate) unflushed: DirtyBitmap,
    /// Of those, what the flush under way covers.
    pub(crate) flushing: DirtyBitmap,
    /// Some dirty blocks may be equal: all are compared by digest first.
    pub(crate) compare: bool,
}

impl Tracker {
    fn new(header: Header, slot: u8, dirty: DirtyBitmap, blocks: u64) -> Self {
        let clean = DirtyBitmap::clean(blocks);
        let (unflushed, flushing) = (clean.clone(), clean);
        Self { header, slot, header_written: false, dirty, unflushed, flushing, compare: true }
    }

    /// The copy was a member from here on, when it was one last; it must have recorded at least that.
    pub(crate) fn since(&self) -> ConfigVersion {
        self.header.since
    }

    /// Whatever the copy holds, all of it is to be compared. A new bitmap, for bits on disk may be too few.
    pub(crate) fn restart_dirty(&mut self, blocks: u64, generation: u64) {
        if self.header.initially_dirty && self.dirty.count() == blocks && self.header.since == ConfigVersion(0) {
            return;
        }
        self.dirty = DirtyBitmap::dirty(blocks);
        self.unflushed = DirtyBitmap::clean(blocks);
        self.flushing = DirtyBitmap::clean(blocks);
        self.compare = true;
        self.header.initially_dirty = true;
        self.header.since = ConfigVersion(0);
        self.header.generation = generation;
        self.header_written = false;
    }

    /// These extents may differ, and may as well be equal.
    pub(crate) fn set_extents(&mut self, extents: impl Iterator<Item = u64>) {
        for extent in extents {
            self.dirty.set_extent(extent);
            self.compare = true;
        }
    }

    /// A write that the copy does not get.
    pub(crate) fn set(&mut self, range: BlockRange) {
        self.dirty.set(range);
    }

    /// The session with the copy is over: what it has not flushed is lacking.
    pub(crate) fn absorb_unflushed(&mut self) {
        self.dirty.absorb(&mut self.unflushed);
        self.dirty.absorb(&mut self.flushing);
    }

    /// The pages that must be durable before the log forgets `extents`: none for extents without a mark, since a page on
    /// disk never says less than it must.
    pub(crate) fn pages_of(&mut self, extents: impl Iterator<Item = u64>) -> Vec<(MetaPage, Page)> {
        let marked: Vec<u64> = extents.filter(|extent| self.bits(*extent).iter().any(|word| *word != 0)).collect();
        self.pages_again(marked.into_iter())
    }

    /// The pages of `extents`, whether they have marks or have lost them.
    pub(crate) fn pages_again(&mut self, extents: impl Iterator<Item = u64>) -> Vec<(MetaPage, Page)> {
        let mut numbers: Vec<u32> = extents.map(|extent| (extent / EXTENTS_PER_PAGE) as u32 + 1).collect();
        numbers.dedup();
        let mut pages = Vec::new();
        if !self.header_written {
            self.header_written = true;
            pages.push(self.page(0, bitmap_pages::encode_header(&self.header)));
        }
        let generation = self.header.generation;
        let bits = |extent| self.bits(extent);
        let encoded = numbers.iter().map(|n| self.page(*n, bitmap_pages::encode_page(generation, *n, bits)));
        pages.extend(encoded);
        pages
    }

    /// The header, if it is not written yet, and the pages of all marks (which an all-dirty bitmap needs none of).
    pub(crate) fn pages_to_begin(&mut self) -> Vec<(MetaPage, Page)> {
        let marked: Vec<u64> = match self.header.initially_dirty && !self.header_written {
            true => Vec::new(),
            false => self.dirty.marked_extents().collect(),
        };
        self.pages_of(marked.into_iter())
    }

    fn page(&self, page: u32, bytes: Page) -> (MetaPage, Page) {
        (MetaPage::Bitmap { slot: self.slot, page }, bytes)
    }

    /// What must be on disk about an extent.
    fn bits(&self, extent: u64) -> ExtentBits {
        let mut bits = self.dirty.extent_bits(extent);
        let (unflushed, flushing) = (self.unflushed.extent_bits(extent), self.flushing.extent_bits(extent));
        for (word, value) in bits.iter_mut().enumerate() {
            *value |= unflushed[word] | flushing[word];
        }
        bits
    }
}

/// The trackers of one member, by the node of the copy that is tracked.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Trackers {
    trackers: BTreeMap<NodeId, Tracker>,
    /// The areas as they were when the disk was attached.
    areas: Vec<Vec<u8>>,
    /// The newest version at which one of them was begun.
    begun_at: ConfigVersion,
    /// Numbers the bitmaps begun in this run.
    begun: u64,
}

/// What a tracker of a copy that is newly outside begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Beginning {
    /// The extents that are hot here: what was in flight when it left, and more.
    Hot,
    /// Nothing: the caller, a primary that goes on, knows what the copy has not acknowledged.
    Clean,
}

impl Trackers {
    /// The disk was attached, and these are its areas.
    pub(crate) fn attach(&mut self, areas: Vec<Vec<u8>>) {
        self.trackers.clear();
        // An area that holds no bitmap is as good as none, and takes no memory: it is a few MiB for a large volume.
        let empty = |area: &Vec<u8>| matches!(bitmap_pages::decode(area, 1), Image::Empty);
        let areas: Vec<Vec<u8>> = areas.into_iter().map(|area| if empty(&area) { Vec::new() } else { area }).collect();
        let begun_at = |area: &Vec<u8>| match bitmap_pages::decode(area, 1) {
            Image::Bitmap(header, _) => Some(header.started_at),
            Image::Empty | Image::Damaged => None,
        };
        self.begun_at = areas.iter().filter_map(begun_at).max().unwrap_or(ConfigVersion(0));
        self.areas = areas;
    }

    /// The disk is not in use any more.
    pub(crate) fn detach(&mut self) {
        self.clear();
        self.areas.clear();
    }

    /// The node is not a member. What its disk holds counts for nothing once it is one again, unless it has been one all
    /// the time and the configuration at hand is an old one.
    pub(crate) fn clear(&mut self) {
        self.trackers.clear();
    }

    /// The tracker of a copy.
    pub(crate) fn get(&self, node: NodeId) -> Option<&Tracker> {
        self.trackers.get(&node)
    }

    /// The tracker of a copy.
    pub(crate) fn get_mut(&mut self, node: NodeId) -> Option<&mut Tracker> {
        self.trackers.get_mut(&node)
    }

    /// Every tracker.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut Tracker)> {
        self.trackers.iter_mut().map(|(node, tracker)| (*node, tracker))
    }

    /// A number that no bitmap in any area has had before: the version has moved since an earlier run.
    pub(crate) fn next_generation(&mut self, version: ConfigVersion) -> u64 {
        self.begun += 1;
        version.0 << 16 | self.begun & 0xffff
    }

    /// Brings the trackers in line with a configuration of which `me` is a member; `hot` are the extents hot here.
    pub(crate) fn follow(&mut self, config: &VolumeConfig, me: NodeId, hot: &[u64], beginning: Beginning) {
        if config.version < self.begun_at {
            // An old configuration, learnt at the start of a run: nothing can follow from it, least of all on disk.
            return;
        }
        let outside = |node: &NodeId| config.replicas.contains_key(node) && !config.in_sync.contains_key(node);
        self.trackers.retain(|node, _| outside(node));
        let Some(own) = config.in_sync.get(&me) else { return self.clear() };
        let blocks = config.size_bytes / proto::BLOCK_BYTES;
        // A snapshot of the former release has no histories; zeros there say nothing at all.
        let knows = |registration: &Registration| registration.registered_at.0 > 0 && own.since.0 > 0;
        let mut new = Vec::new();
        for (node, registration) in config.replicas.iter().filter(|(node, _)| **node != me && outside(node)) {
            let same = |header: &Header| {
                (header.node, header.disk_id) == (*node, registration.disk_id)
                    && (header.registered_at, header.base) == (registration.registered_at, registration.member_until)
                    && header.started_at >= own.since
                    && knows(registration)
            };
            if self.trackers.get(node).is_some_and(|tracker| same(&tracker.header)) {
                continue;
            }
            self.trackers.remove(node);
            match self.load(blocks, same) {
                Some(mut tracker) => {
                    tracker.set_extents(hot.iter().copied());
                    self.trackers.insert(*node, tracker);
                }
                None => new.push((*node, registration)),
            }
        }
        // After all that are on disk have their areas.
        for (node, registration) in new {
            let shared =
                knows(registration) && registration.member_until >= own.since && registration.member_until.0 > 0;
            let dirty = if shared && !self.has_damage() { None } else { Some(DirtyBitmap::dirty(blocks)) };
            let tracker = self.begin(config, (node, registration), blocks, dirty, (hot, beginning));
            self.trackers.insert(node, tracker);
        }
    }

    /// True when an area is damaged: a bitmap that was there cannot be told from one that never was.
    fn has_damage(&self) -> bool {
        self.areas.iter().any(|area| matches!(bitmap_pages::decode(area, 1), Image::Damaged))
    }

    /// A bitmap on disk that fits.
    fn load(&mut self, blocks: u64, same: impl Fn(&Header) -> bool) -> Option<Tracker> {
        let found =
            self.areas.iter().enumerate().find_map(|(slot, area)| match bitmap_pages::decode(area, blocks) {
                Image::Bitmap(header, dirty) if same(&header) => Some((slot, header, dirty)),
                _ => None,
            })?;
        let (slot, header, dirty) = found;
        let mut tracker = Tracker::new(header, slot as u8, dirty, blocks);
        tracker.header_written = true;
        Some(tracker)
    }

    /// A new bitmap: all dirty, or from `beginning` on.
    fn begin(
        &mut self,
        config: &VolumeConfig,
        (node, registration): (NodeId, &Registration),
        blocks: u64,
        dirty: Option<DirtyBitmap>,
        (hot, beginning): (&[u64], Beginning),
    ) -> Tracker {
        let slot = (0u8..).find(|slot| !self.trackers.values().any(|tracker| tracker.slot == *slot)).unwrap_or(0);
        let header = Header {
            node,
            disk_id: registration.disk_id,
            registered_at: registration.registered_at,
            base: registration.member_until,
            since: if dirty.is_some() { ConfigVersion(0) } else { registration.member_since },
            started_at: config.version,
            generation: self.next_generation(config.version),
            initially_dirty: dirty.is_some(),
        };
        let from_hot = dirty.is_none() && beginning == Beginning::Hot;
        let all = dirty.is_some();
        let mut tracker = Tracker::new(header, slot, dirty.unwrap_or_else(|| DirtyBitmap::clean(blocks)), blocks);
        tracker.compare = all;
        if from_hot {
            tracker.set_extents(hot.iter().copied());
        }
        tracker
    }
}

/// Marks the extents of `runs` (first extent, number) in a tracker.
pub(crate) fn set_runs(tracker: &mut Tracker, runs: &[(u32, u32)]) {
    for (first, count) in runs {
        let (first, count) = (extent_range(u64::from(*first)), u64::from(*count));
        tracker.set(BlockRange::new(first.start, count * first.count));
        tracker.compare = true;
    }
}
