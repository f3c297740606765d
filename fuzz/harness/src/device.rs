//! A volume in memory over an image that nobody copies: what is written lies over it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use block_device::{Allocation, BatchWrite, BlockDevice, BlockError, ByteRange};
use bytes::Bytes;

/// Unit of what is written over the image, in bytes: the smallest block.
const PAGE_BYTES: usize = 1024;

/// An image of any size with writes over it.
#[derive(Clone, Debug)]
pub struct ImageDevice {
    image: Bytes,
    pages: RefCell<BTreeMap<usize, Vec<u8>>>,
    writes: Cell<u64>,
}

impl ImageDevice {
    /// The device of an image whose length is a multiple of 1024 bytes.
    pub fn new(image: Bytes) -> Self {
        assert!(image.len().is_multiple_of(PAGE_BYTES), "an image is made of whole blocks");
        Self { image, pages: RefCell::default(), writes: Cell::new(0) }
    }

    /// Writes that the engine has sent.
    pub fn write_count(&self) -> u64 {
        self.writes.get()
    }

    /// The bytes of a range; none if it is not inside the device.
    pub fn get(&self, offset: u64, length: u64) -> Option<Bytes> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?).filter(|end| *end <= self.image.len())?;
        let pages = self.pages.borrow();
        if pages.range(start / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).next().is_none() {
            return Some(self.image.slice(start..end));
        }
        let mut out = self.image[start..end].to_vec();
        for (page, bytes) in pages.range(start / PAGE_BYTES..end.div_ceil(PAGE_BYTES)) {
            let at = page * PAGE_BYTES;
            let (from, to) = (at.max(start), (at + PAGE_BYTES).min(end));
            out[from - start..to - start].copy_from_slice(&bytes[from - at..to - at]);
        }
        Some(out.into())
    }

    /// Puts bytes in place; none, and nothing done, if they are not inside the device.
    pub fn put(&self, offset: u64, data: &[u8]) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(data.len()).filter(|end| *end <= self.image.len())?;
        let mut pages = self.pages.borrow_mut();
        for page in start / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            let at = page * PAGE_BYTES;
            let bytes = pages.entry(page).or_insert_with(|| self.image[at..at + PAGE_BYTES].to_vec());
            let (from, to) = (at.max(start), (at + PAGE_BYTES).min(end));
            bytes[from - at..to - at].copy_from_slice(&data[from - start..to - start]);
        }
        Some(())
    }

    /// All of it, as it is now.
    pub fn to_image(&self) -> Bytes {
        self.get(0, self.image.len() as u64).unwrap_or_default()
    }

    fn outside(&self, offset: u64, length: u64) -> BlockError {
        BlockError::OutOfRange { offset, length, size: self.image.len() as u64 }
    }
}

impl BlockDevice for ImageDevice {
    fn size_bytes(&self) -> u64 {
        self.image.len() as u64
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        self.get(range.offset, range.length).ok_or_else(|| self.outside(range.offset, range.length))
    }

    async fn write(&self, offset: u64, data: Bytes, _fua: bool) -> Result<(), BlockError> {
        self.writes.set(self.writes.get() + 1);
        self.put(offset, &data).ok_or_else(|| self.outside(offset, data.len() as u64))
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn discard(&self, range: ByteRange, fua: bool) -> Result<(), BlockError> {
        self.write_zeroes(range, false, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, _keep_allocated: bool, fua: bool) -> Result<(), BlockError> {
        if self.get(range.offset, range.length).is_none() {
            return Err(self.outside(range.offset, range.length));
        }
        self.write(range.offset, vec![0; range.length as usize].into(), fua).await
    }

    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        for write in groups.into_iter().flatten() {
            self.write(write.offset, write.data, true).await?;
        }
        Ok(())
    }

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        Ok(vec![Allocation { range, hole: false }])
    }
}
