//! An open volume store: its lock, its superblock, and the way of each operation to the ring and back.
//!
//! Operations run in parallel and in any order. A dropped store tells its sink nothing more; its file, and with it the
//! lock, stays open until the kernel has ended what is in flight.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_device::{AlignedBuf, buffer::ALIGNMENT_BYTES};
use bytes::Bytes;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use proto::peer::message::WriteKind;
use proto::{BLOCK_BYTES, BlockRange, Boot};
use tokio::sync::{Mutex, Notify};

use super::backing::{Access, Backing, decode_slot, found, io_at, judge, refused};
use super::layout::SLOT_OFFSETS;
use super::ring::{Request, Ring};
use super::superblock::{self, Chosen, SLOT_BYTES, Superblock};
use super::{DiskDone, DiskError, DiskOp, DiskSink, FoundStore, StoreError, batch, erase};
use crate::fault::point;

/// Operations of one store at a time; past that they end with EBUSY, undone.
pub const OPERATIONS_MAX: usize = 16_384;
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
    found: FoundStore,
    is_device: bool,
    /// `None` once the store is dropped.
    sink: RefCell<Option<DiskSink>>,
    in_flight: Cell<usize>,
    idle: Notify,
    /// Why no later flush can be believed.
    flush_failed: RefCell<Option<DiskError>>,
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
    ) -> Result<Store, StoreError> {
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
        let now = Superblock { generation: before.generation + 1, boot, clean: false, suspect, ..before.clone() };
        // The slot that does not count goes first: if it was damaged, this repairs it before the good one is touched.
        write_superblock(&ring, &file, &now, 1 - slot).await.map_err(|e| io_at(path)(e.into()))?;
        Ok(Store {
            inner: Rc::new(Inner {
                ring,
                file,
                found: FoundStore { suspect, ..found(path, &before) },
                is_device,
                sink: RefCell::new(Some(sink)),
                in_flight: Cell::new(0),
                idle: Notify::new(),
                flush_failed: RefCell::new(None),
                superblock: Mutex::new(now),
            }),
        })
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
        if let Err(errno) = checked {
            return inner.finish_later(tag, Err(DiskError::Io(errno)));
        }
        match op {
            DiskOp::Read { range } => inner.read(tag, range),
            DiskOp::Write { range, kind: WriteKind::Data, fua, data } => {
                inner.write(tag, range, fua, data.unwrap_or_default());
            }
            DiskOp::Write { range, kind, fua, .. } => erase::start(inner, tag, range, kind, fua),
            DiskOp::Batch { groups, data } => batch::start(inner, tag, groups, data),
            DiskOp::Flush => {
                let ending = Rc::clone(inner);
                inner.flush(Box::new(move |result| ending.finish(tag, result.map(|()| None))));
            }
            DiskOp::ActivityLog { .. } => inner.finish_later(tag, Ok(None)),
            DiskOp::PersistState { last_in_sync, suspect } => {
                let inner = Rc::clone(inner);
                tokio::task::spawn_local(async move {
                    let result = inner
                        .change_superblock(|s| {
                            s.last_in_sync = last_in_sync;
                            s.suspect = suspect;
                            s.failed &= suspect;
                        })
                        .await;
                    inner.finish(tag, result.map(|()| None));
                });
            }
        }
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
        inner.check_range(range).map_err(DiskError::Io)?;
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
        while inner.in_flight.get() > 0 {
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

    /// Ends an operation: tells the sink.
    pub(super) fn finish(&self, tag: u64, result: Result<Option<Bytes>, DiskError>) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            self.idle.notify_one();
        }
        let sink = self.sink.borrow().clone();
        if let Some(sink) = sink {
            sink(DiskDone { tag, result });
        }
    }

    pub(super) fn finish_later(self: &Rc<Self>, tag: u64, result: Result<Option<Bytes>, DiskError>) {
        let inner = Rc::clone(self);
        self.ring.defer(Box::new(move || inner.finish(tag, result)));
    }

    /// fdatasync. A failure is remembered: the kernel drops what it could not write and reports success next time.
    pub(super) fn flush(self: &Rc<Self>, done: Box<dyn FnOnce(Result<(), DiskError>)>) {
        let failed = self.flush_failed.borrow().clone();
        if let Some(error) = failed {
            return self.ring.defer(Box::new(move || done(Err(error))));
        }
        let inner = Rc::clone(self);
        point("data.flush.before");
        let done = Box::new(move |result: Result<_, DiskError>| {
            point("data.flush.after");
            done(inner.believe_flush(result.map(|_| ())));
        });
        self.ring.request(&self.file, Request::Flush, done);
    }

    /// Remembers a failed flush; a flush that ends after one that failed is not believed either.
    fn believe_flush(&self, result: Result<(), DiskError>) -> Result<(), DiskError> {
        let mut failed = self.flush_failed.borrow_mut();
        if let Err(error) = result {
            failed.get_or_insert(error);
        }
        failed.clone().map_or(Ok(()), Err)
    }

    /// Writes bytes whose range was checked. Data that O_DIRECT cannot take is copied.
    pub(super) fn write_at(
        self: &Rc<Self>,
        offset: u64,
        data: Bytes,
        durable: bool,
        done: Box<dyn FnOnce(Result<(), DiskError>)>,
    ) {
        let aligned = data.as_ptr().addr().is_multiple_of(ALIGNMENT_BYTES);
        let data = if aligned { data } else { AlignedBuf::copy_of(&data).freeze() };
        point("data.write.before");
        let done = Box::new(move |result: Result<_, DiskError>| {
            point("data.write.after");
            done(result.map(|_| ()));
        });
        self.ring.request(&self.file, Request::Write { offset, data, durable }, done);
    }

    fn read(self: &Rc<Self>, tag: u64, range: BlockRange) {
        if range.count == 0 {
            return self.finish_later(tag, Ok(Some(Bytes::new())));
        }
        let buf = AlignedBuf::zeroed(range.length_bytes() as usize);
        let inner = Rc::clone(self);
        let done = Box::new(move |result: Result<Option<AlignedBuf>, DiskError>| {
            inner.finish(tag, result.map(|buf| buf.map(AlignedBuf::freeze)));
        });
        self.ring.request(&self.file, Request::Read { offset: self.offset(range), buf }, done);
    }

    fn write(self: &Rc<Self>, tag: u64, range: BlockRange, fua: bool, data: Bytes) {
        let failed = self.flush_failed.borrow().clone();
        match failed {
            Some(error) if fua => return self.finish_later(tag, Err(error)),
            _ if data.is_empty() => return self.finish_later(tag, Ok(None)),
            _ => {}
        }
        let inner = Rc::clone(self);
        let done = Box::new(move |result| {
            // A write that found no space says nothing about what was written before it.
            let judged = fua && result != Err(DiskError::OutOfSpace);
            let result = if judged { inner.believe_flush(result) } else { result };
            inner.finish(tag, result.map(|()| None));
        });
        self.write_at(self.offset(range), data, fua, done);
    }

    /// Fails with an errno unless the operation fits the store.
    fn check(&self, op: &DiskOp) -> Result<(), i32> {
        match op {
            DiskOp::Read { range } => self.check_range(*range),
            DiskOp::Write { range, kind, data, .. } => {
                self.check_range(*range)?;
                let length = data.as_ref().map_or(0, Bytes::len) as u64;
                let fits = *kind != WriteKind::Data || length == range.length_bytes();
                if fits { Ok(()) } else { Err(libc::EINVAL) }
            }
            DiskOp::Batch { groups, data } => {
                let mut bytes = 0u64;
                for range in groups.iter().flatten() {
                    self.check_range(*range)?;
                    bytes = bytes.saturating_add(range.length_bytes());
                }
                if bytes == data.len() as u64 { Ok(()) } else { Err(libc::EINVAL) }
            }
            DiskOp::Flush | DiskOp::ActivityLog { .. } | DiskOp::PersistState { .. } => Ok(()),
        }
    }

    fn check_range(&self, range: BlockRange) -> Result<(), i32> {
        match range.start.checked_add(range.count) {
            Some(end) if end <= self.found.size_bytes / BLOCK_BYTES => Ok(()),
            _ => Err(libc::EINVAL),
        }
    }

    /// Writes a changed superblock to both slots, unless a flush has failed.
    async fn change_superblock(&self, change: impl FnOnce(&mut Superblock)) -> Result<(), DiskError> {
        let failed = self.flush_failed.borrow().clone();
        match failed {
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
