//! A sparse block device in memory.
//!
//! Holds 4 KiB pages, each shared with the device's clones until one of them writes it, so that a clone is a cheap
//! snapshot. It has no cache in front of it: whatever was written is there. What a power loss would do to it is the
//! matter of [`crate::recording`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::{AlignedBuf, Allocation, BatchWrite, BlockDevice, BlockError, ByteRange};

/// Bytes in a page, the unit of allocation.
const PAGE_BYTES: u64 = 4096;

type Page = [u8; PAGE_BYTES as usize];

/// A block device in memory; starts as one hole.
#[derive(Clone, Debug)]
pub struct RamDevice {
    size_bytes: u64,
    pages: RefCell<BTreeMap<u64, Arc<Page>>>,
}

impl RamDevice {
    /// A device of `size_bytes`, all holes. The size is a multiple of 4096.
    pub fn new(size_bytes: u64) -> Self {
        assert!(size_bytes.is_multiple_of(PAGE_BYTES), "a device is made of whole 4096-byte blocks");
        Self { size_bytes, pages: RefCell::default() }
    }

    /// A device that starts with the bytes of `image`, rounded up to whole blocks with zeros.
    pub fn from_image(image: &[u8]) -> Self {
        let device = Self::new((image.len() as u64).next_multiple_of(PAGE_BYTES));
        device.store(0, image);
        device
    }

    /// A copy of the whole content.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.size_bytes as usize];
        self.load(0, &mut out);
        out
    }

    /// Fails unless `offset .. offset + length` lies inside the device.
    pub(crate) fn check(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(BlockError::OutOfRange { offset, length, size: self.size_bytes }),
        }
    }

    /// Copies the bytes from `offset` on to `out`. The range was checked.
    pub(crate) fn load(&self, offset: u64, out: &mut [u8]) {
        let pages = self.pages.borrow();
        for piece in pieces(offset, out.len() as u64) {
            let target = &mut out[piece.done..piece.done + piece.length];
            match pages.get(&piece.page) {
                Some(page) => target.copy_from_slice(&page[piece.within..piece.within + piece.length]),
                None => target.fill(0),
            }
        }
    }

    /// Stores `data` at `offset`. The range was checked.
    pub(crate) fn store(&self, offset: u64, data: &[u8]) {
        let mut pages = self.pages.borrow_mut();
        for piece in pieces(offset, data.len() as u64) {
            let page = pages.entry(piece.page).or_insert_with(|| Arc::new([0; PAGE_BYTES as usize]));
            Arc::make_mut(page)[piece.within..piece.within + piece.length]
                .copy_from_slice(&data[piece.done..piece.done + piece.length]);
        }
    }

    /// Makes a range read as zeros; whole pages become holes unless `keep_allocated`. The range was checked.
    pub(crate) fn clear(&self, offset: u64, length: u64, keep_allocated: bool) {
        let mut pages = self.pages.borrow_mut();
        if keep_allocated {
            for piece in pieces(offset, length) {
                let page = pages.entry(piece.page).or_insert_with(|| Arc::new([0; PAGE_BYTES as usize]));
                Arc::make_mut(page)[piece.within..piece.within + piece.length].fill(0);
            }
            return;
        }
        let first = offset / PAGE_BYTES;
        let touched: Vec<u64> =
            pages.range(first..(offset + length).div_ceil(PAGE_BYTES)).map(|(page, _)| *page).collect();
        for number in touched {
            let start = (number * PAGE_BYTES).max(offset);
            let end = ((number + 1) * PAGE_BYTES).min(offset + length);
            if end - start == PAGE_BYTES {
                pages.remove(&number);
            } else if let Some(page) = pages.get_mut(&number) {
                let within = (start % PAGE_BYTES) as usize;
                Arc::make_mut(page)[within..within + (end - start) as usize].fill(0);
            }
        }
    }
}

/// Part of a byte range that lies in one page.
struct Piece {
    page: u64,
    within: usize,
    length: usize,
    done: usize,
}

fn pieces(offset: u64, length: u64) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done;
        let within = at % PAGE_BYTES;
        let part = (PAGE_BYTES - within).min(length - done);
        let piece =
            Piece { page: at / PAGE_BYTES, within: within as usize, length: part as usize, done: done as usize };
        done += part;
        Some(piece)
    })
}

impl BlockDevice for RamDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        self.check(range.offset, range.length)?;
        let mut out = AlignedBuf::zeroed(range.length as usize);
        self.load(range.offset, &mut out);
        Ok(out.freeze())
    }

    async fn write(&self, offset: u64, data: Bytes, _fua: bool) -> Result<(), BlockError> {
        self.check(offset, data.len() as u64)?;
        self.store(offset, &data);
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn discard(&self, range: ByteRange, _fua: bool) -> Result<(), BlockError> {
        self.check(range.offset, range.length)?;
        self.clear(range.offset, range.length, false);
        Ok(())
    }

    async fn write_zeroes(&self, range: ByteRange, keep_allocated: bool, _fua: bool) -> Result<(), BlockError> {
        self.check(range.offset, range.length)?;
        self.clear(range.offset, range.length, keep_allocated);
        Ok(())
    }

    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        for group in groups {
            for write in &group {
                self.check(write.offset, write.data.len() as u64)?;
            }
            for write in &group {
                self.store(write.offset, &write.data);
            }
        }
        Ok(())
    }

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        self.check(range.offset, range.length)?;
        let pages = self.pages.borrow();
        let mut runs: Vec<Allocation> = Vec::new();
        for piece in pieces(range.offset, range.length) {
            let hole = !pages.contains_key(&piece.page);
            let length = piece.length as u64;
            match runs.last_mut() {
                Some(last) if last.hole == hole => last.range.length += length,
                _ => {
                    let offset = range.offset + piece.done as u64;
                    runs.push(Allocation { range: ByteRange { offset, length }, hole });
                }
            }
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::tests::now;

    fn range(offset: u64, length: u64) -> ByteRange {
        ByteRange { offset, length }
    }

    #[test]
    fn bytes_come_back_across_page_borders() {
        let device = RamDevice::new(4 * 4096);
        let data: Vec<u8> = (0..6000).map(|i| (i % 251) as u8 + 1).collect();
        now(device.write(3000, Bytes::from(data.clone()), false)).unwrap();
        let back = now(device.read(range(2999, 6002))).unwrap();
        assert_eq!(back[0], 0);
        assert_eq!(&back[1..6001], &data[..]);
        assert_eq!(back[6001], 0);
    }

    #[test]
    fn ranges_past_the_end_are_refused_and_do_nothing() {
        let device = RamDevice::new(8192);
        for (offset, length) in [(8192, 1), (8191, 2), (u64::MAX, 2), (u64::MAX - 1, 1)] {
            let refused = Err(BlockError::OutOfRange { offset, length, size: 8192 });
            assert_eq!(now(device.write(offset, Bytes::from(vec![1; length as usize]), false)), refused);
            assert_eq!(now(device.discard(range(offset, length), false)), refused);
            assert!(now(device.read(range(offset, length))).is_err());
        }
        assert!(device.to_vec().iter().all(|b| *b == 0));
    }

    #[test]
    fn discard_leaves_holes_and_zeroes_keep_space() {
        let device = RamDevice::from_image(&[7; 4 * 4096]);
        now(device.discard(range(100, 3 * 4096), false)).unwrap();
        let holes = now(device.allocation(range(0, 4 * 4096))).unwrap();
        assert_eq!(
            holes,
            [
                Allocation { range: range(0, 4096), hole: false },
                Allocation { range: range(4096, 2 * 4096), hole: true },
                Allocation { range: range(3 * 4096, 4096), hole: false },
            ]
        );
        let content = device.to_vec();
        assert!(content[..100].iter().all(|b| *b == 7));
        assert!(content[100..100 + 3 * 4096].iter().all(|b| *b == 0));
        assert!(content[100 + 3 * 4096..].iter().all(|b| *b == 7));
        now(device.write_zeroes(range(0, 4 * 4096), true, false)).unwrap();
        let all = now(device.allocation(range(0, 4 * 4096))).unwrap();
        assert_eq!(all, [Allocation { range: range(0, 4 * 4096), hole: false }]);
        assert!(device.to_vec().iter().all(|b| *b == 0));
    }

    #[test]
    fn a_clone_is_a_snapshot() {
        let device = RamDevice::from_image(&[1; 4096]);
        let snapshot = device.clone();
        now(device.write(0, Bytes::from_static(b"changed"), false)).unwrap();
        assert!(snapshot.to_vec().iter().all(|b| *b == 1));
        assert_eq!(&device.to_vec()[..7], b"changed");
    }

    #[test]
    fn a_batch_stops_at_the_group_that_fails() {
        let device = RamDevice::new(8192);
        let write = |offset, byte| BatchWrite { offset, data: Bytes::from(vec![byte; 4096]) };
        let groups = vec![vec![write(0, 1)], vec![write(4096, 2), write(8192, 3)], vec![write(0, 4)]];
        assert!(now(device.write_batch(groups)).is_err());
        let content = device.to_vec();
        assert_eq!((content[0], content[4096]), (1, 0));
    }
}
