//! The ports of a service beside that of files: the port mapper's, and datagrams of the lock manager and its kin. NFSv3 needs them
//! for its locks, and nothing else does: where a port cannot be had the service runs without it, and it is tried again every while.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block_device::BlockDevice;
use gateway_nfs::port_mapper::{self, Protocol};
use gateway_nfs::server::{self, Ended};
use gateway_nfs::service::{Door, Service};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::net::transport::{bind_datagrams_early, bind_early};
use crate::supervisor::{HoldError, SupervisorSockets};

/// How often a port that could not be had is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// A port, and what is answered there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    at: SocketAddr,
    door: Door,
}

/// A port that is ours.
enum Opened {
    Listener(TcpListener),
    Datagrams(UdpSocket),
}

/// The ports of a service.
pub(super) struct Companions<D> {
    service: Rc<Service<D>>,
    volume: String,
    /// Those that could not be had yet.
    missing: Vec<Wanted>,
    /// Those that can be answered at once.
    opened: Vec<(Wanted, Opened)>,
    sockets: Option<Arc<SupervisorSockets>>,
    is_said: bool,
}

impl<D: BlockDevice + 'static> Companions<D> {
    /// Of a service whose files are on `port` of these addresses; none is open yet.
    pub(super) fn new(
        service: Rc<Service<D>>,
        volume: &str,
        (addresses, port): (&[IpAddr], u16),
        sockets: Option<Arc<SupervisorSockets>>,
    ) -> Self {
        let missing = addresses.iter().flat_map(|address| wanted(*address, port)).collect();
        Self { service, volume: volume.to_owned(), missing, opened: Vec::new(), sockets, is_said: false }
    }

    /// Opens what can be had. To be called before the addresses come, so that nobody is refused there.
    pub(super) async fn open(&mut self) {
        if self.missing.is_empty() {
            return;
        }
        let (missing, sockets) = (std::mem::take(&mut self.missing), self.sockets.clone());
        let tried = missing.clone();
        let opening = move || tried.into_iter().map(|wanted| (wanted, open(wanted, sockets.as_deref()))).collect();
        let results: Vec<_> = match tokio::task::spawn_blocking(opening).await {
            Ok(results) => results,
            Err(why) => {
                warn!(volume = %self.volume, "ports of NFSv3 are not opened: {why}");
                self.missing = missing;
                return;
            }
        };
        let mut refused = None;
        for (wanted, result) in results {
            match result {
                Ok(opened) => self.opened.push((wanted, opened)),
                Err(why) => {
                    self.missing.push(wanted);
                    refused.get_or_insert((wanted, why));
                }
            }
        }
        match refused {
            Some((wanted, why)) if !self.is_said => self.say(wanted, &why),
            None if self.is_said => {
                info!(volume = %self.volume, "NFSv3 clients can lock now: all its ports are open");
                self.is_said = false;
            }
            _ => {}
        }
    }

    /// Once: whoever has the port keeps it for a while.
    fn say(&mut self, wanted: Wanted, why: &io::Error) {
        self.is_said = true;
        let (volume, seconds) = (&self.volume, RETRY_INTERVAL.as_secs());
        let at = wanted.at;
        match why.kind() {
            io::ErrorKind::AddrInUse if at.port() == port_mapper::PORT => warn!(
                %volume,
                "port {at} is taken, so NFSv3 clients cannot lock (NFSv4 is not affected). If it is this box's own rpcbind: \
                 `systemctl disable --now rpcbind.socket rpcbind`. It is tried again every {seconds} s"
            ),
            io::ErrorKind::PermissionDenied => warn!(
                %volume,
                "port {at} may not be taken, so NFSv3 clients cannot lock (NFSv4 is not affected): this process needs \
                 CAP_NET_BIND_SERVICE. It is tried again every {seconds} s"
            ),
            _ => warn!(
                %volume,
                "port {at} cannot be had, so NFSv3 clients cannot lock (NFSv4 is not affected): {why}. It is tried again every \
                 {seconds} s"
            ),
        }
    }

    /// Answers on what is open, and goes on trying the rest, until `stop` turns true or the service has nothing to say any more.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Ended {
        let mut serving = JoinSet::new();
        let stopped = stop.clone();
        let all = async {
            loop {
                for (wanted, opened) in self.opened.drain(..) {
                    if let Err(why) = answer(&self.service, (wanted, opened), &stopped, &mut serving) {
                        warn!(volume = %self.volume, "port {} is not answered: {why}", wanted.at);
                    }
                }
                tokio::select! {
                    Some(ended) = serving.join_next(), if !serving.is_empty() => match ended {
                        Ok(ended) => return ended,
                        Err(why) => warn!(volume = %self.volume, "a port of NFSv3 is not answered any more: {why}"),
                    },
                    () = tokio::time::sleep(RETRY_INTERVAL) => self.open().await,
                }
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => Ended::Stopped,
            ended = all => ended,
        }
    }
}

/// What a service needs on one address.
fn wanted(address: IpAddr, port: u16) -> [Wanted; 3] {
    let of = |port, door| Wanted { at: SocketAddr::new(address, port), door };
    [
        of(port_mapper::PORT, Door::PortMapper(Protocol::Tcp)),
        of(port_mapper::PORT, Door::PortMapper(Protocol::Udp)),
        of(port, Door::Datagrams),
    ]
}

/// The listener is the supervisor's, where there is one, as that of files is; datagrams need nobody to outlive this process.
fn open(wanted: Wanted, sockets: Option<&SupervisorSockets>) -> io::Result<Opened> {
    match (wanted.door, sockets) {
        (Door::PortMapper(Protocol::Udp) | Door::Datagrams, _) => {
            bind_datagrams_early(wanted.at).map(Opened::Datagrams)
        }
        (Door::PortMapper(Protocol::Tcp) | Door::Service, Some(sockets)) => {
            let listener = sockets.listen(wanted.at).map_err(|why| match why {
                HoldError::Refused(why) | HoldError::Silent(why) => why,
                HoldError::Full => io::Error::other(why),
            })?;
            Ok(Opened::Listener(listener))
        }
        (Door::PortMapper(Protocol::Tcp) | Door::Service, None) => bind_early(wanted.at).map(Opened::Listener),
    }
}

fn answer<D: BlockDevice + 'static>(
    service: &Rc<Service<D>>,
    (wanted, opened): (Wanted, Opened),
    stop: &watch::Receiver<bool>,
    serving: &mut JoinSet<Ended>,
) -> io::Result<()> {
    let (service, stop) = (Rc::clone(service), stop.clone());
    match opened {
        Opened::Listener(listener) => {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            serving.spawn_local(server::serve_port_mapper(service, listener, stop));
        }
        Opened::Datagrams(socket) => {
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            serving.spawn_local(server::serve_datagrams(service, socket, wanted.door, stop));
        }
    }
    Ok(())
}
