//! A Tandem cluster on loopback, started through the `cluster` binary of the tests.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::shell;

/// A running cluster. It ends when this is dropped: the binary stops when its standard input closes.
pub(super) struct DemoCluster {
    child: Child,
    ready: Ready,
}

/// The line that the binary prints once all volumes serve.
#[derive(Deserialize)]
struct Ready {
    uris: Vec<String>,
    nodes: Vec<NodeProcess>,
}

/// One node's parent process.
#[derive(Clone, Deserialize)]
pub(super) struct NodeProcess {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) admin: String,
}

impl DemoCluster {
    /// Starts two nodes and a witness in `directory`, with volumes of a size each: with the `tandem` and `cluster` of the
    /// directory `binaries`, or else with those of this workspace, which are built.
    pub(super) fn start_with(
        binaries: Option<&Path>,
        directory: &Path,
        size_bytes: u64,
        volumes: usize,
    ) -> Result<Self> {
        let Some(binaries) = binaries else { return Self::start(directory, size_bytes, volumes) };
        Self::start_binaries(&binaries.join("tandem"), &binaries.join("cluster"), directory, size_bytes, volumes)
    }

    /// Builds and starts two nodes and a witness in `directory`, with volumes of a size each.
    pub(super) fn start(directory: &Path, size_bytes: u64, volumes: usize) -> Result<Self> {
        let of = |name| shell::release_binary(name);
        shell::build_release(&["tandem", "cluster"])?;
        Self::start_binaries(&of("tandem"), &of("cluster"), directory, size_bytes, volumes)
    }

    /// The same with binaries built elsewhere: those of another state of the sources.
    fn start_binaries(
        tandem: &Path,
        cluster: &Path,
        directory: &Path,
        size_bytes: u64,
        volumes: usize,
    ) -> Result<Self> {
        let mut command = Command::new(cluster);
        command.arg("--dir").arg(directory);
        command.arg("--size").arg(size_bytes.to_string()).arg("--volumes").arg(volumes.to_string());
        command.env("TANDEM_BIN", tandem);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the cluster")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no standard output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        match serde_json::from_str(&line) {
            Ok(ready) => Ok(Self { child, ready }),
            Err(_) => {
                let status = child.wait()?;
                bail!("the cluster did not come up: {status}; it printed {line:?}");
            }
        }
    }

    /// The export of each volume.
    pub(super) fn uris(&self) -> &[String] {
        &self.ready.uris
    }

    pub(super) fn nodes(&self) -> &[NodeProcess] {
        &self.ready.nodes
    }
}

impl Drop for DemoCluster {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Fails only if it has ended already.
        let _ = self.child.wait();
    }
}
