//! Calls to hosts of the lock manager: each by a task of its own, one at a time for a host, so that one that does not answer keeps
//! only itself waiting. What is called, and what an answer means, is `service/hosts`.

mod calling;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use block_device::BlockDevice;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::error;

use super::Ended;
use crate::port_mapper::PORT;
use crate::service::{Gone, Service};

/// Hosts that are called together.
const CALLS_MAX: usize = 128;
/// Before a host is called about the same thing again: its answer could not be recorded, as where there is no room.
const AGAIN_PAUSE: Duration = Duration::from_secs(5);

/// Calls hosts until `stop` turns true or the service has nothing to say any more. Runs on the service's thread
/// (`tokio::task::LocalSet`).
pub async fn call_hosts<D: BlockDevice + 'static>(service: Rc<Service<D>>, mut stop: watch::Receiver<bool>) -> Ended {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => Ended::Stopped,
        gone = call_all(&service) => match gone {
            Err(Gone(_)) => Ended::Gone,
        },
    }
}

async fn call_all<D: BlockDevice + 'static>(service: &Service<D>) -> Result<Infallible, Gone> {
    let mut calls = JoinSet::new();
    let mut busy = BTreeSet::new();
    // What hosts were called about last, of some of them.
    let mut last = BTreeMap::new();
    loop {
        service.give_to_waiters().await?;
        while busy.len() < CALLS_MAX
            && let Some(call) = service.next_call(&busy)
        {
            busy.insert(call.host.clone());
            let is_again = last.remove(&call.host) == Some(call.subject);
            calls.spawn_local(async move {
                if is_again {
                    tokio::time::sleep(AGAIN_PAUSE).await;
                }
                let result = calling::call(&call, PORT).await;
                (call, result)
            });
        }
        tokio::select! {
            () = service.hosts_due() => {}
            Some(ended) = calls.join_next(), if !calls.is_empty() => match ended {
                Ok((call, result)) => {
                    service.call_ended(&call, result).await?;
                    busy.remove(&call.host);
                    if last.len() >= CALLS_MAX {
                        last.pop_first();
                    }
                    last.insert(call.host, call.subject);
                }
                Err(why) => error!("a call to a host has panicked: {why}"),
            }
        }
    }
}
