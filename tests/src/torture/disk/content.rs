//! The bytes of a file in memory: pages that were written, holes between them, and a length.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

type Page = [u8; PAGE as usize];

/// A sparse file. Copies share their pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pages: BTreeMap<u64, Arc<Page>>,
    length: u64,
}

impl Content {
    /// Bytes up to the end.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that are no hole.
    pub fn allocated_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// What lies at `offset`: less than `count` bytes at the end.
    pub fn read(&self, offset: u64, count: u64) -> Vec<u8> {
        let end = self.length.min(offset.saturating_add(count));
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        for (page, inside, part) in parts(offset, end) {
            if let Some(bytes) = self.pages.get(&page) {
                let at = (page * PAGE + inside - offset) as usize;
                out[at..at + part].copy_from_slice(&bytes[inside as usize..inside as usize + part]);
            }
        }
        out
    }

    /// Writes, and grows the file if need be.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        for (page, inside, part) in parts(offset, end) {
            let at = (page * PAGE + inside - offset) as usize;
            let target = Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize])));
            target[inside as usize..inside as usize + part].copy_from_slice(&bytes[at..at + part]);
        }
        self.length = self.length.max(end);
    }

    /// Makes a range read as zeros, whole pages as holes. The length stays.
    pub fn zero(&mut self, offset: u64, end: u64) {
        for (page, inside, part) in parts(offset, end) {
            if part == PAGE as usize {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[inside as usize..inside as usize + part].fill(0);
            }
        }
    }

    /// Cuts the file off or lets it grow by a hole.
    pub fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.zero(length, self.length.next_multiple_of(PAGE));
        }
        self.length = length;
    }

    /// The first byte at or after `offset` that is no hole, if there is one before the end.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let (page, _) = self.pages.range(offset / PAGE..).next()?;
        let at = offset.max(page * PAGE);
        (at < self.length).then_some(at)
    }

    /// The first byte at or after `offset` that is a hole; the end is one.
    pub fn next_hole(&self, offset: u64) -> Option<u64> {
        if offset >= self.length {
            return None;
        }
        let mut page = offset / PAGE;
        while self.pages.contains_key(&page) {
            page += 1;
        }
        Some(offset.max(page * PAGE).min(self.length))
    }

    /// Takes these pages as `other` has them.
    pub fn take_pages(&mut self, other: &Content, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            match other.pages.get(&page) {
                Some(bytes) => self.pages.insert(page, Arc::clone(bytes)),
                None => self.pages.remove(&page),
            };
        }
        self.length = other.length;
    }
}

/// The numbers of the pages that a range touches.
pub fn pages_of(offset: u64, end: u64) -> std::ops::Range<u64> {
    offset / PAGE..if end > offset { end.div_ceil(PAGE) } else { offset / PAGE }
}

/// Splits a range at the borders of pages: page, offset inside it, bytes.
fn parts(offset: u64, end: u64) -> impl Iterator<Item = (u64, u64, usize)> {
    pages_of(offset, end).map(move |page| {
        let from = offset.max(page * PAGE);
        let to = end.min((page + 1) * PAGE);
        (page, from - page * PAGE, (to - from) as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_across_pages_and_holes_read_as_zeros() {
        let mut content = Content::default();
        content.write(PAGE - 3, b"abcdef");
        assert_eq!(content.read(PAGE - 4, 100), b"\0abcdef");
        content.set_length(4 * PAGE);
        assert_eq!(content.read(3 * PAGE, 2 * PAGE), vec![0; PAGE as usize]);
        assert_eq!((content.next_data(0), content.next_hole(0)), (Some(0), Some(2 * PAGE)));
        assert_eq!((content.next_data(2 * PAGE), content.next_hole(4 * PAGE)), (None, None));
    }

    #[test]
    fn what_was_zeroed_or_cut_off_stays_away() {
        let mut content = Content::default();
        content.write(0, &[7; 3 * PAGE as usize]);
        content.zero(100, 2 * PAGE + 1);
        assert_eq!(content.read(99, 2), [7, 0]);
        assert_eq!(content.read(2 * PAGE, 2), [0, 7]);
        assert_eq!(content.next_data(PAGE), Some(2 * PAGE));
        content.set_length(50);
        content.set_length(PAGE);
        assert_eq!(content.read(48, 4), [7, 7, 0, 0]);
    }
}
