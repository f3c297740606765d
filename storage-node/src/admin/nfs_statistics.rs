//! What the NFS services of volumes have counted, and their clients. Only the primary of a volume knows: this node asks those
//! that it is not itself, for their own services only, and says of those that do not answer that they do not.

use std::future::Future;

use futures_util::future::join_all;
use gateway_nfs::statistics::report::Report;
use proto::admin as pb;
use proto::admin::nfs_client::NfsClient;
use proto::{NodeId, VolumeId};
use replication::config::VolumeConfig;
use tonic::transport::Channel;

use super::client::connect;
use super::context::{Context, VIEW_TIMEOUT, find_volume, name_of};
use super::nfs_report_messages as messages;
use super::operations::OperationError;

/// A service, where it runs, and how that node is reached.
struct Place {
    volume: VolumeId,
    primary: NodeId,
    admin_address: String,
    serving: pb::NfsServing,
}

/// See the API.
pub(super) async fn stats(
    context: &Context,
    request: pb::NfsStatsRequest,
) -> Result<pb::NfsStatsReply, OperationError> {
    let ask = |channel, volume| async move {
        let request = pb::NfsStatsRequest { volume, local: true };
        let reply = NfsClient::new(channel).stats(request).await.ok()?.into_inner();
        let found = reply.services.into_iter().next()?;
        Some((found.serving?.silent, found.figures))
    };
    let found =
        collect(context, (&request.volume, request.local), |report| Some(messages::figures(report)), ask).await?;
    let services = found.into_iter().map(|(serving, figures)| pb::NfsServiceStats { serving: Some(serving), figures });
    Ok(pb::NfsStatsReply { services: services.collect() })
}

/// See the API.
pub(super) async fn clients(
    context: &Context,
    request: pb::NfsClientsRequest,
) -> Result<pb::NfsClientsReply, OperationError> {
    let ask = |channel, volume| async move {
        let request = pb::NfsClientsRequest { volume, local: true };
        let reply = NfsClient::new(channel).clients(request).await.ok()?.into_inner();
        let found = reply.services.into_iter().next()?;
        Some((found.serving?.silent, found.clients))
    };
    let found = collect(context, (&request.volume, request.local), messages::clients, ask).await?;
    let services =
        found.into_iter().map(|(serving, clients)| pb::NfsServiceClients { serving: Some(serving), clients });
    Ok(pb::NfsClientsReply { services: services.collect() })
}

/// Asks every service in question, all at once. `of` takes what is wanted from a report of this node, `ask` from another node,
/// with why that one has nothing to tell.
async fn collect<T, F>(
    context: &Context,
    (volume, local): (&str, bool),
    of: impl Fn(&Report) -> T,
    ask: impl Fn(Channel, String) -> F,
) -> Result<Vec<(pb::NfsServing, T)>, OperationError>
where
    T: Default,
    F: Future<Output = Option<(String, T)>>,
{
    let me = context.me()?;
    let places = places(context, volume)?.into_iter().filter(|place| !local || place.primary == me);
    Ok(join_all(places.map(|place| one(context, me, place, &of, &ask))).await)
}

/// Asks one service.
async fn one<T, F>(
    context: &Context,
    me: NodeId,
    place: Place,
    of: &impl Fn(&Report) -> T,
    ask: &impl Fn(Channel, String) -> F,
) -> (pb::NfsServing, T)
where
    T: Default,
    F: Future<Output = Option<(String, T)>>,
{
    let Place { volume, primary, admin_address, mut serving } = place;
    let name = serving.primary_name.clone();
    let told = if primary == me {
        let report = context.operations.nfs_report(volume).await;
        report.map(|report| (String::new(), of(&report))).unwrap_or_else(|| {
            let why = format!(
                "its service does not run on {name} yet, or is too busy to answer; try again, and see the log of that node"
            );
            (why, T::default())
        })
    } else {
        let asking = async { ask(connect(&context.transport, &admin_address).await.ok()?, volume.to_string()).await };
        let answered = tokio::time::timeout(VIEW_TIMEOUT, asking).await.ok().flatten();
        answered.unwrap_or_else(|| {
            let why = format!("{name} does not answer; see `tandem volume show {}`", serving.volume);
            (why, T::default())
        })
    };
    serving.silent = told.0;
    (serving, told.1)
}

/// The services in question. Errors: there is no such volume, or it is not served.
fn places(context: &Context, volume: &str) -> Result<Vec<Place>, OperationError> {
    let state = context.state();
    let place = |config: &VolumeConfig| {
        config.nfs.as_ref()?;
        let admin_address = state.nodes.get(&config.primary).map(|node| node.admin_address.clone()).unwrap_or_default();
        let serving = pb::NfsServing {
            volume: config.name.clone(),
            volume_id: config.id.to_string(),
            primary: config.primary.0,
            primary_name: name_of(&state, config.primary),
            silent: String::new(),
        };
        Some(Place { volume: config.id, primary: config.primary, admin_address, serving })
    };
    if volume.is_empty() {
        return Ok(state.volumes.values().filter_map(place).collect());
    }
    let config = find_volume(&state, volume)?;
    let place = place(config).ok_or_else(|| {
        let name = &config.name;
        OperationError::Refused(format!("{name} is not served over NFS: serve it first (tandem nfs serve {name})"))
    })?;
    Ok(vec![place])
}
