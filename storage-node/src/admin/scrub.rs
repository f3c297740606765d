//! A scrub or verify on demand: asks the local primary for it, and returns once it has begun or was refused.

use std::time::Duration;

use proto::VolumeId;
use proto::admin as pb;
use replication::Notice;
use replication::config::Phase;
use replication::event::Control;
use tokio::sync::broadcast;

use super::context::{Context, find_volume, name_of};
use super::operations::{NodeEvent, NodeEventKind, OperationError};

/// How long the volume may take to say that it has begun.
const PATIENCE: Duration = Duration::from_secs(5);

/// Begins a scrub, or a verify.
pub(super) async fn start(
    context: &Context,
    request: pb::StartScrubRequest,
) -> Result<pb::StartScrubReply, OperationError> {
    let state = context.state();
    let config = find_volume(&state, &request.volume)?;
    if config.phase == Phase::Creating {
        return Err(OperationError::Refused(format!("{} is still being created", config.name)));
    }
    context.require_node(config.primary, "is primary")?;
    let primary_name = name_of(&state, config.primary);
    if !config.in_sync.contains_key(&config.primary) {
        return Err(OperationError::Refused(format!(
            "primary {primary_name} has no copy of {} in sync and serves through the other one; attach its disk first \
             (`tandem volume attach {} --node {primary_name}`)",
            config.name, config.name
        )));
    }
    let begun = context.operations.now();
    // Subscribed before the wish is handed over, so that the answer cannot be missed.
    let events = context.operations.events();
    let verify_only = request.verify_only;
    context.operations.control(config.id, Control::Scrub { verify_only }).await?;
    let waited = tokio::time::timeout(PATIENCE, outcome(config.id, verify_only, events)).await;
    waited.map_err(|_| {
        OperationError::Timeout(format!(
            "{} did not say within {PATIENCE:?} that it has begun; see `tandem volume show {}`",
            config.name, config.name
        ))
    })??;
    Ok(pb::StartScrubReply { primary: config.primary.0, primary_name, begun_boot_micros: begun.0 })
}

/// Waits until the core says that it has begun, or why not.
async fn outcome(
    volume: VolumeId,
    verify_only: bool,
    mut events: broadcast::Receiver<NodeEvent>,
) -> Result<(), OperationError> {
    loop {
        match events.recv().await {
            Ok(NodeEvent { volume: Some(about), kind: NodeEventKind::Notice(notice), .. }) if about == volume => {
                match notice {
                    // A later report, of a scrub that is being replaced, has seen some blocks.
                    Notice::Scrub { report, done: false }
                        if report.verify_only == verify_only && report.done_blocks == 0 =>
                    {
                        return Ok(());
                    }
                    Notice::ScrubRefused { why } => return Err(OperationError::Refused(why.to_owned())),
                    _ => {}
                }
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => {
                return Err(OperationError::Unavailable("this node is stopping".into()));
            }
        }
    }
}
