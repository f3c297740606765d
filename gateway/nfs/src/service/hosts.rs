//! What the service has to say to hosts by itself: that they have a lock that they waited for, and that what they had is lost.
//! Decides what is to be called and what follows from the answers; whoever calls is in `server/hosts`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use block_device::BlockDevice;
use bytes::Bytes;
use filesystem::engine::{Failure, Pending};

use super::{Gone, Service};
use crate::nlm::granting;
use crate::nlm::results::{granted, is_taken};
use crate::state::holder::Host;
use crate::state::hosts::{Grant, GrantNumber, own_name, state_number};
use crate::state::service::ServiceState;
use crate::state::waiters::Wanted;
use crate::xdr::Decoder;
use crate::{nlm, nsm};

/// What a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A lock that was taken for the host.
    Granted(GrantNumber),
    /// All that the host had is lost, and may be reclaimed.
    Lost,
}

/// A call to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCall {
    /// What it is about.
    pub subject: Subject,
    /// Whom it goes to.
    pub host: Host,
    /// Which of our addresses the host knows.
    pub from: IpAddr,
    /// RPC program.
    pub program: u32,
    /// Its version.
    pub version: u32,
    /// Procedure.
    pub procedure: u32,
    /// Arguments.
    pub arguments: Bytes,
}

impl<D: BlockDevice + 'static> Service<D> {
    /// Waits until something may have to be said to a host.
    pub async fn hosts_due(&self) {
        self.hosts_due.notified().await;
    }

    /// Notes who can have the lock that he waited for.
    pub(super) fn note_woken(&self, wanted: Vec<Wanted>) {
        let mut woken = self.woken.borrow_mut();
        for wanted in wanted.into_iter().filter(|wanted| wanted.holder.host().is_some()) {
            // Who has asked again meanwhile is woken again.
            if !woken.contains(&wanted) {
                woken.push_back(wanted);
            }
        }
        if !woken.is_empty() {
            self.hosts_due.notify_one();
        }
    }

    /// Takes locks for those who waited for them. Errors: there will be no answers any more.
    pub async fn give_to_waiters(&self) -> Result<(), Gone> {
        let mut observed = Pending::default();
        loop {
            // Not held across the wait.
            let next = self.woken.borrow_mut().pop_front();
            let Some(wanted) = next else { break };
            let moment = (self.world.moment)();
            match self.change(|_, state| Ok(granting::take(state, &wanted, moment))).await {
                Ok((_, pending)) => observed = observed.and(pending),
                Err(Failure::Device(error)) => return Err(Gone(Failure::Device(error))),
                // No room for its record: the host asks again.
                Err(_) => {
                    self.tended(|state| {
                        state.files.cancel(&wanted);
                    })
                    .await?;
                }
            }
        }
        self.files.kept(observed).await.map_err(Gone)
    }

    /// The next call to be made, to none of those who are being called.
    pub fn next_call(&self, busy: &BTreeSet<Host>) -> Option<HostCall> {
        let state = self.state();
        let of_grant = |(number, grant): (GrantNumber, &Grant)| {
            let host = grant.wanted.holder.host().filter(|host| !busy.contains(*host))?;
            Some(HostCall {
                subject: Subject::Granted(number),
                host: host.clone(),
                from: state.hosts.monitor(host)?.local,
                program: nlm::PROGRAM,
                version: nlm::VERSION,
                procedure: nlm::GRANTED,
                arguments: granted(self.facts.volume, number.0, &grant.wanted)?.to_bytes(),
            })
        };
        let call = state.hosts.grants().find_map(of_grant);
        if call.is_some() || !state.clients.in_grace() {
            return call;
        }
        let epoch = state.clients.counters.service().epoch;
        let (host, monitor) = state.hosts.unaware(epoch).find(|(host, _)| !busy.contains(*host))?;
        Some(HostCall {
            subject: Subject::Lost,
            host: host.clone(),
            from: monitor.local,
            program: nsm::PROGRAM,
            version: nsm::VERSION,
            procedure: nsm::NOTIFY,
            arguments: nsm::notification(&own_name(monitor.local), state_number(epoch)).to_bytes(),
        })
    }

    /// A call has ended, with this result if the host gave one. Errors: there will be no answers any more.
    pub async fn call_ended(&self, call: &HostCall, result: Option<Bytes>) -> Result<(), Gone> {
        match call.subject {
            Subject::Granted(number) => {
                let is_taken = result.is_some_and(|result| is_taken(&mut Decoder::new(result)).unwrap_or(false));
                self.tended(|state| end_grant(state, number, is_taken)).await
            }
            Subject::Lost if result.is_some() => {
                self.tended(|state| {
                    let epoch = state.clients.counters.service().epoch;
                    state.hosts.told(&call.host, epoch);
                })
                .await
            }
            Subject::Lost => Ok(()),
        }
    }
}

/// Where there is no room to give a lock back as it was, the host keeps it: it has what was there before, at least.
fn end_grant(state: &mut ServiceState, number: GrantNumber, is_taken: bool) {
    if granting::end(state, number, is_taken).is_err() {
        state.take_back();
        state.hosts.settle(number);
    }
}
