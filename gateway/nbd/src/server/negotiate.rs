//! Phase one: drives the [`Handshake`] over a stream.
//!
//! Reads exactly what the negotiation needs and buffers nothing, so that the stream can be handed on (even detached
//! from this runtime and registered with another) without losing a byte.

use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::OPTION_BYTES_MAX;
use crate::codec::{OPTION_HEADER_BYTES, OptionHeader, ProtocolError, option};
use crate::export::{Agreed, ExportDirectory};
use crate::session::{Handshake, Step};

/// Time a client has for the whole negotiation.
pub const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(30);

/// A client that is ready for the transmission phase.
#[derive(Debug)]
pub struct Negotiated<S> {
    /// The stream; its next byte is the first of the transmission phase.
    pub stream: S,
    /// What was settled.
    pub agreed: Agreed,
}

/// Why a negotiation did not lead to transmission. The stream is closed (dropped) in every case.
#[derive(Debug, Error)]
pub enum NegotiateError {
    /// The client left in good order (`NBD_OPT_ABORT`, or it closed between two options), as listing clients do.
    #[error("the client left")]
    Left,
    /// The client asked with `NBD_OPT_EXPORT_NAME` for an export that is not served here; that option has no error
    /// reply, so the connection just closes.
    #[error("refused: {message}")]
    Refused {
        /// What the directory said.
        message: String,
    },
    /// The client broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(#[from] ProtocolError),
    /// The client took longer than it has, usually [`NEGOTIATION_TIMEOUT`].
    #[error("the client took too long to negotiate")]
    Timeout,
    /// The stream failed, or ended in the middle of a message.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
}

/// Negotiates with a fresh client. Needs a runtime with time enabled; the future is `Send` when the stream is.
///
/// Memory is bounded by [`OPTION_BYTES_MAX`] and the directory's list.
pub async fn negotiate<S>(stream: S, directory: &dyn ExportDirectory) -> Result<Negotiated<S>, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    negotiate_within(stream, directory, NEGOTIATION_TIMEOUT).await
}

/// As [`negotiate`], with `limit` instead of [`NEGOTIATION_TIMEOUT`].
pub async fn negotiate_within<S>(
    stream: S,
    directory: &dyn ExportDirectory,
    limit: Duration,
) -> Result<Negotiated<S>, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::time::timeout(limit, negotiate_untimed(stream, directory)).await.map_err(|_| NegotiateError::Timeout)?
}

async fn negotiate_untimed<S>(mut stream: S, directory: &dyn ExportDirectory) -> Result<Negotiated<S>, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut handshake = Handshake::default();
    send(&mut stream, &Handshake::greeting()).await?;
    let mut flags = [0; 4];
    if !read_or_end(&mut stream, &mut flags).await? {
        return Err(NegotiateError::Left);
    }
    handshake.on_client_flags(u32::from_be_bytes(flags))?;

    let mut payload = Vec::new();
    let mut replies = Vec::new();
    loop {
        let mut header = [0; OPTION_HEADER_BYTES];
        if !read_or_end(&mut stream, &mut header).await? {
            return Err(NegotiateError::Left);
        }
        let header = OptionHeader::decode(&header)?;
        handshake.on_option_header(header)?;
        replies.clear();
        if header.length > OPTION_BYTES_MAX {
            skip(&mut stream, header.length).await?;
            handshake.on_long_option(header.option, &mut replies);
            send(&mut stream, &replies).await?;
            continue;
        }
        payload.resize(header.length as usize, 0);
        stream.read_exact(&mut payload).await?;
        let step = handshake.on_option(header.option, &payload, directory, &mut replies)?;
        let sent = send(&mut stream, &replies).await;
        // A client may close right after ABORT without reading the answer.
        if header.option != option::ABORT {
            sent?;
        }
        match step {
            Step::Continue => {}
            Step::Transmit(agreed) => return Ok(Negotiated { stream, agreed }),
            Step::Abort => return Err(NegotiateError::Left),
            Step::Refuse { message } => return Err(NegotiateError::Refused { message }),
        }
    }
}

/// Fills `buffer`; false when the stream ended before its first byte.
async fn read_or_end<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut [u8]) -> io::Result<bool> {
    let first = stream.read(buffer).await?;
    if first == 0 {
        return Ok(false);
    }
    stream.read_exact(&mut buffer[first..]).await?;
    Ok(true)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

async fn skip<S: AsyncRead + Unpin>(stream: &mut S, length: u32) -> io::Result<()> {
    let mut rest = length as usize;
    let mut scratch = [0; 4096];
    while rest > 0 {
        let part = rest.min(scratch.len());
        stream.read_exact(&mut scratch[..part]).await?;
        rest -= part;
    }
    Ok(())
}
