//! Memory for the payloads of one link's received frames: counts what their receivers hold, and keeps what they let go
//! for the next frames. Fresh memory of this size would be zeroed and paged in for every frame.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use block_device::AlignedBuf;
use bytes::Bytes;
use tokio::sync::Notify;

/// Payload bytes that the receivers of one link's frames may hold; beyond, the link reads no further and so slows its
/// sender down. At most one frame above it.
pub const LINK_HELD_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Bytes kept for later frames.
const SPARE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Buffers of more bytes than this are not kept.
const SPARE_BUFFER_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Buffers that are kept have a power of two of bytes, so that they fit many frames.
const SPARE_BUFFER_BYTES_MIN: usize = 4096;
const CLASSES: usize = (SPARE_BUFFER_BYTES_MAX / SPARE_BUFFER_BYTES_MIN).ilog2() as usize + 1;

/// The memory of one link.
#[derive(Debug, Default)]
pub(super) struct PayloadPool {
    held_bytes: AtomicUsize,
    released: Notify,
    spare: Mutex<Spare>,
}

#[derive(Debug, Default)]
struct Spare {
    /// By size: class `n` has buffers of `SPARE_BUFFER_BYTES_MIN << n` bytes.
    buffers: [Vec<AlignedBuf>; CLASSES],
    bytes: usize,
}

/// Memory for one payload that is being received. What it held before is overwritten: only a whole payload leaves it.
#[derive(Debug)]
pub(super) struct PayloadBuffer {
    /// At least `length` bytes; `None` only once dropped.
    memory: Option<AlignedBuf>,
    length: usize,
    filled: usize,
    /// Counted as held. Not while it arrives: a link that waited for its own half payload would wait for ever.
    held: bool,
    pool: Arc<PayloadPool>,
}

impl PayloadPool {
    /// Memory for a payload of `length` bytes.
    pub(super) fn buffer(self: &Arc<Self>, length: usize) -> PayloadBuffer {
        let memory = match class_of(length) {
            Some(class) => {
                let found = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take(class);
                found.unwrap_or_else(|| AlignedBuf::recycled(SPARE_BUFFER_BYTES_MIN << class))
            }
            None => AlignedBuf::recycled(length),
        };
        PayloadBuffer { memory: Some(memory), length, filled: 0, held: false, pool: self.clone() }
    }

    /// Waits while receivers hold [`LINK_HELD_BYTES_MAX`] or more.
    pub(super) async fn wait_for_room(&self) {
        while self.held_bytes.load(Ordering::Acquire) >= LINK_HELD_BYTES_MAX {
            self.released.notified().await;
        }
    }
}

impl Spare {
    fn take(&mut self, class: usize) -> Option<AlignedBuf> {
        let buffer = self.buffers[class].pop()?;
        self.bytes -= buffer.len();
        Some(buffer)
    }

    fn keep(&mut self, class: usize, buffer: AlignedBuf) {
        if self.bytes + buffer.len() <= SPARE_BYTES_MAX {
            self.bytes += buffer.len();
            self.buffers[class].push(buffer);
        }
    }
}

/// The class whose buffers fit `length` bytes; `None` when such a buffer is not kept.
fn class_of(length: usize) -> Option<usize> {
    if length > SPARE_BUFFER_BYTES_MAX {
        return None;
    }
    let rounded = length.next_power_of_two().max(SPARE_BUFFER_BYTES_MIN);
    Some((rounded / SPARE_BUFFER_BYTES_MIN).ilog2() as usize)
}

impl PayloadBuffer {
    /// Bytes still to come.
    pub(super) fn missing(&self) -> usize {
        self.length - self.filled
    }

    /// Where they go.
    pub(super) fn unfilled(&mut self) -> &mut [u8] {
        let (from, to) = (self.filled, self.length);
        self.memory.as_deref_mut().map_or(&mut [], |memory| &mut memory[from..to])
    }

    /// `count` more have been put there.
    pub(super) fn advance(&mut self, count: usize) {
        assert!(count <= self.missing(), "a payload is not filled beyond its end");
        self.filled += count;
    }

    /// The payload so far.
    pub(super) fn filled(&self) -> &[u8] {
        self.memory.as_deref().map_or(&[], |memory| &memory[..self.filled])
    }

    /// The whole payload as shared bytes, without a copy; counted as held until they are dropped.
    pub(super) fn into_bytes(mut self) -> Bytes {
        assert!(self.missing() == 0, "only a whole payload is delivered");
        self.held = true;
        self.pool.held_bytes.fetch_add(self.length, Ordering::AcqRel);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PayloadBuffer {
    fn as_ref(&self) -> &[u8] {
        self.filled()
    }
}

impl Drop for PayloadBuffer {
    fn drop(&mut self) {
        if let (Some(memory), Some(class)) = (self.memory.take(), class_of(self.length)) {
            self.pool.spare.lock().unwrap_or_else(PoisonError::into_inner).keep(class, memory);
        }
        if !self.held {
            return;
        }
        let before = self.pool.held_bytes.fetch_sub(self.length, Ordering::AcqRel);
        if before >= LINK_HELD_BYTES_MAX {
            self.pool.released.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_fit_their_lengths() {
        for length in [1, 4096, 4097, 8192, 100_000, SPARE_BUFFER_BYTES_MAX] {
            let size = SPARE_BUFFER_BYTES_MIN << class_of(length).expect("kept");
            assert!(size >= length && size <= SPARE_BUFFER_BYTES_MAX);
        }
        assert_eq!(class_of(SPARE_BUFFER_BYTES_MAX), Some(CLASSES - 1));
        assert_eq!(class_of(SPARE_BUFFER_BYTES_MAX + 1), None);
    }

    #[test]
    fn memory_is_used_again_and_bounded() {
        let pool = Arc::new(PayloadPool::default());
        let first = pool.buffer(5000);
        let place = first.memory.as_deref().map(<[u8]>::as_ptr);
        drop(first);
        let second = pool.buffer(8192);
        assert_eq!(second.memory.as_deref().map(<[u8]>::as_ptr), place);
        let many: Vec<_> = (0..64).map(|_| pool.buffer(1 << 20)).collect();
        drop((many, second));
        let spare = pool.spare.lock().unwrap();
        assert!(spare.bytes <= SPARE_BYTES_MAX);
        assert_eq!(spare.bytes, spare.buffers.iter().flatten().map(|buffer| buffer.len()).sum::<usize>());
    }

    #[test]
    fn a_payload_never_shows_what_its_memory_held_before() {
        let pool = Arc::new(PayloadPool::default());
        let mut first = pool.buffer(4096);
        first.unfilled().fill(7);
        first.advance(4096);
        assert_eq!(pool.held_bytes.load(Ordering::Acquire), 0, "not held while it arrives");
        let delivered = first.into_bytes();
        assert_eq!(pool.held_bytes.load(Ordering::Acquire), 4096);
        drop(delivered);
        assert_eq!(pool.held_bytes.load(Ordering::Acquire), 0);
        let mut second = pool.buffer(100);
        assert_eq!(second.filled(), b"");
        second.unfilled().fill(1);
        second.advance(100);
        assert_eq!(second.into_bytes(), [1u8; 100][..]);
    }
}
