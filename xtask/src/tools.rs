//! The foreign programs that tests and benches drive, and how to get them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

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
    Tool { package: "libnfs-utils", probe: Probe::Program("nfs-ls") },
    Tool { package: "dbench", probe: Probe::Program("dbench") },
    Tool { package: "git", probe: Probe::Program("git") },
    Tool { package: "make", probe: Probe::Program("make") },
    Tool { package: "gcc", probe: Probe::Program("cc") },
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

/// Installs the named packages that are missing (all that tests need, if `only` is empty) when it may, says so, and gives the
/// names of those that are still missing afterwards.
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

/// Downloads packages and what they need beyond what this machine has, and unpacks all into `root` without installing
/// anything: for programs that run from there, or in a guest. Gives the names of those that could not be had; what was
/// unpacked in an earlier run is kept.
pub(crate) fn unpack(packages: &[&str], root: &Path) -> Result<Vec<String>> {
    let mark = |package: &str| root.join(format!(".{package}.unpacked"));
    let lacking: Vec<&str> = packages.iter().copied().filter(|package| !mark(package).exists()).collect();
    if lacking.is_empty() {
        return Ok(Vec::new());
    }
    if !shell::program_exists("apt-get") || !shell::program_exists("dpkg") {
        return Ok(lacking.into_iter().map(str::to_owned).collect());
    }
    fs::create_dir_all(root)?;
    let root = fs::canonicalize(root)?;
    let debs = tempfile::Builder::new().prefix("debs-").tempdir_in(&root)?;
    let mut missing = Vec::new();
    for package in lacking {
        println!("unpacking {package} (downloaded, not installed)");
        let needs = Command::new("apt-get").args(["install", "-s", "--no-install-recommends", package]).output()?;
        let mut names = vec![package.to_owned()];
        // A kernel is run from its files; what it wants installed (a boot loader, an initramfs) is of no use.
        if !package.starts_with("linux-image-") {
            names.extend(installed_by(&String::from_utf8_lossy(&needs.stdout)).filter(|name| name != package));
        }
        let mut download = Command::new("apt-get");
        download.args(["download", "-q"]).args(&names).current_dir(debs.path());
        if let Err(error) = shell::output(&mut download) {
            println!("{error:#}");
            missing.push(package.to_owned());
            continue;
        }
        for deb in fs::read_dir(debs.path())? {
            let deb = deb?.path();
            shell::output(Command::new("dpkg").arg("-x").arg(&deb).arg(&root))?;
            fs::remove_file(deb)?;
        }
        fs::write(mark(package), "").with_context(|| format!("marking {package}"))?;
    }
    Ok(missing)
}

/// The packages that a simulation of `apt-get install` would install.
fn installed_by(simulation: &str) -> impl Iterator<Item = String> {
    simulation.lines().filter_map(|line| Some(line.strip_prefix("Inst ")?.split_whitespace().next()?.to_owned()))
}

/// The newest stock amd64 kernel that the package lists offer; none without such a list.
pub(crate) fn newest_kernel() -> Option<String> {
    let names = Command::new("apt-cache").args(["pkgnames", "linux-image-"]).output().ok()?;
    newest_kernel_of(&String::from_utf8_lossy(&names.stdout))
}

/// Meta packages and the flavours (cloud, rt, unsigned, debug symbols) do not count.
fn newest_kernel_of(names: &str) -> Option<String> {
    let version = |name: &str| -> Option<Vec<u64>> {
        let version = name.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
        let (upstream, build) = version.split_once(['+', '-'])?;
        if !build.trim_start_matches("deb").bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let mut numbers = upstream.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>()?;
        numbers.push(build.trim_start_matches("deb").parse().ok()?);
        Some(numbers)
    };
    names.lines().filter_map(|name| Some((version(name)?, name))).max().map(|(_, name)| name.to_owned())
}

/// Reads the package lists anew, if this user may.
pub(crate) fn update_lists() {
    if nix::unistd::geteuid().is_root() && shell::program_exists("apt-get") {
        apt_get(&["update", "-q"]);
    }
}

fn apt_get(args: &[&str]) {
    let outcome = Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").output();
    match outcome {
        Ok(output) if output.status.success() => {}
        Ok(output) => println!("apt-get {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => println!("apt-get {}: {error}", args.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_stock_kernel_is_chosen_by_number() {
        let names = "linux-image-6.12-amd64\nlinux-image-6.12.99+deb12-amd64\nlinux-image-6.12.117+deb12-amd64\n\
                     linux-image-6.13.1+deb12-rt-amd64\nlinux-image-6.13.1+deb12-cloud-amd64\nlinux-image-6.1.0-56-amd64\n\
                     linux-image-6.14.1+deb12-amd64-unsigned\nlinux-image-6.14.1+deb12-amd64-dbg\n";
        assert_eq!(newest_kernel_of(names).as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(newest_kernel_of("linux-image-amd64\n"), None);
    }

    #[test]
    fn simulated_installation_names_its_packages() {
        let simulation = "Remv qemu-utils [1:10]\nInst seabios (1.16 Debian:12 [all])\nInst libslirp0 (4.7 Debian:12 [amd64])\n\
                          Conf seabios (1.16 Debian:12 [all])\n";
        assert_eq!(installed_by(simulation).collect::<Vec<_>>(), ["seabios", "libslirp0"]);
    }
}
