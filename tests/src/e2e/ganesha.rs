//! nfs-ganesha as an NFS server to prove kernel clients on: it exports a directory in a node's namespace.
//!
//! `cargo xtask kernel-client` unpacks it. It runs with its port mapper, in namespaces of mounts and processes of its own.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::kernel_client::packages;
use super::namespace::NamespaceNetwork;
use super::node::tail;
use super::process::Process;
use super::skip::Need;

/// What a test needs to start one.
pub const NEEDS: [Need; 3] =
    [Need::Namespaces, Need::Unpacked("usr/bin/ganesha.nfsd"), Need::Unpacked("sbin/mount.nfs")];

/// The path under which the directory is exported, in every version of the protocol.
pub const EXPORT: &str = "/vol";

const NFS_PORT: u16 = 2049;
const START_LIMIT: Duration = Duration::from_secs(60);

const START: &str = include_str!("ganesha/start.sh");

/// A running server.
#[derive(Debug)]
pub struct Ganesha {
    process: Process,
    log: PathBuf,
}

impl Ganesha {
    /// Exports `directory`, which is the root of a file system, at the node `index`. Files of the server lie in `home`.
    ///
    /// # Errors
    /// A file cannot be written, or the program cannot be started.
    ///
    /// # Panics
    /// If it does not listen in time, with its log.
    #[track_caller]
    pub fn start(network: &NamespaceNetwork, index: usize, home: &Path, directory: &Path) -> io::Result<Self> {
        let packages = packages();
        let (configuration, log) = (home.join("ganesha.conf"), home.join("ganesha.log"));
        fs::write(&configuration, settings(directory))?;
        // The namespace of processes ends with its first one, and the port mapper with it.
        let mut command = network.command_at_node(index, Path::new("unshare"));
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", START, "sh"]);
        command.arg(&packages).arg(&configuration);
        let mut server = Self { process: Process::start(command, &log)?, log };
        let address = SocketAddr::new(network.node_ip(index), NFS_PORT);
        super::wait::eventually(START_LIMIT, "nfs-ganesha listens", || {
            assert!(server.process.is_running(), "nfs-ganesha ended:\n{}", tail(&server.log()));
            network.connect_from_hub(address, Duration::from_secs(1)).map(drop::<TcpStream>).is_ok()
        });
        Ok(server)
    }

    /// The first of its processes: all others descend from it.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

/// Its configuration (ganesha-core-config(8), ganesha-export-config(8)). It never waits for clients of an earlier life.
fn settings(directory: &Path) -> String {
    format!(
        "NFS_CORE_PARAM {{ Protocols = 3, 4; NFS_Port = {NFS_PORT}; mount_path_pseudo = true; Enable_RQUOTA = false; }}
NFSv4 {{ Graceless = true; Minor_Versions = 1, 2; }}
EXPORT {{ Export_Id = 1; Path = \"{}\"; Pseudo = \"{EXPORT}\"; Access_Type = RW; Squash = No_Root_Squash;
  SecType = sys; Protocols = 3, 4; Transports = TCP; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
",
        directory.display()
    )
}
