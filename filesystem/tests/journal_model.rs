//! Transactions laid out by the journal's writer into a log in memory, cut off and torn at random, and recovered: what
//! comes out is the state after the transactions whose commit block was written, never something between.

use std::collections::{BTreeMap, BTreeSet};

use filesystem::journal::{
    CommitTime, JournalMap, JournalSuperblock, LogIndex, LogSpace, NewTransaction, Outcome, Recovery, Step, writer,
};
use filesystem::layout::Corrupt;
use filesystem::{BlockNumber, BlockRun, TransactionId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BLOCK_BYTES: usize = 1024;
const LOG_BLOCKS: usize = 64;
const HOME_BLOCKS: u64 = 40;
const UUID: [u8; 16] = [6; 16];

type Homes = BTreeMap<u64, Vec<u8>>;

struct Model {
    superblock: JournalSuperblock,
    log: Vec<Vec<u8>>,
    space: LogSpace,
    /// The state after each transaction in the log, after that before the log; a revoked block is in none.
    states: Vec<Homes>,
    /// Where the transaction after each state starts.
    starts: Vec<LogIndex>,
    first: TransactionId,
    on_disk: Homes,
}

fn new_superblock(sequence: TransactionId) -> JournalSuperblock {
    let mut block = vec![0; BLOCK_BYTES];
    for (at, value) in [(0, 0xc03b_3998_u32), (4, 4), (12, BLOCK_BYTES as u32), (16, LOG_BLOCKS as u32), (20, 1)] {
        block[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    block[48..64].copy_from_slice(&UUID);
    let mut superblock = JournalSuperblock::decode(&block, BLOCK_BYTES as u32, LOG_BLOCKS as u32).unwrap();
    superblock.set_written_form();
    superblock.set_empty(sequence);
    superblock
}

impl Model {
    fn new(random: &mut ChaCha8Rng) -> Self {
        let first = TransactionId(if random.random() { u32::MAX - random.random_range(0..9) } else { 17 });
        let mut superblock = new_superblock(first);
        let start = LogIndex(random.random_range(1..LOG_BLOCKS as u32));
        superblock.set_start(start, first);
        let space = LogSpace::empty(superblock.ring(), start).unwrap();
        let mut log = vec![vec![0; BLOCK_BYTES]; LOG_BLOCKS];
        log.iter_mut().for_each(|block| random.fill(&mut block[..]));
        Self { superblock, log, space, states: vec![Homes::new()], starts: vec![start], first, on_disk: Homes::new() }
    }

    /// Writes the oldest transactions' blocks home and releases their space.
    fn checkpoint(&mut self, count: usize) {
        self.on_disk.extend(self.states[count].clone());
        self.states.drain(..count);
        self.starts.drain(..count);
        self.first = TransactionId(self.first.0.wrapping_add(count as u32));
        self.superblock.set_start(self.starts[0], self.first);
        assert!(self.space.release_to(self.starts[0]));
    }

    fn expected(&self, committed: usize) -> Homes {
        let mut homes = self.on_disk.clone();
        homes.extend(self.states[committed].clone());
        homes
    }

    fn recover(&self, log: &[Vec<u8>]) -> Result<(Outcome, Homes), Corrupt> {
        let run = BlockRun::new(BlockNumber(1000), LOG_BLOCKS as u32);
        let map = JournalMap::new(&[(LogIndex(0), run)]).unwrap();
        let mut recovery = Recovery::new(self.superblock.clone(), map, 2000);
        let mut steps = 0;
        while let Step::Read { at, count } = recovery.step() {
            recovery.feed(&log[at.0 as usize..(at.0 + count) as usize].concat())?;
            steps += 1;
            assert!(steps <= 4 * LOG_BLOCKS, "recovery does not end");
        }
        let outcome = recovery.finish().unwrap();
        let mut homes = self.on_disk.clone();
        for replay in &outcome.replays {
            let mut copy = log[replay.at.0 as usize].clone();
            outcome.restore(replay, &mut copy)?;
            homes.insert(replay.home.0, copy);
        }
        Ok((outcome, homes))
    }
}

/// What the next transaction changes (some contents start with the magic), and what it revokes.
fn random_change(random: &mut ChaCha8Rng) -> (Homes, BTreeSet<u64>) {
    let mut blocks = Homes::new();
    for _ in 0..random.random_range(0..8) {
        let mut content = vec![0; BLOCK_BYTES];
        random.fill(&mut content[..]);
        if random.random_ratio(1, 4) {
            content[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
        }
        blocks.insert(random.random_range(0..HOME_BLOCKS), content);
    }
    let revokes = (0..random.random_range(0..4)).map(|_| random.random_range(0..HOME_BLOCKS));
    let revokes = revokes.filter(|home| !blocks.contains_key(home)).collect();
    (blocks, revokes)
}

/// The log in which of each of `blocks` any of its sectors have arrived.
fn torn(random: &mut ChaCha8Rng, log: &[Vec<u8>], blocks: &[(usize, Vec<u8>)]) -> Vec<Vec<u8>> {
    let mut torn = log.to_vec();
    for (at, content) in blocks {
        for range in [0..512, 512..1024] {
            if random.random() {
                torn[*at][range.clone()].copy_from_slice(&content[range]);
            }
        }
    }
    torn
}

fn run(seed: u64) -> usize {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut model = Model::new(&mut random);
    let mut cuts = 0;
    for number in 0..60u64 {
        let (blocks, revokes) = random_change(&mut random);
        let contents: Vec<_> = blocks.iter().map(|(home, content)| (BlockNumber(*home), &content[..])).collect();
        let revoked: Vec<_> = revokes.iter().map(|home| BlockNumber(*home)).collect();
        let format = model.superblock.format();
        while (model.space.free_block_count() as usize)
            < writer::log_blocks_needed(&format, contents.len(), revoked.len())
        {
            let count = random.random_range(1..model.states.len());
            model.checkpoint(count);
        }
        let sequence = TransactionId(model.first.0.wrapping_add(model.states.len() as u32 - 1));
        let time = CommitTime { seconds: 1000 + number / 3, nanoseconds: 0 };
        let transaction = NewTransaction { sequence, time, blocks: &contents, revokes: &revoked };
        let written = writer::write(&format, &UUID, &mut model.space, &transaction).unwrap();
        let plain: Vec<_> =
            written.blocks.iter().map(|it| (it.at.0 as usize, it.content.bytes(&transaction).to_vec())).collect();
        let commit = (written.commit.at.0 as usize, written.commit.content.bytes(&transaction).to_vec());

        let committed = model.states.len() - 1;
        for cut in 0..=plain.len() {
            let mut prefix = model.log.clone();
            plain[..cut].iter().for_each(|(at, content)| prefix[*at].clone_from(content));
            for log in [prefix, torn(&mut random, &model.log, &plain)] {
                let (outcome, homes) = model.recover(&log).unwrap();
                assert_eq!(outcome.transaction_count as usize, committed, "seed {seed}");
                assert_eq!(outcome.next_sequence, sequence.next());
                assert!(homes == model.expected(committed), "seed {seed}, transaction {number}, cut {cut}");
                cuts += 1;
            }
        }
        plain.iter().for_each(|(at, content)| model.log[*at].clone_from(content));
        let mut state = model.states[committed].clone();
        revokes.iter().for_each(|home| _ = state.remove(home));
        state.extend(blocks.clone());
        model.states.push(state);
        let log = torn(&mut random, &model.log, std::slice::from_ref(&commit));
        let (outcome, homes) = model.recover(&log).unwrap();
        let found = outcome.transaction_count as usize;
        assert!(found == committed || found == committed + 1, "seed {seed}, transaction {number}");
        assert!(homes == model.expected(found), "seed {seed}, transaction {number}, torn commit block");

        model.log[commit.0].clone_from(&commit.1);
        model.starts.push(model.space.head());
        let (outcome, homes) = model.recover(&model.log).unwrap();
        assert_eq!((outcome.transaction_count as usize, outcome.last_commit), (committed + 1, Some(time)));
        assert!(homes == model.expected(committed + 1), "seed {seed}, transaction {number}, whole");
        cuts += 2;

        let mut damaged = model.log.clone();
        for _ in 0..random.random_range(1..4) {
            let block = random.random_range(1..LOG_BLOCKS);
            damaged[block][random.random_range(0..BLOCK_BYTES)] ^= 1 << random.random_range(0..8);
        }
        // An error, or the state after some transaction.
        if let Ok((outcome, homes)) = model.recover(&damaged) {
            assert!(homes == model.expected(outcome.transaction_count as usize), "seed {seed}, damaged");
        }
    }
    cuts
}

#[test]
fn every_cut_recovers_to_the_transactions_that_were_committed() {
    let cuts: usize = (0..40).map(run).sum();
    println!("{cuts} cuts, seeds 0 to 39");
    assert!(cuts > 10_000);
}
