//! The raw operations that a store's `LocalCopy` orders: their way to the ring and back.
//!
//! Owns what operations in flight hold of data, and the raw operations that wait for room. Decides nothing about
//! checksums, hot extents or order; it only computes the sums of what was read.

use std::collections::VecDeque;
use std::rc::Rc;

use block_device::AlignedBuf;
use bytes::Bytes;
use proto::peer::message::WriteKind;
use proto::{BLOCK_BYTES, BlockRange};
use replication::local_copy::{CopyOp, CopyResult, MetaPage, Order, PAGE_BYTES, Page, RawId, RawOp, RawResult};
use rustc_hash::FxHashMap;

use super::areas::{extent_area, page_offset};
use super::layout::Area;
use super::ring::{Completion, Request};
use super::store::Inner;
use super::{DiskDone, DiskError, erase};
use crate::fault::point;

/// Raw operations of one store that are in the ring; more wait here, and are bounded by the operations they belong to.
pub(super) const RAW_IN_RING_MAX: usize = 8192;
/// Bytes that reads in flight hold whose data nobody keeps (they are read for their checksums); at least one goes on.
const PASSING_BYTES_MAX: u64 = 32 << 20;
/// Checksum pages whose space is reserved together, so that they do not scatter.
const RESERVED_SUM_PAGES: u64 = 64;

/// Tag of the store's own operation; callers number theirs from below.
const SETTLE_TAG: u64 = u64::MAX;

/// Called from a completion with the end of a raw operation.
pub(super) type Ended = Box<dyn FnOnce(Result<(), DiskError>)>;

/// What an operation in flight holds.
pub(super) enum Data {
    /// What was read so far of these blocks.
    Read { range: BlockRange, buf: Option<AlignedBuf> },
    /// What is to be written.
    Given(Bytes),
}

/// Operations in flight, and raw ones that wait.
#[derive(Default)]
pub(super) struct Work {
    operations: FxHashMap<u64, Data>,
    in_ring: usize,
    waiting: VecDeque<(RawId, RawOp)>,
    passing_bytes: u64,
    waiting_to_pass: VecDeque<(RawId, BlockRange)>,
    /// The newest failure of the medium: what an operation that ends as failed is told.
    error: Option<DiskError>,
    /// Kept for its allocation.
    orders: Vec<Order>,
    settling: Settling,
}

/// Whether sums that were learnt are being written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Settling {
    #[default]
    No,
    Now,
    /// It failed.
    Refused,
}

impl Work {
    /// True while raw operations are under way.
    pub(super) fn is_busy(&self) -> bool {
        self.in_ring > 0
    }

    /// Puts what was read of `range` in its place among what operation `tag` holds.
    fn keep(&mut self, tag: u64, range: BlockRange, part: AlignedBuf) {
        let Some(Data::Read { range: whole, buf }) = self.operations.get_mut(&tag) else {
            return tracing::error!(tag, "a defect: data was read for an operation that holds none");
        };
        if *whole == range {
            *buf = Some(part);
            return;
        }
        if range.start < whole.start || range.end() > whole.end() {
            return tracing::error!(tag, "a defect: blocks were read that the operation did not ask for");
        }
        let whole_buf = buf.get_or_insert_with(|| AlignedBuf::zeroed(whole.length_bytes() as usize));
        let at = ((range.start - whole.start) * BLOCK_BYTES) as usize;
        whole_buf[at..at + part.len()].copy_from_slice(&part);
    }

    /// The part of what operation `tag` was given that begins `first` blocks from its start.
    fn given(&self, tag: u64, first: u64, blocks: u64) -> Option<Bytes> {
        let Some(Data::Given(bytes)) = self.operations.get(&tag) else { return None };
        let from = usize::try_from(first.checked_mul(BLOCK_BYTES)?).ok()?;
        let to = from.checked_add(usize::try_from(blocks.checked_mul(BLOCK_BYTES)?).ok()?)?;
        (to <= bytes.len()).then(|| bytes.slice(from..to))
    }
}

impl Inner {
    /// Begins a checked operation of the copy.
    pub(super) fn begin(self: &Rc<Self>, tag: u64, op: CopyOp, data: Option<Data>) {
        let mut orders = {
            let mut work = self.work.borrow_mut();
            if let Some(data) = data {
                work.operations.insert(tag, data);
            }
            std::mem::take(&mut work.orders)
        };
        self.copy.borrow_mut().start(tag, op, &mut orders);
        self.carry_out(orders, false);
    }

    /// A raw operation has ended. Called from completions only.
    fn raw_ended(self: &Rc<Self>, raw: RawId, result: RawResult) {
        let mut orders = {
            let mut work = self.work.borrow_mut();
            work.in_ring -= 1;
            std::mem::take(&mut work.orders)
        };
        self.copy.borrow_mut().raw_done(raw, result, &mut orders);
        self.carry_out(orders, true);
        self.settle();
        self.start_waiting();
        self.tell_if_idle();
    }

    /// Has sums that were learnt anew written, some extents at a time, as soon as there are any: until then a restart
    /// forgets them.
    fn settle(self: &Rc<Self>) {
        if self.work.borrow().settling == Settling::No && self.copy.borrow().is_unsettled() {
            self.work.borrow_mut().settling = Settling::Now;
            self.begin(SETTLE_TAG, CopyOp::Settle, None);
        }
    }

    /// Nobody waits for it. Where there is no space it is not tried again; a failed medium fails what comes next as well.
    fn settled(&self, result: &CopyResult) {
        let ok = matches!(result, CopyResult::Ok { .. });
        self.work.borrow_mut().settling = if ok { Settling::No } else { Settling::Refused };
    }

    /// Carries out what the copy ordered; the sink is told at once only from a completion.
    fn carry_out(self: &Rc<Self>, mut orders: Vec<Order>, from_completion: bool) {
        for order in orders.drain(..) {
            match order {
                Order::Raw { raw, op } => self.start_raw(raw, op),
                Order::Done { tag: SETTLE_TAG, result } => self.settled(&result),
                Order::Done { tag, result } => {
                    let done = self.done(tag, result);
                    if from_completion { self.finish(done) } else { self.finish_later(done) }
                }
            }
        }
        let mut work = self.work.borrow_mut();
        if orders.capacity() > work.orders.capacity() {
            work.orders = orders;
        }
    }

    /// Words the end of an operation for its caller.
    fn done(&self, tag: u64, result: CopyResult) -> DiskDone {
        let (held, error) = {
            let mut work = self.work.borrow_mut();
            (work.operations.remove(&tag), work.error.clone())
        };
        let read = match held {
            Some(Data::Read { range, buf: Some(buf) }) => Some((range, buf)),
            _ => None,
        };
        match (result, read) {
            (CopyResult::Ok { sums }, read) => {
                DiskDone { tag, result: Ok(()), data: read.map(|(_, buf)| buf.freeze()), sums }
            }
            (CopyResult::Corrupt { bad, sums }, read) => {
                let data = read.map(|(_, buf)| buf.freeze());
                DiskDone { tag, result: Err(DiskError::Corrupt(bad)), data, sums }
            }
            (CopyResult::NoSpace, _) => DiskDone::bare(tag, Err(DiskError::OutOfSpace)),
            (CopyResult::Failed, _) => DiskDone::bare(tag, Err(error.unwrap_or(DiskError::Io(libc::EIO)))),
        }
    }

    /// Starts a raw operation, or has it wait for its turn.
    fn start_raw(self: &Rc<Self>, raw: RawId, op: RawOp) {
        {
            let mut work = self.work.borrow_mut();
            if work.in_ring >= RAW_IN_RING_MAX {
                return work.waiting.push_back((raw, op));
            }
            if let RawOp::ReadData { tag: None, range } = op {
                let bytes = range.length_bytes();
                if work.passing_bytes > 0 && work.passing_bytes + bytes > PASSING_BYTES_MAX {
                    return work.waiting_to_pass.push_back((raw, range));
                }
                work.passing_bytes += bytes;
            }
            work.in_ring += 1;
        }
        self.issue(raw, op);
    }

    fn start_waiting(self: &Rc<Self>) {
        loop {
            let next = {
                let mut work = self.work.borrow_mut();
                if work.in_ring >= RAW_IN_RING_MAX {
                    return;
                }
                let passing = work.passing_bytes;
                let passes = |range: &BlockRange| passing == 0 || passing + range.length_bytes() <= PASSING_BYTES_MAX;
                match work.waiting.pop_front() {
                    Some(next) => next,
                    None if work.waiting_to_pass.front().is_some_and(|(_, range)| passes(range)) => {
                        let Some((raw, range)) = work.waiting_to_pass.pop_front() else { return };
                        (raw, RawOp::ReadData { tag: None, range })
                    }
                    None => return,
                }
            };
            self.start_raw(next.0, next.1);
        }
    }

    fn issue(self: &Rc<Self>, raw: RawId, op: RawOp) {
        match op {
            RawOp::ReadData { tag, range } => self.read_data(raw, tag, range),
            RawOp::WriteData { tag, first, range, kind: WriteKind::Data, fua } => {
                self.write_data(raw, tag, first, range, fua);
            }
            RawOp::WriteData { fua: true, .. } | RawOp::WritePage { durable: true, .. } if self.flush_has_failed() => {
                self.refuse_later(raw);
            }
            RawOp::WriteData { range, kind, fua, .. } => erase::start(self, range, kind, fua, self.ended(raw)),
            RawOp::ReadPage { page } => self.read_page(raw, page),
            RawOp::WritePage { page, bytes, durable } => self.write_page(raw, page, &bytes, durable),
            RawOp::Flush => self.flush(self.ended(raw)),
            RawOp::Reserve { extent } => self.reserve(raw, extent),
        }
    }

    /// Ends a raw operation that has no other result than how it went.
    fn ended(self: &Rc<Self>, raw: RawId) -> Ended {
        let inner = Rc::clone(self);
        Box::new(move |result| {
            let result = inner.plain(result);
            inner.raw_ended(raw, result);
        })
    }

    fn plain(&self, result: Result<(), DiskError>) -> RawResult {
        match result {
            Ok(()) => RawResult::Done,
            Err(error) => self.failure(error),
        }
    }

    fn failure(&self, error: DiskError) -> RawResult {
        if error == DiskError::OutOfSpace {
            return RawResult::NoSpace;
        }
        self.work.borrow_mut().error = Some(error);
        RawResult::Failed
    }

    /// Fails a raw operation because a flush has failed, on the completion task.
    fn refuse_later(self: &Rc<Self>, raw: RawId) {
        let inner = Rc::clone(self);
        self.ring.defer(Box::new(move || {
            let error = inner.flush_failure().unwrap_or(DiskError::Io(libc::EIO));
            let result = inner.failure(error);
            inner.raw_ended(raw, result);
        }));
    }

    /// Fails a raw operation that cannot be: a defect of ours, which must not pass for a failing disk.
    fn defect_later(self: &Rc<Self>, raw: RawId, what: &'static str) {
        tracing::error!(path = %self.path().display(), "a defect of this program: {what}");
        let inner = Rc::clone(self);
        self.ring.defer(Box::new(move || {
            let result = inner.failure(DiskError::Misuse(libc::EFAULT));
            inner.raw_ended(raw, result);
        }));
    }

    fn read_data(self: &Rc<Self>, raw: RawId, tag: Option<u64>, range: BlockRange) {
        let inner = Rc::clone(self);
        let done = Box::new(move |result: Result<Option<AlignedBuf>, DiskError>| {
            let result = match result {
                Ok(buf) => {
                    let buf = buf.unwrap_or_else(|| AlignedBuf::zeroed(0));
                    let sums = inner.salt.sums(range, &buf);
                    if let Some(tag) = tag {
                        inner.work.borrow_mut().keep(tag, range, buf);
                    }
                    RawResult::Sums(sums)
                }
                Err(error) => inner.failure(error),
            };
            if tag.is_none() {
                inner.work.borrow_mut().passing_bytes -= range.length_bytes();
            }
            inner.raw_ended(raw, result);
        });
        self.read_at(self.offset(range), range.length_bytes(), done);
    }

    fn write_data(self: &Rc<Self>, raw: RawId, tag: u64, first: u64, range: BlockRange, fua: bool) {
        if fua && self.flush_has_failed() {
            return self.refuse_later(raw);
        }
        let given = self.work.borrow().given(tag, first, range.count);
        let Some(data) = given else { return self.defect_later(raw, "data to be written is not held") };
        self.write_at(raw, self.offset(range), data, fua, ("data.write.before", "data.write.after"));
    }

    /// Writes bytes that O_DIRECT can take.
    fn write_at(
        self: &Rc<Self>,
        raw: RawId,
        offset: u64,
        data: Bytes,
        durable: bool,
        (before, after): (&'static str, &'static str),
    ) {
        let inner = Rc::clone(self);
        point(before);
        let done = Box::new(move |result: Result<_, DiskError>| {
            point(after);
            let result = result.map(|_| ());
            // A write that found no space says nothing about what was written before it.
            let judged = durable && result != Err(DiskError::OutOfSpace);
            let result = if judged { inner.believe_flush(result) } else { result };
            let result = inner.plain(result);
            inner.raw_ended(raw, result);
        });
        self.ring.request(&self.file, Request::Write { offset, data, durable }, done);
    }

    fn read_page(self: &Rc<Self>, raw: RawId, page: MetaPage) {
        let Some(offset) = page_offset(&self.layout, page) else {
            return self.defect_later(raw, "a page to be read lies outside its area");
        };
        let inner = Rc::clone(self);
        let done = Box::new(move |result: Result<Option<AlignedBuf>, DiskError>| {
            let page = result.map(|buf| {
                let mut page: Page = Box::new([0; PAGE_BYTES]);
                page.copy_from_slice(&buf.unwrap_or_else(|| AlignedBuf::zeroed(PAGE_BYTES)));
                page
            });
            let result = match page {
                Ok(page) => RawResult::Page(page),
                Err(error) => inner.failure(error),
            };
            inner.raw_ended(raw, result);
        });
        self.read_at(offset, PAGE_BYTES as u64, done);
    }

    fn write_page(self: &Rc<Self>, raw: RawId, page: MetaPage, bytes: &Page, durable: bool) {
        let Some(offset) = page_offset(&self.layout, page) else {
            return self.defect_later(raw, "a page to be written lies outside its area");
        };
        let points = match page {
            MetaPage::Log(_) => ("log-page.write.before", "log-page.write.after"),
            MetaPage::Index { .. } => ("index-page.write.before", "index-page.write.after"),
            MetaPage::Sums { .. } => ("sums-page.write.before", "sums-page.write.after"),
            MetaPage::Bitmap { .. } => ("bitmap-page.write.before", "bitmap-page.write.after"),
        };
        self.write_at(raw, offset, AlignedBuf::copy_of(&bytes[..]).freeze(), durable, points);
    }

    fn read_at(&self, offset: u64, length: u64, done: Completion) {
        // A read that ends well has overwritten all of it.
        let buf = AlignedBuf::to_overwrite(length as usize);
        self.ring.request(&self.file, Request::Read { offset, buf }, done);
    }

    /// Reserves space for an extent's data and for its checksum page. A device's space is its own.
    fn reserve(self: &Rc<Self>, raw: RawId, extent: u64) {
        let Some(data) = extent_area(&self.layout, extent) else {
            return self.defect_later(raw, "an extent to be reserved lies outside the volume");
        };
        if self.is_device {
            let inner = Rc::clone(self);
            return self.ring.defer(Box::new(move || inner.raw_ended(raw, RawResult::Done)));
        }
        let inner = Rc::clone(self);
        let first = extent - extent % RESERVED_SUM_PAGES;
        let offset = self.layout.checksums.offset + first * BLOCK_BYTES;
        let left = self.layout.checksums.length.saturating_sub(first * BLOCK_BYTES);
        let pages = Area { offset, length: left.min(RESERVED_SUM_PAGES * BLOCK_BYTES) };
        let ended = self.ended(raw);
        self.allocate(
            data,
            Box::new(move |result| match result {
                Ok(()) => inner.allocate(pages, ended),
                failed => ended(failed),
            }),
        );
    }

    /// Has the file system set space aside where there is none; where it cannot, that is all there is to it.
    fn allocate(self: &Rc<Self>, area: Area, ended: Ended) {
        let request = Request::Fallocate { mode: libc::FALLOC_FL_KEEP_SIZE, offset: area.offset, length: area.length };
        let done = Box::new(move |result: Result<_, DiskError>| {
            ended(match result {
                Err(DiskError::Io(libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(()),
                other => other.map(|_| ()),
            });
        });
        self.ring.request(&self.file, request, done);
    }
}
