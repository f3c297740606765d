//! One io_uring of a shard: queues requests, submits them in batches, and calls each one's completion.
//!
//! Owns every buffer and file reference of a request from its start to its completion; nobody can free memory the
//! kernel still reads or writes, also not by dropping a store or the runtime. It knows nothing of volumes, ranges or
//! durability rules.
//!
//! At most [`IN_FLIGHT_MAX`] requests are with the kernel; up to [`WAITING_MAX`] more wait behind them in order.
//! The only place of this crate that uses `unsafe`.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use block_device::AlignedBuf;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::DiskError;

/// Requests that are with the kernel at one time.
pub(super) const IN_FLIGHT_MAX: usize = 256;
/// Requests that wait for a place; past that a request fails with EBUSY. Every operation of 16 full stores fits; batches
/// make themselves narrow long before.
pub(super) const WAITING_MAX: usize = 262_144;
/// Times a transfer is continued after EINTR or EAGAIN without progress. A flush never is.
const RETRIES_MAX: u32 = 8;
/// Bytes of one transfer; the kernel's own limit (MAX_RW_COUNT). A longer one is continued.
const TRANSFER_BYTES_MAX: usize = 0x7fff_f000;
/// How long a dropped ring waits for the kernel before it leaks what is in flight.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(10);
/// Pause before a refused submission (memory shortage in the kernel) is tried again.
const RESUBMIT_PAUSE: Duration = Duration::from_millis(1);

/// What to do with a file.
#[derive(Debug)]
pub(super) enum Request {
    /// Fill the buffer from byte `offset` on.
    Read { offset: u64, buf: AlignedBuf },
    /// Write `data` at byte `offset`; with `durable` it is on stable media at completion.
    Write { offset: u64, data: Bytes, durable: bool },
    /// fdatasync.
    Flush,
    /// fallocate with these `FALLOC_FL_*` bits.
    Fallocate { mode: i32, offset: u64, length: u64 },
}

/// Called once on the shard's thread with the buffer of a read. Not called when the runtime ends first.
pub(super) type Completion = Box<dyn FnOnce(Result<Option<AlignedBuf>, DiskError>)>;

/// One io_uring of a shard, polled by its tokio current-thread runtime. Lives inside a `LocalSet`.
pub struct Ring {
    core: Rc<Core>,
}

impl Ring {
    /// A ring with `entries` submission slots; starts its completion task with `spawn_local`.
    pub fn start(entries: u32) -> io::Result<Rc<Ring>> {
        let uring = build(entries)?;
        let in_flight_max = IN_FLIGHT_MAX.min(uring.params().cq_entries() as usize);
        let core = Rc::new(Core {
            state: RefCell::new(State {
                fd: uring.as_raw_fd(),
                uring,
                entries: Slab::new(),
                waiting: VecDeque::new(),
                in_flight: 0,
                in_flight_max,
                deferred: Vec::new(),
                closing: false,
                ended: false,
                resubmitting: false,
                complained: false,
                #[cfg(test)]
                faults: Vec::new(),
                #[cfg(test)]
                trace: Vec::new(),
            }),
            asked: Cell::new(false),
            sleeper: AtomicWaker::new(),
        });
        HERE.with(|here| here.replace(Rc::downgrade(&core)));
        // SAFETY: the descriptor is the ring's own; `RingFd` owns a reference to the core, which keeps the ring open and
        // its number unchanged, until the `AsyncFd` is dropped and has deregistered it.
        let poll = unsafe { AsyncFd::register_with_interest(RingFd(Rc::clone(&core)), Interest::READABLE) }?;
        tokio::task::spawn_local(complete(TaskGuard(Rc::clone(&core)), poll));
        Ok(Rc::new(Ring { core }))
    }

    /// Submits what was queued since the last call, in one system call. Called once per turn of the event loop.
    pub fn submit(&self) {
        self.core.submit();
    }

    /// To be called whenever the thread of a ring wakes: completions that have come with what woke it are taken in the
    /// coming round, and not after another look at the ring's descriptor.
    pub fn look() {
        if let Some(core) = HERE.with(|here| here.borrow().upgrade()) {
            core.look();
        }
    }

    /// Requests that can be queued now without meeting [`WAITING_MAX`].
    pub fn room(&self) -> usize {
        let state = self.core.state.borrow();
        WAITING_MAX.saturating_sub(state.waiting.len()) + state.in_flight_max.saturating_sub(state.in_flight)
    }

    /// Queues a request. `done` is never called from within this call.
    pub(super) fn request(&self, file: &Arc<File>, request: Request, done: Completion) {
        self.core.request(file, request, done);
    }

    /// Runs `call` on the completion task, soon.
    pub(super) fn defer(&self, call: Box<dyn FnOnce()>) {
        if self.has_ended() {
            return;
        }
        self.core.state.borrow_mut().deferred.push(call);
        self.core.ask();
    }

    /// True when the runtime that polled the ring is gone: nothing started now would ever end.
    pub(super) fn has_ended(&self) -> bool {
        self.core.state.borrow().ended
    }

    /// Does one request, submitting it at once.
    pub(super) async fn run(&self, file: &Arc<File>, request: Request) -> Result<Option<AlignedBuf>, DiskError> {
        let (send, receive) = oneshot::channel();
        self.request(file, request, Box::new(move |result| drop(send.send(result))));
        self.submit();
        receive.await.unwrap_or(Err(DiskError::Io(libc::ECANCELED)))
    }

    /// Makes the next completion of this kind of request behave differently.
    #[cfg(test)]
    pub(super) fn inject(&self, fault: Fault) {
        self.core.state.borrow_mut().faults.push(fault);
    }

    /// Kind and offset of the requests since the last call, in the order of their start.
    #[cfg(test)]
    pub(super) fn take_trace(&self) -> Vec<(&'static str, u64)> {
        mem::take(&mut self.core.state.borrow_mut().trace)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.core.state.borrow_mut().closing = true;
        self.core.ask();
    }
}

/// A disturbance for tests.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The next flush, or durable write, ends with this errno.
    Flush(i32),
    /// The next read or write ends with this errno.
    Transfer(i32),
    /// The next read or write is reported to have moved only so many bytes.
    Short(i32),
    /// The next fallocate ends with this errno.
    Fallocate(i32),
    /// The next read or write at this offset ends with this errno.
    TransferAt(u64, i32),
    /// The first bit of what the next read has read is the other one.
    Flip,
}

thread_local! {
    /// The newest ring that was started on this thread.
    static HERE: RefCell<Weak<Core>> = const { RefCell::new(Weak::new()) };
}

struct Core {
    state: RefCell<State>,
    /// The completion task is to take a turn.
    asked: Cell<bool>,
    sleeper: AtomicWaker,
}

struct State {
    fd: RawFd,
    uring: IoUring,
    /// Requests with the kernel and waiting ones, by the key that is their `user_data`.
    entries: Slab<Entry>,
    waiting: VecDeque<usize>,
    in_flight: usize,
    in_flight_max: usize,
    deferred: Vec<Box<dyn FnOnce()>>,
    /// No user is left: end when idle.
    closing: bool,
    /// The completion task is gone: nothing is started any more.
    ended: bool,
    resubmitting: bool,
    /// A refusal of the kernel was logged, and nothing was submitted since.
    complained: bool,
    #[cfg(test)]
    faults: Vec<Fault>,
    /// Kind and offset of every request so far.
    #[cfg(test)]
    trace: Vec<(&'static str, u64)>,
}

/// One request. Owns what the kernel reads and writes; its buffer never moves, since it lives on the heap.
struct Entry {
    file: Arc<File>,
    request: Request,
    /// Bytes moved by former, short transfers.
    moved: usize,
    retries: u32,
    done: Completion,
}

/// Tries the cheap modes first: the kernel may be older than they.
fn build(entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_cqsize(IN_FLIGHT_MAX.max(2 * entries as usize) as u32);
    let plain = builder.clone();
    let mut coop = builder.clone();
    coop.setup_coop_taskrun();
    builder.setup_coop_taskrun().setup_single_issuer().setup_submit_all();
    builder.build(entries).or_else(|_| coop.build(entries)).or_else(|_| plain.build(entries))
}

impl Core {
    fn request(&self, file: &Arc<File>, request: Request, done: Completion) {
        let mut state = self.state.borrow_mut();
        if state.ended {
            return;
        }
        if state.in_flight >= state.in_flight_max && state.waiting.len() >= WAITING_MAX {
            state.deferred.push(Box::new(move || done(Err(DiskError::Io(libc::EBUSY)))));
            self.ask();
            return;
        }
        #[cfg(test)]
        state.trace.push(match &request {
            Request::Read { offset, .. } => ("read", *offset),
            Request::Write { offset, .. } => ("write", *offset),
            Request::Flush => ("flush", 0),
            Request::Fallocate { offset, .. } => ("fallocate", *offset),
        });
        let key = state.entries.insert(Entry { file: Arc::clone(file), request, moved: 0, retries: 0, done });
        state.waiting.push_back(key);
        state.fill();
    }

    fn submit(&self) {
        let mut state = self.state.borrow_mut();
        state.fill();
        if state.push_to_kernel().is_ok() {
            // A fast disk is done before the call returns.
            if state.has_completions() {
                self.ask();
            }
            return;
        }
        // Nothing may be in flight whose end would bring another turn, so ask for one.
        if !state.resubmitting && !state.ended {
            state.resubmitting = true;
            self.ask();
        }
    }

    /// Has the completion task take a turn soon.
    fn ask(&self) {
        self.asked.set(true);
        self.sleeper.wake();
    }

    /// Ready when the completion task has something to do.
    fn poll_asked(&self, cx: &mut Context<'_>, poll: &AsyncFd<RingFd>) -> Poll<io::Result<()>> {
        if self.asked.replace(false) {
            return Poll::Ready(Ok(()));
        }
        self.sleeper.register(cx.waker());
        // Cleared before the queue is read, so that a completion that comes after it wakes again.
        ready!(poll.poll_read_ready(cx))?.clear_ready();
        Poll::Ready(Ok(()))
    }

    fn look(&self) {
        if self.state.try_borrow_mut().is_ok_and(|mut state| state.has_completions()) {
            self.ask();
        }
    }

    /// Takes what has completed, calls the completions, and submits what they and the queue brought.
    fn turn(&self) {
        let (ended, deferred) = {
            let mut state = self.state.borrow_mut();
            let ended = state.reap();
            (ended, mem::take(&mut state.deferred))
        };
        for (done, result) in ended {
            done(result);
        }
        for call in deferred {
            call();
        }
        self.submit();
    }

    /// Ends the ring: waits for the kernel to let go of every buffer, then drops all requests without calling their
    /// completions. After [`DRAIN_WAIT_MAX`] the remaining buffers are leaked: memory that the kernel may still write
    /// is never given back.
    fn shut_down(&self) {
        let (dropped, deferred) = {
            let mut state = self.state.borrow_mut();
            state.ended = true;
            state.drain();
            state.waiting.clear();
            (mem::take(&mut state.entries), mem::take(&mut state.deferred))
        };
        if self.state.borrow().in_flight > 0 {
            tracing::error!("the kernel did not complete disk operations in time; their buffers are leaked");
            Box::leak(Box::new(dropped));
        } else {
            drop(dropped);
        }
        drop(deferred);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl State {
    /// Moves waiting requests into the submission queue while there is room.
    fn fill(&mut self) {
        while self.in_flight < self.in_flight_max {
            let Some(key) = self.waiting.pop_front() else { return };
            if !self.queue(key) {
                self.waiting.push_front(key);
                return;
            }
            self.in_flight += 1;
        }
    }

    /// Puts one request into the submission queue, submitting first when that is full. False if the kernel refuses.
    fn queue(&mut self, key: usize) -> bool {
        if self.uring.submission().is_full() && self.push_to_kernel().is_err() {
            return false;
        }
        let sqe = self.entries[key].submission().user_data(key as u64);
        // SAFETY: the file and the memory that the SQE names belong to `entries[key]`, which is removed only when the
        // last completion of this key was reaped, or leaked; the buffer is on the heap and does not move with it.
        unsafe { self.uring.submission().push(&sqe) }.is_ok()
    }

    fn push_to_kernel(&mut self) -> io::Result<()> {
        while !self.uring.submission().is_empty() {
            match self.uring.submit() {
                Ok(0) => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) => self.complained = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let busy = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY));
                    if !busy && !self.complained {
                        self.complained = true;
                        tracing::error!(%error, "io_uring refuses submissions");
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn has_completions(&mut self) -> bool {
        self.in_flight > 0 && !self.uring.completion().is_empty()
    }

    /// Takes completions; continues short transfers; gives back what has ended.
    fn reap(&mut self) -> Vec<(Completion, Result<Option<AlignedBuf>, DiskError>)> {
        let completions: Vec<(usize, i32)> =
            self.uring.completion().map(|cqe| (cqe.user_data() as usize, cqe.result())).collect();
        let mut ended = Vec::with_capacity(completions.len());
        for (key, result) in completions {
            self.in_flight -= 1;
            #[cfg(test)]
            let result = self.disturb(key, result);
            match self.entries[key].judge(result) {
                None => self.waiting.push_front(key),
                Some(result) => {
                    let Entry { request, done, .. } = self.entries.remove(key);
                    let buf = match request {
                        Request::Read { buf, .. } => Some(buf),
                        _ => None,
                    };
                    ended.push((done, result.map(|()| buf)));
                }
            }
        }
        ended
    }

    /// Waits until nothing is in flight, or for [`DRAIN_WAIT_MAX`].
    fn drain(&mut self) {
        let started = Instant::now();
        let pause = types::Timespec::new().nsec(100_000_000);
        while self.in_flight > 0 && started.elapsed() < DRAIN_WAIT_MAX {
            let _ = self.uring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&pause));
            let reaped = self.uring.completion().count();
            self.in_flight -= reaped;
        }
    }

    #[cfg(test)]
    fn disturb(&mut self, key: usize, result: i32) -> i32 {
        let request = &self.entries[key].request;
        let hit = self.faults.iter().position(|fault| match fault {
            Fault::Flush(_) => matches!(request, Request::Flush | Request::Write { durable: true, .. }),
            Fault::Transfer(_) | Fault::Short(_) => matches!(request, Request::Read { .. } | Request::Write { .. }),
            Fault::Fallocate(_) => matches!(request, Request::Fallocate { .. }),
            Fault::TransferAt(at, _) => {
                matches!(request, Request::Read { offset, .. } | Request::Write { offset, .. } if offset == at)
            }
            Fault::Flip => matches!(request, Request::Read { .. }),
        });
        match hit.map(|at| self.faults.remove(at)) {
            Some(Fault::Short(bytes)) => result.min(bytes),
            Some(Fault::Flip) => {
                if let Request::Read { buf, .. } = &mut self.entries[key].request {
                    buf[0] ^= 1;
                }
                result
            }
            Some(
                Fault::Flush(errno) | Fault::Transfer(errno) | Fault::Fallocate(errno) | Fault::TransferAt(_, errno),
            ) => -errno,
            None => result,
        }
    }
}

impl Entry {
    fn submission(&mut self) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        let moved = self.moved;
        match &mut self.request {
            Request::Read { offset, buf } => {
                let rest = &mut buf[moved..];
                let length = rest.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Read::new(fd, rest.as_mut_ptr(), length).offset(*offset + moved as u64).build()
            }
            Request::Write { offset, data, durable } => {
                let rest = &data[moved..];
                let length = rest.len().min(TRANSFER_BYTES_MAX) as u32;
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                let write = opcode::Write::new(fd, rest.as_ptr(), length);
                write.offset(*offset + moved as u64).rw_flags(flags as _).build()
            }
            Request::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Request::Fallocate { mode, offset, length } => {
                opcode::Fallocate::new(fd, *length).offset(*offset).mode(*mode).build()
            }
        }
    }

    /// What a completion means: the end, or `None` to go on.
    fn judge(&mut self, result: i32) -> Option<Result<(), DiskError>> {
        let total = match &self.request {
            Request::Read { buf, .. } => buf.len(),
            Request::Write { data, .. } => data.len(),
            Request::Flush | Request::Fallocate { .. } => 0,
        };
        match result {
            error if error < 0 => {
                let flush = matches!(self.request, Request::Flush | Request::Write { durable: true, .. });
                if matches!(-error, libc::EINTR | libc::EAGAIN) && !flush && self.retries < RETRIES_MAX {
                    self.retries += 1;
                    return None;
                }
                Some(Err(DiskError::from_errno(-error)))
            }
            _ if total == 0 => Some(Ok(())),
            0 => Some(Err(DiskError::Io(0))),
            bytes => {
                self.moved += bytes as usize;
                self.retries = 0;
                (self.moved >= total).then_some(Ok(()))
            }
        }
    }
}

/// The ring's descriptor, readable when completions wait. Keeps the ring alive while the runtime polls it.
struct RingFd(Rc<Core>);

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.state.borrow().fd
    }
}

/// Ends the ring when the completion task ends or is dropped with its runtime: no completion can be called after that.
struct TaskGuard(Rc<Core>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.shut_down();
    }
}

async fn complete(guard: TaskGuard, poll: AsyncFd<RingFd>) {
    let core = &guard.0;
    loop {
        if let Err(error) = poll_fn(|cx| core.poll_asked(cx, &poll)).await {
            tracing::error!(%error, "the runtime no longer polls the io_uring");
            return;
        }
        let resubmitting = mem::take(&mut core.state.borrow_mut().resubmitting);
        if resubmitting {
            tokio::time::sleep(RESUBMIT_PAUSE).await;
        }
        core.turn();
        // A fast disk behind a long queue must not keep the others of this thread waiting.
        tokio::task::coop::consume_budget().await;
        let state = core.state.borrow();
        if state.closing && state.entries.is_empty() && state.deferred.is_empty() {
            return;
        }
    }
}
