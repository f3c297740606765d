//! A load generator for NFS servers that needs no kernel: it speaks NFSv4.1 sessions itself, with as many clients as it is told,
//! each on a connection of its own. `cargo xtask bench nfs` runs it; it works against any server.
//!
//! What it measures is what was done and found right: an operation that fails, or data that is not what was written, ends it
//! with an error. A workload is a module; here is their choice, and the table.
#![forbid(unsafe_code)]

mod creates;
mod data;
mod latencies;
mod listing;
mod measure;
mod pattern;
mod processor;
mod server;
mod small_files;
mod tree;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use serde_json::Value;

use listing::Manner;
use measure::{Amount, Measured};
use processor::Processes;
use server::Server;

const MIB: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// OPEN that makes a file, and CLOSE.
    Creates,
    /// A file written in order, with the COMMIT at its end.
    Write,
    /// The same file read in order.
    Read,
    /// 4 KiB at random from the same file.
    RandomRead,
    /// OPEN, READ and CLOSE of small files that are there.
    OpenReadClose,
    /// LOOKUP with attributes of the same files.
    TreeWalk,
    /// READDIR with attributes of a large directory.
    Listing,
}

#[derive(Parser)]
struct Options {
    /// Address and port of the server.
    #[arg(long)]
    server: SocketAddr,
    /// Where files are made: a path from the server's root on.
    #[arg(long, default_value = "vol/load")]
    directory: String,
    /// What is measured, in this order.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "creates,write,read,random-read")]
    workloads: Vec<Workload>,
    /// Clients, each with a connection and a session of its own.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    clients: u16,
    /// Operations of each client that are under way at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// Seconds of each workload that is not a number of operations.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Size of the file that is written and read, in MiB.
    #[arg(long, default_value_t = 256)]
    file_mib: u64,
    /// Small files.
    #[arg(long, default_value_t = 10_000)]
    files: u64,
    /// Names in the large directory.
    #[arg(long, default_value_t = 50_000)]
    entries: u64,
    /// Times that it is listed.
    #[arg(long, default_value_t = 3)]
    passes: usize,
    /// Bytes of one READDIR's result at most.
    #[arg(long, default_value_t = 1 << 20)]
    listing_bytes: u32,
    /// A listing asks for each file's attributes again, as a kernel does of some servers.
    #[arg(long)]
    getattr_each: bool,
    /// Processes of the server, here: their processor time, and that of all that descend from them, is measured too.
    #[arg(long, value_delimiter = ',')]
    server_pids: Vec<u32>,
    /// One line of JSON for each workload instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&options))
}

async fn run(options: &Options) -> Result<()> {
    let server = Server::connect(options.server, usize::from(options.clients), &options.directory).await?;
    let processes = Processes::new(options.server_pids.clone());
    if !options.json {
        println!("| workload | in flight | rate | MB/s | p50 | p99 | server's CPU for each | on one core |");
        println!("|---|---|---|---|---|---|---|---|");
    }
    for workload in &options.workloads {
        let measured = measure(*workload, &server, options, &processes).await?;
        if options.json { print_json(&measured.to_json()) } else { print_line(&measured) }
    }
    server.close().await
}

async fn measure(workload: Workload, server: &Server, options: &Options, processes: &Processes) -> Result<Measured> {
    let in_flight = usize::from(options.clients) * usize::from(options.depth);
    let time = Amount::Time(Duration::from_secs(options.seconds));
    let bytes = options.file_mib * MIB;
    match workload {
        Workload::Creates => creates::measure(server, in_flight, time, processes).await,
        Workload::Write => data::write(server, bytes, in_flight, processes).await,
        Workload::Read => data::read(server, bytes, in_flight, processes).await,
        Workload::RandomRead => data::read_at_random(server, bytes, in_flight, time, processes).await,
        Workload::OpenReadClose => small_files::measure(server, options.files, in_flight, processes).await,
        Workload::TreeWalk => tree::measure(server, options.files, in_flight, processes).await,
        Workload::Listing => {
            let manner = Manner { bytes_max: options.listing_bytes, getattr_each: options.getattr_each };
            listing::measure(server, options.entries, options.passes, manner, processes).await
        }
    }
}

fn print_json(measured: &Value) {
    println!("{measured}");
}

fn print_line(measured: &Measured) {
    let us = |part| measured.latencies.percentile(part).as_secs_f64() * 1e6;
    let each = measured.server_seconds.map(|seconds| format!("{:.1} µs", seconds * 1e6 / measured.units as f64));
    let on_one = measured.rate_on_one_core().map(|rate| format!("{rate:.0}/s"));
    println!(
        "| {} | {} | {:.0} {}/s | {:.1} | {:.0} µs | {:.0} µs | {} | {} |",
        measured.workload,
        measured.tasks,
        measured.rate(),
        measured.unit,
        measured.bytes as f64 / measured.seconds / 1e6,
        us(0.5),
        us(0.99),
        each.unwrap_or_default(),
        on_one.unwrap_or_default(),
    );
    if !measured.passes.is_empty() {
        let passes: Vec<String> = measured.passes.iter().map(|seconds| format!("{seconds:.3} s")).collect();
        println!("| each pass | | {} | | | | | |", passes.join(", "));
    }
}
