//! A session (RFC 8881 §2.10): what its two channels were agreed to carry. Its slots and connections are kept elsewhere.

use bytes::Bytes;

use crate::ids::{ClientId, SessionId};
use crate::state::record::Payload;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The largest request and reply: 1 MiB of data, and what is before and behind it.
pub const MESSAGE_BYTES_MAX: u32 = (1 << 20) + 4_096;
/// The smallest that a client may ask for.
pub const MESSAGE_BYTES_MIN: u32 = 256;
/// The longest reply that a slot keeps (`ca_maxresponsesize_cached`): its record fits a block of the state ring.
pub const CACHED_REPLY_BYTES_MAX: u32 = 2_048;
/// Operations of a compound.
pub const OPERATIONS_MAX: u32 = 64;
/// Operations of a compound of the back channel.
pub const CALLBACK_OPERATIONS_MAX: u32 = 16;
/// The fewest that a back channel needs: CB_SEQUENCE and one more.
const CALLBACK_OPERATIONS_MIN: u32 = 2;
/// Slots that every session gets that asks for them.
pub const SLOTS_DEFAULT: u32 = 64;
/// Slots of one session.
pub const SLOTS_MAX: u32 = 1_024;
/// Slots of the back channel.
pub const CALLBACK_SLOTS_MAX: u32 = 16;
/// Bytes of what callbacks authenticate with.
pub const CALLBACK_SECURITY_BYTES_MAX: usize = 512;

/// `CREATE_SESSION4_FLAG_PERSIST`: replies outlive the server.
pub const FLAG_PERSIST: u32 = 1;
/// `CREATE_SESSION4_FLAG_CONN_BACK_CHAN`: the connection carries callbacks.
pub const FLAG_BACK_CHANNEL: u32 = 2;
/// `CREATE_SESSION4_FLAG_CONN_RDMA`, which is never granted.
const FLAG_RDMA: u32 = 4;
/// All that a client may set.
pub const FLAGS: u32 = FLAG_PERSIST | FLAG_BACK_CHANNEL | FLAG_RDMA;

/// What one channel carries (RFC 8881 §18.36.1, `channel_attrs4`, without RDMA).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelAttributes {
    /// Bytes of padding before data.
    pub header_padding: u32,
    /// Bytes of a request.
    pub request_bytes_max: u32,
    /// Bytes of a reply.
    pub reply_bytes_max: u32,
    /// Bytes of a reply that is kept.
    pub cached_reply_bytes_max: u32,
    /// Operations of a compound.
    pub operations_max: u32,
    /// Slots.
    pub requests_max: u32,
}

/// What CREATE_SESSION answers (RFC 8881 §18.36.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionGrant {
    /// The session.
    pub session: SessionId,
    /// The sequence that was asked with.
    pub sequence: u32,
    /// Those of [`FLAGS`] that hold.
    pub flags: u32,
    /// From client to server.
    pub fore: ChannelAttributes,
    /// From server to client.
    pub back: ChannelAttributes,
}

/// What is kept of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whose it is.
    pub client: ClientId,
    /// Those of [`FLAGS`] that were granted.
    pub flags: u32,
    /// From client to server; its number of slots never shrinks.
    pub fore: ChannelAttributes,
    /// From server to client.
    pub back: ChannelAttributes,
    /// True once a connection was to carry callbacks.
    pub wants_callbacks: bool,
    /// The client's RPC program for callbacks.
    pub callback_program: u32,
    /// What callbacks authenticate with, as the caller encodes it.
    pub callback_security: Bytes,
}

impl ChannelAttributes {
    /// What a fore channel gets of what it asks for; `slots` at most. Linux takes no fewer operations than it asks for.
    ///
    /// Errors: [`Status::TooSmall`].
    pub fn grant_fore(self, slots: u32) -> Result<Self, Status> {
        self.expect_room(1)?;
        Ok(Self {
            header_padding: 0,
            request_bytes_max: self.request_bytes_max.min(MESSAGE_BYTES_MAX),
            reply_bytes_max: self.reply_bytes_max.min(MESSAGE_BYTES_MAX),
            cached_reply_bytes_max: self.cached_reply_bytes_max.min(CACHED_REPLY_BYTES_MAX),
            operations_max: self.operations_max.min(OPERATIONS_MAX),
            requests_max: self.requests_max.clamp(1, slots.clamp(1, SLOTS_MAX)),
        })
    }

    /// The same of a back channel. Linux takes no smaller replies than it asks for; a callback's is small anyway.
    pub fn grant_back(self) -> Result<Self, Status> {
        self.expect_room(CALLBACK_OPERATIONS_MIN)?;
        Ok(Self {
            header_padding: 0,
            request_bytes_max: self.request_bytes_max.min(MESSAGE_BYTES_MAX),
            operations_max: self.operations_max.min(CALLBACK_OPERATIONS_MAX),
            requests_max: self.requests_max.clamp(1, CALLBACK_SLOTS_MAX),
            ..self
        })
    }

    fn expect_room(self, operations: u32) -> Result<(), Status> {
        let bytes = self.request_bytes_max.min(self.reply_bytes_max);
        match bytes >= MESSAGE_BYTES_MIN && self.operations_max >= operations {
            true => Ok(()),
            false => Err(Status::TooSmall),
        }
    }

    pub(super) fn encode(&self, into: &mut Encoder) {
        let Self { header_padding, request_bytes_max, reply_bytes_max, .. } = *self;
        let Self { cached_reply_bytes_max, operations_max, requests_max, .. } = *self;
        let first = [header_padding, request_bytes_max, reply_bytes_max];
        for word in first.into_iter().chain([cached_reply_bytes_max, operations_max, requests_max]) {
            into.u32(word);
        }
    }

    pub(super) fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self {
            header_padding: from.u32()?,
            request_bytes_max: from.u32()?,
            reply_bytes_max: from.u32()?,
            cached_reply_bytes_max: from.u32()?,
            operations_max: from.u32()?,
            requests_max: from.u32()?,
        })
    }
}

impl SessionGrant {
    pub(super) fn encode(&self, into: &mut Encoder) {
        into.fixed(&self.session.to_bytes());
        into.u32(self.sequence);
        into.u32(self.flags);
        self.fore.encode(into);
        self.back.encode(into);
    }

    pub(super) fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let session = SessionId::from_bytes(from.fixed()?);
        let (sequence, flags) = (from.u32()?, from.u32()?);
        let (fore, back) = (ChannelAttributes::decode(from)?, ChannelAttributes::decode(from)?);
        Ok(Self { session, sequence, flags, fore, back })
    }
}

impl Payload for Session {
    const VERSION: u32 = 1;

    fn encode(&self, into: &mut Encoder) {
        into.u64(self.client.0);
        into.u32(self.flags);
        self.fore.encode(into);
        self.back.encode(into);
        into.bool(self.wants_callbacks);
        into.u32(self.callback_program);
        into.opaque(&self.callback_security);
    }

    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let (client, flags) = (ClientId(from.u64()?), from.u32()?);
        let (fore, back) = (slots(from, SLOTS_MAX)?, slots(from, CALLBACK_SLOTS_MAX)?);
        let (wants_callbacks, callback_program) = (from.bool()?, from.u32()?);
        let callback_security = from.opaque(CALLBACK_SECURITY_BYTES_MAX)?;
        Ok(Self { client, flags, fore, back, wants_callbacks, callback_program, callback_security })
    }
}

/// A channel with at least one slot, and at most `max`.
fn slots(from: &mut Decoder, max: u32) -> Result<ChannelAttributes, XdrError> {
    let channel = ChannelAttributes::decode(from)?;
    match (1..=max).contains(&channel.requests_max) {
        true => Ok(channel),
        false => Err(XdrError::BadValue { of: "slots", value: channel.requests_max }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a Linux client asks for, of either channel.
    const FORE: ChannelAttributes = ChannelAttributes {
        header_padding: 0,
        request_bytes_max: (1 << 20) + 1_000,
        reply_bytes_max: (1 << 20) + 600,
        cached_reply_bytes_max: 4_000,
        operations_max: 8,
        requests_max: 64,
    };
    const BACK: ChannelAttributes = ChannelAttributes {
        header_padding: 0,
        request_bytes_max: 4_096,
        reply_bytes_max: 4_096,
        cached_reply_bytes_max: 0,
        operations_max: 2,
        requests_max: 16,
    };

    #[test]
    fn a_channel_gets_what_it_asks_for_within_bounds() {
        let fore = FORE.grant_fore(SLOTS_MAX).unwrap();
        assert_eq!(fore, ChannelAttributes { cached_reply_bytes_max: CACHED_REPLY_BYTES_MAX, ..FORE });
        assert_eq!(BACK.grant_back(), Ok(BACK), "Linux refuses other bounds of a back channel");
        let greedy = ChannelAttributes {
            header_padding: 9,
            request_bytes_max: u32::MAX,
            reply_bytes_max: u32::MAX,
            cached_reply_bytes_max: u32::MAX,
            operations_max: u32::MAX,
            requests_max: u32::MAX,
        };
        let granted = greedy.grant_fore(u32::MAX).unwrap();
        assert_eq!((granted.header_padding, granted.requests_max), (0, SLOTS_MAX));
        assert_eq!((granted.request_bytes_max, granted.reply_bytes_max), (MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX));
        assert_eq!((granted.operations_max, granted.cached_reply_bytes_max), (OPERATIONS_MAX, CACHED_REPLY_BYTES_MAX));
        assert_eq!(greedy.grant_back().unwrap().requests_max, CALLBACK_SLOTS_MAX);
        assert_eq!(ChannelAttributes { requests_max: 0, ..FORE }.grant_fore(64).unwrap().requests_max, 1);
    }

    #[test]
    fn a_channel_that_can_carry_nothing_is_refused() {
        for bad in [
            ChannelAttributes { request_bytes_max: 20, ..FORE },
            ChannelAttributes { reply_bytes_max: 0, ..FORE },
            ChannelAttributes { operations_max: 0, ..FORE },
        ] {
            assert_eq!(bad.grant_fore(64), Err(Status::TooSmall), "{bad:?}");
            assert_eq!(bad.grant_back(), Err(Status::TooSmall), "{bad:?}");
        }
        assert_eq!(ChannelAttributes { operations_max: 1, ..BACK }.grant_back(), Err(Status::TooSmall));
    }

    #[test]
    fn a_session_comes_back_from_its_record_and_a_slotless_one_does_not() {
        let mut session = Session {
            client: ClientId(5),
            flags: FLAG_PERSIST,
            fore: FORE,
            back: BACK,
            wants_callbacks: true,
            callback_program: 0x4000_0000,
            callback_security: Bytes::from_static(b"security"),
        };
        assert_eq!(Session::from_payload(&session.to_payload()), Ok(session.clone()));
        session.fore.requests_max = 0;
        assert!(Session::from_payload(&session.to_payload()).is_err());
        session.fore.requests_max = SLOTS_MAX + 1;
        assert!(Session::from_payload(&session.to_payload()).is_err());
    }
}
