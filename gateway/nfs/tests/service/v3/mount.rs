//! MOUNT.

use bytes::Bytes;
use gateway_nfs::xdr::Decoder;

use super::client::{ACCES, MKDIR, NO_ENTRY, NOT_DIRECTORY, SYMLINK, V3, arguments, make_directory, symlink};
use crate::world::{REFUSED, run, serve, volume};

const MOUNT: (u32, u32) = (100_005, 3);
const DUMP: u32 = 2;
const UNMOUNT: u32 = 3;
const UNMOUNT_ALL: u32 = 4;
const EXPORT: u32 = 5;

/// Behind the head of an accepted reply.
fn body(reply: &Bytes) -> Decoder {
    let mut body = Decoder::new(reply.clone());
    body.u32().unwrap();
    assert_eq!([0; 5].map(|_| body.u32().unwrap()), [1, 0, 0, 0, 0]);
    body
}

/// Who has mounted what.
async fn mounts(client: &V3) -> Vec<(Bytes, Bytes)> {
    let mut body = body(&client.raw(MOUNT, DUMP, &[]).await);
    let mut mounts = Vec::new();
    while body.bool().unwrap() {
        mounts.push((body.opaque(255).unwrap(), body.opaque(1024).unwrap()));
    }
    assert_eq!(body.finish(), Ok(()));
    mounts
}

#[test]
fn directories_of_the_volume_are_mounted_and_nothing_else() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let mut root = client.mount("/vol").await;
        let handle = root.body.opaque(64).unwrap();
        assert_eq!((root.body.u32(), root.body.u32()), (Ok(1), Ok(1)), "AUTH_SYS alone");
        root.end();
        let above = client.done(MKDIR, &make_directory(&handle, "dir", 0o755)).await.handle();
        let below = client.done(MKDIR, &make_directory(&above, "sub", 0o700)).await.handle();
        client.done(SYMLINK, &symlink(&handle, "link", "dir")).await;
        client.file(&handle, "file", 0o644).await;
        assert_eq!(client.mount("/vol/dir/sub/").await.body.opaque(64).unwrap(), below);
        for (path, expected) in [
            ("/", NO_ENTRY),
            ("", NO_ENTRY),
            ("/none", NO_ENTRY),
            ("/far", NO_ENTRY),
            ("/vol/none", NO_ENTRY),
            ("/vol/.tandem", NO_ENTRY),
            ("/vol/file", NOT_DIRECTORY),
            ("/vol/link", NOT_DIRECTORY),
            ("/vol/link/sub", NOT_DIRECTORY),
            ("/vol/dir/../dir", 22),
        ] {
            let refused = client.mount(path).await;
            assert_eq!(refused.status, expected, "{path}");
            refused.end();
        }
        assert_eq!(client.mount(&format!("/vol/{}", "x".repeat(300))).await.status, 63);
        assert_eq!(client.mount(&format!("/vol{}", "/x".repeat(600))).await.status, 63);
        let user = client.user(1000);
        assert_eq!(user.mount("/vol/dir/sub").await.status, 0, "the directory itself need not be open to it");
        client.done(MKDIR, &make_directory(&below, "deep", 0o755)).await;
        assert_eq!(user.mount("/vol/dir/sub/deep").await.status, ACCES);
        assert_eq!(client.user(REFUSED).mount("/vol").await.status, ACCES, "no export names it");
    });
}

#[test]
fn mounts_are_listed_until_they_are_gone() {
    run(async {
        let one = V3::new(&serve(&volume()).await);
        let two = V3 { address: "2001:db8::7".parse().unwrap(), ..one.user(0) };
        for client in [&one, &two, &one] {
            assert_eq!(client.mount("/vol").await.status, 0);
            assert_eq!(client.mount("/vol/lost+found").await.status, 0);
        }
        assert_eq!(one.mount("/none").await.status, NO_ENTRY);
        let of = |client: &'static str, path: &'static str| (Bytes::from(client), Bytes::from(path));
        let all = [
            of("192.0.2.1", "/vol"),
            of("192.0.2.1", "/vol/lost+found"),
            of("2001:db8::7", "/vol"),
            of("2001:db8::7", "/vol/lost+found"),
        ];
        assert_eq!(mounts(&one).await, all);
        let path = arguments(|out| out.opaque(b"/vol"));
        assert_eq!(body(&one.raw(MOUNT, UNMOUNT, &path).await).finish(), Ok(()));
        assert_eq!(mounts(&two).await, all[1..]);
        assert_eq!(body(&two.raw(MOUNT, UNMOUNT_ALL, &[]).await).finish(), Ok(()));
        assert_eq!(mounts(&one).await, all[1..2]);
        assert!(mounts(&one.user(REFUSED)).await.is_empty(), "not to whom no export names");
    });
}

#[test]
fn exports_tell_the_volume_and_whom_they_name() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let mut exports = body(&client.raw(MOUNT, EXPORT, &[]).await);
        assert_eq!((exports.bool(), exports.opaque(255).unwrap()), (Ok(true), "/vol".into()));
        for network in ["192.0.2.0/24", "2001:db8::/32"] {
            assert_eq!((exports.bool(), exports.opaque(255).unwrap()), (Ok(true), network.into()));
        }
        assert_eq!((exports.bool(), exports.bool()), (Ok(false), Ok(false)));
        assert_eq!(exports.finish(), Ok(()));
        let mut refused = body(&client.user(REFUSED).raw(MOUNT, EXPORT, &[]).await);
        assert_eq!((refused.bool(), refused.finish()), (Ok(false), Ok(())));
        assert_eq!(body(&client.raw(MOUNT, 0, &[]).await).finish(), Ok(()), "NULL");
    });
}
