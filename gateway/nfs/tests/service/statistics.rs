//! What a service tells of itself: what was asked of it, by whom, and how retries were answered.

use std::rc::Rc;

use block_device::RamDevice;
use gateway_nfs::service::Service;
use gateway_nfs::statistics::Work;
use gateway_nfs::statistics::report::{LeaseState, OperationReport, Report};

use crate::world::{
    Client, get_handle, local_origin, lock, lookup, make_directory, open, put_handle, read, run, serve,
    stateid_and_handle, volume, write,
};

fn operation<'a>(report: &'a Report, name: &str) -> &'a OperationReport {
    report.operations.iter().find(|operation| operation.name == name).expect("it was asked for")
}

/// Nothing is under way, and every compound is in one class of time.
fn expect_settled(service: &Service<Rc<RamDevice>>) -> Report {
    let report = service.report();
    assert_eq!(report.totals.requests_in_flight, 0);
    let timed: u64 = report.operations.iter().map(|operation| operation.time.count()).sum();
    let replays = report.replays.kept + report.replays.recorded;
    assert_eq!(timed + replays, report.totals.compounds);
    report
}

#[test]
fn operations_errors_data_and_what_clients_hold_are_told() {
    run(async {
        let device = volume();
        let service = serve(&device).await;
        let mut client = Client::new(&service, "one").await;
        let root = client.root().await;
        let made = client.call(&[put_handle(&root), open("me", "file", true), get_handle()]).await;
        let (stateid, file) = stateid_and_handle(&made, true);
        assert_eq!(client.call(&[put_handle(&file), write(&stateid, 0, 2, b"ten bytes!")]).await.status, 0);
        assert_eq!(client.call(&[put_handle(&file), read(&stateid, 0, 4)]).await.status, 0);
        assert_eq!(client.call(&[put_handle(&file), lock(&stateid, "locker", 0, 5)]).await.status, 0);
        for _ in 0..3 {
            assert_eq!(client.call(&[put_handle(&root), lookup("nobody")]).await.status, 2);
        }
        let report = expect_settled(&service);
        assert_eq!(operation(&report, "LOOKUP").errors, [("NOENT".to_owned(), 3)]);
        assert_eq!(
            operation(&report, "LOOKUP").time.count(),
            4,
            "what such a compound is there for, and the one for the root"
        );
        assert_eq!(operation(&report, "PUTFH").time.count(), 0, "and not for the way to it");
        assert_eq!((operation(&report, "WRITE").count, operation(&report, "WRITE").errors.len()), (1, 0));
        assert_eq!(report.totals.work, Work { read_bytes: 4, written_bytes: 10 });
        assert!(report.totals.replies_recorded >= 3, "OPEN, WRITE and LOCK");
        assert!(report.totals.received_bytes > 0 && report.totals.sent_bytes > 0);
        let [client] = &*report.clients else { panic!("one client, not {:?}", report.clients) };
        assert_eq!((client.sessions, client.held.opens, client.held.locks, client.held.ranges), (1, 1, 1, 1));
        assert_eq!((client.lease, client.work), (LeaseState::Active, report.totals.work));
        assert!(client.version.is_some() && client.address.is_some());
        assert!(report.ring.is_some_and(|ring| ring.records > 0));
        assert!(report.files.blocks_free > 0);
    });
}

#[test]
fn retries_are_told_by_how_they_were_answered_and_numbers_begin_anew_with_a_takeover() {
    run(async {
        let device = volume();
        let service = serve(&device).await;
        let mut client = Client::new(&service, "one").await;
        let root = client.root().await;
        let make = [put_handle(&root), make_directory("a")];
        assert_eq!(client.call(&make).await.status, 0);
        client.again(&make).await;
        let report = expect_settled(&service);
        assert_eq!((report.replays.kept, report.replays.recorded), (1, 0));
        assert_eq!(operation(&report, "CREATE").count, 1, "it was done once");
        let found = Rc::new(RamDevice::from_image(&device.to_vec()));
        let next = serve(&found).await;
        client.service = Rc::clone(&next);
        let quiet = next.report();
        assert_eq!((quiet.totals.requests, quiet.clients.len()), (0, 1), "it is known, and was not heard of");
        assert_eq!((quiet.clients[0].address, quiet.clients[0].version), (None, None));
        client.again(&make).await;
        let report = expect_settled(&next);
        assert_eq!((report.replays.kept, report.replays.recorded), (0, 1));
        assert_eq!(report.clients[0].requests, 1);
        assert!(report.operations.iter().all(|operation| operation.name != "CREATE"));
    });
}

#[test]
fn messages_that_are_no_calls_are_counted_as_rejected() {
    run(async {
        let service = serve(&volume()).await;
        assert_eq!(service.call(local_origin(), bytes::Bytes::from_static(b"no call")).await, Ok(None));
        let totals = expect_settled(&service).totals;
        assert_eq!((totals.requests, totals.requests_rejected), (1, 1));
    });
}
