//! The demo's machines: one directory, configuration, log and process each, on loopback; gone at the end whatever happens.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A service has one port on all boxes, so each box has an address of its own.
const NFS_ADDRESSES: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
/// Ports that are tried for it.
const NFS_PORTS_TRIED_MAX: usize = 64;
/// An orderly stop of one machine may take so long; then it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(4);

/// Where the demo works.
#[derive(Debug)]
pub(super) enum WorkDirectory {
    /// Removed at the end, unless the demo fails.
    Temporary(TempDir),
    /// Given by the user, and kept.
    Kept(PathBuf),
}

impl WorkDirectory {
    /// The user's directory (made if missing; must be empty), or a temporary one on a file system with direct I/O.
    pub(super) fn new(keep: Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(path) = keep {
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
            if fs::read_dir(&path)?.next().is_some() {
                bail!("{} is not empty; --keep wants a new or empty directory", path.display());
            }
            return Ok(WorkDirectory::Kept(path.canonicalize()?));
        }
        let places = [std::env::temp_dir(), PathBuf::from("/var/tmp"), std::env::current_dir()?];
        for place in places {
            let Ok(directory) = tempfile::Builder::new().prefix("tandem-demo-").tempdir_in(&place) else { continue };
            if allows_direct_io(directory.path()) {
                return Ok(WorkDirectory::Temporary(directory));
            }
        }
        bail!("no directory with direct I/O found; name one with --keep DIR")
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        match self {
            WorkDirectory::Temporary(directory) => directory.path(),
            WorkDirectory::Kept(path) => path,
        }
    }

    /// Ends the work: with `keep_logs` a temporary directory stays, without the volumes' data. Gives the path of what
    /// stays.
    pub(super) fn finish(self, keep_logs: bool) -> Option<PathBuf> {
        match self {
            WorkDirectory::Kept(path) => Some(path),
            WorkDirectory::Temporary(directory) if keep_logs => Some(directory.keep()),
            WorkDirectory::Temporary(directory) => {
                let path = directory.path().to_path_buf();
                directory.close().is_err().then_some(path)
            }
        }
    }
}

/// One simulated machine.
#[derive(Debug)]
pub(super) struct Machine {
    /// Its name.
    pub(super) name: &'static str,
    /// Its admin API.
    pub(super) admin: String,
    /// Its NBD listener; unused on the witness.
    pub(super) nbd: String,
    /// Where it serves NFS; unused on the witness.
    pub(super) nfs: IpAddr,
    log: PathBuf,
    child: Child,
}

/// Three machines: two with storage, then the witness.
#[derive(Debug)]
pub(super) struct Machines {
    /// In the order of their names.
    pub(super) all: Vec<Machine>,
}

impl Machines {
    /// Writes the configurations and starts the processes.
    pub(super) fn start(directory: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let ports = free_ports(9).context("no free ports on loopback")?;
        let mut machines = Machines { all: Vec::new() };
        for (index, (name, role)) in
            [("box-a", "node"), ("box-b", "node"), ("witness", "witness")].into_iter().enumerate()
        {
            let ports = &ports[index * 3..index * 3 + 3];
            let nfs = IpAddr::V4(NFS_ADDRESSES[index]);
            let machine = Machine::start(&program, directory, name, role, (ports, nfs))?;
            machines.all.push(machine);
        }
        Ok(machines)
    }

    /// The two that store.
    pub(super) fn boxes(&self) -> &[Machine] {
        &self.all[..2]
    }

    /// A machine whose process has ended by itself, and where its log is.
    pub(super) fn first_dead(&mut self) -> Option<(&'static str, PathBuf)> {
        let mut machines = self.all.iter_mut();
        machines.find_map(|machine| match machine.child.try_wait() {
            Ok(None) => None,
            _ => Some((machine.name, machine.log.clone())),
        })
    }

    /// Stops one after the other in order, the witness last, so that each still finds a majority; kills what does not end.
    pub(super) fn stop(&mut self) {
        for mut machine in self.all.drain(..) {
            if machine.runs() {
                // A process that has just ended needs no signal.
                let _ = kill(Pid::from_raw(machine.child.id() as i32), Signal::SIGTERM);
            }
            let deadline = Instant::now() + STOP_PATIENCE;
            while machine.runs() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            machine.kill();
        }
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.all.drain(..).for_each(Machine::kill);
    }
}

impl Machine {
    fn start(
        program: &Path,
        directory: &Path,
        name: &'static str,
        role: &str,
        (ports, nfs): (&[u16], IpAddr),
    ) -> anyhow::Result<Self> {
        let home = directory.join(name);
        fs::create_dir(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let config = home.join("tandem.toml");
        fs::write(&config, configuration(name, ports, nfs))?;
        let log = home.join("log");
        let output = File::create(&log)?;
        let child = Command::new(program)
            .arg(role)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Its own group: Ctrl-C reaches the demo only, which then stops its machines.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let address = |port: u16| format!("127.0.0.1:{port}");
        Ok(Machine { name, admin: address(ports[1]), nbd: address(ports[2]), nfs, log, child })
    }

    /// True until its supervisor has ended.
    fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills the supervisor and its worker, and reaps. What has ended by itself makes no difference.
    fn kill(mut self) {
        if self.runs() {
            let supervisor = Pid::from_raw(self.child.id() as i32);
            // Stopped first: it must not start another worker while we look for the one it has.
            let _ = kill(supervisor, Signal::SIGSTOP);
            for worker in children(supervisor) {
                let _ = kill(worker, Signal::SIGKILL);
            }
            let _ = kill(supervisor, Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// The processes that `parent`, which runs one thread, has started.
fn children(parent: Pid) -> Vec<Pid> {
    let listed = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok().map(Pid::from_raw)).collect()
}

/// Kills one process at once, as a crash would.
pub(super) fn kill_process(pid: u32) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).context("the node told no process id of its worker")?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill the worker")
}

fn configuration(name: &str, ports: &[u16], nfs: IpAddr) -> String {
    format!(
        "name = \"{name}\"\ndata_dir = \"data\"\n\n[listen]\npeer = \"127.0.0.1:{}\"\nadmin = \"127.0.0.1:{}\"\nnbd = \
         \"127.0.0.1:{}\"\nnfs = \"{nfs}\"\n",
        ports[0], ports[1], ports[2]
    )
}

/// Ports that were free a moment ago; held together, so that none is told twice.
fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// A port that was free a moment ago on every address where the service may be.
pub(super) fn free_nfs_port() -> anyhow::Result<u16> {
    for _ in 0..NFS_PORTS_TRIED_MAX {
        let first = TcpListener::bind((NFS_ADDRESSES[0], 0))?;
        let port = first.local_addr()?.port();
        if NFS_ADDRESSES[1..].iter().all(|address| TcpListener::bind((*address, port)).is_ok()) {
            return Ok(port);
        }
    }
    bail!("no port is free on 127.0.0.1 and on 127.0.0.2")
}

fn allows_direct_io(directory: &Path) -> bool {
    let probe = directory.join("probe");
    let opened = OpenOptions::new().create(true).truncate(true).write(true).custom_flags(libc::O_DIRECT).open(&probe);
    let allowed = opened.is_ok();
    // A probe that cannot be removed goes with the directory.
    let _ = fs::remove_file(&probe);
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_distinct() {
        let mut ports = free_ports(9).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 9);
    }

    #[test]
    fn a_directory_to_keep_must_be_empty_and_stays() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("demo");
        let directory = WorkDirectory::new(Some(path.clone())).unwrap();
        fs::write(directory.path().join("file"), "x").unwrap();
        assert!(directory.finish(false).is_some());
        assert!(path.join("file").exists());
        assert!(WorkDirectory::new(Some(path)).is_err());
    }

    #[test]
    fn a_temporary_directory_goes_unless_the_logs_matter() {
        let Ok(directory) = WorkDirectory::new(None) else { return };
        let path = directory.path().to_path_buf();
        assert_eq!(directory.finish(false), None);
        assert!(!path.exists());
    }

    #[test]
    fn the_children_of_a_process_are_found() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = child.id() as i32;
        // Spawned by this thread, which may not be the process's first one.
        let me = nix::unistd::gettid();
        let listed = fs::read_to_string(format!("/proc/self/task/{me}/children")).unwrap();
        assert!(listed.split_whitespace().any(|pid| pid == id.to_string()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_configuration_of_a_machine_is_valid() {
        let text = configuration("box-a", &[7400, 7401, 10809], IpAddr::V4(NFS_ADDRESSES[1]));
        let value: toml::Table = text.parse().unwrap();
        assert_eq!(value["name"].as_str(), Some("box-a"));
        assert_eq!(value["listen"]["nbd"].as_str(), Some("127.0.0.1:10809"));
        assert_eq!(value["listen"]["nfs"].as_str(), Some("127.0.0.2"));
    }
}
