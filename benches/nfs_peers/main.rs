//! Tandem's replicated pair and nfs-ganesha on one local ext4, side by side: by one real kernel client that has both mounted, and
//! by the load generator. Started by `cargo xtask bench nfs`; needs root, namespaces, a user-mode Linux and nfs-ganesha.
//!
//! Everything shares one machine: both nodes, the witness, nfs-ganesha (in the witness's namespace), and the client. Within a round
//! the servers take turns on each work.
#![forbid(unsafe_code)]

mod generator;
mod guest;
mod report;
mod sizes;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use tandem_benches::served::{PORT, Served, VOLUME};
use tandem_tests::e2e::cluster::WITNESS;
use tandem_tests::e2e::ganesha::{EXPORT, Ganesha, NEEDS};
use tandem_tests::e2e::small_disk::SmallDisk;
use tandem_tests::e2e::{Need, require};

use generator::Workload;
use guest::{Guest, Work};
use report::{Aim, Line};
use sizes::Sizes;

/// Bytes of the volume, and of nfs-ganesha's file system; both are sparse.
const SIZE: &str = "8G";
const SIZE_BYTES: u64 = 8 << 30;
const SERVERS: [&str; 2] = ["tandem", "ganesha"];

/// The works of the kernel client: name, unit, aim.
const OF_THE_KERNEL: [(Work, &str, &str, Aim); 10] = [
    (Work::Write, "sequential write, fsync", "bytes", Aim::Ratio(1.0)),
    (Work::Read, "sequential read", "bytes", Aim::Ratio(1.0)),
    (Work::Direct("randread", 1), "4k O_DIRECT read, QD1", "operations", Aim::Ratio(1.0)),
    (Work::Direct("randread", 32), "4k O_DIRECT read, QD32", "operations", Aim::Ratio(1.0)),
    (Work::Direct("randwrite", 1), "4k O_DIRECT write, QD1", "operations", Aim::Ratio(1.0)),
    (Work::Direct("randwrite", 32), "4k O_DIRECT write, QD32", "operations", Aim::Ratio(1.0)),
    (Work::Creates, "serial create", "files", Aim::Ratio(0.7)),
    (Work::CreatesWithFsync, "serial create, write, fsync", "files", Aim::Ratio(2.0)),
    (Work::OpenReadClose, "open, read, close", "files", Aim::Ratio(0.7)),
    (Work::TreeWalk, "tree walk with stat", "files", Aim::Ratio(1.0)),
];

/// The workloads of the generator: its own name, clients, depth, name, unit, aim.
const OF_THE_GENERATOR: [(&str, u32, u32, &str, &str, Aim); 7] = [
    ("open-read-close", 1, 1, "open, read, close, one by one", "files", Aim::None),
    ("tree-walk", 1, 1, "look up, one by one", "files", Aim::None),
    ("listing", 1, 1, "ls -l of a large directory", "entries", Aim::Ratio(5.0)),
    ("creates", 32, 1, "durable create, 32 clients", "files", Aim::Rate(10_000.0)),
    ("write", 1, 8, "sequential write, COMMIT", "calls", Aim::None),
    ("read", 1, 8, "sequential read", "calls", Aim::None),
    ("random-read", 8, 8, "4k random read, 64 in flight", "operations", Aim::RateOnOneCore(40_000.0)),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The load generator.
    Generator,
    /// The kernel client.
    Kernel,
}

#[derive(Parser)]
struct Options {
    /// An empty directory for everything.
    #[arg(long)]
    directory: PathBuf,
    /// The load generator's program.
    #[arg(long)]
    generator: PathBuf,
    /// Where the figures go.
    #[arg(long)]
    output: PathBuf,
    /// One round of small amounts.
    #[arg(long)]
    quick: bool,
    /// Rounds.
    #[arg(long)]
    rounds: Option<usize>,
    /// Which clients.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "generator,kernel")]
    parts: Vec<Part>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let is_possible = require("bench nfs", &NEEDS) && require("bench nfs", &[Need::SmallDisk, Need::Program("fio")]);
    ensure!(is_possible, "something that it needs is missing here");
    if options.parts.contains(&Part::Kernel) {
        ensure!(require("bench nfs", &[Need::UserModeLinux]), "no user-mode Linux: `cargo xtask kernel-client --uml`");
    }
    let mut sizes = if options.quick { Sizes::QUICK } else { Sizes::WHOLE };
    sizes.rounds = options.rounds.unwrap_or(sizes.rounds);
    fs::create_dir_all(&options.directory)?;
    let mut bench = Bench::start(&fs::canonicalize(&options.directory)?, &options, sizes)?;
    let load_before = fs::read_to_string("/proc/loadavg")?;
    println!("load {}", load_before.trim());
    let (mut lines, mut facts) =
        (Vec::new(), json!({ "load_before": load_before.trim(), "sizes": format!("{sizes:?}") }));
    // The kernel first: it shows how the generator has to list.
    if options.parts.contains(&Part::Kernel) {
        bench.by_the_kernel(&mut lines, &mut facts)?;
    }
    if options.parts.contains(&Part::Generator) {
        bench.by_the_generator(&mut lines)?;
    }
    facts["load_after"] = json!(fs::read_to_string("/proc/loadavg")?.trim());
    report::print(&lines);
    report::write(&lines, &facts, &options.output)?;
    bench.served.check()?;
    println!("\ne2fsck: clean; wrote {}", options.output.display());
    Ok(())
}

/// Both servers. What is declared first ends first.
struct Bench {
    ganesha: Ganesha,
    served: Served,
    _disk: SmallDisk,
    generator: PathBuf,
    home: PathBuf,
    sizes: Sizes,
    /// Of which server a kernel that lists a directory asks for each file again, as far as that is known.
    getattr_each: [bool; 2],
}

impl Bench {
    fn start(home: &Path, options: &Options, sizes: Sizes) -> Result<Self> {
        let served = Served::start(&home.join("tandem"), SIZE);
        let at = home.join("ganesha");
        let mounted = at.join("exported");
        fs::create_dir_all(&mounted)?;
        let disk = SmallDisk::mount(&at.join("image"), &mounted, SIZE_BYTES);
        let network = served.cluster.network.clone();
        let ganesha = Ganesha::start(network.namespaces(), WITNESS, &at, &mounted).context("nfs-ganesha")?;
        let generator = fs::canonicalize(&options.generator).context("the load generator")?;
        Ok(Self { ganesha, served, _disk: disk, generator, home: home.to_owned(), sizes, getattr_each: [false; 2] })
    }

    fn addresses(&self) -> [SocketAddr; 2] {
        [self.served.address(), SocketAddr::new(self.served.cluster.network.namespaces().node_ip(WITNESS), PORT)]
    }

    fn by_the_generator(&mut self, lines: &mut Vec<Line>) -> Result<()> {
        let primary = self.served.primary()?;
        let pids = [self.served.cluster.nodes[primary].process().pid(), self.ganesha.pid()];
        let servers: Vec<(SocketAddr, u32)> = self.addresses().into_iter().zip(pids).collect();
        for (name, clients, depth, work, unit, aim) in OF_THE_GENERATOR {
            let mut line = empty("generator", work, unit, aim);
            for _ in 0..self.sizes.rounds {
                let mut both = Vec::new();
                for (server, getattr_each) in servers.iter().zip(self.getattr_each) {
                    let network = self.served.cluster.network.namespaces();
                    let of = Workload { name, clients, depth, getattr_each };
                    both.push(generator::run(network, &self.generator, *server, of, &self.sizes)?);
                }
                let rate = |of: &Value| of["rate"].as_f64().context("a rate");
                if let [own, other] = &*both {
                    line.tandem.push(rate(own)?);
                    line.ganesha.push(rate(other)?);
                    line.details.push((own.clone(), other.clone()));
                }
            }
            println!("{work}: {:.0?} {:.0?}", line.tandem, line.ganesha);
            lines.push(line);
        }
        Ok(())
    }

    fn by_the_kernel(&mut self, lines: &mut Vec<Line>, facts: &mut Value) -> Result<()> {
        let paths = [format!("/{VOLUME}"), EXPORT.to_owned()];
        let mounts = self.addresses().into_iter().zip(paths).map(|(at, path)| format!("{}:{path}", at.ip()));
        let mounts: Vec<(&str, String)> = SERVERS.into_iter().zip(mounts).collect();
        self.prepare_trees()?;
        let mut guest = Guest::boot(self.served.cluster.network.namespaces(), &self.home, &mounts)?;
        for (work, name, unit, aim) in OF_THE_KERNEL {
            let mut line = empty("kernel", name, unit, aim);
            for _ in 0..self.sizes.rounds {
                let before = SERVERS.map(|server| guest.calls(server));
                line.tandem.push(guest.measure(SERVERS[0], work, &self.sizes)?);
                line.ganesha.push(guest.measure(SERVERS[1], work, &self.sizes)?);
                let [own, other] = SERVERS.map(|server| guest.calls(server));
                line.details.push((own.since(&before[0]), other.since(&before[1])));
            }
            println!("{name}: {:.0?} {:.0?}", line.tandem, line.ganesha);
            lines.push(line);
        }
        // What the generator replays is to be what a kernel sends.
        let mut getattr_each = Vec::new();
        for server in SERVERS {
            let before = guest.calls(server);
            guest.list(server);
            let calls = guest.calls(server).since(&before);
            let asked = calls["GETATTR"]["calls"].as_u64().unwrap_or(0);
            getattr_each.push(asked >= self.sizes.entries);
            println!("ls -l of {} files at {server}: {calls}", self.sizes.entries);
            facts[format!("calls_of_ls_{server}")] = calls;
        }
        self.getattr_each = getattr_each.try_into().unwrap_or_default();
        Ok(())
    }

    /// Small files and the large directory on both servers, made by the generator.
    fn prepare_trees(&self) -> Result<()> {
        for address in self.addresses() {
            for workload in ["tree-walk", "listing"] {
                let network = self.served.cluster.network.namespaces();
                let server = (address, std::process::id());
                let of = Workload { name: workload, clients: 1, depth: 1, getattr_each: false };
                generator::run(network, &self.generator, server, of, &self.sizes)?;
            }
        }
        Ok(())
    }
}

fn empty(client: &'static str, work: &'static str, unit: &'static str, aim: Aim) -> Line {
    Line { client, work, unit, aim, tandem: Vec::new(), ganesha: Vec::new(), details: Vec::new() }
}
