//! What is done to the pair, one thing after the other, and what the client saw of each. Between two events the pair must be
//! healthy again and the load have gone on.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tandem_benches::served::{Served, VOLUME};
use tandem_tests::e2e::cluster::{ALPHA, BETA};

use crate::load::{Gap, Load};
use crate::phases::Phases;

/// Operations that must be done before the next event.
const OPERATIONS_BETWEEN: u64 = 200;
/// The longest that the load may take for them.
const PROGRESS_LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(10);
/// What a node does after a service has begun (announcements, the old primary's return) is over after this.
const SETTLE: Duration = Duration::from_millis(500);

/// A kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The other box is asked to take the role.
    Switchover,
    /// `kill -9` of the primary's worker; its supervisor lives.
    Process,
    /// The primary's link goes down and all its processes are killed.
    Box,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Switchover, Self::Process, Self::Box];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Switchover => "switchover",
            Self::Process => "process",
            Self::Box => "box",
        }
    }

    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Switchover => "planned switchover",
            Self::Process => "process killed",
            Self::Box => "box dead",
        }
    }

    /// What 99 of 100 clients may notice.
    pub(crate) fn aim_ms(self) -> f64 {
        match self {
            Self::Switchover | Self::Process => 300.0,
            Self::Box => 2500.0,
        }
    }
}

/// What one event was to the client.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    number: usize,
    /// The longest time without any answer, from the last before to the first after.
    pub(crate) stall_ms: f64,
    /// The same of answers to changes alone.
    pub(crate) changes_stall_ms: f64,
    pub(crate) phases: Phases,
    /// Until both copies were in sync again.
    healthy_after_ms: f64,
}

impl Event {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "kind": self.kind.name(),
            "number": self.number,
            "stall_ms": self.stall_ms,
            "stall_of_changes_ms": self.changes_stall_ms,
            "phases_ms": self.phases.to_json(),
            "healthy_after_ms": self.healthy_after_ms,
        })
    }
}

/// Does one thing to the pair, and waits until all is well again.
pub(crate) fn run(served: &mut Served, load: &mut Load, kind: Kind, number: usize) -> Result<Event> {
    progress(load)?;
    let old = served.primary()?;
    let new = if old == ALPHA { BETA } else { ALPHA };
    let log_before = served.cluster.nodes[new].log().len();
    load.forget();
    let (begin, began) = (SystemTime::now(), Instant::now());
    match kind {
        Kind::Switchover => served.cluster.switchover(VOLUME, new),
        Kind::Process => served.cluster.nodes[old].kill_worker(),
        Kind::Box => {
            served.cluster.network.namespaces().unplug(old);
            served.cluster.nodes[old].kill();
        }
    }
    // Whatever is done next must not be part of what is measured.
    progress(load)?;
    if kind == Kind::Box {
        // It has its address still, and must give it up before it is heard again.
        served.cluster.nodes[old].start_unwatched();
        served.cluster.network.namespaces().plug(old);
    }
    let stall = load.longest_since(began);
    served.cluster.wait_healthy(VOLUME);
    let healthy_after_ms = began.elapsed().as_secs_f64() * 1e3;
    if served.primary()? != new {
        bail!("{} {number}: the role has not moved", kind.what());
    }
    std::thread::sleep(SETTLE);
    let longest = stall.all.with_context(|| format!("{} {number}: the client saw no gap at all", kind.what()))?;
    let log = served.cluster.nodes[new].log();
    let log = log.get(log_before..).context("the log has become shorter")?;
    let phases = Phases::of(log, begin, longest.to.checked_duration_since(began));
    let ms = |gap: Gap| gap.length().as_secs_f64() * 1e3;
    let changes_stall_ms = stall.changes.map_or(0.0, ms);
    Ok(Event { kind, number, stall_ms: ms(longest), changes_stall_ms, phases, healthy_after_ms })
}

/// Waits until the load has gone on for a while.
fn progress(load: &mut Load) -> Result<()> {
    let deadline = Instant::now() + PROGRESS_LIMIT;
    let target = load.operations()? + OPERATIONS_BETWEEN;
    while load.operations()? < target {
        if Instant::now() > deadline {
            bail!("the load makes no progress");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
