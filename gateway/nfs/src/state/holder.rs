//! Who opens and locks: owners of NFSv4's clients and of the network lock manager's hosts, as one kind of thing, so that one
//! table has the locks of all protocols. An owner of SMB will be one more.

use bytes::Bytes;

use crate::ids::ClientId;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The longest owner of NFSv4 (RFC 8881 §3.2, NFS4_OPAQUE_LIMIT), and the longest owner handle of the network lock manager
/// (MAXNETOBJ_SZ).
pub const OWNER_BYTES_MAX: usize = 1024;
/// The longest name of a host (X/Open XNFS, LM_MAXSTRLEN).
pub const HOST_BYTES_MAX: usize = 1024;

const TAG_V4: u32 = 1;
const TAG_NLM: u32 = 2;

/// Whoever opens, locks, or reserves a share of a file. Open-owners and lock-owners of NFSv4 are never looked for in the same
/// table, so the same bytes as both are two owners (RFC 8881 §8.2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// An owner of NFSv4.
    V4 {
        /// Whose it is.
        client: ClientId,
        /// What the client calls it.
        owner: Bytes,
    },
    /// An owner of the network lock manager.
    Nlm {
        /// What the client calls itself (`caller_name`).
        host: Bytes,
        /// The process there; 0 for share reservations, which name none.
        svid: u32,
        /// What the client calls it.
        handle: Bytes,
    },
}

/// Who vanishes with all its owners.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A client of NFSv4.
    Client(ClientId),
    /// A host of the network lock manager.
    Host(Bytes),
}

/// A copy that keeps no message alive. None if it is too long.
fn bounded(bytes: &[u8], max: usize) -> Option<Bytes> {
    (bytes.len() <= max).then(|| Bytes::copy_from_slice(bytes))
}

impl Holder {
    /// An owner of NFSv4. None if it is longer than [`OWNER_BYTES_MAX`].
    pub fn v4(client: ClientId, owner: &[u8]) -> Option<Self> {
        Some(Self::V4 { client, owner: bounded(owner, OWNER_BYTES_MAX)? })
    }

    /// An owner of the network lock manager. None if a part is longer than [`HOST_BYTES_MAX`] or [`OWNER_BYTES_MAX`].
    pub fn nlm(host: &[u8], svid: u32, handle: &[u8]) -> Option<Self> {
        Some(Self::Nlm { host: bounded(host, HOST_BYTES_MAX)?, svid, handle: bounded(handle, OWNER_BYTES_MAX)? })
    }

    /// With whom it vanishes.
    pub fn party(&self) -> Party {
        match self {
            Self::V4 { client, .. } => Party::Client(*client),
            Self::Nlm { host, .. } => Party::Host(host.clone()),
        }
    }

    /// The client of NFSv4 that it belongs to.
    pub fn client(&self) -> Option<ClientId> {
        match self {
            Self::V4 { client, .. } => Some(*client),
            Self::Nlm { .. } => None,
        }
    }

    /// Bytes that it is told by.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::V4 { owner, .. } => owner.len(),
            Self::Nlm { host, handle, .. } => host.len() + handle.len(),
        }
    }

    pub(super) fn encode(&self, into: &mut Encoder) {
        match self {
            Self::V4 { client, owner } => {
                into.u32(TAG_V4);
                into.u64(client.0);
                into.opaque(owner);
            }
            Self::Nlm { host, svid, handle } => {
                into.u32(TAG_NLM);
                into.opaque(host);
                into.u32(*svid);
                into.opaque(handle);
            }
        }
    }

    pub(super) fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let copy = |bytes: Bytes| Bytes::copy_from_slice(&bytes);
        match from.u32()? {
            TAG_V4 => Ok(Self::V4 { client: ClientId(from.u64()?), owner: from.opaque(OWNER_BYTES_MAX).map(copy)? }),
            TAG_NLM => Ok(Self::Nlm {
                host: from.opaque(HOST_BYTES_MAX).map(copy)?,
                svid: from.u32()?,
                handle: from.opaque(OWNER_BYTES_MAX).map(copy)?,
            }),
            value => Err(XdrError::BadValue { of: "holder", value }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_come_back_from_their_records() {
        let holders = [
            Holder::v4(ClientId(7), b"").unwrap(),
            Holder::v4(ClientId(u64::MAX), &[9; OWNER_BYTES_MAX]).unwrap(),
            Holder::nlm(b"host", 12, b"12@host").unwrap(),
        ];
        for holder in holders {
            let mut encoder = Encoder::new();
            holder.encode(&mut encoder);
            let mut decoder = Decoder::new(encoder.to_bytes());
            assert_eq!(Holder::decode(&mut decoder), Ok(holder));
            assert_eq!(decoder.finish(), Ok(()));
        }
    }

    #[test]
    fn owners_that_are_too_long_are_none() {
        assert_eq!(Holder::v4(ClientId(1), &[0; OWNER_BYTES_MAX + 1]), None);
        assert_eq!(Holder::nlm(&[0; HOST_BYTES_MAX + 1], 0, b""), None);
        assert_eq!(Holder::nlm(b"", 0, &[0; OWNER_BYTES_MAX + 1]), None);
    }
}
