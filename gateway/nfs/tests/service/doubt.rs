//! State that may not hold any more is given up: clients are told so, and reclaim what they had.

use std::rc::Rc;

use block_device::RamDevice;
use bytes::Bytes;
use gateway_nfs::state::foundation::Foundation;

use crate::world::{
    Client, SEQUENCE_BYTES, get_handle, lock, open, operation, put_handle, run, serve_upon, volume, write,
};

const GRACE: u32 = 10_013;
const NO_GRACE: u32 = 10_033;
const BAD_SESSION: u32 = 10_052;
const FIRST: Foundation = Foundation { service: 5, loss: 0, unflushed: 0, disturbed: 0 };

/// OPEN of the current file as it was before, for reading and writing.
fn reclaim(owner: &str) -> Vec<u8> {
    operation(18, |out| {
        out.u32(0);
        out.u32(3);
        out.u32(0);
        out.u64(0);
        out.opaque(owner.as_bytes());
        out.u32(0);
        out.u32(1);
        out.u32(0);
    })
}

/// A volume on which a client has a file open and a lock on it, and another one is there too. The handles of root and file.
async fn in_use() -> (Rc<RamDevice>, [Client; 2], Bytes, Bytes) {
    let device = volume();
    let service = serve_upon(&device, FIRST, 1).await;
    let (mut one, two) = (Client::new(&service, "one").await, Client::new(&service, "two").await);
    let root = one.root().await;
    let answer = one.call(&[put_handle(&root), open("me", "file", true), get_handle()]).await;
    let mut body = answer.body(&[SEQUENCE_BYTES, 0]);
    let stateid = body.fixed::<16>().unwrap();
    body.fixed::<{ 20 + 4 + 12 + 4 + 8 }>().unwrap();
    let file = body.opaque(128).unwrap();
    assert_eq!(one.call(&[put_handle(&file), lock(&stateid, "locker", 0, 100)]).await.status, 0);
    assert_eq!(one.call(&[put_handle(&file), write(&stateid, 0, 2, b"kept")]).await.status, 0);
    (device, [one, two], root, file)
}

fn found(device: &Rc<RamDevice>) -> Rc<RamDevice> {
    Rc::new(RamDevice::from_image(&device.to_vec()))
}

#[test]
fn after_somebody_else_had_the_filesystem_those_who_were_clients_reclaim_and_then_grace_ends() {
    run(async {
        let (device, [mut one, mut two], root, file) = in_use().await;
        let doubted = [
            Foundation { disturbed: 7, ..FIRST },
            Foundation { service: 6, ..FIRST },
            Foundation { unflushed: 9, ..FIRST },
        ];
        for (epoch, doubted) in (2..).zip(doubted) {
            let device = found(&device);
            let service = serve_upon(&device, doubted, epoch).await;
            for client in [&mut one, &mut two] {
                client.service = Rc::clone(&service);
                assert_eq!(client.call(&[put_handle(&root)]).await.status, BAD_SESSION);
            }
            let mut again = Client::connect(&service, "one").await;
            assert_eq!(again.call(&[put_handle(&root), open("me", "file", false)]).await.status, GRACE, "nothing new");
            assert_eq!(again.call(&[put_handle(&file), reclaim("me")]).await.status, 0);
            let mut stranger = Client::connect(&service, "stranger").await;
            assert_eq!(stranger.call(&[put_handle(&file), reclaim("me")]).await.status, NO_GRACE, "it was none");
            again.complete().await;
            stranger.complete().await;
            service.tend().await.unwrap();
            let refused = stranger.call(&[put_handle(&root), open("it", "file", false)]).await;
            assert_eq!(refused.status, GRACE, "somebody is missing still");
            Client::new(&service, "two").await;
            service.tend().await.unwrap();
            assert_eq!(stranger.call(&[put_handle(&root), open("it", "file", false)]).await.status, 0);
            // What was reclaimed holds from then on.
            let service = serve_upon(&found(&device), doubted, epoch + 10).await;
            again.service = service;
            assert_eq!(again.call(&[put_handle(&root), open("me", "file", false)]).await.status, 0);
        }
    });
}

#[test]
fn after_a_copy_was_made_primary_by_force_nobody_knows_who_the_clients_were() {
    run(async {
        let (device, _, root, file) = in_use().await;
        let service = serve_upon(&found(&device), Foundation { loss: 9, ..FIRST }, 2).await;
        let mut unknown = Client::connect(&service, "of whom the older copy knows nothing").await;
        assert_eq!(unknown.call(&[put_handle(&file), reclaim("it")]).await.status, 0);
        unknown.complete().await;
        for name in ["one", "two"] {
            Client::new(&service, name).await;
        }
        service.tend().await.unwrap();
        let refused = unknown.call(&[put_handle(&root), open("it", "file", false)]).await;
        assert_eq!(refused.status, GRACE, "others may come");
    });
}

#[test]
fn a_service_that_had_no_clients_needs_no_grace() {
    run(async {
        let device = volume();
        serve_upon(&device, FIRST, 1).await;
        for (epoch, doubted) in [(2, Foundation { disturbed: 7, ..FIRST }), (3, FIRST)] {
            let service = serve_upon(&found(&device), doubted, epoch).await;
            let mut client = Client::new(&service, "one").await;
            let root = client.root().await;
            assert_eq!(client.call(&[put_handle(&root), open("me", "file", true)]).await.status, 0);
        }
    });
}

#[test]
fn a_grace_period_that_nobody_has_used_yet_outlives_the_next_takeover() {
    run(async {
        let (device, [one, two], root, file) = in_use().await;
        drop((one, two));
        let doubted = Foundation { disturbed: 7, ..FIRST };
        let second = found(&device);
        serve_upon(&second, doubted, 2).await;
        let service = serve_upon(&found(&second), doubted, 3).await;
        let mut again = Client::connect(&service, "one").await;
        assert_eq!(again.call(&[put_handle(&root), open("me", "file", false)]).await.status, GRACE);
        assert_eq!(again.call(&[put_handle(&file), reclaim("me")]).await.status, 0);
    });
}
