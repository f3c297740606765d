//! What goes wrong under the workloads: planned switchovers, dead workers, dead boxes.

use std::fmt;
use std::time::{Duration, Instant};

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::replay::Replays;
use super::rig::{Rig, VOLUME};
use crate::e2e::cluster::{ALPHA, BETA};

/// Which faults a round has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// None.
    None,
    /// The primary role is handed over at equal intervals.
    Switchover,
    /// The primary's worker is killed at random moments.
    Kill,
    /// The primary's box dies at random moments: its link goes down, and all its processes.
    Box,
    /// Each of them at random.
    All,
}

impl Faults {
    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Switchover, Self::Kill, Self::Box, Self::All]
            .into_iter()
            .find(|faults| faults.to_string() == name)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "none",
            Self::Switchover => "switchover",
            Self::Kill => "kill",
            Self::Box => "box",
            Self::All => "all",
        })
    }
}

/// Does one fault after the other, each once the pair is whole again.
pub struct Disturber {
    faults: Faults,
    rng: ChaCha8Rng,
    interval: Duration,
    next: Instant,
    /// How many of each were done.
    pub switchovers: u64,
    /// Workers killed.
    pub kills: u64,
    /// Boxes that died.
    pub boxes: u64,
}

impl Disturber {
    /// The first fault comes after the interval, or at a random moment up to it.
    pub fn new(faults: Faults, interval: Duration, rng: ChaCha8Rng) -> Self {
        let mut disturber = Self { faults, rng, interval, next: Instant::now(), switchovers: 0, kills: 0, boxes: 0 };
        disturber.plan();
        disturber
    }

    /// How many faults there were.
    pub fn count(&self) -> u64 {
        self.switchovers + self.kills + self.boxes
    }

    fn plan(&mut self) {
        let wait = match self.faults {
            Faults::None | Faults::Switchover => self.interval,
            _ => self.interval.mul_f64(self.rng.random_range(0.25..1.0)),
        };
        self.next = Instant::now() + wait;
    }

    /// Does the next fault if it is time; sometimes between two requests of our client, so that the newer box is asked first what
    /// the older has answered.
    pub fn disturb(&mut self, rig: &mut Rig, replays: Option<&Replays>) {
        if self.faults == Faults::None || Instant::now() < self.next {
            return;
        }
        let kind = match self.faults {
            Faults::All => [Faults::Switchover, Faults::Kill, Faults::Box][self.rng.random_range(0..3)],
            kind => kind,
        };
        let primary = rig.cluster.wait_healthy(VOLUME).primary;
        let serving = if primary == "alpha" { ALPHA } else { BETA };
        let other = ALPHA + BETA - serving;
        let held = replays.filter(|_| self.rng.random());
        if let Some(replays) = held {
            replays.pause();
        }
        self.happen(rig, kind, serving, other);
        if let Some(replays) = held {
            replays.go_on();
        }
        self.plan();
    }

    fn happen(&mut self, rig: &mut Rig, kind: Faults, serving: usize, other: usize) {
        match kind {
            Faults::None | Faults::All => {}
            Faults::Switchover => {
                rig.cluster.switchover(VOLUME, other);
                self.switchovers += 1;
            }
            Faults::Kill => {
                rig.cluster.nodes[serving].kill_worker();
                self.kills += 1;
            }
            Faults::Box => {
                rig.cluster.network.namespaces().unplug(serving);
                rig.cluster.nodes[serving].kill();
                rig.cluster.wait_primary(VOLUME, other);
                // Dead for long enough that its clients have found the other one.
                rig.wait_address();
                rig.cluster.nodes[serving].start_unwatched();
                rig.cluster.network.namespaces().plug(serving);
                self.boxes += 1;
            }
        }
    }
}

impl fmt::Display for Disturber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { switchovers, kills, boxes, .. } = self;
        write!(formatter, "{switchovers} switchovers, {kills} kills, {boxes} boxes")
    }
}
