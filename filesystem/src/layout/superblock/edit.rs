//! What changes in a superblock while the filesystem is in use. Every edit keeps the bytes that it does not name.

use zerocopy::little_endian::U32;

use super::super::features::{compat, incompat, ro_compat};
use super::super::until_zero;
use super::{Superblock, wide};
use crate::units::{BlockNumber, InodeNumber};

/// A time in seconds since 1970; 40 bits of it fit on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u64);

/// The bits of `s_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Unmounted in order, or kept in order by its journal.
    pub clean: bool,
    /// Something was found to be inconsistent: e2fsck is to check everything.
    pub errors: bool,
    /// Orphans are being recovered.
    pub orphans: bool,
}

const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;
const STATE_ORPHANS: u16 = 4;

/// An error that was found: what the fields `s_first_error_*` and `s_last_error_*` hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorRecord {
    /// When.
    pub time: Seconds,
    /// In which inode, if in one.
    pub inode: Option<InodeNumber>,
    /// In which block; 0 when in none.
    pub block: BlockNumber,
    /// Where in the program: up to 32 bytes of a name.
    pub function: String,
    /// And its line.
    pub line: u32,
    /// What: the kernel's numbers of error codes, 5 and 6 being a failed checksum and corruption (0 none, 1 unknown).
    pub code: u8,
}

impl Superblock {
    /// The state.
    pub fn state(&self) -> State {
        let bits = self.raw.state.get();
        State { clean: bits & STATE_CLEAN != 0, errors: bits & STATE_ERRORS != 0, orphans: bits & STATE_ORPHANS != 0 }
    }

    /// Sets the state; bits that have no name here stay.
    pub fn set_state(&mut self, state: State) {
        let kept = self.raw.state.get() & !(STATE_CLEAN | STATE_ERRORS | STATE_ORPHANS);
        let bit = |on: bool, bit: u16| if on { bit } else { 0 };
        let bits = bit(state.clean, STATE_CLEAN) | bit(state.errors, STATE_ERRORS) | bit(state.orphans, STATE_ORPHANS);
        self.raw.state.set(kept | bits);
    }

    /// Free blocks, as of the last time that somebody summed them up; the descriptors know better.
    pub fn free_blocks(&self) -> u64 {
        wide(self.raw.free_blocks_count_lo, self.raw.free_blocks_count_hi, self.geometry.wide_blocks)
    }

    /// Sets the count of free blocks.
    pub fn set_free_blocks(&mut self, count: u64) {
        self.raw.free_blocks_count_lo.set(count as u32);
        if self.geometry.wide_blocks {
            self.raw.free_blocks_count_hi.set((count >> 32) as u32);
        }
    }

    /// Free inodes, likewise.
    pub fn free_inodes(&self) -> u32 {
        self.raw.free_inodes_count.get()
    }

    /// Sets the count of free inodes.
    pub fn set_free_inodes(&mut self, count: u32) {
        self.raw.free_inodes_count.set(count);
    }

    /// Mounts since the last check.
    pub fn mount_count(&self) -> u16 {
        self.raw.mnt_count.get()
    }

    /// Sets the count of mounts.
    pub fn set_mount_count(&mut self, count: u16) {
        self.raw.mnt_count.set(count);
    }

    /// When it was last mounted; 0 never.
    pub fn mount_time(&self) -> Seconds {
        time(self.raw.mtime, self.raw.mtime_hi)
    }

    /// Sets the time of the mount.
    pub fn set_mount_time(&mut self, now: Seconds) {
        set_time(&mut self.raw.mtime, &mut self.raw.mtime_hi, now);
    }

    /// When it was last written to.
    pub fn write_time(&self) -> Seconds {
        time(self.raw.wtime, self.raw.wtime_hi)
    }

    /// Sets the time of the write.
    pub fn set_write_time(&mut self, now: Seconds) {
        set_time(&mut self.raw.wtime, &mut self.raw.wtime_hi, now);
    }

    /// When it was made.
    pub fn made_time(&self) -> Seconds {
        time(self.raw.mkfs_time, self.raw.mkfs_time_hi)
    }

    /// When e2fsck last checked it.
    pub fn check_time(&self) -> Seconds {
        time(self.raw.lastcheck, self.raw.lastcheck_hi)
    }

    /// KiB ever written to it.
    pub fn kib_written(&self) -> u64 {
        self.raw.kbytes_written.get()
    }

    /// Sets the KiB ever written.
    pub fn set_kib_written(&mut self, count: u64) {
        self.raw.kbytes_written.set(count);
    }

    /// The head of the list of orphans.
    pub fn last_orphan(&self) -> Option<InodeNumber> {
        super::inode(self.raw.last_orphan.get())
    }

    /// Sets the head of the list of orphans.
    pub fn set_last_orphan(&mut self, inode: Option<InodeNumber>) {
        self.raw.last_orphan.set(inode.map_or(0, |inode| inode.0));
    }

    /// True when the journal is to be replayed before anything else is believed.
    pub fn needs_recovery(&self) -> bool {
        self.features().has_incompat(incompat::NEEDS_RECOVERY)
    }

    /// Sets that mark. It has to be durable before the first block is logged.
    pub fn set_needs_recovery(&mut self, on: bool) {
        set_bit(&mut self.raw.feature_incompat, incompat::NEEDS_RECOVERY, on);
    }

    /// Sets the mark that the orphan file may have entries.
    pub fn set_orphan_present(&mut self, on: bool) {
        set_bit(&mut self.raw.feature_ro_compat, ro_compat::ORPHAN_PRESENT, on);
    }

    /// Records that there is a file of 2 GiB or more, or a directory so long.
    pub fn turn_on_large_file(&mut self) {
        set_bit(&mut self.raw.feature_ro_compat, ro_compat::LARGE_FILE, true);
    }

    /// Records that there are extended attributes.
    pub fn turn_on_extended_attributes(&mut self) {
        set_bit(&mut self.raw.feature_compat, compat::EXT_ATTR, true);
    }

    /// Errors found since the last check.
    pub fn error_count(&self) -> u32 {
        self.raw.error_count.get()
    }

    /// The first of them.
    pub fn first_error(&self) -> Option<ErrorRecord> {
        let raw = &self.raw;
        let time = time(raw.first_error_time, raw.first_error_time_hi);
        (time != Seconds(0)).then(|| ErrorRecord {
            time,
            inode: super::inode(raw.first_error_ino.get()),
            block: BlockNumber(raw.first_error_block.get()),
            function: text(&raw.first_error_func),
            line: raw.first_error_line.get(),
            code: raw.first_error_errcode,
        })
    }

    /// The last of them.
    pub fn last_error(&self) -> Option<ErrorRecord> {
        let raw = &self.raw;
        let time = time(raw.last_error_time, raw.last_error_time_hi);
        (time != Seconds(0)).then(|| ErrorRecord {
            time,
            inode: super::inode(raw.last_error_ino.get()),
            block: BlockNumber(raw.last_error_block.get()),
            function: text(&raw.last_error_func),
            line: raw.last_error_line.get(),
            code: raw.last_error_errcode,
        })
    }

    /// Records an error: it is the last one, and the first if there is none yet; the state says that there are errors.
    pub fn record_error(&mut self, error: &ErrorRecord) {
        let is_first = self.first_error().is_none();
        self.set_state(State { errors: true, ..self.state() });
        let raw = &mut self.raw;
        raw.error_count.set(raw.error_count.get().saturating_add(1));
        let inode = error.inode.map_or(0, |inode| inode.0);
        if is_first {
            set_time(&mut raw.first_error_time, &mut raw.first_error_time_hi, error.time);
            raw.first_error_ino.set(inode);
            raw.first_error_block.set(error.block.0);
            set_text(&mut raw.first_error_func, &error.function);
            raw.first_error_line.set(error.line);
            raw.first_error_errcode = error.code;
        }
        set_time(&mut raw.last_error_time, &mut raw.last_error_time_hi, error.time);
        raw.last_error_ino.set(inode);
        raw.last_error_block.set(error.block.0);
        set_text(&mut raw.last_error_func, &error.function);
        raw.last_error_line.set(error.line);
        raw.last_error_errcode = error.code;
    }
}

fn time(low: U32, high: u8) -> Seconds {
    Seconds(u64::from(low.get()) | u64::from(high) << 32)
}

fn set_time(low: &mut U32, high: &mut u8, now: Seconds) {
    low.set(now.0 as u32);
    *high = (now.0 >> 32) as u8;
}

fn set_bit(mask: &mut U32, bit: u32, on: bool) {
    mask.set(if on { mask.get() | bit } else { mask.get() & !bit });
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(until_zero(bytes)).into_owned()
}

fn set_text(to: &mut [u8], from: &str) {
    to.fill(0);
    for (to, from) in to.iter_mut().zip(from.bytes()) {
        *to = from;
    }
}
