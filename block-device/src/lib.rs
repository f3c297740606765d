//! The one storage seam: the [`BlockDevice`] trait, owned aligned buffers, and errors sorted by what a caller can do.
//!
//! Gateways and the filesystem engine stand on this trait; the replicated volume, the RAM device and the recording
//! device implement it.

pub mod buffer;
pub mod error;
pub mod ram;
pub mod recording;
mod shared;

use bytes::Bytes;

pub use buffer::AlignedBuf;
pub use error::BlockError;
pub use ram::RamDevice;
pub use recording::{CrashCursor, RecordingDevice};

/// A run of bytes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// One write of a batch: `data` goes to `offset` (bytes, a multiple of 4096; so is the length).
#[derive(Clone, Debug)]
pub struct BatchWrite {
    /// Byte offset.
    pub offset: u64,
    /// Data; best in a 4096-aligned buffer, which is then written without a copy.
    pub data: Bytes,
}

/// A run of bytes and what backs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The run.
    pub range: ByteRange,
    /// True when nothing was ever written there (or it was discarded): it reads as zeros.
    pub hole: bool,
}

/// Asynchronous block storage. Ranges are in bytes and may start and end anywhere inside the device; a device of larger
/// blocks reads, modifies and writes by itself. Overlapping operations in flight take effect in some order.
///
/// A write that has returned is complete on every copy; it is on stable media after a later `flush` has returned, or at
/// once with `fua`. Futures need not be `Send`: a device lives on one shard.
#[allow(async_fn_in_trait)]
pub trait BlockDevice {
    /// Size in bytes; a multiple of 4096.
    fn size_bytes(&self) -> u64;

    /// Reads `range`. Errors: see [`BlockError`].
    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError>;

    /// Writes `data` at byte `offset`; with `fua` it is on stable media when this returns.
    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BlockError>;

    /// Puts every write that has returned before this call on stable media.
    async fn flush(&self) -> Result<(), BlockError>;

    /// Frees the space of `range` where whole blocks are covered; all of it then reads as zeros.
    async fn discard(&self, range: ByteRange, fua: bool) -> Result<(), BlockError>;

    /// Makes `range` read as zeros. With `keep_allocated` the space stays reserved.
    async fn write_zeroes(&self, range: ByteRange, keep_allocated: bool, fua: bool) -> Result<(), BlockError>;

    /// Writes ordered groups: a later group reaches stable media only after every earlier one, and all are on stable
    /// media when this returns. Writes within one group may land in any order. On an error the batch stops at that group.
    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError>;

    /// Done when a read that began now could be answered: until then nobody else was able to change the device. Whoever has kept
    /// content in memory may tell of it then, as it was when this was called. Errors: those of [`Self::read`].
    async fn confirm(&self) -> Result<(), BlockError>;

    /// Describes which parts of `range` are allocated, in order, covering it without gaps.
    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError>;
}
