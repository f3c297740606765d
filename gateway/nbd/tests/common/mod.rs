//! What the tests share: a RAM device, a directory, a server on loopback or in memory, and a small client.
#![allow(dead_code, unreachable_pub)]

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use block_device::{Allocation, BatchWrite, BlockDevice, BlockError, ByteRange};
use bytes::{BufMut, Bytes, BytesMut};
use gateway_nbd::codec::{self, Cookie, RequestHeader, chunk, option};
use gateway_nbd::{Ended, Export, ExportDirectory, Lookup, Statistics};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

pub const BLOCK: u64 = 4096;
pub const VOLUME: &str = "vol";

/// A device in memory. Single-threaded, like every device of a shard.
pub struct RamDevice {
    bytes: RefCell<Vec<u8>>,
    allocated: RefCell<Vec<bool>>,
    /// Answer to everything instead of doing it.
    pub failure: RefCell<Option<BlockError>>,
    /// While true, writes and flushes wait for `gate`.
    pub hold_writes: Cell<bool>,
    pub gate: Notify,
    pub in_flight: Cell<usize>,
    pub in_flight_peak: Cell<usize>,
    pub bytes_read: Cell<u64>,
    pub fua_writes: Cell<u64>,
    pub flushes: Cell<u64>,
}

impl RamDevice {
    pub fn new(size: u64) -> Self {
        Self {
            bytes: RefCell::new(vec![0; size as usize]),
            allocated: RefCell::new(vec![false; size.div_ceil(BLOCK) as usize]),
            failure: RefCell::new(None),
            hold_writes: Cell::new(false),
            gate: Notify::new(),
            in_flight: Cell::new(0),
            in_flight_peak: Cell::new(0),
            bytes_read: Cell::new(0),
            fua_writes: Cell::new(0),
            flushes: Cell::new(0),
        }
    }

    pub fn contents(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }

    /// Opens the gate for all, from now on.
    pub fn release_writes(&self) {
        self.hold_writes.set(false);
        self.gate.notify_waiters();
    }

    fn check(&self, range: ByteRange) -> Result<(), BlockError> {
        if let Some(error) = &*self.failure.borrow() {
            return Err(error.clone());
        }
        let size = self.size_bytes();
        if range.offset.checked_add(range.length).is_none_or(|end| end > size) {
            return Err(BlockError::OutOfRange { offset: range.offset, length: range.length, size });
        }
        Ok(())
    }

    async fn pass_gate(&self) {
        let _in_flight = InFlight::enter(self);
        while self.hold_writes.get() {
            self.gate.notified().await;
        }
    }

    fn fill_zero(&self, range: ByteRange) {
        self.bytes.borrow_mut()[range.offset as usize..][..range.length as usize].fill(0);
    }

    fn mark(&self, range: ByteRange, allocated: bool) {
        let end = range.offset + range.length;
        let (first, last) = if allocated {
            (range.offset / BLOCK, end.div_ceil(BLOCK))
        } else {
            (range.offset.div_ceil(BLOCK), end / BLOCK)
        };
        for block in first..last {
            self.allocated.borrow_mut()[block as usize] = allocated;
        }
    }
}

struct InFlight<'a>(&'a RamDevice);

impl<'a> InFlight<'a> {
    fn enter(device: &'a RamDevice) -> Self {
        device.in_flight.set(device.in_flight.get() + 1);
        device.in_flight_peak.set(device.in_flight_peak.get().max(device.in_flight.get()));
        Self(device)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

impl BlockDevice for RamDevice {
    fn size_bytes(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        self.check(range)?;
        self.bytes_read.set(self.bytes_read.get() + range.length);
        Ok(Bytes::copy_from_slice(&self.bytes.borrow()[range.offset as usize..][..range.length as usize]))
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BlockError> {
        let range = ByteRange { offset, length: data.len() as u64 };
        self.check(range)?;
        self.pass_gate().await;
        self.check(range)?;
        self.bytes.borrow_mut()[offset as usize..][..data.len()].copy_from_slice(&data);
        self.mark(range, true);
        self.fua_writes.set(self.fua_writes.get() + u64::from(fua));
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.check(ByteRange { offset: 0, length: 0 })?;
        self.pass_gate().await;
        self.flushes.set(self.flushes.get() + 1);
        Ok(())
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn discard(&self, range: ByteRange, _fua: bool) -> Result<(), BlockError> {
        self.check(range)?;
        self.fill_zero(range);
        self.mark(range, false);
        Ok(())
    }

    async fn write_zeroes(&self, range: ByteRange, keep_allocated: bool, _fua: bool) -> Result<(), BlockError> {
        self.check(range)?;
        self.fill_zero(range);
        self.mark(range, keep_allocated);
        Ok(())
    }

    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        for write in groups.into_iter().flatten() {
            self.write(write.offset, write.data, true).await?;
        }
        Ok(())
    }

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        self.check(range)?;
        let end = range.offset + range.length;
        let mut at = range.offset;
        let mut extents = Vec::new();
        while at < end {
            let next = ((at / BLOCK + 1) * BLOCK).min(end);
            let hole = !self.allocated.borrow()[(at / BLOCK) as usize];
            extents.push(Allocation { range: ByteRange { offset: at, length: next - at }, hole });
            at = next;
        }
        Ok(extents)
    }
}

/// Serves `vol`; `far` is elsewhere and `cold` not ready.
pub struct Directory {
    pub size: u64,
}

pub const FAR_MESSAGE: &str = "volume `far` is served by node `b` (10.0.0.2:10809)";
pub const COLD_MESSAGE: &str = "volume `cold` is frozen: the witness is unreachable";

impl ExportDirectory for Directory {
    fn list(&self) -> Vec<Export> {
        vec![self.export()]
    }

    fn lookup(&self, name: &str) -> Lookup {
        match name {
            VOLUME => Lookup::Serve(self.export()),
            "far" => Lookup::NotHere { message: FAR_MESSAGE.into() },
            "cold" => Lookup::NotNow { message: COLD_MESSAGE.into() },
            _ => Lookup::NotHere { message: format!("no volume named `{name}`") },
        }
    }
}

impl Directory {
    pub fn export(&self) -> Export {
        Export { name: VOLUME.into(), description: "two copies".into(), size_bytes: self.size }
    }
}

/// A server on loopback in its own thread; stops when dropped.
pub struct Server {
    pub address: SocketAddr,
    pub statistics: Arc<Statistics>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Vec<u8>>>,
}

impl Server {
    pub fn start(size: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (tell, told) = std::sync::mpsc::channel();
        let statistics = Arc::new(Statistics::default());
        let shared = Arc::clone(&statistics);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let device = Rc::new(RamDevice::new(size));
                accept(listener, size, Rc::clone(&device), shared, stopped).await;
                device.contents()
            })
        });
        let address = told.recv().unwrap();
        Self { address, statistics, stop, thread: Some(thread) }
    }

    pub fn uri(&self) -> String {
        format!("nbd://{}/{VOLUME}", self.address)
    }

    /// Stops in good order; returns what is on the device.
    pub fn stop(mut self) -> Vec<u8> {
        self.stop.send_replace(true);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

async fn accept(
    listener: TcpListener,
    size: u64,
    device: Rc<RamDevice>,
    statistics: Arc<Statistics>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        stream.set_nodelay(true).unwrap();
        let (device, statistics, mut stopped) = (Rc::clone(&device), Arc::clone(&statistics), stopped.clone());
        connections.spawn_local(async move {
            let Ok(negotiated) = gateway_nbd::negotiate(stream, &Directory { size }).await else { return };
            let shutdown = async move { drop(stopped.wait_for(|stop| *stop).await) };
            gateway_nbd::serve(negotiated.stream, &negotiated.agreed, &*device, shutdown, &statistics).await;
        });
    }
    while connections.join_next().await.is_some() {}
}

/// Runs `client` against a server over an in-memory stream of `buffer` bytes each way; gives how the serving ended.
pub async fn with_session<C, F>(device: &RamDevice, buffer: usize, client: C) -> Option<Ended>
where
    C: FnOnce(Client<tokio::io::DuplexStream>) -> F,
    F: Future<Output = ()>,
{
    let (near, far) = tokio::io::duplex(buffer);
    let server = async {
        let directory = Directory { size: device.size_bytes() };
        let negotiated = gateway_nbd::negotiate(far, &directory).await.ok()?;
        let statistics = Statistics::default();
        let never = std::future::pending();
        Some(gateway_nbd::serve(negotiated.stream, &negotiated.agreed, device, never, &statistics).await)
    };
    let (ended, ()) = tokio::join!(server, client(Client { stream: near }));
    ended
}

/// One chunk or simple reply, as a client sees it.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Simple { error: u32, cookie: u64 },
    Chunk { done: bool, kind: u16, cookie: u64, payload: Vec<u8> },
}

/// A client that says exactly what a test tells it to.
pub struct Client<S> {
    pub stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub async fn hello(&mut self, flags: u32) {
        let mut greeting = [0; 18];
        self.stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(greeting[16..], [0, 3]);
        self.stream.write_u32(flags).await.unwrap();
    }

    pub async fn option(&mut self, option: u32, payload: &[u8]) {
        let mut out = BytesMut::new();
        out.put_u64(codec::MAGIC_OPTION);
        out.put_u32(option);
        out.put_u32(payload.len() as u32);
        out.put_slice(payload);
        self.stream.write_all(&out).await.unwrap();
    }

    /// The next option reply: its type and payload.
    pub async fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.stream.read_u64().await.unwrap(), codec::MAGIC_OPTION_REPLY);
        assert_eq!(self.stream.read_u32().await.unwrap(), option);
        let kind = self.stream.read_u32().await.unwrap();
        let length = self.stream.read_u32().await.unwrap();
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await.unwrap();
        (kind, payload)
    }

    /// Sends an option and gives all its replies, the last of which is an ACK or an error.
    pub async fn ask(&mut self, option: u32, payload: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.option(option, payload).await;
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option).await;
            let last = reply.0 == codec::reply::ACK || reply.0 >> 31 == 1;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// Goes through to transmission.
    pub async fn go(&mut self, structured: bool) {
        self.hello(3).await;
        if structured {
            assert_eq!(self.ask(option::STRUCTURED_REPLY, &[]).await, [(codec::reply::ACK, vec![])]);
            let set = self.ask(option::SET_META_CONTEXT, &meta_queries(VOLUME, &["base:allocation"])).await;
            assert_eq!(set.len(), 2);
        }
        let replies = self.ask(option::GO, &info_request(VOLUME, &[])).await;
        assert_eq!(replies.last().unwrap().0, codec::reply::ACK);
    }

    pub async fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
        let header = RequestHeader { flags, command, cookie: Cookie(cookie), offset, length };
        let mut out = BytesMut::new();
        header.encode(&mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    pub async fn write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        self.request(flags, codec::command::WRITE, cookie, offset, data.len() as u32).await;
        self.stream.write_all(data).await.unwrap();
    }

    /// The next reply header, with the payload where it says its length.
    pub async fn reply(&mut self) -> Reply {
        match self.stream.read_u32().await.unwrap() {
            codec::MAGIC_SIMPLE_REPLY => Reply::Simple {
                error: self.stream.read_u32().await.unwrap(),
                cookie: self.stream.read_u64().await.unwrap(),
            },
            codec::MAGIC_STRUCTURED_REPLY => {
                let flags = self.stream.read_u16().await.unwrap();
                let kind = self.stream.read_u16().await.unwrap();
                let cookie = self.stream.read_u64().await.unwrap();
                let mut payload = vec![0; self.stream.read_u32().await.unwrap() as usize];
                self.stream.read_exact(&mut payload).await.unwrap();
                Reply::Chunk { done: flags & chunk::FLAG_DONE != 0, kind, cookie, payload }
            }
            magic => panic!("reply magic {magic:#x}"),
        }
    }

    /// Expects success of `cookie` in one simple reply.
    pub async fn done(&mut self, cookie: u64) {
        assert_eq!(self.reply().await, Reply::Simple { error: 0, cookie });
    }

    pub async fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// Expects the server to close without another byte.
    pub async fn closed(&mut self) {
        // An error (reset) is a close, too.
        let count = self.stream.read(&mut [0]).await.unwrap_or(0);
        assert_eq!(count, 0, "bytes instead of a close");
    }
}

pub fn info_request(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(name.len() as u32);
    out.put_slice(name.as_bytes());
    out.put_u16(kinds.len() as u16);
    kinds.iter().for_each(|kind| out.put_u16(*kind));
    out
}

pub fn meta_queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(name.len() as u32);
    out.put_slice(name.as_bytes());
    out.put_u32(queries.len() as u32);
    for query in queries {
        out.put_u32(query.len() as u32);
        out.put_slice(query.as_bytes());
    }
    out
}

/// An error chunk's payload.
pub fn error_chunk(error: u32, message: &str) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(error);
    out.put_u16(message.len() as u16);
    out.put_slice(message.as_bytes());
    out
}

/// Bytes that differ from block to block and from seed to seed.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| (at.wrapping_mul(31).wrapping_add(at >> 12).wrapping_add(seed) % 251) as u8 + 1)
        .collect()
}
