//! Attributes of files through the engine: judged by the kernel on a loop mount, by e2fsck, and by our own second reading.

mod image;

use std::collections::BTreeMap;

use block_device::{BlockDevice, RamDevice};
use filesystem::attributes::acl::Kind;
use filesystem::engine::{
    AttributeChanges, Created, Failure, Filesystem, Handle, NewFile, Options, Pending, Place, Rename, change_attribute,
};
use filesystem::journal::CommitTime;
use filesystem::layout::acl::Acl;
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::inode::Inode;
use filesystem::layout::timestamp::Timestamp;
use filesystem::layout::xattr::SetMode;
use filesystem::units::ROOT_INODE;
use filesystem::{InodeNumber, Refusal, Stop};
use image::{Image, Mount, hex};
use tokio::runtime::Builder;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Bytes of a block and of an inode, and features.
const SHAPES: [(usize, usize, &str); 3] = [
    (4096, 256, "metadata_csum,metadata_csum_seed"),
    (1024, 128, "^metadata_csum"),
    (1024, 256, "metadata_csum,^extent,^64bit,^flex_bg"),
];

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds: 1_700_000_000 + seconds, nanoseconds: 5_000_000 }
}

fn options() -> Options {
    let clock = || CommitTime { seconds: 1_700_000_000, nanoseconds: 0 };
    Options { cache_bytes_max: 1 << 20, data_bytes_max: 1 << 20, read_only: false, clock }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn open(image: &Image) -> Filesystem<RamDevice> {
    wait(Filesystem::open(RamDevice::from_image(&image.bytes()), &options())).expect("it opens").0
}

/// Everything home, and back into the image.
fn close(mounted: Filesystem<RamDevice>, image: &Image) {
    wait(mounted.close()).expect("the volume is sound");
    image.write(&mounted.into_device().to_vec());
}

fn run<D: BlockDevice, T>(
    mounted: &Filesystem<D>,
    op: impl FnMut(&mut Handle<'_>) -> Result<T, Stop>,
) -> Result<T, Failure> {
    wait(mounted.run(op)).map(|done| done.value)
}

fn in_root(name: &str) -> Place<'_> {
    Place { directory: ROOT_INODE, name: name.as_bytes() }
}

fn create<D: BlockDevice>(mounted: &Filesystem<D>, place: Place<'_>, kind: FileKind, mode: u16) -> InodeNumber {
    let target = if kind == FileKind::Symlink { &b"target"[..] } else { &[] };
    let new = NewFile { mode: Mode::new(kind, mode), user: 0, group: 0, device: None, target };
    let created: Created = run(mounted, |handle| handle.create(place, &new, at(0))).expect("there is room");
    created.inode
}

fn refused<T>(why: Refusal) -> Result<T, Failure> {
    Err(Failure::Refused(why))
}

/// An ACL as user space passes it: tag, permissions and number of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let entry = |&(tag, permissions, id): &(u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    [2u32.to_le_bytes().to_vec(), entries.iter().flat_map(entry).collect()].concat()
}

const NONE: u32 = u32::MAX;

/// A change of a file.
type Step<'a> = dyn Fn(&mut Handle<'_>) -> Result<(), Stop> + 'a;

/// ACLs with and without a mask.
fn acls() -> [Vec<u8>; 3] {
    [
        acl(&[(1, 7, NONE), (2, 6, 17), (4, 5, NONE), (16, 7, NONE), (32, 1, NONE)]),
        acl(&[(1, 6, NONE), (4, 4, NONE), (32, 4, NONE)]),
        acl(&[(1, 7, NONE), (2, 4, 1), (2, 0, 70_000), (4, 6, NONE), (8, 3, 9), (16, 3, NONE), (32, 0, NONE)]),
    ]
}

/// All attributes of a file: names and values.
fn all<D: BlockDevice>(mounted: &Filesystem<D>, file: InodeNumber) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let names = run(mounted, |handle| handle.list_attributes(file)).expect("readable");
    let value = |name: &Vec<u8>| run(mounted, |handle| handle.get_attribute(file, name)).expect("it is listed");
    names.iter().map(|name| (name.clone(), value(name))).collect()
}

/// What the kernel says of every file: mode, owner, group, times, and attributes.
const TELL: &str = "
for root, names, files in sorted(os.walk('.')):
  for name in [root] + [os.path.join(root, f) for f in sorted(files)]:
    if 'lost+found' in name: continue
    s = os.lstat(name)
    times = s.st_mtime_ns, s.st_atime_ns if not os.path.isdir(name) else 0
    xattrs = {} if os.path.islink(name) else {n: os.getxattr(name, n).hex() for n in sorted(os.listxattr(name))}
    print(name, oct(s.st_mode), s.st_uid, s.st_gid, s.st_blocks, *times, xattrs)";

/// The same of one file, as we have it.
fn told(mounted: &Filesystem<RamDevice>, name: &str, file: InodeNumber) -> String {
    let inode: Inode = run(mounted, |handle| handle.stat(file)).expect("in use");
    let nanoseconds = |time: Timestamp| time.seconds * 1_000_000_000 + i64::from(time.nanoseconds);
    let is_directory = inode.mode.kind() == Some(FileKind::Directory);
    let accessed = if is_directory { 0 } else { nanoseconds(inode.accessed) };
    let pairs: Vec<String> = all(mounted, file)
        .iter()
        .map(|(name, value)| format!("'{}': '{}'", String::from_utf8_lossy(name), hex(value)))
        .collect();
    let modified = nanoseconds(inode.modified);
    format!(
        "{name} 0o{:o} {} {} {} {modified} {accessed} {{{}}}",
        inode.mode.0,
        inode.user,
        inode.group,
        inode.sectors,
        pairs.join(", ")
    )
}

#[test]
fn the_kernel_reads_what_was_set_which_needs_root_and_loop() {
    for (block_bytes, inode_bytes, features) in SHAPES {
        let image = Image::new(block_bytes, inode_bytes, features);
        let mounted = open(&image);
        let file = create(&mounted, in_root("f"), FileKind::Regular, 0o644);
        let directory = create(&mounted, in_root("d"), FileKind::Directory, 0o755);
        let changes = AttributeChanges {
            mode: Some(0o6751),
            user: Some(70_001),
            group: Some(80_002),
            accessed: Some(Timestamp { seconds: 123_456_789, nanoseconds: 0 }),
            modified: Some(Timestamp { seconds: 1_234_567_890, nanoseconds: 0 }),
        };
        run(&mounted, |handle| handle.set_attributes(file, &changes, at(2_000))).expect("it is there");
        let sticky = AttributeChanges { mode: Some(0o1777), modified: Some(at(7).floor()), ..Default::default() };
        run(&mounted, |handle| handle.set_attributes(directory, &sticky, at(2_000))).expect("it is there");
        let values = [("user.short", 3), ("trusted.t", 100), ("security.s", 300), ("user.empty", 0)];
        for (name, length) in values {
            let pair = (name.as_bytes(), &vec![b'v'; length][..]);
            run(&mounted, |handle| handle.set_attribute(file, pair, SetMode::Create, at(2_001)))
                .expect("there is room");
        }
        run(&mounted, |handle| handle.set_attribute(directory, (DEFAULT, &acls()[2]), SetMode::Any, at(2_001)))
            .expect("there is room");
        run(&mounted, |handle| handle.set_attribute(file, (ACCESS, &acls()[0]), SetMode::Any, at(2_001)))
            .expect("there is room");
        let chmod = AttributeChanges { mode: Some(0o640), ..AttributeChanges::default() };
        run(&mounted, |handle| handle.set_attributes(file, &chmod, at(2_002))).expect("it is there");
        run(&mounted, |handle| handle.remove_attribute(file, b"trusted.t", at(2_002))).expect("it is there");
        let expected = [told(&mounted, "./d", directory), told(&mounted, "./f", file)];
        close(mounted, &image);
        image.assert_clean();
        let mount = Mount::new(&image);
        let said = mount.python(TELL);
        let lines: Vec<&str> = said.lines().collect();
        for line in expected {
            assert!(lines.contains(&line.as_str()), "{line}\nis not in\n{said}");
        }
        drop(mount);
        image.assert_clean();
    }
}

/// The whole second of a time, which every inode can hold.
trait Floor {
    fn floor(self) -> Self;
}

impl Floor for Timestamp {
    fn floor(self) -> Self {
        Self { nanoseconds: 0, ..self }
    }
}

#[test]
fn modes_and_inherited_acls_are_those_of_the_kernel_which_needs_root_and_loop() {
    let modes = [0o777u16, 0o640, 0o4711, 0o1000];
    for (block_bytes, inode_bytes, features) in SHAPES {
        let ours = Image::new(block_bytes, inode_bytes, features);
        let theirs = Image::new(block_bytes, inode_bytes, features);
        let mounted = open(&ours);
        let mut script = String::from("os.umask(0)\n");
        let mut files = Vec::new();
        for (number, default) in acls().iter().enumerate() {
            let parent = create(&mounted, in_root(&format!("p{number}")), FileKind::Directory, 0o755);
            run(&mounted, |handle| handle.set_attribute(parent, (DEFAULT, default), SetMode::Any, at(1)))
                .expect("there is room");
            script += &format!(
                "os.mkdir('p{number}', 0o755)\nos.setxattr('p{number}', 'system.posix_acl_default', \
                 bytes.fromhex('{}'))\n",
                hex(default)
            );
            for mode in modes {
                let (file, directory) = (format!("f{mode:o}"), format!("d{mode:o}"));
                let inside = |name| Place { directory: parent, name };
                let made = create(&mounted, inside(file.as_bytes()), FileKind::Regular, mode);
                files.push((format!("p{number}/{file}"), made));
                let made = create(&mounted, inside(directory.as_bytes()), FileKind::Directory, mode & 0o1777);
                files.push((format!("p{number}/{directory}"), made));
                script += &format!(
                    "os.mknod('p{number}/{file}', 0o{:o})\nos.mkdir('p{number}/{directory}', 0o{:o})\n",
                    0o100_000 | mode,
                    mode & 0o1777
                );
            }
            // A change of the mode goes to the mask, or to the group.
            let (path, file) = files[files.len() - 2 * modes.len()].clone();
            let chmod = AttributeChanges { mode: Some(0o514), ..AttributeChanges::default() };
            run(&mounted, |handle| handle.set_attributes(file, &chmod, at(2))).expect("it is there");
            script += &format!("os.chmod('{path}', 0o514)\n");
            // And an ACL without a mask goes into the mode.
            let (path, file) = files[files.len() - 1].clone();
            let plain = &acls()[1];
            run(&mounted, |handle| handle.set_attribute(file, (ACCESS, plain), SetMode::Any, at(2))).expect("room");
            script += &format!("os.setxattr('{path}', 'system.posix_acl_access', bytes.fromhex('{}'))\n", hex(plain));
        }
        for (path, _) in &files {
            script += &format!(
                "print('{path}', oct(os.stat('{path}').st_mode), {{n: os.getxattr('{path}', n).hex() \
                 for n in sorted(os.listxattr('{path}'))}})\n"
            );
        }
        let mount = Mount::new(&theirs);
        let said = mount.python(&script);
        drop(mount);
        let expected: Vec<String> = files
            .iter()
            .map(|(path, file)| {
                let mode = run(&mounted, |handle| handle.stat(*file)).expect("in use").mode.0;
                let pairs: Vec<String> = all(&mounted, *file)
                    .iter()
                    .map(|(name, value)| format!("'{}': '{}'", String::from_utf8_lossy(name), hex(value)))
                    .collect();
                format!("{path} 0o{mode:o} {{{}}}", pairs.join(", "))
            })
            .collect();
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
        close(mounted, &ours);
        ours.assert_clean();
    }
}

#[test]
fn what_a_filesystem_has_room_for_is_what_the_kernel_says_which_needs_root_and_loop() {
    for (block_bytes, inode_bytes, features) in SHAPES {
        let image = Image::new(block_bytes, inode_bytes, features);
        for counted in [true, false] {
            if !counted {
                // As made by an old mke2fs: the kernel counts, and so do we.
                image.debugfs(&["ssv overhead_blocks 0".to_owned()]);
            }
            let mounted = open(&image);
            create(&mounted, in_root(if counted { "a" } else { "b" }), FileKind::Directory, 0o755);
            let ours = mounted.statistics();
            close(mounted, &image);
            let mount = Mount::new(&image);
            let said = mount.python(
                "s = os.statvfs('.')\nprint(s.f_bsize, s.f_blocks, s.f_bfree, s.f_files, s.f_ffree, s.f_namemax, s.f_fsid)",
            );
            let id = u64::from(ours.id as u32) | ours.id >> 32 << 32;
            let expected = format!(
                "{} {} {} {} {} {} {id}",
                ours.block_size, ours.blocks, ours.blocks_free, ours.files, ours.files_free, ours.name_bytes_max
            );
            assert_eq!(said.trim(), expected, "counted when made: {counted}");
            assert!(ours.blocks_available < ours.blocks_free);
        }
    }
}

#[test]
fn long_and_short_links_are_read_back() {
    for (block_bytes, inode_bytes, features) in SHAPES {
        let image = Image::new(block_bytes, inode_bytes, features);
        let mounted = open(&image);
        for length in [1, 59, 60, 700, block_bytes - 1] {
            let target = vec![b't'; length];
            let new =
                NewFile { mode: Mode::new(FileKind::Symlink, 0o777), user: 0, group: 0, device: None, target: &target };
            let name = format!("l{length}");
            let link = run(&mounted, |handle| handle.create(in_root(&name), &new, at(1))).expect("there is room").inode;
            assert_eq!(run(&mounted, |handle| handle.read_link(link)), Ok(target));
        }
        assert_eq!(run(&mounted, |handle| handle.read_link(ROOT_INODE)), refused(Refusal::WrongKind));
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let image = Image::new(4096, 256, SHAPES[0].2);
    let mounted = open(&image);
    let file = create(&mounted, in_root("f"), FileKind::Regular, 0o644);
    let link = create(&mounted, in_root("l"), FileKind::Symlink, 0o777);
    let before = run(&mounted, |handle| handle.stat(file)).expect("in use");
    let set = |file, name: &[u8], value: &[u8], how| {
        run(&mounted, |handle| handle.set_attribute(file, (name, value), how, at(9)))
    };
    let long = [&b"user."[..], &[b'n'; 256]].concat();
    let any = SetMode::Any;
    assert_eq!(set(file, b"user.a", b"", SetMode::Replace), refused(Refusal::NoAttribute));
    assert_eq!(set(file, b"user.a", &[0; 5000], any), refused(Refusal::NoRoomForAttribute));
    assert_eq!(set(file, b"user.a", &[0; 65_537], any), refused(Refusal::AttributeTooBig));
    assert_eq!(set(file, &long, b"", any), refused(Refusal::BadAttributeName));
    assert_eq!(set(file, b"system.data", b"", any), refused(Refusal::NotSupported));
    assert_eq!(set(file, b"other.a", b"", any), refused(Refusal::NotSupported));
    assert_eq!(set(file, DEFAULT, &acls()[0], any), refused(Refusal::WrongKind));
    assert_eq!(set(file, ACCESS, &acls()[0][..9], any), refused(Refusal::BadAcl));
    assert_eq!(set(link, ACCESS, &acls()[0], any), refused(Refusal::NotSupported));
    assert_eq!(set(link, b"user.a", b"", any), refused(Refusal::WrongKind));
    assert_eq!(run(&mounted, |handle| handle.get_attribute(file, ACCESS)), refused(Refusal::NoAttribute));
    assert_eq!(run(&mounted, |handle| handle.remove_attribute(file, ACCESS, at(9))), refused(Refusal::NoAttribute));
    assert_eq!(run(&mounted, |handle| handle.stat(file)), Ok(before));
    assert_eq!(set(file, b"user.a", b"1", SetMode::Create), Ok(()));
    assert_eq!(set(file, b"user.a", b"2", SetMode::Create), refused(Refusal::Exists));
    assert_eq!(run(&mounted, |handle| handle.get_attribute(file, b"user.a")), Ok(b"1".to_vec()));
    for number in [0, 1, 7, 8, 10, 60, 65, u32::MAX] {
        let wild = run(&mounted, |handle| handle.stat(InodeNumber(number)));
        assert_eq!(wild, refused(Refusal::Stale), "inode {number}");
    }
    create(&mounted, in_root("still writable"), FileKind::Regular, 0o644);
}

#[test]
fn a_file_without_a_name_has_attributes_until_it_is_reclaimed() {
    let image = Image::new(1024, 256, SHAPES[0].2);
    let mounted = open(&image);
    let file = create(&mounted, in_root("f"), FileKind::Regular, 0o644);
    assert!(mounted.hold(file));
    assert_eq!(run(&mounted, |handle| handle.remove(in_root("f"), false, at(2))), Ok((file, true)));
    let chmod = AttributeChanges { mode: Some(0o600), ..AttributeChanges::default() };
    run(&mounted, |handle| handle.set_attributes(file, &chmod, at(3))).expect("it is in use");
    let value = vec![1; 700];
    run(&mounted, |handle| handle.set_attribute(file, (b"user.a", &value), SetMode::Any, at(3))).expect("in use");
    let inode = run(&mounted, |handle| handle.stat(file)).expect("in use");
    assert_eq!((inode.links, inode.mode.permissions()), (0, 0o600));
    mounted.let_go(file);
    mounted.stop();
    wait(mounted.drive());
    assert_eq!(run(&mounted, |handle| handle.stat(file)), refused(Refusal::Stale));
    close(mounted, &image);
    image.assert_clean();
}

#[test]
fn every_change_is_counted_and_survives_a_crash() {
    for (block_bytes, inode_bytes, features) in SHAPES {
        let image = Image::new(block_bytes, inode_bytes, features);
        let mounted = open(&image);
        let file = create(&mounted, in_root("f"), FileKind::Regular, 0o644);
        let mut seen = vec![change_attribute(&run(&mounted, |handle| handle.stat(file)).expect("in use"))];
        let changes = AttributeChanges { user: Some(5), ..AttributeChanges::default() };
        let steps: [&Step<'_>; 7] = [
            &|handle| handle.set_attributes(file, &changes, at(10)),
            &|handle| handle.set_attribute(file, (b"user.a", b"1"), SetMode::Any, at(10)),
            &|handle| handle.set_attribute(file, (ACCESS, &acls()[0]), SetMode::Any, at(10)),
            &|handle| handle.remove_attribute(file, b"user.a", at(10)),
            &|handle| handle.set_acl(file, Kind::Access, Some(&Acl::of_mode(0o600)), at(10)),
            &|handle| handle.link(file, in_root("g"), at(10)),
            &|handle| handle.rename(in_root("g"), in_root("h"), Rename::Replace, at(10)).map(drop),
        ];
        for step in steps {
            run(&mounted, step).expect("it is allowed");
            seen.push(change_attribute(&run(&mounted, |handle| handle.stat(file)).expect("in use")));
        }
        let none = AttributeChanges::default();
        run(&mounted, |handle| handle.set_attributes(file, &none, at(11))).expect("nothing to do");
        let last = run(&mounted, |handle| handle.stat(file)).expect("in use");
        assert_eq!(Some(&change_attribute(&last)), seen.last(), "nothing was set");
        assert!(seen.is_sorted_by(|one, other| one < other), "{seen:?}");
        let attributes = all(&mounted, file);
        // Committed, and not written home.
        mounted.stop();
        wait(mounted.drive());
        image.write(&mounted.into_device().to_vec());
        let mounted = open(&image);
        assert_eq!(run(&mounted, |handle| handle.stat(file)), Ok(last));
        assert_eq!(all(&mounted, file), attributes);
        close(mounted, &image);
        image.assert_clean();
    }
}

#[test]
fn a_reply_tells_which_transaction_it_has_seen() {
    let image = Image::new(1024, 256, SHAPES[0].2);
    let mounted = open(&image);
    let quiet = create(&mounted, in_root("quiet"), FileKind::Directory, 0o755);
    mounted.stop();
    wait(mounted.drive());
    let stat = |file| wait(mounted.run(|handle| handle.stat(file))).expect("in use");
    assert_eq!((stat(quiet).transaction, stat(quiet).pending), (None, Pending::default()), "it is durable");
    assert_eq!(mounted.newest_change(), None);
    let lookup = |name: &[u8]| wait(mounted.run(|handle| handle.lookup(ROOT_INODE, name))).expect("it is there");
    let new = NewFile { mode: Mode::new(FileKind::Fifo, 0o644), user: 0, group: 0, device: None, target: &[] };
    let made = wait(mounted.run(|handle| handle.create(in_root("new"), &new, at(1)))).expect("there is room");
    assert!(made.transaction.is_some() && made.pending == made.transaction.into());
    assert_eq!(lookup(b"new").pending, made.transaction.into());
    assert_eq!(mounted.newest_change(), made.transaction);
    let inside = wait(mounted.run(|handle| handle.read_directory(quiet, Default::default(), 10))).expect("readable");
    // Its inode shares a block with the new one's; its names do not.
    assert_eq!((inside.value.entries.len(), inside.transaction), (2, None));
    wait(mounted.drive());
    assert_eq!(lookup(b"new").pending, Pending::default(), "it has become durable");
}
