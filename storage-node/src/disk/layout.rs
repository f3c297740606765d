//! Where the areas of a store lie, computed from the volume's size. Pure.
//!
//! `docs/disk-format.md` describes what each area holds.

use proto::{BLOCK_BYTES, EXTENT_BYTES};
use replication::bitmap_pages::pages_for;
use replication::local_copy::log_pages_for;

/// Largest volume, in bytes (16 TiB).
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;
/// Byte offsets of the two superblock slots. Far apart, so that one damaged spot does not take both.
pub(super) const SLOT_OFFSETS: [u64; 2] = [0, 512 << 10];
/// Bytes at the start that hold nothing but the superblocks; all zeros where no store is.
pub(super) const HEAD_BYTES: u64 = 1 << 20;
/// Dirty bitmaps a store has room for, one for each registered replica elsewhere.
pub(super) const BITMAPS: u32 = 3;

/// No area of metadata is longer: some are read whole.
const METADATA_AREA_BYTES_MAX: u64 = 16 << 30;
/// A 4 KiB index page has a 16-byte header and 16 bytes an extent.
const INDEX_EXTENTS_PER_PAGE: u64 = 255;

/// A run of bytes of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Area {
    /// First byte.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u64,
}

impl Area {
    /// One past the last byte; `None` if it does not fit the number.
    fn end(self) -> Option<u64> {
        self.offset.checked_add(self.length)
    }
}

/// The areas of a store, in order of their offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) activity_log: Area,
    /// All [`BITMAPS`] of them, each an equal share.
    pub(super) bitmaps: Area,
    pub(super) index_first: Area,
    pub(super) index_second: Area,
    pub(super) checksums: Area,
    /// The volume; starts at a multiple of 4 MiB.
    pub(super) data: Area,
}

impl Layout {
    /// The layout of a new store; `size_bytes` as [`size_problem`] accepts it.
    pub(super) fn for_volume(size_bytes: u64) -> Layout {
        let extents = size_bytes.div_ceil(EXTENT_BYTES);
        let bitmap = pages_for(size_bytes / BLOCK_BYTES) * BLOCK_BYTES;
        let index = extents.div_ceil(INDEX_EXTENTS_PER_PAGE) * BLOCK_BYTES;
        let mut next = HEAD_BYTES;
        let mut place = |length: u64| {
            let area = Area { offset: next, length };
            next += length;
            area
        };
        let activity_log = place(u64::from(log_pages_for(size_bytes / BLOCK_BYTES)) * BLOCK_BYTES);
        let bitmaps = place(bitmap * u64::from(BITMAPS));
        let index_first = place(index);
        let index_second = place(index);
        let checksums = place(extents * BLOCK_BYTES);
        let data = Area { offset: next.next_multiple_of(EXTENT_BYTES), length: size_bytes };
        Layout { activity_log, bitmaps, index_first, index_second, checksums, data }
    }

    /// Bytes of the whole store: nothing follows the data.
    pub(super) fn store_bytes(&self) -> u64 {
        self.data.offset + self.data.length
    }

    /// The run from the activity log to the second index, which is always written with zeros.
    pub(super) fn zeroed_metadata(&self) -> Area {
        Area { offset: self.activity_log.offset, length: self.checksums.offset - self.activity_log.offset }
    }

    /// What is wrong with a layout read from a disk.
    pub(super) fn problem(&self, size_bytes: u64) -> Option<String> {
        if let Some(problem) = size_problem(size_bytes) {
            return Some(problem);
        }
        let areas = [
            ("activity log", self.activity_log),
            ("dirty bitmaps", self.bitmaps),
            ("first index", self.index_first),
            ("second index", self.index_second),
            ("checksums", self.checksums),
            ("data", self.data),
        ];
        let mut free_from = HEAD_BYTES;
        for (name, area) in areas {
            let Some(end) = area.end() else { return Some(format!("the {name} area ends past every disk")) };
            if area.offset < free_from || !area.offset.is_multiple_of(BLOCK_BYTES) {
                return Some(format!("the {name} area begins at {}, inside another or unaligned", area.offset));
            }
            free_from = end;
        }
        let whole = Layout::for_volume(size_bytes);
        let needed = [
            ("activity log", self.activity_log, whole.activity_log.length),
            ("dirty bitmaps", self.bitmaps, whole.bitmaps.length),
            ("first index", self.index_first, whole.index_first.length),
            ("second index", self.index_second, whole.index_second.length),
            ("checksums", self.checksums, whole.checksums.length),
        ];
        for (name, area, needed) in needed {
            if area.length < needed || area.length > METADATA_AREA_BYTES_MAX || !area.length.is_multiple_of(BLOCK_BYTES)
            {
                return Some(format!("the {name} area has {} bytes where {needed} are needed", area.length));
            }
        }
        if !self.data.offset.is_multiple_of(EXTENT_BYTES) || self.data.length != size_bytes {
            return Some("the data area is unaligned or not as long as the volume".into());
        }
        None
    }
}

/// Why a volume cannot have this size.
pub(super) fn size_problem(size_bytes: u64) -> Option<String> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(BLOCK_BYTES) {
        return Some(format!("a volume's size is a multiple of {BLOCK_BYTES} bytes, not {size_bytes}"));
    }
    (size_bytes > VOLUME_BYTES_MAX)
        .then(|| format!("a volume holds at most {VOLUME_BYTES_MAX} bytes, not {size_bytes}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_follow_each_other_and_data_is_aligned_for_every_size() {
        for size in [4096, EXTENT_BYTES - 4096, EXTENT_BYTES, EXTENT_BYTES + 4096, 100 << 30, VOLUME_BYTES_MAX] {
            let layout = Layout::for_volume(size);
            assert_eq!(layout.problem(size), None, "{size}");
            assert_eq!(layout.store_bytes(), layout.data.offset + size);
        }
    }

    #[test]
    fn metadata_of_a_large_volume_stays_small() {
        let layout = Layout::for_volume(100 << 30);
        assert_eq!(layout.checksums.length, 100 << 20);
        assert!(layout.zeroed_metadata().length < 16 << 20);
    }

    #[test]
    fn layouts_of_a_damaged_disk_are_refused() {
        let good = Layout::for_volume(1 << 30);
        let damage: [fn(&mut Layout); 9] = [
            |l| l.activity_log.offset = 4096,
            |l| l.bitmaps.length = u64::MAX,
            |l| l.index_second.offset += 1,
            |l| l.activity_log.length = 0,
            |l| l.index_first.length -= 1,
            |l| l.checksums.length -= 4096,
            |l| l.checksums.length += 4 << 20,
            |l| l.data.offset += 4096,
            |l| l.data.length -= 4096,
        ];
        for (number, change) in damage.iter().enumerate() {
            let mut layout = good;
            change(&mut layout);
            assert!(layout.problem(1 << 30).is_some(), "damage {number}");
        }
        for size in [0, 4095, VOLUME_BYTES_MAX + 4096, u64::MAX] {
            assert!(good.problem(size).is_some());
        }
    }
}
