//! The bytes that the shell holds on the replica's behalf, by the name the replica knows them under.

use std::sync::OnceLock;

use block_device::AlignedBuf;
use bytes::Bytes;
use proto::checksum::BlockSums;
use proto::{BLOCK_BYTES, BlockRange};
use replication::action::PayloadSlice;
use replication::event::PayloadId;
use rustc_hash::FxHashMap;

/// Bytes in the digest of one block (blake3, cut).
pub(crate) const DIGEST_BYTES: usize = 16;
/// A block of zeros.
static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
/// Payload bytes of received frames held for one volume; a peer that sends more loses its link.
pub(crate) const FRAME_BYTES_HELD_MAX: u64 = 256 << 20;

/// What is held under one name.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// Whole blocks with their checksums, one for each; or a frame's payload that is no data, without.
    Whole { data: Bytes, sums: BlockSums },
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

    /// Holds a frame's payload under a new name; `sums` are those of its blocks if it is data.
    pub(crate) fn hold_frame(&mut self, data: Bytes, sums: BlockSums) -> PayloadId {
        self.next_frame += 1;
        self.frame_bytes += data.len() as u64;
        let id = PayloadId::Frame(self.next_frame);
        self.held.insert(id, Held::Whole { data, sums });
        id
    }

    /// True when received frames hold more than they may.
    pub(crate) fn is_over_frame_bound(&self) -> bool {
        self.frame_bytes > FRAME_BYTES_HELD_MAX
    }

    /// Forgets a payload; nothing happens when it is gone already.
    pub(crate) fn release(&mut self, id: PayloadId) -> Option<Held> {
        let held = self.held.remove(&id);
        if let (PayloadId::Frame(_), Some(Held::Whole { data, .. })) = (id, &held) {
            self.frame_bytes -= data.len() as u64;
        }
        held
    }

    /// Whole bytes under `id`.
    pub(crate) fn whole(&self, id: PayloadId) -> Option<&Bytes> {
        match self.held.get(&id) {
            Some(Held::Whole { data, .. }) => Some(data),
            _ => None,
        }
    }

    /// Whole blocks under `id` and their checksums, one for each.
    pub(crate) fn blocks(&self, id: PayloadId) -> Option<(&Bytes, &BlockSums)> {
        match self.held.get(&id) {
            Some(Held::Whole { data, sums }) if sums.len() as u64 * BLOCK_BYTES == data.len() as u64 => {
                Some((data, sums))
            }
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

    /// Part of a payload of whole blocks, and its checksums; `None` when it is not held or too short.
    pub(crate) fn slice(&self, slice: PayloadSlice) -> Option<(Bytes, &[u32])> {
        let (data, sums) = self.blocks(slice.id)?;
        let first = usize::try_from(slice.first).ok()?;
        let end = first.checked_add(usize::try_from(slice.blocks).ok()?)?;
        let sums = sums.get(first..end)?;
        // No overflow: so many checksums are held.
        Some((data.slice(first * BLOCK_BYTES as usize..end * BLOCK_BYTES as usize), sums))
    }
}

/// Whole blocks for `range`: the client's `data`, `skip` bytes in, over the old `edges` (number of the first block, content
/// of it and perhaps of those after it).
pub(crate) fn merge(range: BlockRange, skip: usize, data: &[u8], edges: &[(u64, Bytes)]) -> Bytes {
    let mut merged = AlignedBuf::zeroed(range.length_bytes() as usize);
    for (block, content) in edges {
        let at = ((block - range.start) * BLOCK_BYTES) as usize;
        merged[at..at + content.len()].copy_from_slice(content);
    }
    merged[skip..skip + data.len()].copy_from_slice(data);
    merged.freeze()
}

/// One digest per block of `data`.
pub(crate) fn digests(data: &[u8]) -> Bytes {
    let blocks = data.chunks_exact(BLOCK_BYTES as usize);
    let mut out = Vec::with_capacity(data.len() / BLOCK_BYTES as usize * DIGEST_BYTES);
    blocks.for_each(|block| out.extend_from_slice(&digest(block)));
    Bytes::from(out)
}

/// The digest of one block. Holes are most of what a new copy is asked about, and looking is much faster than hashing.
fn digest(block: &[u8]) -> [u8; DIGEST_BYTES] {
    if is_zero(block) { *digest_of_zeros() } else { hash(block) }
}

/// Whether `block` has this digest. One that is not zeros is not hashed to be told from one that is.
fn has_digest(block: &[u8], wanted: &[u8]) -> bool {
    match (is_zero(block), wanted == digest_of_zeros()) {
        (false, false) => hash(block) == wanted,
        (ours, theirs) => ours == theirs,
    }
}

fn hash(block: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut digest = [0; DIGEST_BYTES];
    digest.copy_from_slice(&blake3::hash(block).as_bytes()[..DIGEST_BYTES]);
    digest
}

fn digest_of_zeros() -> &'static [u8; DIGEST_BYTES] {
    static DIGEST: OnceLock<[u8; DIGEST_BYTES]> = OnceLock::new();
    DIGEST.get_or_init(|| hash(&ZEROS))
}

/// True when the block holds nothing but zeros; most others show in their first bytes.
fn is_zero(block: &[u8]) -> bool {
    block.chunks(ZEROS.len()).all(|part| *part == ZEROS[..part.len()])
}

/// The blocks of `range` whose content in `ours` has another digest than in `theirs`, as runs. Digests that are missing
/// or too many count as different: they come from the network.
pub(crate) fn differing(range: BlockRange, ours: &[u8], theirs: &[u8]) -> Vec<BlockRange> {
    if ours.len() as u64 != range.length_bytes() || theirs.len() != range.count as usize * DIGEST_BYTES {
        return vec![range];
    }
    let pairs = ours.chunks_exact(BLOCK_BYTES as usize).zip(theirs.chunks_exact(DIGEST_BYTES));
    runs_of(range.blocks().zip(pairs).filter(|(_, (ours, theirs))| !has_digest(ours, theirs)))
}

/// The blocks of `range` that hold anything but zeros, as runs.
pub(crate) fn not_zeros(range: BlockRange, ours: &[u8]) -> Vec<BlockRange> {
    runs_of(range.blocks().zip(ours.chunks_exact(BLOCK_BYTES as usize)).filter(|(_, block)| !is_zero(block)))
}

/// Checksums as they travel: 4 bytes each, little-endian.
pub(crate) fn sum_bytes(sums: &[u32]) -> Bytes {
    sums.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// The blocks of `range` whose checksum in `ours` is another one than in `theirs` (as they travel), as runs. Checksums that
/// are missing or too many count as different: they come from the network.
pub(crate) fn differing_sums(range: BlockRange, ours: &[u32], theirs: &[u8]) -> Vec<BlockRange> {
    let (theirs, rest) = theirs.as_chunks::<4>();
    if ours.len() as u64 != range.count || theirs.len() as u64 != range.count || !rest.is_empty() {
        return vec![range];
    }
    let pairs = ours.iter().zip(theirs);
    runs_of(range.blocks().zip(pairs).filter(|(_, (ours, theirs))| **ours != u32::from_le_bytes(**theirs)))
}

/// Numbers of blocks, ascending, as runs.
fn runs_of<T>(blocks: impl Iterator<Item = (u64, T)>) -> Vec<BlockRange> {
    let mut runs: Vec<BlockRange> = Vec::new();
    for (block, _) in blocks {
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
    fn zeros_are_told_from_data_as_by_their_hash() {
        let mut nearly = vec![0; BLOCK_BYTES as usize];
        *nearly.last_mut().unwrap() = 1;
        let nearly = Bytes::from(nearly);
        let hashed: Vec<u8> = [block(0), nearly.clone()]
            .iter()
            .flat_map(|b| blake3::hash(b).as_bytes()[..DIGEST_BYTES].to_vec())
            .collect();
        assert_eq!(digests(&[block(0), nearly.clone()].concat()), hashed);
        let range = BlockRange::new(5, 4);
        let ours = [block(0), block(0), nearly.clone(), nearly.clone()].concat();
        let theirs = digests(&[block(0), nearly.clone(), block(0), nearly].concat());
        assert_eq!(differing(range, &ours, &theirs), [BlockRange::new(6, 2)]);
        assert_eq!(not_zeros(range, &ours), [BlockRange::new(7, 2)]);
    }

    #[test]
    fn digests_of_the_wrong_length_differ_everywhere() {
        let range = BlockRange::new(0, 2);
        let ours = [block(1), block(2)].concat();
        assert_eq!(differing(range, &ours, &digests(&ours)[..17]), [range]);
        assert_eq!(differing(range, &ours[..4096], &digests(&ours)), [range]);
    }

    #[test]
    fn differing_checksums_come_back_as_runs() {
        let range = BlockRange::new(5, 4);
        let theirs = sum_bytes(&[1, 7, 8, 4]);
        assert_eq!(differing_sums(range, &[1, 2, 3, 4], &theirs), [BlockRange::new(6, 2)]);
        assert!(differing_sums(range, &[1, 7, 8, 4], &theirs).is_empty());
        for wrong in [&theirs[..12], &theirs[..15], &[]] {
            assert_eq!(differing_sums(range, &[1, 7, 8, 4], wrong), [range]);
        }
        assert_eq!(differing_sums(range, &[1, 7, 8], &theirs), [range]);
    }

    #[test]
    fn slices_outside_a_payload_are_none() {
        let mut payloads = Payloads::default();
        let id = PayloadId::Client(OpId(1));
        payloads
            .hold(id, Held::Whole { data: [block(1), block(2)].concat().into(), sums: BlockSums::from_slice(&[8, 9]) });
        let second = payloads.slice(PayloadSlice { id, first: 1, blocks: 1 }).unwrap();
        assert_eq!(second, (block(2), &[9][..]));
        assert!(payloads.slice(PayloadSlice { id, first: 2, blocks: 1 }).is_none());
        assert!(payloads.slice(PayloadSlice { id, first: 0, blocks: 3 }).is_none());
        assert!(payloads.slice(PayloadSlice { id, first: u64::MAX, blocks: 2 }).is_none());
    }

    #[test]
    fn frame_bytes_are_counted_until_released() {
        let mut payloads = Payloads::default();
        let large = Bytes::from(vec![0; FRAME_BYTES_HELD_MAX as usize / 2 + 1]);
        let first = payloads.hold_frame(large.clone(), BlockSums::new());
        assert!(!payloads.is_over_frame_bound());
        payloads.hold_frame(large, BlockSums::new());
        assert!(payloads.is_over_frame_bound());
        payloads.release(first);
        payloads.release(first);
        assert!(!payloads.is_over_frame_bound());
    }
}
