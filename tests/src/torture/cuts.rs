//! Power cuts: of one box, of both, of all three, at random moments of a load.

use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::campaign::{Rounds, pause, tell};
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

/// The campaign.
#[derive(Debug, Default)]
pub struct Cuts;

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

    fn round(&mut self, rig: &mut Rig, rng: &mut ChaCha8Rng, told: &mut String) -> Result<u64, String> {
        let targets = choose(rng);
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
        Ok(faults)
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
