//! IP addresses, floating addresses and clients' networks: from the standard library's types and their text, and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use replication::config::network::{IpAddress, IpBits, Network};
use replication::config::nfs::{Client, FloatingAddress};

/// The address as the cores know it; an IPv4-mapped IPv6 address becomes the IPv4 address.
pub fn from_std(address: IpAddr) -> IpAddress {
    match address {
        IpAddr::V4(address) => IpAddress::v4(address.to_bits()),
        IpAddr::V6(address) => IpAddress::v6(address.to_bits()),
    }
}

/// The address as the standard library knows it.
pub fn to_std(address: IpAddress) -> IpAddr {
    match address.bits() {
        IpBits::V4(bits) => Ipv4Addr::from_bits(bits).into(),
        IpBits::V6(bits) => Ipv6Addr::from_bits(bits).into(),
    }
}

/// `host:port`, with an IPv6 address in brackets.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The host of `host:port`, as given there; empty if there is none.
pub fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or("", |(host, _)| host)
}

/// Reads whom an export rule is about: `ADDRESS/LENGTH`, an address alone, or `*`.
pub fn parse_client(text: &str) -> Result<Client, String> {
    if text == "*" {
        return Ok(Client::Any);
    }
    let syntax = || {
        format!(
            "{text:?} is no client: write a network such as 10.0.0.0/24 or 2001:db8::/64, an address, or '*' for everybody; \
             names of hosts are not taken"
        )
    };
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(parse_length(length).ok_or_else(syntax)?)),
        None => (text, None),
    };
    let given: IpAddr = address.parse().map_err(|_| syntax())?;
    let address = from_std(given);
    let width = if given.is_ipv6() { 128 } else { 32 };
    let length = length.unwrap_or(width);
    // The network of a mapped address counts its 96 bits in front of the IPv4 address, too.
    let length = length.checked_sub(width - address.width()).ok_or_else(syntax)?;
    if let Some(network) = Network::new(address, length) {
        return Ok(Client::Network(network));
    }
    let around = Network::around(address, length).ok_or_else(|| {
        format!("{text:?} is no client: the prefix of an address of that kind is 0 to {} bits long", address.width())
    })?;
    Err(format!(
        "{text:?} is no network: its address has bits beyond the prefix; write {} for the network, or {} for the one client",
        client_text(Client::Network(around)),
        to_std(address)
    ))
}

/// The text of a client: `*`, `ADDRESS/LENGTH`, or an address alone if it is a single one.
pub fn client_text(client: Client) -> String {
    match client {
        Client::Any => "*".to_owned(),
        Client::Network(network) if network.prefix_length() == network.address().width() => {
            to_std(network.address()).to_string()
        }
        Client::Network(network) => format!("{}/{}", to_std(network.address()), network.prefix_length()),
    }
}

/// Reads a floating address: `ADDRESS/LENGTH@INTERFACE`. What a box can have is checked as well.
pub fn parse_floating(text: &str) -> Result<FloatingAddress, String> {
    let syntax = || {
        format!(
            "{text:?} is no floating address: write ADDRESS/LENGTH@INTERFACE, for example 10.0.0.50/24@eth0 or \
             2001:db8::50/64@eth0"
        )
    };
    let (network, interface) = text.split_once('@').ok_or_else(syntax)?;
    let (address, length) = network.split_once('/').ok_or_else(syntax)?;
    let prefix_length = parse_length(length).ok_or_else(syntax)?;
    floating(address, prefix_length, interface).map_err(|why| format!("{text:?} is no floating address: {why}"))
}

/// A floating address of its parts. Errors: what is wrong with it, and what is allowed.
pub fn floating(address: &str, prefix_length: u8, interface: &str) -> Result<FloatingAddress, String> {
    let given: IpAddr = address.parse().map_err(|_| format!("{address:?} is no IP address"))?;
    if given != given.to_canonical() {
        return Err(format!("write the IPv4 address {} as such", given.to_canonical()));
    }
    let floating = FloatingAddress { address: from_std(given), prefix_length, interface: interface.to_owned() };
    floating.check().map_err(str::to_owned)?;
    Ok(floating)
}

/// The text of a floating address, as [`parse_floating`] reads it.
pub fn floating_text(address: &FloatingAddress) -> String {
    format!("{}/{}@{}", to_std(address.address), address.prefix_length, address.interface)
}

/// Digits only: `parse` would take a sign.
fn parse_length(text: &str) -> Option<u8> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_read_and_written_in_one_form() {
        for (text, written) in [
            ("*", "*"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.7", "10.0.0.7"),
            ("10.0.0.7/32", "10.0.0.7"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:DB8:0::/32", "2001:db8::/32"),
            ("fe80::1", "fe80::1"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.7", "10.0.0.7"),
        ] {
            let client = parse_client(text).expect(text);
            assert_eq!(client_text(client), written, "{text}");
            assert_eq!(parse_client(written), Ok(client), "{text}");
        }
    }

    #[test]
    fn what_is_no_client_says_what_to_write() {
        for text in
            ["", "box.example", "@group", "10.0.0.0/", "10.0.0/8", "10.0.0.0/+8", "10.0.0.0/300", "::ffff:0:0/90"]
        {
            let error = parse_client(text).expect_err(text);
            assert!(error.contains("10.0.0.0/24"), "{text}: {error}");
        }
        assert!(parse_client("10.0.0.0/33").is_err_and(|why| why.contains("0 to 32")));
        let bits = parse_client("10.0.0.7/24").expect_err("bits beyond the prefix");
        assert!(bits.contains("10.0.0.0/24") && bits.contains("10.0.0.7 for the one client"), "{bits}");
    }

    #[test]
    fn floating_addresses_are_read_with_prefix_and_interface() {
        for text in ["10.0.0.50/24@eth0", "2001:db8::50/64@bond0.7"] {
            assert_eq!(parse_floating(text).map(|address| floating_text(&address)), Ok(text.to_owned()));
        }
        for text in ["10.0.0.50", "10.0.0.50/24", "10.0.0.50@eth0", "box/24@eth0", "10.0.0.50/x@eth0"] {
            assert!(parse_floating(text).is_err_and(|why| why.contains("is no floating address")), "{text}");
        }
        assert!(parse_floating("10.0.0.0/24@eth0").is_err_and(|why| why.contains("a box can have")));
        assert!(parse_floating("10.0.0.50/24@an interface").is_err_and(|why| why.contains("1 to 15 bytes")));
        assert!(parse_floating("::ffff:10.0.0.50/120@eth0").is_err_and(|why| why.contains("10.0.0.50 as such")));
    }

    #[test]
    fn hosts_and_ports_are_joined_and_parted() {
        assert_eq!(host_port("10.0.0.1", 2049), "10.0.0.1:2049");
        assert_eq!(host_port("fd00::1", 2049), "[fd00::1]:2049");
        assert_eq!(host_port(host_of("[fd00::1]:10809"), 2049), "[fd00::1]:2049");
        assert_eq!((host_of("box.example:7"), host_of("")), ("box.example", ""));
    }

    #[test]
    fn the_standard_librarys_addresses_are_the_same_ones() {
        for text in ["10.0.0.1", "2001:db8::1", "::1", "0.0.0.0"] {
            let address: IpAddr = text.parse().expect(text);
            assert_eq!(to_std(from_std(address)), address);
        }
        assert_eq!(to_std(from_std("::ffff:10.0.0.1".parse().expect("an address"))).to_string(), "10.0.0.1");
    }
}
