//! A device that several hold on one shard.

use std::rc::Rc;

use bytes::Bytes;

use crate::{Allocation, BatchWrite, BlockDevice, BlockError, ByteRange};

impl<D: BlockDevice + ?Sized> BlockDevice for Rc<D> {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        (**self).read(range).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BlockError> {
        (**self).write(offset, data, fua).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        (**self).flush().await
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        (**self).confirm().await
    }

    async fn discard(&self, range: ByteRange, fua: bool) -> Result<(), BlockError> {
        (**self).discard(range, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, keep_allocated: bool, fua: bool) -> Result<(), BlockError> {
        (**self).write_zeroes(range, keep_allocated, fua).await
    }

    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        (**self).write_batch(groups).await
    }

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        (**self).allocation(range).await
    }
}
