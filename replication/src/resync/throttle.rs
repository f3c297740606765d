//! How fast a resync may go beside clients: as fast as disk and network allow when nobody asks for anything, and at a low
//! steady rate while clients do.

use proto::{Micros, Timestamp};

/// Clients count as active for this long after their last operation.
const ACTIVE_FOR: Micros = Micros::from_millis(200);
/// Blocks per second beside active clients (32 MiB/s).
const BLOCKS_PER_SECOND_BESIDE_CLIENTS: u64 = 8192;

/// Decides when the next step may begin.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(crate) struct Throttle {
    next_allowed: Timestamp,
}

impl Throttle {
    /// How many steps may be in flight now, of `steps_max`; 0 until `next_allowed`.
    pub(crate) fn steps_allowed(&self, now: Timestamp, last_client: Timestamp, steps_max: usize) -> usize {
        if !Self::clients_active(now, last_client) {
            steps_max
        } else if now >= self.next_allowed {
            1
        } else {
            0
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
        assert_eq!(throttle.steps_allowed(now + Micros(300_000), now, 8), 8);
    }
}
