//! What is answered to callbacks, byte by byte.

use super::*;
use crate::client::scripted::{SESSION, callback, recall};

fn session() -> Option<SessionId> {
    Some(SessionId::from_bytes(SESSION))
}

/// The words of an answer to call 9, behind the head of RPC: status, tag, count, results.
fn words(callbacks: &mut Callbacks, message: Bytes, notices: &mut Vec<Notice>) -> Vec<u32> {
    let answer = callbacks.answer(session(), message, notices).unwrap();
    assert_eq!(answer[..24], [[0, 0, 0, 9], [0, 0, 0, 1], [0; 4], [0; 4], [0; 4], [0; 4]].concat());
    answer[24..].chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
}

fn id_words() -> Vec<u32> {
    SESSION.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn a_recall_is_answered_and_told() {
    let (mut callbacks, mut notices) = (Callbacks::new(2), Vec::new());
    let answer = words(&mut callbacks, callback(9, (1, 1), &[&recall()]), &mut notices);
    let expected = [vec![0, 0, 2, 11, 0], id_words(), vec![1, 1, 1, 1, 4, 0]].concat();
    assert_eq!(answer, expected);
    let stateid = Stateid { seqid: 1, other: *b"delegation.." };
    assert_eq!(notices, [Notice::Recall(stateid, Handle(Bytes::from_static(b"handle")))]);
}

#[test]
fn each_kind_of_callback_gets_its_answer() {
    let notify = [&[0, 0, 0, 13, 0, 0, 0, 1, b'h', 0, 0, 0][..], &[0; 8], &[0, 0, 0, 1, b'o', 0, 0, 0]].concat();
    let table: [(&[u8], u32, Option<Notice>); 6] = [
        (&[0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 1], 0, Some(Notice::RecallAny(5))),
        (&[0, 0, 0, 10, 0, 0, 0, 3], 0, Some(Notice::RecallSlot(3))),
        (&notify, 0, Some(Notice::LockMayBeFree(Handle(Bytes::from_static(b"h")), Bytes::from_static(b"o")))),
        (&[0, 0, 0, 3], Status::NotSupported.code(), None),
        (&[0, 0, 0, 11], Status::SequencePosition.code(), None),
        (&[0, 0, 0, 99], Status::OperationIllegal.code(), None),
    ];
    for (operation, status, told) in table {
        let (mut callbacks, mut notices) = (Callbacks::new(2), Vec::new());
        let answer = words(&mut callbacks, callback(9, (1, 0), &[operation]), &mut notices);
        assert_eq!((answer[0], answer.last().copied()), (status, Some(status)), "{operation:?}");
        assert_eq!(notices, Vec::from_iter(told));
    }
}

#[test]
fn sequences_of_the_back_channel_are_kept_to() {
    let (mut callbacks, mut notices) = (Callbacks::new(2), Vec::new());
    let mut status = |sequence, slot| words(&mut callbacks, callback(9, (sequence, slot), &[]), &mut notices)[0];
    assert_eq!(status(2, 0), Status::SequenceMisordered.code());
    assert_eq!(status(1, 0), 0);
    assert_eq!(status(1, 0), 0, "again");
    assert_eq!(status(3, 0), Status::SequenceMisordered.code());
    assert_eq!(status(2, 0), 0);
    assert_eq!(status(1, 2), Status::BadSlot.code());
    let answer = callbacks.answer(None, callback(9, (1, 1), &[]), &mut notices).unwrap();
    assert_eq!(answer[24..28], Status::BadSession.code().to_be_bytes());
}

#[test]
fn calls_of_another_kind_are_refused() {
    let (mut callbacks, mut notices) = (Callbacks::new(2), Vec::new());
    let good = callback(9, (1, 0), &[]);
    let mut with = |at: usize, word: u32| {
        let mut bytes = good.to_vec();
        bytes[4 * at..4 * at + 4].copy_from_slice(&word.to_be_bytes());
        let answer = callbacks.answer(session(), bytes.into(), &mut notices)?;
        // Accepted or not, and how.
        Some((answer[8..12].to_vec(), answer[20..24].to_vec()))
    };
    let accepted = |how: u8| Some((vec![0; 4], vec![0, 0, 0, how]));
    assert_eq!(with(1, 1), None, "a reply");
    assert_eq!(with(3, 5), accepted(1), "another program");
    assert_eq!(with(4, 9), accepted(2), "another version");
    assert_eq!(with(5, 7), accepted(3), "another procedure");
    assert_eq!(with(10, 5000), accepted(4), "a tag that is too long");
    assert_eq!(with(5, 0), accepted(0), "CB_NULL");
}
