//! The table of all events, and the file with every one of them.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::events::{Event, Kind};
use crate::phases::PHASES;

/// Everything that is known so far; the file is written anew after each event, so that a run that is broken off leaves its figures.
pub(crate) fn write(events: &[Event], facts: &Value, output: &Path) -> Result<()> {
    let summary = Kind::ALL.iter().filter_map(|kind| Some((kind.name().to_owned(), summary(events, *kind)?)));
    let all: Vec<Value> = events.iter().map(Event::to_json).collect();
    let report = json!({ "summary": summary.collect::<Map<_, _>>(), "facts": facts, "events": all });
    fs::write(output, serde_json::to_string_pretty(&report)? + "\n")?;
    Ok(())
}

fn summary(events: &[Event], kind: Kind) -> Option<Value> {
    let mine = || events.iter().filter(move |event| event.kind == kind);
    let all = Percentiles::of(mine().map(|event| event.stall_ms).collect())?;
    let changes = Percentiles::of(mine().map(|event| event.changes_stall_ms).collect())?;
    let phases = PHASES.iter().enumerate().map(|(at, (name, _))| {
        let lengths = Percentiles::of(mine().filter_map(|event| event.phases.0[at]).collect());
        ((*name).to_owned(), lengths.map_or(Value::Null, Percentiles::to_json))
    });
    Some(json!({
        "count": mine().count(),
        "stall_ms": all.to_json(),
        "stall_of_changes_ms": changes.to_json(),
        "aim_p99_ms": kind.aim_ms(),
        "met": all.p99 <= kind.aim_ms(),
        "phases_ms": phases.collect::<Map<_, _>>(),
    }))
}

/// Of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Percentiles {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Percentiles {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |part: f64| values.get(((values.len() as f64 * part).ceil() as usize).saturating_sub(1)).copied();
        Some(Self { p50: at(0.5)?, p99: at(0.99)?, max: at(1.0)? })
    }

    fn to_json(self) -> Value {
        json!({ "p50": self.p50, "p99": self.p99, "max": self.max })
    }
}

/// Prints the tables.
pub(crate) fn print(events: &[Event]) {
    println!("\n| stall seen by the client, ms | events | p50 | p99 | max | changes alone: p99, max | aim for p99 |");
    println!("|---|---|---|---|---|---|---|");
    for kind in Kind::ALL {
        let mine = || events.iter().filter(move |event| event.kind == kind);
        let Some(all) = Percentiles::of(mine().map(|event| event.stall_ms).collect()) else { continue };
        let Some(changes) = Percentiles::of(mine().map(|event| event.changes_stall_ms).collect()) else { continue };
        println!(
            "| {} | {} | {:.0} | {:.0} | {:.0} | {:.0}, {:.0} | {:.0}: {} |",
            kind.what(),
            mine().count(),
            all.p50,
            all.p99,
            all.max,
            changes.p99,
            changes.max,
            kind.aim_ms(),
            if all.p99 <= kind.aim_ms() { "met" } else { "**not met**" }
        );
    }
    println!("\n| phase, ms: p50, p99, max | {} |", Kind::ALL.map(Kind::what).join(" | "));
    println!("|---{}|", "|---".repeat(Kind::ALL.len()));
    for (at, (name, end)) in PHASES.iter().enumerate() {
        let cells = Kind::ALL.map(|kind| {
            let mine = events.iter().filter(|event| event.kind == kind).filter_map(|event| event.phases.0[at]);
            let lengths = Percentiles::of(mine.collect());
            lengths.map_or(String::new(), |of| format!("{:.0}, {:.0}, {:.0}", of.p50, of.p99, of.max))
        });
        println!("| {name} (until {end}) | {} |", cells.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_of_a_hundred_is_the_second_longest() {
        let of = Percentiles::of((1..=100).map(f64::from).collect()).expect("there are some");
        assert_eq!(of, Percentiles { p50: 50.0, p99: 99.0, max: 100.0 });
        assert_eq!(Percentiles::of(Vec::new()), None);
    }
}
