//! `cargo xtask kernel-client`: the Linux kernels that the end-to-end tests run as clients, below the target directory.
//!
//! Nothing is installed: packages are downloaded and unpacked. A stock kernel runs under software emulation; with `--uml`, a
//! user-mode Linux is built from Debian's kernel source, for processors whose registers the packaged one has no room for.
//! `tests/src/e2e/kernel_client` looks for both in [`home`], and leaves its tests out by name where neither is.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{initramfs, shell, tools};

/// What the emulator starts from, a user's side of NFS, and a foreign NFS server to prove the clients on.
const PACKAGES: &[&str] = &["qemu-system-x86", "busybox-static", "nfs-common", "nfs-ganesha-vfs"];

/// Modules of the emulated client, with parameters.
const MODULES: &[(&str, &str)] =
    &[("lockd", ""), ("nfs", ""), ("nfsv3", ""), ("nfsv4", ""), ("nbd", "nbds_max=1"), ("tls", "")];

/// The source of user-mode Linux, and what builds it beside gcc and make.
const UML_PACKAGES: &[&str] = &["linux-source-6.12", "flex", "bison"];

#[derive(Args)]
pub(crate) struct KernelClientOptions {
    /// Also build user-mode Linux, if it is not there yet (some ten minutes, 2 GB while it is built).
    #[arg(long)]
    uml: bool,
}

/// Where packages are unpacked.
pub(crate) fn packages_dir() -> PathBuf {
    shell::target_dir().join("bench/packages")
}

/// Where the tests look.
fn home() -> PathBuf {
    shell::target_dir().join("kernel-client")
}

/// Fetches and builds what is not there yet.
pub(crate) fn run(options: &KernelClientOptions) -> Result<()> {
    let (home, packages) = (home(), packages_dir());
    for directory in [&home, &packages] {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    let (home, packages) = (fs::canonicalize(home)?, fs::canonicalize(packages)?);
    emulated(&home, &packages)?;
    if options.uml {
        user_mode(&home, &packages)?;
    }
    Ok(())
}

/// A stock kernel in `root`: that of an earlier run, or the newest to be had. Gives its release (`uname -r`), and its
/// package's name if it is missing.
pub(crate) fn stock_kernel(root: &Path) -> Result<(String, Vec<String>)> {
    if let Some(release) = kept_kernel(root) {
        return Ok((release, Vec::new()));
    }
    tools::update_lists();
    let kernel = tools::newest_kernel().unwrap_or_else(|| "linux-image-VERSION-amd64".to_owned());
    let missing = tools::unpack(&[&kernel], root)?;
    Ok((kernel.trim_start_matches("linux-image-").to_owned(), missing))
}

/// The kernel that an earlier run has unpacked.
fn kept_kernel(root: &Path) -> Option<String> {
    let names = fs::read_dir(root).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let kernel = |name: String| Some(name.strip_prefix(".linux-image-")?.strip_suffix(".unpacked")?.to_owned());
    names.filter_map(kernel).max()
}

/// The kernel and the initramfs of the emulated client.
fn emulated(home: &Path, packages: &Path) -> Result<()> {
    let (release, mut missing) = stock_kernel(packages)?;
    missing.extend(tools::unpack(PACKAGES, packages)?);
    if !missing.is_empty() {
        bail!("cannot be had: {}", missing.join(" "));
    }
    let (archive, lacking) = initramfs::build(packages, &release, MODULES)?;
    fs::write(home.join("initramfs"), archive)?;
    link(&packages.join("boot").join(format!("vmlinuz-{release}")), &home.join("vmlinuz"))?;
    link(packages, &home.join("packages"))?;
    println!("emulated client: kernel {release} in {}", home.display());
    if !lacking.is_empty() {
        println!("it has no modules {}", lacking.join(" "));
    }
    Ok(())
}

/// A user-mode Linux with room for all registers of this processor.
fn user_mode(home: &Path, packages: &Path) -> Result<()> {
    let program = home.join("linux.uml");
    if program.exists() {
        println!("user-mode client: {} is there", program.display());
        return Ok(());
    }
    let missing = tools::unpack(UML_PACKAGES, packages)?;
    if !missing.is_empty() {
        bail!("cannot be had: {}", missing.join(" "));
    }
    let script = shell::workspace_root().join("tests/kernel/build-uml.sh");
    shell::run_visibly(Command::new("nice").args(["-n", "15", "sh"]).arg(script).arg(packages).arg(home))?;
    println!("user-mode client: {}", program.display());
    Ok(())
}

/// A symbolic link in place of whatever was at `at`.
fn link(to: &Path, at: &Path) -> Result<()> {
    // Fails where nothing is.
    let _ = fs::remove_file(at);
    symlink(to, at).with_context(|| format!("linking {}", at.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_kept_by_its_mark() {
        let root = tempfile::tempdir().expect("temporary directory");
        assert_eq!(kept_kernel(root.path()), None);
        fs::write(root.path().join(".linux-image-6.12.9+deb12-amd64.unpacked"), "").expect("written");
        assert_eq!(kept_kernel(root.path()).as_deref(), Some("6.12.9+deb12-amd64"));
    }
}
