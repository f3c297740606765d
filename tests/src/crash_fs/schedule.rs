//! Tasks that take turns by a drawn order, and a device that is late: whatever may happen while something else is under way
//! happens in some run, and the same seed gives the same run again.
//!
//! There are no threads and no clock: a task that waits is asked again later.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use anyhow::{Result, bail};
use block_device::{Allocation, BatchWrite, BlockDevice, BlockError, ByteRange};
use bytes::Bytes;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Turns without an end after which tasks are taken for stuck: far more than the longest run takes.
const TURNS_MAX: u64 = 200_000_000;

/// A task of a run.
pub(super) type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs tasks to their ends, one turn of a drawn one at a time. Errors: they wait for one another without end.
pub(super) fn run_together(mut tasks: Vec<Task<'_>>, rng: &mut ChaCha8Rng) -> Result<()> {
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..TURNS_MAX {
        if tasks.is_empty() {
            return Ok(());
        }
        let at = rng.random_range(0..tasks.len());
        if tasks[at].as_mut().poll(&mut context).is_ready() {
            drop(tasks.swap_remove(at));
        }
    }
    bail!("{} tasks wait without end", tasks.len())
}

/// Runs a future that waits for nothing but what it does itself. Errors: it waits without end.
pub(super) fn run_alone<T>(future: impl Future<Output = T>) -> Result<T> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..TURNS_MAX {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Ok(value);
        }
    }
    bail!("it waits without end")
}

/// Lets the others have a number of turns.
pub(super) async fn pass(turns: u32) {
    let mut left = turns;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A device that takes its time. A write takes effect when it is asked for or when it returns; a flush covers what has taken
/// effect when it is asked for, which of the writes under way may be none.
pub(super) struct LateDevice<D> {
    device: Rc<D>,
    rng: RefCell<ChaCha8Rng>,
    /// Turns that an access takes at most.
    turns_max: u32,
}

impl<D> LateDevice<D> {
    pub(super) fn new(device: Rc<D>, rng: ChaCha8Rng, turns_max: u32) -> Self {
        Self { device, rng: RefCell::new(rng), turns_max }
    }

    async fn late(&self) {
        let turns = self.rng.borrow_mut().random_range(0..=self.turns_max);
        pass(turns).await;
    }

    /// Turns before the effect.
    async fn early_or_late(&self) -> bool {
        let early: bool = self.rng.borrow_mut().random();
        if !early {
            self.late().await;
        }
        early
    }
}

impl<D: BlockDevice> BlockDevice for LateDevice<D> {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        let early = self.early_or_late().await;
        let data = self.device.read(range).await;
        if early {
            self.late().await;
        }
        data
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BlockError> {
        let early = self.early_or_late().await;
        let done = self.device.write(offset, data, fua).await;
        if early {
            self.late().await;
        }
        done
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let done = self.device.flush().await;
        self.late().await;
        done
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        self.device.confirm().await
    }

    async fn discard(&self, range: ByteRange, fua: bool) -> Result<(), BlockError> {
        self.late().await;
        self.device.discard(range, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, keep_allocated: bool, fua: bool) -> Result<(), BlockError> {
        self.late().await;
        self.device.write_zeroes(range, keep_allocated, fua).await
    }

    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        for group in groups {
            for BatchWrite { offset, data } in group {
                self.write(offset, data, false).await?;
            }
            self.flush().await?;
        }
        Ok(())
    }

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        self.device.allocation(range).await
    }
}
