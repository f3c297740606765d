//! Boxes and a client in network namespaces of their own, joined by a bridge at the client: what floating addresses are shown and
//! tested on, on one machine. It has addresses of IPv4; it knows nothing of what runs in it. Needs root, and `ip` (iproute2).

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};
use thiserror::Error;

/// The interface of each box.
pub(crate) const BOX_INTERFACE: &str = "eth0";
/// The client's interface, which is the bridge.
pub(crate) const CLIENT_INTERFACE: &str = "br0";
/// Bits of the network that all addresses share.
pub(crate) const PREFIX_LENGTH: u8 = 24;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A place in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Where the bridge is.
    Client,
    /// A box, from 0.
    Box(u8),
}

/// Why there is no such network.
#[derive(Debug, Error)]
pub(crate) enum NetworkError {
    /// The effective user is somebody else.
    #[error("network namespaces need root")]
    NotRoot,
    /// `ip` cannot be run.
    #[error("the program `ip` cannot be run (Debian: apt install iproute2)")]
    NoTool(#[source] io::Error),
    /// `ip` was refused; the text is its own.
    #[error("ip {command}: {said} ({status})")]
    Refused {
        /// Its arguments.
        command: String,
        /// What it said.
        said: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// A thread cannot go there.
    #[error("cannot enter a network namespace")]
    NoEntry(#[source] io::Error),
}

/// Boxes and a client. Everything is removed when this is dropped, once the processes in it have ended.
#[derive(Debug)]
pub(crate) struct NamespaceNetwork {
    prefix: String,
    boxes: u8,
}

impl NamespaceNetwork {
    /// Makes one with so many boxes. Box 0 has the address 10.215.0.1, box 1 the next one, the client 10.215.0.254.
    pub(crate) fn new(boxes: u8) -> Result<Self, NetworkError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(NetworkError::NotRoot);
        }
        let prefix = format!("tandem-net-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // Whatever was made goes with it when a later step fails.
        let network = Self { prefix, boxes };
        network.build()?;
        Ok(network)
    }

    fn build(&self) -> Result<(), NetworkError> {
        let client = self.name(At::Client);
        ip(&["netns", "add", &client])?;
        ip(&["-n", &client, "link", "add", CLIENT_INTERFACE, "type", "bridge"])?;
        self.settle(At::Client)?;
        for number in 0..self.boxes {
            let (name, port) = (self.name(At::Box(number)), bridge_port(number));
            ip(&["netns", "add", &name])?;
            let pair = ["type", "veth", "peer", "name", BOX_INTERFACE, "netns", &name];
            ip(&[&["-n", &client, "link", "add", &port][..], &pair].concat())?;
            ip(&["-n", &client, "link", "set", &port, "master", CLIENT_INTERFACE, "up"])?;
            self.settle(At::Box(number))?;
        }
        Ok(())
    }

    fn settle(&self, at: At) -> Result<(), NetworkError> {
        let address = format!("{}/{PREFIX_LENGTH}", address_of_host(host_number(at)));
        self.ip(at, &["link", "set", "lo", "up"])?;
        self.ip(at, &["addr", "add", &address, "dev", interface(at)])?;
        self.ip(at, &["link", "set", interface(at), "up"])?;
        Ok(())
    }

    /// A tap device of this name on the bridge, for a machine that is a program.
    pub(crate) fn add_tap(&self, name: &str) -> Result<(), NetworkError> {
        self.ip(At::Client, &["tuntap", "add", name, "mode", "tap"])?;
        self.ip(At::Client, &["link", "set", name, "master", CLIENT_INTERFACE, "up"])?;
        Ok(())
    }

    /// Moves the calling thread there: its sockets, processes and further threads are there from now on.
    pub(crate) fn enter(&self, at: At) -> Result<(), NetworkError> {
        let namespace = File::open(format!("/run/netns/{}", self.name(at))).map_err(NetworkError::NoEntry)?;
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| NetworkError::NoEntry(error.into()))
    }

    /// Runs `work` on a thread there. Sockets and processes that it makes stay there.
    pub(crate) fn run<T: Send>(&self, at: At, work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter(at).map(|()| work()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The output of `ip` there.
    pub(crate) fn ip(&self, at: At, arguments: &[&str]) -> Result<String, NetworkError> {
        ip(&[&["-n", &self.name(at)], arguments].concat())
    }

    fn name(&self, at: At) -> String {
        match at {
            At::Client => format!("{}-client", self.prefix),
            At::Box(number) => format!("{}-{number}", self.prefix),
        }
    }
}

impl Drop for NamespaceNetwork {
    fn drop(&mut self) {
        for at in (0..self.boxes).map(At::Box).chain([At::Client]) {
            // Fails for those that were never made.
            let _ = ip(&["netns", "del", &self.name(at)]);
        }
    }
}

/// The address of a place in the network.
pub(crate) fn address(at: At) -> IpAddr {
    address_of_host(host_number(at))
}

/// The address of what has this number in the network.
pub(crate) fn address_of_host(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 215, 0, host))
}

/// The last part of a place's address.
pub(crate) fn host_number(at: At) -> u8 {
    match at {
        At::Client => 254,
        At::Box(number) => number + 1,
    }
}

/// The interface that a place has in the network.
pub(crate) fn interface(at: At) -> &'static str {
    match at {
        At::Client => CLIENT_INTERFACE,
        At::Box(_) => BOX_INTERFACE,
    }
}

/// The client's end of a box's cable.
pub(crate) fn bridge_port(number: u8) -> String {
    format!("port{number}")
}

fn ip(arguments: &[&str]) -> Result<String, NetworkError> {
    // In its own group: Ctrl-C must not stop what removes the namespaces.
    let output = Command::new("ip").args(arguments).process_group(0).output().map_err(NetworkError::NoTool)?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(NetworkError::Refused {
            command: arguments.join(" "),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            status: output.status,
        }),
    }
}
