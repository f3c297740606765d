//! Listeners and streams. Plain TCP for now; every socket option of the node's connections is set here.
//!
//! A stream keeps no bytes of its own, so moving it between runtimes (`detach`, `attach`) or splitting it loses none.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Send and receive buffer asked for on every socket, in bytes.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Connections that may wait to be accepted.
const BACKLOG_MAX: u32 = 1024;
/// Silence after which the kernel probes the other side, and between probes.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Probes without an answer until the connection is dead.
const KEEP_ALIVE_PROBES: u32 = 3;
/// Congestion control that spaces packets by timers, and what stands in for it.
const PACING: &[u8] = b"bbr";
const UNPACED: &str = "cubic";
/// Time that sent data may stay unacknowledged by the other side's kernel.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(15);

/// How this node speaks on the network.
#[derive(Clone, Debug, Default)]
pub struct Transport {
    /// Allows speaking without encryption beyond loopback.
    pub insecure_plaintext: bool,
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
}

/// A connected stream; can be moved between runtimes with `detach` and `DetachedStream::attach`.
#[derive(Debug)]
pub struct Stream {
    inner: TcpStream,
}

/// The reading half of a stream.
#[derive(Debug)]
pub struct StreamReader {
    inner: OwnedReadHalf,
}

/// The writing half of a stream; dropping it tells the other side that nothing more comes.
#[derive(Debug)]
pub struct StreamWriter {
    inner: OwnedWriteHalf,
}

/// A stream that belongs to no runtime.
#[derive(Debug)]
pub struct DetachedStream {
    inner: std::net::TcpStream,
}

impl Transport {
    /// Listens on `host:port`, where host is a name or an address (IPv6 in brackets); the first address that works.
    /// Errors: a non-loopback address without `insecure_plaintext` (PermissionDenied, the text says what to set), or
    /// the operating system's.
    pub async fn listen(&self, address: &str) -> io::Result<Listener> {
        let mut refused = no_address(address);
        for candidate in tokio::net::lookup_host(address).await? {
            match self.listen_on(candidate) {
                Ok(inner) => return Ok(Listener { inner }),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Connects to `host:port`, the first address that answers, with no delay and keep-alive. The kernel's timeout is
    /// long: callers set their own. Errors: as for `listen`.
    pub async fn connect(&self, address: &str) -> io::Result<Stream> {
        let mut refused = no_address(address);
        for candidate in tokio::net::lookup_host(address).await? {
            match self.connect_to(candidate).await {
                Ok(inner) => return Ok(Stream { inner }),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Refuses to speak with `address` in the clear. Errors: PermissionDenied, saying what to set.
    pub fn permit(&self, address: SocketAddr) -> io::Result<()> {
        if self.insecure_plaintext || address.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        let why = format!(
            "{address} is not a loopback address and connections are not encrypted: \
             set `insecure_plaintext = true` (a command: TANDEM_INSECURE_PLAINTEXT=1) to allow this on a network you trust"
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }

    /// Takes over a listener of [`bind_early`], on the current runtime. Errors: as for `listen`.
    pub fn adopt(&self, listener: std::net::TcpListener) -> io::Result<Listener> {
        self.permit(listener.local_addr()?)?;
        listener.set_nonblocking(true)?;
        Ok(Listener { inner: TcpListener::from_std(listener)? })
    }

    fn listen_on(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.permit(address)?;
        let socket = new_socket(address)?;
        // A restarted node takes its port back while connections of the former one still linger in the kernel.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG_MAX)
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.permit(address)?;
        let stream = new_socket(address)?.connect(address).await?;
        set_stream_options(&stream)?;
        Ok(stream)
    }
}

/// Listens on an address that this box need not have yet: it is served from the moment that it comes. For whoever has no
/// runtime; see [`Transport::adopt`]. Errors: the port is taken, or below 1024 without NET_BIND_SERVICE (EACCES).
pub fn bind_early(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    force_buffers(&socket);
    socket.set_reuse_address(true)?;
    free_bind(&socket, address)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG_MAX.cast_signed())?;
    Ok(socket.into())
}

/// Takes a port for datagrams on an address that this box need not have yet. Does not block. Errors: as for [`bind_early`].
pub fn bind_datagrams_early(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    free_bind(&socket, address)?;
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Lets it be bound to an address that is not here; to an address of IPv6, to that alone.
fn free_bind(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv4() {
        return socket.set_freebind_v4(true);
    }
    socket.set_freebind_v6(true)?;
    socket.set_only_v6(true)
}

fn no_address(address: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"))
}

fn new_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    force_buffers(&socket);
    Ok(socket)
}

fn force_buffers(socket: &impl AsFd) {
    // Before connect or listen, as the window's scale is fixed there. An ordinary SO_RCVBUF would be cut to a small
    // system limit and turn the kernel's own growing of buffers off; without the privilege, that growing is better.
    let _ = setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES);
    let _ = setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER_BYTES);
}

fn set_stream_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // On the short path between two boxes pacing only costs timers: large writes came out a seventh slower. Where the system
    // has no other, its choice stands; any other choice of the administrator's stands anyway.
    if getsockopt(stream, sockopt::TcpCongestion).is_ok_and(|name| name.as_encoded_bytes().starts_with(PACING)) {
        let _ = setsockopt(stream, sockopt::TcpCongestion, &OsString::from(UNPACED));
    }
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE).with_retries(KEEP_ALIVE_PROBES);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))
}

impl Listener {
    /// The next connection. One that died before it could be set up is passed over. Errors: the listener's own, such as
    /// a lack of descriptors; the caller pauses and tries again.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        loop {
            match self.inner.accept().await {
                Ok((inner, from)) if set_stream_options(&inner).is_ok() => return Ok((Stream { inner }, from)),
                Ok(_) => {}
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it listens.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

impl Stream {
    /// Takes it off this runtime.
    pub fn detach(self) -> io::Result<DetachedStream> {
        Ok(DetachedStream { inner: self.inner.into_std()? })
    }

    /// Two halves for two owners on one runtime.
    pub fn into_split(self) -> (StreamReader, StreamWriter) {
        let (reader, writer) = self.inner.into_split();
        (StreamReader { inner: reader }, StreamWriter { inner: writer })
    }

    /// The other side's address.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.inner.peer_addr()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl DetachedStream {
    /// Puts it on the current runtime.
    pub fn attach(self) -> io::Result<Stream> {
        Ok(Stream { inner: TcpStream::from_std(self.inner)? })
    }
}

impl AsFd for DetachedStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl StreamReader {
    /// Ready when `try_read_vectored` is worth a try.
    pub async fn readable(&self) -> io::Result<()> {
        self.inner.readable().await
    }

    /// Reads what is there, into one buffer after the other; 0 at the end of the stream. Errors: WouldBlock.
    pub fn try_read_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.inner.try_read_vectored(buffers)
    }
}

impl StreamWriter {
    /// Ready when `try_write_vectored` is worth a try.
    pub async fn writable(&self) -> io::Result<()> {
        self.inner.writable().await
    }

    /// Writes what fits at once and tells how much. Errors: WouldBlock.
    pub fn try_write_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.inner.try_write_vectored(buffers)
    }

    /// Like `try_write_vectored`, but asks the socket itself: the runtime may not have seen yet that a new stream is
    /// writable. For last words; what is not taken is not announced by `writable`.
    pub fn write_now(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = nix::libc::MSG_DONTWAIT | nix::libc::MSG_NOSIGNAL;
        SockRef::from(self.inner.as_ref()).send_vectored_with_flags(buffers, flags)
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PLAIN: Transport = Transport { insecure_plaintext: false };

    #[tokio::test]
    async fn beyond_loopback_nothing_is_spoken_unless_allowed_and_the_error_says_how() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9"] {
            let error = PLAIN.listen(address).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("insecure_plaintext = true"), "{error}");
        }
        let error = PLAIN.connect("192.0.2.1:9").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        Transport { insecure_plaintext: true }.listen("0.0.0.0:0").await.unwrap();
        PLAIN.permit("[::ffff:127.0.0.1]:1".parse().unwrap()).unwrap();
        assert!(PLAIN.permit("[::ffff:10.0.0.1]:1".parse().unwrap()).is_err());
    }

    #[tokio::test]
    async fn names_and_addresses_of_both_families_work() {
        for host in ["127.0.0.1:0", "[::1]:0", "localhost:0"] {
            let listener = match PLAIN.listen(host).await {
                Err(error) if host.starts_with('[') => {
                    eprintln!("no IPv6 here: {error}");
                    continue;
                }
                other => other.unwrap(),
            };
            let address = listener.local_address().unwrap().to_string();
            let (dialled, accepted) = tokio::join!(PLAIN.connect(&address), listener.accept());
            let (dialled, (accepted, _)) = (dialled.unwrap(), accepted.unwrap());
            assert!(dialled.inner.nodelay().unwrap() && accepted.inner.nodelay().unwrap());
            assert!(SockRef::from(&accepted.inner).keepalive().unwrap());
            let can_choose = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
                .is_ok_and(|names| names.contains(UNPACED));
            for stream in [&dialled, &accepted].into_iter().filter(|_| can_choose) {
                let name = getsockopt(&stream.inner, sockopt::TcpCongestion).unwrap();
                assert!(!name.as_encoded_bytes().starts_with(PACING), "{name:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_port_can_be_taken_back_while_old_connections_linger() {
        let listener = PLAIN.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let (dialled, accepted) = tokio::join!(PLAIN.connect(&address), listener.accept());
        drop(accepted);
        drop(listener);
        let again = PLAIN.listen(&address).await.unwrap();
        drop((dialled, again));
    }

    #[tokio::test]
    async fn an_address_that_is_not_here_yet_is_listened_on_and_adopted_where_that_is_allowed() {
        let elsewhere = bind_early("192.0.2.1:0".parse().unwrap()).unwrap();
        assert_eq!(PLAIN.adopt(elsewhere).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let early = bind_early("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = PLAIN.adopt(early).unwrap();
        let address = listener.local_address().unwrap().to_string();
        let (dialled, accepted) = tokio::join!(PLAIN.connect(&address), listener.accept());
        assert!(dialled.is_ok() && accepted.unwrap().0.inner.nodelay().unwrap());
    }

    #[test]
    fn datagrams_of_an_address_that_is_not_here_yet_have_a_port_and_one_that_is_taken_is_refused() {
        bind_datagrams_early("192.0.2.1:0".parse().unwrap()).unwrap();
        let taken = bind_datagrams_early("127.0.0.1:0".parse().unwrap()).unwrap();
        let refused = bind_datagrams_early(taken.local_addr().unwrap()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_stream_moved_between_runtimes_loses_no_bytes() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first = runtime();
        let (mut dialled, accepted) = first.block_on(async {
            let listener = PLAIN.listen("127.0.0.1:0").await.unwrap();
            let address = listener.local_address().unwrap().to_string();
            let (dialled, accepted) = tokio::join!(PLAIN.connect(&address), listener.accept());
            let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap().0);
            dialled.write_all(b"0123456789").await.unwrap();
            let mut three = [0; 3];
            accepted.read_exact(&mut three).await.unwrap();
            assert_eq!(&three, b"012");
            (dialled, accepted.detach().unwrap())
        });
        let second = std::thread::spawn(move || {
            runtime().block_on(async {
                let mut text = String::new();
                accepted.attach().unwrap().read_to_string(&mut text).await.unwrap();
                text
            })
        });
        first.block_on(async {
            dialled.write_all(b"abc").await.unwrap();
            dialled.shutdown().await.unwrap();
        });
        assert_eq!(second.join().unwrap(), "3456789abc");
    }
}
