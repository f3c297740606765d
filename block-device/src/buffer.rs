//! Owned memory aligned for O_DIRECT.
//!
//! One of the two places of the workspace that may use `unsafe`.
#![allow(unsafe_code)]

use std::alloc::{self, Layout};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

/// Alignment of every buffer, in bytes: the block size, which satisfies O_DIRECT on every device.
pub const ALIGNMENT_BYTES: usize = 4096;

/// Bytes of dropped buffers that a thread keeps to use again.
const SPARE_BYTES_MAX: usize = 8 << 20;
/// Shorter buffers are not kept: the allocator is fast enough with them.
const SPARE_LENGTH_MIN: usize = 64 << 10;

/// A heap buffer of a fixed length, aligned to 4096 bytes, zeroed at creation.
#[derive(Debug)]
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    length: usize,
}

// SAFETY: the buffer owns its memory exclusively; no interior pointers or thread affinity.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only hands out `&[u8]`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A zeroed buffer of `length` bytes (rounded up inside to whole blocks; `len()` stays `length`).
    pub fn zeroed(length: usize) -> Self {
        let layout = Self::layout(length);
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc::alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else { alloc::handle_alloc_error(layout) };
        Self { ptr, length }
    }

    /// A buffer of `length` bytes to be overwritten, by a read for one: it holds zeros, or what an earlier buffer of this
    /// thread held. Larger ones are taken from those that the thread has dropped, which costs neither zeroing nor page
    /// faults.
    pub fn recycled(length: usize) -> Self {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().take(length)).ok().flatten();
        spare.unwrap_or_else(|| Self::zeroed(length))
    }

    /// A buffer that holds a copy of `data`.
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buf = Self::zeroed(data.len());
        buf.copy_from_slice(data);
        buf
    }

    /// Freezes the buffer into shared, immutable bytes without a copy; alignment is kept.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    fn layout(length: usize) -> Layout {
        let size = length.max(1).next_multiple_of(ALIGNMENT_BYTES);
        Layout::from_size_align(size, ALIGNMENT_BYTES).expect("a buffer length fits a layout")
    }
}

/// Buffers that a thread has dropped, the newest last.
#[derive(Default)]
struct Spare {
    buffers: Vec<AlignedBuf>,
    bytes: usize,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
}

impl Spare {
    /// The newest one of this length.
    fn take(&mut self, length: usize) -> Option<AlignedBuf> {
        let at = self.buffers.iter().rposition(|buffer| buffer.length == length)?;
        self.bytes -= length;
        Some(self.buffers.remove(at))
    }

    /// Makes room for a buffer of this length at the cost of older ones; false if such buffers are not kept.
    fn make_room(&mut self, length: usize) -> bool {
        if !(SPARE_LENGTH_MIN..=SPARE_BYTES_MAX).contains(&length) {
            return false;
        }
        let mut older = 0;
        while self.bytes + length > SPARE_BYTES_MAX {
            self.bytes -= self.buffers[older].length;
            older += 1;
        }
        // These find the list in use, and so are given back to the allocator.
        self.buffers.drain(..older);
        true
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let kept = SPARE.try_with(|spare| {
            let Ok(mut spare) = spare.try_borrow_mut() else { return false };
            let keep = spare.make_room(self.length);
            if keep {
                spare.bytes += self.length;
                spare.buffers.push(AlignedBuf { ptr: self.ptr, length: self.length });
            }
            keep
        });
        if kept == Ok(true) {
            return;
        }
        // SAFETY: allocated in `zeroed` with this very layout.
        unsafe { alloc::dealloc(self.ptr.as_ptr(), Self::layout(self.length)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `length` bytes are allocated and initialised (zeroed at creation).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spare() -> (usize, usize) {
        SPARE.with_borrow(|spare| {
            assert_eq!(spare.bytes, spare.buffers.iter().map(|buffer| buffer.len()).sum::<usize>());
            (spare.buffers.len(), spare.bytes)
        })
    }

    #[test]
    fn a_dropped_buffer_is_used_again_for_the_same_length() {
        let first = AlignedBuf::zeroed(SPARE_LENGTH_MIN);
        let place = first.as_ptr();
        drop(first.freeze());
        assert_ne!(AlignedBuf::recycled(2 * SPARE_LENGTH_MIN).as_ptr(), place);
        assert_eq!(AlignedBuf::recycled(SPARE_LENGTH_MIN).as_ptr(), place);
    }

    #[test]
    fn a_zeroed_buffer_is_zeroed_whatever_was_dropped() {
        let mut first = AlignedBuf::zeroed(SPARE_LENGTH_MIN);
        first.fill(7);
        drop(first);
        assert!(AlignedBuf::zeroed(SPARE_LENGTH_MIN).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_newest_buffers_are_kept_and_no_more_than_the_bound() {
        drop(AlignedBuf::zeroed(SPARE_LENGTH_MIN - 1));
        drop(AlignedBuf::zeroed(SPARE_BYTES_MAX + 1));
        assert_eq!(spare(), (0, 0));
        drop((0..100).map(|_| AlignedBuf::zeroed(SPARE_LENGTH_MIN)).collect::<Vec<_>>());
        assert_eq!(spare(), (100, 100 * SPARE_LENGTH_MIN));
        drop(AlignedBuf::zeroed(SPARE_BYTES_MAX));
        assert_eq!(spare(), (1, SPARE_BYTES_MAX));
        drop(AlignedBuf::zeroed(SPARE_LENGTH_MIN));
        assert_eq!(spare(), (1, SPARE_LENGTH_MIN));
    }
}
