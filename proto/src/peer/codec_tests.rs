//! Properties of the frame codec: round trips, damage, cuts, bounds and random bytes.

use super::codec::*;
use super::message::{Envelope, Message, NackReason, Seq, WriteKind};
use super::test_random::Random;
use super::version::ProtocolVersion;
use crate::{BlockRange, Boot, ConfigVersion, DiskId, Epoch, Incarnation, SessionId, Timestamp};

const V1: ProtocolVersion = ProtocolVersion(1);
const BLOCK: u64 = crate::BLOCK_BYTES;

fn envelope() -> Envelope {
    Envelope { epoch: Epoch(3), version: ConfigVersion(u64::MAX), session: SessionId(0x0123_4567_89ab_cdef) }
}

/// Every message, with the length of its payload.
fn every_message() -> Vec<(Message, u64)> {
    let (seq, range) = (Seq(42), BlockRange::new(7, 2));
    let groups = vec![vec![BlockRange::new(1, 1), BlockRange::new(9, 1)], vec![], vec![BlockRange::new(5, 1)]];
    let mut all = vec![
        (Message::Hello { incarnation: Incarnation(1), disk_id: DiskId(2 << 80), stamp: Timestamp(3) }, 0),
        (Message::WriteBatch { seq, groups }, 3 * BLOCK),
        (Message::WriteBatch { seq, groups: vec![] }, 0),
        (Message::Ack { seq }, 0),
        (Message::Flush { seq }, 0),
        (Message::Beacon { number: 8, echo: Timestamp(9) }, 0),
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
        all.push((Message::ResyncData { seq, range, kind }, length));
        for fua in [false, true] {
            all.push((Message::Write { seq, range, kind, fua }, length));
        }
    }
    for flag in [false, true] {
        all.push((Message::BeaconAck { number: 8, granted: flag, stamp: Timestamp(10) }, 0));
        all.push((
            Message::HelloReply {
                incarnation: Incarnation(1),
                boot: Boot(2 << 70),
                disk_id: DiskId(3 << 90),
                last_in_sync: ConfigVersion(4),
                suspect: flag,
                stamp: Timestamp(5),
            },
            0,
        ));
    }
    all
}

/// A whole frame: header, body, payload.
fn frame(message: &Message, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(V1, &envelope(), message, PayloadSum::of(&[payload]), &mut out).expect("a valid message");
    out.extend_from_slice(payload);
    out
}

/// Decodes a whole frame, payload included; `None` when bytes are missing.
fn decode_frame(bytes: &[u8]) -> Result<Option<(Envelope, Message)>, DecodeError> {
    let Decoded::Head(head) = decode(V1, bytes)? else { return Ok(None) };
    let end = head.head_bytes + head.payload.length as usize;
    let Some(payload) = bytes.get(head.head_bytes..end) else { return Ok(None) };
    head.check_payload(payload)?;
    Ok(Some((head.envelope, head.message)))
}

/// Puts a matching checksum on a changed header, as a hostile peer would.
fn reseal(bytes: &mut [u8]) {
    let crc = crc32fast::hash(&bytes[..68]);
    bytes[68..72].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn every_message_round_trips() {
    for (message, length) in every_message() {
        let payload = Random(length).bytes(length as usize);
        let bytes = frame(&message, &payload);
        assert_eq!(decode_frame(&bytes), Ok(Some((envelope(), message))));
    }
}

#[test]
fn every_single_flipped_bit_is_an_error() {
    for (message, length) in every_message() {
        let payload = Random(length).bytes(length as usize);
        let mut bytes = frame(&message, &payload);
        // All of header and body; of a long payload, a spread of bits.
        let step_after = bytes.len() - length as usize;
        let mut bit = 0;
        while bit < bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_frame(&bytes).is_err(), "bit {bit} of {message:?}");
            bytes[bit / 8] ^= 1 << (bit % 8);
            bit += if bit / 8 < step_after { 1 } else { 61 };
        }
    }
}

#[test]
fn every_cut_of_a_frame_asks_for_more_and_tells_how_much() {
    for (message, length) in every_message() {
        let bytes = frame(&message, &vec![7; length as usize]);
        let head = bytes.len() - length as usize;
        for cut in 0..head {
            match decode(V1, &bytes[..cut]) {
                Ok(Decoded::NeedMore { total }) => assert!(total > cut && total <= head, "{cut} {total}"),
                other => panic!("cut at {cut}: {other:?}"),
            }
        }
        assert!(matches!(decode(V1, &bytes[..head]), Ok(Decoded::Head(_))));
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(1);
    for _ in 0..50_000 {
        let length = random.below(200) as usize;
        let bytes = random.bytes(length);
        assert!(decode_frame(&bytes).is_err() || bytes.len() < HEADER_BYTES);
    }
}

#[test]
fn hostile_headers_with_good_checksums_never_panic_and_decode_to_one_encoding() {
    let mut random = Random(2);
    let mut accepted = 0;
    for _ in 0..200_000 {
        let mut bytes = random.bytes(HEADER_BYTES);
        bytes[0..4].copy_from_slice(b"TDPF");
        bytes[4] = 1;
        bytes[5] %= 20;
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
        if let Ok(Decoded::Head(head)) = decode(V1, &bytes) {
            accepted += 1;
            let mut again = Vec::new();
            encode(V1, &head.envelope, &head.message, head.payload, &mut again).expect("decoded, so valid");
            assert_eq!(again, bytes);
        }
    }
    assert!(accepted > 100, "the test must reach past the checks: {accepted}");
}

#[test]
fn hostile_batch_bodies_never_panic() {
    let mut random = Random(4);
    let message = Message::WriteBatch { seq: Seq(1), groups: vec![vec![BlockRange::new(1, 1); 3], vec![]] };
    let clean = frame(&message, &vec![0; 3 * BLOCK as usize]);
    let head = clean.len() - 3 * BLOCK as usize;
    for _ in 0..100_000 {
        let mut bytes = clean[..head].to_vec();
        for _ in 0..1 + random.below(4) {
            let at = HEADER_BYTES + random.below((head - HEADER_BYTES - 4) as u64) as usize;
            bytes[at] = random.next() as u8;
        }
        let crc = crc32fast::hash(&bytes[HEADER_BYTES..head - 4]);
        bytes[head - 4..].copy_from_slice(&crc.to_le_bytes());
        if let Ok(Decoded::Head(found)) = decode(V1, &bytes) {
            assert_eq!(found.payload.length, 3 * BLOCK);
        }
    }
}

#[test]
fn lengths_over_the_bounds_are_refused_before_anything_is_waited_for() {
    let mut bytes = frame(&Message::ResyncBegin, &[]);
    bytes[12..16].copy_from_slice(&(PAYLOAD_BYTES_MAX as u32 + 1).to_le_bytes());
    reseal(&mut bytes);
    assert_eq!(decode(V1, &bytes), Err(Invalid::PayloadTooLong { bytes: PAYLOAD_BYTES_MAX + 1 }.into()));

    let mut bytes = frame(&Message::WriteBatch { seq: Seq(1), groups: vec![] }, &[]);
    bytes[8..12].copy_from_slice(&(BODY_BYTES_MAX as u32 + 1).to_le_bytes());
    reseal(&mut bytes);
    assert!(matches!(decode(V1, &bytes), Err(DecodeError::BodyLength { .. })));

    let mut bytes = frame(&Message::ResyncBegin, &[]);
    bytes[8..12].copy_from_slice(&8u32.to_le_bytes());
    reseal(&mut bytes);
    assert!(matches!(decode(V1, &bytes), Err(DecodeError::BodyLength { .. })));
}

#[test]
fn unknown_types_kinds_versions_and_stray_fields_are_typed_errors() {
    let resealed = |at: usize, value: u8| {
        let mut bytes = frame(&Message::Nack { reason: NackReason::NotYet }, &[]);
        bytes[at] = value;
        reseal(&mut bytes);
        decode(V1, &bytes).unwrap_err()
    };
    assert_eq!(resealed(5, 99), DecodeError::UnknownType { found: 99 });
    assert_eq!(resealed(5, 0), DecodeError::UnknownType { found: 0 });
    assert_eq!(resealed(7, 9), DecodeError::UnknownKind { found: 9, message_type: 3 });
    assert_eq!(resealed(4, 2), DecodeError::Version { found: 2, agreed: 1 });
    assert_eq!(resealed(6, 1), DecodeError::NotCanonical { message_type: 3 });
    assert_eq!(resealed(50, 1), DecodeError::NotCanonical { message_type: 3 });
    assert_eq!(resealed(64, 1), DecodeError::NotCanonical { message_type: 3 });
    assert!(matches!(decode(V1, b"GET "), Err(DecodeError::Magic { .. })));
    assert!(matches!(decode(V1, b"G"), Err(DecodeError::Magic { .. })));
}

#[test]
fn ranges_and_payloads_that_do_not_fit_each_other_are_refused() {
    let try_encode = |message: &Message, length: u64| {
        let mut out = vec![1, 2, 3];
        let result = encode(V1, &envelope(), message, PayloadSum { length, crc: 0 }, &mut out);
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

    let digest = |count| Message::DigestRequest { seq: Seq(1), range: BlockRange { start: 0, count } };
    assert!(try_encode(&digest(PAYLOAD_BYTES_MAX / DIGEST_BYTES), 0).is_ok());
    assert!(try_encode(&digest(PAYLOAD_BYTES_MAX / DIGEST_BYTES + 1), 0).is_err());
    assert!(try_encode(&digest(u64::MAX / BLOCK), 0).is_err());
    assert!(try_encode(&Message::Ack { seq: Seq(1) }, 1).is_err());
}

#[test]
fn a_batch_at_its_bounds_passes_and_one_over_does_not() {
    let batch = |groups| Message::WriteBatch { seq: Seq(1), groups };
    let full = vec![vec![BlockRange::new(1, 1); RANGES_MAX]];
    let mut out = Vec::new();
    let sum = PayloadSum { length: PAYLOAD_BYTES_MAX, crc: 5 };
    encode(V1, &envelope(), &batch(full.clone()), sum, &mut out).unwrap();
    assert!(out.len() <= HEADER_BYTES + BODY_BYTES_MAX);
    assert!(matches!(decode(V1, &out), Ok(Decoded::Head(head)) if head.message == batch(full)));

    let mut over = vec![vec![BlockRange::new(1, 1); RANGES_MAX]];
    over.push(vec![BlockRange::new(1, 1)]);
    let refused = encode(V1, &envelope(), &batch(over), sum, &mut out);
    assert_eq!(refused, Err(Invalid::TooManyRanges { found: RANGES_MAX + 1 }));
    let refused = encode(V1, &envelope(), &batch(vec![vec![]; GROUPS_MAX + 1]), PayloadSum::default(), &mut out);
    assert_eq!(refused, Err(Invalid::TooManyGroups { found: GROUPS_MAX + 1 }));
}
