//! A stock kernel in an emulated machine: one processor, 512 MiB, the host's root through 9p under an overlay in memory.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::namespace::{NamespaceNetwork, tap_of};
use super::super::skip::find_program;
use super::{directory, packages};

const MEMORY_MIB: &str = "512";
const EMULATOR: &str = "qemu-system-x86_64";

/// Why there is no such client on this machine, or nothing.
pub(super) fn unsupported() -> Option<String> {
    let home = directory();
    let lacks = ["vmlinuz", "initramfs"].iter().any(|name| !home.join(name).exists());
    if lacks {
        return Some("no emulated kernel (cargo xtask kernel-client fetches one)".to_owned());
    }
    emulator().is_none().then(|| format!("{EMULATOR} is not there (cargo xtask kernel-client fetches it)"))
}

/// The unpacked one, whose kernel is there too, or an installed one.
fn emulator() -> Option<PathBuf> {
    let unpacked = packages().join("usr/bin").join(EMULATOR);
    if unpacked.exists() { Some(unpacked) } else { find_program(EMULATOR) }
}

/// The emulator on its tap device of the hub.
pub(super) fn command(network: &NamespaceNetwork, share: &Path, console: &Path, guest: u8) -> Command {
    let home = directory();
    let packages = packages();
    let mut command = network.command_at_hub("env");
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|place| packages.join(place));
    command.arg(format!("LD_LIBRARY_PATH={}:{}", libraries[0].display(), libraries[1].display()));
    command.arg(emulator().unwrap_or_else(|| EMULATOR.into()));
    for directory in [packages.as_path(), Path::new("/")] {
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(directory.join(firmware));
        }
    }
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", MEMORY_MIB]);
    command.arg("-kernel").arg(home.join("vmlinuz")).arg("-initrd").arg(home.join("initramfs"));
    command.args(["-append", "console=ttyS0 loglevel=5 panic=-1 mitigations=off"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    let shared = "security_model=none,multidevs=remap";
    command.arg("-virtfs").arg(format!("local,path=/,mount_tag=root,readonly=on,{shared}"));
    command.arg("-virtfs").arg(format!("local,path={},mount_tag=work,{shared}", share.display()));
    command.arg("-netdev").arg(format!("tap,id=net,ifname={},script=no,downscript=no", tap_of(guest)));
    command
        .arg("-device")
        .arg(format!("virtio-net-pci,netdev=net,mac=52:54:00:00:00:{:02x}", guest.saturating_add(0x32)));
    command
}
