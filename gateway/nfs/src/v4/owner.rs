//! Owners of files as they go over the wire (RFC 8881 §5.9): digits, which every client with AUTH_SYS understands, or
//! `name@domain` where the service has a domain.
//!
//! Names are looked up outside, and may not be known yet: then whoever asked is told so by [`Owners::is_missing`], and asks
//! again once they have been looked up. Nothing here waits.

use std::fmt::Debug;
use std::rc::Rc;

use crate::v4::status::Status;

/// Whose name or number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerKind {
    /// A user.
    User,
    /// A group.
    Group,
}

/// What is known of names.
pub trait Owners: Debug {
    /// The domain of this service's names; none: numbers only.
    fn domain(&self) -> Option<&str>;

    /// The whole name, domain included, of a number; none if it has no name, or it is missing.
    fn name_of(&self, kind: OwnerKind, id: u32) -> Option<Rc<str>>;

    /// The number of a name without its domain; none if there is no such name, or it is missing.
    fn id_of(&self, kind: OwnerKind, name: &str) -> Option<u32>;

    /// Nothing is missing from now on, until something is asked for that is not known yet.
    fn begin(&self);

    /// True if something was asked for since [`Self::begin`] that is not known yet: what was answered does not count.
    fn is_missing(&self) -> bool;
}

/// Numbers only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers;

impl Owners for Numbers {
    fn domain(&self) -> Option<&str> {
        None
    }

    fn name_of(&self, _: OwnerKind, _: u32) -> Option<Rc<str>> {
        None
    }

    fn id_of(&self, _: OwnerKind, _: &str) -> Option<u32> {
        None
    }

    fn begin(&self) {}

    fn is_missing(&self) -> bool {
        false
    }
}

/// What a client wrote. Errors: [`Status::BadOwner`] for what is neither a number nor a name of ours.
pub fn id(owners: &dyn Owners, kind: OwnerKind, text: &[u8]) -> Result<u32, Status> {
    let text = std::str::from_utf8(text).map_err(|_| Status::BadOwner)?;
    let found = match text.rsplit_once('@') {
        Some((name, domain))
            if owners.domain().is_some_and(|own| own.eq_ignore_ascii_case(domain)) && !name.is_empty() =>
        {
            owners.id_of(kind, name)
        }
        Some(_) => None,
        None => text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten(),
    };
    // The highest number stands for nobody.
    found.filter(|id| *id != u32::MAX).ok_or(Status::BadOwner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Two;

    impl Owners for Two {
        fn domain(&self) -> Option<&str> {
            Some("example.org")
        }

        fn name_of(&self, _: OwnerKind, id: u32) -> Option<Rc<str>> {
            (id == 7).then(|| "ann@example.org".into())
        }

        fn id_of(&self, kind: OwnerKind, name: &str) -> Option<u32> {
            match (kind, name) {
                (OwnerKind::User, "ann") => Some(7),
                (OwnerKind::Group, "nobody") => Some(u32::MAX),
                _ => None,
            }
        }

        fn begin(&self) {}

        fn is_missing(&self) -> bool {
            false
        }
    }

    #[test]
    fn numbers_and_names_of_our_domain_are_understood() {
        let user = |text: &str| id(&Two, OwnerKind::User, text.as_bytes());
        assert_eq!(
            [user("7"), user("0"), user("ann@example.org"), user("ann@EXAMPLE.org")],
            [Ok(7), Ok(0), Ok(7), Ok(7)]
        );
        let bad = [
            "",
            "ann",
            "ann@",
            "@example.org",
            "ann@example.com",
            "bob@example.org",
            "-1",
            "+1",
            "4294967295",
            "5000000000",
        ];
        for text in bad {
            assert_eq!(user(text), Err(Status::BadOwner), "{text}");
        }
        assert_eq!(id(&Two, OwnerKind::Group, b"ann@example.org"), Err(Status::BadOwner), "no group");
        assert_eq!(id(&Two, OwnerKind::Group, b"nobody@example.org"), Err(Status::BadOwner));
        assert_eq!(id(&Two, OwnerKind::User, b"\xff"), Err(Status::BadOwner));
        assert_eq!(id(&Numbers, OwnerKind::User, b"ann@example.org"), Err(Status::BadOwner), "no domain");
    }
}
