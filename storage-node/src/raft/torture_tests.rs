//! Torture of a real log: hundreds of entries, compactions, bits of its superblocks, marker and records, cuts of its
//! end, and content that goes back to what it was. A damaged log opens with exactly what was synced, or it is refused
//! with the words that say how to rejoin; never with less.
//!
//! Each trial opens the log, and most of them flush. So a plain run takes a sample that touches every byte of the small
//! structures; with `TANDEM_RAFT_TORTURE` set, every bit of them, and far more of the records.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use proto::{ClusterId, NodeId};
use raft::eraftpb::{Entry, HardState};
use replication::config::ClusterState;
use replication::config::consensus::{Persist, Restored};
use tempfile::TempDir;

use super::RaftError;
use super::log::{LOG_NAME, Log, LogIdentity, MARKER_NAME, RECORDS_AT};
use super::superblock::{SUPERBLOCK_BYTES, Superblock};

const ME: LogIdentity = LogIdentity { cluster: ClusterId(7), node: NodeId(1) };
const ENTRIES: u64 = 600;
/// Bits of the records that are flipped, in a sample and in all.
const RECORD_FLIPS: [usize; 2] = [3_000, 12_000];
/// Bytes before the end of which each is a place to cut, in a sample and in all.
const CUTS: [usize; 2] = [300, 3_000];
const PAGE: usize = 4096;
/// Where in the marker the second copy lies.
const SECOND_MARK_AT: usize = 512;

/// One moment of a log's life: the bytes of its file after a sync, and what was synced.
struct Moment {
    bytes: Vec<u8>,
    synced: Restored,
}

/// A log with its history.
struct Subject {
    directory: TempDir,
    moments: Vec<Moment>,
    marker: Vec<u8>,
}

/// Whether everything is tried and not a sample.
fn is_full() -> bool {
    std::env::var_os("TANDEM_RAFT_TORTURE").is_some()
}

fn sampled([sample, all]: [usize; 2]) -> usize {
    if is_full() { all } else { sample }
}

/// The bits of `bytes` bytes: one of each byte, not always the same one, or all.
fn bits(bytes: usize) -> impl Iterator<Item = usize> {
    (0..bytes * 8).filter(|bit| is_full() || bit % 8 == (bit / 8) % 8)
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

impl Subject {
    /// A node's life: batches of entries, terms and votes that rise, and a compaction every 200 entries. Each sync is a
    /// moment if `keep_all`, else only the last.
    fn live(keep_all: bool) -> Self {
        let directory = TempDir::new().unwrap();
        let mut image = Restored::founding(&[NodeId(1)], &ClusterState::default());
        let mut log = Log::create(directory.path(), ME, &image).unwrap();
        let mut moments = Vec::new();
        let mut random = 99;
        let mut next = 2;
        while next < ENTRIES {
            let count = 1 + splitmix(&mut random) % 6;
            let term = 1 + next / 50;
            let entries: Vec<Entry> = (next..next + count)
                .map(|index| {
                    let length = (splitmix(&mut random) % 90) as usize;
                    Entry { index, term, data: vec![index as u8; length].into(), ..Entry::default() }
                })
                .collect();
            next += count;
            let hard_state = HardState { term, vote: 1 + term % 3, commit: next - 2, ..HardState::default() };
            image.hard_state = hard_state.clone();
            image.entries.extend(entries.iter().cloned());
            let persist = Persist { number: 1, hard_state: Some(hard_state), entries, snapshot: None, must_sync: true };
            log.append(&persist).unwrap();
            if next / 200 != (next - count) / 200 {
                let snapshot = image.snapshot.as_mut().unwrap().mut_metadata();
                (snapshot.index, snapshot.term) = (next - 1, term);
                let kept = image.entries.len().saturating_sub(20);
                image.entries.drain(..kept);
                log.replace(&image).unwrap();
            }
            if keep_all || next >= ENTRIES {
                moments
                    .push(Moment { bytes: fs::read(directory.path().join(LOG_NAME)).unwrap(), synced: image.clone() });
            }
        }
        drop(log);
        let marker = fs::read(directory.path().join(MARKER_NAME)).unwrap();
        Self { directory, moments, marker }
    }

    /// A short life, in a file that ends soon behind its records: small enough to try every byte of it.
    fn small() -> Self {
        let directory = TempDir::new().unwrap();
        let mut synced = Restored::founding(&[NodeId(1)], &ClusterState::default());
        let mut log = Log::create(directory.path(), ME, &synced).unwrap();
        for index in 2..6 {
            let entry = Entry { index, term: index, data: vec![index as u8; 40].into(), ..Entry::default() };
            synced.entries.push(entry.clone());
            synced.hard_state = HardState { term: index, vote: index % 2, commit: index - 1, ..HardState::default() };
            let hard_state = Some(synced.hard_state.clone());
            log.append(&Persist { number: 1, hard_state, entries: vec![entry], snapshot: None, must_sync: true })
                .unwrap();
        }
        drop(log);
        let bytes = fs::read(directory.path().join(LOG_NAME)).unwrap();
        let marker = fs::read(directory.path().join(MARKER_NAME)).unwrap();
        let mut subject = Self { directory, moments: vec![Moment { bytes, synced }], marker };
        let end = subject.synced_end();
        subject.moments[0].bytes.truncate(end + 64);
        subject.restore();
        subject
    }

    fn last(&self) -> &Moment {
        self.moments.last().unwrap()
    }

    /// The place behind the last record that was synced.
    fn synced_end(&self) -> usize {
        let slots =
            [0, PAGE].map(|at| Superblock::decode(&self.last().bytes[at..at + SUPERBLOCK_BYTES]).unwrap().synced);
        slots.into_iter().max().unwrap() as usize
    }

    /// Puts both files as they were at the end of the log's life.
    fn restore(&self) {
        fs::write(self.directory.path().join(LOG_NAME), &self.last().bytes).unwrap();
        fs::write(self.directory.path().join(MARKER_NAME), &self.marker).unwrap();
    }

    fn open(&self) -> Result<Restored, RaftError> {
        Log::open(self.directory.path(), ME).map(|opened| opened.expect("a log").1)
    }

    /// True if it opened, with all that was synced; false if it was refused with the way back. Nothing else may happen.
    fn judge(&self, what: &str) -> bool {
        match self.open() {
            Ok(found) => {
                let synced = &self.last().synced;
                assert!(found.entries == synced.entries, "{what}: other entries");
                assert!(found.snapshot == synced.snapshot, "{what}: another snapshot");
                let promise = |state: &HardState| (state.term, state.vote);
                assert_eq!(promise(&found.hard_state), promise(&synced.hard_state), "{what}");
                self.restore();
                true
            }
            Err(error) => {
                let text = error.to_string();
                let says_how = text.contains("must not vote")
                    && text.contains("`tandem node reset --config FILE`")
                    && text.contains("`tandem node remove NODE`")
                    && text.contains("`tandem node join MEMBER`");
                // A flip in its number makes a format of the future: there the way out is the newer program.
                assert!(says_how || text.contains("install the newer tandem"), "{what}: {text}");
                false
            }
        }
    }

    /// Flips one bit, judges, and flips it back.
    fn flip(&self, name: &str, bit: usize) -> bool {
        let path = self.directory.path().join(name);
        let at = (bit / 8) as u64;
        let toggle = || {
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1 << (bit % 8)], at).unwrap();
        };
        toggle();
        let opened = self.judge(&format!("{name}, bit {bit}"));
        if !opened {
            toggle();
        }
        opened
    }
}

#[test]
fn a_flipped_bit_in_any_byte_of_a_superblock_leaves_all_that_was_synced() {
    let subject = Subject::live(false);
    for slot in [0, PAGE] {
        for bit in bits(SUPERBLOCK_BYTES) {
            assert!(subject.flip(LOG_NAME, slot * 8 + bit), "the other slot serves: slot at {slot}, bit {bit}");
        }
    }
}

#[test]
fn a_flip_in_any_byte_of_a_small_log_is_refused_in_the_records_and_harmless_elsewhere() {
    let subject = Subject::small();
    let records = RECORDS_AT as usize..subject.synced_end();
    let [mut refused, mut survived] = [0; 2];
    for at in 0..subject.last().bytes.len() {
        let in_superblock = at % PAGE < SUPERBLOCK_BYTES && at < records.start;
        let matters = records.contains(&at) || in_superblock;
        // Nothing is ever written to the rest of a superblock's page.
        if !matters && !is_full() && at < records.start && at % 13 != 0 {
            continue;
        }
        for bit in (0..8).filter(|bit| *bit == at % 8 || is_full() && matters) {
            let opened = subject.flip(LOG_NAME, at * 8 + bit);
            assert_eq!(opened, !records.contains(&at), "byte {at}, bit {bit}");
            *(if opened { &mut survived } else { &mut refused }) += 1;
        }
    }
    println!("{} bytes: {refused} flips refused, {survived} survived whole", subject.last().bytes.len());
    assert!(refused >= records.len() && survived > 2 * SUPERBLOCK_BYTES);
}

#[test]
fn a_sector_of_the_records_that_was_never_written_is_refused() {
    let subject = Subject::live(false);
    let end = subject.synced_end();
    for from in (RECORDS_AT as usize..end).step_by(512) {
        let mut bytes = subject.last().bytes.clone();
        bytes[from..end.min(from + 512)].fill(0);
        fs::write(subject.directory.path().join(LOG_NAME), &bytes).unwrap();
        assert!(!subject.judge(&format!("no sector at {from}")));
    }
}

#[test]
fn a_log_of_another_node_or_cluster_is_refused_with_or_without_its_marker() {
    let subject = Subject::small();
    for other in [LogIdentity { node: NodeId(2), ..ME }, LogIdentity { cluster: ClusterId(8), ..ME }] {
        let elsewhere = TempDir::new().unwrap();
        drop(
            Log::create(elsewhere.path(), other, &Restored::founding(&[other.node], &ClusterState::default())).unwrap(),
        );
        for name in [LOG_NAME, MARKER_NAME] {
            fs::copy(elsewhere.path().join(name), subject.directory.path().join(name)).unwrap();
            assert!(!subject.judge(&format!("{name} of {other:?}")));
        }
        subject.restore();
        // Its marker alone promises nothing about this log.
        fs::copy(elsewhere.path().join(MARKER_NAME), subject.directory.path().join(MARKER_NAME)).unwrap();
        assert!(subject.judge(&format!("the marker of {other:?}")));
    }
}

#[test]
fn a_flipped_bit_in_each_superblock_is_survived_or_refused() {
    let subject = Subject::live(false);
    let mut random = 5;
    for _ in 0..sampled([100, 1_000]) {
        let [first, second] = [(); 2].map(|()| splitmix(&mut random) as usize % (SUPERBLOCK_BYTES * 8));
        let path = subject.directory.path().join(LOG_NAME);
        let mut bytes = subject.last().bytes.clone();
        for (slot, bit) in [(0, first), (PAGE, second)] {
            bytes[slot + bit / 8] ^= 1 << (bit % 8);
        }
        fs::write(path, bytes).unwrap();
        assert!(!subject.judge(&format!("bits {first} and {second}")), "no superblock is left");
        subject.restore();
    }
}

#[test]
fn a_flipped_bit_in_any_byte_of_the_marker_is_harmless() {
    let subject = Subject::live(false);
    assert_eq!(subject.marker.len(), SECOND_MARK_AT + SUPERBLOCK_BYTES);
    // Its two copies of the superblock; between them nothing is ever written, of which all bits are all of one kind.
    let between = (SUPERBLOCK_BYTES * 8..SECOND_MARK_AT * 8).step_by(sampled([997, 1]));
    let second = bits(SUPERBLOCK_BYTES).map(|bit| SECOND_MARK_AT * 8 + bit);
    for bit in bits(SUPERBLOCK_BYTES).chain(between).chain(second) {
        assert!(subject.flip(MARKER_NAME, bit), "bit {bit}");
    }
}

#[test]
fn flipped_bits_all_over_the_records_are_refused_and_behind_them_harmless() {
    let subject = Subject::live(false);
    let (from, end) = (RECORDS_AT as usize, subject.synced_end());
    let mut random = 7;
    for _ in 0..sampled(RECORD_FLIPS) {
        let bit = from * 8 + splitmix(&mut random) as usize % ((end - from) * 8);
        assert!(!subject.flip(LOG_NAME, bit), "a damaged record was taken: bit {bit}");
    }
    let length = subject.last().bytes.len();
    for _ in 0..sampled([40, 300]) {
        let bit = end * 8 + splitmix(&mut random) as usize % ((length - end) * 8);
        assert!(subject.flip(LOG_NAME, bit), "zeros behind the end are not needed: bit {bit}");
    }
}

#[test]
fn an_end_cut_off_within_the_last_records_is_refused_and_behind_them_harmless() {
    let subject = Subject::live(false);
    let end = subject.synced_end();
    let path = subject.directory.path().join(LOG_NAME);
    let before = (0..RECORDS_AT as usize).step_by(61).chain(end - sampled(CUTS)..end);
    for length in before.chain((end..end + 200).step_by(sampled([20, 1]))) {
        fs::write(&path, &subject.last().bytes[..length]).unwrap();
        assert_eq!(subject.judge(&format!("cut at {length}")), length >= end, "cut at {length}");
    }
}

/// The file alone goes back to an earlier sync, superblocks and all: a lost flush, a lost rename, a restored file.
#[test]
fn a_log_that_goes_back_to_any_earlier_sync_is_refused() {
    let subject = Subject::live(true);
    assert!(subject.moments.len() > 100);
    let path = subject.directory.path().join(LOG_NAME);
    for (number, moment) in subject.moments.iter().enumerate() {
        fs::write(&path, &moment.bytes).unwrap();
        let is_last = number + 1 == subject.moments.len();
        assert_eq!(subject.judge(&format!("back to sync {number}")), is_last, "sync {number}");
    }
}

#[test]
fn records_that_go_back_under_a_newer_superblock_are_refused() {
    let subject = Subject::live(true);
    let path = subject.directory.path().join(LOG_NAME);
    // Without the marker's help.
    fs::write(subject.directory.path().join(MARKER_NAME), [0]).unwrap();
    for (number, moment) in subject.moments.iter().rev().skip(1).step_by(5).enumerate() {
        let mut bytes = moment.bytes.clone();
        bytes[..RECORDS_AT as usize].copy_from_slice(&subject.last().bytes[..RECORDS_AT as usize]);
        fs::write(&path, &bytes).unwrap();
        assert!(!subject.judge(&format!("records of an earlier moment {number}")));
    }
}

#[test]
fn missing_files_are_refused_or_not_needed() {
    let subject = Subject::live(false);
    let [log, marker] = [LOG_NAME, MARKER_NAME].map(|name| subject.directory.path().join(name));
    fs::remove_file(&marker).unwrap();
    assert!(subject.judge("the marker is missing"));
    fs::remove_file(&log).unwrap();
    assert!(!subject.judge("the log is missing"));
    assert!(!subject.judge("and stays so"));
    fs::write(&log, b"").unwrap();
    assert!(!subject.judge("an empty log"));
    // With both gone nothing here tells that there ever was one: the node's identity does (see the driver).
    let empty = TempDir::new().unwrap();
    assert!(Log::open(Path::new(empty.path()), ME).unwrap().is_none());
}
