//! The other end of a connection that a service calls its client over, by hand; and clients that have one.

use std::rc::Rc;

use block_device::RamDevice;
use bytes::Bytes;
use gateway_nfs::service::Service;
use gateway_nfs::state::back_channel::ConnectionId;
use gateway_nfs::xdr::{Decoder, Encoder};
use tokio::sync::mpsc;

use crate::world::{Client, SEQUENCE_BYTES, get_handle, open, operation, put_handle};

pub(crate) const RECALL: u32 = 4;
pub(crate) const NOTIFY_LOCK: u32 = 13;
/// A probe has no operation.
pub(crate) const NOTHING: u32 = 0;
const CB_SEQUENCE: u32 = 11;
const READ: u32 = 1;
const WANT_READ_DELEGATION: u32 = 0x100;
/// What has been begun is under way when everybody had this many turns.
const TURNS: usize = 100;

/// What the service called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) xid: u32,
    session: [u8; 16],
    pub(crate) sequence: u32,
    pub(crate) slot: u32,
    pub(crate) operation: u32,
    /// The operation's arguments.
    pub(crate) body: Bytes,
}

/// The client's end.
pub(crate) struct Line {
    pub(crate) service: Rc<Service<Rc<RamDevice>>>,
    pub(crate) connection: u64,
    pub(crate) calls: mpsc::Receiver<Vec<Bytes>>,
}

/// Others get as far as they can.
pub(crate) async fn settle() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

impl Line {
    pub(crate) fn open(service: &Rc<Service<Rc<RamDevice>>>, connection: u64) -> Self {
        let (sender, calls) = mpsc::channel(4);
        service.connection_opened(ConnectionId(connection), sender);
        Self { service: Rc::clone(service), connection, calls }
    }

    /// Answers the call that says nothing, with which a service begins.
    pub(crate) async fn prove(&mut self) {
        let call = Bytes::from(self.calls.recv().await.unwrap().concat());
        let mut call = Decoder::new(call);
        let xid = call.u32().unwrap();
        let words: Vec<_> = (0..5).map(|_| call.u32().unwrap()).collect();
        assert_eq!(words, [0, 2, 0x4000_0000, 1, 0], "a call of the client's program, CB_NULL");
        assert!(self.reply(xid, |_| ()));
        settle().await;
    }

    pub(crate) async fn next(&mut self) -> Called {
        read_call(Bytes::from(self.calls.recv().await.unwrap().concat()))
    }

    /// Sends an accepted reply. False if nobody waits for it.
    pub(crate) fn reply(&self, xid: u32, put: impl FnOnce(&mut Encoder)) -> bool {
        let mut out = Encoder::new();
        for word in [xid, 1, 0, 0, 0, 0] {
            out.u32(word);
        }
        put(&mut out);
        self.service.answered(ConnectionId(self.connection), out.to_bytes())
    }

    /// Answers a callback: CB_SEQUENCE succeeds, what is behind it ends so.
    pub(crate) fn answer(&self, called: &Called, status: u32) {
        let answered = self.reply(called.xid, |out| {
            out.u32(status);
            out.opaque(b"");
            out.u32(if called.operation == NOTHING { 1 } else { 2 });
            out.u32(CB_SEQUENCE);
            out.u32(0);
            out.fixed(&called.session);
            for word in [called.sequence, called.slot, 15, 15] {
                out.u32(word);
            }
            if called.operation != NOTHING {
                out.u32(called.operation);
                out.u32(status);
            }
        });
        assert!(answered, "somebody waits for it");
    }

    /// Answers that CB_SEQUENCE failed.
    pub(crate) fn refuse(&self, called: &Called, status: u32) {
        let answered = self.reply(called.xid, |out| {
            out.u32(status);
            out.opaque(b"");
            out.u32(1);
            out.u32(CB_SEQUENCE);
            out.u32(status);
        });
        assert!(answered, "somebody waits for it");
    }

    /// True if nothing is called, as far as others have come.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        settle().await;
        self.calls.try_recv().is_err()
    }

    pub(crate) fn close(&self) {
        self.service.connection_closed(ConnectionId(self.connection));
    }
}

fn read_call(message: Bytes) -> Called {
    let mut call = Decoder::new(message);
    let xid = call.u32().unwrap();
    let words: Vec<_> = (0..5).map(|_| call.u32().unwrap()).collect();
    assert_eq!(words, [0, 2, 0x4000_0000, 1, 1], "CB_COMPOUND");
    assert_eq!((call.u64(), call.u64()), (Ok(0), Ok(0)), "no credential was offered");
    assert_eq!((call.opaque(0).unwrap(), call.u32(), call.u32()), (Bytes::new(), Ok(2), Ok(0)), "minor version 2");
    let count = call.u32().unwrap();
    assert_eq!(call.u32(), Ok(CB_SEQUENCE));
    let session = call.fixed().unwrap();
    let (sequence, slot) = (call.u32().unwrap(), call.u32().unwrap());
    assert_eq!(call.u32(), Ok(15), "the highest slot");
    assert_eq!((call.bool(), call.u32()), (Ok(false), Ok(0)), "not to be kept, no referring calls");
    let operation = if count == 2 { call.u32().unwrap() } else { NOTHING };
    let body = call.between(call.position(), usize::MAX);
    Called { xid, session, sequence, slot, operation, body }
}

/// A client that answers calls.
pub(crate) async fn answering(
    service: &Rc<Service<Rc<RamDevice>>>,
    name: &'static str,
    connection: u64,
) -> (Client, Line) {
    let mut line = Line::open(service, connection);
    let client = Client::connected(service, name, connection, true).await;
    line.prove().await;
    (client, line)
}

/// Makes an empty file, and gives its handle.
pub(crate) async fn make(client: &mut Client, root: &[u8], name: &str) -> Bytes {
    let made = client.call(&[put_handle(root), open("maker", name, true), get_handle()]).await;
    assert_eq!(made.status, 0);
    let mut body = made.body(&[SEQUENCE_BYTES, 0]);
    let stateid: [u8; 16] = body.fixed().unwrap();
    body.fixed::<{ 20 + 4 + 12 + 4 + 8 }>().unwrap();
    let file = body.opaque(128).unwrap();
    assert_eq!(client.call(&[put_handle(&file), crate::world::close(&stateid)]).await.status, 0);
    file
}

/// OPEN of the current file, for reading, with whatever is wanted of delegations.
pub(crate) fn open_to_read(owner: &str, wanted: u32) -> Vec<u8> {
    operation(18, |out| {
        for word in [0, READ | wanted, 0] {
            out.u32(word);
        }
        out.u64(0);
        out.opaque(owner.as_bytes());
        out.u32(0);
        out.u32(4);
    })
}

/// What an OPEN answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) stateid: [u8; 16],
    pub(crate) flags: u32,
    pub(crate) delegation: Delegation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delegation {
    None,
    Read([u8; 16]),
    Refused(u32),
}

/// Opens a file for reading.
pub(crate) async fn read_open(client: &mut Client, file: &[u8], wanted: u32) -> Opened {
    let opened = client.call(&[put_handle(file), open_to_read("reader", wanted)]).await;
    assert_eq!(opened.status, 0);
    let mut body = opened.body(&[SEQUENCE_BYTES, 0]);
    let stateid = body.fixed().unwrap();
    body.fixed::<20>().unwrap();
    let flags = body.u32().unwrap();
    assert!(body.array(3, Decoder::u32).unwrap().iter().all(|word| *word == 0), "no attributes were set");
    let delegation = match body.u32().unwrap() {
        0 => Delegation::None,
        1 => Delegation::Read(body.fixed().unwrap()),
        3 => Delegation::Refused(body.u32().unwrap()),
        other => panic!("a delegation of type {other}"),
    };
    Opened { stateid, flags, delegation }
}

/// Opens a file for reading, and has it delegated.
pub(crate) async fn delegated(client: &mut Client, file: &[u8]) -> [u8; 16] {
    match read_open(client, file, WANT_READ_DELEGATION).await.delegation {
        Delegation::Read(stateid) => stateid,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn give_back(stateid: &[u8; 16]) -> Vec<u8> {
    operation(8, |out| out.fixed(stateid))
}

/// The status flags of a SEQUENCE by itself.
pub(crate) async fn flags(client: &mut Client) -> u32 {
    let answer = client.call(&[]).await;
    assert_eq!(answer.status, 0);
    let mut body = answer.body(&[]);
    body.fixed::<{ SEQUENCE_BYTES - 4 }>().unwrap();
    body.u32().unwrap()
}

/// BIND_CONN_TO_SESSION, both ways.
pub(crate) async fn bind(client: &mut Client, connection: u64) {
    client.connection = connection;
    let session = client.session;
    let bound = client
        .send(&[operation(41, |out| {
            out.fixed(&session);
            out.u32(7);
            out.bool(false);
        })])
        .await;
    assert_eq!(bound.status, 0);
}
