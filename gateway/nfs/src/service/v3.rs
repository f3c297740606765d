//! NFSv3 from a call to its reply: which calls are new, what is done about retransmissions, and when a reply is given.
//!
//! A procedure is one operation of the filesystem, or two with the device between them (READ, COMMIT, long stable WRITEs). The
//! reply to what changes something is recorded in the transaction that holds the change; a failure has no effect, and needs no
//! record. If the ring is full, replies that were given long ago make room.

use std::cell::Cell;
use std::net::IpAddr;

use block_device::BlockDevice;
use filesystem::Refusal as FilesRefusal;
use filesystem::engine::{Failure, Handle, Pending, Statistics};
use tokio::time::Instant;

use super::compound::{CLEARED_MAX, RECALL_TIME};
use super::group::status_of;
use super::{Answer, Gone, Origin, Service};
use crate::access::Caller;
use crate::ids::{ClientId, SessionId};
use crate::rpc::call::Call;
use crate::rpc::reply::{AuthError, Unaccepted};
use crate::state::refusal::Refusal;
use crate::state::service::ServiceState;
use crate::state::session::MESSAGE_BYTES_MAX;
use crate::state::slot;
use crate::state::v3_replies::{Address, REPLY_BYTES_MAX, V3Outcome, V3Request};
use crate::statistics::Work;
use crate::v3::dispatch;
use crate::v3::procedure::{BadCall, Procedure};
use crate::v3::procedures::{commit, read, write};
use crate::v3::status;
use crate::v4::context::{Context, Effects, Halt, OtherVolume, Others, Position, Request};
use crate::v4::status::{OK, Status};
use crate::xdr::{Decoder, Encoder};

/// The version.
pub(super) const VERSION: u32 = 3;
/// Replies that are forgotten at once where the ring is full, and times that this is done for one call.
const FORGOTTEN_AT_ONCE: usize = 64;
const ROOM_MADE_MAX: u32 = 64;

/// A call under way.
struct Run<'a> {
    procedure: &'a Procedure,
    request: Request<'a>,
    /// What tells it from others, if it must not be done twice.
    once: Option<V3Request>,
    /// Data that it has read or written; none while it is under way, and none if somebody else's answer is told once more.
    work: Cell<Work>,
}

/// What an operation of the filesystem came to.
struct Attempt<T> {
    /// None where the procedure has failed, and that is put.
    value: Option<T>,
    effects: Effects,
    observed: Pending,
}

/// Why there is no result.
enum Failed {
    Status(Status),
    Engine(Failure),
    /// Somebody else has what is wanted.
    InTheWay(Box<Refusal>),
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self::Engine(failure)
    }
}

impl From<Halt> for Failed {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Status(status) => Self::Status(status),
            Halt::InTheWay(refusal) => Self::InTheWay(refusal),
            Halt::Stop(_) => Self::Status(Status::ServerFault),
        }
    }
}

impl<D: BlockDevice + 'static> Service<D> {
    /// Answers a call of NFSv3, whose arguments are next in the decoder, and says what it came to.
    pub(super) async fn call_v3(
        &self,
        origin: Origin,
        call: &Call,
        mut decoder: Decoder,
    ) -> Result<(Answer, Work), Gone> {
        let arguments = decoder.between(decoder.position(), usize::MAX);
        let answer = match Procedure::decode(call.procedure, &mut decoder) {
            Ok(Procedure::Null) => Answer::Result(Encoder::new()),
            Ok(procedure) => return self.procedure_v3(origin, call, (&procedure, &arguments)).await,
            Err(BadCall::Unavailable) => Answer::Unaccepted(Unaccepted::ProcedureUnavailable),
            Err(BadCall::Garbage) => Answer::Unaccepted(Unaccepted::GarbageArguments),
        };
        Ok((answer, Work::default()))
    }

    /// The same, with the arguments both as they are and as they came.
    async fn procedure_v3(
        &self,
        origin: Origin,
        call: &Call,
        (procedure, arguments): (&Procedure, &[u8]),
    ) -> Result<(Answer, Work), Gone> {
        let caller = (self.world.caller)(origin.address, &call.credential);
        if caller.refused {
            return Ok((Answer::Denied(AuthError::TooWeak), Work::default()));
        }
        let once = procedure.is_changing().then(|| {
            let mut user = Encoder::new();
            call.credential.encode(&mut user);
            let checksum = slot::digest(arguments, &user.to_bytes());
            V3Request { address: address(origin.address), xid: call.xid, procedure: call.procedure, checksum }
        });
        let (statistics, none) = (self.files.statistics(), Vec::<OtherVolume>::new);
        let others = Others::new(&none);
        let request = self.request_of_nobody(&caller, (&others, &statistics));
        let run = Run { procedure, request, once, work: Cell::default() };
        let result = match once {
            None => self.do_v3(&run).await,
            Some(once) => self.do_once(&run, once).await,
        };
        Ok((Answer::Result(result?), run.work.get()))
    }

    /// What a call has in common with a compound, where no client of NFSv4 asks.
    pub(super) fn request_of_nobody<'a>(
        &'a self,
        caller: &'a Caller,
        (others, statistics): (&'a Others<'a>, &'a Statistics),
    ) -> Request<'a> {
        Request {
            service: &self.facts,
            others,
            statistics,
            caller,
            owners: self.owners.as_known(),
            minor: 0,
            session: SessionId { client: ClientId::NOBODY, number: 0 },
            client: ClientId::NOBODY,
            now: (self.world.now)(),
            moment: (self.world.moment)(),
            reply_bytes_max: MESSAGE_BYTES_MAX as usize,
            recorded_bytes_max: REPLY_BYTES_MAX,
        }
    }

    /// Does a call that must not be done twice, unless it was answered before.
    async fn do_once(&self, run: &Run<'_>, once: V3Request) -> Result<Encoder, Gone> {
        loop {
            let ended = self.ended.notified();
            let outcome = self.state().clients.v3_replies.begin(once);
            match outcome {
                V3Outcome::Execute => break,
                V3Outcome::Replay(reply) => {
                    let mut out = Encoder::new();
                    out.encoded(&reply);
                    return Ok(out);
                }
                V3Outcome::Park | V3Outcome::Full => ended.await,
            }
        }
        let result = self.do_v3(run).await;
        self.state().clients.v3_replies.finish(once);
        self.ended.notify_waiters();
        result
    }

    /// Does a call, and gives its result when what that tells of is durable.
    async fn do_v3(&self, run: &Run<'_>) -> Result<Encoder, Gone> {
        let (mut cleared, mut room_made) = (0, 0);
        let patience = Instant::now() + RECALL_TIME;
        loop {
            let mut out = Encoder::new();
            let done = match run.procedure {
                Procedure::Read(arguments) => self.read_v3(run, arguments, &mut out).await,
                Procedure::Write(arguments) => self.write_v3(run, arguments, &mut out).await,
                Procedure::Commit(arguments) => self.commit_v3(run, arguments, &mut out).await,
                procedure => self.at_once(run, &mut out, |context, out| dispatch::run(context, procedure, out)).await,
            };
            let status = match done {
                Ok(observed) => {
                    self.files.kept(observed).await.map_err(Gone)?;
                    return Ok(out);
                }
                Err(Failed::Engine(Failure::Device(error))) => return Err(Gone(Failure::Device(error))),
                Err(Failed::Engine(Failure::Refused(FilesRefusal::StateRingFull))) if room_made < ROOM_MADE_MAX => {
                    room_made += 1;
                    if self.make_room().await? {
                        continue;
                    }
                    Status::Delay
                }
                Err(Failed::InTheWay(refusal)) => {
                    cleared += 1;
                    if cleared <= CLEARED_MAX && self.clear(None, &refusal, patience).await? {
                        continue;
                    }
                    refusal.status()
                }
                Err(Failed::Engine(failure)) => status_of(&failure),
                Err(Failed::Status(status)) => status,
            };
            return self.failure(run, status).await;
        }
    }

    /// A failure that only the filesystem or the device could tell of.
    async fn failure(&self, run: &Run<'_>, status: Status) -> Result<Encoder, Gone> {
        let mut out = Encoder::new();
        match self.attempt(run, &mut out, |_, _| Err::<(), _>(Halt::Status(status))).await {
            Err(Failed::Engine(Failure::Device(error))) => return Err(Gone(Failure::Device(error))),
            Ok(Attempt { observed, .. }) => self.files.kept(observed).await.map_err(Gone)?,
            Err(_) => {
                out = Encoder::new();
                out.u32(status::code(status));
                run.procedure.put_bare_failure(&mut out);
            }
        }
        Ok(out)
    }

    /// The oldest replies make room for new ones. False if there are none.
    pub(super) async fn make_room(&self) -> Result<bool, Gone> {
        let changed = self.change(|_, state| Ok(state.clients.v3_replies.forget_oldest(FORGOTTEN_AT_ONCE)));
        match changed.await {
            Ok((forgotten, _)) => Ok(forgotten > 0),
            Err(Failure::Device(error)) => Err(Gone(Failure::Device(error))),
            Err(_) => Ok(false),
        }
    }

    /// Runs a procedure, or a part of it, as one operation of the filesystem; what a changing one puts is recorded with that.
    /// A refusal that comes before any change is put, with what it tells of files.
    async fn attempt<T>(
        &self,
        run: &Run<'_>,
        out: &mut Encoder,
        op: impl Fn(&mut Context<'_, '_>, &mut Encoder) -> Result<T, Halt>,
    ) -> Result<Attempt<T>, Failed> {
        let start = out.mark();
        let mut refused = None;
        let changed = self.change(|handle: &mut Handle<'_>, state: &mut ServiceState| {
            out.truncate(start);
            refused = None;
            let touches = handle.touches();
            let (request, at, effects) = (run.request, Position::default(), Effects::default());
            let mut context = Context { files: handle, state, request, at, effects };
            match op(&mut context, out) {
                Ok(value) => {
                    if let Some(once) = run.once.filter(|_| effects_are_whole(&context.effects)) {
                        let reply = out.bytes_until(out.mark()).into();
                        let is_kept = context.state.clients.v3_replies.finish_changing(once, reply);
                        assert!(is_kept, "the replies of changing procedures are short");
                    }
                    Ok(Ok((Some(value), context.effects)))
                }
                Err(Halt::Stop(stop)) => Err(stop),
                Err(halt) if context.files.touches() != touches => {
                    refused = Some(halt);
                    Err(FilesRefusal::NotSupported.into())
                }
                Err(Halt::Status(status)) => {
                    out.truncate(start);
                    out.u32(status::code(status));
                    match run.procedure.put_failure(&mut context, out) {
                        Err(Halt::Stop(stop)) => Err(stop),
                        _ => Ok(Ok((None, Effects::default()))),
                    }
                }
                Err(halt) => Ok(Err(halt)),
            }
        });
        let changed = changed.await;
        match (changed, refused) {
            (Ok((Ok((value, effects)), observed)), _) => {
                // What need not be durable is not waited for, and what is told of it is excepted too.
                let is_told = effects.changing || !effects.unstable;
                let observed = if is_told { observed } else { Pending::default() };
                Ok(Attempt { value, effects, observed })
            }
            (Ok((Err(halt), _)), _) => Err(halt.into()),
            (Err(Failure::Device(error)), _) => Err(Failed::Engine(Failure::Device(error))),
            (Err(_), Some(halt)) => Err(halt.into()),
            (Err(failure), None) => Err(Failed::Engine(failure)),
        }
    }

    /// A procedure that is one operation.
    async fn at_once(
        &self,
        run: &Run<'_>,
        out: &mut Encoder,
        op: impl Fn(&mut Context<'_, '_>, &mut Encoder) -> Result<(), Halt>,
    ) -> Result<Pending, Failed> {
        let whole = |context: &mut Context<'_, '_>, out: &mut Encoder| {
            out.u32(OK);
            op(context, out)
        };
        Ok(self.attempt(run, out, whole).await?.observed)
    }

    async fn read_v3(&self, run: &Run<'_>, arguments: &read::Arguments, out: &mut Encoder) -> Result<Pending, Failed> {
        let begun = self.attempt(run, out, |context, _| read::begin(context, arguments)).await?;
        let Some((file, length)) = begun.value else { return Ok(begun.observed) };
        let done = self.files.read(file.inode, arguments.offset, length).await?;
        let told = |context: &mut Context<'_, '_>, out: &mut Encoder| {
            out.u32(OK);
            read::put_attributes(context, file, out)
        };
        let told = self.attempt(run, out, told).await?;
        if let Some(size) = told.value {
            let read_bytes = done.value.len() as u64;
            run.work.set(Work { read_bytes, written_bytes: 0 });
            let at_end = arguments.offset.saturating_add(read_bytes) >= size;
            read::put_data(out, at_end, done.value);
        }
        Ok(begun.observed.and(done.pending).and(told.observed))
    }

    async fn write_v3(
        &self,
        run: &Run<'_>,
        arguments: &write::Arguments,
        out: &mut Encoder,
    ) -> Result<Pending, Failed> {
        let write = |context: &mut Context<'_, '_>, out: &mut Encoder| {
            let written = write::run(context, arguments)?;
            if context.effects.sync.is_none() {
                out.u32(OK);
                write::put(context, arguments, written, out)?;
            }
            Ok(written)
        };
        let done = Work { read_bytes: 0, written_bytes: arguments.data.len() as u64 };
        let begun = self.attempt(run, out, write).await?;
        let Some(written) = begun.value else { return Ok(begun.observed) };
        let Some(file) = begun.effects.sync else {
            run.work.set(done);
            return Ok(begun.observed);
        };
        self.files.fsync(file.inode).await?;
        let tell = |context: &mut Context<'_, '_>, out: &mut Encoder| {
            context.effects.changing = true;
            out.u32(OK);
            write::put(context, arguments, written, out)
        };
        let told = self.attempt(run, out, tell).await?;
        if told.value.is_some() {
            run.work.set(done);
        }
        Ok(begun.observed.and(told.observed))
    }

    async fn commit_v3(
        &self,
        run: &Run<'_>,
        arguments: &commit::Arguments,
        out: &mut Encoder,
    ) -> Result<Pending, Failed> {
        let begun = self.attempt(run, out, |context, _| commit::begin(context, arguments)).await?;
        let Some(committed) = begun.value else { return Ok(begun.observed) };
        self.files.fsync(committed.0.inode).await?;
        self.at_once(run, out, |context, out| commit::put(context, committed, out)).await
    }
}

/// True when something was changed, and nothing has to be done before that is recorded.
fn effects_are_whole(effects: &Effects) -> bool {
    effects.changing && effects.sync.is_none()
}

/// An address as records keep it.
fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
