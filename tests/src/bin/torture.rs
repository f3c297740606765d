//! `torture cuts | kills | points | flips`: real processes on disks that lose what was not flushed, under faults at random moments.
//!
//! `cargo xtask torture` builds what it needs and starts it. The program under test is `TANDEM_BIN`, built with the feature
//! `fault-points` of `storage-node`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use tandem_tests::torture::campaign::{Campaign, Plan, Rounds, Tally, run};
use tandem_tests::torture::cuts::Cuts;
use tandem_tests::torture::disk;
use tandem_tests::torture::flips::Flips;
use tandem_tests::torture::flips::judge::{Account, Counts};
use tandem_tests::torture::kills::Kills;
use tandem_tests::torture::points;

const USAGE: &str = "torture cuts|kills|points|flips [--count N] [--seed S] [--round K] [--jobs J] [--sample N] [--size BYTES] [--lying 1] [--forged 1]";
const SIZE_DEFAULT: u64 = 48 << 20;
const JOBS_DEFAULT: u64 = 2;
/// Before what a job of `flips` tells of an area, and last of wrong reads.
const ACCOUNT: &str = "account: ";
/// A job of `flips` ends after so many findings.
const FINDINGS_MAX: u64 = 5;

#[derive(Clone, Debug)]
struct Options {
    count: u64,
    seed: u64,
    round: Option<u64>,
    jobs: u64,
    /// Only so many of the fault points.
    sample: Option<u64>,
    /// This process is one of several: its number.
    job: Option<u64>,
    size_bytes: u64,
    /// The disks lie, to show that the campaign would notice.
    lying: bool,
    /// Flips come with checksums that match, for the same purpose.
    forged: bool,
}

fn main() -> ExitCode {
    match execute() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute() -> Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = args.split_first().context(USAGE)?;
    match (command.as_str(), rest) {
        (disk::SUBCOMMAND, [mount_point]) => {
            disk::serve(Path::new(mount_point))?;
            Ok(true)
        }
        ("cuts", rest) => campaign("cuts", Cuts::default(), &parse(rest)?),
        ("kills", rest) => campaign("kills", Kills { links: links() }, &parse(rest)?),
        ("points", rest) => all_points(&parse(rest)?),
        ("flips", rest) => all_flips(&parse(rest)?),
        _ => bail!("{USAGE}"),
    }
}

fn campaign<R: Rounds>(name: &str, mut rounds: R, options: &Options) -> Result<bool> {
    if let Some(why) = disk::unsupported() {
        bail!("{why}");
    }
    let started = Instant::now();
    let tally = match (options.round, options.job) {
        (Some(round), _) => run(&mut rounds, &plan(name, options, vec![round])?),
        (None, Some(job)) => {
            let numbers = (job..options.count).step_by(options.jobs as usize).collect();
            run(&mut rounds, &plan(name, options, numbers)?)
        }
        (None, None) => spread(name, options, &mut |line| println!("{line}"))?,
    };
    Ok(conclude(tally, R::FAULTS, options, started))
}

/// `--count` is a number of flips here: as many rounds as that takes.
fn all_flips(options: &Options) -> Result<bool> {
    if let Some(why) = disk::unsupported() {
        bail!("{why}");
    }
    let started = Instant::now();
    let Some(first) = options.round.or(options.job) else {
        let (mut account, mut wrong_reads) = (Account::default(), 0);
        let tally = spread("flips", options, &mut |line| match line.strip_prefix(ACCOUNT) {
            Some(numbers) if account.read_line(numbers) => {}
            Some(number) => wrong_reads += number.trim().parse().unwrap_or(0),
            None => println!("{line}"),
        })?;
        conclude(tally, "flips", options, started);
        return Ok(conclude_flips(&account, wrong_reads, &tally));
    };
    let plan = plan("flips", options, Vec::new())?;
    let (mut campaign, mut flips) = (Campaign::new(&plan), Flips { forged: options.forged, ..Flips::default() });
    for number in (first..).step_by(options.jobs as usize) {
        campaign.round(&mut flips, number);
        let enough = flips.account.total().flips >= options.count.div_ceil(options.jobs);
        if enough || options.round.is_some() || campaign.findings() >= FINDINGS_MAX {
            break;
        }
    }
    let tally = campaign.end();
    if options.round.is_some() {
        conclude(tally, "flips", options, started);
        return Ok(conclude_flips(&flips.account, flips.wrong_reads, &tally));
    }
    flips.account.lines().iter().for_each(|line| println!("{ACCOUNT}{line}"));
    println!("{ACCOUNT}{}", flips.wrong_reads);
    Ok(conclude(tally, "flips", options, started))
}

/// Prints what became of all flips. True if nothing was found wrong.
fn conclude_flips(account: &Account, wrong_reads: u64, tally: &Tally) -> bool {
    println!("area          flips detected repaired harmless undetected");
    account.lines().iter().for_each(|line| println!("{line}"));
    let Counts { flips, detected, repaired, harmless, undetected } = account.total();
    println!(
        "torture: flips={flips} detected={detected} repaired={repaired} harmless={harmless} \
         wrong_reads={wrong_reads} undetected={undetected}"
    );
    undetected == 0 && wrong_reads == 0 && tally.findings == 0
}

fn all_points(options: &Options) -> Result<bool> {
    let started = Instant::now();
    let rounds = options.round.into_iter().collect();
    let tally = points::run(&plan("points", options, rounds)?, options.count).map_err(anyhow::Error::msg)?;
    Ok(conclude(tally, "kills", options, started))
}

/// Prints the last line. True if nothing was found wrong.
fn conclude(tally: Tally, kind: &str, options: &Options, started: Instant) -> bool {
    let Tally { rounds, faults, findings, operations } = tally;
    println!(
        "total: {rounds} rounds, {faults} {kind}, {operations} operations, {findings} findings, seed {}, {} s",
        options.seed,
        started.elapsed().as_secs()
    );
    findings == 0
}

/// Whether links between boxes can be cut here.
fn links() -> bool {
    tandem_tests::e2e::namespace::unsupported().is_none()
}

fn plan(name: &str, options: &Options, rounds: Vec<u64>) -> Result<Plan> {
    let program: PathBuf = std::env::current_exe().context("the program's own path")?;
    let Options { seed, size_bytes, lying, sample, .. } = *options;
    Ok(Plan { program, seed, rounds, sample, size_bytes, namespaces: name == "kills" && links(), lying })
}

/// Runs the rounds in several processes at once, each with a cluster of its own, and adds up what they tell.
fn spread(name: &str, options: &Options, tell: &mut dyn FnMut(&str)) -> Result<Tally> {
    let jobs = (0..options.jobs).map(|job| start_job(name, options, job)).collect::<Result<Vec<_>>>()?;
    let (lines, told) = std::sync::mpsc::channel();
    let readers: Vec<_> = jobs
        .into_iter()
        .map(|(mut child, output)| {
            let lines = lines.clone();
            std::thread::spawn(move || {
                let mut total = None;
                for line in output.lines().map_while(Result::ok) {
                    match line.strip_prefix("total: ") {
                        Some(text) => total = parse_total(text),
                        None => drop(lines.send(line)),
                    }
                }
                child.wait().map(|status| total.ok_or(status))
            })
        })
        .collect();
    drop(lines);
    told.into_iter().for_each(|line| tell(&line));
    let mut sum = Tally::default();
    for reader in readers {
        let total = reader.join().ok().context("a reader panicked")??;
        let total = total.map_err(|status| anyhow::anyhow!("a job ended early ({status}); see above"))?;
        sum.rounds += total.rounds;
        sum.faults += total.faults;
        sum.findings += total.findings;
        sum.operations += total.operations;
    }
    Ok(sum)
}

fn start_job(name: &str, options: &Options, job: u64) -> Result<(Child, BufReader<std::process::ChildStdout>)> {
    let mut command = Command::new(std::env::current_exe().context("the program's own path")?);
    let Options { count, seed, jobs, size_bytes, lying, forged, .. } = *options;
    command.arg(name);
    let values = [
        ("--count", count),
        ("--seed", seed),
        ("--jobs", jobs),
        ("--job", job),
        ("--size", size_bytes),
        ("--lying", u64::from(lying)),
        ("--forged", u64::from(forged)),
    ];
    for (option, value) in values {
        command.args([option, &value.to_string()]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting a job")?;
    let output = child.stdout.take().context("a job's output")?;
    Ok((child, BufReader::new(output)))
}

/// Reads the numbers of a job's last line, in their order.
fn parse_total(text: &str) -> Option<Tally> {
    let mut numbers = text.split([' ', ',']).filter_map(|word| word.parse().ok());
    let (rounds, faults, operations, findings) = (numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?);
    Some(Tally { rounds, faults, findings, operations })
}

fn parse(args: &[String]) -> Result<Options> {
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_secs());
    let size_bytes = SIZE_DEFAULT;
    let mut options = Options {
        count: 1,
        seed,
        round: None,
        jobs: JOBS_DEFAULT,
        sample: None,
        job: None,
        size_bytes,
        lying: false,
        forged: false,
    };
    for pair in args.chunks(2) {
        let [name, value] = pair else { bail!("{USAGE}") };
        let value: u64 = value.parse().with_context(|| format!("{name} {value}"))?;
        match name.as_str() {
            "--count" => options.count = value,
            "--seed" => options.seed = value,
            "--round" => options.round = Some(value),
            "--jobs" => options.jobs = value,
            "--sample" => options.sample = Some(value),
            "--job" => options.job = Some(value),
            "--size" => options.size_bytes = value,
            "--lying" => options.lying = value != 0,
            "--forged" => options.forged = value != 0,
            _ => bail!("{USAGE}"),
        }
    }
    ensure!(options.jobs > 0 && options.count > 0, "nothing to do");
    options.jobs = options.jobs.min(options.count);
    Ok(options)
}
