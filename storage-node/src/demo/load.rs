//! The demo's clients: several writes in flight, each sent again after a lost connection until it is acknowledged, and
//! now and then a read that must return the newest acknowledged contents.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::Rng;
use tokio::task::JoinSet;

use super::control::Locator;
use super::ledger::{BLOCK, Ledger, Write};
use super::nbd::Client;
use crate::net::transport::Transport;

/// Connections, each with one operation in flight.
pub(super) const CLIENTS: usize = 8;
/// Blocks in one write: 4 to 64 KiB.
const WRITE_BLOCKS_MAX: u64 = 16;
/// One operation in so many is a read that is checked; and one is a flush.
const READ_ONE_IN: u32 = 8;
const FLUSH_ONE_IN: u32 = 64;
/// An operation that is not done after this means that the cluster is broken.
const OPERATION_PATIENCE: Duration = Duration::from_secs(60);
/// Between attempts to connect to a box that says it serves.
const RECONNECT_REST: Duration = Duration::from_millis(10);

/// A connection to whichever box serves, made again when it breaks.
#[derive(Debug)]
pub(super) struct Session {
    transport: Transport,
    locator: Arc<Locator>,
    export: String,
    client: Option<Client>,
    generation: u64,
}

impl Session {
    /// Connects at the first operation.
    pub(super) fn new(transport: Transport, locator: Arc<Locator>, export: String) -> Self {
        Session { transport, locator, export, client: None, generation: 0 }
    }

    /// Writes, again and again until acknowledged.
    pub(super) async fn write(&mut self, write: Write) -> anyhow::Result<()> {
        let data = write.data();
        let deadline = Instant::now() + OPERATION_PATIENCE;
        loop {
            let client = self.client(deadline).await?;
            match client.write(write.range.offset_bytes(), &data).await {
                Ok(()) => return Ok(()),
                Err(error) => self.lost(deadline, &error)?,
            }
        }
    }

    /// Reads, again and again until answered.
    pub(super) async fn read(&mut self, offset: u64, into: &mut [u8]) -> anyhow::Result<()> {
        let deadline = Instant::now() + OPERATION_PATIENCE;
        loop {
            let client = self.client(deadline).await?;
            match client.read(offset, into).await {
                Ok(()) => return Ok(()),
                Err(error) => self.lost(deadline, &error)?,
            }
        }
    }

    /// Flushes, again and again until answered.
    pub(super) async fn flush(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + OPERATION_PATIENCE;
        loop {
            let client = self.client(deadline).await?;
            match client.flush().await {
                Ok(()) => return Ok(()),
                Err(error) => self.lost(deadline, &error)?,
            }
        }
    }

    /// Size of the export in bytes.
    pub(super) async fn size_bytes(&mut self) -> anyhow::Result<u64> {
        Ok(self.client(Instant::now() + OPERATION_PATIENCE).await?.size_bytes)
    }

    /// Ends the connection.
    pub(super) async fn close(mut self) {
        if let Some(client) = self.client.take() {
            client.close().await;
        }
    }

    async fn client(&mut self, deadline: Instant) -> anyhow::Result<&mut Client> {
        while self.client.is_none() {
            let (generation, address) = self.locator.locate(self.generation).await?;
            match Client::open(&self.transport, &address, &self.export).await {
                Ok(client) => self.client = Some(client),
                Err(error) if Instant::now() > deadline => {
                    bail!("{address} does not serve for {OPERATION_PATIENCE:?}: {error}")
                }
                Err(_) => {
                    self.generation = generation;
                    tokio::time::sleep(RECONNECT_REST).await;
                }
            }
        }
        self.client.as_mut().context("connected above")
    }

    /// The connection broke: look for the primary anew, unless time is up.
    fn lost(&mut self, deadline: Instant, error: &super::nbd::NbdError) -> anyhow::Result<()> {
        self.client = None;
        if Instant::now() > deadline {
            bail!("an operation got no answer for {OPERATION_PATIENCE:?}: {error}");
        }
        Ok(())
    }
}

/// Running clients.
#[derive(Debug)]
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<anyhow::Result<()>>,
}

impl Load {
    /// Starts them.
    pub(super) fn start(transport: &Transport, locator: &Arc<Locator>, export: &str, ledger: &Arc<Ledger>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let session = Session::new(transport.clone(), locator.clone(), export.to_owned());
            clients.spawn(client(session, ledger.clone(), stop.clone()));
        }
        Load { stop, clients }
    }

    /// Lets time pass. Ends early, with the reason, when a client gives up.
    pub(super) async fn run_for(&mut self, time: Duration) -> anyhow::Result<()> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            ended = self.clients.join_next() => match ended {
                Some(Ok(Err(error))) => Err(error),
                Some(Err(error)) => Err(error.into()),
                Some(Ok(Ok(()))) | None => bail!("a client ended before its time"),
            },
        }
    }

    /// Lets every client end its operation; everything sent is acknowledged and flushed afterwards.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended??;
        }
        Ok(())
    }
}

async fn client(mut session: Session, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let dice: u32 = rand::rng().random();
        if dice.is_multiple_of(FLUSH_ONE_IN) {
            session.flush().await?;
            continue;
        }
        let Some(range) = ledger.reserve(WRITE_BLOCKS_MAX) else {
            tokio::task::yield_now().await;
            continue;
        };
        if dice.is_multiple_of(READ_ONE_IN) {
            let mut data = vec![0; range.count as usize * BLOCK];
            session.read(range.offset_bytes(), &mut data).await?;
            ledger.check(range, &data, "under load");
            ledger.release(range);
        } else {
            let write = ledger.begin(range);
            let begun = Instant::now();
            session.write(write).await?;
            ledger.acknowledge(write, begun.elapsed());
        }
    }
    session.flush().await?;
    session.close().await;
    Ok(())
}
