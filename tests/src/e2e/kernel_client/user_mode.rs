//! User-mode Linux: the one that `cargo xtask kernel-client --uml` builds, or the packaged one.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::super::namespace::{NamespaceNetwork, tap_of};
use super::super::skip::find_program;
use super::{GuestOptions, SHARE, directory};

const INIT: &str = include_str!("user_mode.sh");
const PROGRAM: &str = "linux.uml";
/// What a kernel says that is built for processors with less floating-point state than this one (AMX, for instance): it
/// boots, and cannot start any program.
const TOO_MUCH_STATE: &str = "ptrace set fp regs failed";
/// Seconds that a kernel gets to find that out.
const PROBE_SECONDS: &str = "30";

/// The program, if there is one.
pub fn program() -> Option<PathBuf> {
    let built = directory().join(PROGRAM);
    if built.exists() { Some(built) } else { find_program(PROGRAM) }
}

/// Why programs cannot run in such a guest on this machine, or nothing. Found out once, by booting one.
pub fn unsupported() -> Option<String> {
    static FOUND: OnceLock<Option<String>> = OnceLock::new();
    FOUND.get_or_init(probe).clone()
}

fn probe() -> Option<String> {
    let Some(program) = program() else { return Some(format!("{PROGRAM} is not installed")) };
    let mut command = Command::new("timeout");
    command.arg(PROBE_SECONDS).arg(program);
    // With much less memory it may have too few threads, and hang.
    command.args(["mem=256M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]);
    // It ends with its init, whatever that did.
    command.args(["con=null", "con0=null,fd:1", "init=/bin/true"]).stdin(Stdio::null());
    let home = match tempfile::tempdir() {
        Ok(home) => home,
        Err(error) => return Some(format!("no directory for {PROGRAM}: {error}")),
    };
    command.env("HOME", home.path()).env("TMPDIR", home.path());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return Some(format!("{PROGRAM} cannot be started: {error}")),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    said.contains(TOO_MUCH_STATE).then(|| {
        format!(
            "{PROGRAM} cannot run programs on this processor, which has more state than it knows ({TOO_MUCH_STATE}; \
             cargo xtask kernel-client --uml builds one that does)"
        )
    })
}

/// The guest on its tap device of the hub; `here` takes its first program and its memory's file.
pub(super) fn command(
    network: &NamespaceNetwork,
    here: &Path,
    share: &Path,
    guest: GuestOptions,
) -> io::Result<Command> {
    let init = here.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let program = program().unwrap_or_else(|| PROGRAM.into());
    let mut command = network.command_at_hub(&program.to_string_lossy());
    command.arg(format!("mem={}M", guest.memory_mib));
    command.args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "con=null", "con0=null,fd:1"]);
    let tap = tap_of(guest.number);
    command.arg(format!("vec0:transport=tap,ifname={tap},depth=128,gro=1")).arg(format!("init={}", init.display()));
    // What follows `--` is handed to init as its arguments.
    command.arg("--").arg(share).arg(SHARE);
    // Where it keeps its memory, and its control socket.
    command.env("TMPDIR", here).env("HOME", here);
    Ok(command)
}
