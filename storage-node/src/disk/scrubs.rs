//! What a store remembers of scrubs, so that a box that is often restarted is scrubbed all the same. Part of the superblock.

use std::time::{SystemTime, UNIX_EPOCH};

use proto::Micros;
use replication::{PastScrubs, ScrubReport};

/// Bytes of the record.
const RECORD_BYTES: usize = 112;
const SCRUBBED_AT: usize = 0;
const ENDED_AT: usize = 8;
const FLAGS_AT: usize = 16;
const FOUND_AT: usize = 24;
const DONE_AT: usize = 64;
const SO_FAR_AT: usize = 72;

const VERIFY_ONLY: u64 = 1;

/// The record. Calendar times are microseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scrubs {
    /// When the last one ended that mended what it found; without one, when the store was first opened. 0: neither.
    pub(super) scrubbed_unix_micros: u64,
    /// When the last one ended, verifies included, and what it found.
    pub(super) last: Option<(u64, ScrubReport)>,
    /// The one in the background that has yet to end.
    pub(super) under_way: Option<ScrubReport>,
}

impl Scrubs {
    /// Its bytes.
    pub(super) fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        let mut put = |at: usize, value: u64| out[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(SCRUBBED_AT, self.scrubbed_unix_micros);
        let mut put_found = |at: usize, report: &ScrubReport| {
            let ScrubReport { bad_here, bad_at_peers, differing, repaired, skipped_steps, .. } = *report;
            let counts = [bad_here, bad_at_peers, differing, repaired, skipped_steps];
            (at..).step_by(8).zip(counts).for_each(|(at, count)| put(at, count));
        };
        if let Some((_, report)) = &self.last {
            put_found(FOUND_AT, report);
        }
        if let Some(report) = &self.under_way {
            put_found(SO_FAR_AT, report);
        }
        if let Some((ended, report)) = self.last {
            put(ENDED_AT, ended);
            put(FLAGS_AT, if report.verify_only { VERIFY_ONLY } else { 0 });
        }
        put(DONE_AT, self.under_way.map_or(0, |report| report.done_blocks));
        out
    }

    /// Reads the record of a volume of so many blocks.
    pub(super) fn decode(bytes: &[u8], blocks: u64) -> Scrubs {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let report = |at: usize, done_blocks: u64, verify_only: bool| ScrubReport {
            verify_only,
            blocks,
            done_blocks,
            bad_here: word(at),
            bad_at_peers: word(at + 8),
            differing: word(at + 16),
            repaired: word(at + 24),
            skipped_steps: word(at + 32),
        };
        let (ended, done) = (word(ENDED_AT), word(DONE_AT));
        Scrubs {
            scrubbed_unix_micros: word(SCRUBBED_AT),
            last: (ended > 0).then(|| (ended, report(FOUND_AT, blocks, word(FLAGS_AT) & VERIFY_ONLY != 0))),
            under_way: (done > 0).then(|| report(SO_FAR_AT, done, false)),
        }
    }

    /// The record of a store that is being opened. The period counts from the first opening on; a time that has yet to
    /// come was told by a clock that was wrong.
    pub(super) fn opened(self, now: u64) -> Scrubs {
        let before = Some(self.scrubbed_unix_micros).filter(|at| (1..=now).contains(at));
        Scrubs { scrubbed_unix_micros: before.unwrap_or(now), ..self }
    }

    /// With one that has just ended, and how far the one in the background is.
    pub(super) fn recorded(self, ended: Option<ScrubReport>, under_way: Option<ScrubReport>, now: u64) -> Scrubs {
        let mended = ended.is_some_and(|report| !report.verify_only);
        Scrubs {
            scrubbed_unix_micros: if mended { now } else { self.scrubbed_unix_micros },
            last: ended.map(|report| (now, report)).or(self.last),
            under_way,
        }
    }

    /// What the replica wants to know of it.
    pub(super) fn past(&self, now: u64) -> PastScrubs {
        let ended_ago = Micros(now.saturating_sub(self.scrubbed_unix_micros));
        PastScrubs { ended_ago, under_way: self.under_way }
    }
}

/// Calendar time in microseconds since 1970.
pub(super) fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verify_only: bool, done_blocks: u64) -> ScrubReport {
        let found = ScrubReport { bad_here: 1, bad_at_peers: 2, differing: 3, repaired: 4, ..ScrubReport::default() };
        ScrubReport { verify_only, blocks: 100, done_blocks, skipped_steps: 5, ..found }
    }

    #[test]
    fn a_record_comes_back() {
        for verify_only in [false, true] {
            let (last, under_way) = (Some((6, report(verify_only, 100))), Some(report(false, 77)));
            let scrubs = Scrubs { scrubbed_unix_micros: 5, last, under_way };
            assert_eq!(Scrubs::decode(&scrubs.encode(), 100), scrubs);
        }
        assert_eq!(Scrubs::decode(&[0; RECORD_BYTES], 100), Scrubs::default());
    }

    #[test]
    fn the_period_counts_from_the_last_repairing_scrub_or_the_first_opening() {
        let opened = Scrubs::default().opened(1_000);
        assert_eq!(opened.past(1_300).ended_ago, Micros(300));
        assert_eq!(opened.opened(1_500).past(1_600).ended_ago, Micros(600), "a restart does not begin it anew");
        let verified = opened.recorded(Some(report(true, 100)), None, 2_000);
        assert_eq!((verified.past(2_100).ended_ago, verified.last.unwrap().0), (Micros(1_100), 2_000));
        let scrubbed = verified.recorded(Some(report(false, 100)), None, 3_000);
        assert_eq!((scrubbed.past(3_100).ended_ago, scrubbed.last.unwrap().0), (Micros(100), 3_000));
        // The clock was ahead, and was put right.
        assert_eq!(scrubbed.opened(2_500).past(2_700).ended_ago, Micros(200));
    }

    #[test]
    fn how_far_one_is_stays_until_told_otherwise() {
        let half = Scrubs::default().recorded(None, Some(report(false, 50)), 9);
        assert_eq!((half.last, half.past(10).under_way), (None, Some(report(false, 50))));
        assert_eq!(half.recorded(Some(report(false, 100)), None, 11).past(12).under_way, None);
    }
}
