//! The command line's grammar.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::fs_arguments::FsCommand;
use super::nfs_arguments::{ExportCommand, NfsCommand};
use crate::admin::validate::{check_name, parse_size};

/// Told under `--help`, and in `docs/operations.md`.
const AFTER_HELP: &str = "Environment:
  TANDEM_ADMIN                  the node to ask, when --admin does not say
  TANDEM_INSECURE_PLAINTEXT=1   allows asking a node on another machine: there is no encryption yet
  TANDEM_LOG                    what the daemon logs, e.g. debug; default: info
  TANDEM_LOG_FORMAT             how: text, or json for an object a line; default: text

Exit codes:
  0  done
  1  failed: the node tried and could not, or the demo lost data
  2  usage: a wrong command, name, or size; nothing was done
  3  not reachable: the node, or a majority of the cluster, does not answer
  4  refused: a guard protects data, or the name is taken; the message says what would be safe
  5  timeout: no outcome in time; it may still take effect
  6  no such node, volume, copy or file; or the volume has no filesystem
  7  damaged: a verify found blocks that are not as they should be, a scrub could not mend them all, or a filesystem is
     not sound";

/// Two boxes and a witness as one reliable block store.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Admin API of the node to ask; any node will do, the command goes to the right one by itself. Default: the
    /// environment's TANDEM_ADMIN, else 127.0.0.1:7401
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub(crate) admin: Option<String>,
    /// Print JSON for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a storage node (with --config), or list, join, remove and stop nodes
    Node(NodeArguments),
    /// Run a witness: it votes and stores no data
    Witness {
        /// Configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Started by `node` and `witness`
    #[command(hide = true)]
    Worker {
        /// The supervisor's own affair
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Started by `demo --mount`, inside the Linux kernel that it boots
    #[command(hide = true)]
    DemoGuest {
        /// The directory shared with the demo
        share: PathBuf,
        /// Where the volume is mounted
        mount: PathBuf,
    },
    /// Make a cluster, join one, see how it is
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Create, show and change volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Work with the files in a volume, or make its filesystem
    #[command(subcommand)]
    Fs(FsCommand),
    /// Serve volumes over NFS
    #[command(subcommand)]
    Nfs(NfsCommand),
    /// Say which clients may use a volume over NFS, and how
    #[command(subcommand)]
    Export(ExportCommand),
    /// Last resort, on the machine of a stopped node: it goes on alone because all other voters are gone for good
    RecoverQuorum {
        /// The node's configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Another voter, attested to be off for good; name every one
        #[arg(long, value_name = "NODE", required = true)]
        lost: Vec<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Live events of all nodes, until Ctrl-C
    Watch {
        /// Only this volume
        volume: Option<String>,
    },
    /// Prove it: two nodes and a witness on this machine, load, a switchover, a kill -9, and every block verified
    Demo(DemoArguments),
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct NodeArguments {
    /// Run the node described by this file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Option<NodeCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// All nodes of the cluster
    List,
    /// The node addressed with --admin enters the cluster of MEMBER (same as `cluster join`)
    Join {
        /// Admin API of any node of the cluster
        #[arg(value_name = "MEMBER")]
        member: String,
    },
    /// Remove a node that holds no copies, for good: it returns only as a new node
    Remove {
        /// Name or number
        node: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Also if it still answers
        #[arg(long)]
        force: bool,
    },
    /// Set aside, on this machine, everything that makes the stopped node a member, so that it can join as a new one
    Reset {
        /// The node's configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// The node addressed with --admin: who it is and how it runs
    Status,
    /// Stop the node addressed with --admin in order: its volumes switch over first
    Stop,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make the node addressed with --admin the first of a new cluster
    Init,
    /// The node addressed with --admin enters the cluster of MEMBER
    Join {
        /// Admin API of any node of the cluster
        #[arg(value_name = "MEMBER")]
        member: String,
    },
    /// Health, nodes and volumes
    Status,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AckPolicy {
    /// Complete on both disks; the client's flush puts it on both media
    Flush,
    /// Every write is on both media
    Durable,
}

/// A filesystem that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FilesystemKind {
    /// With a journal; any Linux can mount it, too
    Ext4,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume
    Create {
        /// Up to 63 letters, digits, '-', '_' and '.'; also the NBD export's name
        #[arg(value_parser = volume_name)]
        name: String,
        /// Such as 20G (binary units); 1 MiB to 16 TiB, a multiple of 4 KiB
        #[arg(long, value_parser = parse_size)]
        size: u64,
        /// Node for a copy, given once or twice; the first becomes primary. Default: the two storage nodes
        #[arg(long = "node", value_name = "NODE")]
        nodes: Vec<String>,
        /// When a write is acknowledged
        #[arg(long, value_enum, default_value = "flush")]
        ack: AckPolicy,
        /// Write the backing files once in full, so that space is reserved and no later write allocates
        #[arg(long)]
        preallocate: bool,
        /// Make a filesystem in it; waits, with a progress bar, until that is done. At least 16M
        #[arg(long, value_enum, value_name = "KIND")]
        fs: Option<FilesystemKind>,
        /// Wait, with a progress bar, until it serves
        #[arg(long)]
        wait: bool,
    },
    /// All volumes
    List,
    /// One volume: health, copies, resync, checksum errors, scrubs
    Show {
        /// Name or id
        volume: String,
        /// Stay, with progress bars, until it is healthy or Ctrl-C
        #[arg(long)]
        follow: bool,
    },
    /// Delete a volume and its data on every copy
    Delete {
        /// Name or id
        volume: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Hand the primary role over, planned: nothing is lost, clients reconnect
    Switchover {
        /// Name or id
        volume: String,
        /// The new primary; default: the other in-sync copy
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Give up after this many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
        timeout: u32,
    },
    /// Last resort: make an outdated copy primary. Without --token it only tells what may be lost
    ForcePrimary {
        /// Name or id
        volume: String,
        /// The copy that shall serve
        #[arg(long, value_name = "NODE", required_unless_present = "token")]
        to: Option<String>,
        /// The node that you attest to be off; default: the recorded primary
        #[arg(long, value_name = "NODE", conflicts_with = "token")]
        attest_off: Option<String>,
        /// From the first step
        #[arg(long)]
        token: Option<u64>,
    },
    /// Read every copy in sync whole, compare the checksums, and mend what is wrong from the good copy. Stays, with a
    /// progress bar, until it is done; clients go first
    Scrub {
        /// Name or id
        volume: String,
        /// Return at once; it goes on in the background, see `volume show`
        #[arg(long)]
        no_wait: bool,
    },
    /// The same as `scrub`, but only report what is wrong and mend nothing
    Verify {
        /// Name or id
        volume: String,
        /// Return at once; it goes on in the background, see `volume show`
        #[arg(long)]
        no_wait: bool,
    },
    /// Stop using a node's copy, e.g. before work on its disk. A primary goes on serving through the other copy; the last
    /// copy in sync is not detached
    Detach {
        /// Name or id
        volume: String,
        /// Whose copy
        #[arg(long)]
        node: String,
    },
    /// Use a detached or repaired copy again. Only what it lacks is resynced, if it is still the same copy; if its node is
    /// primary, the other one becomes primary first
    Attach {
        /// Name or id
        volume: String,
        /// Whose copy
        #[arg(long)]
        node: String,
    },
    /// Add a copy; it is resynced in the background
    AddReplica {
        /// Name or id
        volume: String,
        /// Where
        #[arg(long)]
        node: String,
    },
    /// Give the place of a dead copy to another node, and stay until the new copy is in sync. May be repeated
    Replace {
        /// Name or id
        volume: String,
        /// The node whose copy is dead
        #[arg(long, value_name = "NODE")]
        old: String,
        /// The node that gets a copy
        #[arg(long, value_name = "NODE")]
        new: String,
        /// Return at once; the resync goes on in the background
        #[arg(long)]
        no_wait: bool,
    },
    /// Remove a copy that is neither primary nor in sync
    RemoveReplica {
        /// Name or id
        volume: String,
        /// Whose copy
        #[arg(long)]
        node: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// Seconds of load, at least 8
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(8..=86_400))]
    pub(crate) seconds: u64,
    /// Work in this directory (made if missing, must be empty) and keep it, logs included
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Also have a real Linux kernel (user-mode Linux) mount the files over NFS 4.2, from a floating address; needs root
    #[arg(long)]
    pub(crate) mount: bool,
    /// With --mount: where linux.uml is. Default: target/kernel-client, else the path
    #[arg(long, value_name = "DIR", requires = "mount")]
    pub(crate) kernel_client: Option<PathBuf>,
}

fn volume_name(text: &str) -> Result<String, String> {
    check_name("volume name", text)?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_grammar_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn node_alone_is_the_daemon_and_node_join_is_a_command() {
        let daemon = parse("tandem node --config /etc/tandem.toml").unwrap();
        assert!(matches!(daemon.command, Command::Node(NodeArguments { config: Some(_), command: None })));
        let join = parse("tandem --admin 10.0.0.2:7401 node join 10.0.0.1:7401").unwrap();
        assert_eq!(join.admin.as_deref(), Some("10.0.0.2:7401"));
        let Command::Node(NodeArguments { config: None, command: Some(NodeCommand::Join { member }) }) = join.command
        else {
            panic!("not a join");
        };
        assert_eq!(member, "10.0.0.1:7401");
        assert!(parse("tandem node").is_err());
        assert!(parse("tandem node --config x list").is_err());
    }

    #[test]
    fn the_worker_gets_its_arguments_untouched() {
        let Command::Worker { arguments } = parse("tandem worker --config a.toml --fd 3 -- x").unwrap().command else {
            panic!("not a worker");
        };
        assert_eq!(arguments[..4], ["--config", "a.toml", "--fd", "3"]);
    }

    #[test]
    fn volume_create_reads_units_and_places() {
        let line = "tandem volume create vm --size 20G --node box-a --node box-b --ack durable --preallocate --wait";
        let Command::Volume(VolumeCommand::Create { name, size, nodes, ack, preallocate, fs: None, wait }) =
            parse(line).unwrap().command
        else {
            panic!("not a create");
        };
        assert_eq!((name.as_str(), size, nodes.len(), preallocate, wait), ("vm", 20 << 30, 2, true, true));
        assert!(matches!(ack, AckPolicy::Durable));
    }

    #[test]
    fn usage_errors_exit_with_2_and_say_what_is_allowed() {
        for (line, part) in [
            ("tandem volume create a/b --size 1G", "1 to 63 letters"),
            ("tandem volume create vm --size 17T", "1 MiB to 16 TiB"),
            ("tandem volume create vm --size many", "for example 20G"),
            ("tandem volume create vm", "--size"),
            ("tandem volume force-primary vm", "--to"),
            ("tandem volume switchover vm --timeout 0", "1..=3600"),
            ("tandem demo --seconds 1", "8.."),
            ("tandem demo --kernel-client /opt/kernel", "--mount"),
            ("tandem volume create vm --size 1G --fs xfs", "ext4"),
            ("tandem fs ls /a/b", "VOLUME:PATH"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn json_and_admin_may_stand_anywhere() {
        let arguments = parse("tandem volume list --json --admin h:1").unwrap();
        assert!(arguments.json);
        assert_eq!(arguments.admin.as_deref(), Some("h:1"));
    }

    #[test]
    fn force_takes_a_node_or_a_token() {
        assert!(parse("tandem volume force-primary vm --to box-b").is_ok());
        assert!(parse("tandem volume force-primary vm --to box-b --attest-off box-a").is_ok());
        assert!(parse("tandem volume force-primary vm --token 77").is_ok());
        assert!(parse("tandem volume force-primary vm --attest-off box-a --token 77").is_err());
    }
}
