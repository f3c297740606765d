//! What can be a floating address.

use super::super::{FloatingAddress, InvalidAddress};

#[test]
fn only_addresses_of_hosts_on_interfaces_that_can_exist_are_taken() {
    let of = |address: &str, prefix_length, interface| {
        FloatingAddress::new(address.parse().unwrap(), prefix_length, interface)
    };
    assert_eq!(of("192.0.2.7", 24, "eth0").unwrap().to_string(), "192.0.2.7/24 on eth0");
    assert!(of("2001:db8::7", 128, "bond0.17").is_ok());
    for (address, prefix_length) in [("192.0.2.7", 0), ("192.0.2.7", 33), ("2001:db8::7", 129)] {
        assert!(matches!(of(address, prefix_length, "eth0"), Err(InvalidAddress::PrefixLength { .. })));
    }
    for address in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:192.0.2.7"] {
        assert!(matches!(of(address, 24, "eth0"), Err(InvalidAddress::NotOfAHost { .. })), "{address}");
    }
    for interface in ["", ".", "..", "a/b", "a b", "eth0:1", "sixteen-letters-", "a\0b"] {
        assert!(matches!(of("192.0.2.7", 24, interface), Err(InvalidAddress::InterfaceName { .. })), "{interface}");
    }
}
