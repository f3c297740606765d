//! The foreign programs that tests and benches drive, and how to get them.

use std::process::Command;

use anyhow::Result;

use crate::shell;

/// A Debian package and a file of it whose presence shows that it is installed.
struct Tool {
    package: &'static str,
    probe: Probe,
}

enum Probe {
    Program(&'static str),
    /// A module that python3 can import.
    Python(&'static str),
}

const TOOLS: &[Tool] = &[
    Tool { package: "fio", probe: Probe::Program("fio") },
    Tool { package: "qemu-utils", probe: Probe::Program("qemu-img") },
    Tool { package: "qemu-system-common", probe: Probe::Program("qemu-storage-daemon") },
    Tool { package: "nbdkit", probe: Probe::Program("nbdkit") },
    Tool { package: "libnbd-bin", probe: Probe::Program("nbdcopy") },
    Tool { package: "python3-libnbd", probe: Probe::Python("nbd") },
    Tool { package: "user-mode-linux", probe: Probe::Program("linux.uml") },
    Tool { package: "kmod", probe: Probe::Program("insmod") },
    Tool { package: "e2fsprogs", probe: Probe::Program("mkfs.ext4") },
    Tool { package: "nbd-client", probe: Probe::Program("nbd-client") },
    Tool { package: "iproute2", probe: Probe::Program("ip") },
];

/// Peers that only a measurement wants: installed only if named.
const ON_DEMAND: &[Tool] = &[
    Tool { package: "glusterfs-server", probe: Probe::Program("glusterd") },
    Tool { package: "glusterfs-client", probe: Probe::Program("mount.glusterfs") },
];

impl Tool {
    fn present(&self) -> bool {
        match self.probe {
            Probe::Program(name) => shell::program_exists(name),
            Probe::Python(module) => Command::new("python3")
                .args(["-c", &format!("import {module}")])
                .output()
                .is_ok_and(|output| output.status.success()),
        }
    }
}

/// Installs the named packages that are missing (all that tests need, if `only` is empty) when it may, says so, and gives the names of
/// those that are still missing afterwards.
pub(crate) fn ensure(only: &[&str]) -> Result<Vec<&'static str>> {
    let named = |tool: &&Tool| only.contains(&tool.package);
    let wanted = || {
        let tools = TOOLS.iter().filter(move |tool| only.is_empty() || named(tool));
        tools.chain(ON_DEMAND.iter().filter(named))
    };
    let missing: Vec<&str> = wanted().filter(|tool| !tool.present()).map(|tool| tool.package).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    if nix::unistd::geteuid().is_root() && shell::program_exists("apt-get") {
        println!("installing: {}", missing.join(" "));
        apt_get(&["update", "-q"]);
        // One at a time, so that a package which this distribution lacks does not keep the others out.
        for package in &missing {
            apt_get(&["install", "-q", "-y", "--no-install-recommends", package]);
        }
    } else {
        println!("not root, or no apt-get: cannot install {}", missing.join(" "));
    }
    Ok(wanted().filter(|tool| !tool.present()).map(|tool| tool.package).collect())
}

fn apt_get(args: &[&str]) {
    let outcome = Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").output();
    match outcome {
        Ok(output) if output.status.success() => {}
        Ok(output) => println!("apt-get {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => println!("apt-get {}: {error}", args.join(" ")),
    }
}
