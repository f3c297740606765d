//! qemu's block layer as a client that reconnects, and as a server to try the harness on.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::process::Process;
use super::wait::eventually;

/// A running qemu-storage-daemon that exports `vol` on loopback.
#[derive(Debug)]
pub struct StorageDaemon {
    /// Where it serves.
    pub address: SocketAddr,
    /// Its process.
    pub process: Process,
}

impl StorageDaemon {
    /// Serves a raw image.
    pub fn serve_image(image: &Path, log: &Path) -> io::Result<Self> {
        Self::start(
            &format!("driver=file,node-name=n0,filename={},cache.direct=off", image.display()),
            free_address()?,
            log,
        )
    }

    /// Serves the export `export` found at `upstream`. When that connection is lost, requests wait and are sent again on
    /// the next one, for up to `patience`: a client that knows nothing of reconnecting survives behind it.
    pub fn reconnecting(upstream: SocketAddr, export: &str, patience: Duration, log: &Path) -> io::Result<Self> {
        let node = format!(
            "driver=nbd,node-name=n0,server.type=inet,server.host={},server.port={},export={export},reconnect-delay={}",
            upstream.ip(),
            upstream.port(),
            patience.as_secs()
        );
        Self::start(&node, free_address()?, log)
    }

    fn start(node: &str, address: SocketAddr, log: &Path) -> io::Result<Self> {
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", node, "--nbd-server"]);
        command.arg(format!(
            "addr.type=inet,addr.host={},addr.port={},max-connections=0",
            address.ip(),
            address.port()
        ));
        command.args(["--export", "type=nbd,id=e0,node-name=n0,name=vol,writable=on"]);
        let mut process = Process::start(command, log)?;
        eventually(Duration::from_secs(20), "qemu-storage-daemon listens", || {
            assert!(
                process.is_running(),
                "qemu-storage-daemon ended: {}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
            TcpStream::connect(address).is_ok()
        });
        Ok(Self { address, process })
    }

    /// Its URI.
    pub fn uri(&self) -> String {
        format!("nbd://{}/vol", self.address)
    }
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}
