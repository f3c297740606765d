//! A slot of a fore channel (RFC 8881 §2.10.6): what a request that comes with a sequence is, a new one or an old one, and
//! what is kept so that the answer is right after a takeover too.
//!
//! Of the requests of a slot only the newest *changing* one is in a record: with its sequence, its digest and its result, in the
//! transaction of what it changed. Those behind it that changed nothing moved the sequence in memory only. So a box that takes
//! over knows of each slot D, the sequence of the record (0 without one), and at the first use, with sequence S, decides:
//!
//! * S = D: the client has no answer yet; it gets the recorded one.
//! * 0 < S − D < 2^31 (modulo 2^32): executed, and S is current. It cannot have changed anything before, or it would be D.
//! * else `SEQ_MISORDERED`.
//!
//! From then on the rule is strict: the current sequence again, or the next one.
//!
//! For the window of 2^31 to hold, a slot that only reads is recorded too, once every [`RECORD_SPAN`] requests: a busy one
//! passes 2^31 in days, and a takeover would refuse it for ever.
//!
//! **A digest that differs** means that the client has given up the former request (a signal has interrupted it) and uses its
//! sequence for another one: a retry is the same to the byte, and whoever makes the digest leaves SEQUENCE itself out and the
//! user in. If the former one changed something, its result would be a wrong answer, and executing this one would take from the
//! record what a late retry needs: `SEQ_FALSE_RETRY`, which RFC 8881 §2.10.6.1.3.1 demands where users differ and permits else.
//! Linux then sends the new request under the next sequence; nothing runs twice, because it is another request. If the former
//! one changed nothing, this one is executed in its place, as it would be after a takeover. `RETRY_UNCACHED_REP` never happens:
//! what changed is recorded, and the rest may run again.

use bytes::Bytes;

use crate::state::record::Payload;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Bytes of a result that is recorded.
pub const RESULT_BYTES_MAX: usize = 2_048;
/// Bytes of what resuming a compound needs.
pub const RESUME_BYTES_MAX: usize = 1_024;
/// Sequences behind its record at which a slot is recorded although nothing was changed.
pub const RECORD_SPAN: u32 = 1 << 30;
/// Sequences that a takeover takes for new ones, and one.
const WINDOW: u32 = 1 << 31;
/// Bytes of arguments that both halves of a digest depend on.
const DIGEST_HEAD_BYTES: usize = 1_024;
/// 2^64 divided by the golden ratio: spreads bits when multiplied with.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The record of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotRecord {
    /// Of the newest changing request.
    pub sequence: u32,
    /// Of its arguments and its user.
    pub digest: u64,
    /// What was done of it, and answered.
    pub reply: Reply,
}

/// The result of a compound, as far as it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Operations that are done, SEQUENCE included. None: it was recorded only for its sequence, and may run again.
    pub operations_done: u32,
    /// True if that is all of them.
    pub complete: bool,
    /// The encoded results, without RPC header; at most [`RESULT_BYTES_MAX`].
    pub result: Bytes,
    /// What the operations behind need: current file handles, stateid. At most [`RESUME_BYTES_MAX`].
    pub resume: Bytes,
}

/// What is known of a slot in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// The session was made by this process, and the slot not used.
    Fresh,
    /// Not used since the takeover.
    TakenOver,
    /// A request is being executed, or what it changed is not durable yet.
    InProgress {
        /// Its sequence.
        sequence: u32,
        /// Its digest.
        digest: u64,
    },
    /// The newest request was answered.
    Done {
        /// Its sequence.
        sequence: u32,
        /// Its digest.
        digest: u64,
        /// All of its reply, if somebody wanted it kept.
        reply: Option<Bytes>,
    },
}

/// What a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To be executed.
    Execute,
    /// It was done, whole or in part: see the record.
    Recorded,
    /// It was done, and this is the whole reply.
    Kept(Bytes),
    /// It is being executed.
    Park,
    /// It is another one than the one that had its sequence and changed something.
    FalseRetry,
    /// Its sequence is neither the current nor the next one.
    Misordered,
}

/// Decides what a request of this sequence and digest is; `record` is the slot's.
pub fn judge(state: &SlotState, record: Option<&SlotRecord>, sequence: u32, digest: u64) -> Verdict {
    let recorded = |record: &SlotRecord, reply: &Option<Bytes>| match (record.digest == digest, reply) {
        _ if record.reply.is_forgotten() => Verdict::Misordered,
        (false, _) => Verdict::FalseRetry,
        (true, Some(reply)) => Verdict::Kept(reply.clone()),
        (true, None) => Verdict::Recorded,
    };
    match state {
        SlotState::Fresh if sequence == 1 => Verdict::Execute,
        SlotState::Fresh => Verdict::Misordered,
        SlotState::TakenOver => match (ahead(record, sequence), record) {
            (0, Some(record)) => recorded(record, &None),
            (1..WINDOW, _) => Verdict::Execute,
            _ => Verdict::Misordered,
        },
        SlotState::InProgress { sequence: current, .. } if sequence == *current => Verdict::Park,
        SlotState::InProgress { .. } => Verdict::Misordered,
        SlotState::Done { sequence: current, digest: former, reply } => match sequence.wrapping_sub(*current) {
            1 => Verdict::Execute,
            0 => match (record.filter(|record| record.sequence == sequence), reply) {
                (Some(record), reply) => recorded(record, reply),
                (None, Some(reply)) if digest == *former => Verdict::Kept(reply.clone()),
                (None, _) => Verdict::Execute,
            },
            _ => Verdict::Misordered,
        },
    }
}

/// True if a request is to be recorded whether or not it changes something.
pub fn wants_record(record: Option<&SlotRecord>, sequence: u32) -> bool {
    ahead(record, sequence) >= RECORD_SPAN
}

/// S − D.
fn ahead(record: Option<&SlotRecord>, sequence: u32) -> u32 {
    sequence.wrapping_sub(record.map_or(0, |record| record.sequence))
}

/// The digest of a compound: of its arguments behind SEQUENCE, and of its user as the caller names it. The two boxes may run
/// different builds: it never changes. CRC-32C over all in one half; two of them would be one, since CRCs that begin
/// differently tell the same messages apart, so the other half is a product of the user and the arguments' head.
pub fn digest(arguments: &[u8], user: &[u8]) -> u64 {
    let head = &arguments[..arguments.len().min(DIGEST_HEAD_BYTES)];
    let product = [user, head].iter().fold(arguments.len() as u64, |product, bytes| {
        let words = bytes.chunks(size_of::<u64>()).map(|word| {
            let mut padded = [0; size_of::<u64>()];
            padded[..word.len()].copy_from_slice(word);
            u64::from_le_bytes(padded)
        });
        let mixed = words
            .fold(product ^ bytes.len() as u64, |product, word| (product ^ word).wrapping_mul(GOLDEN).rotate_left(29));
        mixed.wrapping_mul(GOLDEN).rotate_left(29)
    });
    let sum = crc32c::crc32c_append(crc32c::crc32c(user), arguments);
    (product ^ product << 32) & !u64::from(u32::MAX) | u64::from(sum)
}

impl Reply {
    /// In place of a result that the client has: its request is never to be executed again.
    pub fn forgotten() -> Self {
        Self { complete: true, ..Self::default() }
    }

    /// True for [`Self::forgotten`]: no compound is complete without an operation.
    pub fn is_forgotten(&self) -> bool {
        self.complete && self.operations_done == 0
    }

    /// True if a record of it is small enough.
    pub fn fits(&self) -> bool {
        self.result.len() <= RESULT_BYTES_MAX && self.resume.len() <= RESUME_BYTES_MAX
    }
}

impl Payload for SlotRecord {
    const VERSION: u32 = 1;

    fn encode(&self, into: &mut Encoder) {
        into.u32(self.sequence);
        into.u64(self.digest);
        into.u32(self.reply.operations_done);
        into.bool(self.reply.complete);
        into.opaque(&self.reply.result);
        into.opaque(&self.reply.resume);
    }

    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let (sequence, digest) = (from.u32()?, from.u64()?);
        let (operations_done, complete) = (from.u32()?, from.bool()?);
        let (result, resume) = (from.opaque(RESULT_BYTES_MAX)?, from.opaque(RESUME_BYTES_MAX)?);
        Ok(Self { sequence, digest, reply: Reply { operations_done, complete, result, resume } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::record::PAYLOAD_BYTES_MAX;

    const DIGEST: u64 = 77;

    fn record(sequence: u32) -> SlotRecord {
        SlotRecord { sequence, digest: DIGEST, reply: Reply { operations_done: 3, complete: true, ..Reply::default() } }
    }

    fn done(sequence: u32, reply: Option<&'static [u8]>) -> SlotState {
        SlotState::Done { sequence, digest: DIGEST, reply: reply.map(Bytes::from_static) }
    }

    /// Sequences around everything that could be off by one, and around the wrap.
    fn edges() -> Vec<u32> {
        let around = |value: u32| (0..5).map(move |step| value.wrapping_add(step).wrapping_sub(2));
        [0, 1 << 30, 1 << 31, 3 << 30].into_iter().flat_map(around).collect()
    }

    #[test]
    fn the_first_use_after_a_takeover_follows_the_rule_over_the_whole_circle() {
        for recorded in edges() {
            for ahead in edges() {
                let expected = match ahead {
                    0 => Verdict::Recorded,
                    1..0x8000_0000 => Verdict::Execute,
                    _ => Verdict::Misordered,
                };
                let verdict =
                    judge(&SlotState::TakenOver, Some(&record(recorded)), recorded.wrapping_add(ahead), DIGEST);
                assert_eq!(verdict, expected, "D {recorded} S − D {ahead}");
            }
        }
    }

    #[test]
    fn a_slot_without_a_record_counts_as_recorded_at_zero() {
        for (sequence, expected) in [
            (0, Verdict::Misordered),
            (1, Verdict::Execute),
            (u32::MAX / 2, Verdict::Execute),
            (1 << 31, Verdict::Misordered),
            (u32::MAX, Verdict::Misordered),
        ] {
            assert_eq!(judge(&SlotState::TakenOver, None, sequence, DIGEST), expected, "{sequence}");
        }
    }

    #[test]
    fn a_slot_in_use_is_strict_over_the_whole_circle() {
        for current in edges() {
            for ahead in edges() {
                let sequence = current.wrapping_add(ahead);
                let expected = |at_current: Verdict| match ahead {
                    0 => at_current,
                    1 => Verdict::Execute,
                    _ => Verdict::Misordered,
                };
                let far = record(current.wrapping_sub(9));
                for (state, record, at_current) in [
                    (done(current, None), Some(record(current)), Verdict::Recorded),
                    (done(current, Some(b"all")), Some(record(current)), Verdict::Kept(Bytes::from_static(b"all"))),
                    (done(current, None), Some(far.clone()), Verdict::Execute),
                    (done(current, Some(b"all")), Some(far), Verdict::Kept(Bytes::from_static(b"all"))),
                    (done(current, None), None, Verdict::Execute),
                ] {
                    let verdict = judge(&state, record.as_ref(), sequence, DIGEST);
                    assert_eq!(verdict, expected(at_current), "current {current} ahead {ahead} {record:?}");
                }
                let busy = SlotState::InProgress { sequence: current, digest: DIGEST };
                let parked = if ahead == 0 { Verdict::Park } else { Verdict::Misordered };
                assert_eq!(judge(&busy, None, sequence, DIGEST), parked);
            }
        }
    }

    #[test]
    fn a_fresh_slot_begins_with_one() {
        for sequence in edges() {
            let expected = if sequence == 1 { Verdict::Execute } else { Verdict::Misordered };
            assert_eq!(judge(&SlotState::Fresh, None, sequence, DIGEST), expected, "{sequence}");
        }
    }

    #[test]
    fn another_request_gets_no_answer_that_is_not_its_own() {
        let other = DIGEST + 1;
        for (state, record, expected) in [
            (SlotState::TakenOver, Some(record(5)), Verdict::FalseRetry),
            (done(5, None), Some(record(5)), Verdict::FalseRetry),
            (done(5, Some(b"all")), Some(record(5)), Verdict::FalseRetry),
            (done(5, Some(b"all")), Some(record(4)), Verdict::Execute),
            (done(5, None), None, Verdict::Execute),
            (SlotState::InProgress { sequence: 5, digest: DIGEST }, Some(record(4)), Verdict::Park),
        ] {
            assert_eq!(judge(&state, record.as_ref(), 5, other), expected, "{state:?}");
        }
    }

    #[test]
    fn a_slot_that_only_reads_is_recorded_before_a_takeover_would_refuse_it() {
        for recorded in edges() {
            let record = record(recorded);
            assert!(!wants_record(Some(&record), recorded.wrapping_add(RECORD_SPAN - 1)));
            assert!(wants_record(Some(&record), recorded.wrapping_add(RECORD_SPAN)));
            assert!(wants_record(Some(&record), recorded.wrapping_add(WINDOW - 1)));
        }
        assert!(!wants_record(None, 1));
        assert!(wants_record(None, RECORD_SPAN));
    }

    #[test]
    fn the_largest_record_fits_and_larger_ones_are_known() {
        let (result, resume) = (vec![1; RESULT_BYTES_MAX].into(), vec![2; RESUME_BYTES_MAX].into());
        let reply = Reply { operations_done: u32::MAX, complete: false, result, resume };
        assert!(reply.fits());
        let record = SlotRecord { sequence: u32::MAX, digest: u64::MAX, reply };
        let payload = record.to_payload();
        assert!(payload.len() <= PAYLOAD_BYTES_MAX, "{}", payload.len());
        assert_eq!(SlotRecord::from_payload(&payload), Ok(record.clone()));
        let larger = Reply { result: vec![1; RESULT_BYTES_MAX + 1].into(), ..record.reply };
        assert!(!larger.fits());
        assert!(SlotRecord::from_payload(&SlotRecord { reply: larger, ..record }.to_payload()).is_err());
    }

    #[test]
    fn digests_tell_arguments_users_and_their_border_apart() {
        let long = vec![7; 5_000];
        let mut other_tail = long.clone();
        other_tail[4_999] = 8;
        let digests = [
            digest(b"", b""),
            digest(b"\0", b""),
            digest(b"a", b""),
            digest(b"", b"a"),
            digest(b"ab", b"c"),
            digest(b"b", b"ca"),
            digest(&long, b"a"),
            digest(&long[1..], b"a"),
            digest(&other_tail, b"a"),
        ];
        for (place, one) in digests.iter().enumerate() {
            assert!(digests[..place].iter().all(|other| other != one), "{place}");
        }
        assert_eq!(digest(b"OPEN file", b"uid 7"), 0x8390_6ff6_2acf_a480, "what both boxes agree on");
    }
}
