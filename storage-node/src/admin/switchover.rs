//! A planned switchover: asks the local primary for it and waits until it is on record.

use std::time::{Duration, Instant};

use proto::admin as pb;
use proto::{NodeId, VolumeId};
use replication::Notice;
use replication::config::{ClusterState, Phase, VolumeConfig};
use replication::event::Control;
use tokio::sync::broadcast;

use super::context::{Context, find_node, find_volume, name_of};
use super::operations::{NodeEvent, NodeEventKind, OperationError};

/// How long a switchover may take when the request does not say.
const PATIENCE_DEFAULT: Duration = Duration::from_secs(30);

/// Hands the primary role over, and returns once the new primary is on record.
pub(super) async fn switchover(
    context: &Context,
    request: pb::SwitchoverRequest,
) -> Result<pb::SwitchoverReply, OperationError> {
    let begun = Instant::now();
    let state = context.state();
    let config = find_volume(&state, &request.volume)?.clone();
    context.require_node(config.primary, "is primary")?;
    let target = target(&state, &config, &request.to)?;
    let patience = match request.timeout_ms {
        0 => PATIENCE_DEFAULT,
        millis => Duration::from_millis(millis.into()),
    };
    let (primary, epoch) = if target == config.primary {
        (target, config.epoch.0)
    } else {
        // Subscribed before the wish is handed over, so that a refusal cannot be missed.
        let events = context.operations.events();
        context.operations.control(config.id, Control::Switchover { to: target }).await?;
        let waited = tokio::time::timeout(patience, outcome(context, &config, target, events)).await;
        waited.map_err(|_| {
            OperationError::Timeout(format!(
                "{} did not become primary of {} within {patience:?}; it may still happen: see `tandem volume show {}`",
                name_of(&state, target),
                config.name,
                config.name
            ))
        })??
    };
    Ok(pb::SwitchoverReply {
        primary: primary.0,
        primary_name: name_of(&context.state(), primary),
        epoch,
        took_ms: begun.elapsed().as_millis() as u64,
    })
}

/// The copy that shall be primary.
fn target(state: &ClusterState, config: &VolumeConfig, name: &str) -> Result<NodeId, OperationError> {
    if config.phase == Phase::Creating {
        return Err(OperationError::Refused(format!("{} is still being created", config.name)));
    }
    if name.is_empty() {
        let others: Vec<NodeId> = config.in_sync.keys().copied().filter(|node| *node != config.primary).collect();
        return match others[..] {
            [only] => Ok(only),
            [] => Err(OperationError::Refused(format!(
                "no other copy of {} is in sync; wait for the resync (`tandem volume show {} --follow`)",
                config.name, config.name
            ))),
            _ => Err(OperationError::Invalid("several copies are in sync; choose one with --to".into())),
        };
    }
    let (node, record) = find_node(state, name)?;
    if !config.replicas.contains_key(&node) {
        return Err(OperationError::NotFound(format!("{} holds no copy of {}", record.name, config.name)));
    }
    if !config.in_sync.contains_key(&node) {
        return Err(OperationError::Refused(format!(
            "the copy on {} is not in sync; wait for the resync (`tandem volume show {} --follow`)",
            record.name, config.name
        )));
    }
    Ok(node)
}

/// Waits for the record of a new primary, or for the core's refusal.
async fn outcome(
    context: &Context,
    before: &VolumeConfig,
    target: NodeId,
    mut events: broadcast::Receiver<NodeEvent>,
) -> Result<(NodeId, u64), OperationError> {
    let mut states = context.operations.state();
    loop {
        {
            let state = states.borrow_and_update();
            let Some(config) = state.volumes.get(&before.id) else {
                return Err(OperationError::NotFound(format!("{} was deleted meanwhile", before.name)));
            };
            if config.primary == target {
                return Ok((config.primary, config.epoch.0));
            }
            if config.primary != before.primary {
                let name = name_of(&state, config.primary);
                return Err(OperationError::Refused(format!("{name} became primary meanwhile")));
            }
        }
        tokio::select! {
            changed = states.changed() => {
                changed.map_err(|_| OperationError::Unavailable("this node is stopping".into()))?;
            }
            event = events.recv() => match event {
                Ok(event) => if let Some(why) = refusal(&event, before.id) {
                    return Err(OperationError::Refused(format!("switchover refused: {why}")));
                },
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(OperationError::Unavailable("this node is stopping".into()));
                }
            }
        }
    }
}

fn refusal(event: &NodeEvent, volume: VolumeId) -> Option<&'static str> {
    match &event.kind {
        NodeEventKind::Notice(Notice::SwitchoverRefused { why }) if event.volume == Some(volume) => Some(why),
        _ => None,
    }
}
