//! Counters of an export, shared by its connections and read by the metrics endpoint from another thread.
//!
//! Relaxed atomics: each counter is exact by itself, a snapshot is not one instant of all of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters that only grow. One value may serve any number of connections.
#[derive(Debug, Default)]
pub struct Statistics {
    pub(crate) connections: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) read_bytes: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) write_bytes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) trims: AtomicU64,
    pub(crate) zeroes: AtomicU64,
    pub(crate) block_statuses: AtomicU64,
    pub(crate) errors: AtomicU64,
}

/// The counters at about one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatisticsSnapshot {
    /// Connections that reached the transmission phase.
    pub connections: u64,
    /// READ requests answered with data.
    pub reads: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// WRITE requests acknowledged.
    pub writes: u64,
    /// Bytes of those.
    pub write_bytes: u64,
    /// FLUSH requests acknowledged.
    pub flushes: u64,
    /// TRIM requests acknowledged.
    pub trims: u64,
    /// WRITE_ZEROES requests acknowledged.
    pub zeroes: u64,
    /// BLOCK_STATUS requests answered.
    pub block_statuses: u64,
    /// Requests refused or failed, whatever the reason.
    pub errors: u64,
}

impl Statistics {
    /// Reads every counter.
    pub fn snapshot(&self) -> StatisticsSnapshot {
        StatisticsSnapshot {
            connections: self.connections.load(Relaxed),
            reads: self.reads.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            writes: self.writes.load(Relaxed),
            write_bytes: self.write_bytes.load(Relaxed),
            flushes: self.flushes.load(Relaxed),
            trims: self.trims.load(Relaxed),
            zeroes: self.zeroes.load(Relaxed),
            block_statuses: self.block_statuses.load(Relaxed),
            errors: self.errors.load(Relaxed),
        }
    }

    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Relaxed);
    }
}
