//! The ACLs of an inode, kept among its attributes. An access ACL that says no more than the mode is not kept at all.

use super::{AttributeError, Change, Format, Place, get, remove, set};
use crate::layout::acl::Acl;
use crate::layout::xattr::{EditError, Name, NameIndex, SetMode};
use crate::layout::{Corrupt, Structure};
use crate::store::{BlockStore, Stop};
use crate::units::BlockNumber;

/// Which of an inode's ACLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The one that grants access.
    Access,
    /// The one that what is created in a directory inherits.
    Default,
}

impl Kind {
    /// The attribute that keeps it.
    pub fn name(self) -> Name {
        Name::stored(
            match self {
                Self::Access => NameIndex::POSIX_ACL_ACCESS,
                Self::Default => NameIndex::POSIX_ACL_DEFAULT,
            },
            b"",
        )
    }
}

/// The ACL that is kept, if any. Errors: as of [`get`]; an attribute that is not an ACL.
pub fn read<S: BlockStore>(
    store: &mut S,
    format: Format,
    place: Place<'_>,
    kind: Kind,
) -> Result<Option<Acl>, AttributeError> {
    let corrupt = |_| Corrupt::new(Structure::ExtendedAttributes, place.inode.0.into(), "an ACL is not valid");
    match get(store, format, place, &kind.name()) {
        Ok(value) => Ok(Some(Acl::from_disk(&value).map_err(corrupt).map_err(Stop::from)?)),
        Err(AttributeError::Edit(EditError::Missing)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets or, with None, removes an ACL. Gives what becomes of the inode's attributes, None if nothing does, and its mode:
/// permission bits follow the access ACL. Whether setgid has to go (POSIX.1e: the caller is not in the file's group) is
/// the caller's to say. Errors: as of [`set`].
pub fn write<S: BlockStore>(
    store: &mut S,
    format: Format,
    place: Place<'_>,
    (kind, acl): (Kind, Option<&Acl>),
    mode: u16,
    goal: BlockNumber,
) -> Result<(Option<Change>, u16), AttributeError> {
    let (mode, kept) = match (kind, acl) {
        (Kind::Access, Some(acl)) => (acl.mode(mode), acl.is_extended().then_some(acl)),
        (_, acl) => (mode, acl),
    };
    let change = match kept {
        Some(acl) => set(store, format, place, (&kind.name(), &acl.to_disk()), SetMode::Any, goal),
        None => remove(store, format, place, &kind.name(), goal),
    };
    match change {
        Ok(change) => Ok((Some(change), mode)),
        Err(AttributeError::Edit(EditError::Missing)) => Ok((None, mode)),
        Err(error) => Err(error),
    }
}
