//! A service: the files of one volume and the state of its clients, and the requests that work on both.
//!
//! Owns the state; the filesystem is shared with whoever else works on the volume. Knows no sockets: a request comes as a
//! message with the connection it came by, and its reply is a message. Everything runs on one thread; a request waits only for
//! the device and for others of its own kind.
//!
//! **How a compound becomes one change.** Its operations run inside one operation of the filesystem, against the tables of the
//! state. What they change is put beside them as records, and with it the result of the compound: all of that is one
//! transaction. The operation may be run several times before it counts; each run begins with taking back what the one before
//! has left in the tables. Nobody else ever sees that: whoever looks at the state takes back first, too, and what has joined a
//! transaction counts before anybody else runs.

mod callbacks;
mod companions;
mod compound;
mod connections;
mod door;
mod group;
mod hosts;
mod mount;
pub mod names;
mod nlm;
mod nsm;
mod outside;
mod paths;
mod recalls;
mod recording;
mod sessions;
mod start;
mod v3;
mod v4;

pub use connections::Endpoints;
pub use start::Beginning;

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;

use block_device::BlockDevice;
use bytes::Bytes;
use filesystem::Stop;
use filesystem::engine::{Failure, Filesystem, Pending};
use filesystem::layout::timestamp::Timestamp;
use tokio::sync::Notify;
use tracing::Instrument;

use self::callbacks::Callbacks;
use self::names::OwnerNames;
use self::recording::{Recorder, Ticket};
use crate::access::Caller;
use crate::ids::Moment;
use crate::mount::list::Mounts;
use crate::mount::{PROGRAM as MOUNT_PROGRAM, VERSION as MOUNT_VERSION};
use crate::rpc::auth::Credential;
use crate::rpc::call::{Call, NoCall};
use crate::rpc::reply::{self, AuthError, Unaccepted};
use crate::state::back_channel::ConnectionId;
use crate::state::holder::Host;
use crate::state::service::ServiceState;
use crate::state::waiters::Wanted;
use crate::statistics::program::Program;
use crate::statistics::{Export, Work};
use crate::v4::attributes::facts::ServiceFacts;
use crate::v4::context::OtherVolume;
use crate::xdr::{Decoder, Encoder};

pub use door::Door;
pub use hosts::{HostCall, Subject};
pub use recording::SLOW_REQUEST;

/// RPC program of NFS.
const NFS_PROGRAM: u32 = 100_003;

/// The most bytes of a request: as many as a session grants, and the head of a call.
pub const REQUEST_BYTES_MAX: usize = crate::state::session::MESSAGE_BYTES_MAX as usize + 4096;

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The connection.
    pub connection: ConnectionId,
    /// Who is at its other end.
    pub address: IpAddr,
    /// Which of our addresses it came to.
    pub local: IpAddr,
    /// Where.
    pub door: Door,
}

/// What an export makes of a caller.
pub type Callers = Box<dyn Fn(IpAddr, &Credential) -> Caller>;

/// What a service takes from the world.
pub struct World {
    /// The time for files.
    pub now: Box<dyn Fn() -> Timestamp>,
    /// The time for leases.
    pub moment: Box<dyn Fn() -> Moment>,
    /// What the export makes of callers.
    pub caller: Callers,
    /// Volumes that are served elsewhere.
    pub others: Box<dyn Fn() -> Vec<OtherVolume>>,
    /// Whom the exports of this volume are about.
    pub exports: Box<dyn Fn() -> Vec<Export>>,
    /// Which of them lets in a client at that address.
    pub export: Box<dyn Fn(IpAddr) -> Option<Export>>,
    /// The port of the service, which the port mapper tells.
    pub port: u16,
}

/// The service of a volume.
pub struct Service<D> {
    files: Rc<Filesystem<D>>,
    state: RefCell<ServiceState>,
    connections: RefCell<connections::Connections>,
    facts: ServiceFacts,
    world: World,
    mounts: RefCell<Mounts>,
    owners: Box<dyn OwnerNames>,
    recorder: Recorder,
    /// A request has ended: retries of it that wait may have their answer.
    ended: Notify,
    /// What is to be told to clients, and how.
    callbacks: Callbacks,
    /// Hosts of the lock manager that can have the locks they waited for.
    woken: RefCell<VecDeque<Wanted>>,
    /// Something may have to be said to a host.
    hosts_due: Notify,
    /// Hosts that have restarted, as long as what they had is being dropped.
    dropping: RefCell<BTreeSet<Host>>,
}

/// What a call is answered.
enum Answer {
    /// Its result.
    Result(Encoder),
    /// There is none, and why.
    Unaccepted(Unaccepted),
    /// The caller is not believed.
    Denied(AuthError),
}

/// There is nothing to be said any more: the volume is not ours, or cannot be read and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone(pub Failure);

impl<D: BlockDevice + 'static> Service<D> {
    /// The same, with names of owners.
    pub fn with_owners(self, owners: Box<dyn OwnerNames>) -> Self {
        Self { owners, ..self }
    }

    /// The state as it counts: what an operation has left in it that did not, is taken back.
    fn state(&self) -> RefMut<'_, ServiceState> {
        let mut state = self.state.borrow_mut();
        state.take_back();
        state
    }

    /// What time brings: to be called every few seconds. The grace period ends, and clients are forgotten that nobody waits for
    /// any more. Errors: there will be no answers any more.
    pub async fn tend(&self) -> Result<(), Gone> {
        let moment = (self.world.moment)();
        let grace_is_over = {
            let state = self.state();
            state.clients.in_grace() && state.clients.grace_is_over(moment)
        };
        if grace_is_over {
            self.tended(|state| state.clients.end_grace()).await?;
        }
        {
            let state = self.state();
            self.recorder.count(|counters| counters.keep_only(|client| state.clients.client(client).is_some()));
        }
        let expired = self.state().clients.expired(moment);
        for client in expired {
            self.tended(|state| state.drop_client(client)).await?;
        }
        self.tend_callbacks().await?;
        self.note_connections().await
    }

    async fn tended(&self, op: impl Fn(&mut ServiceState)) -> Result<(), Gone> {
        let changed = self.change(|_, state| {
            op(state);
            Ok(())
        });
        match changed.await {
            Err(Failure::Device(error)) => Err(Gone(Failure::Device(error))),
            // What could not be recorded now is another time.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Answers a message. None: it is none that has an answer, and its connection is of no use. Errors: there will be no
    /// answers any more.
    pub async fn call(&self, origin: Origin, message: Bytes) -> Result<Option<Vec<Bytes>>, Gone> {
        if origin.door.is_datagram() && (self.world.caller)(origin.address, &Credential::None).refused {
            return Ok(None);
        }
        let ticket = self.recorder.begin(origin, &message);
        let span = ticket.span(&self.facts.name);
        let begun = self.files.begun();
        let mut answered = self.answer((origin, &ticket), message).instrument(span).await;
        // Nobody is told anything once somebody else may serve the volume, also not of what is in memory.
        if let Ok(Some(_)) = &answered
            && let Err(failure) = self.files.confirmed(begun).await
        {
            answered = Err(Gone(failure));
        }
        ticket.replied(answered.as_ref().ok().and_then(Option::as_deref));
        answered
    }

    async fn answer(
        &self,
        (origin, ticket): (Origin, &Ticket<'_>),
        message: Bytes,
    ) -> Result<Option<Vec<Bytes>>, Gone> {
        let mut decoder = Decoder::new(message);
        let call = match Call::decode(&mut decoder) {
            Ok(call) => call,
            Err(NoCall::Garbage) => {
                ticket.rejected("it is no call");
                return Ok(None);
            }
            Err(NoCall::Version { xid }) => return Ok(Some(reply::rpc_mismatch(xid).finish())),
            Err(NoCall::Credential { xid }) => {
                return Ok(Some(reply::denied(xid, AuthError::BadCredential).finish()));
            }
        };
        let answer = match (call.program, call.version) {
            (program, _) if !origin.door.admits(program) => Answer::Unaccepted(Unaccepted::ProgramUnavailable),
            (crate::port_mapper::PROGRAM, _) => return Ok(self.port_mapper(origin, &call, &mut decoder)),
            (crate::nlm::PROGRAM, _) => {
                let reply = self.nlm(origin, &call, &mut decoder).await;
                self.record_call(ticket, (Program::Nlm, call.version, call.procedure), None, Work::default());
                return reply;
            }
            (crate::nsm::PROGRAM, _) => return self.nsm(origin, &call, &mut decoder).await,
            _ if matches!(call.credential, Credential::Other(_)) => Answer::Denied(AuthError::TooWeak),
            (NFS_PROGRAM, v4::VERSION) => self.call_v4((origin, ticket), &call, decoder).await?,
            (NFS_PROGRAM, v3::VERSION) => {
                let (answer, work) = self.call_v3(origin, &call, decoder).await?;
                self.record_call(ticket, (Program::V3, call.version, call.procedure), Some(&answer), work);
                answer
            }
            (NFS_PROGRAM, _) => Answer::Unaccepted(Unaccepted::VersionMismatch(v3::VERSION, v4::VERSION)),
            (MOUNT_PROGRAM, MOUNT_VERSION) => {
                let answer = self.call_mount(origin, &call, decoder).await?;
                self.record_call(
                    ticket,
                    (Program::Mount, call.version, call.procedure),
                    Some(&answer),
                    Work::default(),
                );
                answer
            }
            (MOUNT_PROGRAM, _) => Answer::Unaccepted(Unaccepted::VersionMismatch(MOUNT_VERSION, MOUNT_VERSION)),
            _ => Answer::Unaccepted(Unaccepted::ProgramUnavailable),
        };
        let reply = match answer {
            Answer::Unaccepted(why) => {
                ticket.rejected("program, version, procedure or arguments");
                reply::unaccepted(call.xid, why)
            }
            Answer::Denied(why) => {
                ticket.rejected("who asks");
                reply::denied(call.xid, why)
            }
            Answer::Result(result) => {
                let mut out = Encoder::new();
                reply::success(&mut out, call.xid);
                out.append(result);
                out
            }
        };
        Ok(Some(reply.finish()))
    }

    /// Runs an operation on the filesystem and the state together: what it changes of the state is recorded with what it changes
    /// of the files, and counts when that has joined a transaction. Gives what it gave, and what a reply has to wait for: that
    /// whoever takes over finds what it changed, and what it saw.
    async fn change<T>(
        &self,
        mut op: impl FnMut(&mut filesystem::engine::Handle<'_>, &mut ServiceState) -> Result<T, Stop>,
    ) -> Result<(T, Pending), Failure> {
        let ran = self.files.run(|handle| {
            let mut state = self.state();
            let result = op(handle, &mut state).and_then(|value| {
                record(handle, &state)?;
                Ok(value)
            });
            if result.is_err() {
                state.take_back();
            }
            result
        });
        let done = ran.await?;
        // Nothing else has run since it joined.
        let mut state = self.state.borrow_mut();
        for file in state.files.opened_first() {
            self.files.hold(file.inode);
        }
        for file in state.files.closed_last() {
            self.files.let_go(file.inode);
        }
        let gave_back = state.files.delegations_changed();
        state.commit();
        let woken = state.files.woken();
        drop(state);
        if gave_back {
            self.callbacks.given_back.notify_waiters();
        }
        self.wake(woken);
        Ok((done.value, done.pending))
    }
}

/// Puts the records of what was changed beside the operation. Errors: those of the ring.
fn record(handle: &mut filesystem::engine::Handle<'_>, state: &ServiceState) -> Result<(), Stop> {
    if !state.is_changed() {
        return Ok(());
    }
    let mut result = Ok(());
    state.records(|id, payload| {
        if result.is_ok() {
            result = match payload {
                Some(payload) => handle.append_record(id, &payload),
                None => handle.delete_record(id).map(drop),
            };
        }
    });
    result
}
