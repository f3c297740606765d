//! How full a filesystem is: what statfs(2) tells.

use block_device::BlockDevice;

use super::filesystem::{Filesystem, State};
use crate::layout::geometry::Geometry;
use crate::layout::xattr::NAME_BYTES_MAX;
use crate::units::{GroupNumber, TransactionId};

/// The numbers of statfs(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of a block, in which the others count.
    pub block_size: u32,
    /// Blocks that files can ever have: all but those of the filesystem itself.
    pub blocks: u64,
    /// Blocks that are free and not reserved for data that waits to be written.
    pub blocks_free: u64,
    /// Blocks that are free, and reserved neither for the superuser nor for maps that have to grow.
    pub blocks_available: u64,
    /// Inodes.
    pub files: u32,
    /// Inodes that are free.
    pub files_free: u32,
    /// The longest name, in bytes.
    pub name_bytes_max: u32,
    /// The two halves of the UUID, one over the other: the same as the kernel's.
    pub id: u64,
}

impl<D: BlockDevice> Filesystem<D> {
    /// How full it is, with what is not durable yet.
    pub fn statistics(&self) -> Statistics {
        let state = self.state.borrow();
        let blocks_free = state.free_blocks.saturating_sub(state.table.reserved_blocks());
        let uuid = u128::from_le_bytes(state.superblock.uuid());
        Statistics {
            block_size: self.geometry.block_size,
            blocks: self.geometry.block_count.saturating_sub(overhead(&self.geometry, &state)),
            blocks_free,
            blocks_available: blocks_free.saturating_sub(self.kept_blocks(&state.superblock)),
            files: self.geometry.inode_count,
            files_free: state.free_inodes,
            name_bytes_max: NAME_BYTES_MAX as u32,
            id: (uuid >> 64) as u64 ^ uuid as u64,
        }
    }

    /// The newest transaction with changes that are not durable yet. A refusal may tell of all of them: a reply that says so
    /// waits for it.
    pub fn newest_change(&self) -> Option<TransactionId> {
        let state = self.state.borrow();
        let running = Some(state.running.id()).filter(|_| !state.running.is_empty());
        running.or(state.closing.as_ref().map(|closing| closing.id))
    }
}

/// Blocks of the filesystem itself: as counted when it was made, else (as the kernel's `ext4_calculate_overhead`) copies of
/// the superblock and of the descriptors, bitmaps, tables of inodes, and the journal.
fn overhead(geometry: &Geometry, state: &State) -> u64 {
    let counted = u64::from(state.superblock.overhead()) * u64::from(geometry.cluster_blocks);
    if counted != 0 && counted < geometry.block_count {
        return counted;
    }
    let tables = u64::from(geometry.group_count) * (2 + u64::from(geometry.inode_table_blocks()));
    let copies: u64 =
        (0..geometry.group_count).map(|group| u64::from(geometry.base_blocks(GroupNumber(group)).count)).sum();
    let journal = state.journal.as_ref().map_or(0, |journal| u64::from(journal.map.block_count()));
    u64::from(geometry.first_data_block) + tables + copies + journal
}
