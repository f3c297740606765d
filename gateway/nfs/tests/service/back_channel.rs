//! Clients that answer calls wrongly, late, or not at all.

use std::time::Duration;

use bytes::Bytes;
use gateway_nfs::state::back_channel::ConnectionId;

use crate::line::{Line, NOTHING, RECALL, answering, bind, delegated, flags, give_back, make, settle};
use crate::world::{Client, put_handle, remove, run, serve_calling, volume};

const DELAY: u32 = 10_008;
const BAD_HANDLE: u32 = 10_001;
const PATH_DOWN: u32 = 0x201;

#[test]
fn whoever_does_not_answer_the_first_call_is_told_that_there_is_no_way_to_it() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut line = Line::open(&service, 2);
        let mut client = Client::connected(&service, "client", 2, true).await;
        assert_eq!(flags(&mut client).await, 0, "nobody knows yet");
        let call = line.calls.recv().await.unwrap().concat();
        // An answer to something else, and things that are none.
        assert!(!service.answered(ConnectionId(2), Bytes::from_static(b"\x00\x00\x00\x63\x00\x00\x00\x01")));
        assert!(!service.answered(ConnectionId(2), Bytes::from_static(b"no")));
        assert!(!service.answered(ConnectionId(9), Bytes::copy_from_slice(&call)));
        let denied = [&call[..4], &[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]].concat();
        assert!(service.answered(ConnectionId(2), denied.into()));
        settle().await;
        assert_eq!(flags(&mut client).await, PATH_DOWN);
        bind(&mut client, 2).await;
        line.prove().await;
        assert_eq!(flags(&mut client).await, 0);
    });
}

#[test]
fn a_recall_is_made_again_until_the_client_knows_of_the_delegation() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut other = Client::new(&service, "other").await;
        let (mut holder, mut line) = answering(&service, "holder", 2).await;
        let root = other.root().await;
        let file = make(&mut other, &root, "file").await;
        let stateid = delegated(&mut holder, &file).await;
        tokio::time::pause();
        let remove = [put_handle(&root), remove("file")];
        let work = tokio::task::spawn_local(async move { other.call(&remove).await.status });
        for (sequence, status) in [(1, BAD_HANDLE), (2, DELAY), (3, 0)] {
            let called = line.next().await;
            assert_eq!((called.operation, called.slot, called.sequence), (RECALL, 0, sequence));
            line.answer(&called, status);
        }
        assert_eq!(holder.call(&[put_handle(&file), give_back(&stateid)]).await.status, 0);
        assert_eq!(work.await.unwrap(), 0);
    });
}

#[test]
fn a_slot_that_is_refused_is_probed_before_it_is_used_again() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut other = Client::new(&service, "other").await;
        let (mut holder, mut line) = answering(&service, "holder", 2).await;
        let root = other.root().await;
        let file = make(&mut other, &root, "file").await;
        delegated(&mut holder, &file).await;
        tokio::time::pause();
        assert_eq!(other.call(&[put_handle(&root), remove("file")]).await.status, DELAY);
        // All slots are refused one after another, and then each is probed.
        for slot in 0..16 {
            let called = line.next().await;
            assert_eq!((called.operation, called.slot, called.sequence), (RECALL, slot, 1));
            line.refuse(&called, DELAY);
        }
        let called = line.next().await;
        assert_eq!((called.operation, called.slot, called.sequence), (NOTHING, 0, 1));
        line.answer(&called, 0);
        loop {
            let called = line.next().await;
            if called.operation == RECALL {
                assert_eq!((called.slot, called.sequence), (0, 2));
                break line.answer(&called, 0);
            }
            assert_eq!(called.sequence, 1);
        }
    });
}

/// Whatever comes in place of an answer, or that nothing comes.
#[test]
fn answers_that_make_no_sense_take_the_way_away_until_another_is_bound() {
    run(async {
        let garbage: [&[u8]; 5] =
            [b"", &[0; 8], &[0xff; 200], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]];
        for (number, garbage) in garbage.into_iter().map(Some).chain([None]).enumerate() {
            let service = serve_calling(&volume()).await;
            let mut other = Client::new(&service, "other").await;
            let (mut holder, mut line) = answering(&service, "holder", 2).await;
            let root = other.root().await;
            let file = make(&mut other, &root, "file").await;
            let stateid = delegated(&mut holder, &file).await;
            tokio::time::pause();
            assert_eq!(other.call(&[put_handle(&root), remove("file")]).await.status, DELAY);
            let called = line.next().await;
            match garbage {
                Some(garbage) => {
                    assert!(line.reply(called.xid, |out| out.encoded(garbage)));
                    assert!(!line.reply(called.xid, |out| out.encoded(garbage)), "nobody waits for another");
                    settle().await;
                }
                None => tokio::time::sleep(Duration::from_secs(10)).await,
            }
            assert_eq!(flags(&mut holder).await, PATH_DOWN, "number {number}");
            line.close();
            let mut line = Line::open(&service, 3);
            bind(&mut holder, 3).await;
            line.prove().await;
            let called = line.next().await;
            assert_eq!((called.operation, called.sequence), (RECALL, 1), "on another slot");
            line.answer(&called, 0);
            assert_eq!(holder.call(&[put_handle(&file), give_back(&stateid)]).await.status, 0);
            tokio::time::resume();
        }
    });
}

#[test]
fn a_connection_that_closes_ends_its_calls_and_another_one_takes_them() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut other = Client::new(&service, "other").await;
        let (mut holder, mut first) = answering(&service, "holder", 2).await;
        let mut second = Line::open(&service, 3);
        bind(&mut holder, 3).await;
        second.prove().await;
        let root = other.root().await;
        let file = make(&mut other, &root, "file").await;
        delegated(&mut holder, &file).await;
        tokio::time::pause();
        assert_eq!(other.call(&[put_handle(&root), remove("file")]).await.status, DELAY);
        assert_eq!(second.next().await.operation, RECALL, "over the one that was bound last");
        second.close();
        assert_eq!(first.next().await.operation, RECALL);
        assert_eq!(flags(&mut holder).await, 0);
        first.close();
        settle().await;
        assert_eq!(flags(&mut holder).await, PATH_DOWN);
    });
}

#[test]
fn a_client_that_does_not_read_is_sent_no_more_than_its_slots_hold() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut other = Client::new(&service, "other").await;
        let (mut holder, mut line) = answering(&service, "holder", 2).await;
        let root = other.root().await;
        let mut held = Vec::new();
        for number in 0..40 {
            let name: &'static str = format!("file {number}").leak();
            let file = make(&mut other, &root, name).await;
            held.push((name, delegated(&mut holder, &file).await, file));
        }
        tokio::time::pause();
        for (name, ..) in held.iter().take(8) {
            assert_eq!(other.call(&[put_handle(&root), remove(name)]).await.status, DELAY);
        }
        settle().await;
        assert_eq!(line.calls.len(), 4, "its connection's queue is full, the others wait for room");
        // Nobody answers in time: the way is gone, and what waits stays where it is.
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(flags(&mut holder).await, PATH_DOWN);
        for (name, ..) in held.iter().skip(8) {
            assert_eq!(other.call(&[put_handle(&root), remove(name)]).await.status, DELAY);
        }
        while line.calls.try_recv().is_ok() {}
        assert!(line.is_quiet().await);
        let mut line = Line::open(&service, 3);
        bind(&mut holder, 3).await;
        line.prove().await;
        let mut recalled = 0;
        while recalled < held.len() {
            let called = line.next().await;
            line.answer(&called, 0);
            recalled += usize::from(called.operation == RECALL);
        }
        for (_, stateid, file) in &held {
            assert_eq!(holder.call(&[put_handle(file), give_back(stateid)]).await.status, 0);
        }
        assert!(line.is_quiet().await);
    });
}

#[test]
fn who_binds_again_and_again_and_never_answers_is_called_a_few_times_only() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut other = Client::new(&service, "other").await;
        let (mut holder, mut good) = answering(&service, "holder", 2).await;
        let root = other.root().await;
        let file = make(&mut other, &root, "file").await;
        let mut line = Line::open(&service, 3);
        let mut client = Client::connected(&service, "client", 3, true).await;
        tokio::time::pause();
        let mut called = 0;
        for _ in 0..100 {
            bind(&mut client, 3).await;
            settle().await;
            while line.calls.try_recv().is_ok() {
                called += 1;
            }
        }
        assert_eq!(called, 16);
        delegated(&mut holder, &file).await;
        assert_eq!(other.call(&[put_handle(&root), remove("file")]).await.status, DELAY);
        assert_eq!(good.next().await.operation, RECALL, "others are called all the same");
    });
}
