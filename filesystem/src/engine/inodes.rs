//! Which inode a new file gets: files beside their directory, directories spread so that what is used together lies
//! together, and full groups fill last (after Orlov's allocator for directories).

use super::handle::Handle;
use crate::layout::bitmap::{self, BitRun, Bitmap, BitmapKind};
use crate::layout::geometry::Place;
use crate::layout::group::{GroupDescriptor, INODE_UNINIT, INODE_ZEROED};
use crate::layout::{Corrupt, Structure};
use crate::store::{BlockStore, Stop};
use crate::units::{GroupNumber, InodeNumber, ROOT_INODE};

/// An inode that was taken: its bytes are zeros, and the caller writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewInode {
    /// Its number.
    pub number: InodeNumber,
    /// Where its bytes lie.
    pub place: Place,
    /// The generation that its former owner had: the new one's must differ.
    pub former_generation: u32,
}

/// Byte of an inode where its generation lies (`i_generation`).
const GENERATION_AT: usize = 0x64;

impl Handle<'_> {
    /// Takes a free inode for an entry of the directory `parent`. Errors: [`Stop::NoSpace`] when there is none.
    pub fn allocate_inode(&mut self, parent: InodeNumber, directory: bool) -> Result<NewInode, Stop> {
        let geometry = self.geometry();
        let home = geometry.group_of_inode(parent).map_or(0, |(group, _)| group.0);
        let first = if directory { self.group_for_directory(parent, home)? } else { home };
        for step in 0..u64::from(geometry.group_count) {
            let group = GroupNumber(((u64::from(first) + step) % u64::from(geometry.group_count)) as u32);
            if let Some(taken) = self.take_inode(group, directory)? {
                return Ok(taken);
            }
        }
        Err(Stop::NoSpace)
    }

    /// Gives an inode back. Its bytes are the caller's to clear. Errors: it is not in use, or reserved.
    pub fn free_inode(&mut self, inode: InodeNumber, directory: bool) -> Result<(), Stop> {
        let geometry = self.geometry();
        let broken = |what| Corrupt::new(Structure::Inode, u64::from(inode.0), what);
        let Some((group, bit)) = geometry.group_of_inode(inode).filter(|_| inode >= geometry.first_inode) else {
            return Err(broken("an inode that is no file's is freed").into());
        };
        let mut descriptor = self.descriptor(group)?;
        if descriptor.is_inode_bitmap_uninit() {
            return Err(broken("it is freed in a group that has none in use").into());
        }
        self.edit_inode_bitmap(group, &mut descriptor, |bits| bits.give(BitRun { start: bit, count: 1 }))?;
        descriptor.free_inodes += 1;
        self.count_inodes(1);
        if directory {
            let left = descriptor.directories.checked_sub(1);
            descriptor.directories = left.ok_or(broken("its group counts no directories, and it is one"))?;
        }
        self.set_descriptor(group, &descriptor)
    }

    /// A group with more than its share of free inodes and blocks: for a directory of the root the emptiest, so that trees
    /// lie apart; for one further down its parent's or the first after it.
    fn group_for_directory(&mut self, parent: InodeNumber, home: u32) -> Result<u32, Stop> {
        let count = self.geometry().group_count;
        let all = (0..count).map(|group| self.descriptor(GroupNumber(group))).collect::<Result<Vec<_>, _>>()?;
        let mean = |of: fn(&GroupDescriptor) -> u32| {
            all.iter().map(|group| u64::from(of(group))).sum::<u64>() / u64::from(count.max(1))
        };
        let (inodes, blocks) = (mean(|group| group.free_inodes), mean(|group| group.free_clusters));
        let has_share = |group: &GroupDescriptor| {
            group.free_inodes > 0 && u64::from(group.free_inodes) >= inodes && u64::from(group.free_clusters) >= blocks
        };
        if parent == ROOT_INODE {
            let best = all.iter().enumerate().filter(|(_, group)| has_share(group));
            let best = best.min_by_key(|(index, group)| (group.directories, *index));
            return Ok(best.map_or(home, |(index, _)| index as u32));
        }
        let near = (0..count).map(|step| (home + step) % count);
        // Half a share is enough to stay with the parent.
        let stays = |group: &GroupDescriptor| {
            u64::from(group.free_inodes) * 2 >= inodes.max(1) && u64::from(group.free_clusters) * 2 >= blocks
        };
        let of = |group: u32| all.get(group as usize);
        Ok(near.into_iter().find(|group| of(*group).is_some_and(stays)).unwrap_or(home))
    }

    fn take_inode(&mut self, group: GroupNumber, directory: bool) -> Result<Option<NewInode>, Stop> {
        let geometry = self.geometry();
        let mut descriptor = self.descriptor(group)?;
        if descriptor.free_inodes == 0 {
            return Ok(None);
        }
        if descriptor.is_inode_bitmap_uninit() {
            let at = descriptor.inode_bitmap;
            bitmap::uninit_inode_bitmap(geometry, group, self.new_block(at)?)?;
            descriptor.flags &= !INODE_UNINIT;
        }
        // The inodes before the first that a file may have are the filesystem's own.
        let reserved = geometry.first_inode.0 - 1;
        let from = reserved.saturating_sub(group.0.saturating_mul(geometry.inodes_per_group));
        self.verify_bitmap(BitmapKind::Inodes, group, &descriptor)?;
        let bits = Bitmap::new(geometry, BitmapKind::Inodes, group, self.block(descriptor.inode_bitmap)?)?;
        let Some(bit) = bits.next_free(from) else { return Ok(None) };
        let per_block = geometry.block_size / geometry.inode_size;
        let mut neighbours = bit / per_block * per_block..(bit / per_block + 1) * per_block;
        let alone = !neighbours.any(|other| bits.is_used(other));
        self.edit_inode_bitmap(group, &mut descriptor, |bits| bits.take(BitRun { start: bit, count: 1 }))?;
        descriptor.free_inodes -= 1;
        self.count_inodes(-1);
        descriptor.directories += u32::from(directory);
        let unused = descriptor.unused_inodes.min(geometry.inodes_per_group - bit - 1);
        descriptor.unused_inodes = unused;
        self.set_descriptor(group, &descriptor)?;
        let number = geometry.inode_of_bit(group, bit);
        let broken = Corrupt::new(Structure::Inode, u64::from(number.0), "it lies nowhere");
        let place = geometry.inode_place(number, descriptor.inode_table).ok_or(broken)?;
        // A table that was never zeroed may hold anything where no inode was ever in use.
        let never_written = alone && descriptor.flags & INODE_ZEROED == 0;
        let former_generation = self.clear_inode(place, never_written)?;
        Ok(Some(NewInode { number, place, former_generation }))
    }

    /// Zeroes the inode's bytes; gives back the generation they had.
    fn clear_inode(&mut self, place: Place, never_written: bool) -> Result<u32, Stop> {
        let length = self.geometry().inode_size as usize;
        let block = if never_written { self.new_block(place.block)? } else { self.block_mut(place.block)? };
        let from = place.offset as usize;
        let bytes = block.get_mut(from..from + length).unwrap_or_default();
        let generation = bytes.get(GENERATION_AT..GENERATION_AT + 4).and_then(|bytes| bytes.try_into().ok());
        let former = generation.map_or(0, u32::from_le_bytes);
        bytes.fill(0);
        Ok(former)
    }

    fn edit_inode_bitmap(
        &mut self,
        group: GroupNumber,
        descriptor: &mut GroupDescriptor,
        edit: impl FnOnce(&mut Bitmap<&mut [u8]>) -> Result<(), Corrupt>,
    ) -> Result<(), Stop> {
        let geometry = self.geometry();
        let mut bits = Bitmap::new(geometry, BitmapKind::Inodes, group, self.block_mut(descriptor.inode_bitmap)?)?;
        edit(&mut bits)?;
        bits.seal(geometry, descriptor);
        Ok(())
    }
}

#[cfg(test)]
#[path = "inodes_tests.rs"]
mod tests;
