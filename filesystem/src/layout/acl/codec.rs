//! The two forms of an ACL: version 1 on disk, where only entries of named users and groups have a number, and version 2 in
//! the attribute that user space sees, where all have one (linux/posix_acl_xattr.h).

use super::{Acl, AclEntry, AclError, NO_ID, Permissions, Tag};

const DISK_VERSION: u32 = 1;
const XATTR_VERSION: u32 = 2;

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

impl Acl {
    /// From the attribute's value on disk. Errors: [`AclError`].
    pub fn from_disk(bytes: &[u8]) -> Result<Self, AclError> {
        let mut rest = after_version(bytes, DISK_VERSION)?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (tag, permissions) = (take_u16(&mut rest)?, take_u16(&mut rest)?);
            let id = if matches!(tag, USER | GROUP) { take_u32(&mut rest)? } else { NO_ID };
            entries.push(entry(tag, permissions, id)?);
        }
        Self::new(entries)
    }

    /// The attribute's value on disk.
    pub fn to_disk(&self) -> Vec<u8> {
        let mut bytes = DISK_VERSION.to_le_bytes().to_vec();
        for entry in self.entries() {
            let (tag, id) = entry.tag.number();
            bytes.extend(tag.to_le_bytes());
            bytes.extend(entry.permissions.bits().to_le_bytes());
            bytes.extend(id.map(u32::to_le_bytes).into_iter().flatten());
        }
        bytes
    }

    /// From the value of `system.posix_acl_access` or `_default` in user space; None when it has no entries, which means
    /// to remove the ACL. Errors: [`AclError`].
    pub fn from_xattr(bytes: &[u8]) -> Result<Option<Self>, AclError> {
        let mut rest = after_version(bytes, XATTR_VERSION)?;
        if rest.is_empty() {
            return Ok(None);
        }
        let mut entries = Vec::new();
        while !rest.is_empty() {
            entries.push(entry(take_u16(&mut rest)?, take_u16(&mut rest)?, take_u32(&mut rest)?)?);
        }
        Self::new(entries).map(Some)
    }

    /// The value of `system.posix_acl_access` or `_default` in user space.
    pub fn to_xattr(&self) -> Vec<u8> {
        let mut bytes = XATTR_VERSION.to_le_bytes().to_vec();
        for entry in self.entries() {
            let (tag, id) = entry.tag.number();
            bytes.extend(tag.to_le_bytes());
            bytes.extend(entry.permissions.bits().to_le_bytes());
            bytes.extend(id.unwrap_or(NO_ID).to_le_bytes());
        }
        bytes
    }
}

impl Tag {
    /// Its number on disk, and that of the user or group it names.
    fn number(self) -> (u16, Option<u32>) {
        match self {
            Self::Owner => (OWNER, None),
            Self::User(user) => (USER, Some(user)),
            Self::OwningGroup => (OWNING_GROUP, None),
            Self::Group(group) => (GROUP, Some(group)),
            Self::Mask => (MASK, None),
            Self::Other => (OTHER, None),
        }
    }
}

fn entry(tag: u16, permissions: u16, id: u32) -> Result<AclEntry, AclError> {
    let tag = match tag {
        OWNER => Tag::Owner,
        USER => Tag::User(id),
        OWNING_GROUP => Tag::OwningGroup,
        GROUP => Tag::Group(id),
        MASK => Tag::Mask,
        OTHER => Tag::Other,
        _ => return Err(AclError::Unknown),
    };
    Ok(AclEntry { tag, permissions: Permissions::new(permissions).ok_or(AclError::Unknown)? })
}

fn after_version(bytes: &[u8], version: u32) -> Result<&[u8], AclError> {
    let mut rest = bytes;
    if take_u32(&mut rest)? == version { Ok(rest) } else { Err(AclError::Version) }
}

fn take_u16(rest: &mut &[u8]) -> Result<u16, AclError> {
    let (number, after) = rest.split_first_chunk().ok_or(AclError::Length)?;
    *rest = after;
    Ok(u16::from_le_bytes(*number))
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, AclError> {
    let (number, after) = rest.split_first_chunk().ok_or(AclError::Length)?;
    *rest = after;
    Ok(u32::from_le_bytes(*number))
}
