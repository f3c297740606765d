//! What the operations of one compound work on: the files as its transaction sees them, and the handles that one operation
//! leaves to the next.

use std::cell::OnceCell;

use bytes::Bytes;
use filesystem::engine::{Handle, Statistics};
use filesystem::layout::file_kind::FileKind;
use filesystem::layout::inode::Inode;
use filesystem::layout::timestamp::Timestamp;
use filesystem::{InodeNumber, Refusal, Stop};

use super::attributes::encode::Location;
use super::attributes::facts::{FileFacts, NOTHING_STORED, ServiceFacts};
use super::file_handle::{FileHandle, HANDLE_BYTES};
use super::owner::Owners;
use super::stateid;
use super::status::Status;
use crate::access::{Caller, Wanted, is_permitted};
use crate::ids::{ClientId, FileId, Moment, SessionId, Stateid};
use crate::state;
use crate::state::delegation::Touch;
use crate::state::service::ServiceState;
use crate::state::stateids::Io;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Why an operation has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// This is the answer, and the compound ends with it.
    Status(Status),
    /// Somebody else has what is asked for: a share, a lock, a delegation. Whoever runs the compound may do something about it.
    InTheWay(Box<state::refusal::Refusal>),
    /// The filesystem has something to say to whoever runs the transaction: a block is missing, or there is no space.
    Stop(Stop),
}

/// Another volume of the cluster: what is told to those who look for it here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherVolume {
    /// Its number.
    pub volume: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// Where it is served.
    pub location: Location,
}

/// Volumes of other services, asked for when somebody looks at the directory above them.
pub struct Others<'a> {
    ask: &'a dyn Fn() -> Vec<OtherVolume>,
    found: OnceCell<Vec<OtherVolume>>,
}

impl<'a> Others<'a> {
    /// Nobody has looked yet.
    pub fn new(ask: &'a dyn Fn() -> Vec<OtherVolume>) -> Self {
        Self { ask, found: OnceCell::new() }
    }

    /// All of them; the same as long as this lives.
    pub fn get(&self) -> &[OtherVolume] {
        self.found.get_or_init(self.ask)
    }
}

/// What is the same for all operations of a compound.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The service.
    pub service: &'a ServiceFacts,
    /// Volumes of other services.
    pub others: &'a Others<'a>,
    /// Names of owners.
    pub owners: &'a dyn Owners,
    /// How full the filesystem is.
    pub statistics: &'a Statistics,
    /// Who asks.
    pub caller: &'a Caller,
    /// Minor version of the protocol.
    pub minor: u32,
    /// By which session.
    pub session: SessionId,
    /// Whose session it is.
    pub client: ClientId,
    /// The time for files.
    pub now: Timestamp,
    /// The time for leases.
    pub moment: Moment,
    /// The most bytes that the reply may have.
    pub reply_bytes_max: usize,
    /// The most bytes of results that a record can keep.
    pub recorded_bytes_max: usize,
}

/// Handles and stateids that stay from one operation to the next (RFC 8881 §16.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The current file.
    pub current: Option<FileHandle>,
    /// The current stateid.
    pub stateid: Option<Stateid>,
    /// The saved file and its stateid.
    pub saved: Option<(FileHandle, Option<Stateid>)>,
}

/// What a compound did so far that matters to whoever runs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// It changed tree, state or stable data: its result is to be recorded with that.
    pub changing: bool,
    /// It wrote data that need not be durable yet.
    pub unstable: bool,
    /// The data of this file has to be on the device before the compound goes on.
    pub sync: Option<FileId>,
    /// The last operation has not done all of its work: it is to be run again, in another transaction.
    pub again: bool,
}

/// What a handle stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The directory above the volumes.
    Root,
    /// A file.
    File(FileId, Box<Inode>),
}

/// The files and the position, for one operation after another.
pub struct Context<'c, 'h> {
    /// The files.
    pub files: &'c mut Handle<'h>,
    /// What the service knows of its clients.
    pub state: &'c mut ServiceState,
    /// What stays the same.
    pub request: Request<'c>,
    /// What changes.
    pub at: Position,
    /// What was done.
    pub effects: Effects,
}

impl From<Status> for Halt {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Refused(refusal) => Self::Status(status_of(refusal)),
            Stop::TooLarge(_) => Self::Status(Status::FileTooBig),
            other => Self::Stop(other),
        }
    }
}

impl From<state::refusal::Refusal> for Halt {
    fn from(refusal: state::refusal::Refusal) -> Self {
        match refusal {
            state::refusal::Refusal::Status(status) => Self::Status(status),
            other => Self::InTheWay(Box::new(other)),
        }
    }
}

/// What the protocol says to a refusal of the filesystem.
pub fn status_of(refusal: Refusal) -> Status {
    match refusal {
        Refusal::NotFound => Status::NoEntry,
        Refusal::Exists => Status::Exists,
        Refusal::NotDirectory => Status::NotDirectory,
        Refusal::IsDirectory => Status::IsDirectory,
        Refusal::NotEmpty => Status::NotEmpty,
        Refusal::TooManyLinks => Status::TooManyLinks,
        Refusal::BadName | Refusal::IntoItself | Refusal::BadAttributeName | Refusal::BadAcl => Status::Invalid,
        Refusal::Stale => Status::Stale,
        Refusal::WrongKind => Status::WrongType,
        Refusal::NoAttribute => Status::NoXattr,
        Refusal::NoRoomForAttribute => Status::NoSpace,
        Refusal::AttributeTooBig => Status::XattrTooBig,
        Refusal::NotSupported => Status::NotSupported,
        // There may be room once others have closed what they have open.
        Refusal::StateRingFull => Status::Delay,
        Refusal::Reserved => Status::Access,
    }
}

impl Context<'_, '_> {
    /// The current handle. Errors: [`Status::NoFileHandle`].
    pub fn handle(&self) -> Result<FileHandle, Halt> {
        self.at.current.ok_or(Status::NoFileHandle.into())
    }

    /// Goes to another file, with no stateid.
    pub fn go_to(&mut self, handle: FileHandle) {
        self.at.current = Some(handle);
        self.at.stateid = None;
    }

    /// What the current handle stands for. Errors: [`Status::NoFileHandle`], [`Status::Stale`], [`Status::Moved`].
    pub fn target(&mut self) -> Result<Target, Halt> {
        let handle = self.handle()?;
        self.target_of(handle)
    }

    /// What a handle stands for. Errors: [`Status::Stale`], [`Status::Moved`].
    pub fn target_of(&mut self, handle: FileHandle) -> Result<Target, Halt> {
        match handle {
            FileHandle::Root => Ok(Target::Root),
            FileHandle::Referral(_) => Err(Status::Moved.into()),
            FileHandle::File(volume, file) if volume == self.request.service.volume => {
                Ok(Target::File(file, Box::new(self.inode(file)?)))
            }
            FileHandle::File(..) => Err(Status::Stale.into()),
        }
    }

    /// A file's inode, with all that was written. Errors: [`Status::Stale`].
    pub fn inode(&mut self, file: FileId) -> Result<Inode, Halt> {
        if self.files.is_hidden(file.inode) {
            return Err(Status::Stale.into());
        }
        let inode = self.files.stat(file.inode)?;
        match inode.generation == file.generation || file.inode == filesystem::units::ROOT_INODE {
            true => Ok(inode),
            false => Err(Status::Stale.into()),
        }
    }

    /// The current file. Errors: those of [`Self::target`]; the directory above the volumes is none: `of_root` is what is said.
    pub fn file(&mut self, of_root: Status) -> Result<(FileId, Inode), Halt> {
        match self.target()? {
            Target::File(file, inode) => Ok((file, *inode)),
            Target::Root => Err(of_root.into()),
        }
    }

    /// The current file, a regular one. Errors: [`Status::IsDirectory`], [`Status::Symlink`], [`Status::WrongType`].
    pub fn regular_file(&mut self) -> Result<(FileId, Inode), Halt> {
        let (file, inode) = self.file(Status::IsDirectory)?;
        match inode.mode.kind() {
            Some(FileKind::Regular) => Ok((file, inode)),
            Some(FileKind::Directory) => Err(Status::IsDirectory.into()),
            Some(FileKind::Symlink) => Err(Status::Symlink.into()),
            _ => Err(Status::WrongType.into()),
        }
    }

    /// The current file, a directory whose names are to be changed by this caller. Errors: [`Status::NotDirectory`],
    /// [`Status::ReadOnly`], [`Status::Access`].
    pub fn directory_to_change(&mut self) -> Result<(FileId, Inode), Halt> {
        let handle = self.handle()?;
        self.directory_to_change_of(handle)
    }

    /// The same of any handle.
    pub fn directory_to_change_of(&mut self, handle: FileHandle) -> Result<(FileId, Inode), Halt> {
        let Target::File(file, inode) = self.target_of(handle)? else { return Err(Status::ReadOnly.into()) };
        expect_directory(&inode)?;
        self.expect_writable()?;
        for wanted in [Wanted::Write, Wanted::Execute] {
            self.expect_permitted(file, &inode, wanted)?;
        }
        Ok((file, *inode))
    }

    /// The export lets this client write. Errors: [`Status::ReadOnly`].
    pub fn expect_writable(&self) -> Result<(), Halt> {
        match self.request.caller.read_only {
            true => Err(Status::ReadOnly.into()),
            false => Ok(()),
        }
    }

    /// Errors: [`Status::Access`].
    pub fn expect_permitted(&mut self, file: FileId, inode: &Inode, wanted: Wanted) -> Result<(), Halt> {
        match is_permitted(self.files, self.request.caller, (file.inode, inode), wanted)? {
            true => Ok(()),
            false => Err(Status::Access.into()),
        }
    }

    /// The state behind a stateid, or the file's permissions where there is none, let the caller read or write the file's data.
    /// The owner of a file may always, as every Unix lets a process that has it open. Errors: those of the stateid,
    /// [`Status::OpenMode`], [`Status::Locked`], [`Status::Access`]; what others have delegated.
    pub fn expect_access(&mut self, file: FileId, inode: &Inode, stateid: Stateid, wanted: Wanted) -> Result<(), Halt> {
        let current = self.at.stateid;
        self.expect_access_by(file, inode, (stateid, current), wanted)
    }

    /// The same for the saved file.
    pub fn expect_access_to_saved(
        &mut self,
        file: FileId,
        inode: &Inode,
        stateid: Stateid,
        wanted: Wanted,
    ) -> Result<(), Halt> {
        let saved = self.at.saved.and_then(|(_, stateid)| stateid);
        self.expect_access_by(file, inode, (stateid, saved), wanted)
    }

    fn expect_access_by(
        &mut self,
        file: FileId,
        inode: &Inode,
        (stateid, current): (Stateid, Option<Stateid>),
        wanted: Wanted,
    ) -> Result<(), Halt> {
        let stateid = if stateid == Stateid::CURRENT { current.ok_or(Status::BadStateid)? } else { stateid };
        let io = if wanted == Wanted::Write { Io::Write } else { Io::Read };
        self.state.files.check_io(Some(self.request.client), file, &stateid, io)?;
        if !stateid.is_special() || self.request.caller.owns(inode) {
            return Ok(());
        }
        self.expect_permitted(file, inode, wanted)
    }

    /// The stateid that is meant. Errors: [`Status::BadStateid`] when the current one is, and there is none.
    pub fn stateid(&self, stateid: Stateid) -> Result<Stateid, Halt> {
        match stateid == Stateid::CURRENT {
            true => self.at.stateid.ok_or(Status::BadStateid.into()),
            false => Ok(stateid),
        }
    }

    /// Nobody else relies on the file as it is. Errors: delegations, which are to be recalled.
    pub fn expect_undelegated(&self, file: FileId) -> Result<(), Halt> {
        let conflicts = self.state.files.conflicts_of(file, Some(self.request.client), Touch::Change);
        match conflicts.is_empty() {
            true => Ok(()),
            false => Err(state::refusal::Refusal::Delegated(conflicts).into()),
        }
    }

    /// What a name in a directory of the volume stands for. What the server keeps for itself is not there. Errors:
    /// [`Status::NoEntry`].
    pub fn find(&mut self, directory: FileId, name: &[u8]) -> Result<(FileId, Inode), Halt> {
        if filesystem::engine::is_hidden_name(directory.inode, name) {
            return Err(Status::NoEntry.into());
        }
        let inode = self.files.lookup(directory.inode, name)?;
        self.identify(inode)
    }

    /// The file of an inode that a directory names.
    pub fn identify(&mut self, number: InodeNumber) -> Result<(FileId, Inode), Halt> {
        let inode = self.files.stat(number)?;
        Ok((FileId { inode: number, generation: inode.generation }, inode))
    }

    /// The handle of a file of the volume.
    pub fn handle_of(&self, file: FileId) -> FileHandle {
        FileHandle::File(self.request.service.volume, file)
    }

    /// The change attribute of a directory as it is now.
    pub fn change_of(&mut self, directory: FileId) -> Result<u64, Halt> {
        Ok(filesystem::engine::change_attribute(&self.files.stat(directory.inode)?))
    }

    /// What there is to be told of the current file, how full its filesystem is, and the other volume if it is one.
    pub fn facts(&mut self) -> Result<(FileFacts, Statistics, Option<&OtherVolume>), Halt> {
        let service = self.request.service;
        match self.handle()? {
            FileHandle::Referral(volume) => {
                let other = self.request.others.get().iter().find(|other| other.volume == volume);
                Ok((service.referral(volume), NOTHING_STORED, Some(other.ok_or(Status::Stale)?)))
            }
            _ => match self.target()? {
                Target::Root => Ok((service.root(), NOTHING_STORED, None)),
                Target::File(file, inode) => Ok((service.file(file, &inode), *self.request.statistics, None)),
            },
        }
    }
}

/// Errors: [`Status::NotDirectory`], or [`Status::Symlink`] for a link, which the client is to follow.
pub fn expect_directory(inode: &Inode) -> Result<(), Halt> {
    match inode.mode.kind() {
        Some(FileKind::Directory) => Ok(()),
        Some(FileKind::Symlink) => Err(Status::Symlink.into()),
        _ => Err(Status::NotDirectory.into()),
    }
}

impl Position {
    /// As a record keeps it.
    pub fn to_bytes(self) -> Bytes {
        let mut out = Encoder::new();
        let put_handle = |out: &mut Encoder, handle: FileHandle| out.fixed(&handle.to_bytes());
        out.option(self.current, put_handle);
        out.option(self.stateid, stateid::encode);
        out.option(self.saved, |out, (handle, stateid)| {
            put_handle(out, handle);
            out.option(stateid, stateid::encode);
        });
        out.to_bytes()
    }

    /// From a record.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, XdrError> {
        let mut from = Decoder::new(bytes);
        let take_handle = |from: &mut Decoder| {
            let bytes: [u8; HANDLE_BYTES] = from.fixed()?;
            FileHandle::from_bytes(&bytes).ok_or(XdrError::BadValue { of: "a handle in a record", value: 0 })
        };
        let position = Self {
            current: from.option(take_handle)?,
            stateid: from.option(stateid::decode)?,
            saved: from.option(|from| Ok((take_handle(from)?, from.option(stateid::decode)?)))?,
        };
        from.finish()?;
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back_from_records() {
        let file = FileHandle::File(3, FileId { inode: InodeNumber(12), generation: 5 });
        let stateid = Stateid { seqid: 1, other: [7; 12] };
        for position in [
            Position::default(),
            Position { current: Some(file), stateid: Some(stateid), saved: None },
            Position { current: Some(FileHandle::Root), stateid: None, saved: Some((file, Some(stateid))) },
            Position { current: None, stateid: None, saved: Some((FileHandle::Referral(2), None)) },
        ] {
            let bytes = position.to_bytes();
            assert_eq!(Position::from_bytes(bytes.clone()), Ok(position));
            assert!(Position::from_bytes(bytes.slice(..bytes.len() - 4)).is_err());
        }
    }
}
