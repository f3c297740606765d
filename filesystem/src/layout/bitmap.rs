//! Bitmaps of blocks and inodes (ext4 on-disk format, "Block and Inode Bitmaps"): searched, counted, edited with a check
//! of what was there, and made up where the descriptor says that they were never written. Which run is the best one to
//! take is not decided here.

use super::geometry::Geometry;
use super::group::GroupDescriptor;
use super::{Corrupt, Structure};
use crate::units::GroupNumber;

/// What a bitmap counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapKind {
    /// Blocks; clusters with bigalloc.
    Blocks,
    /// Inodes.
    Inodes,
}

/// What a search goes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bit {
    Free,
    Used,
}

/// Bits that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitRun {
    /// The first.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// The bitmap of one group, over the bytes of its block.
#[derive(Clone, Copy, Debug)]
pub struct Bitmap<B> {
    bytes: B,
    bits: u32,
    kind: BitmapKind,
    group: GroupNumber,
}

impl<B: AsRef<[u8]>> Bitmap<B> {
    /// The bitmap in `bytes`, one block. Errors: there is no such group, or the block is too short.
    pub fn new(geometry: &Geometry, kind: BitmapKind, group: GroupNumber, bytes: B) -> Result<Self, Corrupt> {
        let bits = match kind {
            BitmapKind::Blocks => geometry.clusters_in_group(group)?,
            BitmapKind::Inodes => geometry.inodes_per_group,
        };
        let bitmap = Self { bytes, bits, kind, group };
        if bitmap.bytes.as_ref().len() < geometry.block_size as usize {
            return Err(bitmap.broken("it is cut short"));
        }
        Ok(bitmap)
    }

    /// Bits that stand for something; those after them are padding.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// True when the bit is set. Padding counts as set.
    pub fn is_used(&self, bit: u32) -> bool {
        bit >= self.bits || self.bytes.as_ref().get(bit as usize / 8).is_none_or(|byte| byte & mask(bit) != 0)
    }

    /// The first free bit from `from` on.
    pub fn next_free(&self, from: u32) -> Option<u32> {
        self.next(Bit::Free, from, self.bits)
    }

    /// The first used bit from `from` on; padding is not found.
    pub fn next_used(&self, from: u32) -> Option<u32> {
        self.next(Bit::Used, from, self.bits)
    }

    /// Searches from `goal` to the end and then from the start: the first free run of `max` bits, or else the longest
    /// there is of at least `min` (the first of equals). A run ends at the end and at `goal`.
    pub fn free_run(&self, goal: u32, min: u32, max: u32) -> Option<BitRun> {
        let goal = goal.min(self.bits);
        let mut best = None::<BitRun>;
        for run in self.free_runs(goal, self.bits).chain(self.free_runs(0, goal)) {
            let run = BitRun { count: run.count.min(max), ..run };
            if run.count >= min.max(1) && best.is_none_or(|best| run.count > best.count) {
                best = Some(run);
                if run.count == max {
                    break;
                }
            }
        }
        best
    }

    /// The free runs between `from` and `to`, in order.
    pub fn free_runs(&self, from: u32, to: u32) -> impl Iterator<Item = BitRun> + '_ {
        let to = to.min(self.bits);
        let mut from = from;
        std::iter::from_fn(move || {
            let start = self.next(Bit::Free, from, to)?;
            from = self.next(Bit::Used, start, to).unwrap_or(to);
            Some(BitRun { start, count: from - start })
        })
    }

    /// Free bits.
    pub fn count_free(&self) -> u32 {
        let bytes = self.bytes.as_ref();
        let whole = (self.bits / 8) as usize;
        let used: u32 = bytes.iter().take(whole).map(|byte| byte.count_ones()).sum();
        let rest = (self.bits / 8 * 8..self.bits).filter(|bit| self.is_used(*bit)).count() as u32;
        self.bits - used - rest
    }

    /// True when every bit after the last one is set, as it should be.
    pub fn is_padded(&self) -> bool {
        let bytes = self.bytes.as_ref();
        let last = bytes.get(self.bits as usize / 8).copied().unwrap_or(!0);
        let head = last | low_bits(self.bits % 8) == !0;
        head && bytes.iter().skip(self.bits as usize / 8 + 1).all(|byte| *byte == !0)
    }

    /// Its checksum; None without `metadata_csum`. It covers the bits of a full group, not the whole block.
    pub fn checksum(&self, geometry: &Geometry) -> Option<u32> {
        let bits = match self.kind {
            BitmapKind::Blocks => geometry.clusters_per_group(),
            BitmapKind::Inodes => geometry.inodes_per_group,
        };
        let bytes = self.bytes.as_ref();
        let sum = geometry.checksum_seed?.sum(bytes.get(..bits as usize / 8).unwrap_or(bytes));
        Some(if geometry.wide_blocks { sum } else { sum & 0xffff })
    }

    /// Compares its checksum with the descriptor's. Errors: they differ.
    pub fn verify(&self, geometry: &Geometry, descriptor: &GroupDescriptor) -> Result<(), Corrupt> {
        let stored = match self.kind {
            BitmapKind::Blocks => descriptor.block_bitmap_checksum,
            BitmapKind::Inodes => descriptor.inode_bitmap_checksum,
        };
        match self.checksum(geometry) {
            Some(sum) if sum != stored => Err(self.broken("its checksum is wrong")),
            _ => Ok(()),
        }
    }

    /// Puts its checksum into the descriptor.
    pub fn seal(&self, geometry: &Geometry, descriptor: &mut GroupDescriptor) {
        let Some(sum) = self.checksum(geometry) else { return };
        match self.kind {
            BitmapKind::Blocks => descriptor.block_bitmap_checksum = sum,
            BitmapKind::Inodes => descriptor.inode_bitmap_checksum = sum,
        }
    }

    /// The first bit of this value in `from..to`, eight bytes at a time.
    fn next(&self, wanted: Bit, from: u32, to: u32) -> Option<u32> {
        let bytes = self.bytes.as_ref();
        let mut bit = from;
        while bit < to {
            let at = bit as usize / 64 * 8;
            let mut word = [0; 8];
            let chunk = bytes.get(at..)?;
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            let word = u64::from_le_bytes(word);
            let found = if wanted == Bit::Used { word } else { !word } >> (bit % 64);
            if found != 0 {
                return Some(bit + found.trailing_zeros()).filter(|bit| *bit < to);
            }
            bit = (bit / 64 + 1) * 64;
        }
        None
    }

    fn broken(&self, what: &'static str) -> Corrupt {
        let structure = match self.kind {
            BitmapKind::Blocks => Structure::BlockBitmap,
            BitmapKind::Inodes => Structure::InodeBitmap,
        };
        Corrupt::new(structure, u64::from(self.group.0), what)
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Bitmap<B> {
    /// Marks a run as used. Errors: a bit of it is in use already, or beyond the end; nothing is changed then.
    pub fn take(&mut self, run: BitRun) -> Result<(), Corrupt> {
        let end = self.end(run)?;
        if self.next(Bit::Used, run.start, end).is_some() {
            return Err(self.broken("what is in use would be taken again"));
        }
        self.fill(run.start, end, Bit::Used);
        Ok(())
    }

    /// Marks a run as free. Errors: a bit of it is free already, or beyond the end; nothing is changed then.
    pub fn give(&mut self, run: BitRun) -> Result<(), Corrupt> {
        let end = self.end(run)?;
        if self.next(Bit::Free, run.start, end).is_some() {
            return Err(self.broken("what is free would be freed again"));
        }
        self.fill(run.start, end, Bit::Free);
        Ok(())
    }

    /// Sets every bit after the last one.
    pub fn pad(&mut self) {
        let all = u32::try_from(self.bytes.as_ref().len() * 8).unwrap_or(self.bits);
        self.fill(self.bits, all, Bit::Used);
    }

    /// Marks a run as used, whatever it was; what lies beyond the end is left out.
    pub fn cover(&mut self, run: BitRun) {
        self.fill(run.start, run.start.saturating_add(run.count).min(self.bits), Bit::Used);
    }

    fn end(&self, run: BitRun) -> Result<u32, Corrupt> {
        let end = run.start.checked_add(run.count).filter(|end| *end <= self.bits);
        end.ok_or(self.broken("it does not reach that far"))
    }

    fn fill(&mut self, start: u32, end: u32, value: Bit) {
        let bytes = self.bytes.as_mut();
        let mut bit = start;
        while bit < end {
            let upto = end.min((bit / 8 + 1) * 8);
            let touched = low_bits(upto - bit / 8 * 8) & !low_bits(bit % 8);
            if let Some(byte) = bytes.get_mut(bit as usize / 8) {
                *byte = if value == Bit::Used { *byte | touched } else { *byte & !touched };
            }
            bit = upto;
        }
    }
}

/// Makes up the block bitmap of a group whose own was never written: copies of the superblock and descriptors, and what
/// of any group's bitmaps and inode tables lies in it. `all` are the descriptors to look at; with `flex_bg` those of the
/// whole filesystem, for tables may lie anywhere. Errors: there is no such group, or `bytes` is no block.
pub fn uninit_block_bitmap<'a>(
    geometry: &Geometry,
    group: GroupNumber,
    all: impl IntoIterator<Item = &'a GroupDescriptor>,
    bytes: &mut [u8],
) -> Result<(), Corrupt> {
    bytes.fill(0);
    let own = geometry.group_blocks(group)?;
    let mut bitmap = Bitmap::new(geometry, BitmapKind::Blocks, group, bytes)?;
    let base = geometry.base_blocks(group);
    let metadata = all.into_iter().flat_map(|descriptor| descriptor.metadata(geometry));
    for run in std::iter::once(base).chain(metadata) {
        let start = run.start.max(own.start);
        let end = run.end().min(own.end());
        if start < end {
            let first = (start.0 - own.start.0) as u32 / geometry.cluster_blocks;
            let last = (end.0 - own.start.0) as u32;
            let count = last.div_ceil(geometry.cluster_blocks) - first;
            bitmap.cover(BitRun { start: first, count });
        }
    }
    bitmap.pad();
    Ok(())
}

/// Makes up the inode bitmap of a group whose own was never written: no inode is in use. Errors: as before.
pub fn uninit_inode_bitmap(geometry: &Geometry, group: GroupNumber, bytes: &mut [u8]) -> Result<(), Corrupt> {
    bytes.fill(0);
    Bitmap::new(geometry, BitmapKind::Inodes, group, bytes)?.pad();
    Ok(())
}

fn mask(bit: u32) -> u8 {
    1 << (bit % 8)
}

/// A byte whose lowest `count` bits are set.
fn low_bits(count: u32) -> u8 {
    if count >= 8 { !0 } else { (1 << count) - 1 }
}

#[cfg(test)]
#[path = "bitmap_tests.rs"]
mod tests;
