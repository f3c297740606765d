//! Versions 3 and 4 (RFC 1833 §2): addresses of any family, as text.

use bytes::Bytes;

use super::universal_address::{TEXT_BYTES_MAX, format, network_id};
use super::{Asked, Offer, Protocol, port_of, port_of_any};
use crate::address::SocketAddr;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Whose entries they are.
const OWNER: &[u8] = b"superuser";
/// `NC_TPI_CLTS` and `NC_TPI_COTS_ORD`: what the transports are like.
const DATAGRAMS: u32 = 1;
const STREAM: u32 = 3;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing is asked.
    Null,
    /// SET or UNSET: nobody may.
    Change,
    /// GETADDR, and GETVERSADDR of version 4: the address of a program.
    GetAddress {
        /// Program.
        program: u32,
        /// Its version.
        version: u32,
        /// By which transport; the one that the request came by if it says nothing.
        network_id: Bytes,
        /// No other version will do (GETVERSADDR).
        exact: bool,
    },
    /// All that is offered.
    Dump,
    /// The time.
    GetTime,
    /// GETADDRLIST of version 4: all addresses of a program.
    GetList {
        /// Program.
        program: u32,
        /// Its version.
        version: u32,
    },
}

impl Request {
    /// From the wire. None for procedures that are not here. Errors: bytes that are no arguments.
    pub fn decode(rpcbind_version: u32, procedure: u32, from: &mut Decoder) -> Result<Option<Self>, XdrError> {
        let request = match (procedure, rpcbind_version) {
            (0, _) => return Ok(Some(Self::Null)),
            (1..=3, _) | (9 | 11, 4) => {
                let (program, version) = (from.u32()?, from.u32()?);
                let network_id = from.opaque(TEXT_BYTES_MAX)?;
                let (_address, _owner) = (from.opaque(TEXT_BYTES_MAX)?, from.opaque(TEXT_BYTES_MAX)?);
                match procedure {
                    1 | 2 => Self::Change,
                    11 => Self::GetList { program, version },
                    _ => Self::GetAddress { program, version, network_id, exact: procedure == 9 },
                }
            }
            (4, _) => Self::Dump,
            (6, _) => Self::GetTime,
            _ => return Ok(None),
        };
        from.finish()?;
        Ok(Some(request))
    }

    /// Puts the result.
    pub fn answer(&self, offers: &[Offer], asked: &Asked, out: &mut Encoder) {
        let local = asked.local.to_canonical();
        match self {
            Self::Null => {}
            Self::Change => out.bool(false),
            Self::GetAddress { program, version, network_id, exact } => {
                let find = if *exact { port_of } else { port_of_any };
                let port = protocol(network_id, asked).and_then(|by| find(offers, *program, *version, by));
                let address = port.map_or(String::new(), |port| format(SocketAddr::new(local, port)));
                out.opaque(address.as_bytes());
            }
            Self::Dump => {
                for offer in offers {
                    out.bool(true);
                    out.u32(offer.program);
                    out.u32(offer.version);
                    out.opaque(network_id(offer.protocol, local).as_bytes());
                    out.opaque(format(SocketAddr::new(local, offer.port)).as_bytes());
                    out.opaque(OWNER);
                }
                out.bool(false);
            }
            Self::GetTime => out.u32(asked.seconds),
            Self::GetList { program, version } => {
                let of_program = |offer: &&Offer| (offer.program, offer.version) == (*program, *version);
                for offer in offers.iter().filter(of_program) {
                    out.bool(true);
                    put_entry(out, offer, SocketAddr::new(local, offer.port));
                }
                out.bool(false);
            }
        }
    }
}

/// The protocol of a transport that this address has. None for others.
fn protocol(network: &[u8], asked: &Asked) -> Option<Protocol> {
    match network {
        b"" => Some(asked.protocol),
        _ => [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .find(|protocol| network_id(*protocol, asked.local).as_bytes() == network),
    }
}

/// `rpcb_entry`.
fn put_entry(out: &mut Encoder, offer: &Offer, at: SocketAddr) {
    out.opaque(format(at).as_bytes());
    out.opaque(network_id(offer.protocol, at.ip()).as_bytes());
    let (semantics, protocol) = match offer.protocol {
        Protocol::Tcp => (STREAM, "tcp"),
        Protocol::Udp => (DATAGRAMS, "udp"),
    };
    out.u32(semantics);
    out.opaque(if at.is_ipv4() { b"inet" } else { b"inet6" });
    out.opaque(protocol.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::offers;
    use super::*;

    fn arguments(program: u32, version: u32, network: &str) -> Bytes {
        let mut out = Encoder::new();
        out.u32(program);
        out.u32(version);
        [network, "", ""].iter().for_each(|text| out.opaque(text.as_bytes()));
        out.to_bytes()
    }

    fn answer(version: u32, procedure: u32, arguments: Bytes, local: &str) -> Option<Decoder> {
        let asked = Asked { local: local.parse().unwrap(), protocol: Protocol::Tcp, seconds: 1_700_000_000 };
        let request = Request::decode(version, procedure, &mut Decoder::new(arguments)).ok()??;
        let mut out = Encoder::new();
        request.answer(&offers(2049), &asked, &mut out);
        Some(Decoder::new(out.to_bytes()))
    }

    fn address(version: u32, procedure: u32, arguments: Bytes, local: &str) -> String {
        let mut answer = answer(version, procedure, arguments, local).expect("an answer");
        let text = String::from_utf8(answer.opaque(64).unwrap().to_vec()).unwrap();
        assert_eq!(answer.finish(), Ok(()));
        text
    }

    #[test]
    fn addresses_are_those_that_the_request_came_to() {
        for (version, procedure) in [(3, 3), (4, 3), (4, 9)] {
            let of = |program, asked, network: &str, local: &str| {
                address(version, procedure, arguments(program, asked, network), local)
            };
            assert_eq!(of(100_021, 4, "tcp", "192.0.2.7"), "192.0.2.7.8.1");
            assert_eq!(of(100_021, 4, "udp", "::ffff:192.0.2.7"), "192.0.2.7.8.1");
            assert_eq!(of(100_024, 1, "tcp6", "2001:db8::7"), "2001:db8::7.8.1");
            assert_eq!(of(100_003, 3, "", "192.0.2.7"), "192.0.2.7.8.1", "as it came");
            assert_eq!(of(100_003, 3, "udp", "192.0.2.7"), "");
            assert_eq!(of(100_003, 3, "tcp6", "192.0.2.7"), "", "another family");
            let other_version = if procedure == 9 { "" } else { "192.0.2.7.8.1" };
            assert_eq!(of(100_021, 1, "tcp", "192.0.2.7"), other_version);
        }
    }

    #[test]
    fn all_is_listed_and_nothing_is_taken_or_called() {
        let mut all = answer(3, 4, Bytes::new(), "2001:db8::7").unwrap();
        let mut count = 0;
        while all.bool().unwrap() {
            count += 1;
            all.u64().unwrap();
            let network = all.opaque(8).unwrap();
            assert!([&b"tcp6"[..], b"udp6"].contains(&&*network));
            assert!(all.opaque(64).unwrap().starts_with(b"2001:db8::7."));
            assert_eq!(all.opaque(64).unwrap(), OWNER);
        }
        assert_eq!((count, all.finish()), (offers(2049).len(), Ok(())));
        let mut list = answer(4, 11, arguments(100_021, 4, ""), "192.0.2.7").unwrap();
        for (network, semantics) in [("tcp", STREAM), ("udp", DATAGRAMS)] {
            assert_eq!(list.bool(), Ok(true));
            assert_eq!(list.opaque(64).unwrap(), "192.0.2.7.8.1");
            assert_eq!((list.opaque(8).unwrap(), list.u32()), (network.into(), Ok(semantics)));
            assert_eq!((list.opaque(8).unwrap(), list.opaque(8).unwrap()), ("inet".into(), network.into()));
        }
        assert_eq!((list.bool(), list.finish()), (Ok(false), Ok(())));
        assert_eq!(answer(3, 6, Bytes::new(), "192.0.2.7").unwrap().u32(), Ok(1_700_000_000));
        for procedure in [1, 2] {
            let refused = answer(4, procedure, arguments(100_021, 4, "tcp"), "192.0.2.7").unwrap().u32();
            assert_eq!(refused, Ok(0));
        }
        for (version, procedure) in [(3, 5), (4, 5), (4, 10), (3, 9), (3, 11), (3, 7), (4, 8), (4, 12), (4, 13)] {
            assert!(answer(version, procedure, arguments(1, 1, ""), "192.0.2.7").is_none());
        }
    }

    #[test]
    fn torn_longer_and_endless_requests_are_none() {
        let whole = arguments(100_021, 4, "tcp");
        for length in 0..whole.len() {
            assert!(answer(4, 3, whole.slice(..length), "192.0.2.7").is_none());
        }
        assert!(answer(4, 3, [&whole[..], &[0; 4]].concat().into(), "192.0.2.7").is_none());
        assert!(answer(4, 3, arguments(1, 1, &"x".repeat(129)), "192.0.2.7").is_none());
    }
}
