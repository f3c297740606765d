//! POSIX ACLs: their form on disk and in user space, and their rules (POSIX.1e draft 17 §23.1; acl(5)). What a mode and an
//! ACL say of each other, what is inherited, and who may do what is computed as the Linux kernel does it. Not here: where
//! ACLs are kept, capabilities that override them, NFSv4 ACLs.

use std::ops::{BitAnd, BitOr};

use smallvec::SmallVec;
use thiserror::Error;

mod codec;

/// An access control list. Valid: one entry each for owner, owning group and others, in the order of [`Tag`], and a mask
/// if users or groups are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: SmallVec<[AclEntry; 8]>,
}

/// Whom it grants what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclEntry {
    /// Whom.
    pub tag: Tag,
    /// What.
    pub permissions: Permissions,
}

/// Whom an entry is for, in the order that entries have in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// The file's owner.
    Owner,
    /// The user of this number.
    User(u32),
    /// The file's group.
    OwningGroup,
    /// The group of this number.
    Group(u32),
    /// The most that named users and all groups get.
    Mask,
    /// Everybody else.
    Other,
}

/// Read 4, write 2, execute or search 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permissions(u8);

/// Why something is not an ACL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AclError {
    /// The version is not the one of this form.
    #[error("an ACL of an unknown version")]
    Version,
    /// The length is not that of whole entries.
    #[error("an ACL of a wrong length")]
    Length,
    /// A tag or permission bit that does not exist.
    #[error("an ACL with an unknown tag or permission")]
    Unknown,
    /// Entries out of order, missing or too many, or a user or group number that is none.
    #[error("an ACL that breaks the rules for its entries")]
    Rules,
}

/// Who asks for access: the ids it is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The user.
    pub user: u32,
    /// Its primary group.
    pub group: u32,
    /// Its other groups.
    pub groups: &'a [u32],
}

/// What access to a file is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    /// Its owner.
    pub owner: u32,
    /// Its group.
    pub group: u32,
    /// Its mode; the permission bits count.
    pub mode: u16,
    /// Its access ACL, if one is kept.
    pub acl: Option<&'a Acl>,
}

/// What a new inode gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Its mode.
    pub mode: u16,
    /// The access ACL to keep.
    pub access: Option<Acl>,
    /// The default ACL to keep; for directories only.
    pub default: Option<Acl>,
}

/// The number that stands for no user or group.
const NO_ID: u32 = u32::MAX;

/// Permission bits of a mode: all, and those of the group.
const MODE_ALL: u16 = 0o777;
const MODE_GROUP: u16 = 0o070;

impl Permissions {
    /// None.
    pub const NONE: Self = Self(0);
    /// All three.
    pub const ALL: Self = Self(7);

    /// From read 4, write 2, execute 1; None if there are other bits.
    pub fn new(bits: u16) -> Option<Self> {
        (bits <= 7).then_some(Self(bits as u8))
    }

    /// Those of three bits of a mode, from bit `shift`.
    fn of_mode(mode: u16, shift: u32) -> Self {
        Self((mode >> shift & 7) as u8)
    }

    /// As a number from 0 to 7.
    pub fn bits(self) -> u16 {
        self.0.into()
    }

    /// True when all of `wanted` is among them.
    pub fn contain(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

impl BitAnd for Permissions {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Permissions {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Acl {
    /// From entries. Errors: [`AclError::Rules`].
    pub fn new(entries: impl IntoIterator<Item = AclEntry>) -> Result<Self, AclError> {
        let entries: SmallVec<[AclEntry; 8]> = entries.into_iter().collect();
        let count = |tag: Tag| entries.iter().filter(|entry| entry.tag == tag).count();
        let named: usize = entries.iter().filter(|entry| matches!(entry.tag, Tag::User(_) | Tag::Group(_))).count();
        let in_order = entries.is_sorted_by_key(|entry| entry.tag.rank());
        let single = [Tag::Owner, Tag::OwningGroup, Tag::Other].iter().all(|tag| count(*tag) == 1);
        let masked = count(Tag::Mask) == 1 || (count(Tag::Mask) == 0 && named == 0);
        let ids = entries.iter().all(|entry| !matches!(entry.tag, Tag::User(NO_ID) | Tag::Group(NO_ID)));
        if in_order && single && masked && ids { Ok(Self { entries }) } else { Err(AclError::Rules) }
    }

    /// The one that says the same as the permission bits of `mode`.
    pub fn of_mode(mode: u16) -> Self {
        let entry = |tag, shift| AclEntry { tag, permissions: Permissions::of_mode(mode, shift) };
        Self { entries: [entry(Tag::Owner, 6), entry(Tag::OwningGroup, 3), entry(Tag::Other, 0)].into_iter().collect() }
    }

    /// Its entries, in order.
    pub fn entries(&self) -> &[AclEntry] {
        &self.entries
    }

    /// True when it says more than a mode can.
    pub fn is_extended(&self) -> bool {
        self.entries.len() > 3
    }

    /// `mode` with the permission bits that this ACL shows: the group's are the mask, if there is one.
    pub fn mode(&self, mode: u16) -> u16 {
        let bits = self.permissions(Tag::Owner).bits() << 6
            | self.permissions_of_group_class().bits() << 3
            | self.permissions(Tag::Other).bits();
        (mode & !MODE_ALL) | bits
    }

    /// After chmod: owner and others as in `mode`, and the mask, or the owning group if there is none.
    pub fn with_mode(&self, mode: u16) -> Self {
        let group_class = self.group_class();
        let mut changed = self.clone();
        for entry in &mut changed.entries {
            match entry.tag {
                Tag::Owner => entry.permissions = Permissions::of_mode(mode, 6),
                Tag::Other => entry.permissions = Permissions::of_mode(mode, 0),
                tag if tag == group_class => entry.permissions = Permissions::of_mode(mode, 3),
                _ => {}
            }
        }
        changed
    }

    /// What an entry that is there at most once grants.
    fn permissions(&self, tag: Tag) -> Permissions {
        self.find(tag).unwrap_or_default()
    }

    fn find(&self, tag: Tag) -> Option<Permissions> {
        self.entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions)
    }

    /// The entry that the group's bits of the mode show.
    fn group_class(&self) -> Tag {
        if self.find(Tag::Mask).is_some() { Tag::Mask } else { Tag::OwningGroup }
    }

    fn permissions_of_group_class(&self) -> Permissions {
        self.permissions(self.group_class())
    }

    /// POSIX.1e §23.1.5: the first of owner, named user, groups, others that applies decides; of groups any that grants.
    fn permits(&self, who: Subject<'_>, owner: u32, group: u32, wanted: Permissions) -> bool {
        let mask = self.find(Tag::Mask).unwrap_or(Permissions::ALL);
        let mut in_some_group = false;
        for entry in &self.entries {
            let matching_group = match entry.tag {
                Tag::Owner if who.user == owner => return entry.permissions.contain(wanted),
                Tag::User(user) if who.user == user => return (entry.permissions & mask).contain(wanted),
                Tag::OwningGroup => who.is_in(group),
                Tag::Group(group) => who.is_in(group),
                Tag::Other => return !in_some_group && entry.permissions.contain(wanted),
                _ => false,
            };
            if matching_group && entry.permissions.contain(wanted) {
                return mask.contain(wanted);
            }
            in_some_group |= matching_group;
        }
        false
    }
}

impl Tag {
    fn rank(self) -> u8 {
        match self {
            Self::Owner => 0,
            Self::User(_) => 1,
            Self::OwningGroup => 2,
            Self::Group(_) => 3,
            Self::Mask => 4,
            Self::Other => 5,
        }
    }
}

impl Subject<'_> {
    fn is_in(self, group: u32) -> bool {
        self.group == group || self.groups.contains(&group)
    }
}

impl Guard<'_> {
    /// True when `who` gets all of `wanted`. The owner is judged by the mode, and so is everybody else when its group bits
    /// are all off: as in the kernel the ACL is not looked at then, and named users count as others.
    pub fn permits(self, who: Subject<'_>, wanted: Permissions) -> bool {
        if who.user == self.owner {
            return Permissions::of_mode(self.mode, 6).contain(wanted);
        }
        match self.acl {
            Some(acl) if self.mode & MODE_GROUP != 0 => acl.permits(who, self.owner, self.group, wanted),
            _ if who.is_in(self.group) => Permissions::of_mode(self.mode, 3).contain(wanted),
            _ => Permissions::of_mode(self.mode, 0).contain(wanted),
        }
    }
}

impl Inherited {
    /// What an inode created with `mode` gets in a directory with this default ACL: the umask counts only without one
    /// (POSIX.1e §23.1.3). `is_directory` is that of the new inode. Not for symbolic links, which get nothing.
    pub fn new(parent_default: Option<&Acl>, mode: u16, umask: u16, is_directory: bool) -> Self {
        let Some(default) = parent_default else {
            return Self { mode: mode & !(umask & MODE_ALL), access: None, default: None };
        };
        let asked = Acl::of_mode(mode);
        let group_class = default.group_class();
        let mut access = default.clone();
        for entry in &mut access.entries {
            match entry.tag {
                Tag::Owner | Tag::Other => entry.permissions = entry.permissions & asked.permissions(entry.tag),
                tag if tag == group_class => {
                    entry.permissions = entry.permissions & asked.permissions(Tag::OwningGroup);
                }
                _ => {}
            }
        }
        Self {
            mode: access.mode(mode),
            access: Some(access).filter(Acl::is_extended),
            default: is_directory.then(|| default.clone()),
        }
    }
}

#[cfg(test)]
#[path = "acl/tests.rs"]
mod tests;
