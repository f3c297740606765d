//! Phase two: serves one negotiated client from a device until either leaves.
//!
//! Whatever happens to the client, [`serve`] returns only when no operation of this connection is left in the device.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use block_device::BlockDevice;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::execute::execute;
use super::transmission::{Stop, Transmission};
use crate::codec::ProtocolError;
use crate::export::Agreed;
use crate::statistics::Statistics;

/// Time a client has to take the last replies, counted from the end of its last operation. Short, because a switchover
/// waits for it.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a connection ended.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Ended {
    /// The client said goodbye; everything in flight was answered.
    #[error("the client disconnected")]
    Disconnected,
    /// The connection closed or failed.
    #[error("the connection ended")]
    Gone,
    /// The client broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(ProtocolError),
    /// This node does not serve the volume any more, or the device is closing: closed without a further reply.
    #[error("the device is not served here any more")]
    DeviceLost,
    /// `shutdown` completed; everything in flight was answered as far as the client took it.
    #[error("shut down")]
    Shutdown,
}

/// Serves the transmission phase of one connection. Runs in one task of the device's shard; needs a runtime with time
/// enabled. Memory is bounded by [`crate::BYTES_IN_FLIGHT_MAX`], [`crate::REQUESTS_IN_FLIGHT_MAX`] and one small
/// input buffer.
///
/// When `shutdown` completes, nothing more is read, what is in flight is finished and answered, and the stream closes.
///
/// Must be driven to its end: it waits for operations that own buffers.
pub async fn serve<S, D>(
    stream: S,
    agreed: &Agreed,
    device: &D,
    shutdown: impl Future<Output = ()>,
    statistics: &Statistics,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: BlockDevice,
{
    Statistics::add(&statistics.connections, 1);
    let start = |request, payload| execute(device, statistics, request, payload);
    let mut transmission = Transmission::new(stream, agreed, statistics, start);
    let mut shutdown = pin!(shutdown);
    let stop = poll_fn(|cx| match shutdown.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => transmission.poll_serve(cx).map(Some),
    })
    .await;
    let ended = match stop {
        None => Ended::Shutdown,
        Some(Stop::Disconnected) => Ended::Disconnected,
        Some(Stop::Ended | Stop::Broken) => Ended::Gone,
        Some(Stop::Protocol(error)) => Ended::Protocol(error),
        Some(Stop::Lost) => Ended::DeviceLost,
    };
    if matches!(stop, Some(Stop::Broken | Stop::Lost)) {
        transmission.close().await;
        return ended;
    }
    // A client that closed its sending half may still read, so its replies are worth sending.
    let ended = match poll_fn(|cx| transmission.poll_finish_operations(cx)).await {
        Err(Stop::Lost) => Ended::DeviceLost,
        Err(_) => ended,
        Ok(()) => {
            let replies = poll_fn(|cx| transmission.poll_finish_replies(cx));
            if tokio::time::timeout(DRAIN_TIMEOUT, replies).await.is_err() {
                tracing::debug!("the client did not take its last replies");
            }
            ended
        }
    };
    transmission.close().await;
    ended
}
