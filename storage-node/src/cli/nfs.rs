//! `tandem nfs …` and `tandem export …`: how volumes are served over NFS, and who may use them.

use std::time::Duration;

use proto::admin as pb;
use proto::admin::nfs_client::NfsClient;
use serde_json::{Value, json};

use super::exit::Failure;
use super::nfs_arguments::{AddArguments, ExportCommand, NfsCommand};
use super::session::Session;
use super::table::{Align, Table};
use super::{json, nfs_statistics, text};

pub(super) async fn run(session: &Session, command: NfsCommand) -> Result<(), Failure> {
    match command {
        NfsCommand::Serve { volume, addresses, own_address, port } => {
            let port = port.unwrap_or(0).into();
            serve(session, pb::ServeNfsRequest { volume, addresses, own_address, port }).await
        }
        NfsCommand::Stop { volume } => stop(session, &volume).await,
        NfsCommand::Clients { volume } => nfs_statistics::clients(session, volume).await,
        NfsCommand::Stats { volume, watch } => {
            nfs_statistics::stats(session, volume, watch.map(Duration::from_secs)).await
        }
    }
}

pub(super) async fn run_export(session: &Session, command: ExportCommand) -> Result<(), Failure> {
    match command {
        ExportCommand::Add(arguments) => add(session, &arguments).await,
        ExportCommand::Remove { volume, client } => remove(session, &volume, &client).await,
        ExportCommand::List { volume } => list(session, volume.unwrap_or_default()).await,
    }
}

async fn serve(session: &Session, request: pb::ServeNfsRequest) -> Result<(), Failure> {
    let request = &request;
    let reply = session.call(|channel| async move { NfsClient::new(channel).serve(request.clone()).await }).await?;
    let service = reply.service.unwrap_or_default();
    let value = json!({
        "volume": request.volume,
        "service": json::nfs_service(&service),
        "changed": reply.changed,
    });
    session.print(&value, &served_text(&request.volume, &service, reply.changed))
}

async fn stop(session: &Session, volume: &str) -> Result<(), Failure> {
    let request = &pb::StopNfsRequest { volume: volume.to_owned() };
    let reply = session.call(|channel| async move { NfsClient::new(channel).stop(request.clone()).await }).await?;
    let value = json!({ "volume": volume, "ended": reply.service.as_ref().map(json::nfs_service) });
    let text = match &reply.service {
        Some(service) => {
            let mut text = format!("Volume {volume} is not served over NFS any more.\n");
            if !service.exports.is_empty() {
                text += "Its export rules are forgotten; they were:\n";
                text.extend(service.exports.iter().map(|rule| format!("  {}\n", rule_text(rule))));
            }
            text
        }
        None => format!("Volume {volume} was not served over NFS.\n"),
    };
    session.print(&value, &text)
}

async fn add(session: &Session, arguments: &AddArguments) -> Result<(), Failure> {
    let volume = &arguments.volume;
    let request = &pb::AddExportRequest { volume: volume.clone(), rule: Some(arguments.rule()) };
    let reply =
        session.call(|channel| async move { NfsClient::new(channel).add_export(request.clone()).await }).await?;
    let value = json!({
        "volume": volume,
        "rule": reply.rule.as_ref().map(json::export_rule),
        "replaced": reply.replaced.as_ref().map(json::export_rule),
    });
    let rule = reply.rule.as_ref().map(rule_text).unwrap_or_default();
    let text = match &reply.replaced {
        None => format!("Export of {volume} added: {rule}\n"),
        Some(old) if Some(old) == reply.rule.as_ref() => format!("Export of {volume} was there already: {rule}\n"),
        Some(old) => format!("Export of {volume} changed: {rule}\n  it was: {}\n", rule_text(old)),
    };
    session.print(&value, &text)
}

async fn remove(session: &Session, volume: &str, client: &str) -> Result<(), Failure> {
    let request = &pb::RemoveExportRequest { volume: volume.to_owned(), client: client.to_owned() };
    let reply =
        session.call(|channel| async move { NfsClient::new(channel).remove_export(request.clone()).await }).await?;
    let value = json!({
        "volume": volume,
        "removed": reply.removed.as_ref().map(json::export_rule),
        "now": reply.now.as_ref().map(json::export_rule),
    });
    let now = match &reply.now {
        Some(rule) => format!("These clients still have access, by the rule: {}\n", rule_text(rule)),
        None if client == "*" => "Clients that no other rule names have no access any more.\n".to_owned(),
        None => "These clients have no access any more, but by rules for a part of them.\n".to_owned(),
    };
    session.print(&value, &format!("Export of {volume} to {client} removed. {now}"))
}

async fn list(session: &Session, volume: String) -> Result<(), Failure> {
    let request = &pb::ListExportsRequest { volume };
    let reply =
        session.call(|channel| async move { NfsClient::new(channel).list_exports(request.clone()).await }).await?;
    let volumes = reply.volumes.iter().map(|exports| {
        json!({
            "volume": exports.volume,
            "id": exports.id,
            "service": exports.service.as_ref().map(json::nfs_service),
        })
    });
    let text = match (reply.volumes.is_empty(), request.volume.as_str()) {
        (false, _) => exports_table(&reply.volumes),
        (true, "") => "No volume is served over NFS: tandem nfs serve VOLUME\n".to_owned(),
        (true, volume) => format!("Volume {volume} is not served over NFS: tandem nfs serve {volume}\n"),
    };
    session.print(&volumes.collect::<Value>(), &text)
}

fn served_text(volume: &str, service: &pb::NfsService, changed: bool) -> String {
    let was = if changed { "" } else { " already" };
    let mut text = format!("Volume {volume} is served over NFS{was}: {}\n", place_text(service));
    text += &match service.exports.len() {
        0 => format!("No client has access until: tandem export add {volume} CLIENT [--rw]\n"),
        1 => format!("It has 1 export rule: tandem export list {volume}\n"),
        count => format!("It has {count} export rules: tandem export list {volume}\n"),
    };
    text
}

/// Where a service is reached, in one line.
pub(super) fn place_text(service: &pb::NfsService) -> String {
    let addresses: Vec<String> = service.addresses.iter().map(floating_text).collect();
    match (addresses.is_empty(), service.reached_at.as_slice()) {
        (false, _) => format!("{} port {}", addresses.join(", "), service.port),
        (true, []) => format!("the primary's own address, port {}", service.port),
        (true, reached) => format!("the primary's own address, now {}", reached.join(", ")),
    }
}

fn floating_text(address: &pb::FloatingAddress) -> String {
    format!("{}/{}@{}", address.address, address.prefix_length, address.interface)
}

/// A rule in one line.
fn rule_text(rule: &pb::ExportRule) -> String {
    format!("{} {}, {}", rule.client, text::export_access(rule.access()), squash_text(rule))
}

fn squash_text(rule: &pb::ExportRule) -> String {
    match rule.squash() {
        pb::ExportSquash::None => "root is root".to_owned(),
        squash => {
            let who = if squash == pb::ExportSquash::All { "everybody" } else { "root" };
            format!("{who} is {}:{}", rule.anonymous_uid(), rule.anonymous_gid())
        }
    }
}

/// The table of `export list`; a service without rules has a line that says so.
fn exports_table(volumes: &[pb::VolumeExports]) -> String {
    let columns = ["VOLUME", "SERVED ON", "CLIENT", "ACCESS", "SQUASH"];
    let mut table = Table::new(&columns.map(|name| (name, Align::Left)));
    for exports in volumes {
        let service = exports.service.clone().unwrap_or_default();
        let place = place_text(&service);
        if service.exports.is_empty() {
            table.row([exports.volume.clone(), place, "nobody".to_owned()]);
            continue;
        }
        for rule in &service.exports {
            let access = text::export_access(rule.access()).to_owned();
            table.row([exports.volume.clone(), place.clone(), rule.client.clone(), access, squash_text(rule)]);
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> pb::NfsService {
        let address = |address: &str, prefix_length| pb::FloatingAddress {
            address: address.into(),
            prefix_length,
            interface: "eth0".into(),
        };
        pb::NfsService {
            addresses: vec![address("10.0.0.50", 24), address("fd00::50", 64)],
            port: 2049,
            ..pb::NfsService::default()
        }
    }

    fn rule(client: &str, access: pb::ExportAccess, squash: pb::ExportSquash) -> pb::ExportRule {
        pb::ExportRule {
            client: client.into(),
            access: access as i32,
            squash: squash as i32,
            anonymous_uid: Some(65534),
            anonymous_gid: Some(100),
        }
    }

    #[test]
    fn a_service_without_rules_says_that_nobody_has_access() {
        let text = served_text("data", &service(), true);
        assert!(text.contains("10.0.0.50/24@eth0, fd00::50/64@eth0 port 2049"), "{text}");
        assert!(text.contains("No client has access until: tandem export add data"), "{text}");
        let table = exports_table(&[pb::VolumeExports {
            volume: "data".into(),
            service: Some(service()),
            ..Default::default()
        }]);
        assert!(table.lines().nth(1).is_some_and(|line| line.contains("nobody")), "{table}");
    }

    #[test]
    fn each_rule_has_a_line_with_what_it_allows() {
        let exports = vec![
            rule("*", pb::ExportAccess::ReadOnly, pb::ExportSquash::All),
            rule("10.0.0.0/24", pb::ExportAccess::ReadWrite, pb::ExportSquash::Root),
            rule("10.0.0.7", pb::ExportAccess::ReadWrite, pb::ExportSquash::None),
        ];
        let service = pb::NfsService { exports, ..service() };
        let table =
            exports_table(&[pb::VolumeExports { volume: "data".into(), service: Some(service), ..Default::default() }]);
        let lines: Vec<&str> = table.lines().collect();
        assert!(
            lines[1].contains("*") && lines[1].contains("read-only") && lines[1].contains("everybody is 65534:100")
        );
        assert!(lines[2].contains("read-write") && lines[2].contains("root is 65534:100"), "{table}");
        assert!(lines[3].contains("root is root"), "{table}");
    }

    #[test]
    fn without_a_floating_address_the_primarys_own_is_told() {
        let own = pb::NfsService { port: 4000, reached_at: vec!["box-a:4000".into()], ..Default::default() };
        assert_eq!(place_text(&own), "the primary's own address, now box-a:4000");
        assert_eq!(place_text(&pb::NfsService { reached_at: vec![], ..own }), "the primary's own address, port 4000");
    }
}
