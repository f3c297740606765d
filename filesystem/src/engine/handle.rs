//! One operation at work: it sees the newest blocks and its own edits, takes and frees blocks, and never waits.
//!
//! Which transaction its edits join, and when that is durable, is not its concern.

use std::borrow::Cow;

use bytes::Bytes;

use super::cache::BlockCache;
use super::data::table::{DataEdits, DataTable};
use super::profile::Profile;
use super::state_ring::Ring;
use super::system_zone::SystemZone;
use super::transaction::{Closed, Edits, Transaction};
use crate::layout::bitmap::{self, BitRun, Bitmap, BitmapKind};
use crate::layout::geometry::{Geometry, Place};
use crate::layout::group::{BLOCK_UNINIT, GroupDescriptor};
use crate::layout::{Corrupt, Structure};
use crate::state_ring::index::RingChanges;
use crate::store::{BlockStore, Stop};
use crate::units::{BlockNumber, BlockRun, GroupNumber, InodeNumber, TransactionId};

/// What an operation looks at beside its own edits.
pub struct View<'a> {
    /// The filesystem's numbers.
    pub geometry: &'a Geometry,
    /// And what else all of it has in common.
    pub profile: &'a Profile,
    /// The first of the inodes that were unlinked, or are being cut short.
    pub last_orphan: Option<InodeNumber>,
    /// What the version of an inode is at least before it is counted on.
    pub version_floor: u64,
    /// The gateways' records, if they are kept here.
    pub ring: Option<&'a Ring>,
    /// Blocks in memory.
    pub cache: &'a mut BlockCache,
    /// The transaction that the operation will join.
    pub running: &'a Transaction,
    /// The one on its way into the log, if there is one.
    pub closing: Option<&'a Closed>,
    /// What is known of files beyond the device.
    pub(super) table: &'a DataTable,
    /// Blocks that are no file's.
    pub(super) system_zone: &'a SystemZone,
    /// Blocks that are free, by all operations that joined, and are not kept back.
    pub(super) free_blocks: i64,
}

/// One operation's access to the blocks.
pub struct Handle<'a> {
    view: View<'a>,
    edits: Edits,
    /// It gives back more than it takes: what is reserved for others does not stop it.
    privileged: bool,
    /// The file that blocks are taken for, which may have those that are kept for it.
    owner: Option<InodeNumber>,
    /// The newest transaction that changed something that was read.
    observed: Option<TransactionId>,
    /// Edits so far, each counted once or more.
    touches: u64,
}

impl<'a> Handle<'a> {
    /// An operation that has done nothing yet.
    pub fn new(view: View<'a>) -> Self {
        Self { view, edits: Edits::default(), privileged: false, owner: None, observed: None, touches: 0 }
    }

    /// What it did, to join the running transaction; and the newest transaction whose changes it has seen, among those whose
    /// changes are not at home yet.
    pub fn finish(self) -> (Edits, Option<TransactionId>) {
        (self.edits, self.observed)
    }

    /// A number that grows with every edit: if it is the same before and after a part of an operation, that part has changed
    /// nothing, and whoever runs several parts as one can go on behind it although it was refused.
    pub fn touches(&self) -> u64 {
        self.touches
    }

    /// The filesystem's numbers.
    pub fn geometry(&self) -> &'a Geometry {
        self.view.geometry
    }

    /// What all inodes and directories have in common.
    pub fn profile(&self) -> &'a Profile {
        self.view.profile
    }

    /// What the version of an inode is at least before it is counted on.
    pub(super) fn version_floor(&self) -> u64 {
        self.view.version_floor
    }

    /// The gateways' records, as they were before this operation.
    pub(super) fn ring(&self) -> Option<&'a Ring> {
        self.view.ring
    }

    /// And what it makes of them.
    pub(super) fn ring_changes(&mut self) -> &mut RingChanges {
        self.touches += 1;
        self.edits.ring()
    }

    /// The transaction that the operation joins if it can.
    pub(super) fn running(&self) -> TransactionId {
        self.view.running.id()
    }

    /// The head of the list of orphans.
    pub(super) fn last_orphan(&self) -> Option<InodeNumber> {
        self.edits.last_orphan().unwrap_or(self.view.last_orphan)
    }

    /// Puts another head on the list of orphans.
    pub(super) fn set_last_orphan(&mut self, inode: Option<InodeNumber>) {
        self.touches += 1;
        self.edits.set_last_orphan(inode);
    }

    /// A file's map says that these blocks are its data. Errors: they are the filesystem's own.
    pub(super) fn expect_data(&self, run: BlockRun) -> Result<(), Stop> {
        match self.view.system_zone.meets(run) {
            true => {
                Err(Corrupt::new(Structure::BlockBitmap, run.start.0, "a file maps a block of the filesystem itself")
                    .into())
            }
            false => Ok(()),
        }
    }

    /// What is known of files beyond the device, without this operation's changes.
    pub(super) fn table(&self) -> &DataTable {
        self.view.table
    }

    /// This operation's changes of that.
    pub(super) fn data_edits(&self) -> &DataEdits {
        &self.edits.data
    }

    /// The same, to be changed further.
    pub(super) fn data_edits_mut(&mut self) -> &mut DataEdits {
        self.touches += 1;
        &mut self.edits.data
    }

    /// Blocks that are free, with this operation's changes.
    pub(super) fn free_blocks(&self) -> i64 {
        self.view.free_blocks + self.edits.freed_counts().0
    }

    /// From now on, blocks may be taken that are reserved for others, or no longer.
    pub(super) fn set_privileged(&mut self, privileged: bool) {
        self.privileged = privileged;
    }

    /// Inodes were given back, or, below zero, taken.
    pub(super) fn count_inodes(&mut self, freed: i32) {
        self.edits.count_inodes(freed);
    }

    /// The descriptor of a group. Errors: [`Stop::Missing`], or what is wrong with it.
    pub fn descriptor(&mut self, group: GroupNumber) -> Result<GroupDescriptor, Stop> {
        let geometry = self.view.geometry;
        let Place { block, offset } = geometry.descriptor_place(group)?;
        let index = offset / geometry.descriptor_size.max(1);
        let verified = self.view.cache.is_verified(block, index);
        let bytes = self.unobserved(block)?.get(offset as usize..).unwrap_or_default();
        if verified {
            return Ok(GroupDescriptor::decode_verified(geometry, group, bytes)?);
        }
        let descriptor = GroupDescriptor::decode(geometry, group, bytes)?;
        self.view.cache.set_verified(block, index);
        Ok(descriptor)
    }

    /// A group's bitmap was found to have the checksum that its descriptor says, once for each time it is read.
    pub(super) fn verify_bitmap(
        &mut self,
        kind: BitmapKind,
        group: GroupNumber,
        descriptor: &GroupDescriptor,
    ) -> Result<(), Stop> {
        let geometry = self.view.geometry;
        let at = match kind {
            BitmapKind::Blocks => descriptor.block_bitmap,
            BitmapKind::Inodes => descriptor.inode_bitmap,
        };
        // What this operation has edited was looked at before, and has not got its place in the cache yet.
        if self.edits.get(at).is_none() && !self.view.cache.is_verified(at, 0) {
            Bitmap::new(geometry, kind, group, self.unobserved(at)?)?.verify(geometry, descriptor)?;
            self.view.cache.set_verified(at, 0);
        }
        Ok(())
    }

    /// A block was found to be right since it was fetched.
    pub(super) fn is_verified(&self, at: BlockNumber) -> bool {
        self.view.cache.is_verified(at, 0)
    }

    /// Keeps in mind that it was; not of what this operation has made, which has no place in the cache yet.
    pub(super) fn set_verified(&mut self, at: BlockNumber) {
        if self.edits.get(at).is_none() {
            self.view.cache.set_verified(at, 0);
        }
    }

    /// A block of which nothing is told to whoever asked for the operation: descriptors and bitmaps, which change all the time.
    pub(super) fn unobserved(&mut self, at: BlockNumber) -> Result<&[u8], Stop> {
        // Asked twice, since the borrow of a find would outlive the search for another.
        if self.edits.get(at).is_some() {
            return self.edits.get(at).ok_or(Stop::Missing(at));
        }
        self.view.cache.get(at).map(|data| &**data).ok_or(Stop::Missing(at))
    }

    /// Puts a group's descriptor in place.
    pub fn set_descriptor(&mut self, group: GroupNumber, descriptor: &GroupDescriptor) -> Result<(), Stop> {
        let geometry = self.view.geometry;
        let Place { block, offset } = geometry.descriptor_place(group)?;
        let bytes = self.block_mut(block)?;
        Ok(descriptor.encode(geometry, group, bytes.get_mut(offset as usize..).unwrap_or_default())?)
    }

    /// From now on, blocks are taken for this file.
    pub(super) fn set_owner(&mut self, file: InodeNumber) {
        self.owner = Some(file);
    }

    /// Takes up to `max` free blocks that follow one another, for which room was reserved: in the goal's group, from the goal on
    /// and then before it, else in the groups after it. Errors: [`Stop::NoSpace`] when no group has one that can be used
    /// before a commit.
    pub(super) fn take_run(&mut self, goal: BlockNumber, max: u32) -> Result<BlockRun, Stop> {
        let (group, run) = self.find_run(goal, max)?;
        self.take_in_group(group, run)?;
        Ok(BlockRun::new(self.view.geometry.block_of_bit(group, run.start), run.count))
    }

    /// Finds blocks as [`Self::take_run`] does, and keeps others from taking them; they are not taken yet.
    pub(super) fn claim_run(&mut self, goal: BlockNumber, max: u32) -> Result<BlockRun, Stop> {
        let (group, run) = self.find_run(goal, max)?;
        let run = BlockRun::new(self.view.geometry.block_of_bit(group, run.start), run.count);
        self.edits.data.claims.push(run);
        Ok(run)
    }

    /// Takes blocks that were claimed.
    pub(super) fn take_claimed(&mut self, run: BlockRun) -> Result<(), Stop> {
        let nowhere = || Corrupt::new(Structure::BlockBitmap, run.start.0, "a block outside the device is taken");
        let (group, bit) = self.view.geometry.group_of_block(run.start).ok_or_else(nowhere)?;
        self.take_in_group(group, BitRun { start: bit, count: run.count })
    }

    fn find_run(&mut self, goal: BlockNumber, max: u32) -> Result<(GroupNumber, BitRun), Stop> {
        // What is kept for the growth of other files is left to them as long as there is anything else.
        if self.view.table.has_windows()
            && let Some(found) = self.find_run_beside(goal, max, true)?
        {
            return Ok(found);
        }
        self.find_run_beside(goal, max, false)?.ok_or(Stop::NoSpace)
    }

    fn find_run_beside(
        &mut self,
        goal: BlockNumber,
        max: u32,
        windows: bool,
    ) -> Result<Option<(GroupNumber, BitRun)>, Stop> {
        let geometry = self.view.geometry;
        let (goal_group, goal_bit) = geometry.group_of_block(goal).unwrap_or((GroupNumber(0), 0));
        for step in 0..u64::from(geometry.group_count) {
            let group = GroupNumber(((u64::from(goal_group.0) + step) % u64::from(geometry.group_count)) as u32);
            let from = if step == 0 { goal_bit } else { 0 };
            if let Some(run) = self.find_in_group(group, from, max, windows)? {
                return Ok(Some((group, run)));
            }
        }
        Ok(None)
    }

    fn find_in_group(
        &mut self,
        group: GroupNumber,
        from: u32,
        max: u32,
        windows: bool,
    ) -> Result<Option<BitRun>, Stop> {
        let mut descriptor = self.descriptor(group)?;
        if descriptor.free_clusters == 0 {
            return Ok(None);
        }
        if descriptor.is_block_bitmap_uninit() {
            self.initialize_block_bitmap(group, &mut descriptor)?;
        }
        let geometry = self.view.geometry;
        let unavailable = self.unavailable_blocks(group, &descriptor, windows)?;
        let bits = Bitmap::new(geometry, BitmapKind::Blocks, group, &*unavailable)?;
        Ok(bits.free_run(from, 1, max))
    }

    fn take_in_group(&mut self, group: GroupNumber, run: BitRun) -> Result<(), Stop> {
        let geometry = self.view.geometry;
        let mut descriptor = self.descriptor(group)?;
        let at = descriptor.block_bitmap;
        self.edits.mark_bitmap(at);
        let mut bits = Bitmap::new(geometry, BitmapKind::Blocks, group, self.block_mut(at)?)?;
        bits.take(run)?;
        bits.seal(geometry, &mut descriptor);
        let left = descriptor.free_clusters.checked_sub(run.count);
        descriptor.free_clusters = left.ok_or(Corrupt::new(
            Structure::GroupDescriptor,
            u64::from(group.0),
            "it counts fewer free blocks than its bitmap",
        ))?;
        self.set_descriptor(group, &descriptor)?;
        self.edits.count_blocks(-i64::from(run.count));
        Ok(())
    }

    /// A group's bitmap with every block used that is, or was before a transaction that is not durable yet: what a crash
    /// may bring back must not be overwritten. With `windows` also what is kept for the growth of other files.
    fn unavailable_blocks(
        &mut self,
        group: GroupNumber,
        descriptor: &GroupDescriptor,
        windows: bool,
    ) -> Result<Cow<'_, [u8]>, Stop> {
        let at = descriptor.block_bitmap;
        let former: Vec<Bytes> =
            [self.view.running.bitmap_before(at), self.view.closing.and_then(|closed| closed.bitmaps_before.get(&at))]
                .into_iter()
                .flatten()
                .cloned()
                .collect();
        self.verify_bitmap(BitmapKind::Blocks, group, descriptor)?;
        let edited = self.edits.get(at).is_some();
        // Of the operation's own frees, nothing is available either.
        let unedited = if edited { self.view.cache.get(at).cloned() } else { None };
        let geometry = self.view.geometry;
        let blocks = geometry.group_blocks(group)?;
        let claims = self.edits.data.claims.iter().filter_map(|claim| claim.within(blocks));
        let mut held: Vec<BlockRun> = self.view.table.held_within(blocks).chain(claims).collect();
        if windows {
            held.extend(self.view.table.windows_within(blocks, self.owner));
        }
        if former.is_empty() && unedited.is_none() && held.is_empty() {
            return Ok(Cow::Borrowed(self.block(at)?));
        }
        let mut all = self.block(at)?.to_vec();
        let mut bits = Bitmap::new(geometry, BitmapKind::Blocks, group, &mut *all)?;
        for run in held {
            bits.cover(BitRun { start: (run.start.0 - blocks.start.0) as u32, count: run.count });
        }
        for version in former.iter().chain(&unedited) {
            all.iter_mut().zip(version.iter()).for_each(|(bits, former)| *bits |= former);
        }
        Ok(Cow::Owned(all))
    }

    /// Writes the bitmap of a group that never had one.
    fn initialize_block_bitmap(&mut self, group: GroupNumber, descriptor: &mut GroupDescriptor) -> Result<(), Stop> {
        let geometry = self.view.geometry;
        // Without flex_bg a group holds its own tables only.
        let groups = if geometry.flex { 0..geometry.group_count } else { group.0..group.0 + 1 };
        let all = groups.map(|group| self.descriptor(GroupNumber(group))).collect::<Result<Vec<_>, _>>()?;
        let at = descriptor.block_bitmap;
        let bytes = self.new_block(at)?;
        bitmap::uninit_block_bitmap(geometry, group, &all, bytes)?;
        let bits = Bitmap::new(geometry, BitmapKind::Blocks, group, &*bytes)?;
        if bits.count_free() != descriptor.free_clusters {
            let what = "it counts free blocks otherwise than its empty bitmap";
            return Err(Corrupt::new(Structure::GroupDescriptor, u64::from(group.0), what).into());
        }
        bits.seal(geometry, descriptor);
        descriptor.flags &= !BLOCK_UNINIT;
        self.set_descriptor(group, descriptor)
    }

    /// Blocks of data are given back. Those that went through the log are revoked as metadata is.
    fn forget_journaled(&mut self, run: BlockRun) {
        let own: Vec<BlockNumber> = self.edits.data.journaled.range(run.start..run.end()).copied().collect();
        for block in self.view.table.journaled_within(run).chain(own) {
            self.edits.data.journaled.remove(&block);
            self.touches += 1;
            self.edits.revoke(block);
        }
        self.edits.data.freed.push(run);
    }

    fn free_in_group(&mut self, group: GroupNumber, run: BitRun) -> Result<(), Stop> {
        let geometry = self.view.geometry;
        let mut descriptor = self.descriptor(group)?;
        if descriptor.is_block_bitmap_uninit() {
            let what = "a block is freed in a group that has none in use";
            return Err(Corrupt::new(Structure::BlockBitmap, u64::from(group.0), what).into());
        }
        let at = descriptor.block_bitmap;
        self.verify_bitmap(BitmapKind::Blocks, group, &descriptor)?;
        self.edits.mark_bitmap(at);
        let mut bits = Bitmap::new(geometry, BitmapKind::Blocks, group, self.block_mut(at)?)?;
        bits.give(run)?;
        bits.seal(geometry, &mut descriptor);
        descriptor.free_clusters += run.count;
        self.edits.count_blocks(i64::from(run.count));
        self.set_descriptor(group, &descriptor)
    }
}

impl BlockStore for Handle<'_> {
    fn block(&mut self, at: BlockNumber) -> Result<&[u8], Stop> {
        if self.edits.get(at).is_some() {
            return self.edits.get(at).ok_or(Stop::Missing(at));
        }
        let (data, changed_by) = self.view.cache.get_with_change(at).ok_or(Stop::Missing(at))?;
        if let Some(id) = changed_by
            && self.observed.is_none_or(|observed| observed.is_before(id))
        {
            self.observed = Some(id);
        }
        Ok(data)
    }

    fn block_mut(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        let cache = &mut *self.view.cache;
        self.touches += 1;
        self.edits.edit(at, || cache.get(at).cloned()).ok_or(Stop::Missing(at))
    }

    fn new_block(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        self.touches += 1;
        Ok(self.edits.create(at, self.view.geometry.block_size as usize))
    }

    fn allocate(&mut self, goal: BlockNumber) -> Result<BlockNumber, Stop> {
        if !self.privileged && self.available() < 1 {
            return Err(Stop::NoSpace);
        }
        Ok(self.take_run(goal, 1)?.start)
    }

    fn free(&mut self, run: BlockRun, metadata: bool) -> Result<(), Stop> {
        self.expect_data(run)?;
        let geometry = self.view.geometry;
        let mut left = run;
        while left.count > 0 {
            let outside = || Corrupt::new(Structure::BlockBitmap, left.start.0, "a block outside the device is freed");
            let (group, bit) = geometry.group_of_block(left.start).ok_or_else(outside)?;
            let count = left.count.min(geometry.clusters_in_group(group)?.saturating_sub(bit));
            if count == 0 {
                return Err(outside().into());
            }
            self.free_in_group(group, BitRun { start: bit, count })?;
            left = BlockRun::new(left.start.plus(u64::from(count)), left.count - count);
        }
        self.touches += 1;
        self.edits.free(run, metadata);
        // What was taken and given back by one operation is not written.
        self.edits.data.ordered.retain(|at, _| !run.contains(*at));
        if !metadata {
            self.forget_journaled(run);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
