//! What people and programs do with files, as units that run in a kernel's guest on a volume mounted over NFS, while boxes and
//! processes fail under it.
//!
//! [`WORKLOADS`] lists them; each is a script of `tests/kernel/workloads`, with a verdict of its own. `rig` is the cluster, its
//! service and the guests; `faults` what goes wrong meanwhile; `locks` the proof that locks stay held; `replay` the one that our
//! own client's repeated requests are answered byte by byte as before, by the bytes that `wire` sends; `round` puts them together.

pub mod faults;
pub mod locks;
pub mod replay;
pub mod rig;
pub mod round;
pub mod wire;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::e2e::Need;

/// A version of NFS that a guest mounts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `vers=3`.
    V3,
    /// `vers=4.1`.
    V41,
    /// `vers=4.2`.
    V42,
}

impl Version {
    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::V3, Self::V41, Self::V42].into_iter().find(|version| version.to_string() == name)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V3 => "3",
            Self::V41 => "4.1",
            Self::V42 => "4.2",
        })
    }
}

/// How much of a workload is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Some seconds each.
    Short,
    /// As the scripts have it for the whole: minutes each.
    Full,
}

/// One unit.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its name, and that of its script.
    pub name: &'static str,
    /// What the host must have, since its root is the guests'.
    pub needs: &'static [Need],
    /// Programs of crates that it runs (`target/tools/bin`).
    pub tools: &'static [&'static str],
    /// All guests work in one directory together.
    pub is_shared: bool,
    /// It uses what only this version and later ones have.
    pub since: Version,
    /// The volume must have so much room in the short form, and in the whole, in MiB.
    pub room_mib: (u64, u64),
    /// How long the whole form may take, on a busy machine and with faults.
    pub limit: Duration,
}

const MINUTE: Duration = Duration::from_secs(60);

const PLAIN: Workload = Workload {
    name: "",
    needs: &[],
    tools: &[],
    is_shared: false,
    since: Version::V3,
    room_mib: (64, 512),
    limit: MINUTE.saturating_mul(15),
};

const PYTHON: Need = Need::Program("python3");

/// All of them. NFSv3 has no holes to punch, nor extended attributes.
pub const WORKLOADS: &[Workload] = &[
    Workload { name: "exactly_once", needs: &[PYTHON], limit: MINUTE.saturating_mul(60), ..PLAIN },
    Workload { name: "locks", needs: &[PYTHON], is_shared: true, ..PLAIN },
    Workload { name: "sqlite", needs: &[PYTHON, Need::Python("sqlite3")], is_shared: true, ..PLAIN },
    Workload { name: "compile", needs: &[PYTHON, Need::Program("make"), Need::Program("cc")], ..PLAIN },
    Workload { name: "git", needs: &[Need::Program("git")], ..PLAIN },
    Workload { name: "fio", needs: &[Need::Program("fio")], room_mib: (64, 2048), ..PLAIN },
    Workload { name: "dbench", needs: &[Need::Program("dbench")], ..PLAIN },
    Workload { name: "pjdfstest", tools: &["pjdfstest"], ..PLAIN },
    Workload { name: "fsx", tools: &["fsx"], ..PLAIN },
    Workload { name: "many_files", needs: &[PYTHON], room_mib: (64, 1024), limit: MINUTE.saturating_mul(40), ..PLAIN },
    Workload { name: "sparse", needs: &[PYTHON], ..PLAIN },
    Workload { name: "punch", needs: &[Need::Program("fallocate")], since: Version::V42, ..PLAIN },
    Workload { name: "xattrs", needs: &[PYTHON], since: Version::V42, ..PLAIN },
];

impl Workload {
    /// The one of this name.
    pub fn of_name(name: &str) -> Option<&'static Self> {
        WORKLOADS.iter().find(|workload| workload.name == name)
    }

    /// Whether a version has what it uses.
    pub fn applies_to(&self, version: Version) -> bool {
        match self.since {
            Version::V3 => true,
            Version::V41 => version != Version::V3,
            Version::V42 => version == Version::V42,
        }
    }

    /// Why this machine cannot run it, or nothing.
    pub fn missing(&self) -> Option<String> {
        let tools = tools();
        let lacking = self.tools.iter().find(|tool| !tools.join(tool).exists());
        self.needs
            .iter()
            .find_map(|need| need.missing())
            .or_else(|| lacking.map(|tool| format!("{tool} is not installed (cargo xtask posix installs it)")))
    }
}

/// Where scripts lie, on the host and in every guest.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel/workloads")
}

/// The cases of pjdfstest that cannot pass through NFS.
fn exceptions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("posix/pjdfstest-nfs-exceptions.txt")
}

/// Where xtask installs programs of crates: in the target directory that this program was built in.
fn tools() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let profile = own.ancestors().find(|path| path.ends_with("release") || path.ends_with("debug"));
    profile.and_then(Path::parent).map(|target| target.join("tools/bin")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_has_a_script_and_a_name_of_its_own() {
        for workload in WORKLOADS {
            assert!(scripts().join(format!("{}.sh", workload.name)).exists(), "{}", workload.name);
            assert_eq!(WORKLOADS.iter().filter(|other| other.name == workload.name).count(), 1);
        }
    }

    #[test]
    fn what_a_version_lacks_is_left_out_there() {
        let of = |version| WORKLOADS.iter().filter(move |workload| !workload.applies_to(version)).map(|left| left.name);
        assert_eq!(of(Version::V42).count(), 0);
        assert_eq!(of(Version::V41).collect::<Vec<_>>(), ["punch", "xattrs"]);
        assert_eq!(of(Version::V3).collect::<Vec<_>>(), ["punch", "xattrs"]);
        assert_eq!(Version::from_name("4.1"), Some(Version::V41));
        assert_eq!(Version::from_name("4.0"), None);
    }
}
