//! `crash-fs [--images N] [--seed S] [--jobs J] [--keep DIR]`: power losses under the filesystem engine; `crash-fs --seed S
//! --image I` judges one image again.
//!
//! The last line is `crash-fs: images=N unclean=U lost=L wrong=W`; the exit code is 1 unless the three are 0.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tandem_tests::crash_fs::{Options, Totals, run};

const IMAGES_DEFAULT: u64 = 100_000;
/// Time between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let keep = std::env::temp_dir().join("crash-fs-kept");
    let mut options = Options { images: IMAGES_DEFAULT, seed: 0, image: None, jobs, keep };
    while let Some(argument) = arguments.next() {
        let text = arguments.next().ok_or(format!("{argument} needs a value"))?;
        let number = || text.parse::<u64>().map_err(|error| format!("{argument} {text}: {error}"));
        match argument.as_str() {
            "--images" => options.images = number()?,
            "--seed" => options.seed = number()?,
            "--image" => options.image = Some(number()? as usize),
            "--jobs" => options.jobs = number()? as usize,
            "--keep" => options.keep = PathBuf::from(text),
            other => {
                return Err(format!("{other}: not known; use --images N, --seed S, --image I, --jobs J, --keep DIR"));
            }
        }
    }
    if options.image.is_some() {
        options.jobs = 1;
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("crash-fs: {message}");
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let last = Mutex::new(started);
    let show = |totals: &Totals| {
        let per_second = totals.images as f64 / started.elapsed().as_secs_f64();
        let Totals { runs, mounted, cut, wraps, .. } = totals;
        println!(
            "{runs} runs, {cut} recoveries cut, {mounted} through the kernel, {wraps} wraps, {per_second:.0} images/s"
        );
    };
    let progress = |totals: &Totals| {
        let Ok(mut last) = last.lock() else { return };
        if last.elapsed() >= PROGRESS_EVERY {
            *last = Instant::now();
            print!("{} of {} images: ", totals.images, options.images);
            show(totals);
            // Whoever reads this line waits for it; it is not worth an end of the run.
            let _ = std::io::stdout().flush();
        }
    };
    match run(&options, &progress) {
        Ok(totals) => {
            show(&totals);
            println!("{}", totals.line());
            if totals.is_fine() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("crash-fs: {error:#}");
            ExitCode::from(2)
        }
    }
}
