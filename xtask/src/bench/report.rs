//! Medians, ratios and the table of a measurement.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, json};

use super::fio::Sample;

/// One run of one workload on one target.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) workload: &'static str,
    pub(super) target: &'static str,
    pub(super) sample: Sample,
}

/// Targets that Tandem is compared with.
pub(super) const PEERS: &[&str] = &["raw", "qemu", "quorum", "nbdkit", "gluster", "other", "drbd", "drbd-unflushed"];

type Figure = (&'static str, fn(&Sample) -> f64);

/// What the summary tells of the runs.
const FIGURES: &[Figure] = &[
    ("iops", |sample| sample.iops),
    ("bytes_per_second", |sample| sample.bytes_per_second),
    ("latency_mean_us", |sample| sample.latency_mean_us),
    ("latency_p50_us", |sample| sample.latency_p50_us),
    ("latency_p99_us", |sample| sample.latency_p99_us),
    ("latency_p999_us", |sample| sample.latency_p999_us),
    ("cpu_per_operation_us", |sample| sample.cpu_per_operation_us),
    ("least_share", |sample| sample.least_share),
];

/// A figure over several rounds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// All runs of a measurement.
pub(super) struct Report {
    size_bytes: u64,
    seconds: u64,
    rounds: usize,
    rows: Vec<Row>,
    /// The disk itself, at a time: when, workload, sample.
    disk: Vec<(&'static str, &'static str, Sample)>,
    /// Bare round trips on loopback, one for each round, in microseconds.
    round_trips_us: Vec<f64>,
}

/// The workload whose latency is compared with the bare floor.
const FLOOR_WORKLOAD: &str = "randwrite-4k-qd1";

/// What one replicated write takes at depth 1, and what it must take at least: the disk and two round trips on loopback, one
/// of the client and one of the peer. Microseconds, each of the same rounds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Floor {
    disk_us: Spread,
    round_trip_us: Spread,
    floor_us: Spread,
    tandem_us: Spread,
    above_us: Spread,
}

impl Report {
    pub(super) fn new(size_bytes: u64, seconds: u64, rounds: usize) -> Self {
        Self { size_bytes, seconds, rounds, rows: Vec::new(), disk: Vec::new(), round_trips_us: Vec::new() }
    }

    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// What the raw disk did before or after everything else.
    pub(super) fn add_disk(&mut self, when: &'static str, workload: &'static str, sample: Sample) {
        self.disk.push((when, workload, sample));
    }

    /// What a bare round trip on loopback took in this round.
    pub(super) fn add_round_trip(&mut self, us: f64) {
        self.round_trips_us.push(us);
    }

    /// None unless the raw disk, Tandem and the round trips were measured.
    pub(super) fn floor(&self) -> Option<Floor> {
        let mean = |target| self.samples(FLOOR_WORKLOAD, target).into_iter().map(|sample| sample.latency_mean_us);
        let rounds: Vec<(f64, f64, f64)> = mean("raw")
            .zip(self.round_trips_us.iter().copied())
            .zip(mean("tandem"))
            .map(|((disk, trip), own)| (disk, trip, own))
            .collect();
        let spread = |figure: fn(&(f64, f64, f64)) -> f64| Spread::of(rounds.iter().map(figure).collect());
        Some(Floor {
            disk_us: spread(|(disk, _, _)| *disk)?,
            round_trip_us: spread(|(_, trip, _)| *trip)?,
            floor_us: spread(|(disk, trip, _)| disk + 2.0 * trip)?,
            tandem_us: spread(|(_, _, own)| *own)?,
            above_us: spread(|(disk, trip, own)| own - disk - 2.0 * trip)?,
        })
    }

    pub(super) fn rounds(&self) -> usize {
        self.rounds
    }

    pub(super) fn seconds(&self) -> u64 {
        self.seconds
    }

    pub(super) fn workloads(&self) -> Vec<&'static str> {
        distinct(self.rows.iter().map(|row| row.workload))
    }

    fn targets(&self) -> Vec<&'static str> {
        distinct(self.rows.iter().map(|row| row.target))
    }

    fn samples(&self, workload: &str, target: &str) -> Vec<Sample> {
        let wanted = |row: &&Row| row.workload == workload && row.target == target;
        self.rows.iter().filter(wanted).map(|row| row.sample).collect()
    }

    /// A figure of the runs of a workload on a target.
    fn spread(&self, workload: &str, target: &str, figure: fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.samples(workload, target).iter().map(figure).collect())
    }

    /// Tandem's IOPS over those of another target: the median of the ratios of each round, whose runs follow each other.
    pub(super) fn ratio(&self, workload: &str, to: &str) -> Option<Spread> {
        let (own, other) = (self.samples(workload, "tandem"), self.samples(workload, to));
        Spread::of(own.iter().zip(&other).map(|(own, other)| own.iops / other.iops).collect())
    }

    /// The figures for `bench-block.json`.
    pub(super) fn summary(&self) -> Value {
        let mut workloads = serde_json::Map::new();
        for workload in self.workloads() {
            let mut entry = serde_json::Map::new();
            for target in self.targets() {
                let mut figures = serde_json::Map::new();
                for (name, figure) in FIGURES {
                    figures.insert((*name).to_owned(), json!(self.spread(workload, target, *figure)));
                }
                figures.insert("runs".to_owned(), json!(self.samples(workload, target)));
                entry.insert(target.to_owned(), Value::Object(figures));
            }
            for other in PEERS {
                if let Some(ratio) = self.ratio(workload, other) {
                    entry.insert(format!("tandem_over_{other}"), json!(ratio));
                }
            }
            workloads.insert(workload.to_owned(), Value::Object(entry));
        }
        let disk = |(when, workload, sample): &(&str, &str, Sample)| json!({ "when": when, "workload": workload, "run": sample });
        let disk: Vec<Value> = self.disk.iter().map(disk).collect();
        json!({ "disk": disk, "floor": self.floor(), "size_bytes": self.size_bytes, "seconds": self.seconds, "rounds": self.rounds, "workloads": workloads })
    }
}

/// A table for people.
pub(super) fn table(report: &Report) -> String {
    let targets = report.targets();
    let mut text = format!("\n{:20} {:14}", "workload", "target");
    for heading in ["IOPS", "(min-max)", "MB/s", "p50 us", "p99 us", "p99.9 us", "cpu us", "least share", "tandem is"] {
        let _ = write!(text, " {heading:>14}");
    }
    text.push('\n');
    for workload in report.workloads() {
        for target in &targets {
            if report.samples(workload, target).is_empty() {
                continue;
            }
            let of = |figure| report.spread(workload, target, figure).unwrap_or_default();
            let iops = of(|sample| sample.iops);
            let _ = write!(text, "{workload:20} {target:14} {:>14.0}", iops.median);
            let _ = write!(text, " {:>14}", format!("{:.0}-{:.0}", iops.min, iops.max));
            let _ = write!(text, " {:>14.1}", of(|sample| sample.bytes_per_second).median / 1e6);
            let latencies: [fn(&Sample) -> f64; 3] =
                [|sample| sample.latency_p50_us, |sample| sample.latency_p99_us, |sample| sample.latency_p999_us];
            for latency in latencies {
                let _ = write!(text, " {:>14.0}", of(latency).median);
            }
            let cpu_us = of(|sample| sample.cpu_per_operation_us).median;
            let cpu = if cpu_us > 0.0 { format!("{cpu_us:.1}") } else { "-".to_owned() };
            let _ = write!(text, " {cpu:>14}");
            let _ = write!(text, " {:>14.2}", of(|sample| sample.least_share).median);
            let ratio = report.ratio(workload, target).filter(|_| *target != "tandem");
            let ratio = ratio.map_or_else(String::new, |r| format!("{:.2} ({:.2}-{:.2})", r.median, r.min, r.max));
            let _ = writeln!(text, " {ratio:>18}");
        }
    }
    if let Some(floor) = report.floor() {
        let shown = |s: Spread| format!("{:.0} ({:.0}-{:.0})", s.median, s.min, s.max);
        let _ = writeln!(
            text,
            "\n{FLOOR_WORKLOAD}, microseconds: disk {} + 2 x round trip {} = bare floor {}; tandem {}, above it {}",
            shown(floor.disk_us),
            shown(floor.round_trip_us),
            shown(floor.floor_us),
            shown(floor.tandem_us),
            shown(floor.above_us)
        );
    }
    text
}

fn distinct<'a>(items: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut kept: Vec<&str> = Vec::new();
    for item in items {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    kept
}

impl Spread {
    /// Of at least one value.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let high = *values.get(middle)?;
        let median = if values.len() % 2 == 1 { high } else { (values[middle - 1] + high) / 2.0 };
        Some(Self { median, min: values[0], max: values[values.len() - 1] })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn row(target: &'static str, iops: f64) -> Row {
        let sample = Sample {
            iops,
            bytes_per_second: iops * 4096.0,
            latency_mean_us: 1.0,
            latency_p50_us: 1.0,
            latency_p99_us: 2.0,
            latency_p999_us: 3.0,
            cpu_per_operation_us: 4.0,
            operations: iops,
            least_share: 1.0,
        };
        Row { workload: "w", target, sample }
    }

    #[test]
    fn medians_and_ratios() {
        let median = |values: &[f64]| Spread::of(values.to_vec()).map(|spread| spread.median);
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
        assert_eq!(median(&[]), None);
        let mut report = Report::new(1, 1, 3);
        for (own, other) in [(10.0, 5.0), (500.0, 100.0), (12.0, 12.0)] {
            report.add(row("tandem", own));
            report.add(row("quorum", other));
        }
        // Pair by pair: 2, 5 and 1, whatever the medians of each are.
        let summary = report.summary();
        assert_eq!(summary["workloads"]["w"]["tandem_over_quorum"]["median"], 2.0);
        assert_eq!(summary["workloads"]["w"]["tandem"]["runs"].as_array().map(Vec::len), Some(3));
        assert!(table(&report).contains("2.00 (1.00-5.00)"));
        assert_eq!(report.floor(), None);
    }

    #[test]
    fn floor_is_the_disk_and_two_round_trips_of_the_same_round() {
        let mut report = Report::new(1, 1, 2);
        for (disk, trip, own) in [(30.0, 10.0, 100.0), (50.0, 20.0, 120.0)] {
            for (target, latency_mean_us) in [("raw", disk), ("tandem", own)] {
                let sample = Sample { latency_mean_us, ..row(target, 1.0).sample };
                report.add(Row { workload: FLOOR_WORKLOAD, target, sample });
            }
            report.add_round_trip(trip);
        }
        let floor = report.floor().expect("all was measured");
        assert_eq!((floor.floor_us.min, floor.floor_us.max), (50.0, 90.0));
        assert_eq!((floor.above_us.min, floor.above_us.max), (30.0, 50.0));
        assert!(table(&report).contains("bare floor 70 (50-90); tandem 110 (100-120), above it 40 (30-50)"));
    }
}
