//! Owned memory aligned for O_DIRECT.
//!
//! One of the two places of the workspace that may use `unsafe`.
#![allow(unsafe_code)]

use std::alloc::{self, Layout};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

/// Alignment of every buffer, in bytes: the block size, which satisfies O_DIRECT on every device.
pub const ALIGNMENT_BYTES: usize = 4096;

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

impl Drop for AlignedBuf {
    fn drop(&mut self) {
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
