//! Files: the filesystem engine over a file, and the kernel's ext4 over a loop device on another file of the same disk, in
//! turns. Started by `cargo xtask bench files`; the kernel's part needs root.
//!
//! What both sides do for an operation is in `engine` and `kernel`; here is their order, and the table.
#![forbid(unsafe_code)]

mod engine;
mod kernel;
mod recovery;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// The features of volumes that we make.
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,\
                        dir_nlink,extra_isize,metadata_csum,metadata_csum_seed,resize_inode";
/// MiB of the journals, but for those of `recovery`.
const JOURNAL_MIB: u32 = 256;
const SMALL: usize = 100;
const LISTED: usize = 50_000;
const NAMELESS: usize = 10_000;

#[derive(Parser)]
struct Options {
    /// Where the images go: the disk that is measured.
    #[arg(long)]
    directory: PathBuf,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Names in the large directory.
    #[arg(long, default_value_t = 1_000_000)]
    entries: usize,
    /// Size of the images in GiB; they are sparse.
    #[arg(long, default_value_t = 100)]
    size_gib: u64,
    /// The engine's budget of memory, in MiB.
    #[arg(long, default_value_t = 256)]
    budget_mib: usize,
    /// Only these parts: opening, creates, large, listing, streams, nameless, recovery.
    #[arg(long, value_delimiter = ',')]
    parts: Vec<String>,
}

/// A line of the table.
struct Line {
    what: &'static str,
    unit: &'static str,
    engine: f64,
    kernel: Option<f64>,
    /// Flushes a second, measured just before.
    flushes: Option<f64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let home = tempfile::Builder::new().prefix("files-").tempdir_in(&options.directory)?;
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("not root: the kernel's part is left out");
    }
    println!("load {}", fs::read_to_string("/proc/loadavg")?.trim());
    let images = [home.path().join("engine.img"), home.path().join("kernel.img")];
    for image in &images {
        format(image, options.size_gib << 30, JOURNAL_MIB)?;
    }
    let all: [(&str, Part); 7] = [
        ("opening", Bench::opening),
        ("creates", Bench::creates),
        ("large", Bench::large),
        ("listing", Bench::listing),
        ("streams", Bench::streams),
        ("nameless", Bench::nameless),
        ("recovery", Bench::recovery),
    ];
    if let Some(unknown) = options.parts.iter().find(|part| all.iter().all(|(name, _)| name != part)) {
        bail!("there is no part {unknown}");
    }
    let bench =
        Bench { options, images, mount_at: home.path().join("mounted"), root, flushed: home.path().join("flush") };
    let mut lines = Vec::new();
    for (_, part) in all.iter().filter(|(name, _)| bench.is_wanted(name)) {
        let some = part(&bench)?;
        some.iter().for_each(print);
        println!("resident memory at most {} MiB so far", peak_mib()?);
        lines.extend(some);
    }
    println!("\n| | engine | kernel | engine ÷ kernel | engine ÷ flushes |\n|---|---|---|---|---|");
    lines.iter().for_each(row);
    println!("load {}", fs::read_to_string("/proc/loadavg")?.trim());
    println!("resident memory at most {} MiB, budget {} MiB", peak_mib()?, bench.options.budget_mib);
    Ok(())
}

/// Has the system forget what it holds of a file in memory.
fn forget(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

fn print(line: &Line) {
    let kernel = line.kernel.map_or("-".to_owned(), |kernel| format!("{kernel:.1}"));
    println!("{}: engine {:.1}, kernel {kernel} {}", line.what, line.engine, line.unit);
}

fn row(line: &Line) {
    let shown = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
    let kernel = line.kernel.map_or(String::new(), |kernel| format!("{kernel:.0} {}", line.unit));
    let ratio = shown(line.kernel.map(|kernel| line.engine / kernel));
    let flushes = shown(line.flushes.map(|flushes| line.engine / flushes));
    println!("| {} | {:.0} {} | {kernel} | {ratio} | {flushes} |", line.what, line.engine, line.unit);
}

/// Makes a fresh filesystem in a sparse file; what was in it is gone.
fn format(image: &Path, bytes: u64, journal_mib: u32) -> Result<()> {
    File::create(image)?.set_len(bytes)?;
    let mut make = Command::new("/sbin/mke2fs");
    make.args([
        "-q",
        "-F",
        "-b",
        "4096",
        "-I",
        "256",
        "-J",
        &format!("size={journal_mib}"),
        "-E",
        "lazy_itable_init=1,nodiscard",
        "-O",
        FEATURES,
    ]);
    let status = make.arg(image).env("MKE2FS_CONFIG", "/dev/null").status().context("mke2fs (e2fsprogs)")?;
    if !status.success() {
        bail!("mke2fs ended with {status}");
    }
    Ok(())
}

/// The most memory that this process has had.
fn peak_mib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? >> 10)
}

/// Some lines of the table.
type Part = fn(&Bench) -> Result<Vec<Line>>;

struct Bench {
    options: Options,
    images: [PathBuf; 2],
    mount_at: PathBuf,
    flushed: PathBuf,
    root: bool,
}

impl Bench {
    fn time(&self) -> Duration {
        Duration::from_secs(self.options.seconds)
    }

    fn is_wanted(&self, part: &str) -> bool {
        self.options.parts.is_empty() || self.options.parts.iter().any(|wanted| wanted == part)
    }

    fn budget(&self) -> usize {
        self.options.budget_mib << 20
    }

    fn mount(&self) -> Result<Option<kernel::Mount>> {
        self.root.then(|| kernel::Mount::new(&self.images[1], &self.mount_at)).transpose()
    }

    /// What one thread gets that writes 4 KiB and flushes.
    fn flush_rate(&self) -> Result<f64> {
        let file = File::create(&self.flushed)?;
        file.write_all_at(&vec![0; 1 << 20], 0)?;
        file.sync_all()?;
        let (mut count, started) = (0_u64, Instant::now());
        while started.elapsed() < self.time() / 2 {
            file.write_all_at(&[count as u8; 4096], count % 256 * 4096)?;
            file.sync_data()?;
            count += 1;
        }
        Ok(count as f64 / started.elapsed().as_secs_f64())
    }

    fn opening(&self) -> Result<Vec<Line>> {
        forget(&self.images[0])?;
        forget(&self.images[1])?;
        let (_, _, took) = engine::with(&self.images[0], self.budget(), false, async |_| Ok(()))?;
        let kernel = self.mount()?.map(|mount| mount.took.as_secs_f64() * 1e3);
        let what = "mount of a clean, sparse image, cold (the kernel: with losetup)";
        Ok(vec![Line { what, unit: "ms", engine: took.as_secs_f64() * 1e3, kernel, flushes: None }])
    }

    fn creates(&self) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for (what, in_flight) in [("durable creates, 1 in flight", 1), ("durable creates, 32 in flight", 32)] {
            let flushes = Some(self.flush_rate()?);
            let work = async |mounted| engine::creates(&mounted, "new", in_flight, self.time()).await;
            let (engine, ..) = engine::with(&self.images[0], self.budget(), false, work)?;
            let kernel = self.mount()?.map(|mount| kernel::creates(&mount.at.join("new"), in_flight, self.time()));
            lines.push(Line { what, unit: "/s", engine, kernel: kernel.transpose()?, flushes });
        }
        Ok(lines)
    }

    /// A large directory against a small one.
    fn large(&self) -> Result<Vec<Line>> {
        let (entries, time) = (self.options.entries, self.time());
        let work = async |mounted| {
            let mut all = vec![engine::fill(&mounted, "large", entries).await?];
            engine::fill(&mounted, "small", SMALL).await?;
            for (name, count) in [("small", SMALL), ("large", entries)] {
                all.push(engine::lookups(&mounted, name, count, time).await?);
                all.push(engine::creates(&mounted, name, 32, time).await?);
            }
            engine::fill(&mounted, "removed", 2000).await?;
            all.push(engine::removes(&mounted, "removed", 32, 2000).await?);
            all.push(engine::removes(&mounted, "large", 32, 2000).await?);
            Ok(all)
        };
        let (engine, ..) = engine::with(&self.images[0], self.budget(), false, work)?;
        let mut kernels = Vec::new();
        if let Some(mount) = self.mount()? {
            let at = |name| mount.at.join(name);
            kernels.push(kernel::fill(&at("large"), entries)?);
            kernel::fill(&at("small"), SMALL)?;
            for (name, count) in [("small", SMALL), ("large", entries)] {
                kernels.push(kernel::lookups(&at(name), count, time)?);
                kernels.push(kernel::creates(&at(name), 32, time)?);
            }
            kernel::fill(&at("removed"), 2000)?;
            kernels.push(kernel::removes(&at("removed"), 32, 2000)?);
            kernels.push(kernel::removes(&at("large"), 32, 2000)?);
        }
        let what = [
            "filling the large directory, not waiting",
            "lookup and getattr from memory, small directory",
            "durable creates, 32 in flight, small directory",
            "lookup and getattr from memory, large directory",
            "durable creates, 32 in flight, large directory",
            "durable removals, 32 in flight, directory of 2000",
            "durable removals, 32 in flight, large directory",
        ];
        let lines = what.into_iter().zip(engine).enumerate();
        Ok(lines
            .map(|(at, (what, engine))| Line {
                what,
                unit: "/s",
                engine,
                kernel: kernels.get(at).copied(),
                flushes: None,
            })
            .collect())
    }

    fn listing(&self) -> Result<Vec<Line>> {
        let budget = self.budget();
        engine::with(&self.images[0], budget, false, async |mounted| engine::fill(&mounted, "listed", LISTED).await)?;
        if let Some(mount) = self.mount()? {
            kernel::fill(&mount.at.join("listed"), LISTED)?;
        }
        self.images.iter().try_for_each(|image| forget(image))?;
        let (engine, ..) =
            engine::with(&self.images[0], budget, false, async |mounted| engine::list(&mounted, "listed").await)?;
        let kernel = self.mount()?.map(|mount| kernel::list(&mount.at.join("listed"))).transpose()?;
        let what = "ls -l of 50,000 files, nothing in memory";
        Ok(vec![Line { what, unit: "ms", engine, kernel, flushes: None }])
    }

    fn streams(&self) -> Result<Vec<Line>> {
        const BYTES: u64 = 256 << 20;
        let work = async |mounted| engine::stream(&mounted, BYTES).await;
        let ((written, read), ..) = engine::with(&self.images[0], self.budget(), false, work)?;
        let kernel = self.mount()?.map(|mount| kernel::stream(&mount.at.join("stream"), BYTES)).transpose()?;
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let line = |what, engine, kernel: Option<f64>| Line {
            what,
            unit: "MiB/s",
            engine: mib(engine),
            kernel: kernel.map(mib),
            flushes: None,
        };
        Ok(vec![
            line("sequential write, 1 MiB pieces, fsync at the end", written, kernel.map(|kernel| kernel.0)),
            line("sequential read after it", read, kernel.map(|kernel| kernel.1)),
        ])
    }

    fn nameless(&self) -> Result<Vec<Line>> {
        let work = async |mounted| engine::closes_without_names(&mounted, NAMELESS).await;
        let (engine, ..) = engine::with(&self.images[0], self.budget(), false, work)?;
        let what = "closing 10,000 open files without a name, the oldest first";
        Ok(vec![Line { what, unit: "/s", engine, kernel: None, flushes: None }])
    }

    /// Full logs, as after a crash.
    fn recovery(&self) -> Result<Vec<Line>> {
        let home = self.images[0].parent().context("the images are in a directory")?;
        let (bytes, entries) = (self.options.size_gib << 30, self.options.entries);
        let all = recovery::measure(home, bytes, entries, self.budget(), self.root)?;
        all.iter().for_each(|one| println!("{}", one.describe()));
        let line = |one: &recovery::Recovered| Line {
            what: one.what,
            unit: "ms",
            engine: one.took.as_secs_f64() * 1e3,
            kernel: None,
            flushes: None,
        };
        Ok(all.iter().map(line).collect())
    }
}
