//! A real Linux kernel as a client of the demo's files: user-mode Linux on a tap device, which mounts the volume from its floating
//! address and works on it (`guest`) while the boxes are switched over and killed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::files::Verified;
use super::ground::{TAP, kernel_client_address};
use super::guest::{Entry, Share, parse_report, told};
use super::process::{kill_tree, runs};
use crate::files::mke2fs;

/// Where `cargo xtask kernel-client --uml` puts the kernel, below the workspace's root.
const DEFAULT_DIRECTORY: &str = "target/kernel-client";
const PROGRAM: &str = "linux.uml";
/// What does a user's side of NFS; `mount -t nfs` calls it.
const MOUNT: &str = "mount.nfs";
/// Below the directory with the kernel: unpacked packages.
const PACKAGES: &str = "packages";
/// Programs of root's that are not on every path.
const SYSTEM_PATHS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
const INIT: &str = include_str!("guest.sh");
const MEMORY: &str = "mem=256M";
/// A kernel boots, or mounts, within this on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// No call of its program takes longer: a kernel sends again what was not answered after a minute, which must not count.
const PATIENCE: Duration = Duration::from_secs(45);
/// It unmounts and ends within this; else it is killed.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at what it tells.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// What a kernel says that is built for processors with less floating-point state than this one: it starts no program.
const TOO_MUCH_STATE: &str = "ptrace set fp regs failed";
/// Lines of its console that are told when it fails.
const CONSOLE_LINES: usize = 12;

/// A kernel that can be booted, and what it needs.
#[derive(Clone, Debug)]
pub(super) struct KernelClient {
    program: PathBuf,
    mount: PathBuf,
    libraries: String,
}

impl KernelClient {
    /// Looks for everything that the demo needs for a kernel client: in `directory`; without one in the default directory and on
    /// the path.
    ///
    /// # Errors
    /// What is missing, all of it, and what to do.
    pub(super) fn find(directory: Option<&Path>) -> anyhow::Result<Self> {
        let home = directory.unwrap_or(Path::new(DEFAULT_DIRECTORY));
        let mut missing = Vec::new();
        if !nix::unistd::geteuid().is_root() {
            missing.push("root, for network namespaces and the kernel's tap device: run it with sudo".to_owned());
        }
        if !mke2fs::is_installed() {
            missing.push("mke2fs (Debian: apt install e2fsprogs)".to_owned());
        }
        let built = Some(home.join(PROGRAM)).filter(|path| path.is_file());
        let program = built.or_else(|| directory.is_none().then(|| on_the_path(PROGRAM)).flatten());
        if program.is_none() {
            let place = match directory {
                Some(_) => home.display().to_string(),
                None => format!("{} below the current directory, or on the path", home.display()),
            };
            missing.push(format!(
                "user-mode Linux, {PROGRAM}, looked for in {place}: `cargo xtask kernel-client --uml` builds it in \
                 {DEFAULT_DIRECTORY} (some ten minutes), --kernel-client DIR says where else it is"
            ));
        }
        let packages = home.join(PACKAGES);
        let unpacked = || fs::canonicalize(packages.join("sbin").join(MOUNT)).ok();
        let mount = on_the_path(MOUNT).or_else(unpacked);
        if mount.is_none() {
            missing.push(format!(
                "{MOUNT}, looked for on the path and in {}: apt install nfs-common, or `cargo xtask kernel-client`, which \
                 unpacks it there",
                packages.join("sbin").display()
            ));
        }
        let (Some(program), Some(mount), true) = (program, mount, missing.is_empty()) else {
            bail!(
                "--mount runs two boxes and a real Linux kernel; this is missing here:\n  - {}",
                missing.join("\n  - ")
            );
        };
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| packages.join(path));
        let libraries = libraries.iter().filter_map(|path| fs::canonicalize(path).ok());
        let libraries = libraries.map(|path| path.display().to_string()).collect::<Vec<_>>().join(":");
        Ok(Self { program, mount, libraries })
    }
}

/// A booted kernel. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    child: Child,
    share: Share,
    console: PathBuf,
}

impl Guest {
    /// Boots a kernel on the tap device of the network where this thread is; its files lie in `directory`.
    pub(super) fn boot(client: &KernelClient, directory: &Path) -> anyhow::Result<Self> {
        let here = directory.join("kernel-client");
        let share = Share(here.join("share"));
        fs::create_dir_all(&share.0)?;
        let (init, console) = (here.join("init"), here.join("console"));
        if init.to_string_lossy().contains(|letter: char| letter.is_whitespace() || letter == '"') {
            bail!("a kernel's command line cannot name {}; use another directory with --keep", here.display());
        }
        fs::write(&init, init_script(client, &share, &std::env::current_exe()?))?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        let output = File::create(&console)?;
        let child = Command::new(&client.program)
            .args([MEMORY, "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "con=null", "con0=null,fd:1"])
            .arg(format!("vec0:transport=tap,ifname={TAP},depth=128,gro=1"))
            .arg(format!("init={}", init.display()))
            // Where it keeps its memory, and its control socket.
            .env("TMPDIR", &here)
            .env("HOME", &here)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C reaches the demo only.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", client.program.display()))?;
        Ok(Self { child, share, console })
    }

    /// Waits until it is up. Gives its kernel's release.
    pub(super) async fn await_up(&mut self) -> anyhow::Result<String> {
        Ok(self.answer(told::READY, START_PATIENCE).await?.trim().to_owned())
    }

    /// Waits for what it tells under this name.
    async fn answer(&mut self, name: &str, patience: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(text) = self.share.told(name) {
                return Ok(text);
            }
            self.failure()?;
            if Instant::now() > deadline {
                bail!("the Linux kernel has not told `{name}` within {patience:?}; its console says:\n{}", self.tail());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Errors: what it has told, or that it has ended.
    fn failure(&mut self) -> anyhow::Result<()> {
        if let Some(why) = self.share.told(told::FAILED) {
            bail!("the Linux kernel's program failed: {}", why.trim());
        }
        if runs(&mut self.child) {
            return Ok(());
        }
        if self.console().contains(TOO_MUCH_STATE) {
            bail!(
                "this user-mode Linux cannot run programs on this processor, which has more state than it knows \
                 ({TOO_MUCH_STATE}): `cargo xtask kernel-client --uml` builds one that can"
            );
        }
        bail!("the Linux kernel has ended; its console says:\n{}", self.tail())
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    fn tail(&self) -> String {
        let text = self.console();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        kill_tree(&mut self.child);
    }
}

/// A kernel at work on the volume.
#[derive(Debug)]
pub(super) struct KernelLoad {
    guest: Guest,
    /// The version that it has mounted, such as `4.2`.
    version: String,
    /// Bytes of its ledger that were read.
    read: u64,
    files: BTreeMap<String, u64>,
    /// Since it was asked for last.
    longest_wait: Duration,
    longest_wait_of_all: Duration,
}

impl KernelLoad {
    /// Has the kernel mount `server` (`ADDRESS:/VOLUME`) and begin.
    pub(super) async fn start(mut guest: Guest, server: &str) -> anyhow::Result<Self> {
        guest.share.tell(told::SERVER, server)?;
        let line = guest.answer(told::MOUNTED, START_PATIENCE).await?;
        let version = mounted_version(&line).with_context(|| format!("not a mount of NFS: {line}"))?;
        guest.answer(told::LEDGER, START_PATIENCE).await?;
        let (files, none) = (BTreeMap::new(), Duration::ZERO);
        Ok(Self { guest, version, read: 0, files, longest_wait: none, longest_wait_of_all: none })
    }

    /// The version that is mounted.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The longest that a system call took since this was asked last, or takes now.
    pub(super) fn take_longest_wait(&mut self) -> anyhow::Result<Duration> {
        let silent = self.read_ledger()?;
        Ok(std::mem::take(&mut self.longest_wait).max(silent))
    }

    /// Errors: an error reached its program, or it has come to a stand, or the kernel has ended.
    pub(super) fn first_failure(&mut self) -> anyhow::Result<()> {
        self.guest.failure()?;
        if self.read_ledger()? > PATIENCE {
            bail!("the Linux kernel's program waits for {PATIENCE:?}; its console says:\n{}", self.guest.tail());
        }
        Ok(())
    }

    /// Reads on. Gives for how long nothing has been added.
    fn read_ledger(&mut self) -> anyhow::Result<Duration> {
        let mut ledger = File::open(self.guest.share.0.join(told::LEDGER))?;
        ledger.seek(SeekFrom::Start(self.read))?;
        let mut text = String::new();
        ledger.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..whole].lines() {
            let entry = Entry::parse(line).with_context(|| format!("the kernel's ledger says {line:?}"))?;
            self.longest_wait = self.longest_wait.max(entry.waited);
            self.longest_wait_of_all = self.longest_wait_of_all.max(entry.waited);
            entry.apply(&mut self.files);
        }
        self.read += whole as u64;
        // A clock that was set back says nothing.
        Ok(ledger.metadata()?.modified()?.elapsed().unwrap_or_default())
    }

    /// Lets the program end its round. It changes nothing more, and has given its lock back.
    pub(super) async fn stop(mut self) -> anyhow::Result<KernelJudge> {
        self.guest.share.tell(told::STOP, "")?;
        self.guest.answer(told::STOPPED, PATIENCE).await?;
        self.read_ledger()?;
        let Self { guest, version, files, longest_wait_of_all: longest_wait, .. } = self;
        Ok(KernelJudge { guest, version, files, longest_wait, verifications: 0 })
    }
}

/// A kernel that has done its work, and has the volume mounted still.
#[derive(Debug)]
pub(super) struct KernelJudge {
    guest: Guest,
    /// The version that it has mounted.
    pub(super) version: String,
    /// What it was promised: names in its directory, and what their bytes were made of.
    pub(super) files: BTreeMap<String, u64>,
    /// The longest that a system call took.
    pub(super) longest_wait: Duration,
    verifications: u32,
}

impl KernelJudge {
    /// Has the kernel forget what it has cached, and read everything back.
    pub(super) async fn verify(&mut self) -> anyhow::Result<Verified> {
        self.verifications += 1;
        self.guest.share.tell(&told::verify(self.verifications), "")?;
        parse_report(&self.guest.answer(&told::verified(self.verifications), PATIENCE).await?)
    }

    /// Has it unmount and halt.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        self.guest.share.tell(told::END, "")?;
        let ended = self.guest.answer(told::ENDED, PATIENCE).await?;
        if ended.trim() != "status 0" {
            bail!("the Linux kernel could not unmount the volume; its console says:\n{}", self.guest.tail());
        }
        let deadline = Instant::now() + END_PATIENCE;
        while runs(&mut self.guest.child) && Instant::now() < deadline {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }
}

/// The guest's first program with what it has to know.
fn init_script(client: &KernelClient, share: &Share, program: &Path) -> String {
    let settings = [
        ("SHARE", share.0.display().to_string()),
        ("PROGRAM", program.display().to_string()),
        ("ADDRESS", kernel_client_address()),
        ("MOUNT", client.mount.display().to_string()),
        ("LIBRARIES", client.libraries.clone()),
    ];
    let quoted = settings.map(|(name, value)| format!("{name}='{}'\n", value.replace('\'', r"'\''")));
    format!("#!/bin/sh\n{}{INIT}", quoted.concat())
}

/// The version that a line of /proc/mounts tells.
fn mounted_version(line: &str) -> Option<String> {
    let mut fields = line.split_whitespace().skip(2);
    let (kind, options) = (fields.next()?, fields.next()?);
    let version = options.split(',').find_map(|option| option.strip_prefix("vers="))?;
    (kind == "nfs4").then(|| version.to_owned())
}

fn on_the_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = SYSTEM_PATHS.map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|directory| directory.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_where_it_was_looked_for_and_what_to_do() {
        let empty = tempfile::tempdir().unwrap();
        let said = KernelClient::find(Some(empty.path())).unwrap_err().to_string();
        let place = empty.path().display().to_string();
        for part in ["linux.uml", &place, "cargo xtask kernel-client --uml", "--kernel-client DIR"] {
            assert!(said.contains(part), "{part} in: {said}");
        }
    }

    #[test]
    fn the_version_is_that_of_the_mount() {
        let line = "10.215.0.100:/files /run/files nfs4 rw,relatime,vers=4.2,rsize=1048576,hard,proto=tcp 0 0\n";
        assert_eq!(mounted_version(line).as_deref(), Some("4.2"));
        assert_eq!(mounted_version("none /run/share hostfs rw,vers=4.2 0 0"), None);
        assert_eq!(mounted_version(""), None);
    }

    #[test]
    fn settings_survive_the_shell() {
        let client = KernelClient { program: "/x".into(), mount: "/it's $HOME".into(), libraries: String::new() };
        let script = init_script(&client, &Share("/a b".into()), Path::new("/bin/tandem"));
        let settings = script.strip_suffix(INIT).unwrap();
        let shell =
            Command::new("sh").arg("-c").arg(format!("{settings}\nprintf '%s|%s' \"$SHARE\" \"$MOUNT\"")).output();
        assert_eq!(String::from_utf8_lossy(&shell.unwrap().stdout), "/a b|/it's $HOME");
    }
}
