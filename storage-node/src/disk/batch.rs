//! A batch: the writes of a group in parallel, a flush, then the next group. The first error ends it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use proto::BlockRange;

use super::DiskError;
use super::ring::WAITING_MAX;
use super::store::Inner;

/// Writes of one batch that are in the ring at a time.
const PARALLEL_MAX: usize = 64;
/// The same while the ring's queue is more than half full, so that many batches never meet its end.
const PARALLEL_CROWDED_MAX: usize = 1;

struct Batch {
    store: Rc<Inner>,
    tag: u64,
    /// Groups not ended; of the first the writes not started.
    groups: VecDeque<VecDeque<(BlockRange, Bytes)>>,
    outstanding: usize,
    error: Option<DiskError>,
}

/// Starts a checked batch. Empty groups are left out; one without any write is a flush.
pub(super) fn start(store: &Rc<Inner>, tag: u64, groups: Vec<Vec<BlockRange>>, data: Bytes) {
    let mut rest = data;
    let groups = groups.into_iter().map(|group| merge(group, &mut rest)).filter(|group| !group.is_empty()).collect();
    let batch = Batch { store: Rc::clone(store), tag, groups, outstanding: 0, error: None };
    go_on(Rc::new(RefCell::new(batch)));
}

/// The writes of one group; ranges that follow each other on disk as in the data become one.
fn merge(group: Vec<BlockRange>, rest: &mut Bytes) -> VecDeque<(BlockRange, Bytes)> {
    let mut runs: Vec<BlockRange> = Vec::with_capacity(group.len());
    for range in group.into_iter().filter(|range| range.count > 0) {
        match runs.last_mut() {
            Some(last) if last.end() == range.start => last.count += range.count,
            _ => runs.push(range),
        }
    }
    runs.into_iter().map(|range| (range, rest.split_to(range.length_bytes() as usize))).collect()
}

fn go_on(batch: Rc<RefCell<Batch>>) {
    loop {
        let (store, range, data) = {
            let mut this = batch.borrow_mut();
            let crowded = this.store.ring.room() < WAITING_MAX / 2;
            let parallel_max = if crowded { PARALLEL_CROWDED_MAX } else { PARALLEL_MAX };
            if this.error.is_some() || this.outstanding >= parallel_max {
                break;
            }
            let Some((range, data)) = this.groups.front_mut().and_then(VecDeque::pop_front) else { break };
            this.outstanding += 1;
            (Rc::clone(&this.store), range, data)
        };
        let after = Rc::clone(&batch);
        store.write_at(store.offset(range), data, false, Box::new(move |result| written(after, result)));
    }
    let (store, tag, error) = {
        let this = batch.borrow();
        if this.outstanding > 0 {
            return;
        }
        (Rc::clone(&this.store), this.tag, this.error.clone())
    };
    match error {
        Some(error) => store.finish(tag, Err(error)),
        None => store.flush(Box::new(move |result| flushed(batch, result))),
    }
}

fn written(batch: Rc<RefCell<Batch>>, result: Result<(), DiskError>) {
    {
        let mut this = batch.borrow_mut();
        this.outstanding -= 1;
        if let Err(error) = result {
            this.error.get_or_insert(error);
        }
    }
    go_on(batch);
}

fn flushed(batch: Rc<RefCell<Batch>>, result: Result<(), DiskError>) {
    let (store, tag, ended) = {
        let mut this = batch.borrow_mut();
        this.groups.pop_front();
        (Rc::clone(&this.store), this.tag, result.is_err() || this.groups.is_empty())
    };
    match ended {
        true => store.finish(tag, result.map(|()| None)),
        false => go_on(batch),
    }
}
