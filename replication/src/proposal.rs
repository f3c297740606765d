//! What the primary proposes to Raft, and when it proposes it again.
//!
//! A proposal carries the version it is guarded by; it is dead once the version has moved, and until then it may commit at
//! any time. So what it would change is treated both ways until then: a victim is still waited for, a copy to be admitted
//! already is.

use proto::{ConfigVersion, NodeId, RequestId, Timestamp};

use crate::config::VolumeCommand;
use crate::core::{Core, Disk};
use crate::link::Sync;
use crate::primary::{Primary, Service};

/// The last proposal.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Proposal {
    command: VolumeCommand,
    version: ConfigVersion,
    request: RequestId,
    at: Timestamp,
}

impl Primary {
    /// Proposes what is wanted most, and repeats it while nothing happens. Called after every event.
    pub(crate) fn progress_proposal(&mut self, core: &mut Core) {
        if self.service == Service::Starting {
            return;
        }
        let Some(command) = self.wanted(core) else { return };
        let version = core.version();
        let same = self.proposal.as_ref().filter(|last| last.command == command && last.version == version);
        let request = match same {
            Some(last) if core.now.since(last.at) < core.timing.proposal_retry => return,
            Some(last) => last.request,
            None => core.next_request(),
        };
        if let VolumeCommand::Admit { node, .. } = &command
            && let Some(peer) = self.peers.get_mut(node)
        {
            peer.sync = Sync::Admitting { version, proposed: true };
        }
        core.propose(request, command.clone());
        self.proposal = Some(Proposal { command, version, request, at: core.now });
    }

    /// The most urgent change, if any.
    fn wanted(&self, core: &Core) -> Option<VolumeCommand> {
        let by = (core.node, core.incarnation);
        let epoch = self.epoch;
        let config = core.config.as_ref()?;
        let lost_disk = matches!(core.disk, Disk::Detached { .. });
        if lost_disk && core.is_member() && config.in_sync.len() > 1 {
            return Some(VolumeCommand::Shrink { by, epoch, victims: vec![core.node] });
        }
        let victims = self.victims(core);
        if !victims.is_empty() && victims.len() < config.in_sync.len() {
            return Some(VolumeCommand::Shrink { by, epoch, victims });
        }
        let unresolved = |sync: &Sync| matches!(sync, Sync::Admitting { proposed: true, .. });
        if self.peers.values().any(|peer| unresolved(&peer.sync) && !peer.is_open()) {
            return Some(VolumeCommand::Renew { by, epoch });
        }
        if let Some(command) = self.handoff_command(core) {
            return Some(command);
        }
        self.peers.iter().find_map(|(node, peer)| {
            let Sync::Admitting { .. } = peer.sync else { return None };
            let session = peer.session.as_ref()?;
            // From the Admit on the peer could take over: reads must already be covered by its lease.
            if !peer.is_open() || !session.lease.is_valid(core.now) {
                return None;
            }
            let disk_id = config.replicas.get(node)?.disk_id;
            let (incarnation, boot) = session.identity;
            Some(VolumeCommand::Admit { by, epoch, node: *node, disk_id, incarnation, boot })
        })
    }

    /// Members that have been silent too long, or are known to be unable.
    fn victims(&self, core: &Core) -> Vec<NodeId> {
        let Some(config) = &core.config else { return Vec::new() };
        let registered = |node: &NodeId| config.replicas.get(node).map(|replica| replica.incarnation);
        let lost = |node: &NodeId| {
            self.peers.get(node).is_some_and(|peer| {
                let gone = registered(node).is_some_and(|incarnation| core.is_gone(*node, incarnation));
                let silent = !peer.is_open() && peer.silence(core.active) >= core.timing.shrink_after;
                peer.defect.is_some() || silent || (gone && !peer.is_open())
            })
        };
        config.in_sync.keys().filter(|node| **node != core.node && lost(node)).copied().collect()
    }
}
