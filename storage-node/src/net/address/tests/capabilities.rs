//! The rights that are needed, and those that are missed.

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::super::{
    AddressError, Announcer, Capability, Change, TakeoverStep, Tickler, add, close_listener_silently, close_silently,
    is_present, remove, take_over,
};
use crate::net::test_network::{At, FLOATING, TestNetwork, accept_one, floating};
use crate::net::transport::bind_early;

const BOX: At = At::Box(0);

/// Takes from this thread all rights but these.
fn keep_only(kept: CapabilitySet) {
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).unwrap();
}

#[test]
fn three_capabilities_are_enough() {
    let Some(network) = TestNetwork::new("three_capabilities_are_enough") else { return };
    for floating in FLOATING.map(floating) {
        // The port of rpcbind, which lock clients of version 3 insist on.
        let service = SocketAddr::new(floating.address(), 111);
        let listener = network.run(BOX, || {
            keep_only(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::NET_BIND_SERVICE);
            let (listener, follow_up) = take_over(&floating, Vec::new(), || bind_early(service)).unwrap();
            follow_up.step(TakeoverStep::Announce);
            Announcer::open(&floating).unwrap().expect("a veth pair has neighbours").announce().unwrap();
            listener
        });
        let mut client = network.connect(service).unwrap();
        let accepted = accept_one(&listener);
        network.run(BOX, || {
            keep_only(CapabilitySet::NET_ADMIN);
            close_silently(accepted.into());
            close_listener_silently(listener);
            assert_eq!(remove(&floating), Ok(Change::Done));
        });
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn what_is_not_permitted_names_the_capability() {
    let Some(network) = TestNetwork::new("what_is_not_permitted_names_the_capability") else { return };
    let lacks = |capability| Some(AddressError::NotPermitted { capability });
    for floating in FLOATING.map(floating) {
        network.run(BOX, || {
            keep_only(CapabilitySet::NET_RAW);
            assert_eq!(add(&floating).err(), lacks(Capability::NetAdmin));
            assert_eq!(remove(&floating).err(), lacks(Capability::NetAdmin));
            // To look is everybody's right.
            assert_eq!(is_present(&floating), Ok(false));
        });
        network.run(BOX, || {
            keep_only(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
            let refused = bind_early(SocketAddr::new(floating.address(), 111)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
            bind_early(SocketAddr::new(floating.address(), 2049)).unwrap();
        });
        network.run(BOX, || {
            keep_only(CapabilitySet::NET_ADMIN);
            assert_eq!(Announcer::open(&floating).err(), lacks(Capability::NetRaw));
            assert_eq!(Tickler::open().err(), lacks(Capability::NetRaw));
        });
    }
}
