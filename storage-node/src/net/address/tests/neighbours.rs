//! What the neighbours believe.

use std::net::SocketAddr;

use super::super::{AddressError, Announcer, FloatingAddress, add, remove};
use crate::net::test_network::{At, BOX_INTERFACE, FLOATING, TestNetwork, eventually, floating};

#[test]
fn neighbours_send_to_the_box_that_announced_last() {
    let Some(network) = TestNetwork::new("neighbours_send_to_the_box_that_announced_last") else { return };
    let macs = [network.mac(0), network.mac(1)];
    assert_ne!(macs[0], macs[1]);
    for floating in FLOATING.map(floating) {
        network.run(At::Box(0), || add(&floating)).unwrap();
        // Nobody listens: it is refused by the box that has the address.
        assert!(network.connect(SocketAddr::new(floating.address(), 2049)).is_err());
        assert_eq!(network.neighbour(floating.address()), macs[0]);
        for (from, to) in [(0_u8, 1_u8), (1, 0)] {
            network.run(At::Box(from), || remove(&floating)).unwrap();
            network.run(At::Box(to), || add(&floating)).unwrap();
            // This is why it must be announced.
            assert_eq!(network.neighbour(floating.address()), macs[usize::from(from)]);
            network.run(At::Box(to), || Announcer::open(&floating).unwrap().unwrap().announce()).unwrap();
            eventually("the neighbour has moved", || network.neighbour(floating.address()) == macs[usize::from(to)]);
        }
    }
}

#[test]
fn a_link_without_neighbours_needs_no_announcement_and_one_that_is_down_says_so() {
    let name = "a_link_without_neighbours_needs_no_announcement_and_one_that_is_down_says_so";
    let Some(network) = TestNetwork::new(name) else { return };
    network.run(At::Box(0), || {
        let on_loopback = FloatingAddress::new("10.215.0.100".parse().unwrap(), 32, "lo").unwrap();
        assert!(Announcer::open(&on_loopback).unwrap().is_none());
    });
    let ipv4 = floating(FLOATING[0]);
    let announcer = network.run(At::Box(0), || Announcer::open(&ipv4)).unwrap().unwrap();
    network.ip(At::Box(0), &["link", "set", BOX_INTERFACE, "down"]);
    assert_eq!(announcer.announce(), Err(AddressError::LinkDown { interface: BOX_INTERFACE.to_owned() }));
}
