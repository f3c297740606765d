//! The four rtnetlink messages that a floating address needs, and the kernel's answers. Pure.
//!
//! Sources: netlink(7), rtnetlink(7), linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h, linux/ip.h. Numbers are in the
//! order of the machine's bytes, addresses in that of the network. Our own rather than a crate's: the crates for it bring
//! a runtime of their own or several thousand lines, and this is two hundred.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_F_NODAD: u8 = 0x2;
const LIFETIME_FOREVER: u32 = u32::MAX;

const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_PROMOTE_SECONDARIES: u16 = 20;
/// Flags of an attribute's type that are no part of it (`NLA_TYPE_MASK`).
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const ADDRESS_MESSAGE_BYTES: usize = 8;

/// An address as the kernel has it, or is to have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InterfaceAddress {
    pub(super) address: IpAddr,
    pub(super) prefix_length: u8,
    pub(super) interface_index: u32,
}

/// One message of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The request was done, or the list is at its end.
    Done,
    /// The request was refused.
    Failed(Errno),
    /// An entry of a list.
    Address(InterfaceAddress),
    /// The list changed while it was read and may lack entries.
    Interrupted,
}

/// Asks for `entry` to be made; refused when it is there.
pub(super) fn add(sequence: u32, entry: InterfaceAddress) -> Vec<u8> {
    let mut message = Message::new(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence);
    message.address(entry, IFA_F_NODAD);
    if entry.address.is_ipv6() {
        // Valid for ever, preferred for no time: it never becomes the source of a connection that this box opens, which
        // would break when the address moves. For IPv4 the box's own address comes first in its network anyway.
        let preferred = 0_u32;
        let cache_info = [preferred, LIFETIME_FOREVER, 0, 0].map(u32::to_ne_bytes).concat();
        message.attribute(IFA_CACHEINFO, &cache_info);
    }
    message.finish()
}

/// Asks for `entry` to be removed; refused with EADDRNOTAVAIL when it is not there.
pub(super) fn remove(sequence: u32, entry: InterfaceAddress) -> Vec<u8> {
    let mut message = Message::new(RTM_DELADDR, NLM_F_ACK, sequence);
    message.address(entry, 0);
    message.finish()
}

/// Asks for all addresses of the family of `address`, on every interface.
pub(super) fn list(sequence: u32, address: IpAddr) -> Vec<u8> {
    let mut message = Message::new(RTM_GETADDR, NLM_F_DUMP, sequence);
    message.bytes.extend([family(address), 0, 0, 0, 0, 0, 0, 0]);
    message.finish()
}

/// Asks that the removal of an interface's first IPv4 address of a network leaves the others of that network there.
/// Without it the kernel removes them all (ip-sysctl, `promote_secondaries`).
pub(super) fn promote_secondaries(sequence: u32, interface_index: u32) -> Vec<u8> {
    let on = attribute(IPV4_DEVCONF_PROMOTE_SECONDARIES, &1_u32.to_ne_bytes());
    let of_ipv4 = attribute(u16::from(AF_INET), &attribute(IFLA_INET_CONF, &on));
    let mut message = Message::new(RTM_SETLINK, NLM_F_ACK, sequence);
    message.bytes.extend([AF_UNSPEC, 0, 0, 0]);
    message.bytes.extend(interface_index.to_ne_bytes());
    message.bytes.extend([0; 8]);
    message.attribute(IFLA_AF_SPEC, &of_ipv4);
    message.finish()
}

/// What a datagram of the kernel's says in answer to the request `sequence`. What is not understood is left out.
pub(super) fn answers(datagram: &[u8], sequence: u32) -> impl Iterator<Item = Answer> + '_ {
    Records { rest: datagram, header_bytes: HEADER_BYTES }
        .filter(move |(header, _)| number::<4>(header, 8).map(u32::from_ne_bytes) == Some(sequence))
        .flat_map(|(header, body)| {
            let kind = number::<2>(header, 4).map_or(0, u16::from_ne_bytes);
            let flags = number::<2>(header, 6).map_or(0, u16::from_ne_bytes);
            let interrupted = (flags & NLM_F_DUMP_INTR != 0).then_some(Answer::Interrupted);
            interrupted.into_iter().chain(answer(kind, body))
        })
}

fn answer(kind: u16, body: &[u8]) -> Option<Answer> {
    match kind {
        NLMSG_DONE | NLMSG_ERROR => Some(match number::<4>(body, 0).map(i32::from_ne_bytes) {
            None | Some(0) => Answer::Done,
            Some(negative) => Answer::Failed(Errno::from_raw(negative.saturating_neg())),
        }),
        RTM_NEWADDR => interface_address(body).map(Answer::Address),
        _ => None,
    }
}

fn interface_address(body: &[u8]) -> Option<InterfaceAddress> {
    let (&family, &prefix_length) = (body.first()?, body.get(1)?);
    let interface_index = u32::from_ne_bytes(number(body, 4)?);
    let (mut near, mut local) = (None, None);
    let attributes = Records { rest: body.get(ADDRESS_MESSAGE_BYTES..)?, header_bytes: ATTRIBUTE_HEADER_BYTES };
    for (header, value) in attributes {
        match number::<2>(header, 2).map(|kind| u16::from_ne_bytes(kind) & ATTRIBUTE_TYPE_MASK) {
            Some(IFA_LOCAL) => local = ip_address(family, value),
            Some(IFA_ADDRESS) => near = ip_address(family, value),
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other side's.
    Some(InterfaceAddress { address: local.or(near)?, prefix_length, interface_index })
}

fn ip_address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::from(number::<4>(value, 0)?).into()),
        AF_INET6 => Some(Ipv6Addr::from(number::<16>(value, 0)?).into()),
        _ => None,
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn number<const BYTES: usize>(bytes: &[u8], at: usize) -> Option<[u8; BYTES]> {
    bytes.get(at..at + BYTES)?.try_into().ok()
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Messages of a datagram, or attributes of a message: header and body of each. Ends where a length cannot be.
struct Records<'a> {
    rest: &'a [u8],
    header_bytes: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // A message's length has 32 bits, an attribute's 16.
        let length = match self.header_bytes {
            HEADER_BYTES => usize::try_from(u32::from_ne_bytes(number(self.rest, 0)?)).ok()?,
            _ => usize::from(u16::from_ne_bytes(number(self.rest, 0)?)),
        };
        let record = self.rest.get(..length)?;
        let (header, body) = record.split_at_checked(self.header_bytes)?;
        self.rest = self.rest.get(aligned(length)..).unwrap_or_default();
        Some((header, body))
    }
}

/// A request in the making.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, sequence: u32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        Self { bytes }
    }

    fn address(&mut self, entry: InterfaceAddress, flags: u8) {
        let scope = 0;
        self.bytes.extend([family(entry.address), entry.prefix_length, flags, scope]);
        self.bytes.extend(entry.interface_index.to_ne_bytes());
        let octets = match entry.address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        self.attribute(IFA_LOCAL, &octets);
        self.attribute(IFA_ADDRESS, &octets);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend(attribute(kind, value));
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("a request is short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = ATTRIBUTE_HEADER_BYTES + value.len();
    let mut bytes = u16::try_from(length).expect("an attribute of ours is short").to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(aligned(length), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: &str, prefix_length: u8) -> InterfaceAddress {
        InterfaceAddress { address: address.parse().unwrap(), prefix_length, interface_index: 0x0102_0304 }
    }

    #[test]
    fn what_is_asked_for_reads_as_the_entry_that_the_kernel_lists() {
        for entry in [entry("192.0.2.7", 24), entry("2001:db8::7", 64)] {
            let read: Vec<Answer> = answers(&add(9, entry), 9).collect();
            assert_eq!(read, [Answer::Address(entry)]);
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_request_has_the_bytes_of_the_headers_of_the_kernel() {
        let expected = [
            40, 0, 0, 0, 20, 0, 5, 6, 9, 0, 0, 0, 0, 0, 0, 0, // length, RTM_NEWADDR, flags, sequence, port
            2, 24, 2, 0, 4, 3, 2, 1, // AF_INET, /24, IFA_F_NODAD, scope, index
            8, 0, 2, 0, 192, 0, 2, 7, // IFA_LOCAL
            8, 0, 1, 0, 192, 0, 2, 7, // IFA_ADDRESS
        ];
        assert_eq!(add(9, entry("192.0.2.7", 24)), expected);
    }

    #[test]
    fn answers_to_other_requests_are_passed_over() {
        assert_eq!(answers(&add(9, entry("192.0.2.7", 24)), 8).count(), 0);
    }

    #[test]
    fn a_refusal_gives_its_reason_and_an_acknowledgement_none() {
        let acknowledged = |errno: i32| {
            let mut message = Message::new(NLMSG_ERROR, 0, 3);
            message.bytes.extend(errno.to_ne_bytes());
            answers(&message.finish(), 3).collect::<Vec<_>>()
        };
        assert_eq!(acknowledged(0), [Answer::Done]);
        assert_eq!(acknowledged(-1), [Answer::Failed(Errno::EPERM)]);
        assert_eq!(acknowledged(i32::MIN), [Answer::Failed(Errno::UnknownErrno)]);
    }

    #[test]
    fn an_interrupted_list_says_so() {
        let mut message = Message::new(NLMSG_DONE, NLM_F_DUMP_INTR, 3);
        message.bytes.extend([0; 4]);
        assert_eq!(answers(&message.finish(), 3).collect::<Vec<_>>(), [Answer::Interrupted, Answer::Done]);
    }

    #[test]
    fn torn_and_absurd_datagrams_end_the_reading() {
        let whole =
            [add(9, entry("2001:db8::7", 64)), promote_secondaries(9, 3), add(9, entry("192.0.2.7", 24))].concat();
        for length in 0..whole.len() {
            assert!(answers(&whole[..length], 9).count() <= 1);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                assert!(answers(&damaged, 9).count() <= 3);
            }
        }
    }
}
