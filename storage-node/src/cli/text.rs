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

/// A duration, rounded: `45 s`, `3 min`, `5 h`, `2 days`.
pub(crate) fn duration(micros: u64) -> String {
    let seconds = micros.div_ceil(1_000_000);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `YYYY-MM-DD HH:MM:SS` in UTC, by the proleptic Gregorian calendar.
pub(crate) fn date_time(unix_micros: u64) -> String {
    // Years are counted from March, so that the leap day is the last one; an era is 400 years, 146,097 days.
    let days = unix_micros / 86_400_000_000 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {}", clock_time(unix_micros))
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

/// `read-only` or `read-write`.
pub(crate) fn export_access(access: pb::ExportAccess) -> &'static str {
    match access {
        pb::ExportAccess::Unspecified | pb::ExportAccess::ReadOnly => "read-only",
        pb::ExportAccess::ReadWrite => "read-write",
    }
}

/// `root`, `all` or `none`.
pub(crate) fn export_squash(squash: pb::ExportSquash) -> &'static str {
    match squash {
        pb::ExportSquash::Unspecified | pb::ExportSquash::Root => "root",
        pb::ExportSquash::All => "all",
        pb::ExportSquash::None => "none",
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

    #[test]
    fn dates_are_those_of_the_calendar() {
        let date = |seconds: u64| date_time(seconds * 1_000_000);
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(951_827_696), "2000-02-29 12:34:56");
        assert_eq!(date(1_709_251_199), "2024-02-29 23:59:59");
        assert_eq!(date(1_709_251_200), "2024-03-01 00:00:00");
        assert_eq!(date(4_107_542_400), "2100-03-01 00:00:00");
    }

    #[test]
    fn durations_are_rounded_to_what_matters() {
        let words = |seconds: u64| duration(seconds * 1_000_000);
        assert_eq!([words(0), words(90), words(150)], ["0 s", "90 s", "2 min"]);
        assert_eq!([words(7200), words(200_000)], ["2 h", "2 days"]);
        assert_eq!(duration(1), "1 s");
    }
}
