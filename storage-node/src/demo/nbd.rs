//! A small NBD client for the demo: fixed newstyle, simple replies, one request at a time.
//!
//! Source of the rules: the NBD project's `doc/proto.md`. Deliberately independent of `gateway-nbd`, so that the demo does
//! not check the server against its own codec.

use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::net::transport::{Stream, Transport};

const MAGIC_INIT: u64 = 0x4e42_444d_4147_4943;
const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const MAGIC_REQUEST: u32 = 0x2560_9513;
const MAGIC_REPLY: u32 = 0x6744_6698;
/// Fixed newstyle, and no 124 bytes of zeroes.
const FLAGS: u16 = 0b11;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_IS_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
/// Longest option reply that is believed.
const OPTION_REPLY_BYTES_MAX: u32 = 4096;
/// A server that answers nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a connection is over.
#[derive(Debug, Error)]
pub(super) enum NbdError {
    /// The socket broke or nothing came in time.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server does not serve this export, in its own words.
    #[error("export refused: {0}")]
    Refused(String),
    /// A request failed with this error number.
    #[error("request failed with error {0}")]
    Request(u32),
    /// Bytes that the protocol does not allow.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
}

/// An open export.
#[derive(Debug)]
pub(super) struct Client {
    stream: Stream,
    handle: u64,
    /// Size in bytes.
    pub(super) size_bytes: u64,
}

impl Client {
    /// Connects and opens `export`.
    pub(super) async fn open(transport: &Transport, address: &str, export: &str) -> Result<Self, NbdError> {
        in_time(async {
            let mut stream = transport.connect(address).await?;
            greet(&mut stream).await?;
            let size_bytes = go(&mut stream, export).await?;
            Ok(Client { stream, handle: 0, size_bytes })
        })
        .await
    }

    /// Writes at a byte offset.
    pub(super) async fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        self.request(COMMAND_WRITE, offset, data.len() as u32, data, &mut []).await
    }

    /// Reads from a byte offset.
    pub(super) async fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), NbdError> {
        self.request(COMMAND_READ, offset, into.len() as u32, &[], into).await
    }

    /// Everything acknowledged so far on stable media.
    pub(super) async fn flush(&mut self) -> Result<(), NbdError> {
        self.request(COMMAND_FLUSH, 0, 0, &[], &mut []).await
    }

    /// Says goodbye; a server that is gone does not matter then.
    pub(super) async fn close(mut self) {
        let header = header(COMMAND_DISCONNECT, 0, 0, 0);
        let _ = in_time(async { Ok(self.stream.write_all(&header).await?) }).await;
    }

    async fn request(
        &mut self,
        command: u16,
        offset: u64,
        length: u32,
        data: &[u8],
        into: &mut [u8],
    ) -> Result<(), NbdError> {
        self.handle += 1;
        let (stream, handle) = (&mut self.stream, self.handle);
        in_time(async {
            let mut message = Vec::with_capacity(28 + data.len());
            message.extend_from_slice(&header(command, handle, offset, length));
            message.extend_from_slice(data);
            stream.write_all(&message).await?;
            if stream.read_u32().await? != MAGIC_REPLY {
                return Err(NbdError::Protocol("no simple reply"));
            }
            let error = stream.read_u32().await?;
            if stream.read_u64().await? != handle {
                return Err(NbdError::Protocol("reply to a request that was not made"));
            }
            if error != 0 {
                return Err(NbdError::Request(error));
            }
            stream.read_exact(into).await?;
            Ok(())
        })
        .await
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, NbdError>>) -> Result<T, NbdError> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time").into()),
    }
}

fn header(command: u16, handle: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut header = [0; 28];
    header[0..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
    header[6..8].copy_from_slice(&command.to_be_bytes());
    header[8..16].copy_from_slice(&handle.to_be_bytes());
    header[16..24].copy_from_slice(&offset.to_be_bytes());
    header[24..28].copy_from_slice(&length.to_be_bytes());
    header
}

async fn greet(stream: &mut Stream) -> Result<(), NbdError> {
    if stream.read_u64().await? != MAGIC_INIT || stream.read_u64().await? != MAGIC_OPTION {
        return Err(NbdError::Protocol("no fixed newstyle greeting"));
    }
    if stream.read_u16().await? & FLAGS != FLAGS {
        return Err(NbdError::Protocol("the server cannot do fixed newstyle without zeroes"));
    }
    stream.write_all(&u32::from(FLAGS).to_be_bytes()).await?;
    Ok(())
}

/// Opens the export and gives its size.
async fn go(stream: &mut Stream, export: &str) -> Result<u64, NbdError> {
    let mut option = Vec::new();
    option.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
    option.extend_from_slice(&OPTION_GO.to_be_bytes());
    option.extend_from_slice(&(export.len() as u32 + 6).to_be_bytes());
    option.extend_from_slice(&(export.len() as u32).to_be_bytes());
    option.extend_from_slice(export.as_bytes());
    option.extend_from_slice(&0u16.to_be_bytes());
    stream.write_all(&option).await?;
    let mut size = None;
    loop {
        if stream.read_u64().await? != MAGIC_OPTION_REPLY || stream.read_u32().await? != OPTION_GO {
            return Err(NbdError::Protocol("no reply to the option"));
        }
        let kind = stream.read_u32().await?;
        let length = stream.read_u32().await?;
        if length > OPTION_REPLY_BYTES_MAX {
            return Err(NbdError::Protocol("option reply too long"));
        }
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await?;
        match kind {
            REPLY_ACK => return size.ok_or(NbdError::Protocol("no export information")),
            REPLY_INFO => size = export_size(&body).or(size),
            kind if kind & REPLY_IS_ERROR != 0 => {
                return Err(NbdError::Refused(String::from_utf8_lossy(&body).into_owned()));
            }
            _ => return Err(NbdError::Protocol("unknown option reply")),
        }
    }
}

/// The size in an INFO_EXPORT; `None` for other information.
fn export_size(body: &[u8]) -> Option<u64> {
    let kind = u16::from_be_bytes(body.get(0..2)?.try_into().ok()?);
    let size = u64::from_be_bytes(body.get(2..10)?.try_into().ok()?);
    (kind == INFO_EXPORT).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_header_is_laid_out_as_the_protocol_says() {
        let header = header(COMMAND_WRITE, 0x0102, 0x1000, 0x2000);
        assert_eq!(header[0..8], [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1]);
        assert_eq!(header[8..16], [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(header[16..28], [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x20, 0]);
    }

    #[test]
    fn only_export_information_tells_a_size() {
        let mut body = vec![0, 0];
        body.extend_from_slice(&(1u64 << 20).to_be_bytes());
        body.extend_from_slice(&[0, 0]);
        assert_eq!(export_size(&body), Some(1 << 20));
        body[1] = 3;
        assert_eq!(export_size(&body), None);
        assert_eq!(export_size(&[0]), None);
    }

    #[tokio::test]
    async fn a_server_of_garbage_is_an_error_not_a_panic() {
        let transport = Transport::default();
        let listener = transport.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&[0xa5; 64]).await.unwrap();
        });
        let opened = Client::open(&transport, &address, "x").await;
        assert!(matches!(opened, Err(NbdError::Protocol(_))), "{opened:?}");
        server.await.unwrap();
    }
}
