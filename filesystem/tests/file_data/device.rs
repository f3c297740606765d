//! A device whose operations take turns: each waits a random number of them, so that whatever may happen in between does.

use std::cell::{Cell, RefCell};

use block_device::{Allocation, BatchWrite, BlockDevice, BlockError, ByteRange, RamDevice};
use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Turns that an operation waits at most.
const TURNS_MAX: u32 = 6;

/// A RAM device that is slow by turns of the scheduler, not by time.
pub(crate) struct SlowDevice {
    inner: RamDevice,
    rng: RefCell<ChaCha8Rng>,
    failing: Cell<bool>,
}

impl SlowDevice {
    pub(crate) fn new(inner: RamDevice, seed: u64) -> Self {
        Self { inner, rng: RefCell::new(ChaCha8Rng::seed_from_u64(seed)), failing: Cell::new(false) }
    }

    /// What is on the device now.
    pub(crate) fn snapshot(&self) -> RamDevice {
        RamDevice::from_image(&self.inner.to_vec())
    }

    pub(crate) fn into_inner(self) -> RamDevice {
        self.inner
    }

    /// From now on, writes and flushes fail.
    pub(crate) fn fail(&self) {
        self.failing.set(true);
    }

    fn health(&self) -> Result<(), BlockError> {
        match self.failing.get() {
            true => Err(BlockError::Io),
            false => Ok(()),
        }
    }

    async fn turns(&self) {
        let turns = self.rng.borrow_mut().random_range(0..=TURNS_MAX);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }
}

impl BlockDevice for SlowDevice {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        self.turns().await;
        let read = self.inner.read(range).await;
        self.turns().await;
        read
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BlockError> {
        self.turns().await;
        self.health()?;
        self.inner.write(offset, data, fua).await?;
        self.turns().await;
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.turns().await;
        self.health()?;
        self.inner.flush().await
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn discard(&self, range: ByteRange, fua: bool) -> Result<(), BlockError> {
        self.turns().await;
        self.inner.discard(range, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, keep_allocated: bool, fua: bool) -> Result<(), BlockError> {
        self.turns().await;
        self.inner.write_zeroes(range, keep_allocated, fua).await
    }

    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        for group in groups {
            self.turns().await;
            self.health()?;
            self.inner.write_batch(vec![group]).await?;
        }
        self.turns().await;
        Ok(())
    }

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        self.inner.allocation(range).await
    }
}
