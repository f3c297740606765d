//! How a dirty bitmap lies in its area of a store. Pure: bytes in, bytes out.
//!
//! Page 0 of an area is the header: whose bitmap it is, since when it is kept, and what holds where no other page speaks.
//! Page *n* holds the bits of [`EXTENTS_PER_PAGE`] extents. A page belongs to the header's bitmap only if it carries the
//! header's generation; an older one is as if it had never been written. A damaged page marks everything that it stands
//! for, so that damage costs a comparison and never a difference that goes unnoticed. All integers are little-endian;
//! `docs/disk-format.md` has the tables.

use proto::checksum::crc32;
use proto::{BlockRange, ConfigVersion, DiskId, EXTENT_BLOCKS, NodeId};

use crate::dirty_bitmap::{DirtyBitmap, ExtentBits};
use crate::local_copy::codec::{put, u64_at};
use crate::local_copy::{PAGE_BYTES, Page};

/// Extents whose bits one page holds: 128 bytes each beside a header of 128 bytes.
pub const EXTENTS_PER_PAGE: u64 = 31;

const EXTENT_BYTES: usize = (EXTENT_BLOCKS / 8) as usize;
const PAGE_HEADER_BYTES: usize = 128;
const HEADER_MAGIC: [u8; 8] = *b"TDBMHEAD";
const PAGE_MAGIC: [u8; 8] = *b"TDBMBITS";

/// Pages of one bitmap of a volume of `blocks` blocks, the header included.
pub fn pages_for(blocks: u64) -> u64 {
    1 + blocks.div_ceil(EXTENT_BLOCKS).div_ceil(EXTENTS_PER_PAGE)
}

/// Whose bitmap it is and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Header {
    /// The node of the copy that is tracked.
    pub(crate) node: NodeId,
    /// The copy.
    pub(crate) disk_id: DiskId,
    /// Its registration.
    pub(crate) registered_at: ConfigVersion,
    /// The last version at which it was a member; 0: all of it is to be compared.
    pub(crate) base: ConfigVersion,
    /// The version since which it had been one.
    pub(crate) since: ConfigVersion,
    /// The version at which tracking began.
    pub(crate) started_at: ConfigVersion,
    /// Names this bitmap among all that were ever kept in the area.
    pub(crate) generation: u64,
    /// Blocks without a page of their own are dirty.
    pub(crate) initially_dirty: bool,
}

/// What an area holds.
#[derive(Clone, Debug, Hash)]
pub(crate) enum Image {
    /// Nothing was ever written.
    Empty,
    /// Something, but the header is damaged.
    Damaged,
    /// A bitmap.
    Bitmap(Header, DirtyBitmap),
}

/// The header page.
pub(crate) fn encode_header(header: &Header) -> Page {
    let mut page = Box::new([0; PAGE_BYTES]);
    page[..8].copy_from_slice(&HEADER_MAGIC);
    put(&mut page, 16, &header.node.0.to_le_bytes());
    page[24..40].copy_from_slice(&header.disk_id.0.to_le_bytes());
    put(&mut page, 40, &header.registered_at.0.to_le_bytes());
    put(&mut page, 48, &header.base.0.to_le_bytes());
    put(&mut page, 56, &header.since.0.to_le_bytes());
    put(&mut page, 64, &header.started_at.0.to_le_bytes());
    put(&mut page, 72, &header.generation.to_le_bytes());
    put(&mut page, 80, &u64::from(header.initially_dirty).to_le_bytes());
    seal(&mut page);
    page
}

/// The page that holds the bits of the extents from `number` (1 or more) on; `bits` gives those of an extent.
pub(crate) fn encode_page(generation: u64, number: u32, bits: impl Fn(u64) -> ExtentBits) -> Page {
    let mut page = Box::new([0; PAGE_BYTES]);
    page[..8].copy_from_slice(&PAGE_MAGIC);
    put(&mut page, 16, &generation.to_le_bytes());
    put(&mut page, 24, &u64::from(number).to_le_bytes());
    let first = (u64::from(number) - 1) * EXTENTS_PER_PAGE;
    for index in 0..EXTENTS_PER_PAGE {
        let at = PAGE_HEADER_BYTES + index as usize * EXTENT_BYTES;
        for (word, value) in bits(first + index).iter().enumerate() {
            page[at + word * 8..at + word * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    seal(&mut page);
    page
}

/// Reads an area.
pub(crate) fn decode(area: &[u8], blocks: u64) -> Image {
    let Some((head, rest)) = area.split_first_chunk::<PAGE_BYTES>() else { return Image::Empty };
    if head.iter().all(|byte| *byte == 0) {
        return Image::Empty;
    }
    let Some(header) = decode_header(head) else { return Image::Damaged };
    let mut bitmap = if header.initially_dirty { DirtyBitmap::dirty(blocks) } else { DirtyBitmap::clean(blocks) };
    let pages = pages_for(blocks) - 1;
    for number in 1..=pages {
        let page = rest.get((number as usize - 1) * PAGE_BYTES..number as usize * PAGE_BYTES);
        decode_page(page, &header, number, &mut bitmap);
    }
    Image::Bitmap(header, bitmap)
}

/// The highest generation of any page of an area that can be read, whatever bitmap it belonged to; 0 without one.
pub(crate) fn newest_generation(area: &[u8]) -> u64 {
    let pages = area.chunks_exact(PAGE_BYTES).filter_map(|page| <&[u8; PAGE_BYTES]>::try_from(page).ok());
    let generation = |page: &[u8; PAGE_BYTES]| u64_at(page, if page[..8] == HEADER_MAGIC { 72 } else { 16 });
    pages.filter(|page| is_sealed(page)).map(generation).max().unwrap_or(0)
}

fn decode_header(page: &[u8; PAGE_BYTES]) -> Option<Header> {
    if page[..8] != HEADER_MAGIC || !is_sealed(page) {
        return None;
    }
    let mut disk_id = [0; 16];
    disk_id.copy_from_slice(&page[24..40]);
    Some(Header {
        node: NodeId(u64_at(page, 16)),
        disk_id: DiskId(u128::from_le_bytes(disk_id)),
        registered_at: ConfigVersion(u64_at(page, 40)),
        base: ConfigVersion(u64_at(page, 48)),
        since: ConfigVersion(u64_at(page, 56)),
        started_at: ConfigVersion(u64_at(page, 64)),
        generation: u64_at(page, 72),
        initially_dirty: u64_at(page, 80) != 0,
    })
}

fn decode_page(page: Option<&[u8]>, header: &Header, number: u64, bitmap: &mut DirtyBitmap) {
    let first = (number - 1) * EXTENTS_PER_PAGE;
    let all = BlockRange::new(first * EXTENT_BLOCKS, EXTENTS_PER_PAGE * EXTENT_BLOCKS);
    let Some(page) = page.and_then(|page| <&[u8; PAGE_BYTES]>::try_from(page).ok()) else { return bitmap.set(all) };
    if page.iter().all(|byte| *byte == 0) {
        return;
    }
    if page[..8] != PAGE_MAGIC || !is_sealed(page) || u64_at(page, 24) != number {
        return bitmap.set(all);
    }
    if u64_at(page, 16) != header.generation {
        return;
    }
    for index in 0..EXTENTS_PER_PAGE {
        let at = PAGE_HEADER_BYTES + index as usize * EXTENT_BYTES;
        let mut bits: ExtentBits = [0; EXTENT_BYTES / 8];
        bits.iter_mut().enumerate().for_each(|(word, value)| *value = u64_at(page, at + word * 8));
        bitmap.set_extent_bits(first + index, &bits);
    }
}

/// CRC-32 of a page without the field that holds it.
fn crc(page: &[u8; PAGE_BYTES]) -> u32 {
    crc32(&[&page[..8], &page[12..]])
}

fn seal(page: &mut [u8; PAGE_BYTES]) {
    let crc = crc(page);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
}

fn is_sealed(page: &[u8; PAGE_BYTES]) -> bool {
    page[8..12] == crc(page).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: u64 = 70 * EXTENT_BLOCKS + 5;

    fn header(generation: u64, initially_dirty: bool) -> Header {
        Header {
            node: NodeId(2),
            disk_id: DiskId(7 << 70),
            registered_at: ConfigVersion(3),
            base: ConfigVersion(9),
            since: ConfigVersion(4),
            started_at: ConfigVersion(10),
            generation,
            initially_dirty,
        }
    }

    fn area(header: &Header, bitmap: &DirtyBitmap, pages: &[u32]) -> Vec<u8> {
        let mut area = vec![0; pages_for(BLOCKS) as usize * PAGE_BYTES];
        area[..PAGE_BYTES].copy_from_slice(&encode_header(header)[..]);
        for number in pages {
            let page = encode_page(header.generation, *number, |extent| bitmap.extent_bits(extent));
            let at = *number as usize * PAGE_BYTES;
            area[at..at + PAGE_BYTES].copy_from_slice(&page[..]);
        }
        area
    }

    fn decoded(area: &[u8]) -> (Header, Vec<BlockRange>) {
        let Image::Bitmap(header, bitmap) = decode(area, BLOCKS) else { panic!("no bitmap") };
        (header, runs(&bitmap))
    }

    fn runs(bitmap: &DirtyBitmap) -> Vec<BlockRange> {
        let (mut from, mut runs) = (0, Vec::new());
        while let Some(run) = bitmap.next_run(from, u64::MAX) {
            from = run.end();
            runs.push(run);
        }
        runs
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut bitmap = DirtyBitmap::clean(BLOCKS);
        for range in [(0, 1), (1023, 3), (31 * 1024 - 1, 2), (70 * 1024, 5)] {
            bitmap.set(BlockRange::new(range.0, range.1));
        }
        let (found, dirty) = decoded(&area(&header(5, false), &bitmap, &[1, 2, 3]));
        assert_eq!((found, dirty), (header(5, false), runs(&bitmap)));
    }

    #[test]
    fn pages_that_are_missing_or_older_say_what_the_header_says() {
        let mut bitmap = DirtyBitmap::clean(BLOCKS);
        bitmap.set(BlockRange::new(5, 1));
        bitmap.set(BlockRange::new(40 * 1024, 7));
        let (_, dirty) = decoded(&area(&header(5, false), &bitmap, &[1]));
        assert_eq!(dirty, vec![BlockRange::new(5, 1)]);
        let (_, dirty) = decoded(&area(&header(5, true), &bitmap, &[1]));
        assert_eq!(dirty, vec![BlockRange::new(5, 1), BlockRange::new(31 * 1024, BLOCKS - 31 * 1024)]);
        let mut old = area(&header(5, false), &bitmap, &[1, 2]);
        old[..PAGE_BYTES].copy_from_slice(&encode_header(&header(6, false))[..]);
        assert_eq!(decoded(&old).1, vec![]);
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_loses_no_mark() {
        let mut bitmap = DirtyBitmap::clean(BLOCKS);
        bitmap.set(BlockRange::new(5, 1));
        let whole = area(&header(5, false), &bitmap, &[1]);
        for bit in 0..2 * PAGE_BYTES * 8 {
            let mut area = whole.clone();
            area[bit / 8] ^= 1 << (bit % 8);
            match decode(&area, BLOCKS) {
                Image::Empty => panic!("bit {bit} made the bitmap vanish"),
                Image::Damaged => assert!(bit < PAGE_BYTES * 8),
                Image::Bitmap(_, bitmap) => {
                    assert!(bit >= PAGE_BYTES * 8, "bit {bit} of the header went unnoticed");
                    assert_eq!(runs(&bitmap), vec![BlockRange::new(0, 31 * 1024)]);
                }
            }
        }
    }

    #[test]
    fn a_truncated_area_is_dirty_where_it_ends() {
        let whole = area(&header(5, false), &DirtyBitmap::clean(BLOCKS), &[1, 2, 3]);
        let (_, dirty) = decoded(&whole[..2 * PAGE_BYTES]);
        assert_eq!(dirty, vec![BlockRange::new(31 * 1024, BLOCKS - 31 * 1024)]);
        assert!(matches!(decode(&[], BLOCKS), Image::Empty));
    }
}
