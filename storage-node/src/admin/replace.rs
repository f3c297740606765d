//! `volume replace`: the place of a dead copy goes to a new one. Every step looks at what is, so that a repeated or an
//! interrupted replacement goes on where it was.

use proto::admin as pb;
use proto::{DiskId, NodeId};
use replication::config::{ClusterState, Phase, VolumeCommand, VolumeConfig};

use super::context::{Context, find_node, find_storage_node, find_volume};
use super::operations::OperationError;
use super::volume::REPLICAS_MAX;

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The dead copy is still registered.
    Remove(NodeId),
    /// Its place is free.
    Add(NodeId),
    /// The new copy is registered.
    Done(NodeId),
}

/// Removes the dead copy and adds the new one; the store is made and resynced in the background.
pub(super) async fn replace(
    context: &Context,
    request: pb::ReplaceRequest,
) -> Result<pb::ReplaceReply, OperationError> {
    let disk_id = DiskId(rand::random());
    loop {
        let state = context.state();
        let config = find_volume(&state, &request.volume)?;
        match next_step(&state, config, &request)? {
            Step::Done(node) => {
                return Ok(pb::ReplaceReply {
                    disk_id: config.replicas[&node].disk_id.to_string(),
                    new_node: node.0,
                    in_sync: config.in_sync.contains_key(&node),
                });
            }
            // Each proposal is built from the newest configuration: what somebody else did meanwhile counts as done.
            Step::Remove(old) => {
                context
                    .propose_volume(&request.volume, |state, config| match next_step(state, config, &request)? {
                        Step::Remove(node) if node == old => Ok(VolumeCommand::RemoveReplica { node }),
                        _ => Err(moved_on(config)),
                    })
                    .await?;
            }
            Step::Add(new) => {
                context
                    .propose_volume(&request.volume, |state, config| match next_step(state, config, &request)? {
                        Step::Add(node) if node == new => Ok(VolumeCommand::AddReplica { node, disk_id }),
                        _ => Err(moved_on(config)),
                    })
                    .await?;
            }
        }
    }
}

fn moved_on(config: &VolumeConfig) -> OperationError {
    OperationError::Refused(format!("{} was changed by somebody else meanwhile; repeat the command", config.name))
}

/// The next step, or the guard that forbids it. Nothing is removed before the new place is known to be good.
fn next_step(
    state: &ClusterState,
    config: &VolumeConfig,
    request: &pb::ReplaceRequest,
) -> Result<Step, OperationError> {
    let new = find_storage_node(state, &request.new)?;
    let new_name = &request.new;
    // A node that has left the cluster meanwhile holds no copy: its step is done.
    let old = match find_node(state, &request.old) {
        Ok((old, _)) => Some(old),
        Err(_) if config.replicas.contains_key(&new) || config.replicas.len() < REPLICAS_MAX => None,
        Err(unknown) => return Err(unknown),
    };
    if old == Some(new) {
        return Err(OperationError::Invalid(format!(
            "--old and --new are both {new_name}; for a new disk in the same node remove its copy and add it again \
             (`tandem volume remove-replica`, `tandem volume add-replica`)"
        )));
    }
    if config.phase == Phase::Creating {
        return Err(OperationError::Refused(format!("{} is still being created", config.name)));
    }
    if let Some(old) = old.filter(|old| config.replicas.contains_key(old)) {
        check_dead(config, old, &request.old)?;
        return Ok(Step::Remove(old));
    }
    if config.replicas.contains_key(&new) {
        return Ok(Step::Done(new));
    }
    if config.replicas.len() >= REPLICAS_MAX {
        return Err(OperationError::Refused(format!(
            "{} holds no copy of {}, which has {REPLICAS_MAX} copies elsewhere already; name the one to be replaced",
            request.old, config.name
        )));
    }
    Ok(Step::Add(new))
}

/// The copy on `old` is out of use.
fn check_dead(config: &VolumeConfig, old: NodeId, name: &str) -> Result<(), OperationError> {
    let volume = &config.name;
    if config.primary == old {
        let other = config.in_sync.keys().any(|node| *node != old);
        let way = match other {
            true => format!(
                "`tandem volume switchover {volume}` hands the role over; if {name} is dead, the other copy takes it by \
                 itself within seconds"
            ),
            false => format!(
                "it alone holds every acknowledged write: if {name} is gone for good, see `tandem volume force-primary`"
            ),
        };
        return Err(OperationError::Refused(format!("{name} is primary of {volume}; {way}")));
    }
    if config.in_sync.contains_key(&old) {
        return Err(OperationError::Refused(format!(
            "the copy of {volume} on {name} is in sync and in use; if {name} lives, detach it first (`tandem volume \
             detach {volume} --node {name}`); if it has just died, the primary drops it within seconds: repeat the command"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proto::{ClusterId, Incarnation, RequestId, VolumeId};
    use replication::config::command::CommandBody;
    use replication::config::{AckPolicy, Command, NodeCommand, NodeRecord, Outcome};

    use super::*;

    const VOLUME: VolumeId = VolumeId(9);

    struct World {
        state: ClusterState,
        requests: u128,
    }

    impl World {
        fn new() -> Self {
            let mut world = World { state: ClusterState::default(), requests: 0 };
            let node = |name: &str| NodeRecord { name: name.into(), feature_levels: (1, 1), ..NodeRecord::default() };
            world.node(NodeCommand::Init { cluster: ClusterId(1), node: node("a") });
            world.node(NodeCommand::Join { node: node("b") });
            world.node(NodeCommand::Join { node: node("c") });
            world.node(NodeCommand::CreateVolume {
                volume: VOLUME,
                name: "vm".into(),
                size_bytes: 1 << 20,
                ack_policy: AckPolicy::Flush,
                preallocate: false,
                replicas: vec![(NodeId(1), DiskId(1)), (NodeId(2), DiskId(2))],
            });
            world
        }

        fn node(&mut self, command: NodeCommand) {
            self.requests += 1;
            let command = Command { request: RequestId(self.requests), body: CommandBody::Node(command) };
            assert!(!matches!(self.state.apply(&command), Outcome::Refused(_)));
        }

        fn volume(&mut self, command: VolumeCommand) {
            self.requests += 1;
            let expect_version = self.state.volumes[&VOLUME].version;
            let body = CommandBody::Volume { volume: VOLUME, expect_version, command };
            assert_eq!(self.state.apply(&Command { request: RequestId(self.requests), body }), Outcome::Applied);
        }

        fn activate(&mut self) {
            for id in [1, 2] {
                self.volume(VolumeCommand::ReplicaReady { node: NodeId(id), disk_id: DiskId(u128::from(id)) });
            }
        }

        fn next(&self, old: &str, new: &str) -> Result<Step, OperationError> {
            let request = pb::ReplaceRequest { volume: "vm".into(), old: old.into(), new: new.into() };
            next_step(&self.state, &self.state.volumes[&VOLUME], &request)
        }
    }

    #[test]
    fn a_replacement_goes_on_from_every_step() {
        let mut world = World::new();
        world.activate();
        let (by, epoch) = ((NodeId(1), Incarnation(0)), world.state.volumes[&VOLUME].epoch);
        world.volume(VolumeCommand::Shrink { by, epoch, victims: vec![NodeId(2)] });
        assert_eq!(world.next("b", "c"), Ok(Step::Remove(NodeId(2))));
        world.volume(VolumeCommand::RemoveReplica { node: NodeId(2) });
        assert_eq!(world.next("b", "c"), Ok(Step::Add(NodeId(3))));
        world.volume(VolumeCommand::AddReplica { node: NodeId(3), disk_id: DiskId(7) });
        assert_eq!(world.next("b", "c"), Ok(Step::Done(NodeId(3))));
        world.node(NodeCommand::Leave { node: NodeId(2) });
        assert_eq!(world.next("b", "c"), Ok(Step::Done(NodeId(3))), "the old node has left since");
        assert!(matches!(world.next("b", "x"), Err(OperationError::NotFound(_))));
    }

    #[test]
    fn a_copy_in_use_is_not_replaced_and_the_refusal_says_what_would_be_safe() {
        let mut world = World::new();
        let refused = |world: &World, old: &str, new: &str| world.next(old, new).unwrap_err().to_string();
        assert!(refused(&world, "b", "c").contains("being created"));
        world.activate();
        assert!(refused(&world, "a", "c").contains("switchover"));
        assert!(refused(&world, "b", "c").contains("detach"));
        assert!(refused(&world, "b", "b").contains("add-replica"));
        assert!(refused(&world, "nobody", "c").contains("node list"));
        let (by, epoch) = ((NodeId(1), Incarnation(0)), world.state.volumes[&VOLUME].epoch);
        world.volume(VolumeCommand::Shrink { by, epoch, victims: vec![NodeId(2)] });
        assert!(refused(&world, "a", "c").contains("force-primary"));
    }
}
