//! A real Linux kernel as an NBD client: user-mode Linux on a tap device in the hub's namespace.
//!
//! The guest makes ext4 on the volume, mounts it and writes synced files until it is told to stop; then it checks the file
//! system and every file's sum. It talks to the test through files in a shared directory.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::kernel_client::user_mode;
use super::namespace::{GUEST_ADDRESS, NamespaceNetwork, TAP};
use super::process::Process;

const ATTACH: &str = include_str!("uml/nbd_attach.py");
const GUEST: &str = include_str!("uml/guest.sh");

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    share: PathBuf,
    console: PathBuf,
}

impl Guest {
    /// Boots a guest that attaches `export` at `server`.
    pub fn boot(
        network: &NamespaceNetwork,
        home: &Path,
        server: (Ipv4Addr, u16),
        export: &str,
    ) -> std::io::Result<Self> {
        network.add_tap();
        let here = home.join("guest");
        let share = here.join("share");
        fs::create_dir_all(&share)?;
        fs::write(here.join("nbd_attach.py"), ATTACH)?;
        let init = here.join("guest.sh");
        fs::write(&init, GUEST)?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        let console = here.join("console");
        let program = user_mode::program().ok_or(std::io::ErrorKind::NotFound)?;
        let mut command = network.command_at_hub(&program.to_string_lossy());
        command.args([
            "mem=256M",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            "con=null",
            "con0=fd:0,fd:1",
        ]);
        command.arg(format!("vec0:transport=tap,ifname={TAP},depth=128,gro=1")).arg(format!("init={}", init.display()));
        // What follows `--` is handed to init as its arguments.
        let guest = Ipv4Addr::from(GUEST_ADDRESS).to_string();
        command.arg("--").arg(&here).arg(&share).args([&guest, &server.0.to_string(), &server.1.to_string(), export]);
        // Where it keeps its memory, and its control socket.
        command.env("TMPDIR", &here).env("HOME", &here);
        Ok(Self { process: Process::start(command, &console)?, share, console })
    }

    /// Files that the guest has written and synced so far.
    pub fn files_synced(&self) -> u64 {
        fs::read_to_string(self.share.join("count")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// How often the kernel's client got a new connection after it lost one.
    pub fn reconnects(&self) -> usize {
        self.status().lines().filter(|line| *line == "reconnected").count()
    }

    /// What the attaching program has reported.
    pub fn status(&self) -> String {
        fs::read_to_string(self.share.join("status")).unwrap_or_default()
    }

    /// The guest's console.
    pub fn console(&self) -> String {
        fs::read(&self.console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Waits until `more` further files are synced.
    #[track_caller]
    pub fn progress(&mut self, more: u64, limit: Duration) {
        let goal = self.files_synced() + more;
        super::wait::eventually(limit, "the guest writes on", || {
            assert!(self.process.is_running(), "the guest ended:\n{}", super::node::tail(&self.console()));
            self.files_synced() >= goal
        });
    }

    /// Tells the guest to stop and expects that it found everything right.
    #[track_caller]
    pub fn finish(mut self) {
        fs::write(self.share.join("stop"), "").unwrap_or_else(|error| panic!("the shared directory: {error}"));
        let ended = self.process.wait_for_end(Duration::from_secs(120));
        let console = self.console();
        assert!(
            ended && console.contains("UML:DONE"),
            "the guest failed:\n{}\n{}",
            self.status(),
            super::node::tail(&console)
        );
    }
}
