//! Two replicas, or three, and the real configuration state machine, driven by hand: every order is carried out at once
//! unless a test holds it back, and a proposal commits only when the test says so.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::peer::message::{Envelope, Message, WriteKind};
use proto::peer::version::SUPPORTED;
use proto::{
    BlockRange, Boot, ClusterId, ConfigVersion, DiskId, Epoch, Incarnation, Micros, NodeId, RequestId, Timestamp,
    VolumeId,
};
use replication::config::{
    AckPolicy, ClusterState, Command, CommandBody, NodeCommand, NodeKind, NodeRecord, Outcome, VolumeCommand,
    VolumeConfig,
};
use replication::event::{
    Attachment, Control, Coverage, DiskReport, Event, IoResult, LinkId, OpId, PastScrubs, PayloadId, Request,
};
use replication::local_copy::{Hot, MetaPage, PAGE_BYTES, Page};
use replication::{Action, Notice, Refusal, Replica, Timing};

/// The volume.
pub(crate) const V: VolumeId = VolumeId(7);
/// Primary at the start.
pub(crate) const A: NodeId = NodeId(1);
/// Secondary at the start.
pub(crate) const B: NodeId = NodeId(2);
/// The third box: holds a copy of what [`Pair::three`] makes.
pub(crate) const C: NodeId = NodeId(3);
/// Run of node n: 100 + n.
pub(crate) fn run_of(node: NodeId) -> Incarnation {
    Incarnation(100 + node.0)
}
/// Copy of node n: 1000 + n.
pub(crate) fn disk_of(node: NodeId) -> DiskId {
    DiskId(1000 + u128::from(node.0))
}

/// Says which orders are held back.
type Hold = Box<dyn Fn(NodeId, &Action) -> bool>;

/// Log and bitmaps of a store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) hot: BTreeSet<u64>,
    pub(crate) bitmaps: Vec<Vec<u8>>,
    last_in_sync: ConfigVersion,
    scrubs: PastScrubs,
}

impl Store {
    fn write(&mut self, pages: &[(MetaPage, Page)]) {
        for (page, bytes) in pages {
            let MetaPage::Bitmap { slot, page } = *page else { panic!("a replica writes bitmaps only") };
            self.bitmaps.resize(3, vec![0; 8 * PAGE_BYTES]);
            let at = page as usize * PAGE_BYTES;
            self.bitmaps[usize::from(slot)][at..at + PAGE_BYTES].copy_from_slice(&bytes[..]);
        }
    }
}

/// Size of the volume unless a test says otherwise.
const SIZE_BYTES: u64 = 16 << 20;

/// See the module's header.
pub(crate) struct Pair {
    pub(crate) now: Timestamp,
    pub(crate) state: ClusterState,
    pub(crate) replicas: BTreeMap<NodeId, Replica>,
    /// Orders held back, oldest first.
    pub(crate) held: Vec<(NodeId, Action)>,
    /// Every order given so far.
    pub(crate) orders: Vec<(NodeId, Action)>,
    /// Commands proposed and not applied.
    pub(crate) proposals: Vec<(NodeId, Command)>,
    /// Moves from state to state.
    pub(crate) moves: BTreeSet<(&'static str, &'static str)>,
    /// Boxes can connect.
    pub(crate) connected: bool,
    /// Proposals commit at once.
    pub(crate) commits: bool,
    /// What the stores hold beside data.
    pub(crate) stores: BTreeMap<NodeId, Store>,
    queue: VecDeque<(NodeId, Action)>,
    dialling: Vec<(NodeId, NodeId)>,
    links: BTreeMap<LinkId, (NodeId, NodeId)>,
    hold: Hold,
    numbers: u64,
}

fn record(name: &str, node: NodeId) -> NodeRecord {
    NodeRecord {
        name: name.to_owned(),
        kind: NodeKind::Storage,
        incarnation: run_of(node),
        boot: Boot(1),
        feature_levels: (1, 1),
        join_request: RequestId(u128::from(node.0)),
        ..NodeRecord::default()
    }
}

impl Pair {
    /// Two replicas that know nothing yet; the volume is active with both in sync.
    pub(crate) fn blank() -> Self {
        Self::blank_of(&[A, B], SIZE_BYTES)
    }

    fn blank_of(nodes: &[NodeId], size_bytes: u64) -> Self {
        let mut state = ClusterState::default();
        let mut apply = |request, body| {
            assert!(!matches!(state.apply(&Command { request: RequestId(request), body }), Outcome::Refused(_)));
        };
        apply(1, CommandBody::Node(NodeCommand::Init { cluster: ClusterId(9), node: record("a", A) }));
        apply(2, CommandBody::Node(NodeCommand::Join { node: record("b", B) }));
        apply(5, CommandBody::Node(NodeCommand::Join { node: record("c", C) }));
        let replicas = nodes.iter().map(|node| (*node, disk_of(*node))).collect();
        let create = NodeCommand::CreateVolume {
            volume: V,
            name: "v".to_owned(),
            size_bytes,
            ack_policy: AckPolicy::Flush,
            preallocate: false,
            replicas,
        };
        apply(3, CommandBody::Node(create));
        for node in nodes.iter().copied() {
            let command = VolumeCommand::ReplicaReady { node, disk_id: disk_of(node) };
            apply(4, CommandBody::Volume { volume: V, expect_version: ConfigVersion(0), command });
        }
        let now = Timestamp(1_000_000);
        let timing = Timing { check_invariants: true, ..Timing::default() };
        let replica = |node| (node, Replica::new(V, node, run_of(node), Boot(1), timing, now));
        Self {
            now,
            state,
            replicas: nodes.iter().copied().map(replica).collect(),
            held: Vec::new(),
            orders: Vec::new(),
            proposals: Vec::new(),
            moves: BTreeSet::new(),
            connected: true,
            commits: false,
            stores: BTreeMap::new(),
            queue: VecDeque::new(),
            dialling: Vec::new(),
            links: BTreeMap::new(),
            hold: Box::new(|_, _| false),
            numbers: 0,
        }
    }

    /// Both opened, connected, and A serving.
    pub(crate) fn serving() -> Self {
        Self::serving_on(&[A, B], SIZE_BYTES, PastScrubs::default())
    }

    /// The same, with a store of A that remembers scrubs.
    pub(crate) fn scrubbed(past: PastScrubs) -> Self {
        Self::serving_on(&[A, B], SIZE_BYTES, past)
    }

    /// A pair with a volume of so many bytes.
    pub(crate) fn serving_size(size_bytes: u64) -> Self {
        Self::serving_on(&[A, B], size_bytes, PastScrubs::default())
    }

    /// The same as `serving` with three copies.
    pub(crate) fn three() -> Self {
        Self::serving_on(&[A, B, C], SIZE_BYTES, PastScrubs::default())
    }

    fn serving_on(nodes: &[NodeId], size_bytes: u64, scrubs: PastScrubs) -> Self {
        let mut pair = Self::blank_of(nodes, size_bytes);
        pair.stores.entry(A).or_default().scrubs = scrubs;
        pair.tell_config();
        for node in nodes.iter().copied() {
            pair.attach(node, pair.report(node));
        }
        pair.wait(200);
        assert!(pair.replicas[&A].status(pair.now).serving, "A serves");
        assert_eq!(pair.role(B), "secondary");
        pair
    }

    /// Opens the store of `node` as it stands: its log and bitmaps are those of the run before.
    pub(crate) fn attach(&mut self, node: NodeId, report: DiskReport) {
        let store = self.stores.entry(node).or_default();
        let hot = Hot::Extents(store.hot.iter().copied().collect());
        let attachment = Attachment { report, hot, bitmaps: store.bitmaps.clone(), scrubs: store.scrubs };
        self.event(node, Event::DiskAttached(Box::new(attachment)));
    }

    /// What the shell says of a healthy store.
    pub(crate) fn report(&self, node: NodeId) -> DiskReport {
        DiskReport {
            disk_id: disk_of(node),
            last_in_sync: self.stores.get(&node).map_or(ConfigVersion(0), |store| store.last_in_sync),
            suspect: false,
            failed: false,
            fence: (Epoch(0), ConfigVersion(0)),
        }
    }

    pub(crate) fn config(&self) -> &VolumeConfig {
        &self.state.volumes[&V]
    }

    pub(crate) fn role(&self, node: NodeId) -> &'static str {
        self.replicas[&node].status(self.now).role
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.replicas.keys().copied().collect()
    }

    /// Gives all the newest configuration.
    pub(crate) fn tell_config(&mut self) {
        for node in self.nodes() {
            self.event(node, Event::Config(Box::new(self.config().clone())));
        }
    }

    /// Holds back the orders that `hold` picks, from now on.
    pub(crate) fn hold(&mut self, hold: impl Fn(NodeId, &Action) -> bool + 'static) {
        self.hold = Box::new(hold);
    }

    /// Carries out the held orders that `pick` picks.
    pub(crate) fn release(&mut self, pick: impl Fn(NodeId, &Action) -> bool) {
        let (go, stay) = std::mem::take(&mut self.held).into_iter().partition(|(node, action)| pick(*node, action));
        self.held = stay;
        for (node, action) in go {
            self.carry_out(node, action);
        }
        self.settle();
    }

    /// Tells a replica something, and carries out what follows.
    pub(crate) fn event(&mut self, node: NodeId, event: Event) {
        self.tell(node, event);
        self.settle();
    }

    pub(crate) fn control(&mut self, node: NodeId, control: Control) {
        self.event(node, Event::Control(control));
    }

    pub(crate) fn client(&mut self, node: NodeId, op: u64, request: Request) {
        self.event(node, Event::Client { op: OpId(op), request });
    }

    /// Lets time pass in steps of 10 ms.
    pub(crate) fn wait(&mut self, millis: u64) {
        for _ in 0..millis / 10 {
            self.now = self.now + Micros::from_millis(10);
            for node in self.nodes() {
                if self.now >= self.replicas[&node].next_deadline() {
                    self.tell(node, Event::Tick);
                }
            }
            self.dial();
            self.settle();
        }
    }

    /// Cuts the network between the boxes.
    pub(crate) fn cut(&mut self) {
        self.connected = false;
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        links.into_iter().for_each(|link| self.drop_link(link));
        self.settle();
    }

    /// The box of `node` loses power for good.
    pub(crate) fn lose(&mut self, node: NodeId) {
        let links: Vec<LinkId> =
            self.links.iter().filter(|(_, ends)| ends.0 == node || ends.1 == node).map(|(link, _)| *link).collect();
        self.replicas.remove(&node);
        self.dialling.retain(|ends| ends.0 != node);
        links.into_iter().for_each(|link| self.drop_link(link));
        self.settle();
    }

    /// Applies the newest proposal that `pick` picks, forgets the others, and tells both.
    pub(crate) fn commit(&mut self, pick: impl Fn(&VolumeCommand) -> bool) {
        let proposals = std::mem::take(&mut self.proposals);
        let found = proposals.into_iter().rev().find(|(_, command)| match &command.body {
            CommandBody::Volume { command, .. } => pick(command),
            CommandBody::Node(_) | CommandBody::Nfs { .. } => false,
        });
        let (_, command) = found.expect("such a proposal");
        assert_eq!(self.state.apply(&command), Outcome::Applied, "{command:?}");
        self.tell_config();
    }

    /// Applies a command of an operator, and tells both.
    pub(crate) fn operator(&mut self, command: VolumeCommand) {
        let body = CommandBody::Volume { volume: V, expect_version: self.config().version, command };
        assert_eq!(self.state.apply(&Command { request: RequestId(900), body }), Outcome::Applied);
        self.tell_config();
    }

    /// Commands that `node` has proposed and that were neither applied nor forgotten.
    pub(crate) fn proposed(&self, node: NodeId) -> Vec<VolumeCommand> {
        let of_volume = |command: &Command| match &command.body {
            CommandBody::Volume { command, .. } => Some(command.clone()),
            CommandBody::Node(_) | CommandBody::Nfs { .. } => None,
        };
        self.proposals.iter().filter(|(by, _)| *by == node).filter_map(|(_, command)| of_volume(command)).collect()
    }

    /// How a client's operation ended.
    pub(crate) fn answer(&self, op: u64) -> Option<Result<(), Refusal>> {
        self.orders.iter().find_map(|(_, action)| match action {
            Action::Complete { op: other, .. } if *other == OpId(op) => Some(Ok(())),
            Action::Refuse { op: other, why } if *other == OpId(op) => Some(Err(*why)),
            _ => None,
        })
    }

    /// Orders of `node` that `pick` picks.
    pub(crate) fn count(&self, node: NodeId, pick: impl Fn(&Action) -> bool) -> usize {
        self.orders.iter().filter(|(by, action)| *by == node && pick(action)).count()
    }

    /// Messages that `node` has sent.
    pub(crate) fn sent(&self, node: NodeId) -> impl Iterator<Item = (Envelope, &Message)> {
        self.orders.iter().filter(move |(by, _)| *by == node).filter_map(|(_, action)| match action {
            Action::Send { envelope, message, .. } => Some((*envelope, message)),
            _ => None,
        })
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn tell(&mut self, node: NodeId, event: Event) {
        let mut actions = Vec::new();
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        replica.handle(self.now, event, &mut actions);
        for action in actions {
            self.orders.push((node, action.clone()));
            self.queue.push_back((node, action));
        }
    }

    fn settle(&mut self) {
        while let Some((node, action)) = self.queue.pop_front() {
            if (self.hold)(node, &action) {
                self.held.push((node, action));
            } else {
                self.carry_out(node, action);
            }
        }
    }

    fn dial(&mut self) {
        let linked = |pair: &Self, ends: &(NodeId, NodeId)| pair.links.values().any(|other| other == ends);
        for ends in self.dialling.clone() {
            if self.connected && !linked(self, &ends) && self.replicas.contains_key(&ends.1) {
                let link = LinkId(self.number());
                self.links.insert(link, ends);
                self.tell(ends.1, Event::LinkUp { peer: ends.0, link, outbound: false, protocol: SUPPORTED.max });
                self.tell(ends.0, Event::LinkUp { peer: ends.1, link, outbound: true, protocol: SUPPORTED.max });
            }
        }
    }

    fn drop_link(&mut self, link: LinkId) {
        if let Some((from, to)) = self.links.remove(&link) {
            self.tell(from, Event::LinkDown { link });
            self.tell(to, Event::LinkDown { link });
        }
    }

    fn carry_out(&mut self, node: NodeId, action: Action) {
        let result = IoResult::Ok;
        match action {
            Action::Dial { peer, on: true } => self.dialling.push((node, peer)),
            Action::Dial { peer, on: false } => {
                self.dialling.retain(|ends| *ends != (node, peer));
                let links: Vec<LinkId> =
                    self.links.iter().filter(|(_, ends)| **ends == (node, peer)).map(|(link, _)| *link).collect();
                links.into_iter().for_each(|link| self.drop_link(link));
            }
            Action::CloseLink { link, .. } => self.drop_link(link),
            Action::Send { link, envelope, message, payload } => {
                self.transmit(node, link, envelope, message, payload.is_some());
            }
            Action::SendDigests { link, envelope, message, .. } => {
                self.transmit(node, link, envelope, message, true);
            }
            Action::CompareDigests { io, .. } => {
                self.tell(node, Event::DigestsCompared { io, differing: Vec::new() });
            }
            Action::SendSums { link, envelope, message, .. } => {
                self.transmit(node, link, envelope, message, true);
            }
            Action::CompareSums { io, .. } => {
                self.tell(node, Event::SumsCompared { io, differing: Vec::new() });
            }
            Action::CoolExtents { io, extents, bitmaps } => {
                let store = self.stores.entry(node).or_default();
                store.write(&bitmaps);
                store.hot.retain(|extent| !extents.contains(extent));
                self.tell(node, Event::LocalDone { io, result });
            }
            Action::WriteBitmap { io, pages } => {
                self.stores.entry(node).or_default().write(&pages);
                self.tell(node, Event::LocalDone { io, result });
            }
            Action::ReadLocal { io, .. }
            | Action::RepairLocal { io, .. }
            | Action::ExpectLocal { io, .. }
            | Action::WriteLocal { io, .. }
            | Action::WriteBatchLocal { io, .. }
            | Action::FlushLocal { io } => self.tell(node, Event::LocalDone { io, result }),
            Action::MergeEdges { io, .. } | Action::MergeFetched { io, .. } => {
                self.tell(node, Event::EdgesMerged { io, result });
            }
            Action::PersistActivityLog { io, extents } => {
                self.stores.entry(node).or_default().hot.extend(extents);
                self.tell(node, Event::ActivityLogPersisted { io, result });
            }
            Action::PersistReplicaState { io, last_in_sync, .. } => {
                self.stores.entry(node).or_default().last_in_sync = last_in_sync;
                self.tell(node, Event::ReplicaStatePersisted { io, result });
            }
            Action::PersistFence { epoch, version } => self.tell(node, Event::FencePersisted { epoch, version }),
            Action::Propose(command) => self.propose(node, command),
            Action::Notify(Notice::Role { from, to, .. }) => {
                self.moves.insert((from, to));
            }
            Action::Notify(_)
            | Action::RecordScrub { .. }
            | Action::Release(_)
            | Action::Complete { .. }
            | Action::Refuse { .. }
            | Action::DetachDisk { .. }
            | Action::Stopped => {}
        }
    }

    fn transmit(&mut self, node: NodeId, link: LinkId, envelope: Envelope, message: Message, payload: bool) {
        let Some((from, to)) = self.links.get(&link).copied() else { return };
        let other = if node == from { to } else { from };
        let payload = payload.then(|| PayloadId::Frame(self.number()));
        self.tell(other, Event::Frame { link, envelope, message, payload });
    }

    fn propose(&mut self, node: NodeId, command: Command) {
        if !self.commits {
            self.proposals.push((node, command));
        } else if self.state.apply(&command) == Outcome::Applied {
            for node in self.nodes() {
                self.tell(node, Event::Config(Box::new(self.config().clone())));
            }
        }
    }
}

/// A write of whole blocks.
pub(crate) fn write(start: u64, count: u64) -> Request {
    let range = BlockRange::new(start, count);
    Request::Write { range, kind: WriteKind::Data, fua: false, coverage: Coverage::Whole }
}

/// A read.
pub(crate) fn read(start: u64, count: u64) -> Request {
    Request::Read { range: BlockRange::new(start, count) }
}

/// True for the local half of a write.
pub(crate) fn is_local_write(action: &Action) -> bool {
    matches!(action, Action::WriteLocal { .. })
}

/// True for a flush of the local disk.
pub(crate) fn is_local_flush(action: &Action) -> bool {
    matches!(action, Action::FlushLocal { .. })
}
