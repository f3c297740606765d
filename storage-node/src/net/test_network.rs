//! A network for tests: two boxes and a client in network namespaces, in both families of addresses.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::address::FloatingAddress;
pub(crate) use super::namespaces::{At, BOX_INTERFACE};
use super::namespaces::{CLIENT_INTERFACE, NamespaceNetwork, NetworkError, bridge_port, host_number, interface};

/// Where tests write the names of what they skip (see `tests/src/e2e/skip.rs`).
const SKIP_LOG: &str = "TANDEM_SKIP_LOG";
/// Nothing that a test waits for takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The two floating addresses of the tests, with the prefix length of their networks.
pub(crate) const FLOATING: [(&str, u8); 2] = [("10.215.0.100", 24), ("fd00:215::100", 64)];

/// Boxes 0 and 1 and a client, with addresses of both families. Everything is removed when this is dropped.
pub(crate) struct TestNetwork(NamespaceNetwork);

impl TestNetwork {
    /// Makes one for the test of that name; says why it cannot, by name, where it cannot.
    pub(crate) fn new(test: &str) -> Option<Self> {
        match Self::build() {
            Ok(network) => Some(network),
            Err(why) => {
                skipped(test, &format!("no network namespaces with bridge and veth: {why}"));
                None
            }
        }
    }

    fn build() -> Result<Self, NetworkError> {
        let network = NamespaceNetwork::new(2)?;
        for at in [At::Client, At::Box(0), At::Box(1)] {
            let address = format!("fd00:215::{}/64", host_number(at));
            network.ip(at, &["addr", "add", &address, "dev", interface(at), "nodad"])?;
        }
        Ok(Self(network))
    }

    /// Runs `work` on a thread there. Sockets that it makes stay there.
    pub(crate) fn run<T: Send>(&self, at: At, work: impl FnOnce() -> T + Send) -> T {
        self.0.run(at, work).unwrap()
    }

    /// The output of `ip` there.
    pub(crate) fn ip(&self, at: At, arguments: &[&str]) -> String {
        self.0.ip(at, arguments).unwrap()
    }

    /// The hardware address of a box.
    pub(crate) fn mac(&self, number: u8) -> String {
        let link = self.ip(At::Box(number), &["link", "show", "dev", BOX_INTERFACE]);
        let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
        words.nth(1).unwrap().to_owned()
    }

    /// Where the client believes `address` to be; empty if it has no idea.
    pub(crate) fn neighbour(&self, address: IpAddr) -> String {
        let entry = self.ip(At::Client, &["neigh", "show", &address.to_string(), "dev", CLIENT_INTERFACE]);
        let mut words = entry.split_whitespace().skip_while(|word| *word != "lladdr");
        words.nth(1).unwrap_or_default().to_owned()
    }

    /// Cuts a box off: it hears nobody and nobody hears it.
    pub(crate) fn unplug(&self, number: u8) {
        self.ip(At::Client, &["link", "set", &bridge_port(number), "nomaster"]);
    }

    /// Connects from the client.
    pub(crate) fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.run(At::Client, || TcpStream::connect_timeout(&address, PATIENCE))
    }
}

/// One of [`FLOATING`] on a box's interface.
pub(crate) fn floating((address, prefix_length): (&str, u8)) -> FloatingAddress {
    FloatingAddress::new(address.parse().unwrap(), prefix_length, BOX_INTERFACE).unwrap()
}

/// A connection's two ends in this process: the dialling one and the accepted one.
pub(crate) fn accept_one(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(false).unwrap();
    listener.accept().unwrap().0
}

/// Waits until `done` gives true.
#[track_caller]
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Records that `test` is left out, and why.
fn skipped(test: &str, why: &str) {
    println!("skipped: {test}: {why}");
    let Some(path) = std::env::var_os(SKIP_LOG) else { return };
    let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
    log.write_all(format!("{test}: {why}\n").as_bytes()).unwrap();
}
