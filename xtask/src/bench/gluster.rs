//! GlusterFS as a target: two copies and an arbiter, mounted through FUSE, all of it in namespaces of its own.
//!
//! Its daemons refuse loopback addresses and keep state, logs and sockets in fixed places of the system. So they get a
//! network of their own with an address that is not loopback's, and mounts of their own that put a directory of the
//! measurement in those places; whatever else of GlusterFS is on the machine is not touched. All their processes are in one
//! process namespace, and its end is the end of all of them, of the mounts and of the network, however this program ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::proc;
use crate::shell;

/// The Debian packages.
pub(super) const PACKAGES: [&str; 2] = ["glusterfs-server", "glusterfs-client"];
/// What has to be on the path.
pub(super) const PROGRAMS: [&str; 6] = ["glusterd", "gluster", "glusterfs", "unshare", "nsenter", "setpriv"];
/// Of the namespace only; nobody outside can see it.
const ADDRESS: &str = "10.86.0.1";
const VOLUME: &str = "vol";
/// The last one is the arbiter: names and sizes, no data.
const BRICKS: [&str; 3] = ["near", "far", "arbiter"];
/// So that a write has reached both copies' files, past all caches of GlusterFS and of the kernel, when it is acknowledged: as
/// with the other targets. By default its client acknowledges first and writes behind.
const OPTIONS: [(&str, &str); 3] =
    [("performance.strict-o-direct", "on"), ("network.remote-dio", "disable"), ("performance.write-behind", "off")];
const START_LIMIT: Duration = Duration::from_secs(30);

/// What the first process in the namespaces does; the directory is its argument.
const INIT: &str = r#"
cd "$1"
ip link set lo up
ip address add "$2"/32 dev lo
cp -a /var/lib/glusterd/. state/
mount --bind state /var/lib/glusterd
mount --bind logs /var/log/glusterfs
mount -t tmpfs none /run
mkdir /run/gluster
exec glusterd --no-daemon
"#;

/// A volume that is mounted. It and all that belongs to it ends when this is dropped.
pub(super) struct Gluster {
    /// Made the namespaces, and waits for the first process in them.
    outside: Child,
    /// That process: the management daemon. All others become its children.
    inside: u32,
    /// Of one file in the volume.
    file: PathBuf,
}

impl Gluster {
    /// Starts everything in a directory and makes a file of a size.
    pub(super) fn start(directory: &Path, size_bytes: u64) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let home = fs::canonicalize(directory)?;
        for name in BRICKS.iter().chain(&["state", "logs", "mount"]) {
            fs::create_dir(home.join(name)).with_context(|| format!("creating {name} in {}", home.display()))?;
        }
        let output = fs::File::create(home.join("logs/start"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--mount-proc", "--pid", "--fork"]);
        command.args(["--kill-child", "sh", "-ec", INIT, "sh"]).arg(&home).arg(ADDRESS);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let outside = command.spawn().context("cannot start unshare")?;
        let mut gluster = Self { outside, inside: 0, file: home.join("mount/image") };
        let described = || fs::read_to_string(home.join("logs/start")).unwrap_or_default();
        gluster.wait_for_daemon().with_context(described)?;
        gluster.make_volume(&home, size_bytes)?;
        Ok(gluster)
    }

    fn wait_for_daemon(&mut self) -> Result<()> {
        let outside = self.outside.id();
        shell::wait_until(START_LIMIT, "the namespaces", || proc::children(outside).len() == 1)?;
        self.inside = proc::children(outside)[0];
        shell::wait_until(START_LIMIT, "glusterd", || {
            let listed = self.command("gluster", "/").args(["--mode=script", "volume", "list"]).output();
            listed.is_ok_and(|output| output.status.success())
        })
    }

    fn make_volume(&self, home: &Path, size_bytes: u64) -> Result<()> {
        let volume = |args: &[&str]| {
            let mut command = self.command("gluster", "/");
            shell::output(command.args(["--mode=script", "volume"]).args(args)).map(drop)
        };
        let bricks = BRICKS.map(|brick| format!("{ADDRESS}:{}", home.join(brick).display()));
        let mut create = vec!["create", VOLUME, "replica", "3", "arbiter", "1"];
        create.extend(bricks.iter().map(String::as_str));
        // All copies are on one box and on the system's disk, which it would rather not have.
        create.push("force");
        volume(&create)?;
        for (option, value) in OPTIONS {
            volume(&["set", VOLUME, option, value])?;
        }
        volume(&["start", VOLUME])?;
        let mut mount = self.command("mount", "/");
        mount.args(["-t", "glusterfs", &format!("{ADDRESS}:/{VOLUME}")]).arg(home.join("mount"));
        shell::output(&mut mount)?;
        shell::output(self.command("truncate", "/").arg(format!("--size={size_bytes}")).arg(&self.file))?;
        Ok(())
    }

    /// Its file, where it is mounted.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// What a command line begins with that is to see the mount, and that works in `directory`.
    pub(super) fn prefix(&self, directory: &str) -> Vec<String> {
        let target = self.inside.to_string();
        let words = ["nsenter", "--target", &target, "--mount", "--net", "--pid", "env"];
        words.iter().map(|word| (*word).to_owned()).chain([format!("--chdir={directory}")]).collect()
    }

    fn command(&self, program: &str, directory: &str) -> Command {
        let prefix = self.prefix(directory);
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(program).stdin(Stdio::null());
        command
    }

    /// The process that all others descend from.
    pub(super) fn pid(&self) -> u32 {
        self.outside.id()
    }
}

impl Drop for Gluster {
    fn drop(&mut self) {
        // The kernel ends all other processes of the namespace before this one is gone, and `unshare` waits for it. It is
        // still ours: what it was started by has not been waited for. All fail only if they have ended already.
        match i32::try_from(self.inside) {
            Ok(pid) if pid > 0 && proc::children(self.outside.id()).contains(&self.inside) => {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            _ => {
                let _ = self.outside.kill();
            }
        }
        let _ = self.outside.wait();
    }
}
