//! Properties of the frame codec under every version: round trips, damage, cuts, bounds and random bytes.

mod versions;

use super::codec::*;
use super::message::{Envelope, Message, NackReason, Seq, UNCERTAIN_RUNS_MAX, Uncertain, Worth, WriteKind};
use super::test_random::Random;
use super::version::ProtocolVersion;
use crate::checksum::Salt;
use crate::{BlockRange, Boot, ConfigVersion, DiskId, Epoch, Incarnation, SessionId, Timestamp, VolumeId};

const V1: ProtocolVersion = ProtocolVersion(1);
const V2: ProtocolVersion = ProtocolVersion(2);
const BLOCK: u64 = crate::BLOCK_BYTES;

fn envelope() -> Envelope {
    Envelope { epoch: Epoch(3), version: ConfigVersion(u64::MAX), session: SessionId(0x0123_4567_89ab_cdef) }
}

fn salt() -> Salt {
    Salt::of(VolumeId(0x5eed << 70 | 9))
}

fn hello_reply(suspect: bool, uncertain: Uncertain) -> Message {
    Message::HelloReply {
        incarnation: Incarnation(1),
        boot: Boot(2 << 70),
        disk_id: DiskId(3 << 90),
        last_in_sync: ConfigVersion(4),
        suspect,
        stamp: Timestamp(5),
        uncertain,
    }
}

fn batch() -> Message {
    let groups = vec![vec![BlockRange::new(1, 1), BlockRange::new(9, 1)], vec![], vec![BlockRange::new(5, 1)]];
    Message::WriteBatch { seq: Seq(42), groups }
}

fn unsound(worth: Worth) -> Message {
    Message::ResyncData { seq: Seq(42), range: BlockRange::new(7, 2), kind: WriteKind::Data, worth }
}

/// Every message of version 1, with the length of its payload.
fn every_message_of_version_1() -> Vec<(Message, u64)> {
    let (seq, range) = (Seq(42), BlockRange::new(7, 2));
    let mut all = vec![
        (Message::Hello { incarnation: Incarnation(1), disk_id: DiskId(2 << 80), stamp: Timestamp(3) }, 0),
        (batch(), 3 * BLOCK),
        (Message::WriteBatch { seq, groups: vec![] }, 0),
        (Message::Ack { seq }, 0),
        (Message::Flush { seq }, 0),
        (Message::Beacon { number: 8, echo: Timestamp(9), settled: Seq(0) }, 0),
        (Message::LeaseRelease { last_beacon: 4 }, 0),
        (Message::ResyncBegin, 0),
        (Message::DigestRequest { seq, range }, 0),
        (Message::Digest { seq, range }, 32),
        (Message::PreSync, 0),
        (Message::PreSyncAck, 0),
        (Message::HandoffPrepare, 0),
        (Message::HandoffReady, 0),
    ];
    for reason in [NackReason::StaleEpoch, NackReason::DiskFailed, NackReason::WrongDisk, NackReason::NotYet] {
        all.push((Message::Nack { reason }, 0));
    }
    for kind in [WriteKind::Data, WriteKind::Zeroes, WriteKind::Discard] {
        let length = if kind == WriteKind::Data { 2 * BLOCK } else { 0 };
        all.push((Message::ResyncData { seq, range, kind, worth: Worth::Sound }, length));
        for fua in [false, true] {
            all.push((Message::Write { seq, range, kind, fua }, length));
        }
    }
    for flag in [false, true] {
        all.push((Message::BeaconAck { number: 8, granted: flag, stamp: Timestamp(10) }, 0));
        all.push((hello_reply(flag, Uncertain::All), 0));
    }
    all
}

/// What only version 2 can say.
fn every_message_new_in_version_2() -> Vec<(Message, u64)> {
    let (seq, range) = (Seq(42), BlockRange::new(7, 2));
    vec![
        (Message::Heat { extents: vec![0, 9, u64::MAX] }, 0),
        (Message::Heat { extents: vec![] }, 0),
        (Message::ReadRequest { seq, range }, 0),
        (Message::ReadReply { seq, range }, 2 * BLOCK),
        (Message::ReadFailed { seq, bad: vec![BlockRange::new(7, 1), BlockRange::new(1 << 40, 3)] }, 0),
        (Message::SumsRequest { seq, range }, 0),
        (Message::Sums { seq, range }, 8),
        (unsound(Worth::Bad), 2 * BLOCK),
        (unsound(Worth::Lost), 2 * BLOCK),
    ]
}

/// Every message that the version can say, with every field that it has.
fn every_message(protocol: ProtocolVersion) -> Vec<(Message, u64)> {
    let mut all = every_message_of_version_1();
    if protocol >= V2 {
        all.extend(every_message_new_in_version_2());
        all.push((Message::Beacon { number: 8, echo: Timestamp(9), settled: Seq(u64::MAX) }, 0));
        all.push((hello_reply(true, Uncertain::Runs(vec![])), 0));
        all.push((hello_reply(false, Uncertain::Runs(vec![(0, 1), (1, 4), (u32::MAX - 1, 1)])), 0));
    }
    all
}

fn payload_for(message: &Message, length: u64) -> Vec<u8> {
    Random(length ^ format!("{message:?}").len() as u64).bytes(length as usize)
}

/// The checksums that travel with the payload; of blocks that are bad, ones that do not fit.
fn sums_for(protocol: ProtocolVersion, message: &Message, payload: &[u8]) -> Vec<u32> {
    let ranges = match message {
        _ if !carries_sums(protocol, message) => vec![],
        Message::Write { range, .. } | Message::ResyncData { range, .. } | Message::ReadReply { range, .. } => {
            vec![*range]
        }
        Message::WriteBatch { groups, .. } => groups.concat(),
        other => panic!("no data in {other:?}"),
    };
    let blocks = ranges.into_iter().flat_map(BlockRange::blocks);
    let sums = blocks.zip(payload.chunks(BLOCK as usize)).map(|(block, data)| salt().sum(block, data));
    let bad = matches!(message, Message::ResyncData { worth: Worth::Bad | Worth::Lost, .. });
    sums.map(|sum| if bad { !sum } else { sum }).collect()
}

/// A whole frame: header, body, payload.
fn frame(protocol: ProtocolVersion, message: &Message, payload: &[u8]) -> Vec<u8> {
    let sum = PayloadSum::for_message(protocol, message, &[payload]);
    let sums = sums_for(protocol, message, payload);
    let mut out = Vec::new();
    encode(protocol, &envelope(), message, sum, &sums, &mut out).expect("a valid message");
    out.extend_from_slice(payload);
    out
}

/// Decodes a whole frame, payload included; `None` when bytes are missing.
fn decode_frame(protocol: ProtocolVersion, bytes: &[u8]) -> Result<Option<FrameHead>, DecodeError> {
    let Decoded::Head(head) = decode(protocol, bytes)? else { return Ok(None) };
    let end = head.head_bytes + head.payload.length as usize;
    let Some(payload) = bytes.get(head.head_bytes..end) else { return Ok(None) };
    head.check_payload(salt(), payload)?;
    Ok(Some(head))
}

/// Header and body of a decoded frame as its own encoder writes them.
fn encoded_again(protocol: ProtocolVersion, head: &FrameHead) -> Vec<u8> {
    let mut out = Vec::new();
    encode(protocol, &head.envelope, &head.message, head.payload, &head.sums, &mut out).expect("decoded, so valid");
    out
}

/// Puts a matching checksum on a changed header, as a hostile peer would.
fn reseal(bytes: &mut [u8]) {
    let crc = crc32fast::hash(&bytes[..68]);
    bytes[68..72].copy_from_slice(&crc.to_le_bytes());
}

/// Puts a matching checksum on a changed body, which ends where the bytes end.
fn reseal_body(bytes: &mut [u8]) {
    let end = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[HEADER_BYTES..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn every_message_round_trips_under_both_versions() {
    for protocol in [V1, V2] {
        for (message, length) in every_message(protocol) {
            let payload = payload_for(&message, length);
            let bytes = frame(protocol, &message, &payload);
            let head = decode_frame(protocol, &bytes).expect("a good frame").expect("a whole one");
            assert_eq!((head.envelope, &head.message), (envelope(), &message));
            assert_eq!(head.sums.to_vec(), sums_for(protocol, &message, &payload));
            assert_eq!(encoded_again(protocol, &head), bytes[..head.head_bytes]);
        }
    }
}

#[test]
fn every_single_flipped_bit_is_an_error() {
    for protocol in [V1, V2] {
        for (message, length) in every_message(protocol) {
            let mut bytes = frame(protocol, &message, &payload_for(&message, length));
            // All of header and body; of a long payload, a spread of bits.
            let step_after = bytes.len() - length as usize;
            let mut bit = 0;
            while bit < bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(decode_frame(protocol, &bytes).is_err(), "bit {bit} of {message:?}");
                bytes[bit / 8] ^= 1 << (bit % 8);
                bit += if bit / 8 < step_after { 1 } else { 61 };
            }
        }
    }
}

#[test]
fn every_cut_of_a_frame_asks_for_more_and_tells_how_much() {
    for protocol in [V1, V2] {
        for (message, length) in every_message(protocol) {
            let bytes = frame(protocol, &message, &vec![7; length as usize]);
            let head = bytes.len() - length as usize;
            for cut in 0..head {
                match decode(protocol, &bytes[..cut]) {
                    Ok(Decoded::NeedMore { total }) => assert!(total > cut && total <= head, "{cut} {total}"),
                    other => panic!("cut at {cut}: {other:?}"),
                }
            }
            assert!(matches!(decode(protocol, &bytes[..head]), Ok(Decoded::Head(_))));
        }
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(1);
    for round in 0..100_000 {
        let protocol = if round % 2 == 0 { V1 } else { V2 };
        let length = random.below(200) as usize;
        let bytes = random.bytes(length);
        assert!(decode_frame(protocol, &bytes).is_err() || bytes.len() < HEADER_BYTES);
    }
}

#[test]
fn hostile_headers_with_good_checksums_never_panic_and_decode_to_one_encoding() {
    for protocol in [V1, V2] {
        let mut random = Random(2);
        let mut accepted = 0;
        for _ in 0..200_000 {
            let mut bytes = random.bytes(HEADER_BYTES);
            bytes[0..4].copy_from_slice(b"TDPF");
            bytes[4] = protocol.0 as u8;
            bytes[5] %= 26;
            for byte in &mut bytes[6..64] {
                // Mostly zeros, so that many headers come close to valid ones.
                if random.below(8) != 0 {
                    *byte = 0;
                }
            }
            if random.below(2) == 0 {
                bytes[64..68].fill(0);
            }
            reseal(&mut bytes);
            if let Ok(Decoded::Head(head)) = decode(protocol, &bytes) {
                accepted += 1;
                assert_eq!(encoded_again(protocol, &head), bytes);
            }
        }
        assert!(accepted > 100, "the test must reach past the checks: {accepted}");
    }
}

#[test]
fn hostile_bodies_with_good_checksums_never_panic_and_decode_to_one_encoding() {
    let mut random = Random(4);
    for protocol in [V1, V2] {
        for (message, length) in every_message(protocol) {
            let clean = frame(protocol, &message, &payload_for(&message, length));
            let head = clean.len() - length as usize;
            if head == HEADER_BYTES {
                continue;
            }
            let mut accepted = 0;
            for _ in 0..5_000 {
                let mut bytes = clean[..head].to_vec();
                for _ in 0..1 + random.below(4) {
                    let at = HEADER_BYTES + random.below((head - HEADER_BYTES - 4) as u64) as usize;
                    // Small numbers and all ones come closest to counts that could be true.
                    bytes[at] = [random.next() as u8, random.below(4) as u8, u8::MAX][random.below(3) as usize];
                }
                reseal_body(&mut bytes);
                if let Ok(Decoded::Head(found)) = decode(protocol, &bytes) {
                    accepted += 1;
                    assert_eq!(encoded_again(protocol, &found), bytes);
                }
            }
            assert!(accepted > 0, "the test must reach past the checks: {message:?}");
        }
    }
}

#[test]
fn lengths_over_the_bounds_are_refused_before_anything_is_waited_for() {
    let mut bytes = frame(V2, &Message::ResyncBegin, &[]);
    bytes[12..16].copy_from_slice(&(PAYLOAD_BYTES_MAX as u32 + 1).to_le_bytes());
    reseal(&mut bytes);
    assert_eq!(decode(V2, &bytes), Err(Invalid::PayloadTooLong { bytes: PAYLOAD_BYTES_MAX + 1 }.into()));

    let mut bytes = frame(V2, &Message::WriteBatch { seq: Seq(1), groups: vec![] }, &[]);
    bytes[8..12].copy_from_slice(&(BODY_BYTES_MAX as u32 + 1).to_le_bytes());
    reseal(&mut bytes);
    assert!(matches!(decode(V2, &bytes), Err(DecodeError::BodyLength { .. })));

    let mut bytes = frame(V2, &Message::ResyncBegin, &[]);
    bytes[8..12].copy_from_slice(&8u32.to_le_bytes());
    reseal(&mut bytes);
    assert!(matches!(decode(V2, &bytes), Err(DecodeError::BodyLength { .. })));
}

#[test]
fn unknown_types_kinds_versions_and_stray_fields_are_typed_errors() {
    let resealed = |at: usize, value: u8| {
        let mut bytes = frame(V2, &Message::Nack { reason: NackReason::NotYet }, &[]);
        bytes[at] = value;
        reseal(&mut bytes);
        decode(V2, &bytes).unwrap_err()
    };
    assert_eq!(resealed(5, 99), DecodeError::UnknownType { found: 99 });
    assert_eq!(resealed(5, 0), DecodeError::UnknownType { found: 0 });
    assert_eq!(resealed(7, 9), DecodeError::UnknownKind { found: 9, message_type: 3 });
    assert_eq!(resealed(4, 1), DecodeError::Version { found: 1, agreed: 2 });
    assert_eq!(resealed(6, 1), DecodeError::NotCanonical { message_type: 3 });
    assert_eq!(resealed(50, 1), DecodeError::NotCanonical { message_type: 3 });
    assert_eq!(resealed(64, 1), DecodeError::NotCanonical { message_type: 3 });
    assert!(matches!(decode(V2, b"GET "), Err(DecodeError::Magic { .. })));
    assert!(matches!(decode(V2, b"G"), Err(DecodeError::Magic { .. })));
}

#[test]
fn ranges_and_payloads_that_do_not_fit_each_other_are_refused() {
    let try_encode = |message: &Message, length: u64| {
        let mut out = vec![1, 2, 3];
        let blocks = if carries_sums(V2, message) { length / BLOCK } else { 0 };
        let sums = vec![0; blocks as usize];
        let result = encode(V2, &envelope(), message, PayloadSum::length_only(length), &sums, &mut out);
        assert!(result.is_ok() || out == [1, 2, 3], "a refused message leaves nothing behind");
        result
    };
    let write = |start, count| Message::Write {
        seq: Seq(1),
        range: BlockRange { start, count },
        kind: WriteKind::Data,
        fua: false,
    };
    assert_eq!(try_encode(&write(0, 2), BLOCK), Err(Invalid::PayloadLength { expected: 2 * BLOCK, found: BLOCK }));
    assert_eq!(try_encode(&write(5, 0), 0), Err(Invalid::EmptyRange { start: 5 }));
    assert!(matches!(try_encode(&write(u64::MAX, 1), BLOCK), Err(Invalid::RangeOverflow { .. })));
    assert!(matches!(try_encode(&write(u64::MAX / BLOCK, 1), BLOCK), Err(Invalid::RangeOverflow { .. })));
    assert!(try_encode(&write(u64::MAX / BLOCK - 1, 1), BLOCK).is_ok());
    let too_long = RANGES_MAX as u64 + 1;
    assert!(matches!(try_encode(&write(0, too_long), too_long * BLOCK), Err(Invalid::PayloadTooLong { .. })));
    assert!(try_encode(&write(0, RANGES_MAX as u64), PAYLOAD_BYTES_MAX).is_ok());

    let range = |count| BlockRange { start: 0, count };
    let digest = |count| Message::DigestRequest { seq: Seq(1), range: range(count) };
    let sums = |count| Message::SumsRequest { seq: Seq(1), range: range(count) };
    let read = |count| Message::ReadRequest { seq: Seq(1), range: range(count) };
    assert!(try_encode(&digest(PAYLOAD_BYTES_MAX / DIGEST_BYTES), 0).is_ok());
    assert!(try_encode(&digest(PAYLOAD_BYTES_MAX / DIGEST_BYTES + 1), 0).is_err());
    assert!(try_encode(&sums(PAYLOAD_BYTES_MAX / SUM_BYTES), 0).is_ok());
    assert!(try_encode(&sums(PAYLOAD_BYTES_MAX / SUM_BYTES + 1), 0).is_err());
    assert!(try_encode(&read(RANGES_MAX as u64), 0).is_ok());
    assert!(try_encode(&read(RANGES_MAX as u64 + 1), 0).is_err());
    for huge in [digest(u64::MAX / BLOCK), sums(u64::MAX / BLOCK), read(u64::MAX / BLOCK)] {
        assert!(try_encode(&huge, 0).is_err());
    }
    assert!(try_encode(&Message::Ack { seq: Seq(1) }, 1).is_err());
    assert!(try_encode(&Message::Sums { seq: Seq(1), range: range(2) }, 4).is_err());
    assert!(try_encode(&Message::ReadReply { seq: Seq(1), range: range(2) }, BLOCK).is_err());
    assert!(try_encode(&Message::ReadFailed { seq: Seq(1), bad: vec![range(0)] }, 0).is_err());
    for kind in [WriteKind::Zeroes, WriteKind::Discard] {
        let hole = Message::ResyncData { seq: Seq(1), range: range(2), kind, worth: Worth::Bad };
        assert_eq!(try_encode(&hole, 0), Err(Invalid::UnsoundWithoutData));
    }
}

/// A message, and the same one with one element more than its list may have.
fn lists_at_their_bounds() -> Vec<(Message, Message, Invalid)> {
    let seq = Seq(1);
    let block = |start| BlockRange::new(start as u64, 1);
    let batch = |ranges: usize| Message::WriteBatch { seq, groups: vec![(0..ranges).map(block).collect()] };
    let failed = |ranges: usize| Message::ReadFailed { seq, bad: (0..ranges).map(block).collect() };
    let heat = |extents: usize| Message::Heat { extents: (0..extents as u64).collect() };
    let reply = |runs: usize| hello_reply(true, Uncertain::Runs((0..runs as u32).map(|n| (2 * n, 1)).collect()));
    let groups = |groups: usize| Message::WriteBatch { seq, groups: vec![vec![]; groups] };
    vec![
        (batch(RANGES_MAX), batch(RANGES_MAX + 1), Invalid::TooManyRanges { found: RANGES_MAX + 1 }),
        (groups(GROUPS_MAX), groups(GROUPS_MAX + 1), Invalid::TooManyGroups { found: GROUPS_MAX + 1 }),
        (failed(RANGES_MAX), failed(RANGES_MAX + 1), Invalid::TooManyRanges { found: RANGES_MAX + 1 }),
        (heat(HEAT_EXTENTS_MAX), heat(HEAT_EXTENTS_MAX + 1), Invalid::TooManyExtents { found: HEAT_EXTENTS_MAX + 1 }),
        (
            reply(UNCERTAIN_RUNS_MAX),
            reply(UNCERTAIN_RUNS_MAX + 1),
            Invalid::TooManyRuns { found: UNCERTAIN_RUNS_MAX + 1 },
        ),
    ]
}

#[test]
fn a_list_at_its_bound_passes_and_one_over_does_not() {
    for (full, over, refusal) in lists_at_their_bounds() {
        let length = match &full {
            Message::WriteBatch { groups, .. } => groups.concat().len() as u64 * BLOCK,
            _ => 0,
        };
        let sums = vec![7; (length / BLOCK) as usize];
        let mut out = Vec::new();
        encode(V2, &envelope(), &full, PayloadSum::length_only(length), &sums, &mut out).expect("within its bound");
        assert!(out.len() <= HEADER_BYTES + BODY_BYTES_MAX);
        assert!(matches!(decode(V2, &out), Ok(Decoded::Head(head)) if head.message == full));
        let before = out.clone();
        let refused = encode(V2, &envelope(), &over, PayloadSum::length_only(length), &sums, &mut out);
        assert_eq!((refused, out == before), (Err(refusal), true));
    }
}

#[test]
fn counts_over_the_bounds_are_refused_when_they_come_off_the_wire() {
    for (full, _, refusal) in lists_at_their_bounds() {
        let (at, bound, small) = match (&full, refusal) {
            (Message::WriteBatch { .. }, Invalid::TooManyGroups { .. }) => {
                (0, GROUPS_MAX, Message::WriteBatch { seq: Seq(1), groups: vec![] })
            }
            (Message::WriteBatch { .. }, _) => {
                (4, RANGES_MAX, Message::WriteBatch { seq: Seq(1), groups: vec![vec![]] })
            }
            (Message::ReadFailed { .. }, _) => (0, RANGES_MAX, Message::ReadFailed { seq: Seq(1), bad: vec![] }),
            (Message::Heat { .. }, _) => (0, HEAT_EXTENTS_MAX, Message::Heat { extents: vec![] }),
            _ => (56, UNCERTAIN_RUNS_MAX, hello_reply(true, Uncertain::Runs(vec![]))),
        };
        let mut bytes = frame(V2, &small, &[]);
        bytes[HEADER_BYTES + at..][..4].copy_from_slice(&(bound as u32 + 1).to_le_bytes());
        reseal_body(&mut bytes);
        assert_eq!(decode(V2, &bytes), Err(refusal.into()), "{small:?}");
    }
}

#[test]
fn uncertain_runs_are_in_order_and_do_not_overlap() {
    let try_both = |runs: Vec<(u32, u32)>| {
        let message = hello_reply(true, Uncertain::Runs(runs.clone()));
        let encoded = encode(V2, &envelope(), &message, PayloadSum::default(), &[], &mut Vec::new());
        // The same runs off the wire, put into a frame that was valid.
        let valid = Uncertain::Runs((0..runs.len() as u32).map(|n| (2 * n, 1)).collect());
        let mut bytes = frame(V2, &hello_reply(true, valid), &[]);
        for (place, (first, count)) in runs.into_iter().enumerate() {
            bytes[HEADER_BYTES + 60 + 8 * place..][..4].copy_from_slice(&first.to_le_bytes());
            bytes[HEADER_BYTES + 64 + 8 * place..][..4].copy_from_slice(&count.to_le_bytes());
        }
        reseal_body(&mut bytes);
        assert_eq!(decode(V2, &bytes).map(|_| ()), encoded.map_err(DecodeError::from));
        encoded
    };
    assert_eq!(
        try_both(vec![(0, 1), (1, 1), (5, 10), (u32::MAX, 0)]),
        Err(Invalid::BadRun { first: u32::MAX, count: 0 })
    );
    assert_eq!(try_both(vec![(0, 1), (1, 1), (5, 10), (u32::MAX - 1, 1)]), Ok(()));
    assert_eq!(try_both(vec![(5, 2), (6, 1)]), Err(Invalid::BadRun { first: 6, count: 1 }));
    assert_eq!(try_both(vec![(5, 2), (1, 1)]), Err(Invalid::BadRun { first: 1, count: 1 }));
    assert_eq!(try_both(vec![(5, 2), (5, 2)]), Err(Invalid::BadRun { first: 5, count: 2 }));
    assert_eq!(try_both(vec![(u32::MAX, 1)]), Err(Invalid::BadRun { first: u32::MAX, count: 1 }));
}
