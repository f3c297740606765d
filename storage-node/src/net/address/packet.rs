//! Packets that are sent past the kernel's own protocols: ARP, neighbour advertisement, and a bare TCP acknowledgement.
//! Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An Ethernet address.
pub(super) type MacAddress = [u8; 6];

const BROADCAST: MacAddress = [0xff; 6];
/// Ethernet's form of the multicast address of all nodes (RFC 2464 §7).
const ALL_NODES_MAC: MacAddress = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ICMPV6: u8 = 58;
/// Neighbour discovery is accepted with this hop limit only: then it comes from the link itself (RFC 4861 §7.1.2).
const HOPS_MAX: u8 = 255;

/// The two forms of a gratuitous ARP packet (RFC 5944 §4.6): some receivers take note of one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GratuitousArp {
    Request,
    Reply,
}

/// An Ethernet frame to everyone: `address` is at `mac`. Sender and target protocol addresses are the same; in a reply the
/// target hardware address is the sender's, without which Linux does not take it for gratuitous.
pub(super) fn gratuitous_arp(form: GratuitousArp, mac: MacAddress, address: Ipv4Addr) -> Vec<u8> {
    let (operation, target): (u16, MacAddress) = match form {
        GratuitousArp::Request => (1, [0; 6]),
        GratuitousArp::Reply => (2, mac),
    };
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    // Ethernet and IPv4, with the lengths of their addresses (RFC 826).
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend(target);
    frame.extend(address.octets());
    frame
}

/// An Ethernet frame to all nodes: `address` is at `mac`, and whoever knows it elsewhere is to forget that (unsolicited
/// neighbour advertisement with the override flag, RFC 4861 §7.2.6).
pub(super) fn neighbour_advertisement(mac: MacAddress, address: Ipv6Addr) -> Vec<u8> {
    const TYPE: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
    let mut body = vec![TYPE, 0, 0, 0, OVERRIDE, 0, 0, 0];
    body.extend(address.octets());
    // The option's length counts in units of eight bytes.
    body.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    body.extend(mac);
    let sum = upper_layer_checksum(address.into(), ALL_NODES.into(), PROTOCOL_ICMPV6, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame.extend(ipv6_header(address, ALL_NODES, PROTOCOL_ICMPV6, body.len()));
    frame.extend(body);
    frame
}

/// An IP packet to `client` from `service`: an acknowledgement whose numbers are outside every window but by chance
/// (32 bits). Whoever has the connection answers with its own numbers (RFC 9293 §3.10.7.4); the box that has not then
/// resets it. `None` when the two are of different families.
pub(super) fn tickle_ack(client: SocketAddr, service: SocketAddr) -> Option<Vec<u8>> {
    const HEADER_WORDS: u8 = 5;
    const ACK: u8 = 0x10;
    const WINDOW: u16 = 1024;
    let mut segment = Vec::with_capacity(20);
    segment.extend(service.port().to_be_bytes());
    segment.extend(client.port().to_be_bytes());
    // Sequence and acknowledgement number.
    segment.extend([0; 8]);
    segment.extend([HEADER_WORDS << 4, ACK]);
    segment.extend(WINDOW.to_be_bytes());
    // Checksum and urgent pointer.
    segment.extend([0; 4]);
    let (from, to) = (service.ip().to_canonical(), client.ip().to_canonical());
    let sum = upper_layer_checksum(from, to, PROTOCOL_TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4_header(from, to, PROTOCOL_TCP, segment.len()),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6_header(from, to, PROTOCOL_TCP, segment.len()),
        _ => return None,
    };
    packet.extend(segment);
    Some(packet)
}

fn ethernet(to: MacAddress, from: MacAddress, ethertype: u16) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes()].concat()
}

fn ipv4_header(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body_bytes: usize) -> Vec<u8> {
    const VERSION_AND_WORDS: u8 = 0x45;
    const DO_NOT_FRAGMENT: u8 = 0x40;
    let length = u16::try_from(20 + body_bytes).expect("our packets are short");
    let mut header = vec![VERSION_AND_WORDS, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, DO_NOT_FRAGMENT, 0, HOPS_MAX, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = internet_checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn ipv6_header(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, body_bytes: usize) -> Vec<u8> {
    const VERSION: u8 = 0x60;
    let length = u16::try_from(body_bytes).expect("our packets are short");
    let mut header = vec![VERSION, 0, 0, 0];
    header.extend(length.to_be_bytes());
    header.extend([protocol, HOPS_MAX]);
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

/// Of a TCP segment or ICMPv6 message with its own checksum zero, over the pseudo header of its family (RFC 9293 §3.1,
/// RFC 8200 §8.1; for IPv4 the same, as its fields are only narrower).
fn upper_layer_checksum(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> u16 {
    let mut covered = Vec::with_capacity(40 + body.len());
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => covered.extend(address.octets()),
            IpAddr::V6(address) => covered.extend(address.octets()),
        }
    }
    covered.extend(u32::try_from(body.len()).expect("our packets are short").to_be_bytes());
    covered.extend([0, 0, 0, protocol]);
    covered.extend(body);
    internet_checksum(&covered)
}

/// The ones' complement of the ones' complement sum of 16-bit words (RFC 1071).
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = [0x02, 0, 0, 0xaa, 0xbb, 0xcc];

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 1071 §3: the sum is ddf2.
        assert_eq!(internet_checksum(&hex("0001 f203 f4f5 f6f7")), !0xddf2);
        assert_eq!(internet_checksum(&hex("0001 f203 f4f5 f6")), !0xdcfb);
        assert_eq!(internet_checksum(&[]), 0xffff);
        // A header that carries its checksum sums to nothing.
        assert_eq!(internet_checksum(&hex("45000073 00004000 4011b861 c0a80001 c0a800c7")), 0);
    }

    #[test]
    fn gratuitous_arp_has_both_forms() {
        let address = Ipv4Addr::new(192, 0, 2, 7);
        assert_eq!(
            gratuitous_arp(GratuitousArp::Request, MAC, address),
            hex("ffffffffffff 020000aabbcc 0806 0001 0800 06 04 0001 020000aabbcc c0000207 000000000000 c0000207")
        );
        assert_eq!(
            gratuitous_arp(GratuitousArp::Reply, MAC, address),
            hex("ffffffffffff 020000aabbcc 0806 0001 0800 06 04 0002 020000aabbcc c0000207 020000aabbcc c0000207")
        );
    }

    #[test]
    fn a_neighbour_advertisement_overrides_and_is_unsolicited() {
        assert_eq!(
            neighbour_advertisement(MAC, "2001:db8::7".parse().unwrap()),
            hex("333300000001 020000aabbcc 86dd 60000000 0020 3a ff
                 20010db8000000000000000000000007 ff020000000000000000000000000001
                 88 00 3ca9 20000000 20010db8000000000000000000000007 02 01 020000aabbcc")
        );
    }

    #[test]
    fn a_tickle_acknowledges_nothing_that_was_sent() {
        let of = |client: &str, service: &str| tickle_ack(client.parse().unwrap(), service.parse().unwrap());
        let ipv4 =
            hex("4500 0028 0000 4000 ff06 8f93 c0000207 c6336401 0801 03ff 00000000 00000000 5010 0400 b398 0000");
        assert_eq!(of("198.51.100.1:1023", "192.0.2.7:2049").as_ref(), Some(&ipv4));
        assert_eq!(of("[::ffff:198.51.100.1]:1023", "192.0.2.7:2049").as_ref(), Some(&ipv4));
        let ipv6 = hex("60000000 0014 06 ff 20010db8000000000000000000000007 20010db8000000000000000000000009
             0801 03ff 00000000 00000000 5010 0400 4453 0000");
        assert_eq!(of("[2001:db8::9]:1023", "[2001:db8::7]:2049"), Some(ipv6));
        assert_eq!(of("[2001:db8::9]:1023", "192.0.2.7:2049"), None);
    }
}
