//! Universal addresses (RFC 1833 §2, RFC 5665): an address and a port as text, the port as two decimal bytes behind dots.

use super::Protocol;
use crate::address::{IpAddr, SocketAddr};

/// The longest that is looked at.
pub const TEXT_BYTES_MAX: usize = 128;

/// As text.
pub fn format(address: SocketAddr) -> String {
    let [high, low] = address.port().to_be_bytes();
    format!("{}.{high}.{low}", address.ip())
}

/// From text. None for what is no such address.
pub fn parse(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= TEXT_BYTES_MAX)?;
    let (rest, low) = text.rsplit_once('.')?;
    let (address, high) = rest.rsplit_once('.')?;
    let byte = |text: &str| text.parse::<u8>().ok();
    Some(SocketAddr::new(address.parse().ok()?, u16::from_be_bytes([byte(high)?, byte(low)?])))
}

/// What the protocol is called on an address of this family (RFC 5665 §5.2).
pub fn network_id(protocol: Protocol, address: IpAddr) -> &'static str {
    match (protocol, address.to_canonical()) {
        (Protocol::Tcp, IpAddr::V4(_)) => "tcp",
        (Protocol::Tcp, IpAddr::V6(_)) => "tcp6",
        (Protocol::Udp, IpAddr::V4(_)) => "udp",
        (Protocol::Udp, IpAddr::V6(_)) => "udp6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_from_their_text() {
        for (address, text) in [
            ("192.0.2.7:2049", "192.0.2.7.8.1"),
            ("[2001:db8::7]:111", "2001:db8::7.0.111"),
            ("[::]:65535", "::.255.255"),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(format(address), text);
            assert_eq!(parse(text.as_bytes()), Some(address));
        }
    }

    #[test]
    fn other_text_is_none() {
        let long = format!("{}.0.1", "1".repeat(200));
        for text in ["", ".", "..", "1.2.3.4", "1.2.3.4.5", "1.2.3.4.256.1", "a.b.c.d.0.1", "1.2.3.4.-1.1", &long] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse(&[0xff, b'.', b'1', b'.', b'1']), None);
    }
}
