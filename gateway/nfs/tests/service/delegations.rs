//! Read delegations: who gets one, what becomes of it when somebody else wants the file, and what a takeover leaves of it.

use std::rc::Rc;
use std::time::Duration;

use block_device::RamDevice;
use bytes::Bytes;
use gateway_nfs::xdr::Decoder;
use tokio::task::{JoinHandle, spawn_local};

use crate::line::{
    Delegation, Line, NOTHING, RECALL, answering, bind, delegated, flags, give_back, make, read_open, settle,
};
use crate::world::{
    Answer, Client, close, get_handle, lookup, open, operation, put_handle, read, remove, run, serve_calling, volume,
    write,
};

const DELAY: u32 = 10_008;
const REVOKED: u32 = 10_087;
const BAD_STATEID: u32 = 10_025;
const NOT_SUPPORTED: u32 = 10_004;
const WANT_READ: u32 = 0x100;
const WANT_ANY: u32 = 0x300;
const WANT_NONE: u32 = 0x400;
const NOT_WANTED: u32 = 0;
const CONTENTION: u32 = 1;
const RESOURCE: u32 = 2;
const MAY_NOTIFY_LOCK: u32 = 0x20;
const STATE_REVOKED: u32 = 0x40;
const PATH_DOWN: u32 = 0x201;
const ANONYMOUS: [u8; 16] = [0; 16];

/// A client's request that goes on by itself.
fn begin(mut client: Client, operations: Vec<Vec<u8>>) -> JoinHandle<(Client, Answer)> {
    spawn_local(async move {
        let answer = client.call(&operations).await;
        (client, answer)
    })
}

/// Another box goes on with what the device holds.
async fn take_over(device: &Rc<RamDevice>, clients: &mut [&mut Client]) -> Rc<RamDevice> {
    let found = Rc::new(RamDevice::from_image(&device.to_vec()));
    let service = serve_calling(&found).await;
    clients.iter_mut().for_each(|client| client.service = Rc::clone(&service));
    found
}

/// What a recall says: the stateid and the handle.
fn recalled(body: &Bytes) -> ([u8; 16], Bytes) {
    let mut body = Decoder::new(body.clone());
    let stateid = body.fixed().unwrap();
    body.bool().unwrap();
    (stateid, body.opaque(128).unwrap())
}

/// Everything that changes a file, for somebody who has nothing open.
fn changes(root: &Bytes, file: &Bytes) -> Vec<Vec<Vec<u8>>> {
    let set_mode = operation(34, |out| {
        out.fixed(&ANONYMOUS);
        crate::world::put_mode(out, 0o600);
    });
    let set_size = operation(34, |out| {
        out.fixed(&ANONYMOUS);
        out.u32(1);
        out.u32(1 << 4);
        out.u32(8);
        out.u64(3);
    });
    let link = operation(11, |out| out.opaque(b"linked"));
    let rename = operation(29, |out| {
        out.opaque(b"file");
        out.opaque(b"renamed");
    });
    let save = || operation(32, |_| ());
    vec![
        vec![put_handle(root), open("other", "file", false)],
        vec![put_handle(file), write(&ANONYMOUS, 0, 2, b"data")],
        vec![put_handle(file), set_mode],
        vec![put_handle(file), set_size],
        vec![put_handle(file), save(), put_handle(root), link],
        vec![put_handle(root), save(), put_handle(root), rename],
        vec![put_handle(root), remove("file")],
    ]
}

#[test]
fn whatever_changes_a_delegated_file_waits_until_the_delegation_is_given_back() {
    run(async {
        for at in 0..7 {
            let service = serve_calling(&volume()).await;
            let mut other = Client::new(&service, "other").await;
            let (mut holder, mut line) = answering(&service, "holder", 2).await;
            let root = other.root().await;
            let file = make(&mut other, &root, "file").await;
            let stateid = delegated(&mut holder, &file).await;
            let found = holder.call(&[put_handle(&file), read(&stateid, 0, 10)]).await;
            assert_eq!(found.status, 0, "it is read by the delegation");
            let change = begin(other, changes(&root, &file)[at].clone());
            let called = line.next().await;
            assert_eq!((called.operation, called.sequence, called.slot), (RECALL, 1, 0));
            assert_eq!(recalled(&called.body), (stateid, file.clone()));
            line.answer(&called, 0);
            settle().await;
            assert!(!change.is_finished(), "it waits");
            assert_eq!(holder.call(&[put_handle(&file), give_back(&stateid)]).await.status, 0);
            assert_eq!(change.await.unwrap().1.status, 0, "the change number {at}");
            assert!(line.is_quiet().await);
        }
    });
}

#[test]
fn the_holders_own_changes_and_others_reading_recall_nothing() {
    run(async {
        let service = serve_calling(&volume()).await;
        let (mut holder, mut line) = answering(&service, "holder", 2).await;
        let mut other = Client::new(&service, "other").await;
        let root = holder.root().await;
        let file = make(&mut holder, &root, "file").await;
        delegated(&mut holder, &file).await;
        read_open(&mut other, &file, 0).await;
        assert_eq!(other.call(&[put_handle(&file), read(&ANONYMOUS, 0, 10)]).await.status, 0);
        for change in changes(&root, &file).into_iter().take(4) {
            assert_eq!(holder.call(&change).await.status, 0);
        }
        assert!(line.is_quiet().await);
    });
}

#[test]
fn a_delegation_is_given_to_whoever_wants_one_or_reads_again_and_can_be_called() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut mute = Client::new(&service, "mute").await;
        let (mut client, mut line) = answering(&service, "client", 2).await;
        let root = mute.root().await;
        let file = make(&mut mute, &root, "file").await;
        for _ in 0..3 {
            let opened = read_open(&mut mute, &file, WANT_READ).await;
            assert_eq!((opened.delegation, opened.flags), (Delegation::Refused(RESOURCE), 4), "it cannot be called");
            assert_eq!(read_open(&mut mute, &file, 0).await.delegation, Delegation::None);
        }
        assert_eq!(read_open(&mut client, &file, WANT_NONE).await.delegation, Delegation::Refused(NOT_WANTED));
        let first = read_open(&mut client, &file, 0).await;
        assert_eq!((first.delegation, first.flags), (Delegation::None, 4 | MAY_NOTIFY_LOCK), "it may be read once");
        let Delegation::Read(stateid) = read_open(&mut client, &file, 0).await.delegation else { panic!("again") };
        assert_eq!(read_open(&mut client, &file, WANT_READ).await.delegation, Delegation::None, "it has it");
        assert_eq!(client.call(&[put_handle(&file), give_back(&stateid)]).await.status, 0);
        assert_eq!(client.call(&[put_handle(&file), give_back(&stateid)]).await.status, BAD_STATEID);
        let writing = mute.call(&[put_handle(&root), open("writer", "file", false)]).await;
        assert_eq!(writing.status, 0);
        assert_eq!(read_open(&mut client, &file, WANT_ANY).await.delegation, Delegation::Refused(CONTENTION));
        assert!(line.is_quiet().await);
    });
}

#[test]
fn a_file_is_opened_by_its_delegation_and_one_from_before_is_not_known() {
    run(async {
        let service = serve_calling(&volume()).await;
        let (mut client, _line) = answering(&service, "client", 2).await;
        let root = client.root().await;
        let file = make(&mut client, &root, "file").await;
        let stateid = delegated(&mut client, &file).await;
        let claim = |claim: u32, put: &dyn Fn(&mut gateway_nfs::xdr::Encoder)| {
            operation(18, |out| {
                [0, 1, 0].into_iter().for_each(|word| out.u32(word));
                out.u64(0);
                out.opaque(b"another");
                out.u32(0);
                out.u32(claim);
                put(out);
            })
        };
        let by_name = claim(2, &|out| {
            out.fixed(&stateid);
            out.opaque(b"file");
        });
        let by_handle = claim(5, &|out| out.fixed(&stateid));
        let before_by_name = claim(3, &|out| out.opaque(b"file"));
        let before_by_handle = claim(6, &|_| ());
        assert_eq!(client.call(&[put_handle(&root), by_name]).await.status, 0);
        assert_eq!(client.call(&[put_handle(&file), by_handle.clone()]).await.status, 0);
        assert_eq!(client.call(&[put_handle(&root), before_by_name]).await.status, NOT_SUPPORTED);
        assert_eq!(client.call(&[put_handle(&file), before_by_handle]).await.status, NOT_SUPPORTED);
        assert_eq!(client.call(&[put_handle(&file), give_back(&stateid)]).await.status, 0);
        assert_eq!(client.call(&[put_handle(&file), by_handle]).await.status, BAD_STATEID);
    });
}

#[test]
fn who_is_slow_makes_others_wait_and_who_never_gives_back_is_revoked_after_a_lease() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut other = Client::new(&service, "other").await;
        let (mut holder, mut line) = answering(&service, "holder", 2).await;
        let root = other.root().await;
        let file = make(&mut other, &root, "file").await;
        let stateid = delegated(&mut holder, &file).await;
        tokio::time::pause();
        let open = [put_handle(&root), open("writer", "file", false)];
        assert_eq!(other.call(&open).await.status, DELAY, "it has waited a second");
        let called = line.next().await;
        line.answer(&called, 0);
        assert_eq!(other.call(&open).await.status, DELAY);
        assert!(line.is_quiet().await, "it is recalled once");
        for _ in 0..3 {
            assert_eq!(flags(&mut holder).await & STATE_REVOKED, 0);
            service.tend().await.unwrap();
            tokio::time::advance(Duration::from_secs(30)).await;
        }
        assert_eq!(flags(&mut holder).await & STATE_REVOKED, 0);
        service.tend().await.unwrap();
        assert_eq!(other.call(&open).await.status, 0);
        assert_eq!(flags(&mut holder).await & STATE_REVOKED, STATE_REVOKED);
        assert_eq!(holder.call(&[put_handle(&file), read(&stateid, 0, 1)]).await.status, REVOKED);
        assert_eq!(holder.call(&[put_handle(&file), give_back(&stateid)]).await.status, REVOKED);
        let free = operation(45, |out| out.fixed(&stateid));
        assert_eq!(holder.call(&[free]).await.status, 0);
        assert_eq!(flags(&mut holder).await & STATE_REVOKED, 0);
    });
}

#[test]
fn who_was_not_heard_of_for_a_lease_loses_its_delegations_to_whoever_wants_the_file() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut other = Client::new(&service, "other").await;
        let (mut holder, mut line) = answering(&service, "holder", 2).await;
        let root = other.root().await;
        let file = make(&mut other, &root, "file").await;
        delegated(&mut holder, &file).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(91)).await;
        assert_eq!(other.call(&[put_handle(&root), remove("file")]).await.status, 0);
        assert!(line.is_quiet().await);
    });
}

#[test]
fn a_delegation_in_the_way_behind_a_change_of_the_same_compound_is_recalled_too() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut other = Client::new(&service, "other").await;
        let (mut holder, mut line) = answering(&service, "holder", 2).await;
        let root = other.root().await;
        let file = make(&mut other, &root, "file").await;
        let stateid = delegated(&mut holder, &file).await;
        let both = vec![put_handle(&root), crate::world::make_directory("new"), put_handle(&root), remove("file")];
        let change = begin(other, both);
        let called = line.next().await;
        line.answer(&called, 0);
        assert_eq!(holder.call(&[put_handle(&file), give_back(&stateid)]).await.status, 0);
        let (mut other, answer) = change.await.unwrap();
        assert_eq!((answer.status, answer.count), (0, 5));
        assert_eq!(other.call(&[put_handle(&root), lookup("new")]).await.status, 0);
    });
}

#[test]
fn requests_that_wait_are_bounded_and_leave_room_for_what_they_wait_for() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut maker = Client::new(&service, "maker").await;
        let (mut holder, mut line) = answering(&service, "holder", 2).await;
        let root = maker.root().await;
        let file = make(&mut maker, &root, "file").await;
        let stateid = delegated(&mut holder, &file).await;
        let names: Vec<&'static str> = (0..40).map(|number| &*format!("client {number}").leak()).collect();
        let mut waiting = Vec::new();
        for name in names {
            let client = Client::new(&service, name).await;
            waiting.push(begin(client, vec![put_handle(&file), write(&ANONYMOUS, 0, 2, b"data")]));
        }
        let called = line.next().await;
        line.answer(&called, 0);
        settle().await;
        let at_once = waiting.iter().filter(|request| request.is_finished()).count();
        assert_eq!(at_once, 8, "32 wait");
        assert_eq!(holder.call(&[put_handle(&file), give_back(&stateid)]).await.status, 0);
        let mut answers = Vec::new();
        for request in waiting {
            answers.push(request.await.unwrap().1.status);
        }
        assert_eq!(answers.iter().filter(|status| **status == 0).count(), 32);
        assert_eq!(answers.iter().filter(|status| **status == DELAY).count(), 8);
        assert!(line.is_quiet().await, "it was recalled once for all of them");
    });
}

#[test]
fn delegations_outlive_a_takeover_and_a_recall_under_way_is_sent_again_behind_a_probe() {
    run(async {
        let device = volume();
        let service = serve_calling(&device).await;
        let mut other = Client::new(&service, "other").await;
        let (mut holder, mut line) = answering(&service, "holder", 2).await;
        let root = other.root().await;
        let file = make(&mut other, &root, "file").await;
        let stateid = delegated(&mut holder, &file).await;
        tokio::time::pause();
        let remove = [put_handle(&root), remove("file")];
        assert_eq!(other.call(&remove).await.status, DELAY);
        let called = line.next().await;
        assert_eq!((called.operation, called.slot, called.sequence), (RECALL, 0, 1), "its answer is lost");

        take_over(&device, &mut [&mut holder, &mut other]).await;
        assert_eq!(flags(&mut holder).await, PATH_DOWN);
        let found = holder.call(&[put_handle(&file), read(&stateid, 0, 10)]).await;
        assert_eq!(found.status, 0, "it has its delegation still");
        let answer = other.call(&remove).await;
        assert_eq!(answer.status, DELAY, "and whoever wants the file waits for it still");
        let again = begin(other, remove.to_vec());
        settle().await;

        let mut line = Line::open(&holder.service, 3);
        bind(&mut holder, 3).await;
        line.prove().await;
        assert_eq!(flags(&mut holder).await, 0);
        // Slots that carried nothing before need no probe.
        let called = line.next().await;
        assert_eq!((called.operation, called.slot, called.sequence), (RECALL, 1, 1));
        line.answer(&called, 0);
        assert_eq!(holder.call(&[put_handle(&file), give_back(&stateid)]).await.status, 0);
        assert_eq!(again.await.unwrap().1.status, 0);
    });
}

#[test]
fn a_slot_whose_answer_was_lost_in_a_takeover_is_probed_at_its_recorded_sequence() {
    run(async {
        let device = volume();
        let service = serve_calling(&device).await;
        let mut other = Client::new(&service, "other").await;
        let (mut holder, mut line) = answering(&service, "holder", 2).await;
        let root = other.root().await;
        let mut held = Vec::new();
        for number in 0..17 {
            let name: &'static str = format!("file {number}").leak();
            let file = make(&mut other, &root, name).await;
            held.push((name, delegated(&mut holder, &file).await, file));
        }
        tokio::time::pause();
        // All slots carry a recall, and one waits for a slot; the answers of all are lost.
        let mut removing = Vec::new();
        for (name, ..) in &held {
            let client = Client::new(&service, format!("for {name}").leak()).await;
            removing.push(begin(client, vec![put_handle(&root), remove(name)]));
        }
        for slot in 0..16 {
            assert_eq!(line.next().await.slot, slot);
        }
        for request in removing {
            assert_eq!(request.await.unwrap().1.status, DELAY);
        }
        take_over(&device, &mut [&mut holder, &mut other]).await;
        assert_eq!(other.call(&[put_handle(&root), remove(held[0].0)]).await.status, DELAY);
        let mut line = Line::open(&holder.service, 3);
        bind(&mut holder, 3).await;
        line.prove().await;
        let probe = line.next().await;
        assert_eq!((probe.operation, probe.sequence), (NOTHING, 1));
        // The client has seen it, and does not keep what it answered (RETRY_UNCACHED_REP): that settles it, too.
        line.refuse(&probe, 10_068);
        let mut probes = vec![probe.slot];
        let called = loop {
            let called = line.next().await;
            if called.operation != NOTHING {
                break called;
            }
            assert_eq!(called.sequence, 1);
            probes.push(called.slot);
            line.answer(&called, 0);
        };
        assert_eq!((called.operation, called.sequence), (RECALL, 2));
        assert!(probes.contains(&called.slot));
        assert_eq!(recalled(&called.body).0, held[0].1);
    });
}

#[test]
fn a_file_that_was_removed_stays_for_whoever_has_it_delegated() {
    run(async {
        let service = serve_calling(&volume()).await;
        let (mut holder, _line) = answering(&service, "holder", 2).await;
        let root = holder.root().await;
        let file = make(&mut holder, &root, "file").await;
        let opened = read_open(&mut holder, &file, WANT_READ).await;
        let Delegation::Read(stateid) = opened.delegation else { panic!("{opened:?}") };
        assert_eq!(holder.call(&[put_handle(&file), close(&opened.stateid)]).await.status, 0);
        assert_eq!(holder.call(&[put_handle(&root), remove("file")]).await.status, 0);
        let found = holder.call(&[put_handle(&file), read(&stateid, 0, 10), get_handle()]).await;
        assert_eq!(found.status, 0);
        assert_eq!(holder.call(&[put_handle(&file), give_back(&stateid)]).await.status, 0);
        loop {
            match holder.call(&[put_handle(&file)]).await.status {
                0 => tokio::task::yield_now().await,
                status => break assert_eq!(status, 70, "given back in the background"),
            }
        }
    });
}
