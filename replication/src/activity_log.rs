//! Which extents may differ between the copies after a crash.
//!
//! An extent must be hot, durably, before its data is touched or sent. As long as the store keeps no log of its own, every
//! extent of an open store counts as hot (the store's superblock says that it is open), so nothing has to be made hot, and
//! after a crash the whole volume is compared by digest.

use proto::BlockRange;

/// The hot set of one volume.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ActivityLog {
    mode: Mode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// Every extent is hot while the store is open.
    #[default]
    AllHot,
}

impl ActivityLog {
    /// The extents that must be made hot before a write to `ranges` may start; empty when all are.
    pub(crate) fn cold_extents(&self, _ranges: &[BlockRange]) -> Vec<u64> {
        match self.mode {
            Mode::AllHot => Vec::new(),
        }
    }
}
