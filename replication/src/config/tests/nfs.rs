//! NFS services: each guard refuses, each effect shows, and a client gets the rule that names it most precisely.

use proto::ServiceVersion;

use super::*;
use crate::config::network::{IpAddress, IpBits, Network};
use crate::config::nfs::*;
use crate::config::{NfsCommand, NfsService};

/// Another volume.
const W: VolumeId = VolumeId(8);

pub(super) fn v4(text: &str) -> IpAddress {
    IpAddress::v4(text.parse::<std::net::Ipv4Addr>().expect("an address").to_bits())
}

pub(super) fn v6(text: &str) -> IpAddress {
    IpAddress::v6(text.parse::<std::net::Ipv6Addr>().expect("an address").to_bits())
}

fn any(text: &str) -> IpAddress {
    if text.contains(':') { v6(text) } else { v4(text) }
}

pub(super) fn client(text: &str) -> Client {
    let (address, prefix_length) = text.split_once('/').expect("a network");
    Client::Network(Network::new(any(address), prefix_length.parse().expect("a length")).expect("a network"))
}

pub(super) fn rule(client: Client) -> ExportRule {
    let (anonymous_uid, anonymous_gid) = (ANONYMOUS_ID, ANONYMOUS_ID);
    ExportRule { client, access: Access::ReadOnly, squash: Squash::Root, anonymous_uid, anonymous_gid }
}

pub(super) fn floating(address: &str, prefix_length: u8) -> FloatingAddress {
    FloatingAddress { address: any(address), prefix_length, interface: "eth0".to_owned() }
}

pub(super) fn serve(addresses: &[FloatingAddress]) -> NfsCommand {
    NfsCommand::Serve { addresses: addresses.to_vec(), port: NFS_PORT }
}

impl World {
    /// Two volumes.
    pub(super) fn with_two_volumes() -> Self {
        let mut world = World::new();
        world.node_ok(create(W, "w", 1 << 20, &[A, B]));
        world
    }

    fn nfs_at(&mut self, volume: VolumeId, expect_version: ServiceVersion, command: NfsCommand) -> Outcome {
        self.requests += 1;
        let body = CommandBody::Nfs { volume, expect_version, command };
        self.state.apply(&Command { request: RequestId(self.requests), body })
    }

    fn nfs(&mut self, volume: VolumeId, command: NfsCommand) -> Outcome {
        let version = self.state.volumes.get(&volume).map_or(ServiceVersion(0), VolumeConfig::nfs_version);
        self.nfs_at(volume, version, command)
    }

    pub(super) fn nfs_ok(&mut self, volume: VolumeId, command: NfsCommand) {
        assert_eq!(self.nfs(volume, command.clone()), Outcome::Applied, "{command:?}");
    }

    fn nfs_refused(&mut self, volume: VolumeId, command: NfsCommand, why: &str) {
        let before = self.state.clone();
        match self.nfs(volume, command.clone()) {
            Outcome::Refused(reason) => assert_eq!(reason, why, "{command:?}"),
            outcome => panic!("{outcome:?}: {command:?}"),
        }
        assert_eq!(self.state, before, "a refused command changes nothing: {command:?}");
    }

    fn service(&self, volume: VolumeId) -> &NfsService {
        self.state.volumes[&volume].nfs.as_ref().expect("a service")
    }
}

#[test]
fn a_service_is_made_moved_given_rules_and_ended_and_no_replica_hears_of_it() {
    let mut world = World::with_two_volumes();
    let version = world.config().version;
    world.nfs_ok(V, serve(&[]));
    let expected = NfsService {
        version: ServiceVersion(1),
        since: ServiceVersion(1),
        addresses: Vec::new(),
        port: NFS_PORT,
        exports: ExportRules::default(),
    };
    assert_eq!(*world.service(V), expected);
    let rules = vec![rule(client("10.0.0.0/24")), rule(Client::Any)];
    world.nfs_ok(V, NfsCommand::SetExports { rules: rules.clone() });
    assert_eq!(world.service(V).exports.as_slice(), [rules[1], rules[0]], "in the order of the clients");
    let addresses = [floating("10.0.0.50", 24), floating("2001:db8::50", 64)];
    world.nfs_ok(V, NfsCommand::Serve { addresses: addresses.to_vec(), port: 4000 });
    let moved = world.service(V);
    assert_eq!((moved.addresses.as_slice(), moved.port, moved.exports.as_slice().len()), (&addresses[..], 4000, 2));
    assert_eq!((moved.version, moved.since), (ServiceVersion(3), ServiceVersion(1)), "it is the same service");
    world.nfs_ok(V, NfsCommand::Stop);
    assert_eq!((&world.config().nfs, world.config().version), (&None, version));
    world.nfs_ok(V, serve(&[]));
    assert_eq!(world.service(V).version, ServiceVersion(5), "the versions of the first service are not used again");
    assert_eq!(world.service(V).since, ServiceVersion(5), "it is another service");
    assert!(world.service(V).exports.as_slice().is_empty(), "its rules went with it");
}

#[test]
fn two_administrators_do_not_overwrite_one_another() {
    let mut world = World::with_two_volumes();
    let moved = "the volume's NFS service has changed meanwhile; look at it again";
    world.nfs_ok(V, serve(&[]));
    let seen = world.service(V).version;
    let first = NfsCommand::SetExports { rules: vec![rule(Client::Any)] };
    assert_eq!(world.nfs_at(V, seen, first), Outcome::Applied);
    for command in [NfsCommand::SetExports { rules: Vec::new() }, serve(&[]), NfsCommand::Stop] {
        for version in [seen, ServiceVersion(0), ServiceVersion(99)] {
            assert_eq!(world.nfs_at(V, version, command.clone()), Outcome::Refused(moved_text(moved)), "{command:?}");
        }
    }
    assert_eq!(world.service(V).exports.as_slice().len(), 1);
    assert_eq!(world.nfs_at(W, seen, serve(&[])), Outcome::Refused(moved_text(moved)), "there is none yet");
}

fn moved_text(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

#[test]
fn a_service_needs_a_volume_and_rules_need_a_service() {
    let mut world = World::with_two_volumes();
    world.nfs_refused(VolumeId(77), serve(&[]), "no such volume");
    let none = "the volume has no NFS service; it must be served first";
    world.nfs_refused(V, NfsCommand::SetExports { rules: Vec::new() }, none);
    world.nfs_refused(V, NfsCommand::Stop, "the volume has no NFS service");
    world.nfs_ok(W, serve(&[floating("10.0.0.50", 24)]));
    world.node_ok(NodeCommand::DeleteVolume { volume: W });
    world.nfs_refused(W, NfsCommand::Stop, "no such volume");
    world.nfs_ok(V, serve(&[floating("10.0.0.50", 24)]));
}

#[test]
fn every_bound_of_a_service_is_kept() {
    let mut world = World::with_two_volumes();
    let many = |count: u32| -> Vec<FloatingAddress> {
        (1..=count).map(|host| floating(&format!("10.0.0.{host}"), 24)).collect()
    };
    world.nfs_refused(V, serve(&many(9)), "a service has 8 floating addresses at most");
    world.nfs_refused(
        V,
        NfsCommand::Serve { addresses: Vec::new(), port: 0 },
        "port 0 is no port that clients could name",
    );
    let twice = [floating("10.0.0.1", 24), floating("::ffff:10.0.0.1", 16)];
    world.nfs_refused(V, serve(&twice), "a floating address is given twice");
    let bad_address = "a floating address must be one that a box can have, with a prefix of at least 1 bit";
    for (address, prefix_length) in
        [("0.0.0.0", 24), ("224.0.0.1", 24), ("255.255.255.255", 32), ("10.0.0.0", 24), ("10.0.0.255", 24)]
    {
        world.nfs_refused(V, serve(&[floating(address, prefix_length)]), bad_address);
    }
    for (address, prefix_length) in [("10.0.0.1", 0), ("10.0.0.1", 33), ("::", 64), ("ff02::1", 64), ("fd00::1", 129)] {
        world.nfs_refused(V, serve(&[floating(address, prefix_length)]), bad_address);
    }
    for name in ["", ".", "..", "a/b", "eth0:1", "et h0", "eth\t0", "eth\0", "0123456789abcdef", "à"] {
        let address = FloatingAddress { interface: name.to_owned(), ..floating("10.0.0.1", 24) };
        let why = "the name of a network interface has 1 to 15 bytes without spaces, '/' and ':'";
        world.nfs_refused(V, serve(&[address]), why);
    }
    world.nfs_ok(V, serve(&many(8)));
    for (address, prefix_length) in [("10.0.0.0", 31), ("10.0.0.1", 32), ("fe80::1", 64), ("fd00::", 128)] {
        let address = FloatingAddress { interface: "0123456789abcde".to_owned(), ..floating(address, prefix_length) };
        world.nfs_ok(V, serve(&[address]));
    }
    let rules =
        |count: u32| -> Vec<ExportRule> { (0..count).map(|host| rule(client(&format!("10.0.0.{host}/32")))).collect() };
    world.nfs_refused(V, NfsCommand::SetExports { rules: rules(65) }, "a service has 64 export rules at most");
    let double = vec![rule(Client::Any), ExportRule { access: Access::ReadWrite, ..rule(Client::Any) }];
    world.nfs_refused(V, NfsCommand::SetExports { rules: double }, "two export rules name the same client");
    world.nfs_ok(V, NfsCommand::SetExports { rules: rules(64) });
}

#[test]
fn no_two_services_are_in_each_others_way() {
    let mut world = World::with_two_volumes();
    world.nfs_ok(V, serve(&[floating("10.0.0.50", 24), floating("fd00::50", 64)]));
    let taken = "a floating address is in use by another volume; stop that service or choose another address";
    world.nfs_refused(W, serve(&[floating("10.0.0.50", 16)]), taken);
    world.nfs_refused(W, serve(&[floating("10.0.0.51", 24), floating("fd00::50", 128)]), taken);
    world.nfs_refused(W, serve(&[floating("::ffff:10.0.0.50", 24)]), taken);
    world.nfs_ok(V, serve(&[floating("10.0.0.50", 25)]));
    world.nfs_ok(W, serve(&[]));
    let port = "another service without a floating address has that port; choose another";
    world.nfs_refused(V, serve(&[]), port);
    world.nfs_ok(V, NfsCommand::Serve { addresses: Vec::new(), port: 2050 });
    world.nfs_refused(W, NfsCommand::Serve { addresses: Vec::new(), port: 2050 }, port);
    world.nfs_ok(W, NfsCommand::Serve { addresses: vec![floating("10.0.0.50", 24)], port: 2050 });
    world.nfs_ok(W, NfsCommand::Stop);
    world.nfs_ok(V, serve(&[floating("10.0.0.50", 24)]));
}

#[test]
fn software_that_does_not_know_services_keeps_them_away_and_is_kept_away_by_them() {
    let mut world = World::with_two_volumes();
    world.state.nodes.get_mut(&WITNESS).expect("a node").feature_levels = (1, NFS_LEVEL - 1);
    let why = "a node's software does not know NFS services; install the newer version on every node";
    world.nfs_refused(V, serve(&[]), why);
    let old = |name: &str| NodeRecord { feature_levels: (1, NFS_LEVEL - 1), ..record(name, NodeKind::Storage) };
    assert!(matches!(world.node(NodeCommand::Join { node: old("d") }), Outcome::Joined(_)));
    for record in world.state.nodes.values_mut() {
        record.feature_levels = (1, NFS_LEVEL);
    }
    world.nfs_ok(V, serve(&[]));
    world.nfs_ok(V, NfsCommand::Stop);
    let why = "the node's software does not know NFS services; install the newer version on it";
    world.node_refused(NodeCommand::Join { node: old("e") }, why);
    assert!(matches!(world.node(NodeCommand::Join { node: record("f", NodeKind::Storage) }), Outcome::Joined(_)));
}

#[test]
fn the_most_specific_rule_that_names_a_client_holds() {
    let rules = |clients: &[Client]| ExportRules::new(clients.iter().copied().map(rule).collect()).expect("rules");
    let exports = rules(&[
        client("10.0.0.0/8"),
        client("10.1.0.0/16"),
        client("10.1.2.3/32"),
        client("0.0.0.0/0"),
        client("2001:db8::/32"),
        client("2001:db8:1::/48"),
    ]);
    let of = |address: &str| exports.for_client(any(address)).map(|rule| rule.client);
    for (address, holds) in [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.4", "10.1.0.0/16"),
        ("10.2.0.1", "10.0.0.0/8"),
        ("11.0.0.1", "0.0.0.0/0"),
        ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ("::ffff:192.0.2.1", "0.0.0.0/0"),
        ("2001:db8:1::5", "2001:db8:1::/48"),
        ("2001:db8:2::5", "2001:db8::/32"),
    ] {
        assert_eq!(of(address), Some(client(holds)), "{address}");
    }
    assert_eq!(of("2001:db9::1"), None, "no rule names it");
    assert_eq!(ExportRules::default().for_client(v4("10.0.0.1")), None);
    let exports = rules(&[Client::Any, client("::/0")]);
    assert_eq!(exports.for_client(v4("10.0.0.1")).map(|rule| rule.client), Some(Client::Any));
    assert_eq!(exports.for_client(v6("::1")).map(|rule| rule.client), Some(client("::/0")));
    assert_eq!(exports.for_client(v6("::ffff:10.0.0.1")).map(|rule| rule.client), Some(Client::Any), "it is IPv4");
}

#[test]
fn squashing_changes_the_users_and_groups_that_it_names() {
    let with = |squash| ExportRule { squash, anonymous_uid: 7, anonymous_gid: 8, ..rule(Client::Any) };
    let seen = |rule: ExportRule| (rule.user(0), rule.user(1000), rule.group(0), rule.group(100));
    assert_eq!(seen(with(Squash::Root)), (7, 1000, 8, 100));
    assert_eq!(seen(with(Squash::All)), (7, 7, 8, 8));
    assert_eq!(seen(with(Squash::None)), (0, 1000, 0, 100));
}

#[test]
fn networks_have_one_form_and_hold_what_begins_with_their_prefix() {
    assert_eq!(Network::new(v4("10.0.0.1"), 24), None, "bits beyond the prefix");
    assert_eq!(Network::new(v4("10.0.0.0"), 33), None);
    assert_eq!(Network::new(v6("::"), 129), None);
    assert_eq!(Network::new(v4("0.0.0.0"), 0).map(|all| all.contains(v4("255.1.2.3"))), Some(true));
    assert_eq!(Network::new(v6("::"), 0).map(|all| all.contains(v6("ffff::1"))), Some(true));
    for prefix_length in 0..=32 {
        let network = Network::around(v4("203.0.113.77"), prefix_length).expect("a network");
        assert!(network.contains(v4("203.0.113.77")), "{prefix_length}");
        // An address whose last bit of the prefix differs is outside.
        if let (Some(shift), IpBits::V4(bits)) = (32u32.checked_sub(prefix_length.into()), v4("203.0.113.77").bits())
            && shift < 32
        {
            assert!(!network.contains(IpAddress::v4(bits ^ (1 << shift))), "{prefix_length}");
        }
    }
    for prefix_length in 0..=128 {
        let network = Network::around(v6("2001:db8::77"), prefix_length).expect("a network");
        assert!(network.contains(v6("2001:db8::77")), "{prefix_length}");
        assert_eq!(Network::new(network.address(), prefix_length), Some(network));
    }
}
