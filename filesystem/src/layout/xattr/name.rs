//! Names of extended attributes: on disk the namespace is a number (ext4 on-disk format, "Extended Attributes", table of
//! attribute name indices). Which namespaces a user may write is not decided here.

use std::cmp::Ordering;

use thiserror::Error;

use super::NAME_BYTES_MAX;

/// A name: its namespace and what follows it. Ordered as entries of a block are: by namespace, length, bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    index: NameIndex,
    suffix: Vec<u8>,
}

/// A namespace, as its number on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameIndex(pub u8);

/// Why something is not an attribute's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Its prefix has no number on disk.
    #[error("the attribute's namespace is not supported")]
    Namespace,
    /// Nothing, more than 255 bytes, or a zero byte follows the prefix.
    #[error("not a name of an attribute")]
    Invalid,
}

impl NameIndex {
    /// `user.`
    pub const USER: Self = Self(1);
    /// `system.posix_acl_access`, which is the whole name.
    pub const POSIX_ACL_ACCESS: Self = Self(2);
    /// `system.posix_acl_default`, which is the whole name.
    pub const POSIX_ACL_DEFAULT: Self = Self(3);
    /// `trusted.`
    pub const TRUSTED: Self = Self(4);
    /// `security.`
    pub const SECURITY: Self = Self(6);
    /// `system.`: what the filesystem itself keeps, such as inline data.
    pub const SYSTEM: Self = Self(7);
    /// `system.richacl`, which is the whole name.
    pub const RICHACL: Self = Self(8);
    /// `gnu.`
    pub const HURD: Self = Self(10);
}

/// Prefix, number, and whether it is the whole name. The whole names of `system.` come before their prefix.
const NAMESPACES: [(&[u8], NameIndex, bool); 8] = [
    (b"user.", NameIndex::USER, false),
    (b"system.posix_acl_access", NameIndex::POSIX_ACL_ACCESS, true),
    (b"system.posix_acl_default", NameIndex::POSIX_ACL_DEFAULT, true),
    (b"system.richacl", NameIndex::RICHACL, true),
    (b"trusted.", NameIndex::TRUSTED, false),
    (b"security.", NameIndex::SECURITY, false),
    (b"system.", NameIndex::SYSTEM, false),
    (b"gnu.", NameIndex::HURD, false),
];

impl Name {
    /// From a full name, such as `user.mime_type`. Errors: [`NameError`].
    pub fn parse(full: &[u8]) -> Result<Self, NameError> {
        for (prefix, index, whole) in NAMESPACES {
            match full.strip_prefix(prefix) {
                Some([]) if whole => return Ok(Self { index, suffix: Vec::new() }),
                Some(suffix) if !whole => return Self::new(index, suffix),
                _ => {}
            }
        }
        Err(NameError::Namespace)
    }

    /// From a namespace and what follows it: nothing if and only if the namespace is a whole name. Errors:
    /// [`NameError::Namespace`] when the number is not known, [`NameError::Invalid`].
    pub fn new(index: NameIndex, suffix: &[u8]) -> Result<Self, NameError> {
        let (_, _, whole) = namespace(index).ok_or(NameError::Namespace)?;
        if suffix.is_empty() != *whole || suffix.len() > NAME_BYTES_MAX || suffix.contains(&0) {
            return Err(NameError::Invalid);
        }
        Ok(Self { index, suffix: suffix.to_vec() })
    }

    /// As it stands on disk, whatever the namespace.
    pub(crate) fn stored(index: NameIndex, suffix: &[u8]) -> Self {
        Self { index, suffix: suffix.to_vec() }
    }

    /// The full name, with its prefix. None when the number on disk has none: such attributes are kept, and not shown.
    pub fn full(&self) -> Option<Vec<u8>> {
        namespace(self.index).map(|(prefix, _, _)| [prefix, self.suffix.as_slice()].concat())
    }

    /// The namespace.
    pub fn index(&self) -> NameIndex {
        self.index
    }

    /// What follows the prefix.
    pub fn suffix(&self) -> &[u8] {
        &self.suffix
    }
}

fn namespace(index: NameIndex) -> Option<&'static (&'static [u8], NameIndex, bool)> {
    NAMESPACES.iter().find(|(_, known, _)| *known == index)
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |name: &Self| (name.index, name.suffix.len());
        key(self).cmp(&key(other)).then_with(|| self.suffix.cmp(&other.suffix))
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_map_to_their_numbers_and_back() {
        let table: [(&[u8], u8, &[u8]); 8] = [
            (b"user.a", 1, b"a"),
            (b"system.posix_acl_access", 2, b""),
            (b"system.posix_acl_default", 3, b""),
            (b"trusted.overlay.opaque", 4, b"overlay.opaque"),
            (b"security.selinux", 6, b"selinux"),
            (b"system.data", 7, b"data"),
            (b"system.richacl", 8, b""),
            (b"gnu.translator", 10, b"translator"),
        ];
        for (full, index, suffix) in table {
            let name = Name::parse(full).unwrap();
            assert_eq!((name.index(), name.suffix()), (NameIndex(index), suffix));
            assert_eq!(name.full().unwrap(), full);
        }
    }

    #[test]
    fn what_is_not_a_name_is_refused() {
        for full in [&b"user"[..], b"", b"lustre.lov", b"other.name"] {
            assert_eq!(Name::parse(full), Err(NameError::Namespace));
        }
        let long = [b"user.".as_slice(), &[b'x'; 256]].concat();
        for full in [b"user.", b"user.a\0b".as_slice(), &long] {
            assert_eq!(Name::parse(full), Err(NameError::Invalid));
        }
        assert!(Name::parse(&long[..long.len() - 1]).is_ok());
        assert_eq!(Name::new(NameIndex::POSIX_ACL_ACCESS, b"x"), Err(NameError::Invalid));
        assert_eq!(Name::stored(NameIndex(5), b"lov").full(), None);
    }

    #[test]
    fn names_are_ordered_by_number_then_length_then_bytes() {
        let ordered = [b"user.b".as_slice(), b"user.\xff", b"user.aa", b"trusted.a", b"security.a"];
        let names: Vec<Name> = ordered.iter().map(|full| Name::parse(full).unwrap()).collect();
        assert!(names.is_sorted());
    }
}
