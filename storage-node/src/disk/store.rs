//! An open volume store: its lock, its superblock, and the way of each operation into its copy and back.
//!
//! What an operation does to the areas of the store is decided by its `LocalCopy`, and carried out by `raw`. Operations
//! run in parallel and in any order. A dropped store tells its sink nothing more; its file, and with it the lock, stays
//! open until the kernel has ended what is in flight.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_device::{AlignedBuf, buffer::ALIGNMENT_BYTES};
use bytes::Bytes;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use proto::checksum::Salt;
use proto::peer::message::WriteKind;
use proto::{BLOCK_BYTES, BlockRange, Boot, EXTENT_BYTES};
use replication::local_copy::{Areas, CopyOp, Counters, Geometry, Hot, LocalCopy, MetaPage, Page};
use replication::{PastScrubs, ScrubReport};
use tokio::sync::{Mutex, Notify};

use super::areas;
use super::backing::{Access, Backing, decode_slot, found, io_at, judge, refused};
use super::layout::{Layout, SLOT_OFFSETS};
use super::raw::{Data, Ended, Work};
use super::ring::{Request, Ring};
use super::scrubs::{Scrubs, unix_micros};
use super::superblock::{self, Chosen, SLOT_BYTES, Superblock};
use super::{DiskDone, DiskError, DiskOp, DiskSink, FoundStore, OpenedStore, StoreError};
use crate::fault::point;

/// Operations of one store at a time; past that they end with EBUSY, undone.
pub const OPERATIONS_MAX: usize = 16_384;
/// Checksum pages of cold extents that one store keeps in memory (256 MiB, enough for 256 GiB).
const CHECKSUM_PAGES_CACHED_MAX: u64 = 65_536;
/// Runs that one `allocation` tells apart; what follows them counts as allocated.
const ALLOCATION_RUNS_MAX: usize = 65_536;
/// Between two looks at a lock that another process holds.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// An open store. Operations run in parallel; the caller orders what must be ordered.
pub struct Store {
    inner: Rc<Inner>,
}

/// What operations in flight share with the store.
pub(super) struct Inner {
    pub(super) ring: Rc<Ring>,
    pub(super) file: Arc<File>,
    pub(super) layout: Layout,
    pub(super) is_device: bool,
    pub(super) salt: Salt,
    pub(super) copy: RefCell<LocalCopy>,
    pub(super) work: RefCell<Work>,
    found: FoundStore,
    /// `None` once the store is dropped.
    sink: RefCell<Option<DiskSink>>,
    in_flight: Cell<usize>,
    idle: Notify,
    /// Why no later flush can be believed.
    flush_failed: RefCell<Option<DiskError>>,
    /// What the superblock says, or will say, of scrubs.
    scrubs: Cell<Scrubs>,
    /// As last written; locked while being written, so that one write of it follows the other.
    superblock: Mutex<Superblock>,
}

impl Store {
    /// Locks (waits up to `lock_wait` for a former process's I/O to end) and opens it; durably records `boot` and
    /// not-clean. A store that was open when the box lost power (other boot, not clean) is reported `suspect`.
    pub async fn open(
        ring: Rc<Ring>,
        found_by_scan: &FoundStore,
        boot: Boot,
        lock_wait: Duration,
        sink: DiskSink,
    ) -> Result<OpenedStore, StoreError> {
        let path = &found_by_scan.path;
        let Backing { file, is_device, length, .. } = open_locked(found_by_scan, lock_wait).await?;
        let file = Arc::new(file);
        let slots = [read_slot(&ring, &file, 0).await, read_slot(&ring, &file, 1).await];
        let Chosen { superblock: before, slot } = judge(path, length, superblock::choose(slots))?;
        if (before.cluster, before.volume, before.disk_id)
            != (found_by_scan.cluster, found_by_scan.volume, found_by_scan.disk_id)
        {
            return Err(refused(path, "another store has taken this place since it was found; scan again"));
        }
        let lost_power = !before.clean && before.boot != boot;
        let suspect = before.suspect || before.failed || lost_power;
        let generation = before.generation + 1;
        let scrubs = before.scrubs.opened(unix_micros());
        let now = Superblock { generation, boot, clean: false, suspect, scrubs, ..before.clone() };
        // The slot that does not count goes first: if it was damaged, this repairs it before the good one is touched.
        write_superblock(&ring, &file, &now, 1 - slot).await.map_err(|e| io_at(path)(e.into()))?;
        let read = areas::Read::of(&ring, &file, &before.layout).await;
        let areas = Areas { log: &read.log, index: [&read.index[0], &read.index[1]] };
        let (mut copy, hot) = LocalCopy::open(geometry(&before), areas);
        if let Hot::All = hot {
            tracing::warn!(path = %path.display(), "the activity log is damaged: every extent counts as hot and is compared");
        }
        areas::mend(&ring, &file, &before.layout, copy.mend_log()).await.map_err(|e| io_at(path)(e.into()))?;
        let inner = Inner {
            ring,
            file,
            layout: before.layout,
            is_device,
            salt: Salt::of(before.volume),
            copy: RefCell::new(copy),
            work: RefCell::default(),
            found: FoundStore { suspect, ..found(path, &before) },
            sink: RefCell::new(Some(sink)),
            in_flight: Cell::new(0),
            idle: Notify::new(),
            flush_failed: RefCell::new(None),
            scrubs: Cell::new(scrubs),
            superblock: Mutex::new(now),
        };
        Ok(OpenedStore { store: Store { inner: Rc::new(inner) }, hot, bitmaps: read.bitmaps })
    }

    /// Its superblock as of opening: `clean` and `boot` as the former owner left them, `suspect` as judged by `open`.
    pub fn found(&self) -> &FoundStore {
        &self.inner.found
    }

    /// Starts an operation; its end comes to the sink, never from within this call. It reaches the kernel with the next
    /// [`Ring::submit`]. Once the runtime is gone that polled the ring, nothing is done and nothing ends.
    pub fn start(&self, tag: u64, op: DiskOp) {
        let inner = &self.inner;
        if inner.ring.has_ended() {
            return;
        }
        let checked = if inner.in_flight.get() >= OPERATIONS_MAX { Err(libc::EBUSY) } else { inner.check(&op) };
        inner.in_flight.set(inner.in_flight.get() + 1);
        let done_at_once = match checked {
            Ok(Todo::Some) => return inner.dispatch(tag, op),
            Ok(Todo::None) => DiskDone { data: Some(Bytes::new()), ..DiskDone::bare(tag, Ok(())) },
            Err(errno) => {
                let path = inner.path().display();
                tracing::error!(%path, errno, "a defect of this program: a disk operation does not fit its store");
                DiskDone::bare(tag, Err(DiskError::Misuse(errno)))
            }
        };
        inner.finish_later(done_at_once);
    }

    /// What was found and mended since the store was opened.
    pub fn counters(&self) -> Counters {
        self.inner.copy.borrow().counters()
    }

    /// Extents that are hot.
    pub fn hot_extents(&self) -> u64 {
        self.inner.copy.borrow().hot_extents()
    }

    /// What the copy remembers of scrubs, over restarts.
    pub fn past_scrubs(&self) -> PastScrubs {
        self.inner.scrubs.get().past(unix_micros())
    }

    /// The last scrub or verify that ended with this node as primary, and when: microseconds since 1970.
    pub fn last_scrub(&self) -> Option<(u64, ScrubReport)> {
        self.inner.scrubs.get().last
    }

    /// Has both superblocks say how far scrubs have come: one that has just ended, and the one in the background. Nobody
    /// learns of its end; where it fails, so does what comes next.
    pub fn record_scrubs(&self, ended: Option<ScrubReport>, under_way: Option<ScrubReport>) {
        let inner = Rc::clone(&self.inner);
        if inner.ring.has_ended() {
            return;
        }
        let scrubs = inner.scrubs.get().recorded(ended, under_way, unix_micros());
        inner.scrubs.set(scrubs);
        inner.in_flight.set(inner.in_flight.get() + 1);
        tokio::task::spawn_local(async move {
            if let Err(why) = inner.change_superblock(|s| s.scrubs = scrubs).await {
                tracing::warn!(path = %inner.path().display(), "how far the scrub has come is not recorded: {why:?}");
            }
            inner.in_flight.set(inner.in_flight.get() - 1);
            inner.tell_if_idle();
        });
    }

    /// Operations started and not ended.
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight.get()
    }

    /// Operations that may be started now.
    pub fn room(&self) -> usize {
        OPERATIONS_MAX.saturating_sub(self.in_flight())
    }

    /// Which parts of `range` are holes (`true`), in order, without gaps. A raw device has none. Space that was zeroed
    /// and kept may count as a hole: it reads as zeros as well.
    pub fn allocation(&self, range: BlockRange) -> Result<Vec<(BlockRange, bool)>, DiskError> {
        let inner = &self.inner;
        inner.check_range(range).map_err(DiskError::Misuse)?;
        if range.count == 0 {
            return Ok(Vec::new());
        }
        if inner.is_device {
            return Ok(vec![(range, false)]);
        }
        let base = inner.found.data_offset;
        let seek = |block: u64, whence| match lseek(&*inner.file, (base + block * BLOCK_BYTES) as i64, whence) {
            Ok(at) => Ok(Some(at as u64 - base)),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(DiskError::from_errno(errno as i32)),
        };
        let mut runs = Vec::new();
        let mut at = range.start;
        while at < range.end() {
            // A block that holds any data is data: its hole begins after it and ends before it.
            let data = seek(at, Whence::SeekData)?.map_or(range.end(), |b| (b / BLOCK_BYTES).clamp(at, range.end()));
            if data > at {
                runs.push((BlockRange::new(at, data - at), true));
            }
            if data == range.end() {
                break;
            }
            let hole = if runs.len() >= ALLOCATION_RUNS_MAX { None } else { seek(data, Whence::SeekHole)? };
            let hole = hole.map_or(range.end(), |b| b.div_ceil(BLOCK_BYTES).clamp(data + 1, range.end()));
            match runs.last_mut() {
                Some((last, false)) => last.count += hole - data,
                _ => runs.push((BlockRange::new(data, hole - data), false)),
            }
            at = hole;
        }
        Ok(runs)
    }

    /// Records, as far as the disk still takes it, that this copy failed; from then on it is found `suspect`.
    pub async fn mark_failed(&self) -> Result<(), StoreError> {
        let change = |s: &mut Superblock| {
            s.failed = true;
            s.suspect = true;
        };
        // Past the latch of a failed flush: nothing but this mark depends on it.
        self.inner.write_changed(change).await.map_err(|e| io_at(&self.inner.found.path)(e.into()))
    }

    /// Waits for operations, and with `clean` flushes and records an orderly stop.
    pub async fn close(self, clean: bool) -> Result<(), StoreError> {
        let inner = Rc::clone(&self.inner);
        inner.ring.submit();
        while inner.is_busy() {
            inner.idle.notified().await;
        }
        if !clean {
            return Ok(());
        }
        let io_error = |e: DiskError| io_at(&inner.found.path)(e.into());
        let (send, receive) = tokio::sync::oneshot::channel();
        inner.flush(Box::new(move |result| drop(send.send(result))));
        inner.ring.submit();
        receive.await.unwrap_or(Err(DiskError::Io(libc::ECANCELED))).map_err(io_error)?;
        inner.change_superblock(|s| s.clean = true).await.map_err(io_error)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Taken out before it is dropped: the sink may own what owns this store.
        let sink = self.inner.sink.borrow_mut().take();
        drop(sink);
    }
}

impl Inner {
    /// Byte offset of a block of the volume in the file.
    pub(super) fn offset(&self, range: BlockRange) -> u64 {
        self.found.data_offset + range.offset_bytes()
    }

    /// Where the store lies.
    pub(super) fn path(&self) -> &Path {
        &self.found.path
    }

    /// Ends an operation: tells the sink.
    pub(super) fn finish(&self, done: DiskDone) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.tell_if_idle();
        let sink = self.sink.borrow().clone();
        if let Some(sink) = sink {
            sink(done);
        }
    }

    pub(super) fn finish_later(self: &Rc<Self>, done: DiskDone) {
        let inner = Rc::clone(self);
        self.ring.defer(Box::new(move || inner.finish(done)));
    }

    /// Wakes who waits for the end of everything.
    pub(super) fn tell_if_idle(&self) {
        if !self.is_busy() {
            self.idle.notify_one();
        }
    }

    fn is_busy(&self) -> bool {
        self.in_flight.get() > 0 || self.work.borrow().is_busy()
    }

    /// fdatasync. A failure is remembered: the kernel drops what it could not write and reports success next time.
    pub(super) fn flush(self: &Rc<Self>, ended: Ended) {
        if let Some(error) = self.flush_failure() {
            return self.ring.defer(Box::new(move || ended(Err(error))));
        }
        let inner = Rc::clone(self);
        point("data.flush.before");
        let done = Box::new(move |result: Result<_, DiskError>| {
            point("data.flush.after");
            ended(inner.believe_flush(result.map(|_| ())));
        });
        self.ring.request(&self.file, Request::Flush, done);
    }

    /// Why no flush or durable write can be believed any more.
    pub(super) fn flush_failure(&self) -> Option<DiskError> {
        self.flush_failed.borrow().clone()
    }

    pub(super) fn flush_has_failed(&self) -> bool {
        self.flush_failed.borrow().is_some()
    }

    /// Remembers a failed flush; a flush that ends after one that failed is not believed either.
    pub(super) fn believe_flush(&self, result: Result<(), DiskError>) -> Result<(), DiskError> {
        let mut failed = self.flush_failed.borrow_mut();
        if let Err(error) = result {
            failed.get_or_insert(error);
        }
        failed.clone().map_or(Ok(()), Err)
    }

    /// Gives a checked operation to the copy.
    fn dispatch(self: &Rc<Self>, tag: u64, op: DiskOp) {
        match op {
            DiskOp::Read { range, check } => {
                self.begin(tag, CopyOp::Read { range, check }, Some(Data::Read { range, buf: None }));
            }
            DiskOp::Write { range, kind, fua, data, sums } => {
                let data = data.map(|data| Data::Given(aligned(data)));
                self.begin(tag, CopyOp::Write { range, kind, fua, sums }, data);
            }
            DiskOp::Batch { groups, data, sums } => {
                let groups = merged_groups(groups);
                match groups.is_empty() {
                    true => self.begin(tag, CopyOp::Flush, None),
                    false => self.begin(tag, CopyOp::Batch { groups, sums }, Some(Data::Given(aligned(data)))),
                }
            }
            DiskOp::Flush => self.begin(tag, CopyOp::Flush, None),
            DiskOp::Heat { extents } => self.begin(tag, CopyOp::Heat { extents }, None),
            DiskOp::Cool { extents, bitmaps: pages } if extents.is_empty() => {
                self.begin(tag, CopyOp::Bitmap { pages }, None);
            }
            DiskOp::Cool { extents, bitmaps } => self.begin(tag, CopyOp::Cool { extents, bitmaps }, None),
            DiskOp::Bitmap { pages } => self.begin(tag, CopyOp::Bitmap { pages }, None),
            DiskOp::Repair { range, data, sums } => {
                self.begin(tag, CopyOp::Repair { range, sums }, Some(Data::Given(aligned(data))));
            }
            DiskOp::Expect { range, sums } => self.begin(tag, CopyOp::Expect { range, sums }, None),
            DiskOp::PersistState { last_in_sync, suspect } => {
                let inner = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    let change = |s: &mut Superblock| {
                        s.last_in_sync = last_in_sync;
                        s.suspect = suspect;
                        s.failed &= suspect;
                    };
                    let result = inner.change_superblock(change).await;
                    inner.finish(DiskDone::bare(tag, result));
                });
            }
        }
    }

    /// Fails with an errno unless the operation fits the store; tells whether there is anything to do.
    fn check(&self, op: &DiskOp) -> Result<Todo, i32> {
        let some = |is_some: bool| if is_some { Todo::Some } else { Todo::None };
        match op {
            DiskOp::Read { range, .. } => self.check_range(*range).map(|()| some(range.count > 0)),
            DiskOp::Write { range, kind, data, sums, .. } => {
                self.check_range(*range)?;
                let (bytes, blocks) = (data.as_ref().map_or(0, Bytes::len) as u64, sums.len() as u64);
                let fits = match kind {
                    WriteKind::Data => bytes == range.length_bytes() && blocks == range.count,
                    WriteKind::Zeroes | WriteKind::Discard => data.is_none() && sums.is_empty(),
                };
                fits.then(|| some(range.count > 0)).ok_or(libc::EINVAL)
            }
            DiskOp::Batch { groups, data, sums } => {
                let mut blocks = 0u64;
                for range in groups.iter().flatten() {
                    self.check_range(*range)?;
                    blocks = blocks.saturating_add(range.count);
                }
                let fits = blocks.checked_mul(BLOCK_BYTES) == Some(data.len() as u64) && blocks == sums.len() as u64;
                fits.then_some(Todo::Some).ok_or(libc::EINVAL)
            }
            DiskOp::Repair { range, data, sums } => {
                self.check_range(*range)?;
                let fits = data.len() as u64 == range.length_bytes() && sums.len() as u64 == range.count;
                fits.then(|| some(range.count > 0)).ok_or(libc::EINVAL)
            }
            DiskOp::Expect { range, sums } => {
                self.check_range(*range)?;
                (sums.len() as u64 == range.count).then(|| some(range.count > 0)).ok_or(libc::EINVAL)
            }
            DiskOp::Heat { extents } => self.check_extents(extents).map(|()| some(!extents.is_empty())),
            DiskOp::Cool { extents, bitmaps } => {
                self.check_extents(extents)?;
                self.check_pages(bitmaps).map(|()| some(!extents.is_empty() || !bitmaps.is_empty()))
            }
            DiskOp::Bitmap { pages } => self.check_pages(pages).map(|()| some(!pages.is_empty())),
            DiskOp::Flush | DiskOp::PersistState { .. } => Ok(Todo::Some),
        }
    }

    fn check_extents(&self, extents: &[u64]) -> Result<(), i32> {
        let ascending = extents.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = extents.last().is_none_or(|last| *last < self.found.size_bytes.div_ceil(EXTENT_BYTES));
        if ascending && inside { Ok(()) } else { Err(libc::EINVAL) }
    }

    fn check_pages(&self, pages: &[(MetaPage, Page)]) -> Result<(), i32> {
        let is_bitmap = |page: MetaPage| matches!(page, MetaPage::Bitmap { .. });
        let fit = pages.iter().all(|(page, _)| is_bitmap(*page) && areas::page_offset(&self.layout, *page).is_some());
        if fit { Ok(()) } else { Err(libc::EINVAL) }
    }

    fn check_range(&self, range: BlockRange) -> Result<(), i32> {
        match range.start.checked_add(range.count) {
            Some(end) if end <= self.found.size_bytes / BLOCK_BYTES => Ok(()),
            _ => Err(libc::EINVAL),
        }
    }

    /// Writes a changed superblock to both slots, unless a flush has failed.
    async fn change_superblock(&self, change: impl FnOnce(&mut Superblock)) -> Result<(), DiskError> {
        match self.flush_failure() {
            Some(error) => Err(error),
            None => self.believe_flush(self.write_changed(change).await),
        }
    }

    async fn write_changed(&self, change: impl FnOnce(&mut Superblock)) -> Result<(), DiskError> {
        let mut superblock = self.superblock.lock().await;
        // Also after a failure, so that no two contents ever share a generation.
        superblock.generation += 1;
        let mut changed = superblock.clone();
        change(&mut changed);
        write_superblock(&self.ring, &self.file, &changed, 0).await?;
        *superblock = changed;
        Ok(())
    }
}

/// Whether an operation that fits has anything to do.
enum Todo {
    Some,
    None,
}

/// What the copy must know of its store.
fn geometry(superblock: &Superblock) -> Geometry {
    let extents = superblock.size_bytes.div_ceil(EXTENT_BYTES);
    Geometry {
        volume: superblock.volume,
        blocks: superblock.size_bytes / BLOCK_BYTES,
        log_pages: (superblock.layout.activity_log.length / BLOCK_BYTES) as u32,
        cached_pages_max: extents.min(CHECKSUM_PAGES_CACHED_MAX) as usize,
    }
}

/// Data as O_DIRECT can take it.
fn aligned(data: Bytes) -> Bytes {
    let fits = data.as_ptr().addr().is_multiple_of(ALIGNMENT_BYTES);
    if fits { data } else { AlignedBuf::copy_of(&data).freeze() }
}

/// The groups without what is empty; ranges that follow each other on disk as in the data become one.
fn merged_groups(groups: Vec<Vec<BlockRange>>) -> Vec<Vec<BlockRange>> {
    let merged = |group: Vec<BlockRange>| {
        let mut runs: Vec<BlockRange> = Vec::with_capacity(group.len());
        for range in group.into_iter().filter(|range| range.count > 0) {
            match runs.last_mut() {
                Some(last) if last.end() == range.start => last.count += range.count,
                _ => runs.push(range),
            }
        }
        runs
    };
    groups.into_iter().map(merged).filter(|group| !group.is_empty()).collect()
}

/// Opens the store's place and takes its lock.
async fn open_locked(store: &FoundStore, lock_wait: Duration) -> Result<Backing, StoreError> {
    let path = &store.path;
    let started = Instant::now();
    loop {
        let free = match Backing::open(path, Access::Write) {
            // A raw device that another process has open exclusively.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => None,
            Err(error) => return Err(io_at(path)(error)),
            Ok(backing) => match backing.try_lock() {
                // A file removed meanwhile is not the store any more.
                Ok(true) if backing.is_at_its_path().map_err(io_at(path))? => Some(backing),
                Ok(_) => None,
                Err(error) => return Err(io_at(path)(error)),
            },
        };
        match free {
            Some(backing) => return Ok(backing),
            None if started.elapsed() >= lock_wait => {
                return Err(refused(
                    path,
                    format!(
                        "the store is still in use after {} ms: another process holds it, or the I/O of a former one has \
                         not ended; stop that process, and look for a hanging disk",
                        lock_wait.as_millis()
                    ),
                ));
            }
            None => tokio::time::sleep(LOCK_PAUSE.min(lock_wait)).await,
        }
    }
}

async fn read_slot(ring: &Ring, file: &Arc<File>, slot: usize) -> Result<Superblock, superblock::SlotProblem> {
    let read = Request::Read { offset: SLOT_OFFSETS[slot], buf: AlignedBuf::zeroed(SLOT_BYTES) };
    match ring.run(file, read).await {
        Ok(buf) => decode_slot(buf.as_deref().unwrap_or_default()),
        Err(error) => Err(superblock::SlotProblem::Damaged(format!("it cannot be read ({error})"))),
    }
}

/// Writes both slots, durably, one after the other, `first` first: while one is being written the other is whole.
async fn write_superblock(
    ring: &Ring,
    file: &Arc<File>,
    superblock: &Superblock,
    first: usize,
) -> Result<(), DiskError> {
    let data = AlignedBuf::copy_of(&superblock.encode()).freeze();
    for slot in [first, 1 - first] {
        let write = Request::Write { offset: SLOT_OFFSETS[slot], data: data.clone(), durable: true };
        point("superblock.slot.before");
        ring.run(file, write).await?;
        point("superblock.slot.after");
    }
    Ok(())
}
