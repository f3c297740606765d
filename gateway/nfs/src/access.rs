//! Who may do what to a file: permissions as POSIX has them, for callers as an export sees them. Pure.

use filesystem::engine::Handle;
use filesystem::layout::acl::{Acl, Guard, Permissions, Subject};
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::inode::Inode;
use filesystem::{InodeNumber, Refusal, Stop};

/// The superuser, unless the export makes somebody else of it.
const ROOT: u32 = 0;
/// The bits of a mode that let anybody run a file.
const EXECUTE_ANY: u16 = 0o111;

/// Somebody who asks for something, after the export has had its say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// The export lets this client only read.
    pub read_only: bool,
    /// The export lets this client do nothing at all.
    pub refused: bool,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To read a file, or list a directory.
    Read,
    /// To write a file, or change the names in a directory together with [`Wanted::Execute`].
    Write,
    /// To run a file, or look up names in a directory.
    Execute,
}

impl Caller {
    /// True for the superuser.
    pub fn is_root(&self) -> bool {
        self.user == ROOT
    }

    /// True for a member of the group.
    pub fn is_in(&self, group: u32) -> bool {
        self.group == group || self.groups.contains(&group)
    }

    /// True for the owner of a file, and the superuser.
    pub fn owns(&self, inode: &Inode) -> bool {
        self.is_root() || self.user == inode.user
    }

    /// True when the file's mode and ACL let this caller do it. The superuser may do all, but run only what somebody may run.
    pub fn permits(&self, inode: &Inode, acl: Option<&Acl>, wanted: Wanted) -> bool {
        if self.is_root() {
            let is_directory = inode.mode.kind() == Some(FileKind::Directory);
            return wanted != Wanted::Execute || is_directory || inode.mode.permissions() & EXECUTE_ANY != 0;
        }
        let bit = match wanted {
            Wanted::Read => 4,
            Wanted::Write => 2,
            Wanted::Execute => 1,
        };
        let guard = Guard { owner: inode.user, group: inode.group, mode: inode.mode.permissions(), acl };
        let who = Subject { user: self.user, group: self.group, groups: &self.groups };
        Permissions::new(bit).is_some_and(|bits| guard.permits(who, bits))
    }
}

/// Looks at the ACL only where the mode alone cannot say it.
pub fn is_permitted(
    files: &mut Handle<'_>,
    caller: &Caller,
    (number, inode): (InodeNumber, &Inode),
    wanted: Wanted,
) -> Result<bool, Stop> {
    if caller.is_root() || caller.user == inode.user {
        return Ok(caller.permits(inode, None, wanted));
    }
    let acl = acl_of(files, number)?;
    Ok(caller.permits(inode, acl.as_ref(), wanted))
}

fn acl_of(files: &mut Handle<'_>, number: InodeNumber) -> Result<Option<Acl>, Stop> {
    match files.acl(number, filesystem::attributes::acl::Kind::Access) {
        // No attributes on this filesystem: then there is no ACL either.
        Err(Stop::Refused(Refusal::NotSupported)) => Ok(None),
        other => other,
    }
}

/// True unless the directory is sticky and neither it nor the file in it is the caller's: then the name cannot be taken away.
pub fn may_take_away(caller: &Caller, directory: &Inode, file: &Inode) -> bool {
    directory.mode.permissions() & Mode::STICKY == 0 || caller.owns(directory) || caller.owns(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(mode: u16) -> Inode {
        let mut inode = Inode::fresh(Mode::new(FileKind::Regular, mode), 1, 256);
        (inode.user, inode.group) = (10, 20);
        inode
    }

    fn caller(user: u32, group: u32, groups: &[u32]) -> Caller {
        Caller { user, group, groups: groups.to_vec(), read_only: false, refused: false }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let file = inode(0o407);
        let table = [
            (caller(10, 99, &[]), [true, false, false]),
            (caller(11, 20, &[]), [false, false, false]),
            (caller(11, 99, &[5, 20]), [false, false, false]),
            (caller(11, 99, &[]), [true, true, true]),
        ];
        for (caller, expected) in table {
            let allowed =
                [Wanted::Read, Wanted::Write, Wanted::Execute].map(|wanted| caller.permits(&file, None, wanted));
            assert_eq!(allowed, expected, "{caller:?}");
        }
    }

    #[test]
    fn the_superuser_runs_only_what_somebody_may_run() {
        let root = caller(0, 0, &[]);
        assert!(root.permits(&inode(0), None, Wanted::Write));
        assert!(!root.permits(&inode(0o666), None, Wanted::Execute));
        assert!(root.permits(&inode(0o001), None, Wanted::Execute));
        let directory = Inode::fresh(Mode::new(FileKind::Directory, 0), 1, 256);
        assert!(root.permits(&directory, None, Wanted::Execute));
    }

    #[test]
    fn names_in_a_sticky_directory_belong_to_their_owners() {
        let mut directory = inode(0o1777);
        directory.user = 1;
        let file = inode(0o644);
        for (user, expected) in [(0, true), (1, true), (10, true), (11, false)] {
            assert_eq!(may_take_away(&caller(user, 0, &[]), &directory, &file), expected, "user {user}");
        }
        directory.mode = Mode::new(FileKind::Directory, 0o777);
        assert!(may_take_away(&caller(11, 0, &[]), &directory, &file));
    }
}
