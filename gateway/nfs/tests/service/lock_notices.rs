//! Whoever waits for a lock is told when it may be free.

use bytes::Bytes;
use gateway_nfs::xdr::Decoder;

use crate::line::{NOTIFY_LOCK, answering, make};
use crate::world::{Client, SEQUENCE_BYTES, open, operation, put_handle, run, serve_calling, volume};

const DENIED: u32 = 10_010;
const WRITE_WAITING: u32 = 4;

/// LOCK of the first byte, by one who waits.
fn lock(open: &[u8; 16], owner: &str) -> Vec<u8> {
    operation(12, |out| {
        out.u32(WRITE_WAITING);
        out.bool(false);
        out.u64(0);
        out.u64(1);
        out.bool(true);
        out.u32(0);
        out.fixed(open);
        out.u32(0);
        out.u64(0);
        out.opaque(owner.as_bytes());
    })
}

fn unlock(stateid: &[u8; 16]) -> Vec<u8> {
    operation(14, |out| {
        out.u32(2);
        out.u32(0);
        out.fixed(stateid);
        out.u64(0);
        out.u64(1);
    })
}

async fn opened(client: &mut Client, root: &Bytes) -> [u8; 16] {
    let answer = client.call(&[put_handle(root), open("opener", "file", false)]).await;
    assert_eq!(answer.status, 0);
    answer.body(&[SEQUENCE_BYTES, 0]).fixed().unwrap()
}

#[test]
fn those_who_wait_are_told_one_after_another_in_the_order_in_which_they_came() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut holder = Client::new(&service, "holder").await;
        let root = holder.root().await;
        let file = make(&mut holder, &root, "file").await;
        let open = opened(&mut holder, &root).await;
        let taken = holder.call(&[put_handle(&file), lock(&open, "holder")]).await;
        assert_eq!(taken.status, 0);
        let mut held: [u8; 16] = taken.body(&[SEQUENCE_BYTES, 0]).fixed().unwrap();
        let mut waiting = Vec::new();
        for (connection, name) in [(2, "first"), (3, "second"), (4, "third")] {
            let (mut client, line) = answering(&service, name, connection).await;
            let open = opened(&mut client, &root).await;
            assert_eq!(client.call(&[put_handle(&file), lock(&open, name)]).await.status, DENIED);
            waiting.push((client, line, open, name));
        }
        let mut mute = Client::new(&service, "mute").await;
        let mute_open = opened(&mut mute, &root).await;
        assert_eq!(mute.call(&[put_handle(&file), lock(&mute_open, "mute")]).await.status, DENIED);
        for at in 0..waiting.len() {
            let by = if at == 0 { &mut holder } else { &mut waiting[at - 1].0 };
            assert_eq!(by.call(&[put_handle(&file), unlock(&held)]).await.status, 0);
            for (_, line, ..) in &mut waiting[at + 1..] {
                assert!(line.is_quiet().await, "its turn has not come");
            }
            let (client, line, open, name) = &mut waiting[at];
            let called = line.next().await;
            assert_eq!(called.operation, NOTIFY_LOCK);
            let mut body = Decoder::new(called.body.clone());
            assert_eq!(body.opaque(128).unwrap(), file);
            body.u64().unwrap();
            assert_eq!(body.opaque(100).unwrap(), name.as_bytes());
            line.answer(&called, 0);
            let taken = client.call(&[put_handle(&file), lock(open, name)]).await;
            assert_eq!(taken.status, 0);
            held = taken.body(&[SEQUENCE_BYTES, 0]).fixed().unwrap();
        }
        let (client, ..) = waiting.last_mut().unwrap();
        assert_eq!(client.call(&[put_handle(&file), unlock(&held)]).await.status, 0);
        for (_, line, ..) in &mut waiting {
            assert!(line.is_quiet().await);
        }
    });
}

#[test]
fn whoever_gave_up_is_forgotten_and_those_behind_it_are_told() {
    run(async {
        let service = serve_calling(&volume()).await;
        let mut holder = Client::new(&service, "holder").await;
        let root = holder.root().await;
        let file = make(&mut holder, &root, "file").await;
        let open = opened(&mut holder, &root).await;
        let taken = holder.call(&[put_handle(&file), lock(&open, "holder")]).await;
        let held: [u8; 16] = taken.body(&[SEQUENCE_BYTES, 0]).fixed().unwrap();
        let (mut first, mut first_line) = answering(&service, "first", 2).await;
        let (mut second, mut second_line) = answering(&service, "second", 3).await;
        tokio::time::pause();
        for (client, name) in [(&mut first, "first"), (&mut second, "second")] {
            let open = opened(client, &root).await;
            assert_eq!(client.call(&[put_handle(&file), lock(&open, name)]).await.status, DENIED);
            tokio::time::advance(std::time::Duration::from_secs(60)).await;
        }
        assert_eq!(holder.call(&[put_handle(&file), unlock(&held)]).await.status, 0);
        let called = first_line.next().await;
        first_line.answer(&called, 0);
        assert!(second_line.is_quiet().await, "the first has not asked again");
        service.tend().await.unwrap();
        assert_eq!(second_line.next().await.operation, NOTIFY_LOCK);
    });
}
