//! The admin API: tonic services over [`NodeOperations`], one file a service.
//!
//! The services validate, find the node an operation belongs on, wait for its effect and explain it. They hold no state
//! of their own; whatever they tell is read from the replicated state, from Raft, or asked of the nodes at that moment.

#[cfg(test)]
mod api_tests;
pub mod client;
mod cluster;
mod context;
mod convert;
pub mod errors;
#[cfg(test)]
pub(crate) mod fake_node;
mod files;
mod force;
pub mod health;
mod nfs;
mod nfs_messages;
pub(crate) mod nfs_report_messages;
mod nfs_statistics;
mod node;
pub mod operations;
mod replace;
mod scrub;
mod switchover;
pub mod validate;
mod volume;
mod watch;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use proto::admin as pb;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::net::transport::{Listener, Stream, Transport};
pub use operations::{
    Adoption, NODE_EVENTS_MAX, NodeEvent, NodeEventKind, NodeFacts, NodeOperations, OperationError, ReplicaReport,
    StoreState,
};

/// Calls that one connection may have open at once.
const CALLS_PER_CONNECTION_MAX: usize = 64;

/// Serves the admin API on `listener` until `shutdown` resolves; open calls get to end, event streams are cut.
/// `transport` is used for questions to the other nodes.
pub async fn serve(
    listener: Listener,
    transport: Transport,
    operations: Arc<dyn NodeOperations>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let context = context::Context { operations, transport };
    let (stopping, stopped) = tokio::sync::watch::channel(());
    Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .add_service(pb::cluster_server::ClusterServer::new(cluster::ClusterService::new(context.clone())))
        .add_service(pb::volume_server::VolumeServer::new(volume::VolumeService::new(context.clone())))
        .add_service(pb::files_server::FilesServer::new(files::FilesService::new(context.clone())))
        .add_service(pb::nfs_server::NfsServer::new(nfs::NfsConfigurationService::new(context.clone())))
        .add_service(pb::watch_server::WatchServer::new(watch::WatchService::new(context.clone(), stopped)))
        .add_service(pb::node_server::NodeServer::new(node::NodeService::new(context)))
        .serve_with_incoming_shutdown(connections(listener), async move {
            shutdown.await;
            drop(stopping);
        })
        .await
}

/// A connection as tonic wants it.
struct AdminStream(Stream);

impl Connected for AdminStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for AdminStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for AdminStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Accepted connections that wait for tonic.
const ACCEPTED_MAX: usize = 16;
/// Rest after a failed accept (out of descriptors), so that a full table does not spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// The listener's connections as a stream, until it is dropped.
fn connections(listener: Listener) -> ReceiverStream<std::io::Result<AdminStream>> {
    let (sender, receiver) = mpsc::channel(ACCEPTED_MAX);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    if sender.send(Ok(AdminStream(stream))).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin listener cannot accept");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    });
    ReceiverStream::new(receiver)
}
