//! What became of each flip.

use std::collections::{BTreeMap, BTreeSet};

use super::super::image::{Entry, Held, Image};
use super::super::stores::CopyState;
use super::choose::{Area, Flip, Round, Theme, Way, is_in_use};

const STATE_SUSPECT_OR_FAILED: u32 = 2 | 4;

/// What became of a flip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Noticed; what stands there now is right.
    Repaired,
    /// Noticed.
    Detected,
    /// Nothing read the bit before it was written anew, or ever.
    Harmless,
    /// None of these.
    Undetected(String),
}

/// Those of all flips of a round, in their order.
#[derive(Clone, Debug)]
pub struct Verdicts {
    all: Vec<Verdict>,
    /// What the product should have counted and did not.
    uncounted: Option<String>,
}

/// What the product said.
pub struct Evidence<'a> {
    /// The round.
    pub round: &'a Round,
    /// Since the flips, after everything was read and scrubbed.
    pub counted: [CopyState; 2],
    /// The most extents seen hot on each copy since it was started.
    pub hottest: [u64; 2],
}

/// How many flips of an area became what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub flips: u64,
    /// Noticed, also if repaired.
    pub detected: u64,
    /// Noticed and put right.
    pub repaired: u64,
    /// Never read.
    pub harmless: u64,
    /// Findings.
    pub undetected: u64,
}

/// Of all areas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account(pub BTreeMap<Area, Counts>);

impl Account {
    /// Adds the flips of a round.
    pub fn add(&mut self, flips: &[Flip], verdicts: &Verdicts) {
        for (flip, verdict) in flips.iter().zip(&verdicts.all) {
            let counts = self.0.entry(flip.area).or_default();
            counts.flips += 1;
            match verdict {
                Verdict::Repaired => (counts.detected, counts.repaired) = (counts.detected + 1, counts.repaired + 1),
                Verdict::Detected => counts.detected += 1,
                Verdict::Harmless => counts.harmless += 1,
                Verdict::Undetected(_) => counts.undetected += 1,
            }
        }
    }

    /// The sum over all areas.
    pub fn total(&self) -> Counts {
        self.0.values().fold(Counts::default(), Counts::plus)
    }

    /// Adds what another process tells, as [`Self::lines`] says it. False if it is no such line.
    pub fn read_line(&mut self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        let area = words.next().and_then(|name| Area::ALL.into_iter().find(|area| area.name() == name));
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        let (Some(area), [flips, detected, repaired, harmless, undetected]) = (area, &numbers[..]) else {
            return false;
        };
        let more = Counts {
            flips: *flips,
            detected: *detected,
            repaired: *repaired,
            harmless: *harmless,
            undetected: *undetected,
        };
        let counts = self.0.entry(area).or_default();
        *counts = counts.plus(&more);
        true
    }

    /// One line for each area: its name, and the numbers in the order of [`Counts`].
    pub fn lines(&self) -> Vec<String> {
        let line = |(area, counts): (&Area, &Counts)| {
            let Counts { flips, detected, repaired, harmless, undetected } = counts;
            format!("{:<10} {flips:>8} {detected:>8} {repaired:>8} {harmless:>8} {undetected:>10}", area.name())
        };
        self.0.iter().map(line).collect()
    }
}

impl Counts {
    fn plus(self, more: &Self) -> Self {
        Self {
            flips: self.flips + more.flips,
            detected: self.detected + more.detected,
            repaired: self.repaired + more.repaired,
            harmless: self.harmless + more.harmless,
            undetected: self.undetected + more.undetected,
        }
    }
}

/// How many flips there are in which area.
pub fn describe(flips: &[Flip]) -> String {
    let mut counts: BTreeMap<Area, usize> = BTreeMap::new();
    flips.iter().for_each(|flip| *counts.entry(flip.area).or_default() += 1);
    counts.iter().map(|(area, count)| format!("{count} {}", area.name())).collect::<Vec<_>>().join(" ")
}

impl Verdicts {
    /// Judges everything but what may still be written anew by the load that follows: that is `Detected` so far.
    pub fn of(
        flips: &[Flip],
        blocks: &[Vec<u8>],
        before: &[Image; 2],
        now: &[Image; 2],
        evidence: &Evidence<'_>,
    ) -> Self {
        let judge = |(flip, block): (&Flip, &Vec<u8>)| match flip.area {
            Area::Data => data(flip, block, before, now, evidence.round),
            Area::Bitmaps => bitmap(flip, before, evidence.round),
            Area::Log => log(flip, &before[flip.at], evidence),
            Area::Superblock | Area::Index | Area::Sums => Verdict::Detected,
        };
        let all: Vec<Verdict> = flips.iter().zip(blocks).map(judge).collect();
        let uncounted = (0..2).find_map(|at| uncounted(at, flips, &all, evidence));
        Self { all, uncounted }
    }

    /// Judges the metadata again, once load has followed and everything is cold.
    pub fn and_at_the_end(mut self, flips: &[Flip], before: &[Image; 2], now: &[Image; 2]) -> Self {
        let pages: BTreeSet<(usize, Area, u64)> = flips.iter().map(|flip| (flip.at, flip.area, flip.page)).collect();
        for (flip, verdict) in flips.iter().zip(&mut self.all) {
            let (before, now) = (&before[flip.at], &now[flip.at]);
            if *verdict != Verdict::Detected {
                continue;
            }
            let put_right = match flip.area {
                Area::Superblock => match superblocks_agree(before, now) {
                    Ok(()) => true,
                    Err(why) => {
                        *verdict = Verdict::Undetected(why);
                        continue;
                    }
                },
                Area::Index => matches!(now.index_page(flip.page as usize), Held::Valid(_)),
                Area::Sums => now.entry(flip.page) == Entry::Never || now.sums_match(flip.page),
                Area::Log => matches!(now.log_page(flip.page), Held::Valid(_)),
                Area::Bitmaps => now.bitmap_page(flip.page) != Held::Damaged,
                Area::Data => false,
            };
            let both_copies = flip.area == Area::Index && pages.contains(&(flip.at, Area::Index, 1 - flip.page));
            *verdict = match (put_right, flip.area) {
                (true, _) => Verdict::Repaired,
                // The older of two damaged copies is written with the second next change.
                (false, Area::Index) if both_copies => Verdict::Detected,
                // Known again, but not recorded before the extent is written to.
                (false, Area::Sums) if now.entry(flip.page) == Entry::Unknown => Verdict::Detected,
                (false, Area::Log | Area::Bitmaps) => Verdict::Detected,
                (false, _) => Verdict::Undetected("damaged still, after everything was cold again".to_owned()),
            };
        }
        self
    }

    /// What is to be reported.
    pub fn problem(&self, flips: &[Flip]) -> Option<String> {
        let undetected = flips.iter().zip(&self.all).find_map(|(flip, verdict)| match verdict {
            Verdict::Undetected(why) => Some(format!("{flip:?}: {why}")),
            _ => None,
        });
        undetected.or_else(|| self.uncounted.clone())
    }

    /// Counts, for the line of the round.
    pub fn summary(&self) -> String {
        let count = |verdict: &Verdict| self.all.iter().filter(|other| *other == verdict).count();
        let [repaired, detected, harmless] =
            [Verdict::Repaired, Verdict::Detected, Verdict::Harmless].map(|v| count(&v));
        format!("{repaired} repaired, {detected} detected, {harmless} harmless of {}", self.all.len())
    }
}

/// A block, after the scrub: as it was, or written since.
fn data(flip: &Flip, block: &[u8], before: &[Image; 2], now: &[Image; 2], round: &Round) -> Verdict {
    let [own, other] = [flip.at, 1 - flip.at].map(|at| now[at].block(flip.page));
    if own != other {
        return Verdict::Undetected("the copies differ there after the scrub".to_owned());
    }
    if own == block {
        return Verdict::Repaired;
    }
    let was_missing = before[1 - flip.at].block(flip.page) != block;
    match round.busy || was_missing {
        // The client has read it since, and its version is judged there.
        true => Verdict::Harmless,
        false => Verdict::Undetected("the block is not what it was, though nobody has written it".to_owned()),
    }
}

/// A bitmap is asked only when its box is opened while the other copy is out.
fn bitmap(flip: &Flip, before: &[Image; 2], round: &Round) -> Verdict {
    let asked = match &round.way {
        Way::Alone => true,
        Way::Stopped(boxes) => boxes.len() == 2,
        Way::Running | Way::Killed(_) => false,
    };
    if asked && is_in_use(&before[flip.at], flip.page) { Verdict::Detected } else { Verdict::Harmless }
}

/// The newest page of the log, and the one that the next transaction goes to, decide; the others say what once was hot.
fn log(flip: &Flip, before: &Image, evidence: &Evidence<'_>) -> Verdict {
    let (newest, ring) = (before.log().0, before.ring());
    let decides = [newest % ring, (newest + 1) % ring].contains(&flip.page);
    let Evidence { round, counted, hottest } = evidence;
    if !decides {
        return if round.theme == Theme::WholeLog { Verdict::Detected } else { Verdict::Harmless };
    }
    let all_hot = hottest[flip.at] == before.extents() || counted[flip.at].unverified >= before.blocks();
    match all_hot {
        true => Verdict::Detected,
        false => Verdict::Undetected(format!(
            "at most {} extents were hot, and {} blocks taken from the data, after the log was damaged",
            hottest[flip.at], counted[flip.at].unverified
        )),
    }
}

/// Both slots are whole, say the same, and what must outlive damage is what it was.
fn superblocks_agree(before: &Image, now: &Image) -> Result<(), String> {
    let was = [0, 1].into_iter().filter_map(|slot| before.superblock(slot)).max_by_key(|slot| slot.generation);
    let (Some(was), Some(first), Some(second)) = (was, now.superblock(0), now.superblock(1)) else {
        return Err("a slot of the superblock is still damaged".to_owned());
    };
    let fine = first == second
        && first.constants == was.constants
        && first.generation > was.generation
        && first.last_in_sync >= was.last_in_sync
        && first.states & STATE_SUSPECT_OR_FAILED == 0;
    if fine { Ok(()) } else { Err(format!("the superblock was {was:?} and is {first:?} and {second:?}")) }
}

/// What the product must have counted for the flips in one copy.
fn uncounted(at: usize, flips: &[Flip], verdicts: &[Verdict], evidence: &Evidence<'_>) -> Option<String> {
    let counted = &evidence.counted[at];
    let here = || flips.iter().zip(verdicts).filter(|(flip, _)| flip.at == at);
    // One flip a block. A resync of what was written meanwhile may mend a block that nobody has read.
    let resynced = evidence.round.busy && evidence.round.way != Way::Running;
    let blocks =
        here().filter(|(flip, verdict)| flip.area == Area::Data && **verdict == Verdict::Repaired).count() as u64;
    if !resynced && counted.mismatches < blocks {
        return Some(format!("copy {at}: {blocks} damaged blocks were mended, {} counted", counted.mismatches));
    }
    let is_counted_page = |area: Area| matches!(area, Area::Index | Area::Sums);
    let pages: BTreeSet<(Area, u64)> =
        here().filter(|(flip, _)| is_counted_page(flip.area)).map(|(flip, _)| (flip.area, flip.page)).collect();
    let missing = (counted.pages_damaged < pages.len() as u64).then_some(counted.pages_damaged)?;
    Some(format!("copy {at}: {} pages of index and checksums were damaged, {missing} counted", pages.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flip(area: Area) -> Flip {
        Flip { at: 0, area, page: 1, bit: 9 }
    }

    #[test]
    fn an_account_survives_its_own_lines_and_adds_up() {
        let flips = [Area::Data, Area::Data, Area::Log, Area::Sums].map(flip);
        let all = vec![Verdict::Repaired, Verdict::Harmless, Verdict::Detected, Verdict::Undetected("x".to_owned())];
        let mut account = Account::default();
        account.add(&flips, &Verdicts { all, uncounted: None });
        let mut twice = account.clone();
        assert!(account.lines().iter().all(|line| twice.read_line(line)));
        assert!(!twice.read_line("round 3: 1 2 3 4 5"));
        assert_eq!(twice.total(), Counts { flips: 8, detected: 4, repaired: 2, harmless: 2, undetected: 2 });
        assert_eq!(twice.0[&Area::Data].flips, 4);
    }

    #[test]
    fn what_the_product_did_not_count_is_told() {
        let round = Round { way: Way::Killed(vec![0]), theme: Theme::Data, victim: 0, busy: false };
        let counted = |mismatches, pages_damaged| CopyState { mismatches, pages_damaged, ..CopyState::default() };
        let of = |here: CopyState| {
            let evidence = Evidence { round: &round, counted: [here, CopyState::default()], hottest: [0; 2] };
            let flips = [Area::Data, Area::Sums].map(flip);
            uncounted(0, &flips, &[Verdict::Repaired, Verdict::Detected], &evidence)
        };
        assert_eq!(of(counted(1, 1)), None);
        assert!(of(counted(0, 1)).is_some_and(|why| why.contains("blocks")));
        assert!(of(counted(1, 0)).is_some_and(|why| why.contains("pages")));
    }
}
