//! What is done with a damaged image: one target for each way into the engine.

use std::collections::BTreeSet;

use filesystem::attributes::{self, Format};
use filesystem::directory::Cookie;
use filesystem::engine::{Failure, Filesystem, Handle, NewFile, OpenError, Place, Rename, Seek};
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::timestamp::Timestamp;
use filesystem::layout::xattr::{Name, SetMode, body};
use filesystem::map::FileMap;
use filesystem::units::{BlockNumber, FileBlock, InodeNumber, ROOT_INODE};
use filesystem::{BlockStore, Refusal, Stop};
use futures_util::future;

use crate::ImageDevice;
use crate::input::Input;
use crate::log;
use crate::mutate::{damage, number};
use crate::seed::{Seed, seeds};
use crate::survey::{Kind, options, wait};

/// Operations that one input does at most.
const OPERATIONS_MAX: usize = 8;
/// Batches of a directory that one input reads at most.
const BATCHES_MAX: usize = 32;
/// Steps along a file's map at most.
const EXTENTS_MAX: usize = 4096;
const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };

/// A seed with its damage.
struct Case<'a> {
    seed: &'a Seed,
    /// Inodes that the damaged structures belong to: operations look there first.
    damaged: Vec<InodeNumber>,
}

impl std::ops::Deref for Case<'_> {
    type Target = Seed;

    fn deref(&self) -> &Seed {
        self.seed
    }
}

/// How far an input came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// The damaged image was opened.
    pub opened: bool,
    /// Operations that came to their end.
    pub done: u32,
    /// Operations that something broken stopped.
    pub broken: u32,
}

impl Reached {
    fn count<T>(&mut self, result: Result<T, Failure>) -> Option<T> {
        match result {
            Ok(value) => {
                self.done += 1;
                return Some(value);
            }
            Err(Failure::Corrupt(_)) => self.broken += 1,
            Err(_) => {}
        }
        None
    }
}

/// A way into the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Opening an image to write, reclaiming its orphans, and closing it.
    Mount,
    /// Opening an image whose log is hostile, and looking around.
    Recovery,
    /// Names looked up.
    Lookup,
    /// Directories read to their end.
    Readdir,
    /// The map of a file walked, and its data read.
    Read,
    /// Extended attributes listed, read, set and removed.
    Attributes,
    /// Names made, moved and removed, files written and cut.
    Change,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Mount, Self::Recovery, Self::Lookup, Self::Readdir, Self::Read, Self::Attributes, Self::Change];

    /// As it is called in commands and in the names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Recovery => "recovery",
            Self::Lookup => "lookup",
            Self::Readdir => "readdir",
            Self::Read => "read",
            Self::Attributes => "attributes",
            Self::Change => "change",
        }
    }

    /// The one with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }

    /// Does what an input says, and tells how far that came.
    ///
    /// # Panics
    /// When the engine does: that is what is looked for. Also when it writes to an image that it has found broken.
    pub fn run(self, bytes: &[u8]) -> Reached {
        let mut input = Input::new(bytes);
        let all = seeds();
        let seed = &all[input.below(all.len())];
        let device = ImageDevice::new(seed.image.clone());
        let damaged = match self {
            Self::Recovery => {
                log::write(&device, seed, &mut input);
                Vec::new()
            }
            _ => damage(&device, seed, &mut input, self.looks_at()),
        };
        let seed = &Case { seed, damaged };
        let mut reached = Reached::default();
        let to = &mut reached;
        match self {
            Self::Mount => mount(device, seed, &mut input, to),
            Self::Recovery => recovery(device, seed, &mut input, to),
            Self::Change => change(device, seed, &mut input, to),
            Self::Lookup => read_only(device, seed, &mut input, to, look_up),
            Self::Readdir => read_only(device, seed, &mut input, to, read_directory),
            Self::Read => read_only(device, seed, &mut input, to, walk),
            Self::Attributes => read_only(device, seed, &mut input, to, work_on_attributes),
        }
        reached
    }

    /// The structures that it meets.
    fn looks_at(self) -> fn(&Kind) -> bool {
        match self {
            Self::Mount | Self::Recovery => |kind| {
                let at_start = matches!(kind, Kind::Superblock | Kind::Descriptor(_) | Kind::JournalSuperblock);
                at_start || matches!(kind, Kind::Inode(InodeNumber(8)) | Kind::Orphans(_))
            },
            Self::Lookup | Self::Readdir => {
                |kind| matches!(kind, Kind::Inode(_) | Kind::Entries(_) | Kind::Index(..) | Kind::Extents(_))
            }
            Self::Read => |kind| matches!(kind, Kind::Inode(_) | Kind::Extents(_) | Kind::Pointers),
            Self::Attributes => |kind| matches!(kind, Kind::Inode(_) | Kind::Attributes),
            Self::Change => |kind| !matches!(kind, Kind::Superblock | Kind::JournalSuperblock),
        }
    }
}

type Mounted = Filesystem<ImageDevice>;

fn operations(input: &mut Input<'_>, mut one: impl FnMut(&mut Input<'_>)) {
    for _ in 0..1 + input.below(OPERATIONS_MAX) {
        one(input);
    }
}

type Work = fn(&Mounted, &Case<'_>, &mut Input<'_>, &mut Reached);

fn read_only(device: ImageDevice, seed: &Case<'_>, input: &mut Input<'_>, to: &mut Reached, work: Work) {
    let Ok((mounted, _)) = wait(Filesystem::open(device, &options(true))) else { return };
    to.opened = true;
    operations(input, |input| work(&mounted, seed, input, to));
    assert_eq!(mounted.into_device().write_count(), 0, "a reader writes");
}

fn look_up(mounted: &Mounted, seed: &Case<'_>, input: &mut Input<'_>, to: &mut Reached) {
    let (directory, name) = (directory(seed, input), name(seed, input));
    to.count(wait(mounted.run(|handle| handle.lookup(directory, &name))));
}

fn mount(device: ImageDevice, seed: &Case<'_>, input: &mut Input<'_>, to: &mut Reached) {
    let Ok((mounted, _)) = wait(Filesystem::open(device, &options(false))) else { return };
    to.opened = true;
    to.count(with_commits(&mounted, mounted.reclaim_orphans(&BTreeSet::new())));
    operations(input, |input| {
        let number = any_inode(seed, input);
        to.count(wait(mounted.run(|handle| handle.inode(number))));
    });
    to.count(wait(mounted.close()));
}

fn recovery(device: ImageDevice, seed: &Case<'_>, input: &mut Input<'_>, to: &mut Reached) {
    let again = device.clone();
    let opened = wait(Filesystem::open(device, &options(false)));
    let read_only = wait(Filesystem::open(again, &options(true)));
    // What a reader refuses of a log, a writer has to refuse as well.
    if let (Ok(_), Err(OpenError::Journal(_) | OpenError::DamagedLog(_))) = (&opened, &read_only) {
        panic!("a log that is refused to a reader was replayed");
    }
    let Ok((mounted, recovered)) = opened else { return };
    to.opened = recovered.transactions > 0;
    to.count(with_commits(&mounted, mounted.reclaim_orphans(&BTreeSet::new())));
    operations(input, |input| read_directory(&mounted, seed, input, to));
    to.count(wait(mounted.close()));
}

/// Polls an operation and the commits that it may wait for.
fn with_commits<T>(mounted: &Mounted, operation: impl Future<Output = T>) -> T {
    let operation = std::pin::pin!(operation);
    let drive = std::pin::pin!(mounted.drive());
    wait(async {
        match future::select(operation, drive).await {
            future::Either::Left((value, _)) => value,
            // It has ended, and everything that waits is told so.
            future::Either::Right(((), operation)) => operation.await,
        }
    })
}

fn change(device: ImageDevice, seed: &Case<'_>, input: &mut Input<'_>, to: &mut Reached) {
    let Ok((mounted, _)) = wait(Filesystem::open(device, &options(false))) else { return };
    to.opened = true;
    operations(input, |input| {
        let (from, into) = (directory(seed, input), directory(seed, input));
        let (old, new) = (name(seed, input), name(seed, input));
        let (how, other) = (input.u8(), (any_inode(seed, input), number(&seed.survey, input)));
        let result =
            with_commits(&mounted, mounted.run(|handle| one_change(handle, (from, &old), (into, &new), how, other)));
        if how == 0xff {
            let (file, at) = other;
            let data = vec![7; 3000].into();
            to.count(with_commits(&mounted, mounted.write(file, at % (1 << 40), data, NOW)));
            to.count(with_commits(&mounted, mounted.fsync(file)));
        }
        let found_broken = matches!(result, Err(Failure::Corrupt(_)));
        to.count(result);
        if found_broken {
            let make = mounted.run(|handle| handle.create(Place { directory: ROOT_INODE, name: b"x" }, &file(0), NOW));
            assert!(with_commits(&mounted, make).is_err(), "what is broken is changed");
        }
    });
    to.count(wait(mounted.close()));
}

fn file(kind: u8) -> NewFile<'static> {
    let kind = match kind % 4 {
        0 => FileKind::Regular,
        1 => FileKind::Directory,
        2 => FileKind::Symlink,
        _ => FileKind::Fifo,
    };
    NewFile { mode: Mode::new(kind, 0o755), user: 0, group: 0, device: None, target: &[b't'; 80] }
}

fn one_change(
    handle: &mut Handle<'_>,
    (from, old): (InodeNumber, &[u8]),
    (to, new): (InodeNumber, &[u8]),
    how: u8,
    (other, size): (InodeNumber, u64),
) -> Result<(), Stop> {
    let (old, new) = (Place { directory: from, name: old }, Place { directory: to, name: new });
    match how % 8 {
        0 | 1 => handle.create(new, &file(how >> 3), NOW).map(drop),
        2 => handle.link(other, new, NOW),
        3 => handle.remove(old, how & 0x80 != 0, NOW).map(drop),
        4 if how & 0x80 == 0 => handle.truncate(other, size, NOW),
        4 => handle.punch(other, size..size.saturating_add(1 << 16), NOW).map(drop),
        5 => handle.rename(old, new, Rename::Exchange, NOW).map(drop),
        _ => handle.rename(old, new, Rename::Replace, NOW).map(drop),
    }
}

fn read_directory(mounted: &Mounted, seed: &Case<'_>, input: &mut Input<'_>, to: &mut Reached) {
    let directory = directory(seed, input);
    let mut after = if input.u8() < 0x80 { Cookie::START } else { Cookie(input.u64()) };
    let wanted = input.below(200);
    for _ in 0..BATCHES_MAX {
        let batch = wait(mounted.run(|handle| handle.read_directory(directory, after, wanted)));
        let Some(batch) = to.count(batch).map(|done| done.value) else { return };
        let ordered = batch.entries.is_sorted_by_key(|entry| entry.cookie);
        assert!(ordered && batch.entries.iter().all(|entry| entry.cookie > after), "entries go back");
        match batch.entries.last() {
            Some(last) if !batch.at_end => after = last.cookie,
            None if !batch.at_end => panic!("a batch of nothing that is not the end"),
            _ => return,
        }
    }
}

/// A file's map, from its start to its end and at some places.
fn walk(mounted: &Mounted, seed: &Case<'_>, input: &mut Input<'_>, to: &mut Reached) {
    let number = any_inode(seed, input);
    let Ok(inode) = wait(mounted.run(|handle| handle.live(number))) else { return };
    let inode = inode.value;
    if !matches!(inode.mode.kind(), Some(FileKind::Regular | FileKind::Directory)) {
        return;
    }
    let map = |handle: &Handle<'_>| FileMap::of_inode(&inode, number, &handle.inode_rules(), BlockNumber(0));
    let device_blocks = seed.survey.geometry.block_count.max(1 << 20);
    let mut at = FileBlock(0);
    for _ in 0..EXTENTS_MAX {
        let next = to.count(wait(mounted.run(|handle| map(handle).next(handle, at))));
        let Some(extent) = next.and_then(|next| next.value) else { break };
        assert!(extent.file >= at && extent.run.count > 0, "a map goes back");
        assert!(extent.run.end().0 <= device_blocks, "a map leaves the device");
        at = FileBlock(extent.end());
    }
    operations(input, |input| {
        let at = FileBlock(self::number(&seed.survey, input) as u32);
        to.count(wait(mounted.run(|handle| map(handle).lookup(handle, at))));
        let (from, length) = (self::number(&seed.survey, input), usize::from(input.u16()));
        to.count(wait(mounted.read(number, from, length)));
        to.count(wait(mounted.seek(number, from, if length & 1 == 0 { Seek::Data } else { Seek::Hole })));
    });
}

fn work_on_attributes(mounted: &Mounted, seed: &Case<'_>, input: &mut Input<'_>, to: &mut Reached) {
    let inode = any_inode(seed, input);
    let (how, length) = (input.u8(), input.below(600));
    to.count(wait(mounted.run(|handle| match attributes_of(handle, inode, how, length) {
        Err(attributes::AttributeError::Stop(stop)) => Err(stop),
        _ => Ok(()),
    })));
}

fn attributes_of(
    handle: &mut Handle<'_>,
    number: InodeNumber,
    how: u8,
    length: usize,
) -> Result<(), attributes::AttributeError> {
    let geometry = handle.geometry();
    let format = Format { block_bytes: geometry.block_size as usize, seed: geometry.checksum_seed };
    let inode = handle.inode(number)?;
    let (group, _) = geometry.group_of_inode(number).ok_or(Stop::Refused(Refusal::Stale))?;
    let table = handle.descriptor(group)?.inode_table;
    let place = geometry.inode_place(number, table).ok_or(Stop::Refused(Refusal::Stale))?;
    let from = place.offset as usize;
    let bytes = handle.block(place.block)?[from..from + geometry.inode_size as usize].to_vec();
    let body = bytes[body::range(&bytes, number).map_err(Stop::from)?].to_vec();
    let block = Some(inode.attributes_block).filter(|block| block.0 != 0);
    let place = attributes::Place { inode: number, body: &body, block };
    let names = attributes::list(handle, format, place)?;
    for name in &names {
        attributes::get(handle, format, place, name)?;
    }
    let mine = Name::parse(b"user.long")?;
    let name = names.get(usize::from(how >> 2)).unwrap_or(&mine);
    match how & 3 {
        0 => attributes::remove(handle, format, place, name, BlockNumber(0)).map(drop),
        1 => attributes::acl::read(handle, format, place, attributes::acl::Kind::Access).map(drop),
        _ => attributes::set(handle, format, place, (name, &vec![3; length]), SetMode::Any, BlockNumber(0)).map(drop),
    }
}

fn directory(seed: &Case<'_>, input: &mut Input<'_>) -> InodeNumber {
    let known = &seed.survey.directories;
    let damaged = seed.damaged.iter().find(|inode| known.contains(inode));
    match (input.u8(), damaged) {
        (0xf0.., _) => any_inode(seed, input),
        (0x60.., Some(damaged)) => *damaged,
        (choice, _) => known[usize::from(choice) % known.len()],
    }
}

fn any_inode(seed: &Case<'_>, input: &mut Input<'_>) -> InodeNumber {
    let (files, directories, damaged) = (&seed.survey.files, &seed.survey.directories, &seed.damaged);
    match input.u8() {
        0xf0.. => InodeNumber(number(&seed.survey, input) as u32),
        0xe0.. => InodeNumber(1 + u32::from(input.u8()) % seed.survey.geometry.inode_count),
        choice @ 0x60.. if !damaged.is_empty() => damaged[usize::from(choice) % damaged.len()],
        choice if choice & 1 == 1 => directories[usize::from(choice) % directories.len()],
        choice => files[usize::from(choice) % files.len()],
    }
}

fn name(seed: &Case<'_>, input: &mut Input<'_>) -> Vec<u8> {
    let known = &seed.survey.names;
    match input.u8() {
        choice @ 0x40.. => known[usize::from(choice) % known.len()].clone(),
        length => input.bytes(usize::from(length)).to_vec(),
    }
}
