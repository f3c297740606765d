//! What each procedure does, and what it answers.

use super::client::{
    ACCES, ACCESS, BAD_HANDLE, COMMIT, CREATE, EXISTS, FSINFO, FSSTAT, GETATTR, INVALID, IS_DIRECTORY, LINK, LOOKUP,
    MKDIR, MKNOD, NO_ENTRY, NOT_DIRECTORY, NOT_EMPTY, NOT_SYNC, PATHCONF, READ, READDIR, READLINK, REMOVE, RENAME,
    RMDIR, SETATTR, STALE, SYMLINK, Set, V3, WRITE, arguments, create, create_exclusive, link, make_directory, named,
    of, read, rename, set, symlink, write,
};
use crate::world::{run, serve, volume};

#[test]
fn files_are_made_written_read_and_removed() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        let before = client.attributes(&root).await;
        let mut made = client.done(CREATE, &create(&root, "file", true, Set::mode(0o640))).await;
        let file = made.handle();
        let attributes = made.after().unwrap();
        assert_eq!((attributes.kind, attributes.mode, attributes.links), (1, 0o640, 1));
        let (was, is) = made.change();
        assert_eq!(was, Some((before.size, before.modified, before.changed)));
        assert_eq!(is.unwrap(), client.attributes(&root).await);
        assert_ne!(is.unwrap().modified, before.modified);
        made.end();

        let data: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
        for (stable, offset) in [(0, 0), (1, 300_000), (2, 600_000)] {
            let mut written = client.done(WRITE, &write(&file, offset, stable, &data)).await;
            let (was, is) = written.change();
            assert_eq!((was.unwrap().0, is.unwrap().size), (offset, offset + 300_000));
            let committed = if stable == 0 { 0 } else { 2 };
            assert_eq!((written.body.u32(), written.body.u32()), (Ok(300_000), Ok(committed)));
            assert_eq!(written.body.fixed(), Ok([9; 8]), "the verifier of the service");
            written.end();
        }
        let mut committed = client.done(COMMIT, &read(&file, 0, 0)).await;
        assert_eq!(committed.change().1.unwrap().size, 900_000);
        assert_eq!(committed.body.fixed(), Ok([9; 8]));
        committed.end();
        let mut found = client.done(READ, &read(&file, 299_990, 100)).await;
        assert_eq!(found.after().unwrap().size, 900_000);
        assert_eq!((found.body.u32(), found.body.bool()), (Ok(100), Ok(false)));
        assert_eq!(found.body.opaque(100).unwrap(), [&data[299_990..], &data[..90]].concat());
        found.end();
        let mut found = client.done(READ, &read(&file, 899_999, 100)).await;
        found.after().unwrap();
        assert_eq!((found.body.u32(), found.body.bool()), (Ok(1), Ok(true)), "to its end");

        let mut removed = client.done(REMOVE, &named(&root, "file")).await;
        removed.change().0.expect("as it was");
        removed.end();
        assert_eq!(client.call(GETATTR, &of(&file)).await.status, STALE);
        assert_eq!(client.call(REMOVE, &named(&root, "file")).await.status, NO_ENTRY);
    });
}

#[test]
fn attributes_are_set_whole_and_guarded_by_the_time_of_their_last_change() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        let file = client.file(&root, "file", 0o600).await;
        let all = Set { mode: Some(0o4755), user: Some(5), group: Some(6), size: Some(10), modified: Some((7, 8)) };
        let changed = client.attributes(&file).await.changed;
        let stale = (changed.0, changed.1.wrapping_sub(1));
        let mut refused = client.call(SETATTR, &set(&file, all, Some(stale))).await;
        assert_eq!(refused.status, NOT_SYNC);
        assert_eq!(refused.change().1.unwrap().mode, 0o600, "nothing was changed");
        refused.end();
        let mut done = client.done(SETATTR, &set(&file, all, Some(changed))).await;
        let is = done.change().1.unwrap();
        assert_eq!((is.mode, is.owner, is.size, is.modified), (0o4755, (5, 6), 10, (7, 8)));
        done.end();
        assert_eq!(client.attributes(&file).await, is);
        for wrong in
            [Set { user: Some(u32::MAX), ..Set::default() }, Set { modified: Some((1, 1 << 30)), ..Set::default() }]
        {
            assert_eq!(client.call(SETATTR, &set(&file, wrong, None)).await.status, INVALID, "{wrong:?}");
        }
        assert_eq!(client.call(SETATTR, &set(&root, Set::size(0), None)).await.status, INVALID, "a directory");
    });
}

#[test]
fn creates_differ_in_what_they_do_about_a_file_that_is_there() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        let file = client.file(&root, "file", 0o600).await;
        client.done(WRITE, &write(&file, 0, 2, b"content")).await;
        assert_eq!(client.call(CREATE, &create(&root, "file", true, Set::mode(0o600))).await.status, EXISTS);
        let mut taken = client.done(CREATE, &create(&root, "file", false, Set::mode(0o777))).await;
        assert_eq!(taken.handle(), file);
        let is = taken.after().unwrap();
        assert_eq!((is.size, is.mode), (7, 0o600), "it is taken as it is");
        client.done(CREATE, &create(&root, "file", false, Set::size(0))).await;
        assert_eq!(client.attributes(&file).await.size, 0, "but for its length");

        let exclusive = create_exclusive(&root, "mine", *b"\xff\x01verify");
        let mine = client.done(CREATE, &exclusive).await.handle();
        assert_eq!(client.done(CREATE, &exclusive).await.handle(), mine, "the verifier tells that it was us");
        let other = create_exclusive(&root, "mine", *b"\xff\x02verify");
        assert_eq!(client.call(CREATE, &other).await.status, EXISTS);
        assert_eq!(client.call(CREATE, &create(&root, "..", false, Set::mode(0o600))).await.status, EXISTS);
        assert_eq!(client.call(CREATE, &create(&root, ".tandem", false, Set::mode(0o600))).await.status, ACCES);
        assert_eq!(client.call(CREATE, &create(&file, "x", false, Set::mode(0o600))).await.status, NOT_DIRECTORY);
    });
}

#[test]
fn directories_links_and_nodes_are_made() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        let links = client.attributes(&root).await.links;
        let mut made = client.done(MKDIR, &make_directory(&root, "dir", 0o750)).await;
        let directory = made.handle();
        assert_eq!((made.after().unwrap().kind, made.change().1.unwrap().links), (2, links + 1));
        made.end();
        let made = client.done(SYMLINK, &symlink(&directory, "to", "../file")).await.handle();
        let mut target = client.done(READLINK, &of(&made)).await;
        assert_eq!(target.after().unwrap().kind, 5);
        assert_eq!(target.body.opaque(100).unwrap(), "../file");
        target.end();
        assert_eq!(client.call(READLINK, &of(&directory)).await.status, INVALID);
        for (name, kind, device) in
            [("block", 3, true), ("character", 4, true), ("socket", 6, false), ("pipe", 7, false)]
        {
            let mut node = named(&directory, name);
            node.extend(arguments(|out| {
                out.u32(kind);
                Set::mode(0o600).put(out);
                if device {
                    out.u32(8);
                    out.u32(17);
                }
            }));
            let mut made = client.done(MKNOD, &node).await;
            made.handle();
            let is = made.after().unwrap();
            assert_eq!((is.kind, is.device), (kind, if device { (8, 17) } else { (0, 0) }), "{name}");
            let user = client.user(1000);
            let refused = user.call(MKNOD, &node).await.status;
            assert_eq!(refused, ACCES, "the directory is not theirs");
        }
        let file = arguments(|out| out.u32(1));
        let wrong = [named(&directory, "file"), file].concat();
        assert_eq!(client.call(MKNOD, &wrong).await.status, 10_007, "BADTYPE");
        assert_eq!(client.call(MKDIR, &make_directory(&root, "dir", 0o755)).await.status, EXISTS);
    });
}

#[test]
fn names_are_moved_linked_and_taken_away() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        let directory = client.done(MKDIR, &make_directory(&root, "dir", 0o755)).await.handle();
        let file = client.file(&root, "file", 0o644).await;
        let mut linked = client.done(LINK, &link(&file, (&directory, "linked"))).await;
        assert_eq!(linked.after().unwrap().links, 2);
        assert!(linked.change().0.is_some());
        linked.end();
        assert_eq!(client.call(LINK, &link(&file, (&directory, "linked"))).await.status, EXISTS);
        assert_eq!(client.call(LINK, &link(&directory, (&root, "hard"))).await.status, INVALID);
        let mut moved = client.done(RENAME, &rename((&root, "file"), (&directory, "moved"))).await;
        let (from, to) = (moved.change(), moved.change());
        moved.end();
        assert_eq!(from.1.unwrap(), client.attributes(&root).await);
        assert_eq!(to.1.unwrap(), client.attributes(&directory).await);
        assert_eq!(client.look_up(&directory, "moved").await, file);
        client.file(&root, "other", 0o644).await;
        for (from, to, expected) in [
            ("other", "dir", IS_DIRECTORY),
            ("dir", "other", NOT_DIRECTORY),
            ("none", "other", NO_ENTRY),
            (".", "other", INVALID),
            ("other", "a/b", ACCES),
        ] {
            let mut refused = client.call(RENAME, &rename((&root, from), (&root, to))).await;
            assert_eq!(refused.status, expected, "{from} to {to}");
            assert_eq!((refused.change().1, refused.change().1).0.unwrap(), client.attributes(&root).await);
            refused.end();
        }
        client.done(MKDIR, &make_directory(&root, "empty", 0o755)).await;
        assert_eq!(client.call(RENAME, &rename((&root, "empty"), (&root, "dir"))).await.status, NOT_EMPTY);
        assert_eq!(client.call(RMDIR, &named(&root, "dir")).await.status, NOT_EMPTY);
        assert_eq!(client.call(REMOVE, &named(&root, "dir")).await.status, IS_DIRECTORY);
        assert_eq!(client.call(RMDIR, &named(&root, "other")).await.status, NOT_DIRECTORY);
        assert_eq!(client.call(RMDIR, &named(&root, ".")).await.status, INVALID);
        assert_eq!(client.call(RMDIR, &named(&root, "..")).await.status, EXISTS);
        client.done(RMDIR, &named(&root, "empty")).await;
        client.done(REMOVE, &named(&directory, "linked")).await;
        assert_eq!(client.attributes(&file).await.links, 1);
    });
}

#[test]
fn names_lead_down_and_up_and_never_above_the_volume() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        let directory = client.done(MKDIR, &make_directory(&root, "dir", 0o755)).await.handle();
        let mut found = client.done(LOOKUP, &named(&root, "dir")).await;
        assert_eq!(found.body.opaque(64).unwrap(), directory);
        assert_eq!(found.after().unwrap().kind, 2);
        assert_eq!(found.after().unwrap(), client.attributes(&root).await);
        found.end();
        assert_eq!(client.look_up(&directory, "..").await, root);
        assert_eq!(client.look_up(&directory, ".").await, directory);
        assert_eq!(client.look_up(&root, "..").await, root, "above the volume there is nothing");
        for (name, expected) in [("none", NO_ENTRY), (".tandem", NO_ENTRY), ("", ACCES), ("a/b", ACCES)] {
            let mut refused = client.call(LOOKUP, &named(&root, name)).await;
            assert_eq!(refused.status, expected, "{name}");
            assert_eq!(refused.after().unwrap().kind, 2);
            refused.end();
        }
        assert_eq!(client.call(LOOKUP, &named(&root, &"x".repeat(256))).await.status, 63, "NAMETOOLONG");
    });
}

#[test]
fn handles_that_were_never_given_out_and_those_of_what_is_gone_are_told_apart() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        let mut above = [0; 20];
        above[0] = 1;
        for bad in [&b""[..], b"nonsense", &above] {
            assert_eq!(client.call(GETATTR, &of(bad)).await.status, BAD_HANDLE, "{bad:?}");
            let mut refused = client.call(READDIR, &super::client::list(bad, 0, &[4096])).await;
            assert_eq!((refused.status, refused.after()), (BAD_HANDLE, None));
            refused.end();
        }
        let mut other_volume = root.to_vec();
        other_volume[11] ^= 1;
        assert_eq!(client.call(GETATTR, &of(&other_volume)).await.status, STALE);
        let file = client.file(&root, "file", 0o644).await;
        client.done(REMOVE, &named(&root, "file")).await;
        client.file(&root, "next", 0o644).await;
        let mut refused = client.call(WRITE, &write(&file, 0, 2, b"to whom?")).await;
        assert_eq!((refused.status, refused.change()), (STALE, (None, None)));
        refused.end();
    });
}

#[test]
fn a_filesystem_tells_what_it_has_and_can() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        let mut usage = client.done(FSSTAT, &of(&root)).await;
        usage.after().unwrap();
        let [total, free, available] = [0; 3].map(|_| usage.body.u64().unwrap());
        assert!(total > free && free >= available && available > 0, "{total} {free} {available}");
        let [files, files_free, files_available] = [0; 3].map(|_| usage.body.u64().unwrap());
        assert!(files > files_free && files_free == files_available);
        assert_eq!(usage.body.u32(), Ok(0));
        usage.end();
        let mut limits = client.done(FSINFO, &of(&root)).await;
        limits.after().unwrap();
        let words = [0; 7].map(|_| limits.body.u32().unwrap());
        assert_eq!(words, [1 << 20, 1 << 20, 4096, 1 << 20, 1 << 20, 4096, 64 << 10]);
        assert_eq!(limits.body.u64(), Ok(1 << 44));
        assert_eq!([0; 3].map(|_| limits.body.u32().unwrap()), [0, 1, 0x1b]);
        limits.end();
        let mut paths = client.done(PATHCONF, &of(&root)).await;
        paths.after().unwrap();
        assert_eq!([0; 6].map(|_| paths.body.u32().unwrap()), [65_000, 255, 1, 1, 0, 1]);
        paths.end();
        let mut access = client
            .done(
                ACCESS,
                &arguments(|out| {
                    out.opaque(&root);
                    out.u32(0xffff_ffff);
                }),
            )
            .await;
        access.after().unwrap();
        assert_eq!(access.body.u32(), Ok(0x1f));
        access.end();
    });
}

#[test]
fn calls_of_other_versions_and_procedures_are_told_what_there_is() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let words = |reply: &[u8]| -> Vec<u32> {
            reply.chunks(4).skip(1).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
        };
        assert_eq!(words(&client.raw((100_003, 2), 0, &[]).await), [1, 0, 0, 0, 2, 3, 4], "PROG_MISMATCH");
        assert_eq!(words(&client.raw((100_005, 1), 0, &[]).await), [1, 0, 0, 0, 2, 3, 3]);
        assert_eq!(words(&client.raw((100_017, 1), 0, &[]).await), [1, 0, 0, 0, 1], "PROG_UNAVAIL");
        assert_eq!(words(&client.raw((100_003, 3), 0, &[]).await), [1, 0, 0, 0, 0], "NULL");
        assert_eq!(words(&client.raw((100_003, 3), 22, &[]).await), [1, 0, 0, 0, 3], "PROC_UNAVAIL");
        assert_eq!(words(&client.raw((100_003, 3), 1, &[0, 0, 0, 9]).await), [1, 0, 0, 0, 4], "GARBAGE_ARGS");
        let mut refused = client.user(crate::world::REFUSED);
        refused.xid.set(1);
        assert_eq!(words(&refused.raw((100_003, 3), 1, &of(&[])).await), [1, 1, 1, 5], "AUTH_TOOWEAK");
        refused.user = 0;
        assert_eq!(refused.call(GETATTR, &of(&[])).await.status, BAD_HANDLE);
    });
}
