//! What the worker asks its supervisor, and the answers: one datagram each. Pure.
//!
//! Both ends are the same program (the supervisor starts itself as the worker), so there is one version. Still the
//! supervisor must survive a worker that has gone mad: decoding takes any bytes. Numbers are in network order; a
//! descriptor, where one belongs, travels beside the bytes (SCM_RIGHTS).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::net::address::FloatingAddress;

/// Longest message, in bytes; one that fills it is too long.
pub(super) const MESSAGE_BYTES_MAX: usize = 128;

const LISTEN: u8 = 1;
const DROP_LISTENER: u8 = 2;
const HOLD: u8 = 3;
const CLOSED: u8 = 4;
const ADDRESS_COMES: u8 = 5;
const ADDRESS_GONE: u8 = 6;

const LISTENING: u8 = 1;
const REFUSED: u8 = 2;
const FULL: u8 = 3;

const IPV4: u8 = 4;
const IPV6: u8 = 6;

/// What the worker asks. Only [`Self::Listen`] is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A descriptor of the listener on this address, which is made if there is none.
    Listen { number: u32, address: SocketAddr },
    /// The listener is not needed any more.
    DropListener { address: SocketAddr, silently: bool },
    /// The descriptor that comes along is of a connection that is to outlive the worker.
    Hold { connection: u64 },
    /// The worker has closed this one.
    Closed { connection: u64 },
    /// The worker is about to put this address on an interface.
    AddressComes(FloatingAddress),
    /// The worker has taken it off.
    AddressGone(FloatingAddress),
}

/// What the supervisor answers to the request with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The descriptor that comes along is of the listener.
    Listening { number: u32 },
    /// The operating system does not allow it, and why.
    Refused { number: u32, errno: i32 },
    /// Too many listeners.
    Full { number: u32 },
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MESSAGE_BYTES_MAX);
        match self {
            Self::Listen { number, address } => {
                bytes.push(LISTEN);
                bytes.extend(number.to_be_bytes());
                put_socket_address(&mut bytes, *address);
            }
            Self::DropListener { address, silently } => {
                bytes.extend([DROP_LISTENER, u8::from(*silently)]);
                put_socket_address(&mut bytes, *address);
            }
            Self::Hold { connection } => {
                bytes.push(HOLD);
                bytes.extend(connection.to_be_bytes());
            }
            Self::Closed { connection } => {
                bytes.push(CLOSED);
                bytes.extend(connection.to_be_bytes());
            }
            Self::AddressComes(floating) => put_floating(&mut bytes, ADDRESS_COMES, floating),
            Self::AddressGone(floating) => put_floating(&mut bytes, ADDRESS_GONE, floating),
        }
        bytes
    }

    /// `None` for what is no request.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Reader { rest: bytes };
        let request = match bytes.byte()? {
            LISTEN => Self::Listen { number: bytes.u32()?, address: bytes.socket_address()? },
            DROP_LISTENER => {
                let silently = bytes.flag()?;
                Self::DropListener { address: bytes.socket_address()?, silently }
            }
            HOLD => Self::Hold { connection: bytes.u64()? },
            CLOSED => Self::Closed { connection: bytes.u64()? },
            ADDRESS_COMES => Self::AddressComes(bytes.floating()?),
            ADDRESS_GONE => Self::AddressGone(bytes.floating()?),
            _ => return None,
        };
        bytes.rest.is_empty().then_some(request)
    }
}

impl Answer {
    pub(super) fn encode(self) -> Vec<u8> {
        let (kind, number) = match self {
            Self::Listening { number } => (LISTENING, number),
            Self::Refused { number, .. } => (REFUSED, number),
            Self::Full { number } => (FULL, number),
        };
        let mut bytes = vec![kind];
        bytes.extend(number.to_be_bytes());
        if let Self::Refused { errno, .. } = self {
            bytes.extend(errno.to_be_bytes());
        }
        bytes
    }

    /// `None` for what is no answer.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Reader { rest: bytes };
        let (kind, number) = (bytes.byte()?, bytes.u32()?);
        let answer = match kind {
            LISTENING => Self::Listening { number },
            REFUSED => Self::Refused { number, errno: i32::from_be_bytes(bytes.array()?) },
            FULL => Self::Full { number },
            _ => return None,
        };
        bytes.rest.is_empty().then_some(answer)
    }

    /// Of the request that is answered.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Listening { number } | Self::Refused { number, .. } | Self::Full { number } => number,
        }
    }
}

fn put_ip(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            bytes.push(IPV4);
            bytes.extend(address.octets());
        }
        IpAddr::V6(address) => {
            bytes.push(IPV6);
            bytes.extend(address.octets());
        }
    }
}

fn put_socket_address(bytes: &mut Vec<u8>, address: SocketAddr) {
    put_ip(bytes, address.ip());
    bytes.extend(address.port().to_be_bytes());
    if let SocketAddr::V6(address) = address {
        bytes.extend(address.scope_id().to_be_bytes());
    }
}

fn put_floating(bytes: &mut Vec<u8>, kind: u8, floating: &FloatingAddress) {
    bytes.push(kind);
    put_ip(bytes, floating.address());
    bytes.push(floating.prefix_length());
    bytes.extend(floating.interface().as_bytes());
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn array<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        let (head, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn ip(&mut self) -> Option<IpAddr> {
        match self.byte()? {
            IPV4 => self.array().map(|octets: [u8; 4]| Ipv4Addr::from(octets).into()),
            IPV6 => self.array().map(|octets: [u8; 16]| Ipv6Addr::from(octets).into()),
            _ => None,
        }
    }

    fn socket_address(&mut self) -> Option<SocketAddr> {
        let (address, port) = (self.ip()?, u16::from_be_bytes(self.array()?));
        match address {
            IpAddr::V4(_) => Some(SocketAddr::new(address, port)),
            IpAddr::V6(address) => Some(SocketAddrV6::new(address, port, 0, self.u32()?).into()),
        }
    }

    fn floating(&mut self) -> Option<FloatingAddress> {
        let (address, prefix_length) = (self.ip()?, self.byte()?);
        let interface = std::str::from_utf8(std::mem::take(&mut self.rest)).ok()?;
        FloatingAddress::new(address, prefix_length, interface).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let addresses: [SocketAddr; 2] = ["192.0.2.7:2049".parse().unwrap(), "[fe80::7%3]:111".parse().unwrap()];
        let longest = FloatingAddress::new("2001:db8::7".parse().unwrap(), 64, "fifteen-letters").unwrap();
        let mut requests = vec![
            Request::Hold { connection: u64::MAX },
            Request::Closed { connection: 1 },
            Request::AddressComes(longest.clone()),
            Request::AddressGone(longest),
        ];
        for address in addresses {
            requests.push(Request::Listen { number: u32::MAX, address });
            requests.push(Request::DropListener { address, silently: true });
        }
        requests
    }

    const ANSWERS: [Answer; 3] =
        [Answer::Listening { number: 7 }, Answer::Refused { number: u32::MAX, errno: 13 }, Answer::Full { number: 0 }];

    #[test]
    fn messages_survive_their_bytes_and_fit() {
        for request in requests() {
            assert!(request.encode().len() < MESSAGE_BYTES_MAX);
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for answer in ANSWERS {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn torn_longer_and_damaged_requests_are_nothing_or_another_request() {
        for bytes in requests().iter().map(Request::encode) {
            for length in 0..bytes.len() {
                // An interface's name may be shorter, and nothing else.
                let torn = Request::decode(&bytes[..length]);
                assert!(matches!(torn, None | Some(Request::AddressComes(_) | Request::AddressGone(_))), "{torn:?}");
            }
            for at in 0..bytes.len() {
                for value in 0..=u8::MAX {
                    let mut damaged = bytes.clone();
                    damaged[at] = value;
                    let again = Request::decode(&damaged).map(|request| request.encode());
                    assert!(again.is_none_or(|again| again == damaged));
                }
            }
            assert_eq!(Request::decode(&[&bytes[..], &[0]].concat()), None);
        }
    }

    #[test]
    fn torn_longer_and_unknown_answers_are_nothing() {
        for bytes in ANSWERS.map(Answer::encode) {
            for length in 0..bytes.len() {
                assert_eq!(Answer::decode(&bytes[..length]), None);
            }
            assert_eq!(Answer::decode(&[&bytes[..], &[0]].concat()), None);
            for kind in [0, 4, u8::MAX] {
                assert_eq!(Answer::decode(&[&[kind], &bytes[1..]].concat()), None);
            }
        }
    }
}
