//! The header's part of a message: its type, flag, kind and words.

use super::super::message::{Message, NackReason, Seq, Worth, WriteKind};
use super::super::version::ProtocolVersion;
use super::super::wire::{Cursor, u64_at};
use super::{DecodeError, VERSION_2, body};
use crate::{BlockRange, Timestamp};

/// Message types on the wire; a number is never used again for something else.
pub(super) mod types {
    use crate::peer::version::ProtocolVersion;

    pub(in crate::peer::codec) const HELLO: u8 = 1;
    pub(in crate::peer::codec) const HELLO_REPLY: u8 = 2;
    pub(in crate::peer::codec) const NACK: u8 = 3;
    pub(in crate::peer::codec) const WRITE: u8 = 4;
    pub(in crate::peer::codec) const WRITE_BATCH: u8 = 5;
    pub(in crate::peer::codec) const ACK: u8 = 6;
    pub(in crate::peer::codec) const FLUSH: u8 = 7;
    pub(in crate::peer::codec) const BEACON: u8 = 8;
    pub(in crate::peer::codec) const BEACON_ACK: u8 = 9;
    pub(in crate::peer::codec) const LEASE_RELEASE: u8 = 10;
    pub(in crate::peer::codec) const RESYNC_BEGIN: u8 = 11;
    pub(in crate::peer::codec) const DIGEST_REQUEST: u8 = 12;
    pub(in crate::peer::codec) const DIGEST: u8 = 13;
    pub(in crate::peer::codec) const RESYNC_DATA: u8 = 14;
    pub(in crate::peer::codec) const PRE_SYNC: u8 = 15;
    pub(in crate::peer::codec) const PRE_SYNC_ACK: u8 = 16;
    pub(in crate::peer::codec) const HANDOFF_PREPARE: u8 = 17;
    pub(in crate::peer::codec) const HANDOFF_READY: u8 = 18;
    pub(in crate::peer::codec) const HEAT: u8 = 19;
    pub(in crate::peer::codec) const READ_REQUEST: u8 = 20;
    pub(in crate::peer::codec) const READ_REPLY: u8 = 21;
    pub(in crate::peer::codec) const READ_FAILED: u8 = 22;
    pub(in crate::peer::codec) const SUMS_REQUEST: u8 = 23;
    pub(in crate::peer::codec) const SUMS: u8 = 24;

    /// True when the version has the type.
    pub(in crate::peer::codec) fn exist(protocol: ProtocolVersion, message_type: u8) -> bool {
        let newest = if protocol < super::VERSION_2 { HANDOFF_READY } else { SUMS };
        (HELLO..=newest).contains(&message_type)
    }
}

/// The header's part of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) message_type: u8,
    pub(super) flag: u8,
    pub(super) kind: u8,
    pub(super) words: [u64; 3],
}

impl Fields {
    /// What the version has no field for is left out.
    pub(super) fn of(protocol: ProtocolVersion, message: &Message) -> Fields {
        let plain = |message_type, words| Fields { message_type, flag: 0, kind: 0, words };
        let span = |seq: &Seq, range: &BlockRange| [seq.0, range.start, range.count];
        match message {
            Message::Hello { .. } => plain(types::HELLO, [0; 3]),
            Message::HelloReply { suspect, .. } => {
                Fields { flag: u8::from(*suspect), ..plain(types::HELLO_REPLY, [0; 3]) }
            }
            Message::Nack { reason } => Fields { kind: reason_to_wire(*reason), ..plain(types::NACK, [0; 3]) },
            Message::Write { seq, range, kind, fua } => {
                let fields = plain(types::WRITE, span(seq, range));
                Fields { flag: u8::from(*fua), kind: kind_to_wire(*kind), ..fields }
            }
            Message::WriteBatch { seq, .. } => plain(types::WRITE_BATCH, [seq.0, 0, 0]),
            Message::Ack { seq } => plain(types::ACK, [seq.0, 0, 0]),
            Message::Flush { seq } => plain(types::FLUSH, [seq.0, 0, 0]),
            Message::Beacon { number, echo, settled } => {
                let settled = if protocol < VERSION_2 { 0 } else { settled.0 };
                plain(types::BEACON, [*number, echo.0, settled])
            }
            Message::BeaconAck { number, granted, stamp } => {
                Fields { flag: u8::from(*granted), ..plain(types::BEACON_ACK, [*number, stamp.0, 0]) }
            }
            Message::LeaseRelease { last_beacon } => plain(types::LEASE_RELEASE, [*last_beacon, 0, 0]),
            Message::ResyncBegin => plain(types::RESYNC_BEGIN, [0; 3]),
            Message::DigestRequest { seq, range } => plain(types::DIGEST_REQUEST, span(seq, range)),
            Message::Digest { seq, range } => plain(types::DIGEST, span(seq, range)),
            Message::ResyncData { seq, range, kind, worth } => {
                let flag = if protocol < VERSION_2 { 0 } else { worth_to_wire(*worth) };
                Fields { flag, kind: kind_to_wire(*kind), ..plain(types::RESYNC_DATA, span(seq, range)) }
            }
            Message::PreSync => plain(types::PRE_SYNC, [0; 3]),
            Message::PreSyncAck => plain(types::PRE_SYNC_ACK, [0; 3]),
            Message::HandoffPrepare => plain(types::HANDOFF_PREPARE, [0; 3]),
            Message::HandoffReady => plain(types::HANDOFF_READY, [0; 3]),
            Message::Heat { .. } => plain(types::HEAT, [0; 3]),
            Message::ReadRequest { seq, range } => plain(types::READ_REQUEST, span(seq, range)),
            Message::ReadReply { seq, range } => plain(types::READ_REPLY, span(seq, range)),
            Message::ReadFailed { seq, .. } => plain(types::READ_FAILED, [seq.0, 0, 0]),
            Message::SumsRequest { seq, range } => plain(types::SUMS_REQUEST, span(seq, range)),
            Message::Sums { seq, range } => plain(types::SUMS, span(seq, range)),
        }
    }

    pub(super) fn read(header: &[u8]) -> Fields {
        let words = [u64_at(header, 40), u64_at(header, 48), u64_at(header, 56)];
        Fields { message_type: header[5], flag: header[6], kind: header[7], words }
    }

    /// Builds the message; `None` when the body's content is too short for it. What the version has no field for gets the value
    /// that it stands for.
    pub(super) fn message(
        &self,
        protocol: ProtocolVersion,
        content: &mut Cursor<'_>,
    ) -> Result<Option<Message>, DecodeError> {
        let [first, second, third] = self.words;
        let (seq, flag) = (Seq(first), self.flag != 0);
        let range = BlockRange { start: second, count: third };
        Ok(Some(match self.message_type {
            types::HELLO => return Ok(body::hello(content)),
            types::HELLO_REPLY => return Ok(body::hello_reply(protocol, flag, content)?),
            types::NACK => Message::Nack { reason: self.reason()? },
            types::WRITE => Message::Write { seq, range, kind: self.write_kind()?, fua: flag },
            types::WRITE_BATCH => return Ok(body::groups(content)?.map(|groups| Message::WriteBatch { seq, groups })),
            types::ACK => Message::Ack { seq },
            types::FLUSH => Message::Flush { seq },
            types::BEACON => Message::Beacon { number: first, echo: Timestamp(second), settled: Seq(third) },
            types::BEACON_ACK => Message::BeaconAck { number: first, granted: flag, stamp: Timestamp(second) },
            types::LEASE_RELEASE => Message::LeaseRelease { last_beacon: first },
            types::RESYNC_BEGIN => Message::ResyncBegin,
            types::DIGEST_REQUEST => Message::DigestRequest { seq, range },
            types::DIGEST => Message::Digest { seq, range },
            types::RESYNC_DATA => {
                Message::ResyncData { seq, range, kind: self.write_kind()?, worth: worth_from_wire(self.flag) }
            }
            types::PRE_SYNC => Message::PreSync,
            types::PRE_SYNC_ACK => Message::PreSyncAck,
            types::HANDOFF_PREPARE => Message::HandoffPrepare,
            types::HANDOFF_READY => Message::HandoffReady,
            types::HEAT => return Ok(body::extents(content)?.map(|extents| Message::Heat { extents })),
            types::READ_REQUEST => Message::ReadRequest { seq, range },
            types::READ_REPLY => Message::ReadReply { seq, range },
            types::READ_FAILED => return Ok(body::ranges(content)?.map(|bad| Message::ReadFailed { seq, bad })),
            types::SUMS_REQUEST => Message::SumsRequest { seq, range },
            types::SUMS => Message::Sums { seq, range },
            found => return Err(DecodeError::UnknownType { found }),
        }))
    }

    fn write_kind(&self) -> Result<WriteKind, DecodeError> {
        match self.kind {
            1 => Ok(WriteKind::Data),
            2 => Ok(WriteKind::Zeroes),
            3 => Ok(WriteKind::Discard),
            found => Err(DecodeError::UnknownKind { found, message_type: self.message_type }),
        }
    }

    fn reason(&self) -> Result<NackReason, DecodeError> {
        match self.kind {
            1 => Ok(NackReason::StaleEpoch),
            2 => Ok(NackReason::DiskFailed),
            3 => Ok(NackReason::WrongDisk),
            4 => Ok(NackReason::NotYet),
            found => Err(DecodeError::UnknownKind { found, message_type: self.message_type }),
        }
    }
}

fn kind_to_wire(kind: WriteKind) -> u8 {
    match kind {
        WriteKind::Data => 1,
        WriteKind::Zeroes => 2,
        WriteKind::Discard => 3,
    }
}

fn worth_to_wire(worth: Worth) -> u8 {
    match worth {
        Worth::Sound => 0,
        Worth::Bad => 1,
        Worth::Lost => 2,
    }
}

/// Of a number that is none, the default: the header is then found not to be canonical.
fn worth_from_wire(flag: u8) -> Worth {
    [Worth::Bad, Worth::Lost].into_iter().find(|worth| worth_to_wire(*worth) == flag).unwrap_or_default()
}

fn reason_to_wire(reason: NackReason) -> u8 {
    match reason {
        NackReason::StaleEpoch => 1,
        NackReason::DiskFailed => 2,
        NackReason::WrongDisk => 3,
        NackReason::NotYet => 4,
    }
}
