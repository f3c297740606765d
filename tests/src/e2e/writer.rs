//! Load with a memory: writers that know which version of each block was acknowledged, and the check that it is still there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::nbd::{NbdConnection, NbdError};
use super::pattern::{BLOCK_BYTES, fill, version_of};

/// How to get a connection to whichever node serves now. `None`: nobody does, try again.
pub type Connector = Arc<dyn Fn() -> Option<NbdConnection> + Send + Sync>;

/// Every how many writes a writer flushes.
const FLUSH_EVERY: u64 = 32;

/// What one block must hold: at least the acknowledged version, at most the one last tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Expectation {
    acknowledged: u64,
    attempted: u64,
}

/// Writers in the background, each on its own connection and its own blocks.
pub struct VerifyingLoad {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    connector: Connector,
    writers: Vec<JoinHandle<Result<WriterReport, String>>>,
}

#[derive(Debug)]
struct WriterReport {
    first_block: u64,
    blocks: Vec<Expectation>,
    longest_outage: Duration,
    reconnects: u64,
}

/// What came of a load, after every block was read back.
#[derive(Clone, Copy, Debug)]
pub struct LoadReport {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Blocks that were read and found right.
    pub verified_blocks: u64,
    /// The longest time from the last success to the next one, over all writers.
    pub longest_outage: Duration,
    /// Connections that were made after the first.
    pub reconnects: u64,
}

impl VerifyingLoad {
    /// Starts `writers` writers on `blocks_each` blocks each, from block 0 on. A writer that finds nobody to serve it for
    /// longer than `patience` fails the load.
    pub fn start(connector: Connector, writers: u64, blocks_each: u64, patience: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let writers = (0..writers)
            .map(|index| {
                let writer = Writer {
                    connector: Arc::clone(&connector),
                    stop: Arc::clone(&stop),
                    acknowledged: Arc::clone(&acknowledged),
                    patience,
                    first_block: index * blocks_each,
                    blocks: vec![Expectation::default(); blocks_each as usize],
                    connection: None,
                    last_success: Instant::now(),
                    longest_outage: Duration::ZERO,
                    connects: 0,
                };
                std::thread::spawn(move || writer.run())
            })
            .collect();
        Self { stop, acknowledged, connector, writers }
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Waits until `more` further writes are acknowledged.
    #[track_caller]
    pub fn progress(&self, more: u64) {
        let goal = self.acknowledged() + more;
        super::wait::eventually(Duration::from_secs(60), "the load goes on", || self.acknowledged() >= goal);
    }

    /// Ends the load, reads every block and compares.
    ///
    /// # Panics
    /// If an acknowledged write is lost, a block is torn, or a writer gave up.
    #[track_caller]
    pub fn finish(self) -> LoadReport {
        self.stop.store(true, Ordering::Release);
        let reports: Vec<WriterReport> = self
            .writers
            .into_iter()
            .map(|writer| match writer.join() {
                Ok(Ok(report)) => report,
                Ok(Err(why)) => panic!("a writer gave up: {why}"),
                Err(_) => panic!("a writer panicked"),
            })
            .collect();
        let mut connection =
            super::wait::eventually_some(Duration::from_secs(60), "a node serves", || (self.connector)());
        let mut verified_blocks = 0;
        for report in &reports {
            for (block, expected) in (report.first_block..).zip(&report.blocks) {
                let bytes = match connection.read(block * BLOCK_BYTES as u64, BLOCK_BYTES as u32) {
                    Ok(bytes) => bytes,
                    Err(error) => panic!("block {block} cannot be read: {error:?}"),
                };
                if let Err(why) = judge(block, *expected, &bytes) {
                    panic!("{why}");
                }
                verified_blocks += 1;
            }
        }
        LoadReport {
            acknowledged: self.acknowledged.load(Ordering::Acquire),
            verified_blocks,
            longest_outage: reports.iter().map(|report| report.longest_outage).max().unwrap_or_default(),
            reconnects: reports.iter().map(|report| report.reconnects).sum(),
        }
    }
}

fn judge(block: u64, expected: Expectation, bytes: &[u8]) -> Result<(), String> {
    let Expectation { acknowledged, attempted } = expected;
    match version_of(block, bytes) {
        Some(found) if (acknowledged..=attempted).contains(&found) => Ok(()),
        Some(found) => {
            Err(format!("block {block} holds version {found}; {acknowledged} was acknowledged, {attempted} tried"))
        }
        None => Err(format!("block {block} is torn or foreign; version {acknowledged} was acknowledged")),
    }
}

struct Writer {
    connector: Connector,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    patience: Duration,
    first_block: u64,
    blocks: Vec<Expectation>,
    connection: Option<NbdConnection>,
    last_success: Instant,
    longest_outage: Duration,
    connects: u64,
}

impl Writer {
    fn run(mut self) -> Result<WriterReport, String> {
        let (mut turn, mut version) = (0_u64, 0_u64);
        self.last_success = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            // Odd strides visit every block of a power of two and look random enough to a disk.
            let index = (turn.wrapping_mul(0x9E37_79B1) % self.blocks.len() as u64) as usize;
            turn += 1;
            version += 1;
            self.blocks[index].attempted = version;
            self.write_until_acknowledged(index, version)?;
            self.blocks[index].acknowledged = version;
            self.acknowledged.fetch_add(1, Ordering::AcqRel);
        }
        Ok(WriterReport {
            first_block: self.first_block,
            blocks: self.blocks,
            longest_outage: self.longest_outage,
            reconnects: self.connects.saturating_sub(1),
        })
    }

    /// Tries the same write again until it is acknowledged: one whose fate is unknown may or may not have happened, and
    /// writing the same bytes again is harmless.
    fn write_until_acknowledged(&mut self, index: usize, version: u64) -> Result<(), String> {
        let block = self.first_block + index as u64;
        let data = fill(block, version);
        loop {
            let outcome = self.connected().map(|connection| {
                connection.write(block * BLOCK_BYTES as u64, &data)?;
                if version.is_multiple_of(FLUSH_EVERY) {
                    connection.flush()?;
                }
                Ok::<(), NbdError>(())
            });
            match outcome {
                Some(Ok(())) => {
                    self.longest_outage = self.longest_outage.max(self.last_success.elapsed());
                    self.last_success = Instant::now();
                    return Ok(());
                }
                Some(Err(NbdError::Protocol(why))) => return Err(why),
                Some(Err(_)) => self.connection = None,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
            if self.last_success.elapsed() > self.patience {
                return Err(format!("nobody has served block {block} for {:?}", self.last_success.elapsed()));
            }
        }
    }

    fn connected(&mut self) -> Option<&mut NbdConnection> {
        if self.connection.is_none() {
            self.connection = (self.connector)();
            self.connects += u64::from(self.connection.is_some());
        }
        self.connection.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_acknowledged_write_is_noticed() {
        let expected = Expectation { acknowledged: 3, attempted: 4 };
        for (found, fine) in [(2, false), (3, true), (4, true), (5, false)] {
            assert_eq!(judge(9, expected, &fill(9, found)).is_ok(), fine, "version {found}");
        }
        assert!(judge(9, expected, &[0; BLOCK_BYTES]).is_err());
        assert!(judge(9, expected, &fill(8, 3)).is_err());
        assert!(judge(9, Expectation::default(), &[0; BLOCK_BYTES]).is_ok());
    }
}
