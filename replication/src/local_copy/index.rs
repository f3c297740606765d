//! The index: for each extent, what is known of its checksum page on stable media.
//!
//! A page of the index has two copies, written in turn; the valid one with the higher generation counts. Damage is never
//! an error: of an extent whose entry cannot be believed the sums are unknown. It does not do the writing.

use proto::VolumeId;
use proto::checksum::crc32;

use super::codec::{put, u32_at, u64_at};
use super::extents::{Entry, Extents};
use super::{Geometry, MetaPage, PAGE_BYTES, Page};

const CRC_AT: usize = 0;
const NUMBER_AT: usize = 4;
const GENERATION_AT: usize = 8;
const ENTRIES_AT: usize = 16;
const ENTRY_BYTES: usize = 16;
/// Entries of a page.
pub(super) const PAGE_ENTRIES: u64 = ((PAGE_BYTES - ENTRIES_AT) / ENTRY_BYTES) as u64;

const PRESENT: u32 = 1;
const UNKNOWN: u32 = 2;

/// The state in memory of the index's pages; the entries are with their extents.
#[derive(Debug)]
pub(super) struct Index {
    volume: VolumeId,
    pages: Vec<IndexPage>,
}

#[derive(Debug, Default)]
struct IndexPage {
    /// Of the newest copy.
    generation: u64,
    /// Operations whose entries are in the write in flight.
    in_flight: Option<Vec<u64>>,
    /// Operations that wait for the next write.
    waiting: Vec<u64>,
}

/// What one copy of a page holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Zeros,
    Valid(u64),
    Damaged,
}

impl Index {
    /// Reads both copies. Gives the entries of all extents, and how many pages were damaged.
    pub(super) fn recover(geometry: &Geometry, extents: u64, copies: [&[u8]; 2]) -> (Self, Vec<Entry>, u64) {
        let mut index = Self { volume: geometry.volume, pages: Vec::new() };
        let mut entries = Vec::with_capacity(extents as usize);
        let mut damaged = 0;
        for page in 0..extents.div_ceil(PAGE_ENTRIES) as u32 {
            let count = (extents - u64::from(page) * PAGE_ENTRIES).min(PAGE_ENTRIES) as usize;
            let bytes = copies.map(|copy| page_of(copy, page));
            let held = [0, 1].map(|copy| index.inspect(copy, page, bytes[copy as usize]));
            damaged += held.iter().filter(|held| **held == Held::Damaged).count() as u64;
            let (newest, other) = if rank(held[0]) > rank(held[1]) { (0, 1) } else { (1, 0) };
            let generation = rank(held[newest]);
            index.pages.push(IndexPage { generation, ..IndexPage::default() });
            let never = match (held[newest], held[other]) {
                (Held::Zeros, Held::Zeros) => Entry::Never,
                // What was to be overwritten next still stands, so nothing newer than the newest was ever written.
                (Held::Valid(_), Held::Valid(_)) | (Held::Valid(1), Held::Zeros) => Entry::Never,
                // The other copy may have been newer and acknowledged, and an extent may have been written by then.
                // (An entry that names a checksum page is safe: an extent that became cold since has another page.)
                _ => Entry::Unknown,
            };
            let page = bytes[newest].filter(|_| generation > 0);
            entries.extend((0..count).map(|at| match page.map_or(never, |page| decode(page, at)) {
                Entry::Never => never,
                known => known,
            }));
        }
        (index, entries, damaged)
    }

    fn inspect(&self, copy: u8, number: u32, page: Option<&[u8]>) -> Held {
        let Some(page) = page else { return Held::Damaged };
        if page.iter().all(|byte| *byte == 0) {
            return Held::Zeros;
        }
        let generation = u64_at(page, GENERATION_AT);
        let right = u32_at(page, CRC_AT) == self.page_crc(copy, page)
            && u32_at(page, NUMBER_AT) == number
            && (1..u64::MAX).contains(&generation)
            && generation % 2 == u64::from(copy);
        if right { Held::Valid(generation) } else { Held::Damaged }
    }

    /// The page that holds an extent's entry.
    pub(super) fn page_of(extent: u64) -> u32 {
        (extent / PAGE_ENTRIES) as u32
    }

    /// Operation `tag` has changed entries of the page; they go with its next write.
    pub(super) fn queue(&mut self, page: u32, tag: u64) {
        self.pages[page as usize].waiting.push(tag);
    }

    /// The operations whose changes the page's next write would carry; none while a write is in flight.
    pub(super) fn ready(&self, page: u32) -> &[u64] {
        let state = &self.pages[page as usize];
        if state.in_flight.is_some() { &[] } else { &state.waiting }
    }

    /// Begins the page's next write: what to write, durably.
    pub(super) fn begin(&mut self, page: u32, extents: &Extents) -> (MetaPage, Page) {
        let state = &mut self.pages[page as usize];
        state.in_flight = Some(std::mem::take(&mut state.waiting));
        state.generation += 1;
        let copy = (state.generation % 2) as u8;
        let mut bytes = Box::new([0; PAGE_BYTES]);
        put(&mut bytes, NUMBER_AT, &page.to_le_bytes());
        put(&mut bytes, GENERATION_AT, &state.generation.to_le_bytes());
        let first = u64::from(page) * PAGE_ENTRIES;
        for extent in first..(first + PAGE_ENTRIES).min(extents.count()) {
            encode(&mut bytes, (extent - first) as usize, extents.entry(extent));
        }
        let crc = self.page_crc(copy, &bytes[..]);
        put(&mut bytes, CRC_AT, &crc.to_le_bytes());
        (MetaPage::Index { copy, page }, bytes)
    }

    /// The page's write has ended: the operations whose changes it carried.
    pub(super) fn end(&mut self, page: u32) -> Vec<u64> {
        self.pages[page as usize].in_flight.take().expect("a write in flight")
    }

    /// Gives up what waits for the next write of a page.
    pub(super) fn give_up(&mut self, page: u32) -> Vec<u64> {
        std::mem::take(&mut self.pages[page as usize].waiting)
    }

    /// Volume and copy are summed as well: a page of another place does not match.
    fn page_crc(&self, copy: u8, page: &[u8]) -> u32 {
        crc32(&[&self.volume.0.to_le_bytes(), &[copy, 0, 0, 0], &page[CRC_AT + 4..]])
    }
}

fn page_of(copy: &[u8], page: u32) -> Option<&[u8]> {
    let start = page as usize * PAGE_BYTES;
    copy.get(start..start + PAGE_BYTES)
}

fn rank(held: Held) -> u64 {
    if let Held::Valid(generation) = held { generation } else { 0 }
}

fn decode(page: &[u8], at: usize) -> Entry {
    let entry = &page[ENTRIES_AT + at * ENTRY_BYTES..][..ENTRY_BYTES];
    let (crc, flags, generation) = (u32_at(entry, 0), u32_at(entry, 4), u32_at(entry, 8));
    match flags {
        PRESENT => Entry::Present { crc, generation },
        _ if entry.iter().all(|byte| *byte == 0) => Entry::Never,
        _ => Entry::Unknown,
    }
}

fn encode(page: &mut [u8; PAGE_BYTES], at: usize, entry: Entry) {
    let (crc, flags, generation) = match entry {
        Entry::Never => return,
        Entry::Unknown => (0, UNKNOWN, 0),
        Entry::Present { crc, generation } => (crc, PRESENT, generation),
    };
    let at = ENTRIES_AT + at * ENTRY_BYTES;
    put(page, at, &crc.to_le_bytes());
    put(page, at + 4, &flags.to_le_bytes());
    put(page, at + 8, &generation.to_le_bytes());
}
