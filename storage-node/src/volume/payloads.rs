//! The bytes that the shell holds on the replica's behalf, by the name the replica knows them under.

use block_device::AlignedBuf;
use bytes::Bytes;
use proto::{BLOCK_BYTES, BlockRange};
use replication::action::PayloadSlice;
use replication::event::PayloadId;
use rustc_hash::FxHashMap;

/// Bytes in the digest of one block (blake3, cut).
pub(crate) const DIGEST_BYTES: usize = 16;
/// Payload bytes of received frames held for one volume; a peer that sends more loses its link.
pub(crate) const FRAME_BYTES_HELD_MAX: u64 = 256 << 20;

/// What is held under one name.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// Whole blocks, or a frame's payload.
    Whole(Bytes),
    /// A client's bytes that begin `skip` bytes into their first block.
    Partial { skip: usize, data: Bytes },
}

/// Payloads by name.
#[derive(Debug, Default)]
pub(crate) struct Payloads {
    held: FxHashMap<PayloadId, Held>,
    frame_bytes: u64,
    next_frame: u64,
}

impl Payloads {
    /// Holds `bytes` under `id`, replacing what was there.
    pub(crate) fn hold(&mut self, id: PayloadId, held: Held) {
        self.held.insert(id, held);
    }

    /// Holds a frame's payload under a new name.
    pub(crate) fn hold_frame(&mut self, bytes: Bytes) -> PayloadId {
        self.next_frame += 1;
        self.frame_bytes += bytes.len() as u64;
        let id = PayloadId::Frame(self.next_frame);
        self.held.insert(id, Held::Whole(bytes));
        id
    }

    /// True when received frames hold more than they may.
    pub(crate) fn is_over_frame_bound(&self) -> bool {
        self.frame_bytes > FRAME_BYTES_HELD_MAX
    }

    /// Forgets a payload; nothing happens when it is gone already.
    pub(crate) fn release(&mut self, id: PayloadId) -> Option<Held> {
        let held = self.held.remove(&id);
        if let (PayloadId::Frame(_), Some(Held::Whole(bytes))) = (id, &held) {
            self.frame_bytes -= bytes.len() as u64;
        }
        held
    }

    /// Whole bytes under `id`.
    pub(crate) fn whole(&self, id: PayloadId) -> Option<&Bytes> {
        match self.held.get(&id) {
            Some(Held::Whole(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// A client's partial bytes under `id`.
    pub(crate) fn partial(&self, id: PayloadId) -> Option<(usize, Bytes)> {
        match self.held.get(&id) {
            Some(Held::Partial { skip, data }) => Some((*skip, data.clone())),
            _ => None,
        }
    }

    /// Part of a payload; `None` when it is not held or too short.
    pub(crate) fn slice(&self, slice: PayloadSlice) -> Option<Bytes> {
        let bytes = self.whole(slice.id)?;
        let start = usize::try_from(slice.first.checked_mul(BLOCK_BYTES)?).ok()?;
        let end = start.checked_add(usize::try_from(slice.blocks.checked_mul(BLOCK_BYTES)?).ok()?)?;
        (end <= bytes.len()).then(|| bytes.slice(start..end))
    }
}

/// Whole blocks for `range`: the client's `data`, `skip` bytes in, over the old `edges` (block number, content).
pub(crate) fn merge(range: BlockRange, skip: usize, data: &[u8], edges: &[(u64, Bytes)]) -> Bytes {
    let mut merged = AlignedBuf::zeroed(range.length_bytes() as usize);
    for (block, content) in edges {
        let at = ((block - range.start) * BLOCK_BYTES) as usize;
        merged[at..at + BLOCK_BYTES as usize].copy_from_slice(content);
    }
    merged[skip..skip + data.len()].copy_from_slice(data);
    merged.freeze()
}

/// One digest per block of `data`.
pub(crate) fn digests(data: &[u8]) -> Bytes {
    let blocks = data.chunks_exact(BLOCK_BYTES as usize);
    let mut out = Vec::with_capacity(data.len() / BLOCK_BYTES as usize * DIGEST_BYTES);
    blocks.for_each(|block| out.extend_from_slice(&blake3::hash(block).as_bytes()[..DIGEST_BYTES]));
    Bytes::from(out)
}

/// The blocks of `range` whose content in `ours` has another digest than in `theirs`, as runs. Digests that are missing
/// or too many count as different: they come from the network.
pub(crate) fn differing(range: BlockRange, ours: &[u8], theirs: &[u8]) -> Vec<BlockRange> {
    if ours.len() as u64 != range.length_bytes() || theirs.len() != range.count as usize * DIGEST_BYTES {
        return vec![range];
    }
    let mut runs: Vec<BlockRange> = Vec::new();
    let pairs = ours.chunks_exact(BLOCK_BYTES as usize).zip(theirs.chunks_exact(DIGEST_BYTES));
    for (block, (content, digest)) in range.blocks().zip(pairs) {
        if blake3::hash(content).as_bytes()[..DIGEST_BYTES] == *digest {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end() == block => run.count += 1,
            _ => runs.push(BlockRange::new(block, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use replication::event::OpId;

    fn block(byte: u8) -> Bytes {
        Bytes::from(vec![byte; BLOCK_BYTES as usize])
    }

    #[test]
    fn merge_keeps_the_bytes_around_the_clients() {
        let range = BlockRange::new(10, 3);
        let data = vec![9u8; 4096 + 200];
        let merged = merge(range, 4000, &data, &[(10, block(1)), (12, block(3))]);
        assert!(merged[..4000].iter().all(|b| *b == 1));
        assert!(merged[4000..4000 + data.len()].iter().all(|b| *b == 9));
        assert_eq!(4000 + data.len(), 8296);
        assert!(merged[8296..].iter().all(|b| *b == 3));
    }

    #[test]
    fn differing_blocks_come_back_as_runs() {
        let range = BlockRange::new(5, 4);
        let ours = [block(1), block(2), block(3), block(4)].concat();
        let theirs = digests(&[block(1), block(7), block(8), block(4)].concat());
        assert_eq!(differing(range, &ours, &theirs), [BlockRange::new(6, 2)]);
        assert!(differing(range, &ours, &digests(&ours)).is_empty());
    }

    #[test]
    fn digests_of_the_wrong_length_differ_everywhere() {
        let range = BlockRange::new(0, 2);
        let ours = [block(1), block(2)].concat();
        assert_eq!(differing(range, &ours, &digests(&ours)[..17]), [range]);
        assert_eq!(differing(range, &ours[..4096], &digests(&ours)), [range]);
    }

    #[test]
    fn slices_outside_a_payload_are_none() {
        let mut payloads = Payloads::default();
        let id = PayloadId::Client(OpId(1));
        payloads.hold(id, Held::Whole(block(1)));
        assert_eq!(payloads.slice(PayloadSlice { id, first: 0, blocks: 1 }).map(|b| b.len()), Some(4096));
        assert!(payloads.slice(PayloadSlice { id, first: 0, blocks: 2 }).is_none());
        assert!(payloads.slice(PayloadSlice { id, first: u64::MAX, blocks: 2 }).is_none());
    }

    #[test]
    fn frame_bytes_are_counted_until_released() {
        let mut payloads = Payloads::default();
        let large = Bytes::from(vec![0; FRAME_BYTES_HELD_MAX as usize / 2 + 1]);
        let first = payloads.hold_frame(large.clone());
        assert!(!payloads.is_over_frame_bound());
        payloads.hold_frame(large);
        assert!(payloads.is_over_frame_bound());
        payloads.release(first);
        payloads.release(first);
        assert!(!payloads.is_over_frame_bound());
    }
}
