//! What is measured: a raw file, NBD servers on loopback, and a mounted volume.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cluster::{DemoCluster, NodeProcess};
use super::gluster::Gluster;
use super::proc::cpu_seconds;
use crate::shell;

const START_LIMIT: Duration = Duration::from_secs(10);

/// How fio reaches a target.
enum Reach {
    File(PathBuf),
    /// One export or several.
    Nbd(Vec<String>),
    /// A file that only processes in its namespaces see.
    Mounted(Gluster),
}

/// Something to measure; its processes end with it.
pub(super) struct Target {
    pub(super) name: &'static str,
    reach: Reach,
    servers: Vec<Server>,
    cluster: Option<DemoCluster>,
}

impl Target {
    /// fio's options for each of the target's volumes, one per line.
    pub(super) fn fio_volumes(&self) -> Vec<String> {
        let file = |path: &Path| vec![format!("ioengine=io_uring\ndirect=1\nfilename={}\n", path.display())];
        match &self.reach {
            Reach::File(path) => file(path),
            Reach::Mounted(gluster) => file(gluster.file()),
            Reach::Nbd(uris) => uris.iter().map(|uri| format!("ioengine=nbd\nuri={uri}\n")).collect(),
        }
    }

    /// What fio's command line begins with, if it has to run in the target's namespaces and in `directory`.
    pub(super) fn prefix(&self, directory: &str) -> Vec<String> {
        match &self.reach {
            Reach::Mounted(gluster) => gluster.prefix(directory),
            Reach::File(_) | Reach::Nbd(_) => Vec::new(),
        }
    }

    /// Processor time of all its processes so far, in seconds. Without fio's; a raw file has none.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let nodes = self.cluster.iter().flat_map(|cluster| cluster.nodes()).map(|node| node.pid);
        let mounted = match &self.reach {
            Reach::Mounted(gluster) => Some(gluster.pid()),
            Reach::File(_) | Reach::Nbd(_) => None,
        };
        self.servers.iter().map(|server| server.0.id()).chain(nodes).chain(mounted).map(cpu_seconds).sum()
    }

    /// The disk itself: a file, O_DIRECT, io_uring.
    pub(super) fn raw(directory: &Path, size_bytes: u64) -> Result<Self> {
        let path = image(directory, "raw.img", size_bytes)?;
        Ok(Self { name: "raw", reach: Reach::File(path), servers: Vec::new(), cluster: None })
    }

    /// qemu-storage-daemon with one copy.
    pub(super) fn qemu_single(directory: &Path, size_bytes: u64) -> Result<Self> {
        let path = image(directory, "single.img", size_bytes)?;
        let port = free_port()?;
        let server = storage_daemon(&["--blockdev", &file_node("f0", &path)], "f0", port)?;
        Ok(Self { name: "qemu", reach: nbd(port), servers: vec![server], cluster: None })
    }

    /// nbdkit with one copy, through the page cache: what it acknowledges is not durable before a flush.
    pub(super) fn nbdkit(directory: &Path, size_bytes: u64) -> Result<Self> {
        let path = image(directory, "nbdkit.img", size_bytes)?;
        let port = free_port()?;
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--exit-with-parent", "--ipaddr", "127.0.0.1", "--port", &port.to_string()]);
        let child = command.arg("file").arg(&path).stdin(Stdio::null()).spawn().context("cannot start nbdkit")?;
        let server = Server(child);
        shell::wait_until(START_LIMIT, "nbdkit", || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        Ok(Self { name: "nbdkit", reach: nbd(port), servers: vec![server], cluster: None })
    }

    /// Two qemu-storage-daemons: a quorum of a local file and of the other's export.
    pub(super) fn qemu_quorum(directory: &Path, size_bytes: u64) -> Result<Self> {
        let (near, far) = (image(directory, "near.img", size_bytes)?, image(directory, "far.img", size_bytes)?);
        let (far_port, port) = (free_port()?, free_port()?);
        let far_server = storage_daemon(&["--blockdev", &file_node("f1", &far)], "f1", far_port)?;
        let remote =
            format!("driver=nbd,node-name=n1,server.type=inet,server.host=127.0.0.1,server.port={far_port},export=vol");
        let quorum = "driver=quorum,node-name=q0,vote-threshold=2,read-pattern=fifo,children.0=f0,children.1=n1";
        let nodes = ["--blockdev", &file_node("f0", &near), "--blockdev", &remote, "--blockdev", quorum];
        let server = storage_daemon(&nodes, "q0", port)?;
        Ok(Self { name: "quorum", reach: nbd(port), servers: vec![far_server, server], cluster: None })
    }

    /// GlusterFS: two copies and an arbiter, mounted.
    pub(super) fn gluster(directory: &Path, size_bytes: u64) -> Result<Self> {
        let gluster = Gluster::start(&directory.join("gluster"), size_bytes)?;
        Ok(Self { name: "gluster", reach: Reach::Mounted(gluster), servers: Vec::new(), cluster: None })
    }

    /// Tandem: two nodes and a witness as real processes; see `DemoCluster::start_with`.
    pub(super) fn tandem(binaries: Option<&Path>, directory: &Path, size_bytes: u64) -> Result<Self> {
        Ok(Self::pair("tandem", DemoCluster::start_with(binaries, &directory.join("tandem"), size_bytes, 1)?))
    }

    /// Another build of Tandem: `release` holds its `tandem` and `cluster`.
    pub(super) fn other_tandem(release: &Path, directory: &Path, size_bytes: u64) -> Result<Self> {
        Ok(Self::pair("other", DemoCluster::start_with(Some(release), &directory.join("other"), size_bytes, 1)?))
    }

    /// A cluster that runs, and all its volumes.
    pub(super) fn pair(name: &'static str, cluster: DemoCluster) -> Self {
        Self { name, reach: Reach::Nbd(cluster.uris().to_vec()), servers: Vec::new(), cluster: Some(cluster) }
    }

    /// Tandem with several volumes of a size each.
    pub(super) fn tandem_volumes(
        binaries: Option<&Path>,
        directory: &Path,
        size_bytes: u64,
        volumes: usize,
    ) -> Result<Self> {
        let cluster = DemoCluster::start_with(binaries, &directory.join("volumes"), size_bytes, volumes)?;
        Ok(Self::pair("tandem", cluster))
    }

    /// The nodes' processes, of Tandem.
    pub(super) fn nodes(&self) -> &[NodeProcess] {
        self.cluster.as_ref().map_or(&[], DemoCluster::nodes)
    }
}

fn nbd(port: u16) -> Reach {
    Reach::Nbd(vec![format!("nbd://127.0.0.1:{port}/vol")])
}

fn file_node(name: &str, path: &Path) -> String {
    format!("driver=file,node-name={name},filename={},cache.direct=on,aio=io_uring", path.display())
}

fn image(directory: &Path, name: &str, size_bytes: u64) -> Result<PathBuf> {
    let path = directory.join(name);
    File::create(&path).with_context(|| format!("creating {}", path.display()))?.set_len(size_bytes)?;
    Ok(path)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn storage_daemon(nodes: &[&str], exported: &str, port: u16) -> Result<Server> {
    let mut command = Command::new("qemu-storage-daemon");
    command
        .args(nodes)
        .arg("--nbd-server")
        .arg(format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port},max-connections=0"));
    command.arg("--export").arg(format!("type=nbd,id=e0,node-name={exported},name=vol,writable=on"));
    let child = command.stdin(Stdio::null()).spawn().context("cannot start qemu-storage-daemon")?;
    let server = Server(child);
    shell::wait_until(START_LIMIT, "qemu-storage-daemon", || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    Ok(server)
}

/// A process that ends with its owner.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
