//! From paths to inodes, within one operation. The root's `..` is the root: no path leads out of the volume, nor does a
//! symbolic link; an absolute one begins at the volume's root.

use filesystem::engine::{Handle, is_hidden_name};
use filesystem::layout::file_kind::FileKind;
use filesystem::units::ROOT_INODE;
use filesystem::{InodeNumber, Refusal, Stop};

/// Symbolic links followed on the way of one path, as in Linux.
pub const LINKS_MAX: usize = 40;
/// Bytes of a path, as in Linux.
pub const PATH_BYTES_MAX: usize = 4096;

/// Whether a symbolic link at the end of a path is followed. One on the way always is, and so is one before a slash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// To what it names.
    Always,
    /// The link itself is meant.
    NotLast,
}

/// What is wrong with a path, whatever the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathProblem {
    /// ELOOP.
    TooManyLinks,
    /// ENAMETOOLONG.
    TooLong,
    /// It names no entry that could be made or removed.
    NoName,
}

impl PathProblem {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::TooManyLinks => "more than 40 symbolic links on the way: they lead in a circle, or too far",
            Self::TooLong => "the path is longer than 4096 bytes",
            Self::NoName => "the path has to end with a name that is neither . nor .. and not reserved",
        }
    }
}

/// A way that ended, or why no way can.
pub type Walked<T> = Result<T, PathProblem>;

/// The inode that a path leads to. Errors: [`Refusal::NotFound`], [`Refusal::NotDirectory`].
pub fn walk(handle: &mut Handle<'_>, path: &[u8], follow: Follow) -> Result<Walked<InodeNumber>, Stop> {
    if path.len() > PATH_BYTES_MAX {
        return Ok(Err(PathProblem::TooLong));
    }
    let mut left = Vec::new();
    push(&mut left, path);
    let mut at = ROOT_INODE;
    let mut links = 0;
    while let Some(name) = left.pop() {
        if is_hidden_name(at, &name) {
            return Err(Refusal::NotFound.into());
        }
        let found = handle.lookup(at, &name)?;
        let inode = handle.live(found)?;
        let is_link = inode.mode.kind() == Some(FileKind::Symlink);
        if !is_link || (left.is_empty() && follow == Follow::NotLast) {
            at = found;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Ok(Err(PathProblem::TooManyLinks));
        }
        let target = handle.read_link(found)?;
        if target.first() == Some(&b'/') {
            at = ROOT_INODE;
        }
        push(&mut left, &target);
    }
    Ok(Ok(at))
}

/// The directory that a path's last name is in, and that name, which need not exist.
pub fn parent(handle: &mut Handle<'_>, path: &[u8]) -> Result<Walked<(InodeNumber, Vec<u8>)>, Stop> {
    let Some((directory, name)) = split(path) else { return Ok(Err(PathProblem::NoName)) };
    Ok(match walk(handle, directory, Follow::Always)? {
        Ok(found) if is_hidden_name(found, name) => Err(PathProblem::NoName),
        Ok(found) => Ok((found, name.to_vec())),
        Err(problem) => Err(problem),
    })
}

/// A path before its last name, and that name; slashes at the end do not count.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let path = path.get(..end)?;
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (directory, name) = path.split_at_checked(start)?;
    (name != b"." && name != b"..").then_some((directory, name))
}

/// Puts the names of a path on the stack, the first on top. A slash at the end asks for a directory, as `.` does.
fn push(left: &mut Vec<Vec<u8>>, path: &[u8]) {
    if path.len() > 1 && path.last() == Some(&b'/') {
        left.push(b".".to_vec());
    }
    left.extend(path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).rev().map(<[u8]>::to_vec));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_name_is_what_follows_the_last_slash() {
        assert_eq!(split(b"/a/b"), Some((&b"/a/"[..], &b"b"[..])));
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split(b"/a//"), Some((&b"/"[..], &b"a"[..])));
        for path in [&b""[..], b"/", b"///", b"/a/..", b".", b"b/."] {
            assert_eq!(split(path), None, "{path:?}");
        }
    }

    #[test]
    fn names_are_taken_in_their_order() {
        let mut left = Vec::new();
        push(&mut left, b"//a/./b/");
        left.reverse();
        assert_eq!(left, [&b"a"[..], b".", b"b", b"."]);
    }
}
