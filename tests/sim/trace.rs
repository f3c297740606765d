//! What happened: always a hash of it, and on demand lines for people.

use std::collections::VecDeque;

use super::scheduler::SimTime;

/// Lines kept when a run is recorded.
pub const TRACE_LINES_MAX: usize = 400_000;

/// The record of one run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    recording: bool,
    lines: VecDeque<(SimTime, Option<usize>, String)>,
}

impl Trace {
    /// A trace that keeps lines if `recording`.
    pub fn new(recording: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, recording, lines: VecDeque::new() }
    }

    /// True when lines are kept.
    pub fn recording(&self) -> bool {
        self.recording
    }

    /// Mixes a fact into the hash.
    pub fn mix(&mut self, fact: u64) {
        self.hash = (self.hash ^ fact).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
    }

    /// Adds a line, made only if lines are kept. `volume` is what it is about; None is about all.
    pub fn line(&mut self, at: SimTime, volume: Option<usize>, text: impl FnOnce() -> String) {
        if self.recording {
            if self.lines.len() == TRACE_LINES_MAX {
                self.lines.pop_front();
            }
            self.lines.push_back((at, volume, text()));
        }
    }

    /// Equal for equal runs.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The last `count` lines about `volume` (all volumes if None) up to time `until`, and those about everything.
    pub fn tail(&self, volume: Option<usize>, until: SimTime, count: usize) -> Vec<String> {
        let relevant = |line: &&(SimTime, Option<usize>, String)| {
            line.0 <= until && (volume.is_none() || line.1.is_none() || line.1 == volume)
        };
        let mut lines: Vec<_> = self.lines.iter().rev().filter(relevant).take(count).collect();
        lines.reverse();
        lines.into_iter().map(|(at, _, text)| format!("{:>11.6}  {text}", *at as f64 / 1e6)).collect()
    }
}

/// A debug print without the names of the newtypes, so that lines stay readable.
pub fn brief(text: &str) -> String {
    const NAMES: [&str; 16] = [
        "NodeId",
        "VolumeId",
        "DiskId",
        "Epoch",
        "ConfigVersion",
        "Incarnation",
        "Boot",
        "SessionId",
        "RequestId",
        "Timestamp",
        "Micros",
        "OpId",
        "IoId",
        "LinkId",
        "Seq",
        "BlockRange ",
    ];
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let name = NAMES.iter().find(|name| rest.starts_with(**name) && !out.ends_with(char::is_alphanumeric));
        match name {
            Some(name) => rest = &rest[name.len()..],
            None => {
                let first = rest.chars().next().map_or(1, char::len_utf8);
                out.push_str(&rest[..first]);
                rest = &rest[first..];
            }
        }
    }
    out
}
