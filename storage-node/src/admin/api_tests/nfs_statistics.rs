//! Figures of NFS services over real connections: any node tells them, as the primary knows them.

use proto::admin::nfs_client::NfsClient;

use super::*;
use crate::nfs::test_report::report;

/// Two nodes, and a volume of the first that is served.
async fn served_volume() -> (Served, Served) {
    let (first, second) = pair().await;
    active_volume(&first, "vm").await;
    let serve = pb::ServeNfsRequest { volume: "vm".into(), ..Default::default() };
    NfsClient::new(first.channel().await).serve(serve).await.unwrap();
    // What a majority has agreed on, the second knows, too.
    second.node.state.send_replace(first.node.state.borrow().clone());
    (first, second)
}

fn report_of(node: &Served) {
    let volume = *node.node.state.borrow().volumes.keys().next().unwrap();
    node.node.nfs_reports.lock().unwrap().insert(volume, report());
}

async fn stats(node: &Served, volume: &str, local: bool) -> Result<Vec<pb::NfsServiceStats>, tonic::Status> {
    let request = pb::NfsStatsRequest { volume: volume.into(), local };
    Ok(NfsClient::new(node.channel().await).stats(request).await?.into_inner().services)
}

async fn clients(node: &Served, volume: &str) -> Vec<pb::NfsServiceClients> {
    let request = pb::NfsClientsRequest { volume: volume.into(), local: false };
    NfsClient::new(node.channel().await).clients(request).await.unwrap().into_inner().services
}

#[tokio::test]
async fn every_node_tells_what_the_primary_knows() {
    let (first, second) = served_volume().await;
    report_of(&first);
    for node in [&first, &second] {
        let [service] = &*stats(node, "vm", false).await.unwrap() else { panic!("one service") };
        let (serving, figures) = (service.serving.as_ref().unwrap(), service.figures.as_ref().unwrap());
        assert_eq!(
            (serving.volume.as_str(), serving.primary_name.as_str(), serving.silent.as_str()),
            ("vm", "box-a", "")
        );
        assert_eq!((figures.requests, figures.delays, figures.replays_recorded), (10, 2, 2));
        let open = &figures.operations[0];
        assert_eq!((open.name.as_str(), open.count, open.errors.len()), ("OPEN", 3, 2));
        assert_eq!(open.times.as_ref().unwrap().count, 3);
        let [service] = &*clients(node, "").await else { panic!("one service") };
        let client = &service.clients[0];
        assert_eq!(
            (client.id.as_str(), client.address.as_str(), client.version.as_str()),
            ("0000000000000009", "10.0.0.7", "4.2")
        );
        assert_eq!((client.owner.as_str(), client.lease(), client.opens), ("box \"one\"?\\", pb::NfsLease::Active, 3));
    }
    assert_eq!(stats(&second, "", true).await.unwrap(), [], "of its own it has none");
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_named_with_what_to_do() {
    let (first, second) = served_volume().await;
    for node in [&first, &second] {
        let services = stats(node, "vm", false).await.unwrap();
        let silent = &services[0].serving.as_ref().unwrap().silent;
        assert!(silent.contains("does not run on box-a yet"), "{silent}");
        assert_eq!(services[0].figures, None);
    }
    drop(first);
    let services = stats(&second, "", false).await.unwrap();
    let silent = &services[0].serving.as_ref().unwrap().silent;
    assert!(silent.contains("box-a") && services[0].figures.is_none(), "{silent}");
}

#[tokio::test]
async fn volumes_that_are_not_served_have_no_figures() {
    let (first, _second) = pair().await;
    active_volume(&first, "vm").await;
    assert_eq!(stats(&first, "", false).await.unwrap(), []);
    let refused = stats(&first, "vm", false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("tandem nfs serve vm"), "{}", refused.message());
    assert_eq!(stats(&first, "gone", false).await.unwrap_err().code(), Code::NotFound);
}
