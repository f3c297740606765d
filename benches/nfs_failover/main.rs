//! How long a client waits while its server changes: planned switchovers, killed processes and dead boxes of a real pair behind
//! a floating address, under steady load. Started by `cargo xtask bench failover`.
//!
//! The load must not see a single error, the server must know its client all the time, and e2fsck judges at the end: figures of
//! a run that lost something are none.
#![forbid(unsafe_code)]

mod events;
mod load;
mod phases;
mod report;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use serde_json::json;
use tandem_benches::served::Served;

use events::{Event, Kind};
use load::Load;

/// Bytes of the volume; it is sparse.
const SIZE: &str = "1G";

#[derive(Parser)]
struct Options {
    /// Planned switchovers.
    #[arg(long)]
    switchovers: usize,
    /// Kills of the primary's worker.
    #[arg(long)]
    kills: usize,
    /// Deaths of the primary's box.
    #[arg(long)]
    boxes: usize,
    /// How long the client hears nothing before it tries another connection, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    silence_ms: u64,
    /// An empty directory for the cluster.
    #[arg(long)]
    directory: PathBuf,
    /// Where the figures go.
    #[arg(long)]
    output: PathBuf,
}

fn main() -> Result<()> {
    let options = Options::parse();
    fs::create_dir_all(&options.directory)?;
    let mut served = Served::start(&fs::canonicalize(&options.directory)?, SIZE);
    let mut load = Load::start(&served, Duration::from_millis(options.silence_ms));
    let load_before = fs::read_to_string("/proc/loadavg")?;
    println!("load {}", load_before.trim());
    let mut facts = json!({ "load_before": load_before.trim(), "silence_ms": options.silence_ms, "volume": SIZE });
    let mut all: Vec<Event> = Vec::new();
    for (kind, count) in Kind::ALL.into_iter().zip([options.switchovers, options.kills, options.boxes]) {
        for number in 0..count {
            let event = events::run(&mut served, &mut load, kind, number)?;
            println!("{}", event.to_json());
            all.push(event);
            report::write(&all, &facts, &options.output)?;
        }
    }
    let (operations, statistics) = load.finish()?;
    ensure!(statistics.clients == 1 && statistics.sessions == 1, "the server forgot its client: {statistics:?}");
    served.check()?;
    let load_after = fs::read_to_string("/proc/loadavg")?;
    facts["load_after"] = json!(load_after.trim());
    facts["operations"] = json!(operations);
    facts["connections"] = json!(statistics.connections);
    facts["resent"] = json!(statistics.resent);
    facts["errors"] = json!(0);
    report::write(&all, &facts, &options.output)?;
    report::print(&all);
    println!("\n{operations} operations without an error; e2fsck: clean; wrote {}", options.output.display());
    Ok(())
}
