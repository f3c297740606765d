//! Operations on names: looked up, made, linked, removed and renamed. Each is one handle, and so one transaction.
//!
//! Permissions are not looked at here: who may do what is the gateway's to know. Times come from the caller.

use super::handle::Handle;
use crate::directory::{self, Batch, Cookie, Insertion, Name};
use crate::layout::dirent::EntryType;
use crate::layout::file_kind::{DeviceNumber, FileKind, Mode};
use crate::layout::inode::Inode;
use crate::layout::timestamp::Timestamp;
use crate::store::{Refusal, Stop};
use crate::units::{InodeNumber, ROOT_INODE};

/// Links that a file may have (`EXT4_LINK_MAX`).
const LINKS_MAX: u16 = 65_000;
/// Directories above one another that are looked at before a move is refused.
const DEPTH_MAX: u32 = 65_536;

/// What a new file is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewFile<'a> {
    /// Kind and permissions. Of the latter a default ACL of the directory takes what it does not grant; a caller that has a
    /// umask applies it only where there is none (POSIX.1e draft 17 §23.1.3).
    pub mode: Mode,
    /// Owner.
    pub user: u32,
    /// Group; that of the directory where its set-group bit is set.
    pub group: u32,
    /// The number, of a device.
    pub device: Option<DeviceNumber>,
    /// The target, of a symbolic link.
    pub target: &'a [u8],
}

/// A file that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its inode.
    pub inode: InodeNumber,
    /// With that, what no other file ever had.
    pub generation: u32,
}

/// What a rename does about a name that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rename {
    /// It takes its place.
    Replace,
    /// It is refused.
    NoReplace,
    /// Both change places.
    Exchange,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The directory.
    pub directory: InodeNumber,
    /// The name in it.
    pub name: &'a [u8],
}

/// An entry that was found.
#[derive(Clone, Copy, Debug)]
struct Target {
    number: InodeNumber,
    kind: FileKind,
}

impl Handle<'_> {
    /// What a name names; `.` and `..` are names. Errors: [`Refusal::NotDirectory`], [`Refusal::NotFound`].
    pub fn lookup(&mut self, directory: InodeNumber, name: &[u8]) -> Result<InodeNumber, Stop> {
        self.expect_directory(directory)?;
        let mut open = self.directory(directory)?;
        let found = open.rules().lookup(&mut open, name)?;
        Ok(found.ok_or(Refusal::NotFound)?.inode)
    }

    /// Entries of a directory behind `after`, in an order that lasts; at least `wanted` unless it ends. Errors:
    /// [`Refusal::NotDirectory`].
    pub fn read_directory(&mut self, directory: InodeNumber, after: Cookie, wanted: usize) -> Result<Batch, Stop> {
        self.expect_directory(directory)?;
        let mut open = self.directory(directory)?;
        open.rules().read(&mut open, after, wanted)
    }

    /// Makes a file of any kind. Errors: [`Refusal::Exists`], [`Refusal::NotDirectory`], [`Refusal::BadName`],
    /// [`Refusal::TooManyLinks`], [`Refusal::WrongKind`] when a link has no target or a device no number; no space.
    pub fn create(&mut self, place: Place<'_>, new: &NewFile<'_>, now: Timestamp) -> Result<Created, Stop> {
        let kind = new.mode.kind().ok_or(Refusal::WrongKind)?;
        let name = Name::new(place.name).ok_or(Refusal::BadName)?;
        let parent = self.expect_directory(place.directory)?;
        let is_directory = kind == FileKind::Directory;
        if is_directory {
            self.expect_room_for_directory(&parent)?;
        }
        let taken = self.allocate_inode(place.directory, is_directory)?;
        let number = taken.number;
        let generation = taken.former_generation.wrapping_add(1).max(1);
        let mut mode = new.mode;
        let inherits_group = parent.mode.permissions() & Mode::SET_GROUP != 0;
        if inherits_group && is_directory {
            mode = Mode(mode.0 | Mode::SET_GROUP);
        }
        let mut inode = Inode::fresh(mode, generation, self.geometry().inode_size as usize);
        inode.user = new.user;
        inode.group = if inherits_group { parent.group } else { new.group };
        inode.links = if is_directory { 2 } else { 1 };
        (inode.accessed, inode.modified) = (now, now);
        self.touch(&mut inode, now);
        inode.created = inode.created.map(|_| now);
        match kind {
            FileKind::CharacterDevice | FileKind::BlockDevice => {
                let device = new.device.ok_or(Refusal::WrongKind)?;
                inode.set_device(device).ok_or(Refusal::WrongKind)?;
            }
            FileKind::Symlink if new.target.is_empty() => return Err(Refusal::WrongKind.into()),
            FileKind::Symlink => {
                if inode.set_fast_symlink(new.target).is_none() {
                    self.write_long_symlink(number, &mut inode, new.target)?;
                }
            }
            FileKind::Regular | FileKind::Directory => self.clear_map(&mut inode),
            FileKind::Fifo | FileKind::Socket => {}
        }
        self.set_inode(number, &inode)?;
        if is_directory {
            let mut open = self.directory(number)?;
            let format = open.rules().format;
            directory::create(&format, &mut open, place.directory)?;
            open.finish(false)?;
        }
        self.inherit(place.directory, &parent, number)?;
        self.enter(place.directory, name, number, kind, now, i32::from(is_directory))?;
        Ok(Created { inode: number, generation })
    }

    /// Gives a file another name. Errors: [`Refusal::Exists`], [`Refusal::WrongKind`] for a directory,
    /// [`Refusal::TooManyLinks`], [`Refusal::Stale`] for a file without a name.
    pub fn link(&mut self, number: InodeNumber, place: Place<'_>, now: Timestamp) -> Result<(), Stop> {
        let name = Name::new(place.name).ok_or(Refusal::BadName)?;
        self.expect_directory(place.directory)?;
        self.expect_unreserved(number)?;
        let mut inode = self.live(number)?;
        let kind = inode.mode.kind().ok_or(Refusal::Stale)?;
        match kind {
            FileKind::Directory => return Err(Refusal::WrongKind.into()),
            _ if inode.links >= LINKS_MAX => return Err(Refusal::TooManyLinks.into()),
            _ => {}
        }
        inode.links += 1;
        self.touch(&mut inode, now);
        self.set_inode(number, &inode)?;
        self.enter(place.directory, name, number, kind, now, 0)
    }

    /// Takes a name away: of a directory, which has to be empty, or of anything else, as `directory` says. Gives the inode, and
    /// whether it has no name left: what it holds is given back then, at once or when nobody has it open.
    pub fn remove(&mut self, place: Place<'_>, directory: bool, now: Timestamp) -> Result<(InodeNumber, bool), Stop> {
        let name = Name::new(place.name).ok_or(Refusal::BadName)?;
        let target = self.target(place)?.ok_or(Refusal::NotFound)?;
        match (target.kind, directory) {
            (FileKind::Directory, false) => return Err(Refusal::IsDirectory.into()),
            (FileKind::Directory, true) => self.expect_empty(target.number)?,
            (_, true) => return Err(Refusal::NotDirectory.into()),
            (_, false) => {}
        }
        self.leave(place.directory, name, now, -i32::from(directory))?;
        Ok((target.number, self.lose_name(target, now)?))
    }

    /// Moves a name. Gives the inode that it replaced, if any, and whether that has no name left.
    ///
    /// Errors: [`Refusal::NotFound`]; [`Refusal::Exists`] with [`Rename::NoReplace`]; a directory replaces only an empty
    /// directory, and anything else only what is no directory; [`Refusal::IntoItself`].
    pub fn rename(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        how: Rename,
        now: Timestamp,
    ) -> Result<Option<(InodeNumber, bool)>, Stop> {
        let from_name = Name::new(from.name).ok_or(Refusal::BadName)?;
        let to_name = Name::new(to.name).ok_or(Refusal::BadName)?;
        let parent = self.expect_directory(to.directory)?;
        let source = self.target(from)?.ok_or(Refusal::NotFound)?;
        let target = self.target(to)?;
        if source.kind == FileKind::Directory {
            self.expect_outside(source.number, to.directory)?;
        }
        match (how, target) {
            (Rename::NoReplace, Some(_)) => return Err(Refusal::Exists.into()),
            (Rename::Exchange, None) => return Err(Refusal::NotFound.into()),
            (_, Some(target)) if target.number == source.number => return Ok(None),
            (Rename::Exchange, Some(target)) => {
                if target.kind == FileKind::Directory {
                    self.expect_outside(target.number, from.directory)?;
                }
                self.set_entry(to.directory, to_name, source, now)?;
                self.set_entry(from.directory, from_name, target, now)?;
                self.moved(source, from.directory, to.directory, now)?;
                self.moved(target, to.directory, from.directory, now)?;
                return Ok(None);
            }
            _ => {}
        }
        if let Some(target) = target {
            match (source.kind, target.kind) {
                (FileKind::Directory, FileKind::Directory) => self.expect_empty(target.number)?,
                (FileKind::Directory, _) => return Err(Refusal::NotDirectory.into()),
                (_, FileKind::Directory) => return Err(Refusal::IsDirectory.into()),
                _ => {}
            }
            self.set_entry(to.directory, to_name, source, now)?;
        } else {
            if source.kind == FileKind::Directory && from.directory != to.directory {
                self.expect_room_for_directory(&parent)?;
            }
            self.enter(to.directory, to_name, source.number, source.kind, now, 0)?;
        }
        self.leave(from.directory, from_name, now, 0)?;
        self.moved(source, from.directory, to.directory, now)?;
        let Some(target) = target else { return Ok(None) };
        if target.kind == FileKind::Directory {
            self.count_links(to.directory, -1)?;
        }
        Ok(Some((target.number, self.lose_name(target, now)?)))
    }

    /// The inode of a file that has a name. Errors: [`Refusal::Stale`].
    pub fn live(&mut self, number: InodeNumber) -> Result<Inode, Stop> {
        let inode = self.in_use(number)?;
        if inode.links == 0 {
            return Err(Refusal::Stale.into());
        }
        Ok(inode)
    }

    fn expect_directory(&mut self, number: InodeNumber) -> Result<Inode, Stop> {
        let inode = self.live(number)?;
        match inode.mode.kind() {
            Some(FileKind::Directory) => Ok(inode),
            _ => Err(Refusal::NotDirectory.into()),
        }
    }

    /// A directory's links can count one more directory, or need not.
    fn expect_room_for_directory(&self, parent: &Inode) -> Result<(), Stop> {
        match parent.links >= LINKS_MAX && !self.profile().dir_nlink {
            true => Err(Refusal::TooManyLinks.into()),
            false => Ok(()),
        }
    }

    fn expect_empty(&mut self, number: InodeNumber) -> Result<(), Stop> {
        let mut open = self.directory(number)?;
        match open.rules().is_empty(&mut open)? {
            true => Ok(()),
            false => Err(Refusal::NotEmpty.into()),
        }
    }

    /// `inside` must not be `directory`, nor lie below it.
    fn expect_outside(&mut self, directory: InodeNumber, inside: InodeNumber) -> Result<(), Stop> {
        let mut at = inside;
        for _ in 0..DEPTH_MAX {
            if at == directory {
                return Err(Refusal::IntoItself.into());
            }
            if at == ROOT_INODE {
                return Ok(());
            }
            at = self.lookup(at, b"..")?;
        }
        Err(Stop::TooLarge("the depth of directories"))
    }

    fn target(&mut self, place: Place<'_>) -> Result<Option<Target>, Stop> {
        self.expect_directory(place.directory)?;
        let mut open = self.directory(place.directory)?;
        let Some(found) = open.rules().lookup(&mut open, place.name)? else { return Ok(None) };
        self.expect_unreserved(found.inode)?;
        let kind = self.live(found.inode)?.mode.kind().ok_or(Refusal::Stale)?;
        Ok(Some(Target { number: found.inode, kind }))
    }

    /// Puts a name in; `links` are added to the directory.
    fn enter(
        &mut self,
        directory: InodeNumber,
        name: Name<'_>,
        number: InodeNumber,
        kind: FileKind,
        now: Timestamp,
        links: i32,
    ) -> Result<(), Stop> {
        self.expect_unreserved(directory)?;
        let mut open = self.directory(directory)?;
        match open.rules().insert(&mut open, name, number, entry_type(kind))? {
            Insertion::Exists(_) => return Err(Refusal::Exists.into()),
            Insertion::Done { indexed } => {
                open.modify(now);
                open.finish(indexed)?;
            }
        }
        self.count_links(directory, links)
    }

    /// Takes a name out that is there; `links` are added to the directory.
    fn leave(&mut self, directory: InodeNumber, name: Name<'_>, now: Timestamp, links: i32) -> Result<(), Stop> {
        self.expect_unreserved(directory)?;
        let mut open = self.directory(directory)?;
        open.rules().remove(&mut open, name)?.ok_or(Refusal::NotFound)?;
        open.modify(now);
        let indexed = open.rules().uses_index();
        open.finish(indexed)?;
        self.count_links(directory, links)
    }

    /// Makes a name that is there name another file.
    fn set_entry(&mut self, directory: InodeNumber, name: Name<'_>, to: Target, now: Timestamp) -> Result<(), Stop> {
        self.expect_unreserved(directory)?;
        let mut open = self.directory(directory)?;
        let kind = entry_type(to.kind);
        open.rules().replace(&mut open, name, to.number, kind)?.ok_or(Refusal::NotFound)?;
        open.modify(now);
        let indexed = open.rules().uses_index();
        open.finish(indexed)
    }

    /// A file's name is in another directory now, or has changed.
    fn moved(&mut self, what: Target, from: InodeNumber, to: InodeNumber, now: Timestamp) -> Result<(), Stop> {
        if what.kind == FileKind::Directory && from != to {
            let mut open = self.directory(what.number)?;
            open.rules().replace_parent(&mut open, to)?;
            let indexed = open.rules().uses_index();
            open.finish(indexed)?;
            self.count_links(from, -1)?;
            self.count_links(to, 1)?;
        }
        let mut inode = self.inode(what.number)?;
        self.touch(&mut inode, now);
        self.set_inode(what.number, &inode)
    }

    /// A file has one name fewer; true when that was the last.
    fn lose_name(&mut self, what: Target, now: Timestamp) -> Result<bool, Stop> {
        let mut inode = self.inode(what.number)?;
        inode.links = if what.kind == FileKind::Directory { 0 } else { inode.links.saturating_sub(1) };
        self.touch(&mut inode, now);
        self.set_inode(what.number, &inode)?;
        if inode.links == 0 {
            // One that is being cut short stands there already.
            let being_cut = self.is_being_cut(what.number);
            if !being_cut {
                self.add_orphan(what.number)?;
            }
            // What nobody has open and is not large goes with its name. The list then never grows long, whose middle is far.
            let in_use = being_cut || self.table().is_held(what.number) || self.table().is_busy(what.number);
            if in_use || !self.reclaim(what.number, now)? {
                self.data_edits_mut().orphaned.push(what.number);
            }
        }
        Ok(inode.links == 0)
    }

    /// Directories below a directory, as links of it: 1 says that they were too many to be counted.
    fn count_links(&mut self, directory: InodeNumber, by: i32) -> Result<(), Stop> {
        if by == 0 {
            return Ok(());
        }
        let mut inode = self.inode(directory)?;
        let uncounted = inode.links == 1;
        if uncounted {
            return Ok(());
        }
        inode.links = match inode.links.saturating_add_signed(by as i16) {
            many if many >= LINKS_MAX && self.profile().dir_nlink => 1,
            links => links.max(2),
        };
        self.set_inode(directory, &inode)
    }
}

fn entry_type(kind: FileKind) -> EntryType {
    match kind {
        FileKind::Fifo => EntryType::Fifo,
        FileKind::CharacterDevice => EntryType::CharacterDevice,
        FileKind::Directory => EntryType::Directory,
        FileKind::BlockDevice => EntryType::BlockDevice,
        FileKind::Regular => EntryType::File,
        FileKind::Symlink => EntryType::Symlink,
        FileKind::Socket => EntryType::Socket,
    }
}
