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
use crate::dirty_bitmap::{DirtyBitmap, ExtentBits};
use crate::local_copy::{MetaPage, PAGE_BYTES, Page};

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
    /// Of those, the blocks that were written without it, so that what it holds of them is old. Only in memory.
    missed: DirtyBitmap,
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
        let (missed, unflushed, flushing) = (clean.clone(), clean.clone(), clean);
        Self { header, slot, header_written: false, dirty, missed, unflushed, flushing, compare: true }
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

    /// True for a block that was written without the copy: it holds an older version.
    pub(crate) fn has_missed(&self, block: u64) -> bool {
        self.missed.next_run(block, 1).is_some_and(|run| run.start == block)
    }

    /// A write that the copy does not get.
    pub(crate) fn set(&mut self, range: BlockRange) {
        self.dirty.set(range);
        self.missed.set(range);
    }

    /// A write that the copy may have got or not.
    pub(crate) fn doubt(&mut self, range: BlockRange) {
        self.dirty.set(range);
    }

    /// The copy has what it lacked of a range, though not on stable media.
    pub(crate) fn acked(&mut self, range: BlockRange) {
        self.dirty.clear(range);
        self.missed.clear(range);
        self.unflushed.set(range);
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
    /// The areas as they were when the disk was attached, until the first configuration of this run is known: what they
    /// hold is taken over then or never.
    areas: Vec<Vec<u8>>,
    /// Areas whose header is damaged: the bitmap that was there cannot be told from one that never was.
    damaged: Vec<u8>,
    /// The newest generation.
    newest: u64,
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
        // A damaged header does not tell its own, and one that was wiped has none, but the pages behind it do.
        let newest = areas.iter().map(|area| bitmap_pages::newest_generation(area)).max();
        self.newest = self.newest.max(newest.unwrap_or(0));
        // An area that holds no bitmap is as good as none, and takes no memory: it is a few MiB for a large volume.
        let empty = |area: &Vec<u8>| matches!(bitmap_pages::decode(area, 1), Image::Empty);
        let areas: Vec<Vec<u8>> = areas.into_iter().map(|area| if empty(&area) { Vec::new() } else { area }).collect();
        let damaged = |area: &Vec<u8>| matches!(bitmap_pages::decode(area, 1), Image::Damaged);
        let slots = areas.iter().zip(0u8..);
        self.damaged = slots.filter(|(area, _)| damaged(area)).map(|(_, slot)| slot).collect();
        self.areas = areas;
    }

    /// The disk is not in use any more.
    pub(crate) fn detach(&mut self) {
        self.clear();
    }

    /// The node is not a member. What its disk holds counts for nothing once it is one again.
    fn clear(&mut self) {
        self.trackers.clear();
        self.areas.clear();
        self.damaged.clear();
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

    /// A number that no page in any area has.
    pub(crate) fn next_generation(&mut self) -> u64 {
        self.newest += 1;
        self.newest
    }

    /// Brings the trackers in line with a configuration of this run; `hot` are the extents hot here.
    pub(crate) fn follow(&mut self, config: &VolumeConfig, me: NodeId, hot: &[u64], beginning: Beginning) {
        let outside = |node: &NodeId| config.replicas.contains_key(node) && !config.in_sync.contains_key(node);
        self.trackers.retain(|node, _| outside(node));
        let Some(own) = config.in_sync.get(&me) else { return self.clear() };
        let blocks = config.size_bytes / proto::BLOCK_BYTES;
        // A snapshot of the former release has no histories; zeros there say nothing at all.
        let knows = |registration: &Registration| registration.registered_at.0 > 0 && own.since.0 > 0;
        let areas = std::mem::take(&mut self.areas);
        let doubtful = areas.iter().any(|area| matches!(bitmap_pages::decode(area, 1), Image::Damaged));
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
            match load(&areas, blocks, same) {
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
            let dirty = if shared && !doubtful { None } else { Some(DirtyBitmap::dirty(blocks)) };
            let tracker = self.begin(config, (node, registration), blocks, dirty, (hot, beginning));
            self.trackers.insert(node, tracker);
        }
    }

    /// The pages that make damage good, to be written before any other and in this order: the headers of all bitmaps begun
    /// in the place of those that may have been lost, last those that take a damaged header's page, and then nothing in
    /// the place of the others. So a crash in between finds the damage, as long as anything depends on it.
    pub(crate) fn heal(&mut self) -> Vec<(MetaPage, Page)> {
        let damaged = std::mem::take(&mut self.damaged);
        if damaged.is_empty() {
            return Vec::new();
        }
        let in_use: Vec<u8> = self.trackers.values().map(|tracker| tracker.slot).collect();
        let begun = self.trackers.values_mut().filter(|tracker| !tracker.header_written);
        let (last, first): (Vec<_>, Vec<_>) = begun.partition(|tracker| damaged.contains(&tracker.slot));
        let mut pages = Vec::new();
        first.into_iter().chain(last).for_each(|tracker| pages.extend(tracker.pages_to_begin()));
        let unused = damaged.iter().filter(|slot| !in_use.contains(slot));
        pages.extend(unused.map(|slot| (MetaPage::Bitmap { slot: *slot, page: 0 }, Page::new([0; PAGE_BYTES]))));
        pages
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
            generation: self.next_generation(),
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

/// A bitmap on disk that fits.
fn load(areas: &[Vec<u8>], blocks: u64, same: impl Fn(&Header) -> bool) -> Option<Tracker> {
    let (slot, header, dirty) =
        areas.iter().zip(0u8..).find_map(|(area, slot)| match bitmap_pages::decode(area, blocks) {
            Image::Bitmap(header, dirty) if same(&header) => Some((slot, header, dirty)),
            _ => None,
        })?;
    // What is on disk does not tell why. Of a bitmap that began with everything, little was written meanwhile.
    let missed = if header.initially_dirty { DirtyBitmap::clean(blocks) } else { dirty.clone() };
    let mut tracker = Tracker { missed, ..Tracker::new(header, slot, dirty, blocks) };
    tracker.header_written = true;
    Some(tracker)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto::{Boot, DiskId, EXTENT_BLOCKS, Epoch, Incarnation, RequestId, VolumeId};

    use super::*;
    use crate::config::{AckPolicy, Member, Phase};

    const ME: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);
    const BLOCKS: u64 = 4 * EXTENT_BLOCKS;
    const AREA_PAGES: usize = 2;

    /// A volume of three copies, of which `outside` have left the set at the versions given; `ME` has been in it since 1.
    fn config(version: u64, outside: &[(NodeId, u64)]) -> VolumeConfig {
        let replica = |node: NodeId| {
            let until = outside.iter().find(|(other, _)| *other == node).map_or(0, |(_, until)| *until);
            Registration {
                disk_id: DiskId(u128::from(node.0)),
                registered_at: ConfigVersion(1),
                member_until: ConfigVersion(until),
                member_since: ConfigVersion(u64::from(until > 0)),
                ..Registration::default()
            }
        };
        let member =
            |node: NodeId| Member { disk_id: DiskId(u128::from(node.0)), boot: Boot(0), since: ConfigVersion(1) };
        let inside = [ME, B, C].into_iter().filter(|node| !outside.iter().any(|(other, _)| other == node));
        VolumeConfig {
            id: VolumeId(1),
            name: String::new(),
            size_bytes: BLOCKS * proto::BLOCK_BYTES,
            ack_policy: AckPolicy::Flush,
            feature_level: 1,
            phase: Phase::Active,
            preallocate: false,
            epoch: Epoch(1),
            version: ConfigVersion(version),
            primary: ME,
            primary_incarnation: Incarnation(1),
            in_sync: inside.map(|node| (node, member(node))).collect(),
            replicas: [ME, B, C].into_iter().map(|node| (node, replica(node))).collect::<BTreeMap<_, _>>(),
            loss_possible: None,
            unflushed_loss: None,
            force_plan: None,
            create_request: RequestId(0),
            nfs: None,
        }
    }

    /// What the areas hold.
    #[derive(Clone)]
    struct Areas(Vec<Vec<u8>>);

    impl Areas {
        fn write(&mut self, pages: &[(MetaPage, Page)]) {
            for (page, bytes) in pages {
                let MetaPage::Bitmap { slot, page } = *page else { panic!("a page of a bitmap") };
                let at = page as usize * PAGE_BYTES;
                self.0[usize::from(slot)][at..at + PAGE_BYTES].copy_from_slice(&bytes[..]);
            }
        }

        fn damage_header(&mut self, slot: u8) {
            self.0[usize::from(slot)][40] ^= 1;
        }

        /// A new run opens them.
        fn open(&self, config: &VolumeConfig) -> Trackers {
            let mut trackers = Trackers::default();
            trackers.attach(self.0.clone());
            trackers.follow(config, ME, &[], Beginning::Hot);
            trackers
        }
    }

    fn dirty(trackers: &Trackers, node: NodeId) -> u64 {
        trackers.get(node).map_or(0, |tracker| tracker.dirty.count())
    }

    /// B has left at version 5 and C at 8; B lacks block 7, C blocks 9 and 10. All of it is on disk.
    fn two_outside() -> (VolumeConfig, Areas) {
        let mut areas = Areas(vec![vec![0; AREA_PAGES * PAGE_BYTES]; 3]);
        let mut trackers = areas.open(&config(5, &[]));
        trackers.follow(&config(6, &[(B, 5)]), ME, &[], Beginning::Clean);
        let newest = config(9, &[(B, 5), (C, 8)]);
        trackers.follow(&newest, ME, &[], Beginning::Clean);
        for (node, range) in [(B, BlockRange::new(7, 1)), (C, BlockRange::new(9, 2))] {
            let tracker = trackers.get_mut(node).expect("tracked");
            tracker.set(range);
            areas.write(&tracker.pages_to_begin());
        }
        let trackers = areas.open(&newest);
        assert_eq!((dirty(&trackers, B), dirty(&trackers, C)), (1, 2));
        (newest, areas)
    }

    #[test]
    fn what_was_written_without_a_copy_is_told_from_what_may_differ() {
        let (config, areas) = two_outside();
        let mut trackers = areas.open(&config);
        let tracker = trackers.get_mut(C).expect("tracked");
        let missed = |tracker: &Tracker| (5..15).filter(|block| tracker.has_missed(*block)).collect::<Vec<_>>();
        assert_eq!(missed(tracker), [9, 10], "as the bitmap on disk says");
        tracker.set_extents([0].into_iter());
        tracker.doubt(BlockRange::new(12, 1));
        tracker.set(BlockRange::new(7, 1));
        assert_eq!((missed(tracker), tracker.dirty.count()), (vec![7, 9, 10], EXTENT_BLOCKS));
        tracker.acked(BlockRange::new(9, 1));
        tracker.absorb_unflushed();
        assert_eq!((missed(tracker), tracker.dirty.count()), (vec![7, 10], EXTENT_BLOCKS));
        tracker.restart_dirty(BLOCKS, 9);
        assert_eq!((missed(tracker), tracker.dirty.count()), (vec![7, 10], BLOCKS));
    }

    fn slot_of(config: &VolumeConfig, areas: &Areas, node: NodeId) -> u8 {
        areas.open(config).get(node).expect("tracked").slot
    }

    #[test]
    fn a_damaged_header_costs_a_full_comparison_of_its_copy_and_of_no_other() {
        for (struck, expected) in [(B, (BLOCKS, 2)), (C, (1, BLOCKS))] {
            let (config, mut areas) = two_outside();
            areas.damage_header(slot_of(&config, &areas, struck));
            let mut trackers = areas.open(&config);
            assert_eq!((dirty(&trackers, B), dirty(&trackers, C)), expected, "{struck}");
            areas.write(&trackers.heal());
            let trackers = areas.open(&config);
            assert_eq!((dirty(&trackers, B), dirty(&trackers, C)), expected, "in the next run too");
        }
    }

    /// The bitmap of a copy whose departure was not on disk yet took the damaged area, and then nothing told any more
    /// that the other's had been there.
    #[test]
    fn a_crash_at_any_page_of_the_healing_leaves_no_copy_half_compared() {
        let (config, mut areas) = two_outside();
        let (slot_b, slot_c) = (slot_of(&config, &areas, B), slot_of(&config, &areas, C));
        // C's is damaged, and of B's nothing had reached the disk.
        areas.0[usize::from(slot_b)].fill(0);
        let moved = areas.0.remove(usize::from(slot_c));
        areas.0.insert(0, moved);
        areas.damage_header(0);
        let pages = areas.open(&config).heal();
        assert_eq!(pages.len(), 2, "a header for each of the two");
        for written in 0..=pages.len() {
            let mut areas = areas.clone();
            areas.write(&pages[..written]);
            let trackers = areas.open(&config);
            assert_eq!((dirty(&trackers, B), dirty(&trackers, C)), (BLOCKS, BLOCKS), "{written} pages");
        }
    }

    /// Bitmaps were numbered by the version, which a restart does not move: pages of the one whose header was damaged passed
    /// for pages of the one that took its area.
    #[test]
    fn pages_behind_a_damaged_header_belong_to_no_other_bitmap() {
        let (config, mut areas) = two_outside();
        let before = areas.clone();
        (0..3).for_each(|slot| areas.damage_header(slot));
        areas.0[2].fill(0);
        let mut trackers = areas.open(&config);
        areas.write(&trackers.heal());
        let old = before.0.iter().map(|area| bitmap_pages::newest_generation(area)).max().expect("areas");
        for node in [B, C] {
            assert!(trackers.get(node).is_some_and(|tracker| tracker.header.generation > old), "{node}");
        }
        let trackers = areas.open(&config);
        assert_eq!((dirty(&trackers, B), dirty(&trackers, C)), (BLOCKS, BLOCKS));
    }

    #[test]
    fn damage_of_the_past_does_not_count_for_a_later_departure() {
        let (_, mut areas) = two_outside();
        areas.damage_header(0);
        let mut trackers = areas.open(&config(10, &[]));
        let pages = trackers.heal();
        assert_eq!(pages.len(), 1, "the damaged header is wiped");
        areas.write(&pages);
        let newest = config(12, &[(C, 11)]);
        trackers.follow(&newest, ME, &[3], Beginning::Hot);
        assert_eq!(dirty(&trackers, C), EXTENT_BLOCKS);
        areas.write(&trackers.get_mut(C).expect("tracked").pages_to_begin());
        assert_eq!(dirty(&areas.open(&newest), C), EXTENT_BLOCKS);
    }
}
