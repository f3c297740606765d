//! The demo's machines: one directory, configuration, log and process each; gone at the end whatever happens.

use std::fs::{self, File, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::ground::{Addresses, Ground};
use super::process::{kill_tree, runs};

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
    pub(super) fn start(directory: &Path, ground: &Ground) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let addresses = ground.addresses().context("no free ports on loopback")?;
        let roles = [("box-a", "node"), ("box-b", "node"), ("witness", "witness")];
        let mut machines = Machines { all: Vec::new() };
        for (number, ((name, role), addresses)) in (0..).zip(roles.into_iter().zip(addresses)) {
            let mut command = Command::new(&program);
            command.arg(role);
            machines
                .all
                .push(Machine::start(directory, (name, addresses), command, |command| ground.spawn(number, command))?);
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
            if runs(&mut machine.child) {
                // A process that has just ended needs no signal.
                let _ = kill(Pid::from_raw(machine.child.id() as i32), Signal::SIGTERM);
            }
            let deadline = Instant::now() + STOP_PATIENCE;
            while runs(&mut machine.child) && Instant::now() < deadline {
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
        directory: &Path,
        (name, addresses): (&'static str, Addresses),
        mut command: Command,
        spawn: impl FnOnce(&mut Command) -> anyhow::Result<Child>,
    ) -> anyhow::Result<Self> {
        let home = directory.join(name);
        fs::create_dir(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let config = home.join("tandem.toml");
        fs::write(&config, configuration(name, &addresses))?;
        let log = home.join("log");
        let output = File::create(&log)?;
        command
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Its own group: Ctrl-C reaches the demo only, which then stops its machines.
            .process_group(0);
        let child = spawn(&mut command).with_context(|| format!("cannot start {name}"))?;
        let Addresses { admin, nbd, nfs, .. } = addresses;
        Ok(Machine { name, admin, nbd, nfs, log, child })
    }

    /// Kills the supervisor and its worker, and reaps.
    fn kill(mut self) {
        kill_tree(&mut self.child);
    }
}

/// Kills one process at once, as a crash would.
pub(super) fn kill_process(pid: u32) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).context("the node told no process id of its worker")?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill the worker")
}

fn configuration(name: &str, at: &Addresses) -> String {
    let Addresses { peer, admin, nbd, nfs } = at;
    // A network of namespaces leaves the machine as little as loopback does.
    let plaintext = !nfs.is_loopback();
    format!(
        "name = \"{name}\"\ndata_dir = \"data\"\ninsecure_plaintext = {plaintext}\n\n[listen]\npeer = \"{peer}\"\nadmin = \
         \"{admin}\"\nnbd = \"{nbd}\"\nnfs = \"{nfs}\"\n"
    )
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
    fn the_configuration_of_a_machine_is_valid() {
        let at = |port| format!("10.215.0.2:{port}");
        let (peer, admin, nbd, nfs) = (at(7400), at(7401), at(10809), IpAddr::from([10, 215, 0, 2]));
        let text = configuration("box-a", &Addresses { peer, admin, nbd, nfs });
        let value: toml::Table = text.parse().unwrap();
        assert_eq!(value["name"].as_str(), Some("box-a"));
        assert_eq!(value["listen"]["nbd"].as_str(), Some("10.215.0.2:10809"));
        assert_eq!(value["listen"]["nfs"].as_str(), Some("10.215.0.2"));
        assert_eq!(value["insecure_plaintext"].as_bool(), Some(true));
    }
}
