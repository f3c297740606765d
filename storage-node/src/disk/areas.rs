//! The metadata areas of a store: reading them whole when it is opened, and where each page lies.

use std::fs::File;
use std::sync::Arc;

use block_device::AlignedBuf;
use proto::{BLOCK_BYTES, EXTENT_BYTES};
use replication::local_copy::{MetaPage, Page};

use super::DiskError;
use super::layout::{Area, BITMAPS, Layout};
use super::ring::{Request, Ring};

/// Bytes read at a time.
const CHUNK_BYTES: u64 = 4 << 20;
/// What a page that cannot be read is taken to hold: nobody writes it, so it counts as damaged. Zeros would say that
/// nothing was ever recorded.
const UNREADABLE: u8 = 0xff;

/// What the areas of a store held when it was opened.
pub(super) struct Read {
    pub(super) log: Vec<u8>,
    pub(super) index: [Vec<u8>; 2],
    pub(super) bitmaps: Vec<Vec<u8>>,
}

impl Read {
    /// Reads them. A part that cannot be read counts as damaged, which the reader of the area bears; it is no error.
    pub(super) async fn of(ring: &Ring, file: &Arc<File>, layout: &Layout) -> Read {
        let mut bitmaps = Vec::with_capacity(BITMAPS as usize);
        for slot in 0..BITMAPS {
            bitmaps.push(read_area(ring, file, bitmap(layout, slot)).await);
        }
        Read {
            log: read_area(ring, file, layout.activity_log).await,
            index: [read_area(ring, file, layout.index_first).await, read_area(ring, file, layout.index_second).await],
            bitmaps,
        }
    }
}

/// Writes pages of the log anew, durably, if there are any.
pub(super) async fn mend(
    ring: &Ring,
    file: &Arc<File>,
    layout: &Layout,
    pages: Vec<(MetaPage, Page)>,
) -> Result<(), DiskError> {
    if pages.is_empty() {
        return Ok(());
    }
    tracing::warn!(pages = pages.len(), "a damaged activity log is written anew");
    for (page, bytes) in pages {
        let offset = page_offset(layout, page).ok_or(DiskError::Misuse(libc::EFAULT))?;
        let data = AlignedBuf::copy_of(&bytes[..]).freeze();
        ring.run(file, Request::Write { offset, data, durable: false }).await?;
    }
    ring.run(file, Request::Flush).await.map(drop)
}

/// Byte offset of a page in the store; `None` if its area has no such page.
pub(super) fn page_offset(layout: &Layout, page: MetaPage) -> Option<u64> {
    let (area, number) = match page {
        MetaPage::Log(page) => (layout.activity_log, u64::from(page)),
        MetaPage::Index { copy: 0, page } => (layout.index_first, u64::from(page)),
        MetaPage::Index { copy: 1, page } => (layout.index_second, u64::from(page)),
        MetaPage::Index { .. } => return None,
        MetaPage::Sums { extent } => (layout.checksums, extent),
        MetaPage::Bitmap { slot, page } if u32::from(slot) < BITMAPS => {
            (bitmap(layout, u32::from(slot)), u64::from(page))
        }
        MetaPage::Bitmap { .. } => return None,
    };
    (number < area.length / BLOCK_BYTES).then(|| area.offset + number * BLOCK_BYTES)
}

/// The part of the data area that is extent `extent`; `None` past the volume's end.
pub(super) fn extent_area(layout: &Layout, extent: u64) -> Option<Area> {
    let start = extent.checked_mul(EXTENT_BYTES).filter(|start| *start < layout.data.length)?;
    Some(Area { offset: layout.data.offset + start, length: EXTENT_BYTES.min(layout.data.length - start) })
}

/// One of the dirty bitmaps.
fn bitmap(layout: &Layout, slot: u32) -> Area {
    let length = layout.bitmaps.length / u64::from(BITMAPS);
    Area { offset: layout.bitmaps.offset + u64::from(slot) * length, length }
}

async fn read_area(ring: &Ring, file: &Arc<File>, area: Area) -> Vec<u8> {
    let mut out = Vec::with_capacity(area.length as usize);
    while (out.len() as u64) < area.length {
        let at = out.len() as u64;
        let part = (area.length - at).min(CHUNK_BYTES);
        match read_part(ring, file, area.offset + at, part).await {
            Some(bytes) => out.extend_from_slice(&bytes),
            None => read_pages(ring, file, area.offset + at, part, &mut out).await,
        }
    }
    out
}

/// Reads page by page what cannot be read at once.
async fn read_pages(ring: &Ring, file: &Arc<File>, offset: u64, length: u64, out: &mut Vec<u8>) {
    for at in (0..length).step_by(BLOCK_BYTES as usize) {
        match read_part(ring, file, offset + at, BLOCK_BYTES).await {
            Some(bytes) => out.extend_from_slice(&bytes),
            None => {
                tracing::warn!(offset = offset + at, "a page of a store's metadata cannot be read");
                out.resize(out.len() + BLOCK_BYTES as usize, UNREADABLE);
            }
        }
    }
}

async fn read_part(ring: &Ring, file: &Arc<File>, offset: u64, length: u64) -> Option<AlignedBuf> {
    let read = Request::Read { offset, buf: AlignedBuf::zeroed(length as usize) };
    ring.run(file, read).await.ok().flatten()
}
