//! Which bits are flipped: how the boxes stand meanwhile, in which areas, which of their pages.
//!
//! What makes a damaged block recognizable is its checksum. So a round does not flip bits of a block and of the only thing
//! that could tell: of the checksum page of its extent, of the index, or of the log's newest page, in the same copy. Nor
//! does it damage the blocks of a copy that is the only one in sync together with its bitmap of the other: what is
//! compared whole is taken from that copy, and what is bad there is given up (docs/protocol.md, *Resync*).

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::super::image::{self, Entry, Held, Image, PAGE, SLOTS};
use crate::e2e::cluster::{ALPHA, BETA};

/// Blocks of the data area that one round damages.
const DATA_FLIPS: std::ops::RangeInclusive<usize> = 120..=360;
/// Bits of one page of metadata.
const PAGE_FLIPS: std::ops::RangeInclusive<usize> = 1..=16;
/// Extents whose checksum pages one round damages.
const SUMS_PAGES: std::ops::RangeInclusive<usize> = 1..=4;
/// Pages of the log that only say what was hot once.
const SUPERSEDED_PAGES: usize = 2;

/// An area of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// Both slots.
    Superblock,
    /// The activity log.
    Log,
    /// All dirty bitmaps.
    Bitmaps,
    /// Both copies of the index.
    Index,
    /// Checksum pages.
    Sums,
    /// The volume.
    Data,
}

impl Area {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Superblock, Self::Log, Self::Bitmaps, Self::Index, Self::Sums, Self::Data];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Log => "log",
            Self::Bitmaps => "bitmaps",
            Self::Index => "index",
            Self::Sums => "sums",
            Self::Data => "data",
        }
    }
}

/// How the boxes stand while bits flip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Both run.
    Running,
    /// These were stopped in order, one after the other.
    Stopped(Vec<usize>),
    /// These were killed when all their extents were cold.
    Killed(Vec<usize>),
    /// One box was stopped, the victim went on alone, and was stopped when the load had ended.
    Alone,
}

/// What is damaged above all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Blocks; with them whatever does not make them unrecognizable.
    Data,
    /// One or both copies of the index page.
    Index,
    /// The newest page of the log, or the one after it.
    Log,
    /// Every page of the log.
    WholeLog,
    /// Both slots of the superblock.
    BothSuperblocks,
    /// Bitmaps in use.
    Bitmaps,
}

/// One round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// How the boxes stand.
    pub way: Way,
    /// What is damaged.
    pub theme: Theme,
    /// Whose metadata is damaged; of data that of every box that is down, or of both if both run.
    pub victim: usize,
    /// The load goes on.
    pub busy: bool,
}

/// One bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flip {
    /// The box.
    pub at: usize,
    /// The area.
    pub area: Area,
    /// Slot, page of the log or the bitmaps, copy of the index, extent, or block.
    pub page: u64,
    /// Bit of that page.
    pub bit: usize,
}

impl Flip {
    /// The byte of the store.
    pub fn offset(&self, image: &Image) -> u64 {
        let layout = image.layout();
        let area = match self.area {
            Area::Superblock => return SLOTS[self.page as usize] + self.byte(),
            Area::Index => return layout.index[self.page as usize].offset + self.byte(),
            Area::Log => layout.log,
            Area::Bitmaps => layout.bitmaps,
            Area::Sums => layout.sums,
            Area::Data => layout.data,
        };
        area.offset + self.page * PAGE as u64 + self.byte()
    }

    /// The bit of that byte.
    pub fn mask(&self) -> u8 {
        1 << (self.bit % 8)
    }

    fn byte(&self) -> u64 {
        self.bit as u64 / 8
    }
}

/// Draws a round.
pub fn round(rng: &mut impl Rng) -> Round {
    let victim = if rng.random() { ALPHA } else { BETA };
    let mut both = vec![ALPHA, BETA];
    both.shuffle(rng);
    let theme = match rng.random_range(0..20) {
        0..=8 => Theme::Data,
        9..=12 => Theme::Index,
        13..=15 => Theme::Log,
        16 => Theme::WholeLog,
        17 => Theme::BothSuperblocks,
        _ => Theme::Bitmaps,
    };
    let way = match (theme, rng.random_range(0..8)) {
        (Theme::Bitmaps, _) => Way::Alone,
        (Theme::BothSuperblocks, _) => Way::Stopped(vec![victim]),
        (Theme::Data, 0..=2) => Way::Running,
        (_, 0..=4) => Way::Stopped(vec![victim]),
        (_, 5) => Way::Stopped(both),
        (_, 6) => Way::Killed(vec![victim]),
        _ => Way::Killed(both),
    };
    let may_be_busy = way == Way::Running || way == Way::Stopped(vec![victim]);
    let busy = may_be_busy && (theme == Theme::BothSuperblocks || rng.random());
    Round { way, theme, victim, busy }
}

/// Draws the bits, given what lies in the stores now.
pub fn flips(round: &Round, images: &[Image; 2], rng: &mut impl Rng) -> Vec<Flip> {
    let (victim, image) = (round.victim, &images[round.victim]);
    let mut pages = Pages { at: victim, flips: Vec::new() };
    let extents = image.extents();
    match round.theme {
        Theme::BothSuperblocks => {
            (0..2).for_each(|slot| pages.damage(rng, Area::Superblock, slot, image::SUPERBLOCK_USED))
        }
        Theme::Index => {
            let newest = image.newest_index() as u64;
            let choices = [vec![newest], vec![newest], vec![1 - newest], vec![0, 1]];
            let used = image::INDEX_HEADER + 16 * extents;
            for copy in choices.choose(rng).into_iter().flatten() {
                pages.damage(rng, Area::Index, *copy, used);
            }
        }
        Theme::Log | Theme::WholeLog => {
            let used = image::LOG_HEADER + extents.div_ceil(8);
            for page in log_pages(round.theme, image, rng) {
                pages.damage(rng, Area::Log, page, used);
            }
        }
        Theme::Bitmaps => {
            let in_use: Vec<u64> = bitmap_pages(image).filter(|page| is_in_use(image, *page)).collect();
            let count = rng.random_range(1..=in_use.len().max(1));
            for page in in_use.choose_multiple(rng, count) {
                pages.damage(rng, Area::Bitmaps, *page, bitmap_used(image, *page));
            }
        }
        Theme::Data => {}
    }
    if round.way == Way::Running {
        pages.flips.extend(data(round, images, &BTreeSet::new(), rng));
        return pages.flips;
    }
    if round.theme == Theme::Data {
        let readable = |extent: &u64| is_readable(image, *extent) && image.entry(*extent) != Entry::Never;
        let candidates: Vec<u64> = (0..extents).filter(readable).collect();
        let count = rng.random_range(SUMS_PAGES).min(candidates.len() / 2);
        let blind: BTreeSet<u64> = candidates.choose_multiple(rng, count).copied().collect();
        blind.iter().for_each(|extent| pages.damage(rng, Area::Sums, *extent, PAGE as u64));
        pages.flips.extend(data(round, images, &blind, rng));
    }
    // Beside everything: pages whose damage must not matter at all.
    if round.theme != Theme::BothSuperblocks {
        let slot = rng.random_range(0..2);
        pages.damage(rng, Area::Superblock, slot, image::SUPERBLOCK_USED);
    }
    // One that was killed and is back at once may go on as primary, alone in sync.
    let may_be_alone = match &round.way {
        Way::Stopped(boxes) => boxes.len() == 2,
        Way::Killed(_) => true,
        Way::Running | Way::Alone => false,
    };
    let only_copy = round.theme == Theme::Data && may_be_alone;
    if !only_copy && !matches!(round.theme, Theme::Bitmaps | Theme::BothSuperblocks) {
        let page = rng.random_range(0..3 * image.bitmap_pages());
        pages.damage(rng, Area::Bitmaps, page, bitmap_used(image, page));
    }
    if matches!(round.theme, Theme::Data | Theme::Bitmaps) {
        let (newest, ring) = (image.log().0, image.ring());
        let superseded: Vec<u64> =
            (0..ring).filter(|page| ![newest % ring, (newest + 1) % ring].contains(page)).collect();
        for page in superseded.choose_multiple(rng, SUPERSEDED_PAGES) {
            pages.damage(rng, Area::Log, *page, image::LOG_HEADER + extents.div_ceil(8));
        }
    }
    pages.flips
}

struct Pages {
    at: usize,
    flips: Vec<Flip>,
}

impl Pages {
    /// Some bits of a page, half of them among its first `used` bytes.
    fn damage(&mut self, rng: &mut impl Rng, area: Area, page: u64, used: u64) {
        let count = rng.random_range(PAGE_FLIPS);
        let mut bits = BTreeSet::new();
        while bits.len() < count {
            let bytes = if rng.random() { used as usize } else { PAGE };
            bits.insert(rng.random_range(0..8 * bytes));
        }
        self.flips.extend(bits.into_iter().map(|bit| Flip { at: self.at, area, page, bit }));
    }
}

fn log_pages(theme: Theme, image: &Image, rng: &mut impl Rng) -> Vec<u64> {
    let (newest, ring) = (image.log().0, image.ring());
    let [newest, next] = [newest % ring, (newest + 1) % ring];
    match theme {
        Theme::WholeLog => (0..ring).filter(|page| image.log_page(*page) != Held::Zeros).collect(),
        _ => [vec![newest], vec![next], vec![newest, next]].choose(rng).cloned().unwrap_or_default(),
    }
}

fn bitmap_pages(image: &Image) -> impl Iterator<Item = u64> {
    0..3 * image.bitmap_pages()
}

/// Whether a page is a bitmap's header, or belongs to the bitmap of its header.
pub fn is_in_use(image: &Image, page: u64) -> bool {
    let header = page - page % image.bitmap_pages();
    matches!(image.bitmap_page(page), Held::Valid(generation) if image.bitmap_page(header) == Held::Valid(generation))
}

fn bitmap_used(image: &Image, page: u64) -> u64 {
    let is_header = page.is_multiple_of(image.bitmap_pages());
    image::BITMAP_HEADER + if is_header { 0 } else { image.extents().min(31) * 128 }
}

/// Whether damage to a block of the extent can be told when the store is opened.
fn is_readable(image: &Image, extent: u64) -> bool {
    let cold = image.log().1.is_some_and(|hot| !hot.contains(&extent));
    cold && (image.entry(extent) == Entry::Never || image.sums_match(extent))
}

/// One bit in each of some blocks; a block is damaged in one copy only. Nothing knows the victim's `blind` extents.
fn data(round: &Round, images: &[Image; 2], blind: &BTreeSet<u64>, rng: &mut impl Rng) -> Vec<Flip> {
    let (boxes, running) = match &round.way {
        Way::Running => (vec![ALPHA, BETA], true),
        Way::Stopped(boxes) | Way::Killed(boxes) => (boxes.clone(), false),
        Way::Alone => (Vec::new(), false),
    };
    let readable: Vec<(usize, Vec<u64>)> = boxes
        .into_iter()
        .map(|at| {
            let is_blind = |extent: &u64| at == round.victim && blind.contains(extent);
            let fits = |extent: &u64| running || is_readable(&images[at], *extent);
            (at, (0..images[at].extents()).filter(|extent| fits(extent) && !is_blind(extent)).collect())
        })
        .collect();
    let mut taken = BTreeSet::new();
    let mut flips = Vec::new();
    for _ in 0..rng.random_range(DATA_FLIPS) {
        let Some((at, extents)) = readable.choose(rng) else { break };
        let Some(extent) = extents.choose(rng) else { continue };
        let block = rng.random_range(images[*at].blocks_of(*extent));
        if taken.insert(block) {
            flips.push(Flip { at: *at, area: Area::Data, page: block, bit: rng.random_range(0..8 * PAGE) });
        }
    }
    flips
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::super::campaign::round_rng;
    use super::*;

    #[test]
    fn every_theme_comes_in_each_of_its_ways_and_a_seed_repeats_it() {
        let of = |number| round(&mut round_rng(1, number));
        let rounds: Vec<Round> = (0..2000).map(of).collect();
        let boxes = |way: &Way| match way {
            Way::Running => "running".to_owned(),
            Way::Stopped(boxes) => format!("stopped {}", boxes.len()),
            Way::Killed(boxes) => format!("killed {}", boxes.len()),
            Way::Alone => "alone".to_owned(),
        };
        let kinds: HashSet<_> = rounds.iter().map(|round| format!("{:?} {}", round.theme, boxes(&round.way))).collect();
        assert_eq!(kinds.len(), 5 + 3 * 4 + 1 + 1, "{kinds:?}");
        assert!(
            rounds.iter().filter(|round| round.busy).all(|round| !matches!(round.way, Way::Killed(_) | Way::Alone))
        );
        assert!((0..200).all(|number| of(number) == of(number)));
    }
}
