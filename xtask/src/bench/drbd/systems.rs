//! The two systems inside the guests: how each is set up, and how it is brought to the front for a measurement.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::guest::{Guest, inside};

/// For a command that ends by itself; an emulated machine is slow.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// Until a copy is in sync, or a cluster is healthy.
const READY_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(500);

pub(super) const PRIMARY: &str = "alpha";
pub(super) const SECONDARY: &str = "beta";
const PRIMARY_IP: &str = "10.9.0.1";
const SECONDARY_IP: &str = "10.9.0.2";

/// Both guests.
pub(super) struct Guests {
    pub(super) primary: Guest,
    pub(super) secondary: Guest,
}

impl Guests {
    /// Waits for both and connects them.
    pub(super) fn ready(&mut self) -> Result<()> {
        for (guest, ip) in [(&mut self.primary, PRIMARY_IP), (&mut self.secondary, SECONDARY_IP)] {
            guest.wait_ready()?;
            let network = format!(
                "ip link set lo up; ip addr add {ip}/24 dev eth0; ip link set eth0 up\n\
                 for disk in /sys/block/vd*; do echo none > $disk/queue/scheduler; done\n"
            );
            guest.run(&network, COMMAND_LIMIT)?;
        }
        Ok(())
    }

    fn both(&mut self, script: &str) -> Result<()> {
        self.primary.run(script, COMMAND_LIMIT)?;
        self.secondary.run(script, COMMAND_LIMIT)?;
        Ok(())
    }

    /// TCP segments that both have sent so far, and how many of them again.
    pub(super) fn segments(&mut self) -> Result<Segments> {
        let mut sum = Segments::default();
        for guest in [&mut self.primary, &mut self.secondary] {
            let seen =
                segments_in(&guest.run("cat /proc/net/snmp", COMMAND_LIMIT)?).context("no TCP in /proc/net/snmp")?;
            sum.sent += seen.sent;
            sum.sent_again += seen.sent_again;
        }
        Ok(sum)
    }
}

/// TCP segments.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Segments {
    pub(super) sent: u64,
    pub(super) sent_again: u64,
}

/// From the two lines `Tcp:` of /proc/net/snmp: names, then figures.
fn segments_in(snmp: &str) -> Option<Segments> {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
    let (names, figures) = (lines.next()?, lines.next()?);
    let named: Vec<(&str, &str)> = names.zip(figures).collect();
    let of = |wanted| named.iter().find(|(name, _)| *name == wanted)?.1.parse().ok();
    Some(Segments { sent: of("OutSegs")?, sent_again: of("RetransSegs")? })
}

/// Whether DRBD flushes its disks by itself: before each new epoch of writes on the secondary, and its metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flushes {
    /// As DRBD does unless told otherwise.
    Default,
    /// `disk-flushes no; md-flushes no`.
    Off,
}

/// A DRBD resource on both guests; needs nothing more than its device once it is set up.
pub(super) struct Drbd {
    pub(super) version: String,
}

impl Drbd {
    /// Makes the resource on `disk`, both copies equal by declaration, and the first guest primary. `utilities` is where
    /// drbd-utils is unpacked.
    pub(super) fn start(guests: &mut Guests, utilities: &Path, work: &Path, disk: &str) -> Result<Self> {
        fs::write(work.join("drbd.conf"), configuration(disk))?;
        let utilities = utilities.display();
        guests.both(&format!(
            "if [ -d {utilities}/lib/drbd ]; then cp -r {utilities}/lib/drbd /lib/; cp {utilities}/sbin/drbd* /sbin/; fi\n\
             cp {} /etc/drbd.conf\ndrbdadm create-md --force r0\ndrbdadm up r0\n",
            inside("drbd.conf")
        ))?;
        wait("DRBD connects", || Ok(state(guests)?.contains("cs:Connected")))?;
        guests.primary.run("drbdadm new-current-uuid --clear-bitmap r0/0\ndrbdadm primary r0\n", COMMAND_LIMIT)?;
        wait("DRBD is in sync", || Ok(state(guests)?.contains("ds:UpToDate/UpToDate")))?;
        let version = state(guests)?.lines().next().unwrap_or_default().to_owned();
        Ok(Self { version })
    }

    pub(super) fn set_flushes(&self, guests: &mut Guests, flushes: Flushes) -> Result<()> {
        let value = if flushes == Flushes::Off { "no" } else { "yes" };
        guests.both(&format!("drbdadm disk-options --disk-flushes={value} --md-flushes={value} r0\n"))
    }

    /// # Errors
    /// The copies are not both in sync any more: what was measured was not replicated.
    pub(super) fn check(&self, guests: &mut Guests) -> Result<()> {
        let state = state(guests)?;
        if !state.contains("cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C") {
            bail!("DRBD does not replicate any more:\n{state}");
        }
        Ok(())
    }
}

fn state(guests: &mut Guests) -> Result<String> {
    guests.primary.run("cat /proc/drbd", COMMAND_LIMIT)
}

fn configuration(disk: &str) -> String {
    format!(
        "global {{ usage-count no; }}\n\
         resource r0 {{\n  net {{ protocol C; }}\n  device /dev/drbd0 minor 0;\n  disk {disk};\n  meta-disk internal;\n  \
         on {PRIMARY} {{ address {PRIMARY_IP}:7788; }}\n  on {SECONDARY} {{ address {SECONDARY_IP}:7788; }}\n}}\n"
    )
}

/// A Tandem cluster: a storage node in each guest, the witness in the second.
pub(super) struct Tandem {
    /// The binary, as the guests see it.
    binary: String,
}

const VOLUME: &str = "vol";
const WITNESS: &str = "witness";

impl Tandem {
    /// Makes the cluster and its volume on `disk`; `state_disk` (ext4) is for the nodes' own state. It is left stopped, as
    /// after `pause`.
    pub(super) fn start(
        guests: &mut Guests,
        binary: &Path,
        work: &Path,
        disk: &str,
        state_disk: &str,
        size: u64,
    ) -> Result<Self> {
        let nodes = [(PRIMARY, PRIMARY_IP, 7400), (SECONDARY, SECONDARY_IP, 7400), (WITNESS, SECONDARY_IP, 7500)];
        for (name, ip, port) in nodes {
            let devices = if name == WITNESS { String::new() } else { format!("devices = [\"{disk}\"]\n") };
            fs::write(work.join(format!("{name}.toml")), node_configuration(name, ip, port, &devices))?;
        }
        guests.both(&format!("mkdir -p /var/tandem; mount {state_disk} /var/tandem\n"))?;
        let tandem = Self { binary: binary.display().to_string() };
        let begin = |name: &str, role: &str| {
            format!(
                "setsid {} {role} --config {} >/run/{name}.log 2>&1 &\n",
                tandem.binary,
                inside(&format!("{name}.toml"))
            )
        };
        guests.primary.run(&begin(PRIMARY, "node"), COMMAND_LIMIT)?;
        guests.secondary.run(&(begin(SECONDARY, "node") + &begin(WITNESS, "witness")), COMMAND_LIMIT)?;
        for (name, ip, port) in nodes {
            let admin = format!("{ip}:{}", port + 1);
            let answers = || Ok(tandem.cli(guests, &admin, "node status").is_ok());
            wait("the nodes answer", answers).with_context(|| format!("node {name}"))?;
            let member = format!("cluster join {PRIMARY_IP}:7401");
            tandem.cli(guests, &admin, if name == PRIMARY { "cluster init" } else { &member })?;
        }
        let create = format!("volume create {VOLUME} --size {size} --node {PRIMARY} --node {SECONDARY} --wait");
        tandem.cli(guests, &format!("{PRIMARY_IP}:7401"), &create)?;
        tandem.pause(guests)?;
        Ok(tandem)
    }

    /// Lets its processes run again, waits until the first guest serves and both copies are in sync, and connects the block
    /// device.
    pub(super) fn resume(&self, guests: &mut Guests) -> Result<()> {
        // The primary first: the others then hear of it before they take it for dead.
        let go_on = "kill -CONT $(pidof tandem)";
        guests.primary.run(go_on, COMMAND_LIMIT)?;
        guests.secondary.run(go_on, COMMAND_LIMIT)?;
        let admin = format!("{PRIMARY_IP}:7401");
        wait("Tandem is healthy", || {
            let shown = self.shown(guests)?;
            if !is_healthy(&shown) {
                return Ok(false);
            }
            if primary_of(&shown) == Some(PRIMARY) {
                return Ok(true);
            }
            // It took over while the other one was not running yet.
            self.cli(guests, &admin, &format!("volume switchover {VOLUME} --to {PRIMARY}"))?;
            Ok(false)
        })?;
        // A queue of its own order would only delay what one fio asks for.
        let connect = format!(
            "nbd-client -N {VOLUME} {PRIMARY_IP} 7409 /dev/nbd0\necho none > /sys/block/nbd0/queue/scheduler\n\
             test $(cat /sys/block/nbd0/size) -gt 0\n"
        );
        guests.primary.run(&connect, COMMAND_LIMIT)?;
        Ok(())
    }

    /// Disconnects and stops all its processes where they are: even idle they would take emulated processor time from
    /// whoever is measured next.
    pub(super) fn pause(&self, guests: &mut Guests) -> Result<()> {
        guests.primary.run("nbd-client -d /dev/nbd0 || true\nkill -STOP $(pidof tandem)\n", COMMAND_LIMIT)?;
        guests.secondary.run("kill -STOP $(pidof tandem)", COMMAND_LIMIT)?;
        Ok(())
    }

    /// # Errors
    /// The copies are not both in sync any more: what was measured was not replicated.
    pub(super) fn check(&self, guests: &mut Guests) -> Result<()> {
        let shown = self.shown(guests)?;
        if !is_healthy(&shown) || primary_of(&shown) != Some(PRIMARY) {
            bail!("Tandem does not replicate any more: {}", shown["health"]);
        }
        Ok(())
    }

    /// What the node of the first guest has logged.
    pub(super) fn log(&self, guests: &mut Guests) -> Result<String> {
        guests.primary.run(&format!("tail -n 20 /run/{PRIMARY}.log"), COMMAND_LIMIT)
    }

    fn shown(&self, guests: &mut Guests) -> Result<Value> {
        Ok(self.cli(guests, &format!("{PRIMARY_IP}:7401"), &format!("volume show {VOLUME}")).unwrap_or(Value::Null))
    }

    fn cli(&self, guests: &mut Guests, admin: &str, command: &str) -> Result<Value> {
        let script = format!("TANDEM_INSECURE_PLAINTEXT=1 {} {command} --json --admin {admin}\n", self.binary);
        let output = guests.primary.run(&script, COMMAND_LIMIT)?;
        Ok(serde_json::from_str(&output).unwrap_or(Value::Null))
    }
}

fn is_healthy(shown: &Value) -> bool {
    shown["health"]["level"] == "healthy"
}

fn primary_of(shown: &Value) -> Option<&str> {
    let replicas = shown["replicas"].as_array()?;
    replicas.iter().find(|replica| replica["role"] == "primary")?["node_name"].as_str()
}

/// Timers are five times their defaults: emulated, on two cores that three machines share, a process may not run for most
/// of a second, and that is not what is measured.
fn node_configuration(name: &str, ip: &str, port: u16, devices: &str) -> String {
    format!(
        "name = \"{name}\"\ndata_dir = \"/var/tandem/{name}\"\ninsecure_plaintext = true\n{devices}\
         [listen]\npeer = \"{ip}:{port}\"\nadmin = \"{ip}:{}\"\nnbd = \"{ip}:{}\"\n\
         [timing]\nlease_ms = 5000\ngrace_ms = 7500\nshrink_after_ms = 3000\nio_timeout_ms = 25000\n\
         [raft]\ntick_ms = 250\n",
        port + 1,
        port + 9
    )
}

fn wait(what: &str, mut until: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    while !until()? {
        if Instant::now() > deadline {
            bail!("not within {READY_LIMIT:?}: {what}");
        }
        thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_found_by_name() {
        let snmp = "Ip: Forwarding\nIp: 1\nTcp: RtoMin OutSegs RetransSegs InErrs\nTcp: 200 1186 7 0\nUdp: X\nUdp: 1\n";
        assert_eq!(segments_in(snmp), Some(Segments { sent: 1186, sent_again: 7 }));
        assert_eq!(segments_in("Tcp: OutSegs\n"), None);
    }

    #[test]
    fn health_and_primary_are_read() {
        let shown = serde_json::json!({ "health": { "level": "healthy" },
            "replicas": [{ "node_name": "alpha", "role": "secondary" }, { "node_name": "beta", "role": "primary" }] });
        assert!(is_healthy(&shown));
        assert_eq!(primary_of(&shown), Some("beta"));
        assert!(!is_healthy(&Value::Null));
        assert_eq!(primary_of(&Value::Null), None);
    }

    #[test]
    fn configurations_name_the_disk() {
        let drbd = configuration("/dev/vdb");
        assert!(drbd.contains("protocol C;") && drbd.contains("disk /dev/vdb;"));
        let node = node_configuration("alpha", "10.9.0.1", 7400, "devices = [\"/dev/vdc\"]\n");
        let parsed: toml::Table = toml::from_str(&node).expect("valid TOML");
        assert_eq!(parsed["listen"]["nbd"].as_str(), Some("10.9.0.1:7409"));
        assert_eq!(parsed["devices"][0].as_str(), Some("/dev/vdc"));
    }
}
