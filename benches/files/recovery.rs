//! Recovery of full logs, nothing in memory: one that the engine left when it was killed, one that is full to its last block,
//! put there with the writer of the journal, and one of the kernel's, copied from under its mount.
//!
//! The images have the journal that a volume of 100 GB gets. Here they are made; opening them is `engine`'s.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use filesystem::journal::writer::{self, log_blocks_needed};
use filesystem::journal::{
    CommitTime, JournalMap, JournalSuperblock, LogIndex, LogSpace, NewTransaction, Outcome, Recovery, Step,
};
use filesystem::layout::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock};
use filesystem::{BlockNumber, BlockRun};

use crate::{engine, forget, format, kernel};

/// Of the journal, as `tandem fs make` makes it in a volume of 16 GiB and more.
const JOURNAL_MIB: u32 = 128;
const BLOCK_BYTES: u64 = 4096;
/// Blocks of a transaction in the log that is made; the engine's own largest has a quarter of the log.
const TRANSACTION_BLOCKS: usize = 8000;
/// Blocks that follow one another at home, before as many that stay as they are: half of a group's inode table.
const HOME_RUN: u64 = 256;
/// The first home: behind the bitmaps and tables of its 16 groups, and with the log's blocks before those of the next 16.
const FIRST_HOME: u64 = (20 << 30) / BLOCK_BYTES + (64 << 10);
/// Files that the kernel makes between two copies, and how many copies: the one with the fullest log counts.
const KERNEL_FILES: usize = 25_000;
const KERNEL_COPIES: usize = 12;

/// A log that was recovered.
pub(crate) struct Recovered {
    pub(crate) what: &'static str,
    transactions: u32,
    /// Blocks in the log, those that others in it make old among them.
    copies: u64,
    replayed: usize,
    ring: u32,
    pub(crate) took: Duration,
}

impl Recovered {
    pub(crate) fn describe(&self) -> String {
        format!(
            "{}: {} transactions with {} blocks in a log of {}, of which {} ({} MiB) went home: {:.0} ms",
            self.what,
            self.transactions,
            self.copies,
            self.ring,
            self.replayed,
            (self.replayed as u64 * BLOCK_BYTES) >> 20,
            self.took.as_secs_f64() * 1e3
        )
    }
}

/// Recovers each kind of log once, on images below `home`.
pub(crate) fn measure(home: &Path, bytes: u64, entries: usize, budget: usize, root: bool) -> Result<Vec<Recovered>> {
    let image = home.join("recovery.img");
    let mut all = Vec::new();
    format(&image, bytes, JOURNAL_MIB)?;
    engine::with(&image, budget, true, async |mounted| engine::fill(&mounted, "crashed", entries).await)?;
    all.push(recover(&image, budget, "the engine's own log, as it was killed")?);
    format(&image, bytes, JOURNAL_MIB)?;
    fill_log(&image)?;
    all.push(recover(&image, budget, "a log that is full to the last block")?);
    if root {
        let copy = kernel_log(home, bytes)?;
        all.push(recover(&copy, budget, "a log of the kernel's")?);
        fs::remove_file(copy)?;
    }
    fs::remove_file(image)?;
    Ok(all)
}

fn recover(image: &Path, budget: usize, what: &'static str) -> Result<Recovered> {
    let (journal, map) = journal_of(image)?;
    let ring = journal.ring().block_count();
    let outcome = scan(image, journal, &map)?;
    forget(image)?;
    let (_, recovered, took) = engine::with(image, budget, false, async |_| Ok(()))?;
    if recovered.transactions != outcome.transaction_count {
        bail!("{} transactions were recovered of {}", recovered.transactions, outcome.transaction_count);
    }
    check(image)?;
    let (transactions, copies) = (outcome.transaction_count, outcome.copy_count);
    Ok(Recovered { what, transactions, copies, replayed: recovered.blocks, ring, took })
}

/// e2fsck has nothing to say.
fn check(image: &Path) -> Result<()> {
    let mut command = Command::new("/sbin/e2fsck");
    let output = command.arg("-fn").arg(image).env("LC_ALL", "C").output().context("e2fsck (e2fsprogs)")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || ["Fix?", "Clear?", "Connect"].iter().any(|word| said.contains(word)) {
        bail!("e2fsck: {said}");
    }
    Ok(())
}

/// The journal's superblock, and where it lies by debugfs.
fn journal_of(image: &Path) -> Result<(JournalSuperblock, JournalMap)> {
    let output = Command::new("/sbin/debugfs").args(["-R", "blocks <8>"]).arg(image).output().context("debugfs")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let blocks: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let extents = blocks.iter().enumerate();
    // The list may have blocks of the map before those of the file; with extents in the inode it has none.
    let extents: Vec<_> =
        extents.map(|(at, block)| (LogIndex(at as u32), BlockRun::new(BlockNumber(*block), 1))).collect();
    let map = JournalMap::new(&extents)?;
    let first = read(&File::open(image)?, &map, LogIndex(0), 1)?;
    let journal = JournalSuperblock::decode(&first, BLOCK_BYTES as u32, map.block_count())?;
    Ok((journal, map))
}

fn place(map: &JournalMap, at: LogIndex) -> Result<u64> {
    Ok(map.device_block(at).context("the log ends")?.0 * BLOCK_BYTES)
}

fn read(file: &File, map: &JournalMap, at: LogIndex, count: u32) -> Result<Vec<u8>> {
    let mut blocks = vec![0; count as usize * BLOCK_BYTES as usize];
    for (number, block) in blocks.chunks_exact_mut(BLOCK_BYTES as usize).enumerate() {
        file.read_exact_at(block, place(map, LogIndex(at.0 + number as u32))?)?;
    }
    Ok(blocks)
}

/// What the log holds.
fn scan(image: &Path, journal: JournalSuperblock, map: &JournalMap) -> Result<Outcome> {
    let file = File::open(image)?;
    let blocks = file.metadata()?.len() / BLOCK_BYTES;
    let mut recovery = Recovery::new(journal, map.clone(), blocks);
    while let Step::Read { at, count } = recovery.step() {
        recovery.feed(&read(&file, map, at, count)?)?;
    }
    recovery.finish().context("the scan ended early")
}

/// Fills the log of a fresh image as far as it goes with transactions of blocks that nobody uses, each another home, and marks
/// it as one that is to be replayed.
fn fill_log(image: &Path) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(image)?;
    let (mut journal, map) = journal_of(image)?;
    journal.set_written_form();
    let (format, uuid, ring) = (journal.format(), journal.uuid(), journal.ring());
    let mut space = LogSpace::empty(ring, ring.first()).context("a ring has blocks")?;
    let (mut sequence, mut home) = (journal.sequence(), 0);
    journal.set_start(space.head(), sequence);
    loop {
        let free = space.free_block_count() as usize;
        let fits = |count: &usize| log_blocks_needed(&format, *count, 0) <= free;
        let Some(count) = (1..=TRANSACTION_BLOCKS.min(free)).rev().find(fits) else { break };
        let content: Vec<Vec<u8>> =
            (0..count).map(|at| vec![(home as usize + at) as u8; BLOCK_BYTES as usize]).collect();
        let homes = (home..).map(|at| FIRST_HOME + at / HOME_RUN * HOME_RUN * 2 + at % HOME_RUN);
        let blocks: Vec<_> = homes.map(BlockNumber).zip(content.iter().map(Vec::as_slice)).collect();
        let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let time = CommitTime { seconds: since.as_secs(), nanoseconds: since.subsec_nanos() };
        let transaction = NewTransaction { sequence, time, blocks: &blocks, revokes: &[] };
        let written = writer::write(&format, &uuid, &mut space, &transaction).context("it fits")?;
        for block in written.blocks.iter().chain([&written.commit]) {
            file.write_all_at(block.content.bytes(&transaction), place(&map, block.at)?)?;
        }
        (sequence, home) = (sequence.next(), home + count as u64);
    }
    if space.free_block_count() > 2 {
        bail!("{} blocks of the log are left", space.free_block_count());
    }
    file.write_all_at(&journal.encode(), place(&map, LogIndex(0))?)?;
    let mut bytes = [0; SUPERBLOCK_BYTES];
    file.read_exact_at(&mut bytes, SUPERBLOCK_OFFSET)?;
    let mut superblock = Superblock::decode(&bytes)?;
    superblock.set_needs_recovery(true);
    file.write_all_at(&superblock.encode(), SUPERBLOCK_OFFSET)?;
    Ok(file.sync_all()?)
}

/// The fullest of some logs of the kernel's: it makes files, and its image is copied while it is mounted and has nothing under
/// way.
fn kernel_log(home: &Path, bytes: u64) -> Result<PathBuf> {
    let (image, copy, best) = (home.join("busy.img"), home.join("copy.img"), home.join("fullest.img"));
    format(&image, bytes, JOURNAL_MIB)?;
    let mut fullest = 0;
    let mount = kernel::Mount::with_options(&image, &home.join("busy"), "loop,noinit_itable,commit=600")?;
    for number in 0..KERNEL_COPIES {
        kernel::fill(&mount.at.join(format!("d{number}")), KERNEL_FILES)?;
        let synced = Command::new("sync").arg("-f").arg(&mount.at).status()?;
        let copied = Command::new("cp").arg("--sparse=always").args([&image, &copy]).status()?;
        if !synced.success() || !copied.success() {
            bail!("sync or cp failed");
        }
        let (journal, map) = journal_of(&copy)?;
        let copies = scan(&copy, journal, &map)?.copy_count;
        if copies > fullest {
            fullest = copies;
            fs::rename(&copy, &best)?;
        }
    }
    drop(mount);
    fs::remove_file(image)?;
    let _ = fs::remove_file(copy);
    Ok(best)
}
