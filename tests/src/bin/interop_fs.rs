//! `interop_fs [--rounds N] [--seed S] ...`: kernel and filesystem engine work on the same images.
//!
//! A round is one shape of filesystem and one seed: turns on one image, logs of the kernel, logs of ours. One more
//! thing is done in a run: an image that mke2fs fills from the toolchain's documentation is read back. The last line counts.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tandem_tests::e2e::skip::{Need, require};
use tandem_tests::interop_fs::image::{SHAPES, Shape};
use tandem_tests::interop_fs::turns::{self, Plan};
use tandem_tests::interop_fs::{Finding, Tally, import, logs};

const USAGE: &str = "interop_fs [--rounds N] [--seed S] [--first K] [--documents PART] [--keep DIR]";
const ROUNDS_DEFAULT: u64 = 12;

struct Options {
    rounds: u64,
    seed: u64,
    /// The first round.
    first: u64,
    /// Part of the documentation to be read back; all of it by default.
    documents: String,
    /// Where images are kept that something was found on.
    keep: Option<String>,
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

fn options() -> Result<Options> {
    let mut options = Options { rounds: ROUNDS_DEFAULT, seed: 1, first: 0, documents: String::new(), keep: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().context(USAGE)?;
        match name.as_str() {
            "--rounds" => options.rounds = value.parse().context(USAGE)?,
            "--seed" => options.seed = value.parse().context(USAGE)?,
            "--first" => options.first = value.parse().context(USAGE)?,
            "--documents" => options.documents = value,
            "--keep" => options.keep = Some(value),
            _ => bail!(USAGE),
        }
    }
    Ok(options)
}

fn execute() -> Result<bool> {
    let options = options()?;
    let needs = [Need::SmallDisk, Need::Program("mke2fs"), Need::Program("e2fsck")];
    if !require("interop-fs", &needs) {
        return Ok(true);
    }
    let (mut tally, mut unclean, mut different) = (Tally::default(), 0, 0);
    let mut take = |what: &str, done: Result<Tally, Finding>| {
        match done {
            Ok(more) => tally += more,
            Err(finding) => {
                println!("{what}: {finding}");
                match finding {
                    Finding::Unclean(_) => unclean += 1,
                    Finding::Different(_) => different += 1,
                }
            }
        }
        println!("{what}: operations={} logs={} files={}", tally.operations, tally.logs, tally.files);
    };
    if options.documents != "none"
        && let Some(source) = import::source(&options.documents)
    {
        let home = tempfile::tempdir().context("a directory")?;
        take("the toolchain's documentation", import::read_back(&source, home.path()));
    }
    for number in options.first..options.first + options.rounds {
        let shape = &SHAPES[(number % SHAPES.len() as u64) as usize];
        round(shape, number, &options, &mut take)?;
    }
    println!(
        "interop-fs: rounds={} operations={} unclean={unclean} different={different}",
        options.rounds, tally.operations
    );
    Ok(unclean + different == 0)
}

type Form = fn(&Shape, Plan, &Path) -> Result<Tally, Finding>;

fn round(
    shape: &Shape,
    number: u64,
    options: &Options,
    take: &mut impl FnMut(&str, Result<Tally, Finding>),
) -> Result<()> {
    let seed = options.seed * 1_000_000 + number;
    let forms: [(&str, Form, Plan); 3] = [
        ("turns", turns::round, Plan { seed, turns: 3, draws: 60 }),
        ("logs of the kernel", logs::kernels, Plan { seed, turns: 4, draws: 40 }),
        ("logs of ours", logs::ours, Plan { seed, turns: 4, draws: 60 }),
    ];
    for (name, form, plan) in forms {
        let home = tempfile::tempdir().context("a directory")?;
        let what = format!("round {number} ({}), {name}", shape.name);
        let done = form(shape, plan, home.path());
        if let (Err(_), Some(keep)) = (&done, &options.keep) {
            for file in std::fs::read_dir(home.path())?.flatten() {
                let to = Path::new(keep).join(format!("{number}-{name}-{}", file.file_name().to_string_lossy()));
                std::fs::copy(file.path(), to).context("keeping an image")?;
            }
        }
        take(&what, done);
    }
    Ok(())
}
