//! Extents become hot: space is reserved, the log says so, the checksum page comes into memory.

use std::collections::BTreeSet;

use super::engine::{LocalCopy, Purpose, Trouble, Waiter};
use super::extents::Heat;
use super::log::Log;
use super::{Order, RawOp};

/// An extent on its way from cold to hot.
#[derive(Debug, Default)]
pub(super) struct Heating {
    logged: bool,
    loaded: bool,
    waiting: Vec<u64>,
}

/// Extents that one operation has space reserved for. They go to the log together.
#[derive(Debug, Default)]
pub(super) struct Reserving {
    in_flight: usize,
    reserved: Vec<u64>,
}

impl LocalCopy {
    /// Makes extents hot for operation `tag`. Gives how many it must wait for.
    pub(super) fn start_heat(&mut self, tag: u64, extents: &[u64], orders: &mut Vec<Order>) -> usize {
        let mut waits = 0;
        for &extent in extents {
            waits += 1;
            match self.extents.heat(extent) {
                Heat::Hot => waits -= 1,
                Heat::Cold => self.begin_heating(extent, vec![tag], orders),
                Heat::Heating => self.heating.get_mut(&extent).expect("it is heating").waiting.push(tag),
                Heat::Cooling => self.reheat.entry(extent).or_default().push(tag),
            }
        }
        waits
    }

    pub(super) fn begin_heating(&mut self, extent: u64, waiting: Vec<u64>, orders: &mut Vec<Order>) {
        self.extents.set_heat(extent, Heat::Heating);
        let tag = waiting[0];
        let loaded = !self.extents.must_load(extent);
        self.heating.insert(extent, Heating { logged: false, loaded, waiting });
        // First the space, then the log, which would else have to take the extent back.
        self.reserving.entry(tag).or_default().in_flight += 1;
        self.give(RawOp::Reserve { extent }, Purpose::Reserve { tag, extent }, orders);
        if !loaded {
            self.load(extent, Waiter::Heating, orders);
        }
    }

    pub(super) fn reserve_ended(&mut self, tag: u64, extent: u64, trouble: Option<Trouble>, orders: &mut Vec<Order>) {
        let reserving = self.reserving.get_mut(&tag).expect("space is being reserved");
        reserving.in_flight -= 1;
        if trouble.is_none() {
            reserving.reserved.push(extent);
        }
        if reserving.in_flight == 0 {
            let reserved = self.reserving.remove(&tag).expect("just seen").reserved;
            // Something else may have gone wrong with an extent meanwhile.
            let extents = reserved.into_iter().filter(|extent| self.heating.contains_key(extent));
            let mut groups = BTreeSet::new();
            for extent in extents {
                self.log.heat(extent);
                groups.insert(Log::group_of(extent));
            }
            for group in groups {
                self.write_log(group, orders);
            }
        }
        if trouble.is_some() {
            self.heating_failed(extent, trouble, orders);
        }
    }

    pub(super) fn heating_loaded(&mut self, extent: u64, trouble: Option<Trouble>, orders: &mut Vec<Order>) {
        if trouble.is_some() {
            return self.heating_failed(extent, trouble, orders);
        }
        if let Some(heating) = self.heating.get_mut(&extent) {
            heating.loaded = true;
            self.heating_went_on(extent, orders);
        }
    }

    /// Begins a transaction of the group, if there is something to say and none is in flight.
    pub(super) fn write_log(&mut self, group: u32, orders: &mut Vec<Order>) {
        if let Some((page, bytes)) = self.log.begin(group) {
            self.give(RawOp::WritePage { page, bytes, durable: true }, Purpose::Log { group }, orders);
        }
    }

    pub(super) fn log_ended(&mut self, group: u32, trouble: Option<Trouble>, orders: &mut Vec<Order>) {
        let change = self.log.end(group);
        // The log's space is its own from the start; a store that has none for it is broken.
        let failed = trouble.map(|_| Trouble::Failed);
        let mut changes = vec![change];
        if failed.is_some() {
            changes.push(self.log.give_up(group));
        } else {
            self.write_log(group, orders);
        }
        for change in changes {
            for extent in change.heated {
                if failed.is_some() {
                    self.heating_failed(extent, failed, orders);
                } else if let Some(heating) = self.heating.get_mut(&extent) {
                    heating.logged = true;
                    self.heating_went_on(extent, orders);
                }
            }
            for tag in change.cooling {
                self.step(tag, failed, orders);
            }
        }
    }

    fn heating_went_on(&mut self, extent: u64, orders: &mut Vec<Order>) {
        let heating = &self.heating[&extent];
        if heating.logged && heating.loaded {
            let heating = self.heating.remove(&extent).expect("just seen");
            self.extents.set_heat(extent, Heat::Hot);
            for tag in heating.waiting {
                self.step(tag, None, orders);
            }
        }
    }

    fn heating_failed(&mut self, extent: u64, trouble: Option<Trouble>, orders: &mut Vec<Order>) {
        if let Some(heating) = self.heating.remove(&extent) {
            self.extents.set_heat(extent, Heat::Cold);
            for tag in heating.waiting {
                self.step(tag, trouble, orders);
            }
        }
    }
}
