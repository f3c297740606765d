//! Sums that a copy takes over from a peer, for blocks of which the peer has nothing better.

use proto::BlockRange;
use proto::checksum::BlockSums;

use super::engine::{LocalCopy, Next, Op, done};
use super::extents::{Extents, Heat};

impl LocalCopy {
    /// Like the sums of a write they are on stable media once the extent is cold; a crash before that forgets them.
    pub(super) fn start_expect(&mut self, range: BlockRange, sums: &BlockSums) -> (Op, Next) {
        assert_eq!(sums.len() as u64, range.count, "one sum a block");
        let cold = Extents::of(range).find(|extent| self.extents.heat(*extent) != Heat::Hot);
        assert!(cold.is_none(), "sums of cold extent {cold:?} are to be set");
        for (block, &sum) in range.blocks().zip(sums) {
            self.extents.set_sum(block, sum);
        }
        (Op::Expect, done())
    }
}
