//! `tandem watch`: the events of all nodes as one stream of lines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::admin as pb;
use proto::admin::event::Kind;
use proto::admin::watch_client::WatchClient;
use tokio::sync::mpsc;

use super::exit::Failure;
use super::session::{Session, emit};
use super::{json, nfs, scrub, text};
use crate::admin::client::connect;

/// Events of all nodes that wait to be printed.
const EVENTS_MAX: usize = 256;
/// Between attempts to reach a silent node, and between looks for new nodes.
const RETRY: Duration = Duration::from_secs(1);

/// Prints events until Ctrl-C. Nodes that are silent are tried again; nodes that join are added.
pub(super) async fn watch(session: &Session, volume: String) -> Result<(), Failure> {
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let mut watched = BTreeSet::new();
    let mut told = Told::default();
    let mut look = tokio::time::interval(RETRY);
    // Errors of the first look are the command's own; later the cluster may well be partly away.
    session.nodes().await?;
    loop {
        tokio::select! {
            _ = look.tick() => {
                for node in session.nodes().await.unwrap_or_default() {
                    let address = node.record.unwrap_or_default().admin_address;
                    if watched.insert(address.clone()) {
                        tokio::spawn(watch_node(session.at(&address), volume.clone(), sender.clone()));
                    }
                }
            }
            Some(event) = events.recv() => {
                if told.is_new(&event) {
                    let line = if session.json { json::event(&event).to_string() } else { line(&event) };
                    emit(&format!("{line}\n"))?;
                }
            }
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// Passes on one node's events for ever.
async fn watch_node(session: Session, volume: String, sender: mpsc::Sender<pb::Event>) {
    while !sender.is_closed() {
        // A node that cannot be reached shows in the other nodes' events; here it is only tried again.
        let _ = stream(&session, &volume, &sender).await;
        tokio::time::sleep(RETRY).await;
    }
}

async fn stream(session: &Session, volume: &str, sender: &mpsc::Sender<pb::Event>) -> Result<(), tonic::Status> {
    let channel = connect(&session.transport, &session.address).await?;
    let request = pb::EventsRequest { volume: volume.to_owned() };
    let mut events = WatchClient::new(channel).events(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if sender.send(event).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Replicated facts arrive from every node; they are told once.
#[derive(Debug, Default)]
struct Told {
    configurations: BTreeMap<String, u64>,
    /// Version told last of a volume's NFS service, and whether there was one.
    services: BTreeMap<String, (u64, bool)>,
    leader: (u64, u64),
    members: Vec<String>,
    snapshot: bool,
}

impl Told {
    fn is_new(&mut self, event: &pb::Event) -> bool {
        match &event.kind {
            Some(Kind::Configuration(configuration)) => {
                let version = if configuration.deleted { u64::MAX } else { configuration.version };
                let told = self.configurations.insert(event.volume.clone(), version);
                match told {
                    // A volume may be made again under the name of a deleted one.
                    Some(u64::MAX) => version != u64::MAX,
                    Some(told) if told >= version => {
                        self.configurations.insert(event.volume.clone(), told);
                        false
                    }
                    _ => true,
                }
            }
            Some(Kind::Nfs(change)) => {
                let told = self.services.get(&event.volume).copied().unwrap_or_default();
                let now = (change.version, change.service.is_some());
                // Nodes that learn of several changes at once may tell an end under a later version.
                let new = now.0 > told.0 && (now.1 || told.1 || told.0 == 0);
                if now.0 > told.0 {
                    self.services.insert(event.volume.clone(), now);
                }
                new
            }
            Some(Kind::RaftLeader(leader)) => {
                let now = (leader.term, leader.leader);
                let new = now > self.leader;
                self.leader = self.leader.max(now);
                new
            }
            Some(Kind::Membership(membership)) => {
                std::mem::replace(&mut self.members, membership.nodes.clone()) != membership.nodes
            }
            Some(Kind::Snapshot(snapshot)) => {
                for volume in &snapshot.volumes {
                    self.configurations.entry(volume.name.clone()).or_default();
                }
                !std::mem::replace(&mut self.snapshot, true)
            }
            _ => true,
        }
    }
}

/// One event as a line.
fn line(event: &pb::Event) -> String {
    let millis = event.at_unix_micros / 1000 % 1000;
    let about = if event.volume.is_empty() { "-" } else { &event.volume };
    let clock = text::clock_time(event.at_unix_micros);
    format!("{clock}.{millis:03} {:12} {about:12} {}", event.node_name, words(event))
}

fn words(event: &pb::Event) -> String {
    match &event.kind {
        None => "(an event that this version does not know)".to_owned(),
        Some(Kind::Snapshot(snapshot)) => format!("watching; {} volumes", snapshot.volumes.len()),
        Some(Kind::Role(role)) => format!("role {} -> {} (epoch {})", role.from, role.to, role.epoch),
        Some(Kind::Peer(peer)) => format!("peer {}: {}", peer.node_name, peer.state),
        Some(Kind::Resync(resync)) if resync.done => {
            format!("resync of {} done, {} sent", resync.node_name, text::blocks(resync.sent_blocks))
        }
        Some(Kind::Resync(resync)) => {
            let total = resync.remaining_blocks.saturating_add(resync.sent_blocks);
            let percent = text::percent(resync.sent_blocks, total);
            format!("resync of {} {percent} %, {} left", resync.node_name, text::blocks(resync.remaining_blocks))
        }
        Some(Kind::DiskDetached(detached)) if detached.failed => "disk failed and was detached".to_owned(),
        Some(Kind::DiskDetached(_)) => "disk detached".to_owned(),
        Some(Kind::SwitchoverRefused(refused)) => format!("switchover refused: {}", refused.why),
        Some(Kind::RaftLeader(leader)) if leader.leader == 0 => "no Raft leader".to_owned(),
        Some(Kind::RaftLeader(leader)) => format!("Raft leader is {} (term {})", leader.leader_name, leader.term),
        Some(Kind::Configuration(configuration)) if configuration.deleted => "deleted".to_owned(),
        Some(Kind::Configuration(configuration)) => format!(
            "{}, primary {}, in sync: {} (epoch {}, version {})",
            text::phase(configuration.phase()),
            configuration.primary_name,
            configuration.in_sync.join(", "),
            configuration.epoch,
            configuration.version
        ),
        Some(Kind::Nfs(pb::NfsChange { service: Some(service), .. })) => {
            format!("served over NFS: {}; {} export rules", nfs::place_text(service), service.exports.len())
        }
        Some(Kind::Nfs(_)) => "not served over NFS any more".to_owned(),
        Some(Kind::StoreProgress(progress)) => {
            format!("making the store: {} %", text::percent(progress.done_bytes, progress.total_bytes))
        }
        Some(Kind::Scrub(progress)) => {
            let scrub = progress.scrub.unwrap_or_default();
            let what = scrub::name(scrub.verify_only);
            let state = match progress.done {
                true => "done".to_owned(),
                false => format!("{} %, so far", text::percent(scrub.done_blocks, scrub.blocks)),
            };
            format!("{what} {state}: {}", scrub::findings(&scrub))
        }
        Some(Kind::ScrubRefused(refused)) => format!("scrub refused: {}", refused.why),
        Some(Kind::Membership(membership)) => format!("nodes: {}", membership.nodes.join(", ")),
        Some(Kind::Missed(missed)) => format!("({missed} events missed here)"),
        Some(Kind::Text(text)) => text.replace(char::is_control, " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(version: u64, deleted: bool) -> pb::Event {
        let change = pb::ConfigurationChange { version, deleted, ..pb::ConfigurationChange::default() };
        pb::Event { volume: "vm".into(), kind: Some(Kind::Configuration(change)), ..pb::Event::default() }
    }

    #[test]
    fn what_three_nodes_learn_is_told_once() {
        let mut told = Told::default();
        let news: Vec<bool> =
            [4, 4, 4, 5, 4, 5].into_iter().map(|version| told.is_new(&configuration(version, false))).collect();
        assert_eq!(news, [true, false, false, true, false, false]);
        assert!(told.is_new(&configuration(5, true)));
        assert!(!told.is_new(&configuration(5, true)));
        assert!(told.is_new(&configuration(1, false)));
    }

    #[test]
    fn a_change_of_an_nfs_service_is_told_once_and_its_end_too() {
        let mut told = Told::default();
        let mut is_new = |version, served: bool| {
            let change = pb::NfsChange { service: served.then(pb::NfsService::default), version };
            let kind = Some(Kind::Nfs(change));
            told.is_new(&pb::Event { volume: "vm".into(), kind, ..pb::Event::default() })
        };
        let news = [(5, true), (5, true), (7, true), (5, true), (8, false), (9, false), (8, false), (12, true)];
        let news: Vec<bool> = news.into_iter().map(|(version, served)| is_new(version, served)).collect();
        assert_eq!(news, [true, false, true, false, true, false, false, true]);
    }

    #[test]
    fn an_old_leader_is_no_news() {
        let mut told = Told::default();
        let leader = |term, leader| pb::Event {
            kind: Some(Kind::RaftLeader(pb::RaftLeaderChange { leader, term, ..pb::RaftLeaderChange::default() })),
            ..pb::Event::default()
        };
        assert!(told.is_new(&leader(2, 1)));
        assert!(!told.is_new(&leader(2, 1)));
        assert!(!told.is_new(&leader(1, 3)));
        assert!(told.is_new(&leader(3, 0)));
    }

    #[test]
    fn lines_are_for_people() {
        let event = pb::Event {
            at_unix_micros: 43_384_567_000,
            node_name: "box-a".into(),
            volume: "vm".into(),
            kind: Some(Kind::Role(pb::RoleChange { from: "secondary".into(), to: "primary".into(), epoch: 4 })),
            ..pb::Event::default()
        };
        assert_eq!(line(&event), "12:03:04.567 box-a        vm           role secondary -> primary (epoch 4)");
    }
}
