//! A store in memory that can lose power: unflushed writes are lost or torn, each place by itself.
//!
//! The content of a block is a token; 0 is zeros. A torn block is a token that nobody wrote.

use std::collections::BTreeMap;

use proto::checksum::{BlockSums, Salt, crc32};
use proto::peer::message::WriteKind;
use proto::{BlockRange, VolumeId};
use replication::local_copy::{Areas, Geometry, MetaPage, PAGE_BYTES, Page};

/// Pseudo-random numbers (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The sum of a block with this content.
pub(crate) fn sum_of(volume: VolumeId, block: u64, token: u64) -> u32 {
    if token == 0 {
        return Salt::of(volume).zeros(block);
    }
    crc32(&[&volume.0.to_le_bytes(), &block.to_le_bytes(), &token.to_le_bytes()])
}

/// What a place holds: on stable media, and the versions written since, oldest first, with the number of the write.
#[derive(Clone)]
struct Place<T> {
    stable: T,
    since: Vec<(u64, T)>,
}

impl<T: Clone> Place<T> {
    fn now(&self) -> &T {
        self.since.last().map_or(&self.stable, |(_, content)| content)
    }

    /// Versions up to the write numbered `mark` are on stable media.
    fn settle(&mut self, mark: u64) {
        while self.since.first().is_some_and(|(number, _)| *number <= mark) {
            self.stable = self.since.remove(0).1;
        }
    }
}

#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) geometry: Geometry,
    blocks: BTreeMap<u64, Place<u64>>,
    pages: BTreeMap<MetaPage, Place<Page>>,
    /// Places with versions that are not on stable media.
    dirty_blocks: Vec<u64>,
    dirty_pages: Vec<MetaPage>,
    writes: u64,
    torn: u64,
}

impl Store {
    pub(crate) fn new(geometry: Geometry) -> Self {
        let (blocks, pages) = (BTreeMap::new(), BTreeMap::new());
        Self { geometry, blocks, pages, dirty_blocks: Vec::new(), dirty_pages: Vec::new(), writes: 0, torn: 0 }
    }

    pub(crate) fn sum(&self, block: u64, token: u64) -> u32 {
        sum_of(self.geometry.volume, block, token)
    }

    pub(crate) fn block(&self, block: u64) -> u64 {
        self.blocks.get(&block).map_or(0, |place| *place.now())
    }

    pub(crate) fn sums(&self, range: BlockRange) -> BlockSums {
        range.blocks().map(|block| self.sum(block, self.block(block))).collect()
    }

    pub(crate) fn page(&self, page: MetaPage) -> Page {
        self.pages.get(&page).map_or_else(zero_page, |place| place.now().clone())
    }

    /// Every page that was ever written.
    pub(crate) fn pages(&self) -> Vec<MetaPage> {
        self.pages.keys().copied().collect()
    }

    /// The number of the last write that has ended: a flush that begins now covers it.
    pub(crate) fn mark(&self) -> u64 {
        self.writes
    }

    pub(crate) fn write(&mut self, range: BlockRange, kind: WriteKind, payload: &[u64], durable: bool) {
        for (at, block) in range.blocks().enumerate() {
            self.writes += 1;
            let token = if kind == WriteKind::Data { payload[at] } else { 0 };
            let place = self.blocks.entry(block).or_insert(Place { stable: 0, since: Vec::new() });
            place.since.push((self.writes, token));
            if durable {
                place.settle(self.writes);
            } else {
                self.dirty_blocks.push(block);
            }
        }
    }

    pub(crate) fn write_page(&mut self, page: MetaPage, bytes: Page, durable: bool) {
        self.writes += 1;
        let place = self.pages.entry(page).or_insert_with(|| Place { stable: zero_page(), since: Vec::new() });
        place.since.push((self.writes, bytes));
        if durable {
            place.settle(self.writes);
        } else {
            self.dirty_pages.push(page);
        }
    }

    /// Everything written up to `mark` is on stable media.
    pub(crate) fn flush(&mut self, mark: u64) {
        let (blocks, pages) = (&mut self.blocks, &mut self.pages);
        self.dirty_blocks.retain(|block| {
            let place = blocks.get_mut(block).expect("written");
            place.settle(mark);
            !place.since.is_empty()
        });
        self.dirty_pages.retain(|page| {
            let place = pages.get_mut(page).expect("written");
            place.settle(mark);
            !place.since.is_empty()
        });
    }

    /// Power is lost. Of every place any version since the last stable one survives, or a torn one.
    pub(crate) fn cut(&mut self, rng: &mut Rng) {
        for block in std::mem::take(&mut self.dirty_blocks) {
            let place = self.blocks.get_mut(&block).expect("written");
            let versions = std::mem::take(&mut place.since);
            if versions.is_empty() {
                continue;
            }
            match rng.below(versions.len() as u64 + 2) as usize {
                0 => {}
                1 if rng.one_in(2) => {
                    self.torn += 1;
                    place.stable = u64::MAX - self.torn;
                }
                at => place.stable = versions[at.min(versions.len()) - 1].1,
            }
        }
        for page in std::mem::take(&mut self.dirty_pages) {
            let place = self.pages.get_mut(&page).expect("written");
            let versions = std::mem::take(&mut place.since);
            if versions.is_empty() {
                continue;
            }
            let survives = rng.below(versions.len() as u64 + 1) as usize;
            if survives > 0 {
                place.stable = versions[survives - 1].1.clone();
            }
            if rng.one_in(3) {
                let torn = 512 * (1 + rng.below(7) as usize);
                place.stable[..torn].copy_from_slice(&versions[rng.below(versions.len() as u64) as usize].1[..torn]);
            }
        }
    }

    /// Silently changes what a block holds.
    pub(crate) fn damage_block(&mut self, block: u64) {
        self.torn += 1;
        let token = u64::MAX - self.torn;
        self.blocks.insert(block, Place { stable: token, since: Vec::new() });
    }

    /// Flips one bit of a page.
    pub(crate) fn flip(&mut self, page: MetaPage, bit: usize) {
        let mut bytes = self.page(page);
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.pages.insert(page, Place { stable: bytes, since: Vec::new() });
    }

    /// Puts other content in a page.
    pub(crate) fn set_page(&mut self, page: MetaPage, bytes: Page) {
        self.pages.insert(page, Place { stable: bytes, since: Vec::new() });
    }

    /// The areas as a shell would read them at opening.
    pub(crate) fn with_areas<T>(&self, open: impl FnOnce(Areas<'_>) -> T) -> T {
        let extents = self.geometry.blocks.div_ceil(1024);
        let index_pages = extents.div_ceil(255) as u32;
        let log = self.area(self.geometry.log_pages, MetaPage::Log);
        let first = self.area(index_pages, |page| MetaPage::Index { copy: 0, page });
        let second = self.area(index_pages, |page| MetaPage::Index { copy: 1, page });
        open(Areas { log: &log, index: [&first, &second] })
    }

    fn area(&self, count: u32, place: impl Fn(u32) -> MetaPage) -> Vec<u8> {
        let mut out = vec![0; count as usize * PAGE_BYTES];
        for number in 0..count {
            if let Some(page) = self.pages.get(&place(number)) {
                out[number as usize * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(&page.now()[..]);
            }
        }
        out
    }
}

fn zero_page() -> Page {
    Box::new([0; PAGE_BYTES])
}
