//! How fast work on the volumes goes: the pace of the last seconds, from which the time that is left is estimated.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::{Micros, NodeId, Timestamp, VolumeId};

/// Between two looks at the work.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// The pace is that of so long.
const WINDOW: Micros = Micros::from_secs(10);
/// Looks kept; more than fit into the window, should somebody look more often.
const SAMPLES_MAX: usize = 32;

/// Work that takes a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// A scrub of a volume.
    Scrub(VolumeId),
    /// A resync of a peer's copy.
    Resync(VolumeId, NodeId),
}

/// All work of the node.
#[derive(Debug, Default)]
pub(super) struct Paces {
    table: Mutex<BTreeMap<Work, Samples>>,
}

/// When how many blocks were left, oldest first.
type Samples = VecDeque<(Timestamp, u64)>;

impl Paces {
    /// Takes down how many blocks are left of everything that is under way. What is not named has ended.
    pub(super) fn note(&self, now: Timestamp, under_way: impl IntoIterator<Item = (Work, u64)>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *table);
        for (work, left) in under_way {
            let mut samples = before.remove(&work).unwrap_or_default();
            samples.push_back((now, left));
            while samples.len() > SAMPLES_MAX || samples.front().is_some_and(|(at, _)| now.since(*at) > WINDOW) {
                samples.pop_front();
            }
            table.insert(work, samples);
        }
    }

    /// How long the work will take for `left` more blocks; `None` while that cannot be told.
    pub(super) fn time_left(&self, work: Work, left: u64) -> Option<Micros> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        estimate(table.get(&work)?, left)
    }
}

/// Work that mostly rests (a scrub in the background) has no pace: its steps would be taken for more than they are.
fn estimate(samples: &Samples, left: u64) -> Option<Micros> {
    let (first, last) = (samples.front()?, samples.back()?);
    let elapsed = last.0.since(first.0).0;
    let done = first.1.checked_sub(last.1).filter(|done| *done > 0)?;
    let moves = samples.iter().zip(samples.iter().skip(1)).filter(|(before, after)| after.1 < before.1).count();
    if elapsed == 0 || moves * 2 < samples.len() - 1 {
        return None;
    }
    let micros = u128::from(left) * u128::from(elapsed) / u128::from(done);
    Some(Micros(u64::try_from(micros).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRUB: Work = Work::Scrub(VolumeId(7));

    fn noted(lefts: &[u64]) -> Paces {
        let paces = Paces::default();
        for (second, left) in lefts.iter().enumerate() {
            paces.note(Timestamp(1_000_000 * (second as u64 + 1)), [(SCRUB, *left)]);
        }
        paces
    }

    #[test]
    fn the_rest_takes_as_long_as_the_last_seconds_say() {
        assert_eq!(noted(&[1000, 900, 800]).time_left(SCRUB, 800), Some(Micros::from_secs(8)));
        // What was before the window does not count.
        let mut lefts = vec![100_000];
        lefts.extend((0..20).map(|second| 1000 - 10 * second));
        assert_eq!(noted(&lefts).time_left(SCRUB, 810), Some(Micros::from_secs(81)));
    }

    #[test]
    fn without_a_steady_pace_nothing_is_promised() {
        assert_eq!(noted(&[1000]).time_left(SCRUB, 1000), None);
        assert_eq!(noted(&[1000, 1000]).time_left(SCRUB, 1000), None);
        assert_eq!(noted(&[10, 1000, 900]).time_left(SCRUB, 900), None);
        assert_eq!(noted(&[1000, 1000, 1000, 1000, 744]).time_left(SCRUB, 744), None);
    }

    #[test]
    fn work_that_ended_is_forgotten() {
        let paces = noted(&[1000, 900]);
        paces.note(Timestamp(3_000_000), []);
        assert_eq!(paces.time_left(SCRUB, 900), None);
        assert!(paces.table.lock().unwrap().is_empty());
    }

    #[test]
    fn samples_are_bounded_however_often_somebody_looks() {
        let paces = Paces::default();
        for micros in 0..1000 {
            paces.note(Timestamp(micros), [(SCRUB, 5000 - micros)]);
        }
        assert_eq!(paces.table.lock().unwrap()[&SCRUB].len(), SAMPLES_MAX);
    }
}
