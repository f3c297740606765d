//! Our client's session over a plain socket, one request at a time, with the bytes of requests and replies in hand: so that a
//! request can be sent again as it was, and its replies be compared.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use gateway_nfs::client::request::Request;
use gateway_nfs::client::result::Reply;
use gateway_nfs::client::session::{Event, Identity, Session};
use gateway_nfs::ids::Moment;
use gateway_nfs::rpc::call::is_reply;
use gateway_nfs::rpc::record::{RecordReader, mark};

use crate::e2e::network::Network;

/// Nothing comes for so long: the server is elsewhere now.
const SILENCE: Duration = Duration::from_secs(1);
/// How long a request may have no answer.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two attempts at a connection.
const PAUSE: Duration = Duration::from_millis(20);
const RECORD_BYTES_MAX: usize = 2 << 20;
const READ_BYTES: usize = 64 << 10;
const XID_BYTES: usize = 4;

/// A request as it was sent, and its reply as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Without the record's mark.
    pub request: Bytes,
    /// Without the record's mark.
    pub reply: Bytes,
}

/// A session and its connection.
pub struct Wire {
    session: Session,
    network: Network,
    address: SocketAddr,
    connection: Option<(TcpStream, RecordReader, BytesMut)>,
    started: Instant,
}

impl Wire {
    /// A client that nobody knows yet.
    pub fn new(network: Network, address: SocketAddr, identity: Identity, xid: u32) -> Self {
        Self { session: Session::new(identity, xid), network, address, connection: None, started: Instant::now() }
    }

    /// The state machine, for what it counts.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Waits for the answer to one request, over as many connections as it takes. With `is_lost` the first connection ends
    /// before the answer is read.
    pub fn call(&mut self, request: Request, is_lost: bool) -> Result<(Reply, Exchange), String> {
        let deadline = Instant::now() + PATIENCE;
        let id = self.session.submit(request);
        let (mut sent, mut is_lost) = (None, is_lost);
        let mut reply = Bytes::new();
        loop {
            if Instant::now() >= deadline {
                return Err(format!("no answer within {PATIENCE:?}"));
            }
            if self.connection.is_none() && self.connect().is_err() {
                std::thread::sleep(PAUSE);
                continue;
            }
            while let Some(message) = self.session.next_outgoing() {
                let message = Bytes::from(message.concat());
                let written = self.send(&message);
                // The last call that goes out, once the session is there, is the request itself; the server's calls are answered
                // in between.
                if !is_reply(&message) {
                    sent = Some(message);
                }
                if written.is_err() {
                    break;
                }
            }
            if std::mem::take(&mut is_lost) {
                self.disconnect();
                continue;
            }
            match self.receive() {
                Ok(message) => {
                    if is_reply(&message) && xid(&message) == sent.as_ref().and_then(xid) {
                        reply = message.clone();
                    }
                    self.session.on_message(message, self.now()).map_err(|error| error.to_string())?;
                }
                Err(_) => self.disconnect(),
            }
            self.session.on_time(self.now());
            while let Some(event) = self.session.next_event() {
                match event {
                    Event::Completed(completed, result) if completed == id => {
                        let answer = result.map_err(|error| error.to_string())?;
                        let request = sent.ok_or("an answer to nothing")?;
                        return Ok((answer, Exchange { request, reply }));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Sends a request again as it was, `times` times in a row, and gives the replies. Nothing else may be under way.
    pub fn replay(&mut self, request: &Bytes, times: usize) -> Result<Vec<Bytes>, String> {
        let deadline = Instant::now() + PATIENCE;
        'connection: loop {
            if Instant::now() >= deadline {
                return Err(format!("no answer to what was sent again within {PATIENCE:?}"));
            }
            if self.connection.is_none() && self.connect().is_err() {
                std::thread::sleep(PAUSE);
                continue;
            }
            while let Some(message) = self.session.next_outgoing() {
                let _ = self.send(&Bytes::from(message.concat()));
            }
            for _ in 0..times {
                if self.send(request).is_err() {
                    self.disconnect();
                    continue 'connection;
                }
            }
            let mut replies = Vec::new();
            while replies.len() < times {
                match self.receive() {
                    Ok(message) if is_reply(&message) && xid(&message) == xid(request) => replies.push(message),
                    Ok(message) => {
                        self.session.on_message(message, self.now()).map_err(|error| error.to_string())?;
                    }
                    Err(_) => {
                        self.disconnect();
                        continue 'connection;
                    }
                }
            }
            return Ok(replies);
        }
    }

    /// Ends the connection; the next request makes another.
    pub fn disconnect(&mut self) {
        if self.connection.take().is_some() {
            self.session.disconnected();
        }
    }

    fn connect(&mut self) -> io::Result<()> {
        let stream = self.network.connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        self.connection = Some((stream, RecordReader::new(RECORD_BYTES_MAX), BytesMut::new()));
        self.session.connected();
        Ok(())
    }

    fn send(&mut self, message: &Bytes) -> io::Result<()> {
        let Some((stream, ..)) = &mut self.connection else { return Err(io::ErrorKind::NotConnected.into()) };
        let record = [&mark(message.len())[..], message].concat();
        stream.write_all(&record)
    }

    fn receive(&mut self) -> io::Result<Bytes> {
        let Some((stream, reader, received)) = &mut self.connection else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut part = vec![0; READ_BYTES];
        loop {
            if let Some(record) = reader.next(received).map_err(io::Error::other)? {
                return Ok(record);
            }
            match stream.read(&mut part)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => received.extend_from_slice(&part[..length]),
            }
        }
    }

    fn now(&self) -> Moment {
        Moment(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

fn xid(message: &Bytes) -> Option<[u8; XID_BYTES]> {
    message.first_chunk().copied()
}
