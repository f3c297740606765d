//! The grammar of `tandem nfs` and `tandem export`.

use clap::{Args, Subcommand, ValueEnum};
use proto::admin as pb;

use crate::net::address_text::{client_text, parse_client, parse_floating, to_std};

#[derive(Debug, Subcommand)]
pub(crate) enum NfsCommand {
    /// Serve a volume over NFS, or change where. A new service gives no client access: see `tandem export add`
    Serve {
        /// Name or id
        volume: String,
        /// A floating address, e.g. 10.0.0.50/24@eth0: it is on that interface of whichever box serves. Given up to eight
        /// times; replaces those that the service had
        #[arg(long = "address", value_name = "IP/PREFIX@INTERFACE", value_parser = floating_address)]
        addresses: Vec<pb::FloatingAddress>,
        /// No floating address from now on: clients use the primary's own
        #[arg(long, conflicts_with = "addresses")]
        own_address: bool,
        /// TCP port; default: as it is, 2049 for a new service
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        port: Option<u16>,
    },
    /// Stop serving a volume over NFS; its export rules are forgotten
    Stop {
        /// Name or id
        volume: String,
    },
    /// The clients of a volume: who they are, and what they have open and locked
    Clients {
        /// Name or id; default: all that are served
        volume: Option<String>,
    },
    /// What the service of a volume has counted since it began on its present primary
    Stats {
        /// Name or id; default: all that are served
        volume: Option<String>,
        /// Stay, and print every so many seconds what has happened since (with --json: everything), until Ctrl-C
        #[arg(long, short, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
            require_equals = true, value_parser = clap::value_parser!(u64).range(1..=3600))]
        watch: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExportCommand {
    /// Give clients access to a volume that is served, in place of the rule for the same CLIENT if there is one
    Add(AddArguments),
    /// Take the rule for CLIENT away
    Remove {
        /// Name or id
        volume: String,
        /// As in the rule: a network, an address, or '*'
        #[arg(value_parser = client)]
        client: String,
    },
    /// The volumes that are served, and who may use them
    List {
        /// Name or id; default: all
        volume: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AddArguments {
    /// Name or id
    pub(crate) volume: String,
    /// A network such as 10.0.0.0/24, an address, or '*' for everybody (quote it). The longest prefix that names a client
    /// holds
    #[arg(value_parser = client)]
    pub(crate) client: String,
    /// Read and write
    #[arg(long, conflicts_with = "ro")]
    pub(crate) rw: bool,
    /// Only read (the default)
    #[arg(long)]
    pub(crate) ro: bool,
    /// Which users act as the anonymous one
    #[arg(long, value_enum, default_value = "root")]
    pub(crate) squash: SquashMode,
    /// The anonymous user
    #[arg(long, value_name = "N", default_value_t = 65534)]
    pub(crate) anon_uid: u32,
    /// The anonymous group
    #[arg(long, value_name = "N", default_value_t = 65534)]
    pub(crate) anon_gid: u32,
}

/// Which of a client's users become the anonymous one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SquashMode {
    /// Root, as on other servers
    Root,
    /// Everybody
    All,
    /// Nobody: root on the client is root on the volume
    None,
}

impl AddArguments {
    /// The rule as a message.
    pub(crate) fn rule(&self) -> pb::ExportRule {
        let mut rule = pb::ExportRule {
            client: self.client.clone(),
            anonymous_uid: Some(self.anon_uid),
            anonymous_gid: Some(self.anon_gid),
            ..pb::ExportRule::default()
        };
        rule.set_access(if self.rw { pb::ExportAccess::ReadWrite } else { pb::ExportAccess::ReadOnly });
        rule.set_squash(match self.squash {
            SquashMode::Root => pb::ExportSquash::Root,
            SquashMode::All => pb::ExportSquash::All,
            SquashMode::None => pb::ExportSquash::None,
        });
        rule
    }
}

fn floating_address(text: &str) -> Result<pb::FloatingAddress, String> {
    let address = parse_floating(text)?;
    Ok(pb::FloatingAddress {
        address: to_std(address.address).to_string(),
        prefix_length: address.prefix_length.into(),
        interface: address.interface,
    })
}

fn client(text: &str) -> Result<String, String> {
    parse_client(text).map(client_text)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::arguments::{Arguments, Command};
    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace()).map(|arguments| arguments.command)
    }

    fn add(line: &str) -> pb::ExportRule {
        match parse(line).expect(line) {
            Command::Export(ExportCommand::Add(arguments)) => arguments.rule(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_service_has_addresses_and_a_port() {
        let line = "tandem nfs serve data --address 10.0.0.50/24@eth0 --address fd00::50/64@eth0 --port 4000";
        let Ok(Command::Nfs(NfsCommand::Serve { volume, addresses, own_address: false, port: Some(4000) })) =
            parse(line)
        else {
            panic!("not that service");
        };
        assert_eq!((volume.as_str(), addresses.len()), ("data", 2));
        assert_eq!((addresses[1].address.as_str(), addresses[1].prefix_length), ("fd00::50", 64));
        assert!(matches!(parse("tandem nfs stop data"), Ok(Command::Nfs(NfsCommand::Stop { .. }))));
    }

    #[test]
    fn a_rule_is_careful_unless_told() {
        let rule = add("tandem export add data 10.0.0.0/24");
        assert_eq!(
            (rule.client.as_str(), rule.access(), rule.squash()),
            ("10.0.0.0/24", pb::ExportAccess::ReadOnly, pb::ExportSquash::Root)
        );
        assert_eq!((rule.anonymous_uid, rule.anonymous_gid), (Some(65534), Some(65534)));
        let rule = add("tandem export add data * --rw --squash all --anon-uid 0 --anon-gid 4294967295");
        assert_eq!(
            (rule.client.as_str(), rule.access(), rule.squash()),
            ("*", pb::ExportAccess::ReadWrite, pb::ExportSquash::All)
        );
        assert_eq!((rule.anonymous_uid, rule.anonymous_gid), (Some(0), Some(u32::MAX)));
        assert_eq!(add("tandem export add data ::ffff:10.0.0.1 --ro --squash none").client, "10.0.0.1");
    }

    #[test]
    fn usage_errors_say_what_to_write() {
        for (line, part) in [
            ("tandem nfs serve data --address 10.0.0.50", "10.0.0.50/24@eth0"),
            ("tandem nfs serve data --address 10.0.0.255/24@eth0", "a box can have"),
            ("tandem nfs serve data --address 10.0.0.5/24@a-name-that-is-too-long", "1 to 15 bytes"),
            ("tandem nfs serve data --address 10.0.0.5/24@eth0 --own-address", "cannot be used with"),
            ("tandem nfs serve data --port 0", "1.."),
            ("tandem export add data 10.0.0.7/24", "10.0.0.0/24 for the network"),
            ("tandem export add data box.example", "names of hosts are not taken"),
            ("tandem export add data * --rw --ro", "cannot be used with"),
            ("tandem export add data * --squash some", "root, all, none"),
            ("tandem export add data * --anon-uid many", "--anon-uid"),
            ("tandem export remove data", "CLIENT"),
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(part), "{line}: {error}");
        }
    }
}
