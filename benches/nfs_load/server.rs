//! The server that is measured, and the clients that measure it: each with a connection and a session of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use gateway_nfs::client::Handle;
use gateway_nfs::client::arguments::{Claim, Creation, Open};
use gateway_nfs::client::attributes::AttributesToSet;
use gateway_nfs::client::connection::{Client, Options};
use gateway_nfs::client::files::Files;
use gateway_nfs::client::number::{ACCESS_READ, ACCESS_WRITE, DENY_NONE, WANT_NO_DELEGATION};
use gateway_nfs::rpc::auth::SysCredential;

/// A client that waits longer for an answer has met a defect.
const PATIENCE: Duration = Duration::from_secs(60);
/// As a Linux client's credential names its machine.
const MACHINE: &[u8] = b"nfs-load";

/// Clients of one server.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    clients: Vec<Client>,
    directory: String,
}

impl Server {
    /// So many clients at this address. What they make lies below `directory`, a path from the server's root on.
    pub(crate) async fn connect(address: SocketAddr, clients: usize, directory: &str) -> Result<Self> {
        let mut all = Vec::with_capacity(clients);
        for number in 0..clients {
            let owner = Bytes::from(format!("nfs-load-{}-{number}", std::process::id()));
            let credential = SysCredential { machine: MACHINE.into(), ..SysCredential::default() };
            let options = Options { owner, credential, minor: 1, patience: Some(PATIENCE), ..Options::default() };
            let client = Client::connect(address, options).await;
            all.push(client.with_context(|| format!("client {number} at {address}"))?);
        }
        Ok(Self { clients: all, directory: directory.to_owned() })
    }

    /// The client of a task: tasks take turns.
    pub(crate) fn client(&self, task: usize) -> &Client {
        &self.clients[task % self.clients.len()]
    }

    /// How many clients there are.
    pub(crate) fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Whole operations on paths.
    pub(crate) fn files(&self) -> Files {
        Files::new(self.client(0).clone(), "nfs-load")
    }

    /// The path of what is made.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// A directory below, made where it is missing.
    pub(crate) async fn make_directory(&self, name: &str) -> Result<Handle> {
        let path = self.path(name);
        self.files().make_directories(&path, 0o755).await.with_context(|| path)
    }

    /// How many names a directory below has.
    pub(crate) async fn count(&self, name: &str) -> Result<usize> {
        let path = self.path(name);
        Ok(self.files().read_directory(&path).await.with_context(|| path)?.len())
    }

    /// Gives the sessions back. Errors: a client forgot nothing, but the server did.
    pub(crate) async fn close(self) -> Result<()> {
        for client in self.clients {
            let statistics = client.statistics().await?;
            anyhow::ensure!(
                statistics.sessions == 1 && statistics.connections == 1,
                "the server was not the same all the time: {statistics:?}"
            );
            client.close().await?;
        }
        Ok(())
    }
}

/// OPEN of a name in the current directory, as a Linux client on a persistent session creates exclusively (GUARDED4, RFC 8881
/// §18.16.3); for reading without. No delegation, so that each open is closed again.
pub(crate) fn open(name: &str, creates: bool, owner: &'static [u8]) -> Open {
    let attributes = AttributesToSet { mode: Some(0o644), ..AttributesToSet::default() };
    Open {
        access: WANT_NO_DELEGATION | if creates { ACCESS_WRITE } else { ACCESS_READ },
        deny: DENY_NONE,
        owner: Bytes::from_static(owner),
        creation: if creates { Creation::Guarded(attributes) } else { Creation::No },
        claim: Claim::Null(Bytes::copy_from_slice(name.as_bytes())),
    }
}
