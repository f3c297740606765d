//! The mark that something was found broken: what the next recovery, mount or check has to know.
//!
//! It is one write, of the journal's superblock with an error number, as of an aborted journal: e2fsck then checks everything,
//! and the kernel says so when it mounts. The filesystem's own superblock is left alone: what is in memory of it belongs to
//! transactions that will never be committed, and a copy of it in the log would take the mark back.

use block_device::BlockDevice;

use super::filesystem::Filesystem;

/// The kernel's number for a filesystem that is not as it should be (`EFSCORRUPTED`, which is `EUCLEAN`).
const BROKEN: u32 = 117;

impl<D: BlockDevice> Filesystem<D> {
    /// Leaves the mark, once; nothing is written after it. A volume that cannot be written stays without.
    pub(super) async fn mark_broken(&self) {
        {
            let mut state = self.state.borrow_mut();
            if !std::mem::take(&mut state.unmarked) {
                return;
            }
            let Some(journal) = &mut state.journal else { return };
            journal.superblock.set_error_number(BROKEN);
        }
        // What failed before is told already, and this would tell no more.
        let _ = self.write_journal_superblock().await;
    }
}
