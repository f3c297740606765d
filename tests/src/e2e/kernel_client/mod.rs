//! Real Linux kernels as clients: a guest on a tap device in the hub's namespace, which runs shell scripts for the test.
//!
//! There are two ways to one, and [`Kernel::choose`] takes the first that works here: user-mode Linux (boots in a second, runs
//! natively), and a stock kernel under software emulation (boots in ten seconds or more, and is some ten times slower).
//! Either has the host's root as its own, so that every installed program is there, and writes only to `/run`, `/tmp`,
//! `/mnt`, `/var/lib` and `$SHARE`. Scripts and their output pass through that shared directory.
//!
//! `cargo xtask kernel-client` provides the emulated kernel, and with `--uml` a user-mode Linux for processors on which the
//! packaged one cannot run programs. Nothing is downloaded here.

mod emulated;
pub mod rounds;
pub mod user_mode;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::namespace::{NamespaceNetwork, guest_address};
use super::node::tail;
use super::process::Process;

const AGENT: &str = include_str!("agent.sh");

/// A script that starts, once in a guest, what locks of NFSv3 need on the side of the client.
pub const LOCK_SERVICES: &str = include_str!("lock_services.sh");

/// Where a guest sees the shared directory.
const SHARE: &str = "/run/bench";

/// A kernel that can run as a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Linux as a program.
    UserMode,
    /// A stock kernel under software emulation: tests take their shorter form.
    Emulated,
}

impl Kernel {
    /// The faster one of those that run on this machine.
    ///
    /// # Errors
    /// Why neither does.
    pub fn choose() -> Result<Self, String> {
        let Some(no_user_mode) = user_mode::unsupported() else { return Ok(Self::UserMode) };
        let Some(no_emulated) = emulated::unsupported() else { return Ok(Self::Emulated) };
        Err(format!("{no_user_mode}; {no_emulated}"))
    }

    /// Why this one does not run here, or nothing.
    pub fn unsupported(self) -> Option<String> {
        match self {
            Self::UserMode => user_mode::unsupported(),
            Self::Emulated => emulated::unsupported(),
        }
    }

    /// How long a boot may take on a busy machine.
    fn boot_limit(self) -> Duration {
        match self {
            Self::UserMode => Duration::from_secs(60),
            Self::Emulated => Duration::from_secs(240),
        }
    }
}

/// A running kernel. It is killed when this is dropped.
#[derive(Debug)]
pub struct KernelClient {
    kernel: Kernel,
    process: Process,
    share: PathBuf,
    console: PathBuf,
    scripts: u32,
}

/// Which guest of its network one is, and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestOptions {
    /// The first is 0: it decides about address and tap device.
    pub number: u8,
    /// Memory of a user-mode one, in MiB; an emulated one has a fixed size.
    pub memory_mib: u32,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self { number: 0, memory_mib: 256 }
    }
}

/// How a script ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptOutcome {
    /// Its exit status.
    pub status: i32,
    /// What it printed, on both outputs.
    pub output: String,
}

/// A script that was handed to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScriptNumber(u32);

impl KernelClient {
    /// Boots the first guest of a network, and waits until it takes scripts. Its files lie in `home`, and stay there.
    ///
    /// # Errors
    /// As [`Self::boot_as`].
    ///
    /// # Panics
    /// As [`Self::boot_as`].
    #[track_caller]
    pub fn boot(kernel: Kernel, network: &NamespaceNetwork, home: &Path) -> io::Result<Self> {
        Self::boot_as(kernel, network, &home.join("kernel-client"), GuestOptions::default())
    }

    /// Boots a guest with the address and the tap device of its number, and waits until it takes scripts. Its files lie in
    /// the directory `here`, and stay there.
    ///
    /// # Errors
    /// A file cannot be written, or the emulator cannot be started.
    ///
    /// # Panics
    /// If the guest ends or is not up in time, with the end of its console.
    #[track_caller]
    pub fn boot_as(kernel: Kernel, network: &NamespaceNetwork, here: &Path, guest: GuestOptions) -> io::Result<Self> {
        network.add_tap_of(guest.number);
        let share = here.join("share");
        fs::create_dir_all(&share)?;
        fs::write(share.join("agent"), agent(kernel, guest.number))?;
        let console = here.join("console");
        let command = match kernel {
            Kernel::UserMode => user_mode::command(network, here, &share, guest)?,
            Kernel::Emulated => emulated::command(network, &share, &console, guest.number),
        };
        let log = if kernel == Kernel::Emulated { here.join("emulator") } else { console.clone() };
        let process = Process::start(command, &log)?;
        let mut client = Self { kernel, process, share, console, scripts: 0 };
        let ready = client.share.join("ready");
        client.wait_for_file(&ready, kernel.boot_limit(), "the guest is up");
        Ok(client)
    }

    /// Which kernel this is.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The directory that both see; `$SHARE` in scripts.
    pub fn share(&self) -> &Path {
        &self.share
    }

    /// What the kernel has printed.
    pub fn console(&self) -> String {
        fs::read(&self.console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Hands a script over, to be run by `sh -e` when all earlier ones have ended.
    ///
    /// # Panics
    /// If the shared directory cannot be written.
    #[track_caller]
    pub fn start(&mut self, script: &str) -> ScriptNumber {
        self.scripts += 1;
        let (new, path) = (self.share.join("script.new"), self.file(ScriptNumber(self.scripts), "sh"));
        let written = fs::write(&new, script).and_then(|()| fs::rename(&new, &path));
        assert!(written.is_ok(), "the shared directory: {written:?}");
        ScriptNumber(self.scripts)
    }

    /// What a script has printed so far.
    pub fn output(&self, script: ScriptNumber) -> String {
        let bytes = fs::read(self.file(script, "out")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for the end of a script.
    ///
    /// # Panics
    /// If it has not ended when `limit` is over, or the guest ends before.
    #[track_caller]
    pub fn finish(&mut self, script: ScriptNumber, limit: Duration) -> ScriptOutcome {
        let code = self.file(script, "code");
        self.wait_for_file(&code, limit, "a script in the guest ends");
        let text = fs::read_to_string(&code).unwrap_or_default();
        let Ok(status) = text.trim().parse() else { panic!("not an exit status: {text:?}") };
        ScriptOutcome { status, output: self.output(script) }
    }

    /// How a script ended, if it has.
    ///
    /// # Panics
    /// If the guest wrote no status.
    #[track_caller]
    pub fn try_finish(&mut self, script: ScriptNumber) -> Option<ScriptOutcome> {
        let code = self.file(script, "code");
        code.exists().then(|| self.finish(script, Duration::ZERO))
    }

    /// Runs a script to its end.
    ///
    /// # Panics
    /// As [`Self::finish`].
    #[track_caller]
    pub fn run(&mut self, script: &str, limit: Duration) -> ScriptOutcome {
        let number = self.start(script);
        self.finish(number, limit)
    }

    /// Runs a script that must succeed, and gives what it printed.
    ///
    /// # Panics
    /// If it fails, and as [`Self::finish`].
    #[track_caller]
    pub fn must(&mut self, script: &str, limit: Duration) -> String {
        let outcome = self.run(script, limit);
        assert_eq!(outcome.status, 0, "{script}\nprinted:\n{}\nconsole:\n{}", outcome.output, tail(&self.console()));
        outcome.output
    }

    fn file(&self, script: ScriptNumber, kind: &str) -> PathBuf {
        self.share.join(format!("{}.{kind}", script.0))
    }

    #[track_caller]
    fn wait_for_file(&mut self, path: &Path, limit: Duration, what: &str) {
        let deadline = Instant::now() + limit;
        while !path.exists() {
            let runs = self.process.is_running();
            if !runs || Instant::now() >= deadline {
                let state = if runs { "runs" } else { "has ended" };
                let printed = self.output(ScriptNumber(self.scripts));
                let console = tail(&self.console());
                panic!("waited {limit:?} in vain: {what}; it {state}\nprinted:\n{printed}\nconsole:\n{console}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The agent with what it has to know.
fn agent(kernel: Kernel, guest: u8) -> String {
    // Looking takes the emulated processor some milliseconds.
    let (device, poll) = match kernel {
        Kernel::UserMode => ("vec0", "0.05"),
        Kernel::Emulated => ("eth0", "0.3"),
    };
    let address = guest_address(guest);
    let packages = packages();
    format!(
        "SHARE={SHARE} DEVICE={device} ADDRESS={address}/24 NAME=client{guest} PACKAGES={} POLL={poll}\n{AGENT}",
        packages.display()
    )
}

/// Where `cargo xtask kernel-client` unpacks packages: the user's side of NFS, and a foreign server.
pub fn packages() -> PathBuf {
    directory().join("packages")
}

/// Where `cargo xtask kernel-client` puts kernels: in the target directory that this program was built in.
fn directory() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let profile = own.ancestors().find(|path| path.ends_with("release") || path.ends_with("debug"));
    profile.and_then(Path::parent).map(|target| target.join("kernel-client")).unwrap_or_default()
}
