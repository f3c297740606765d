//! The engine of [`super`].

use super::{Areas, CopyOp, Counters, Geometry, Hot, Order, RawId, RawResult};

/// See the module's header.
#[derive(Debug)]
pub struct LocalCopy {
    geometry: Geometry,
}

impl LocalCopy {
    /// Opens a copy with what its store holds. Damaged pages are never an error: what they said is unknown.
    pub fn open(geometry: Geometry, _areas: Areas<'_>) -> (Self, Hot) {
        (Self { geometry }, Hot::All)
    }

    /// Begins an operation; `tag` is unique while it runs. It may end within this call.
    pub fn start(&mut self, _tag: u64, _op: CopyOp, _orders: &mut Vec<Order>) {
        unreachable!("not built yet: {:?}", self.geometry)
    }

    /// A raw operation has ended.
    pub fn raw_done(&mut self, _raw: RawId, _result: RawResult, _orders: &mut Vec<Order>) {
        unreachable!("not built yet")
    }

    /// What has been found since the copy was opened.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Extents that are hot.
    pub fn hot_extents(&self) -> u64 {
        0
    }
}
