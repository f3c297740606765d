//! Streams of the port mapper: few requests each, and small ones. They have a budget of their own, so that nobody keeps files from
//! being served here.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use block_device::BlockDevice;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::debug;

use super::connection::{Connection, Scratch};
use super::room::{Room, Share};
use super::{Ended, pause_after};
use crate::port_mapper::Protocol;
use crate::service::{Door, Service};
use crate::state::back_channel::ConnectionId;

/// Connections; more are closed at once.
const CONNECTIONS_MAX: usize = 256;
/// How long one may last. Who asks the port mapper asks once or twice.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request.
const REQUEST_BYTES_MAX: usize = 4 << 10;
/// Bytes of requests, of all connections.
const REQUEST_BYTES_TOTAL_MAX: usize = 256 << 10;
/// Bytes of replies, of all connections: one of the largest that anything is answered with at least.
const REPLY_BYTES_TOTAL_MAX: usize = 4 << 20;

/// Serves the port mapper until `stop` turns true or the service has nothing to say any more. Runs on the service's thread
/// (`tokio::task::LocalSet`).
pub async fn serve_port_mapper<D: BlockDevice + 'static>(
    service: Rc<Service<D>>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) -> Ended {
    let room = Rc::new(Room::new(REQUEST_BYTES_TOTAL_MAX));
    let reply_room = Rc::new(Room::new(REPLY_BYTES_TOTAL_MAX));
    let (gone, mut is_gone) = watch::channel(false);
    let gone = Rc::new(gone);
    let scratch = Scratch::new();
    let requests = Rc::new(RefCell::new(JoinSet::new()));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ended::Stopped,
            _ = is_gone.wait_for(|gone| *gone) => return Ended::Gone,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() < CONNECTIONS_MAX => {
                    let Ok(local) = stream.local_addr() else { continue };
                    let connection = Connection {
                        service: Rc::clone(&service),
                        // Nothing is kept of it.
                        id: ConnectionId(0),
                        peer: peer.ip(),
                        local: local.ip(),
                        door: Door::PortMapper(Protocol::Tcp),
                        record_bytes_max: REQUEST_BYTES_MAX,
                        room: Rc::clone(&room),
                        share: Share::new(&reply_room),
                        scratch: Rc::clone(&scratch),
                        requests: Rc::clone(&requests),
                        gone: Rc::clone(&gone),
                    };
                    connections.spawn_local(run(connection, stream));
                }
                Ok((_, peer)) => debug!(%peer, "too many connections to the port mapper: closed"),
                Err(error) => pause_after(error).await,
            },
        }
    }
}

async fn run<D: BlockDevice + 'static>(connection: Connection<D>, stream: TcpStream) {
    // Whoever stays longer asks again by another connection.
    let _ = tokio::time::timeout(CONNECTION_TIME_MAX, connection.run(stream)).await;
}
