//! A compound from its first operation to its reply (RFC 8881 §2.10.6, §16.2): SEQUENCE decides whether it is new, and then its
//! operations are done, group by group.

use std::net::IpAddr;
use std::time::Duration;

use block_device::BlockDevice;
use bytes::Bytes;
use filesystem::engine::{Failure, Pending, Statistics};
use futures_util::future::join;
use tokio::time::Instant;
use tracing::error;

use super::group::{Limit, put_head, status_of};
use super::recording::{Phases, Ticket};
use super::{Gone, Origin, Service};
use crate::access::Caller;
use crate::ids::{ClientId, FileId, SessionId};
use crate::rpc::auth::Credential;
use crate::state::refusal::Refusal;
use crate::state::sequence::{Granted, Outcome, Sequence};
use crate::state::slot::{self, RESULT_BYTES_MAX, Reply};
use crate::v4::compound::{Compound, Operation, SEQUENCE, Step};
use crate::v4::context::{Others, Position, Request};
use crate::v4::dispatch::{self, Kind};
use crate::v4::operations::sequence::{self, Answer};
use crate::v4::status::{self, Status};
use crate::xdr::{Encoder, Mark};

/// Bytes before and behind the results: the RPC head, and status, tag and count.
const REPLY_HEAD_BYTES: usize = 64;
/// Times that somebody in the way is got out of it, for one request.
pub(super) const CLEARED_MAX: u32 = 64;
/// How long a request waits for delegations to be given back before it is answered DELAY, after which Linux waits a while.
pub(super) const RECALL_TIME: Duration = Duration::from_secs(1);

/// A compound under way.
pub(super) struct Run<'a> {
    pub(super) compound: &'a Compound,
    pub(super) request: Request<'a>,
    pub(super) slot: u32,
    pub(super) ticket: &'a Ticket<'a>,
    /// The operation that is done first: those before it were, before a takeover.
    pub(super) first: usize,
    /// The operation to be done next.
    pub(super) next: usize,
    /// The results of those before it.
    pub(super) out: Encoder,
    pub(super) at: Position,
    pub(super) failed: Option<Status>,
    /// An operation that is to be answered without being done.
    pub(super) limit: Option<Limit>,
    /// What is in the way of which operation.
    pub(super) in_the_way: Option<(usize, Box<Refusal>)>,
    /// The reply waits for this.
    pub(super) observed: Pending,
    /// Something was changed.
    pub(super) changed: bool,
    /// Data has to be on the device, and then the result is to be recorded.
    pub(super) unrecorded: Option<Unrecorded>,
    /// Data that the client is given.
    pub(super) read_bytes: u64,
    pub(super) phases: Phases,
}

/// What the last operation wrote and is not on the device yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unrecorded {
    /// Into this file.
    pub(super) file: FileId,
    /// Where its result begins, should it come to nothing.
    pub(super) begin: Mark,
}

impl Run<'_> {
    /// The whole result: status, tag, and so many results.
    pub(super) fn result_of(&self, failed: Option<Status>, results: Vec<u8>, count: usize) -> Bytes {
        let mut out = self.head(failed, count);
        out.encoded(&results);
        out.to_bytes()
    }

    fn head(&self, failed: Option<Status>, count: usize) -> Encoder {
        let mut out = Encoder::new();
        out.u32(failed.map_or(status::OK, Status::code));
        out.opaque(&self.compound.tag);
        out.u32(count as u32);
        out
    }
}

impl<D: BlockDevice + 'static> Service<D> {
    /// Does a compound, and gives its result. `body` are the arguments behind the first operation.
    pub(super) async fn compound(
        &self,
        (origin, ticket): (Origin, &Ticket<'_>),
        (caller, credential): (&Caller, &Credential),
        compound: &Compound,
        body: &[u8],
    ) -> Result<Encoder, Gone> {
        let refuse = |number, status| {
            self.compound_alone(ticket, number, Some(status));
            Ok(refused(compound, number, status, number.is_some()))
        };
        match compound.steps.first() {
            None => refuse(None, Status::OperationNotInSession),
            Some(Step::Refuse(number, status)) => refuse(Some(*number), *status),
            Some(Step::Do(Operation::Sequence(first))) => {
                self.in_session((first, ticket), caller, (compound, body), credential).await
            }
            Some(Step::Do(operation)) if compound.steps.len() == 1 => {
                self.session_operation((origin, ticket), credential, compound, operation).await
            }
            Some(Step::Do(operation)) => {
                let alone = matches!(
                    operation,
                    Operation::ExchangeId(_)
                        | Operation::CreateSession(_)
                        | Operation::DestroySession(_)
                        | Operation::DestroyClientId(_)
                        | Operation::BindConnToSession(_)
                );
                let status = if alone { Status::NotOnlyOperation } else { Status::OperationNotInSession };
                refuse(Some(operation.number()), status)
            }
        }
    }

    /// A compound that begins with SEQUENCE.
    async fn in_session(
        &self,
        (first, ticket): (&sequence::Arguments, &Ticket<'_>),
        caller: &Caller,
        (compound, body): (&Compound, &[u8]),
        credential: &Credential,
    ) -> Result<Encoder, Gone> {
        let mut user = Encoder::new();
        credential.encode(&mut user);
        let digest = slot::digest(body, &user.to_bytes());
        let request = Sequence {
            session: first.session,
            slot: first.slot,
            sequence: first.sequence,
            highest_slot: first.highest_slot,
            digest,
        };
        let (granted, before) = match self.judged(&request, ticket, compound).await {
            Ok(new) => new,
            Err(answer) => return Ok(answer),
        };
        let resumed = match before.map(|reply| Position::from_bytes(reply.resume.clone()).map(|at| (reply, at))) {
            None => None,
            Some(Ok(resumed)) => Some(resumed),
            Some(Err(error)) => {
                // What was done must not be done again.
                error!("the record of request {ticket} cannot be read, it is refused: {error}");
                self.compound_alone(ticket, Some(SEQUENCE), Some(Status::ServerFault));
                self.state().clients.finish(first.session, first.slot, None);
                self.ended.notify_waiters();
                return Ok(refused(compound, Some(SEQUENCE), Status::ServerFault, true));
            }
        };
        let others = Others::new(&*self.world.others);
        let statistics = self.files.statistics();
        let (session, client) = (first.session, first.session.client);
        let request = self.request(caller, (session, client), compound, (&others, &statistics), granted);
        let mut out = Encoder::new();
        let mut start = (1, Position::default());
        match resumed {
            Some((reply, at)) => {
                out.encoded(&reply.result);
                start = (reply.operations_done as usize, at);
            }
            None => {
                put_head(&mut out, SEQUENCE, None);
                let answer = self.sequence_answer(client, granted);
                sequence::put(&mut out, first, &answer);
            }
        }
        let mut run = Run {
            compound,
            request,
            slot: first.slot,
            ticket,
            first: start.0,
            next: start.0,
            out,
            at: start.1,
            failed: None,
            limit: None,
            in_the_way: None,
            observed: Pending::default(),
            changed: start.0 > 1,
            unrecorded: None,
            read_bytes: 0,
            phases: Phases::default(),
        };
        let ended = match only_tells(compound) {
            true => {
                // Meanwhile it is found out whether it may be told.
                let begun = self.files.begun();
                let (ended, confirmed) = join(self.run(&mut run), self.files.confirmed(begun)).await;
                ended.and(confirmed.map_err(Gone))
            }
            false => self.run(&mut run).await,
        };
        self.finish(run, first, granted, ended).await
    }

    /// Whether a request is new: what holds for it, and what was done of it before a takeover. Errors: it is not; the answer.
    async fn judged(
        &self,
        request: &Sequence,
        ticket: &Ticket<'_>,
        compound: &Compound,
    ) -> Result<(Granted, Option<Reply>), Encoder> {
        loop {
            let ended = self.ended.notified();
            let outcome = self.state().clients.sequence((self.world.moment)(), request);
            match outcome {
                Outcome::Execute(granted) => return Ok((granted, None)),
                Outcome::ReplayPartly(reply, granted) => return Ok((granted, Some(reply))),
                Outcome::Replay(result) => {
                    self.compound_replayed(ticket, request.session.client, compound.minor);
                    let mut out = Encoder::new();
                    out.encoded(&result);
                    return Err(out);
                }
                Outcome::Refuse(status) => {
                    self.compound_alone(ticket, Some(SEQUENCE), Some(status));
                    return Err(refused(compound, Some(SEQUENCE), status, true));
                }
                Outcome::Park => {
                    self.recorder.count(|counters| counters.totals.parked += 1);
                    ended.await;
                }
            }
        }
    }

    fn request<'a>(
        &'a self,
        caller: &'a Caller,
        (session, client): (SessionId, ClientId),
        compound: &Compound,
        (others, statistics): (&'a Others<'a>, &'a Statistics),
        granted: Granted,
    ) -> Request<'a> {
        let head = REPLY_HEAD_BYTES + compound.tag.len().next_multiple_of(4);
        Request {
            service: &self.facts,
            others,
            owners: self.owners.as_known(),
            statistics,
            caller,
            minor: compound.minor,
            session,
            client,
            now: (self.world.now)(),
            moment: (self.world.moment)(),
            reply_bytes_max: (granted.reply_bytes_max as usize).saturating_sub(head),
            recorded_bytes_max: RESULT_BYTES_MAX.saturating_sub(head),
        }
    }

    fn sequence_answer(&self, client: ClientId, granted: Granted) -> Answer {
        /// `SEQ4_STATUS_RECALLABLE_STATE_REVOKED`.
        const REVOKED: u32 = 0x40;
        let revoked = if self.state().files.has_revoked(client) { REVOKED } else { 0 };
        Answer {
            highest_slot: granted.highest_slot,
            target_highest_slot: granted.highest_slot,
            status_flags: granted.status_flags | revoked,
        }
    }

    /// Does the operations that are left.
    async fn run(&self, run: &mut Run<'_>) -> Result<(), Gone> {
        let mut cleared = 0;
        let patience = Instant::now() + RECALL_TIME;
        while run.failed.is_none() && (run.next < run.compound.steps.len() || run.unrecorded.is_some()) {
            let began = Instant::now();
            if let Some(unrecorded) = run.unrecorded {
                let synced = self.files.fsync(unrecorded.file.inode).await;
                run.phases.data += began.elapsed();
                if let Err(failure) = synced {
                    give_up_sync(run, unrecorded, failure)?;
                    continue;
                }
            }
            let began = Instant::now();
            let compound = run.compound;
            let together = match compound.steps.get(run.next..) {
                Some([Step::Do(Operation::PutFh(put)), Step::Do(Operation::Read(read)), ..])
                    if run.unrecorded.is_none() =>
                {
                    self.put_and_read(run, put, read).await?
                }
                _ => false,
            };
            match compound.steps.get(run.next) {
                _ if together => run.phases.data += began.elapsed(),
                Some(Step::Do(operation)) if run.unrecorded.is_none() && dispatch::kind(operation) == Kind::Outside => {
                    self.outside(run, operation).await?;
                    run.phases.data += began.elapsed();
                }
                _ => {
                    self.group(run).await?;
                    run.phases.transactions += began.elapsed();
                }
            }
            if let Some((step, refusal)) = run.in_the_way.take() {
                cleared += 1;
                let by = Some(run.request.client);
                let is_clear = cleared <= CLEARED_MAX && self.clear(by, &refusal, patience).await?;
                if !is_clear {
                    run.limit = Some(Limit { step, status: refusal.status(), refusal: Some(*refusal) });
                }
            }
        }
        Ok(())
    }

    /// Gets out of the way whoever has something that he has only by courtesy, and delegations. False if that does not help, or
    /// not until then.
    pub(super) async fn clear(&self, by: Option<ClientId>, refusal: &Refusal, until: Instant) -> Result<bool, Gone> {
        let holder = match refusal {
            Refusal::Share { by, .. } => by,
            Refusal::Lock(denied) => &denied.by,
            Refusal::Delegated(conflicts) => return self.clear_delegations(by, conflicts, until).await,
            _ => return Ok(false),
        };
        let moment = (self.world.moment)();
        let is_courtesy = |client: &ClientId| self.state().clients.is_courtesy(*client, moment);
        match holder.client().filter(is_courtesy) {
            Some(client) => self.drop_courtesy(client).await,
            None => Ok(false),
        }
    }

    /// The reply: when what it tells of is durable.
    async fn finish(
        &self,
        mut run: Run<'_>,
        first: &sequence::Arguments,
        granted: Granted,
        ended: Result<(), Gone>,
    ) -> Result<Encoder, Gone> {
        let session = first.session;
        let mut observed = run.observed;
        let mut ended = ended;
        if ended.is_ok() && !run.changed && granted.wants_record {
            // The first request of a slot for a long time that a takeover has to know of.
            let recorded = self.change(|_, state| {
                let _ = state.clients.finish_unchanged(session, run.slot);
                Ok(())
            });
            match recorded.await {
                Ok(((), pending)) => observed = observed.and(pending),
                Err(Failure::Device(error)) => ended = Err(Gone(Failure::Device(error))),
                // It is recorded another time.
                Err(_) => {}
            }
        }
        let began = Instant::now();
        if ended.is_ok()
            && let Err(failure) = self.files.kept(observed).await
        {
            ended = Err(Gone(failure));
        }
        run.phases.durable = began.elapsed();
        self.compound_done(&run);
        let steps = run.next + usize::from(run.failed.is_some());
        let mut out = run.head(run.failed, steps);
        // What changed nothing can be done again, unless the client would have the same answer.
        let is_kept = ended.is_ok() && (run.changed || first.cache_this) && run.out.len() <= slot::RESULT_BYTES_MAX;
        let kept = is_kept.then(|| run.result_of(run.failed, run.out.bytes_until(run.out.mark()), steps));
        self.state().clients.finish(session, run.slot, kept);
        self.ended.notify_waiters();
        ended?;
        out.append(run.out);
        Ok(out)
    }
}

/// Nothing in it changes anything or waits for the device.
fn only_tells(compound: &Compound) -> bool {
    let tells = |step: &Step| match step {
        Step::Do(operation) => !dispatch::may_change(operation) && dispatch::kind(operation) == Kind::Inside,
        Step::Refuse(..) => true,
    };
    compound.steps.iter().all(tells)
}

/// Data did not reach the device: the operation that wrote it is answered so.
fn give_up_sync(run: &mut Run<'_>, unrecorded: Unrecorded, failure: Failure) -> Result<(), Gone> {
    if let Failure::Device(error) = failure {
        return Err(Gone(Failure::Device(error)));
    }
    let status = status_of(&failure);
    run.unrecorded = None;
    run.next -= 1;
    run.out.truncate(unrecorded.begin);
    if let Some(step) = run.compound.steps.get(run.next) {
        put_head(&mut run.out, step.number(), Some(status));
    }
    run.failed = Some(status);
    Ok(())
}

/// A result of one operation that was refused, or of none.
pub(super) fn refused(compound: &Compound, number: Option<u32>, status: Status, has_result: bool) -> Encoder {
    let mut out = Encoder::new();
    out.u32(status.code());
    out.opaque(&compound.tag);
    out.u32(u32::from(has_result));
    if let Some(number) = number.filter(|_| has_result) {
        put_head(&mut out, number, Some(status));
    }
    out
}

/// What stands for a caller: its flavor, its user, and the machine that it names.
pub(super) fn principal(credential: &Credential, address: IpAddr) -> Bytes {
    let name = match credential {
        Credential::Sys(sys) => format!("sys {} {}", sys.user, String::from_utf8_lossy(&sys.machine)),
        _ => format!("none {address}"),
    };
    Bytes::from(name)
}
