//! The Nfs service over real connections: what a request makes of the replicated state, and what it says when it does not.

use proto::ServiceVersion;
use proto::admin::files_client::FilesClient;
use proto::admin::nfs_client::NfsClient;
use replication::config::{NfsCommand, Outcome};

use super::super::nfs_messages::rule_from;
use super::*;

impl Served {
    async fn nfs(&self) -> NfsClient<Channel> {
        NfsClient::new(self.channel().await)
    }

    async fn serve(&self, request: pb::ServeNfsRequest) -> Result<pb::ServeNfsReply, tonic::Status> {
        self.nfs().await.serve(request).await.map(tonic::Response::into_inner)
    }

    async fn add(&self, volume: &str, rule: pb::ExportRule) -> Result<pb::AddExportReply, tonic::Status> {
        let request = pb::AddExportRequest { volume: volume.into(), rule: Some(rule) };
        self.nfs().await.add_export(request).await.map(tonic::Response::into_inner)
    }

    async fn remove(&self, volume: &str, client: &str) -> Result<pb::RemoveExportReply, tonic::Status> {
        let request = pb::RemoveExportRequest { volume: volume.into(), client: client.into() };
        self.nfs().await.remove_export(request).await.map(tonic::Response::into_inner)
    }

    async fn exports(&self, volume: &str) -> Vec<pb::VolumeExports> {
        let request = pb::ListExportsRequest { volume: volume.into() };
        self.nfs().await.list_exports(request).await.unwrap().into_inner().volumes
    }

    fn service(&self, name: &str) -> Option<replication::config::NfsService> {
        let state = self.node.state.borrow();
        state.volumes.values().find(|config| config.name == name).unwrap().nfs.clone()
    }
}

/// Two nodes and two volumes.
async fn two_volumes() -> (Served, Served) {
    let (first, second) = pair().await;
    active_volume(&first, "vm").await;
    active_volume(&first, "home").await;
    (first, second)
}

fn at(volume: &str, addresses: &[&str]) -> pb::ServeNfsRequest {
    let address = |address: &&str| pb::FloatingAddress {
        address: (*address).into(),
        prefix_length: 24,
        interface: "eth0".into(),
    };
    pb::ServeNfsRequest {
        volume: volume.into(),
        addresses: addresses.iter().map(address).collect(),
        ..Default::default()
    }
}

fn rule(client: &str, access: pb::ExportAccess) -> pb::ExportRule {
    pb::ExportRule { client: client.into(), access: access as i32, ..Default::default() }
}

#[tokio::test]
async fn a_service_keeps_what_a_request_leaves_out_and_a_repeated_request_changes_nothing() {
    let (first, _second) = two_volumes().await;
    let made = first.serve(at("vm", &["10.0.0.50"])).await.unwrap();
    let service = made.service.unwrap();
    assert!(made.changed && service.exports.is_empty());
    assert_eq!((service.port, service.reached_at), (2049, vec!["10.0.0.50:2049".to_owned()]));
    let again = first.serve(at("vm", &["10.0.0.50"])).await.unwrap();
    assert_eq!((again.changed, again.service.unwrap().version), (false, 1));
    let port = pb::ServeNfsRequest { port: 4000, ..at("vm", &[]) };
    assert_eq!(first.serve(port).await.unwrap().service.unwrap().reached_at, ["10.0.0.50:4000"]);
    assert!(!first.serve(at("vm", &[])).await.unwrap().changed);
    let own = pb::ServeNfsRequest { own_address: true, ..at("vm", &[]) };
    let own = first.serve(own).await.unwrap().service.unwrap();
    assert_eq!((own.addresses.len(), own.port, own.version), (0, 4000, 3));
}

#[tokio::test]
async fn stopping_tells_what_was_ended_and_may_be_repeated() {
    let (first, _second) = two_volumes().await;
    first.serve(at("vm", &["10.0.0.50"])).await.unwrap();
    first.add("vm", rule("*", pb::ExportAccess::ReadOnly)).await.unwrap();
    let stop = || pb::StopNfsRequest { volume: "vm".into() };
    let mut nfs = first.nfs().await;
    let ended = nfs.stop(stop()).await.unwrap().into_inner().service.unwrap();
    assert_eq!((ended.exports.len(), first.service("vm")), (1, None));
    assert_eq!(nfs.stop(stop()).await.unwrap().into_inner().service, None);
    assert_eq!(nfs.stop(pb::StopNfsRequest { volume: "gone".into() }).await.unwrap_err().code(), Code::NotFound);
    first.serve(at("home", &["10.0.0.50"])).await.unwrap();
}

#[tokio::test]
async fn rules_are_added_replaced_and_removed_one_by_one() {
    let (first, _second) = two_volumes().await;
    let before = first.add("vm", rule("*", pb::ExportAccess::ReadOnly)).await.unwrap_err();
    assert_eq!(before.code(), Code::FailedPrecondition);
    assert!(before.message().contains("tandem nfs serve vm"), "{}", before.message());
    first.serve(at("vm", &[])).await.unwrap();
    let added = first.add("vm", rule("10.0.0.0/24", pb::ExportAccess::ReadWrite)).await.unwrap();
    assert_eq!((added.rule.as_ref().unwrap().squash(), added.replaced), (pb::ExportSquash::Root, None));
    let version = first.service("vm").unwrap().version;
    let same = first.add("vm", rule("::ffff:10.0.0.0/120", pb::ExportAccess::ReadWrite)).await.unwrap();
    assert_eq!(same.replaced, same.rule);
    assert_eq!(first.service("vm").unwrap().version, version, "nothing was proposed");
    let changed = first.add("vm", rule("10.0.0.0/24", pb::ExportAccess::ReadOnly)).await.unwrap();
    assert_eq!(changed.replaced.unwrap().access(), pb::ExportAccess::ReadWrite);
    for client in ["*", "10.0.0.0/8", "10.0.0.7"] {
        first.add("vm", rule(client, pb::ExportAccess::ReadOnly)).await.unwrap();
    }
    let still = first.remove("vm", "10.0.0.0/24").await.unwrap();
    assert_eq!(still.now.unwrap().client, "10.0.0.0/8", "the next wider network, and not a part of the one removed");
    let gone = first.remove("vm", "10.0.0.0/24").await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert!(gone.message().contains("tandem export list vm"), "{}", gone.message());
    assert_eq!(first.remove("vm", "10.0.0.0/8").await.unwrap().now.unwrap().client, "*");
    assert_eq!(first.remove("vm", "*").await.unwrap().now, None);
    let left = first.service("vm").unwrap();
    assert_eq!(left.exports.as_slice().len(), 1);
}

#[tokio::test]
async fn wrong_requests_say_what_is_allowed() {
    let (first, _second) = two_volumes().await;
    let both = pb::ServeNfsRequest { own_address: true, ..at("vm", &["10.0.0.50"]) };
    let port = pb::ServeNfsRequest { port: 65_536, ..at("vm", &[]) };
    for (request, part) in [
        (both, "leave one out"),
        (port, "1 to 65535"),
        (at("vm", &["box.example"]), "no IP address"),
        (at("vm", &["10.0.0.255"]), "a box can have"),
    ] {
        let refused = first.serve(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(part), "{}", refused.message());
    }
    assert_eq!(first.serve(at("gone", &[])).await.unwrap_err().code(), Code::NotFound);
    first.serve(at("vm", &[])).await.unwrap();
    let bits = first.add("vm", rule("10.0.0.7/24", pb::ExportAccess::ReadOnly)).await.unwrap_err();
    assert_eq!(bits.code(), Code::InvalidArgument);
    assert!(bits.message().contains("10.0.0.0/24 for the network"), "{}", bits.message());
    let nobody = pb::AddExportRequest { volume: "vm".into(), rule: None };
    assert_eq!(first.nfs().await.add_export(nobody).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_place_that_is_taken_is_refused_with_the_name_of_who_has_it() {
    let (first, _second) = two_volumes().await;
    first.serve(at("vm", &["10.0.0.50"])).await.unwrap();
    let own_port: u16 = first.address.rsplit_once(':').unwrap().1.parse().unwrap();
    let on_a_listener = pb::ServeNfsRequest { port: own_port.into(), ..at("home", &[]) };
    for (request, part) in [
        (at("home", &["10.0.0.51", "10.0.0.50"]), "tandem nfs stop vm"),
        (at("home", &["127.0.0.1"]), "the own address of box-a"),
        (on_a_listener, "box-a uses port"),
    ] {
        let refused = first.serve(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(part), "{}", refused.message());
    }
    assert_eq!(first.service("home"), None);
    first.serve(at("home", &[])).await.unwrap();
    let own = pb::ServeNfsRequest { own_address: true, ..at("vm", &[]) };
    let refused = first.serve(own).await.unwrap_err();
    assert!(refused.message().contains("home is served on port 2049"), "{}", refused.message());
}

#[tokio::test]
async fn rules_have_a_bound_that_names_a_way_out() {
    let (first, _second) = two_volumes().await;
    first.serve(at("vm", &[])).await.unwrap();
    for host in 0..64 {
        first.add("vm", rule(&format!("10.0.0.{host}"), pb::ExportAccess::ReadOnly)).await.unwrap();
    }
    let refused = first.add("vm", rule("*", pb::ExportAccess::ReadOnly)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("64 export rules"), "{}", refused.message());
    first.add("vm", rule("10.0.0.7", pb::ExportAccess::ReadWrite)).await.unwrap();
}

#[tokio::test]
async fn nothing_is_proposed_while_a_node_would_not_understand_it() {
    let (first, _second) = two_volumes().await;
    let old = NodeRecord { name: "old".into(), feature_levels: (1, 2), join_request: 77.into(), ..Default::default() };
    first.node.apply(CommandBody::Node(NodeCommand::Join { node: old }));
    let refused = first.serve(at("vm", &[])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("the software of old"), "{}", refused.message());
    assert_eq!(first.node.state.borrow().nfs_version, ServiceVersion(0));
}

#[tokio::test]
async fn a_rule_that_another_administrator_adds_meanwhile_is_kept() {
    let (first, _second) = two_volumes().await;
    first.serve(at("vm", &[])).await.unwrap();
    let id = first.node.state.borrow().volumes.values().find(|config| config.name == "vm").unwrap().id;
    let theirs = rule_from(&rule("10.1.0.0/16", pb::ExportAccess::ReadOnly)).unwrap();
    let command = NfsCommand::SetExports { rules: vec![theirs] };
    let faster = CommandBody::Nfs { volume: id, expect_version: ServiceVersion(1), command };
    *first.node.faster.lock().unwrap() = Some(faster);
    first.add("vm", rule("10.2.0.0/16", pb::ExportAccess::ReadWrite)).await.unwrap();
    let service = first.service("vm").unwrap();
    assert_eq!((service.exports.as_slice().len(), service.version), (2, ServiceVersion(3)));
    let delete = CommandBody::Node(NodeCommand::DeleteVolume { volume: id });
    *first.node.faster.lock().unwrap() = Some(delete);
    let gone = first.add("vm", rule("*", pb::ExportAccess::ReadOnly)).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound, "{}", gone.message());
}

#[tokio::test]
async fn services_are_listed_shown_and_watched() {
    let (first, _second) = two_volumes().await;
    assert!(first.exports("").await.is_empty());
    let mut watch = WatchClient::new(first.channel().await);
    let mut events = watch.events(pb::EventsRequest { volume: "vm".into() }).await.unwrap().into_inner();
    assert!(matches!(events.message().await.unwrap().unwrap().kind, Some(Kind::Snapshot(_))));
    first.serve(at("home", &["10.0.0.50"])).await.unwrap();
    first.serve(at("vm", &[])).await.unwrap();
    let change = events.message().await.unwrap().unwrap();
    assert!(matches!(&change.kind, Some(Kind::Nfs(nfs)) if nfs.version == 2 && nfs.service.is_some()), "{change:?}");
    let listed = first.exports("").await;
    assert_eq!(listed.len(), 2);
    assert_eq!(first.exports("vm").await[0].service.as_ref().unwrap().reached_at, ["files.example:2049"]);
    assert_eq!(first.exports("home").await[0].service.as_ref().unwrap().reached_at, ["10.0.0.50:2049"]);
    let request = pb::ShowVolumeRequest { volume: "vm".into() };
    let shown = first.volumes().await.show(request).await.unwrap().into_inner().summary.unwrap();
    assert_eq!(shown.nfs.unwrap().reached_at, ["files.example:2049"], "what the primary says of itself");
    let id = first.node.state.borrow().volumes.values().find(|config| config.name == "vm").unwrap().id;
    let expect_version = ServiceVersion(2);
    let stop = CommandBody::Nfs { volume: id, expect_version, command: NfsCommand::Stop };
    assert_eq!(first.node.apply(stop), Outcome::Applied);
    let ended = events.message().await.unwrap().unwrap();
    assert!(matches!(&ended.kind, Some(Kind::Nfs(nfs)) if nfs.version == 3 && nfs.service.is_none()), "{ended:?}");
    assert_eq!(first.exports("").await.len(), 1);
}

#[tokio::test]
async fn what_closes_the_filesystem_is_refused_while_the_volume_is_served() {
    let (first, _second) = two_volumes().await;
    let close = |volume: &str| {
        let request = pb::CloseFilesystemRequest { volume: volume.into() };
        async { FilesClient::new(first.channel().await).close(request).await }
    };
    assert!(close("vm").await.is_ok());
    first.serve(at("vm", &["10.0.0.50"])).await.unwrap();
    let refused = close("vm").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("tandem nfs stop vm"), "{refused}");
    let check = pb::CheckFilesystemRequest { volume: "vm".into() };
    let refused = FilesClient::new(first.channel().await).check(check).await.unwrap_err();
    assert!(refused.message().contains("cannot be checked"), "{refused}");
    let make = pb::MakeFilesystemRequest { volume: "vm".into(), force: true };
    let refused = FilesClient::new(first.channel().await).make(make).await.unwrap_err();
    assert!(refused.message().contains("given a new filesystem"), "{refused}");
    assert!(close("home").await.is_ok(), "the other one is not served");
}
