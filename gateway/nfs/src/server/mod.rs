//! A service on the network: connections are taken, requests read from them, and replies written when they are ready, in any
//! order.
//!
//! Nothing waits in a queue without bound: a connection whose requests are not answered yet, or whose replies are not read, is
//! not read from any more, and all connections share one budget of bytes. A request that was begun is ended, whatever becomes
//! of its connection: its slot would be in use for ever otherwise.

mod appetite;
mod connection;
mod datagrams;
mod hosts;
mod port_mapper;
mod room;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use block_device::BlockDevice;
use futures_util::future::select_all;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use self::room::{Room, Share};
use crate::service::{Door, Endpoints, REQUEST_BYTES_MAX, Service};
use crate::state::back_channel::ConnectionId;

pub use datagrams::serve_datagrams;
pub use hosts::call_hosts;
pub use port_mapper::serve_port_mapper;

/// Connections of a service; more are taken and closed at once.
pub const CONNECTIONS_MAX: usize = 4096;
/// Bytes of requests that are being read or worked on, of all connections.
pub const REQUEST_BYTES_TOTAL_MAX: usize = 64 << 20;
/// Bytes of replies that are being made or wait to be written, of all connections.
pub const REPLY_BYTES_TOTAL_MAX: usize = 256 << 20;
/// How long nothing is taken after taking has failed, as when there are no descriptors left.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// How long connections that were taken are gathered before they are recorded.
const RECORD_PAUSE: std::time::Duration = std::time::Duration::from_millis(2);
/// How often is looked at what time brings.
const TEND_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);

/// Called for each connection that is taken; what it gives is kept as long as the connection. Errors: the connection is closed.
pub type Hold = Rc<dyn Fn(&TcpStream) -> io::Result<Box<dyn Held>>>;

/// What is kept with a connection. It is dropped before a connection that ends because its service does, and told of all others.
pub trait Held {
    /// The connection is closed: its client has left, or has sent what cannot be understood.
    fn closed(self: Box<Self>) {}
}

impl Held for () {}

/// What is kept, of all connections.
#[derive(Default)]
struct Holding(Rc<RefCell<BTreeMap<ConnectionId, Box<dyn Held>>>>);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.borrow_mut().clear();
    }
}

/// Why serving has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// The volume cannot be served here any more.
    Gone,
}

/// Serves until `stop` turns true or the service has nothing to say any more. Runs on the service's thread
/// (`tokio::task::LocalSet`). Connections are dropped at the end, and requests under way with them.
///
/// # Panics
/// Without a listener.
pub async fn serve<D: BlockDevice + 'static>(
    service: Rc<Service<D>>,
    listeners: Vec<TcpListener>,
    hold: Hold,
    mut stop: watch::Receiver<bool>,
) -> Ended {
    let room = Rc::new(Room::new(REQUEST_BYTES_TOTAL_MAX));
    service.watch_budget(room.budget(), REQUEST_BYTES_TOTAL_MAX);
    let reply_room = Rc::new(Room::new(REPLY_BYTES_TOTAL_MAX));
    let (gone, mut is_gone) = watch::channel(false);
    let gone = Rc::new(gone);
    let mut connections = JoinSet::new();
    // Behind the connections: what is behind is dropped before.
    let holding = Holding::default();
    let scratch = connection::Scratch::new();
    let requests = Rc::new(RefCell::new(JoinSet::new()));
    let mut next = 1;
    // When those that were taken last are to be recorded: until then nobody nudges their clients.
    let mut record_at = None;
    let mut tend = tokio::time::interval(TEND_INTERVAL);
    let mut callbacks = std::pin::pin!(service.deliver());
    loop {
        tokio::select! {
            _ = &mut callbacks => return Ended::Gone,
            _ = tend.tick() => if service.tend().await.is_err() { return Ended::Gone },
            _ = sleep_until(record_at.unwrap_or_else(Instant::now)), if record_at.is_some() => {
                record_at = None;
                if service.note_connections().await.is_err() {
                    return Ended::Gone;
                }
            }
            _ = stop.wait_for(|stop| *stop) => return Ended::Stopped,
            _ = is_gone.wait_for(|gone| *gone) => return Ended::Gone,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            (accepted, ..) = select_all(listeners.iter().map(|listener| Box::pin(listener.accept()))) => match accepted {
                Ok((stream, peer)) if connections.len() < CONNECTIONS_MAX => {
                    let Some((held, local)) = kept(&stream, peer, &hold) else { continue };
                    let (id, holding) = (ConnectionId(next), Rc::clone(&holding.0));
                    holding.borrow_mut().insert(id, held);
                    debug!(%peer, connection = next, "connected");
                    service.record_connection(id, Endpoints { client: peer, service: local });
                    record_at.get_or_insert_with(|| Instant::now() + RECORD_PAUSE);
                    service.connection_taken(id);
                    let connection = connection::Connection {
                        service: Rc::clone(&service),
                        id,
                        peer: peer.ip(),
                        local: local.ip(),
                        door: Door::Service,
                        record_bytes_max: REQUEST_BYTES_MAX,
                        room: Rc::clone(&room),
                        share: Share::new(&reply_room),
                        scratch: Rc::clone(&scratch),
                        requests: Rc::clone(&requests),
                        gone: Rc::clone(&gone),
                    };
                    connections.spawn_local(async move {
                        connection.run(stream).await;
                        let held = holding.borrow_mut().remove(&id);
                        if let Some(held) = held {
                            held.closed();
                        }
                    });
                    next += 1;
                }
                Ok((_, peer)) => {
                    service.connection_refused();
                    warn!(%peer, "more than {CONNECTIONS_MAX} connections: closed");
                }
                Err(error) => pause_after(error).await,
            },
        }
    }
}

/// Keeps a connection; gives what it is kept by, and our end of it.
fn kept(stream: &TcpStream, peer: SocketAddr, hold: &Hold) -> Option<(Box<dyn Held>, SocketAddr)> {
    let local = stream.local_addr().ok()?;
    let held = hold(stream).inspect_err(|error| warn!(%peer, "a connection is not kept: {error}"));
    Some((held.ok()?, local))
}

async fn pause_after(error: io::Error) {
    warn!("cannot take a connection: {error}");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
