//! `tandem cluster …` and `tandem node list|join|remove|status|stop`.

use proto::admin as pb;
use proto::admin::cluster_client::ClusterClient;
use proto::admin::node_client::NodeClient;
use serde_json::json;

use super::exit::Failure;
use super::session::{Session, confirm};
use super::table::{Align, Table};
use super::volume::volumes_table;
use super::{json, text};

pub(super) async fn init(session: &Session) -> Result<(), Failure> {
    let reply =
        session.call(|channel| async move { ClusterClient::new(channel).init(pb::InitRequest {}).await }).await?;
    let text = format!(
        "Cluster {} made; this is node {}.\nNext, on each other node: tandem cluster join {}\n",
        reply.cluster, reply.node, session.address
    );
    session.print(&json!({ "cluster": reply.cluster, "node": reply.node }), &text)
}

pub(super) async fn join(session: &Session, member: &str) -> Result<(), Failure> {
    let reply = session
        .call(|channel| async move {
            let request = pb::JoinRequest { member_address: member.to_owned() };
            ClusterClient::new(channel).join(request).await
        })
        .await?;
    let vote = match reply.votes {
        true => "with a vote",
        false => {
            "without a vote yet: a voter does not answer. It gets its vote when that one returns, or the place of that one \
             by `tandem node remove`"
        }
    };
    let text = format!("Joined cluster {} as node {}, {vote}.\n", reply.cluster, reply.node);
    session.print(&json!({ "cluster": reply.cluster, "node": reply.node, "votes": reply.votes }), &text)
}

pub(super) async fn status(session: &Session) -> Result<(), Failure> {
    let reply = session
        .call(|channel| async move { ClusterClient::new(channel).status(pb::ClusterStatusRequest {}).await })
        .await?;
    let value = json!({
        "cluster": reply.cluster,
        "answered_by": reply.answered_by,
        "health": json::health(reply.health.as_ref()),
        "raft": json::raft(reply.raft.as_ref()),
        "nodes": reply.nodes.iter().map(json::node).collect::<Vec<_>>(),
        "volumes": reply.volumes.iter().map(json::summary).collect::<Vec<_>>(),
    });
    let mut text =
        format!("Cluster {}\n{}\n\n{}", reply.cluster, text::health(reply.health.as_ref()), nodes_table(&reply.nodes));
    if reply.volumes.is_empty() {
        text += "\nNo volumes yet: tandem volume create NAME --size 20G\n";
    } else {
        text += &format!("\n{}", volumes_table(&reply.volumes));
    }
    session.print(&value, &text)
}

pub(super) async fn list_nodes(session: &Session) -> Result<(), Failure> {
    let nodes = session.nodes().await?;
    session.print(&nodes.iter().map(json::node).collect(), &nodes_table(&nodes))
}

pub(super) async fn remove_node(session: &Session, node: &str, yes: bool, force: bool) -> Result<(), Failure> {
    if !yes {
        confirm(
            &format!("Node {node} will leave the cluster; to return it must join anew with an empty directory."),
            node,
        )?;
    }
    session
        .call(|channel| async move {
            ClusterClient::new(channel).remove_node(pb::RemoveNodeRequest { node: node.to_owned(), force }).await
        })
        .await?;
    session.print(&json!({ "removed": node }), &format!("Node {node} removed.\n"))
}

pub(super) async fn node_status(session: &Session) -> Result<(), Failure> {
    let status =
        session.call(|channel| async move { NodeClient::new(channel).status(pb::NodeStatusRequest {}).await }).await?;
    session.print(&json::node_status(&status), &node_text(&status))
}

pub(super) async fn stop_node(session: &Session) -> Result<(), Failure> {
    session.call(|channel| async move { NodeClient::new(channel).stop(pb::StopRequest {}).await }).await?;
    session.print(&json!({ "stopping": session.address }), "Stopping: its volumes switch over first.\n")
}

fn node_text(status: &pb::NodeStatusReply) -> String {
    let record = status.record.clone().unwrap_or_default();
    let cluster = match status.cluster.as_str() {
        "" if !status.out_of_service.is_empty() => "takes no part",
        "" => "none yet (tandem cluster init, or tandem cluster join MEMBER)",
        cluster => cluster,
    };
    let mut text = format!(
        "Node       {} ({}, number {})\nCluster    {cluster}\nSoftware   tandem {}\nWorker     process {}, supervisor \
         {}\nAddresses  peer {}, admin {}{}\n",
        record.name,
        text::kind(record.kind()),
        record.id,
        status.software,
        status.worker_pid,
        status.supervisor_pid,
        record.peer_address,
        record.admin_address,
        if record.nbd_address.is_empty() { String::new() } else { format!(", nbd {}", record.nbd_address) },
    );
    if !status.out_of_service.is_empty() {
        text += &format!("OUT OF SERVICE  {}\n", status.out_of_service);
    }
    if status.insecure_plaintext {
        text += "Warning    traffic is not encrypted (insecure_plaintext): use a trusted network only\n";
    }
    text
}

fn nodes_table(nodes: &[pb::NodeView]) -> String {
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("NAME", Align::Left),
        ("KIND", Align::Left),
        ("STATE", Align::Left),
        ("RAFT", Align::Left),
        ("PEER", Align::Left),
        ("ADMIN", Align::Left),
        ("NBD", Align::Left),
    ]);
    for view in nodes {
        let record = view.record.clone().unwrap_or_default();
        let raft = match (view.raft_leader, view.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let state = if view.reachable { "up" } else { "no answer" };
        let kind = text::kind(record.kind());
        table.row([
            record.id.to_string(),
            record.name,
            kind.to_owned(),
            state.to_owned(),
            raft.to_owned(),
            record.peer_address,
            record.admin_address,
            record.nbd_address,
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_does_not_answer_shows() {
        let mut record = pb::NodeRecord { id: 3, name: "quorum".into(), ..pb::NodeRecord::default() };
        record.set_kind(pb::NodeKind::Witness);
        let table = nodes_table(&[pb::NodeView { record: Some(record), voter: true, ..pb::NodeView::default() }]);
        let line = table.lines().nth(1).unwrap();
        assert!(line.contains("quorum") && line.contains("witness") && line.contains("no answer"), "{line}");
    }

    #[test]
    fn a_node_that_was_removed_says_what_to_do() {
        let status = pb::NodeStatusReply { out_of_service: "removed: do this".into(), ..Default::default() };
        let text = node_text(&status);
        assert!(text.contains("OUT OF SERVICE  removed: do this") && !text.contains("cluster init"), "{text}");
    }

    #[test]
    fn a_node_without_a_cluster_says_what_to_do() {
        assert!(node_text(&pb::NodeStatusReply::default()).contains("tandem cluster init"));
    }
}
