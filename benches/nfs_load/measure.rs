//! Tasks that do one operation after another, and what comes of it: rate, latencies, processor time of the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::latencies::Latencies;
use crate::processor::Processes;

/// How much is to be done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Amount {
    /// As much as goes in this time.
    Time(Duration),
    /// So many operations, numbered from 0 on.
    Operations(u64),
}

/// What one operation knows of its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// The task that does it.
    pub(crate) task: usize,
    /// Its number among all.
    pub(crate) number: u64,
}

/// What was measured.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) workload: &'static str,
    pub(crate) tasks: usize,
    pub(crate) seconds: f64,
    pub(crate) latencies: Latencies,
    /// Bytes of files that went over the wire.
    pub(crate) bytes: u64,
    /// Processor time of the server's processes.
    pub(crate) server_seconds: Option<f64>,
    /// What the operations counted are, where they are no calls.
    pub(crate) unit: &'static str,
    /// Units done, where an operation does several.
    pub(crate) units: u64,
    /// Each run of a workload that is done several times as a whole, in seconds.
    pub(crate) passes: Vec<f64>,
    /// What a workload tells of itself.
    pub(crate) notes: Value,
}

impl Measured {
    /// Units a second.
    pub(crate) fn rate(&self) -> f64 {
        self.units as f64 / self.seconds
    }

    /// Units that a second of one core would carry.
    pub(crate) fn rate_on_one_core(&self) -> Option<f64> {
        self.server_seconds.filter(|seconds| *seconds > 0.0).map(|seconds| self.units as f64 / seconds)
    }

    /// All figures.
    pub(crate) fn to_json(&self) -> Value {
        let us = |took: Duration| took.as_secs_f64() * 1e6;
        json!({
            "workload": self.workload,
            "in_flight": self.tasks,
            "unit": self.unit,
            "units": self.units,
            "operations": self.latencies.count(),
            // An operation that fails ends the program: there are no figures of errors.
            "errors": 0,
            "seconds": self.seconds,
            "rate": self.rate(),
            "bytes_per_second": self.bytes as f64 / self.seconds,
            "latency_p50_us": us(self.latencies.percentile(0.5)),
            "latency_p99_us": us(self.latencies.percentile(0.99)),
            "latency_max_us": us(self.latencies.longest()),
            "server_cpu_us_per_unit": self.server_seconds.map(|seconds| seconds * 1e6 / self.units as f64),
            "rate_on_one_core": self.rate_on_one_core(),
            "passes_seconds": self.passes,
            "notes": self.notes,
        })
    }
}

/// Does an operation again and again in so many tasks. Each gives the bytes of files that it moved. Errors: that of the first
/// operation that fails; nothing is measured then.
pub(crate) async fn run<F, Fut>(
    workload: &'static str,
    tasks: usize,
    amount: Amount,
    server: &Processes,
    operation: F,
) -> Result<Measured>
where
    F: Fn(Step) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<u64>> + Send,
{
    let next = Arc::new(AtomicU64::new(0));
    let before = cpu(server)?;
    let start = Instant::now();
    let mut all = JoinSet::new();
    for task in 0..tasks {
        let (next, operation) = (Arc::clone(&next), operation.clone());
        all.spawn(async move {
            let (mut latencies, mut bytes) = (Latencies::default(), 0);
            loop {
                let is_over = matches!(amount, Amount::Time(time) if start.elapsed() >= time);
                let number = next.fetch_add(1, Ordering::Relaxed);
                if is_over || matches!(amount, Amount::Operations(count) if number >= count) {
                    return anyhow::Ok((latencies, bytes));
                }
                let began = Instant::now();
                bytes += operation(Step { task, number }).await?;
                latencies.add(began.elapsed());
            }
        });
    }
    let (mut latencies, mut bytes) = (Latencies::default(), 0);
    while let Some(ended) = all.join_next().await {
        let (of_task, moved) = ended??;
        latencies.merge(&of_task);
        bytes += moved;
    }
    let seconds = start.elapsed().as_secs_f64();
    let server_seconds = cpu(server)?.zip(before).map(|(after, before)| after - before);
    let units = latencies.count();
    let (unit, passes, notes) = ("operations", Vec::new(), Value::Null);
    Ok(Measured { workload, tasks, seconds, latencies, bytes, server_seconds, unit, units, passes, notes })
}

/// Processor time so far, if anybody's is to be measured.
pub(crate) fn cpu(server: &Processes) -> Result<Option<f64>> {
    if server.is_empty() { Ok(None) } else { server.seconds().map(Some) }
}
