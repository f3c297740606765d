//! The end of what the demo starts: processes with all that they have started themselves.

use std::fs;
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// True until it has ended.
pub(super) fn runs(child: &mut Child) -> bool {
    matches!(child.try_wait(), Ok(None))
}

/// Kills a process with its descendants, and reaps it. What has ended by itself makes no difference.
pub(super) fn kill_tree(child: &mut Child) {
    if runs(child) {
        let mut doomed = vec![Pid::from_raw(child.id() as i32)];
        let mut at = 0;
        while let Some(parent) = doomed.get(at).copied() {
            // Stopped first: it must not start another one while we look for those that it has.
            let _ = kill(parent, Signal::SIGSTOP);
            doomed.extend(children(parent));
            at += 1;
        }
        // The parent last: who is nobody's child any more would not be found again.
        for pid in doomed.into_iter().rev() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
    let _ = child.wait();
}

/// The processes that the threads of `parent` have started.
fn children(parent: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let listed = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    listed
        .flat_map(|pids| pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .map(Pid::from_raw)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_a_child_has_started_ends_with_it() {
        let mut shell = Command::new("sh");
        // The pipe is closed when both have ended.
        let mut child = shell.args(["-c", "sleep 60 & echo up; wait"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        assert!(runs(&mut child));
        assert_eq!(children(Pid::from_raw(child.id() as i32)).len(), 1);
        kill_tree(&mut child);
        assert!(!runs(&mut child));
        assert_eq!(std::io::Read::read(&mut output, &mut [0]).unwrap(), 0);
    }
}
