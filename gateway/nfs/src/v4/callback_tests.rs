//! Callbacks to the client of this crate, which reads and answers them with a codec of its own; and answers that no client gives.

use filesystem::InodeNumber;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::client::Handle;
use crate::client::callback::{Callbacks, Notice};
use crate::client::number::CALLBACK_PROGRAM;
use crate::ids::StateNumber;
use crate::rpc::auth::{Credential, SysCredential};

const VOLUME: u64 = 7;
const SESSION: SessionId = SessionId { client: ClientId(5), number: 6 };
const TURN: CallbackTurn = CallbackTurn { slot: 1, sequence: 1, is_probe: false };

fn file() -> FileId {
    FileId { inode: InodeNumber(12), generation: 3 }
}

fn handle() -> Handle {
    Handle(Bytes::copy_from_slice(&FileHandle::File(VOLUME, file()).to_bytes()))
}

fn head() -> CallbackHead {
    let mut security = Encoder::new();
    Credential::Sys(SysCredential { machine: Bytes::from_static(b"box"), ..SysCredential::default() })
        .encode(&mut security);
    CallbackHead { program: CALLBACK_PROGRAM, security: security.to_bytes(), minor: 2, slots: 4 }
}

fn operations() -> [Operation; 3] {
    let stateid = Stateid::new(3, StateNumber(4), 1);
    [
        Operation::Recall(stateid, file()),
        Operation::RecallAny(9),
        Operation::NotifyLock(file(), ClientId(5), Bytes::from_static(b"owner")),
    ]
}

fn sent(turn: CallbackTurn, operation: Option<&Operation>) -> Bytes {
    Bytes::from(compound(77, &head(), SESSION, turn, (VOLUME, operation)).concat())
}

#[test]
fn the_client_understands_every_callback_and_its_answer_is_understood() {
    let mut client = Callbacks::new(4);
    let expected = [
        Notice::Recall(Stateid::new(3, StateNumber(4), 1), handle()),
        Notice::RecallAny(9),
        Notice::LockMayBeFree(handle(), Bytes::from_static(b"owner")),
    ];
    for (at, (operation, expected)) in operations().iter().zip(expected).enumerate() {
        let turn = CallbackTurn { sequence: at as u32 + 1, ..TURN };
        let mut notices = Vec::new();
        let answer = client.answer(Some(SESSION), sent(turn, Some(operation)), &mut notices).unwrap();
        assert_eq!(notices, [expected]);
        let read = decode(answer, SESSION, turn, Some(operation));
        assert_eq!(read, Ok(Answer { sequence: Ok(()), operation: Some(Ok(())) }));
    }
}

#[test]
fn a_probe_and_a_call_that_says_nothing_are_answered() {
    let mut client = Callbacks::new(4);
    let answer = client.answer(Some(SESSION), sent(TURN, None), &mut Vec::new()).unwrap();
    assert_eq!(decode(answer, SESSION, TURN, None), Ok(Answer { sequence: Ok(()), operation: None }));
    let answer = client.answer(Some(SESSION), Bytes::from(null(5, &head()).concat()), &mut Vec::new()).unwrap();
    assert_eq!(decode_null(answer), Ok(()));
    let other = CallbackHead { program: 1, ..head() };
    let answer = client.answer(Some(SESSION), Bytes::from(null(5, &other).concat()), &mut Vec::new()).unwrap();
    assert_eq!(decode_null(answer), Err(NoAnswer::Unaccepted));
}

#[test]
fn refusals_of_the_sequence_and_of_the_operation_are_told_apart() {
    let operation = &operations()[0];
    let mut client = Callbacks::new(1);
    let answer = client.answer(Some(SESSION), sent(TURN, Some(operation)), &mut Vec::new()).unwrap();
    let refused = Answer { sequence: Err(Status::BadSlot), operation: None };
    assert_eq!(decode(answer, SESSION, TURN, Some(operation)), Ok(refused));
    let mut out = Encoder::new();
    reply::success(&mut out, 77);
    out.u32(Status::BadHandle.code());
    out.opaque(b"");
    out.u32(2);
    out.u32(SEQUENCE);
    out.u32(0);
    out.fixed(&SESSION.to_bytes());
    [TURN.sequence, TURN.slot, 3, 3, RECALL, Status::BadHandle.code()].into_iter().for_each(|word| out.u32(word));
    let answer = out.to_bytes();
    let read = Answer { sequence: Ok(()), operation: Some(Err(Status::BadHandle)) };
    assert_eq!(decode(answer.clone(), SESSION, TURN, Some(operation)), Ok(read));
    let later = CallbackTurn { sequence: 2, ..TURN };
    assert_eq!(decode(answer.clone(), SESSION, later, Some(operation)), Err(NoAnswer::Another));
    assert_eq!(decode(answer.clone(), SESSION, TURN, Some(&operations()[1])), Err(NoAnswer::Another));
    assert_eq!(decode(answer, SESSION, TURN, None), Err(NoAnswer::Another), "more than was asked");
}

#[test]
fn bytes_of_any_kind_are_read_or_refused() {
    let operation = &operations()[0];
    let mut client = Callbacks::new(4);
    let good = client.answer(Some(SESSION), sent(TURN, Some(operation)), &mut Vec::new()).unwrap();
    for length in 0..good.len() {
        assert!(decode(good.slice(..length), SESSION, TURN, Some(operation)).is_err(), "cut to {length}");
    }
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..20_000 {
        let mut bytes = good.to_vec();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        let _ = decode(Bytes::from(bytes.clone()), SESSION, TURN, Some(operation));
        let _ = decode_null(Bytes::from(bytes));
    }
}
