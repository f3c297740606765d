//! How a replication message looks on the wire.
//!
//! A frame is a header of [`HEADER_BYTES`], a body for the messages that need one, and a payload. All integers are
//! little-endian.
//!
//! | bytes | header field |
//! |---|---|
//! | 0..4 | magic `TDPF` |
//! | 4 | protocol version, as agreed by the handshake |
//! | 5 | message type |
//! | 6 | flag: `fua`, `suspect` or `granted`; 0 or 1 |
//! | 7 | write kind or nack reason |
//! | 8..12 | length of the body, its checksum included |
//! | 12..16 | length of the payload |
//! | 16..40 | epoch, version, session |
//! | 40..64 | three fields of the message: mostly seq, first block, number of blocks |
//! | 64..68 | CRC-32 of the payload |
//! | 68..72 | CRC-32 of the header before it |
//!
//! The header's own checksum comes first, so that a damaged length is never believed; a body ends with its own. A frame
//! has exactly one encoding: unused fields are zero and anything else is an error. Nothing here allocates more than
//! the bounds below, whatever the bytes say.

use thiserror::Error;

use super::message::{Envelope, Message, NackReason, Seq, WriteKind};
use super::version::ProtocolVersion;
use super::wire::{Cursor, u32_at, u64_at};
use crate::{BLOCK_BYTES, BlockRange, Boot, ConfigVersion, DiskId, Epoch, Incarnation, SessionId, Timestamp};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 72;
/// Longest payload of one frame: the largest write of a client with room for a batch's bookkeeping.
pub const PAYLOAD_BYTES_MAX: u64 = 33 * 1024 * 1024;
/// Most groups in one batch.
pub const GROUPS_MAX: usize = 1024;
/// Most ranges in one batch, over all its groups: as many as there are blocks in the longest payload.
pub const RANGES_MAX: usize = (PAYLOAD_BYTES_MAX / BLOCK_BYTES) as usize;
/// Bytes of digest per block.
pub const DIGEST_BYTES: u64 = 16;
/// Longest body, its checksum included.
pub const BODY_BYTES_MAX: usize = 4 + 4 * GROUPS_MAX + RANGE_BYTES * RANGES_MAX + CHECKSUM_BYTES;

const MAGIC: [u8; 4] = *b"TDPF";
const CHECKSUM_BYTES: usize = 4;
const RANGE_BYTES: usize = 16;
const HELLO_BODY_BYTES: usize = 32;
const HELLO_REPLY_BODY_BYTES: usize = 56;

/// One past the last block whose bytes have a 64-bit offset.
const BLOCKS_MAX: u64 = u64::MAX / BLOCK_BYTES;

/// A message that cannot be a frame, whichever way it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    /// A range that reaches past any possible volume.
    #[error("range of {count} blocks from {start} is out of bounds")]
    RangeOverflow {
        /// First block.
        start: u64,
        /// Number of blocks.
        count: u64,
    },
    /// A range of no blocks.
    #[error("empty range at block {start}")]
    EmptyRange {
        /// Where.
        start: u64,
    },
    /// The payload is not what the message calls for.
    #[error("payload of {found} bytes where the message calls for {expected}")]
    PayloadLength {
        /// Bytes the message calls for.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The payload, or the one that would answer a digest request, is over [`PAYLOAD_BYTES_MAX`].
    #[error("payload of {bytes} bytes is over the bound of {PAYLOAD_BYTES_MAX}")]
    PayloadTooLong {
        /// Bytes.
        bytes: u64,
    },
    /// More than [`GROUPS_MAX`] groups.
    #[error("batch of {found} groups, at most {GROUPS_MAX} are allowed")]
    TooManyGroups {
        /// Groups.
        found: usize,
    },
    /// More than [`RANGES_MAX`] ranges.
    #[error("batch of {found} ranges, at most {RANGES_MAX} are allowed")]
    TooManyRanges {
        /// Ranges.
        found: usize,
    },
}

/// Bytes that are no frame. The connection cannot go on: there is no way to find the next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// It does not begin like a frame.
    #[error("no frame: it begins with {found:02x?}")]
    Magic {
        /// First bytes.
        found: [u8; 4],
    },
    /// The header is damaged.
    #[error("checksum of the header is wrong")]
    HeaderChecksum,
    /// A version other than the agreed one.
    #[error("protocol version {found} where {agreed} was agreed")]
    Version {
        /// What the frame says.
        found: u8,
        /// What the handshake agreed on.
        agreed: u16,
    },
    /// A message type that this version does not have.
    #[error("unknown message type {found}")]
    UnknownType {
        /// The type.
        found: u8,
    },
    /// A write kind or nack reason that this version does not have.
    #[error("unknown kind {found} in message type {message_type}")]
    UnknownKind {
        /// The kind.
        found: u8,
        /// The message type.
        message_type: u8,
    },
    /// A field that the message does not use is not zero, or a flag is neither 0 nor 1.
    #[error("unused fields of message type {message_type} are not zero")]
    NotCanonical {
        /// The message type.
        message_type: u8,
    },
    /// The body's length cannot be right.
    #[error("body of {found} bytes in message type {message_type}")]
    BodyLength {
        /// Bytes.
        found: u32,
        /// The message type.
        message_type: u8,
    },
    /// The body is damaged.
    #[error("checksum of the body is wrong")]
    BodyChecksum,
    /// The payload is damaged.
    #[error("checksum of the payload is wrong")]
    PayloadChecksum,
    /// The message says something impossible.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Length and CRC-32 of a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PayloadSum {
    /// Bytes.
    pub length: u64,
    /// CRC-32 (IEEE) of them; 0 for none.
    pub crc: u32,
}

impl PayloadSum {
    /// The sum over `parts`, one after the other.
    pub fn of<P: AsRef<[u8]>>(parts: &[P]) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        let mut length = 0;
        for part in parts {
            hasher.update(part.as_ref());
            length += part.as_ref().len() as u64;
        }
        Self { length, crc: hasher.finalize() }
    }
}

/// A decoded frame up to its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Epoch, version, session.
    pub envelope: Envelope,
    /// The message.
    pub message: Message,
    /// What the payload must be; its length is at most [`PAYLOAD_BYTES_MAX`] and fits the message.
    pub payload: PayloadSum,
    /// Bytes of header and body; the payload begins after them.
    pub head_bytes: usize,
}

impl FrameHead {
    /// Checks the payload once it has arrived. Errors: length or checksum are not what the header says.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), DecodeError> {
        let found = payload.len() as u64;
        if found != self.payload.length {
            return Err(Invalid::PayloadLength { expected: self.payload.length, found }.into());
        }
        if crc32fast::hash(payload) != self.payload.crc { Err(DecodeError::PayloadChecksum) } else { Ok(()) }
    }
}

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Not enough of them: call again with at least `total` bytes from the same start.
    NeedMore {
        /// Bytes needed from the frame's start; at most [`HEADER_BYTES`] + [`BODY_BYTES_MAX`].
        total: usize,
    },
    /// Header and body are whole; the payload follows.
    Head(FrameHead),
}

/// Appends header and body of a frame to `out`. The caller sends the payload described by `payload` after them.
/// Errors: the message is [`Invalid`]; `out` is then unchanged.
pub fn encode(
    protocol: ProtocolVersion,
    envelope: &Envelope,
    message: &Message,
    payload: PayloadSum,
    out: &mut Vec<u8>,
) -> Result<(), Invalid> {
    check(message, payload.length)?;
    let fields = Fields::of(message);
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    encode_body(message, out);
    let body_length = out.len() - start - HEADER_BYTES;
    let body_length = if body_length == 0 { 0 } else { body_length + CHECKSUM_BYTES };
    if body_length > 0 {
        let crc = crc32fast::hash(&out[start + HEADER_BYTES..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }
    let header = &mut out[start..start + HEADER_BYTES];
    header[0..4].copy_from_slice(&MAGIC);
    header[4] = protocol.0 as u8;
    header[5] = fields.message_type;
    header[6] = fields.flag;
    header[7] = fields.kind;
    header[8..12].copy_from_slice(&(body_length as u32).to_le_bytes());
    header[12..16].copy_from_slice(&(payload.length as u32).to_le_bytes());
    header[16..24].copy_from_slice(&envelope.epoch.0.to_le_bytes());
    header[24..32].copy_from_slice(&envelope.version.0.to_le_bytes());
    header[32..40].copy_from_slice(&envelope.session.0.to_le_bytes());
    header[40..48].copy_from_slice(&fields.words[0].to_le_bytes());
    header[48..56].copy_from_slice(&fields.words[1].to_le_bytes());
    header[56..64].copy_from_slice(&fields.words[2].to_le_bytes());
    header[64..68].copy_from_slice(&payload.crc.to_le_bytes());
    let crc = crc32fast::hash(&header[..68]);
    header[68..72].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Reads header and body at the start of `bytes`, which may be cut anywhere.
pub fn decode(protocol: ProtocolVersion, bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let Some(header) = bytes.get(..HEADER_BYTES) else {
        // Garbage is told at its first bytes: a peer that speaks something else may never send a whole header.
        let known = bytes.len().min(MAGIC.len());
        if bytes[..known] != MAGIC[..known] {
            return Err(magic_error(bytes));
        }
        return Ok(Decoded::NeedMore { total: HEADER_BYTES });
    };
    if header[..4] != MAGIC {
        return Err(magic_error(header));
    }
    if crc32fast::hash(&header[..68]) != u32_at(header, 68) {
        return Err(DecodeError::HeaderChecksum);
    }
    if u16::from(header[4]) != protocol.0 {
        return Err(DecodeError::Version { found: header[4], agreed: protocol.0 });
    }
    let fields = Fields::read(header);
    let payload = PayloadSum { length: u64::from(u32_at(header, 12)), crc: u32_at(header, 64) };
    if payload.length > PAYLOAD_BYTES_MAX {
        return Err(Invalid::PayloadTooLong { bytes: payload.length }.into());
    }
    let body_length = u32_at(header, 8);
    let bad_body = DecodeError::BodyLength { found: body_length, message_type: fields.message_type };
    if !body_length_possible(fields.message_type, body_length as usize) {
        return Err(bad_body);
    }
    let head_bytes = HEADER_BYTES + body_length as usize;
    let Some(body) = bytes.get(HEADER_BYTES..head_bytes) else {
        return Ok(Decoded::NeedMore { total: head_bytes });
    };
    let body = checked_body(body)?;
    let mut cursor = Cursor::new(body);
    let message = fields.message(&mut cursor)?.ok_or(bad_body)?;
    if !cursor.is_empty() {
        return Err(bad_body);
    }
    if Fields::of(&message) != fields || (payload.length == 0 && payload.crc != 0) {
        return Err(DecodeError::NotCanonical { message_type: fields.message_type });
    }
    check(&message, payload.length)?;
    let envelope = Envelope {
        epoch: Epoch(u64_at(header, 16)),
        version: ConfigVersion(u64_at(header, 24)),
        session: SessionId(u64_at(header, 32)),
    };
    Ok(Decoded::Head(FrameHead { envelope, message, payload, head_bytes }))
}

fn magic_error(bytes: &[u8]) -> DecodeError {
    let mut found = [0; 4];
    let known = bytes.len().min(4);
    found[..known].copy_from_slice(&bytes[..known]);
    DecodeError::Magic { found }
}

/// Takes the checksum off a body that has one.
fn checked_body(body: &[u8]) -> Result<&[u8], DecodeError> {
    match body.split_last_chunk::<CHECKSUM_BYTES>() {
        None => Ok(body),
        Some((content, crc)) if crc32fast::hash(content) == u32::from_le_bytes(*crc) => Ok(content),
        Some(_) => Err(DecodeError::BodyChecksum),
    }
}

/// False when no body of this type has this length; keeps a reader from waiting for bytes that cannot be right.
fn body_length_possible(message_type: u8, length: usize) -> bool {
    match message_type {
        types::HELLO => length == HELLO_BODY_BYTES + CHECKSUM_BYTES,
        types::HELLO_REPLY => length == HELLO_REPLY_BODY_BYTES + CHECKSUM_BYTES,
        types::WRITE_BATCH => (4 + CHECKSUM_BYTES..=BODY_BYTES_MAX).contains(&length),
        _ => length == 0,
    }
}

/// Message types on the wire; a number is never used again for something else.
mod types {
    pub(super) const HELLO: u8 = 1;
    pub(super) const HELLO_REPLY: u8 = 2;
    pub(super) const NACK: u8 = 3;
    pub(super) const WRITE: u8 = 4;
    pub(super) const WRITE_BATCH: u8 = 5;
    pub(super) const ACK: u8 = 6;
    pub(super) const FLUSH: u8 = 7;
    pub(super) const BEACON: u8 = 8;
    pub(super) const BEACON_ACK: u8 = 9;
    pub(super) const LEASE_RELEASE: u8 = 10;
    pub(super) const RESYNC_BEGIN: u8 = 11;
    pub(super) const DIGEST_REQUEST: u8 = 12;
    pub(super) const DIGEST: u8 = 13;
    pub(super) const RESYNC_DATA: u8 = 14;
    pub(super) const PRE_SYNC: u8 = 15;
    pub(super) const PRE_SYNC_ACK: u8 = 16;
    pub(super) const HANDOFF_PREPARE: u8 = 17;
    pub(super) const HANDOFF_READY: u8 = 18;
}

/// The header's part of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fields {
    message_type: u8,
    flag: u8,
    kind: u8,
    words: [u64; 3],
}

impl Fields {
    fn of(message: &Message) -> Fields {
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
            Message::Beacon { number, echo, .. } => plain(types::BEACON, [*number, echo.0, 0]),
            Message::BeaconAck { number, granted, stamp } => {
                Fields { flag: u8::from(*granted), ..plain(types::BEACON_ACK, [*number, stamp.0, 0]) }
            }
            Message::LeaseRelease { last_beacon } => plain(types::LEASE_RELEASE, [*last_beacon, 0, 0]),
            Message::ResyncBegin => plain(types::RESYNC_BEGIN, [0; 3]),
            Message::DigestRequest { seq, range } => plain(types::DIGEST_REQUEST, span(seq, range)),
            Message::Digest { seq, range } => plain(types::DIGEST, span(seq, range)),
            Message::ResyncData { seq, range, kind, .. } => {
                Fields { kind: kind_to_wire(*kind), ..plain(types::RESYNC_DATA, span(seq, range)) }
            }
            Message::PreSync => plain(types::PRE_SYNC, [0; 3]),
            Message::PreSyncAck => plain(types::PRE_SYNC_ACK, [0; 3]),
            Message::HandoffPrepare => plain(types::HANDOFF_PREPARE, [0; 3]),
            Message::HandoffReady => plain(types::HANDOFF_READY, [0; 3]),
            other => unreachable!("not encoded yet: {other:?}"),
        }
    }

    fn read(header: &[u8]) -> Fields {
        let words = [u64_at(header, 40), u64_at(header, 48), u64_at(header, 56)];
        Fields { message_type: header[5], flag: header[6], kind: header[7], words }
    }

    /// Builds the message; `None` when the body is too short for it.
    fn message(&self, body: &mut Cursor<'_>) -> Result<Option<Message>, DecodeError> {
        let [first, second, third] = self.words;
        let (seq, flag) = (Seq(first), self.flag != 0);
        let range = BlockRange { start: second, count: third };
        Ok(Some(match self.message_type {
            types::HELLO => return Ok(hello(body)),
            types::HELLO_REPLY => return Ok(hello_reply(flag, body)),
            types::NACK => Message::Nack { reason: self.reason()? },
            types::WRITE => Message::Write { seq, range, kind: self.write_kind()?, fua: flag },
            types::WRITE_BATCH => return Ok(groups(body)?.map(|groups| Message::WriteBatch { seq, groups })),
            types::ACK => Message::Ack { seq },
            types::FLUSH => Message::Flush { seq },
            types::BEACON => Message::Beacon { number: first, echo: Timestamp(second), settled: Seq(0) },
            types::BEACON_ACK => Message::BeaconAck { number: first, granted: flag, stamp: Timestamp(second) },
            types::LEASE_RELEASE => Message::LeaseRelease { last_beacon: first },
            types::RESYNC_BEGIN => Message::ResyncBegin,
            types::DIGEST_REQUEST => Message::DigestRequest { seq, range },
            types::DIGEST => Message::Digest { seq, range },
            types::RESYNC_DATA => Message::ResyncData { seq, range, kind: self.write_kind()?, known_bad: false },
            types::PRE_SYNC => Message::PreSync,
            types::PRE_SYNC_ACK => Message::PreSyncAck,
            types::HANDOFF_PREPARE => Message::HandoffPrepare,
            types::HANDOFF_READY => Message::HandoffReady,
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

fn reason_to_wire(reason: NackReason) -> u8 {
    match reason {
        NackReason::StaleEpoch => 1,
        NackReason::DiskFailed => 2,
        NackReason::WrongDisk => 3,
        NackReason::NotYet => 4,
    }
}

fn encode_body(message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Hello { incarnation, disk_id, stamp } => {
            out.extend_from_slice(&incarnation.0.to_le_bytes());
            out.extend_from_slice(&disk_id.0.to_le_bytes());
            out.extend_from_slice(&stamp.0.to_le_bytes());
        }
        Message::HelloReply { incarnation, boot, disk_id, last_in_sync, suspect: _, stamp, .. } => {
            out.extend_from_slice(&incarnation.0.to_le_bytes());
            out.extend_from_slice(&boot.0.to_le_bytes());
            out.extend_from_slice(&disk_id.0.to_le_bytes());
            out.extend_from_slice(&last_in_sync.0.to_le_bytes());
            out.extend_from_slice(&stamp.0.to_le_bytes());
        }
        Message::WriteBatch { seq: _, groups } => {
            out.extend_from_slice(&(groups.len() as u32).to_le_bytes());
            for group in groups {
                out.extend_from_slice(&(group.len() as u32).to_le_bytes());
                for range in group {
                    out.extend_from_slice(&range.start.to_le_bytes());
                    out.extend_from_slice(&range.count.to_le_bytes());
                }
            }
        }
        _ => {}
    }
}

fn hello(body: &mut Cursor<'_>) -> Option<Message> {
    let incarnation = Incarnation(body.u64()?);
    let disk_id = DiskId(body.u128()?);
    Some(Message::Hello { incarnation, disk_id, stamp: Timestamp(body.u64()?) })
}

fn hello_reply(suspect: bool, body: &mut Cursor<'_>) -> Option<Message> {
    let incarnation = Incarnation(body.u64()?);
    let boot = Boot(body.u128()?);
    let disk_id = DiskId(body.u128()?);
    let last_in_sync = ConfigVersion(body.u64()?);
    let stamp = Timestamp(body.u64()?);
    Some(Message::HelloReply {
        incarnation,
        boot,
        disk_id,
        last_in_sync,
        suspect,
        stamp,
        uncertain: super::message::Uncertain::All,
    })
}

/// Counts are checked before anything is allocated for them.
fn groups(body: &mut Cursor<'_>) -> Result<Option<Vec<Vec<BlockRange>>>, Invalid> {
    let Some(group_count) = body.u32() else { return Ok(None) };
    let group_count = group_count as usize;
    if group_count > GROUPS_MAX {
        return Err(Invalid::TooManyGroups { found: group_count });
    }
    let mut ranges_total = 0;
    let mut groups = Vec::with_capacity(group_count);
    for _ in 0..group_count {
        let Some(range_count) = body.u32() else { return Ok(None) };
        ranges_total += range_count as usize;
        if ranges_total > RANGES_MAX {
            return Err(Invalid::TooManyRanges { found: ranges_total });
        }
        let mut group = Vec::with_capacity(range_count as usize);
        for _ in 0..range_count {
            let (Some(start), Some(count)) = (body.u64(), body.u64()) else { return Ok(None) };
            group.push(BlockRange { start, count });
        }
        groups.push(group);
    }
    Ok(Some(groups))
}

/// The rules that hold for every message in either direction.
fn check(message: &Message, payload_length: u64) -> Result<(), Invalid> {
    if payload_length > PAYLOAD_BYTES_MAX {
        return Err(Invalid::PayloadTooLong { bytes: payload_length });
    }
    let expected = match message {
        Message::Write { range, kind, .. } | Message::ResyncData { range, kind, .. } => {
            check_range(*range)?;
            if *kind == WriteKind::Data { range.count * BLOCK_BYTES } else { 0 }
        }
        Message::WriteBatch { groups, .. } => batch_bytes(groups)?,
        Message::DigestRequest { range, .. } | Message::Digest { range, .. } => {
            check_range(*range)?;
            let bytes = range.count * DIGEST_BYTES;
            if bytes > PAYLOAD_BYTES_MAX {
                return Err(Invalid::PayloadTooLong { bytes });
            }
            if matches!(message, Message::Digest { .. }) { bytes } else { 0 }
        }
        _ => 0,
    };
    if expected == payload_length { Ok(()) } else { Err(Invalid::PayloadLength { expected, found: payload_length }) }
}

/// After this, byte offsets and lengths of the range fit 64 bits.
fn check_range(range: BlockRange) -> Result<(), Invalid> {
    if range.count == 0 {
        return Err(Invalid::EmptyRange { start: range.start });
    }
    match range.start.checked_add(range.count) {
        Some(end) if end <= BLOCKS_MAX => Ok(()),
        _ => Err(Invalid::RangeOverflow { start: range.start, count: range.count }),
    }
}

fn batch_bytes(groups: &[Vec<BlockRange>]) -> Result<u64, Invalid> {
    if groups.len() > GROUPS_MAX {
        return Err(Invalid::TooManyGroups { found: groups.len() });
    }
    let ranges = groups.iter().map(Vec::len).sum();
    if ranges > RANGES_MAX {
        return Err(Invalid::TooManyRanges { found: ranges });
    }
    let mut total = 0u64;
    for range in groups.iter().flatten() {
        check_range(*range)?;
        total = total.saturating_add(range.count * BLOCK_BYTES);
    }
    if total > PAYLOAD_BYTES_MAX { Err(Invalid::PayloadTooLong { bytes: total }) } else { Ok(total) }
}
