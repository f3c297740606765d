//! Torture of the log's file: every cut, every flipped bit, a full disk.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use proto::{ClusterId, NodeId};
use raft::eraftpb::{Entry, HardState};
use replication::config::ClusterState;
use replication::config::consensus::{Consensus, ConsensusConfig, LOG_ENTRIES_MAX, Persist, Restored};
use tempfile::TempDir;

use super::log::{LOG_NAME, Log, LogIdentity, RECORDS_AT, lock_while, unreadable};
use super::superblock::{SUPERBLOCK_BYTES, Superblock};
use super::{RaftError, RaftError::LogRefused};

const ME: LogIdentity = LogIdentity { cluster: ClusterId(7), node: NodeId(1) };

fn founding() -> Restored {
    Restored::founding(&[NodeId(1)], &ClusterState::default())
}

fn entry(index: u64, data: &[u8]) -> Entry {
    Entry { index, term: 1, data: data.to_vec().into(), ..Entry::default() }
}

fn persist(entries: Vec<Entry>, hard_state: Option<(u64, u64, u64)>, must_sync: bool) -> Persist {
    let hard_state = hard_state.map(|(term, vote, commit)| HardState { term, vote, commit, ..HardState::default() });
    Persist { number: 1, hard_state, entries, snapshot: None, must_sync }
}

fn fresh() -> (TempDir, Log) {
    let directory = TempDir::new().unwrap();
    let log = Log::create(directory.path(), ME, &founding()).unwrap();
    (directory, log)
}

fn open(directory: &Path) -> Result<Restored, RaftError> {
    Log::open(directory, ME).map(|opened| opened.expect("a log").1)
}

/// A copy of the directory whose log is `bytes`.
fn with_bytes(bytes: &[u8]) -> TempDir {
    let copy = TempDir::new().unwrap();
    fs::write(copy.path().join(LOG_NAME), bytes).unwrap();
    fs::write(copy.path().join("raft.member"), [0]).unwrap();
    copy
}

fn bytes_of(directory: &Path) -> Vec<u8> {
    fs::read(directory.join(LOG_NAME)).unwrap()
}

fn synced_of(bytes: &[u8]) -> usize {
    let slots = [0, 4096].map(|at| Superblock::decode(&bytes[at..at + SUPERBLOCK_BYTES]).unwrap().synced);
    slots.into_iter().max().unwrap() as usize
}

fn assert_must_rejoin(result: Result<Restored, RaftError>, what: &str) {
    match result {
        Err(LogRefused { why, .. }) => {
            assert!(
                why.contains("must not vote")
                    && why.contains("`tandem node reset")
                    && why.contains("`tandem node join"),
                "{what}: {why}"
            );
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn what_was_appended_comes_back() {
    let (directory, mut log) = fresh();
    log.append(&persist(vec![entry(2, b"two"), entry(3, b"three")], Some((1, 1, 2)), true)).unwrap();
    log.append(&persist(vec![entry(3, b"other"), entry(4, b"four")], Some((2, 3, 3)), true)).unwrap();
    log.note_commit(&HardState { term: 2, vote: 3, commit: 4, ..HardState::default() }).unwrap();
    drop(log);
    for _ in 0..2 {
        let restored = open(directory.path()).unwrap();
        assert_eq!(restored.snapshot, founding().snapshot);
        assert_eq!(restored.entries, [entry(2, b"two"), entry(3, b"other"), entry(4, b"four")]);
        assert_eq!(restored.hard_state, HardState { term: 2, vote: 3, commit: 4, ..HardState::default() });
    }
}

/// What a power cut during a flush leaves: any part of the records, and the superblock of before.
#[test]
fn a_torn_unsynced_tail_is_cut_off_at_every_byte_and_the_node_starts() {
    let (directory, mut log) = fresh();
    let kept = entry(2, b"");
    log.append(&persist(vec![kept.clone()], Some((1, 1, 1)), true)).unwrap();
    let synced = synced_of(&bytes_of(directory.path()));
    let torn = [3, 4].map(|index| Entry { term: 5, ..entry(index, b"") });
    log.append(&persist(torn.to_vec(), Some((5, 2, 4)), false)).unwrap();
    drop(log);
    let bytes = bytes_of(directory.path());
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    assert!(end > synced + 20);
    let starts = |bytes: &[u8], what: &str| {
        let restored = open(with_bytes(bytes).path()).unwrap();
        assert_eq!(restored.entries[0], kept, "{what}");
        assert!(restored.entries.len() < 3, "{what}");
        let config = ConsensusConfig {
            node: NodeId(1),
            election_ticks: 10,
            heartbeat_ticks: 2,
            seed: 1,
            log_entries_max: LOG_ENTRIES_MAX,
        };
        if let Err(error) = Consensus::new(config, restored) {
            panic!("{what}: {error}");
        }
    };
    for at in synced..end {
        starts(&bytes[..at], &format!("cut at {at}"));
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        starts(&flipped, &format!("flip at {at}"));
    }
}

#[test]
fn an_end_before_the_last_synced_byte_is_refused_at_every_byte() {
    let (directory, mut log) = fresh();
    log.append(&persist(vec![entry(2, b"promised")], Some((3, 1, 1)), true)).unwrap();
    drop(log);
    let bytes = bytes_of(directory.path());
    let synced = synced_of(&bytes);
    for cut in RECORDS_AT as usize..synced {
        assert_must_rejoin(open(with_bytes(&bytes[..cut]).path()), &format!("cut at {cut}"));
        let mut zeroed = bytes.clone();
        zeroed[cut..].fill(0);
        // Bytes that were zero anyway are no damage.
        if zeroed[..synced] != bytes[..synced] {
            assert_must_rejoin(open(with_bytes(&zeroed).path()), &format!("lost flush from {cut}"));
        }
    }
    open(with_bytes(&bytes).path()).unwrap();
}

#[test]
fn every_flipped_bit_in_the_synced_part_is_refused() {
    let (directory, mut log) = fresh();
    log.append(&persist(vec![entry(2, b"promised")], Some((3, 1, 1)), true)).unwrap();
    drop(log);
    let bytes = bytes_of(directory.path());
    for at in RECORDS_AT as usize..synced_of(&bytes) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        assert_must_rejoin(open(with_bytes(&flipped).path()), &format!("flip at {at}"));
    }
}

#[test]
fn one_damaged_superblock_is_survived_and_two_are_refused() {
    let (directory, mut log) = fresh();
    log.append(&persist(vec![entry(2, b"promised")], Some((3, 1, 1)), true)).unwrap();
    drop(log);
    let bytes = bytes_of(directory.path());
    for at in 0..SUPERBLOCK_BYTES {
        let mut one = bytes.clone();
        one[at] ^= 0x80;
        assert_eq!(open(with_bytes(&one).path()).unwrap().entries.len(), 1);
        one[4096 + at] ^= 0x80;
        assert_must_rejoin(open(with_bytes(&one).path()), &format!("superblocks at {at}"));
    }
}

#[test]
fn a_vote_older_than_the_one_given_is_refused() {
    let (directory, mut log) = fresh();
    log.append(&persist(vec![], Some((3, 2, 1)), true)).unwrap();
    drop(log);
    let bytes = bytes_of(directory.path());
    let mut superblock = Superblock::decode(&bytes[..SUPERBLOCK_BYTES]).unwrap();
    for (term, vote) in [(4, 0), (3, 1)] {
        (superblock.term, superblock.vote, superblock.sequence) = (term, vote, 1000);
        let mut changed = bytes.clone();
        changed[..SUPERBLOCK_BYTES].copy_from_slice(&superblock.encode());
        assert_must_rejoin(open(with_bytes(&changed).path()), "an older promise");
    }
}

#[test]
fn a_stale_record_behind_a_cut_never_fits_again() {
    let (directory, mut log) = fresh();
    log.append(&persist(vec![entry(2, b"aaaa"), entry(3, b"bbbb")], None, false)).unwrap();
    drop(log);
    let mut bytes = bytes_of(directory.path());
    let at = bytes.windows(4).position(|window| window == b"aaaa").unwrap();
    bytes[at] = b'x';
    let copy = with_bytes(&bytes);
    let (mut log, restored) = Log::open(copy.path(), ME).unwrap().unwrap();
    assert!(restored.entries.is_empty());
    log.append(&persist(vec![entry(2, b"aaaa")], None, true)).unwrap();
    drop(log);
    assert_eq!(open(copy.path()).unwrap().entries, [entry(2, b"aaaa")]);
}

#[test]
fn a_replacement_that_did_not_finish_leaves_the_old_log() {
    let (directory, mut log) = fresh();
    log.append(&persist(vec![entry(2, b"old")], None, true)).unwrap();
    drop(log);
    fs::write(directory.path().join("raft.log.new"), b"half").unwrap();
    assert_eq!(open(directory.path()).unwrap().entries, [entry(2, b"old")]);
    assert!(!directory.path().join("raft.log.new").exists());
}

#[test]
fn a_replacement_holds_exactly_its_image_and_goes_on() {
    let (directory, mut log) = fresh();
    log.append(&persist((2..200).map(|index| entry(index, &[7; 900])).collect(), None, true)).unwrap();
    let mut image = founding();
    image.entries = vec![entry(2, b"tail")];
    log.replace(&image).unwrap();
    log.append(&persist(vec![entry(3, b"next")], None, true)).unwrap();
    drop(log);
    assert_eq!(open(directory.path()).unwrap().entries, [entry(2, b"tail"), entry(3, b"next")]);
}

#[test]
fn a_missing_log_is_refused_and_a_new_place_is_not() {
    let (directory, log) = fresh();
    drop(log);
    fs::remove_file(directory.path().join(LOG_NAME)).unwrap();
    assert_must_rejoin(Log::open(directory.path(), ME).map(|_| Restored::default()), "missing");
    let empty = TempDir::new().unwrap();
    assert!(Log::open(empty.path(), ME).unwrap().is_none());
    assert!(Log::open(&empty.path().join("nowhere"), ME).unwrap().is_none());
}

#[test]
fn a_second_user_another_node_and_a_newer_format_are_refused() {
    let (directory, log) = fresh();
    assert!(matches!(lock_while(directory.path(), || false), Err(RaftError::InUse { .. })));
    // A former run that is still ending is waited for.
    let (mut log, mut looks) = (Some(log), 0);
    let patience = || {
        looks += 1;
        if looks == 3 {
            log = None;
        }
        looks < 10
    };
    drop(lock_while(directory.path(), patience).unwrap());
    assert_eq!(looks, 3);
    for other in [LogIdentity { cluster: ClusterId(8), ..ME }, LogIdentity { node: NodeId(2), ..ME }] {
        let result = Log::open(directory.path(), other);
        assert!(matches!(&result, Err(LogRefused { why, .. }) if why.contains("belongs to node 1")));
        assert_must_rejoin(result.map(|_| Restored::default()), "another's");
    }
    let mut superblock = Superblock::new(ME, 1);
    (superblock.version, superblock.sequence) = (99, 1000);
    let file = OpenOptions::new().write(true).open(directory.path().join(LOG_NAME)).unwrap();
    file.write_all_at(&superblock.encode(), 0).unwrap();
    assert!(matches!(open(directory.path()), Err(LogRefused { why, .. }) if why.contains("newer")));
}

#[test]
fn a_log_that_the_disk_cannot_read_is_refused_and_a_missing_right_is_only_told() {
    use nix::errno::Errno::{EACCES, EIO};
    let told = |errno| unreadable(Path::new(LOG_NAME), std::io::Error::from_raw_os_error(errno as i32));
    assert_must_rejoin(Err(told(EIO)), "a bad sector");
    assert!(matches!(told(EACCES), RaftError::Io { .. }));
}

/// The limit on file size is the process's, so the test runs itself again under one. `EFBIG` takes the way of `ENOSPC`.
#[test]
fn a_full_disk_ends_the_log_and_loses_nothing_that_was_synced() {
    let (_, module) = module_path!().split_once("::").unwrap();
    let name = format!("{module}::a_full_disk_ends_the_log_and_loses_nothing_that_was_synced");
    const LIMITED: &str = "TANDEM_TEST_FILE_SIZE_LIMITED";
    if std::env::var_os(LIMITED).is_none() {
        let run = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 800 && exec \"$0\" --exact \"$1\""])
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(LIMITED, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        // A filter that matches nothing succeeds too.
        assert!(run.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&run.stderr));
        return;
    }
    let (directory, mut log) = fresh();
    let mut synced = 1;
    let error = loop {
        assert!(synced < 10_000, "the limit is not in force");
        match log.append(&persist(vec![entry(synced + 1, &[7; 5000])], None, true)) {
            Ok(()) => synced += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, RaftError::Io { .. }) && synced > 5);
    assert!(log.append(&persist(vec![], Some((9, 1, 1)), true)).is_err(), "never retried into success");
    assert!(log.replace(&founding()).is_err());
    drop(log);
    let restored = open(directory.path()).unwrap();
    assert_eq!(restored.entries.last().map(|entry| entry.index), Some(synced));
}
