//! Datagrams: each is one request, and has one reply or none, from the address that it came to.
//!
//! A datagram costs its sender nothing, so it costs little here: as many are worked on as [`REQUESTS_MAX`], and what comes beyond
//! that waits in the kernel's buffer, or is lost, which who sends datagrams expects.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use block_device::BlockDevice;
use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::debug;

use super::{ACCEPT_PAUSE, Ended};
use crate::rpc::call::is_reply;
use crate::service::{Door, Gone, Origin, Service};
use crate::state::back_channel::ConnectionId;

/// Datagrams of a socket that are worked on together.
const REQUESTS_MAX: usize = 32;
/// Bytes of a request; of a longer one the rest is lost, and then it is none.
const REQUEST_BYTES_MAX: usize = 8_800;
/// Bytes of a reply; a longer one is not sent.
const REPLY_BYTES_MAX: usize = 8_800;
/// Stands for no connection: those have greater numbers.
const NO_CONNECTION: ConnectionId = ConnectionId(0);

/// Answers what comes to a socket, until `stop` turns true or the service has nothing to say any more. Runs on the service's thread
/// (`tokio::task::LocalSet`).
pub async fn serve_datagrams<D: BlockDevice + 'static>(
    service: Rc<Service<D>>,
    socket: UdpSocket,
    door: Door,
    mut stop: watch::Receiver<bool>,
) -> Ended {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => Ended::Stopped,
        Gone(_) = answer_all(service, Rc::new(socket), door) => Ended::Gone,
    }
}

async fn answer_all<D: BlockDevice + 'static>(service: Rc<Service<D>>, socket: Rc<UdpSocket>, door: Door) -> Gone {
    let slots = Arc::new(Semaphore::new(REQUESTS_MAX));
    let mut requests: JoinSet<Result<(), Gone>> = JoinSet::new();
    let mut buffer = vec![0; REQUEST_BYTES_MAX];
    loop {
        let free = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, socket.recv_from(&mut buffer).await)
        };
        tokio::select! {
            Some(Ok(Err(gone))) = requests.join_next(), if !requests.is_empty() => return gone,
            (slot, received) = free => match received {
                Ok((length, peer)) => {
                    let message = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
                    let (service, socket) = (Rc::clone(&service), Rc::clone(&socket));
                    requests.spawn_local(async move {
                        let answered = answer(&service, &socket, door, (peer, message)).await;
                        drop(slot);
                        answered
                    });
                }
                Err(error) => {
                    debug!("no datagram: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn answer<D: BlockDevice + 'static>(
    service: &Service<D>,
    socket: &UdpSocket,
    door: Door,
    (peer, message): (SocketAddr, Bytes),
) -> Result<(), Gone> {
    let sent = async {
        // Answers to answers would never end.
        if is_reply(&message) {
            return Ok(Ok(()));
        }
        let local = match socket.local_addr() {
            Ok(local) => local.ip(),
            Err(error) => return Ok(Err(error)),
        };
        let origin = Origin { connection: NO_CONNECTION, address: peer.ip(), local, door };
        let Some(reply) = service.call(origin, message).await? else { return Ok(Ok(())) };
        Ok(send(socket, peer, &reply.concat()).await)
    };
    if let Err(error) = sent.await? {
        debug!(%peer, "a datagram is not answered: {error}");
    }
    Ok(())
}

async fn send(socket: &UdpSocket, peer: SocketAddr, reply: &[u8]) -> io::Result<()> {
    if reply.len() > REPLY_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the reply is too long for a datagram"));
    }
    socket.send_to(reply, peer).await.map(drop)
}
