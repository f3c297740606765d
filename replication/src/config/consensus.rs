//! Consensus over the configuration state: a pure wrapper of raft-rs's `RawNode` (Ongaro's Raft with pre-vote,
//! check-quorum and ReadIndex), used unchanged by the driver of a real node and by the simulator.
//!
//! Owns the replicated [`ClusterState`], a memory mirror of the log, and this node's Raft role. The shell's loop is:
//! [`Consensus::ready`] → send its messages → make [`Persist`] durable → [`Consensus::persisted`] → send those
//! messages, tell the outcomes. While a write is outstanding inputs wait in a bounded queue, so the shell may write as
//! it likes.
//!
//! It deliberately knows no clock and no randomness: time is `tick`, and raft-rs's election timeout, which it draws
//! from a generator of its own, is overwritten after every input by one drawn from the configured seed. The same inputs
//! give the same outputs. It keeps nothing durable itself, and it never waits: proposals may vanish, their proposers
//! repeat them.

mod membership;
mod restore;
mod storage;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::{BTreeMap, VecDeque};

use protobuf::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message,
    MessageType, Snapshot,
};
use raft::{Config, RawNode, StateRole, Storage as _};
use thiserror::Error;

pub use membership::{MembershipRefused, Standing, VOTERS_MAX};
pub use restore::{RestoreError, Restored};
use storage::Mirror;
pub use validate::{MEMBERS_MAX, StepError, TERM_MAX};
use validate::{View, check, is_command};

use super::{ApplyError, ClusterState, Outcome};
use proto::NodeId;

/// Bytes of one command.
pub const COMMAND_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a read's context.
pub const READ_CONTEXT_BYTES_MAX: usize = 64;
/// Reads whose confirmation is awaited.
pub const READS_MAX: usize = 1024;
/// Inputs that wait behind an unfinished write.
pub const INBOX_MAX: usize = 4096;
/// Entries above which the log is compacted, unless configured otherwise.
pub const LOG_ENTRIES_MAX: u64 = 4096;
/// Bytes of applied commands above which the log is compacted.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes of entries in one message (one entry always fits).
const MESSAGE_BYTES_MAX: u64 = 256 * 1024;
/// Bytes proposed and not committed; beyond it proposals are refused.
const UNCOMMITTED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Append messages in flight to one follower.
const INFLIGHT_MESSAGES_MAX: usize = 64;
/// Election timeouts after which an unanswered snapshot is sent again.
const SNAPSHOT_PATIENCE_ELECTIONS: u64 = 4;

/// How this node takes part.
#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    /// This node.
    pub node: NodeId,
    /// Ticks of silence before an election, at least; at most one less than twice as many.
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Seeds the election timeouts.
    pub seed: u64,
    /// Entries above which the log is compacted to a snapshot.
    pub log_entries_max: u64,
}

/// What must be durable before [`Consensus::persisted`] is called: first the snapshot, then entries, then the hard
/// state.
#[derive(Clone, Debug, Default)]
pub struct Persist {
    /// To be given back.
    pub number: u64,
    /// New hard state.
    pub hard_state: Option<HardState>,
    /// To append; an index already present is replaced, with everything behind it.
    pub entries: Vec<Entry>,
    /// Replaces the whole log.
    pub snapshot: Option<Snapshot>,
    /// False: the write needs no flush (only the commit index moved).
    pub must_sync: bool,
}

impl Persist {
    /// Nothing to write: `persisted` may be called at once.
    pub fn is_empty(&self) -> bool {
        self.hard_state.is_none() && self.entries.is_empty() && self.snapshot.is_none()
    }
}

/// One turn of the loop.
#[derive(Debug, Default)]
pub struct Turn {
    /// To send now.
    pub messages: Vec<Message>,
    /// To make durable.
    pub persist: Persist,
}

/// A command that took effect, or was refused by its guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedEntry {
    /// Log index.
    pub index: u64,
    /// The command's bytes.
    pub data: Vec<u8>,
    /// What it did.
    pub outcome: Outcome,
}

/// What follows from a finished write.
#[derive(Debug, Default)]
pub struct Settled {
    /// To send now.
    pub messages: Vec<Message>,
    /// Commands applied, in order.
    pub applied: Vec<AppliedEntry>,
    /// Contexts of reads that are linearizable now.
    pub reads: Vec<Vec<u8>>,
    /// The commit index moved: worth writing, without a flush, so that a restart knows it.
    pub commit: Option<HardState>,
    /// The log is to be replaced by [`Consensus::image`]; until it is, the old one stays valid.
    pub compacted: bool,
    /// A leader's snapshot replaced the state.
    pub restored: bool,
}

/// Why this node takes no part any more until somebody acts.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Halt {
    /// A committed command cannot be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The leader counts on entries that this node had confirmed and does not have.
    #[error(
        "this node's Raft log is older than what it has confirmed to the cluster (restored from a backup?): it must not \
         vote; run `tandem node reset` on it, `tandem node remove` on another node, and let it join under a new id with \
         `tandem node join`"
    )]
    LogRolledBack,
}

enum Input {
    Tick,
    Step(Box<Message>),
    Propose(Vec<u8>),
    Read(Vec<u8>),
}

/// One member's consensus.
pub struct Consensus {
    config: ConsensusConfig,
    raw: RawNode<Mirror>,
    state: ClusterState,
    conf_state: ConfState,
    applied: u64,
    /// Bytes of the commands applied since the newest snapshot.
    applied_bytes: u64,
    halt: Option<Halt>,
    /// The write that is outstanding, and whether it brings a snapshot.
    in_flight: Option<raft::Ready>,
    inbox: VecDeque<Input>,
    reads: Vec<(u64, Vec<u8>)>,
    ticks: u64,
    last_heard: BTreeMap<u64, u64>,
    leader_since: Option<u64>,
    snapshots_sent: BTreeMap<u64, u64>,
    transfer_not_before: u64,
    /// Changes of the membership passed on to the leader in this tick: once a tick is enough.
    passed_on: Vec<(ConfChangeType, u64)>,
    election: ElectionTimeout,
}

/// The deterministic stand-in for raft-rs's own draw.
struct ElectionTimeout {
    generator: u64,
    ticks: usize,
    /// Role, term and leader it was drawn for.
    drawn_for: (StateRole, u64, u64),
}

impl Consensus {
    /// Starts from what the log holds.
    pub fn new(config: ConsensusConfig, mut restored: Restored) -> Result<Self, RestoreError> {
        let state = restored.check()?;
        let snapshot = restored.snapshot.unwrap_or_default();
        let applied = snapshot.get_metadata().index;
        let conf_state = snapshot.get_metadata().get_conf_state().clone();
        let mirror = Mirror::new(restored.hard_state, snapshot, restored.entries);
        let raft_config = Config {
            id: config.node.0,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: UNCOMMITTED_BYTES_MAX,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&raft_config, mirror, &logger).map_err(|error| RestoreError::Raft(error.to_string()))?;
        let generator = config.seed ^ config.node.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let election =
            ElectionTimeout { generator, ticks: config.election_ticks, drawn_for: (StateRole::Leader, 0, 0) };
        let mut consensus = Self {
            config,
            raw,
            state,
            conf_state,
            applied,
            applied_bytes: 0,
            halt: None,
            in_flight: None,
            inbox: VecDeque::new(),
            reads: Vec::new(),
            ticks: 0,
            last_heard: BTreeMap::new(),
            leader_since: None,
            snapshots_sent: BTreeMap::new(),
            transfer_not_before: 0,
            passed_on: Vec::new(),
            election,
        };
        consensus.after_input(false);
        Ok(consensus)
    }

    /// A sole voter need not wait for an election timeout: nobody else can lead.
    pub fn campaign_alone(&mut self) {
        if self.is_sole_voter() && self.in_flight.is_none() && self.halt.is_none() && !self.raw.has_ready() {
            // raft-rs refuses while a committed change of membership is not applied; a timeout comes later.
            let _ = self.raw.campaign();
            self.after_input(false);
        }
    }

    /// One tick of time.
    pub fn tick(&mut self) {
        self.input(Input::Tick);
    }

    /// A message from another node, as `eraftpb::Message` bytes.
    pub fn step_bytes(&mut self, bytes: &[u8]) -> Result<(), StepError> {
        let mut message = Message::default();
        message.merge_from_bytes(bytes).map_err(|_| StepError::Garbled)?;
        self.step(message)
    }

    /// A message from another node. Refused messages change nothing.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        if self.halt.is_some() {
            return Ok(());
        }
        if self.in_flight.is_some() {
            return if self.input(Input::Step(Box::new(message))) { Ok(()) } else { Err(StepError::Full) };
        }
        self.step_now(message)
    }

    /// Proposes a command's bytes, through the leader if that is another node. False: certainly dropped. True: it may
    /// take effect, now or later, or vanish.
    pub fn propose(&mut self, data: Vec<u8>) -> bool {
        if self.halt.is_some() || !is_command(&data) {
            return false;
        }
        if self.in_flight.is_some() {
            return self.input(Input::Propose(data));
        }
        let taken = self.raw.propose(Vec::new(), data).is_ok();
        self.after_input(false);
        taken
    }

    /// Asks for a linearizable point; `context` comes back in [`Settled::reads`], or never. It must be unique among all
    /// nodes and runs: a leader that still holds the same context would answer with the older point.
    pub fn read_index(&mut self, context: Vec<u8>) -> bool {
        if context.len() > READ_CONTEXT_BYTES_MAX || self.raw.raft.read_only.pending_read_count() >= READS_MAX {
            return false;
        }
        self.input(Input::Read(context))
    }

    /// Queues behind an outstanding write, or takes it at once. False if the queue is full.
    fn input(&mut self, input: Input) -> bool {
        if self.halt.is_some() {
            return false;
        }
        if self.in_flight.is_none() {
            self.take(input);
            return true;
        }
        let room = self.inbox.len() < INBOX_MAX;
        if room {
            self.inbox.push_back(input);
        }
        room
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Tick => return self.tick_now(),
            // A queued message that proves unfit is dropped like a lost one.
            Input::Step(message) => return drop(self.step_now(*message)),
            Input::Propose(data) => drop(self.raw.propose(Vec::new(), data)),
            Input::Read(context) => self.raw.read_index(context),
        }
        self.after_input(false);
    }

    fn tick_now(&mut self) {
        self.ticks += 1;
        self.passed_on.clear();
        // A sole voter wins at once, and raft-rs asserts that a winner's entries are durable.
        let unpersisted = self.raw.raft.raft_log.persisted != self.raw.raft.raft_log.last_index();
        if unpersisted && self.raw.raft.state != StateRole::Leader && self.is_sole_voter() {
            return;
        }
        let due = self.raw.raft.state != StateRole::Leader
            && self.raw.raft.election_elapsed + 1 >= self.raw.raft.randomized_election_timeout();
        self.raw.tick();
        self.after_input(due);
        if self.is_leader() {
            self.retry_snapshots();
            self.advance_membership();
            self.prefer_witness();
        }
    }

    fn step_now(&mut self, message: Message) -> Result<(), StepError> {
        let raft = &self.raw.raft;
        let view = View {
            node: raft.id,
            term: raft.term,
            leads: raft.state == StateRole::Leader,
            last: raft.raft_log.last_index(),
            persisted: raft.raft_log.persisted,
            reads_pending: raft.read_only.pending_read_count(),
        };
        match check(&message, &view) {
            Ok(validate::Verdict::Step) => {}
            Ok(validate::Verdict::LogRolledBack) => {
                self.halt = Some(Halt::LogRolledBack);
                return Ok(());
            }
            Err(StepError::Snapshot(ApplyError::UnknownCommand)) => {
                self.halt = Some(Halt::Apply(ApplyError::UnknownCommand));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let from = message.from;
        if message.get_msg_type() == MessageType::MsgTimeoutNow && view.persisted != view.last && self.is_sole_voter() {
            return Err(StepError::Refused("an election before the log is durable"));
        }
        if message.get_msg_type() == MessageType::MsgPropose && self.take_membership_request(&message) {
            return Ok(());
        }
        // What raft-rs itself refuses (a stranger's answer, a proposal over the bound) is an ordinary loss.
        let _ = self.raw.step(message);
        if self.last_heard.len() < MEMBERS_MAX || self.last_heard.contains_key(&from) {
            self.last_heard.insert(from, self.ticks);
        }
        self.after_input(false);
        Ok(())
    }

    /// Overwrites the election timeout that raft-rs may have drawn, and notes a change of leadership.
    fn after_input(&mut self, campaigned: bool) {
        let raft = &mut self.raw.raft;
        let drawn_for = (raft.state, raft.term, raft.leader_id);
        if campaigned || drawn_for != self.election.drawn_for {
            let span = self.config.election_ticks as u64;
            self.election.ticks = (span + splitmix(&mut self.election.generator) % span) as usize;
            self.election.drawn_for = drawn_for;
        }
        raft.set_randomized_election_timeout(self.election.ticks);
        match (raft.state == StateRole::Leader, self.leader_since) {
            (true, None) => self.leader_since = Some(self.ticks),
            (false, Some(_)) => {
                self.leader_since = None;
                self.snapshots_sent.clear();
            }
            _ => {}
        }
    }

    /// What to send and write now. None while a write is outstanding, when there is nothing, and when halted.
    pub fn ready(&mut self) -> Option<Turn> {
        if self.halt.is_some() || self.in_flight.is_some() || !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let snapshot = Some(ready.snapshot()).filter(|snapshot| !snapshot.is_empty()).cloned();
        let persist = Persist {
            number: ready.number(),
            hard_state: ready.hs().cloned(),
            entries: ready.entries().clone(),
            snapshot,
            must_sync: ready.must_sync(),
        };
        let mirror = self.raw.mut_store();
        if let Some(snapshot) = &persist.snapshot {
            mirror.install(snapshot.clone());
        }
        mirror.append(&persist.entries);
        if let Some(hard_state) = &persist.hard_state {
            mirror.hard_state = hard_state.clone();
        }
        let messages = ready.take_messages();
        self.note_snapshots(&messages);
        self.in_flight = Some(ready);
        Some(Turn { messages, persist })
    }

    /// The write with this number is durable. Other numbers change nothing.
    pub fn persisted(&mut self, number: u64) -> Settled {
        let mut settled = Settled::default();
        let Some(mut ready) = self.in_flight.take_if(|ready| ready.number() == number) else { return settled };
        if !ready.snapshot().is_empty() && !self.adopt(&ready.snapshot().clone(), &mut settled) {
            return settled;
        }
        settled.messages = ready.take_persisted_messages();
        let mut committed = ready.take_committed_entries();
        for read in ready.take_read_states() {
            self.reads.push((read.index, read.request_ctx));
        }
        let mut light = self.raw.advance_append(ready);
        settled.messages.extend(light.take_messages());
        committed.extend(light.take_committed_entries());
        if let Some(commit) = light.commit_index() {
            let mirror = self.raw.mut_store();
            mirror.hard_state.commit = commit;
            settled.commit = Some(mirror.hard_state.clone());
        }
        self.note_snapshots(&settled.messages);
        if let Err(error) = committed.into_iter().try_for_each(|entry| self.apply(entry, &mut settled.applied)) {
            self.halt = Some(Halt::Apply(error));
            return settled;
        }
        self.raw.advance_apply();
        self.release_reads(&mut settled.reads);
        settled.compacted = self.compact();
        self.after_input(false);
        while self.in_flight.is_none() && self.halt.is_none() {
            let Some(input) = self.inbox.pop_front() else { break };
            self.take(input);
        }
        settled
    }

    fn adopt(&mut self, snapshot: &Snapshot, settled: &mut Settled) -> bool {
        match ClusterState::from_snapshot(&snapshot.data) {
            Ok(state) => {
                self.state = state;
                self.applied = snapshot.get_metadata().index;
                self.conf_state = snapshot.get_metadata().get_conf_state().clone();
                settled.restored = true;
                true
            }
            Err(error) => {
                self.halt = Some(Halt::Apply(error));
                false
            }
        }
    }

    fn apply(&mut self, entry: Entry, applied: &mut Vec<AppliedEntry>) -> Result<(), ApplyError> {
        match entry.get_entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => {}
            EntryType::EntryNormal => {
                let outcome = self.state.apply_bytes(&entry.data)?;
                applied.push(AppliedEntry { index: entry.index, data: entry.data.to_vec(), outcome });
            }
            EntryType::EntryConfChange => {
                let mut change = ConfChange::default();
                change.merge_from_bytes(&entry.data).map_err(|_| ApplyError::Malformed)?;
                let mut single = ConfChangeSingle { node_id: change.node_id, ..ConfChangeSingle::default() };
                single.set_change_type(change.get_change_type());
                let change = ConfChangeV2 { changes: vec![single].into(), ..ConfChangeV2::default() };
                self.adopt_membership(&change);
            }
            EntryType::EntryConfChangeV2 => {
                let mut change = ConfChangeV2::default();
                change.merge_from_bytes(&entry.data).map_err(|_| ApplyError::Malformed)?;
                self.adopt_membership(&change);
            }
        }
        self.applied = entry.index;
        self.applied_bytes += entry.data.len() as u64;
        Ok(())
    }

    fn release_reads(&mut self, ready: &mut Vec<Vec<u8>>) {
        let applied = self.applied;
        for (_, context) in self.reads.extract_if(.., |(index, _)| *index <= applied) {
            ready.push(context);
        }
        let surplus = self.reads.len().saturating_sub(READS_MAX);
        self.reads.drain(..surplus);
    }

    fn compact(&mut self) -> bool {
        let mirror = self.raw.store();
        let covered = mirror.snapshot.get_metadata().index;
        // A follower refuses a snapshot whose membership lacks it, so each change of membership makes a new one.
        let outdated = mirror.conf_state() != &self.conf_state && self.applied > covered;
        let large = self.applied_bytes > LOG_BYTES_MAX;
        if !outdated && !large && self.applied.saturating_sub(covered) <= self.config.log_entries_max {
            return false;
        }
        let Ok(term) = mirror.term(self.applied) else { return false };
        let mut snapshot = Snapshot { data: self.state.to_snapshot().into(), ..Snapshot::default() };
        let meta = snapshot.mut_metadata();
        meta.index = self.applied;
        meta.term = term;
        meta.set_conf_state(self.conf_state.clone());
        let tail = if large { 0 } else { self.config.log_entries_max / 4 };
        self.raw.mut_store().compact(snapshot, tail);
        self.applied_bytes = 0;
        true
    }

    /// What a log file that replaces the present one holds.
    pub fn image(&self) -> Restored {
        let mirror = self.raw.store();
        let snapshot = Some(mirror.snapshot.clone()).filter(|snapshot| !snapshot.is_empty());
        Restored { hard_state: mirror.hard_state.clone(), entries: mirror.entries().to_vec(), snapshot }
    }

    /// The replicated state as applied here.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// Why nothing goes on.
    pub fn halted(&self) -> Option<&Halt> {
        self.halt.as_ref()
    }

    /// Index of the newest entry applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Term.
    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// The leader as known here, or NONE.
    pub fn leader(&self) -> NodeId {
        NodeId(self.raw.raft.leader_id)
    }

    /// True on the leader.
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }
}

/// A message's bytes.
pub fn encode_message(message: &Message) -> Vec<u8> {
    // Writing to memory fails only for a message without a required field, and these have none.
    message.write_to_bytes().unwrap_or_default()
}

/// SplitMix64 (Steele, Lea, Flood 2014): one step.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}
