//! Operations on what is in files: drawn, done, and entered in the files' histories.
//!
//! One file has one such operation at a time, so that the order of its changes is known; files are many, and names of theirs
//! come and go meanwhile.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use block_device::BlockDevice;
use bytes::Bytes;
use filesystem::engine::{Done, Failure};
use filesystem::layout::timestamp::Timestamp;
use filesystem::{InodeNumber, TransactionId};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::contents::pattern;
use super::names::Outcome;
use super::schedule::pass;
use super::work::Work;

/// Longest file, in bytes.
const SIZE_MAX: usize = 400 << 10;
/// More than any file has, in bytes.
const READ_ALL: usize = 2 << 20;
/// Bytes that are so many that they do not go with a transaction, but before it.
const MUCH: usize = 140_000;
/// Holes that are punched into one file in a row.
const HOLES: usize = 60;
/// Files that are open at a time beyond the operations on them.
const HELD_MAX: usize = 6;

/// A file, by what no other one ever had.
pub(super) type FileId = (u32, u32);

/// One drawn operation on the data of a file, or on all of them.
pub(super) async fn operate<D: BlockDevice>(work: &Work<'_, D>, rng: &mut ChaCha8Rng, number: usize) -> Outcome {
    if rng.random_range(0..40) == 0 {
        sync(work).await?;
        return Ok(None);
    }
    let Some(id) = work.take_file(rng) else { return Ok(None) };
    // It lives on, whatever becomes of its name.
    work.mounted.hold(InodeNumber(id.0));
    let now = Timestamp { seconds: 1_700_000_000 + number as i64, nanoseconds: 9 };
    let outcome = Operation { work, id, number, now }.operate(rng).await;
    if rng.random_range(0..12) == 0 && work.held.borrow().len() < HELD_MAX {
        work.held.borrow_mut().push(id);
    } else {
        work.mounted.let_go(InodeNumber(id.0));
    }
    if rng.random_range(0..12) == 0 {
        let_go_one(work, rng);
    }
    work.give_file(id);
    outcome.with_context(|| format!("inode {}", id.0))
}

/// Ends one of the opens that outlast operations.
fn let_go_one<D: BlockDevice>(work: &Work<'_, D>, rng: &mut ChaCha8Rng) {
    let mut held = work.held.borrow_mut();
    if !held.is_empty() {
        let at = rng.random_range(0..held.len());
        let (inode, _) = held.swap_remove(at);
        work.mounted.let_go(InodeNumber(inode));
    }
}

/// Everything that has come to its end by now becomes durable.
async fn sync<D: BlockDevice>(work: &Work<'_, D>) -> Result<()> {
    let (steps, transaction) = {
        let model = work.model.borrow();
        let busy = work.busy.borrow();
        // Of a file that is being changed nobody knows how much of that is meant.
        let quiet = model.files.iter().filter(|(id, _)| !busy.contains(id));
        (quiet.map(|(id, history)| (*id, history.last_step())).collect::<Vec<_>>(), model.last_transaction())
    };
    work.mounted.sync().await.context("sync")?;
    let position = work.position();
    let mut model = work.model.borrow_mut();
    for (id, step) in steps {
        if let Some(history) = model.files.get_mut(&id) {
            history.synced(position, step);
        }
    }
    if let Some(transaction) = transaction {
        model.acknowledge(position, transaction);
    }
    Ok(())
}

/// One operation on one file.
struct Operation<'a, 'b, D> {
    work: &'a Work<'b, D>,
    id: FileId,
    number: usize,
    now: Timestamp,
}

impl<D: BlockDevice> Operation<'_, '_, D> {
    async fn operate(&self, rng: &mut ChaCha8Rng) -> Outcome {
        let size = self.content().len();
        let range = drawn_range(rng, size);
        match rng.random_range(0..20) {
            0..=4 => self.write(range).await,
            5 | 6 => self.write(size..(size + rng.random_range(1..6000)).min(SIZE_MAX).max(size + 1)).await,
            7 => self.truncate(rng.random_range(0..=size)).await,
            8 => self.truncate((size + rng.random_range(0..20_000)).min(SIZE_MAX)).await,
            9 => self.truncate(size.saturating_sub(rng.random_range(0..5000))).await,
            10 => self.allocate(range, rng.random()).await,
            11 | 12 => self.punch(range).await,
            13 => self.zero(range, rng.random()).await,
            14 if self.work.is_perforated => self.perforate(rng).await,
            15 => self.overwrite(rng).await,
            14 | 16 | 17 => self.fsync().await,
            _ => self.expect_content().await,
        }
    }

    fn content(&self) -> Vec<u8> {
        let model = self.work.model.borrow();
        model.files.get(&self.id).map_or_else(Vec::new, |history| history.content().to_vec())
    }

    fn file(&self) -> InodeNumber {
        InodeNumber(self.id.0)
    }

    /// The change is beginning; gives its number.
    fn change(&self, content: Vec<u8>, cleared: Option<Range<usize>>) -> Result<u32> {
        let mut model = self.work.model.borrow_mut();
        let history = model.files.get_mut(&self.id).context("a file without a history")?;
        Ok(history.change(content, cleared))
    }

    /// An operation has ended that is one transaction, or several of which the last one is known.
    async fn end<T>(&self, step: u32, done: Result<Done<T>, Failure>) -> Outcome {
        match done {
            Ok(done) => {
                if let (Some(transaction), Some(history)) =
                    (done.transaction, self.work.model.borrow_mut().files.get_mut(&self.id))
                {
                    history.belongs_to(step, transaction);
                }
                Ok(done.transaction)
            }
            Err(failure) => self.failed(failure).await,
        }
    }

    /// What has no room, or is not to be had for this kind of file, may have happened in part.
    async fn failed(&self, failure: Failure) -> Result<Option<TransactionId>> {
        match failure {
            Failure::NoSpace | Failure::Refused(_) => {
                let found = self.work.mounted.read(self.file(), 0, READ_ALL).await.context("reading it back")?.value;
                self.change(found.to_vec(), None)?;
                Ok(None)
            }
            failure => Err(failure.into()),
        }
    }

    async fn write(&self, range: Range<usize>) -> Outcome {
        let data = pattern(self.id.0, self.id.1, self.number, range.start, range.len());
        let mut content = self.content();
        content.resize(content.len().max(range.end), 0);
        content[range.clone()].copy_from_slice(&data);
        self.change(content, None)?;
        let done = self.work.mounted.write(self.file(), range.start as u64, Bytes::from(data), self.now).await;
        match done {
            // The transaction is that of the times: the data waits.
            Ok(done) => {
                ensure!(done.value == range.len(), "a write of {range:?} wrote {} bytes", done.value);
                Ok(None)
            }
            Err(failure) => self.failed(failure).await,
        }
    }

    async fn truncate(&self, size: usize) -> Outcome {
        let mut content = self.content();
        let cleared = size..content.len().max(size);
        content.resize(size, 0);
        let step = self.change(content, Some(cleared))?;
        let done = self.work.mounted.truncate(self.file(), size as u64, self.now).await;
        self.end(step, done).await
    }

    async fn allocate(&self, range: Range<usize>, keep_size: bool) -> Outcome {
        let mut content = self.content();
        if !keep_size {
            content.resize(content.len().max(range.end), 0);
        }
        let step = self.change(content, None)?;
        let bytes = range.start as u64..range.end as u64;
        let done = self.work.mounted.allocate(self.file(), bytes, keep_size, self.now).await;
        self.end(step, done).await
    }

    async fn punch(&self, range: Range<usize>) -> Outcome {
        let mut content = self.content();
        let end = range.end.min(content.len());
        content.get_mut(range.start..end).unwrap_or_default().fill(0);
        let step = self.change(content, Some(range.clone()))?;
        let done = self.work.mounted.punch(self.file(), range.start as u64..range.end as u64, self.now).await;
        self.end(step, done).await
    }

    async fn zero(&self, range: Range<usize>, keep_size: bool) -> Outcome {
        let mut content = self.content();
        if !keep_size {
            content.resize(content.len().max(range.end), 0);
        }
        let end = range.end.min(content.len());
        content.get_mut(range.start..end).unwrap_or_default().fill(0);
        let step = self.change(content, Some(range.clone()))?;
        let bytes = range.start as u64..range.end as u64;
        let done = self.work.mounted.zero(self.file(), bytes, keep_size, self.now).await;
        self.end(step, done).await
    }

    /// Much is written over what is there, and synced when its times are durable already: only a flush makes that data durable.
    async fn overwrite(&self, rng: &mut ChaCha8Rng) -> Outcome {
        let size = rng.random_range(MUCH..SIZE_MAX / 2);
        if self.content().len() < size {
            self.write(0..size).await?;
            self.fsync().await?;
        }
        let start = rng.random_range(0..=size - MUCH);
        self.write(start..start + MUCH).await?;
        pass(rng.random_range(0..200)).await;
        self.fsync().await
    }

    /// Many small holes, so that the map of the file grows deep.
    async fn perforate(&self, rng: &mut ChaCha8Rng) -> Outcome {
        let unit = *[1024, 2048, 4096].choose(rng).context("there are some")?;
        let size = HOLES * 2 * unit;
        if size <= SIZE_MAX && self.content().len() < size {
            self.write(0..size).await?;
        }
        let mut last = None;
        for hole in 0..HOLES {
            let start = hole * 2 * unit;
            last = self.punch(start..start + unit).await?.or(last);
        }
        Ok(last)
    }

    async fn fsync(&self) -> Outcome {
        let (step, state) = {
            let model = self.work.model.borrow();
            let history = model.files.get(&self.id).context("a file without a history")?;
            (history.last_step(), model.last_state_of(self.id.0))
        };
        self.work.mounted.fsync(self.file()).await.context("fsync")?;
        let position = self.work.position();
        let mut model = self.work.model.borrow_mut();
        if let Some(history) = model.files.get_mut(&self.id) {
            history.synced(position, step);
        }
        model.acknowledge_state(position, state);
        Ok(None)
    }

    /// While nothing is lost, a file is read as it was written.
    async fn expect_content(&self) -> Outcome {
        let found = self.work.mounted.read(self.file(), 0, READ_ALL).await.context("reading")?.value;
        let content = self.content();
        let differs = found.iter().zip(&content).position(|(found, expected)| found != expected);
        ensure!(
            differs.is_none() && found.len() == content.len(),
            "{} bytes are read of {}, with a difference at {differs:?}",
            found.len(),
            content.len()
        );
        Ok(None)
    }
}

fn drawn_range(rng: &mut ChaCha8Rng, size: usize) -> Range<usize> {
    let start = match rng.random_range(0..4) {
        0 => rng.random_range(0..SIZE_MAX / 2),
        1 => rng.random_range(0..=size) / 4096 * 4096,
        _ => rng.random_range(0..=size),
    };
    let length = match rng.random_range(0..16) {
        0..=3 => rng.random_range(1..100),
        4..=9 => rng.random_range(1..9000),
        10..=13 => rng.random_range(1..10) * 4096,
        14 => rng.random_range(1..60_000),
        _ => rng.random_range(MUCH..250_000),
    };
    let start = start.min(SIZE_MAX - 1);
    start..(start + length).min(SIZE_MAX)
}
