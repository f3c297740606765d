//! The server's side of a conversation, written by hand for the client's tests: what a call says, and answers to it.

use bytes::Bytes;

use super::number::operation as op;
use crate::rpc::call::Call;
use crate::rpc::reply;
use crate::xdr::{Decoder, Encoder};

pub(super) const SESSION: [u8; 16] = *b"the session's id";
pub(super) const CLIENT: u64 = 0x0102_0304;
pub(super) const SLOTS: u32 = 4;

/// What a call says, as far as tests look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) xid: u32,
    /// Of the operations; the first is SEQUENCE within a session.
    pub(super) count: u32,
    pub(super) first: u32,
    pub(super) session: [u8; 16],
    pub(super) sequence: u32,
    pub(super) slot: u32,
    pub(super) cached: bool,
    /// The number of the operation behind SEQUENCE.
    pub(super) second: u32,
    /// As it came.
    pub(super) message: Bytes,
}

impl Asked {
    pub(super) fn read(message: Bytes) -> Self {
        let mut decoder = Decoder::new(message.clone());
        let call = Call::decode(&mut decoder).unwrap();
        assert_eq!((call.program, call.version, call.procedure), (100_003, 4, 1));
        assert_eq!(decoder.opaque(0).unwrap(), Bytes::new(), "no tag");
        assert_eq!(decoder.u32(), Ok(2), "minor version");
        let (count, first) = (decoder.u32().unwrap(), decoder.u32().unwrap());
        let mut asked = Self {
            xid: call.xid,
            count,
            first,
            session: [0; 16],
            sequence: 0,
            slot: 0,
            cached: false,
            second: 0,
            message,
        };
        if first == op::SEQUENCE {
            asked.session = decoder.fixed().unwrap();
            asked.sequence = decoder.u32().unwrap();
            asked.slot = decoder.u32().unwrap();
            assert!(decoder.u32().unwrap() >= asked.slot, "the highest slot in use");
            asked.cached = decoder.bool().unwrap();
            asked.second = if count > 1 { decoder.u32().unwrap() } else { 0 };
        }
        asked
    }

    fn head(&self, status: u32, count: u32) -> Encoder {
        let mut out = Encoder::new();
        reply::success(&mut out, self.xid);
        out.u32(status);
        out.opaque(b"");
        out.u32(count);
        out
    }

    /// The answer to an operation alone.
    pub(super) fn alone(&self, status: u32, put: impl FnOnce(&mut Encoder)) -> Bytes {
        let mut out = self.head(status, 1);
        out.u32(self.first);
        out.u32(status);
        put(&mut out);
        out.to_bytes()
    }

    /// SEQUENCE failed.
    pub(super) fn refused(&self, status: u32) -> Bytes {
        self.alone(status, |_| ())
    }

    /// EXCHANGE_ID: this client.
    pub(super) fn exchanged(&self, client: u64, sequence: u32) -> Bytes {
        self.alone(0, |out| {
            out.u64(client);
            out.u32(sequence);
            out.u32(0x1_0000);
            out.u32(0);
            out.u64(0);
            out.opaque(b"server");
            out.opaque(b"scope");
            out.u32(0);
        })
    }

    /// CREATE_SESSION: this session, lasting and with a back channel.
    pub(super) fn created(&self, session: [u8; 16]) -> Bytes {
        self.alone(0, |out| {
            out.fixed(&session);
            out.u32(1);
            out.u32(3);
            for requests in [SLOTS, 2] {
                for word in [0, 65_536, 65_536, 4096, 16, requests, 0] {
                    out.u32(word);
                }
            }
        })
    }

    /// BIND_CONN_TO_SESSION.
    pub(super) fn bound(&self, session: [u8; 16]) -> Bytes {
        self.alone(0, |out| {
            out.fixed(&session);
            out.u32(3);
            out.bool(false);
        })
    }

    /// SEQUENCE succeeded, and so did all operations behind it; none of them has a result but its status.
    pub(super) fn done(&self) -> Bytes {
        self.ended(0, self.count)
    }

    /// SEQUENCE succeeded; the last of `count` operations ended so.
    pub(super) fn ended(&self, status: u32, count: u32) -> Bytes {
        self.answered(status, count, SLOTS - 1)
    }

    /// The same, with the highest slot that the server would like.
    pub(super) fn answered(&self, status: u32, count: u32, target: u32) -> Bytes {
        let mut out = self.head(status, count);
        out.u32(op::SEQUENCE);
        out.u32(0);
        out.fixed(&self.session);
        for word in [self.sequence, self.slot, SLOTS - 1, target, 0] {
            out.u32(word);
        }
        for place in 1..count {
            out.u32(self.second);
            out.u32(if place + 1 == count { status } else { 0 });
        }
        out.to_bytes()
    }

    /// What a server that is well answers, whatever is asked; operations have no results.
    pub(super) fn well(&self) -> Bytes {
        match self.first {
            op::EXCHANGE_ID => self.exchanged(CLIENT, 1),
            op::CREATE_SESSION => self.created(SESSION),
            op::BIND_CONN_TO_SESSION => self.bound(SESSION),
            op::SEQUENCE => self.done(),
            _ => self.refused(0),
        }
    }
}

/// A call of the server: these operations behind CB_SEQUENCE, with their number.
pub(super) fn callback(xid: u32, (sequence, slot): (u32, u32), operations: &[&[u8]]) -> Bytes {
    let mut out = Encoder::new();
    for word in [xid, 0, 2, super::number::CALLBACK_PROGRAM, 1, 1, 0, 0, 0, 0] {
        out.u32(word);
    }
    out.opaque(b"");
    for word in [2, 0, operations.len() as u32 + 1, 11] {
        out.u32(word);
    }
    out.fixed(&SESSION);
    for word in [sequence, slot, slot, 0, 0] {
        out.u32(word);
    }
    operations.iter().for_each(|operation| out.encoded(operation));
    out.to_bytes()
}

/// CB_RECALL.
pub(super) fn recall() -> Vec<u8> {
    let mut out = Encoder::new();
    out.u32(4);
    out.u32(1);
    out.fixed(b"delegation..");
    out.bool(false);
    out.opaque(b"handle");
    out.to_bytes().to_vec()
}
