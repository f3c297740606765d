//! Who may do what, and where there is no room.

use super::client::{
    ACCES, ACCESS, COMMIT, CREATE, GETATTR, LINK, MKDIR, READ, READ_ONLY, READDIR, REMOVE, RENAME, SETATTR, SYMLINK,
    Set, V3, WRITE, arguments, create, link, list, make_directory, named, of, read, rename, set, symlink, write,
};
use crate::world::{Client, READER, open, put_handle, run, serve, volume};

const PERMISSION: u32 = 1;
const NO_SPACE: u32 = 28;

#[test]
fn the_owner_reads_and_writes_whatever_the_mode_says_and_others_do_not() {
    run(async {
        let root_user = V3::new(&serve(&volume()).await);
        let root = root_user.root().await;
        root_user.done(SETATTR, &set(&root, Set::mode(0o777), None)).await;
        let owner = root_user.user(1000);
        let other = root_user.user(2000);
        let file = owner.file(&root, "file", 0o000).await;
        owner.done(WRITE, &write(&file, 0, 2, b"mine")).await;
        owner.done(READ, &read(&file, 0, 4)).await;
        owner.done(SETATTR, &set(&file, Set::size(2), None)).await;
        for (procedure, arguments, expected) in [
            (WRITE, write(&file, 0, 2, b"not mine"), ACCES),
            (WRITE, write(&file, 0, 0, b"not mine"), ACCES),
            (READ, read(&file, 0, 4), ACCES),
            (SETATTR, set(&file, Set::size(0), None), ACCES),
            (SETATTR, set(&file, Set::mode(0o777), None), PERMISSION),
            (SETATTR, set(&file, Set { user: Some(2000), ..Set::default() }, None), PERMISSION),
        ] {
            assert_eq!(other.call(procedure, &arguments).await.status, expected, "procedure {procedure}");
        }
        // Whoever may run a program has to read it.
        owner.done(SETATTR, &set(&file, Set::mode(0o001), None)).await;
        other.done(READ, &read(&file, 0, 4)).await;
        assert_eq!(other.call(WRITE, &write(&file, 0, 2, b"x")).await.status, ACCES);
        let mut access = other
            .done(
                ACCESS,
                &arguments(|out| {
                    out.opaque(&file);
                    out.u32(0x3f);
                }),
            )
            .await;
        access.after().unwrap();
        assert_eq!(access.body.u32(), Ok(0x20), "to execute");
        let private = owner.done(MKDIR, &make_directory(&root, "private", 0o700)).await.handle();
        assert_eq!(other.call(READDIR, &list(&private, 0, &[4096])).await.status, ACCES);
        assert_eq!(other.call(CREATE, &create(&private, "x", true, Set::mode(0o600))).await.status, ACCES);
        assert_eq!(other.call(MKDIR, &make_directory(&private, "x", 0o700)).await.status, ACCES);
    });
}

#[test]
fn who_does_not_say_who_it_is_is_nobody() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        client.done(SETATTR, &set(&root, Set::mode(0o1777), None)).await;
        let mut nobody = client.user(5);
        nobody.nameless = true;
        let file = nobody.file(&nobody.root().await, "file", 0o600).await;
        assert_eq!(client.attributes(&file).await.owner, (65_534, 65_534));
        assert_eq!(client.user(1000).call(REMOVE, &named(&root, "file")).await.status, ACCES, "it is sticky");
        nobody.done(REMOVE, &named(&root, "file")).await;
        // As clients do that name the owner, for whom an export makes somebody else of it.
        let of_root = Set { mode: Some(0o600), user: Some(0), group: Some(0), ..Set::default() };
        let file = nobody.done(CREATE, &create(&root, "named", true, of_root)).await.handle();
        assert_eq!(client.attributes(&file).await.owner, (65_534, 65_534));
    });
}

#[test]
fn a_read_only_export_lets_read_and_nothing_else() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        let file = client.file(&root, "file", 0o644).await;
        client.done(WRITE, &write(&file, 0, 2, b"content")).await;
        let before = (client.attributes(&root).await, client.attributes(&file).await);
        let reader = client.user(READER);
        for (procedure, arguments) in [
            (SETATTR, set(&file, Set::mode(0o600), None)),
            (SETATTR, set(&file, Set::size(0), None)),
            (WRITE, write(&file, 0, 0, b"x")),
            (WRITE, write(&file, 0, 2, b"x")),
            (CREATE, create(&root, "new", true, Set::mode(0o600))),
            (CREATE, create(&root, "file", false, Set::size(0))),
            (MKDIR, make_directory(&root, "new", 0o755)),
            (SYMLINK, symlink(&root, "new", "to")),
            (REMOVE, named(&root, "file")),
            (RENAME, rename((&root, "file"), (&root, "new"))),
            (LINK, link(&file, (&root, "new"))),
        ] {
            assert_eq!(reader.call(procedure, &arguments).await.status, READ_ONLY, "procedure {procedure}");
        }
        assert_eq!((client.attributes(&root).await, client.attributes(&file).await), before);
        reader.done(READ, &read(&file, 0, 7)).await;
        reader.done(GETATTR, &of(&file)).await;
        reader.done(COMMIT, &read(&file, 0, 0)).await;
        let mut access = reader
            .done(
                ACCESS,
                &arguments(|out| {
                    out.opaque(&file);
                    out.u32(0x3f);
                }),
            )
            .await;
        access.after().unwrap();
        assert_eq!(access.body.u32(), Ok(0x01), "to read");
    });
}

#[test]
fn a_full_disk_refuses_what_needs_room_and_nothing_else() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        let file = client.file(&root, "file", 0o644).await;
        let piece = vec![7; 1 << 20];
        let mut offset = 0;
        for stable in [0, 2] {
            loop {
                let mut reply = client.call(WRITE, &write(&file, offset, stable, &piece)).await;
                if reply.status == NO_SPACE {
                    assert_eq!(reply.change().1.unwrap().size, offset, "what was written is told");
                    break;
                }
                assert_eq!(reply.status, 0);
                offset += piece.len() as u64;
                assert!(offset < 64 << 20, "the volume has no end");
            }
        }
        assert!(offset >= 4 << 20);
        client.done(COMMIT, &read(&file, 0, 0)).await;
        client.done(READ, &read(&file, offset - 100, 100)).await;
        client.done(SETATTR, &set(&file, Set::size(0), None)).await;
        client.done(WRITE, &write(&file, 0, 2, &piece)).await;
        client.done(REMOVE, &named(&root, "file")).await;
    });
}

/// The ring of these tests has room for far fewer replies than would be kept.
#[test]
fn replies_of_long_ago_make_room_in_a_full_ring() {
    run(async {
        let device = volume();
        let client = V3::new(&serve(&device).await);
        let root = client.root().await;
        for address in 0..8 {
            let one = V3 { address: [10, 0, 0, address].into(), ..client.user(0) };
            for number in 0..600 {
                let name = format!("{address}.{number}");
                let made = one.call(MKDIR, &make_directory(&root, &name, 0o755)).await;
                assert_eq!(made.status, 0, "{name}");
                let removed = one.call(super::client::RMDIR, &named(&root, &name)).await;
                assert_eq!(removed.status, 0, "{name}");
            }
        }
        // Clients of NFSv4 open files all the same.
        client.file(&root, "file", 0o644).await;
        let mut v4 = Client::new(&client.service, "four").await;
        for owner in 0..20 {
            let owner = format!("{owner:0>1000}");
            assert_eq!(v4.call(&[put_handle(&root), open(&owner, "file", false)]).await.status, 0);
        }
        // The newest are there all the same, after a takeover too.
        let name = make_directory(&root, "last", 0o755);
        let first = client.done(MKDIR, &name).await;
        let after = V3 { service: serve(&device).await, ..client };
        assert_eq!(after.again(MKDIR, &name).await.whole, first.whole);
    });
}
