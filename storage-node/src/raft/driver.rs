//! The driver's thread: one loop around the pure consensus core.
//!
//! Owns the core, the log, and who waits for what. The loop is: take messages, orders and ticks; then per turn send
//! messages, write and flush the log (one flush a turn, however many entries), send what had to wait for it, tell the
//! outcomes. Time is CLOCK_BOOTTIME, so that a suspended box notices. It decides nothing about volumes, and it never
//! waits for the network. A log that cannot be written ends the thread: a node that may forget its vote must not vote.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::{NodeId, RequestId};
use replication::config::consensus::{
    COMMAND_BYTES_MAX, Consensus, ConsensusConfig, LOG_ENTRIES_MAX, MembershipRefused, Restored, Settled, Standing,
    encode_message,
};
use replication::config::{ClusterState, Command, Outcome};
use tokio::sync::{oneshot, watch};

use super::{Log, LogIdentity, ProposeError, RaftConfig, RaftError, RaftSend, RaftStatus};

/// Raft messages that wait for the thread; more are dropped.
pub(super) const MESSAGES_MAX: usize = 4096;
/// Orders that wait for the thread; more are refused.
pub(super) const ORDERS_MAX: usize = 1024;
/// Proposals, reads and changes whose end is awaited; more are refused.
const WAITERS_MAX: usize = 4096;
/// Outcomes remembered for those who ask again.
const OUTCOMES_MAX: usize = 4096;
/// Ticks made up for after a pause, in election timeouts: enough to step down and to campaign.
const CATCH_UP_ELECTIONS: u64 = 3;

type Reply<T> = oneshot::Sender<Result<T, ProposeError>>;

/// What a handle asks of the thread.
pub(super) enum Order {
    Propose(Command),
    ProposeAndWait(Command, Reply<Outcome>),
    Read(Reply<()>),
    /// The reply to an addition tells whether the node votes (else it waits for the place of a silent voter).
    Membership {
        node: NodeId,
        add: bool,
        reply: Reply<bool>,
    },
}

/// What the handles and the thread share.
#[derive(Default)]
pub(super) struct Shared {
    queues: Mutex<Queues>,
    wake: Condvar,
}

#[derive(Default)]
struct Queues {
    messages: VecDeque<Vec<u8>>,
    orders: VecDeque<Order>,
    /// Hand over, then stop.
    stop: bool,
    /// Stop at once.
    close: bool,
    /// The thread is gone, for this reason.
    gone: Option<String>,
}

/// What the thread publishes.
pub(super) struct Watches {
    pub(super) state: watch::Receiver<Arc<ClusterState>>,
    pub(super) status: watch::Receiver<RaftStatus>,
    pub(super) stopped: watch::Receiver<Option<String>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        // The queues stay usable whoever panicked while holding them: each change to them is one call.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn deliver(&self, message: Vec<u8>) {
        let mut queues = self.lock();
        if queues.messages.len() < MESSAGES_MAX && queues.gone.is_none() {
            queues.messages.push_back(message);
            self.wake.notify_one();
        }
    }

    pub(super) fn order(&self, order: Order) -> Result<(), ProposeError> {
        let mut queues = self.lock();
        if let Some(why) = &queues.gone {
            return Err(ProposeError::Stopped(why.clone()));
        }
        if queues.orders.len() >= ORDERS_MAX {
            return Err(busy());
        }
        queues.orders.push_back(order);
        self.wake.notify_one();
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn message_count(&self) -> usize {
        self.lock().messages.len()
    }

    pub(super) fn request_stop(&self) {
        self.lock().stop = true;
        self.wake.notify_one();
    }

    pub(super) fn close(&self) {
        self.lock().close = true;
        self.wake.notify_one();
    }
}

fn busy() -> ProposeError {
    ProposeError::Refused("too many changes of the cluster's configuration wait already; try again".into())
}

/// Opens or makes the log and starts the thread.
pub(super) fn start(
    config: RaftConfig,
    directory: &Path,
    bootstrap: Option<Command>,
    send: Box<dyn RaftSend>,
) -> Result<(Arc<Shared>, Watches), RaftError> {
    let identity = LogIdentity { cluster: config.cluster, node: config.node };
    let path = directory.join(super::LOG_NAME);
    let refused = |why: String| RaftError::LogRefused { path: path.clone(), why };
    let (log, restored) = match Log::open(directory, identity)? {
        Some(opened) => opened,
        None if !config.fresh => {
            return Err(super::log::refuse(&path, "the log is gone, and its directory's marker too"));
        }
        None => {
            let restored = first_log(config.node, bootstrap).map_err(&refused)?;
            (Log::create(directory, identity, &restored)?, restored)
        }
    };
    let core = Consensus::new(
        ConsensusConfig {
            node: config.node,
            election_ticks: config.election_ticks,
            heartbeat_ticks: (config.election_ticks / 5).max(1),
            seed: rand::random(),
            log_entries_max: LOG_ENTRIES_MAX,
        },
        restored,
    )
    .map_err(|error| super::log::refuse(&path, &error.to_string()))?;
    let (state_out, state) = watch::channel(Arc::new(core.state().clone()));
    let (status_out, status) = watch::channel(RaftStatus::default());
    let (stopped_out, stopped) = watch::channel(None);
    let shared = Arc::<Shared>::default();
    let driver = Driver {
        tick_micros: (config.tick.as_micros() as u64).max(1),
        election_ticks: config.election_ticks as u64,
        node: config.node,
        run: rand::random(),
        core,
        log,
        send,
        shared: shared.clone(),
        state_out,
        status_out,
        proposals: BTreeMap::new(),
        outcomes: VecDeque::new(),
        reads: BTreeMap::new(),
        read_count: 0,
        memberships: Vec::new(),
        ticks: 0,
        leaderless_since: None,
        flush_due: false,
    };
    let end = End { shared: shared.clone(), stopped_out };
    std::thread::Builder::new()
        .name("raft".into())
        .spawn(move || end.run(driver))
        .map_err(|source| RaftError::Io { path: directory.to_owned(), source })?;
    Ok((shared, Watches { state, status, stopped }))
}

fn first_log(node: NodeId, bootstrap: Option<Command>) -> Result<Restored, String> {
    let Some(command) = bootstrap else { return Ok(Restored::default()) };
    let mut state = ClusterState::default();
    match state.apply(&command) {
        Outcome::Refused(why) => Err(format!("the cluster's first command is refused: {why}")),
        _ => Ok(Restored::founding(&[node], &state)),
    }
}

/// Tells the end of the thread, also when it panicked.
struct End {
    shared: Arc<Shared>,
    stopped_out: watch::Sender<Option<String>>,
}

impl End {
    fn run(self, driver: Driver) {
        let why = driver.run();
        self.shared.lock().gone = Some(why);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut queues = self.shared.lock();
        let why = queues.gone.get_or_insert_with(|| "Raft has failed: a bug, see the log".into()).clone();
        // Dropping an order answers who waits for it.
        queues.orders.clear();
        queues.messages.clear();
        drop(queues);
        self.stopped_out.send_replace(Some(why));
    }
}

struct Driver {
    tick_micros: u64,
    election_ticks: u64,
    node: NodeId,
    /// Makes read contexts unique among the runs of this node.
    run: u64,
    core: Consensus,
    log: Log,
    send: Box<dyn RaftSend>,
    shared: Arc<Shared>,
    state_out: watch::Sender<Arc<ClusterState>>,
    status_out: watch::Sender<RaftStatus>,
    /// By request: the bytes to propose again, and who waits.
    proposals: BTreeMap<RequestId, (Vec<u8>, Vec<Reply<Outcome>>)>,
    outcomes: VecDeque<(RequestId, Outcome)>,
    /// By number of the read's context.
    reads: BTreeMap<u64, Vec<Reply<()>>>,
    read_count: u64,
    memberships: Vec<(NodeId, bool, Reply<bool>)>,
    ticks: u64,
    leaderless_since: Option<u64>,
    /// A noted commit index has waited long enough for a flush.
    flush_due: bool,
}

impl Driver {
    /// Runs until told to stop, or until it cannot go on; gives the reason.
    fn run(mut self) -> String {
        let mut next_tick = boot_micros() + self.tick_micros;
        let mut stop_at = None;
        self.core.campaign_alone();
        loop {
            if let Err(why) = self.turns() {
                tracing::error!(%why, "raft: stopping");
                return why;
            }
            self.publish();
            let now = boot_micros();
            if let Some(deadline) = stop_at
                && (!self.core.is_leader() || self.ticks >= deadline)
            {
                return "Raft was stopped".into();
            }
            let inputs = self.wait(next_tick.saturating_sub(now));
            if inputs.close {
                return "Raft was stopped".into();
            }
            // Messages first: after a pause they may hold the heartbeat that makes an election needless.
            for message in inputs.messages {
                if let Err(error) = self.core.step_bytes(&message) {
                    tracing::debug!(%error, "raft: message dropped");
                }
            }
            inputs.orders.into_iter().for_each(|order| self.take(order));
            next_tick = self.tick_due(next_tick);
            if inputs.stop && stop_at.is_none() {
                let patience = if self.core.step_aside() { self.election_ticks } else { 0 };
                stop_at = Some(self.ticks + patience);
            }
        }
    }

    fn wait(&self, micros: u64) -> Queues {
        let queues = self.shared.lock();
        let idle = |queues: &mut Queues| queues.messages.is_empty() && queues.orders.is_empty() && !queues.close;
        let waited = self.shared.wake.wait_timeout_while(queues, Duration::from_micros(micros), idle);
        let (mut queues, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Queues {
            messages: std::mem::take(&mut queues.messages),
            orders: std::mem::take(&mut queues.orders),
            stop: queues.stop,
            close: queues.close,
            gone: None,
        }
    }

    /// Makes up for the ticks that are due, and says when the next one is.
    fn tick_due(&mut self, next_tick: u64) -> u64 {
        let now = boot_micros();
        if now < next_tick {
            return next_tick;
        }
        let due = 1 + (now - next_tick) / self.tick_micros;
        for _ in 0..due.min(CATCH_UP_ELECTIONS * self.election_ticks) {
            self.core.tick();
        }
        let before = self.ticks;
        self.ticks += due;
        if before / 2 != self.ticks / 2 {
            self.report_liveness();
        }
        let retry = (self.election_ticks / 2).max(1);
        if before / retry != self.ticks / retry {
            self.repeat();
        }
        next_tick + due * self.tick_micros
    }

    fn report_liveness(&self) {
        let heard: Vec<(NodeId, bool)> = self.core.heard().into_iter().collect();
        for (to, _) in heard.iter().filter(|(to, _)| *to != self.node) {
            self.send.send_liveness(*to, &heard);
        }
    }

    fn take(&mut self, order: Order) {
        let waiting = self.proposals.len() + self.reads.values().map(Vec::len).sum::<usize>() + self.memberships.len();
        let full = waiting >= WAITERS_MAX;
        // A send to somebody who no longer waits is no error.
        match order {
            Order::Propose(command) => drop(self.core.propose(command.encode())),
            Order::ProposeAndWait(_, reply) if full => drop(reply.send(Err(busy()))),
            Order::Read(reply) if full => drop(reply.send(Err(busy()))),
            Order::Membership { reply, .. } if full => drop(reply.send(Err(busy()))),
            Order::ProposeAndWait(command, reply) => {
                if let Some((_, outcome)) = self.outcomes.iter().find(|(request, _)| *request == command.request) {
                    return drop(reply.send(Ok(outcome.clone())));
                }
                let data = command.encode();
                if data.len() > COMMAND_BYTES_MAX {
                    let why = format!("a command of {} bytes is larger than {COMMAND_BYTES_MAX}", data.len());
                    return drop(reply.send(Err(ProposeError::Refused(why))));
                }
                self.core.propose(data.clone());
                self.proposals.entry(command.request).or_insert((data, Vec::new())).1.push(reply);
            }
            Order::Read(reply) => self.read(vec![reply]),
            Order::Membership { node, add, reply } => {
                self.memberships.push((node, add, reply));
                self.change_members();
            }
        }
    }

    fn read(&mut self, replies: Vec<Reply<()>>) {
        self.read_count += 1;
        let words = [self.node.0, self.run, self.read_count];
        self.core.read_index(words.iter().flat_map(|word| word.to_le_bytes()).collect());
        self.reads.insert(self.read_count, replies);
    }

    /// Proposes and asks again: either may have been lost. Forgets those who no longer wait.
    fn repeat(&mut self) {
        self.proposals.retain(|_, (_, replies)| {
            replies.retain(|reply| !reply.is_closed());
            !replies.is_empty()
        });
        for (data, _) in self.proposals.values() {
            self.core.propose(data.clone());
        }
        let mut reads: Vec<Reply<()>> = std::mem::take(&mut self.reads).into_values().flatten().collect();
        reads.retain(|reply| !reply.is_closed());
        if !reads.is_empty() {
            self.read(reads);
        }
        self.memberships.retain(|(_, _, reply)| !reply.is_closed());
        self.change_members();
        self.flush_due = self.log.is_dirty();
    }

    fn change_members(&mut self) {
        for (node, add, reply) in std::mem::take(&mut self.memberships) {
            let change = if add {
                self.core.add_voter(node)
            } else {
                self.core.remove_voter(node).map(|gone| if gone { Standing::Voter } else { Standing::Pending })
            };
            let end = match change {
                Ok(Standing::Voter) => Ok(true),
                Ok(Standing::Waiting) => Ok(false),
                Ok(Standing::Pending) | Err(MembershipRefused::NoLeader | MembershipRefused::Busy) => {
                    self.memberships.push((node, add, reply));
                    continue;
                }
                Err(MembershipRefused::Leader) => {
                    self.core.step_aside();
                    self.memberships.push((node, add, reply));
                    continue;
                }
                Err(refused) => Err(ProposeError::Refused(refused.to_string())),
            };
            // Whoever asked may have given up.
            let _ = reply.send(end);
        }
    }

    /// Everything that is ready: send, write, flush, send, tell.
    fn turns(&mut self) -> Result<(), String> {
        while let Some(turn) = self.core.ready() {
            self.send_all(&turn.messages);
            let written = if turn.persist.snapshot.is_some() {
                self.log.replace(&self.core.image())
            } else if turn.persist.is_empty() {
                Ok(())
            } else {
                self.log.append(&turn.persist)
            };
            written.map_err(log_failed)?;
            let settled = self.core.persisted(turn.persist.number);
            self.settle(settled)?;
        }
        if std::mem::take(&mut self.flush_due) && self.log.is_dirty() {
            self.log.flush().map_err(log_failed)?;
        }
        match self.core.halted() {
            Some(halt) => Err(halt.to_string()),
            None => Ok(()),
        }
    }

    fn settle(&mut self, settled: Settled) -> Result<(), String> {
        self.send_all(&settled.messages);
        if settled.compacted {
            self.log.replace(&self.core.image()).map_err(log_failed)?;
        } else if let Some(hard_state) = &settled.commit {
            self.log.note_commit(hard_state).map_err(log_failed)?;
        }
        if settled.restored || !settled.applied.is_empty() {
            self.state_out.send_replace(Arc::new(self.core.state().clone()));
        }
        // Before anybody is told: who was told looks here next.
        self.publish();
        for applied in settled.applied {
            if let Ok(command) = Command::decode(&applied.data) {
                self.tell(command.request, applied.outcome);
            }
        }
        for context in settled.reads {
            let number = context.get(16..24).map(|word| word.iter().rev().fold(0, |sum, byte| sum << 8 | *byte as u64));
            for reply in number.and_then(|number| self.reads.remove(&number)).into_iter().flatten() {
                // Whoever asked may have given up.
                let _ = reply.send(Ok(()));
            }
        }
        self.change_members();
        Ok(())
    }

    fn tell(&mut self, request: RequestId, outcome: Outcome) {
        if self.outcomes.len() >= OUTCOMES_MAX {
            self.outcomes.pop_front();
        }
        for reply in self.proposals.remove(&request).into_iter().flat_map(|(_, replies)| replies) {
            // Whoever asked may have given up.
            let _ = reply.send(Ok(outcome.clone()));
        }
        self.outcomes.push_back((request, outcome));
    }

    fn send_all(&self, messages: &[raft::eraftpb::Message]) {
        for message in messages {
            self.send.send(NodeId(message.to), encode_message(message));
        }
    }

    fn publish(&mut self) {
        let leader = self.core.leader();
        self.leaderless_since =
            if leader == NodeId::NONE { self.leaderless_since.or_else(|| Some(boot_micros())) } else { None };
        let status = RaftStatus {
            leader,
            term: self.core.term(),
            applied: self.core.applied(),
            members: self.core.members(),
            heard: self.core.heard(),
            leaderless_since: self.leaderless_since,
        };
        self.status_out.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}

fn log_failed(error: RaftError) -> String {
    format!("the Raft log cannot be written, so this node takes no part any more: {error}")
}

fn boot_micros() -> u64 {
    // The clock exists on every Linux this runs on (2.6.39); without it time would stand still here.
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    now.as_micros() as u64
}
