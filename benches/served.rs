//! A replicated pair and a witness in network namespaces of their own, with one volume that is served over NFS behind a floating
//! address: real processes, from the tests' harness. It ends with the value that stands for it.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tandem_tests::e2e::cluster::ALPHA;
use tandem_tests::e2e::{Cluster, ClusterOptions};

/// The volume's name, which is also its path from the server's root on.
pub const VOLUME: &str = "vol";
/// The port of NFS.
pub const PORT: u16 = 2049;

/// The pair.
#[derive(Debug)]
pub struct Served {
    /// Its processes.
    pub cluster: Cluster,
}

impl Served {
    /// Starts everything in `directory`, with a volume of this size, and waits until both copies are in sync.
    pub fn start(directory: &Path, size: &str) -> Self {
        let options =
            ClusterOptions { namespaces: true, directory: Some(directory.to_owned()), ..ClusterOptions::default() };
        let cluster = Cluster::start(&options);
        let create = ["volume", "create", VOLUME, "--size", size, "--node", "alpha", "--node", "beta", "--fs", "ext4"];
        cluster.must(ALPHA, &create);
        cluster.wait_healthy(VOLUME);
        let address = format!("{}/24@eth0", cluster.network.floating_ip());
        cluster.must(ALPHA, &["nfs", "serve", VOLUME, "--address", &address]);
        cluster.must(ALPHA, &["export", "add", VOLUME, "10.213.0.0/24", "--rw", "--squash", "none"]);
        Self { cluster }
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.cluster.network.floating_ip(), PORT)
    }

    /// The index of the primary on record. Errors: no node answers.
    pub fn primary(&self) -> Result<usize> {
        let name = self.cluster.volume(VOLUME).context("no node answers")?.primary;
        let nodes = &self.cluster.nodes;
        nodes.iter().position(|node| node.name == name).with_context(|| format!("{name} is no node"))
    }

    /// Takes the service away and has the filesystem checked. Errors: e2fsck finds it damaged.
    pub fn check(&self) -> Result<()> {
        let at = self.primary()?;
        self.cluster.must(at, &["nfs", "stop", VOLUME]);
        let checked = self.cluster.must(at, &["fs", "check", VOLUME]);
        if checked["clean"] != true {
            bail!("e2fsck finds the filesystem damaged: {checked}");
        }
        Ok(())
    }
}
