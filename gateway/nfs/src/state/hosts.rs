//! The hosts of the network lock manager: which ones are watched (the monitor list of the network status monitor), and which locks
//! were taken for hosts that wait and have not been told yet.
//!
//! Owns both tables and their records. The locks themselves are in `files`. So a takeover knows whom to tell that state was lost,
//! and goes on calling hosts back where the box before it ended.

use bytes::Bytes;
use filesystem::state_ring::RecordId;

use super::holder::{Holder, Host, decode_address, encode_address};
use super::ranges::{ByteRange, HeldRange, LockKind};
use super::record::{self, GRANT, MONITOR, Payload, RestoreError};
use super::table::Table;
use super::waiters::Wanted;
use crate::address::IpAddr;
use crate::ids::FileId;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Hosts that are watched. Of more, one that has nothing is forgotten.
pub const MONITORS_MAX: usize = 4_096;
/// Locks of which hosts are still to be told.
pub const GRANTS_MAX: usize = 1_024;
/// Those of one host.
pub const GRANTS_PER_HOST_MAX: usize = 64;
/// Ranges that a holder may have had where it is given a lock; one who had more is not given it, and has to ask.
pub const GRANT_BEFORE_MAX: usize = 64;

/// A lock that was taken for a host that waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantNumber(pub u64);

/// What is known of a host that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// Which of our addresses it uses.
    pub local: IpAddr,
    /// How often it has restarted, as it counts; 0 if it has not said so.
    pub state: u32,
    /// The epoch of the service that the host knows of: in another one its locks were lost.
    pub epoch: u32,
}

/// A lock that is taken, and of which its host is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The lock.
    pub wanted: Wanted,
    /// What the holder had of its bytes before.
    pub before: Vec<HeldRange>,
}

/// The hosts of a service.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    monitors: Table<u64, Watched>,
    numbers: Table<Host, u64>,
    grants: Table<u64, Grant>,
    /// The newest number of a grant. Never goes back, even if the grant is taken back: an answer about one is of no other.
    newest_grant: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Watched {
    host: Host,
    monitor: Monitor,
}

impl Payload for Watched {
    const VERSION: u32 = 1;

    fn encode(&self, into: &mut Encoder) {
        self.host.encode(into);
        encode_address(into, self.monitor.local);
        into.u32(self.monitor.state);
        into.u32(self.monitor.epoch);
    }

    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let host = Host::decode(from)?;
        let monitor = Monitor { local: decode_address(from)?, state: from.u32()?, epoch: from.u32()? };
        Ok(Self { host, monitor })
    }
}

fn encode_held(into: &mut Encoder, held: &HeldRange) {
    into.u64(held.range.first());
    into.u64(held.range.last());
    into.bool(held.kind == LockKind::Exclusive);
}

fn decode_held(from: &mut Decoder) -> Result<HeldRange, XdrError> {
    let (first, last) = (from.u64()?, from.u64()?);
    let range = ByteRange::between(first, last).ok_or(XdrError::BadValue { of: "ranges", value: last as u32 })?;
    let kind = if from.bool()? { LockKind::Exclusive } else { LockKind::Shared };
    Ok(HeldRange { range, kind })
}

impl Payload for Grant {
    const VERSION: u32 = 1;

    fn encode(&self, into: &mut Encoder) {
        let Wanted { file, holder, range, kind } = &self.wanted;
        into.u32(file.inode.0);
        into.u32(file.generation);
        holder.encode(into);
        encode_held(into, &HeldRange { range: *range, kind: *kind });
        into.array(&self.before, encode_held);
    }

    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let file = FileId { inode: filesystem::InodeNumber(from.u32()?), generation: from.u32()? };
        let holder = Holder::decode(from)?;
        let HeldRange { range, kind } = decode_held(from)?;
        let before = from.array(GRANT_BEFORE_MAX, decode_held)?;
        Ok(Self { wanted: Wanted { file, holder, range, kind }, before })
    }
}

/// The number behind the newest.
fn next<V: Clone>(table: &Table<u64, V>) -> u64 {
    table.iter().next_back().map_or(1, |(newest, _)| newest.saturating_add(1))
}

impl Hosts {
    /// What records say; those of other kinds are passed over. Errors: they contradict themselves or each other.
    pub fn restore<'a>(records: impl IntoIterator<Item = (RecordId, &'a [u8])>) -> Result<Self, RestoreError> {
        let mut hosts = Self::default();
        for (id, payload) in records {
            match id.kind {
                MONITOR => hosts.restore_monitor(id, payload)?,
                GRANT => {
                    let grant: Grant = record::read(id, payload)?;
                    if grant.wanted.holder.host().is_none() {
                        return Err(RestoreError::contradiction(id, "its holder is no host"));
                    }
                    hosts.grants.insert(record::number_of(id)?, grant);
                }
                _ => {}
            }
        }
        hosts.commit();
        Ok(hosts)
    }

    /// Those that records still tell of when all else is lost, which is what they are needed for.
    pub fn salvage<'a>(records: impl IntoIterator<Item = (RecordId, &'a [u8])>) -> Self {
        let mut hosts = Self::default();
        for (id, payload) in records.into_iter().filter(|(id, _)| id.kind == MONITOR) {
            // What cannot be read is as lost as the rest.
            let _ = hosts.restore_monitor(id, payload);
        }
        hosts.commit();
        hosts
    }

    fn restore_monitor(&mut self, id: RecordId, payload: &[u8]) -> Result<(), RestoreError> {
        let watched: Watched = record::read(id, payload)?;
        let number = record::number_of(id)?;
        if self.numbers.contains(&watched.host) {
            return Err(RestoreError::contradiction(id, "its host is watched already"));
        }
        self.numbers.insert(watched.host.clone(), number);
        self.monitors.insert(number, watched);
        Ok(())
    }

    /// True if what is known is in this record.
    pub fn is_kept_in(&self, id: RecordId) -> bool {
        id.kind == MONITOR && u64::try_from(id.key).is_ok_and(|number| self.monitors.contains(&number))
    }

    /// What is to be recorded beside the operation under way; None where a record goes.
    pub fn records(&self, mut put: impl FnMut(RecordId, Option<Vec<u8>>)) {
        for (number, watched) in self.monitors.changes() {
            put(record::numbered(MONITOR, *number), watched.map(Payload::to_payload));
        }
        for (number, grant) in self.grants.changes() {
            put(record::numbered(GRANT, *number), grant.map(Payload::to_payload));
        }
    }

    /// True if there is something to be recorded.
    pub fn is_changed(&self) -> bool {
        self.monitors.is_changed() || self.grants.is_changed()
    }

    /// The operation counts.
    pub fn commit(&mut self) {
        self.monitors.commit();
        self.numbers.commit();
        self.grants.commit();
    }

    /// The operation does not count.
    pub fn take_back(&mut self) {
        self.monitors.take_back();
        self.numbers.take_back();
        self.grants.take_back();
    }

    /// A host that is going to have something is watched. A state of 0 says nothing. False if too many are that have something,
    /// which `has_something` knows.
    pub fn watch(&mut self, host: &Host, monitor: Monitor, has_something: impl Fn(&Host) -> bool) -> bool {
        if let Some(number) = self.numbers.get(host).copied() {
            let state = |known: u32| if monitor.state == 0 { known } else { monitor.state };
            let same = |known: &Watched| Monitor { state: state(known.monitor.state), ..monitor } == known.monitor;
            if !self.monitors.get(&number).is_some_and(same)
                && let Some(known) = self.monitors.get_mut(&number)
            {
                known.monitor = Monitor { state: state(known.monitor.state), ..monitor };
            }
            return true;
        }
        if self.monitors.len() >= MONITORS_MAX {
            let idle = self.monitors.iter().find(|(_, watched)| !has_something(&watched.host));
            let Some(idle) = idle.map(|(_, watched)| watched.host.clone()) else { return false };
            self.forget(&idle);
        }
        let number = next(&self.monitors);
        self.numbers.insert(host.clone(), number);
        self.monitors.insert(number, Watched { host: host.clone(), monitor });
        true
    }

    fn forget(&mut self, host: &Host) {
        if let Some(number) = self.numbers.remove(host) {
            self.monitors.remove(&number);
        }
    }

    /// What is known of a host.
    pub fn monitor(&self, host: &Host) -> Option<&Monitor> {
        self.numbers.get(host).and_then(|number| self.monitors.get(number)).map(|watched| &watched.monitor)
    }

    /// Number of hosts that are watched.
    pub fn len(&self) -> usize {
        self.monitors.len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.monitors.is_empty()
    }

    /// A host says that it has restarted and is in this state now. True if that is new: what it had is to be dropped. It is not
    /// when the host says so again, and may have taken locks since.
    pub fn restarted(&mut self, host: &Host, state: u32) -> bool {
        let Some(number) = self.numbers.get(host).copied() else { return false };
        if self.monitors.get(&number).is_none_or(|known| known.monitor.state == state) {
            return false;
        }
        if let Some(known) = self.monitors.get_mut(&number) {
            known.monitor.state = state;
        }
        true
    }

    /// Hosts that do not know yet that the service has lost its state before this epoch.
    pub fn unaware(&self, epoch: u32) -> impl Iterator<Item = (&Host, &Monitor)> {
        let all = self.monitors.iter().map(|(_, watched)| (&watched.host, &watched.monitor));
        all.filter(move |(_, monitor)| monitor.epoch != epoch)
    }

    /// A host knows.
    pub fn told(&mut self, host: &Host, epoch: u32) {
        if let Some(known) = self.numbers.get(host).copied().and_then(|number| self.monitors.get_mut(&number)) {
            known.monitor.epoch = epoch;
        }
    }

    /// A lock was taken for a host. None if as many are as may be, or the holder had too much there: then it has to ask.
    pub fn grant(&mut self, grant: Grant) -> Option<GrantNumber> {
        let host = grant.wanted.holder.host();
        let of_host = self.grants.iter().filter(|(_, other)| other.wanted.holder.host() == host).count();
        let fits = self.grants.len() < GRANTS_MAX && of_host < GRANTS_PER_HOST_MAX;
        if !fits || host.is_none() || grant.before.len() > GRANT_BEFORE_MAX {
            return None;
        }
        let number = next(&self.grants).max(self.newest_grant.saturating_add(1));
        self.newest_grant = number;
        self.grants.insert(number, grant);
        Some(GrantNumber(number))
    }

    /// One of which the host is still to be told.
    pub fn granted(&self, number: GrantNumber) -> Option<&Grant> {
        self.grants.get(&number.0)
    }

    /// All of them, the oldest first.
    pub fn grants(&self) -> impl Iterator<Item = (GrantNumber, &Grant)> {
        self.grants.iter().map(|(number, grant)| (GrantNumber(*number), grant))
    }

    /// The host knows, or has to ask.
    pub fn settle(&mut self, number: GrantNumber) -> Option<Grant> {
        self.grants.remove(&number.0)
    }

    /// The host waits no more for a lock. Gives the grant, if it was granted already.
    pub fn cancel(&mut self, wanted: &Wanted) -> Option<Grant> {
        let number = self.grants().find(|(_, grant)| grant.wanted == *wanted).map(|(number, _)| number)?;
        self.settle(number)
    }

    /// A holder has been answered about a range, locked or unlocked: it knows what it has there, and nothing is given back of it.
    pub fn answered(&mut self, file: FileId, holder: &Holder, range: ByteRange) {
        let of_holder = |grant: &Grant| {
            let wanted = &grant.wanted;
            wanted.file == file && wanted.holder == *holder && wanted.range.overlaps(range)
        };
        let numbers: Vec<_> = self.grants().filter(|(_, grant)| of_holder(grant)).map(|(number, _)| number.0).collect();
        for number in numbers {
            let is_whole = self.grants.get(&number).is_some_and(|grant| range.contains(grant.wanted.range));
            if is_whole {
                self.grants.remove(&number);
            } else if let Some(grant) = self.grants.get_mut(&number) {
                grant.before.retain(|held| !held.range.overlaps(range));
            }
        }
    }

    /// A host has nothing any more.
    pub fn drop_grants(&mut self, host: &Host) {
        let of_host = self.grants.iter().filter(|(_, grant)| grant.wanted.holder.host() == Some(host));
        let numbers: Vec<_> = of_host.map(|(number, _)| *number).collect();
        for number in numbers {
            self.grants.remove(&number);
        }
    }
}

/// The state number of the network status monitor: another one in each epoch, and odd, as of who is up (X/Open XNFS, chapter 11).
pub fn state_number(epoch: u32) -> u32 {
    (epoch & 0x3fff_ffff) << 1 | 1
}

/// What the service is called where it says that its state was lost: hosts know it by its address.
pub fn own_name(local: IpAddr) -> Bytes {
    Bytes::from(local.to_string())
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
