//! Medians, ratios and the table of a measurement.

use std::fmt::Write;

use serde_json::{Value, json};

use super::fio::Sample;

/// One run of one workload on one target.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) workload: &'static str,
    pub(super) target: &'static str,
    pub(super) sample: Sample,
}

/// All runs of a measurement.
pub(super) struct Report {
    size_bytes: u64,
    seconds: u64,
    rounds: usize,
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(size_bytes: u64, seconds: u64, rounds: usize) -> Self {
        Self { size_bytes, seconds, rounds, rows: Vec::new() }
    }

    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    fn workloads(&self) -> Vec<&'static str> {
        distinct(self.rows.iter().map(|row| row.workload))
    }

    fn targets(&self) -> Vec<&'static str> {
        distinct(self.rows.iter().map(|row| row.target))
    }

    /// The median of each figure, taken by itself.
    fn median(&self, workload: &str, target: &str) -> Option<Sample> {
        let samples: Vec<Sample> = self
            .rows
            .iter()
            .filter(|row| row.workload == workload && row.target == target)
            .map(|row| row.sample)
            .collect();
        let of = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure).collect());
        Some(Sample {
            iops: of(|sample| sample.iops)?,
            bytes_per_second: of(|sample| sample.bytes_per_second)?,
            latency_mean_us: of(|sample| sample.latency_mean_us)?,
            latency_p99_us: of(|sample| sample.latency_p99_us)?,
        })
    }

    /// Tandem's IOPS over those of another target.
    fn ratio(&self, workload: &str, to: &str) -> Option<f64> {
        Some(self.median(workload, "tandem")?.iops / self.median(workload, to)?.iops)
    }

    /// The figures for `bench-block.json`.
    pub(super) fn summary(&self) -> Value {
        let mut workloads = serde_json::Map::new();
        for workload in self.workloads() {
            let mut entry = serde_json::Map::new();
            for target in self.targets() {
                let runs: Vec<&Sample> = self
                    .rows
                    .iter()
                    .filter(|row| row.workload == workload && row.target == target)
                    .map(|row| &row.sample)
                    .collect();
                entry.insert(target.to_owned(), json!({ "median": self.median(workload, target), "runs": runs }));
            }
            for other in ["raw", "qemu", "quorum"] {
                if let Some(ratio) = self.ratio(workload, other) {
                    entry.insert(format!("tandem_over_{other}"), json!(ratio));
                }
            }
            workloads.insert(workload.to_owned(), Value::Object(entry));
        }
        json!({ "size_bytes": self.size_bytes, "seconds": self.seconds, "rounds": self.rounds, "workloads": workloads })
    }
}

/// A table for people.
pub(super) fn table(report: &Report) -> String {
    let mut text = String::from("\nmedians: IOPS (MB/s), mean latency\n");
    let targets = report.targets();
    let _ = write!(text, "{:20}", "workload");
    for target in &targets {
        let _ = write!(text, " {target:>24}");
    }
    let compared: Vec<&str> = ["raw", "qemu", "quorum"].into_iter().filter(|other| targets.contains(other)).collect();
    let with_tandem = targets.contains(&"tandem");
    for other in compared.iter().filter(|_| with_tandem) {
        let _ = write!(text, " {:>10}", format!("x {other}"));
    }
    text.push('\n');
    for workload in report.workloads() {
        let _ = write!(text, "{workload:20}");
        for target in &targets {
            let cell = report.median(workload, target).map_or_else(String::new, |sample| {
                format!("{:.0} ({:.0}) {:.0} us", sample.iops, sample.bytes_per_second / 1e6, sample.latency_mean_us)
            });
            let _ = write!(text, " {cell:>24}");
        }
        for other in compared.iter().filter(|_| with_tandem) {
            let _ = write!(text, " {:>10.2}", report.ratio(workload, other).unwrap_or(f64::NAN));
        }
        text.push('\n');
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

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let high = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { high } else { (values[middle - 1] + high) / 2.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(target: &'static str, iops: f64) -> Row {
        let sample = Sample { iops, bytes_per_second: iops * 4096.0, latency_mean_us: 1.0, latency_p99_us: 2.0 };
        Row { workload: "w", target, sample }
    }

    #[test]
    fn medians_and_ratios() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![1.0, 2.0]), Some(1.5));
        assert_eq!(median(Vec::new()), None);
        let mut report = Report::new(1, 1, 3);
        for iops in [10.0, 500.0, 12.0] {
            report.add(row("tandem", iops));
            report.add(row("quorum", 6.0));
        }
        let summary = report.summary();
        assert_eq!(summary["workloads"]["w"]["tandem_over_quorum"], 2.0);
        assert_eq!(summary["workloads"]["w"]["tandem"]["runs"].as_array().map(Vec::len), Some(3));
        assert!(table(&report).contains("2.00"));
    }
}
