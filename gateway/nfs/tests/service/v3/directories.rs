//! READDIR and READDIRPLUS.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::future::join_all;

use super::client::{LINK, READDIR, READDIRPLUS, REMOVE, TOO_SMALL, V3, link, list, named};
use crate::world::{run, serve, volume};

/// Calls under way at once where many are made.
const AT_ONCE: usize = 100;
const NAMES: usize = 20_000;

/// All names behind a cookie, each call asking for so much; `between` is done after each.
async fn names(
    client: &V3,
    (procedure, counts): (u32, &[u32]),
    directory: &Bytes,
    mut between: impl AsyncFnMut(&[String]),
) -> Vec<String> {
    let (mut names, mut cookie, mut seen) = (Vec::new(), 0, BTreeSet::new());
    loop {
        let mut reply = client.done(procedure, &list(directory, cookie, counts)).await;
        let bytes = reply.whole.len() - 24 - 4;
        assert!(bytes <= counts[counts.len() - 1] as usize, "{bytes} bytes where {counts:?} were asked for");
        let (entries, at_end) = reply.entries(procedure == READDIRPLUS);
        assert!(at_end || !entries.is_empty());
        for (name, at) in entries {
            match &*name {
                "." => assert_eq!(at, 1),
                ".." => assert_eq!(at, 2),
                _ => assert!(at > 2 && at >= cookie, "{name} at {at}"),
            }
            cookie = at;
            assert!(seen.insert(name.clone()), "{name} was told twice");
            names.push(name);
        }
        if at_end {
            return names;
        }
        between(&names).await;
    }
}

/// A directory with very many names of one file.
async fn many(client: &V3) -> Bytes {
    let root = client.root().await;
    let directory =
        client.done(super::client::MKDIR, &super::client::make_directory(&root, "many", 0o755)).await.handle();
    let file = client.file(&root, "file", 0o644).await;
    for chunk in (0..NAMES).collect::<Vec<_>>().chunks(AT_ONCE) {
        let calls = chunk.iter().map(|number| {
            let one = client.user(0);
            one.xid.set(1_000_000 + *number as u32);
            let arguments = link(&file, (&directory, &format!("name {number}")));
            async move { assert_eq!(one.again(LINK, &arguments).await.status, 0) }
        });
        join_all(calls).await;
    }
    directory
}

#[test]
fn every_name_of_a_large_directory_is_told_once_while_others_go() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let directory = many(&client).await;
        let told = names(&client, (READDIR, &[1024]), &directory, async |_| ()).await;
        assert_eq!(told.len(), NAMES + 2);
        let told = names(&client, (READDIRPLUS, &[4096, 32 << 10]), &directory, async |_| ()).await;
        assert_eq!(told.len(), NAMES + 2);
        // Every second name goes when it was told; those that stay are all told.
        let mut done = 0;
        let told = names(&client, (READDIR, &[4096]), &directory, async |told| {
            let new: Vec<_> = told[done..].iter().filter(|name| name.ends_with(['0', '2', '4', '6', '8'])).collect();
            join_all(new.iter().map(|name| async {
                let one = client.user(0);
                one.xid.set(2_000_000 + name[5..].parse::<u32>().unwrap());
                assert_eq!(one.again(REMOVE, &named(&directory, name)).await.status, 0);
            }))
            .await;
            done = told.len();
        })
        .await;
        assert_eq!(told.len(), NAMES + 2);
        let mut left = names(&client, (READDIRPLUS, &[32 << 10, 32 << 10]), &directory, async |_| ()).await;
        left.retain(|name| name.starts_with("name"));
        let odd = left.iter().filter(|name| name.ends_with(['1', '3', '5', '7', '9'])).count();
        assert_eq!(odd, NAMES / 2, "those that stayed");
        assert!(left.len() - odd <= 100, "the last reply's names were not taken away: {}", left.len() - odd);
    });
}

#[test]
fn the_volume_shows_itself_above_itself_and_hides_the_ring() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        for (procedure, counts) in [(READDIR, &[4096][..]), (READDIRPLUS, &[4096, 8192][..])] {
            let mut told = names(&client, (procedure, counts), &root, async |_| ()).await;
            told.sort();
            assert_eq!(told, [".", "..", "lost+found"]);
        }
        let mut first = client.done(READDIRPLUS, &list(&root, 1, &[1, 8192])).await;
        let (entries, at_end) = first.entries(true);
        assert_eq!((entries, at_end), (vec![("..".to_owned(), 2)], false), "as few as may be");
    });
}

#[test]
fn counts_and_cookies_that_cannot_be_are_refused() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        for count in [0, 8, 100, 110] {
            let mut refused = client.call(READDIR, &list(&root, 0, &[count])).await;
            assert_eq!(refused.status, TOO_SMALL, "{count}");
            assert!(refused.after().is_some());
            refused.end();
        }
        assert_eq!(client.call(READDIRPLUS, &list(&root, 0, &[4096, 150])).await.status, TOO_SMALL);
        assert_eq!(client.call(READDIR, &list(&root, 1 << 63, &[4096])).await.status, 10_003, "BAD_COOKIE");
        let file = client.file(&root, "file", 0o644).await;
        assert_eq!(client.call(READDIR, &list(&file, 0, &[4096])).await.status, super::client::NOT_DIRECTORY);
        let mut all = client.done(READDIR, &list(&root, 0, &[u32::MAX])).await;
        assert!(all.entries(false).1, "as much as there is");
    });
}
