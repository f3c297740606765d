//! A store as it lies on disk, read by the tables of docs/disk-format.md and by no code of the product but its CRC: what
//! every page says, whether it is whole, and whether data, checksum pages, index and log agree.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use proto::checksum::crc32;

/// Bytes of a block and of a page.
pub const PAGE: usize = 4096;
/// Blocks of an extent.
pub const EXTENT_BLOCKS: u64 = 1024;
/// Byte offsets of the superblock's slots.
pub const SLOTS: [u64; 2] = [0, 512 << 10];
/// Bytes of a superblock in which something stands.
pub const SUPERBLOCK_USED: u64 = 240;
/// Bytes before the first entry of an index page, and of each entry.
pub const INDEX_HEADER: u64 = 16;
/// Bits of a log page begin here.
pub const LOG_HEADER: u64 = 64;
/// Bits of a bitmap's page begin here; so much of its header is used, too.
pub const BITMAP_HEADER: u64 = 128;

const SUPERBLOCK_MAGIC: &[u8] = b"TANDEM-STORE\r\n\x1a\0";
const LOG_MAGIC: &[u8] = b"TNDMHOT\x02";
const BITMAP_MAGICS: [&[u8]; 2] = [b"TDBMHEAD", b"TDBMBITS"];
const BITMAPS: u64 = 3;
/// Extents of which one index page speaks; volumes of a campaign have no more, and so one page and one group of the log.
const INDEX_EXTENTS: u64 = 255;
const STATES_AT: usize = 128;
const PRESENT: u32 = 1;
const FAULTS_TOLD_MAX: usize = 5;

/// A run of bytes of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Where the areas lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Activity log.
    pub log: Run,
    /// All dirty bitmaps.
    pub bitmaps: Run,
    /// Both copies of the index.
    pub index: [Run; 2],
    /// Checksum pages.
    pub sums: Run,
    /// The volume.
    pub data: Run,
}

/// What a page holds, of those that stand in two or more places in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing was ever written.
    Zeros,
    /// A whole page, with its number or generation.
    Valid(u64),
    /// Something that does not match its checksum, or not its place.
    Damaged,
}

/// What the index says of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// All zeros, without a checksum page.
    Never,
    /// The checksum page has this sum.
    Present {
        /// CRC-32 of volume, extent, generation and page.
        crc: u32,
        /// Of the page.
        generation: u32,
    },
    /// Nothing is known.
    Unknown,
}

/// What a superblock says that must outlive damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Grows with every write.
    pub generation: u64,
    /// Newest version at which the copy knew to be in sync.
    pub last_in_sync: u64,
    /// State bits.
    pub states: u32,
    /// Cluster, volume, disk, size; constants and areas; the unused rest.
    pub constants: Vec<u8>,
    /// Scrubs of the past, which every scrub writes anew.
    pub scrubs: Vec<u8>,
}

/// The bytes of a whole store.
#[derive(Clone, Debug)]
pub struct Image {
    bytes: Vec<u8>,
    layout: Layout,
    volume: [u8; 16],
}

impl Image {
    /// Reads a store. Fails if neither superblock is whole.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = read_all(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let newest =
            SLOTS.iter().filter_map(|slot| whole_superblock(&bytes, *slot)).max_by_key(|page| u64_at(page, 40));
        let page = newest.ok_or_else(|| format!("{}: neither superblock is whole", path.display()))?;
        let run = |at: usize| Run { offset: u64_at(page, at), length: u64_at(page, at + 8) };
        let layout =
            Layout { log: run(144), bitmaps: run(160), index: [run(176), run(192)], sums: run(208), data: run(224) };
        let volume = page[64..80].try_into().map_err(|_| "a short page")?;
        let ends = layout.data.offset + layout.data.length == bytes.len() as u64;
        let small = layout.index[0].length == PAGE as u64;
        match ends && small {
            true => Ok(Self { bytes, layout, volume }),
            false => Err(format!("{}: a layout that does not fit: {layout:?}", path.display())),
        }
    }

    /// The same store, read again, whatever has become of its superblocks.
    pub fn again(&self, path: &Path) -> Result<Self, String> {
        let bytes = read_all(path).map_err(|error| format!("{}: {error}", path.display()))?;
        match bytes.len() == self.bytes.len() {
            true => Ok(Self { bytes, layout: self.layout, volume: self.volume }),
            false => Err(format!("{} has {} bytes", path.display(), bytes.len())),
        }
    }

    /// Everything.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where everything lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The data area.
    pub fn data(&self) -> &[u8] {
        self.run(self.layout.data)
    }

    /// Blocks of the volume.
    pub fn blocks(&self) -> u64 {
        self.layout.data.length / PAGE as u64
    }

    /// Extents of the volume.
    pub fn extents(&self) -> u64 {
        self.blocks().div_ceil(EXTENT_BLOCKS)
    }

    /// The blocks of an extent.
    pub fn blocks_of(&self, extent: u64) -> std::ops::Range<u64> {
        extent * EXTENT_BLOCKS..self.blocks().min((extent + 1) * EXTENT_BLOCKS)
    }

    /// One block of the data.
    pub fn block(&self, block: u64) -> &[u8] {
        self.page(self.layout.data, block)
    }

    /// A superblock, if that slot is whole.
    pub fn superblock(&self, slot: usize) -> Option<Superblock> {
        let page = whole_superblock(&self.bytes, SLOTS[slot])?;
        Some(Superblock {
            generation: u64_at(page, 40),
            last_in_sync: u64_at(page, 104),
            states: u32_at(page, STATES_AT),
            constants: [&page[20..40], &page[48..104], &page[132..240], &page[352..]].concat(),
            scrubs: page[240..352].to_vec(),
        })
    }

    /// What a page of the log holds.
    pub fn log_page(&self, number: u64) -> Held {
        let page = self.page(self.layout.log, number);
        if is_zeros(page) {
            return Held::Zeros;
        }
        let transaction = u64_at(page, 16);
        let right = &page[..8] == LOG_MAGIC
            && u32_at(page, 8) == crc32(&[&page[..8], &[0; 4], &page[12..]])
            && u32_at(page, 12) == 0
            && u64_at(page, 24) == 0
            && page[32..48] == self.volume
            && transaction > 0
            && transaction % self.ring() == number;
        if right { Held::Valid(transaction) } else { Held::Damaged }
    }

    /// The number of the last transaction, 0 if there is none, and the extents that are hot; `None`: all may be.
    pub fn log(&self) -> (u64, Option<BTreeSet<u64>>) {
        let pages: Vec<Held> = (0..self.ring()).map(|number| self.log_page(number)).collect();
        let newest = pages.iter().map(|held| rank(*held)).max().unwrap_or(0);
        if newest == 0 {
            return (0, pages.iter().all(|held| *held == Held::Zeros).then(BTreeSet::new));
        }
        let believed = match pages[((newest + 1) % self.ring()) as usize] {
            Held::Zeros => newest < self.ring(),
            Held::Valid(older) => older + self.ring() == newest + 1,
            Held::Damaged => false,
        };
        let bits = &self.page(self.layout.log, newest % self.ring())[LOG_HEADER as usize..];
        let is_hot = |extent: &u64| bits[*extent as usize / 8] & 1 << (extent % 8) != 0;
        (newest, believed.then(|| (0..self.extents()).filter(is_hot).collect()))
    }

    /// Pages of the log.
    pub fn ring(&self) -> u64 {
        self.layout.log.length / PAGE as u64
    }

    /// What a copy of the index page holds.
    pub fn index_page(&self, copy: usize) -> Held {
        let page = self.run(self.layout.index[copy]);
        if is_zeros(page) {
            return Held::Zeros;
        }
        let generation = u64_at(page, 8);
        let right = u32_at(page, 0) == crc32(&[&self.volume, &[copy as u8, 0, 0, 0], &page[4..]])
            && u32_at(page, 4) == 0
            && generation > 0
            && generation % 2 == copy as u64;
        if right { Held::Valid(generation) } else { Held::Damaged }
    }

    /// The copy of the index that counts.
    pub fn newest_index(&self) -> usize {
        usize::from(rank(self.index_page(1)) > rank(self.index_page(0)))
    }

    /// What the index says of an extent that is not hot.
    pub fn entry(&self, extent: u64) -> Entry {
        let newest = self.newest_index();
        let held = [self.index_page(newest), self.index_page(1 - newest)];
        let never = match held {
            [Held::Zeros, Held::Zeros] | [Held::Valid(_), Held::Valid(_)] | [Held::Valid(1), Held::Zeros] => {
                Entry::Never
            }
            _ => Entry::Unknown,
        };
        if rank(held[0]) == 0 {
            return never;
        }
        let entry = &self.run(self.layout.index[newest])[(INDEX_HEADER + 16 * extent) as usize..][..16];
        match u32_at(entry, 4) {
            PRESENT => Entry::Present { crc: u32_at(entry, 0), generation: u32_at(entry, 8) },
            _ if is_zeros(entry) => never,
            _ => Entry::Unknown,
        }
    }

    /// Whether an extent's checksum page is the one that its index entry names.
    pub fn sums_match(&self, extent: u64) -> bool {
        let Entry::Present { crc, generation } = self.entry(extent) else { return false };
        let page = self.page(self.layout.sums, extent);
        crc32(&[&self.volume, &extent.to_le_bytes(), &generation.to_le_bytes(), page]) == crc
    }

    /// Pages of one dirty bitmap, the header included.
    pub fn bitmap_pages(&self) -> u64 {
        self.layout.bitmaps.length / PAGE as u64 / BITMAPS
    }

    /// What page `page` of the bitmap area, counted through all bitmaps, holds; with its generation.
    pub fn bitmap_page(&self, page: u64) -> Held {
        let number = page % self.bitmap_pages();
        let bytes = self.page(self.layout.bitmaps, page);
        if is_zeros(bytes) {
            return Held::Zeros;
        }
        let is_header = number == 0;
        let right = &bytes[..8] == BITMAP_MAGICS[usize::from(!is_header)]
            && u32_at(bytes, 8) == crc32(&[&bytes[..8], &bytes[12..]])
            && (is_header || u64_at(bytes, 24) == number);
        if right { Held::Valid(u64_at(bytes, if is_header { 72 } else { 16 })) } else { Held::Damaged }
    }

    /// Whether a block of a cold extent matches what is known of it. An extent of which nothing is known fails.
    pub fn block_matches(&self, block: u64) -> bool {
        let extent = block / EXTENT_BLOCKS;
        match self.entry(extent) {
            Entry::Never => is_zeros(self.block(block)),
            Entry::Unknown => false,
            Entry::Present { .. } => {
                let at = (block % EXTENT_BLOCKS) as usize * 4;
                let sum = u32_at(self.page(self.layout.sums, extent), at);
                sum == crc32(&[&self.salt(), &block.to_le_bytes(), self.block(block)])
            }
        }
    }

    /// What contradicts itself in a store that is at rest or open: the log, and for every extent that it does not list
    /// index, checksum page and data. With `metadata_lost` the log, and the
    /// checksums of some extents, may be unknown.
    pub fn faults(&self, metadata_lost: bool) -> Vec<String> {
        let (_, Some(hot)) = self.log() else {
            // Then everything counts as hot, until the ring has come past the damaged page.
            return if metadata_lost { Vec::new() } else { vec!["the activity log is damaged".to_owned()] };
        };
        let mut faults = Vec::new();
        for extent in (0..self.extents()).filter(|extent| !hot.contains(extent)) {
            match self.entry(extent) {
                Entry::Present { .. } if !self.sums_match(extent) => {
                    faults.push(format!("the checksum page of cold extent {extent} does not match its entry"));
                }
                Entry::Present { .. } | Entry::Never => {
                    let bad: Vec<u64> = self.blocks_of(extent).filter(|block| !self.block_matches(*block)).collect();
                    if let [first, ..] = bad[..] {
                        faults.push(format!("{} blocks from {first} of cold extent {extent} do not match", bad.len()));
                    }
                }
                Entry::Unknown if metadata_lost => {}
                Entry::Unknown => faults.push(format!("nothing is known of cold extent {extent}")),
            }
        }
        faults.truncate(FAULTS_TOLD_MAX);
        faults
    }

    /// Makes checksum pages and index say that these blocks of cold extents are what they are: damage that nothing can tell
    /// any more. Gives the pages to write, with their offsets.
    pub fn forged(mut self, blocks: &[u64]) -> Vec<(u64, Vec<u8>)> {
        let copy = self.newest_index() as u8;
        let index = self.layout.index[usize::from(copy)];
        let mut written = BTreeSet::from([index.offset]);
        for block in blocks {
            let extent = block / EXTENT_BLOCKS;
            let Entry::Present { generation, .. } = self.entry(extent) else { continue };
            let page_at = self.layout.sums.offset + extent * PAGE as u64;
            let sum = crc32(&[&self.salt(), &block.to_le_bytes(), self.block(*block)]);
            self.put(page_at + (block % EXTENT_BLOCKS) * 4, &sum.to_le_bytes());
            let page = self.page(self.layout.sums, extent);
            let crc = crc32(&[&self.volume, &extent.to_le_bytes(), &generation.to_le_bytes(), page]);
            self.put(index.offset + INDEX_HEADER + 16 * extent, &crc.to_le_bytes());
            let crc = crc32(&[&self.volume, &[copy, 0, 0, 0], &self.run(index)[4..]]);
            self.put(index.offset, &crc.to_le_bytes());
            written.insert(page_at);
        }
        written.into_iter().map(|at| (at, self.bytes[at as usize..][..PAGE].to_vec())).collect()
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn salt(&self) -> [u8; 8] {
        std::array::from_fn(|at| self.volume[at] ^ self.volume[at + 8])
    }

    fn run(&self, run: Run) -> &[u8] {
        &self.bytes[run.offset as usize..][..run.length as usize]
    }

    fn page(&self, run: Run, number: u64) -> &[u8] {
        &self.run(run)[number as usize * PAGE..][..PAGE]
    }
}

/// Most extents of a volume whose store can be read here.
pub const EXTENTS_MAX: u64 = INDEX_EXTENTS;

fn rank(held: Held) -> u64 {
    if let Held::Valid(number) = held { number } else { 0 }
}

fn whole_superblock(bytes: &[u8], offset: u64) -> Option<&[u8]> {
    let page = bytes.get(offset as usize..)?.get(..PAGE)?;
    let right = &page[..16] == SUPERBLOCK_MAGIC && u32_at(page, 16) == crc32(&[&page[..16], &[0; 4], &page[20..]]);
    right.then_some(page)
}

fn read_all(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::with_capacity(file.metadata()?.len() as usize);
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
}
