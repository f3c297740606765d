//! Forcing a primary, in two steps: the plan with what it may lose, and its execution.

use proto::NodeId;
use proto::admin as pb;
use replication::config::{Phase, VolumeCommand, VolumeConfig};

use super::context::{Context, View, find_node, find_volume};
use super::operations::OperationError;

/// First step. Refused while the attested node can be heard: an operator who errs must not make two primaries.
pub(super) async fn prepare(
    context: &Context,
    request: pb::PrepareForceRequest,
) -> Result<pb::PrepareForceReply, OperationError> {
    let view = context.view().await?;
    let config = find_volume(&view.state, &request.volume)?.clone();
    let (target, target_record) = find_node(&view.state, &request.target)?;
    let attested = match request.attest_off.as_str() {
        "" => config.primary,
        name => find_node(&view.state, name)?.0,
    };
    check(&view, &config, target, attested)?;
    let attested_record = view
        .state
        .nodes
        .get(&attested)
        .ok_or_else(|| OperationError::NotFound(format!("no node {attested} on record")))?;
    let token: u64 = rand::random::<u64>() | 1;
    let attested_run = (attested, attested_record.incarnation);
    context
        .propose_volume(&config.name, |_, _| Ok(VolumeCommand::PrepareForce { target, attested: attested_run, token }))
        .await?;
    Ok(pb::PrepareForceReply {
        token,
        target: target.0,
        target_name: target_record.name.clone(),
        attested: attested.0,
        attested_name: attested_record.name.clone(),
        attested_incarnation: attested_record.incarnation.to_string(),
        warnings: warnings(&view, &config, target, attested),
    })
}

/// Second step.
pub(super) async fn force(
    context: &Context,
    request: pb::ForcePrimaryRequest,
) -> Result<pb::ForcePrimaryReply, OperationError> {
    let token = request.token;
    let before = context
        .propose_volume(&request.volume, |_, config| match &config.force_plan {
            Some(plan) if plan.token == token => Ok(VolumeCommand::ForcePrimary { token }),
            Some(_) => Err(OperationError::Refused(
                "that token belongs to an older plan; begin again with the first step".into(),
            )),
            None => Err(OperationError::Refused(
                "there is no such plan, or something changed since it was made; begin again with the first step".into(),
            )),
        })
        .await?;
    let state = context.state();
    let config = state.volumes.get(&before.id).unwrap_or(&before);
    Ok(pb::ForcePrimaryReply { primary: config.primary.0, epoch: config.epoch.0 })
}

fn check(view: &View, config: &VolumeConfig, target: NodeId, attested: NodeId) -> Result<(), OperationError> {
    let (target_name, attested_name) = (view.name(target), view.name(attested));
    if config.phase == Phase::Creating {
        return Err(OperationError::Refused(format!("{} is still being created", config.name)));
    }
    if !config.replicas.contains_key(&target) {
        return Err(OperationError::NotFound(format!("{target_name} holds no copy of {}", config.name)));
    }
    if target == attested {
        return Err(OperationError::Invalid(format!("{target_name} cannot serve and be off at once")));
    }
    if view.nodes.contains_key(&attested) {
        return Err(OperationError::Refused(format!(
            "{attested_name} answers: it is not off. Use `tandem volume switchover {} --to {target_name}`, or let it resync",
            config.name
        )));
    }
    if config.in_sync.contains_key(&target) && config.in_sync.len() > 1 {
        return Err(OperationError::Refused(format!(
            "{target_name} is in sync and takes over by itself, without loss; see `tandem volume show {}`",
            config.name
        )));
    }
    Ok(())
}

fn warnings(view: &View, config: &VolumeConfig, target: NodeId, attested: NodeId) -> Vec<String> {
    let (target_name, attested_name) = (view.name(target), view.name(attested));
    let holders: Vec<String> = config.in_sync.keys().map(|node| view.name(*node)).collect();
    let mut lines = vec![
        format!(
            "Only {} holds every acknowledged write of {}. The copy on {target_name} lacks what was written after it \
             fell behind; clients were told that those writes are safe, and they will be gone.",
            holders.join(" and "),
            config.name
        ),
        format!(
            "You attest that {attested_name} is powered off or cut from every client. If it still runs, clients may see \
             two different volumes."
        ),
        format!(
            "When {attested_name} returns, its copy is overwritten from {target_name}. Save it first if you may need it."
        ),
    ];
    match view.replica(target, config.id) {
        None => lines.push(format!("{target_name} does not answer now: the volume serves once it is back.")),
        Some(copy) if !copy.store_error.is_empty() => {
            lines.push(format!("The store on {target_name} reports: {}", copy.store_error));
        }
        Some(_) => {}
    }
    lines
}
