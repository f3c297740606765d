//! What compounds do to files, and what they answer.

use crate::world::{
    Client, REFUSED, SEQUENCE_BYTES, close, commit, get_handle, lookup, make_directory, open, operation, put_handle,
    put_root, read, remove, run, serve, volume, write,
};

const EXISTS: u32 = 17;
const NO_ENTRY: u32 = 2;
const ACCESS: u32 = 13;
const FALSE_RETRY: u32 = 10_076;
const MISORDERED: u32 = 10_063;
/// The bytes of a result that tells how a directory changed.
const CHANGE_BYTES: usize = 20;

#[test]
fn files_are_made_written_read_and_removed() {
    run(async {
        let service = serve(&volume()).await;
        let mut client = Client::new(&service, "one").await;
        let root = client.root().await;
        let opened = client.call(&[put_handle(&root), open("me", "file", true), get_handle()]).await;
        assert_eq!((opened.status, opened.count), (0, 4));
        let mut body = opened.body(&[SEQUENCE_BYTES, 0]);
        let stateid = body.fixed::<16>().unwrap();
        body.fixed::<CHANGE_BYTES>().unwrap();
        assert_eq!(body.u32(), Ok(4), "locks as POSIX has them");
        assert_eq!(body.array(3, |body| body.u32()).unwrap(), [0, 2], "the mode was set");
        assert_eq!(body.u32(), Ok(0), "no delegation");
        body.u64().unwrap();
        let file = body.opaque(128).unwrap();

        let data = vec![7; 300_000];
        let written = client.call(&[put_handle(&file), write(&stateid, 5, 0, &data), commit()]).await;
        assert_eq!(written.status, 0);
        let mut body = written.body(&[SEQUENCE_BYTES, 0]);
        assert_eq!((body.u32(), body.u32(), body.fixed()), (Ok(300_000), Ok(0), Ok([9; 8])));
        let whole = client.call(&[put_handle(&file), read(&stateid, 0, 1 << 20)]).await;
        let mut body = whole.body(&[SEQUENCE_BYTES, 0]);
        assert_eq!(body.bool(), Ok(true), "to its end");
        let found = body.opaque(1 << 20).unwrap();
        assert_eq!((&found[..5], &found[5..]), (&[0; 5][..], &data[..]));

        // Stable at once, both with the transaction and before it.
        for length in [1000, 200_000] {
            let stable = client.call(&[put_handle(&file), write(&stateid, 0, 2, &vec![8; length])]).await;
            let mut body = stable.body(&[SEQUENCE_BYTES, 0]);
            assert_eq!((body.u32(), body.u32()), (Ok(length as u32), Ok(2)));
        }
        assert_eq!(client.call(&[put_handle(&file), close(&stateid)]).await.status, 0);
        assert_eq!(client.call(&[put_handle(&root), remove("file")]).await.status, 0);
        assert_eq!(client.call(&[put_handle(&root), lookup("file")]).await.status, NO_ENTRY);
        assert_eq!(client.call(&[put_handle(&file)]).await.status, 70, "stale");
    });
}

#[test]
fn a_removed_file_stays_for_those_who_have_it_open() {
    run(async {
        let service = serve(&volume()).await;
        let mut client = Client::new(&service, "one").await;
        let root = client.root().await;
        let opened = client.call(&[put_handle(&root), open("me", "file", true), get_handle()]).await;
        let mut body = opened.body(&[SEQUENCE_BYTES, 0]);
        let stateid = body.fixed::<16>().unwrap();
        body.fixed::<{ CHANGE_BYTES + 4 + 12 + 4 + 8 }>().unwrap();
        let file = body.opaque(128).unwrap();
        assert_eq!(client.call(&[put_handle(&root), remove("file")]).await.status, 0);
        let written = client.call(&[put_handle(&file), write(&stateid, 0, 2, b"still here")]).await;
        assert_eq!(written.status, 0);
        let found = client.call(&[put_handle(&file), read(&stateid, 0, 100)]).await;
        let mut body = found.body(&[SEQUENCE_BYTES, 0]);
        assert_eq!((body.bool(), body.opaque(100).unwrap()), (Ok(true), "still here".into()));
        assert_eq!(client.call(&[put_handle(&file), close(&stateid)]).await.status, 0);
        // It is given back in the background.
        loop {
            match client.call(&[put_handle(&file)]).await.status {
                0 => tokio::task::yield_now().await,
                status => break assert_eq!(status, 70),
            }
        }
    });
}

#[test]
fn a_compound_ends_with_the_first_refusal_and_keeps_what_came_before() {
    run(async {
        let service = serve(&volume()).await;
        let mut client = Client::new(&service, "one").await;
        let root = client.root().await;
        let both = [
            put_handle(&root),
            make_directory("a"),
            put_handle(&root),
            make_directory("a"),
            put_handle(&root),
            make_directory("b"),
        ];
        let answer = client.call(&both).await;
        assert_eq!((answer.status, answer.count), (EXISTS, 5));
        assert_eq!(client.call(&[put_handle(&root), lookup("a")]).await.status, 0);
        assert_eq!(client.call(&[put_handle(&root), lookup("b")]).await.status, NO_ENTRY);
    });
}

#[test]
fn a_retry_has_the_same_answer_and_another_request_in_its_place_is_refused() {
    run(async {
        let service = serve(&volume()).await;
        let mut client = Client::new(&service, "one").await;
        let root = client.root().await;
        let make = [put_handle(&root), make_directory("a")];
        let answer = client.call(&make).await;
        assert_eq!(answer.status, 0);
        assert_eq!(client.again(&make).await, answer);
        assert_eq!(client.again(&[put_handle(&root), make_directory("b")]).await.status, FALSE_RETRY);
        client.sequence += 1;
        assert_eq!(client.call(&make).await.status, MISORDERED);
        client.sequence -= 1;
        assert_eq!(client.again(&make).await.status, EXISTS, "a new request");
    });
}

#[test]
fn permissions_hold_and_the_ring_is_hidden() {
    run(async {
        let service = serve(&volume()).await;
        let mut root_user = Client::new(&service, "root").await;
        let root = root_user.root().await;
        assert_eq!(root_user.call(&[put_handle(&root), make_directory("dir")]).await.status, 0);
        let mut user = Client::new(&service, "user").await;
        user.user = 1000;
        assert_eq!(user.call(&[put_handle(&root), lookup("dir"), make_directory("mine")]).await.status, ACCESS);
        assert_eq!(user.call(&[put_handle(&root), remove("dir")]).await.status, ACCESS);
        assert_eq!(root_user.call(&[put_handle(&root), lookup(".tandem")]).await.status, NO_ENTRY);
        let list = operation(26, |out| {
            out.u64(0);
            out.u64(0);
            out.u32(4096);
            out.u32(4096);
            out.u32(0);
        });
        let answer = root_user.call(&[put_handle(&root), list]).await;
        assert_eq!(answer.status, 0);
        let mut body = answer.body(&[SEQUENCE_BYTES, 0]);
        body.u64().unwrap();
        let mut names = Vec::new();
        while body.bool().unwrap() {
            assert!(body.u64().unwrap() > 2);
            names.push(body.opaque(255).unwrap());
            assert_eq!((body.u32(), body.u32()), (Ok(0), Ok(0)), "no attributes");
        }
        assert_eq!(body.bool(), Ok(true), "the end");
        names.sort();
        assert_eq!(names, ["dir", "lost+found"]);
    });
}

#[test]
fn the_directory_above_shows_the_volume_and_cannot_be_changed() {
    run(async {
        let service = serve(&volume()).await;
        let mut client = Client::new(&service, "one").await;
        assert_eq!(client.call(&[put_root(), lookup("other")]).await.status, NO_ENTRY);
        assert_eq!(client.call(&[put_root(), make_directory("x")]).await.status, 30, "read-only");
        let up = operation(16, |_| ());
        let above = client.call(&[put_root(), lookup("vol"), up, get_handle()]).await;
        let top = client.call(&[put_root(), get_handle()]).await;
        assert_eq!(above.body(&[SEQUENCE_BYTES, 0, 0, 0]).opaque(128), top.body(&[SEQUENCE_BYTES, 0]).opaque(128));
    });
}

#[test]
fn whom_no_export_names_gets_no_answer_but_a_refusal() {
    run(async {
        let service = serve(&volume()).await;
        let mut client = Client::new(&service, "one").await;
        let root = client.root().await;
        client.user = REFUSED;
        let sequence = client.sequence;
        let exchange = operation(42, |out| {
            out.fixed(&[1; 8]);
            out.opaque(b"another");
            (0..3).for_each(|_| out.u32(0));
        });
        for operations in [[exchange], [put_handle(&root)]] {
            let reply = client.send_raw(&operations).await;
            // Denied, for the credential is too weak (RFC 5531 §9).
            assert_eq!(&reply[4..], [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 5], "{operations:?}");
        }
        // Once it may again, its session goes on where it was.
        client.user = 0;
        assert_eq!(client.sequence, sequence);
        assert_eq!(client.call(&[put_handle(&root)]).await.status, 0);
    });
}
