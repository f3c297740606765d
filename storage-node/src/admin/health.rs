//! States that explain themselves: from facts to one line that says what is, since when, and what is safe to do.
//!
//! Pure. Decides nothing for the cluster; it only words what the configuration, Raft and the replicas say.

use std::collections::BTreeMap;

use proto::NodeId;
use replication::config::{Phase, VolumeConfig};

use super::operations::StoreState;

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Healthy,
    /// Under way, ends by itself.
    Busy,
    /// Serves, with less redundancy than asked for.
    Degraded,
    /// Does not serve.
    Down,
}

/// A level and its explanation in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The level.
    pub level: Level,
    /// `<state>: <what and since when>; safe action: <what to do>`.
    pub text: String,
}

/// Raft, as the node asked sees it.
#[derive(Clone, Debug, Default)]
pub struct RaftFacts {
    /// Current leader, NONE if unknown.
    pub leader: NodeId,
    /// Since when none is known (microseconds since the Unix epoch).
    pub leaderless_since: Option<u64>,
    /// All voters.
    pub voters: Vec<NodeId>,
    /// Nodes, voters or not, whose admin API did not answer just now.
    pub unreachable: Vec<NodeId>,
}

/// One replica, as its own node reports it.
#[derive(Clone, Debug, Default)]
pub struct ReplicaFacts {
    /// Role by the core's name.
    pub role: String,
    /// Answers clients.
    pub serving: bool,
    /// What it waits for, and since when (microseconds since the Unix epoch).
    pub waiting: Option<(String, u64)>,
    /// Its store.
    pub store: StoreState,
    /// Peers as it sees them: node, state, blocks to resync, blocks resynced.
    pub peers: Vec<(NodeId, String, u64, u64)>,
}

/// Everything that the wording needs.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Names of the nodes.
    pub names: &'a BTreeMap<NodeId, String>,
    /// Raft.
    pub raft: &'a RaftFacts,
    /// Replicas of the volume that answered.
    pub replicas: &'a BTreeMap<NodeId, ReplicaFacts>,
    /// Now (microseconds since the Unix epoch).
    pub now: u64,
}

impl Facts<'_> {
    fn name(&self, node: NodeId) -> String {
        self.names.get(&node).cloned().unwrap_or_else(|| format!("node {node}"))
    }

    fn names(&self, nodes: impl IntoIterator<Item = NodeId>) -> String {
        join_words(nodes.into_iter().map(|node| self.name(node)).collect())
    }

    fn since(&self, at: u64) -> String {
        format!("since {} UTC ({})", clock_time(at), age(self.now.saturating_sub(at)))
    }
}

/// The health of one volume.
pub fn volume_health(config: &VolumeConfig, facts: &Facts<'_>) -> Health {
    let mut health = match config.phase {
        Phase::Creating => creating(config, facts),
        Phase::Active => active(config, facts),
    };
    if let Some(epoch) = config.loss_possible {
        health.text +=
            &format!("; note: primary was forced at epoch {epoch}: writes acknowledged before may be missing");
    }
    if let Some(epoch) = config.unflushed_loss {
        health.text +=
            &format!("; note: all copies lost power before epoch {epoch}: writes not flushed before may be missing");
    }
    health
}

/// The health of the cluster itself: Raft and the nodes.
pub fn cluster_health(facts: &Facts<'_>) -> Health {
    let raft = facts.raft;
    if raft.leader == NodeId::NONE {
        return Health {
            level: Level::Down,
            text: format!(
                "frozen: {}; volumes in service go on, but nothing can be changed; safe action: {}",
                no_majority(facts),
                bring_back(facts)
            ),
        };
    }
    if !raft.unreachable.is_empty() {
        let left = raft.voters.iter().filter(|voter| !raft.unreachable.contains(voter)).count();
        let spare = left.saturating_sub(raft.voters.len() / 2 + 1);
        let limit = if spare == 0 { "one more loss freezes the cluster" } else { "a majority is still there" };
        return Health {
            level: Level::Degraded,
            text: format!(
                "degraded: no answer from {}; {limit}; safe action: {}",
                facts.names(raft.unreachable.iter().copied()),
                bring_back(facts)
            ),
        };
    }
    if raft.voters.len() < 3 {
        return Health {
            level: Level::Degraded,
            text: format!(
                "degraded: {} of 3 voters; losing one freezes the cluster; safe action: join the other nodes \
                 (`tandem cluster join`)",
                raft.voters.len()
            ),
        };
    }
    Health { level: Level::Healthy, text: format!("healthy: leader {}, every node answers", facts.name(raft.leader)) }
}

fn creating(config: &VolumeConfig, facts: &Facts<'_>) -> Health {
    let mut parts = Vec::new();
    let mut failed = false;
    for (node, registration) in &config.replicas {
        let name = facts.name(*node);
        parts.push(match facts.replicas.get(node).map(|replica| &replica.store) {
            _ if registration.ready => format!("{name} ready"),
            None => format!("{name} does not answer"),
            Some(StoreState::Creating { done, total }) => format!("{name} {} %", percent(*done, *total)),
            Some(StoreState::Failed(why)) => {
                failed = true;
                format!("{name} failed: {why}")
            }
            Some(_) => format!("{name} not begun"),
        });
    }
    let parts = parts.join(", ");
    if failed {
        return Health {
            level: Level::Down,
            text: format!(
                "not created: {parts}; safe action: remove the cause, or `tandem volume delete {}`",
                config.name
            ),
        };
    }
    Health { level: Level::Busy, text: format!("creating: {parts}") }
}

fn active(config: &VolumeConfig, facts: &Facts<'_>) -> Health {
    let primary = facts.name(config.primary);
    let report = facts.replicas.get(&config.primary);
    if report.is_some_and(|report| report.serving) {
        return serving(config, facts);
    }
    if facts.raft.leader == NodeId::NONE {
        let waiting = report.and_then(|report| report.waiting.as_ref()).map(|(what, _)| format!(" ({what})"));
        return Health {
            level: Level::Down,
            text: format!(
                "frozen: {}; {primary} does not serve{}; safe action: {}",
                no_majority(facts),
                waiting.unwrap_or_default(),
                bring_back(facts)
            ),
        };
    }
    match report {
        Some(report) => not_serving(config, report, facts),
        None => primary_silent(config, facts),
    }
}

/// The primary answers its admin API but not its clients.
fn not_serving(config: &VolumeConfig, report: &ReplicaFacts, facts: &Facts<'_>) -> Health {
    let primary = facts.name(config.primary);
    if let StoreState::Failed(why) = &report.store {
        let action = match others(config, config.primary).is_empty() {
            true => format!("repair the disk, then `tandem volume attach {} --node {primary}`", config.name),
            false => format!("none needed: {primary} goes on through the other copy within seconds"),
        };
        return Health {
            level: Level::Down,
            text: format!("down: the disk of primary {primary} failed: {why}; safe action: {action}"),
        };
    }
    let (what, since) = match &report.waiting {
        Some((what, since)) => (what.as_str(), format!(" {}", facts.since(*since))),
        None => ("it is starting or changing roles", String::new()),
    };
    Health {
        level: Level::Down,
        text: format!(
            "suspended: {primary} ({}) does not serve{since}: {what}; safe action: wait a few seconds; if it stays, \
             bring back {}",
            report.role,
            match facts.raft.unreachable.is_empty() {
                true => "the link between the boxes".to_owned(),
                false => facts.names(facts.raft.unreachable.iter().copied()),
            }
        ),
    }
}

/// The primary's node does not answer at all.
fn primary_silent(config: &VolumeConfig, facts: &Facts<'_>) -> Health {
    let primary = facts.name(config.primary);
    let heirs: Vec<NodeId> =
        others(config, config.primary).into_iter().filter(|node| facts.replicas.contains_key(node)).collect();
    if !heirs.is_empty() {
        return Health {
            level: Level::Down,
            text: format!(
                "failing over: primary {primary} does not answer; {} takes over by itself within seconds; safe action: \
                 none needed",
                facts.names(heirs)
            ),
        };
    }
    let holders = facts.names(config.in_sync.keys().copied());
    let stale: Vec<NodeId> = config
        .replicas
        .keys()
        .copied()
        .filter(|node| !config.in_sync.contains_key(node) && facts.replicas.contains_key(node))
        .collect();
    let mut text = format!(
        "down: only {holders} holds every acknowledged write, and primary {primary} does not answer; safe action: bring \
         {holders} back"
    );
    if let Some(node) = stale.first() {
        text += &format!(
            "; last resort, may lose acknowledged writes: `tandem volume force-primary {} --to {}`",
            config.name,
            facts.name(*node)
        );
    }
    Health { level: Level::Down, text }
}

/// The primary serves: is everything else as it should be?
fn serving(config: &VolumeConfig, facts: &Facts<'_>) -> Health {
    let primary = facts.name(config.primary);
    let missing: Vec<NodeId> =
        config.replicas.keys().copied().filter(|node| !config.in_sync.contains_key(node)).collect();
    let mut parts = Vec::new();
    for node in &missing {
        parts.push(missing_replica(config, *node, facts));
    }
    for node in config.in_sync.keys().copied().filter(|node| config.is_cold(*node)) {
        parts.push(format!("{} restarted after a power loss and will be resynced", facts.name(node)));
    }
    if config.replicas.len() == 1 {
        parts.push(format!(
            "only one copy is configured; safe action: `tandem volume add-replica {} --node NODE`",
            config.name
        ));
    }
    if facts.raft.leader == NodeId::NONE {
        return Health {
            level: Level::Degraded,
            text: format!(
                "frozen: {}; {primary} still serves, but the loss of a copy would stop it; safe action: {}",
                no_majority(facts),
                bring_back(facts)
            ),
        };
    }
    if !parts.is_empty() {
        let solo = match config.in_sync.keys().next() {
            Some(only) if config.in_sync.len() == 1 && *only != config.primary => {
                format!("solo on {}, through which {primary} serves", facts.name(*only))
            }
            Some(only) if config.in_sync.len() == 1 => format!("solo on {}", facts.name(*only)),
            _ => format!("in sync on {}", facts.names(config.in_sync.keys().copied())),
        };
        return Health { level: Level::Degraded, text: format!("degraded: {solo}; {}", parts.join("; ")) };
    }
    let silent: Vec<NodeId> =
        facts.raft.unreachable.iter().copied().filter(|node| !config.replicas.contains_key(node)).collect();
    let silent_copies: Vec<NodeId> =
        facts.raft.unreachable.iter().copied().filter(|node| config.in_sync.contains_key(node)).collect();
    if !silent_copies.is_empty() {
        return Health {
            level: Level::Degraded,
            text: format!(
                "degraded: {} just stopped answering; {primary} goes on alone within seconds; safe action: bring {} back",
                facts.names(silent_copies.iter().copied()),
                facts.names(silent_copies.iter().copied())
            ),
        };
    }
    if !silent.is_empty() {
        return Health {
            level: Level::Degraded,
            text: format!(
                "degraded: both copies are in sync, but {} does not answer: one more loss would freeze the volume; safe \
                 action: bring {} back",
                facts.names(silent.iter().copied()),
                facts.names(silent.iter().copied())
            ),
        };
    }
    let secondaries = facts.names(others(config, config.primary));
    Health { level: Level::Healthy, text: format!("healthy: {primary} serves, {secondaries} in sync") }
}

/// Why one replica is not in sync.
fn missing_replica(config: &VolumeConfig, node: NodeId, facts: &Facts<'_>) -> String {
    let name = facts.name(node);
    let Some(report) = facts.replicas.get(&node) else {
        return format!("{name} does not answer; safe action: bring {name} back, it resyncs by itself");
    };
    match &report.store {
        StoreState::Failed(why) => {
            return format!(
                "the disk of {name} failed: {why}; safe action: repair it, then `tandem volume attach {} --node {name}`",
                config.name
            );
        }
        StoreState::Detached => {
            return format!("{name} is detached; safe action: `tandem volume attach {} --node {name}`", config.name);
        }
        StoreState::Creating { done, total } => {
            return format!("the store on {name} is being made: {} %", percent(*done, *total));
        }
        StoreState::Missing => return format!("{name} has no store yet"),
        StoreState::Open if node == config.primary => {
            return format!(
                "the disk of {name} is back: {} becomes primary by itself, then {name} is resynced",
                facts.names(config.in_sync.keys().copied())
            );
        }
        StoreState::Open => {}
    }
    let seen = facts.replicas.get(&config.primary).and_then(|report| report.peers.iter().find(|peer| peer.0 == node));
    match seen {
        Some((_, state, remaining, done)) if *remaining + *done > 0 && state == "resyncing" => {
            format!("resync of {name} {} %", percent(*done, *remaining + *done))
        }
        Some((_, state, ..)) => format!("{name} is not in sync yet ({state})"),
        None => format!("{name} is not in sync yet"),
    }
}

fn others(config: &VolumeConfig, node: NodeId) -> Vec<NodeId> {
    config.in_sync.keys().copied().filter(|member| *member != node).collect()
}

fn no_majority(facts: &Facts<'_>) -> String {
    let since = facts.raft.leaderless_since.map(|at| format!(" {}", facts.since(at))).unwrap_or_default();
    let missing: Vec<NodeId> =
        facts.raft.voters.iter().copied().filter(|voter| facts.raft.unreachable.contains(voter)).collect();
    match missing.is_empty() {
        true => format!("no Raft leader{since}: an election is under way, or the nodes do not hear one another"),
        false => format!("no majority of voters{since}: {} unreachable", facts.names(missing)),
    }
}

fn bring_back(facts: &Facts<'_>) -> String {
    match facts.raft.unreachable.is_empty() {
        true => "wait some seconds; then check the peer network between the nodes".to_owned(),
        false => {
            format!("bring back {}", join_or(facts.raft.unreachable.iter().map(|node| facts.name(*node)).collect()))
        }
    }
}

fn join_words(words: Vec<String>) -> String {
    join_with(words, "and")
}

fn join_or(words: Vec<String>) -> String {
    join_with(words, "or")
}

fn join_with(mut words: Vec<String>, last: &str) -> String {
    match words.pop() {
        None => "nobody".to_owned(),
        Some(word) if words.is_empty() => word,
        Some(word) => format!("{} {last} {word}", words.join(", ")),
    }
}

/// Whole percent of a part, 99 at most while something is left.
pub fn percent(part: u64, whole: u64) -> u64 {
    if part >= whole {
        return 100;
    }
    (u128::from(part) * 100 / u128::from(whole)) as u64
}

/// `HH:MM:SS` of a day in UTC.
pub fn clock_time(unix_micros: u64) -> String {
    let seconds = unix_micros / 1_000_000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// An age in words: `12 s ago`, `3 min ago`, `5 h ago`, `2 days ago`.
pub fn age(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
