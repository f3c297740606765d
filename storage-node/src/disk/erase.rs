//! Zeroing and discarding: a fallocate, or written zeros where the kernel or the file system has none.

use std::rc::Rc;

use block_device::AlignedBuf;
use bytes::Bytes;
use proto::BlockRange;
use proto::peer::message::WriteKind;

use super::DiskError;
use super::raw::Ended;
use super::ring::Request;
use super::store::Inner;
use crate::fault::point;

/// Bytes of zeros written at a time where fallocate cannot help.
const ZERO_CHUNK_BYTES: u64 = 1 << 20;

/// Makes a checked range read as zeros. With `fua` a flush follows. `ended` is called from a completion.
pub(super) fn start(store: &Rc<Inner>, range: BlockRange, kind: WriteKind, fua: bool, ended: Ended) {
    // On a block device the kernel turns both into a zeroing command, the first with unmap, or refuses them; it never
    // leaves old data readable.
    let mode = libc::FALLOC_FL_KEEP_SIZE
        | if kind == WriteKind::Discard { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
    let store_offset = store.offset(range);
    let request = Request::Fallocate { mode, offset: store_offset, length: range.length_bytes() };
    let inner = Rc::clone(store);
    point("data.erase.before");
    let done = Box::new(move |result: Result<_, DiskError>| match result {
        Err(DiskError::Io(libc::EOPNOTSUPP | libc::ENOSYS)) => {
            let zeros = AlignedBuf::zeroed(range.length_bytes().min(ZERO_CHUNK_BYTES) as usize).freeze();
            write_zeros(&inner, store_offset, range.length_bytes(), zeros, fua, ended);
        }
        other => end(&inner, fua, other.map(|_| ()), ended),
    });
    store.ring.request(&store.file, request, done);
}

/// Writes one chunk, and after it the next. `at` is a byte offset in the store, `left` the bytes still to write.
fn write_zeros(store: &Rc<Inner>, at: u64, left: u64, zeros: Bytes, fua: bool, ended: Ended) {
    let part = left.min(ZERO_CHUNK_BYTES);
    let inner = Rc::clone(store);
    let chunk = zeros.slice(..part as usize);
    let done = Box::new(move |result: Result<_, DiskError>| match result {
        Ok(_) if left > part => write_zeros(&inner, at + part, left - part, zeros, fua, ended),
        other => end(&inner, fua, other.map(|_| ()), ended),
    });
    store.ring.request(&store.file, Request::Write { offset: at, data: chunk, durable: false }, done);
}

/// Only called from a completion.
fn end(store: &Rc<Inner>, fua: bool, result: Result<(), DiskError>, ended: Ended) {
    point("data.erase.after");
    match result {
        Ok(()) if fua => store.flush(ended),
        other => ended(other),
    }
}
