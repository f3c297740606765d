//! One copy of a volume on one box: data, checksums, activity log and bitmaps, as operations on the areas of a store.
//!
//! [`LocalCopy`] stands between a replica and the raw store. It is pure: an operation comes in, raw reads and writes go
//! out, their ends come in, the operation's end goes out. The shell that owns the store carries the raw operations out,
//! and the simulator's disk does the same; both run this very code. Payload bytes stay in the shell: this module sees
//! only their checksums.
//!
//! It keeps, per extent of 4 MiB, whether it is *hot* (durably in the activity log, so that its data and sums may differ
//! after a crash) or *cold* (data, checksum page and index entry agree on stable media). It does not decide when an
//! extent becomes hot or cold, does not order operations on the same blocks (the replica's overlap does), and knows no
//! peer.

pub(crate) mod codec;
mod cool;
mod engine;
mod expect;
mod extents;
mod heat;
mod index;
mod log;
mod read;
mod write;

use proto::checksum::BlockSums;
use proto::peer::message::WriteKind;
use proto::{BlockRange, VolumeId};

pub use engine::LocalCopy;
pub use log::log_pages_for;

/// Bytes of a page of metadata.
pub const PAGE_BYTES: usize = 4096;

/// One page of metadata.
pub type Page = Box<[u8; PAGE_BYTES]>;

/// Which page of which area of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MetaPage {
    /// A page of the activity log.
    Log(u32),
    /// A page of one of the two copies of the index.
    Index {
        /// 0 or 1.
        copy: u8,
        /// Page within the copy.
        page: u32,
    },
    /// The checksum page of an extent.
    Sums {
        /// The extent.
        extent: u64,
    },
    /// A page of a dirty bitmap.
    Bitmap {
        /// Which bitmap.
        slot: u8,
        /// Page within it.
        page: u32,
    },
}

/// What a copy is made of; it follows from the volume and from the layout of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The volume: salts the checksums.
    pub volume: VolumeId,
    /// Its size in blocks.
    pub blocks: u64,
    /// Pages of the activity log.
    pub log_pages: u32,
    /// Checksum pages of cold extents that are kept in memory, at most.
    pub cached_pages_max: usize,
}

/// What the shell has read from the store before it opens the copy. Each area whole.
#[derive(Clone, Copy, Debug)]
pub struct Areas<'a> {
    /// The activity log.
    pub log: &'a [u8],
    /// Both copies of the index.
    pub index: [&'a [u8]; 2],
}

/// The extents that were hot when the copy was last in use: their checksums are unknown until they are read again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hot {
    /// The log cannot be read: any may have been.
    All,
    /// These, ascending.
    Extents(Vec<u64>),
}

/// How a read treats checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadCheck {
    /// Every block must match its sum, once it is known; a sum that is unknown is taken from what was read.
    Verify,
    /// The sums are taken from what was read: for a copy that is not in sync, whose blocks are compared with a peer's and
    /// overwritten where they differ.
    Resum,
}

/// An operation on the copy. Ranges lie within the volume and are not empty. No two operations in flight touch the same
/// block unless both read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyOp {
    /// Reads blocks; the shell holds the data under the operation's tag.
    Read {
        /// Blocks.
        range: BlockRange,
        /// What to make of checksums.
        check: ReadCheck,
    },
    /// Writes, zeroes or discards blocks; their extents are hot.
    Write {
        /// Blocks.
        range: BlockRange,
        /// Effect.
        kind: WriteKind,
        /// On stable media at the end.
        fua: bool,
        /// For data one sum a block; otherwise none.
        sums: BlockSums,
    },
    /// Writes ordered groups, each flushed before the next; their extents are hot.
    Batch {
        /// The groups.
        groups: Vec<Vec<BlockRange>>,
        /// The sums of all blocks, in order.
        sums: BlockSums,
    },
    /// Puts everything that has ended on stable media.
    Flush,
    /// Makes extents hot, durably, and their checksum pages present in memory.
    Heat {
        /// Extents, ascending.
        extents: Vec<u64>,
    },
    /// Makes extents cold: sums that are unknown are computed, checksum pages and `bitmaps` are written, all is flushed,
    /// then index and log follow. No write to these extents is in flight or begins before the end.
    Cool {
        /// Extents, ascending; all are hot.
        extents: Vec<u64>,
        /// Pages of dirty bitmaps that must be on stable media before the log forgets the extents.
        bitmaps: Vec<(MetaPage, Page)>,
    },
    /// Puts sums of cold extents on stable media that are only in memory: their page was damaged and they were learnt anew,
    /// or were corrected. Some extents at a time; asked for as long as [`LocalCopy::is_unsettled`].
    Settle,
    /// Writes pages of dirty bitmaps in this order, each durable before the next.
    Bitmap {
        /// The pages.
        pages: Vec<(MetaPage, Page)>,
    },
    /// Writes a peer's copy of blocks that were found bad here, where `sums` (those of that copy's data) match our own. The
    /// others stay bad: a copy may be wrong in the very way in which ours is, so its data never correct a sum.
    Repair {
        /// Blocks.
        range: BlockRange,
        /// One sum a block, computed from the data at hand.
        sums: BlockSums,
    },
    /// Sets the sums that blocks should have, and writes no data; their extents are hot. A block that holds something else
    /// reads as bad from then on.
    Expect {
        /// Blocks.
        range: BlockRange,
        /// One sum a block.
        sums: BlockSums,
    },
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyResult {
    /// Done. After a read every block has been checked, and these are the sums of all of them.
    Ok {
        /// Sums of a read; otherwise empty.
        sums: BlockSums,
    },
    /// Read or repair: these blocks do not match their sums, also when read again. The others are good.
    Corrupt {
        /// Runs of bad blocks, ascending.
        bad: Vec<BlockRange>,
        /// Of a read, the sums that its blocks should have, one a block; otherwise empty.
        sums: BlockSums,
    },
    /// The store has no space left. Nothing was written (heat) or parts may have been.
    NoSpace,
    /// The medium failed.
    Failed,
}

/// Numbers a raw operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawId(pub u64);

/// A raw operation on the store. Raw operations given out together may land in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawOp {
    /// Read blocks of the data area. With `tag` the shell keeps them as (part of) that read operation's data, in place
    /// of what it may hold of them; without, only for their sums. Answered by `RawResult::Sums`.
    ReadData {
        /// The operation whose data it is.
        tag: Option<u64>,
        /// Blocks.
        range: BlockRange,
    },
    /// Write, zero or discard blocks of the data area, with the payload of operation `tag`: the part of it that begins
    /// `first` blocks from its start.
    WriteData {
        /// The operation.
        tag: u64,
        /// First block of the payload.
        first: u64,
        /// Blocks.
        range: BlockRange,
        /// Effect.
        kind: WriteKind,
        /// On stable media at the end.
        fua: bool,
    },
    /// Read a page. Answered by `RawResult::Page`.
    ReadPage {
        /// The page.
        page: MetaPage,
    },
    /// Write a page.
    WritePage {
        /// The page.
        page: MetaPage,
        /// Its content.
        bytes: Page,
        /// On stable media at the end.
        durable: bool,
    },
    /// Put everything that has ended on stable media.
    Flush,
    /// Reserve space for the data of an extent, so that writes to it cannot run out of it. Does nothing on a store
    /// whose space is its own.
    Reserve {
        /// The extent.
        extent: u64,
    },
}

/// How a raw operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawResult {
    /// Done.
    Done,
    /// A read of data: the sums of what was read.
    Sums(BlockSums),
    /// A read of a page: what it holds.
    Page(Page),
    /// No space.
    NoSpace,
    /// The medium failed.
    Failed,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Carry out a raw operation and answer with [`LocalCopy::raw_done`].
    Raw {
        /// Its number.
        raw: RawId,
        /// What to do.
        op: RawOp,
    },
    /// An operation has ended.
    Done {
        /// As given to [`LocalCopy::start`].
        tag: u64,
        /// How.
        result: CopyResult,
    },
}

/// What has been found and mended since the copy was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blocks that did not match their sum. One that is bad counts once until it is written.
    pub mismatches: u64,
    /// Of those: matched when read again.
    pub reread: u64,
    /// Of those: written anew from a peer's copy.
    pub repaired: u64,
    /// Checksum or index pages that were damaged.
    pub pages_damaged: u64,
    /// Blocks whose sum was unknown and was taken from the data.
    pub unverified: u64,
}
