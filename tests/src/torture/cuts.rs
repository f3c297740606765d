//! Power cuts: of one box, of both, of all three, at random moments of a load.

use std::path::PathBuf;
use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::campaign::{Rounds, pause, tell};
use super::fio::{FIO_BYTES, FioPart};
use super::rig::Rig;
use crate::e2e::cluster::{ALPHA, BETA, WITNESS};

/// Load before the first cut.
const LOAD_MS: u64 = 500;
/// Time without power: mostly short, sometimes long enough for the other box to take over first.
const OFF_MS: [u64; 3] = [50, 300, 1500];
/// Between the first and the second cut of a round that has two.
const BETWEEN_MS: u64 = 1200;
/// Between two boxes that come back.
const APART_MS: u64 = 150;

/// Rounds after which fio's part is filled anew.
const FILL_ROUNDS: u64 = 4;

/// The campaign.
#[derive(Debug, Default)]
pub struct Cuts {
    fio: Option<Part>,
    /// fio is not installed.
    without_fio: bool,
}

/// fio's part of the volume of a cluster, which is known by its directory.
#[derive(Debug)]
struct Part {
    cluster: PathBuf,
    rounds: u64,
    fio: FioPart,
}

/// Which boxes lose power, in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Targets {
    AtOnce(Vec<usize>),
    OneAfterTheOther { first: usize, second: usize, first_is_back: bool },
}

fn choose(rng: &mut impl Rng) -> Targets {
    let one = if rng.random() { ALPHA } else { BETA };
    match rng.random_range(0..20) {
        0..=7 => Targets::AtOnce(vec![one]),
        8..=12 => Targets::AtOnce(vec![ALPHA, BETA]),
        13..=15 => Targets::AtOnce(vec![ALPHA, BETA, WITNESS]),
        16 => Targets::AtOnce(vec![one, WITNESS]),
        _ => Targets::OneAfterTheOther { first: one, second: ALPHA + BETA - one, first_is_back: rng.random() },
    }
}

impl Rounds for Cuts {
    const FAULTS: &'static str = "cuts";
    const SPARE_BYTES: u64 = FIO_BYTES;

    fn round(&mut self, rig: &mut Rig, rng: &mut ChaCha8Rng, told: &mut String) -> Result<u64, String> {
        let targets = choose(rng);
        self.fill(rig)?;
        tell(told, format_args!("after {} ms", pause(rng, LOAD_MS)));
        let mut off = Vec::new();
        let faults = match targets {
            Targets::AtOnce(boxes) => {
                cut(rig, &boxes, rng, told)?;
                let off_ms = OFF_MS[rng.random_range(0..OFF_MS.len())];
                tell(told, format_args!("off for {} ms", pause(rng, off_ms)));
                judge(rig, &boxes, told);
                off.extend(&boxes);
                boxes.len() as u64
            }
            Targets::OneAfterTheOther { first, second, first_is_back } => {
                cut(rig, &[first], rng, told)?;
                if first_is_back {
                    rig.power_on(first, true);
                } else {
                    off.push(first);
                }
                tell(told, format_args!("back: {first_is_back}, after {} ms", pause(rng, BETWEEN_MS)));
                cut(rig, &[second], rng, told)?;
                off.push(second);
                rig.load.ledger().power_lost();
                rig.load.ledger().power_back();
                2
            }
        };
        off.shuffle(rng);
        for index in off {
            rig.power_on(index, true);
            std::thread::sleep(Duration::from_millis(rng.random_range(0..=APART_MS)));
        }
        rig.wait_healthy()?;
        rig.check()?;
        self.fio.iter().try_for_each(|part| part.fio.verify(&rig.cluster))?;
        Ok(faults)
    }
}

impl Cuts {
    /// Has fio fill its part: at first, and anew now and then. What it has flushed must outlast every cut.
    fn fill(&mut self, rig: &Rig) -> Result<(), String> {
        if self.fio.as_ref().is_none_or(|part| part.cluster != rig.cluster.home()) {
            if self.without_fio || !FioPart::is_installed() {
                if !std::mem::replace(&mut self.without_fio, true) {
                    println!("skipped: fio's own verification: fio with its NBD engine is not installed");
                }
                return Ok(());
            }
            let fio = FioPart::at_the_end(rig.size_bytes());
            self.fio = Some(Part { cluster: rig.cluster.home().to_owned(), rounds: 0, fio });
        }
        let Some(part) = self.fio.as_mut() else { return Ok(()) };
        if part.rounds.is_multiple_of(FILL_ROUNDS) {
            part.fio.fill(&rig.cluster)?;
        }
        part.rounds += 1;
        Ok(())
    }
}

/// Cuts the power of some boxes at one moment. Until the cut is judged nothing counts as acknowledged.
fn cut(rig: &mut Rig, boxes: &[usize], rng: &mut ChaCha8Rng, told: &mut String) -> Result<(), String> {
    if !rig.load.ledger().is_cut() {
        rig.load.ledger().power_cut();
    }
    rig.kill(boxes);
    for index in boxes {
        let fates = rig.cut(*index, rng.random())?;
        tell(told, format_args!("{} cut ({fates})", rig.cluster.nodes[*index].name));
    }
    Ok(())
}

/// Decides whether the last up-to-date copy went with the power. The survivor of one cut has everything only if it was
/// an in-sync member; on a slow machine the primary may have dropped it a moment before.
fn judge(rig: &mut Rig, boxes: &[usize], told: &mut String) {
    let survivors: Vec<usize> = [ALPHA, BETA].into_iter().filter(|index| !boxes.contains(index)).collect();
    let kept = match survivors[..] {
        [] => false,
        [survivor] => rig.is_surely_in_sync(survivor),
        _ => true,
    };
    if !kept {
        rig.load.ledger().power_lost();
        tell(told, format_args!("unflushed writes excused"));
    }
    rig.load.ledger().power_back();
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::campaign::round_rng;
    use super::*;

    #[test]
    fn every_kind_of_cut_comes_and_a_seed_repeats_it() {
        let of = |number| choose(&mut round_rng(1, number));
        let kinds: HashSet<String> = (0..200).map(|number| format!("{:?}", of(number))).collect();
        assert_eq!(kinds.len(), 2 + 1 + 1 + 2 + 4, "{kinds:?}");
        assert!((0..200).all(|number| of(number) == of(number)));
    }
}
