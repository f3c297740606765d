//! The Nfs service: how volumes are served over NFS, and who may use it.
//!
//! Only the configuration: every change is a command to the replicated state machine, which has the last word on all that is
//! checked here. The gateway follows that state by itself.

use proto::RequestId;
use proto::admin as pb;
use replication::config::command::CommandBody;
use replication::config::nfs::{Client, EXPORT_RULES_MAX, ExportRule, NFS_LEVEL, NFS_PORT, NfsService, PlaceConflict};
use replication::config::{ClusterState, Command, NfsCommand, Outcome, VolumeConfig};
use tonic::{Request, Response, Status};

use super::context::{COMPARE_AND_SWAP_TRIES_MAX, Context, PROPOSE_PATIENCE, find_volume};
use super::convert::nfs_service_in;
use super::nfs_messages::{floating_from, rule_from, rule_message, service_message};
use super::nfs_statistics;
use super::operations::OperationError;
use crate::net::address_text::{client_text, host_of, parse_client, to_std};

/// See the module.
pub(super) struct NfsConfigurationService {
    context: Context,
}

/// What became of a request.
struct Change {
    /// The volume's configuration that it was built upon.
    before: VolumeConfig,
    /// A command was applied; otherwise everything was as asked for.
    proposed: bool,
}

impl NfsConfigurationService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }

    /// Proposes what `build` makes of the volume's newest configuration, again if its service changes meanwhile. `build`
    /// gives `None` if everything is as asked for already.
    async fn change<F>(&self, volume: &str, build: F) -> Result<Change, OperationError>
    where
        F: Fn(&ClusterState, &VolumeConfig) -> Result<Option<NfsCommand>, OperationError>,
    {
        self.context.me()?;
        // So that "it is so already" is said of the newest state, and not of what a node knows that was cut off.
        self.context.operations.read_index(PROPOSE_PATIENCE).await?;
        let mut refusal = OperationError::Refused("the volume's NFS service keeps changing; try again".into());
        for _ in 0..COMPARE_AND_SWAP_TRIES_MAX {
            let state = self.context.state();
            let before = find_volume(&state, volume)?;
            require_software(&state)?;
            let Some(command) = build(&state, before)? else {
                return Ok(Change { before: before.clone(), proposed: false });
            };
            let expect_version = before.nfs_version();
            let body = CommandBody::Nfs { volume: before.id, expect_version, command };
            let command = Command { request: RequestId(rand::random()), body };
            match self.context.operations.propose(command, PROPOSE_PATIENCE).await? {
                Outcome::Refused(why) => refusal = OperationError::Refused(format!("{}: {why}", before.name)),
                _ => return Ok(Change { before: before.clone(), proposed: true }),
            }
            if self.newest(before).map(|config| config.nfs_version()) == Some(expect_version) {
                break;
            }
        }
        Err(refusal)
    }

    /// The volume as it is now, if it is still there.
    fn newest(&self, config: &VolumeConfig) -> Option<VolumeConfig> {
        self.context.state().volumes.get(&config.id).cloned()
    }

    async fn serve_volume(&self, request: pb::ServeNfsRequest) -> Result<pb::ServeNfsReply, OperationError> {
        let asked = request.addresses.iter().map(floating_from).collect::<Result<Vec<_>, _>>()?;
        if request.own_address && !asked.is_empty() {
            let why =
                "a volume is served on floating addresses or on the node's own address, not on both; leave one out";
            return Err(OperationError::Invalid(why.into()));
        }
        let asked_port = u16::try_from(request.port)
            .map_err(|_| OperationError::Invalid(format!("{} is no port; it is 1 to 65535", request.port)))?;
        let build = |state: &ClusterState, config: &VolumeConfig| {
            let service = config.nfs.as_ref();
            let addresses = match service {
                Some(service) if asked.is_empty() && !request.own_address => service.addresses.clone(),
                _ => asked.clone(),
            };
            let port = match (asked_port, service) {
                (0, Some(service)) => service.port,
                (0, None) => NFS_PORT,
                (port, _) => port,
            };
            if service.is_some_and(|service| (&service.addresses, service.port) == (&addresses, port)) {
                return Ok(None);
            }
            let command = NfsCommand::Serve { addresses, port };
            check_place(state, config, &command)?;
            Ok(Some(command))
        };
        let change = self.change(&request.volume, build).await?;
        let view = self.context.view().await?;
        let now = view.state.volumes.get(&change.before.id);
        let service = now.and_then(|config| nfs_service_in(&view, config));
        Ok(pb::ServeNfsReply { service, changed: change.proposed })
    }

    async fn stop_volume(&self, request: pb::StopNfsRequest) -> Result<pb::StopNfsReply, OperationError> {
        let build = |_: &ClusterState, config: &VolumeConfig| Ok(config.nfs.as_ref().map(|_| NfsCommand::Stop));
        let config = self.change(&request.volume, build).await?.before;
        let state = self.context.state();
        let service = config.nfs.as_ref().map(|service| service_message(&state, &config, service));
        Ok(pb::StopNfsReply { service })
    }

    async fn add_rule(&self, request: pb::AddExportRequest) -> Result<pb::AddExportReply, OperationError> {
        let rule = rule_from(&request.rule.unwrap_or_default())?;
        let build = |_: &ClusterState, config: &VolumeConfig| {
            let service = require_service(config)?;
            let mut rules = service.exports.as_slice().to_vec();
            match rules.iter().position(|held| held.client == rule.client) {
                Some(index) if rules[index] == rule => return Ok(None),
                Some(index) => rules[index] = rule,
                None if rules.len() >= EXPORT_RULES_MAX => {
                    return Err(OperationError::Refused(format!(
                        "{} has {EXPORT_RULES_MAX} export rules, which is the most: remove one (tandem export remove {} \
                         CLIENT), or give a network in place of several",
                        config.name, config.name
                    )));
                }
                None => rules.push(rule),
            }
            Ok(Some(NfsCommand::SetExports { rules }))
        };
        let config = self.change(&request.volume, build).await?.before;
        let held = config.nfs.as_ref().and_then(|service| rule_of(service, rule.client));
        Ok(pb::AddExportReply { rule: Some(rule_message(&rule)), replaced: held.map(rule_message) })
    }

    async fn remove_rule(&self, request: pb::RemoveExportRequest) -> Result<pb::RemoveExportReply, OperationError> {
        let client = parse_client(&request.client).map_err(OperationError::Invalid)?;
        let build = |_: &ClusterState, config: &VolumeConfig| {
            let service = require_service(config)?;
            if rule_of(service, client).is_none() {
                return Err(OperationError::NotFound(format!(
                    "{} has no export rule for {}; `tandem export list {}` shows all",
                    config.name,
                    client_text(client),
                    config.name
                )));
            }
            let others = service.exports.as_slice().iter().filter(|rule| rule.client != client);
            Ok(Some(NfsCommand::SetExports { rules: others.copied().collect() }))
        };
        let config = self.change(&request.volume, build).await?.before;
        let service = require_service(&config)?;
        let removed = rule_of(service, client).map(rule_message);
        Ok(pb::RemoveExportReply { removed, now: wider_rule(service, client).map(rule_message) })
    }

    async fn list(&self, request: pb::ListExportsRequest) -> Result<pb::ListExportsReply, OperationError> {
        let view = self.context.view().await?;
        let only = match request.volume.as_str() {
            "" => None,
            name => Some(find_volume(&view.state, name)?.id),
        };
        let asked = view.state.volumes.values().filter(|config| only.is_none_or(|id| config.id == id));
        let volumes = asked.filter_map(|config| {
            let service = Some(nfs_service_in(&view, config)?);
            Some(pb::VolumeExports { volume: config.name.clone(), id: config.id.to_string(), service })
        });
        Ok(pb::ListExportsReply { volumes: volumes.collect() })
    }
}

#[tonic::async_trait]
impl pb::nfs_server::Nfs for NfsConfigurationService {
    async fn serve(&self, request: Request<pb::ServeNfsRequest>) -> Result<Response<pb::ServeNfsReply>, Status> {
        Ok(Response::new(self.serve_volume(request.into_inner()).await?))
    }

    async fn stop(&self, request: Request<pb::StopNfsRequest>) -> Result<Response<pb::StopNfsReply>, Status> {
        Ok(Response::new(self.stop_volume(request.into_inner()).await?))
    }

    async fn add_export(&self, request: Request<pb::AddExportRequest>) -> Result<Response<pb::AddExportReply>, Status> {
        Ok(Response::new(self.add_rule(request.into_inner()).await?))
    }

    async fn remove_export(
        &self,
        request: Request<pb::RemoveExportRequest>,
    ) -> Result<Response<pb::RemoveExportReply>, Status> {
        Ok(Response::new(self.remove_rule(request.into_inner()).await?))
    }

    async fn list_exports(
        &self,
        request: Request<pb::ListExportsRequest>,
    ) -> Result<Response<pb::ListExportsReply>, Status> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    async fn clients(&self, request: Request<pb::NfsClientsRequest>) -> Result<Response<pb::NfsClientsReply>, Status> {
        Ok(Response::new(nfs_statistics::clients(&self.context, request.into_inner()).await?))
    }

    async fn stats(&self, request: Request<pb::NfsStatsRequest>) -> Result<Response<pb::NfsStatsReply>, Status> {
        Ok(Response::new(nfs_statistics::stats(&self.context, request.into_inner()).await?))
    }
}

fn require_service(config: &VolumeConfig) -> Result<&NfsService, OperationError> {
    config.nfs.as_ref().ok_or_else(|| {
        OperationError::Refused(format!(
            "{} is not served over NFS: serve it first (tandem nfs serve {})",
            config.name, config.name
        ))
    })
}

/// Older software stops at a command that it does not know: none may be in the log before all know it.
fn require_software(state: &ClusterState) -> Result<(), OperationError> {
    match state.nodes.values().find(|node| node.feature_levels.1 < NFS_LEVEL) {
        Some(node) => Err(OperationError::Refused(format!(
            "the software of {} does not know NFS services yet: install this version on every node first",
            node.name
        ))),
        None => Ok(()),
    }
}

/// The same as the guards, with names, and two things that they cannot know: addresses and ports that nodes listen on.
fn check_place(state: &ClusterState, config: &VolumeConfig, command: &NfsCommand) -> Result<(), OperationError> {
    let NfsCommand::Serve { addresses, port } = command else { return Ok(()) };
    for other in state.volumes.values().filter(|other| other.id != config.id) {
        let text = match other.nfs.as_ref().and_then(|service| service.conflict(addresses, *port)) {
            Some(PlaceConflict::Address(address)) => format!(
                "{} is a floating address of {} already; choose another, or end that service (tandem nfs stop {})",
                to_std(address),
                other.name,
                other.name
            ),
            Some(PlaceConflict::Port) => format!(
                "{} is served on port {port} without a floating address already; choose another port for {} (--port), or give \
                 it a floating address (--address)",
                other.name, config.name
            ),
            None => continue,
        };
        return Err(OperationError::Refused(text));
    }
    for node in state.nodes.values() {
        let listeners = [&node.peer_address, &node.admin_address, &node.nbd_address];
        for listener in listeners.into_iter().filter(|listener| !listener.is_empty()) {
            let host = host_of(listener).trim_matches(['[', ']']).parse::<std::net::IpAddr>().ok();
            if let Some(address) = addresses.iter().find(|address| Some(to_std(address.address)) == host) {
                return Err(OperationError::Refused(format!(
                    "{} is the own address of {}; a floating address is one that no box has by itself, because it is taken \
                     away from the box that stops serving",
                    to_std(address.address),
                    node.name
                )));
            }
            if addresses.is_empty() && listener.rsplit_once(':').is_some_and(|(_, own)| own == port.to_string()) {
                return Err(OperationError::Refused(format!(
                    "{} uses port {port} itself ({listener}); choose another port for {} (--port), or give it a floating \
                     address (--address)",
                    node.name, config.name
                )));
            }
        }
    }
    Ok(())
}

fn rule_of(service: &NfsService, client: Client) -> Option<&ExportRule> {
    service.exports.as_slice().iter().find(|rule| rule.client == client)
}

/// The rule that holds for all of `client` but for those that a narrower one names, when its own is gone.
fn wider_rule(service: &NfsService, client: Client) -> Option<&ExportRule> {
    let Client::Network(network) = client else { return None };
    let wider = |rule: &&ExportRule| match rule.client {
        Client::Any => true,
        Client::Network(other) => other.prefix_length() < network.prefix_length() && other.contains(network.address()),
    };
    // The rules are in the order of their clients: everybody first, and of two networks that hold the same address the
    // wider one.
    service.exports.as_slice().iter().rfind(wider)
}
