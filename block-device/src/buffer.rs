//! Owned memory aligned for O_DIRECT.
//!
//! One of the two places of the workspace that may use `unsafe`.
#![allow(unsafe_code)]

use std::alloc::{self, Layout};
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

/// Alignment of every buffer, in bytes: the block size, which satisfies O_DIRECT on every device.
pub const ALIGNMENT_BYTES: usize = 4096;

/// Bytes of dropped buffers that each thread keeps for later ones.
const SPARE_BYTES_MAX: usize = 8 << 20;
/// Buffers of more bytes than this are not kept.
const SPARE_BUFFER_BYTES_MAX: usize = 2 << 20;
/// Buffers that are kept have a power of two of bytes, so that they fit many lengths.
const CLASSES: usize = (SPARE_BUFFER_BYTES_MAX / ALIGNMENT_BYTES).ilog2() as usize + 1;

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare { buffers: [const { Vec::new() }; CLASSES], bytes: 0 }) };
}

/// Memory of dropped buffers by size: class `n` has those of `ALIGNMENT_BYTES << n` bytes.
struct Spare {
    buffers: [Vec<Memory>; CLASSES],
    bytes: usize,
}

/// Aligned memory, all of it initialised.
#[derive(Debug)]
struct Memory {
    ptr: NonNull<u8>,
    bytes: usize,
}

/// A heap buffer of a fixed length, aligned to 4096 bytes. What is dropped is kept, within bounds, for the next ones of the
/// thread: fresh memory of this alignment has to be searched for, zeroed and paged in, which costs more than a small read.
#[derive(Debug)]
pub struct AlignedBuf {
    /// Taken only when dropped; at least `length` bytes.
    memory: ManuallyDrop<Memory>,
    length: usize,
}

// SAFETY: it owns its memory exclusively; no interior pointers or thread affinity.
unsafe impl Send for Memory {}
// SAFETY: shared access only hands out `&[u8]`.
unsafe impl Sync for Memory {}

impl AlignedBuf {
    /// A zeroed buffer of `length` bytes (rounded up inside to whole blocks; `len()` stays `length`).
    pub fn zeroed(length: usize) -> Self {
        Self::new(Memory::zeroed(length.max(1).next_multiple_of(ALIGNMENT_BYTES)), length)
    }

    /// A buffer of `length` bytes that are to be overwritten: it may hold what another buffer held before.
    pub fn to_overwrite(length: usize) -> Self {
        let rounded = length.next_power_of_two().max(ALIGNMENT_BYTES);
        let Some(class) = class_of(rounded) else { return Self::zeroed(length) };
        let spare = SPARE.try_with(|spare| spare.borrow_mut().take(class)).ok().flatten();
        Self::new(spare.unwrap_or_else(|| Memory::zeroed(rounded)), length)
    }

    /// A buffer that holds a copy of `data`.
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buf = Self::to_overwrite(data.len());
        buf.copy_from_slice(data);
        buf
    }

    /// Freezes the buffer into shared, immutable bytes without a copy; alignment is kept.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    fn new(memory: Memory, length: usize) -> Self {
        Self { memory: ManuallyDrop::new(memory), length }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: taken here only, and `self` is not used again.
        let memory = unsafe { ManuallyDrop::take(&mut self.memory) };
        // Once the thread's locals are gone the closure is dropped, and the memory with it.
        let _ = SPARE.try_with(|spare| spare.borrow_mut().keep(memory));
    }
}

impl Spare {
    fn take(&mut self, class: usize) -> Option<Memory> {
        let memory = self.buffers[class].pop()?;
        self.bytes -= memory.bytes;
        Some(memory)
    }

    fn keep(&mut self, memory: Memory) {
        if let Some(class) = class_of(memory.bytes).filter(|_| self.bytes + memory.bytes <= SPARE_BYTES_MAX) {
            self.bytes += memory.bytes;
            self.buffers[class].push(memory);
        }
    }
}

/// The class of memory of just so many bytes; `None` when it is not kept.
fn class_of(bytes: usize) -> Option<usize> {
    let kept = bytes.is_power_of_two() && (ALIGNMENT_BYTES..=SPARE_BUFFER_BYTES_MAX).contains(&bytes);
    kept.then(|| (bytes / ALIGNMENT_BYTES).ilog2() as usize)
}

impl Memory {
    /// `bytes` is not zero.
    fn zeroed(bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc::alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else { alloc::handle_alloc_error(layout) };
        Self { ptr, bytes }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, ALIGNMENT_BYTES).expect("a buffer length fits a layout")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout.
        unsafe { alloc::dealloc(self.ptr.as_ptr(), Self::layout(self.bytes)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: at least `length` bytes are allocated, and initialised since they were.
        unsafe { std::slice::from_raw_parts(self.memory.ptr.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.ptr.as_ptr(), self.length) }
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

    fn spare_bytes() -> usize {
        SPARE.with_borrow(|spare| {
            assert_eq!(spare.bytes, spare.buffers.iter().flatten().map(|memory| memory.bytes).sum::<usize>());
            spare.bytes
        })
    }

    #[test]
    fn classes_fit_their_lengths() {
        for length in [0, 1, 4096, 4097, 8192, 100_000, SPARE_BUFFER_BYTES_MAX, SPARE_BUFFER_BYTES_MAX + 1] {
            let buf = AlignedBuf::to_overwrite(length);
            assert_eq!(buf.len(), length);
            assert!(buf.memory.bytes >= length && buf.as_ptr().addr().is_multiple_of(ALIGNMENT_BYTES));
        }
    }

    #[test]
    fn memory_is_used_again_and_bounded() {
        let first = AlignedBuf::to_overwrite(5000);
        let place = first.as_ptr();
        drop(first.freeze());
        let second = AlignedBuf::to_overwrite(8192);
        assert_eq!(second.as_ptr(), place);
        let many: Vec<_> = (0..64).map(|_| AlignedBuf::to_overwrite(1 << 20)).collect();
        drop((many, second));
        assert!((1..=SPARE_BYTES_MAX).contains(&spare_bytes()));
        let before = spare_bytes();
        drop(AlignedBuf::to_overwrite(SPARE_BUFFER_BYTES_MAX + 1));
        assert_eq!(spare_bytes(), before, "what is too large is not kept");
    }

    #[test]
    fn a_zeroed_buffer_is_zeroed_whatever_was_dropped_before() {
        for _ in 0..2 {
            let mut buf = AlignedBuf::zeroed(3 * 4096);
            assert!(buf.iter().all(|byte| *byte == 0));
            buf.fill(7);
            let mut other = AlignedBuf::zeroed(4096);
            assert!(other.iter().all(|byte| *byte == 0));
            other.fill(7);
        }
    }

    #[test]
    fn a_buffer_dropped_while_its_thread_ends_is_freed() {
        thread_local!(static LAST: RefCell<Option<AlignedBuf>> = const { RefCell::new(None) });
        let thread = std::thread::spawn(|| {
            LAST.with_borrow_mut(|last| *last = Some(AlignedBuf::zeroed(4096)));
            drop(AlignedBuf::to_overwrite(4096));
        });
        thread.join().expect("no use of what is gone");
    }
}
