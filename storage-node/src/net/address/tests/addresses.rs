//! Addresses come and go.

use std::fs;

use super::super::{AddressError, Announcer, Change, FloatingAddress, add, is_present, remove};
use crate::net::test_network::{At, BOX_INTERFACE, FLOATING, TestNetwork, floating};

const BOX: At = At::Box(0);

#[test]
fn an_address_comes_and_goes_and_doing_it_twice_changes_nothing() {
    let Some(network) = TestNetwork::new("an_address_comes_and_goes_and_doing_it_twice_changes_nothing") else {
        return;
    };
    for floating in FLOATING.map(floating) {
        let shown = || network.ip(BOX, &["-o", "addr", "show", "to", &floating.address().to_string()]);
        network.run(BOX, || {
            assert_eq!(is_present(&floating), Ok(false));
            assert_eq!(remove(&floating), Ok(Change::Already));
            assert_eq!(add(&floating), Ok(Change::Done));
            assert_eq!(add(&floating), Ok(Change::Already));
            assert_eq!(is_present(&floating), Ok(true));
        });
        let line = shown();
        assert!(line.contains(&format!("/{}", floating.prefix_length())) && !line.contains("tentative"), "{line}");
        // Never the source of a connection of the box's own.
        assert!(line.contains(if floating.address().is_ipv6() { "deprecated" } else { "secondary" }), "{line}");
        network.run(BOX, || {
            assert_eq!(remove(&floating), Ok(Change::Done));
            assert_eq!(remove(&floating), Ok(Change::Already));
            assert_eq!(is_present(&floating), Ok(false));
        });
        assert_eq!(shown(), "");
    }
}

#[test]
fn a_missing_interface_is_named_and_has_no_addresses() {
    let Some(network) = TestNetwork::new("a_missing_interface_is_named_and_has_no_addresses") else { return };
    network.run(BOX, || {
        let floating = FloatingAddress::new("10.215.0.100".parse().unwrap(), 24, "eth7").unwrap();
        let missing = AddressError::NoInterface { interface: "eth7".to_owned() };
        assert_eq!(add(&floating), Err(missing.clone()));
        assert_eq!(Announcer::open(&floating).unwrap_err(), missing);
        assert_eq!(is_present(&floating), Ok(false));
        assert_eq!(remove(&floating), Ok(Change::Already));
    });
}

#[test]
fn an_address_that_is_configured_otherwise_is_in_use_and_stays() {
    let Some(network) = TestNetwork::new("an_address_that_is_configured_otherwise_is_in_use_and_stays") else { return };
    for (address, prefix_length) in FLOATING {
        let wanted = floating((address, prefix_length));
        network.ip(BOX, &["addr", "add", &format!("{address}/{prefix_length}"), "dev", "lo"]);
        let in_use = AddressError::InUse { interface: "lo".to_owned(), prefix_length };
        assert_eq!(network.run(BOX, || add(&wanted)), Err(in_use));
        let wider = floating((address, prefix_length - 8));
        network.ip(BOX, &["addr", "del", &format!("{address}/{prefix_length}"), "dev", "lo"]);
        network.run(BOX, || {
            assert_eq!(add(&wider), Ok(Change::Done));
            let in_use = AddressError::InUse { interface: BOX_INTERFACE.to_owned(), prefix_length: prefix_length - 8 };
            assert_eq!(add(&wanted), Err(in_use));
            assert_eq!(remove(&wanted), Ok(Change::Already));
            assert_eq!(is_present(&wider), Ok(true));
        });
    }
}

#[test]
fn the_removal_of_the_first_address_of_a_network_leaves_the_others() {
    let Some(network) = TestNetwork::new("the_removal_of_the_first_address_of_a_network_leaves_the_others") else {
        return;
    };
    let of = |host: u8| floating((&format!("10.216.0.{host}"), 24));
    network.run(BOX, || {
        // Else the kernel's default would hide what is tested.
        for conf in ["all", "default", BOX_INTERFACE] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{conf}/promote_secondaries"), "0").unwrap();
        }
        for host in 1..=3 {
            add(&of(host)).unwrap();
        }
        remove(&of(1)).unwrap();
        assert_eq!([1, 2, 3].map(|host| is_present(&of(host)).unwrap()), [false, true, true]);
    });
}

#[test]
fn ipv6_that_is_off_is_told_apart() {
    let Some(network) = TestNetwork::new("ipv6_that_is_off_is_told_apart") else { return };
    network.run(BOX, || {
        fs::write(format!("/proc/sys/net/ipv6/conf/{BOX_INTERFACE}/disable_ipv6"), "1").unwrap();
        let [ipv4, ipv6] = FLOATING.map(floating);
        assert_eq!(add(&ipv6), Err(AddressError::Ipv6Off { interface: BOX_INTERFACE.to_owned() }));
        assert_eq!(remove(&ipv6), Ok(Change::Already));
        assert_eq!(add(&ipv4), Ok(Change::Done));
    });
}
