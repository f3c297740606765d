//! ACLs against the kernel, on loop mounts.

mod image;

use filesystem::BlockNumber;
use filesystem::attributes::{Format, Place, acl};
use filesystem::layout::acl::{Acl, AclEntry, Guard, Inherited, Permissions, Subject, Tag};
use filesystem::layout::xattr::body;
use image::{Blocks, Image, Mount, hex, u32_at};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FEATURES: &str = "metadata_csum,^has_journal";

/// A valid list with up to two users and two groups named.
fn random_acl(random: &mut ChaCha8Rng) -> Acl {
    let mut tags = vec![Tag::Owner];
    tags.extend([1001, 1002].into_iter().filter(|_| random.random()).map(Tag::User));
    tags.push(Tag::OwningGroup);
    tags.extend([2001, 2002].into_iter().filter(|_| random.random()).map(Tag::Group));
    if tags.len() > 2 || random.random() {
        tags.push(Tag::Mask);
    }
    tags.push(Tag::Other);
    let entry = |tag| AclEntry { tag, permissions: Permissions::new(random.random_range(0..8)).unwrap() };
    Acl::new(tags.into_iter().map(entry).collect::<Vec<_>>()).unwrap()
}

/// What is kept on disk for a path: mode, access ACL, default ACL.
fn kept(image: &Image, path: &str) -> (u16, Option<Acl>, Option<Acl>) {
    let number = image.inode_of(path);
    let inode = image.inode(number);
    let format = Format { block_bytes: image.block_bytes, seed: image.seed() };
    let block = u32_at(&inode, 0x68);
    let place = Place {
        inode: number,
        body: &inode[body::range(&inode, number).unwrap()],
        block: (block != 0).then_some(BlockNumber(block.into())),
    };
    let mut blocks = Blocks::new(image);
    let mut read = |kind| acl::read(&mut blocks, format, place, kind).unwrap();
    (u16::from_le_bytes([inode[0], inode[1]]), read(acl::Kind::Access), read(acl::Kind::Default))
}

#[test]
fn inheritance_is_that_of_the_kernel_which_needs_root_and_loop() {
    let seed = 41;
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let image = Image::new(4096, 256, FEATURES);
    let mut script = String::new();
    let mut cases = Vec::new();
    for case in 0..12 {
        let default = random_acl(&mut random);
        let (mode, umask): (u16, u16) = (random.random_range(0..0o1000), random.random_range(0..0o1000));
        let value = hex(&default.to_xattr());
        script += &format!("os.umask(0)\nos.mkdir('p{case}')\n");
        script += &format!("os.setxattr('p{case}', 'system.posix_acl_default', bytes.fromhex('{value}'))\n");
        script += &format!("os.umask({umask})\nos.mkdir('p{case}/d', {mode})\n");
        script += &format!("os.close(os.open('p{case}/f', os.O_CREAT | os.O_WRONLY, {mode}))\n");
        cases.push((default, mode, umask));
    }
    script += "os.umask(0o027)\nos.close(os.open('plain', os.O_CREAT | os.O_WRONLY, 0o666))";
    Mount::new(&image).python(&script);
    for (case, (default, mode, umask)) in cases.iter().enumerate() {
        assert_eq!(kept(&image, &format!("p{case}")).2.as_ref(), Some(default));
        for (path, kind, is_directory) in [("d", 0o040000, true), ("f", 0o100000, false)] {
            let ours = Inherited::new(Some(default), kind | mode, *umask, is_directory);
            let theirs = kept(&image, &format!("p{case}/{path}"));
            assert_eq!((ours.mode, ours.access, ours.default), theirs, "{default:?}, mode {mode:o}, umask {umask:o}");
        }
    }
    let ours = Inherited::new(None, 0o100666, 0o027, false);
    assert_eq!((ours.mode, ours.access, ours.default), kept(&image, "plain"));
}

#[test]
fn setting_and_chmod_are_those_of_the_kernel_which_needs_root_and_loop() {
    let seed = 42;
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let image = Image::new(1024, 256, FEATURES);
    let mut script = String::new();
    let mut cases = Vec::new();
    for case in 0..20 {
        let (acl, mode): (Acl, u16) = (random_acl(&mut random), random.random_range(0..0o1000));
        let value = hex(&acl.to_xattr());
        for file in ["s", "c"] {
            script += &format!("open('{file}{case}', 'w').close()\n");
            script += &format!("os.setxattr('{file}{case}', 'system.posix_acl_access', bytes.fromhex('{value}'))\n");
        }
        script += &format!("os.chmod('c{case}', {mode})\n");
        cases.push((acl, mode));
    }
    Mount::new(&image).python(&script);
    for (case, (acl, mode)) in cases.into_iter().enumerate() {
        let set = (acl.mode(0o100000), Some(acl.clone()).filter(Acl::is_extended), None);
        assert_eq!(set, kept(&image, &format!("s{case}")));
        let changed = Some(acl.with_mode(mode)).filter(Acl::is_extended);
        assert_eq!((0o100000 | mode, changed, None), kept(&image, &format!("c{case}")));
    }
}

#[test]
fn access_is_that_of_the_kernel_which_needs_root_and_loop() {
    let seed = 43;
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let image = Image::new(1024, 256, FEATURES);
    let subjects: [(u32, u32, &[u32]); 7] = [
        (1000, 5, &[]),
        (1001, 5, &[2001]),
        (1002, 2000, &[]),
        (7, 2000, &[2002]),
        (7, 2001, &[2002]),
        (7, 5, &[2002]),
        (7, 5, &[]),
    ];
    let mut script = "os.chmod('.', 0o755)\nos.umask(0)\n".to_owned();
    let mut acls = Vec::new();
    for case in 0..30 {
        let acl = random_acl(&mut random);
        let value = hex(&acl.to_xattr());
        script += &format!("open('f{case}', 'w').close()\nos.chown('f{case}', 1000, 2000)\n");
        script += &format!("os.setxattr('f{case}', 'system.posix_acl_access', bytes.fromhex('{value}'))\n");
        acls.push(acl);
    }
    for (user, group, groups) in subjects {
        script += &format!("os.setgroups({groups:?})\nos.setegid({group})\nos.seteuid({user})\n");
        script += "print(*[int(os.access(f'f{c}', w, effective_ids=True)) for c in range(30) for w in range(1, 8)])\n";
        script += "os.seteuid(0)\nos.setegid(0)\n";
    }
    // The mount is below a directory that only root may enter.
    let said = Mount::new(&image).python(&script);
    let answers: Vec<bool> = said.split_whitespace().map(|word| word == "1").collect();
    let mut answers = answers.into_iter();
    let mut granted = 0;
    for (user, group, groups) in subjects {
        for acl in &acls {
            let mode = acl.mode(0o100000);
            let guard = Guard { owner: 1000, group: 2000, mode, acl: Some(acl).filter(|acl| acl.is_extended()) };
            for wanted in 1..8 {
                let ours = guard.permits(Subject { user, group, groups }, Permissions::new(wanted).unwrap());
                granted += u32::from(ours);
                assert_eq!(Some(ours), answers.next(), "{user} {group} {groups:?} wants {wanted} of {acl:?}");
            }
        }
    }
    assert_eq!(answers.next(), None);
    assert!(granted > 100);
}
