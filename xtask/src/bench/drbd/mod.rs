//! DRBD 8.4 and Tandem side by side, each through the kernel's block device, in two emulated guests.
//!
//! The kernel of the machine that measures need not have DRBD: a stock kernel runs under software emulation, and the guests
//! see the host's files. Figures are those of an emulated processor; only the ratios mean anything.

mod guest;
mod systems;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::fio;
use super::report::{Report, Row, table};
use crate::{initramfs, kernel_client, shell, tools};
use guest::{Guest, Machine, Place};
use systems::{COMMAND_LIMIT, Drbd, Flushes, Guests, PRIMARY, SECONDARY, Tandem};

const MIB: u64 = 1 << 20;

/// Depths and their job files in `benches/fio`.
const JOBS: &[(u32, &str)] =
    &[(1, "randwrite-4k-qd1"), (4, "randwrite-4k-qd4"), (32, "randwrite-4k-qd32"), (128, "randwrite-4k-qd128")];

/// The systems' own modules, with their parameters; a guest without them measures less.
const SYSTEMS: &[(&str, &str)] = &[("drbd", "minor_count=1"), ("nbd", "nbds_max=1")];

/// The disks of a guest, in order.
const RAW_DISK: &str = "/dev/vda";
const DRBD_DISK: &str = "/dev/vdb";
const TANDEM_DISK: &str = "/dev/vdc";
const STATE_DISK: &str = "/dev/vdd";
const STATE_MIB: u64 = 256;

#[derive(Args)]
pub(crate) struct DrbdOptions {
    /// Rounds; the median of each figure counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Depths of the queue: 1, 4, 32, 128.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32])]
    depths: Vec<u32>,
    /// Size of each volume in MiB.
    #[arg(long, default_value_t = 128)]
    size_mib: u64,
    /// A directory with a `tandem` to measure, instead of building this one.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Where the figures go.
    #[arg(long, default_value = "bench-drbd.json")]
    output: PathBuf,
}

/// What is measured in turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Raw,
    Drbd(Flushes),
    Tandem,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Drbd(Flushes::Default) => "drbd",
            Self::Drbd(Flushes::Off) => "drbd-unflushed",
            Self::Tandem => "tandem",
        }
    }

    fn device(self) -> &'static str {
        match self {
            Self::Raw => RAW_DISK,
            Self::Drbd(_) => "/dev/drbd0",
            Self::Tandem => "/dev/nbd0",
        }
    }
}

/// Measures, prints a table, and writes the figures.
pub(crate) fn run(options: &DrbdOptions) -> Result<()> {
    let jobs = jobs(&options.depths)?;
    let parent = shell::target_dir().join("bench");
    fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
    let parent = fs::canonicalize(parent)?;
    let Some(stock) = Stock::ensure(&parent.join("packages"))? else { return Ok(()) };
    let binary = tandem_binary(options.binaries.as_deref())?;
    let home = tempfile::Builder::new().prefix("drbd-").tempdir_in(&parent)?;
    let (machine, lacking) = stock.machine(home.path())?;
    let mut session = Session::start(machine, &stock, &lacking, &binary, options.size_mib * MIB)?;
    session.fill()?;
    let before = session.guests.segments()?;
    let mut report = Report::new(options.size_mib * MIB, options.seconds, options.rounds);
    for round in 1..=options.rounds {
        for target in order(round, &session.targets()) {
            session.turn(target, round, &jobs, options.seconds, &mut report)?;
        }
    }
    let after = session.guests.segments()?;
    println!("{}", table(&report));
    let share = (after.sent_again - before.sent_again) as f64 / (after.sent - before.sent).max(1) as f64;
    println!("of the TCP segments between the guests {:.3} % were sent again", share * 100.0);
    let figures = json!({
        "kernel": stock.release,
        "drbd": session.drbd.as_ref().map(|drbd| drbd.version.clone()),
        "segments_sent_again_share": share,
        "measured": report.summary(),
    });
    fs::write(&options.output, serde_json::to_string_pretty(&figures)? + "\n")?;
    println!("wrote {}", options.output.display());
    Ok(())
}

/// The job files of the depths that were asked for.
fn jobs(depths: &[u32]) -> Result<Vec<&'static str>> {
    let of = |depth: &u32| {
        let job = JOBS.iter().find(|(known, _)| known == depth).map(|(_, job)| *job);
        job.with_context(|| format!("no job of depth {depth}; there are 1, 4, 32 and 128"))
    };
    depths.iter().map(of).collect()
}

/// The turns of a round. Every other round goes backwards, so that a drift within the rounds favours nobody.
fn order(round: usize, targets: &[Target]) -> Vec<Target> {
    let mut order = targets.to_vec();
    if round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

fn tandem_binary(directory: Option<&Path>) -> Result<PathBuf> {
    let binary = match directory {
        Some(directory) => directory.join("tandem"),
        None => {
            shell::build_release(&["tandem"])?;
            shell::release_binary("tandem")
        }
    };
    if !binary.is_file() {
        bail!("no {}", binary.display());
    }
    Ok(binary)
}

/// Stock programs and a stock kernel, unpacked beside this machine's own.
struct Stock {
    root: PathBuf,
    /// `uname -r` of the kernel.
    release: String,
    /// What only some of the targets need, and cannot be had.
    missing: Vec<String>,
}

impl Stock {
    /// Downloads what is not there yet. None, and a line that names what is missing, if there is no way to measure.
    fn ensure(root: &Path) -> Result<Option<Self>> {
        let installed = ["fio", "kmod", "e2fsprogs", "iproute2", "nbd-client"];
        let mut missing: Vec<String> = tools::ensure(&installed)?.into_iter().map(str::to_owned).collect();
        let (release, no_kernel) = kernel_client::stock_kernel(root)?;
        missing.extend(no_kernel);
        missing.extend(tools::unpack(&["qemu-system-x86", "busybox-static", "drbd-utils"], root)?);
        let optional = |name: &String| name == "drbd-utils" || name == "nbd-client";
        let fatal: Vec<&String> = missing.iter().filter(|name| !optional(name)).collect();
        if !fatal.is_empty() {
            println!("skipped: everything: cannot be had: {fatal:?}");
            return Ok(None);
        }
        Ok(Some(Self { root: root.to_owned(), release, missing }))
    }

    /// Builds what the guests start from; also names the modules that the kernel lacks.
    fn machine(&self, home: &Path) -> Result<(Machine, Vec<&'static str>)> {
        println!("guests: kernel {}, emulated", self.release);
        let (archive, lacking) = initramfs::build(&self.root, &self.release, SYSTEMS)?;
        let initramfs = home.join("initramfs");
        fs::write(&initramfs, archive)?;
        let kernel = self.root.join("boot").join(format!("vmlinuz-{}", self.release));
        Ok((Machine { root: self.root.clone(), kernel, initramfs, home: home.to_owned() }, lacking))
    }
}

/// Two guests with both systems set up.
struct Session {
    guests: Guests,
    work: PathBuf,
    size_bytes: u64,
    drbd: Option<Drbd>,
    tandem: Option<Tandem>,
}

impl Session {
    fn start(machine: Machine, stock: &Stock, lacking: &[&str], binary: &Path, size_bytes: u64) -> Result<Self> {
        let (home, work) = (machine.home.clone(), machine.home.join("work"));
        // Room for both systems' metadata; the same for the raw disk.
        let disk_bytes = size_bytes + size_bytes / 16 + 32 * MIB;
        let disks = |name: &str| -> Result<Vec<PathBuf>> {
            let mut disks = Vec::new();
            for kind in ["raw", "drbd", "tandem"] {
                disks.push(guest::image(&home, &format!("{name}-{kind}.img"), disk_bytes)?);
            }
            disks.push(guest::ext4_image(&home, &format!("{name}-state.img"), STATE_MIB * MIB)?);
            Ok(disks)
        };
        let (near, far) = (disks(PRIMARY)?, disks(SECONDARY)?);
        println!("starting two guests");
        let first = Place { name: PRIMARY, peer: SECONDARY, number: 1, disks: &near };
        let second = Place { name: SECONDARY, peer: PRIMARY, number: 2, disks: &far };
        let mut guests =
            Guests { primary: Guest::start(&machine, &first)?, secondary: Guest::start(&machine, &second)? };
        guests.ready()?;
        let lacks = |module: &str, package: &str| {
            let lacks_package = stock.missing.iter().any(|name| name == package);
            let what = if lacks_package { Some(package) } else { lacking.iter().copied().find(|name| *name == module) };
            what.map(str::to_owned)
        };
        let drbd = match lacks("drbd", "drbd-utils") {
            Some(what) => {
                println!("skipped: drbd: no {what}");
                None
            }
            None => {
                println!("setting up DRBD");
                Some(Drbd::start(&mut guests, &stock.root, &work, DRBD_DISK)?)
            }
        };
        let tandem = match lacks("nbd", "nbd-client") {
            Some(what) => {
                println!("skipped: tandem: no {what}");
                None
            }
            None => {
                println!("setting up Tandem");
                // Beside the images, where the guests see it; what was built may be replaced meanwhile.
                let copy = home.join("tandem");
                fs::copy(binary, &copy).with_context(|| format!("copying {}", binary.display()))?;
                Some(Tandem::start(&mut guests, &copy, &work, TANDEM_DISK, STATE_DISK, size_bytes)?)
            }
        };
        Ok(Self { guests, work, size_bytes, drbd, tandem })
    }

    fn targets(&self) -> Vec<Target> {
        let mut targets = vec![Target::Raw];
        if self.drbd.is_some() {
            targets.extend([Target::Drbd(Flushes::Off), Target::Drbd(Flushes::Default)]);
        }
        if self.tandem.is_some() {
            targets.push(Target::Tandem);
        }
        targets
    }

    /// Writes every volume once in full.
    fn fill(&mut self) -> Result<()> {
        for target in self.targets() {
            if target == Target::Drbd(Flushes::Default) {
                continue;
            }
            println!("filling {}", target.name());
            self.prepare(target)?;
            let job = fio::fill_text(&volume(target), self.size_bytes);
            self.fio(&job, Duration::from_secs(600))?;
            self.leave(target)?;
        }
        Ok(())
    }

    /// All jobs on one target, one after the other.
    fn turn(
        &mut self,
        target: Target,
        round: usize,
        jobs: &[&'static str],
        seconds: u64,
        report: &mut Report,
    ) -> Result<()> {
        self.prepare(target)?;
        for job in jobs {
            let path = shell::workspace_root().join("benches/fio").join(format!("{job}.fio"));
            let body = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let text = fio::job_text(&[volume(target)], &body, self.size_bytes, seconds);
            let output = self.fio(&text, COMMAND_LIMIT + Duration::from_secs(seconds))?;
            let sample = fio::parse(output.as_bytes()).with_context(|| format!("{job} on {}", target.name()))?;
            println!(
                "round {round} {job} {}: {:.0} IOPS, {:.0} us, p99 {:.0} us",
                target.name(),
                sample.iops,
                sample.latency_mean_us,
                sample.latency_p99_us
            );
            report.add(Row { workload: job, target: target.name(), sample });
        }
        self.leave(target)
    }

    fn prepare(&mut self, target: Target) -> Result<()> {
        match (target, &self.drbd, &self.tandem) {
            (Target::Drbd(flushes), Some(drbd), _) => drbd.set_flushes(&mut self.guests, flushes),
            (Target::Tandem, _, Some(tandem)) => tandem.resume(&mut self.guests),
            _ => Ok(()),
        }
    }

    /// Checks that what was measured still replicates, and leaves the processor to the others.
    fn leave(&mut self, target: Target) -> Result<()> {
        match (target, &self.drbd, &self.tandem) {
            (Target::Drbd(_), Some(drbd), _) => drbd.check(&mut self.guests),
            (Target::Tandem, _, Some(tandem)) => {
                if let Err(error) = tandem.check(&mut self.guests) {
                    return Err(error.context(tandem.log(&mut self.guests)?));
                }
                tandem.pause(&mut self.guests)
            }
            _ => Ok(()),
        }
    }

    fn fio(&mut self, job: &str, limit: Duration) -> Result<String> {
        fs::write(self.work.join("job.fio"), job)?;
        self.guests.primary.run(&format!("fio --output-format=json {}\n", guest::inside("job.fio")), limit)
    }
}

/// fio's options for the block device of a target.
fn volume(target: Target) -> String {
    format!("ioengine=libaio\ndirect=1\nfilename={}\n", target.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_depths_have_jobs() {
        assert_eq!(jobs(&[1, 32]).expect("known"), ["randwrite-4k-qd1", "randwrite-4k-qd32"]);
        assert!(jobs(&[2]).is_err());
        for (_, job) in JOBS {
            assert!(shell::workspace_root().join("benches/fio").join(format!("{job}.fio")).is_file(), "{job}");
        }
    }

    #[test]
    fn every_other_round_goes_backwards() {
        let targets = [Target::Raw, Target::Drbd(Flushes::Off), Target::Tandem];
        assert_eq!(order(1, &targets), targets);
        assert_eq!(order(2, &targets), [Target::Tandem, Target::Drbd(Flushes::Off), Target::Raw]);
    }
}
