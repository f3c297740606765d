//! Extended attributes and ACLs of files, by their full names and as user space passes them.
//!
//! Which names a user may see or set is the gateway's to know, and so is whether set-group goes when an ACL is set.

use super::files::count_blocks;
use super::handle::Handle;
use crate::attributes::acl::{self, Kind};
use crate::attributes::{self as set_of, AttributeError, Change, Place};
use crate::layout::acl::{Acl, AclError, Inherited};
use crate::layout::file_kind::{FileKind, Mode};
use crate::layout::inode::Inode;
use crate::layout::timestamp::Timestamp;
use crate::layout::xattr::{EditError, Name, NameError, NameIndex, SetMode, body};
use crate::map;
use crate::store::{BlockStore, Refusal, Stop};
use crate::units::{BlockNumber, InodeNumber};

/// The longest value that an attribute may have anywhere (`XATTR_SIZE_MAX`).
const VALUE_BYTES_MAX: usize = 65_536;

/// What a name stands for.
enum Meaning {
    Plain(Name),
    Acl(Kind),
}

impl Meaning {
    /// Errors: [`Refusal::NotSupported`] for namespaces that are not passed on, [`Refusal::BadAttributeName`].
    fn of(name: &[u8]) -> Result<Self, Stop> {
        let name = Name::parse(name).map_err(|error| match error {
            NameError::Namespace => Refusal::NotSupported,
            NameError::Invalid => Refusal::BadAttributeName,
        })?;
        match name.index() {
            NameIndex::POSIX_ACL_ACCESS => Ok(Self::Acl(Kind::Access)),
            NameIndex::POSIX_ACL_DEFAULT => Ok(Self::Acl(Kind::Default)),
            index if is_plain(index) => Ok(Self::Plain(name)),
            _ => Err(Refusal::NotSupported.into()),
        }
    }
}

/// Attributes with values that mean nothing to the filesystem.
fn is_plain(index: NameIndex) -> bool {
    matches!(index, NameIndex::USER | NameIndex::TRUSTED | NameIndex::SECURITY)
}

impl Handle<'_> {
    /// The value of an attribute by its full name; of `system.posix_acl_*` in the form that user space has (version 2).
    /// Errors: [`Refusal::NoAttribute`], [`Refusal::NotSupported`], [`Refusal::BadAttributeName`], [`Refusal::Stale`].
    pub fn get_attribute(&mut self, file: InodeNumber, name: &[u8]) -> Result<Vec<u8>, Stop> {
        let inode = self.in_use(file)?;
        match Meaning::of(name)? {
            Meaning::Acl(kind) => {
                let acl = self.acl_of(file, &inode, kind)?;
                Ok(acl.ok_or(Refusal::NoAttribute)?.to_xattr())
            }
            Meaning::Plain(name) => {
                let format = self.attributes_format();
                self.with_place(file, &inode, |handle, place| set_of::get(handle, format, place, &name))
            }
        }
    }

    /// The full names of all attributes that [`Self::get_attribute`] gives. Errors: [`Refusal::Stale`].
    pub fn list_attributes(&mut self, file: InodeNumber) -> Result<Vec<Vec<u8>>, Stop> {
        let inode = self.in_use(file)?;
        let format = self.attributes_format();
        let names = self.with_place(file, &inode, |handle, place| set_of::list(handle, format, place))?;
        let is_shown = |name: &Name| {
            let index = name.index();
            is_plain(index) || matches!(index, NameIndex::POSIX_ACL_ACCESS | NameIndex::POSIX_ACL_DEFAULT)
        };
        Ok(names.iter().filter(|name| is_shown(name)).filter_map(Name::full).collect())
    }

    /// Sets an attribute. An ACL without entries takes the ACL away, and one that says no more than the mode becomes the mode.
    ///
    /// Errors: [`Refusal::Exists`] and [`Refusal::NoAttribute`] by `how`; [`Refusal::AttributeTooBig`],
    /// [`Refusal::NoRoomForAttribute`]; [`Refusal::WrongKind`] for `user.*` of what is neither file nor directory;
    /// [`Refusal::BadAcl`]; those of [`Self::get_attribute`] for names.
    pub fn set_attribute(
        &mut self,
        file: InodeNumber,
        (name, value): (&[u8], &[u8]),
        how: SetMode,
        now: Timestamp,
    ) -> Result<(), Stop> {
        let mut inode = self.in_use(file)?;
        self.expect_unreserved(file)?;
        let name = match Meaning::of(name)? {
            Meaning::Acl(kind) => {
                let acl = Acl::from_xattr(value).map_err(|error| match error {
                    AclError::Version => Refusal::NotSupported,
                    _ => Refusal::BadAcl,
                })?;
                return self.set_acl(file, kind, acl.as_ref(), now);
            }
            Meaning::Plain(name) => name,
        };
        expect_kind_for(&name, &inode)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(Refusal::AttributeTooBig.into());
        }
        self.expect_attributes()?;
        let (format, goal) = (self.attributes_format(), self.goal_beside(file));
        let change = self
            .with_place(file, &inode, |handle, place| set_of::set(handle, format, place, (&name, value), how, goal))?;
        self.take_change(file, &mut inode, change)?;
        self.touch(&mut inode, now);
        self.set_inode(file, &inode)
    }

    /// Takes an attribute away. Errors: those of [`Self::get_attribute`], and [`Refusal::WrongKind`].
    pub fn remove_attribute(&mut self, file: InodeNumber, name: &[u8], now: Timestamp) -> Result<(), Stop> {
        let mut inode = self.in_use(file)?;
        self.expect_unreserved(file)?;
        let name = match Meaning::of(name)? {
            Meaning::Acl(kind) => {
                self.acl_of(file, &inode, kind)?.ok_or(Refusal::NoAttribute)?;
                return self.set_acl(file, kind, None, now);
            }
            Meaning::Plain(name) => name,
        };
        expect_kind_for(&name, &inode)?;
        let (format, goal) = (self.attributes_format(), self.goal_beside(file));
        let change =
            self.with_place(file, &inode, |handle, place| set_of::remove(handle, format, place, &name, goal))?;
        self.take_change(file, &mut inode, change)?;
        self.touch(&mut inode, now);
        self.set_inode(file, &inode)
    }

    /// The ACL that is kept, if any: a file without an access ACL has its mode. Errors: [`Refusal::Stale`].
    pub fn acl(&mut self, file: InodeNumber, kind: Kind) -> Result<Option<Acl>, Stop> {
        let inode = self.in_use(file)?;
        self.acl_of(file, &inode, kind)
    }

    /// Sets an ACL or, with None, takes it away; the permission bits of the mode follow an access ACL. Errors:
    /// [`Refusal::NotSupported`] for a symbolic link; [`Refusal::WrongKind`] for the default of what is no directory;
    /// [`Refusal::NoRoomForAttribute`], [`Refusal::Stale`].
    pub fn set_acl(&mut self, file: InodeNumber, kind: Kind, acl: Option<&Acl>, now: Timestamp) -> Result<(), Stop> {
        let mut inode = self.in_use(file)?;
        self.expect_unreserved(file)?;
        match (inode.mode.kind(), kind, acl) {
            (Some(FileKind::Symlink), _, _) => return Err(Refusal::NotSupported.into()),
            (Some(FileKind::Directory), _, _) | (_, Kind::Access, _) => {}
            (_, Kind::Default, Some(_)) => return Err(Refusal::WrongKind.into()),
            (_, Kind::Default, None) => return Ok(()),
        }
        self.store_acl(file, &mut inode, kind, acl)?;
        self.touch(&mut inode, now);
        self.set_inode(file, &inode)
    }

    /// The ACL of an inode that is at hand.
    pub(super) fn acl_of(&mut self, file: InodeNumber, inode: &Inode, kind: Kind) -> Result<Option<Acl>, Stop> {
        let format = self.attributes_format();
        self.with_place(file, inode, |handle, place| acl::read(handle, format, place, kind))
    }

    /// Keeps an ACL, and brings the mode into line with it. The caller puts the inode in its place.
    pub(super) fn store_acl(
        &mut self,
        file: InodeNumber,
        inode: &mut Inode,
        kind: Kind,
        acl: Option<&Acl>,
    ) -> Result<(), Stop> {
        if acl.is_some_and(Acl::is_extended) || kind == Kind::Default {
            self.expect_attributes()?;
        }
        let (format, goal, mode) = (self.attributes_format(), self.goal_beside(file), inode.mode.0);
        let (change, mode) =
            self.with_place(file, inode, |handle, place| acl::write(handle, format, place, (kind, acl), mode, goal))?;
        inode.mode = Mode(mode);
        match change {
            Some(change) => self.take_change(file, inode, change),
            None => Ok(()),
        }
    }

    /// Gives a new file what the default ACL of its directory says (POSIX.1e draft 17 §23.1.3). Its inode is in its place.
    pub(super) fn inherit(&mut self, parent: InodeNumber, inode: &Inode, new: InodeNumber) -> Result<(), Stop> {
        let Some(default) = self.acl_of(parent, inode, Kind::Default)? else { return Ok(()) };
        let mut inode = self.inode(new)?;
        if inode.mode.kind() == Some(FileKind::Symlink) {
            return Ok(());
        }
        let is_directory = inode.mode.kind() == Some(FileKind::Directory);
        let inherited = Inherited::new(Some(&default), inode.mode.0, 0, is_directory);
        inode.mode = Mode(inherited.mode);
        for (kind, acl) in [(Kind::Access, inherited.access), (Kind::Default, inherited.default)] {
            if let Some(acl) = acl {
                self.store_acl(new, &mut inode, kind, Some(&acl))?;
                // The next looks at what is in the inode's place.
                self.set_inode(new, &inode)?;
            }
        }
        self.set_inode(new, &inode)
    }

    /// The feature has to be there, or e2fsck would take the attributes away. The kernel sets it at the first one.
    fn expect_attributes(&self) -> Result<(), Stop> {
        match self.profile().attributes {
            true => Ok(()),
            false => Err(Refusal::NotSupported.into()),
        }
    }

    /// Calls `op` with the places of an inode's attributes.
    fn with_place<T>(
        &mut self,
        file: InodeNumber,
        inode: &Inode,
        op: impl FnOnce(&mut Self, Place<'_>) -> Result<T, AttributeError>,
    ) -> Result<T, Stop> {
        let at = self.inode_place(file)?;
        let (from, length) = (at.offset as usize, self.geometry().inode_size as usize);
        let bytes = self.block(at.block)?.get(from..from + length).unwrap_or_default();
        let body = bytes.get(body::range(bytes, file)?).unwrap_or_default().to_vec();
        let block = Some(inode.attributes_block).filter(|block| block.0 != 0);
        op(self, Place { inode: file, body: &body, block }).map_err(stop)
    }

    /// Takes over what an edit makes of the inode; the caller puts the inode in its place, with its checksum.
    fn take_change(&mut self, file: InodeNumber, inode: &mut Inode, change: Change) -> Result<(), Stop> {
        if let Some(new) = change.body {
            let at = self.inode_place(file)?;
            let (from, length) = (at.offset as usize, self.geometry().inode_size as usize);
            let bytes = self.block_mut(at.block)?.get_mut(from..from + length).unwrap_or_default();
            let range = body::range(bytes, file)?;
            bytes.get_mut(range).unwrap_or_default().iter_mut().zip(new).for_each(|(to, from)| *to = from);
        }
        inode.attributes_block = change.block.unwrap_or(BlockNumber(0));
        let (added, removed) = (u64::from(change.blocks == 1), u64::from(change.blocks == -1));
        let blocks = map::Change { nodes_added: added, nodes_removed: removed, data_freed: 0 };
        count_blocks(inode, 0, &blocks, self.geometry().block_size);
        Ok(())
    }
}

/// As in the kernel: a user could fill the disk with attributes of devices and links that all may write.
fn expect_kind_for(name: &Name, inode: &Inode) -> Result<(), Stop> {
    let has_content = matches!(inode.mode.kind(), Some(FileKind::Regular | FileKind::Directory));
    match name.index() == NameIndex::USER && !has_content {
        true => Err(Refusal::WrongKind.into()),
        false => Ok(()),
    }
}

fn stop(error: AttributeError) -> Stop {
    match error {
        AttributeError::Stop(stop) => stop,
        AttributeError::Name(_) => Refusal::BadAttributeName.into(),
        AttributeError::Edit(EditError::Exists) => Refusal::Exists.into(),
        AttributeError::Edit(EditError::Missing) => Refusal::NoAttribute.into(),
        AttributeError::Edit(EditError::NoSpace) => Refusal::NoRoomForAttribute.into(),
        AttributeError::Edit(EditError::ValueInInode) => Refusal::NotSupported.into(),
    }
}
