//! One copy of one volume on one box: the raw disk under it, its superblock, and what the simulator knows of its harm.

mod harm;
mod layer;
mod raw;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use proto::{Boot, ConfigVersion, DiskId, Epoch};
use replication::local_copy::{Areas, Geometry, Hot, LocalCopy, MetaPage};
use replication::{DiskReport, ScrubReport, bitmap_pages};

use super::scheduler::SimTime;

pub use harm::Harm;
pub use raw::{DiskFaults, DiskOp, Landed, NOBODYS, Outcome, RawDisk, SilentFaults, Whose};

/// Values of the two halves of a block; 0 is zeros, everything else names the write that stored it.
pub type Block = [u32; 2];

/// Content of consecutive blocks.
pub type Blocks = Rc<[Block]>;

/// Marks a half that a client's partial write does not cover, until the edges are merged. Never reaches a disk.
pub const KEEP: u32 = u32::MAX;

/// Dirty bitmaps in a store.
pub const BITMAPS: u8 = 2;

/// Entries of an index page (docs/disk-format.md, "Areas").
const INDEX_ENTRIES: u64 = 255;

/// One copy.
#[derive(Debug)]
pub struct Store {
    /// The copy's name.
    pub disk_id: DiskId,
    /// The raw disk.
    pub raw: RawDisk,
    /// Stopped cleanly and not opened since.
    pub clean: bool,
    /// When the last scrub ended that it remembers, and how far the one in the background is.
    pub scrubs: (SimTime, Option<ScrubReport>),
    geometry: Geometry,
    /// Power-on under which the store was last opened and not closed cleanly.
    opened: Option<Boot>,
}

/// What opening a store gives.
#[derive(Debug)]
pub struct Opened {
    /// What its superblock says.
    pub report: DiskReport,
    /// Extents that were hot.
    pub hot: Hot,
    /// The bitmaps' areas.
    pub bitmaps: Vec<Vec<u8>>,
    /// The engine.
    pub copy: LocalCopy,
}

impl Store {
    /// A new store of zeros.
    pub fn new(disk_id: DiskId, geometry: Geometry) -> Self {
        let raw = RawDisk::new(geometry.blocks);
        Self { disk_id, raw, clean: false, scrubs: (0, None), geometry, opened: None }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.geometry.blocks
    }

    /// Opens it under `boot`. The caller waits for [`RawDisk::idle`] first.
    pub fn open(&mut self, boot: Boot, fence: (Epoch, ConfigVersion)) -> Opened {
        let torn_away = self.opened.is_some_and(|opened| opened != boot) && !self.clean;
        let suspect = self.raw.suspect() || self.raw.failed() || torn_away;
        self.raw.set_suspect(suspect);
        self.opened = Some(boot);
        self.clean = false;
        let report = DiskReport {
            disk_id: self.disk_id,
            last_in_sync: self.raw.last_in_sync(),
            suspect,
            fence,
            failed: self.raw.failed(),
        };
        let log = self.raw.area(self.geometry.log_pages, MetaPage::Log);
        let pages = self.geometry.blocks.div_ceil(proto::EXTENT_BLOCKS).div_ceil(INDEX_ENTRIES) as u32;
        let index = [0, 1].map(|copy| self.raw.area(pages, |page| MetaPage::Index { copy, page }));
        let areas = Areas { log: &log, index: [&index[0], &index[1]] };
        let (mut copy, hot) = LocalCopy::open(self.geometry, areas);
        copy.mend_log().into_iter().for_each(|(page, bytes)| self.raw.mend_page(page, bytes));
        let pages = bitmap_pages::pages_for(self.geometry.blocks) as u32;
        let bitmaps = (0..BITMAPS).map(|slot| self.raw.area(pages, |page| MetaPage::Bitmap { slot, page })).collect();
        self.raw.harm.opened(&hot);
        Opened { report, hot, bitmaps, copy }
    }

    /// Closes it in order: everything is on the media. A copy that may miss something stays so: a clean stop does not
    /// bring back what an earlier power loss took.
    pub fn close_clean(&mut self) {
        self.raw.flush_all();
        self.clean = !self.raw.failed() && !self.raw.suspect();
        self.opened = self.opened.filter(|_| !self.clean);
    }
}
