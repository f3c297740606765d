//! Calls that are not what they should be: each has an answer, and the service goes on.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::client::{
    GETATTR, Set, V3, arguments, create, create_exclusive, link, list, make_directory, named, of, read, rename, set,
    symlink, write,
};
use crate::world::{run, serve, volume};

const CALLS: usize = 20_000;

#[test]
fn calls_with_any_bytes_in_them_are_answered() {
    run(async {
        let client = V3::new(&serve(&volume()).await);
        let root = client.root().await;
        let file = client.file(&root, "file", 0o644).await;
        let access = [of(&file), arguments(|out| out.u32(0x3f))].concat();
        let node =
            [named(&root, "node"), arguments(|out| out.u32(7)), arguments(|out| Set::mode(0o600).put(out))].concat();
        let calls = [
            (1, of(&file)),
            (2, set(&file, Set { modified: Some((5, 6)), ..Set::size(100) }, Some((1, 2)))),
            (3, named(&root, "file")),
            (4, access),
            (5, of(&file)),
            (6, read(&file, 5, 100)),
            (7, write(&file, 7, 0, b"unstable")),
            (7, write(&file, 7, 2, b"stable")),
            (8, create(&root, "created", false, Set::mode(0o600))),
            (8, create_exclusive(&root, "exclusive", *b"verifier")),
            (9, make_directory(&root, "directory", 0o755)),
            (10, symlink(&root, "symlink", "target")),
            (11, node),
            (12, named(&root, "created")),
            (13, named(&root, "directory")),
            (14, rename((&root, "exclusive"), (&root, "created"))),
            (15, link(&file, (&root, "linked"))),
            (16, list(&root, 0, &[4096])),
            (17, list(&root, 0, &[4096, 8192])),
            (18, of(&root)),
            (19, of(&root)),
            (20, of(&root)),
            (21, read(&file, 0, 0)),
        ];
        let paths = [b"/vol".to_vec(), b"/vol/lost+found".to_vec()].map(|path| of(&path));
        let mut random = StdRng::seed_from_u64(1813);
        for number in 0..CALLS {
            client.xid.set(client.xid.get() + 1);
            let (program, procedure, mut bytes) = match random.random_range(0..10) {
                0 => ((100_005, 3), random.random_range(0..7), paths[number % 2].clone()),
                _ => {
                    let (procedure, bytes) = &calls[random.random_range(0..calls.len())];
                    ((100_003, 3), *procedure, bytes.clone())
                }
            };
            for _ in 0..random.random_range(0..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = [0, 1, 2, 4, 0x7f, 0x80, 0xff, random.random()][random.random_range(0..8)];
            }
            if random.random_range(0..8) == 0 {
                bytes.truncate(random.random_range(0..bytes.len()));
            }
            let reply = client.raw(program, procedure, &bytes).await;
            assert_eq!(reply[..8], [&client.xid.get().to_be_bytes()[..], &[0, 0, 0, 1]].concat(), "a reply to it");
        }
        assert_eq!(client.done(GETATTR, &of(&root)).await.attributes().kind, 2);
    });
}
