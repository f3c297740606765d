//! The worker's side: listeners from the supervisor, and connections given into its keeping.
//!
//! Every call is one datagram, and only [`SupervisorSockets::listen`] waits for an answer; the supervisor does nothing
//! else than read them. All calls block for that moment.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketType, sockopt};
use thiserror::Error;
use tracing::warn;

use super::CONNECTIONS_HELD_MAX;
use super::keeper::{Received, receive, send};
use super::message::{Answer, Request};
use crate::net::address::FloatingAddress;

/// How long the supervisor may take; more is a supervisor that has stopped.
const PATIENCE: Duration = Duration::from_secs(5);
/// Answers to former requests that may still be there.
const LATE_ANSWERS_MAX: usize = 16;

/// What the supervisor keeps for this worker.
#[derive(Debug)]
pub struct SupervisorSockets {
    socket: OwnedFd,
    /// The number of the last request for a listener; locked while one is answered.
    listen_number: Mutex<u32>,
    next_connection: AtomicU64,
    held: AtomicUsize,
}

/// A connection of which the supervisor has a descriptor until this is dropped.
///
/// Until then the kernel ends the connection for nobody: to end it, shut its writing half down (that acts on the
/// connection, whoever has it open) or close it silently (`net::address::close_silently`), then drop the stream and this.
#[derive(Debug)]
pub struct HeldConnection {
    sockets: Arc<SupervisorSockets>,
    number: u64,
}

/// Why the supervisor does not hold something.
#[derive(Debug, Error)]
pub enum HoldError {
    /// As many as can be are held: accept no more until one is closed.
    #[error("the supervisor holds as much as it can")]
    Full,
    /// The address cannot be listened on, such as a port below 1024 without CAP_NET_BIND_SERVICE (PermissionDenied).
    #[error("{0}")]
    Refused(io::Error),
    /// The supervisor is gone, or does not answer.
    #[error("the supervisor does not answer: {0}")]
    Silent(#[from] io::Error),
}

impl SupervisorSockets {
    /// Takes the supervisor's socket from standard input, where it is given to a worker, and leaves standard input empty,
    /// so that no child process inherits it. `None` when it is something else: there is no supervisor. Call it once, before
    /// any child is started.
    pub fn from_stdin() -> io::Result<Option<Arc<Self>>> {
        let stdin = io::stdin();
        let is_ours = sockopt::socket_domain(&stdin).is_ok_and(|family| family == AddressFamily::UNIX)
            && sockopt::socket_type(&stdin).is_ok_and(|kind| kind == SocketType::SEQPACKET);
        if !is_ours {
            return Ok(None);
        }
        let socket = stdin.as_fd().try_clone_to_owned()?;
        nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Self::new(socket).map(Some)
    }

    /// On the worker's end of a supervisor's socket.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Arc<Self>> {
        for way in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&socket, way, Some(PATIENCE))?;
        }
        Ok(Arc::new(Self {
            socket,
            listen_number: Mutex::new(0),
            next_connection: AtomicU64::new(0),
            held: AtomicUsize::new(0),
        }))
    }

    /// The listener on `address`: a former worker's with all that waits in it, or a new one. The address need not be there
    /// yet. It does not block (O_NONBLOCK). Errors: as [`HoldError`].
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener, HoldError> {
        let mut last = self.listen_number.lock().unwrap_or_else(PoisonError::into_inner);
        *last = last.wrapping_add(1);
        let number = *last;
        self.tell(&Request::Listen { number, address }, None)?;
        for _ in 0..LATE_ANSWERS_MAX {
            let Received { bytes, descriptor } = receive(self.socket.as_fd())?;
            if bytes.is_empty() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            match (Answer::decode(&bytes).filter(|answer| answer.number() == number), descriptor) {
                (Some(Answer::Listening { .. }), Some(listener)) => return Ok(listener.into()),
                // The kernel leaves descriptors out when there are too many in this process.
                (Some(Answer::Listening { .. }), None) => {
                    return Err(HoldError::Refused(io::Error::from_raw_os_error(nix::libc::EMFILE)));
                }
                (Some(Answer::Refused { errno, .. }), _) => {
                    return Err(HoldError::Refused(io::Error::from_raw_os_error(errno)));
                }
                (Some(Answer::Full { .. }), _) => return Err(HoldError::Full),
                (None, _) => {}
            }
        }
        Err(io::Error::from(io::ErrorKind::TimedOut).into())
    }

    /// The listener on `address` is not needed any more. Drop this process's own as well. `silently`: the address has
    /// moved, and whoever waits to be accepted is to hear nothing.
    pub fn drop_listener(&self, address: SocketAddr, silently: bool) -> Result<(), HoldError> {
        self.tell(&Request::DropListener { address, silently }, None)
    }

    /// Gives a descriptor of `connection` into the supervisor's keeping, until the result is dropped. To be called right
    /// after it was accepted. Errors: as [`HoldError`]; the connection works but would end with this process.
    pub fn hold(self: &Arc<Self>, connection: &impl AsFd) -> Result<HeldConnection, HoldError> {
        let one_more = |held| (held < CONNECTIONS_HELD_MAX).then_some(held + 1);
        self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).map_err(|_| HoldError::Full)?;
        let number = self.next_connection.fetch_add(1, Ordering::Relaxed);
        match self.tell(&Request::Hold { connection: number }, Some(connection.as_fd())) {
            Ok(()) => Ok(HeldConnection { sockets: Arc::clone(self), number }),
            Err(why) => {
                self.held.fetch_sub(1, Ordering::AcqRel);
                Err(why)
            }
        }
    }

    /// To be called before the address is put on an interface: from here on the supervisor removes it if this worker dies.
    pub fn address_comes(&self, floating: &FloatingAddress) -> Result<(), HoldError> {
        self.tell(&Request::AddressComes(floating.clone()), None)
    }

    /// To be called after the address was taken off.
    pub fn address_gone(&self, floating: &FloatingAddress) -> Result<(), HoldError> {
        self.tell(&Request::AddressGone(floating.clone()), None)
    }

    fn tell(&self, request: &Request, descriptor: Option<BorrowedFd<'_>>) -> Result<(), HoldError> {
        Ok(send(self.socket.as_fd(), &request.encode(), descriptor, SendFlags::empty())?)
    }
}

impl Drop for HeldConnection {
    fn drop(&mut self) {
        if let Err(why) = self.sockets.tell(&Request::Closed { connection: self.number }, None) {
            // A supervisor that is gone takes this process with it.
            warn!("connection {} stays open: {why}", self.number);
        }
        // After the message: the supervisor sees the closing before anything that takes its place.
        self.sockets.held.fetch_sub(1, Ordering::AcqRel);
    }
}
