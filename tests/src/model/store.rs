//! The disk of one box: what reads return, what survives a power cut, and the small durable state beside the data.
//!
//! Only two blocks of the volume are ever written, each in an extent of its own. Every other block is zeros on both sides.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use proto::{BlockRange, Boot, ConfigVersion, DiskId, EXTENT_BLOCKS, Epoch};
use replication::local_copy::{Hot, MetaPage, PAGE_BYTES, Page};
use replication::{Attachment, DiskReport, IoId, PastScrubs};

/// Blocks that are written.
pub const BLOCKS: usize = 2;
/// Where they lie in the volume.
pub const PLACES: [u64; BLOCKS] = [0, EXTENT_BLOCKS];
/// Blocks of the volume.
pub const VOLUME_BLOCKS: u64 = EXTENT_BLOCKS + 1;

/// Values of the two blocks.
pub type Values = [u8; BLOCKS];

/// Which of the two blocks lie in `range`.
pub fn covered(range: BlockRange) -> impl Iterator<Item = usize> {
    (0..BLOCKS).filter(move |block| range.blocks().contains(&PLACES[*block]))
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Reads both blocks (sampled when it is given out).
    Read(Values),
    /// Stores values.
    Write {
        /// New values; none: the block is not touched.
        values: [Option<u8>; BLOCKS],
        /// Epoch under which it was given out.
        epoch: Epoch,
    },
    /// Puts on stable media what was stored when it was given out.
    Flush(Values),
    /// Records the state of the copy.
    State(ConfigVersion, bool),
    /// Records the fence.
    Fence(Epoch, ConfigVersion),
    /// Makes extents hot.
    Heat(Vec<u64>),
    /// Makes extents cold: flushes (what was stored when it was given out), writes bitmap pages, then forgets them.
    Cool(Values, Vec<u64>, Vec<BitmapPage>),
    /// Writes bitmap pages.
    Bitmap(Vec<BitmapPage>),
}

/// A page of a dirty bitmap.
#[derive(Clone, Debug)]
pub struct BitmapPage {
    /// Its area.
    pub slot: u8,
    /// Its place there.
    pub page: u32,
    digest: u64,
    bytes: Arc<Page>,
}

impl BitmapPage {
    /// The page as the core gave it out; pages of other kinds are not for the model.
    pub fn new(place: MetaPage, bytes: Page) -> Option<Self> {
        let MetaPage::Bitmap { slot, page } = place else { return None };
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Some(Self { slot, page, digest: hasher.finish(), bytes: Arc::new(bytes) })
    }
}

impl PartialEq for BitmapPage {
    fn eq(&self, other: &Self) -> bool {
        (self.slot, self.page, &self.bytes) == (other.slot, other.page, &other.bytes)
    }
}

impl Eq for BitmapPage {}

impl Hash for BitmapPage {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.slot, self.page, self.digest).hash(hasher);
    }
}

/// An operation in flight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Inflight {
    /// Its number (a fence has none of its own).
    pub io: IoId,
    /// What it does.
    pub work: Work,
    /// It may take for ever.
    pub slow: bool,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    /// Its id.
    pub disk_id: DiskId,
    /// Per block: the value on stable media, then every value stored since.
    pub versions: [Vec<u8>; BLOCKS],
    /// Version at which it knows it is in sync.
    pub last_in_sync: ConfigVersion,
    /// It may hold less than it acknowledged.
    pub suspect: bool,
    /// Power-on under which it was opened.
    pub opened: Option<Boot>,
    /// The durable fence.
    pub fence: (Epoch, ConfigVersion),
    /// Extents that are hot.
    pub hot: BTreeSet<u64>,
    /// Pages of bitmaps that were ever written.
    pub pages: Vec<BitmapPage>,
    /// Newest epoch under which a write was given out.
    pub begun: Epoch,
}

impl Store {
    /// A new copy, all zeros.
    pub fn new(disk_id: DiskId) -> Self {
        Self {
            disk_id,
            versions: [vec![0], vec![0]],
            last_in_sync: ConfigVersion(0),
            suspect: false,
            opened: None,
            fence: (Epoch(0), ConfigVersion(0)),
            hot: BTreeSet::new(),
            pages: Vec::new(),
            begun: Epoch(0),
        }
    }

    /// What a read of `block` returns.
    pub fn value(&self, block: usize) -> u8 {
        self.versions[block].last().copied().unwrap_or(0)
    }

    /// What reads of both blocks return.
    pub fn values(&self) -> Values {
        [self.value(0), self.value(1)]
    }

    /// Opens it during power-on `boot`.
    pub fn open(&mut self, boot: Boot) -> Attachment {
        self.suspect |= self.opened.is_some_and(|opened| opened != boot);
        self.opened = Some(boot);
        let report = DiskReport {
            disk_id: self.disk_id,
            last_in_sync: self.last_in_sync,
            suspect: self.suspect,
            failed: false,
            fence: self.fence,
        };
        Attachment {
            report,
            hot: Hot::Extents(self.hot.iter().copied().collect()),
            bitmaps: self.areas(),
            scrubs: PastScrubs::default(),
        }
    }

    /// The areas of the bitmaps, as read.
    fn areas(&self) -> Vec<Vec<u8>> {
        let mut areas: Vec<Vec<u8>> = Vec::new();
        for BitmapPage { slot, page, bytes, .. } in &self.pages {
            let (slot, start) = (usize::from(*slot), *page as usize * PAGE_BYTES);
            areas.resize(areas.len().max(slot + 1), Vec::new());
            let area = &mut areas[slot];
            area.resize(area.len().max(start + PAGE_BYTES), 0);
            area[start..start + PAGE_BYTES].copy_from_slice(&bytes[..]);
        }
        areas
    }

    /// Pages of bitmaps are on stable media.
    pub fn write_pages(&mut self, pages: Vec<BitmapPage>) {
        for page in pages {
            self.pages.retain(|other| (other.slot, other.page) != (page.slot, page.page));
            self.pages.push(page);
        }
        self.pages.sort_by_key(|page| (page.slot, page.page));
    }

    /// Stores one value.
    pub fn put(&mut self, block: usize, value: u8) {
        if self.value(block) != value {
            self.versions[block].push(value);
        }
    }

    /// A flush has ended that was given out when the blocks held `covered`; it does nothing where a later one ended first.
    pub fn flush(&mut self, covered: Values) {
        for (versions, value) in self.versions.iter_mut().zip(covered) {
            if let Some(at) = versions.iter().rposition(|version| *version == value) {
                versions.drain(..at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_covers_what_was_stored_when_it_was_given_out() {
        let mut store = Store::new(DiskId(1));
        store.put(0, 1);
        let covered = store.values();
        store.put(0, 2);
        store.flush(covered);
        assert_eq!(store.versions, [vec![1, 2], vec![0]]);
        assert_eq!(store.values(), [2, 0]);
    }

    #[test]
    fn a_copy_that_was_open_at_a_power_cut_is_suspect() {
        let mut store = Store::new(DiskId(1));
        assert!(!store.open(Boot(1)).report.suspect);
        assert!(!store.open(Boot(1)).report.suspect);
        assert!(store.open(Boot(2)).report.suspect);
    }
}
