//! The volume as a [`BlockDevice`] for clients on its shard: bytes to blocks, and bounded admission.
//!
//! A future that is dropped (its client went away) leaves its operation to end by itself; what it was admitted for is
//! returned then, not before.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use block_device::{AlignedBuf, Allocation, BatchWrite, BlockDevice, BlockError, ByteRange};
use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use proto::checksum::Salt;
use proto::peer::message::WriteKind;
use proto::{BLOCK_BYTES, BlockRange, NodeId, VolumeId};
use replication::Refusal;
use replication::config::ClusterState;
use replication::event::{Coverage, OpId, Request};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::cut::{self, WritePiece};
use super::handle::Acknowledged;
use super::inbox::{Inbox, Input};
use super::payloads::Held;
use crate::disk::Store;

/// Operations of clients that may be open on one volume; more wait.
pub const OPERATIONS_OPEN_MAX: usize = 1024;
/// Blocks of data that those operations may hold together (64 MiB); more wait.
pub const BLOCKS_OPEN_MAX: u32 = 16 * 1024;
/// Blocks in one write batch sent to the replica as one message (16 MiB); a larger one goes as several, in order.
pub const BATCH_BLOCKS_MAX: u64 = 4096;

static ZEROES: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// What the device, the sessions and the actor of a volume share on its shard.
pub(crate) struct Shared {
    pub(crate) inbox: Rc<Inbox>,
    pub(crate) size_bytes: u64,
    /// Open while the local disk is in use.
    pub(crate) store: RefCell<Option<Store>>,
    /// The store's copy is in sync: its holes are the volume's.
    pub(crate) local: Cell<bool>,
    /// Cancelled when this node stops serving the volume; a new one stands for the next time.
    pub(crate) serving: RefCell<CancellationToken>,
    /// Clients' sessions running.
    pub(crate) clients: Cell<usize>,
    /// The filesystem engine, or what makes or checks a filesystem, has the volume; then there are no clients.
    pub(crate) files: Cell<bool>,
    /// Of the volume's checksums: they are computed here, where data enters.
    salt: Salt,
    operations: Arc<Semaphore>,
    blocks: Arc<Semaphore>,
    next_op: Cell<u64>,
    /// Operations that were acknowledged.
    pub(crate) acknowledged: Cell<Acknowledged>,
    cluster: watch::Receiver<Arc<ClusterState>>,
}

/// How an operation ended: for reads with the blocks.
pub(crate) type Answer = Result<Option<Bytes>, Refusal>;

/// What the actor keeps of a client's open operation.
pub(crate) struct OpenOperation {
    answer: oneshot::Sender<Answer>,
    _operation: OwnedSemaphorePermit,
    _blocks: OwnedSemaphorePermit,
}

impl OpenOperation {
    /// Wakes the client, if it is still there, and makes room for another operation.
    pub(crate) fn end(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }
}

impl Shared {
    pub(crate) fn new(
        inbox: Rc<Inbox>,
        volume: VolumeId,
        size_bytes: u64,
        cluster: watch::Receiver<Arc<ClusterState>>,
    ) -> Self {
        Self {
            inbox,
            size_bytes,
            salt: Salt::of(volume),
            store: RefCell::new(None),
            local: Cell::new(false),
            serving: RefCell::new(CancellationToken::new()),
            clients: Cell::new(0),
            files: Cell::new(false),
            operations: Arc::new(Semaphore::new(OPERATIONS_OPEN_MAX)),
            blocks: Arc::new(Semaphore::new(BLOCKS_OPEN_MAX as usize)),
            next_op: Cell::new(0),
            acknowledged: Cell::default(),
            cluster,
        }
    }

    /// Waits for admission, hands the request to the actor, and waits for its end.
    async fn submit(&self, request: Request, payload: Option<Held>, blocks: u64) -> Result<Option<Bytes>, BlockError> {
        let weight = u32::try_from(blocks).unwrap_or(u32::MAX).clamp(1, BLOCKS_OPEN_MAX);
        let operation = Arc::clone(&self.operations).acquire_owned().await.map_err(|_| BlockError::Closed)?;
        let data = Arc::clone(&self.blocks).acquire_many_owned(weight).await.map_err(|_| BlockError::Closed)?;
        let op = OpId(self.next_op.get() + 1);
        self.next_op.set(op.0);
        let (answer, answered) = oneshot::channel();
        let open = OpenOperation { answer, _operation: operation, _blocks: data };
        let counted = Acknowledged::of(&request);
        self.inbox.push(Input::Client { op, request, payload, open });
        match answered.await {
            Ok(Ok(data)) => {
                self.acknowledged.set(self.acknowledged.get().plus(counted));
                Ok(data)
            }
            Ok(Err(refusal)) => Err(self.error_of(refusal)),
            Err(_) => Err(BlockError::Closed),
        }
    }

    fn error_of(&self, refusal: Refusal) -> BlockError {
        match refusal {
            Refusal::NotPrimary(node) => BlockError::NotPrimary { primary: self.node_name(node) },
            Refusal::Io | Refusal::TooMany => BlockError::Io,
            Refusal::NoSpace => BlockError::OutOfSpace,
            Refusal::Stopped => BlockError::Closed,
        }
    }

    fn node_name(&self, node: NodeId) -> Option<String> {
        self.cluster.borrow().nodes.get(&node).map(|record| record.name.clone())
    }
}

/// A client's view of the volume.
pub struct VolumeDevice {
    shared: Rc<Shared>,
}

impl VolumeDevice {
    pub(crate) fn new(shared: Rc<Shared>) -> Self {
        Self { shared }
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        let size = self.shared.size_bytes;
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            _ => Err(BlockError::OutOfRange { offset, length, size }),
        }
    }

    async fn read_blocks(&self, range: BlockRange) -> Result<Bytes, BlockError> {
        let data = self.shared.submit(Request::Read { range }, None, range.count).await?;
        // A read that is complete has its data; a shorter one would be served as if it were the volume's content.
        data.filter(|data| data.len() as u64 == range.length_bytes()).ok_or(BlockError::Io)
    }

    async fn write_piece(&self, piece: WritePiece, data: Bytes, fua: bool) -> Result<(), BlockError> {
        let bytes = data.slice(piece.bytes.clone());
        let (coverage, held) = match piece.is_whole() {
            true => {
                let sums = self.shared.salt.sums(piece.range, &bytes);
                (Coverage::Whole, Held::Whole { data: bytes, sums })
            }
            false => (Coverage::Partial, Held::Partial { skip: piece.skip, data: bytes }),
        };
        let request = Request::Write { range: piece.range, kind: WriteKind::Data, fua, coverage };
        self.shared.submit(request, Some(held), piece.range.count).await.map(drop)
    }

    async fn clear(&self, range: ByteRange, kind: WriteKind, fua: bool) -> Result<(), BlockError> {
        self.check(range.offset, range.length)?;
        let plan = cut::clear_plan(range.offset, range.length);
        let edges = plan.edges.into_iter().map(|(offset, length)| {
            let zeroes = Bytes::from_static(&ZEROES).slice(..length as usize);
            self.write(offset, zeroes, fua)
        });
        try_join_all(edges).await?;
        // One after another: a client that clears the whole volume must not fill the admission of the others.
        for piece in plan.middle.into_iter().flat_map(|m| cut::block_pieces(m, cut::CLEAR_PIECE_BLOCKS_MAX)) {
            let request = Request::Write { range: piece, kind, fua, coverage: Coverage::Whole };
            self.shared.submit(request, None, 1).await?;
        }
        Ok(())
    }

    async fn submit_batch(&self, batch: Batch) -> Result<(), BlockError> {
        let mut data = AlignedBuf::to_overwrite((batch.blocks * BLOCK_BYTES) as usize);
        let mut at = 0;
        for part in &batch.parts {
            data[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let sums = self.shared.salt.sums_of_ranges(batch.groups.iter().flatten().copied(), &data);
        let request = Request::WriteBatch { groups: batch.groups };
        let held = Held::Whole { data: data.freeze(), sums };
        self.shared.submit(request, Some(held), batch.blocks).await.map(drop)
    }
}

impl BlockDevice for VolumeDevice {
    fn size_bytes(&self) -> u64 {
        self.shared.size_bytes
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        self.check(range.offset, range.length)?;
        if range.length == 0 {
            return Ok(Bytes::new());
        }
        let covering = BlockRange::covering(range.offset, range.length);
        let skip = (range.offset - covering.offset_bytes()) as usize;
        let wanted = skip..skip + range.length as usize;
        if covering.count <= cut::READ_PIECE_BLOCKS_MAX {
            return Ok(self.read_blocks(covering).await?.slice(wanted));
        }
        let mut all = BytesMut::with_capacity(covering.length_bytes() as usize);
        for piece in cut::block_pieces(covering, cut::READ_PIECE_BLOCKS_MAX) {
            all.extend_from_slice(&self.read_blocks(piece).await?);
        }
        Ok(all.freeze().slice(wanted))
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BlockError> {
        self.check(offset, data.len() as u64)?;
        let mut pieces = cut::write_pieces(offset, data.len() as u64);
        match pieces.len() {
            0 => Ok(()),
            1 => self.write_piece(pieces.remove(0), data, fua).await,
            _ => {
                let writes = pieces.into_iter().map(|piece| self.write_piece(piece, data.clone(), fua));
                try_join_all(writes).await.map(drop)
            }
        }
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.shared.submit(Request::Flush, None, 1).await.map(drop)
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        self.shared.submit(Request::Confirm, None, 1).await.map(drop)
    }

    async fn discard(&self, range: ByteRange, fua: bool) -> Result<(), BlockError> {
        self.clear(range, WriteKind::Discard, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, keep_allocated: bool, fua: bool) -> Result<(), BlockError> {
        let kind = if keep_allocated { WriteKind::Zeroes } else { WriteKind::Discard };
        self.clear(range, kind, fua).await
    }

    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        for write in groups.iter().flatten() {
            self.check(write.offset, write.data.len() as u64)?;
            if !write.offset.is_multiple_of(BLOCK_BYTES) || !(write.data.len() as u64).is_multiple_of(BLOCK_BYTES) {
                let (offset, length, size) = (write.offset, write.data.len() as u64, self.shared.size_bytes);
                return Err(BlockError::OutOfRange { offset, length, size });
            }
        }
        for batch in plan_batches(groups) {
            self.submit_batch(batch).await?;
        }
        Ok(())
    }

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        self.check(range.offset, range.length)?;
        if range.length == 0 {
            return Ok(Vec::new());
        }
        let covering = BlockRange::covering(range.offset, range.length);
        let described = match &*self.shared.store.borrow() {
            Some(store) if self.shared.local.get() => store.allocation(covering).map_err(|_| BlockError::Io)?,
            _ => vec![(covering, false)],
        };
        // "It is a hole" tells a client what it would read, so it takes the same check of the lease as a read does: the
        // local store may be that of a primary that was replaced.
        self.confirm().await?;
        Ok(cut_allocation(range, &described))
    }
}

/// Part of a write batch, small enough to be one message.
#[derive(Debug, Default)]
struct Batch {
    groups: Vec<Vec<BlockRange>>,
    parts: Vec<Bytes>,
    blocks: u64,
}

/// Cuts groups into batches of bounded size. What would overlap within a group, or not fit, moves to a later group: that
/// keeps the order asked for, and adds a barrier at most.
fn plan_batches(groups: Vec<Vec<BatchWrite>>) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut batch = Batch::default();
    for group in groups {
        let mut open: Vec<BlockRange> = Vec::new();
        for write in group {
            let whole = BlockRange::covering(write.offset, write.data.len() as u64);
            for range in cut::block_pieces(whole, BATCH_BLOCKS_MAX) {
                let from = (range.offset_bytes() - write.offset) as usize;
                let part = write.data.slice(from..from + range.length_bytes() as usize);
                if batch.blocks + range.count > BATCH_BLOCKS_MAX {
                    batch.close_group(&mut open);
                    batches.push(std::mem::take(&mut batch));
                }
                if open.iter().any(|other| other.overlaps(range)) {
                    batch.close_group(&mut open);
                }
                open.push(range);
                batch.blocks += range.count;
                batch.parts.push(part);
            }
        }
        batch.close_group(&mut open);
    }
    if !batch.groups.is_empty() {
        batches.push(batch);
    }
    batches
}

impl Batch {
    fn close_group(&mut self, open: &mut Vec<BlockRange>) {
        if !open.is_empty() {
            self.groups.push(std::mem::take(open));
        }
    }
}

/// Cuts a description of whole blocks down to the bytes asked for.
fn cut_allocation(range: ByteRange, described: &[(BlockRange, bool)]) -> Vec<Allocation> {
    let end = range.offset + range.length;
    let mut runs: Vec<Allocation> = Vec::with_capacity(described.len());
    for (blocks, hole) in described {
        let from = blocks.offset_bytes().max(range.offset);
        let to = (blocks.offset_bytes() + blocks.length_bytes()).min(end);
        if from >= to {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.hole == *hole => last.range.length += to - from,
            _ => runs.push(Allocation { range: ByteRange { offset: from, length: to - from }, hole: *hole }),
        }
    }
    runs
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
