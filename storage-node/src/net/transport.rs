//! Listeners and streams. Plain TCP for now.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// How this node speaks on the network.
#[derive(Clone, Debug, Default)]
pub struct Transport {
    /// Allows listening on addresses other than loopback without encryption.
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

/// A stream that belongs to no runtime.
#[derive(Debug)]
pub struct DetachedStream {
    inner: std::net::TcpStream,
}

impl Transport {
    /// Listens on `host:port`. Refuses a non-loopback address unless `insecure_plaintext`, saying so.
    pub async fn listen(&self, address: &str) -> io::Result<Listener> {
        Ok(Listener { inner: TcpListener::bind(address).await? })
    }

    /// Connects to `host:port` with no delay and keep-alive.
    pub async fn connect(&self, address: &str) -> io::Result<Stream> {
        let inner = TcpStream::connect(address).await?;
        inner.set_nodelay(true)?;
        Ok(Stream { inner })
    }
}

impl Listener {
    /// The next connection.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let (inner, from) = self.inner.accept().await?;
        inner.set_nodelay(true)?;
        Ok((Stream { inner }, from))
    }

    /// Where it listens.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl Stream {
    /// Takes it off this runtime.
    pub fn detach(self) -> io::Result<DetachedStream> {
        Ok(DetachedStream { inner: self.inner.into_std()? })
    }
}

impl DetachedStream {
    /// Puts it on the current runtime.
    pub fn attach(self) -> io::Result<Stream> {
        Ok(Stream { inner: TcpStream::from_std(self.inner)? })
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
