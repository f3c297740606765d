//! What the simulator knows of silent harm to one copy: changes of which the disk has said nothing.
//!
//! The rules by which the checker judges runs with silent faults, which strike one copy of a run only:
//!
//! 1. A block whose content was changed behind the copy's back is *damaged* until it is written again. As long as its sum
//!    is known, every read must find it: no client ever sees it, and a read through the primary heals it while a good
//!    copy is in sync. An error for that block alone is allowed when no good copy was in sync, and at the end of a run only
//!    if no copy in sync holds what was last written, but one that was told by a source that the block is lost.
//! 2. Sums are unknown in extents that were hot at a crash, and where the page of sums itself was damaged. Damage there
//!    can become the copy's truth (*sealed*): nothing on this copy can tell. A copy that rejoins must take such blocks
//!    from the primary all the same; but if this copy itself goes on as primary, what it holds is the volume's content,
//!    and the checker leaves these blocks out from then on.
//! 3. A disk that has lied about a flush, or has lost a write to the log or to a bitmap, is *doubtful* from its next crash
//!    on: it may be a consistent image of the past. What it holds counts for nothing as long as another copy serves; if
//!    it becomes primary of a new epoch, that epoch may begin with any earlier content, as after a forced primary. Its
//!    sums are of the past too, and may be unknown: damage there can become its truth.

use std::collections::{BTreeMap, BTreeSet};

use proto::EXTENT_BLOCKS;
use replication::local_copy::{Hot, MetaPage};

use super::Block;

/// The harm of one copy.
#[derive(Clone, Debug, Default)]
pub struct Harm {
    /// Blocks that do not hold what was last written to them.
    pub damaged: BTreeSet<u64>,
    /// Of those: the copy's own sum may agree with the wrong content.
    pub sealed: BTreeSet<u64>,
    /// The copy may be an image of the past.
    pub doubtful: bool,
    /// Something that was said to be durable still lies in the volatile cache: a power cut makes the copy doubtful.
    pub promises_broken: bool,
    /// A page of the log or of a bitmap is older than what was written: the next crash makes the copy doubtful.
    pub log_lost: bool,
    /// Blocks ever damaged, and what was last written to them.
    pub ever: BTreeMap<u64, Block>,
    /// Pages of metadata ever damaged.
    pub pages: u64,
    /// Blocks that a source has told to be lost on all copies: what is held here need not be served though it be right.
    pub given_up: BTreeSet<u64>,
    extents: u64,
    /// Extents that were hot at a crash and have not gone cold since.
    hot: BTreeSet<u64>,
    /// Extents of which a page of sums was damaged at some time.
    bad_pages: BTreeSet<u64>,
}

impl Harm {
    /// None yet, to a copy of this many extents.
    pub fn new(extents: u64) -> Self {
        Self { extents, ..Self::default() }
    }

    /// A block has changed silently from `before` to `after`; or, with `told`, was to become that and became `after`.
    pub fn struck(&mut self, block: u64, told: Option<Block>, before: Block, after: Block) {
        let last = self.ever.entry(block).or_insert(before);
        if let Some(told) = told {
            *last = told;
        }
        self.judge(block, after);
    }

    /// A block was written.
    pub fn written(&mut self, block: u64, content: Block) {
        self.given_up.remove(&block);
        if let Some(last) = self.ever.get_mut(&block) {
            *last = content;
            self.damaged.remove(&block);
            self.sealed.remove(&block);
        }
    }

    fn judge(&mut self, block: u64, holds: Block) {
        if self.ever.get(&block) == Some(&holds) {
            self.damaged.remove(&block);
            self.sealed.remove(&block);
            return;
        }
        self.damaged.insert(block);
        let extent = block / EXTENT_BLOCKS;
        if self.hot.contains(&extent) || self.bad_pages.contains(&extent) {
            self.sealed.insert(block);
        }
    }

    /// The sums of a block were taken from what it holds: its content is the copy's truth now.
    pub fn resummed(&mut self, blocks: impl Iterator<Item = u64>) {
        if !self.damaged.is_empty() {
            let damaged = &self.damaged;
            self.sealed.extend(blocks.filter(|block| damaged.contains(block)));
        }
    }

    /// A write of a page of metadata was lost: the page says what was true before.
    pub fn page_lost(&mut self, page: MetaPage) {
        self.log_lost |= matches!(page, MetaPage::Log(_) | MetaPage::Bitmap { .. });
        self.page_damaged(page);
    }

    /// A page of metadata was changed silently. That a page of the log or of a bitmap is damaged must show.
    pub fn page_damaged(&mut self, page: MetaPage) {
        self.pages += 1;
        match page {
            MetaPage::Sums { extent } => {
                self.bad_pages.insert(extent);
            }
            MetaPage::Index { .. } => self.bad_pages.extend(0..self.extents),
            MetaPage::Log(_) | MetaPage::Bitmap { .. } => {}
        }
        self.seal();
    }

    /// The copy was opened, and these extents were hot: their sums are unknown.
    pub fn opened(&mut self, hot: &Hot) {
        match hot {
            Hot::All => self.hot.extend(0..self.extents),
            Hot::Extents(extents) => self.hot.extend(extents),
        }
        self.seal();
    }

    /// Extents have gone cold: all their sums are known.
    pub fn cooled(&mut self, extents: &[u64]) {
        extents.iter().for_each(|extent| {
            self.hot.remove(extent);
        });
    }

    /// The process that used the copy has died.
    pub fn crashed(&mut self) {
        self.doubt_if(self.log_lost);
    }

    /// The box has lost power; `holds` tells what a block holds now.
    pub fn power_cut(&mut self, holds: impl Fn(u64) -> Block) {
        self.crashed();
        self.dropped(holds);
    }

    /// The disk has dropped what was not flushed: what it only called flushed may be among it.
    pub fn dropped(&mut self, holds: impl Fn(u64) -> Block) {
        let broken = std::mem::take(&mut self.promises_broken);
        self.doubt_if(broken);
        let blocks: Vec<u64> = self.ever.keys().copied().collect();
        blocks.into_iter().for_each(|block| self.judge(block, holds(block)));
    }

    /// True when nothing was ever wrong.
    pub fn none(&self) -> bool {
        self.ever.is_empty() && self.pages == 0 && !self.doubtful && !self.promises_broken && !self.log_lost
    }

    /// An image of the past knows the sums of the past, and perhaps none.
    fn doubt_if(&mut self, doubtful: bool) {
        if doubtful {
            self.doubtful = true;
            self.bad_pages.extend(0..self.extents);
            self.seal();
        }
    }

    fn seal(&mut self) {
        let unknown = |block: &&u64| {
            let extent = **block / EXTENT_BLOCKS;
            self.hot.contains(&extent) || self.bad_pages.contains(&extent)
        };
        self.sealed.extend(self.damaged.iter().filter(unknown));
    }
}
