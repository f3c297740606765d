//! Words for people: sizes, states, times.

use proto::BLOCK_BYTES;
use proto::admin as pb;

pub(crate) use crate::admin::health::{clock_time, percent};

/// A size in binary units, exact when it is whole: `20 GiB`, `1.5 TiB`, `4 KiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >= 1 << shift {
            let whole = bytes >> shift;
            let tenths = ((u128::from(bytes) * 10) >> shift) as u64 % 10;
            return if tenths == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") };
        }
    }
    format!("{bytes} B")
}

/// A number of blocks as a size.
pub(crate) fn blocks(count: u64) -> String {
    size(count.saturating_mul(BLOCK_BYTES))
}

/// `healthy`, `busy`, `degraded`, `down`.
pub(crate) fn level(level: pb::HealthLevel) -> &'static str {
    match level {
        pb::HealthLevel::Unspecified => "unknown",
        pb::HealthLevel::Healthy => "healthy",
        pb::HealthLevel::Busy => "busy",
        pb::HealthLevel::Degraded => "degraded",
        pb::HealthLevel::Down => "down",
    }
}

/// `storage` or `witness`.
pub(crate) fn kind(kind: pb::NodeKind) -> &'static str {
    match kind {
        pb::NodeKind::Unspecified => "unknown",
        pb::NodeKind::Storage => "storage",
        pb::NodeKind::Witness => "witness",
    }
}

/// `creating` or `active`.
pub(crate) fn phase(phase: pb::Phase) -> &'static str {
    match phase {
        pb::Phase::Unspecified => "unknown",
        pb::Phase::Creating => "creating",
        pb::Phase::Active => "active",
    }
}

/// `flush` or `durable`.
pub(crate) fn ack(policy: pb::AckPolicy) -> &'static str {
    match policy {
        pb::AckPolicy::Unspecified => "unknown",
        pb::AckPolicy::Flush => "flush",
        pb::AckPolicy::Durable => "durable",
    }
}

/// A store's state.
pub(crate) fn store(state: pb::StoreState) -> &'static str {
    match state {
        pb::StoreState::Unspecified | pb::StoreState::Unknown => "unknown",
        pb::StoreState::Missing => "missing",
        pb::StoreState::Creating => "creating",
        pb::StoreState::Open => "open",
        pb::StoreState::Detached => "detached",
        pb::StoreState::Failed => "failed",
    }
}

/// Health in one line; `unknown` when the node told none.
pub(crate) fn health(health: Option<&pb::Health>) -> String {
    health.map_or_else(|| "unknown".to_owned(), |health| health.text.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_they_are_written() {
        assert_eq!(size(20 << 30), "20 GiB");
        assert_eq!(size(3 << 39), "1.5 TiB");
        assert_eq!(size(4096), "4 KiB");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size((1 << 30) - 4096), "1023.9 MiB");
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
        assert_eq!(blocks(256), "1 MiB");
    }
}
