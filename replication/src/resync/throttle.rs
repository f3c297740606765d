//! How fast a resync may go beside clients: as fast as disk and network allow when nobody asks for anything, and at a low
//! steady rate while clients do. In between it grows wider the longer nobody has asked, so that one who asks now and then
//! does not meet all of it each time.

use proto::{Micros, Timestamp};

/// Clients count as active for this long after their last operation.
const ACTIVE_FOR: Micros = Micros::from_millis(200);
/// Blocks per second beside active clients (32 MiB/s).
const BLOCKS_PER_SECOND_BESIDE_CLIENTS: u64 = 8192;
/// Blocks in one step beside active clients: a client's operation waits for no more of a resync than this.
const STEP_BLOCKS_BESIDE_CLIENTS: u64 = 64;
/// Once clients are no longer active, one more step in flight is allowed after each of these.
const WIDENS_EVERY: Micros = Micros::from_millis(20);

/// Decides when the next step may begin.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(crate) struct Throttle {
    next_allowed: Timestamp,
}

impl Throttle {
    /// How many steps may be in flight now, of `steps_max`; 0 until `next_allowed`.
    pub(crate) fn steps_allowed(&self, now: Timestamp, last_client: Timestamp, steps_max: usize) -> usize {
        if last_client == Timestamp(0) {
            steps_max
        } else if !Self::clients_active(now, last_client) {
            let wider = (now.since(last_client).0 - ACTIVE_FOR.0) / WIDENS_EVERY.0;
            usize::try_from(wider).unwrap_or(usize::MAX).saturating_add(1).min(steps_max)
        } else if now >= self.next_allowed {
            1
        } else {
            0
        }
    }

    /// How many blocks the next step may have, of `blocks_max`.
    pub(crate) fn blocks_allowed(now: Timestamp, last_client: Timestamp, blocks_max: u64) -> u64 {
        match Self::clients_active(now, last_client) {
            true => blocks_max.min(STEP_BLOCKS_BESIDE_CLIENTS),
            false => blocks_max,
        }
    }

    /// A step of `blocks` began.
    pub(crate) fn on_step(&mut self, now: Timestamp, last_client: Timestamp, blocks: u64) {
        if Self::clients_active(now, last_client) {
            let pause = Micros(blocks * 1_000_000 / BLOCKS_PER_SECOND_BESIDE_CLIENTS);
            self.next_allowed = self.next_allowed.max(now) + pause;
        }
    }

    /// When to ask again, if steps are held back now.
    pub(crate) fn next_allowed(&self) -> Timestamp {
        self.next_allowed
    }

    fn clients_active(now: Timestamp, last_client: Timestamp) -> bool {
        last_client > Timestamp(0) && now.since(last_client) < ACTIVE_FOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_volume_resyncs_at_full_width_and_a_busy_one_at_the_floor_rate() {
        let mut throttle = Throttle::default();
        let now = Timestamp(10_000_000);
        assert_eq!(throttle.steps_allowed(now, Timestamp(0), 8), 8);
        assert_eq!(throttle.steps_allowed(now, now, 8), 1);
        throttle.on_step(now, now, 64);
        assert_eq!(throttle.steps_allowed(now + Micros(1000), now, 8), 0);
        assert_eq!(throttle.steps_allowed(now + Micros(7900), now, 8), 1);
        assert_eq!(Throttle::blocks_allowed(now, now, 256), 64);
        assert_eq!(Throttle::blocks_allowed(now, now, 16), 16);
        assert_eq!(Throttle::blocks_allowed(now + ACTIVE_FOR, now, 256), 256);
        assert_eq!(Throttle::blocks_allowed(now, Timestamp(0), 256), 256);
    }

    #[test]
    fn the_longer_nobody_has_asked_the_more_steps_are_in_flight() {
        let (throttle, asked) = (Throttle::default(), Timestamp(10_000_000));
        let steps = |quiet: u64| throttle.steps_allowed(asked + ACTIVE_FOR + Micros(quiet * WIDENS_EVERY.0), asked, 8);
        assert_eq!([0, 1, 2, 6, 7, 8, 1000].map(steps), [1, 2, 3, 7, 8, 8, 8]);
    }
}
