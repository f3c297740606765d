//! Each operation's result from bytes written by hand from the XDR of RFC 8881, 7862 and 8276, and answers that make no sense.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const STATEID: Stateid = Stateid { seqid: 7, other: *b"abcdefghijkl" };
const S: &str = "00000007 61626364 65666768 696a6b6c";
const SESSION: &str = "00010203 04050607 08090a0b 0c0d0e0f";
/// A change from 1 to 2 that nobody else had a part in.
const C: &str = "00000001 00000000 00000001 00000000 00000002";
const CHANGE: Change = Change { atomic: true, before: 1, after: 2 };

fn bytes(text: &str) -> Vec<u8> {
    let text = text.replace('S', S).replace('N', SESSION).replace('C', C);
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn session() -> SessionId {
    SessionId::from_bytes(std::array::from_fn(|at| at as u8))
}

/// The answer of a compound of this one operation, without a tag.
fn one(number: u32, status: u32, result: &str) -> Vec<u8> {
    bytes(&format!("{status:08x} 00000000 00000001 {number:08x} {status:08x} {result}"))
}

fn decode(asked: &[u32], answer: Vec<u8>) -> Result<Reply, XdrError> {
    Reply::decode(&mut Decoder::new(answer.into()), asked)
}

fn check(table: Vec<(u32, &str, Outcome)>) {
    for (number, result, expected) in table {
        let answer = one(number, 0, result);
        let read = decode(&[number], answer.clone()).unwrap();
        assert_eq!(read, Reply { outcomes: vec![expected], failure: None }, "operation {number}");
        for length in 0..answer.len() {
            assert!(decode(&[number], answer[..length].to_vec()).is_err(), "operation {number} cut at {length}");
        }
    }
}

#[test]
fn results_on_names_and_handles() {
    let attributes = RawAttributes { named: Bitmap::of(&[1]), values: Bytes::from_static(&[0, 0, 0, 2]) };
    let entry =
        |cookie, name: &'static [u8]| Entry { cookie, name: Bytes::from_static(name), attributes: attributes.clone() };
    let raw = "00000001 00000002 00000004 00000002";
    let entries = Entries { verifier: *b"verifier", entries: vec![entry(3, b"a"), entry(4, b"bc")], at_end: true };
    check(vec![
        (op::ACCESS, "0000001f 00000003", Outcome::Access((0x1f, 3))),
        (op::CREATE, "C 00000002 00000000 00000002", Outcome::Created((CHANGE, Bitmap::of(&[33])))),
        (op::GETATTR, raw, Outcome::Attributes(attributes.clone())),
        (op::GETFH, "00000003 61626300", Outcome::Handle(Handle(Bytes::from_static(b"abc")))),
        (op::LINK, "C", Outcome::Changed(CHANGE)),
        (op::REMOVE, "C", Outcome::Changed(CHANGE)),
        (op::RENAME, "C C", Outcome::Renamed((CHANGE, CHANGE))),
        (
            op::READDIR,
            &format!(
                "76657269 66696572 00000001 00000000 00000003 00000001 61000000 {raw}
                 00000001 00000000 00000004 00000002 62630000 {raw} 00000000 00000001"
            ),
            Outcome::Entries(entries),
        ),
        (op::READLINK, "00000002 746f0000", Outcome::Value(Bytes::from_static(b"to"))),
        (op::SETATTR, "00000001 00000010", Outcome::Set(Bitmap::of(&[4]))),
        // AUTH_SYS, RPCSEC_GSS with a mechanism, AUTH_NONE.
        (
            op::SECINFO_NO_NAME,
            "00000003 00000001 00000006 00000002 2a860000 00000000 00000001 00000000",
            Outcome::Flavors(vec![1, 6, 0]),
        ),
        (op::PUTROOTFH, "", Outcome::Done),
        (op::VERIFY, "", Outcome::Done),
        (op::LOOKUP, "", Outcome::Done),
    ]);
}

#[test]
fn results_on_data() {
    let written = |count, stable| Outcome::Written(Written { count, stable, verifier: *b"verifier" });
    let pieces = vec![Piece::Data(0, Bytes::from_static(b"abc")), Piece::Hole(3, 9)];
    check(vec![
        (op::COMMIT, "76657269 66696572", Outcome::Committed(*b"verifier")),
        (op::READ, "00000001 00000003 61626300", Outcome::Read((true, Bytes::from_static(b"abc")))),
        (
            op::READ_PLUS,
            "00000000 00000002 00000000 00000000 00000000 00000003 61626300
             00000001 00000000 00000003 00000000 00000009",
            Outcome::Pieces((false, pieces)),
        ),
        (op::WRITE, "00000005 00000000 76657269 66696572", written(5, Stable::Unstable)),
        (op::COPY, "00000000 00000000 00000005 00000002 76657269 66696572 00000001 00000001", written(5, Stable::File)),
        (op::SEEK, "00000001 00000000 00000005", Outcome::Found((true, 5))),
        (op::ALLOCATE, "", Outcome::Done),
        (op::GETXATTR, "00000002 62630000", Outcome::Value(Bytes::from_static(b"bc"))),
        (op::SETXATTR, "C", Outcome::Changed(CHANGE)),
        (
            op::LISTXATTRS,
            "00000000 00000001 00000001 00000001 61000000 00000001",
            Outcome::Names((1, vec![Bytes::from_static(b"a")], true)),
        ),
    ]);
}

#[test]
fn results_on_states() {
    let opened = |delegation| {
        Outcome::Opened(Opened { stateid: STATEID, change: CHANGE, flags: 4, set: Bitmap::of(&[33]), delegation })
    };
    let head = "S C 00000004 00000002 00000000 00000002";
    let ace = "00000000 00000000 00000000 00000000";
    check(vec![
        (op::CLOSE, "S", Outcome::Stateid(STATEID)),
        (op::LOCK, "S", Outcome::Stateid(STATEID)),
        (op::LOCKU, "S", Outcome::Stateid(STATEID)),
        (op::LOCKT, "", Outcome::Done),
        (op::OPEN_DOWNGRADE, "S", Outcome::Stateid(STATEID)),
        (op::DELEGRETURN, "", Outcome::Done),
        (op::TEST_STATEID, "00000002 00000000 00002729", Outcome::Tested(vec![None, Some(Status::BadStateid)])),
        (op::OPEN, &format!("{head} 00000000"), opened(Delegation::None)),
        (op::OPEN, &format!("{head} 00000001 S 00000000 {ace}"), opened(Delegation::Read(STATEID, false))),
        (
            op::OPEN,
            &format!("{head} 00000002 S 00000001 00000001 00000000 00001000 {ace}"),
            opened(Delegation::Write(STATEID, true)),
        ),
        (
            op::OPEN,
            &format!("{head} 00000002 S 00000001 00000002 00000010 00001000 {ace}"),
            opened(Delegation::Write(STATEID, true)),
        ),
        (op::OPEN, &format!("{head} 00000003 00000000"), opened(Delegation::Refused(0))),
        (op::OPEN, &format!("{head} 00000003 00000001 00000001"), opened(Delegation::Refused(1))),
    ]);
}

#[test]
fn results_on_clients_and_sessions() {
    let channel = Channel {
        request_bytes_max: 0x10,
        reply_bytes_max: 0x20,
        cached_reply_bytes_max: 0x30,
        operations_max: 0x40,
        requests_max: 0x50,
    };
    let channel_bytes = "00000000 00000010 00000020 00000030 00000040 00000050";
    let exchanged = Exchanged {
        client: ClientId(9),
        sequence: 1,
        flags: 0x1_0000,
        server: (0, Bytes::from_static(b"srv")),
        scope: Bytes::from_static(b"sc"),
    };
    let sequenced = Sequenced {
        session: session(),
        sequence: 1,
        slot: 2,
        highest_slot: 3,
        target_highest_slot: 4,
        status_flags: 5,
    };
    check(vec![
        (
            op::EXCHANGE_ID,
            "00000000 00000009 00000001 00010000 00000000 00000000 00000000 00000003 73727600 00000002 73630000
             00000001 00000001 64000000 00000001 6e000000 00000000 00000001 00000002",
            Outcome::Exchanged(exchanged),
        ),
        (
            op::CREATE_SESSION,
            &format!("N 00000001 00000003 {channel_bytes} 00000000 {channel_bytes} 00000001 00000002"),
            Outcome::CreatedSession(CreatedSession {
                session: session(),
                sequence: 1,
                flags: 3,
                fore: channel,
                back: channel,
            }),
        ),
        (op::SEQUENCE, "N 00000001 00000002 00000003 00000004 00000005", Outcome::Sequenced(sequenced)),
        (op::BIND_CONN_TO_SESSION, "N 00000003 00000000", Outcome::Bound((session(), 3))),
        (op::DESTROY_SESSION, "", Outcome::Done),
        (op::RECLAIM_COMPLETE, "", Outcome::Done),
    ]);
}

#[test]
fn failures_end_the_compound_and_some_carry_something() {
    let failure = |number, status, denied| Failure { index: 0, number, status, denied };
    let denied =
        Denied { offset: 1, length: 2, exclusive: true, client: ClientId(3), owner: Bytes::from_static(b"own") };
    let lock = "00000000 00000001 00000000 00000002 00000002 00000000 00000003 00000003 6f776e00";
    let table = [
        (op::LOOKUP, one(op::LOOKUP, 2, ""), failure(op::LOOKUP, Status::NoEntry, None)),
        (op::LOCK, one(op::LOCK, 10_010, lock), failure(op::LOCK, Status::Denied, Some(denied))),
        (op::SETATTR, one(op::SETATTR, 1, "00000000"), failure(op::SETATTR, Status::Perm, None)),
        (op::COPY, one(op::COPY, 10_094, "00000001 00000001"), failure(op::COPY, Status::OffloadNoRequests, None)),
        (op::SEEK, one(op::ILLEGAL, 10_044, ""), failure(op::ILLEGAL, Status::OperationIllegal, None)),
    ];
    for (number, answer, expected) in table {
        assert_eq!(decode(&[number], answer).unwrap().into_results().unwrap_err(), expected);
    }
    let two = bytes("00000002 00000000 00000002 00000018 00000000 0000000f 00000002");
    let reply = decode(&[op::PUTROOTFH, op::LOOKUP, op::GETFH], two).unwrap();
    assert_eq!(reply.outcomes, [Outcome::Done]);
    assert_eq!(reply.failure.unwrap().index, 1);
    let none = decode(&[op::PUTROOTFH], bytes("00002725 00000000 00000000")).unwrap();
    assert_eq!(none.failure.unwrap(), failure(0, Status::MinorVersionMismatch, None));
}

#[test]
fn answers_that_make_no_sense_are_refused() {
    let ok = "00000000 00000000";
    for (answer, why) in [
        (format!("{ok} 00000001 00000019 00000000"), "another operation"),
        (format!("{ok} 00000002 00000018 00000000 00000018 00000000"), "more than was asked"),
        (format!("{ok} 00000000"), "less, without a reason"),
        (format!("{ok} 00000001 00000018 00000002"), "the whole succeeded, a part not"),
        ("00000002 00000000 00000001 00000018 00000000".to_owned(), "and the other way round"),
        (format!("{ok} 00000001 00000018 00000000 00000000"), "bytes behind the end"),
        (format!("{ok} 00000001 00000018 0000ffff"), "no status"),
        (format!("{ok} 00000001 0000273c 00000000"), "an illegal operation that succeeded"),
        ("00000000 ffffffff".to_owned(), "a tag without end"),
    ] {
        assert!(decode(&[op::PUTROOTFH], bytes(&answer)).is_err(), "{why}");
    }
    let endless = bytes("00000000 00000000 00000001 00000037 00000000 00010000");
    assert_eq!(decode(&[op::TEST_STATEID], endless), Err(XdrError::Short), "nothing is set aside for it");
}

#[test]
fn noise_of_any_kind_is_no_panic() {
    let seed = 0x6e66_7334;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let numbers: Vec<u32> = (3..=75).collect();
    for _ in 0..20_000 {
        let number = numbers[random.random_range(0..numbers.len())];
        let mut answer = one(number, 0, "");
        for _ in 0..random.random_range(0..24) {
            // Small words are lengths and discriminants that lead further.
            let word: u32 = if random.random_bool(0.8) { random.random_range(0..6) } else { random.random() };
            answer.extend_from_slice(&word.to_be_bytes());
        }
        if let Ok(mut results) = decode(&[number], answer).map(|reply| Results(reply.outcomes.into_iter()))
            && let Ok(attributes) = results.attributes()
        {
            let _ = attributes.read();
        }
    }
}

#[test]
fn results_are_taken_by_their_kind_in_order() {
    let answer = bytes(
        "00000000 00000000 00000003 00000018 00000000 0000000a 00000000 00000001 61000000
         00000003 00000000 00000001 00000001",
    );
    let mut results = decode(&[op::PUTROOTFH, op::GETFH, op::ACCESS], answer).unwrap().into_results().unwrap();
    assert_eq!(results.handle(), Ok(Handle(Bytes::from_static(b"a"))));
    assert_eq!(results.access(), Ok((1, 1)));
    assert_eq!(results.access(), Err(XdrError::Short));
}
