//! One file under NFSv3 and NFSv4 at once.

use super::client::{
    CREATE, JUKEBOX, LOOKUP, NO_ENTRY, READ, REMOVE, RENAME, SETATTR, STALE, Set, V3, WRITE, create, named, read,
    rename, set, write,
};
use crate::world::{
    Client, SEQUENCE_BYTES, close, get_handle, operation, put_handle, read as read_v4, run, serve, serve_from, volume,
    write as write_v4,
};

const READ_ACCESS: u32 = 1;
const BOTH: u32 = 3;

/// OPEN of NFSv4 for this access, which denies others this; gives the stateid.
async fn open(client: &mut Client, root: &[u8], name: &str, access: u32, deny: u32) -> [u8; 16] {
    let open = operation(18, |out| {
        for word in [0, access, deny] {
            out.u32(word);
        }
        out.u64(0);
        out.opaque(b"owner");
        out.u32(0);
        out.u32(0);
        out.opaque(name.as_bytes());
    });
    let answer = client.call(&[put_handle(root), open, get_handle()]).await;
    assert_eq!(answer.status, 0);
    answer.body(&[SEQUENCE_BYTES, 0]).fixed().unwrap()
}

#[test]
fn both_see_the_same_file_by_the_same_handle() {
    run(async {
        let service = serve(&volume()).await;
        let (v3, mut v4) = (V3::new(&service), Client::new(&service, "four").await);
        let root = v4.root().await;
        assert_eq!(v3.root().await, root);
        let file = v3.file(&root, "file", 0o644).await;
        let stateid = open(&mut v4, &root, "file", BOTH, 0).await;
        assert_eq!(v4.call(&[put_handle(&file), write_v4(&stateid, 0, 2, b"of four")]).await.status, 0);
        v3.done(WRITE, &write(&file, 7, 2, b" and three")).await;
        let found = v4.call(&[put_handle(&file), read_v4(&stateid, 0, 100)]).await;
        let mut body = found.body(&[SEQUENCE_BYTES, 0]);
        assert_eq!((body.bool(), body.opaque(100).unwrap()), (Ok(true), "of four and three".into()));
    });
}

#[test]
fn a_share_reservation_makes_others_wait() {
    run(async {
        let service = serve(&volume()).await;
        let (v3, mut v4) = (V3::new(&service), Client::new(&service, "four").await);
        let root = v3.root().await;
        let file = v3.file(&root, "file", 0o644).await;
        let stateid = open(&mut v4, &root, "file", READ_ACCESS, 2).await;
        let before = v3.attributes(&file).await;
        for (procedure, arguments) in [
            (WRITE, write(&file, 0, 0, b"denied")),
            (WRITE, write(&file, 0, 2, b"denied")),
            (SETATTR, set(&file, Set::size(0), None)),
            (CREATE, create(&root, "file", false, Set::size(0))),
        ] {
            assert_eq!(v3.call(procedure, &arguments).await.status, JUKEBOX, "procedure {procedure}");
        }
        assert_eq!(v3.attributes(&file).await, before);
        v3.done(READ, &read(&file, 0, 10)).await;
        v3.done(SETATTR, &set(&file, Set::mode(0o600), None)).await;
        let waiting = write(&file, 0, 2, b"now");
        assert_eq!(v3.call(WRITE, &waiting).await.status, JUKEBOX);
        assert_eq!(v4.call(&[put_handle(&file), close(&stateid)]).await.status, 0);
        assert_eq!(v3.again(WRITE, &waiting).await.status, 0, "a retransmission of what was put off is done");
        let all = open(&mut v4, &root, "file", BOTH, 3).await;
        assert_eq!(v3.call(READ, &read(&file, 0, 10)).await.status, JUKEBOX);
        assert_eq!(v4.call(&[put_handle(&file), close(&all)]).await.status, 0);
    });
}

#[test]
fn a_removed_file_stays_for_clients_of_nfsv4_that_have_it_open() {
    run(async {
        let device = volume();
        let service = serve(&device).await;
        let (mut v3, mut v4) = (V3::new(&service), Client::new(&service, "four").await);
        let root = v3.root().await;
        let mut opened = Vec::new();
        for name in ["removed", "replaced"] {
            let file = v3.file(&root, name, 0o644).await;
            v3.done(WRITE, &write(&file, 0, 2, b"kept")).await;
            opened.push((open(&mut v4, &root, name, BOTH, 0).await, file));
        }
        v3.file(&root, "other", 0o644).await;
        v3.done(REMOVE, &named(&root, "removed")).await;
        v3.done(RENAME, &rename((&root, "other"), (&root, "replaced"))).await;
        assert_eq!(v3.call(LOOKUP, &named(&root, "removed")).await.status, NO_ENTRY);
        for _ in 0..2 {
            for (stateid, file) in &opened {
                let found = v4.call(&[put_handle(file), read_v4(stateid, 0, 10)]).await;
                assert_eq!(found.status, 0);
                let mut body = found.body(&[SEQUENCE_BYTES, 0]);
                assert_eq!((body.bool(), body.opaque(10).unwrap()), (Ok(true), "kept".into()));
                v3.done(READ, &read(file, 0, 10)).await;
            }
            let service = serve(&device).await;
            (v3.service, v4.service) = (service.clone(), service);
        }
        for (stateid, file) in &opened {
            assert_eq!(v4.call(&[put_handle(file), close(stateid)]).await.status, 0);
            assert_eq!(v3.call(READ, &read(file, 0, 10)).await.status, STALE);
        }
    });
}

#[test]
fn in_a_grace_period_data_is_left_alone() {
    run(async {
        let device = volume();
        let v3 = V3::new(&serve(&device).await);
        let root = v3.root().await;
        let file = v3.file(&root, "file", 0o644).await;
        // The service's own record is lost.
        let lost = serve_from(&device, |mut records| {
            records.retain(|record| record.id.kind != 1);
            records
        });
        let v3 = V3 { service: lost.await, ..v3 };
        for (procedure, arguments) in [
            (READ, read(&file, 0, 10)),
            (WRITE, write(&file, 0, 2, b"x")),
            (WRITE, write(&file, 0, 0, b"x")),
            (SETATTR, set(&file, Set::size(0), None)),
            (CREATE, create(&root, "new", true, Set::mode(0o600))),
        ] {
            assert_eq!(v3.call(procedure, &arguments).await.status, JUKEBOX, "procedure {procedure}");
        }
        v3.done(SETATTR, &set(&file, Set::mode(0o600), None)).await;
        v3.done(LOOKUP, &named(&root, "file")).await;
    });
}
