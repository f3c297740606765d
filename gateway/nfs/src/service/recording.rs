//! Requests as they come and go: each has a number, is counted, and can be told from others in the log.
//!
//! What is said of a request of another program than NFSv4 is [`Service::record_call`]. At the level `debug` each request is
//! a span; at higher levels nothing is formatted unless there is something to be said.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_device::BlockDevice;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tracing::{Level, Span, debug, debug_span, enabled, warn};

use super::compound::Run;
use super::{Answer, Origin, Service};
use crate::ids::Moment;
use crate::state::back_channel::ConnectionId;
use crate::statistics::program::Program;
use crate::statistics::report::{Report, Surroundings};
use crate::statistics::{Address, Asker, ClientKey, Counters, Export, Work};
use crate::v4::compound::{Compound, Operation, SEQUENCE, Step};
use crate::v4::dispatch::{self, Kind};
use crate::v4::status::{self, Status};

/// A request that took longer is told in the log.
pub const SLOW_REQUEST: Duration = Duration::from_secs(1);
/// Requests that are told in the log as slow or failed, in [`LOGGED_INTERVAL`]; of more only the number is told.
const LOGGED_MAX: u32 = 10;
/// MNT (RFC 1813, appendix I).
const MOUNT_PROCEDURE_MNT: u32 = 1;
/// See [`LOGGED_MAX`].
const LOGGED_INTERVAL: Duration = Duration::from_secs(10);

/// The counters of a service, and what else is needed to tell of requests.
pub(super) struct Recorder {
    counters: RefCell<Counters>,
    next: Cell<u64>,
    began: Moment,
    /// Bytes of requests that there may still be, and how many there may be at all.
    budget: OnceCell<(Arc<Semaphore>, usize)>,
    logged: Cell<Logged>,
}

/// What was told in the log of late.
#[derive(Clone, Copy)]
struct Logged {
    since: Instant,
    count: u32,
    left_out: u32,
}

/// A request under way: what it is called in the log, and when it came.
pub(super) struct Ticket<'a> {
    pub(super) number: u64,
    pub(super) began: Instant,
    origin: Origin,
    xid: u32,
    recorder: &'a Recorder,
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Phases {
    /// In transactions of the filesystem, and for blocks that they need.
    pub(super) transactions: Duration,
    /// For the data of READ, COMMIT and COPY, and of writes that are synced before they are recorded.
    pub(super) data: Duration,
    /// Until what is told is durable.
    pub(super) durable: Duration,
}

impl Recorder {
    pub(super) fn new(began: Moment) -> Self {
        let logged = Logged { since: Instant::now(), count: 0, left_out: 0 };
        Self {
            counters: RefCell::default(),
            next: Cell::new(1),
            began,
            budget: OnceCell::new(),
            logged: Cell::new(logged),
        }
    }

    /// A message came, which has a transaction id first (RFC 5531 §9).
    pub(super) fn begin(&self, origin: Origin, message: &Bytes) -> Ticket<'_> {
        let xid = message.iter().take(4).fold(0, |xid, byte| xid << 8 | u32::from(*byte));
        let number = self.next.get();
        self.next.set(number + 1);
        let mut counters = self.counters.borrow_mut();
        counters.totals.requests += 1;
        counters.totals.requests_in_flight += 1;
        counters.totals.received_bytes += message.len() as u64;
        Ticket { number, began: Instant::now(), origin, xid, recorder: self }
    }

    /// Has the counters changed.
    pub(super) fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.counters.borrow_mut());
    }

    /// True if one more request may be told in the log.
    fn may_log(&self) -> bool {
        let mut logged = self.logged.get();
        if logged.since.elapsed() >= LOGGED_INTERVAL {
            if logged.left_out > 0 {
                warn!(requests = logged.left_out, "so many more were slow or failed, and were not told");
            }
            logged = Logged { since: Instant::now(), count: 0, left_out: 0 };
        }
        let may = logged.count < LOGGED_MAX;
        let which = if may { &mut logged.count } else { &mut logged.left_out };
        *which = which.saturating_add(1);
        self.logged.set(logged);
        may
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut counters = self.recorder.counters.borrow_mut();
        counters.totals.requests_in_flight = counters.totals.requests_in_flight.saturating_sub(1);
    }
}

impl Ticket<'_> {
    /// What everything that is logged inside the request belongs to.
    pub(super) fn span(&self, volume: &[u8]) -> Span {
        let Origin { connection, address, .. } = self.origin;
        debug_span!(
            "request",
            id = self.number,
            volume = %String::from_utf8_lossy(volume),
            client = %address,
            connection = connection.0,
            xid = format_args!("{:#x}", self.xid)
        )
    }

    /// The reply is ready, or there is none.
    pub(super) fn replied(&self, reply: Option<&[Bytes]>) {
        let bytes: usize = reply.into_iter().flatten().map(Bytes::len).sum();
        self.recorder.count(|counters| counters.totals.sent_bytes += bytes as u64);
    }

    /// It is not accepted, for this reason.
    pub(super) fn rejected(&self, why: &'static str) {
        debug!("rejected: {why}");
        self.recorder.count(|counters| counters.totals.requests_rejected += 1);
    }
}

impl Display for Ticket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin { connection, address, .. } = self.origin;
        write!(f, "{} (xid {:#x}) of {address} by connection {}", self.number, self.xid, connection.0)
    }
}

impl<D: BlockDevice + 'static> Service<D> {
    /// What there is to be told of the service.
    pub fn report(&self) -> Report {
        let recorder = &self.recorder;
        let request_bytes = recorder.budget.get().map(|(budget, total)| {
            let used = total.saturating_sub(budget.available_permits());
            (used as u64, *total as u64)
        });
        let around = Surroundings {
            now: (self.world.moment)(),
            began: recorder.began,
            request_bytes: request_bytes.unwrap_or_default(),
            ring: self.files.state_ring_usage(),
            files: self.files.statistics(),
            exports: (self.world.exports)(),
        };
        Report::new(&recorder.counters.borrow(), &self.state(), around)
    }

    /// Requests take their bytes from this, which had so many when nobody had taken any.
    pub fn watch_budget(&self, budget: &Arc<Semaphore>, total: usize) {
        // There is one for all that serve it.
        let _ = self.recorder.budget.set((Arc::clone(budget), total));
    }

    /// A connection was taken.
    pub fn connection_taken(&self, connection: ConnectionId) {
        self.recorder.count(|counters| counters.connection_taken(connection));
    }

    /// A connection was closed, because there are too many.
    pub fn connection_refused(&self) {
        self.recorder.count(|counters| counters.totals.connections_refused += 1);
    }

    fn asker(&self, ticket: &Ticket<'_>, client: ClientKey, version: (u32, u32)) -> Asker {
        let Origin { connection, address, .. } = ticket.origin;
        Asker { client, connection, address: address.into(), export: (self.world.export)(address), version }
    }

    /// A call of another program than NFSv4 was answered: counts it, and what it came to. What is not accepted is counted
    /// elsewhere.
    pub(super) fn record_call(
        &self,
        ticket: &Ticket<'_>,
        (program, version, procedure): (Program, u32, u32),
        answer: Option<&Answer>,
        work: Work,
    ) {
        // Results of these begin with a status.
        let has_status = match program {
            Program::V3 => procedure != 0,
            Program::Mount => procedure == MOUNT_PROCEDURE_MNT,
            _ => false,
        };
        let status = match answer {
            Some(Answer::Result(result)) if has_status => result.first_word().unwrap_or(status::OK),
            Some(Answer::Result(_)) | None => status::OK,
            Some(_) => return,
        };
        let asker = self.asker(ticket, ClientKey::Address(ticket.origin.address.into()), (version, 0));
        let time = ticket.began.elapsed();
        self.recorder.count(|counters| {
            counters.operation(program, procedure, status);
            counters.took(program, procedure, time);
            counters.totals.slow += u64::from(time > SLOW_REQUEST);
            counters.request(asker, work, (self.world.moment)());
        });
        debug!(?program, procedure, status, micros = time.as_micros() as u64, "call");
    }

    /// A call to a client was answered so.
    pub(super) fn called_back(&self, operation: u32, status: u32, time: Duration) {
        self.recorder.count(|counters| {
            counters.operation(Program::Callback, operation, status);
            counters.took(Program::Callback, operation, time);
        });
    }

    /// A compound without a session, or one that is refused as a whole: one operation, or none.
    pub(super) fn compound_alone(&self, ticket: &Ticket<'_>, number: Option<u32>, status: Option<Status>) {
        self.recorder.count(|counters| {
            counters.totals.compounds += 1;
            if let Some(number) = number {
                counters.operation(Program::V4, number, status.map_or(status::OK, Status::code));
                counters.took(Program::V4, number, ticket.began.elapsed());
            }
        });
        let operation = number.map_or("none", |number| name_of(number));
        debug!(operation, status = %StatusText(status), "compound");
    }

    /// A compound with a session was answered, with what was recorded before a takeover or in memory.
    pub(super) fn compound_replayed(&self, ticket: &Ticket<'_>, client: crate::ids::ClientId, minor: u32) {
        let asker = self.asker(ticket, ClientKey::Session(client), (4, minor));
        self.recorder.count(|counters| {
            counters.totals.compounds += 1;
            counters.operation(Program::V4, SEQUENCE, status::OK);
            counters.request(asker, Work::default(), (self.world.moment)());
        });
        debug!("a retry: answered as before");
    }

    /// A compound with a session was done.
    pub(super) fn compound_done(&self, run: &Run<'_>) {
        let ticket = run.ticket;
        let time = ticket.began.elapsed();
        let asker = self.asker(ticket, ClientKey::Session(run.request.client), (4, run.request.minor));
        let mut work = Work { read_bytes: run.read_bytes, written_bytes: 0 };
        self.recorder.count(|counters| {
            counters.totals.compounds += 1;
            counters.totals.replies_recorded += u64::from(run.changed);
            for (index, step) in run.compound.steps.iter().enumerate().take(run.next + 1) {
                let status = match (index < run.next, run.failed) {
                    (true, _) => status::OK,
                    (false, Some(failed)) => failed.code(),
                    (false, None) => continue,
                };
                // What was done before a takeover was counted there.
                if index >= run.first || index == 0 {
                    counters.operation(Program::V4, step.number(), status);
                }
                if let Step::Do(Operation::Write(write)) = step
                    && status == status::OK
                {
                    work.written_bytes += write.data.len() as u64;
                }
            }
            if let Some(number) = purpose(run.compound) {
                counters.took(Program::V4, number, time);
            }
            counters.totals.slow += u64::from(time > SLOW_REQUEST);
            counters.request(asker, work, (self.world.moment)());
        });
        if enabled!(Level::DEBUG) {
            debug!(slot = run.slot, micros = time.as_micros() as u64, "compound {}", Told(run));
        }
        self.tell_if_amiss(run, time);
    }

    /// Says in the log what somebody may have to look after: what took long, and what failed for a reason of ours.
    fn tell_if_amiss(&self, run: &Run<'_>, time: Duration) {
        let is_slow = time > SLOW_REQUEST;
        let is_fault = matches!(run.failed, Some(Status::Io | Status::ServerFault));
        if !(is_slow || is_fault) || !self.recorder.may_log() {
            return;
        }
        let volume = String::from_utf8_lossy(&self.facts.name);
        let ms = |time: Duration| time.as_micros() as f64 / 1e3;
        let Phases { transactions, data, durable } = run.phases;
        warn!(
            request = run.ticket.number,
            %volume,
            client = %run.ticket.origin.address,
            connection = run.ticket.origin.connection.0,
            xid = format_args!("{:#x}", run.ticket.xid),
            slot = run.slot,
            ms = ms(time),
            transactions_ms = ms(transactions),
            data_ms = ms(data),
            durable_ms = ms(durable),
            "{} request: {}",
            if is_fault { "failed" } else { "slow" },
            Told(run)
        );
    }
}

/// As people write it: `*`, `10.0.0.0/24`, or an address alone.
impl Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((Address(octets), prefix_length)) = self.0 else { return f.write_str("*") };
        let address = Ipv6Addr::from(octets).to_canonical();
        let (width, in_front) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
        match prefix_length.saturating_sub(in_front) {
            length if length >= width => write!(f, "{address}"),
            length => write!(f, "{address}/{length}"),
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        })
    }
}

/// The operation that a compound is there for: it comes with others that say where, and that look at what has become of it.
fn purpose(compound: &Compound) -> Option<u32> {
    let weight = |step: &Step| match step {
        Step::Refuse(..) => 2,
        Step::Do(operation) => match operation {
            Operation::Sequence(_)
            | Operation::PutFh(_)
            | Operation::PutRootFh
            | Operation::PutPubFh
            | Operation::GetFh
            | Operation::SaveFh
            | Operation::RestoreFh => 0,
            Operation::GetAttr(_) | Operation::Verify(_) | Operation::NVerify(_) => 1,
            Operation::Write(_) => 3,
            operation if dispatch::may_change(operation) || dispatch::kind(operation) == Kind::Outside => 3,
            _ => 2,
        },
    };
    // Of the weightiest the first.
    let step = compound.steps.iter().rev().max_by_key(|step| weight(step));
    step.map(Step::number)
}

fn name_of(number: u32) -> &'static str {
    let name = Program::V4.operations().get(number as usize).copied().unwrap_or_default();
    if name.is_empty() { crate::statistics::program::UNKNOWN } else { name }
}

/// A status in words.
struct StatusText(Option<Status>);

impl Display for StatusText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("OK"),
            Some(status) => status.fmt(f),
        }
    }
}

/// The operations of a compound as far as they were done, and what became of the last.
struct Told<'a, 'b>(&'a Run<'b>);

impl Display for Told<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(run) = self;
        let done = run.next + usize::from(run.failed.is_some());
        for step in run.compound.steps.iter().take(done) {
            write!(f, "{} ", name_of(step.number()))?;
        }
        StatusText(run.failed).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_read_as_people_write_them() {
        let to = |address: &str, prefix_length| {
            Export(Some((address.parse::<IpAddr>().expect("an address").into(), prefix_length))).to_string()
        };
        assert_eq!(
            [to("10.0.0.0", 96 + 24), to("10.0.0.7", 128), Export(None).to_string()],
            ["10.0.0.0/24", "10.0.0.7", "*"]
        );
        assert_eq!([to("2001:db8::", 32), to("2001:db8::1", 128)], ["2001:db8::/32", "2001:db8::1"]);
    }
}
