//! `sim --seeds N [--first F] [--stop]`: runs many seeds; `sim --seed S [--trace]`: runs one and prints its trace.
//!
//! The last line is `sim: seeds=N faults=F acknowledged=W violations=V`; the exit code is 1 if a rule was broken.

use std::process::ExitCode;

use tandem_tests::sim::{Report, Totals, run_seed, run_seeds};

/// What the command line asks for.
#[derive(Default)]
struct Options {
    seeds: Option<u64>,
    seed: Option<u64>,
    first: u64,
    trace: bool,
    stop: bool,
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let text = arguments.next().ok_or(format!("{argument} needs a number"))?;
            text.parse::<u64>().map_err(|error| format!("{argument} {text}: {error}"))
        };
        match argument.as_str() {
            "--seeds" => options.seeds = Some(number()?),
            "--seed" => options.seed = Some(number()?),
            "--first" => options.first = number()?,
            "--trace" => options.trace = true,
            "--stop" => options.stop = true,
            other => return Err(format!("{other}: not known; use --seeds N, --seed S, --first F, --trace, --stop")),
        }
    }
    Ok(options)
}

fn print_violation(report: &Report) {
    report.trace.iter().for_each(|line| println!("{line}"));
    if let Some(violation) = &report.violation {
        println!("seed {}: {}: {}", report.seed, violation.rule, violation.detail);
        println!("again with: cargo xtask sim --seed {}", report.seed);
    }
}

fn one(seed: u64, trace: bool) -> Totals {
    let report = run_seed(seed, true, trace);
    if trace && report.violation.is_none() {
        report.trace.iter().for_each(|line| println!("{line}"));
    }
    print_violation(&report);
    println!("seed {seed}: trace hash {:016x}, {} events", report.hash, report.stats.events);
    let violations = u64::from(report.violation.is_some());
    Totals { seeds: 1, stats: report.stats, violations, first: Some(report), ..Totals::default() }
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("sim: {message}");
            return ExitCode::from(2);
        }
    };
    let started = std::time::Instant::now();
    let totals = match (options.seed, options.seeds) {
        (Some(seed), _) => one(seed, options.trace),
        (None, seeds) => {
            let totals = run_seeds(options.first, seeds.unwrap_or(1000), options.stop);
            if let Some(report) = &totals.first {
                // The same seed again, this time with a record.
                print_violation(&run_seed(report.seed, true, false));
            }
            for (rule, (count, seeds)) in &totals.rules {
                println!("{count} times {rule}, as in seeds {seeds:?}");
            }
            let per_second = totals.seeds as f64 / started.elapsed().as_secs_f64();
            let stats = &totals.stats;
            println!(
                "{per_second:.0} seeds/s, {} events, {} declared losses, {} legally unavailable, hash {:016x}",
                stats.events, stats.losses, stats.unavailable, totals.hash
            );
            totals
        }
    };
    println!("{}", totals.line());
    if totals.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
