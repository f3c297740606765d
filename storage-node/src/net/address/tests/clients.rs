//! What clients see of a takeover.

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener};

use super::super::{ClientConnection, TakeoverStep, add, is_present, take_over};
use crate::net::test_network::{At, FLOATING, PATIENCE, TestNetwork, accept_one, floating};
use crate::net::transport::bind_early;

const PORT: u16 = 2049;

#[test]
fn a_client_of_a_dead_box_is_reset_by_the_next_one_at_once_and_connects_again() {
    let name = "a_client_of_a_dead_box_is_reset_by_the_next_one_at_once_and_connects_again";
    let Some(network) = TestNetwork::new(name) else { return };
    for floating in FLOATING.map(floating) {
        let service = SocketAddr::new(floating.address(), PORT);
        let former = network.run(At::Box(0), || {
            add(&floating).unwrap();
            TcpListener::bind(service).unwrap()
        });
        let mut client = network.connect(service).unwrap();
        let _accepted = accept_one(&former);
        network.unplug(0);

        let clients = vec![ClientConnection { client: client.local_addr().unwrap(), service }];
        let (listener, follow_up) = network.run(At::Box(1), || {
            let listen = || {
                // Nobody can be refused: who finds the address finds the listener.
                assert_eq!(is_present(&floating), Ok(false));
                bind_early(service)
            };
            take_over(&floating, clients, listen).unwrap()
        });
        follow_up.step(TakeoverStep::Announce);
        follow_up.step(TakeoverStep::Tickle);
        // It waits for a reply, and sends nothing by itself.
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

        let again = network.connect(service).unwrap();
        assert_eq!(accept_one(&listener).peer_addr().unwrap(), again.local_addr().unwrap());
        network.ip(At::Client, &["link", "set", "port0", "master", "br0"]);
    }
}

#[test]
fn a_takeover_that_cannot_listen_leaves_the_address_where_it_is() {
    let Some(network) = TestNetwork::new("a_takeover_that_cannot_listen_leaves_the_address_where_it_is") else {
        return;
    };
    let floating = floating(FLOATING[0]);
    network.run(At::Box(1), || {
        let refused = || Err::<(), _>(io::Error::from(ErrorKind::AddrInUse));
        assert!(take_over(&floating, Vec::new(), refused).is_err());
        assert_eq!(is_present(&floating), Ok(false));
    });
}
