//! Where the two versions differ: old bytes that stay what they were, fields left out, checksums of blocks.

use super::*;

/// Bytes from hexadecimal digits; anything else between them is for the reader.
fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// Header and body of version 1 messages, as the release that spoke nothing else wrote them. The payloads are of 0x5a.
fn version_1_bytes() -> Vec<(Message, u64, Vec<u8>)> {
    // Epoch, version and session are the same in all of them.
    let bytes =
        |start: &str, rest: &str| unhex(&format!("{start} 0300000000000000 ffffffffffffffff efcdab8967452301 {rest}"));
    let (seq, range) = (Seq(42), BlockRange::new(7, 2));
    let resync = |kind| Message::ResyncData { seq, range, kind, worth: Worth::Sound };
    let span = "2a00000000000000 0700000000000000 0200000000000000";
    vec![
        (
            hello_reply(true, Uncertain::All),
            0,
            bytes(
                "54445046 01 02 01 00 3c000000 00000000",
                "0000000000000000 0000000000000000 0000000000000000 00000000 509fdf25
                 0100000000000000 00000000000000008000000000000000 00000000000000000000000c00000000
                 0400000000000000 0500000000000000 44ff7baf",
            ),
        ),
        (
            Message::Write { seq, range, kind: WriteKind::Data, fua: true },
            2 * BLOCK,
            bytes("54445046 01 04 01 01 00000000 00200000", &format!("{span} 496e88de dd6519a8")),
        ),
        (
            batch(),
            3 * BLOCK,
            bytes(
                "54445046 01 05 00 00 44000000 00300000",
                "2a00000000000000 0000000000000000 0000000000000000 34bf0a0e 88d8f018
                 03000000 02000000 0100000000000000 0100000000000000 0900000000000000 0100000000000000
                 00000000 01000000 0500000000000000 0100000000000000 400728a6",
            ),
        ),
        (
            Message::Beacon { number: 8, echo: Timestamp(9), settled: Seq(0) },
            0,
            bytes(
                "54445046 01 08 00 00 00000000 00000000",
                "0800000000000000 0900000000000000 0000000000000000 00000000 69de587f",
            ),
        ),
        (
            Message::Digest { seq, range },
            32,
            bytes("54445046 01 0d 00 00 00000000 20000000", &format!("{span} 23d13991 3b9240c5")),
        ),
        (
            resync(WriteKind::Data),
            2 * BLOCK,
            bytes("54445046 01 0e 00 01 00000000 00200000", &format!("{span} 496e88de 360c6c57")),
        ),
        (
            resync(WriteKind::Discard),
            0,
            bytes("54445046 01 0e 00 03 00000000 00000000", &format!("{span} 00000000 c3fdc201")),
        ),
    ]
}

#[test]
fn the_bytes_of_version_1_are_what_they_were() {
    for (message, length, head) in version_1_bytes() {
        let payload = vec![0x5a; length as usize];
        let bytes = frame(V1, &message, &payload);
        assert_eq!(bytes, [head, payload].concat(), "{message:?}");
        let decoded = decode_frame(V1, &bytes).expect("a good frame").expect("a whole one");
        assert_eq!((decoded.message, decoded.sums.len()), (message, 0));
    }
}

#[test]
fn version_1_leaves_out_what_it_has_no_field_for() {
    let through_version_1 = |message: &Message| {
        let bytes = frame(V1, message, &[]);
        decode_frame(V1, &bytes).expect("a good frame").expect("a whole one").message
    };
    let beacon = |settled| Message::Beacon { number: 8, echo: Timestamp(9), settled };
    assert_eq!(through_version_1(&beacon(Seq(77))), beacon(Seq(0)));
    let runs = Uncertain::Runs(vec![(3, 4)]);
    assert_eq!(through_version_1(&hello_reply(true, runs)), hello_reply(true, Uncertain::All));

    let write = Message::Write { seq: Seq(1), range: BlockRange::new(7, 1), kind: WriteKind::Data, fua: false };
    let payload = Random(1).bytes(BLOCK as usize);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let sum = PayloadSum::for_message(V1, &write, &[&payload]);
    assert_eq!(sum, PayloadSum::of(&[&payload]), "version 1 needs the payload's own CRC");
    encode(V1, &envelope(), &write, sum, &[], &mut without).expect("valid");
    encode(V1, &envelope(), &write, sum, &[1, 2, 3], &mut with).expect("valid");
    assert_eq!(without, with);
}

#[test]
fn what_only_version_2_can_say_is_refused_by_version_1_in_both_directions() {
    for (message, length) in every_message_new_in_version_2() {
        let sum = PayloadSum::length_only(length);
        let mut out = vec![1, 2, 3];
        let refused = encode(V1, &envelope(), &message, sum, &[], &mut out);
        assert!(matches!(refused, Err(Invalid::NotInVersion { protocol: 1, .. })), "{message:?}: {refused:?}");
        assert_eq!(out, [1, 2, 3]);

        let mut bytes = frame(V2, &message, &payload_for(&message, length));
        bytes[4] = 1;
        reseal(&mut bytes);
        assert!(decode(V1, &bytes).is_err(), "{message:?}");
    }
    // The new fields alone, in frames that are otherwise of version 1.
    for (at, message) in [
        (
            6,
            Message::ResyncData {
                seq: Seq(1),
                range: BlockRange::new(7, 1),
                kind: WriteKind::Discard,
                worth: Worth::Sound,
            },
        ),
        (56, Message::Beacon { number: 8, echo: Timestamp(9), settled: Seq(0) }),
    ] {
        let mut bytes = frame(V1, &message, &[]);
        let message_type = bytes[5];
        bytes[at] = 1;
        reseal(&mut bytes);
        assert_eq!(decode(V1, &bytes), Err(DecodeError::NotCanonical { message_type }));
    }
}

/// The messages that bring data, with the length of their payload.
fn messages_with_data() -> Vec<(Message, u64)> {
    let with_data = |(message, _): &(Message, u64)| carries_sums(V2, message);
    let all: Vec<_> = every_message(V2).into_iter().filter(with_data).filter(|(_, length)| *length > 0).collect();
    assert_eq!(all.len(), 7, "write twice, batch, resync data thrice, read reply");
    all
}

#[test]
fn data_comes_with_one_checksum_per_block_in_version_2_and_nothing_else_does() {
    for (message, length) in messages_with_data() {
        assert!(!carries_sums(V1, &message));
        let blocks = (length / BLOCK) as usize;
        for found in [0, blocks - 1, blocks + 1] {
            let refused =
                encode(V2, &envelope(), &message, PayloadSum::length_only(length), &vec![0; found], &mut Vec::new());
            assert_eq!(refused, Err(Invalid::SumCount { expected: blocks as u64, found: found as u64 }));
        }
        // One checksum fewer and one more than there are blocks, off the wire.
        let clean = frame(V2, &message, &payload_for(&message, length));
        let head = clean.len() - length as usize;
        for length in [head - 4, head + 4] {
            let mut bytes = clean[..head].to_vec();
            bytes.resize(length, 0);
            bytes[8..12].copy_from_slice(&((length - HEADER_BYTES) as u32).to_le_bytes());
            reseal(&mut bytes);
            reseal_body(&mut bytes);
            assert!(matches!(decode(V2, &bytes), Err(DecodeError::BodyLength { .. })), "{message:?}");
        }
    }
    for (message, length) in every_message(V2) {
        if !carries_sums(V2, &message) {
            let refused = encode(V2, &envelope(), &message, PayloadSum::length_only(length), &[0], &mut Vec::new());
            assert_eq!(refused, Err(Invalid::SumCount { expected: 0, found: 1 }), "{message:?}");
        }
    }
}

#[test]
fn every_block_is_verified_against_its_own_checksum() {
    for (message, length) in messages_with_data()
        .into_iter()
        .filter(|(message, _)| !matches!(message, Message::ResyncData { worth: Worth::Bad | Worth::Lost, .. }))
    {
        let payload = payload_for(&message, length);
        let sum = PayloadSum::for_message(V2, &message, &[&payload]);
        assert_eq!(sum, PayloadSum::length_only(length), "no second pass over the data");
        let bytes = frame(V2, &message, &payload);
        assert_eq!(bytes[64..68], [0; 4]);
        let Ok(Decoded::Head(head)) = decode(V2, &bytes) else { panic!("a good frame: {message:?}") };
        assert_eq!(head.check_payload(salt(), &payload), Ok(()));

        let mut exchanged = payload.clone();
        exchanged.rotate_left(BLOCK as usize);
        assert!(matches!(head.check_payload(salt(), &exchanged), Err(DecodeError::BlockChecksum { .. })));
        let other_volume = Salt::of(VolumeId(1));
        assert!(matches!(head.check_payload(other_volume, &payload), Err(DecodeError::BlockChecksum { .. })));
        let short = &payload[..payload.len() - BLOCK as usize];
        assert!(matches!(head.check_payload(salt(), short), Err(DecodeError::Invalid(_))));

        let mut last_damaged = payload.clone();
        *last_damaged.last_mut().expect("not empty") ^= 1;
        let last = if matches!(message, Message::WriteBatch { .. }) { 5 } else { 8 };
        assert_eq!(head.check_payload(salt(), &last_damaged), Err(DecodeError::BlockChecksum { block: last }));

        let mut with_crc = bytes;
        with_crc[64] = 1;
        reseal(&mut with_crc);
        assert!(matches!(decode(V2, &with_crc), Err(DecodeError::NotCanonical { .. })));
    }
}

#[test]
fn bad_blocks_keep_their_checksums_and_the_header_protects_them_on_the_way() {
    for worth in [Worth::Bad, Worth::Lost] {
        let mut payload = payload_for(&unsound(worth), 2 * BLOCK);
        let mut bytes = frame(V2, &unsound(worth), &payload);
        let Ok(Decoded::Head(head)) = decode(V2, &bytes) else { panic!("a good frame") };
        assert_eq!(head.message, unsound(worth));
        let fitting = salt().sums(BlockRange::new(7, 2), &payload);
        assert!(head.sums.len() == 2 && head.sums.iter().zip(&fitting).all(|(carried, fitting)| carried != fitting));
        assert_eq!(head.check_payload(salt(), &payload), Ok(()));
        payload[5000] ^= 4;
        assert_eq!(head.check_payload(salt(), &payload), Err(DecodeError::PayloadChecksum));
        bytes[6] = 3;
        reseal(&mut bytes);
        assert!(matches!(decode(V2, &bytes), Err(DecodeError::NotCanonical { .. })));
    }
}
