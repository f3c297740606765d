//! Hashing of states so that those that can only behave alike are one.
//!
//! The cores hash by derived code, which knows nothing of time. Instants are recognised here by their size: the model's
//! clock starts at [`CLOCK_START`], far above every identifier, sequence number and epoch that a run can reach. They enter
//! the hash as their distance from the present, and what is older than every timeout of the model as equally old. This is
//! sound because a core only ever compares instants with the present, or with each other after adding a timeout.

use std::hash::{Hash, Hasher};

use proto::Timestamp;

/// One step of the model's clock, in microseconds.
pub const QUANTUM: u64 = 100_000;
/// Where the clock starts.
pub const CLOCK_START: u64 = 1 << 50;
/// Instants lie below this.
const CLOCK_END: u64 = CLOCK_START + (1 << 40);
/// Steps after which an instant is as old as any: more than, or equal to, every timeout that a run of the model can see expire.
pub const AGE_MAX: u64 = 3;

/// The clock's reading after `ticks` steps.
pub fn clock(ticks: u8) -> Timestamp {
    Timestamp(CLOCK_START + u64::from(ticks) * QUANTUM)
}

/// A hasher that makes instants relative to the present.
struct Relative<'a, H> {
    inner: &'a mut H,
    now: u64,
}

impl<H: Hasher> Hasher for Relative<'_, H> {
    fn finish(&self) -> u64 {
        self.inner.finish()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.inner.write(bytes);
    }

    fn write_u8(&mut self, value: u8) {
        self.inner.write_u8(value);
    }

    fn write_u64(&mut self, value: u64) {
        let relative = match value {
            CLOCK_START..CLOCK_END if value <= self.now => {
                CLOCK_START + (AGE_MAX * QUANTUM).saturating_sub(self.now - value)
            }
            CLOCK_START..CLOCK_END => CLOCK_START + AGE_MAX * QUANTUM + (value - self.now),
            other => other,
        };
        self.inner.write_u64(relative);
    }

    fn write_usize(&mut self, value: usize) {
        self.inner.write_usize(value);
    }

    fn write_isize(&mut self, value: isize) {
        self.inner.write_isize(value);
    }
}

/// Hashes `value` with its instants seen from `now`.
pub fn hash_at<T: Hash, H: Hasher>(value: &T, now: Timestamp, hasher: &mut H) {
    value.hash(&mut Relative { inner: hasher, now: now.0 });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::DefaultHasher;

    fn digest(instant: u64, now: u8) -> u64 {
        let mut hasher = DefaultHasher::new();
        hash_at(&(Timestamp(instant), 7u64), clock(now), &mut hasher);
        hasher.finish()
    }

    #[test]
    fn instants_count_by_their_distance_and_old_ones_are_alike() {
        assert_eq!(digest(clock(3).0, 4), digest(clock(8).0, 9));
        assert_ne!(digest(clock(3).0, 4), digest(clock(3).0, 5));
        assert_eq!(digest(clock(1).0, 9), digest(clock(6).0, 9));
        assert_ne!(digest(clock(7).0, 9), digest(clock(6).0, 9));
        assert_ne!(digest(clock(9).0, 9), digest(clock(10).0, 9));
        assert_ne!(digest(5, 4), digest(6, 5), "identifiers are not instants");
    }
}
