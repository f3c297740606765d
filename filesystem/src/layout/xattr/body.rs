//! Attributes in an inode's body: what `i_extra_isize` leaves of it, started by a magic number. Offsets of values count from
//! the first entry, and entries have no hashes.

use std::ops::Range;

use super::region::{self, END_BYTES, Entry};
use super::{Attribute, MAGIC};
use crate::layout::{Corrupt, Structure};
use crate::units::InodeNumber;

/// Bytes of an inode of the first revision; `i_extra_isize` follows them.
const OLD_INODE_BYTES: usize = 128;

/// The magic number.
const HEADER_BYTES: usize = 4;

/// Which bytes of a whole inode are for attributes; empty when it has no place for them. Errors: `i_extra_isize` points
/// out of the inode or is not a multiple of 4.
pub fn range(inode_bytes: &[u8], inode: InodeNumber) -> Result<Range<usize>, Corrupt> {
    let Some(extra) = inode_bytes.get(OLD_INODE_BYTES..OLD_INODE_BYTES + 2) else { return Ok(0..0) };
    let extra = usize::from(extra[0]) | usize::from(extra[1]) << 8;
    let start = OLD_INODE_BYTES + extra;
    if start > inode_bytes.len() || extra % 4 != 0 {
        return Err(Corrupt::new(Structure::Inode, inode.0.into(), "its extra size is wrong"));
    }
    // An inode made before extra fields existed does not keep attributes either.
    if extra == 0 || start + HEADER_BYTES + END_BYTES > inode_bytes.len() {
        return Ok(0..0);
    }
    Ok(start..inode_bytes.len())
}

/// Bytes for entries and values in a region of `length` bytes.
pub fn room(length: usize) -> usize {
    (length / 4 * 4).saturating_sub(HEADER_BYTES + END_BYTES)
}

/// The entries in `body`, a region as [`range`] gives it; none when it does not start with the magic number. Errors: see
/// the module [`super`]; `at` is the inode.
pub fn entries(body: &[u8], inode: InodeNumber) -> Result<Vec<Entry<'_>>, Corrupt> {
    match body.split_first_chunk::<HEADER_BYTES>() {
        Some((magic, rest)) if u32::from_le_bytes(*magic) == MAGIC => region::entries(rest, 0, inode.0.into()),
        _ => Ok(Vec::new()),
    }
}

/// Writes all of `body` anew; without attributes it becomes zeros. They fit into [`room`].
pub(crate) fn write(body: &mut [u8], attributes: &[Attribute]) {
    body.fill(0);
    if attributes.is_empty() {
        return;
    }
    let (header, rest) = body.split_at_mut(HEADER_BYTES);
    header.copy_from_slice(&MAGIC.to_le_bytes());
    let aligned = rest.len() / 4 * 4;
    region::write(&mut rest[..aligned], 0, &attributes.iter().collect::<Vec<_>>(), false);
}

/// Everything that can be checked: what [`entries`] does, hashes that are there, and that no name is there twice.
pub fn check(body: &[u8], inode: InodeNumber) -> Result<(), Corrupt> {
    region::check(&entries(body, inode)?, true, inode.0.into())
}
