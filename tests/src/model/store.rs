//! The disk of one box: what reads return, what survives a power cut, and the small durable state beside the data.
//!
//! Only two blocks of the volume are ever written, each in an extent of its own. Every other block is zeros on both sides.

use std::collections::BTreeSet;

use proto::{BlockRange, Boot, ConfigVersion, DiskId, EXTENT_BLOCKS, Epoch};
use replication::local_copy::Hot;
use replication::{Attachment, DiskReport, IoId};

/// Blocks that are written.
pub const BLOCKS: usize = 2;
/// Where they lie in the volume.
pub const PLACES: [u64; BLOCKS] = [0, EXTENT_BLOCKS];
/// Blocks of the volume.
pub const VOLUME_BLOCKS: u64 = EXTENT_BLOCKS + 1;

/// Values of the two blocks.
pub type Values = [u8; BLOCKS];

/// Which of the two blocks lie in `range`.
pub fn covered(range: BlockRange) -> impl Iterator<Item = usize> {
    (0..BLOCKS).filter(move |block| range.blocks().contains(&PLACES[*block]))
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Reads both blocks (sampled when it is given out).
    Read(Values),
    /// Stores values.
    Write {
        /// New values; none: the block is not touched.
        values: [Option<u8>; BLOCKS],
        /// Epoch under which it was given out.
        epoch: Epoch,
    },
    /// Puts on stable media what was stored when it was given out.
    Flush(Values),
    /// Records the state of the copy.
    State(ConfigVersion, bool),
    /// Records the fence.
    Fence(Epoch, ConfigVersion),
    /// Makes extents hot.
    Heat(Vec<u64>),
}

/// An operation in flight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Inflight {
    /// Its number (a fence has none of its own).
    pub io: IoId,
    /// What it does.
    pub work: Work,
    /// It may take for ever.
    pub slow: bool,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    /// Its id.
    pub disk_id: DiskId,
    /// Per block: the value on stable media, then every value stored since.
    pub versions: [Vec<u8>; BLOCKS],
    /// Version at which it knows it is in sync.
    pub last_in_sync: ConfigVersion,
    /// It may hold less than it acknowledged.
    pub suspect: bool,
    /// Power-on under which it was opened.
    pub opened: Option<Boot>,
    /// The durable fence.
    pub fence: (Epoch, ConfigVersion),
    /// Extents that are hot.
    pub hot: BTreeSet<u64>,
    /// Newest epoch under which a write was given out.
    pub begun: Epoch,
}

impl Store {
    /// A new copy, all zeros.
    pub fn new(disk_id: DiskId) -> Self {
        Self {
            disk_id,
            versions: [vec![0], vec![0]],
            last_in_sync: ConfigVersion(0),
            suspect: false,
            opened: None,
            fence: (Epoch(0), ConfigVersion(0)),
            hot: BTreeSet::new(),
            begun: Epoch(0),
        }
    }

    /// What a read of `block` returns.
    pub fn value(&self, block: usize) -> u8 {
        self.versions[block].last().copied().unwrap_or(0)
    }

    /// What reads of both blocks return.
    pub fn values(&self) -> Values {
        [self.value(0), self.value(1)]
    }

    /// Opens it during power-on `boot`.
    pub fn open(&mut self, boot: Boot) -> Attachment {
        self.suspect |= self.opened.is_some_and(|opened| opened != boot);
        self.opened = Some(boot);
        let report = DiskReport {
            disk_id: self.disk_id,
            last_in_sync: self.last_in_sync,
            suspect: self.suspect,
            failed: false,
            fence: self.fence,
        };
        Attachment { report, hot: Hot::Extents(self.hot.iter().copied().collect()), bitmaps: Vec::new() }
    }

    /// Stores one value.
    pub fn put(&mut self, block: usize, value: u8) {
        if self.value(block) != value {
            self.versions[block].push(value);
        }
    }

    /// A flush has ended that was given out when the blocks held `covered`; it does nothing where a later one ended first.
    pub fn flush(&mut self, covered: Values) {
        for (versions, value) in self.versions.iter_mut().zip(covered) {
            if let Some(at) = versions.iter().rposition(|version| *version == value) {
                versions.drain(..at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_covers_what_was_stored_when_it_was_given_out() {
        let mut store = Store::new(DiskId(1));
        store.put(0, 1);
        let covered = store.values();
        store.put(0, 2);
        store.flush(covered);
        assert_eq!(store.versions, [vec![1, 2], vec![0]]);
        assert_eq!(store.values(), [2, 0]);
    }

    #[test]
    fn a_copy_that_was_open_at_a_power_cut_is_suspect() {
        let mut store = Store::new(DiskId(1));
        assert!(!store.open(Boot(1)).report.suspect);
        assert!(!store.open(Boot(1)).report.suspect);
        assert!(store.open(Boot(2)).report.suspect);
    }
}
