//! What the procedures work on, and why one of them ends early.

use filesystem::engine::Handle;
use filesystem::layout::file_kind::FileKind;
use filesystem::layout::inode::Inode;
use filesystem::{Refusal as FilesRefusal, Stop};

use super::Stat;
use crate::access::{Caller, Wanted as Access, is_permitted};
use crate::address::IpAddr;
use crate::ids::{FileId, Moment};
use crate::state::holder::{Holder, Host};
use crate::state::hosts::Monitor;
use crate::state::ranges::LockKind;
use crate::state::refusal::Refusal;
use crate::state::service::ServiceState;
use crate::v4::file_handle::FileHandle;

/// The files, the state, and who asks.
pub struct Context<'c, 'h> {
    /// The files.
    pub files: &'c mut Handle<'h>,
    /// What the service knows.
    pub state: &'c mut ServiceState,
    /// The volume.
    pub volume: u64,
    /// Who asks, as the export sees it.
    pub caller: &'c Caller,
    /// The host.
    pub host: &'c Host,
    /// Which of our addresses it uses.
    pub local: IpAddr,
    /// The time.
    pub moment: Moment,
}

/// Why a procedure ends early.
#[derive(Clone, Debug)]
pub enum Halt {
    /// It is answered so.
    Stat(Stat),
    /// Somebody has what is wanted.
    InTheWay(Box<Refusal>),
    /// The filesystem gives the operation up.
    Stop(Stop),
}

impl From<Stat> for Halt {
    fn from(stat: Stat) -> Self {
        Self::Stat(stat)
    }
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Refused(FilesRefusal::NotFound) => Self::Stat(Stat::StaleHandle),
            Stop::Refused(_) => Self::Stat(Stat::Failed),
            other => Self::Stop(other),
        }
    }
}

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full(_) => Self::Stat(Stat::DeniedNoLocks),
            Refusal::Status(_) => Self::Stat(Stat::Denied),
            Refusal::Share { .. } | Refusal::Lock(_) | Refusal::Delegated(_) => Self::InTheWay(Box::new(refusal)),
        }
    }
}

impl Context<'_, '_> {
    /// The regular file of a handle. Errors: [`Stat::StaleHandle`], [`Stat::Failed`] of anything else.
    pub fn file(&mut self, handle: &[u8]) -> Result<(FileId, Inode), Halt> {
        let file = match FileHandle::from_bytes(handle) {
            Some(FileHandle::File(volume, file)) if volume == self.volume => file,
            _ => return Err(Stat::StaleHandle.into()),
        };
        if self.files.is_hidden(file.inode) {
            return Err(Stat::StaleHandle.into());
        }
        let inode = self.files.stat(file.inode)?;
        if inode.generation != file.generation {
            return Err(Stat::StaleHandle.into());
        }
        match inode.mode.kind() {
            Some(FileKind::Regular) => Ok((file, inode)),
            _ => Err(Stat::Failed.into()),
        }
    }

    /// The file of a handle, if the caller may lock it: its owner, and whoever may read or write it. `flock` takes exclusive locks
    /// of files that are open for reading, so no more can be asked; but whom the export lets only read is to keep nobody from
    /// writing. Errors: [`Stat::Failed`], [`Stat::ReadOnly`].
    pub fn file_to_lock(&mut self, handle: &[u8], kind: LockKind) -> Result<FileId, Halt> {
        let (file, inode) = self.file(handle)?;
        if self.caller.read_only && kind == LockKind::Exclusive {
            return Err(Stat::ReadOnly.into());
        }
        if self.caller.owns(&inode) {
            return Ok(file);
        }
        for wanted in [Access::Read, Access::Write] {
            if is_permitted(self.files, self.caller, (file.inode, &inode), wanted)? {
                return Ok(file);
            }
        }
        Err(Stat::Failed.into())
    }

    /// An owner of the host. Errors: [`Stat::Failed`], which decoding has seen to.
    pub fn holder(&self, svid: u32, owner: &[u8]) -> Result<Holder, Halt> {
        Holder::nlm(self.host, svid, owner).ok_or(Stat::Failed.into())
    }

    /// While clients of before reclaim what they had, nobody gets anything else, and later nobody reclaims. Errors:
    /// [`Stat::DeniedGracePeriod`].
    pub fn expect_its_time(&self, reclaims: bool) -> Result<(), Halt> {
        match self.state.clients.in_grace() == reclaims {
            true => Ok(()),
            false => Err(Stat::DeniedGracePeriod.into()),
        }
    }

    /// From now on the host hears of it if its locks are lost. Errors: [`Stat::DeniedNoLocks`] if too many are watched.
    pub fn watch(&mut self, state: u32) -> Result<(), Halt> {
        let epoch = self.state.clients.counters.service().epoch;
        let ServiceState { files, hosts, .. } = &mut *self.state;
        let has_something = |host: &Host| files.has_something(host);
        match hosts.watch(self.host, Monitor { local: self.local, state, epoch }, has_something) {
            true => Ok(()),
            false => Err(Stat::DeniedNoLocks.into()),
        }
    }
}
