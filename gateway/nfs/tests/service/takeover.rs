//! Another box goes on: what was answered stays answered, and what was open and locked stays so.

use std::rc::Rc;

use block_device::RamDevice;
use gateway_nfs::service::Endpoints;
use gateway_nfs::state::back_channel::ConnectionId;

use crate::world::{
    Client, SEQUENCE_BYTES, close, get_handle, lock, lookup, make_directory, open, operation, put_handle, read, remove,
    run, serve, stateid_and_handle, volume, write,
};

const DENIED: u32 = 10_010;
const EXISTS: u32 = 17;

/// The device as it would be found by another box, and the client's next service.
async fn take_over(device: &Rc<RamDevice>, clients: &mut [&mut Client]) -> Rc<RamDevice> {
    let found = Rc::new(RamDevice::from_image(&device.to_vec()));
    let service = serve(&found).await;
    clients.iter_mut().for_each(|client| client.service = Rc::clone(&service));
    found
}

#[test]
fn a_change_that_was_not_heard_of_is_answered_the_same_and_done_once() {
    run(async {
        let device = volume();
        let mut client = Client::new(&serve(&device).await, "one").await;
        let root = client.root().await;
        let make = [put_handle(&root), make_directory("a"), get_handle()];
        let first = client.call(&make).await;
        assert_eq!(first.status, 0);
        let device = take_over(&device, &mut [&mut client]).await;
        assert_eq!(client.again(&make).await.whole, first.whole, "byte for byte");
        assert_eq!(client.call(&make).await.status, EXISTS, "a new request is new");
        // Requests that changed nothing moved the sequence in memory only; what follows is new all the same.
        for _ in 0..5 {
            assert_eq!(client.call(&[put_handle(&root), lookup("a")]).await.status, 0);
        }
        take_over(&device, &mut [&mut client]).await;
        assert_eq!(client.again(&[put_handle(&root), lookup("a")]).await.status, 0);
        assert_eq!(client.call(&[put_handle(&root), remove("a")]).await.status, 0);
    });
}

#[test]
fn opens_and_locks_outlive_a_takeover_also_of_a_file_without_a_name() {
    run(async {
        let device = volume();
        let service = serve(&device).await;
        let mut one = Client::new(&service, "one").await;
        let mut two = Client::new(&service, "two").await;
        let root = one.root().await;
        let mut opened = Vec::new();
        for (client, guarded) in [(&mut one, true), (&mut two, false)] {
            let answer = client.call(&[put_handle(&root), open("me", "file", guarded), get_handle()]).await;
            opened.push(stateid_and_handle(&answer, guarded));
        }
        let file = opened[0].1.clone();
        let locked = one.call(&[put_handle(&file), lock(&opened[0].0, "locker", 0, 100)]).await;
        assert_eq!(locked.status, 0);
        assert_eq!(one.call(&[put_handle(&file), write(&opened[0].0, 0, 2, b"kept")]).await.status, 0);
        assert_eq!(one.call(&[put_handle(&root), remove("file")]).await.status, 0);
        let device = take_over(&device, &mut [&mut one, &mut two]).await;
        assert_eq!(two.call(&[put_handle(&file), lock(&opened[1].0, "other", 50, 1)]).await.status, DENIED);
        assert_eq!(two.call(&[put_handle(&file), lock(&opened[1].0, "other", 100, 1)]).await.status, 0);
        let found = two.call(&[put_handle(&file), read(&opened[1].0, 0, 10)]).await;
        assert_eq!(found.status, 0);
        let mut body = found.body(&[SEQUENCE_BYTES, 0]);
        assert_eq!((body.bool(), body.opaque(10).unwrap()), (Ok(true), "kept".into()));
        take_over(&device, &mut [&mut one, &mut two]).await;
        assert_eq!(one.call(&[put_handle(&file), lock(&opened[0].0, "third", 100, 1)]).await.status, DENIED);
    });
}

#[test]
fn a_compound_that_reads_behind_its_change_goes_on_behind_it() {
    run(async {
        let device = volume();
        let mut client = Client::new(&serve(&device).await, "one").await;
        let root = client.root().await;
        let answer = client.call(&[put_handle(&root), open("me", "file", true), get_handle()]).await;
        let mut body = answer.body(&[SEQUENCE_BYTES, 0]);
        let stateid = body.fixed::<16>().unwrap();
        body.fixed::<{ 20 + 4 + 12 + 4 + 8 }>().unwrap();
        let file = body.opaque(128).unwrap();
        assert_eq!(client.call(&[put_handle(&file), write(&stateid, 0, 2, b"content")]).await.status, 0);
        let save = operation(32, |_| ());
        let mixed = [put_handle(&file), save, put_handle(&root), make_directory("new"), operation(31, |_| ())];
        let mixed: Vec<_> = mixed.into_iter().chain([read(&stateid, 0, 7), get_handle()]).collect();
        let first = client.call(&mixed).await;
        assert_eq!((first.status, first.count), (0, 8));
        take_over(&device, &mut [&mut client]).await;
        assert_eq!(client.again(&mixed).await.whole, first.whole);
        assert_eq!(client.call(&mixed).await.status, EXISTS);
    });
}

#[test]
fn a_state_ring_without_room_refuses_what_is_new_and_nothing_else() {
    run(async {
        let device = volume();
        let mut client = Client::new(&serve(&device).await, "one").await;
        let root = client.root().await;
        assert_eq!(client.call(&[put_handle(&root), open("first", "file", true)]).await.status, 0);
        let mut opened = Vec::new();
        let refused = loop {
            assert!(opened.len() < 5000, "the ring has no end");
            let owner = format!("{:0>1000}", opened.len());
            let answer = client.call(&[put_handle(&root), open(&owner, "file", false), get_handle()]).await;
            if answer.status != 0 {
                break answer;
            }
            opened.push(answer.body(&[SEQUENCE_BYTES, 0]).fixed::<16>().unwrap());
        };
        assert_eq!((refused.status, refused.count), (10_008, 3), "DELAY, for the OPEN");
        let looked = client.call(&[put_handle(&root), lookup("file"), get_handle()]).await;
        assert_eq!(looked.status, 0, "reading goes on");
        let file = looked.body(&[SEQUENCE_BYTES, 0, 0]).opaque(128).unwrap();
        take_over(&device, &mut [&mut client]).await;
        for stateid in opened.iter().take(10) {
            assert_eq!(client.call(&[put_handle(&file), close(stateid)]).await.status, 0, "closing goes on");
        }
        assert_eq!(
            client.call(&[put_handle(&root), open("late", "file", false)]).await.status,
            0,
            "there is room again"
        );
    });
}

#[test]
fn the_next_primary_knows_the_connections_of_the_one_before_and_forgets_them() {
    run(async {
        let device = volume();
        let service = serve(&device).await;
        let mut client = Client::new(&service, "one").await;
        let root = client.root().await;
        assert_eq!(service.take_former_connections(), []);
        let ends = |port| Endpoints { client: ([10, 0, 0, 9], port).into(), service: ([10, 0, 0, 50], 2049).into() };
        for number in 0..200 {
            service.record_connection(ConnectionId(number), ends(number as u16));
        }
        service.connection_closed(ConnectionId(3));
        service.tend().await.unwrap();
        // Whatever waits until it is durable.
        assert_eq!(client.call(&[put_handle(&root), make_directory("a")]).await.status, 0);
        service.connection_closed(ConnectionId(4));
        let late = Rc::new(RamDevice::from_image(&device.to_vec()));
        let known = serve(&late).await.take_former_connections();
        assert!(known.contains(&ends(4)), "what was not written yet is nudged in vain");
        service.tend().await.unwrap();
        assert_eq!(client.call(&[put_handle(&root), make_directory("b")]).await.status, 0);
        let device = Rc::new(RamDevice::from_image(&device.to_vec()));
        let service = serve(&device).await;
        client.service = Rc::clone(&service);
        let mut known = service.take_former_connections();
        known.sort_by_key(|ends| ends.client.port());
        let expected: Vec<_> = (0..200).filter(|port| ![3, 4].contains(port)).map(ends).collect();
        assert_eq!(known, expected);
        assert_eq!(service.take_former_connections(), [], "told once");
        service.record_connection(ConnectionId(1), ends(7777));
        service.tend().await.unwrap();
        assert_eq!(client.call(&[put_handle(&root), make_directory("c")]).await.status, 0);
        let device = Rc::new(RamDevice::from_image(&device.to_vec()));
        assert_eq!(serve(&device).await.take_former_connections(), [ends(7777)], "the others are gone");
    });
}
