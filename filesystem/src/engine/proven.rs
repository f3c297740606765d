//! The volume, with the count of what was done on it: since when it is known that nobody else has it.
//!
//! Whatever the volume has answered was asked for while nobody else was able to change it. So one operation that was begun after
//! a request had come, and has ended well, proves that what is in memory is the volume's content as of that request or later,
//! whoever asked for that operation. Without one somebody has to ask (`BlockDevice::confirm`). A flush proves nothing: there may be
//! nothing to flush.

use std::cell::Cell;

use block_device::{Allocation, BatchWrite, BlockDevice, BlockError, ByteRange};
use bytes::Bytes;

/// How many operations of the volume had begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Begun(u64);

/// A volume whose operations are counted.
#[derive(Debug)]
pub(super) struct Proven<D> {
    pub(super) device: D,
    begun: Cell<Begun>,
    /// The one that began last of those that have ended well.
    ended: Cell<Begun>,
}

impl<D> Proven<D> {
    pub(super) fn new(device: D) -> Self {
        Self { device, begun: Cell::default(), ended: Cell::default() }
    }

    /// So many have begun.
    pub(super) fn begun(&self) -> Begun {
        self.begun.get()
    }

    /// One that was begun since has ended well.
    pub(super) fn is_proven_since(&self, since: Begun) -> bool {
        self.ended.get() > since
    }

    async fn counted<T>(&self, operation: impl Future<Output = Result<T, BlockError>>) -> Result<T, BlockError> {
        let number = Begun(self.begun.get().0 + 1);
        self.begun.set(number);
        let done = operation.await?;
        self.ended.set(self.ended.get().max(number));
        Ok(done)
    }
}

impl<D: BlockDevice> BlockDevice for Proven<D> {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        match range.length {
            0 => self.device.read(range).await,
            _ => self.counted(self.device.read(range)).await,
        }
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BlockError> {
        match data.is_empty() {
            true => self.device.write(offset, data, fua).await,
            false => self.counted(self.device.write(offset, data, fua)).await,
        }
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.device.flush().await
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        self.counted(self.device.confirm()).await
    }

    async fn discard(&self, range: ByteRange, fua: bool) -> Result<(), BlockError> {
        self.device.discard(range, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, keep_allocated: bool, fua: bool) -> Result<(), BlockError> {
        self.device.write_zeroes(range, keep_allocated, fua).await
    }

    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        match groups.iter().flatten().any(|write| !write.data.is_empty()) {
            true => self.counted(self.device.write_batch(groups)).await,
            false => self.device.write_batch(groups).await,
        }
    }

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        self.device.allocation(range).await
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use block_device::RamDevice;
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_began_before_proves_nothing_and_what_failed_neither() {
        let volume = Proven::new(Rc::new(RamDevice::new(1 << 20)));
        let first = volume.begun();
        assert!(!volume.is_proven_since(first));
        assert_eq!(volume.flush().now_or_never(), Some(Ok(())));
        assert_eq!(volume.write_batch(vec![Vec::new()]).now_or_never(), Some(Ok(())));
        assert!(!volume.is_proven_since(first), "nothing had to be done");
        assert_eq!(volume.write(0, vec![0; 4096].into(), false).now_or_never(), Some(Ok(())));
        assert!(volume.is_proven_since(first));
        let second = volume.begun();
        let beyond = volume.read(ByteRange { offset: 2 << 20, length: 4096 }).now_or_never().expect("at once");
        assert!(beyond.is_err() && !volume.is_proven_since(second));
        assert_eq!(volume.confirm().now_or_never(), Some(Ok(())));
        assert!(volume.is_proven_since(second));
        // One that was under way when the request came.
        let (end, ended) = tokio::sync::oneshot::channel();
        let mut slow = std::pin::pin!(volume.counted(async { ended.await.map_err(|_| BlockError::Closed) }));
        assert!(slow.as_mut().now_or_never().is_none());
        let third = volume.begun();
        end.send(()).expect("it waits");
        assert!(slow.as_mut().now_or_never().is_some() && !volume.is_proven_since(third));
    }
}
