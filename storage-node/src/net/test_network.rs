//! A network for tests: two boxes and a client in network namespaces of their own, joined by a bridge at the client.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use super::address::FloatingAddress;

/// Where tests write the names of what they skip (see `tests/src/e2e/skip.rs`).
const SKIP_LOG: &str = "TANDEM_SKIP_LOG";
/// Nothing that a test waits for takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The interface of each box.
pub(crate) const BOX_INTERFACE: &str = "eth0";
/// The client's interface, which is the bridge.
pub(crate) const CLIENT_INTERFACE: &str = "br0";
/// The two floating addresses of the tests, with the prefix length of their networks.
pub(crate) const FLOATING: [(&str, u8); 2] = [("10.215.0.100", 24), ("fd00:215::100", 64)];

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Boxes 0 and 1 and a client. Everything is removed when this is dropped.
pub(crate) struct TestNetwork {
    prefix: String,
}

/// A place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Client,
    Box(usize),
}

impl TestNetwork {
    /// Makes one for the test of that name; says why it cannot, by name, where it cannot.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let prefix = format!("tandem-net-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let network = Self { prefix };
        match network.build() {
            Ok(()) => Some(network),
            Err(why) => {
                skipped(test, &format!("no network namespaces with bridge and veth: {why}"));
                None
            }
        }
    }

    fn build(&self) -> Result<(), String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("they need root".to_owned());
        }
        let client = self.name(At::Client);
        ip(&["netns", "add", &client])?;
        ip(&["-n", &client, "link", "add", CLIENT_INTERFACE, "type", "bridge"])?;
        self.settle(At::Client, CLIENT_INTERFACE, 254)?;
        for number in 0..2_usize {
            let (name, port) = (self.name(At::Box(number)), format!("port{number}"));
            ip(&["netns", "add", &name])?;
            let pair = ["type", "veth", "peer", "name", BOX_INTERFACE, "netns", &name];
            ip(&[&["-n", &client, "link", "add", &port][..], &pair].concat())?;
            ip(&["-n", &client, "link", "set", &port, "master", CLIENT_INTERFACE, "up"])?;
            self.settle(At::Box(number), BOX_INTERFACE, number + 1)?;
        }
        Ok(())
    }

    /// Gives an interface the host number in both families, and brings it up.
    fn settle(&self, at: At, interface: &str, host: usize) -> Result<(), String> {
        let name = self.name(at);
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        ip(&["-n", &name, "addr", "add", &format!("10.215.0.{host}/24"), "dev", interface])?;
        ip(&["-n", &name, "link", "set", interface, "up"])?;
        ip(&["-n", &name, "addr", "add", &format!("fd00:215::{host}/64"), "dev", interface, "nodad"])
    }

    /// Runs `work` on a thread there. Sockets that it makes stay there.
    pub(crate) fn run<T: Send>(&self, at: At, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name(at))).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The output of `ip` there.
    pub(crate) fn ip(&self, at: At, arguments: &[&str]) -> String {
        ip_output(&[&["-n", &self.name(at)], arguments].concat()).unwrap()
    }

    /// The hardware address of a box.
    pub(crate) fn mac(&self, number: usize) -> String {
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
    pub(crate) fn unplug(&self, number: usize) {
        self.ip(At::Client, &["link", "set", &format!("port{number}"), "nomaster"]);
    }

    /// Connects from the client.
    pub(crate) fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.run(At::Client, || TcpStream::connect_timeout(&address, PATIENCE))
    }

    fn name(&self, at: At) -> String {
        match at {
            At::Client => format!("{}-client", self.prefix),
            At::Box(number) => format!("{}-{number}", self.prefix),
        }
    }
}

impl Drop for TestNetwork {
    fn drop(&mut self) {
        for at in [At::Box(0), At::Box(1), At::Client] {
            // Fails for those that were never made.
            let _ = ip(&["netns", "del", &self.name(at)]);
        }
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

fn ip(arguments: &[&str]) -> Result<(), String> {
    ip_output(arguments).map(drop)
}

fn ip_output(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}
