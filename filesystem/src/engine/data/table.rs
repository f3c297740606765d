//! What is known of files beyond the device: data that waits, room reserved for it, blocks that must not be taken, files
//! that are open without a name or being cut short. Operations read it and change it by [`DataEdits`], when they end well.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::content::Content;
use crate::engine::filesystem::Failure;
use crate::engine::orphans::OrphanOrder;
use crate::units::{BlockNumber, BlockRun, InodeNumber, TransactionId};

/// Blocks of a file's map that may be needed beside those in proportion to its data: one more level, split all the way.
const NODES_SPARE: u64 = 6;

/// Files for whose growth blocks are kept at a time.
const WINDOWS_MAX: usize = 64;
/// One file's data is on its way to the device when it is this part of what may wait, whether somebody asks for it or not: the
/// device has something to do while the writer goes on, and who syncs the file waits for its end only.
const MUCH_OF_ONE_FILE_PART: usize = 8;

/// How far a block of a file is on its way to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// In memory only.
    Dirty,
    /// With this transaction.
    Ordered(TransactionId),
}

/// A block of a file that is newer than the device.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// Its bytes; zeros behind the file's end.
    pub(crate) content: Content,
    pub(crate) stage: Stage,
    /// Another for every content.
    pub(crate) version: u64,
    /// The version of the oldest content that is newer than the device: whoever syncs that one waits for this page.
    pub(crate) dirty_since: u64,
    /// Nothing is mapped there, and room is reserved.
    pub(crate) reserved: bool,
}

/// A file with data that waits.
#[derive(Debug, Default)]
pub(crate) struct FileData {
    /// Bytes as everybody sees them; the inode on the device may be behind.
    size: u64,
    pages: BTreeMap<u32, Page>,
    dirty: usize,
    reserved: u64,
    /// The last transaction that carries data of it, until it is durable: also data that is not the newest any more.
    ordered: Option<TransactionId>,
    /// Its place among those to be written back.
    queued: Option<u64>,
}

/// What becomes of a page.
#[derive(Clone, Debug)]
pub(crate) enum PageEdit {
    /// It is not wanted any more.
    Drop,
    /// A new content.
    Put {
        /// The bytes.
        content: Content,
        /// Room is reserved for it.
        reserved: bool,
        /// It goes with the transaction that the operation joins.
        ordered: bool,
    },
    /// This version is on the device, and mapped.
    Written(u64),
}

/// What an operation does to one file's data.
#[derive(Clone, Debug, Default)]
pub(crate) struct FileEdit {
    pub(crate) size: Option<u64>,
    pub(crate) pages: BTreeMap<u32, PageEdit>,
    /// Pages from here on are dropped.
    pub(crate) dropped_from: Option<u32>,
    /// Pages with reserved room, more or fewer.
    pub(crate) reserved: i64,
}

/// What an operation does beyond blocks of metadata.
#[derive(Debug, Default)]
pub(crate) struct DataEdits {
    pub(crate) files: BTreeMap<InodeNumber, FileEdit>,
    /// Blocks that nobody may take for now.
    pub(crate) claims: Vec<BlockRun>,
    /// Blocks behind a file's last that are kept for its growth.
    pub(crate) window: Option<(InodeNumber, BlockRun)>,
    /// Data that is written before the transaction's commit block.
    pub(crate) ordered: BTreeMap<BlockNumber, Content>,
    /// Blocks of data that go through the log.
    pub(crate) journaled: BTreeSet<BlockNumber>,
    /// Blocks of data that were freed.
    pub(crate) freed: Vec<BlockRun>,
    /// Data was or will be written past the cache.
    pub(crate) overwritten: Vec<BlockRun>,
    pub(crate) orphaned: Vec<InodeNumber>,
    /// Files whose blocks behind the end are still to be given back, or no longer.
    pub(crate) truncating: BTreeMap<InodeNumber, bool>,
    /// An orphan is gone.
    pub(crate) reclaimed: Vec<InodeNumber>,
    /// Orphans that stand behind another on the list now, or that are its first, or not on it any more.
    pub(crate) orphan_order: BTreeMap<InodeNumber, Option<InodeNumber>>,
    /// A file is too large for small filesystems of old.
    pub(crate) large_file: bool,
}

impl DataEdits {
    /// Nothing is changed; blocks are kept from others for some time.
    pub(crate) fn only_claims(&self) -> bool {
        self.files.is_empty() && self.ordered.is_empty() && self.truncating.is_empty() && self.overwritten.is_empty()
    }

    /// There is nothing to take over.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.claims.is_empty() && self.ordered.is_empty() && self.truncating.is_empty()
    }
}

/// What is known of files beyond the device.
#[derive(Debug)]
pub(crate) struct DataTable {
    files: BTreeMap<InodeNumber, FileData>,
    /// Files with dirty data, those that have waited longest first.
    queue: BTreeSet<(u64, InodeNumber)>,
    /// Those of them with much.
    large: BTreeSet<InodeNumber>,
    /// Bytes of pages.
    bytes: usize,
    bytes_max: usize,
    block_bytes: usize,
    /// Blocks reserved for pages without a place, and for the maps that they need.
    reserved: u64,
    /// Blocks that are read or written now, or chosen for data that is not mapped yet.
    held: Vec<(u64, BlockRun)>,
    /// Blocks that files will want when they grow, the latest of few files: others take them last.
    windows: VecDeque<(InodeNumber, BlockRun)>,
    /// Data blocks of which the log may hold a copy, and the last transaction that put one there.
    journaled: BTreeMap<BlockNumber, TransactionId>,
    truncating: BTreeSet<InodeNumber>,
    unlinked: BTreeSet<InodeNumber>,
    open: BTreeMap<InodeNumber, u32>,
    /// Orphans that nobody has open: what they hold is being given back.
    doomed: BTreeSet<InodeNumber>,
    pub(crate) orphan_order: OrphanOrder,
    /// Files whose data somebody waits for to be written.
    requested: BTreeSet<InodeNumber>,
    /// Why the last request came to nothing.
    failed: BTreeMap<InodeNumber, Failure>,
    busy: BTreeSet<InodeNumber>,
    last_number: u64,
}

impl DataTable {
    /// Nothing yet. Writers wait for others to be written when more than `bytes_max` would wait.
    pub(crate) fn new(bytes_max: usize, block_bytes: usize) -> Self {
        Self {
            files: BTreeMap::new(),
            queue: BTreeSet::new(),
            large: BTreeSet::new(),
            bytes: 0,
            bytes_max,
            block_bytes,
            reserved: 0,
            held: Vec::new(),
            windows: VecDeque::new(),
            journaled: BTreeMap::new(),
            truncating: BTreeSet::new(),
            unlinked: BTreeSet::new(),
            open: BTreeMap::new(),
            doomed: BTreeSet::new(),
            orphan_order: OrphanOrder::default(),
            requested: BTreeSet::new(),
            failed: BTreeMap::new(),
            busy: BTreeSet::new(),
            last_number: 0,
        }
    }

    /// Nothing waits to be written, cut or given back.
    pub(crate) fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.doomed.is_empty() && self.truncating.is_empty()
    }

    /// The file's length, if it is known here.
    pub(crate) fn size(&self, file: InodeNumber) -> Option<u64> {
        self.files.get(&file).map(|data| data.size)
    }

    /// A block of a file, if it is newer than the device.
    pub(crate) fn page(&self, file: InodeNumber, at: u32) -> Option<&Page> {
        self.files.get(&file)?.pages.get(&at)
    }

    /// Pages of a file from `from` on.
    pub(crate) fn pages(&self, file: InodeNumber, from: u32) -> impl Iterator<Item = (u32, &Page)> {
        let pages = self.files.get(&file).map(|data| data.pages.range(from..));
        pages.into_iter().flatten().map(|(at, page)| (*at, page))
    }

    /// Pages of a file for which room is reserved.
    pub(crate) fn reserved_pages(&self, file: InodeNumber) -> u64 {
        self.files.get(&file).map_or(0, |data| data.reserved)
    }

    /// Blocks reserved for all files.
    pub(crate) fn reserved_blocks(&self) -> u64 {
        self.reserved
    }

    /// Pages that are in memory only.
    pub(crate) fn dirty_pages(&self, file: InodeNumber) -> usize {
        self.files.get(&file).map_or(0, |data| data.dirty)
    }

    /// The newest transaction that carries data of a file, if it is not durable yet.
    pub(crate) fn ordered_in(&self, file: InodeNumber) -> Option<TransactionId> {
        self.files.get(&file)?.ordered
    }

    /// True when so many more bytes may wait. A single write is let in whatever its length, when nothing waits.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.bytes == 0 || self.bytes + bytes <= self.bytes_max
    }

    /// More waits than is good.
    pub(crate) fn is_crowded(&self) -> bool {
        self.bytes > self.bytes_max / 2
    }

    /// The file whose data has waited longest and is not on its way.
    pub(crate) fn oldest_dirty(&self) -> Option<InodeNumber> {
        self.queue.iter().map(|(_, file)| *file).find(|file| !self.busy.contains(file))
    }

    /// A file with much data that is in memory only and not on its way.
    pub(crate) fn much_dirty(&self) -> Option<InodeNumber> {
        self.large.iter().find(|file| !self.busy.contains(file)).copied()
    }

    /// All files with data that is in memory only.
    pub(crate) fn dirty_files(&self) -> Vec<InodeNumber> {
        self.queue.iter().map(|(_, file)| *file).collect()
    }

    /// A file has data that was in memory only when [`Self::last_version`] was `version`, and still is, or what replaced it.
    pub(crate) fn dirty_before(&self, file: InodeNumber, version: u64) -> bool {
        self.pages(file, 0).any(|(_, page)| page.stage == Stage::Dirty && page.dirty_since <= version)
    }

    /// The newest content has this version.
    pub(crate) fn last_version(&self) -> u64 {
        self.last_number
    }

    /// Blocks that must not be taken, those of `run` only.
    pub(crate) fn held_within(&self, run: BlockRun) -> impl Iterator<Item = BlockRun> + '_ {
        self.held.iter().filter_map(move |(_, held)| held.within(run))
    }

    /// Blocks are kept for the growth of some file.
    pub(crate) fn has_windows(&self) -> bool {
        !self.windows.is_empty()
    }

    /// Blocks that are kept for the growth of others than `owner`, those of `run` only.
    pub(crate) fn windows_within(
        &self,
        run: BlockRun,
        owner: Option<InodeNumber>,
    ) -> impl Iterator<Item = BlockRun> + '_ {
        let others = self.windows.iter().filter(move |(file, _)| Some(*file) != owner);
        others.filter_map(move |(_, window)| window.within(run))
    }

    /// What of `wanted` may be kept for the growth of a file: up to what is kept for another. None while the file has not
    /// come to the end of what is kept for it.
    pub(crate) fn new_window(&self, file: InodeNumber, wanted: BlockRun) -> Option<BlockRun> {
        if self.windows.iter().any(|(owner, window)| *owner == file && window.contains(wanted.start)) {
            return None;
        }
        let others = self.windows.iter().filter(|(owner, _)| *owner != file);
        let next = others.filter(|(_, window)| window.end() > wanted.start).map(|(_, window)| window.start).min();
        let end = next.map_or(wanted.end(), |next| next.clamp(wanted.start, wanted.end()));
        Some(BlockRun::new(wanted.start, (end.0 - wanted.start.0) as u32))
    }

    /// Keeps blocks from being taken until [`Self::let_go_blocks`].
    pub(crate) fn hold_blocks(&mut self, run: BlockRun) -> u64 {
        self.last_number += 1;
        self.held.push((self.last_number, run));
        self.last_number
    }

    /// Blocks are kept from being taken.
    pub(crate) fn has_held_blocks(&self) -> bool {
        !self.held.is_empty()
    }

    /// The end of a [`Self::hold_blocks`].
    pub(crate) fn let_go_blocks(&mut self, ids: &[u64]) {
        self.held.retain(|(id, _)| !ids.contains(id));
    }

    /// The log may hold a copy of this block of data.
    pub(crate) fn is_journaled(&self, at: BlockNumber) -> bool {
        self.journaled.contains_key(&at)
    }

    /// Blocks of data within a run of which the log may hold copies.
    pub(crate) fn journaled_within(&self, run: BlockRun) -> impl Iterator<Item = BlockNumber> + '_ {
        self.journaled.range(run.start..run.end()).map(|(at, _)| *at)
    }

    /// No block of data is in the log.
    pub(crate) fn nothing_journaled(&self) -> bool {
        self.journaled.is_empty()
    }

    /// The log holds nothing older than `oldest` any more; nothing at all if that is None.
    pub(crate) fn log_released(&mut self, oldest: Option<TransactionId>, running: TransactionId) {
        let oldest = oldest.unwrap_or(running);
        self.journaled.retain(|_, last| !last.is_before(oldest));
    }

    /// The file is being cut short.
    pub(crate) fn is_truncating(&self, file: InodeNumber) -> bool {
        self.truncating.contains(&file)
    }

    /// One that is.
    pub(crate) fn any_truncating(&self) -> Option<InodeNumber> {
        self.truncating.iter().find(|file| !self.busy.contains(file)).copied()
    }

    /// Somebody has the file open.
    pub(crate) fn is_held(&self, file: InodeNumber) -> bool {
        self.open.contains_key(&file)
    }

    /// The file's blocks are being moved, mapped or freed by somebody who waits for the device.
    pub(crate) fn is_busy(&self, file: InodeNumber) -> bool {
        self.busy.contains(&file)
    }

    /// Makes it busy. False if it is already.
    pub(crate) fn set_busy(&mut self, file: InodeNumber) -> bool {
        self.busy.insert(file)
    }

    /// The end of [`Self::set_busy`].
    pub(crate) fn clear_busy(&mut self, file: InodeNumber) {
        self.busy.remove(&file);
    }

    /// Somebody has the file open. False when it is too late: it has no name left, and what it holds is being given back.
    pub(crate) fn opened(&mut self, file: InodeNumber) -> bool {
        if self.doomed.contains(&file) {
            return false;
        }
        *self.open.entry(file).or_default() += 1;
        true
    }

    /// Somebody has it open no longer.
    pub(crate) fn closed(&mut self, file: InodeNumber) {
        if let Some(count) = self.open.get_mut(&file) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&file);
                if self.unlinked.contains(&file) {
                    self.doom(file);
                }
            }
        }
    }

    /// The file is on the list of orphans.
    pub(crate) fn unlink(&mut self, file: InodeNumber) {
        self.unlinked.insert(file);
        if !self.open.contains_key(&file) {
            self.doom(file);
        }
    }

    /// The file is on the list of orphans, and somebody will have it open.
    pub(crate) fn keep_unlinked(&mut self, file: InodeNumber) {
        self.unlinked.insert(file);
    }

    fn doom(&mut self, file: InodeNumber) {
        self.doomed.insert(file);
        // Nobody will ever read it.
        self.forget_file(file);
    }

    /// Drops all that is in memory of a file's data.
    pub(crate) fn forget_file(&mut self, file: InodeNumber) {
        let edit =
            FileEdit { dropped_from: Some(0), reserved: -(self.reserved_pages(file) as i64), ..FileEdit::default() };
        self.apply_file(file, edit, TransactionId(0), &mut Vec::new());
    }

    /// An orphan whose blocks are to be given back.
    pub(crate) fn any_doomed(&self) -> Option<InodeNumber> {
        self.doomed.iter().find(|file| !self.busy.contains(file)).copied()
    }

    /// What the file holds is being given back.
    pub(crate) fn is_doomed(&self, file: InodeNumber) -> bool {
        self.doomed.contains(&file)
    }

    /// Somebody waits for a file's data to be written.
    pub(crate) fn request(&mut self, file: InodeNumber) {
        self.failed.remove(&file);
        self.requested.insert(file);
    }

    /// Files whose data is to be written now.
    pub(crate) fn take_requests(&mut self) -> BTreeSet<InodeNumber> {
        std::mem::take(&mut self.requested)
    }

    /// A file's data could not be written.
    pub(crate) fn request_failed(&mut self, file: InodeNumber, why: Failure) {
        self.failed.insert(file, why);
    }

    /// Why a file's data could not be written, if it was tried since the last request.
    pub(crate) fn failure(&self, file: InodeNumber) -> Option<&Failure> {
        self.failed.get(&file)
    }

    /// Takes over what an operation did. Gives back the pages that go with the transaction, and the holds of what it claimed.
    pub(crate) fn apply(&mut self, edits: DataEdits, id: TransactionId) -> (Vec<PageId>, Vec<u64>) {
        let mut pages = Vec::new();
        for run in &edits.freed {
            let inside: Vec<BlockNumber> = self.journaled_within(*run).collect();
            for at in inside {
                self.journaled.remove(&at);
            }
        }
        self.journaled.extend(edits.journaled.iter().map(|at| (*at, id)));
        for (file, edit) in edits.files {
            self.apply_file(file, edit, id, &mut pages);
        }
        for (file, on) in edits.truncating {
            if on {
                self.truncating.insert(file);
            } else {
                self.truncating.remove(&file);
            }
        }
        self.orphan_order.apply(edits.orphan_order);
        edits.orphaned.into_iter().for_each(|file| self.unlink(file));
        for file in edits.reclaimed {
            self.windows.retain(|(other, _)| *other != file);
            self.unlinked.remove(&file);
            self.truncating.remove(&file);
            self.doomed.remove(&file);
            self.failed.remove(&file);
            self.forget_file(file);
        }
        if let Some((file, window)) = edits.window {
            self.windows.retain(|(other, _)| *other != file);
            self.windows.truncate(WINDOWS_MAX - 1);
            self.windows.push_front((file, window));
        }
        let holds = edits.claims.into_iter().map(|run| self.hold_blocks(run)).collect();
        (pages, holds)
    }

    fn apply_file(&mut self, file: InodeNumber, edit: FileEdit, id: TransactionId, ordered: &mut Vec<PageId>) {
        let before = self.reserved_pages(file);
        let block_bytes = self.block_bytes;
        let data = self.files.entry(file).or_default();
        if let Some(size) = edit.size {
            data.size = size;
        }
        if let Some(from) = edit.dropped_from {
            for (_, page) in data.pages.split_off(&from) {
                self.bytes -= block_bytes;
                data.dirty -= usize::from(page.stage == Stage::Dirty);
            }
        }
        for (at, edit) in edit.pages {
            let former = data.pages.remove(&at);
            if let Some(former) = &former {
                self.bytes -= block_bytes;
                data.dirty -= usize::from(former.stage == Stage::Dirty);
            }
            let page = match (edit, former) {
                (PageEdit::Drop, _) => None,
                (PageEdit::Written(version), Some(former)) => {
                    (former.version != version).then(|| Page { reserved: false, dirty_since: former.version, ..former })
                }
                (PageEdit::Written(_), None) => None,
                (PageEdit::Put { content, reserved, ordered: false }, former) => {
                    self.last_number += 1;
                    let version = self.last_number;
                    let former = former.filter(|former| former.stage == Stage::Dirty);
                    let dirty_since = former.map_or(version, |former| former.dirty_since);
                    Some(Page { content, stage: Stage::Dirty, version, dirty_since, reserved })
                }
                (PageEdit::Put { content, ordered: true, .. }, _) => {
                    self.last_number += 1;
                    ordered.push(PageId { file, at, version: self.last_number });
                    data.ordered = Some(id);
                    let version = self.last_number;
                    Some(Page { content, stage: Stage::Ordered(id), version, dirty_since: version, reserved: false })
                }
            };
            if let Some(page) = page {
                self.bytes += block_bytes;
                data.dirty += usize::from(page.stage == Stage::Dirty);
                data.pages.insert(at, page);
            }
        }
        data.reserved = before.saturating_add_signed(edit.reserved);
        let after = data.reserved;
        self.reserved = self.reserved + reservation(after, block_bytes) - reservation(before, block_bytes);
        self.settle(file);
    }

    /// Data that went with a transaction is on the device.
    pub(crate) fn committed(&mut self, id: TransactionId, pages: &[PageId]) {
        for PageId { file, at, version } in pages {
            let Some(data) = self.files.get_mut(file) else { continue };
            data.ordered = data.ordered.filter(|last| *last != id);
            if data.pages.get(at).is_some_and(|page| page.version == *version) {
                data.pages.remove(at);
                self.bytes -= self.block_bytes;
                self.settle(*file);
            }
        }
    }

    /// Brings a file's place in the queue up to date, and forgets it when the device has all of it.
    fn settle(&mut self, file: InodeNumber) {
        let Some(data) = self.files.get_mut(&file) else { return };
        if data.dirty > 0 && data.dirty * self.block_bytes >= self.bytes_max / MUCH_OF_ONE_FILE_PART {
            self.large.insert(file);
        } else {
            self.large.remove(&file);
        }
        match (data.dirty > 0, data.queued) {
            (true, None) => {
                self.last_number += 1;
                data.queued = Some(self.last_number);
                self.queue.insert((self.last_number, file));
            }
            (false, Some(number)) => {
                data.queued = None;
                self.queue.remove(&(number, file));
            }
            _ => {}
        }
        if data.pages.is_empty() {
            self.files.remove(&file);
        }
    }

    /// Puts a file behind all others that wait to be written back.
    pub(crate) fn requeue(&mut self, file: InodeNumber) {
        let Some(data) = self.files.get_mut(&file) else { return };
        if let Some(number) = data.queued.take() {
            self.queue.remove(&(number, file));
        }
        self.settle(file);
    }
}

/// A content of a block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageId {
    file: InodeNumber,
    at: u32,
    version: u64,
}

/// Blocks to be reserved for so many blocks of one file that have no place yet: with the worst map that they can make.
pub(crate) fn reservation(pages: u64, block_bytes: usize) -> u64 {
    // Entries of a node of an extent tree (12 bytes each, after a header and before a checksum); after a split half are used.
    // A pointer block of an indirect map holds more, but has one for each place.
    let per_leaf = ((block_bytes as u64 - 16) / 12 / 2).max(1);
    match pages {
        0 => 0,
        pages => pages + pages.div_ceil(per_leaf) + NODES_SPARE,
    }
}
