//! What a client counts, and how long it had to wait: a stall is a time in which something was asked for and nothing was answered.

use std::time::Duration;

/// Stalls that are kept one by one; of more only number, sum and longest are.
pub const STALLS_MAX: usize = 4096;

/// What has happened so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Requests that were answered with a result or a status.
    pub answered: u64,
    /// Sent once more after a connection broke or was silent.
    pub resent: u64,
    /// Put again because the server said DELAY or GRACE.
    pub delayed: u64,
    /// Replies that nobody waited for.
    pub unexpected: u64,
    /// Callbacks answered.
    pub callbacks: u64,
    /// Sessions created; more than one says that the server forgot one.
    pub sessions: u64,
    /// Client ids that the server gave; more than one says that it forgot what was open and locked.
    pub clients: u64,
    /// Connections made.
    pub connections: u64,
    /// Connections given up because nothing came.
    pub silences: u64,
    /// Stalls that were longer than the threshold, in order; at most [`STALLS_MAX`].
    pub stalls: Vec<Duration>,
    /// How many there were.
    pub stall_count: u64,
    /// All of them together.
    pub stalled: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Statistics {
    /// A stall has ended.
    pub fn stall(&mut self, took: Duration) {
        self.stall_count += 1;
        self.stalled = self.stalled.saturating_add(took);
        self.longest = self.longest.max(took);
        if self.stalls.len() < STALLS_MAX {
            self.stalls.push(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_counted_beyond_those_that_are_kept() {
        let mut statistics = Statistics::default();
        for milliseconds in 0..=STALLS_MAX as u64 {
            statistics.stall(Duration::from_millis(milliseconds));
        }
        assert_eq!(statistics.stalls.len(), STALLS_MAX);
        assert_eq!(statistics.stall_count, STALLS_MAX as u64 + 1);
        assert_eq!(statistics.longest, Duration::from_millis(STALLS_MAX as u64));
    }
}
