//! Puts a fresh filesystem into a volume, so that a crash in the middle leaves none at all.
//!
//! The old superblock goes first, durably; then what the volume held; then everything of the new filesystem but its first
//! block; a flush; and that block, with the superblock, last. Blocks that `mke2fs` leaves unwritten have to be zeros: a
//! volume's holes are, and everything else is cleared.

use std::sync::Arc;

use block_device::{Allocation, BlockDevice, BlockError, ByteRange};
use bytes::Bytes;
use filesystem::engine::{Filesystem, OpenError, Options};
use filesystem::layout::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET};
use thiserror::Error;

use super::mke2fs::{FreshImage, ToolError};

/// The part of the volume that holds the superblock; written first (as zeros) and last.
const HEAD_BYTES: u64 = 4096;
/// Bytes copied at a time.
const COPY_BYTES: u64 = 1 << 20;
/// Bytes cleared at a time, so that progress is seen.
const CLEAR_BYTES: u64 = 1 << 30;
/// Data that is looked at whole before a volume counts as empty.
const LOOK_BYTES_MAX: u64 = 64 << 20;
/// Of more data so many places are looked at.
const LOOKS_MAX: u64 = 256;
/// Bytes looked at in each.
const LOOK_BYTES: u64 = 64 << 10;

/// What becomes of the volume's space where the new filesystem has no data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clearing {
    /// It is given back.
    Discard,
    /// It stays reserved: the volume was made with all its space.
    KeepAllocated,
}

/// How far the making is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes done of it.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A part of the making, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The volume's old content goes.
    Clearing,
    /// The new filesystem is written.
    Writing,
}

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeros, as far as was looked.
    Nothing,
    /// The superblock of an ext2, ext3 or ext4 filesystem.
    Filesystem,
    /// Something else.
    Data,
}

/// Why no filesystem was made.
#[derive(Debug, Error)]
pub enum MakeError {
    /// mke2fs; nothing was changed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The volume is in use by something else, or was lost on the way.
    #[error("the volume failed: {0}")]
    Device(#[from] BlockError),
    /// What was made is not what the engine can open.
    #[error("the new filesystem cannot be opened: {0}")]
    Open(#[from] OpenError),
}

/// Looks at what the volume holds. Of a volume with much data, or one that cannot tell where it has data, only samples are
/// read.
pub async fn content<D: BlockDevice>(device: &D) -> Result<Content, BlockError> {
    let superblock = ByteRange { offset: SUPERBLOCK_OFFSET, length: SUPERBLOCK_BYTES as u64 };
    if device.size_bytes() >= superblock.offset + superblock.length {
        let bytes = device.read(superblock).await?;
        if bytes.get(0x38..0x3a) == Some(&[0x53, 0xef]) {
            return Ok(Content::Filesystem);
        }
    }
    let allocated = allocated(device).await?;
    for range in samples(&allocated) {
        if device.read(range).await?.iter().any(|byte| *byte != 0) {
            return Ok(Content::Data);
        }
    }
    Ok(Content::Nothing)
}

/// Writes the filesystem into the volume, and lets the engine bring the journal to the form that it writes.
pub async fn make<D: BlockDevice>(
    device: D,
    image: Arc<FreshImage>,
    clearing: Clearing,
    options: &Options,
    progress: &dyn Fn(Progress),
) -> Result<D, MakeError> {
    write(&device, image, clearing, progress).await?;
    let (engine, _) = Filesystem::open(device, options).await?;
    engine.close().await.map_err(OpenError::from)?;
    Ok(engine.into_device())
}

async fn write<D: BlockDevice>(
    device: &D,
    image: Arc<FreshImage>,
    clearing: Clearing,
    progress: &dyn Fn(Progress),
) -> Result<(), MakeError> {
    device.write(0, Bytes::from_static(&[0; HEAD_BYTES as usize]), true).await?;
    clear(device, clearing, progress).await?;
    let total = image.data().iter().map(|range| range.length).sum();
    let mut done = 0;
    let mut head = Bytes::new();
    for piece in image.data().iter().flat_map(|range| pieces(*range, COPY_BYTES)) {
        let source = Arc::clone(&image);
        let read = tokio::task::spawn_blocking(move || source.read(piece)).await;
        let mut bytes = read.map_err(std::io::Error::other).and_then(|read| read).map_err(ToolError::Image)?;
        let mut offset = piece.offset;
        if offset == 0 {
            head = bytes.split_to(bytes.len().min(HEAD_BYTES as usize));
            offset = head.len() as u64;
        }
        device.write(offset, bytes, false).await?;
        done += piece.length;
        progress(Progress { stage: Stage::Writing, done, total });
    }
    device.flush().await?;
    device.write(0, head, true).await?;
    Ok(())
}

/// Makes the whole volume read as zeros.
async fn clear<D: BlockDevice>(device: &D, how: Clearing, progress: &dyn Fn(Progress)) -> Result<(), BlockError> {
    let allocated = allocated(device).await?;
    let total = allocated.iter().map(|range| range.length).sum();
    let mut done = 0;
    for piece in allocated.into_iter().flat_map(|range| pieces(range, CLEAR_BYTES)) {
        match how {
            Clearing::Discard => device.discard(piece, false).await?,
            Clearing::KeepAllocated => device.write_zeroes(piece, true, false).await?,
        }
        done += piece.length;
        progress(Progress { stage: Stage::Clearing, done, total });
    }
    Ok(())
}

async fn allocated<D: BlockDevice>(device: &D) -> Result<Vec<ByteRange>, BlockError> {
    let all = device.allocation(ByteRange { offset: 0, length: device.size_bytes() }).await?;
    Ok(all.into_iter().filter(|Allocation { hole, .. }| !hole).map(|run| run.range).collect())
}

/// A range in pieces of at most `length_max` bytes.
fn pieces(range: ByteRange, length_max: u64) -> impl Iterator<Item = ByteRange> {
    let end = range.offset + range.length;
    let mut at = range.offset;
    std::iter::from_fn(move || {
        let length = length_max.min(end - at);
        let piece = ByteRange { offset: at, length };
        at += length;
        (length > 0).then_some(piece)
    })
}

/// Where data is looked at: all of it, or places spread evenly over it.
fn samples(allocated: &[ByteRange]) -> Vec<ByteRange> {
    let total: u64 = allocated.iter().map(|range| range.length).sum();
    if total <= LOOK_BYTES_MAX {
        return allocated.iter().flat_map(|range| pieces(*range, COPY_BYTES)).collect();
    }
    let mut passed = 0;
    let mut ranges = allocated.iter();
    let mut range = ranges.next();
    let mut samples = Vec::new();
    for look in 0..LOOKS_MAX {
        let wanted = total / LOOKS_MAX * look;
        while let Some(here) = range
            && passed + here.length <= wanted
        {
            passed += here.length;
            range = ranges.next();
        }
        let Some(here) = range else { break };
        let within = wanted - passed;
        samples.push(ByteRange { offset: here.offset + within, length: LOOK_BYTES.min(here.length - within) });
    }
    samples
}

#[cfg(test)]
#[path = "make_tests.rs"]
mod tests;
