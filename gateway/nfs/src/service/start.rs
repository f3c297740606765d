//! How a service begins: with the state that its records tell of, or, where that may not hold any more, with none.
//!
//! Clients of a state that is lost or in doubt are told so, and may reclaim what they had. Where the records can still be read,
//! only those may whom they name, and the time for it ends with the last of them; else everybody may, for a fixed time.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use block_device::BlockDevice;
use bytes::Bytes;
use filesystem::engine::{Failure, Filesystem, Handle};
use filesystem::state_ring::Record;
use tokio::sync::Notify;
use tracing::{error, warn};

use super::callbacks::Callbacks;
use super::connections::Connections;
use super::recording::Recorder;
use super::{Service, World};
use crate::ids::Moment;
use crate::state::foundation::{Doubt, FOUNDATION_RECORD, Foundation};
use crate::state::record::{CONNECTION, FOUNDATION, Payload};
use crate::state::service::ServiceState;
use crate::v4::attributes::facts::ServiceFacts;
use crate::v4::owner::Numbers;

/// Records that are deleted in one transaction.
const FORGOTTEN_AT_ONCE: usize = 64;

/// With what a service begins.
#[derive(Clone, Debug)]
pub struct Beginning {
    /// Those that the filesystem gave when its ring was opened; none for a service that starts for the first time.
    pub records: Vec<Record>,
    /// What the records' state depends on, as it is now.
    pub foundation: Foundation,
    /// One that the service never had, for when there is no state: seconds since 1970 will do.
    pub epoch: u32,
}

/// What is known of the clients of before.
enum Known {
    /// All.
    State(Box<ServiceState>),
    /// There were none.
    Nothing,
    /// Who they were, if anything.
    Former(Option<BTreeSet<Bytes>>),
}

impl<D: BlockDevice + 'static> Service<D> {
    /// Takes over what the records say. Then gives back what nobody has open any more, and tells how many files that were.
    /// Errors: the filesystem's.
    pub async fn start(
        files: Rc<Filesystem<D>>,
        beginning: Beginning,
        facts: ServiceFacts,
        world: World,
    ) -> Result<(Self, usize), Failure> {
        let moment = (world.moment)();
        let verifier = u64::from_be_bytes(facts.write_verifier);
        let Beginning { records, foundation, epoch } = beginning;
        let known = known(&records, foundation, moment);
        let is_forgotten = matches!(known, Known::Former(_));
        let is_noted = matches!(known, Known::State(_));
        let state = match known {
            Known::State(state) => *state,
            Known::Nothing => ServiceState::fresh(epoch, verifier, moment),
            Known::Former(former) => ServiceState::lost(&records, (epoch, verifier), former, moment),
        };
        let connections = RefCell::new(Connections::of_records(&records));
        let service = Self {
            files,
            state: RefCell::new(state),
            connections,
            facts,
            world,
            mounts: RefCell::default(),
            owners: Box::new(Numbers),
            recorder: Recorder::new(moment),
            ended: Notify::new(),
            callbacks: Callbacks::default(),
            woken: RefCell::default(),
            hosts_due: Notify::new(),
            dropping: RefCell::default(),
        };
        // Whom the service before this one had still to tell something.
        service.hosts_due.notify_one();
        if is_forgotten {
            service.forget_records(&records).await?;
        }
        if !is_noted {
            // Together with the new state: that it is in grace must not be forgotten by the next start.
            let payload = foundation.to_payload();
            let note =
                |handle: &mut Handle<'_>, _: &mut ServiceState| handle.append_record(FOUNDATION_RECORD, &payload);
            let ((), pending) = service.change(note).await?;
            service.files.kept(pending).await?;
        }
        let open: Vec<_> = service.state().files.open_files();
        for file in &open {
            service.files.hold(file.inode);
        }
        let keep = open.iter().map(|file| file.inode).collect();
        let orphans = service.files.reclaim_orphans(&keep).await?;
        Ok((service, orphans))
    }

    /// Deletes the records of a state that is lost, a few in each transaction; but not those of hosts that are to hear of it. What
    /// says on what they depended goes last: until then the next start finds them in doubt again.
    async fn forget_records(&self, records: &[Record]) -> Result<(), Failure> {
        let lost = records.iter().map(|record| record.id).filter(|id| !self.state().hosts.is_kept_in(*id));
        let (foundation, others): (Vec<_>, Vec<_>) = lost.partition(|id| *id == FOUNDATION_RECORD);
        for some in others.chunks(FORGOTTEN_AT_ONCE).chain(foundation.chunks(FORGOTTEN_AT_ONCE)) {
            let forget =
                |handle: &mut Handle<'_>| some.iter().try_for_each(|record| handle.delete_record(*record).map(drop));
            self.files.run(forget).await?;
        }
        Ok(())
    }
}

fn known(records: &[Record], foundation: Foundation, moment: Moment) -> Known {
    if records.is_empty() {
        return Known::Nothing;
    }
    let noted = records.iter().find(|record| record.id == FOUNDATION_RECORD);
    let noted = noted.map(|record| Foundation::from_payload(&record.payload)).and_then(Result::ok);
    let is_of_state = |record: &&Record| ![FOUNDATION, CONNECTION].contains(&record.id.kind);
    let of_state: Vec<_> = records.iter().filter(is_of_state).cloned().collect();
    let doubt = foundation.doubt(noted);
    // A service that came no further than its note, so it had no clients.
    if of_state.is_empty() && doubt.is_none_or(Doubt::names_are_sound) {
        return Known::Nothing;
    }
    match (ServiceState::restore(&of_state, moment), doubt) {
        (Ok(state), None) => Known::State(Box::new(state)),
        (Ok(state), Some(doubt)) => {
            warn!("what the clients of the service had is in doubt, they have to reclaim it: {doubt}");
            Known::Former(doubt.names_are_sound().then(|| state.clients.owner_names()))
        }
        (Err(why), _) => {
            error!("the state of the service's clients is lost, they have to reclaim what they had: {why}");
            Known::Former(None)
        }
    }
}

impl Doubt {
    /// True if all who were clients are among those that the records name.
    fn names_are_sound(self) -> bool {
        matches!(self, Self::Disturbed | Self::Restarted | Self::Unflushed)
    }
}
