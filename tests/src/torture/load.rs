//! Writers and readers on a volume, whose ledger tells what every block must hold.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::ledger::Ledger;
use super::pattern::{BLOCK_BYTES, fill};
use crate::e2e::nbd::{NbdConnection, NbdError};
use crate::e2e::writer::Connector;

/// Blocks of one write at most.
const RUN_MAX: u64 = 8;
/// One of so many operations of a writer is a flush.
const FLUSH_ONE_IN: u32 = 12;
/// A writer stays in a window of so many blocks for a while, and then moves to another: extents that nobody writes to
/// become cold, and hot again when a window comes to lie in them.
const WINDOW_BLOCKS: u64 = 256;
/// One of so many operations of a writer moves its window.
const MOVE_ONE_IN: u32 = 200;
/// Findings kept; one is enough to fail.
const FINDINGS_MAX: usize = 100;
const RETRY_PAUSE: Duration = Duration::from_millis(10);
const PAUSE_LIMIT: Duration = Duration::from_secs(60);

/// What is common to all threads of a load.
struct Shared {
    ledger: Ledger,
    connector: Connector,
    stop: AtomicBool,
    pause: AtomicBool,
    /// Threads between two operations that wait for the pause to end.
    paused: AtomicU64,
    operations: AtomicU64,
    /// Operations that the server has answered with an error.
    errors: AtomicU64,
    findings: Mutex<Vec<String>>,
}

/// A running load. Dropping it ends its threads.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `writers` writers, each on its own part of the first `blocks` blocks, and `readers` readers on all of them.
    pub fn start(connector: Connector, blocks: u64, writers: u64, readers: u64, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            ledger: Ledger::new(blocks),
            connector,
            stop: AtomicBool::new(false),
            pause: AtomicBool::new(false),
            paused: AtomicU64::new(0),
            operations: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            findings: Mutex::default(),
        });
        let each = blocks / writers.max(1);
        let mut threads = Vec::new();
        for index in 0..writers + readers {
            let rng = ChaCha8Rng::seed_from_u64(seed ^ (index + 1));
            let thread = Thread { shared: Arc::clone(&shared), rng, connection: None };
            threads.push(std::thread::spawn(move || match index < writers {
                true => thread.write(index * each, each),
                false => thread.read(),
            }));
        }
        Self { shared, threads }
    }

    /// What every block must hold.
    pub fn ledger(&self) -> &Ledger {
        &self.shared.ledger
    }

    /// Operations that ended well since the last call.
    pub fn take_operations(&self) -> u64 {
        self.shared.operations.swap(0, Ordering::Relaxed)
    }

    /// Operations that the server has answered with an error since the last call.
    pub fn take_errors(&self) -> u64 {
        self.shared.errors.swap(0, Ordering::Relaxed)
    }

    /// What was found wrong so far.
    pub fn findings(&self) -> Vec<String> {
        self.shared.findings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until no operation is under way, and lets none begin.
    pub fn pause(&self) -> Result<(), String> {
        self.shared.pause.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + PAUSE_LIMIT;
        while self.shared.paused.load(Ordering::SeqCst) < self.threads.len() as u64 {
            if Instant::now() >= deadline {
                return Err(format!("a client got no answer for {PAUSE_LIMIT:?}, though the volume is healthy"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets the operations go on.
    pub fn resume(&self) {
        self.shared.pause.store(false, Ordering::SeqCst);
    }

    /// Flushes a paused load through `connection`, reads every block and judges it. Gives the error of a connection that
    /// did not last: that says nothing about the data.
    pub fn verify(&self, connection: &mut NbdConnection) -> Result<Result<(), NbdError>, String> {
        const CHUNK: u64 = 256;
        let ledger = self.ledger();
        if let Err(error) = connection.flush() {
            return Ok(Err(error));
        }
        for first in (0..ledger.blocks()).step_by(CHUNK as usize) {
            let count = CHUNK.min(ledger.blocks() - first);
            let tickets: Vec<_> = (first..first + count).map(|block| ledger.begin_read(block)).collect();
            let bytes = connection.read(first * BLOCK_BYTES as u64, count as u32 * BLOCK_BYTES as u32);
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error @ NbdError::Lost(_)) => return Ok(Err(error)),
                Err(error) => return Err(format!("blocks from {first} cannot be read: {error:?}")),
            };
            for (ticket, block) in tickets.into_iter().zip(bytes.chunks(BLOCK_BYTES)) {
                ledger.end_read(ticket, block)?;
            }
        }
        Ok(Ok(()))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Thread {
    shared: Arc<Shared>,
    rng: ChaCha8Rng,
    connection: Option<NbdConnection>,
}

impl Thread {
    /// Writes and flushes on its own blocks until the end.
    fn write(mut self, first: u64, blocks: u64) {
        let mut version = 0;
        // Acknowledged since the last flush.
        let mut unflushed: Vec<(u64, u64)> = Vec::new();
        let window_blocks = WINDOW_BLOCKS.min(blocks);
        let mut window = first;
        while self.may_go_on() {
            if self.rng.random_range(0..MOVE_ONE_IN) == 0 {
                window = first + self.rng.random_range(0..=blocks - window_blocks);
            }
            if self.rng.random_range(0..FLUSH_ONE_IN) == 0 {
                self.flush(&mut unflushed);
                continue;
            }
            version += 1;
            let count = self.rng.random_range(1..=RUN_MAX.min(window_blocks));
            let start = window + self.rng.random_range(0..=window_blocks - count);
            let run = start..start + count;
            run.clone().for_each(|block| self.shared.ledger.try_write(block, version));
            let bytes: Vec<u8> = run.clone().flat_map(|block| fill(block, version)).collect();
            // The same again until it is acknowledged: one whose fate is unknown may still come to pass.
            while !self.shared.stop.load(Ordering::SeqCst) {
                let ticket = self.shared.ledger.begin();
                if self.attempt(|connection| connection.write(start * BLOCK_BYTES as u64, &bytes)).is_some() {
                    for block in run.clone() {
                        if self.shared.ledger.acknowledge(ticket, block, version) {
                            unflushed.push((block, version));
                        }
                    }
                    break;
                }
            }
        }
    }

    fn flush(&mut self, unflushed: &mut Vec<(u64, u64)>) {
        let ticket = self.shared.ledger.begin();
        if self.attempt(NbdConnection::flush).is_some() {
            for (block, version) in unflushed.drain(..) {
                self.shared.ledger.flush(ticket, block, version);
            }
        }
    }

    /// Reads anywhere until the end.
    fn read(mut self) {
        let shared = Arc::clone(&self.shared);
        let ledger = &shared.ledger;
        while self.may_go_on() {
            let count = self.rng.random_range(1..=RUN_MAX.min(ledger.blocks()));
            let start = self.rng.random_range(0..=ledger.blocks() - count);
            let tickets: Vec<_> = (start..start + count).map(|block| ledger.begin_read(block)).collect();
            let length = count as u32 * BLOCK_BYTES as u32;
            let Some(bytes) = self.attempt(|connection| connection.read(start * BLOCK_BYTES as u64, length)) else {
                continue;
            };
            for (ticket, block) in tickets.into_iter().zip(bytes.chunks(BLOCK_BYTES)) {
                if let Err(why) = ledger.end_read(ticket, block) {
                    self.report(format!("a concurrent read: {why}"));
                }
            }
        }
    }

    /// Waits while the load is paused. False at its end.
    fn may_go_on(&mut self) -> bool {
        // Asked again after each pause: the next one may have begun before this thread has noticed the end of the last.
        while self.shared.pause.load(Ordering::SeqCst) && !self.shared.stop.load(Ordering::SeqCst) {
            self.shared.paused.fetch_add(1, Ordering::SeqCst);
            while self.shared.pause.load(Ordering::SeqCst) && !self.shared.stop.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.shared.paused.fetch_sub(1, Ordering::SeqCst);
        }
        !self.shared.stop.load(Ordering::SeqCst)
    }

    /// Does one operation; nothing if it failed, and with it the connection.
    fn attempt<T>(&mut self, operation: impl FnOnce(&mut NbdConnection) -> Result<T, NbdError>) -> Option<T> {
        if self.connection.is_none() {
            self.connection = (self.shared.connector)();
        }
        let Some(connection) = self.connection.as_mut() else {
            std::thread::sleep(RETRY_PAUSE);
            return None;
        };
        match operation(connection) {
            Ok(value) => {
                self.shared.operations.fetch_add(1, Ordering::Relaxed);
                Some(value)
            }
            Err(error) => {
                self.connection = None;
                match error {
                    NbdError::Protocol(why) => self.report(format!("the server broke the NBD protocol: {why}")),
                    NbdError::Server(_) => drop(self.shared.errors.fetch_add(1, Ordering::Relaxed)),
                    NbdError::Refused(_) | NbdError::Lost(_) => {}
                }
                std::thread::sleep(RETRY_PAUSE);
                None
            }
        }
    }

    fn report(&self, why: String) {
        let mut findings = self.shared.findings.lock().unwrap_or_else(PoisonError::into_inner);
        if findings.len() < FINDINGS_MAX {
            findings.push(why);
        }
    }
}
