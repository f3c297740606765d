//! The supervisor's keeping of sockets: what clients see when a worker dies, over loopback, between namespaces, and with a
//! process that is killed.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::mem::ManuallyDrop;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};

use super::keeper::{receive, send};
use super::message::{Answer, Request};
use super::{Held, HoldError, Keeper, SupervisorSockets};
use crate::net::address::{self, Change, FloatingAddress, close_listener_silently, close_silently};
use crate::net::test_network::{At, FLOATING, PATIENCE, TestNetwork, accept_one, eventually, floating};
use crate::supervisor::start;

/// An address of loopback with a port that the system chooses; asked for again, it gives the same listener.
const ANY: &str = "127.0.0.1:0";

/// A supervisor's and a worker's side.
fn worker(held: Held) -> (Keeper, Arc<SupervisorSockets>) {
    let (keeper, end) = Keeper::start(held).unwrap();
    (keeper, SupervisorSockets::new(end).unwrap())
}

fn listen(sockets: &SupervisorSockets) -> TcpListener {
    sockets.listen(ANY.parse().unwrap()).unwrap()
}

/// Whether a client has heard nothing: no byte, no end, no reset.
fn hears_nothing(client: &mut TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let heard = client.read(&mut [0]);
    client.set_nonblocking(false).unwrap();
    heard.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Waits for the connection's end, as the client sees it.
fn ends(client: &mut TcpStream) -> bool {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    match client.read(&mut [0]) {
        Ok(length) => length == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn removes_nothing(_: &FloatingAddress) -> Result<Change, address::AddressError> {
    panic!("no address is known")
}

#[test]
fn clients_of_a_dead_worker_hear_nothing_until_the_goodbye_is_said() {
    let (keeper, sockets) = worker(Held::default());
    let listener = listen(&sockets);
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = accept_one(&listener);
    // The worker dies: no destructor of its own runs.
    let _never_dropped = ManuallyDrop::new(sockets.hold(&accepted).unwrap());
    drop((accepted, listener, sockets));
    let mut held = keeper.finish();
    assert!(hears_nothing(&mut client));
    let mut said = false;
    held.worker_gone(removes_nothing, || {
        said = true;
        assert!(hears_nothing(&mut client));
    });
    assert!(said && ends(&mut client));
}

#[test]
fn a_connection_that_is_not_held_ends_with_its_worker_and_a_closed_one_is_let_go() {
    let (keeper, sockets) = worker(Held::default());
    let listener = listen(&sockets);
    let address = listener.local_addr().unwrap();
    let mut clients = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
    let accepted = [accept_one(&listener), accept_one(&listener)];
    let holding = sockets.hold(&accepted[1]).unwrap();
    drop(accepted);
    assert!(ends(&mut clients[0]) && hears_nothing(&mut clients[1]));
    drop(holding);
    assert!(ends(&mut clients[1]));
    drop(keeper.finish());
}

#[test]
fn a_listener_takes_connections_between_two_workers_and_the_next_one_finds_them() {
    let (keeper, sockets) = worker(Held::default());
    let address = listen(&sockets).local_addr().unwrap();
    drop(sockets);
    let mut held = keeper.finish();
    held.worker_gone(removes_nothing, || {});
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"waits").unwrap();

    let (keeper, sockets) = worker(held);
    let listener = listen(&sockets);
    assert_eq!(listener.local_addr().unwrap(), address);
    let mut accepted = accept_one(&listener);
    let mut text = [0; 5];
    accepted.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"waits");

    sockets.drop_listener(ANY.parse().unwrap(), false).unwrap();
    drop(listener);
    drop(keeper.finish());
    // A process that another test is just starting has a copy of every descriptor for a moment.
    eventually("nobody listens any more", || TcpStream::connect(address).is_err());
}

#[test]
fn a_port_that_is_taken_is_refused_with_the_reason() {
    let taken = TcpListener::bind(ANY).unwrap();
    let (_keeper, sockets) = worker(Held::default());
    let refused = sockets.listen(taken.local_addr().unwrap());
    assert!(matches!(refused, Err(HoldError::Refused(why)) if why.kind() == ErrorKind::AddrInUse));
    listen(&sockets);
}

#[test]
fn addresses_are_removed_before_the_goodbye_and_those_that_went_are_left() {
    let (keeper, sockets) = worker(Held::default());
    let [ipv4, ipv6] = FLOATING.map(floating);
    for floating in [&ipv4, &ipv6] {
        sockets.address_comes(floating).unwrap();
    }
    sockets.address_gone(&ipv6).unwrap();
    // The last words of a worker count.
    drop(sockets);
    let mut held = keeper.finish();
    let log = std::cell::RefCell::new(Vec::new());
    let remove = |floating: &FloatingAddress| {
        log.borrow_mut().push(floating.to_string());
        // Failing does not keep the goodbye back.
        Err(address::AddressError::NotPermitted { capability: address::Capability::NetAdmin })
    };
    held.worker_gone(remove, || log.borrow_mut().push("goodbye".to_owned()));
    assert_eq!(*log.borrow(), [ipv4.to_string(), "goodbye".to_owned()]);
}

#[test]
fn a_worker_gone_mad_harms_nobody() {
    let (keeper, end) = Keeper::start(Held::default()).unwrap();
    let say = |bytes: &[u8], descriptor| send(end.as_fd(), bytes, descriptor, SendFlags::empty()).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let hold = Request::Hold { connection: 1 }.encode();
    say(&[0xff; 4000], Some(file.as_fd()));
    say(&[7], None);
    // Without a descriptor, then twice with one that is no connection, then closed twice.
    say(&hold, None);
    say(&hold, Some(file.as_fd()));
    say(&hold, Some(file.as_fd()));
    let closed = Request::Closed { connection: 1 }.encode();
    say(&closed, None);
    say(&closed, None);
    say(&Request::Hold { connection: 2 }.encode(), Some(file.as_fd()));
    say(&Request::DropListener { address: ANY.parse().unwrap(), silently: true }.encode(), None);
    // It still serves.
    say(&Request::Listen { number: 5, address: ANY.parse().unwrap() }.encode(), Some(file.as_fd()));
    let answer = receive(end.as_fd()).unwrap();
    assert_eq!(Answer::decode(&answer.bytes), Some(Answer::Listening { number: 5 }));
    assert!(answer.descriptor.is_some());
    // A child of the worker's that keeps its end open does not keep the supervisor waiting.
    let mut held = keeper.finish();
    held.worker_gone(removes_nothing, || {});
}

#[test]
fn a_worker_that_takes_no_answers_does_not_stop_the_supervisor() {
    let (keeper, end) = Keeper::start(Held::default()).unwrap();
    let listen = Request::Listen { number: 1, address: ANY.parse().unwrap() }.encode();
    for _ in 0..2000 {
        send(end.as_fd(), &listen, None, SendFlags::empty()).unwrap();
    }
    drop(keeper.finish());
}

#[test]
fn late_answers_to_former_requests_are_passed_over() {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let sockets = SupervisorSockets::new(theirs).unwrap();
    for late in [Answer::Full { number: 0 }, Answer::Refused { number: 7, errno: 1 }] {
        send(ours.as_fd(), &late.encode(), None, SendFlags::empty()).unwrap();
    }
    let listener = TcpListener::bind(ANY).unwrap();
    let answer = Answer::Listening { number: 1 }.encode();
    send(ours.as_fd(), &answer, Some(listener.as_fd()), SendFlags::empty()).unwrap();
    assert_eq!(listen(&sockets).local_addr().unwrap(), listener.local_addr().unwrap());
    drop((ours, listener));
    assert!(matches!(sockets.listen(ANY.parse().unwrap()), Err(HoldError::Silent(_))));
}

#[test]
fn what_closes_in_silence_says_nothing_while_its_address_is_there() {
    let name = "what_closes_in_silence_says_nothing_while_its_address_is_there";
    let Some(network) = TestNetwork::new(name) else { return };
    for floating in FLOATING.map(floating) {
        let service = SocketAddr::new(floating.address(), 2049);
        let listener = network.run(At::Box(0), || {
            address::add(&floating).unwrap();
            TcpListener::bind(service).unwrap()
        });
        let mut clients: Vec<TcpStream> = (0..3).map(|_| network.connect(service).unwrap()).collect();
        // One with a byte that nobody reads, one that waits to be accepted: an ordinary close would reset both.
        clients[0].write_all(b"x").unwrap();
        clients[2].write_all(b"x").unwrap();
        let accepted = [accept_one(&listener), accept_one(&listener)];
        accepted[0].peek(&mut [0]).unwrap();
        for connection in accepted {
            close_silently(connection.into());
        }
        close_listener_silently(listener);
        round_trip(&network, service);
        for client in &mut clients {
            assert!(hears_nothing(client), "{floating}");
        }
    }
}

#[test]
fn clients_of_a_floating_address_hear_nothing_at_all_of_their_workers_death() {
    let name = "clients_of_a_floating_address_hear_nothing_at_all_of_their_workers_death";
    let Some(network) = TestNetwork::new(name) else { return };
    for floating in FLOATING.map(floating) {
        let service = SocketAddr::new(floating.address(), 2049);
        let (keeper, sockets, listener) = network.run(At::Box(0), || {
            let (keeper, sockets) = worker(Held::default());
            sockets.address_comes(&floating).unwrap();
            let (listener, _) = address::take_over(&floating, Vec::new(), || sockets.listen(service)).unwrap();
            (keeper, sockets, listener)
        });
        let mut clients = [network.connect(service).unwrap(), network.connect(service).unwrap()];
        clients[0].write_all(b"unread").unwrap();
        let accepted = accept_one(&listener);
        accepted.peek(&mut [0]).unwrap();
        let _never_dropped = ManuallyDrop::new(sockets.hold(&accepted).unwrap());
        drop((accepted, listener, sockets));
        network.run(At::Box(0), || {
            let goodbye = || assert_eq!(address::is_present(&floating), Ok(false));
            keeper.finish().worker_gone(address::remove, goodbye);
        });
        let own = if service.is_ipv4() { "10.215.0.1:2049" } else { "[fd00:215::1]:2049" };
        round_trip(&network, own.parse().unwrap());
        assert!(clients.iter_mut().all(hears_nothing), "{floating}");
    }
}

/// What the box sent to the client before this has arrived when it returns: packets of one link stay in order.
fn round_trip(network: &TestNetwork, service: SocketAddr) {
    let listener = network.run(At::Box(0), || crate::net::transport::bind_early(service)).unwrap();
    let mut client = network.connect(service).unwrap();
    accept_one(&listener).write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

/// What the process of the next test runs; nothing in any other.
#[test]
fn worker_process_that_serves_one_client() {
    let Some(sockets) = SupervisorSockets::from_stdin().unwrap() else { return };
    // A second look finds nothing, and a child would find nothing either.
    assert!(SupervisorSockets::from_stdin().unwrap().is_none());
    let mut client = accept_one(&listen(&sockets));
    let _holding = sockets.hold(&client).unwrap();
    client.write_all(b"served").unwrap();
    // Until it is killed, or the test that started it is gone.
    let _ = client.read(&mut [0]);
}

#[test]
fn clients_of_a_killed_process_hear_nothing_and_the_next_process_serves_who_came_since() {
    let test = ["--exact", "supervisor::held::tests::worker_process_that_serves_one_client"].map(OsString::from);
    let program = std::env::current_exe().unwrap();
    let (keeper, sockets) = worker(Held::default());
    let address = listen(&sockets).local_addr().unwrap();
    let mut held = keeper.finish();
    for _ in 0..2 {
        // It waits in the backlog: no worker is there.
        let mut client = TcpStream::connect(address).unwrap();
        let (keeper, end) = Keeper::start(held).unwrap();
        let mut child = start(&program, &test, end.into()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = [0; 6];
        client.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"served");
        child.kill().unwrap();
        child.wait().unwrap();
        held = keeper.finish();
        assert!(hears_nothing(&mut client));
        held.worker_gone(removes_nothing, || {});
        assert!(ends(&mut client));
    }
}
