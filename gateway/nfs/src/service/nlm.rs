//! The network lock manager's requests: each is one operation of the filesystem, and answered when what it changed is durable.

use std::net::IpAddr;

use block_device::BlockDevice;
use filesystem::engine::{Failure, Pending};
use tokio::time::Instant;

use super::companions::{Reply, refusal, success, understood};
use super::compound::{CLEARED_MAX, RECALL_TIME};
use super::{Gone, Origin, Service};
use crate::access::Caller;
use crate::nlm::arguments::{Arguments, Asked, Request};
use crate::nlm::context::{Context, Halt};
use crate::nlm::locking::{self, How};
use crate::nlm::results::{Outcome, Tested};
use crate::nlm::{self, Stat, sharing};
use crate::rpc::call::Call;
use crate::rpc::reply::Unaccepted;
use crate::state::holder::Host;
use crate::state::refusal::Refusal;
use crate::state::service::ServiceState;
use crate::xdr::Decoder;

/// Who asks.
#[derive(Clone, Copy)]
struct Asking<'a> {
    caller: &'a Caller,
    host: &'a Host,
    local: IpAddr,
}

/// Why a request has no other answer.
enum Refused {
    Stat(Stat),
    InTheWay(Box<Refusal>),
}

impl Refused {
    fn stat(&self) -> Stat {
        match self {
            Self::Stat(stat) => *stat,
            Self::InTheWay(_) => Stat::Denied,
        }
    }
}

impl<D: BlockDevice + 'static> Service<D> {
    /// Answers a call of the lock manager. Errors: there will be no answers any more.
    pub(super) async fn nlm(&self, origin: Origin, call: &Call, arguments: &mut Decoder) -> Result<Reply, Gone> {
        let caller = match self.admitted(origin, call, (nlm::VERSION, nlm::VERSION)) {
            Ok(caller) => caller,
            Err(reply) => return Ok(reply),
        };
        let Arguments { cookie, request } = match understood(call, Arguments::decode(call.procedure, arguments)) {
            Ok(arguments) => arguments,
            Err(reply) => return Ok(reply),
        };
        let outcome = match request.host().map(|name| Host::new(name, origin.address)) {
            None => Outcome::Nothing,
            Some(None) => return Ok(refusal(call, Unaccepted::GarbageArguments)),
            Some(Some(host)) => {
                let asking = Asking { caller: &caller, host: &host, local: origin.local };
                self.nlm_request(asking, &request).await?
            }
        };
        Ok(success(call, |out| outcome.encode(&cookie, out)))
    }

    async fn nlm_request(&self, asking: Asking<'_>, request: &Request) -> Result<Outcome, Gone> {
        self.settled(asking.host).await;
        let stat = |done: Result<Stat, Refused>| done.unwrap_or_else(|refused| refused.stat());
        Ok(match request {
            Request::Null => Outcome::Nothing,
            Request::Test(asked) => {
                Outcome::Tested(match self.nlm_change(asking, |context| locking::test(context, asked)).await? {
                    Ok(None) => Ok(()),
                    Ok(Some(denied)) => Err(Tested::Denied(denied)),
                    Err(refused) => Err(Tested::Stat(refused.stat())),
                })
            }
            Request::Lock { asked, waits, reclaims, state } => {
                let how = How { waits: *waits, reclaims: *reclaims, state: *state };
                Outcome::Stat(self.nlm_lock(asking, asked, how).await?)
            }
            Request::Cancel(asked) => {
                Outcome::Stat(stat(self.nlm_change(asking, |context| locking::cancel(context, asked)).await?))
            }
            Request::Unlock(lock) => {
                Outcome::Stat(stat(self.nlm_change(asking, |context| locking::unlock(context, lock)).await?))
            }
            Request::Share(share) => {
                let done = self.nlm_cleared(asking, |context| sharing::share(context, share)).await?;
                Outcome::Shared(stat(done.map(|()| Stat::Granted)))
            }
            Request::Unshare(share) => {
                Outcome::Shared(stat(self.nlm_change(asking, |context| sharing::unshare(context, share)).await?))
            }
            Request::FreeAll(_) => {
                self.drop_host(asking.host, None).await?;
                Outcome::Nothing
            }
        })
    }

    async fn nlm_lock(&self, asking: Asking<'_>, asked: &Asked, how: How) -> Result<Stat, Gone> {
        let done = match self.nlm_cleared(asking, |context| locking::lock(context, asked, how)).await? {
            Err(Refused::InTheWay(_)) if how.waits => {
                self.nlm_change(asking, |context| locking::wait(context, asked, how)).await?
            }
            other => other.map(|()| Stat::Granted),
        };
        Ok(done.unwrap_or_else(|refused| refused.stat()))
    }

    /// Runs a procedure, and again when somebody was got out of its way.
    async fn nlm_cleared<T>(
        &self,
        asking: Asking<'_>,
        mut op: impl FnMut(&mut Context<'_, '_>) -> Result<T, Halt>,
    ) -> Result<Result<T, Refused>, Gone> {
        let patience = Instant::now() + RECALL_TIME;
        for _ in 0..CLEARED_MAX {
            match self.nlm_change(asking, &mut op).await? {
                Err(Refused::InTheWay(refusal)) if self.clear(None, &refusal, patience).await? => {}
                done => return Ok(done),
            }
        }
        Ok(Err(Refused::Stat(Stat::Denied)))
    }

    /// Runs a procedure as one operation, and waits until what it changed is durable. What is refused has changed nothing.
    async fn nlm_change<T>(
        &self,
        asking: Asking<'_>,
        mut op: impl FnMut(&mut Context<'_, '_>) -> Result<T, Halt>,
    ) -> Result<Result<T, Refused>, Gone> {
        let moment = (self.world.moment)();
        let Asking { caller, host, local } = asking;
        let changed = self.change(|files, state| {
            let volume = self.facts.volume;
            let done = op(&mut Context { files, state, volume, caller, host, local, moment });
            let refused = match done {
                Ok(value) => return Ok(Ok(value)),
                Err(Halt::Stop(stop)) => return Err(stop),
                Err(Halt::Stat(stat)) => Refused::Stat(stat),
                Err(Halt::InTheWay(refusal)) => Refused::InTheWay(refusal),
            };
            state.take_back();
            Ok(Err(refused))
        });
        let (done, observed) = match changed.await {
            Ok(done) => done,
            Err(Failure::Device(error)) => return Err(Gone(Failure::Device(error))),
            Err(failure) => return Ok(Err(Refused::Stat(stat_of(&failure)))),
        };
        self.files.kept(observed).await.map_err(Gone)?;
        Ok(done)
    }

    /// Drops all that a host has, a part in each transaction; `restarted` is the state number that it says it is in now, noted with
    /// the last part. Its requests wait meanwhile: what it takes now is not what it had.
    pub(super) async fn drop_host(&self, host: &Host, restarted: Option<u32>) -> Result<bool, Gone> {
        self.dropping.borrow_mut().insert(host.clone());
        let dropped = self.drop_all_of(host, restarted).await;
        self.dropping.borrow_mut().remove(host);
        self.ended.notify_waiters();
        dropped
    }

    async fn drop_all_of(&self, host: &Host, restarted: Option<u32>) -> Result<bool, Gone> {
        let drop_part = |state: &mut ServiceState| {
            let is_left = sharing::drop_part(state, host);
            if let Some(number) = restarted.filter(|_| !is_left) {
                state.hosts.restarted(host, number);
            }
            is_left
        };
        let mut observed = Pending::default();
        loop {
            match self.change(|_, state| Ok(drop_part(state))).await {
                Ok((is_left, pending)) => {
                    observed = observed.and(pending);
                    if is_left {
                        continue;
                    }
                }
                Err(Failure::Device(error)) => return Err(Gone(Failure::Device(error))),
                // The host says so again.
                Err(_) => return Ok(false),
            }
            self.files.kept(observed).await.map_err(Gone)?;
            return Ok(true);
        }
    }

    /// Waits until what a host had is dropped, if that is under way.
    async fn settled(&self, host: &Host) {
        loop {
            let ended = self.ended.notified();
            if !self.dropping.borrow().contains(host) {
                return;
            }
            ended.await;
        }
    }
}

fn stat_of(failure: &Failure) -> Stat {
    match failure {
        Failure::NoSpace | Failure::TooLarge(_) => Stat::DeniedNoLocks,
        Failure::ReadOnly(_) => Stat::ReadOnly,
        _ => Stat::Failed,
    }
}
