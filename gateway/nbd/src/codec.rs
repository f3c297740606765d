//! The wire: constants and fixed-size headers of the NBD protocol, all big-endian.
//!
//! Pure and stateless. What a value means for a connection is decided in [`crate::session`].

use bytes::{BufMut, BytesMut};
use thiserror::Error;

/// First eight bytes a server sends: `NBDMAGIC`.
pub const MAGIC_SERVER: u64 = 0x4e42_444d_4147_4943;
/// Magic of newstyle servers and of every option: `IHAVEOPT`.
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// Magic of every option reply.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Magic of every request.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Magic of a simple reply.
pub const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
/// Magic of a structured reply chunk.
pub const MAGIC_STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Handshake flag, both directions: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag, both directions: no 124 zero bytes after `NBD_OPT_EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Option codes (`NBD_OPT_*`).
pub mod option {
    #![allow(missing_docs)]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Option reply types (`NBD_REP_*`).
pub mod reply {
    #![allow(missing_docs)]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    pub const ERR_INVALID: u32 = 0x8000_0003;
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
}

/// Information types of `NBD_REP_INFO` (`NBD_INFO_*`).
pub mod info {
    #![allow(missing_docs)]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags (`NBD_FLAG_*`).
pub mod transmission {
    #![allow(missing_docs)]
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Request types (`NBD_CMD_*`).
pub mod command {
    #![allow(missing_docs)]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags (`NBD_CMD_FLAG_*`).
pub mod command_flag {
    #![allow(missing_docs)]
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Structured reply chunk types (`NBD_REPLY_TYPE_*`).
pub mod chunk {
    #![allow(missing_docs)]
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = 1 << 15 | 1;
    /// Chunk flag: the last one of its reply.
    pub const FLAG_DONE: u16 = 1 << 0;
}

/// `base:allocation` state bits: a hole that reads as zeros.
pub const STATE_HOLE_AND_ZERO: u32 = 1 << 0 | 1 << 1;
/// Name of the one metadata context offered.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Identifier of `base:allocation` on every connection.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// Bytes of a request header.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of an option header.
pub const OPTION_HEADER_BYTES: usize = 16;

/// Error values of replies; the protocol fixes their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorNumber {
    /// `NBD_EIO`.
    Io = 5,
    /// `NBD_EINVAL`.
    Invalid = 22,
    /// `NBD_ENOSPC`.
    NoSpace = 28,
    /// `NBD_EOVERFLOW`.
    Overflow = 75,
}

/// The client's own name of a request, echoed in its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

/// A break of the protocol that leaves no way to go on: the connection closes.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// A request did not start with its magic.
    #[error("request magic {0:#010x}")]
    RequestMagic(u32),
    /// An option did not start with its magic.
    #[error("option magic {0:#018x}")]
    OptionMagic(u64),
    /// The client set handshake flags this server did not offer.
    #[error("client flags {0:#010x}")]
    ClientFlags(u32),
    /// The option's payload is longer than this server is ready to skip.
    #[error("option {option} with a payload of {length} bytes")]
    OptionLength {
        /// Option code.
        option: u32,
        /// Its length field.
        length: u32,
    },
    /// More options than a negotiation needs.
    #[error("too many options")]
    OptionCount,
    /// A client without the fixed newstyle flag may only send `NBD_OPT_EXPORT_NAME`.
    #[error("option {0} from a client that did not ask for fixed newstyle")]
    NotFixedNewstyle(u32),
    /// The payload of `NBD_OPT_EXPORT_NAME`, which has no error reply, is not a name.
    #[error("malformed export name")]
    ExportName,
}

/// A request header as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags.
    pub flags: u16,
    /// Request type.
    pub command: u16,
    /// Echoed in the reply.
    pub cookie: Cookie,
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl RequestHeader {
    /// Decodes the 28 bytes of a request.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(bytes);
        let magic = fields.u32().unwrap_or_default();
        if magic != MAGIC_REQUEST {
            return Err(ProtocolError::RequestMagic(magic));
        }
        Ok(Self {
            flags: fields.u16().unwrap_or_default(),
            command: fields.u16().unwrap_or_default(),
            cookie: Cookie(fields.u64().unwrap_or_default()),
            offset: fields.u64().unwrap_or_default(),
            length: fields.u32().unwrap_or_default(),
        })
    }

    /// Encodes the header, as a client would.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u32(MAGIC_REQUEST);
        out.put_u16(self.flags);
        out.put_u16(self.command);
        out.put_u64(self.cookie.0);
        out.put_u64(self.offset);
        out.put_u32(self.length);
    }
}

/// An option header as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Option code.
    pub option: u32,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Decodes the 16 bytes before an option's payload.
    pub fn decode(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(bytes);
        let magic = fields.u64().unwrap_or_default();
        if magic != MAGIC_OPTION {
            return Err(ProtocolError::OptionMagic(magic));
        }
        Ok(Self { option: fields.u32().unwrap_or_default(), length: fields.u32().unwrap_or_default() })
    }
}

/// Appends one option reply.
pub fn put_option_reply(out: &mut Vec<u8>, option: u32, reply: u32, payload: &[u8]) {
    out.put_u64(MAGIC_OPTION_REPLY);
    out.put_u32(option);
    out.put_u32(reply);
    out.put_u32(u32::try_from(payload.len()).expect("an option reply is far below 4 GiB"));
    out.put_slice(payload);
}

/// Appends a simple reply; `error` is `None` for success.
pub fn put_simple_reply(out: &mut BytesMut, cookie: Cookie, error: Option<ErrorNumber>) {
    out.put_u32(MAGIC_SIMPLE_REPLY);
    out.put_u32(error.map_or(0, |error| error as u32));
    out.put_u64(cookie.0);
}

/// Appends the 20-byte header of a structured reply chunk whose payload has `length` bytes.
pub fn put_chunk_header(out: &mut BytesMut, flags: u16, kind: u16, cookie: Cookie, length: usize) {
    out.put_u32(MAGIC_STRUCTURED_REPLY);
    out.put_u16(flags);
    out.put_u16(kind);
    out.put_u64(cookie.0);
    out.put_u32(u32::try_from(length).expect("a chunk is bounded by the payload limit"));
}

/// Cuts big-endian fields off the front of a slice; `None` when it is too short.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its 32-bit length before it: UTF-8, at most 4096 bytes.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        if length > crate::STRING_BYTES_MAX {
            return None;
        }
        std::str::from_utf8(self.bytes(length)?).ok()
    }
}
