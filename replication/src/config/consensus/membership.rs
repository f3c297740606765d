//! Who takes part: learners, their promotion, removal, and the leader's view of its members.

use std::collections::BTreeMap;

use proto::NodeId;
use raft::eraftpb::{ConfChange, ConfChangeType, ConfChangeV2, Message, MessageType};
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
    /// True if it is a voter already; otherwise ask again, a request may be lost.
    pub fn add_voter(&mut self, node: NodeId) -> Result<bool, MembershipRefused> {
        if self.conf_state.voters.contains(&node.0) {
            return Ok(true);
        }
        if self.conf_state.learners.contains(&node.0) {
            return Ok(false);
        }
        if self.conf_state.voters.len() + self.conf_state.learners.len() >= MEMBERS_MAX {
            return Err(MembershipRefused::Full);
        }
        self.change(ConfChangeType::AddLearnerNode, node)?;
        Ok(false)
    }

    /// Removes a voter or learner, through the leader if that is another node. True if it is gone already.
    pub fn remove_voter(&mut self, node: NodeId) -> Result<bool, MembershipRefused> {
        let voter = self.conf_state.voters.contains(&node.0);
        if !voter && !self.conf_state.learners.contains(&node.0) {
            return Ok(true);
        }
        if voter {
            let rest: Vec<u64> = self.conf_state.voters.iter().copied().filter(|id| *id != node.0).collect();
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

    fn change(&mut self, kind: ConfChangeType, node: NodeId) -> Result<(), MembershipRefused> {
        if self.leader() == NodeId::NONE {
            return Err(MembershipRefused::NoLeader);
        }
        let pending = self.is_leader() && self.raw.raft.has_pending_conf();
        if self.in_flight.is_some() || self.halt.is_some() || pending {
            return Err(MembershipRefused::Busy);
        }
        let mut change = ConfChange { node_id: node.0, ..ConfChange::default() };
        change.set_change_type(kind);
        let proposed = self.raw.propose_conf_change(Vec::new(), change);
        self.after_input(false);
        proposed.map_err(|_| MembershipRefused::Busy)
    }

    /// Applies a committed change. One that raft-rs refuses changes nothing, on every node alike.
    pub(super) fn adopt_membership(&mut self, change: &ConfChangeV2) {
        if let Ok(mut conf_state) = self.raw.apply_conf_change(change) {
            conf_state.voters.sort_unstable();
            conf_state.learners.sort_unstable();
            self.conf_state = conf_state;
        }
    }

    /// Voters (true) and learners (false).
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

    pub(super) fn promote_learners(&mut self) {
        if self.conf_state.voters.len() >= VOTERS_MAX || self.raw.raft.lead_transferee.is_some() {
            return;
        }
        let last = self.raw.raft.raft_log.last_index();
        let election = self.config.election_ticks as u64;
        let ready = |id: &&u64| {
            let near = self.raw.raft.prs().get(**id).is_some_and(|progress| {
                progress.state != ProgressState::Snapshot
                    && progress.matched > 0
                    && progress.matched + PROMOTE_LAG_MAX >= last
            });
            near && self.last_heard.get(*id).is_some_and(|tick| self.ticks - tick <= election)
        };
        if let Some(id) = self.conf_state.learners.iter().find(ready).copied() {
            // Busy now means another try at the next tick.
            let _ = self.change(ConfChangeType::AddNode, NodeId(id));
        }
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
