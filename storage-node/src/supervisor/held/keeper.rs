//! The supervisor's side: a thread that does what the worker asks, and what is left to do when the worker is gone.
//!
//! The thread owns all that is held, and gives it back at its end: so nothing is shared, and a worker's last requests are
//! done before anything is closed. It never waits for the worker.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::libc;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown, socketpair,
};
use socket2::SockRef;
use tracing::{debug, error, info, warn};

use super::message::{Answer, MESSAGE_BYTES_MAX, Request};
use super::table::{EndStep, Table};
use crate::net::address::{AddressError, Change, FloatingAddress, close_listener_silently, close_silently};
use crate::net::transport::bind_early;

/// What is held for the workers, one after the other.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Held {
    table: Table<TcpListener, OwnedFd>,
}

/// One worker's time.
#[derive(Debug)]
pub(in crate::supervisor) struct Keeper {
    socket: Arc<OwnedFd>,
    thread: JoinHandle<Held>,
}

/// A datagram and the descriptor that came along.
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptor: Option<OwnedFd>,
}

impl Keeper {
    /// Begins to serve a worker, with what former ones left. Gives the worker's end of the socket. Errors: no descriptors
    /// or threads left.
    pub(in crate::supervisor) fn start(held: Held) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let socket = Arc::new(ours);
        let listening = Arc::clone(&socket);
        let thread = std::thread::Builder::new().name("held-sockets".to_owned()).spawn(move || {
            let mut held = held;
            held.serve(listening.as_fd());
            held
        })?;
        Ok((Self { socket, thread }, theirs))
    }

    /// The worker was reaped: does what it asked for last, and gives what is held. A child of the worker's that still has
    /// its end does not delay this.
    pub(in crate::supervisor) fn finish(self) -> Held {
        // What was sent before is still received, then comes the end.
        if let Err(why) = shutdown(&self.socket, Shutdown::Read) {
            debug!("the worker's socket is closed already: {why}");
        }
        self.thread.join().unwrap_or_else(|_| {
            error!("the thread that holds the sockets has panicked: they are closed");
            Held::default()
        })
    }
}

impl Held {
    /// After the worker's death, in this order: takes its floating addresses off by `remove`, says `goodbye`, closes what
    /// it left behind. Listeners on addresses that stay are kept for the next worker.
    pub(in crate::supervisor) fn worker_gone(
        &mut self,
        mut remove: impl FnMut(&FloatingAddress) -> Result<Change, AddressError>,
        goodbye: impl FnOnce(),
    ) {
        let mut goodbye = Some(goodbye);
        for step in self.table.worker_gone() {
            match step {
                EndStep::RemoveAddress(floating) => match remove(&floating) {
                    Ok(change) => info!("{floating}: removed for the worker ({change:?})"),
                    // The peers take over all the same; the neighbours listen to who announces last.
                    Err(why) => error!("{floating}: not removed: {why}"),
                },
                EndStep::Goodbye => goodbye.take().into_iter().for_each(|say| say()),
                EndStep::CloseConnection { connection, silently: true } => close_silently(connection),
                EndStep::CloseConnection { connection, silently: false } => drop(connection),
                EndStep::CloseListener(listener) => close_listener_silently(listener),
            }
        }
    }

    fn serve(&mut self, socket: BorrowedFd<'_>) {
        loop {
            match receive(socket) {
                Ok(Received { bytes, .. }) if bytes.is_empty() => return,
                Ok(Received { bytes, descriptor }) => match Request::decode(&bytes) {
                    Some(request) => self.on_request(socket, request, descriptor),
                    None => warn!("the worker asks for something unknown"),
                },
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return debug!("the worker's socket has ended: {why}"),
            }
        }
    }

    fn on_request(&mut self, socket: BorrowedFd<'_>, request: Request, descriptor: Option<OwnedFd>) {
        match request {
            Request::Listen { number, address } => self.on_listen(socket, number, address),
            Request::DropListener { address, silently } => match self.table.take_listener(address) {
                Some(listener) if silently => close_listener_silently(listener),
                listener => drop(listener),
            },
            Request::Hold { connection } => {
                let Some(descriptor) = descriptor else {
                    return warn!("connection {connection}: its descriptor did not come along");
                };
                let local = local_address(&descriptor);
                if let Err(why) = self.table.hold(connection, local, descriptor) {
                    warn!("connection {connection} is not held: {why:?}");
                }
            }
            // Others have it open, or have ended it: this says nothing to the client.
            Request::Closed { connection } => drop(self.table.take_connection(connection)),
            Request::AddressComes(floating) => {
                if let Err(why) = self.table.address_comes(floating) {
                    warn!("a floating address is not noted: {why:?}");
                }
            }
            Request::AddressGone(floating) => self.table.address_gone(&floating),
        }
    }

    fn on_listen(&mut self, socket: BorrowedFd<'_>, number: u32, address: SocketAddr) {
        if self.table.listener(address).is_none() {
            if !self.table.has_room_for_a_listener() {
                return answer(socket, Answer::Full { number }, None);
            }
            match bind_early(address) {
                Ok(listener) => drop(self.table.put_listener(address, listener)),
                Err(why) => {
                    let errno = why.raw_os_error().unwrap_or(libc::EIO);
                    return answer(socket, Answer::Refused { number, errno }, None);
                }
            }
        }
        if let Some(listener) = self.table.listener(address) {
            answer(socket, Answer::Listening { number }, Some(listener.as_fd()));
        }
    }
}

fn local_address(connection: &OwnedFd) -> Option<IpAddr> {
    let address = SockRef::from(connection).local_addr().ok()?;
    address.as_socket().map(|address| address.ip())
}

/// A worker that does not take its answers gets no more of them.
fn answer(socket: BorrowedFd<'_>, answer: Answer, descriptor: Option<BorrowedFd<'_>>) {
    if let Err(why) = send(socket, &answer.encode(), descriptor, SendFlags::DONTWAIT) {
        warn!("the worker was not answered: {why}");
    }
}

/// Sends a datagram, with a descriptor if there is one.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    if let Some(descriptors) = &descriptors {
        let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
        debug_assert!(fits, "there is room for one descriptor");
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a datagram; an empty one is the end. One that is too long is cut, and then no message. Of several
/// descriptors the first is kept.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    bytes.truncate(received.bytes);
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for each in descriptors {
                descriptor.get_or_insert(each);
            }
        }
    }
    Ok(Received { bytes, descriptor })
}
