//! What was answered is answered so again: to a retransmission, and by the box that takes over.

use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use block_device::RamDevice;
use bytes::Bytes;

use super::client::{
    CREATE, EXISTS, GETATTR, LINK, MKDIR, MKNOD, NO_ENTRY, READ, REMOVE, RENAME, RMDIR, SETATTR, SYMLINK, Set, V3,
    WRITE, arguments, create, create_exclusive, link, make_directory, named, of, read, rename, set, symlink, write,
};
use crate::world::{run, serve, volume};

/// The device as another box finds it, which goes on.
async fn take_over(device: &Rc<RamDevice>, client: V3) -> (Rc<RamDevice>, V3) {
    let found = Rc::new(RamDevice::from_image(&device.to_vec()));
    let service = serve(&found).await;
    (found, V3 { service, ..client })
}

/// One call of each procedure that changes something, in an order in which they can be done, and what a new call of it is
/// answered once it is done.
async fn changes(client: &V3, root: &Bytes) -> Vec<(u32, Vec<u8>, u32)> {
    let file = client.file(root, "a", 0o644).await;
    let pipe = [named(root, "pipe"), arguments(|out| out.u32(7)), arguments(|out| Set::mode(0o600).put(out))].concat();
    let changed = client.attributes(&file).await.changed;
    vec![
        (SETATTR, set(&file, Set { modified: Some((5, 6)), ..Set::default() }, Some(changed)), 10_002),
        (WRITE, write(&file, 0, 2, b"short"), 0),
        (WRITE, write(&file, 5, 1, &vec![3; 300_000]), 0),
        (CREATE, create(root, "guarded", true, Set::mode(0o600)), EXISTS),
        (CREATE, create_exclusive(root, "exclusive", *b"verifier"), 0),
        (MKDIR, make_directory(root, "dir", 0o755), EXISTS),
        (SYMLINK, symlink(root, "symlink", "target"), EXISTS),
        (MKNOD, pipe, EXISTS),
        (LINK, link(&file, (root, "linked")), EXISTS),
        (RENAME, rename((root, "linked"), (root, "renamed")), NO_ENTRY),
        (REMOVE, named(root, "renamed"), NO_ENTRY),
        (RMDIR, named(root, "dir"), NO_ENTRY),
    ]
}

#[test]
fn retransmissions_are_answered_byte_for_byte_and_nothing_is_done_twice() {
    run(async {
        let mut device = volume();
        let mut client = V3::new(&serve(&device).await);
        let root = client.root().await;
        for (procedure, arguments, again) in changes(&client, &root).await {
            let first = client.done(procedure, &arguments).await;
            let state = client.attributes(&root).await;
            client.xid.set(client.xid.get() - 1);
            assert_eq!(client.again(procedure, &arguments).await.whole, first.whole, "procedure {procedure}");
            (device, client) = take_over(&device, client).await;
            assert_eq!(
                client.again(procedure, &arguments).await.whole,
                first.whole,
                "procedure {procedure}, taken over"
            );
            (device, client) = take_over(&device, client).await;
            assert_eq!(client.again(procedure, &arguments).await.whole, first.whole, "taken over twice");
            client.xid.set(client.xid.get() + 1);
            assert_eq!(client.attributes(&root).await, state, "procedure {procedure} was done once");
            assert_eq!(client.call(procedure, &arguments).await.status, again, "procedure {procedure}, a new call");
        }
    });
}

#[test]
fn the_answer_is_that_of_the_first_time_whatever_was_changed_since() {
    run(async {
        let device = volume();
        let client = V3::new(&serve(&device).await);
        let root = client.root().await;
        let exclusive = create_exclusive(&root, "file", *b"verifier");
        let first = client.done(CREATE, &exclusive).await;
        let file = first.clone().handle();
        let number = client.xid.get();
        client.done(WRITE, &write(&file, 0, 2, b"the times that kept the verifier are gone")).await;
        client.done(RENAME, &rename((&root, "file"), (&root, "moved"))).await;
        let (_, client) = take_over(&device, client).await;
        client.xid.set(number);
        assert_eq!(client.again(CREATE, &exclusive).await.whole, first.whole);
        client.xid.set(1000);
        assert_eq!(client.call(GETATTR, &of(&file)).await.status, 0);
        assert_eq!(client.call(super::client::LOOKUP, &named(&root, "file")).await.status, NO_ENTRY, "not made again");
    });
}

#[test]
fn calls_are_told_apart_by_address_number_user_and_arguments() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        client.done(SETATTR, &set(&root, Set::mode(0o777), None)).await;
        client.xid.set(50);
        let make = create(&root, "file", true, Set::mode(0o600));
        let first = client.again(CREATE, &make).await;
        assert_eq!(first.status, 0);
        let mut mapped = client.user(0);
        mapped.xid.set(50);
        mapped.address = IpAddr::V6(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped());
        assert_eq!(mapped.again(CREATE, &make).await.whole, first.whole, "the same address");
        mapped.address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
        assert_eq!(mapped.again(CREATE, &make).await.status, EXISTS);
        let user = client.user(1000);
        user.xid.set(50);
        assert_eq!(user.again(CREATE, &make).await.status, EXISTS);
        let other = create(&root, "file", true, Set::mode(0o644));
        assert_eq!(client.again(CREATE, &other).await.status, EXISTS, "other arguments");
        // A failure has changed nothing, so it is looked at anew.
        client.done(REMOVE, &named(&root, "file")).await;
        user.xid.set(50);
        assert_eq!(user.again(CREATE, &make).await.status, 0);
    });
}

#[test]
fn a_retransmission_waits_for_the_call_under_way() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        client.xid.set(70);
        let make = make_directory(&root, "dir", 0o755);
        let calls = (0..20).map(|_| client.again(MKDIR, &make));
        let replies = futures_util::future::join_all(calls).await;
        assert_eq!(replies[0].status, 0);
        assert!(replies.iter().all(|reply| reply.whole == replies[0].whole));
        let long = write(&client.file(&root, "file", 0o644).await, 0, 2, &vec![1; 500_000]);
        let replies = futures_util::future::join_all((0..5).map(|_| client.again(WRITE, &long))).await;
        assert!(replies.iter().all(|reply| reply.status == 0 && reply.whole == replies[0].whole));
    });
}

#[test]
fn stable_data_outlives_a_takeover_and_unstable_data_is_as_the_verifier_says() {
    run(async {
        let device = volume();
        let client = V3::new(&serve(&device).await);
        let root = client.root().await;
        let file = client.file(&root, "file", 0o644).await;
        client.done(WRITE, &write(&file, 0, 2, b"stable")).await;
        client.done(WRITE, &write(&file, 6, 2, &vec![b'l'; 200_000])).await;
        client.done(WRITE, &write(&file, 200_006, 0, b"committed")).await;
        client.done(super::client::COMMIT, &read(&file, 0, 0)).await;
        let (_, client) = take_over(&device, client).await;
        assert_eq!(client.attributes(&file).await.size, 200_015);
        let mut found = client.done(READ, &read(&file, 200_005, 100)).await;
        found.after().unwrap();
        assert_eq!((found.body.u32(), found.body.bool()), (Ok(10), Ok(true)));
        assert_eq!(found.body.opaque(100).unwrap(), "lcommitted");
    });
}
