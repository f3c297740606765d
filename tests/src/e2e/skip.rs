//! Leaving a test out, by name, where the machine lacks what it needs.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use super::kernel_client::Kernel;

/// The file that collects what was left out; `cargo xtask test` sets it and prints the list at its end.
const SKIP_LOG: &str = "TANDEM_SKIP_LOG";

/// Something that a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The effective user is root.
    Root,
    /// A program on the path.
    Program(&'static str),
    /// A module that python3 can import.
    Python(&'static str),
    /// Network namespaces, bridges and veth pairs can be made.
    Namespaces,
    /// A small file system can be mounted.
    SmallDisk,
    /// A FUSE file system can be mounted.
    Fuse,
    /// A Linux kernel can run as a program.
    UserModeLinux,
    /// A Linux kernel can run in an emulated machine.
    EmulatedKernel,
    /// Either of both: `kernel_client::Kernel::choose` finds one.
    KernelClient,
    /// A file below the directory where packages are unpacked (`cargo xtask kernel-client`).
    Unpacked(&'static str),
}

impl Need {
    /// Why it is not met, or nothing.
    pub fn missing(self) -> Option<String> {
        let root = nix::unistd::geteuid().is_root();
        match self {
            Self::Root => (!root).then(|| "needs root".to_owned()),
            Self::Program(name) => find_program(name).is_none().then(|| format!("{name} is not installed")),
            Self::Python(module) => {
                let import = Command::new("python3").args(["-c", &format!("import {module}")]).output();
                let fine = import.is_ok_and(|output| output.status.success());
                (!fine).then(|| format!("python3 has no module {module}"))
            }
            Self::Namespaces if !root => Some("network namespaces need root".to_owned()),
            Self::Namespaces if find_program("ip").is_none() => Some("ip is not installed".to_owned()),
            Self::Namespaces => super::namespace::unsupported(),
            Self::SmallDisk if !root => Some("mounting needs root".to_owned()),
            Self::SmallDisk => super::small_disk::SmallDisk::unsupported(),
            Self::Fuse if !root => Some("mounting needs root".to_owned()),
            Self::Fuse => crate::torture::disk::unsupported(),
            Self::UserModeLinux => Kernel::UserMode.unsupported(),
            Self::EmulatedKernel => Kernel::Emulated.unsupported(),
            Self::KernelClient => Kernel::choose().err(),
            Self::Unpacked(file) => (!super::kernel_client::packages().join(file).exists())
                .then(|| format!("{file} is not unpacked (cargo xtask kernel-client fetches it)")),
        }
    }
}

/// Whether the test `name` can run. If not, says why: on standard output and in the skip log.
#[must_use]
pub fn require(name: &str, needs: &[Need]) -> bool {
    match needs.iter().find_map(|need| need.missing()) {
        None => true,
        Some(why) => {
            skip(name, &why);
            false
        }
    }
}

/// Records that `name` is left out.
pub fn skip(name: &str, why: &str) {
    println!("skipped: {name}: {why}");
    let Some(path) = std::env::var_os(SKIP_LOG) else { return };
    let line = format!("{name}: {why}\n");
    let written =
        OpenOptions::new().append(true).create(true).open(path).and_then(|mut log| log.write_all(line.as_bytes()));
    assert!(written.is_ok(), "the skip log cannot be written: {written:?}");
}

/// The full path of a program, looked for in the path and in the system's directories.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|directory| directory.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_has_a_reason_and_a_present_one_has_none() {
        assert!(Need::Program("no-such-program").missing().is_some_and(|why| why.contains("no-such-program")));
        assert!(Need::Python("no_such_module").missing().is_some());
        assert_eq!(Need::Program("sh").missing(), None);
        assert!(require("never written anywhere", &[]));
    }
}
