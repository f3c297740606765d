//! Who opens and locks: owners of NFSv4's clients and of the network lock manager's hosts, as one kind of thing, so that one
//! table has the locks of all protocols. An owner of SMB will be one more.

use bytes::Bytes;

use crate::address::{IpAddr, Ipv6Addr};
use crate::ids::ClientId;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The longest owner of NFSv4 (RFC 8881 §3.2, NFS4_OPAQUE_LIMIT), and the longest owner handle of the network lock manager
/// (MAXNETOBJ_SZ).
pub const OWNER_BYTES_MAX: usize = 1024;
/// The longest name of a host (X/Open XNFS, LM_MAXSTRLEN).
pub const HOST_BYTES_MAX: usize = 1024;

const TAG_V4: u32 = 1;
const TAG_NLM: u32 = 2;

/// A host of the network lock manager: a name, and the address that it is used from. So a host can neither take nor drop what
/// another one has by calling itself like it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    name: Bytes,
    address: IpAddr,
}

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
        /// Where it runs.
        host: Host,
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
    Host(Host),
}

/// A copy that keeps no message alive. None if it is too long.
fn bounded(bytes: &[u8], max: usize) -> Option<Bytes> {
    (bytes.len() <= max).then(|| Bytes::copy_from_slice(bytes))
}

impl Host {
    /// One that calls itself so (`caller_name`, `mon_name`). None if that is longer than [`HOST_BYTES_MAX`].
    pub fn new(name: &[u8], address: IpAddr) -> Option<Self> {
        Some(Self { name: bounded(name, HOST_BYTES_MAX)?, address: address.to_canonical() })
    }

    /// What it calls itself.
    pub fn name(&self) -> &Bytes {
        &self.name
    }

    /// Where it calls from; never IPv4 in IPv6.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub(super) fn encode(&self, into: &mut Encoder) {
        into.opaque(&self.name);
        encode_address(into, self.address);
    }

    pub(super) fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let name = from.opaque(HOST_BYTES_MAX)?;
        Ok(Self { name: Bytes::copy_from_slice(&name), address: decode_address(from)? })
    }
}

pub(super) fn encode_address(into: &mut Encoder, address: IpAddr) {
    let bytes = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    into.fixed(&bytes);
}

pub(super) fn decode_address(from: &mut Decoder) -> Result<IpAddr, XdrError> {
    Ok(IpAddr::V6(Ipv6Addr::from(from.fixed::<16>()?)).to_canonical())
}

impl Holder {
    /// An owner of NFSv4. None if it is longer than [`OWNER_BYTES_MAX`].
    pub fn v4(client: ClientId, owner: &[u8]) -> Option<Self> {
        Some(Self::V4 { client, owner: bounded(owner, OWNER_BYTES_MAX)? })
    }

    /// An owner of the network lock manager. None if it is longer than [`OWNER_BYTES_MAX`].
    pub fn nlm(host: &Host, svid: u32, handle: &[u8]) -> Option<Self> {
        Some(Self::Nlm { host: host.clone(), svid, handle: bounded(handle, OWNER_BYTES_MAX)? })
    }

    /// The host of the network lock manager that it belongs to.
    pub fn host(&self) -> Option<&Host> {
        match self {
            Self::V4 { .. } => None,
            Self::Nlm { host, .. } => Some(host),
        }
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
            Self::Nlm { host, handle, .. } => host.name.len() + handle.len(),
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
                host.encode(into);
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
                host: Host::decode(from)?,
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
            Holder::nlm(&Host::new(b"host", "192.0.2.1".parse().unwrap()).unwrap(), 12, b"12@host").unwrap(),
            Holder::nlm(&Host::new(b"", "2001:db8::1".parse().unwrap()).unwrap(), 0, b"").unwrap(),
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
    fn hosts_are_told_apart_by_name_and_address_and_an_address_is_the_same_however_it_is_written() {
        let host = |name: &[u8], address: &str| Host::new(name, address.parse().unwrap()).unwrap();
        assert_eq!(host(b"a", "192.0.2.1"), host(b"a", "::ffff:192.0.2.1"));
        assert_ne!(host(b"a", "192.0.2.1"), host(b"a", "192.0.2.2"));
        assert_ne!(host(b"a", "192.0.2.1"), host(b"b", "192.0.2.1"));
    }

    #[test]
    fn owners_that_are_too_long_are_none() {
        assert_eq!(Holder::v4(ClientId(1), &[0; OWNER_BYTES_MAX + 1]), None);
        let address = "192.0.2.1".parse().unwrap();
        assert_eq!(Host::new(&[0; HOST_BYTES_MAX + 1], address), None);
        let host = Host::new(b"", address).unwrap();
        assert_eq!(Holder::nlm(&host, 0, &[0; OWNER_BYTES_MAX + 1]), None);
    }
}
