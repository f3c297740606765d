//! Simulated time: one seeded random generator and one ordered queue of things to come.
//!
//! Two runs that make the same calls get the same numbers and the same order. Nothing here knows what an event means.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Microseconds since the run began.
pub type SimTime = u64;

/// One millisecond.
pub const MILLISECOND: SimTime = 1_000;
/// One second.
pub const SECOND: SimTime = 1_000_000;
/// Later than everything.
pub const NEVER: SimTime = u64::MAX;

/// xoshiro256++ seeded by splitmix64: fast, and the same on every machine.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// A generator whose numbers depend on `seed` alone.
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        let mut next = || {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Self { state: [next(), next(), next(), next()] }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `n` (0 if `n` is 0).
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// A number in `low ..= high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True in `permille` of 1000 cases.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// Mostly near `low`, seldom up to `high`: the shape of delays.
    pub fn skewed(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low);
        let a = self.below(1024);
        low + span * a * a / (1024 * 1024)
    }

    /// One of `items`, which must not be empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

/// What is to come, ordered by time and, at one time, by the order of scheduling.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<(SimTime, u64, u32)>>,
    slots: Vec<Option<E>>,
    free: Vec<u32>,
    scheduled: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::with_capacity(1024), slots: Vec::with_capacity(1024), free: Vec::new(), scheduled: 0 }
    }
}

impl<E> Queue<E> {
    /// Adds `event` at `at`.
    pub fn push(&mut self, at: SimTime, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                (self.slots.len() - 1) as u32
            }
        };
        self.heap.push(Reverse((at, self.scheduled, slot)));
        self.scheduled += 1;
    }

    /// Takes the next event that is due at or before `until`.
    pub fn pop(&mut self, until: SimTime) -> Option<(SimTime, E)> {
        let Reverse((at, _, slot)) = *self.heap.peek()?;
        if at > until {
            return None;
        }
        self.heap.pop();
        self.free.push(slot);
        self.slots[slot as usize].take().map(|event| (at, event))
    }

    /// Events scheduled since the start.
    pub fn scheduled(&self) -> u64 {
        self.scheduled
    }
}

/// A box's CLOCK_BOOTTIME: starts anew at power-on, and runs a little fast or slow.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    since: SimTime,
    reading: u64,
    drift_ppm: i64,
}

impl Clock {
    /// A clock that shows `reading` at `since` and gains `drift_ppm` microseconds a second.
    pub fn new(since: SimTime, reading: u64, drift_ppm: i64) -> Self {
        Self { since, reading, drift_ppm }
    }

    /// What it shows at `now`.
    pub fn read(&self, now: SimTime) -> u64 {
        let elapsed = now.saturating_sub(self.since) as i64;
        self.reading + (elapsed + elapsed * self.drift_ppm / 1_000_000) as u64
    }

    /// The first simulated time at which it shows at least `reading`.
    pub fn when(&self, reading: u64) -> SimTime {
        if reading == u64::MAX {
            return NEVER;
        }
        let wanted = reading.saturating_sub(self.reading) as i128;
        let elapsed = wanted * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm));
        let mut at = self.since.saturating_add(elapsed.max(0) as u64);
        while self.read(at) < reading {
            at += 1;
        }
        at
    }

    /// Stands still from `from` to `to`, as the clock of a paused virtual machine does.
    pub fn freeze(&mut self, from: SimTime, to: SimTime) {
        let reading = self.read(from);
        *self = Self { since: to, reading, drift_ppm: self.drift_ppm };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_scheduling() {
        let mut queue = Queue::default();
        for (at, name) in [(5, "e"), (1, "a"), (3, "c"), (1, "b"), (3, "d")] {
            queue.push(at, name);
        }
        let mut order = Vec::new();
        while let Some((_, name)) = queue.pop(4) {
            order.push(name);
        }
        assert_eq!(order, ["a", "b", "c", "d"]);
        assert_eq!(queue.pop(5), Some((5, "e")));
    }

    #[test]
    fn clock_deadlines_are_never_early() {
        for drift in [-10_000, -1, 0, 1, 10_000] {
            let clock = Clock::new(77, 1000, drift);
            for reading in [0, 1000, 1001, 999_999, 123_456_789] {
                let at = clock.when(reading);
                assert!(clock.read(at) >= reading);
                assert!(at == 77 || clock.read(at - 1) < reading || clock.read(at) - reading <= 1);
            }
        }
    }

    #[test]
    fn same_seed_gives_same_numbers() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        assert!((0..100).all(|_| a.bits() == b.bits()));
        assert_ne!(Rng::new(1).bits(), Rng::new(2).bits());
        assert!((0..1000).all(|_| a.below(7) < 7 && (3..=9).contains(&a.between(3, 9))));
    }
}
