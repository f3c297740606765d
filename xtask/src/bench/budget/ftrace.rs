//! A trace of the kernel's own (tracefs), in an instance that nobody else uses and that is removed at the end.
//!
//! The kernel writes into buffers in memory and nobody is woken to copy them: that is why this and not `perf record`, under
//! which one write at depth 1 takes much longer. Only the given threads are traced; but the way into a system call is a little
//! longer for every thread of the machine meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::events::Tid;

/// Where tracefs may be.
const ROOTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Of all processors together: about two million events. The oldest are lost if it does not suffice.
const BUFFER_KIB: usize = 128 * 1024;

/// Names of instances; the number of the process follows.
const PREFIX: &str = "tandem-budget-";

/// What is recorded, and what of it.
const EVENTS: [(&str, Only); 5] = [
    ("raw_syscalls/sys_enter", Only::By("common_pid")),
    ("raw_syscalls/sys_exit", Only::By("common_pid")),
    ("sched/sched_waking", Only::By("pid")),
    ("block/block_rq_issue", Only::By("common_pid")),
    // Comes in an interrupt, under whatever runs there.
    ("block/block_rq_complete", Only::All),
];

enum Only {
    All,
    /// Where this field is one of the threads.
    By(&'static str),
}

/// Why no trace can be taken, or the directory of tracefs.
pub(super) fn root() -> std::result::Result<&'static Path, &'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root");
    }
    let found = ROOTS.iter().map(Path::new).find(|root| root.join("instances").is_dir());
    let root = found.ok_or("no tracefs with instances in /sys/kernel/tracing")?;
    match EVENTS.iter().find(|(event, _)| !root.join("events").join(event).is_dir()) {
        Some((event, _)) => Err(event),
        None => Ok(root),
    }
}

/// A trace that runs until it is stopped or dropped.
pub(super) struct Recording {
    instance: PathBuf,
}

impl Recording {
    /// Begins to trace the threads.
    pub(super) fn start(root: &Path, threads: &[Tid]) -> Result<Self> {
        remove_left_behind(&root.join("instances"));
        let instance = root.join(format!("instances/{PREFIX}{}", std::process::id()));
        fs::create_dir(&instance).with_context(|| format!("creating {}", instance.display()))?;
        let recording = Self { instance };
        recording.write("tracing_on", "0")?;
        // The same for all processors.
        recording.write("trace_clock", "mono")?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        recording.write("buffer_size_kb", &(BUFFER_KIB / processors).to_string())?;
        for (event, only) in EVENTS {
            if let Only::By(field) = only {
                recording.write(&format!("events/{event}/filter"), &any_of(field, threads))?;
            }
            recording.write(&format!("events/{event}/enable"), "1")?;
        }
        recording.write("tracing_on", "1")?;
        Ok(recording)
    }

    /// Nothing more is recorded.
    pub(super) fn stop(&self) -> Result<()> {
        self.write("tracing_on", "0")?;
        EVENTS.iter().try_for_each(|(event, _)| self.write(&format!("events/{event}/enable"), "0"))
    }

    /// The kernel's text of it.
    pub(super) fn text(&self) -> Result<String> {
        fs::read_to_string(self.instance.join("trace")).context("reading the trace")
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.instance.join(file), value).with_context(|| format!("writing {value:?} to tracefs's {file}"))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.instance) {
            eprintln!("cannot remove {}: {error}", self.instance.display());
        }
    }
}

/// Removes the instances of processes that were killed: the kernel would go on tracing for them. What cannot be removed does no
/// harm to the new one.
fn remove_left_behind(instances: &Path) {
    for entry in fs::read_dir(instances).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// A filter of tracefs.
fn any_of(field: &str, threads: &[Tid]) -> String {
    threads.iter().map(|tid| format!("{field} == {tid}")).collect::<Vec<_>>().join(" || ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_names_every_thread() {
        assert_eq!(any_of("pid", &[7, 12]), "pid == 7 || pid == 12");
    }
}
