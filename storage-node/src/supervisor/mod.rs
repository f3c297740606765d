//! The small parent of a worker: starts it, reaps it, says goodbye for it, and starts the next one.
//!
//! A goodbye lets the other boxes take over at once, so only the process that has reaped the worker may say it: then no
//! thread of it runs any more. The parent touches no data and has no runtime; its other threads read what the worker tells
//! about itself, and hold what must outlive it: listeners, and descriptors of its clients' connections (`held`). When the
//! parent dies the kernel kills the worker, and nobody says goodbye: the lease runs out.

mod announcement;
mod goodbye;
mod held;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use replication::config::NodeKind;
use tracing::{error, info, warn};

pub use announcement::Announcement;
pub use held::{
    ADDRESSES_HELD_MAX, CONNECTIONS_HELD_MAX, HeldConnection, HoldError, LISTENERS_HELD_MAX, SupervisorSockets,
};
use held::{Held, Keeper};

use crate::net::address;
use crate::node::WorkerArguments;

/// The worker failed; another start may succeed.
pub const EXIT_FAILED: u8 = 1;
/// The worker failed in a way that another start would repeat (`EX_CONFIG` of `sysexits.h`).
pub const EXIT_FATAL: u8 = 78;
/// What a worker says once it serves.
pub const UP_LINE: &str = "up\n";

/// Longest line a worker may say, in bytes; more is not ours.
const LINE_BYTES_MAX: u64 = 1 << 20;
const LOG_FORMAT: &str = "TANDEM_LOG_FORMAT";
/// Open files asked for, in this process and the worker: the common limit of 1024 is fewer than the connections held.
const DESCRIPTORS_WANTED: u64 = 65_536;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A worker that ran this long makes the next one start without a wait.
const RAN_LONG_ENOUGH: Duration = Duration::from_secs(30);
/// Between two looks at signals while waiting to start the next worker.
const BACKOFF_STEP: Duration = Duration::from_millis(20);

/// What a worker has told about itself.
#[derive(Debug, Default)]
struct Told {
    up: bool,
    announcement: Option<Announcement>,
}

/// How a worker ended, and whether the supervisor was told to end.
struct Ended {
    status: ExitStatus,
    asked: bool,
}

/// Logs to standard error. `TANDEM_LOG` filters, by default `info`; `TANDEM_LOG_FORMAT=json` gives an object a line.
pub fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TANDEM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let format = std::env::var(LOG_FORMAT).unwrap_or_default();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // A second call, in a test, keeps the first.
    let _ = match format.as_str() {
        "json" => log.json().flatten_event(true).with_span_list(false).try_init(),
        _ => log.try_init(),
    };
    if !["", "text", "json"].contains(&format.as_str()) {
        warn!("{LOG_FORMAT}={format} is not known, so this is text: it takes text and json");
    }
}

/// Runs `tandem node` or `tandem witness` with the configuration at `config` until it is told to end, or until the
/// worker fails for good.
pub fn run(config: &Path, kind: NodeKind) -> ExitCode {
    start_logging();
    let program = "/proc/self/exe";
    let arguments = WorkerArguments { config: config.to_path_buf(), kind, supervisor_pid: std::process::id() };
    let mut command = vec![OsString::from("worker")];
    command.extend(arguments.to_arguments());
    match supervise(Path::new(program), &command) {
        Ok(code) => code,
        Err(why) => {
            error!("the supervisor fails: {why}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn supervise(program: &Path, arguments: &[OsString]) -> std::io::Result<ExitCode> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    // Blocked, not handled: they are taken by `wait`, one at a time, and no handler runs.
    signals.thread_block()?;
    allow_descriptors();
    let mut held = Held::default();
    let mut backoff = Duration::ZERO;
    let mut was_up = false;
    loop {
        let started = Instant::now();
        let (keeper, worker_end) = Keeper::start(held)?;
        let mut child = start(program, arguments, worker_end.into())?;
        let told = listen(&mut child);
        let ended = wait(&mut child, &signals)?;
        let told = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
        // Only now, with the worker reaped, is it certain that no thread of it serves a client any more.
        held = keeper.finish();
        held.worker_gone(address::remove, || told.announcement.iter().for_each(goodbye::say));
        was_up |= told.up;
        if let Some(code) = verdict(&ended, was_up) {
            return Ok(code);
        }
        backoff = match started.elapsed() >= RAN_LONG_ENOUGH {
            true => BACKOFF_FIRST,
            false => (backoff * 2).clamp(BACKOFF_FIRST, BACKOFF_MAX),
        };
        warn!("the worker ended ({}); starting another in {backoff:?}", ended.status);
        if told_to_end_within(backoff)? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// What the end of a worker means for the supervisor: `None` is another start.
fn verdict(ended: &Ended, was_up: bool) -> Option<ExitCode> {
    match ended.status.code() {
        Some(0) => Some(ExitCode::SUCCESS),
        _ if ended.asked => {
            warn!("the worker did not end in order ({})", ended.status);
            Some(ExitCode::from(EXIT_FAILED))
        }
        Some(code) if code == i32::from(EXIT_FATAL) => Some(ExitCode::from(EXIT_FATAL)),
        // It never came up, at the first try: whoever started it is best told at once.
        Some(_) if !was_up => Some(ExitCode::from(EXIT_FAILED)),
        _ => None,
    }
}

/// Raises this process's limit of open files, which the worker inherits, as far as it is allowed.
fn allow_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match DESCRIPTORS_WANTED.min(hard) {
        wanted if wanted > soft => setrlimit(Resource::RLIMIT_NOFILE, wanted, hard),
        _ => Ok(()),
    });
    if let Err(why) = raised {
        warn!("the limit of open files stays as it is: {why}");
    }
}

/// Starts a worker. `sockets` is the worker's end of what the supervisor holds for it ([`SupervisorSockets::from_stdin`]).
fn start(program: &Path, arguments: &[OsString], sockets: Stdio) -> std::io::Result<Child> {
    // Its own process group: a Ctrl-C at the terminal reaches it through its parent, once.
    Command::new(program).arg0("tandem").args(arguments).stdin(sockets).stdout(Stdio::piped()).process_group(0).spawn()
}

/// Reads what the worker says, until its end of the pipe closes.
fn listen(child: &mut Child) -> Arc<Mutex<Told>> {
    let told = Arc::new(Mutex::new(Told::default()));
    let Some(pipe) = child.stdout.take() else { return told };
    let heard = Arc::clone(&told);
    std::thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = String::new();
        loop {
            line.clear();
            match lines.by_ref().take(LINE_BYTES_MAX).read_line(&mut line) {
                Ok(1..) => {}
                _ => return,
            }
            let mut told = heard.lock().unwrap_or_else(PoisonError::into_inner);
            if line == UP_LINE {
                told.up = true;
            } else if let Some(announcement) = Announcement::parse(&line) {
                told.announcement = Some(announcement);
            }
        }
    });
    told
}

/// Waits for the worker's end and passes signals on to it. The second one kills it.
fn wait(child: &mut Child, signals: &SigSet) -> std::io::Result<Ended> {
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait()? {
            if let Some(signal) = status.signal() {
                info!("the worker was killed by signal {signal}");
            }
            return Ok(Ended { status, asked });
        }
        match signals.wait()? {
            Signal::SIGCHLD => {}
            _ if asked => child.kill()?,
            _ => {
                asked = true;
                info!("stopping in order; a second signal stops at once");
                kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
            }
        }
    }
}

/// Waits, but not through a signal to end.
fn told_to_end_within(backoff: Duration) -> std::io::Result<bool> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    let pending = SignalFd::with_flags(&ends, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let started = Instant::now();
    while started.elapsed() < backoff {
        if pending.read_signal()?.is_some() {
            return Ok(true);
        }
        std::thread::sleep(BACKOFF_STEP);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(raw: i32, asked: bool) -> Ended {
        Ended { status: ExitStatus::from_raw(raw), asked }
    }

    /// Raw wait status of an exit with `code`.
    fn exit(code: u8) -> i32 {
        i32::from(code) << 8
    }

    #[test]
    fn a_killed_worker_is_started_again_and_a_finished_one_is_not() {
        let is = |code: Option<ExitCode>, expected: Option<u8>| {
            format!("{code:?}") == format!("{:?}", expected.map(ExitCode::from))
        };
        assert!(is(verdict(&ended(9, false), true), None));
        assert!(is(verdict(&ended(9, false), false), None));
        assert!(is(verdict(&ended(exit(0), false), true), Some(0)));
        assert!(is(verdict(&ended(exit(EXIT_FAILED), false), true), None));
        assert!(is(verdict(&ended(exit(EXIT_FAILED), false), false), Some(EXIT_FAILED)));
        assert!(is(verdict(&ended(exit(EXIT_FATAL), false), true), Some(EXIT_FATAL)));
        assert!(is(verdict(&ended(9, true), true), Some(EXIT_FAILED)));
    }

    #[test]
    fn what_the_worker_says_is_heard_and_noise_is_not() {
        let announcement = Announcement { cluster: 1, node: 2, incarnation: 3, peers: vec!["127.0.0.1:7".into()] };
        let script = format!("echo noise; printf '{}'; echo up", announcement.to_line().replace('\n', "\\n"));
        let arguments = [OsString::from("-c"), script.into()];
        let mut child = start(Path::new("/bin/sh"), &arguments, Stdio::null()).expect("a shell");
        let told = listen(&mut child);
        assert!(child.wait().expect("reaped").success());
        // The pipe is closed by the child's end; the reader drops its half of the cell when it has read all.
        while Arc::strong_count(&told) > 1 {
            std::thread::yield_now();
        }
        let told = told.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(told.up);
        assert_eq!(told.announcement.as_ref(), Some(&announcement));
    }
}
