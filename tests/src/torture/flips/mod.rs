//! Bit flips: single bits of a copy's data and metadata change at random while its box is stopped, was killed, or runs.
//! Every flip must be detected, or lie where nothing reads it before it is written anew; what the other copy has is
//! repaired; and no client ever sees a wrong byte.

pub mod choose;
pub mod judge;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use self::choose::{Area, Flip, Round, Theme, Way};
use self::judge::{Account, Evidence, Verdicts};
use super::campaign::{Rounds, pause, tell};
use super::image::{Held, Image, PAGE};
use super::rig::{Rig, VOLUME, wait_for};
use super::stores::{CopyState, differing_blocks};
use crate::e2e::cluster::{ALPHA, BETA};

/// Load before anything happens, while a busy round's box is down, and after the repair.
const LOAD_MS: u64 = 600;
/// How long a box may take to say that its store is refused.
const REFUSAL_LIMIT: Duration = Duration::from_secs(60);
/// Load that the other box must serve meanwhile.
const SERVED_OPERATIONS: u64 = 100;

/// The campaign.
#[derive(Debug, Default)]
pub struct Flips {
    /// Checksums are made to match the damage, which nothing can notice then: the campaign must, or it could never.
    pub forged: bool,
    /// What became of all flips of all rounds that ended.
    pub account: Account,
    /// Rounds in which a client has read what was not written.
    pub wrong_reads: u64,
}

/// Before the flips, and what a copy had counted by then.
struct Before {
    images: [Image; 2],
    counted: [CopyState; 2],
    /// Blocks as they were when a bit of them was flipped.
    blocks: Vec<Vec<u8>>,
}

impl Rounds for Flips {
    const FAULTS: &'static str = "flips";

    fn round(&mut self, rig: &mut Rig, rng: &mut ChaCha8Rng, told: &mut String) -> Result<u64, String> {
        let mut round = choose::round(rng);
        if self.forged {
            round = Round { way: Way::Stopped(vec![round.victim]), theme: Theme::Data, busy: false, ..round };
        }
        tell(told, format_args!("{:?} {:?}, victim {}, busy {}", round.theme, round.way, round.victim, round.busy));
        pause(rng, LOAD_MS);
        self.take_down(rig, &round, rng, told)?;
        let images = [rig.image(ALPHA)?, rig.image(BETA)?];
        let mut flips = choose::flips(&round, &images, rng);
        if self.forged {
            flips.retain(|flip| flip.area == Area::Data);
        }
        tell(told, format_args!("{}", judge::describe(&flips)));
        let counted = [ALPHA, BETA].map(|index| rig.copy_state(index).unwrap_or_default());
        let blocks = flip(rig, &flips, &images)?;
        if self.forged {
            forge(rig, &flips, &images[round.victim], round.victim)?;
        }
        let before = Before { images, counted, blocks };
        rig.metadata_lost |= flips.iter().any(|flip| matches!(flip.area, Area::Sums | Area::Index | Area::Log));
        if round.theme == Theme::BothSuperblocks {
            refuse_and_restore(rig, &round, &flips, &before)?;
        }
        let hottest = bring_up(rig, &round, rng)?;
        if round.busy {
            pause(rng, LOAD_MS);
            rig.load.pause()?;
        }
        self.client_reads(rig)?;
        rig.scrub()?;
        let verdicts = judge_repair(rig, &round, &flips, &before, hottest)?;
        self.aftermath(rig, rng)?;
        let now = [rig.image(ALPHA)?, rig.image(BETA)?];
        let verdicts = verdicts.and_at_the_end(&flips, &before.images, &now);
        rig.load.resume();
        tell(told, format_args!("{}", verdicts.summary()));
        // What stays damaged until it is used again would be an assumption of every later round.
        let unused = |image: &Image| (0..3 * image.bitmap_pages()).any(|page| image.bitmap_page(page) == Held::Damaged);
        rig.spent = round.theme == Theme::WholeLog || now.iter().any(unused);
        self.account.add(&flips, &verdicts);
        verdicts.problem(&flips).map_or(Ok(flips.len() as u64), Err)
    }
}

impl Flips {
    /// Brings the boxes to where the round wants them. Unless it is busy the load is paused afterwards.
    fn take_down(&mut self, rig: &mut Rig, round: &Round, rng: &mut impl Rng, told: &mut String) -> Result<(), String> {
        if round.way == Way::Alone {
            return self.leave_alone(rig, round.victim, rng, told);
        }
        if !round.busy {
            rig.load.pause()?;
            self.client_reads(rig)?;
            rig.wait_cold()?;
        }
        match &round.way {
            Way::Running | Way::Alone => {}
            Way::Stopped(boxes) => boxes.iter().try_for_each(|index| rig.stop(*index))?,
            Way::Killed(boxes) => rig.kill(boxes),
        }
        if round.busy {
            pause(rng, LOAD_MS);
        }
        Ok(())
    }

    /// The victim alone takes the load, then stops in order: its bitmap of the other copy is all that tells what that lacks.
    fn leave_alone(
        &mut self,
        rig: &mut Rig,
        victim: usize,
        rng: &mut impl Rng,
        told: &mut String,
    ) -> Result<(), String> {
        rig.stop(ALPHA + BETA - victim)?;
        pause(rng, LOAD_MS);
        rig.load.pause()?;
        self.client_reads(rig)?;
        if rng.random() {
            rig.stop(victim)?;
        } else {
            let cold = || rig.copy_state(victim).is_some_and(|state| state.hot_extents == 0);
            if !wait_for(REFUSAL_LIMIT, cold) {
                return Err("an extent without a client stays hot".to_owned());
            }
            rig.kill(&[victim]);
        }
        let lacking = differing_blocks(rig.image(ALPHA)?.data(), rig.image(BETA)?.data()).len();
        tell(told, format_args!("{lacking} blocks differ"));
        Ok(())
    }

    fn client_reads(&mut self, rig: &mut Rig) -> Result<(), String> {
        let outcome = rig.read_everything().and_then(|()| rig.no_findings());
        self.wrong_reads += u64::from(outcome.is_err());
        outcome
    }

    /// Load, and then all that a round of any campaign must leave behind, with every extent cold.
    fn aftermath(&mut self, rig: &mut Rig, rng: &mut impl Rng) -> Result<(), String> {
        rig.load.resume();
        // A primary waits longer before the resync of a copy with each time that it was away, up to a minute. The next one
        // begins anew.
        let primary = rig.cluster.volume(VOLUME).map(|state| state.primary);
        let names = [ALPHA, BETA].map(|index| rig.cluster.nodes[index].name.clone());
        let other = names.iter().find(|name| Some(*name) != primary.as_ref()).unwrap_or(&names[0]);
        // It may fail on a busy machine: then the next round takes longer.
        let _ = rig.cluster.cli(ALPHA, &["volume", "switchover", VOLUME, "--to", other, "--timeout", "5"]);
        pause(rng, LOAD_MS);
        rig.load.pause()?;
        self.client_reads(rig)?;
        rig.wait_healthy()?;
        rig.wait_cold()?;
        rig.compare_copies()
    }
}

/// Starts what is down, in any order, and waits until all is well. Gives the most extents that were hot on each copy.
fn bring_up(rig: &mut Rig, round: &Round, rng: &mut impl Rng) -> Result<[u64; 2], String> {
    let mut down: Vec<usize> =
        [ALPHA, BETA].into_iter().filter(|index| !rig.cluster.nodes[*index].is_running()).collect();
    down.shuffle(rng);
    down.iter().for_each(|index| rig.power_on(*index, false));
    let mut hottest = [0; 2];
    if matches!(round.theme, Theme::Log | Theme::WholeLog) {
        // Its extents stay hot for a second at least.
        let all = rig.size_bytes().div_ceil(4 << 20);
        wait_for(REFUSAL_LIMIT, || {
            let state = rig.copy_state(round.victim);
            let hot = state.map_or(0, |state| state.hot_extents);
            hottest[round.victim] = hot.max(hottest[round.victim]);
            hottest[round.victim] == all || (state.is_some() && rig.is_healthy())
        });
    }
    rig.wait_healthy()?;
    Ok(hottest)
}

/// Flips the bits; gives the blocks of data as they were.
fn flip(rig: &Rig, flips: &[Flip], images: &[Image; 2]) -> Result<Vec<Vec<u8>>, String> {
    let open = |index: usize| -> Result<File, String> {
        let path = rig.store_path(index)?;
        OpenOptions::new().read(true).write(true).open(path).map_err(|error| error.to_string())
    };
    let files = [open(ALPHA)?, open(BETA)?];
    let io = |error: std::io::Error| format!("flipping a bit: {error}");
    let mut blocks = Vec::new();
    for flip in flips {
        let (file, offset) = (&files[flip.at], flip.offset(&images[flip.at]));
        let mut page = vec![0; PAGE];
        let inside = flip.bit / 8;
        file.read_exact_at(&mut page, offset - inside as u64).map_err(io)?;
        file.write_all_at(&[page[inside] ^ flip.mask()], offset).map_err(io)?;
        blocks.push(page);
    }
    files.iter().try_for_each(File::sync_all).map_err(io)?;
    Ok(blocks)
}

/// Makes the checksums match the damage.
fn forge(rig: &Rig, flips: &[Flip], image: &Image, victim: usize) -> Result<(), String> {
    let path = rig.store_path(victim)?;
    let io = |error: std::io::Error| format!("forging checksums: {error}");
    let file = OpenOptions::new().write(true).open(&path).map_err(io)?;
    let blocks: Vec<u64> = flips.iter().map(|flip| flip.page).collect();
    for (offset, page) in image.again(&path)?.forged(&blocks) {
        file.write_all_at(&page, offset).map_err(io)?;
    }
    file.sync_all().map_err(io)
}

/// The store has no whole superblock: it is refused and left as it is, and the other box serves. Then one slot is put
/// right, as from a backup: the documented way out without that is to replace the copy.
fn refuse_and_restore(rig: &mut Rig, round: &Round, flips: &[Flip], before: &Before) -> Result<(), String> {
    let victim = round.victim;
    let path = rig.store_path(victim)?;
    let damaged = before.images[victim].again(&path)?;
    let read_before = rig.cluster.nodes[victim].log().len();
    rig.power_on(victim, false);
    let refused = wait_for(REFUSAL_LIMIT, || {
        let log = rig.cluster.nodes[victim].log();
        log.get(read_before..).is_some_and(|new| new.contains("superblock"))
    });
    if !refused {
        return Err("a store without a whole superblock is not refused".to_owned());
    }
    rig.load.take_operations();
    let mut served = 0;
    let served_enough = wait_for(REFUSAL_LIMIT, || {
        served += rig.load.take_operations();
        served >= SERVED_OPERATIONS
    });
    if !served_enough {
        return Err("the other copy does not serve while a store is refused".to_owned());
    }
    rig.stop(victim)?;
    if damaged.again(&path)?.bytes() != damaged.bytes() {
        return Err("a refused store was changed".to_owned());
    }
    let first: Vec<Flip> = flips.iter().filter(|flip| flip.page == 0).copied().collect();
    flip(rig, &first, &before.images).map(drop)
}

/// Judges the data, now that everything was read and scrubbed, and gathers what the product has counted.
fn judge_repair(
    rig: &mut Rig,
    round: &Round,
    flips: &[Flip],
    before: &Before,
    hottest: [u64; 2],
) -> Result<Verdicts, String> {
    rig.wait_healthy()?;
    let states = [ALPHA, BETA].map(|index| {
        let mut state = None;
        wait_for(REFUSAL_LIMIT, || {
            state = rig.copy_state(index);
            state.is_some()
        });
        state.unwrap_or_default()
    });
    let was_down = |index: usize| match &round.way {
        Way::Running => false,
        Way::Stopped(boxes) | Way::Killed(boxes) => boxes.contains(&index),
        Way::Alone => true,
    };
    // A store counts from its opening on.
    let counted = [ALPHA, BETA].map(|index| match was_down(index) {
        true => states[index],
        false => CopyState {
            mismatches: states[index].mismatches - before.counted[index].mismatches,
            pages_damaged: states[index].pages_damaged - before.counted[index].pages_damaged,
            unverified: states[index].unverified - before.counted[index].unverified,
            ..states[index]
        },
    });
    let now = [rig.image(ALPHA)?, rig.image(BETA)?];
    let evidence = Evidence { round, counted, hottest };
    Ok(Verdicts::of(flips, &before.blocks, &before.images, &now, &evidence))
}
