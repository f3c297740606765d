//! `model [--crashes N] [--partitions N] ...`: checks every execution of the pair that the budget permits.
//!
//! The last line is `model: states=S unique=U depth=D seconds=T complete=yes|no violations=V`; the exit code is 1 if a rule
//! was broken. What the run has seen stands above it: a check that never saw a take-over proves nothing about one.

use std::process::ExitCode;
use std::time::Duration;

use tandem_tests::model::run::{Search, check, threads};
use tandem_tests::model::state::Budget;

fn parse(arguments: impl Iterator<Item = String>) -> Result<(Budget, Search), String> {
    let mut budget = Budget::SHORT;
    let mut search = Search { threads: threads(), breadth_first: false, timeout: None, states_max: None };
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let text = arguments.next().ok_or(format!("{argument} needs a number"))?;
            text.parse::<u64>().map_err(|error| format!("{argument} {text}: {error}"))
        };
        match argument.as_str() {
            "--crashes" => budget.crashes = number()? as u8,
            "--partitions" => budget.partitions = number()? as u8,
            "--writes" => budget.writes = number()? as u8,
            "--reads" => budget.reads = number()? as u8,
            "--flushes" => budget.flushes = number()? as u8,
            "--switchovers" => budget.switchovers = number()? as u8,
            "--ticks" => budget.ticks = number()? as u8,
            "--delays" => budget.delays = number()? as u8,
            "--open" => budget.open_max = number()? as u8,
            "--power" => budget.power = number()? != 0,
            "--threads" => search.threads = number()? as usize,
            "--seconds" => search.timeout = Some(Duration::from_secs(number()?)),
            "--states" => search.states_max = Some(number()? as usize),
            "--bfs" => search.breadth_first = true,
            other => return Err(format!("{other}: not known")),
        }
    }
    Ok((budget, search))
}

fn main() -> ExitCode {
    let (budget, search) = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("model: {message}");
            return ExitCode::from(2);
        }
    };
    println!("{budget:?}");
    // A core's assertion that fails is a finding like any other, told with the steps that lead to it.
    std::panic::set_hook(Box::new(|_| {}));
    let verdict = check(budget, search);
    for (sight, count) in &verdict.seen {
        println!("seen {count:>10} times: {sight}");
    }
    if let Some((rule, steps)) = &verdict.broken {
        steps.iter().enumerate().for_each(|(index, step)| println!("{index:>4} {step}"));
        println!("broken: {rule}");
    }
    println!(
        "model: states={} unique={} depth={} seconds={:.1} complete={} violations={}",
        verdict.states,
        verdict.unique,
        verdict.depth,
        verdict.took.as_secs_f64(),
        if verdict.complete { "yes" } else { "no" },
        u8::from(verdict.broken.is_some())
    );
    if verdict.broken.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
