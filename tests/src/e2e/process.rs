//! Processes of other programs, owned: they end with the value that stands for them.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::eventually;

/// A child with everything that descends from it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ended: bool,
}

impl Process {
    /// Starts `command` with both outputs appended to the file at `log`.
    pub fn start(mut command: Command, log: &Path) -> io::Result<Self> {
        let out = File::options().append(true).create(true).open(log)?;
        let child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()?;
        Ok(Self { child, ended: false })
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        if !self.ended {
            self.ended = matches!(self.child.try_wait(), Ok(Some(_)) | Err(_));
        }
        !self.ended
    }

    /// The exit code, once it has ended by itself.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().and_then(|status| status.code())
    }

    /// The process and its living descendants, parents first.
    pub fn tree(&self) -> Vec<u32> {
        descendants(self.pid())
    }

    /// Sends a signal to the process only.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            send(self.pid(), signal);
        }
    }

    /// Sends a signal to the process and all its descendants, as when a box stops. Returns from SIGSTOP when all their
    /// threads have stopped: until the one that takes the signal is scheduled, the others go on.
    pub fn signal_tree(&mut self, signal: Signal) {
        if !self.is_running() {
            return;
        }
        let tree = self.tree();
        tree.iter().for_each(|pid| send(*pid, signal));
        if signal == Signal::SIGSTOP {
            eventually(Duration::from_secs(10), "all threads stop", || tree.iter().all(|pid| is_stopped(*pid)));
        }
    }

    /// `kill -9` of the whole tree; returns when nothing of it runs any more.
    pub fn kill_tree(&mut self) {
        if !self.is_running() {
            return;
        }
        // Stopped first, so that a parent cannot start a successor for a child that it sees die.
        let tree = self.tree();
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            tree.iter().for_each(|pid| send(*pid, signal));
        }
        let _ = self.child.wait();
        self.ended = true;
        eventually(Duration::from_secs(10), "killed processes are gone", || tree.iter().all(|pid| !is_alive(*pid)));
    }

    /// Waits for the end. False if it does not come in time.
    pub fn wait_for_end(&mut self, limit: Duration) -> bool {
        let deadline = std::time::Instant::now() + limit;
        while self.is_running() {
            if std::time::Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            let tree = self.tree();
            tree.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
            let _ = self.child.wait();
        }
    }
}

/// Whether every thread of a process is stopped, or has ended.
fn is_stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let state = |task: &std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next())
    };
    tasks.map(|task| state(&task)).all(|state| matches!(state, None | Some('T' | 't' | 'Z' | 'X')))
}

/// Sends a signal to one process by its id; a process that is gone is fine.
pub fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Whether a process exists and is more than a zombie.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() {
        for task in fs::read_dir(format!("/proc/{}/task", found[at])).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        at += 1;
    }
    found
}

/// Runs a command to its end and gives its standard output.
///
/// # Panics
/// If it cannot start or fails, with all that it printed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} ended with {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}
