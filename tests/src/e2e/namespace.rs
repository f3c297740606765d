//! Boxes as network namespaces: each node behind its own veth on one bridge, and links that can be cut in silence.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

/// The address that a test moves between the nodes.
pub const FLOATING_ADDRESS: [u8; 4] = [10, 213, 0, 100];
/// The address of the first guest, on the first tap device.
pub const GUEST_ADDRESS: [u8; 4] = [10, 213, 0, 50];
/// The first tap device in the hub.
pub const TAP: &str = "tap0";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A hub with a bridge, and a namespace for each node. Everything is removed when this is dropped.
#[derive(Debug)]
pub struct NamespaceNetwork {
    hub: String,
    nodes: Vec<String>,
}

impl NamespaceNetwork {
    /// Makes the namespaces of `count` nodes.
    ///
    /// # Panics
    /// If the kernel refuses; ask [`unsupported`] first.
    pub fn new(count: usize) -> Self {
        Self::try_new(count).unwrap_or_else(|error| panic!("network namespaces: {error}"))
    }

    fn try_new(count: usize) -> Result<Self, String> {
        let prefix = format!("tandem-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let hub = format!("{prefix}-hub");
        let nodes: Vec<String> = (0..count).map(|index| format!("{prefix}-{index}")).collect();
        let network = Self { hub, nodes };
        let hub = network.hub.as_str();
        ip(&["netns", "add", hub])?;
        ip(&["-n", hub, "link", "set", "lo", "up"])?;
        ip(&["-n", hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", hub, "addr", "add", "10.213.0.254/24", "dev", "br0"])?;
        ip(&["-n", hub, "link", "set", "br0", "up"])?;
        for (index, node) in network.nodes.iter().enumerate() {
            let (port, address) = (bridge_port(index), format!("{}/24", network.node_ip(index)));
            ip(&["netns", "add", node])?;
            ip(&["-n", hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", node])?;
            ip(&["-n", hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", node, "link", "set", "lo", "up"])?;
            ip(&["-n", node, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", node, "link", "set", "eth0", "up"])?;
        }
        Ok(network)
    }

    /// The address of a node.
    pub fn node_ip(&self, index: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 213, 0, 1 + index as u8))
    }

    /// A command inside a node's namespace.
    pub fn command_at_node(&self, index: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.nodes[index]]).arg(program);
        command
    }

    /// A command inside the hub, where clients live.
    pub fn command_at_hub(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.hub, program]);
        command
    }

    /// Moves the calling thread into the hub: what it makes from now on is there.
    pub fn enter_hub(&self) -> io::Result<()> {
        let namespace = File::open(format!("/run/netns/{}", self.hub))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }

    /// Connects from the hub. The socket keeps its namespace, whichever thread uses it.
    pub fn connect_from_hub(&self, address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                self.enter_hub()?;
                TcpStream::connect_timeout(&address, limit)
            });
            connecting.join().unwrap_or_else(|_| Err(io::Error::other("the connecting thread panicked")))
        })
    }

    /// Cuts the link between some nodes in silence: they hear everyone but each other.
    pub fn cut_between(&self, nodes: &[usize]) {
        self.set_isolated(nodes, "on");
    }

    /// Mends what [`Self::cut_between`] cut.
    pub fn mend_between(&self, nodes: &[usize]) {
        self.set_isolated(nodes, "off");
    }

    fn set_isolated(&self, nodes: &[usize], state: &str) {
        // Two isolated ports of a bridge do not forward to each other, but to all others (ip-link(8), bridge_slave).
        for index in nodes {
            must(&["-n", &self.hub, "link", "set", &bridge_port(*index), "type", "bridge_slave", "isolated", state]);
        }
    }

    /// Pulls a node's cable: nobody hears it. The carrier of the node's own side stays.
    pub fn unplug(&self, index: usize) {
        must(&["-n", &self.hub, "link", "set", &bridge_port(index), "nomaster"]);
    }

    /// Plugs it in again.
    pub fn plug(&self, index: usize) {
        must(&["-n", &self.hub, "link", "set", &bridge_port(index), "master", "br0"]);
    }

    /// A tap device on the bridge for the first guest.
    pub fn add_tap(&self) {
        self.add_tap_of(0);
    }

    /// A tap device on the bridge for the guest of this number.
    pub fn add_tap_of(&self, guest: u8) {
        let tap = tap_of(guest);
        must(&["-n", &self.hub, "tuntap", "add", &tap, "mode", "tap"]);
        must(&["-n", &self.hub, "link", "set", &tap, "master", "br0", "up"]);
    }

    /// Gives the floating address to a node and takes it from all others, and tells the neighbours.
    pub fn move_floating_address(&self, to: usize) {
        let address = format!("{}/24", Ipv4Addr::from(FLOATING_ADDRESS));
        for node in &self.nodes {
            // Fails where the address is not.
            let _ = ip(&["-n", node, "addr", "del", &address, "dev", "eth0"]);
        }
        must(&["-n", &self.nodes[to], "addr", "add", &address, "dev", "eth0"]);
        let announce = "import socket,sys
address = socket.inet_aton(sys.argv[1])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0x0806))
mac = s.getsockname()[4]
s.send(b'\\xff' * 6 + mac + b'\\x08\\x06\\x00\\x01\\x08\\x00\\x06\\x04\\x00\\x01' + mac + address + b'\\0' * 6 + address)";
        let mut command = self.command_at_node(to, Path::new("python3"));
        super::process::run(command.args(["-c", announce, &Ipv4Addr::from(FLOATING_ADDRESS).to_string()]));
    }
}

impl Drop for NamespaceNetwork {
    fn drop(&mut self) {
        for name in self.nodes.iter().chain([&self.hub]) {
            // Fails for those that were never made.
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// Why this machine cannot make such a network, or nothing.
pub fn unsupported() -> Option<String> {
    NamespaceNetwork::try_new(1).err().map(|why| format!("no network namespaces with bridge and veth: {why}"))
}

/// The tap device of the guest of this number.
pub fn tap_of(guest: u8) -> String {
    format!("tap{guest}")
}

/// The address of the guest of this number.
pub fn guest_address(guest: u8) -> Ipv4Addr {
    let [a, b, c, first] = GUEST_ADDRESS;
    Ipv4Addr::new(a, b, c, first.saturating_add(guest))
}

fn bridge_port(index: usize) -> String {
    format!("port{index}")
}

fn must(args: &[&str]) {
    if let Err(why) = ip(args) {
        panic!("{why}");
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let Output { status, stderr, .. } =
        Command::new("ip").args(args).output().map_err(|error| format!("ip: {error}"))?;
    if !status.success() {
        return Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&stderr).trim()));
    }
    Ok(())
}
