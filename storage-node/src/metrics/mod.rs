//! Metrics of a node for Prometheus: what Raft, the volumes' copies and the NFS services tell of themselves, collected when
//! somebody asks. Holds nothing but the newest text, for a moment.
//!
//! `exposition` is the text format, `server` the HTTP; `node`, `volumes` and `nfs` say what is told.

mod exposition;
mod nfs;
mod node;
pub(crate) mod server;
#[cfg(test)]
mod test_parser;
mod volumes;

use futures_util::future::join_all;
use gateway_nfs::statistics::report::Report;
use proto::VolumeId;
use replication::config::ClusterState;

use crate::admin::NodeOperations;
use exposition::Exposition;

/// The NFS service of a volume.
struct ServiceReport {
    volume: String,
    report: Report,
}

/// All metrics of the node, as they are now.
pub(crate) async fn collect(operations: &dyn NodeOperations) -> String {
    let state = operations.state().borrow().clone();
    let raft = operations.raft().borrow().clone();
    let served = state.volumes.values().filter(|volume| volume.nfs.is_some());
    let reports = served.map(|volume| async {
        let report = operations.nfs_report(volume.id).await?;
        Some(ServiceReport { volume: volume.name.clone(), report })
    });
    let (replicas, reports) = tokio::join!(operations.replicas(), join_all(reports));
    let reports: Vec<_> = reports.into_iter().flatten().collect();
    let mut out = Exposition::default();
    node::put(&mut out, &operations.facts(), operations.now(), (&state, &raft));
    volumes::put(&mut out, &operations.facts(), &state, &replicas);
    nfs::put(&mut out, &reports);
    out.into_text()
}

/// A volume's name, or its number where it has no configuration any more.
fn volume_name(state: &ClusterState, volume: VolumeId) -> String {
    state.volumes.get(&volume).map_or_else(|| volume.to_string(), |config| config.name.clone())
}

#[cfg(test)]
mod tests;
