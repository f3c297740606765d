//! The client side of the admin API: a connection through the transport seam, and redirects followed.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::admin as pb;
use proto::{ClusterId, NodeId};
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::errors::redirect_of;
use crate::net::transport::{Stream, Transport};

/// A connection attempt gives up after this.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Redirects followed before giving up; a leader that moves while we look needs two.
pub const REDIRECTS_MAX: usize = 4;

/// Connects to the admin API at `address` (`host:port`). `UNAVAILABLE` when nothing answers there.
pub async fn connect(transport: &Transport, address: &str) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Status::invalid_argument(format!("{address:?} is not an address: write HOST:PORT")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5));
    let connector = Connector { transport: transport.clone(), address: address.to_owned() };
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| Status::unavailable(format!("no node answers at {address}: {}", innermost(&error))))
}

/// Calls the node at `address`, and the one it points to, until one answers for itself.
pub async fn follow<T, C, F>(transport: &Transport, address: &str, call: C) -> Result<T, Status>
where
    C: Fn(Channel) -> F,
    F: Future<Output = Result<T, Status>>,
{
    let mut address = address.to_owned();
    for _ in 0..=REDIRECTS_MAX {
        let channel = connect(transport, &address).await?;
        match call(channel).await {
            Ok(reply) => return Ok(reply),
            Err(status) => match redirect_of(&status) {
                Some(next) => address = next,
                None => return Err(status),
            },
        }
    }
    Err(Status::new(Code::Unavailable, "the nodes keep pointing at one another; the cluster is changing, try again"))
}

/// Whether the node at `address` knows that `node` was removed from `cluster`; `None` when it does not answer in time.
pub async fn is_removed(transport: &Transport, address: &str, cluster: ClusterId, node: NodeId) -> Option<bool> {
    let asking = async {
        let channel = connect(transport, address).await.ok()?;
        let request = pb::StandingRequest { cluster: cluster.to_string(), node: node.0 };
        Some(pb::cluster_client::ClusterClient::new(channel).standing(request).await.ok()?.into_inner().removed)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, asking).await.ok().flatten()
}

/// The cause at the bottom of a chain of errors; the layers above only say "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Dials one fixed address through the seam; the URI is not looked at.
#[derive(Clone)]
struct Connector {
    transport: Transport,
    address: String,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Connector { transport, address } = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, transport.connect(&address)).await {
                Ok(stream) => Ok(TokioIo::new(stream?)),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "connection timed out")),
            }
        })
    }
}
