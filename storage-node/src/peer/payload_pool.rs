//! Memory for the payloads of one link's received frames: counts what their receivers hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block_device::AlignedBuf;
use bytes::Bytes;
use tokio::sync::Notify;

/// Payload bytes that the receivers of one link's frames may hold; beyond, the link reads no further and so slows its
/// sender down. At most one frame above it.
pub const LINK_HELD_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The memory of one link.
#[derive(Debug, Default)]
pub(super) struct PayloadPool {
    held_bytes: AtomicUsize,
    released: Notify,
}

/// Memory for one payload that is being received. What it held before is overwritten: only a whole payload leaves it.
#[derive(Debug)]
pub(super) struct PayloadBuffer {
    memory: AlignedBuf,
    filled: usize,
    /// Counted as held. Not while it arrives: a link that waited for its own half payload would wait for ever.
    held: bool,
    pool: Arc<PayloadPool>,
}

impl PayloadPool {
    /// Memory for a payload of `length` bytes.
    pub(super) fn buffer(self: &Arc<Self>, length: usize) -> PayloadBuffer {
        PayloadBuffer { memory: AlignedBuf::to_overwrite(length), filled: 0, held: false, pool: self.clone() }
    }

    /// Waits while receivers hold [`LINK_HELD_BYTES_MAX`] or more.
    pub(super) async fn wait_for_room(&self) {
        while self.held_bytes.load(Ordering::Acquire) >= LINK_HELD_BYTES_MAX {
            self.released.notified().await;
        }
    }
}

impl PayloadBuffer {
    /// Bytes still to come.
    pub(super) fn missing(&self) -> usize {
        self.memory.len() - self.filled
    }

    /// Where they go.
    pub(super) fn unfilled(&mut self) -> &mut [u8] {
        &mut self.memory[self.filled..]
    }

    /// `count` more have been put there.
    pub(super) fn advance(&mut self, count: usize) {
        assert!(count <= self.missing(), "a payload is not filled beyond its end");
        self.filled += count;
    }

    /// The payload so far.
    pub(super) fn filled(&self) -> &[u8] {
        &self.memory[..self.filled]
    }

    /// The whole payload as shared bytes, without a copy; counted as held until they are dropped.
    pub(super) fn into_bytes(mut self) -> Bytes {
        assert!(self.missing() == 0, "only a whole payload is delivered");
        self.held = true;
        self.pool.held_bytes.fetch_add(self.memory.len(), Ordering::AcqRel);
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
        if !self.held {
            return;
        }
        let before = self.pool.held_bytes.fetch_sub(self.memory.len(), Ordering::AcqRel);
        if before >= LINK_HELD_BYTES_MAX {
            self.pool.released.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
