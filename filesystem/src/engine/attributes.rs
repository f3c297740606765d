//! What an inode says of its file: its attributes read and set, and the count of its changes.
//!
//! Who may set what, and that a change of the owner takes set-user bits away, is the gateway's to know. The length of a file
//! is not set here.

use super::handle::Handle;
use crate::attributes::acl::Kind;
use crate::layout::bitmap::{Bitmap, BitmapKind};
use crate::layout::file_kind::{FileKind, Mode};
use crate::layout::inode::Inode;
use crate::layout::inode_flags::InodeFlags;
use crate::layout::timestamp::Timestamp;
use crate::layout::{Corrupt, Structure};
use crate::map::{FileMap, Mapping};
use crate::store::{BlockStore, Refusal, Stop};
use crate::units::{BlockNumber, FileBlock, InodeNumber, ROOT_INODE};

/// Bits of a change attribute that count the changes since an unclean start; those above count the starts.
pub(super) const CHANGES_BITS: u32 = 40;
/// The same of a version of 32 bits.
const NARROW_CHANGES_BITS: u32 = 20;
/// Bits of a mode that are not its kind.
const PERMISSIONS: u16 = 0o7777;

/// What is to be set; None leaves it as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttributeChanges {
    /// The lower twelve bits of the mode. An access ACL follows (POSIX.1e draft 17 §23.1.2).
    pub mode: Option<u16>,
    /// Owner.
    pub user: Option<u32>,
    /// Group.
    pub group: Option<u32>,
    /// Last access.
    pub accessed: Option<Timestamp>,
    /// Last change of the content.
    pub modified: Option<Timestamp>,
}

/// A number that is another one after every change of the file (RFC 8881 §5.8.1.4). Inodes of 128 bytes have a version of 32
/// bits: there it is mixed with the second of the change.
pub fn change_attribute(inode: &Inode) -> u64 {
    if inode.has_wide_version() {
        return inode.version;
    }
    u64::from(inode.changed.seconds as u32) << 32 | (inode.version & u64::from(u32::MAX))
}

/// The version after one more change. With a floor, which every unclean start raises, none comes twice, although changes
/// that were seen may be lost by a crash.
fn next_version(version: u64, is_wide: bool, floor: u64) -> u64 {
    if is_wide {
        return version.max(floor).wrapping_add(1);
    }
    let narrow = version as u32;
    // As many starts as fit, above as many changes as fit; whichever wraps, the second of the change differs.
    let start = (floor >> CHANGES_BITS) as u32;
    let base = start << NARROW_CHANGES_BITS;
    let is_of_this_start = narrow >> NARROW_CHANGES_BITS == base >> NARROW_CHANGES_BITS;
    let next = if start == 0 || is_of_this_start { narrow.wrapping_add(1) } else { base.wrapping_add(1) };
    u64::from(next)
}

impl Handle<'_> {
    /// The attributes of a file with all that was written into it, also of one that has lost its last name and is in use still.
    /// Errors: [`Refusal::Stale`].
    pub fn stat(&mut self, file: InodeNumber) -> Result<Inode, Stop> {
        let mut inode = self.in_use(file)?;
        inode.size = self.visible_size(file, &inode);
        inode.sectors += self.waiting_sectors(file);
        Ok(inode)
    }

    /// The inode of a file that exists, by a number that may come from anywhere. Errors: [`Refusal::Stale`] when there is no
    /// such inode, it is free, or it is one of the filesystem's own.
    pub(super) fn in_use(&mut self, number: InodeNumber) -> Result<Inode, Stop> {
        let geometry = self.geometry();
        let is_file = number == ROOT_INODE || number >= geometry.first_inode;
        let (group, bit) = geometry.group_of_inode(number).filter(|_| is_file).ok_or(Refusal::Stale)?;
        let descriptor = self.descriptor(group)?;
        if descriptor.is_inode_bitmap_uninit() {
            return Err(Refusal::Stale.into());
        }
        // The bytes of an inode that was never in use may be anything. A bit that is wrong hides a file at worst, so the
        // bitmap's checksum is left to those who change it.
        let bits = Bitmap::new(geometry, BitmapKind::Inodes, group, self.unobserved(descriptor.inode_bitmap)?)?;
        if !bits.is_used(bit) {
            return Err(Refusal::Stale.into());
        }
        let inode = self.inode(number)?;
        if inode.mode.kind().is_none() {
            return Err(Refusal::Stale.into());
        }
        Ok(inode)
    }

    /// Sets attributes; nothing to set changes nothing. Errors: [`Refusal::Stale`], [`Refusal::Reserved`]; no room for an ACL
    /// that follows the mode.
    pub fn set_attributes(
        &mut self,
        file: InodeNumber,
        changes: &AttributeChanges,
        now: Timestamp,
    ) -> Result<(), Stop> {
        let mut inode = self.in_use(file)?;
        self.expect_unreserved(file)?;
        if *changes == AttributeChanges::default() {
            return Ok(());
        }
        if let Some(bits) = changes.mode {
            if let Some(acl) = self.acl_of(file, &inode, Kind::Access)? {
                self.store_acl(file, &mut inode, Kind::Access, Some(&acl.with_mode(bits)))?;
            }
            inode.mode = Mode(inode.mode.0 & !PERMISSIONS | bits & PERMISSIONS);
        }
        inode.user = changes.user.unwrap_or(inode.user);
        inode.group = changes.group.unwrap_or(inode.group);
        inode.accessed = changes.accessed.unwrap_or(inode.accessed);
        inode.modified = changes.modified.unwrap_or(inode.modified);
        self.touch(&mut inode, now);
        self.set_inode(file, &inode)
    }

    /// The target of a symbolic link. Errors: [`Refusal::WrongKind`], [`Refusal::Stale`]; [`Refusal::NotSupported`] when it
    /// is kept as an attribute.
    pub fn read_link(&mut self, file: InodeNumber) -> Result<Vec<u8>, Stop> {
        let inode = self.in_use(file)?;
        if inode.mode.kind() != Some(FileKind::Symlink) {
            return Err(Refusal::WrongKind.into());
        }
        if let Some(target) = inode.fast_symlink() {
            return Ok(target.to_vec());
        }
        if inode.flags.contains(InodeFlags::INLINE_DATA) {
            return Err(Refusal::NotSupported.into());
        }
        let broken = |what| Corrupt::new(Structure::Inode, u64::from(file.0), what);
        inode.check(file, &self.inode_rules())?;
        let map = FileMap::of_inode(&inode, file, &self.inode_rules(), BlockNumber(0));
        let Mapping::Mapped { run, unwritten: false } = map.lookup(self, FileBlock(0))? else {
            return Err(broken("the target of the symbolic link is a hole").into());
        };
        let target = self.block(run.start)?.get(..inode.size as usize);
        Ok(target.ok_or(broken("the target of the symbolic link is too long"))?.to_vec())
    }

    /// The inode has changed.
    pub(super) fn touch(&self, inode: &mut Inode, now: Timestamp) {
        inode.changed = now;
        inode.version = next_version(inode.version, inode.has_wide_version(), self.version_floor());
    }

    /// Its content has changed, too.
    pub(super) fn modify(&self, inode: &mut Inode, now: Timestamp) {
        inode.modified = now;
        self.touch(inode, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(inode_size: usize, version: u64, seconds: i64) -> Inode {
        let mut inode = Inode::fresh(Mode::new(FileKind::Regular, 0o644), 1, inode_size);
        (inode.version, inode.changed) = (version, Timestamp { seconds, nanoseconds: 0 });
        inode
    }

    #[test]
    fn the_first_change_after_an_unclean_start_jumps_over_what_may_have_been_lost() {
        let floor = 3 << CHANGES_BITS;
        let first = next_version(17, true, floor);
        assert_eq!((first, next_version(first, true, floor)), (floor + 1, floor + 2));
        assert_eq!(next_version(floor + 5, true, 2 << CHANGES_BITS), floor + 6, "it never goes back");
        assert_eq!(next_version(17, true, 0), 18, "without a count of starts it only counts");
    }

    #[test]
    fn a_narrow_version_jumps_once_for_each_start_and_is_told_apart_by_its_second() {
        let floor = 3 << CHANGES_BITS;
        let first = next_version(17, false, floor);
        assert_eq!((first, next_version(first, false, floor)), ((3 << 20) + 1, (3 << 20) + 2));
        assert_ne!(next_version(first, false, 4 << CHANGES_BITS), first + 1, "changes after the next start are others");
        assert_eq!(next_version(u64::from(u32::MAX), false, 0), 0);
        assert_eq!(change_attribute(&inode(128, 5, 7)), 7 << 32 | 5);
        assert_eq!(change_attribute(&inode(256, 5 << 40, 7)), 5 << 40);
    }
}
