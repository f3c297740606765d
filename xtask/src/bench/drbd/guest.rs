//! One emulated machine: its process, its disks, and the shell scripts that it runs for the host.
//!
//! The host writes a script into a directory that both see, and its number to the guest's console; the guest runs it, leaves
//! what it printed in that directory, and answers with the number and the exit code.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::initramfs::WORK;
use crate::shell;

/// Memory of a guest.
const MEMORY_MIB: u64 = 1024;
/// Emulated, on a busy machine, a boot takes up to a minute.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// What the guest does after its start.
const AGENT: &str = r#"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec </dev/hvc0 >/dev/hvc0
stty raw -echo
name=$(sed 's/.*guest=\([a-z]*\).*/\1/' /proc/cmdline)
hostname "$name"
mkdir -p /var/lib/drbd
cd /
echo ready
while read -r number; do
    work=/run/bench/$name-$number
    sh -e $work.sh >$work.out 2>$work.err </dev/null
    echo "done $number $?"
done
"#;

/// What all guests are started from.
pub(super) struct Machine {
    /// The unpacked packages: qemu, its firmware, the kernel.
    pub(super) root: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    /// Directory of images, sockets and consoles; paths within it are short enough for a socket.
    pub(super) home: PathBuf,
}

/// Its name, the other's name, its disks (image files, in the order of /dev/vda, vdb ...).
pub(super) struct Place<'a> {
    pub(super) name: &'static str,
    pub(super) peer: &'static str,
    pub(super) number: u8,
    pub(super) disks: &'a [PathBuf],
}

/// A running guest. It is killed when this is dropped: nothing on its disks is of use afterwards.
pub(super) struct Guest {
    name: &'static str,
    work: PathBuf,
    console: PathBuf,
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
    scripts: u32,
}

impl Guest {
    /// Starts the emulator; `wait_ready` tells when the guest can be used.
    pub(super) fn start(machine: &Machine, place: &Place) -> Result<Self> {
        let work = machine.home.join("work");
        fs::create_dir_all(&work)?;
        fs::write(work.join("agent"), AGENT)?;
        let console = machine.home.join(format!("{}.console", place.name));
        let mut command = emulator(machine, place, &console, &work);
        let mut child = command
            .current_dir(&machine.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(machine.home.join(format!("{}.emulator", place.name)))?)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (send, answers) = channel();
        // Ends with the guest.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { name: place.name, work, console, child, stdin, answers, scripts: 0 })
    }

    pub(super) fn wait_ready(&self) -> Result<()> {
        self.answer(BOOT_LIMIT, |line| line.contains("ready").then_some(())).context("the guest did not start")
    }

    /// Runs a shell script (`sh -e`) and gives what it printed.
    ///
    /// # Errors
    /// It failed (with its standard error), or did not end within `limit`.
    pub(super) fn run(&mut self, script: &str, limit: Duration) -> Result<String> {
        self.scripts += 1;
        let number = self.scripts;
        let file = |kind: &str| self.work.join(format!("{}-{number}.{kind}", self.name));
        fs::write(file("sh"), script)?;
        writeln!(self.stdin, "{number}").context("the guest has ended")?;
        self.stdin.flush()?;
        let of_this = |line: &str| answer_of(line, number);
        let code = self.answer(limit, of_this).with_context(|| format!("in guest {}: {script}", self.name))?;
        let said = |kind: &str| String::from_utf8_lossy(&fs::read(file(kind)).unwrap_or_default()).into_owned();
        if code != 0 {
            bail!("in guest {}, code {code}: {script}\n{}{}", self.name, said("out"), said("err"));
        }
        Ok(said("out"))
    }

    fn answer<T>(&self, limit: Duration, wanted: impl Fn(&str) -> Option<T>) -> Result<T> {
        loop {
            match self.answers.recv_timeout(limit) {
                Ok(line) => {
                    if let Some(found) = wanted(&line) {
                        return Ok(found);
                    }
                }
                Err(why) => {
                    let console = fs::read(&self.console).unwrap_or_default();
                    let console = String::from_utf8_lossy(&console);
                    let tail: Vec<&str> = console.lines().rev().take(10).collect();
                    let tail: Vec<&str> = tail.into_iter().rev().collect();
                    bail!("no answer within {limit:?} ({why}); its console ends with:\n{}", tail.join("\n"));
                }
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The exit code in the answer to a script.
fn answer_of(line: &str, number: u32) -> Option<i32> {
    let mut words = line.trim().strip_prefix("done ")?.split_whitespace();
    let same = words.next()?.parse::<u32>().ok()? == number;
    words.next()?.parse().ok().filter(|_| same)
}

fn emulator(machine: &Machine, place: &Place, console: &Path, work: &Path) -> Command {
    let unpacked = machine.root.join("usr/bin/qemu-system-x86_64");
    let program = if unpacked.exists() { unpacked } else { "qemu-system-x86_64".into() };
    let mut command = if shell::program_exists("setpriv") {
        // Ends with this process also where that is killed and drops nothing.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|place| machine.root.join(place));
    command.env("LD_LIBRARY_PATH", format!("{}:{}", libraries[0].display(), libraries[1].display()));
    for directory in [machine.root.clone(), PathBuf::from("/")] {
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(directory.join(firmware));
        }
    }
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", &MEMORY_MIB.to_string()]);
    command.arg("-kernel").arg(&machine.kernel).arg("-initrd").arg(&machine.initramfs);
    command.arg("-append").arg(format!("console=ttyS0 loglevel=4 panic=-1 mitigations=off guest={}", place.name));
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=control,signal=off"]);
    command.args(["-device", "virtconsole,chardev=control"]);
    let shared = "security_model=none,multidevs=remap";
    command.arg("-virtfs").arg(format!("local,path=/,mount_tag=root,readonly=on,{shared}"));
    command.arg("-virtfs").arg(format!("local,path={},mount_tag=work,{shared}", work.display()));
    for (index, disk) in place.disks.iter().enumerate() {
        command
            .arg("-drive")
            .arg(format!("if=none,id=disk{index},file={},format=raw,cache=none,aio=threads", disk.display()))
            .arg("-device")
            .arg(format!("virtio-blk-pci,drive=disk{index}"));
    }
    // Datagrams: over a stream, Nagle's algorithm adds 40 ms. The sockets lie in the working directory.
    let (own, other) = (format!("{}.net", place.name), format!("{}.net", place.peer));
    command
        .arg("-netdev")
        .arg(format!("dgram,id=net,local.type=unix,local.path={own},remote.type=unix,remote.path={other}"));
    command.arg("-device").arg(format!("virtio-net-pci,netdev=net,mac=52:54:00:00:00:{:02x}", place.number));
    command
}

/// Path of a file of the shared directory, as the guest sees it.
pub(super) fn inside(name: &str) -> String {
    format!("{WORK}/{name}")
}

/// Makes a sparse image.
pub(super) fn image(home: &Path, name: &str, size_bytes: u64) -> Result<PathBuf> {
    let path = home.join(name);
    fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?.set_len(size_bytes)?;
    Ok(path)
}

/// The same with an empty ext4 on it.
pub(super) fn ext4_image(home: &Path, name: &str, size_bytes: u64) -> Result<PathBuf> {
    let path = image(home, name, size_bytes)?;
    shell::output(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&path))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_belong_to_their_scripts() {
        assert_eq!(answer_of("done 7 0\r", 7), Some(0));
        assert_eq!(answer_of("done 7 127", 7), Some(127));
        assert_eq!(answer_of("done 6 0", 7), None);
        assert_eq!(answer_of("ready", 7), None);
    }
}
