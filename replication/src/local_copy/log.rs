//! The activity log: which extents are hot, durably.
//!
//! Extents are cut into groups. A transaction is one page that restates which extents of its group are hot; each group
//! has a ring of pages, and transaction *n* goes to slot *n* mod ring. A group has one transaction in flight; what is asked
//! for meanwhile goes together in the next. It does not do the writing, and does not know what an extent holds.

use proto::VolumeId;
use proto::checksum::crc32;

use super::codec::{put, u32_at, u64_at};
use super::{Geometry, MetaPage, PAGE_BYTES, Page};

const MAGIC: [u8; 8] = *b"TNDMHOT\x02";
const CRC_AT: usize = 8;
const GROUP_AT: usize = 12;
const NUMBER_AT: usize = 16;
const FIRST_AT: usize = 24;
const VOLUME_AT: usize = 32;
const BITS_AT: usize = 64;

/// Extents whose hot bits fit in one page.
pub(super) const GROUP_EXTENTS: u64 = (PAGE_BYTES - BITS_AT) as u64 * 8;

/// Pages of log that a volume of this many blocks needs for a comfortable ring: 8 for each group, and at least 256.
pub fn log_pages_for(blocks: u64) -> u32 {
    let groups = blocks.div_ceil(proto::EXTENT_BLOCKS).div_ceil(GROUP_EXTENTS);
    u32::try_from(groups * 8).unwrap_or(u32::MAX).max(256)
}

/// The log's state in memory.
#[derive(Debug)]
pub(super) struct Log {
    volume: VolumeId,
    /// Slots of each group.
    ring: u32,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    /// Number of the last transaction begun.
    number: u64,
    /// What that transaction said.
    listed: Box<[u8; PAGE_BYTES - BITS_AT]>,
    next: Change,
    in_flight: Option<Change>,
    /// Slots that were damaged when the log was read, or 1 if it could not be believed all the same.
    damaged: u32,
}

/// What a transaction changes.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Extents that become hot.
    pub(super) heated: Vec<u64>,
    /// Operations whose extents become cold.
    pub(super) cooling: Vec<u64>,
    cooled: Vec<u64>,
}

/// What a slot of the ring holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Zeros,
    Valid(u64),
    Damaged,
}

impl Log {
    /// Reads the log. Also says for each group whether it can be believed; of one that cannot, every extent is listed.
    pub(super) fn recover(geometry: &Geometry, extents: u64, bytes: &[u8]) -> (Self, Vec<bool>) {
        let groups = extents.div_ceil(GROUP_EXTENTS).max(1);
        let ring = (u64::from(geometry.log_pages) / groups) as u32;
        assert!(ring >= 2, "a log of {} pages is too short for {groups} groups", geometry.log_pages);
        let mut log = Self { volume: geometry.volume, ring, groups: Vec::new() };
        let mut believed = Vec::new();
        for group in 0..groups {
            let mask = (extents - group * GROUP_EXTENTS).min(GROUP_EXTENTS);
            let (state, good) = log.recover_group(group as u32, mask, bytes);
            log.groups.push(state);
            believed.push(good);
        }
        (log, believed)
    }

    fn recover_group(&self, group: u32, extents: u64, bytes: &[u8]) -> (Group, bool) {
        let page_of = |slot: u32| {
            let start = (group * self.ring + slot) as usize * PAGE_BYTES;
            bytes.get(start..start + PAGE_BYTES)
        };
        let slots: Vec<Slot> = (0..self.ring).map(|slot| self.inspect(group, slot, page_of(slot))).collect();
        let numbers = slots.iter().map(|slot| if let Slot::Valid(number) = slot { *number } else { 0 });
        let number = numbers.max().unwrap_or(0);
        let mut listed = Box::new([0; PAGE_BYTES - BITS_AT]);
        let believed = if number == 0 {
            slots.iter().all(|slot| *slot == Slot::Zeros)
        } else {
            // A newer transaction, if there was one, went to the next slot. Unless that still holds exactly what it must
            // have held before, a newer one may have been acknowledged and damaged since.
            let ring = u64::from(self.ring);
            match slots[((number + 1) % ring) as usize] {
                Slot::Zeros => number < ring,
                Slot::Valid(older) => older + ring == number + 1,
                Slot::Damaged => false,
            }
        };
        let damaged = slots.iter().filter(|slot| **slot == Slot::Damaged).count() as u32;
        let damaged = damaged.max(u32::from(!believed));
        let newest = page_of((number % u64::from(self.ring)) as u32).filter(|_| number > 0 && believed);
        for extent in 0..extents as usize {
            if newest.map_or(!believed, |page| page[BITS_AT + extent / 8] & 1 << (extent % 8) != 0) {
                listed[extent / 8] |= 1 << (extent % 8);
            }
        }
        (Group { number, listed, next: Change::default(), in_flight: None, damaged }, believed)
    }

    fn inspect(&self, group: u32, slot: u32, page: Option<&[u8]>) -> Slot {
        let Some(page) = page else { return Slot::Damaged };
        if page.iter().all(|byte| *byte == 0) {
            return Slot::Zeros;
        }
        let number = u64_at(page, NUMBER_AT);
        let right = page[..8] == MAGIC
            && u32_at(page, CRC_AT) == page_crc(page)
            && u32_at(page, GROUP_AT) == group
            && u64_at(page, FIRST_AT) == u64::from(group) * GROUP_EXTENTS
            && page[VOLUME_AT..VOLUME_AT + 16] == self.volume.0.to_le_bytes()
            && (1..u64::MAX).contains(&number)
            && number % u64::from(self.ring) == u64::from(slot);
        if right { Slot::Valid(number) } else { Slot::Damaged }
    }

    /// The group that an extent belongs to.
    pub(super) fn group_of(extent: u64) -> u32 {
        (extent / GROUP_EXTENTS) as u32
    }

    /// Whether the last transaction begun says that the extent is hot.
    pub(super) fn lists(&self, extent: u64) -> bool {
        let (byte, bit) = place(extent);
        self.groups[Self::group_of(extent) as usize].listed[byte] & bit != 0
    }

    /// The next transaction of its group will list the extent.
    pub(super) fn heat(&mut self, extent: u64) {
        self.groups[Self::group_of(extent) as usize].next.heated.push(extent);
    }

    /// The next transaction of `group` will drop these extents, which belong to it, for operation `tag`.
    pub(super) fn cool(&mut self, group: u32, tag: u64, extents: &[u64]) {
        let next = &mut self.groups[group as usize].next;
        next.cooling.push(tag);
        next.cooled.extend_from_slice(extents);
    }

    /// Begins a group's next transaction, if there is something to say and none is in flight: the page to write, durably.
    pub(super) fn begin(&mut self, group: u32) -> Option<(MetaPage, Page)> {
        let state = &mut self.groups[group as usize];
        if state.in_flight.is_some() || (state.next.heated.is_empty() && state.next.cooling.is_empty()) {
            return None;
        }
        let change = std::mem::take(&mut state.next);
        for &extent in &change.heated {
            let (byte, bit) = place(extent);
            state.listed[byte] |= bit;
        }
        for &extent in &change.cooled {
            let (byte, bit) = place(extent);
            state.listed[byte] &= !bit;
        }
        state.in_flight = Some(change);
        Some(self.transaction(group))
    }

    /// Slots that were found damaged when the log was read and have not been mended.
    pub(super) fn damaged(&self) -> u64 {
        self.groups.iter().map(|group| u64::from(group.damaged)).sum()
    }

    /// Transactions that fill the rings in which a slot was damaged, and change nothing. Without them the damaged slot
    /// would cast doubt on the log each time that a crash leaves it beside the newest transaction. Whichever of them
    /// land, the newest says what is hot, or the log is not believed.
    pub(super) fn mend(&mut self) -> Vec<(MetaPage, Page)> {
        let mut pages = Vec::new();
        for group in 0..self.groups.len() as u32 {
            if std::mem::take(&mut self.groups[group as usize].damaged) > 0 {
                pages.extend((0..self.ring).map(|_| self.transaction(group)));
            }
        }
        pages
    }

    /// The next transaction of a group: its page.
    fn transaction(&mut self, group: u32) -> (MetaPage, Page) {
        let state = &mut self.groups[group as usize];
        state.number += 1;
        let mut page = Box::new([0; PAGE_BYTES]);
        page[..8].copy_from_slice(&MAGIC);
        put(&mut page, GROUP_AT, &group.to_le_bytes());
        put(&mut page, NUMBER_AT, &state.number.to_le_bytes());
        put(&mut page, FIRST_AT, &(u64::from(group) * GROUP_EXTENTS).to_le_bytes());
        put(&mut page, VOLUME_AT, &self.volume.0.to_le_bytes());
        put(&mut page, BITS_AT, &state.listed[..]);
        let crc = page_crc(&page[..]);
        put(&mut page, CRC_AT, &crc.to_le_bytes());
        let slot = (state.number % u64::from(self.ring)) as u32;
        (MetaPage::Log(group * self.ring + slot), page)
    }

    /// The transaction in flight has ended: what it changed.
    pub(super) fn end(&mut self, group: u32) -> Change {
        self.groups[group as usize].in_flight.take().expect("a transaction in flight")
    }

    /// Gives up what waits for the next transaction of a group.
    pub(super) fn give_up(&mut self, group: u32) -> Change {
        std::mem::take(&mut self.groups[group as usize].next)
    }
}

fn place(extent: u64) -> (usize, u8) {
    let at = (extent % GROUP_EXTENTS) as usize;
    (at / 8, 1 << (at % 8))
}

fn page_crc(page: &[u8]) -> u32 {
    crc32(&[&page[..CRC_AT], &[0; 4], &page[CRC_AT + 4..]])
}
