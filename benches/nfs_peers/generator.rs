//! The load generator, `nfs-load`, as a process of its own where clients live: its figures of one server.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tandem_tests::e2e::namespace::NamespaceNetwork;

use crate::sizes::Sizes;

/// One workload of the generator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) clients: u32,
    /// Operations of each client at once.
    pub(crate) depth: u32,
    /// A listing asks for each file again.
    pub(crate) getattr_each: bool,
}

/// Runs one workload and gives its figures. Errors: the generator failed, as it does when anything that it did was not right.
pub(crate) fn run(
    network: &NamespaceNetwork,
    program: &Path,
    (server, pid): (SocketAddr, u32),
    workload: Workload,
    sizes: &Sizes,
) -> Result<Value> {
    let Workload { name, clients, depth, getattr_each } = workload;
    let mut command = network.command_at_hub(&program.to_string_lossy());
    command.args(["--json", "--server", &server.to_string(), "--workloads", name]);
    command.args(["--server-pids", &pid.to_string(), "--clients", &clients.to_string(), "--depth", &depth.to_string()]);
    command.args(["--seconds", &sizes.seconds.to_string(), "--file-mib", &sizes.file_mib.to_string()]);
    command.args(["--files", &sizes.files.to_string(), "--entries", &sizes.entries.to_string()]);
    if getattr_each {
        command.arg("--getattr-each");
    }
    let output = command.output().with_context(|| format!("{}", program.display()))?;
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{name} at {server} failed: {printed}{said}");
    serde_json::from_str(printed.trim()).with_context(|| format!("figures in {printed:?}"))
}
