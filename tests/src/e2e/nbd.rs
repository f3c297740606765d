//! A small blocking NBD client: one request at a time, every error told apart.
//!
//! Deliberately independent of `gateway-nbd`: it must not share a mistake with the server that it tests.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const REPLY_MAGIC: u64 = 0x0003_E889_0455_65A9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_ABORT: u32 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;

/// Commands of the transmission phase (NBD protocol, "Request types").
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISCONNECT: u16 = 2;
const CMD_FLUSH: u16 = 3;

/// Why a request or a connection failed.
#[derive(Debug)]
pub enum NbdError {
    /// The server refused the export, with its words.
    Refused(String),
    /// The server answered a request with this error number; the connection goes on.
    Server(u32),
    /// The connection is gone, or the server does not answer in time. What became of a request is unknown.
    Lost(io::Error),
    /// The server broke the protocol.
    Protocol(String),
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

/// A connection in its transmission phase.
#[derive(Debug)]
pub struct NbdConnection {
    stream: TcpStream,
    size_bytes: u64,
    flags: u16,
    cookie: u64,
}

impl NbdConnection {
    /// Negotiates the export (NBD_OPT_GO without structured replies) on a fresh connection. `timeout` holds for every
    /// later wait, too.
    pub fn negotiate(mut stream: TcpStream, export: &str, timeout: Duration) -> Result<Self, NbdError> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(NbdError::Protocol(format!("greeting {greeting:?}")));
        }
        let mut request = 3_u32.to_be_bytes().to_vec();
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&[0, 0]);
        request.extend(option(OPT_GO, &data));
        stream.write_all(&request)?;
        let (mut size_bytes, mut flags) = (None, 0);
        loop {
            let (kind, payload) = read_option_reply(&mut stream)?;
            match kind {
                REP_ACK => break,
                REP_INFO if payload.len() == 12 && payload[..2] == [0, 0] => {
                    size_bytes = Some(u64::from_be_bytes(array(&payload[2..10])));
                    flags = u16::from_be_bytes(array(&payload[10..12]));
                }
                REP_INFO => {}
                kind if kind & REP_ERROR != 0 => {
                    // Polite, and lets the server log a refusal instead of a lost connection.
                    let _ = stream.write_all(&option(OPT_ABORT, &[]));
                    return Err(NbdError::Refused(String::from_utf8_lossy(&payload).into_owned()));
                }
                kind => return Err(NbdError::Protocol(format!("option reply {kind}"))),
            }
        }
        let size_bytes = size_bytes.ok_or_else(|| NbdError::Protocol("no NBD_INFO_EXPORT".to_owned()))?;
        Ok(Self { stream, size_bytes, flags, cookie: 1 })
    }

    /// The export's size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The transmission flags (NBD protocol, "Transmission flags").
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Changes how long later requests wait.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), NbdError> {
        Ok(self.stream.set_read_timeout(Some(timeout))?)
    }

    /// Reads `length` bytes at `offset`.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, NbdError> {
        let cookie = self.send(CMD_READ, offset, length, &[])?;
        self.receive(cookie, length)
    }

    /// Writes; returns when the server has acknowledged it.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        let cookie = self.send(CMD_WRITE, offset, data.len() as u32, data)?;
        self.receive(cookie, 0).map(|_| ())
    }

    /// Flushes what was acknowledged.
    pub fn flush(&mut self) -> Result<(), NbdError> {
        let cookie = self.send(CMD_FLUSH, 0, 0, &[])?;
        self.receive(cookie, 0).map(|_| ())
    }

    /// Sends a read without waiting; its reply is taken with [`Self::finish_read`].
    pub fn begin_read(&mut self, offset: u64, length: u32) -> Result<u64, NbdError> {
        self.send(CMD_READ, offset, length, &[])
    }

    /// Takes the reply of the oldest read that was begun.
    pub fn finish_read(&mut self, cookie: u64, length: u32) -> Result<Vec<u8>, NbdError> {
        self.receive(cookie, length)
    }

    /// Says goodbye.
    pub fn disconnect(mut self) {
        let _ = self.send(CMD_DISCONNECT, 0, 0, &[]);
    }

    fn send(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) -> Result<u64, NbdError> {
        let cookie = self.cookie;
        self.cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request.extend_from_slice(&0_u16.to_be_bytes());
        request.extend_from_slice(&command.to_be_bytes());
        request.extend_from_slice(&cookie.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&length.to_be_bytes());
        request.extend_from_slice(data);
        self.stream.write_all(&request)?;
        Ok(cookie)
    }

    fn receive(&mut self, cookie: u64, length: u32) -> Result<Vec<u8>, NbdError> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        let magic = u32::from_be_bytes(array(&header[..4]));
        let error = u32::from_be_bytes(array(&header[4..8]));
        let answered = u64::from_be_bytes(array(&header[8..16]));
        if magic != SIMPLE_REPLY_MAGIC || answered != cookie {
            return Err(NbdError::Protocol(format!("reply {magic:#x} to {answered}, not to {cookie}")));
        }
        if error != 0 {
            return Err(NbdError::Server(error));
        }
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }
}

/// An option request (NBD protocol, "Option haggling").
pub fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut request = OPTION_MAGIC.to_be_bytes().to_vec();
    request.extend_from_slice(&kind.to_be_bytes());
    request.extend_from_slice(&(data.len() as u32).to_be_bytes());
    request.extend_from_slice(data);
    request
}

fn read_option_reply(stream: &mut TcpStream) -> Result<(u32, Vec<u8>), NbdError> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    if u64::from_be_bytes(array(&header[..8])) != REPLY_MAGIC {
        return Err(NbdError::Protocol(format!("option reply header {header:?}")));
    }
    let kind = u32::from_be_bytes(array(&header[12..16]));
    let length = u32::from_be_bytes(array(&header[16..20])) as usize;
    if length > 1 << 20 {
        return Err(NbdError::Protocol(format!("option reply of {length} bytes")));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    Ok((kind, payload))
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}
