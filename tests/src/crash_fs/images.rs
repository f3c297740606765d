//! Which images of a run are judged: moments of its record, and what a loss of power leaves of the writes since the last
//! flush.
//!
//! An image is a function of the run and its number, so that one image can be judged again alone.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::work::Kind;

/// What is left of the writes that no flush has covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// All of them: the record's first part, as it is.
    All,
    /// None of them.
    None,
    /// So many of four, whole.
    Writes(u32),
    /// So many of four of their sectors of 512 bytes.
    Sectors(u32),
}

/// Moments of a run's record.
#[derive(Clone, Debug)]
pub(super) struct Moments {
    /// Events, and so the last moment.
    pub(super) events: usize,
    /// Moments at which something was acknowledged.
    pub(super) acknowledged: Vec<usize>,
}

/// One image of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) number: usize,
    /// Events of the record before the loss.
    pub(super) position: usize,
    pub(super) kept: Kept,
    /// The power is lost again, in the middle of the recovery.
    pub(super) recovery_is_cut: bool,
    /// The kernel recovers it, too.
    pub(super) kernel: bool,
    seed: u64,
}

impl Image {
    /// The images of a run with so many events, at most `max` of them (or, of a short run, four times as many), in the order
    /// of their moments.
    pub(super) fn of_run(seed: u64, kind: Kind, moments: &Moments, max: usize) -> Vec<Self> {
        let count = if kind == Kind::Short { (2 * (moments.events + 1)).min(4 * max) } else { max };
        let mut images: Vec<_> = (0..count).map(|number| Self::new(seed, kind, moments, number)).collect();
        images.sort_by_key(|image| (image.position, image.number));
        images
    }

    /// One image by its number.
    pub(super) fn new(seed: u64, kind: Kind, moments: &Moments, number: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let drawn = rng.random_range(0..=moments.events);
        // Just acknowledged: what a missing flush would have covered is not covered by a later one yet.
        let acknowledged = moments.acknowledged.choose(&mut rng).copied().filter(|_| rng.random_range(0..3) == 0);
        let part = rng.random_range(1..=3);
        let kept = match rng.random_range(0..8) {
            0 => Kept::All,
            1 => Kept::None,
            2..=4 => Kept::Writes(part),
            _ => Kept::Sectors(part),
        };
        // Of a short run every moment, as it is and with something lost.
        let is_prefix = kind == Kind::Short && number / 2 <= moments.events;
        let (position, kept) = match is_prefix {
            true if number.is_multiple_of(2) => (number / 2, Kept::All),
            true => (number / 2, kept),
            false => (acknowledged.unwrap_or(drawn), kept),
        };
        let recovery_is_cut = rng.random_range(0..6) == 0;
        let kernel = rng.random_range(0..100) == 0;
        Self { number, position, kept, recovery_is_cut, kernel, seed: rng.random() }
    }

    /// Decides for each sector of each write that may be lost, in the order of the record.
    pub(super) fn keep(&self) -> impl FnMut(usize, u64) -> bool + use<> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut last = (usize::MAX, false);
        let kept = self.kept;
        move |write, _| match kept {
            Kept::All => true,
            Kept::None => false,
            Kept::Sectors(part) => rng.random_range(0..4) < part,
            Kept::Writes(part) => {
                if last.0 != write {
                    last = (write, rng.random_range(0..4) < part);
                }
                last.1
            }
        }
    }

    /// Where the recovery is cut, and what is kept of its writes.
    pub(super) fn cut(&self, events: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 1);
        let position = rng.random_range(0..=events);
        Self { position, kept: Kept::Sectors(rng.random_range(0..=4)), seed: rng.random(), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(events: usize) -> Moments {
        Moments { events, acknowledged: vec![3, 7] }
    }

    #[test]
    fn every_moment_of_a_short_run_is_judged() {
        let images = Image::of_run(3, Kind::Short, &moments(50), 1000);
        for position in 0..=50 {
            assert!(images.iter().any(|image| image.position == position && image.kept == Kept::All));
        }
        assert!(images.is_sorted_by_key(|image| image.position));
    }

    #[test]
    fn an_image_is_the_same_whatever_the_others_are() {
        for kind in [Kind::Short, Kind::Usual] {
            let images = Image::of_run(9, kind, &moments(400), 30);
            for image in &images {
                assert_eq!(*image, Image::new(9, kind, &moments(400), image.number));
            }
        }
    }

    #[test]
    fn writes_are_kept_whole_or_not_at_all_unless_sectors_are_drawn() {
        let image = |kept| Image { kept, ..Image::new(1, Kind::Usual, &moments(10), 0) };
        let torn = |kept| {
            let mut keep = image(kept).keep();
            (0..50)
                .filter(|write| {
                    (0..8).map(|sector| keep(*write, sector)).collect::<std::collections::BTreeSet<_>>().len() == 2
                })
                .count()
        };
        assert_eq!((torn(Kept::All), torn(Kept::None), torn(Kept::Writes(2))), (0, 0, 0));
        assert!(torn(Kept::Sectors(2)) > 40);
    }
}
