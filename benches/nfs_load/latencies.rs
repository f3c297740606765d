//! How long operations took, in a bounded histogram: percentiles are right to one part in 64.

use std::time::Duration;

/// Buckets of each power of two.
const STEPS: u64 = 64;
/// Nanoseconds below this have a bucket each; so have 57 powers of two above.
const BUCKETS: usize = (STEPS * 59) as usize;

/// Counts of durations.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    longest: Duration,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, longest: Duration::ZERO }
    }
}

/// The bucket of a value: linear below [`STEPS`], then [`STEPS`] for each power of two.
fn bucket(nanoseconds: u64) -> usize {
    let power = nanoseconds.max(STEPS).ilog2() - STEPS.ilog2();
    (u64::from(power) * STEPS + (nanoseconds >> power)) as usize
}

/// The lowest value of a bucket.
fn lowest(bucket: usize) -> u64 {
    let (bucket, power) = (bucket as u64, (bucket as u64 / STEPS).saturating_sub(1));
    (bucket - power * STEPS) << power
}

impl Latencies {
    /// One more.
    pub(crate) fn add(&mut self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(counted) = self.buckets.get_mut(bucket(nanoseconds)) {
            *counted += 1;
        }
        self.count += 1;
        self.longest = self.longest.max(took);
    }

    /// Those of another task too.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, its) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += its;
        }
        self.count += other.count;
        self.longest = self.longest.max(other.longest);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The longest.
    pub(crate) fn longest(&self) -> Duration {
        self.longest
    }

    /// The duration that this part of all does not exceed.
    pub(crate) fn percentile(&self, part: f64) -> Duration {
        let wanted = ((self.count as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|counted| {
            seen += counted;
            seen >= wanted
        });
        found.map_or(Duration::ZERO, |bucket| Duration::from_nanos(lowest(bucket)).min(self.longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_one_part_in_64() {
        let mut latencies = Latencies::default();
        for microseconds in 1..=1000 {
            latencies.add(Duration::from_micros(microseconds));
        }
        for (part, exact) in [(0.5, 500_000.0), (0.99, 990_000.0), (1.0, 1_000_000.0)] {
            let found = latencies.percentile(part).as_nanos() as f64;
            assert!(found <= exact && found > exact * 63.0 / 64.0, "{part}: {found}");
        }
        assert_eq!((latencies.count(), latencies.longest()), (1000, Duration::from_millis(1)));
    }

    #[test]
    fn every_value_has_a_bucket_and_buckets_follow_each_other() {
        for value in [0, 1, 63, 64, 65, 127, 128, 1 << 40, u64::MAX] {
            let bucket = bucket(value);
            assert!(bucket < BUCKETS && lowest(bucket) <= value, "{value}");
            assert!(bucket + 1 == BUCKETS || lowest(bucket + 1) > value || value == u64::MAX, "{value}");
        }
    }
}
