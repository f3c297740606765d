//! The arithmetic between a client's bytes and the replica's whole blocks. Pure.

use std::ops::Range;

use proto::{BLOCK_BYTES, BlockRange};

/// Blocks in one piece of a large write (4 MiB): pieces travel and land in parallel, and none holds a link for long.
pub(crate) const WRITE_PIECE_BLOCKS_MAX: u64 = 1024;
/// Blocks in one piece of a large read (32 MiB and the two edges): a request of the protocol's limit is one read.
pub(crate) const READ_PIECE_BLOCKS_MAX: u64 = 8194;
/// Blocks in one piece of zeroes or discard (64 MiB, 16 extents of the activity log).
pub(crate) const CLEAR_PIECE_BLOCKS_MAX: u64 = 16 * 1024;

/// Part of a client's write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WritePiece {
    /// Blocks it touches.
    pub(crate) range: BlockRange,
    /// Which of the client's bytes it takes.
    pub(crate) bytes: Range<usize>,
    /// Bytes of the first block that stay before them.
    pub(crate) skip: usize,
}

impl WritePiece {
    /// True when it covers its blocks wholly.
    pub(crate) fn is_whole(&self) -> bool {
        self.skip == 0 && self.bytes.len() as u64 == self.range.length_bytes()
    }
}

/// Cuts a write of `length` bytes at `offset` into pieces that share no block.
pub(crate) fn write_pieces(offset: u64, length: u64) -> Vec<WritePiece> {
    let mut pieces = Vec::with_capacity(1);
    let end = offset + length;
    let mut at = offset;
    while at < end {
        let first = at / BLOCK_BYTES;
        let limit = (first + WRITE_PIECE_BLOCKS_MAX) * BLOCK_BYTES;
        let stop = end.min(limit);
        pieces.push(WritePiece {
            range: BlockRange::covering(at, stop - at),
            bytes: (at - offset) as usize..(stop - offset) as usize,
            skip: (at % BLOCK_BYTES) as usize,
        });
        at = stop;
    }
    pieces
}

/// Cuts a run of blocks into runs of at most `max`.
pub(crate) fn block_pieces(range: BlockRange, max: u64) -> impl Iterator<Item = BlockRange> {
    (0..range.count.div_ceil(max)).map(move |index| {
        let start = range.start + index * max;
        BlockRange::new(start, max.min(range.end() - start))
    })
}

/// How to make a run of bytes read as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClearPlan {
    /// Blocks covered wholly.
    pub(crate) middle: Option<BlockRange>,
    /// Byte runs (offset, length), each inside one block, to be overwritten with zeros.
    pub(crate) edges: Vec<(u64, u64)>,
}

/// Plans clearing `length` bytes at `offset`.
pub(crate) fn clear_plan(offset: u64, length: u64) -> ClearPlan {
    let end = offset + length;
    let first_whole = offset.div_ceil(BLOCK_BYTES);
    let end_whole = end / BLOCK_BYTES;
    if length == 0 {
        return ClearPlan { middle: None, edges: Vec::new() };
    }
    if first_whole > end_whole {
        return ClearPlan { middle: None, edges: vec![(offset, length)] };
    }
    let mut edges = Vec::new();
    if offset < first_whole * BLOCK_BYTES {
        edges.push((offset, first_whole * BLOCK_BYTES - offset));
    }
    if end_whole * BLOCK_BYTES < end {
        edges.push((end_whole * BLOCK_BYTES, end - end_whole * BLOCK_BYTES));
    }
    let middle = (end_whole > first_whole).then(|| BlockRange::new(first_whole, end_whole - first_whole));
    ClearPlan { middle, edges }
}

/// The blocks whose old content a partial write needs: the first, the last, both, or one that is both.
pub(crate) fn edge_blocks(range: BlockRange, skip: usize, length: usize) -> Vec<BlockRange> {
    let end_in_last = (skip + length) as u64 % BLOCK_BYTES;
    let mut edges = Vec::with_capacity(2);
    if skip > 0 {
        edges.push(BlockRange::new(range.start, 1));
    }
    let last = BlockRange::new(range.end() - 1, 1);
    if end_in_last != 0 && edges.first() != Some(&last) {
        edges.push(last);
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans() -> impl Iterator<Item = (u64, u64)> {
        let points = [0, 1, 511, 512, 4095, 4096, 4097, 8191, 8192, 12288, 4194303, 4194304, 4194305, 9000000];
        points.into_iter().flat_map(move |offset| points.into_iter().map(move |length| (offset, length)))
    }

    #[test]
    fn write_pieces_cover_every_byte_once_and_touch_no_block_twice() {
        for (offset, length) in spans() {
            let pieces = write_pieces(offset, length);
            let mut at = 0;
            let mut next_block = 0;
            for piece in &pieces {
                assert_eq!(piece.bytes.start, at);
                assert_eq!(piece.range.offset_bytes() + piece.skip as u64, offset + at as u64);
                assert!(piece.skip as u64 + piece.bytes.len() as u64 <= piece.range.length_bytes());
                assert!(piece.range.count <= WRITE_PIECE_BLOCKS_MAX && piece.range.start >= next_block);
                at = piece.bytes.end;
                next_block = piece.range.end();
            }
            assert_eq!(at as u64, length);
        }
    }

    #[test]
    fn clear_plans_cover_exactly_the_bytes() {
        for (offset, length) in spans() {
            let plan = clear_plan(offset, length);
            let mut runs = plan.edges.clone();
            runs.extend(plan.middle.map(|m| (m.offset_bytes(), m.length_bytes())));
            runs.sort_unstable();
            let mut at = offset;
            for (start, count) in runs {
                assert_eq!(start, at, "gap or overlap in {offset}+{length}");
                at += count;
            }
            assert_eq!(at, offset + length);
            for (start, count) in plan.edges {
                assert_eq!(BlockRange::covering(start, count).count, 1);
            }
        }
    }

    #[test]
    fn edge_blocks_are_those_partly_covered() {
        for (offset, length) in spans().filter(|(_, length)| *length > 0) {
            let range = BlockRange::covering(offset, length);
            let expected: Vec<u64> = [range.start, range.end() - 1]
                .into_iter()
                .filter(|block| offset > block * BLOCK_BYTES || offset + length < (block + 1) * BLOCK_BYTES)
                .collect();
            let found = edge_blocks(range, (offset % BLOCK_BYTES) as usize, length as usize);
            let mut numbers: Vec<u64> = expected;
            numbers.dedup();
            assert_eq!(found.iter().map(|r| r.start).collect::<Vec<_>>(), numbers, "{offset}+{length}");
        }
    }

    #[test]
    fn block_pieces_are_bounded_and_complete() {
        let range = BlockRange::new(7, 25);
        let pieces: Vec<_> = block_pieces(range, 10).collect();
        assert_eq!(pieces, [BlockRange::new(7, 10), BlockRange::new(17, 10), BlockRange::new(27, 5)]);
    }
}
