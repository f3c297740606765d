//! What a guest starts with: an archive of a static busybox, the kernel's modules, and a script that makes the host's root
//! its own, under an overlay in memory.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// What no guest can do without, in the order in which it is loaded. CRC32C first: libcrc32c looks for an implementation
/// when it is loaded, and modules.dep does not tell.
const MODULES: &[&str] = &["crc32c_generic", "virtio_net", "virtio_blk", "9pnet_virtio", "9p", "overlay", "ext4"];

/// Where the guest finds the directory that it shares with the host (the 9p mount tag `work`). The host's root has the tag
/// `root`. When both are mounted, the guest becomes `sh WORK/agent`.
pub(crate) const WORK: &str = "/run/bench";

const MODE_DIRECTORY: u32 = 0o040_755;
const MODE_PROGRAM: u32 = 0o100_755;
const MODE_FILE: u32 = 0o100_644;

/// Builds the archive from the unpacked packages in `root`, for the kernel of that release (`uname -r`), with the modules
/// `wanted` and their parameters. Gives the archive and the names of those of `wanted` that this kernel lacks.
///
/// # Errors
/// busybox, or a module that no guest can do without, is missing or cannot be unpacked.
pub(crate) fn build<'a>(root: &Path, release: &str, wanted: &[(&'a str, &'a str)]) -> Result<(Vec<u8>, Vec<&'a str>)> {
    let busybox = root.join("bin/busybox");
    let modules = root.join("lib/modules").join(release);
    shell::output(Command::new("depmod").arg("-b").arg(root).arg(release))?;
    let dependencies = fs::read_to_string(modules.join("modules.dep")).context("reading modules.dep")?;
    let mut files = Vec::new();
    for name in MODULES {
        for file in load_order(&dependencies, name).with_context(|| format!("the kernel has no module {name}"))? {
            push_once(&mut files, (file, ""));
        }
    }
    let mut lacking = Vec::new();
    for (name, parameters) in wanted {
        match load_order(&dependencies, name) {
            Some(order) => {
                let last = order.len() - 1;
                for (index, file) in order.into_iter().enumerate() {
                    push_once(&mut files, (file, if index == last { parameters } else { "" }));
                }
            }
            None => lacking.push(*name),
        }
    }
    let mut archive = Archive::default();
    for directory in ["bin", "modules"] {
        archive.add(directory, MODE_DIRECTORY, &[]);
    }
    archive.add("bin/busybox", MODE_PROGRAM, &fs::read(&busybox).context("reading the static busybox")?);
    let mut load = String::new();
    for (index, (file, parameters)) in files.iter().enumerate() {
        let inside = format!("modules/{index}.ko");
        archive.add(&inside, MODE_FILE, &unpacked(&busybox, &modules.join(file))?);
        let _ = writeln!(load, "$b insmod /{inside} {parameters} || echo \"cannot load {file}\"");
    }
    archive.add("init", MODE_PROGRAM, script(&load).as_bytes());
    Ok((archive.finish(), lacking))
}

fn push_once<'a>(files: &mut Vec<(String, &'a str)>, entry: (String, &'a str)) {
    if files.iter().all(|(file, _)| *file != entry.0) {
        files.push(entry);
    }
}

/// The files to load for a module, itself last; none if modules.dep does not know it.
fn load_order(dependencies: &str, module: &str) -> Option<Vec<String>> {
    let is = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or(path).split(".ko").next().unwrap_or(path);
        name.replace('-', "_") == module
    };
    let (file, needs) = dependencies.lines().filter_map(|line| line.split_once(':')).find(|(file, _)| is(file))?;
    // depmod names what is needed first last.
    let mut order: Vec<String> = needs.split_whitespace().rev().map(str::to_owned).collect();
    order.push(file.to_owned());
    Some(order)
}

fn unpacked(busybox: &Path, module: &Path) -> Result<Vec<u8>> {
    match module.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => fs::read(module).with_context(|| format!("reading {}", module.display())),
        Some("xz") => Ok(shell::output(Command::new(busybox).arg("xzcat").arg(module))?.stdout),
        _ => bail!("{} is packed in a way that is not known here", module.display()),
    }
}

/// The first program of the guest. `load` loads the modules.
fn script(load: &str) -> String {
    format!(
        r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /lower /upper /root
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
{load}
# Nothing changes on the host meanwhile, so that what was read once may be kept.
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose root /lower
$b mount -t tmpfs tmpfs /upper
$b mkdir -p /upper/changes /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/changes,workdir=/upper/work overlay /root
for d in proc sys dev; do $b mkdir -p /root/$d; $b mount --move /$d /root/$d; done
$b mkdir -p /root/run
$b mount -t tmpfs tmpfs /root/run
$b mkdir -p /root{WORK} /root/run/lock
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 work /root{WORK}
exec $b switch_root /root /bin/sh {WORK}/agent
"#
    )
}

/// A cpio archive in the form that the kernel unpacks ("newc"; kernel documentation, driver-api/early-userspace/
/// buffer-format).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let size = data.len();
        let mut header = String::from("070701");
        // Inode, mode, user, group, links, time, size, two device numbers twice, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
        for field in fields {
            let _ = write!(header, "{field:08X}");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_after_what_they_need() {
        let dependencies = "kernel/a/overlay.ko.xz:\n\
                            kernel/n/9p.ko.xz: kernel/n/9pnet.ko.xz kernel/n/netfs.ko.xz\n\
                            kernel/x/crc32c-intel.ko:\n";
        let order = load_order(dependencies, "9p").expect("known");
        assert_eq!(order, ["kernel/n/netfs.ko.xz", "kernel/n/9pnet.ko.xz", "kernel/n/9p.ko.xz"]);
        assert_eq!(load_order(dependencies, "crc32c_intel").expect("known"), ["kernel/x/crc32c-intel.ko"]);
        assert_eq!(load_order(dependencies, "drbd"), None);
    }

    #[test]
    fn archive_has_aligned_entries_and_a_trailer() {
        let mut archive = Archive::default();
        archive.add("ab", MODE_FILE, b"12345");
        let bytes = archive.finish();
        // A header of 110 bytes, the name with its zero, and both parts padded to 4.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..113], b"ab\0");
        assert_eq!(&bytes[116..121], b"12345");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(&bytes[234..244], b"TRAILER!!!");
        assert_eq!(bytes.len() % 4, 0);
    }
}
