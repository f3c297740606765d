//! Where the time of an event went, from the log of the node that has taken over: each phase ends with a line of it, the last one
//! with the first answer that the client had. All nodes and the client share one clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

const MS_OF_DAY: f64 = 86_400_000.0;

/// The phases, in order: name, what ends it.
pub(crate) const PHASES: [(&str, &str); 6] = [
    ("detection", "the first line of the log about the other box or the role"),
    ("raft", "the node is primary"),
    ("journal", "the filesystem's log is replayed"),
    ("ring", "clients, sessions and opens are restored; files that nobody has are given back"),
    ("address", "the floating address is here"),
    ("first_reply", "the client has an answer"),
];

/// The length of each phase in milliseconds; none where the log does not tell.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Phases(pub(crate) [Option<f64>; PHASES.len()]);

impl Phases {
    /// From the part of the log that was written since the event began at `begin`; the client had its answer `answered` after that.
    pub(crate) fn of(log: &str, begin: SystemTime, answered: Option<Duration>) -> Self {
        let began = ms_of_day(begin);
        let at = |line: &str| {
            line_ms_of_day(line).map(|ms| (ms - began + MS_OF_DAY / 2.0).rem_euclid(MS_OF_DAY) - MS_OF_DAY / 2.0)
        };
        let first = |is_it: &dyn Fn(&str) -> bool| log.lines().filter(|line| is_it(line)).find_map(at);
        let role = first(&|line| line.contains("-> primary") && !line.contains("-> primary,"));
        let noticed = first(&|line| {
            ["its run ", ": peer ", "role: ", "link lost", "link closed"].iter().any(|word| line.contains(word))
        });
        let opened_line = log.lines().find(|line| line.contains("filesystem open"));
        let opened = opened_line.and_then(at);
        let taken = first(&|line| line.contains("taken over"));
        // The service's records are restored as part of what is measured as orphans.
        let restored = opened_line.and_then(|line| field(line, "orphans_ms"));
        let replayed = opened.zip(restored).map(|(opened, restored)| opened - restored);
        let answered = answered.map(|answered| answered.as_secs_f64() * 1e3);
        let mut last = Some(0.0);
        let ends = [noticed, role, replayed, opened, taken, answered];
        Self(ends.map(|end| {
            let length = end.zip(last).map(|(end, last)| end - last);
            last = end.or(last);
            length
        }))
    }

    /// By their names.
    pub(crate) fn to_json(self) -> Value {
        let named = PHASES.iter().zip(self.0).map(|((name, _), ms)| (format!("{name}_ms"), json!(ms)));
        Value::Object(named.collect::<Map<_, _>>())
    }
}

fn field(line: &str, name: &str) -> Option<f64> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?.parse().ok()
}

fn ms_of_day(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3 % MS_OF_DAY
}

/// The time of day of a line of a log, which begins with date and time in UTC.
fn line_ms_of_day(line: &str) -> Option<f64> {
    let (_, time) = line.split_whitespace().next()?.trim_end_matches('Z').split_once('T')?;
    let mut parts = time.splitn(3, ':').map(str::parse::<f64>);
    let mut part = || parts.next()?.ok();
    Some(((part()? * 60.0 + part()?) * 60.0 + part()?) * 1e3)
}
