//! Operations of a compound that are done together, in one transaction.
//!
//! They run one after another until one of them has to wait for the device, is refused, or has to be done in several
//! transactions. If one is refused after it has changed something, or fails where only the filesystem can tell, all of them run
//! again, up to it.

use block_device::BlockDevice;
use filesystem::engine::{Failure, Handle};
use filesystem::{Refusal as FilesRefusal, Stop};

use super::compound::{Run, Unrecorded};
use super::{Gone, Service};
use crate::state::refusal::Refusal;
use crate::state::service::ServiceState;
use crate::state::slot::Reply;
use crate::v4::compound::Step;
use crate::v4::context::{Context, Effects, Halt, Position};
use crate::v4::dispatch::{self, Kind};
use crate::v4::status::{self, Status};
use crate::xdr::Mark;

/// An operation that is to be answered so, not done.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    pub(super) step: usize,
    pub(super) status: Status,
    pub(super) refusal: Option<Refusal>,
}

/// How far a group came.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    next: usize,
    at: Position,
    effects: Effects,
    failed: Option<Status>,
    /// Somebody else has what the next operation wants.
    in_the_way: Option<(usize, Box<Refusal>)>,
    /// What was written last has to be on the device first.
    unrecorded: Option<Unrecorded>,
}

/// Why a group has to run again.
#[derive(Clone, Debug, Default)]
struct Attempt {
    /// The operation under way.
    step: usize,
    /// It was refused so after it had changed something.
    refused: Option<(Status, Option<Refusal>)>,
    /// Names of owners are to be looked up before it.
    names_missing: bool,
}

/// Behind which operation a record may let a compound go on.
#[derive(Clone, Copy, Debug)]
struct Done {
    steps: usize,
    results: Mark,
    at: Position,
}

/// Times that names of owners are looked up for one group; what is missing after that goes as numbers.
const NAME_ROUNDS_MAX: usize = 4;

impl<D: BlockDevice + 'static> Service<D> {
    /// Runs operations from the next one on. Errors: nothing can be done any more.
    pub(super) async fn group(&self, run: &mut Run<'_>) -> Result<(), Gone> {
        let start = run.out.mark();
        let mut may_make_room = true;
        // Each time one operation is left out that was not before, or the one before it; once room is made; and names are found.
        for round in 0..=2 * run.compound.steps.len() + 1 + NAME_ROUNDS_MAX {
            let mut attempt = Attempt::default();
            let may_look_up = round < NAME_ROUNDS_MAX;
            let changed = self.change(|handle, state| {
                run.out.truncate(start);
                attempt.refused = None;
                run.request.owners.begin();
                let group = attempt_group(run, handle, state, &mut attempt);
                attempt.names_missing = may_look_up && run.request.owners.is_missing();
                // Nothing of it counts: it runs again when they are known.
                if attempt.names_missing { Err(FilesRefusal::NotSupported.into()) } else { group }
            });
            let status = match changed.await {
                Ok((group, observed)) => {
                    run.next = group.next;
                    run.at = group.at;
                    run.failed = group.failed;
                    run.in_the_way = group.in_the_way;
                    run.changed |= group.effects.changing;
                    // What need not be durable is not waited for, and what is told of it is excepted too.
                    if group.effects.changing || !group.effects.unstable {
                        run.observed = run.observed.and(observed);
                    }
                    run.unrecorded = group.unrecorded;
                    return Ok(());
                }
                Err(Failure::Device(error)) => return Err(Gone(Failure::Device(error))),
                Err(_) if attempt.names_missing => {
                    self.owners.find().await;
                    continue;
                }
                // What clients hold matters more than old replies of NFSv3.
                Err(Failure::Refused(FilesRefusal::StateRingFull))
                    if std::mem::take(&mut may_make_room) && self.make_room().await? =>
                {
                    continue;
                }
                Err(failure) => match attempt.refused.take() {
                    // Others may get out of the way, and then the whole group runs again.
                    Some((_, Some(refusal @ Refusal::Delegated(_)))) => {
                        run.out.truncate(start);
                        run.in_the_way = Some((attempt.step, Box::new(refusal)));
                        return Ok(());
                    }
                    Some((status, refusal)) => {
                        run.limit = Some(Limit { step: attempt.step, status, refusal });
                        continue;
                    }
                    None => status_of(&failure),
                },
            };
            // What fails where all that is recorded comes together (a full ring) has no step of its own: one after another is
            // left out until it fits.
            let step = match &run.limit {
                Some(limit) if limit.step <= attempt.step => limit.step.saturating_sub(1).max(run.next),
                _ => attempt.step,
            };
            run.limit = Some(Limit { step, status, refusal: None });
        }
        Err(Gone(Failure::TooLarge("the compound")))
    }
}

/// What is said when the filesystem gives up an operation.
pub(super) fn status_of(failure: &Failure) -> Status {
    match failure {
        Failure::NoSpace => Status::NoSpace,
        Failure::TooLarge(_) => Status::FileTooBig,
        Failure::Refused(refusal) => crate::v4::context::status_of(*refusal),
        Failure::ReadOnly(_) => Status::ReadOnly,
        Failure::Corrupt(_) | Failure::Device(_) => Status::Io,
    }
}

/// One run of a group. Errors: it does not count.
fn attempt_group(
    run: &mut Run<'_>,
    handle: &mut Handle<'_>,
    state: &mut ServiceState,
    attempt: &mut Attempt,
) -> Result<Group, Stop> {
    let carried = Effects { changing: run.unrecorded.is_some(), ..Effects::default() };
    let mut context = Context { files: handle, state, request: run.request, at: run.at, effects: carried };
    let mut group = Group { next: run.next, ..Group::default() };
    let mut done = Done { steps: run.next, results: run.out.mark(), at: run.at };
    while let Some(step) = run.compound.steps.get(group.next) {
        attempt.step = group.next;
        let begin = run.out.mark();
        let operation = match step {
            Step::Do(operation) => operation,
            Step::Refuse(number, status) => {
                put_head(&mut run.out, *number, Some(*status));
                group.failed = Some(*status);
                break;
            }
        };
        if dispatch::kind(operation) == Kind::Outside {
            break;
        }
        if let Some(limit) = run.limit.as_ref().filter(|limit| limit.step == group.next) {
            put_head(&mut run.out, operation.number(), Some(limit.status));
            dispatch::put_failure(operation, limit.refusal.as_ref(), &mut run.out);
            group.failed = Some(limit.status);
            break;
        }
        let (touches, was_changed) = (context.files.touches(), context.state.is_changed());
        let at = context.at;
        put_head(&mut run.out, operation.number(), None);
        let mut halt = dispatch::run(&mut context, operation, &mut run.out).err();
        if halt.is_none() && run.out.len() > run.request.reply_bytes_max && !dispatch::may_change(operation) {
            halt = Some(Status::ReplyTooBig.into());
        }
        // Where others have changed the state before, one cannot see whether this one has, too.
        let state_is_untouched = match was_changed {
            false => !context.state.is_changed(),
            true => !dispatch::may_change(operation),
        };
        let is_untouched = touches == context.files.touches() && state_is_untouched;
        match halt {
            None if context.effects.again => {
                // What it did stays; it is done again from there.
                run.out.truncate(begin);
                context.at = at;
                break;
            }
            None => group.next += 1,
            Some(Halt::Stop(stop)) => return Err(stop),
            Some(Halt::InTheWay(refusal)) if is_untouched => {
                run.out.truncate(begin);
                context.at = at;
                group.in_the_way = Some((group.next, refusal));
                break;
            }
            Some(halt) => {
                let (status, refusal) = match halt {
                    Halt::InTheWay(refusal) => (refusal.status(), Some(*refusal)),
                    Halt::Status(status) => (status, None),
                    Halt::Stop(stop) => return Err(stop),
                };
                if !is_untouched {
                    attempt.refused = Some((status, refusal));
                    return Err(FilesRefusal::NotSupported.into());
                }
                run.out.truncate(begin);
                put_head(&mut run.out, operation.number(), Some(status));
                dispatch::put_failure(operation, refusal.as_ref(), &mut run.out);
                context.at = at;
                group.failed = Some(status);
                break;
            }
        }
        if dispatch::may_change(operation) {
            done = Done { steps: group.next, results: run.out.mark(), at: context.at };
        }
        if let Some(file) = context.effects.sync {
            group.unrecorded = Some(Unrecorded { file, begin });
            break;
        }
    }
    (group.at, group.effects) = (context.at, context.effects);
    // What has to be on the device first is recorded behind that.
    if group.effects.changing && group.unrecorded.is_none() {
        record_reply(run, &group, done, context.state);
    }
    Ok(group)
}

/// Operation and status: the head of a result.
pub(super) fn put_head(out: &mut crate::xdr::Encoder, number: u32, status: Option<Status>) {
    out.u32(number);
    out.u32(status.map_or(status::OK, Status::code));
}

/// Puts the result beside the changes: all of it if that is short enough, else what reaches behind the last change, from where
/// the rest can be done once more.
fn record_reply(run: &Run<'_>, group: &Group, done: Done, state: &mut ServiceState) {
    let steps = group.next + usize::from(group.failed.is_some());
    let is_last = group.failed.is_some() || group.next == run.compound.steps.len();
    let fits = run.out.len() <= run.request.recorded_bytes_max;
    let reply = match (is_last && fits, fits) {
        (true, _) => Reply {
            operations_done: steps as u32,
            complete: true,
            result: run.result_of(group.failed, run.out.bytes_until(run.out.mark()), steps),
            resume: bytes::Bytes::new(),
        },
        (false, true) => Reply {
            operations_done: group.next as u32,
            complete: false,
            result: run.out.bytes_until(run.out.mark()).into(),
            resume: group.at.to_bytes(),
        },
        (false, false) => Reply {
            operations_done: done.steps as u32,
            complete: false,
            result: run.out.bytes_until(done.results).into(),
            resume: done.at.to_bytes(),
        },
    };
    // A session that the compound has destroyed itself keeps no record, and needs none.
    let _ = state.clients.finish_changing(run.request.session, run.slot, reply);
}
