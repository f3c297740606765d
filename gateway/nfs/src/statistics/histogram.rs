//! How long something took, counted in fixed classes that double: cheap to count, and small whatever is counted.

use std::time::Duration;

/// The first class is up to two to the power of this, in microseconds: 16 µs.
const FIRST_BOUND_LOG2: u32 = 4;
/// Classes with an upper bound; the last of them ends at 2^24 µs, about 17 s.
pub const BOUNDS: usize = 21;

/// Counts of durations by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BOUNDS],
    /// Those that took longer than the last bound.
    longer: u64,
    sum_micros: u64,
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let log2 = u64::BITS - micros.saturating_sub(1).leading_zeros();
        let class = log2.saturating_sub(FIRST_BOUND_LOG2) as usize;
        match self.counts.get_mut(class) {
            Some(count) => *count += 1,
            None => self.longer += 1,
        }
        self.sum_micros = self.sum_micros.saturating_add(micros);
    }

    /// The upper bounds of the classes in microseconds, and how many took up to that long and longer than the bound before; those
    /// beyond the last bound are not among them.
    pub fn classes(&self) -> impl Iterator<Item = (u64, u64)> {
        self.counts.iter().zip(FIRST_BOUND_LOG2..).map(|(count, log2)| (1 << log2, *count))
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.longer
    }

    /// How long all took together, in microseconds.
    pub fn sum_micros(&self) -> u64 {
        self.sum_micros
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_the_class_whose_bound_it_does_not_exceed() {
        let mut histogram = Histogram::default();
        for micros in [0, 1, 16, 17, 32, 33, 1 << 24, (1 << 24) + 1] {
            histogram.record(Duration::from_micros(micros));
        }
        let classes: Vec<_> = histogram.classes().filter(|(_, count)| *count > 0).collect();
        assert_eq!(classes, [(16, 3), (32, 2), (64, 1), (1 << 24, 1)]);
        assert_eq!(histogram.count(), 8, "the longest is beyond all bounds");
        assert_eq!(histogram.sum_micros(), 99 + (1 << 25) + 1);
        assert_eq!(histogram.classes().count(), BOUNDS);
    }

    #[test]
    fn the_longest_duration_there_is_does_no_harm() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX);
        histogram.record(Duration::MAX);
        assert_eq!((histogram.count(), histogram.sum_micros()), (2, u64::MAX));
    }
}
