//! Who takes part: learners, their promotion, removal, and the leader's view of its members.
//!
//! A change of the voters goes through joint consensus (Ongaro's thesis, section 4.3): one entry enters the joint
//! configuration, and whoever leads then proposes the one that leaves it, so a crash in between only delays the end. A
//! voter that is removed gives its place to a learner that is ready, in the same change.

use std::collections::BTreeMap;

use proto::NodeId;
use raft::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Message, MessageType,
};
use raft::{ProgressState, SnapshotStatus};
use thiserror::Error;

use super::validate::membership_request;
use super::{Consensus, MEMBERS_MAX, SNAPSHOT_PATIENCE_ELECTIONS};
use crate::config::NodeKind;

/// Voters up to which learners are promoted.
pub const VOTERS_MAX: usize = 7;
/// Entries by which a learner may lag when it is promoted.
const PROMOTE_LAG_MAX: u64 = 16;
/// Election timeouts between two tries to hand leadership to a witness.
const TRANSFER_BACKOFF_ELECTIONS: u64 = 20;
/// Election timeouts of silence after which a voter counts as gone, and learners are told that they wait for its place.
const GONE_ELECTIONS: u64 = 10;

/// How far a node is on its way to a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It votes.
    Voter,
    /// It has caught up, and waits: a voter is gone, and a vote more would only raise the majority that the others must
    /// reach. It gets its vote when that voter returns, or the place of that voter when it is removed.
    Waiting,
    /// It is on its way; a request may be lost, so ask again.
    Pending,
}

/// Why a change of membership was not proposed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MembershipRefused {
    /// Only a leader changes the membership: try again.
    #[error("no Raft leader is known")]
    NoLeader,
    /// Another change is not finished, or a write is outstanding: try again.
    #[error("another change of the membership is not finished yet")]
    Busy,
    /// The leader cannot remove itself.
    #[error("the leader does not remove itself; leadership moves to another voter first")]
    Leader,
    /// No voter would be left.
    #[error("the last voter cannot be removed")]
    LastVoter,
    /// A majority of what would remain is silent.
    #[error("of the voters that would remain, no majority is reachable")]
    Majority,
    /// The cluster is as large as it can be.
    #[error("the cluster has as many members as it can have")]
    Full,
}

impl Consensus {
    /// Adds a learner, through the leader if that is another node; the leader makes it a voter once it has caught up.
    pub fn add_voter(&mut self, node: NodeId) -> Result<Standing, MembershipRefused> {
        let joint = self.is_joint();
        if self.conf_state.voters.contains(&node.0) {
            return Ok(if joint { Standing::Pending } else { Standing::Voter });
        }
        if self.conf_state.learners.contains(&node.0) {
            let waits = self.is_leader() && !joint && self.a_voter_is_gone() && self.is_ready(node.0);
            return Ok(if waits { Standing::Waiting } else { Standing::Pending });
        }
        if joint {
            return Err(MembershipRefused::Busy);
        }
        if self.conf_state.voters.len() + self.conf_state.learners.len() >= MEMBERS_MAX {
            return Err(MembershipRefused::Full);
        }
        self.change(ConfChangeType::AddLearnerNode, node)?;
        Ok(Standing::Pending)
    }

    /// Removes a voter or learner, through the leader if that is another node. A learner that is ready takes the place
    /// of a voter in the same change. True if the node is gone already.
    pub fn remove_voter(&mut self, node: NodeId) -> Result<bool, MembershipRefused> {
        let voter = self.conf_state.voters.contains(&node.0);
        let leaving = self.conf_state.voters_outgoing.contains(&node.0);
        if !voter && !leaving && !self.conf_state.learners.contains(&node.0) {
            return Ok(true);
        }
        if self.is_joint() {
            return Err(MembershipRefused::Busy);
        }
        if voter {
            let mut rest: Vec<u64> = self.conf_state.voters.iter().copied().filter(|id| *id != node.0).collect();
            rest.extend(self.ready_learner());
            if rest.is_empty() {
                return Err(MembershipRefused::LastVoter);
            }
            if self.is_leader() && node == self.config.node {
                return Err(MembershipRefused::Leader);
            }
            let heard = self.heard();
            let alive = rest.iter().filter(|id| heard.get(&NodeId(**id)) == Some(&true)).count();
            if self.is_leader() && alive * 2 <= rest.len() {
                return Err(MembershipRefused::Majority);
            }
        }
        self.change(ConfChangeType::RemoveNode, node)?;
        Ok(false)
    }

    /// On the leader: a change that a follower passed on, under the leader's own rules. False: not such a request.
    pub(super) fn take_membership_request(&mut self, message: &Message) -> bool {
        let Some(change) = membership_request(message) else { return false };
        let node = NodeId(change.node_id);
        // A refusal shows to the asker as a change that does not come about; it asks again.
        match change.get_change_type() {
            ConfChangeType::AddLearnerNode => drop(self.add_voter(node)),
            ConfChangeType::RemoveNode if self.remove_voter(node) == Err(MembershipRefused::Leader) => {
                self.step_aside();
            }
            _ => {}
        }
        true
    }

    /// On the leader proposes the change; elsewhere passes the wish on to the leader.
    fn change(&mut self, kind: ConfChangeType, node: NodeId) -> Result<(), MembershipRefused> {
        if self.leader() == NodeId::NONE {
            return Err(MembershipRefused::NoLeader);
        }
        if self.in_flight.is_some() || self.halt.is_some() {
            return Err(MembershipRefused::Busy);
        }
        if !self.is_leader() {
            // Passing it on is a turn, and who asks again after every turn would do nothing else ever: the leader's
            // answer would wait for a queue that nobody empties.
            if self.passed_on.contains(&(kind, node.0)) {
                return Ok(());
            }
            if self.passed_on.len() >= MEMBERS_MAX {
                return Err(MembershipRefused::Busy);
            }
            let mut wish = ConfChange { node_id: node.0, ..ConfChange::default() };
            wish.set_change_type(kind);
            let passed_on = self.raw.propose_conf_change(Vec::new(), wish);
            self.after_input(false);
            passed_on.map_err(|_| MembershipRefused::Busy)?;
            self.passed_on.push((kind, node.0));
            return Ok(());
        }
        let mut changes = vec![(kind, node.0)];
        let voters_change = match kind {
            ConfChangeType::AddLearnerNode => false,
            ConfChangeType::AddNode => true,
            ConfChangeType::RemoveNode => self.conf_state.voters.contains(&node.0),
        };
        if voters_change && kind == ConfChangeType::RemoveNode {
            changes.extend(self.ready_learner().map(|id| (ConfChangeType::AddNode, id)));
        }
        self.propose_change(&changes, voters_change)
    }

    /// Proposes changes as one entry: joint, to be left by an entry of its own, or simple. No changes leave the joint
    /// configuration.
    fn propose_change(&mut self, changes: &[(ConfChangeType, u64)], joint: bool) -> Result<(), MembershipRefused> {
        if self.raw.raft.has_pending_conf() || self.raw.raft.lead_transferee.is_some() {
            return Err(MembershipRefused::Busy);
        }
        let single = |(kind, id): &(ConfChangeType, u64)| {
            let mut single = ConfChangeSingle { node_id: *id, ..ConfChangeSingle::default() };
            single.set_change_type(*kind);
            single
        };
        let singles: Vec<ConfChangeSingle> = changes.iter().map(single).collect();
        let mut change = ConfChangeV2 { changes: singles.into(), ..ConfChangeV2::default() };
        if joint {
            change.set_transition(ConfChangeTransition::Explicit);
        }
        let proposed = self.raw.propose_conf_change(Vec::new(), change);
        self.after_input(false);
        proposed.map_err(|_| MembershipRefused::Busy)
    }

    /// Applies a committed change. One that raft-rs refuses changes nothing, on every node alike.
    pub(super) fn adopt_membership(&mut self, change: &ConfChangeV2) {
        if let Ok(mut conf_state) = self.raw.apply_conf_change(change) {
            conf_state.voters.sort_unstable();
            conf_state.learners.sort_unstable();
            conf_state.voters_outgoing.sort_unstable();
            conf_state.learners_next.sort_unstable();
            self.conf_state = conf_state;
        }
    }

    /// True between the two entries of a change of the voters.
    pub fn is_joint(&self) -> bool {
        !self.conf_state.voters_outgoing.is_empty()
    }

    /// Voters (true) and learners (false); of a joint configuration the voters of both halves.
    pub fn members(&self) -> BTreeMap<NodeId, bool> {
        let learners = self.conf_state.learners.iter().map(|id| (NodeId(*id), false));
        let voters = self.conf_state.voters.iter().chain(&self.conf_state.voters_outgoing);
        learners.chain(voters.map(|id| (NodeId(*id), true))).collect()
    }

    pub(super) fn is_sole_voter(&self) -> bool {
        self.conf_state.voters == [self.config.node.0] && self.conf_state.voters_outgoing.is_empty()
    }

    /// On the leader: who was heard within the last election timeout. A leader of a few heartbeats' age counts those it
    /// has never heard as heard, because they had no chance to answer. Empty elsewhere.
    pub fn heard(&self) -> BTreeMap<NodeId, bool> {
        let Some(since) = self.leader_since else { return BTreeMap::new() };
        let young = self.ticks - since <= 2 * self.config.heartbeat_ticks as u64 + 2;
        let heard = |id: NodeId| match self.last_heard.get(&id.0) {
            _ if id == self.config.node => true,
            Some(tick) => self.ticks - tick <= self.config.election_ticks as u64,
            None => young,
        };
        self.members().into_keys().map(|id| (id, heard(id))).collect()
    }

    /// Voters that hold everything this leader holds and answer.
    fn is_fit_to_lead(&self, node: NodeId) -> bool {
        let last = self.raw.raft.raft_log.last_index();
        let matched = self.raw.raft.prs().get(node.0).map(|progress| progress.matched);
        node != self.config.node
            && self.conf_state.voters.contains(&node.0)
            && matched == Some(last)
            && self
                .last_heard
                .get(&node.0)
                .is_some_and(|tick| self.ticks - tick <= self.config.heartbeat_ticks as u64 * 2)
    }

    /// Hands leadership over; false if this node does not lead or `to` is not fit. It may fail silently: after one
    /// election timeout this node goes on as leader.
    pub fn transfer_leader(&mut self, to: NodeId) -> bool {
        if !self.is_leader() || self.in_flight.is_some() || self.halt.is_some() || !self.is_fit_to_lead(to) {
            return false;
        }
        self.raw.transfer_leader(to.0);
        self.after_input(false);
        true
    }

    /// Hands leadership to any fit voter, a witness if there is one.
    pub fn step_aside(&mut self) -> bool {
        let mut fit: Vec<NodeId> = self.members().into_keys().filter(|id| self.is_fit_to_lead(*id)).collect();
        fit.sort_by_key(|id| !self.is_witness(*id));
        fit.first().is_some_and(|to| self.transfer_leader(*to))
    }

    fn is_witness(&self, node: NodeId) -> bool {
        self.state.nodes.get(&node).is_some_and(|record| record.kind == NodeKind::Witness)
    }

    /// A box that stores data gives leadership to a witness, so that its death costs no election as well.
    pub(super) fn prefer_witness(&mut self) {
        if self.ticks < self.transfer_not_before || self.is_witness(self.config.node) {
            return;
        }
        let election = self.config.election_ticks as u64;
        let settled = self.leader_since.is_some_and(|since| self.ticks - since >= 2 * election);
        let Some(to) = self.members().into_keys().find(|id| self.is_witness(*id) && self.is_fit_to_lead(*id)) else {
            return;
        };
        if settled && !self.raw.raft.has_pending_conf() && self.transfer_leader(to) {
            self.transfer_not_before = self.ticks + TRANSFER_BACKOFF_ELECTIONS * election;
        }
    }

    /// On the leader, each tick: ends a joint configuration, whoever began it; else gives a vote to a learner.
    pub(super) fn advance_membership(&mut self) {
        if self.in_flight.is_some() || self.raw.raft.has_pending_conf() || self.raw.raft.lead_transferee.is_some() {
            return;
        }
        // What is refused now is tried again at the next tick.
        if self.is_joint() {
            if self.conf_state.voters.contains(&self.config.node.0) {
                let _ = self.propose_change(&[], false);
            } else {
                // A leader that is on its way out would be left leading a group that it is no part of.
                self.step_aside();
            }
            return;
        }
        let voters = &self.conf_state.voters;
        if voters.len() < VOTERS_MAX
            && voters.iter().all(|id| self.answers(*id))
            && let Some(id) = self.ready_learner()
        {
            let _ = self.propose_change(&[(ConfChangeType::AddNode, id)], true);
        }
    }

    /// On the leader: a learner that has caught up and answers.
    fn ready_learner(&self) -> Option<u64> {
        if !self.is_leader() {
            return None;
        }
        self.conf_state.learners.iter().copied().find(|id| self.is_ready(*id))
    }

    fn is_ready(&self, id: u64) -> bool {
        let last = self.raw.raft.raft_log.last_index();
        let near = self.raw.raft.prs().get(id).is_some_and(|progress| {
            progress.state != ProgressState::Snapshot
                && progress.matched > 0
                && progress.matched + PROMOTE_LAG_MAX >= last
        });
        let election = self.config.election_ticks as u64;
        near && self.last_heard.get(&id).is_some_and(|tick| self.ticks - tick <= election)
    }

    /// On the leader: this node has been heard under its leadership, lately. Unlike [`Self::heard`] it gives a new
    /// leader no credit: a dead voter must not count for the moment after an election.
    fn answers(&self, id: u64) -> bool {
        let Some(since) = self.leader_since else { return false };
        let election = self.config.election_ticks as u64;
        let lately = |tick: &u64| *tick >= since && self.ticks - *tick <= election;
        id == self.config.node.0 || self.last_heard.get(&id).is_some_and(lately)
    }

    /// On the leader: a voter has been silent for long.
    fn a_voter_is_gone(&self) -> bool {
        let Some(since) = self.leader_since else { return false };
        let patience = GONE_ELECTIONS * self.config.election_ticks as u64;
        let heard_at = |id: &u64| self.last_heard.get(id).copied().unwrap_or(0).max(since);
        self.conf_state.voters.iter().any(|id| *id != self.config.node.0 && self.ticks - heard_at(id) > patience)
    }

    /// Remembers when a snapshot left: raft-rs sends nothing else to that follower until it hears how it went.
    pub(super) fn note_snapshots(&mut self, messages: &[Message]) {
        for message in messages.iter().filter(|message| message.get_msg_type() == MessageType::MsgSnapshot) {
            self.snapshots_sent.insert(message.to, self.ticks);
        }
    }

    pub(super) fn retry_snapshots(&mut self) {
        let patience = SNAPSHOT_PATIENCE_ELECTIONS * self.config.election_ticks as u64;
        let now = self.ticks;
        let lost = |sent: &u64| now - *sent >= patience;
        let overdue: Vec<u64> = self.snapshots_sent.iter().filter(|(_, sent)| lost(sent)).map(|(id, _)| *id).collect();
        self.snapshots_sent.retain(|_, sent| !lost(sent));
        for id in overdue {
            // Ignored by raft-rs unless that follower's progress still waits for a snapshot.
            self.raw.report_snapshot(id, SnapshotStatus::Failure);
        }
        self.after_input(false);
    }
}
