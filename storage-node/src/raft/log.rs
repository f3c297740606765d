//! The Raft log's file: what this node has promised to its cluster.
//!
//! Owns one file of checksummed records behind two superblocks, its lock, and the marker that says a log was ever here.
//! Every write path ends in one `fdatasync`; a write or flush that fails ends the log for this run, it is never
//! retried. It deliberately does not know what the entries mean, and it never repairs: an end behind the last synced
//! record, or a damaged one before it, means that this node may have forgotten a vote, so it is refused instead of
//! truncated.
//!
//! A superblock says how far the records are synced. It is written *after* the flush that made them so, and becomes
//! durable with the next one: so it never claims what a power cut could take away. The marker, a file of its own, holds
//! a third copy of it, written after the others: a log that alone goes back to what it was (a lost flush, a lost
//! rename, a file restored from a backup) is found out by it. What goes back together with the marker only the others
//! can tell: the leader counts on entries that are gone, and the node halts.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proto::{ClusterId, NodeId};
use protobuf::Message;
use raft::eraftpb::{Entry, HardState, Snapshot};
use replication::config::consensus::{Persist, Restored};

use super::RaftError;
use super::superblock::{SUPERBLOCK_BYTES, Superblock};
use crate::fault::point;
use crate::lock_wait::patience;

/// Name of the log inside its directory.
pub const LOG_NAME: &str = "raft.log";
const NEW_NAME: &str = "raft.log.new";
/// Exists once a log was made here; held locked while one is open; holds what was last promised.
pub(super) const MARKER_NAME: &str = "raft.member";
/// Where in the marker the copies of the superblock lie, by turns: a sector each, so that a torn write spares one.
const MARKER_SLOT_BYTES: u64 = 512;
/// Where the records begin: behind two superblocks, a page each.
pub(super) const RECORDS_AT: u64 = 2 * PAGE;
const PAGE: u64 = 4096;
/// Kind and checksum and length.
const HEADER_BYTES: usize = 12;
/// Bytes of one record's payload.
const RECORD_BYTES_MAX: usize = 64 << 20;
/// Bytes of the whole file; a larger one is not ours.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Zeros written ahead, so that most appends change no metadata.
const AHEAD_BYTES: u64 = 256 << 10;

const SNAPSHOT: u32 = 1;
const ENTRY: u32 = 2;
const HARD_STATE: u32 = 3;

/// Whose log it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// Cluster.
    pub cluster: ClusterId,
    /// Node.
    pub node: NodeId,
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    path: PathBuf,
    file: File,
    superblock: Superblock,
    /// End of the records, of those flushed, and of the file.
    end: u64,
    synced: u64,
    allocated: u64,
    /// Checksum of the last record: it seeds the next one's, so a stale successor never fits.
    chain: u32,
    /// Set by the first failure: nothing is written any more.
    failed: bool,
    /// Holds the lock.
    marker: File,
}

impl Log {
    /// Makes a log that holds `restored`. One that is there already is refused.
    pub fn create(directory: &Path, identity: LogIdentity, restored: &Restored) -> Result<Log, RaftError> {
        std::fs::create_dir_all(directory).map_err(|source| io_error(directory, source))?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(|source| io_error(parent, source))?;
        }
        let marker = lock_while(directory, patience())?;
        let path = directory.join(LOG_NAME);
        if path.exists() {
            return Err(RaftError::LogRefused { path, why: "there is a log already".into() });
        }
        let mut log = Self::write_new(directory, identity, restored, marker, 0)?;
        point("raft.marker.before");
        log.mark_promise()?;
        log.marker.sync_all().map_err(|source| io_error(&log.path, source))?;
        point("raft.marker.after");
        Ok(log)
    }

    /// Opens the log of `identity`; None if none was ever made here.
    pub fn open(directory: &Path, identity: LogIdentity) -> Result<Option<(Log, Restored)>, RaftError> {
        let path = directory.join(LOG_NAME);
        if !directory.exists() {
            return Ok(None);
        }
        let marker = lock_while(directory, patience())?;
        remove_if_there(&directory.join(NEW_NAME))?;
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let made = marker.metadata().map_err(|source| io_error(&path, source))?.len() > 0;
                return if made { Err(refuse(&path, "the log is gone")) } else { Ok(None) };
            }
            Err(source) => return Err(io_error(&path, source)),
        };
        let bytes = read_all(&file, &path)?;
        let superblock = newest_superblock(&bytes, &path, identity)?;
        let scan = scan(&bytes, superblock.chain_seed).map_err(|why| refuse(&path, why))?;
        check_promises(&superblock, &scan).map_err(|why| refuse(&path, why))?;
        let promised = read_marker(&marker, identity).map_err(|source| unreadable(&path, source))?;
        for promise in promised.iter() {
            check_marker(promise, &superblock, &scan).map_err(|why| refuse(&path, why))?;
        }
        let mut log = Log {
            directory: directory.to_owned(),
            path,
            file,
            superblock,
            end: scan.end,
            synced: scan.end,
            allocated: scan.end,
            chain: scan.chain,
            failed: false,
            marker,
        };
        // What lies behind the end was never promised; it goes, so that it cannot fit behind a later record.
        let cut = log.file.set_len(scan.end).and_then(|()| log.file.sync_all());
        log.guard(cut)?;
        log.write_superblock(&scan.restored.hard_state)?;
        Ok(Some((log, scan.restored)))
    }

    /// Appends entries and hard state, and flushes if `must_sync`. A snapshot goes through [`Log::replace`].
    pub fn append(&mut self, persist: &Persist) -> Result<(), RaftError> {
        let mut batch = Batch { bytes: Vec::new(), chain: self.chain };
        // The hard state first: a torn tail must not leave entries of a term that this node does not know.
        if let Some(hard_state) = &persist.hard_state {
            batch.push(HARD_STATE, hard_state);
        }
        for entry in &persist.entries {
            batch.push(ENTRY, entry);
        }
        self.write(batch)?;
        if persist.must_sync {
            self.sync()?;
        }
        if let Some(hard_state) = &persist.hard_state {
            (self.superblock.term, self.superblock.vote) = (hard_state.term, hard_state.vote);
        }
        if persist.must_sync { self.mark_synced() } else { Ok(()) }
    }

    /// Notes the commit index without a flush.
    pub fn note_commit(&mut self, hard_state: &HardState) -> Result<(), RaftError> {
        let mut batch = Batch { bytes: Vec::new(), chain: self.chain };
        batch.push(HARD_STATE, hard_state);
        self.write(batch)
    }

    /// True when something was written and not flushed.
    pub fn is_dirty(&self) -> bool {
        self.synced != self.end
    }

    /// Flushes what was noted.
    pub fn flush(&mut self) -> Result<(), RaftError> {
        self.sync()?;
        self.mark_synced()
    }

    /// Puts a new file with exactly `image` in this one's place. The old one stays valid until the rename is durable.
    pub fn replace(&mut self, image: &Restored) -> Result<(), RaftError> {
        self.replace_as(LogIdentity { cluster: self.superblock.cluster, node: self.superblock.node }, image)
    }

    /// The same, for another cluster.
    pub(super) fn replace_as(&mut self, identity: LogIdentity, image: &Restored) -> Result<(), RaftError> {
        if self.failed {
            return Err(self.poisoned());
        }
        let replaced = self
            .marker
            .try_clone()
            .map_err(|source| io_error(&self.path, source))
            .and_then(|marker| Self::write_new(&self.directory, identity, image, marker, self.superblock.sequence));
        match replaced {
            Ok(log) => {
                *self = log;
                self.mark_promise()
            }
            Err(error) => {
                self.failed = true;
                Err(error)
            }
        }
    }

    /// The superblocks count on from `sequence`, so that of two files of one node the newer can be told.
    fn write_new(
        directory: &Path,
        identity: LogIdentity,
        image: &Restored,
        marker: File,
        sequence: u64,
    ) -> Result<Log, RaftError> {
        let new = directory.join(NEW_NAME);
        remove_if_there(&new)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&new)
            .map_err(|source| io_error(&new, source))?;
        let superblock = Superblock { sequence, ..Superblock::new(identity, rand::random()) };
        let mut log = Log {
            directory: directory.to_owned(),
            path: new.clone(),
            file,
            chain: superblock.chain_seed,
            superblock,
            end: RECORDS_AT,
            synced: RECORDS_AT,
            allocated: 0,
            failed: false,
            marker,
        };
        let mut batch = Batch { bytes: Vec::new(), chain: log.chain };
        if let Some(snapshot) = &image.snapshot {
            batch.push(SNAPSHOT, snapshot);
        }
        image.entries.iter().for_each(|entry| batch.push(ENTRY, entry));
        batch.push(HARD_STATE, &image.hard_state);
        log.write(batch)?;
        log.sync()?;
        (log.superblock.term, log.superblock.vote) = (image.hard_state.term, image.hard_state.vote);
        // Both slots. The marker follows once the file is in its place: before that it is nobody's promise.
        log.write_slot()?;
        log.write_slot()?;
        log.sync()?;
        log.path = directory.join(LOG_NAME);
        point("raft.rename.before");
        std::fs::rename(&new, &log.path).map_err(|source| io_error(&log.path, source))?;
        point("raft.rename.after");
        File::open(directory).and_then(|handle| handle.sync_all()).map_err(|source| io_error(directory, source))?;
        point("raft.directory-sync.after");
        Ok(log)
    }

    fn write(&mut self, batch: Batch) -> Result<(), RaftError> {
        if self.failed {
            return Err(self.poisoned());
        }
        let end = self.end + batch.bytes.len() as u64;
        let mut written = Ok(());
        if end > self.allocated {
            written = self.allocate(end + AHEAD_BYTES);
        }
        point("raft.append.before");
        written = written.and_then(|()| self.file.write_all_at(&batch.bytes, self.end));
        self.guard(written)?;
        point("raft.append.after");
        (self.end, self.chain) = (end, batch.chain);
        Ok(())
    }

    /// Writes zeros up to `to`: a full disk shows here, before anything is half written.
    fn allocate(&mut self, to: u64) -> io::Result<()> {
        const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
        while self.allocated < to {
            let count = (PAGE - self.allocated % PAGE).min(to - self.allocated);
            self.file.write_all_at(&ZEROS[..count as usize], self.allocated)?;
            self.allocated += count;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), RaftError> {
        if self.failed {
            return Err(self.poisoned());
        }
        point("raft.sync.before");
        let flushed = self.file.sync_data();
        self.guard(flushed)?;
        point("raft.sync.after");
        self.synced = self.end;
        Ok(())
    }

    fn mark_synced(&mut self) -> Result<(), RaftError> {
        self.write_slot()?;
        self.mark_promise()
    }

    fn mark_promise(&mut self) -> Result<(), RaftError> {
        let at = self.superblock.sequence % 2 * MARKER_SLOT_BYTES;
        let written = self.marker.write_all_at(&self.superblock.encode(), at);
        self.guard(written)
    }

    fn write_slot(&mut self) -> Result<(), RaftError> {
        self.superblock.synced = self.synced;
        self.superblock.sequence += 1;
        let at = self.superblock.sequence % 2 * PAGE;
        point("raft.superblock.before");
        let written = self.file.write_all_at(&self.superblock.encode(), at);
        self.guard(written)?;
        point("raft.superblock.after");
        Ok(())
    }

    /// Writes both slots.
    fn write_superblock(&mut self, hard_state: &HardState) -> Result<(), RaftError> {
        (self.superblock.term, self.superblock.vote) = (hard_state.term, hard_state.vote);
        self.mark_synced()?;
        self.mark_synced()
    }

    fn guard(&mut self, result: io::Result<()>) -> Result<(), RaftError> {
        result.map_err(|source| {
            self.failed = true;
            io_error(&self.path, source)
        })
    }

    fn poisoned(&self) -> RaftError {
        io_error(&self.path, io::Error::other("an earlier write to this log failed"))
    }
}

/// Records that are written with one call.
struct Batch {
    bytes: Vec<u8>,
    chain: u32,
}

impl Batch {
    fn push(&mut self, kind: u32, message: &impl Message) {
        // Writing to memory fails only for a message without a required field, and these have none.
        let payload = message.write_to_bytes().unwrap_or_default();
        let length = payload.len() as u32;
        self.chain = checksum(self.chain, kind, &payload);
        for word in [kind, self.chain, length] {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
        self.bytes.extend_from_slice(&payload);
    }
}

fn checksum(chain: u32, kind: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for word in [chain, kind, payload.len() as u32] {
        hasher.update(&word.to_le_bytes());
    }
    hasher.update(payload);
    hasher.finalize()
}

/// What the records say, up to the first that does not fit.
struct Scan {
    restored: Restored,
    end: u64,
    chain: u32,
}

fn scan(bytes: &[u8], seed: u32) -> Result<Scan, &'static str> {
    let mut scan = Scan { restored: Restored::default(), end: RECORDS_AT, chain: seed };
    while let Some((kind, payload, chain)) = next_record(bytes, scan.end as usize, scan.chain) {
        add_record(&mut scan.restored, kind, payload)?;
        scan.end += (HEADER_BYTES + payload.len()) as u64;
        scan.chain = chain;
    }
    Ok(scan)
}

fn next_record(bytes: &[u8], at: usize, chain: u32) -> Option<(u32, &[u8], u32)> {
    let header = bytes.get(at..at + HEADER_BYTES)?;
    let word = |index: usize| header[index * 4..][..4].iter().rev().fold(0u32, |word, byte| word << 8 | *byte as u32);
    let (kind, sum, length) = (word(0), word(1), word(2) as usize);
    if kind == 0 || length > RECORD_BYTES_MAX {
        return None;
    }
    let from = at + HEADER_BYTES;
    let payload = bytes.get(from..from + length)?;
    (checksum(chain, kind, payload) == sum).then_some((kind, payload, sum))
}

fn add_record(restored: &mut Restored, kind: u32, payload: &[u8]) -> Result<(), &'static str> {
    const UNREADABLE: &str = "it holds an intact record that cannot be read";
    match kind {
        SNAPSHOT => {
            let mut snapshot = Snapshot::default();
            snapshot.merge_from_bytes(payload).map_err(|_| UNREADABLE)?;
            restored.snapshot = Some(snapshot);
            restored.entries.clear();
        }
        ENTRY => {
            let mut entry = Entry::default();
            entry.merge_from_bytes(payload).map_err(|_| UNREADABLE)?;
            if let Some(first) = restored.entries.first().map(|first| first.index) {
                let keep = entry.index.checked_sub(first).ok_or("an entry replaces one that was compacted")?;
                if keep > restored.entries.len() as u64 {
                    return Err("an entry is missing");
                }
                restored.entries.truncate(keep as usize);
            }
            restored.entries.push(entry);
        }
        HARD_STATE => {
            let mut hard_state = HardState::default();
            hard_state.merge_from_bytes(payload).map_err(|_| UNREADABLE)?;
            restored.hard_state = hard_state;
        }
        _ => return Err("it holds a kind of record that this version of tandem does not know"),
    }
    Ok(())
}

/// The records reach at least as far as the superblock says they were flushed, in bytes, term and vote.
fn check_promises(superblock: &Superblock, scan: &Scan) -> Result<(), &'static str> {
    let hard_state = &scan.restored.hard_state;
    if scan.end < superblock.synced {
        return Err(
            "its intact part ends before the last record that was flushed: it is damaged, or the disk lost a flush",
        );
    }
    if (hard_state.term, hard_state.vote != 0) < (superblock.term, superblock.vote != 0) {
        return Err("its term or vote is older than the one this node has given");
    }
    if hard_state.term == superblock.term && superblock.vote != 0 && hard_state.vote != superblock.vote {
        return Err("its vote is not the one this node has given");
    }
    Ok(())
}

/// What the marker promises, against the log found. Its two copies differ by one flush at most, so each holds alone.
fn check_marker(promise: &Superblock, superblock: &Superblock, scan: &Scan) -> Result<(), &'static str> {
    if promise.chain_seed == superblock.chain_seed {
        return check_promises(promise, scan);
    }
    // Of another file: of the one before, when a crash came between the replacement and its mark.
    if promise.sequence > superblock.sequence {
        return Err(
            "it is an older log than the one this node had last: the disk lost its replacement, or it was restored",
        );
    }
    check_promises(&Superblock { synced: 0, ..promise.clone() }, scan)
}

/// The copies of the superblock in the marker that are intact and of this node; a damaged one promises nothing.
fn read_marker(marker: &File, identity: LogIdentity) -> io::Result<Vec<Superblock>> {
    let mut bytes = [0; 2 * MARKER_SLOT_BYTES as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match marker.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    let slots = bytes.chunks(MARKER_SLOT_BYTES as usize).filter_map(Superblock::decode);
    let ours = |slot: &Superblock| (slot.cluster, slot.node) == (identity.cluster, identity.node);
    Ok(slots.filter(|slot| slot.is_readable() && ours(slot)).collect())
}

fn newest_superblock(bytes: &[u8], path: &Path, identity: LogIdentity) -> Result<Superblock, RaftError> {
    let slot = |at: u64| bytes.get(at as usize..at as usize + SUPERBLOCK_BYTES).and_then(Superblock::decode);
    let newest = [slot(0), slot(PAGE)].into_iter().flatten().max_by_key(|superblock| superblock.sequence);
    let superblock = newest.ok_or_else(|| refuse(path, "neither superblock is intact"))?;
    if !superblock.is_readable() {
        let why =
            format!("its format version {} is newer than this software; install the newer tandem", superblock.version);
        return Err(RaftError::LogRefused { path: path.to_owned(), why });
    }
    let found = LogIdentity { cluster: superblock.cluster, node: superblock.node };
    if found != identity {
        // Between its steps a recovery of the quorum leaves a log of the new cluster: this may be the last survivor.
        let recovering = if found.node == identity.node {
            "; if `tandem recover-quorum` was interrupted on this machine, repeat it and nothing else; otherwise it was \
             put here in place of this node's own"
        } else {
            ""
        };
        let why = format!(
            "it belongs to node {} of cluster {}, and this is node {} of cluster {}{recovering}",
            found.node, found.cluster, identity.node, identity.cluster
        );
        return Err(refuse(path, &why));
    }
    Ok(superblock)
}

fn read_all(file: &File, path: &Path) -> Result<Vec<u8>, RaftError> {
    let length = file.metadata().map_err(|source| io_error(path, source))?.len();
    if length > FILE_BYTES_MAX {
        return Err(refuse(path, "it is larger than any log of ours"));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|source| unreadable(path, source))?;
    Ok(bytes)
}

/// One process at a time: two that vote with one log could vote twice. `look_again` is asked while another one holds
/// it.
pub(super) fn lock_while(directory: &Path, mut look_again: impl FnMut() -> bool) -> Result<File, RaftError> {
    let path = directory.join(MARKER_NAME);
    let marker = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| io_error(&path, source))?;
    loop {
        match marker.try_lock() {
            Ok(()) => return Ok(marker),
            Err(TryLockError::WouldBlock) if look_again() => {}
            Err(TryLockError::WouldBlock) => return Err(RaftError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(io_error(&path, source)),
        }
    }
}

fn remove_if_there(path: &Path) -> Result<(), RaftError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error(path, error)),
        _ => Ok(()),
    }
}

fn io_error(path: &Path, source: io::Error) -> RaftError {
    RaftError::Io { path: path.to_owned(), source }
}

/// A disk that cannot give back what it holds has damaged it. Another failure, of a right for example, says nothing
/// about the log.
pub(super) fn unreadable(path: &Path, source: io::Error) -> RaftError {
    if source.raw_os_error() == Some(nix::errno::Errno::EIO as i32) {
        return refuse(path, "the disk cannot read it (if only the way to the disk failed, start this node again)");
    }
    io_error(path, source)
}

/// Damage that may have cost a promise.
pub(super) fn refuse(path: &Path, why: &str) -> RaftError {
    let why = format!(
        "{why}; with it this node must not vote. It can come back as a new node, its volumes copied anew: run `tandem \
         node reset --config FILE` on this machine, `tandem node remove NODE` on another one, then `tandem node join \
         MEMBER` here"
    );
    RaftError::LogRefused { path: path.to_owned(), why }
}
