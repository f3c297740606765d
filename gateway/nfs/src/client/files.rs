//! Whole operations on files by their paths, for the demo and for tests: what a program would ask of a mounted filesystem. It keeps
//! no cache: every call asks the server.

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use thiserror::Error;

use super::Handle;
use super::arguments::{Claim, Creation, LockRange, Locker, NewKind, Open, Stable};
use super::attributes::{Attributes, AttributesToSet, OF_A_FILE};
use super::connection::{Client, ClientError};
use super::number::{ACCESS_BOTH, ACCESS_READ, ACCESS_WRITE, DENY_NONE, WANT_NO_DELEGATION};
use super::result::{Denied, Entry, Failure, Written};
use crate::ids::Stateid;
use crate::v4::status::Status;
use crate::xdr::XdrError;

/// Names that one compound looks up: every server takes as many operations.
const LOOKUPS_AT_ONCE: usize = 6;
/// Bytes of one READ or WRITE.
const IO_BYTES: usize = 256 << 10;
/// READs or WRITEs of one file that are under way together.
const IO_AT_ONCE: usize = 8;
/// Bytes of one READDIR's result.
const ENTRIES_BYTES: u32 = 128 << 10;
/// Times that a file is written anew because its data was lost before COMMIT.
const REWRITES_MAX: u32 = 8;
/// The longest file that is read as a whole.
pub const READ_WHOLE_BYTES_MAX: u64 = 1 << 30;
/// Entries of a directory that are read as a whole.
pub const ENTRIES_MAX: usize = 1 << 20;

/// Why an operation on files failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilesError {
    /// The server, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Somebody else has the range locked.
    #[error("the range is locked by somebody else")]
    Locked(Denied),
    /// A path that names nothing that could be made or removed.
    #[error("no name at the end of the path")]
    NoName,
    /// Longer than what is read as a whole.
    #[error("a file or directory that is too long to be read as a whole")]
    TooLong,
    /// The server took no byte of what was written, or lost it again and again.
    #[error("what is written does not stay")]
    NotWritten,
}

impl FilesError {
    /// What an operation was answered, if one was.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Client(error) => error.status(),
            Self::Locked(_) => Some(Status::Denied),
            _ => None,
        }
    }
}

impl From<XdrError> for FilesError {
    fn from(error: XdrError) -> Self {
        Self::Client(error.into())
    }
}

/// The files of a server, as one owner of opens and locks sees them.
#[derive(Clone, Debug)]
pub struct Files {
    client: Client,
    owner: Bytes,
}

/// A file that is open.
#[derive(Debug)]
pub struct OpenFile {
    files: Files,
    handle: Handle,
    stateid: Stateid,
    /// Of its owner's locks, once there were some.
    lock: Option<Stateid>,
}

fn components(path: &str) -> Vec<&[u8]> {
    path.split('/').filter(|name| !name.is_empty()).map(str::as_bytes).collect()
}

/// The directory's names, and the last one. Errors: [`FilesError::NoName`].
fn parent_and_name(path: &str) -> Result<(Vec<&[u8]>, &[u8]), FilesError> {
    let mut names = components(path);
    let name = names.pop().ok_or(FilesError::NoName)?;
    Ok((names, name))
}

impl Files {
    /// Those that the client sees. Opens and locks belong to this owner.
    pub fn new(client: Client, owner: impl Into<Bytes>) -> Self {
        Self { client, owner: owner.into() }
    }

    /// The client below.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The handle of what has this path from the server's root on.
    pub async fn find(&self, path: &str) -> Result<Handle, FilesError> {
        self.walk(&components(path)).await
    }

    async fn walk(&self, names: &[&[u8]]) -> Result<Handle, FilesError> {
        let mut at: Option<Handle> = None;
        let mut rest = names;
        loop {
            let (now, later) = rest.split_at(rest.len().min(LOOKUPS_AT_ONCE));
            let mut request = match &at {
                None => self.client.request().putrootfh(),
                Some(handle) => self.client.request().putfh(handle),
            };
            for name in now {
                request = request.lookup(name);
            }
            let handle = self.client.call(request.getfh()).await?.handle()?;
            if later.is_empty() {
                return Ok(handle);
            }
            (at, rest) = (Some(handle), later);
        }
    }

    /// Makes all directories of the path that are not there yet.
    pub async fn make_directories(&self, path: &str, mode: u32) -> Result<Handle, FilesError> {
        let names = components(path);
        match self.walk(&names).await {
            Err(error) if error.status() == Some(Status::NoEntry) => {}
            found => return found,
        }
        let mut at = self.walk(&[]).await?;
        for name in names {
            at = self.make_directory_in(&at, name, mode).await?;
        }
        Ok(at)
    }

    async fn make_directory_in(&self, parent: &Handle, name: &[u8], mode: u32) -> Result<Handle, FilesError> {
        let look = || self.client.request().putfh(parent).lookup(name).getfh();
        match self.client.call(look()).await {
            Err(error) if error.status() == Some(Status::NoEntry) => {}
            found => return Ok(found?.handle()?),
        }
        let attributes = AttributesToSet::mode(mode);
        let make = self.client.request().putfh(parent).create(&NewKind::Directory, name, &attributes).getfh();
        match self.client.call(make).await {
            // Somebody else made it in between.
            Err(error) if error.status() == Some(Status::Exists) => Ok(self.client.call(look()).await?.handle()?),
            made => Ok(made?.handle()?),
        }
    }

    /// Makes one directory. Errors: `EXIST` if it is there.
    pub async fn make_directory(&self, path: &str, mode: u32) -> Result<(), FilesError> {
        self.create(path, &NewKind::Directory, &AttributesToSet::mode(mode)).await
    }

    /// Makes anything but a regular file.
    pub async fn create(&self, path: &str, kind: &NewKind, attributes: &AttributesToSet) -> Result<(), FilesError> {
        let (directory, name) = parent_and_name(path)?;
        let directory = self.walk(&directory).await?;
        self.client.call(self.client.request().putfh(&directory).create(kind, name, attributes)).await?;
        Ok(())
    }

    /// What a symbolic link points to.
    pub async fn read_link(&self, path: &str) -> Result<Bytes, FilesError> {
        let handle = self.find(path).await?;
        Ok(self.client.call(self.client.request().putfh(&handle).readlink()).await?.value()?)
    }

    /// Attributes of what has this path.
    pub async fn stat(&self, path: &str) -> Result<Attributes, FilesError> {
        let handle = self.find(path).await?;
        self.attributes(&handle).await
    }

    async fn attributes(&self, handle: &Handle) -> Result<Attributes, FilesError> {
        let request = self.client.request().putfh(handle).getattr(OF_A_FILE);
        Ok(self.client.call(request).await?.attributes()?.read()?)
    }

    /// Sets attributes of what has this path.
    pub async fn set_attributes(&self, path: &str, attributes: &AttributesToSet) -> Result<(), FilesError> {
        let handle = self.find(path).await?;
        self.client.call(self.client.request().putfh(&handle).setattr(Stateid::ANONYMOUS, attributes)).await?;
        Ok(())
    }

    /// Removes a file or an empty directory.
    pub async fn remove(&self, path: &str) -> Result<(), FilesError> {
        let (directory, name) = parent_and_name(path)?;
        let directory = self.walk(&directory).await?;
        self.client.call(self.client.request().putfh(&directory).remove(name)).await?;
        Ok(())
    }

    /// Gives a file another name; what had that name before is replaced.
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), FilesError> {
        let ((from, old), (to, new)) = (parent_and_name(from)?, parent_and_name(to)?);
        let (from, to) = (self.walk(&from).await?, self.walk(&to).await?);
        self.client.call(self.client.request().putfh(&from).savefh().putfh(&to).rename(old, new)).await?;
        Ok(())
    }

    /// Gives a file one more name.
    pub async fn link(&self, file: &str, name: &str) -> Result<(), FilesError> {
        let (directory, name) = parent_and_name(name)?;
        let (file, directory) = (self.find(file).await?, self.walk(&directory).await?);
        self.client.call(self.client.request().putfh(&file).savefh().putfh(&directory).link(name)).await?;
        Ok(())
    }

    /// All names in a directory, with attributes. Errors: [`FilesError::TooLong`] with more than [`ENTRIES_MAX`].
    pub async fn read_directory(&self, path: &str) -> Result<Vec<(Bytes, Attributes)>, FilesError> {
        let directory = self.find(path).await?;
        let (mut all, mut cookie, mut verifier) = (Vec::new(), 0, [0; 8]);
        loop {
            let request = self.client.request().putfh(&directory).readdir(cookie, verifier, ENTRIES_BYTES, OF_A_FILE);
            let part = self.client.call(request).await?.entries()?;
            verifier = part.verifier;
            let before = all.len();
            for Entry { cookie: at, name, attributes } in part.entries {
                cookie = at;
                all.push((name, attributes.read()?));
            }
            if part.at_end {
                return Ok(all);
            }
            // A server that gives nothing would be asked for ever.
            if all.len() > ENTRIES_MAX || all.len() == before {
                return Err(FilesError::TooLong);
            }
        }
    }

    /// Opens a file; `creation` says what happens if it is not there.
    pub async fn open(&self, path: &str, access: u32, creation: Creation) -> Result<OpenFile, FilesError> {
        let (directory, name) = parent_and_name(path)?;
        let directory = self.walk(&directory).await?;
        let open = Open {
            access: access | WANT_NO_DELEGATION,
            deny: DENY_NONE,
            owner: self.owner.clone(),
            creation,
            claim: Claim::Null(Bytes::copy_from_slice(name)),
        };
        let mut results = self.client.call(self.client.request().putfh(&directory).open(&open).getfh()).await?;
        let (stateid, handle) = (results.opened()?.stateid, results.handle()?);
        Ok(OpenFile { files: self.clone(), handle, stateid, lock: None })
    }

    /// Opens a file for reading and writing, and makes it if it is not there.
    pub async fn open_or_create(&self, path: &str, mode: u32) -> Result<OpenFile, FilesError> {
        self.open(path, ACCESS_BOTH, Creation::Unchecked(AttributesToSet::mode(mode))).await
    }

    /// Makes a file of these bytes, or puts them into the place of what is there. They are durable afterwards.
    pub async fn write_file(&self, path: &str, data: Bytes) -> Result<(), FilesError> {
        let attributes = AttributesToSet { size: Some(0), mode: Some(0o644), ..AttributesToSet::default() };
        let file = self.open(path, ACCESS_WRITE, Creation::Unchecked(attributes)).await?;
        let written = file.write_durably(0, data).await;
        let closed = file.close().await;
        written.and(closed)
    }

    /// All bytes of a file. Errors: [`FilesError::TooLong`] with more than [`READ_WHOLE_BYTES_MAX`].
    pub async fn read_file(&self, path: &str) -> Result<Bytes, FilesError> {
        let file = self.open(path, ACCESS_READ, Creation::No).await?;
        let read = file.read_all().await;
        file.close().await?;
        read
    }
}

impl OpenFile {
    /// Its handle.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// That of its open.
    pub fn stateid(&self) -> Stateid {
        self.stateid
    }

    /// Its attributes.
    pub async fn stat(&self) -> Result<Attributes, FilesError> {
        self.files.attributes(&self.handle).await
    }

    /// At most so many bytes, and whether they reach the end.
    pub async fn read_at(&self, offset: u64, count: u32) -> Result<(bool, Bytes), FilesError> {
        let client = &self.files.client;
        let request = client.request().putfh(&self.handle).read(self.stateid, offset, count);
        Ok(client.call(request).await?.read()?)
    }

    /// Writes some or all of the data.
    pub async fn write_at(&self, offset: u64, data: Bytes, stable: Stable) -> Result<Written, FilesError> {
        let client = &self.files.client;
        let request = client.request().putfh(&self.handle).write(self.stateid, offset, stable, data);
        Ok(client.call(request).await?.written()?)
    }

    /// Makes all durable that was written; the verifier says whether it was kept until then.
    pub async fn commit(&self) -> Result<[u8; 8], FilesError> {
        let client = &self.files.client;
        Ok(client.call(client.request().putfh(&self.handle).commit(0, 0)).await?.committed()?)
    }

    /// Gives the file a length.
    pub async fn set_size(&self, size: u64) -> Result<(), FilesError> {
        let client = &self.files.client;
        let set = client.request().putfh(&self.handle).setattr(self.stateid, &AttributesToSet::size(size));
        client.call(set).await?;
        Ok(())
    }

    /// Writes data, several WRITEs at once, and makes it durable; what was lost before that is written again.
    pub async fn write_durably(&self, offset: u64, data: Bytes) -> Result<(), FilesError> {
        for _ in 0..REWRITES_MAX {
            let pieces = (0..data.len()).step_by(IO_BYTES).map(|from| {
                let piece = data.slice(from..data.len().min(from + IO_BYTES));
                self.write_whole(offset + from as u64, piece)
            });
            let verifiers: Vec<Option<[u8; 8]>> =
                stream::iter(pieces).buffer_unordered(IO_AT_ONCE).try_collect().await?;
            if verifiers.iter().all(Option::is_none) {
                return Ok(());
            }
            let committed = self.commit().await?;
            if verifiers.into_iter().flatten().all(|verifier| verifier == committed) {
                return Ok(());
            }
        }
        Err(FilesError::NotWritten)
    }

    /// Gives the verifier if some of it is not durable yet. Errors: it changed in between, and not all of it may be there; that is
    /// told as a verifier that no COMMIT has.
    async fn write_whole(&self, mut offset: u64, mut data: Bytes) -> Result<Option<[u8; 8]>, FilesError> {
        let mut verifier = None;
        while !data.is_empty() {
            let written = self.write_at(offset, data.clone(), Stable::Unstable).await?;
            let count = usize::try_from(written.count).unwrap_or(usize::MAX);
            if count == 0 || count > data.len() {
                return Err(FilesError::NotWritten);
            }
            if written.stable == Stable::Unstable {
                if verifier.is_some_and(|verifier| verifier != written.verifier) {
                    // The first part is lost, so all of it is written again.
                    return Ok(Some(written.verifier.map(|byte| !byte)));
                }
                verifier = Some(written.verifier);
            }
            offset += written.count;
            data = data.split_off(count);
        }
        Ok(verifier)
    }

    /// All its bytes, several READs at once. Errors: [`FilesError::TooLong`].
    pub async fn read_all(&self) -> Result<Bytes, FilesError> {
        let size = self.stat().await?.size.unwrap_or(0);
        if size > READ_WHOLE_BYTES_MAX {
            return Err(FilesError::TooLong);
        }
        let pieces = (0..size).step_by(IO_BYTES).map(|from| self.read_whole(from, size.min(from + IO_BYTES as u64)));
        let pieces: Vec<Bytes> = stream::iter(pieces).buffered(IO_AT_ONCE).try_collect().await?;
        Ok(match <[Bytes; 1]>::try_from(pieces) {
            Ok([only]) => only,
            Err(pieces) => pieces.concat().into(),
        })
    }

    /// The bytes up to `end`, or to the end of the file if that comes earlier.
    async fn read_whole(&self, from: u64, end: u64) -> Result<Bytes, FilesError> {
        let mut read = BytesMut::new();
        loop {
            let at = from + read.len() as u64;
            let wanted = end.saturating_sub(at).min(IO_BYTES as u64) as u32;
            let (at_end, data) = self.read_at(at, wanted).await?;
            let is_last = at_end || data.is_empty() || at + data.len() as u64 >= end;
            if is_last && read.is_empty() {
                return Ok(data);
            }
            read.extend_from_slice(&data);
            if is_last {
                return Ok(read.freeze());
            }
        }
    }

    /// Locks a range. Errors: [`FilesError::Locked`].
    pub async fn lock(&mut self, range: LockRange) -> Result<(), FilesError> {
        let locker = match self.lock {
            Some(lock) => Locker::Known(lock),
            None => Locker::New(self.stateid, self.files.owner.clone()),
        };
        let client = &self.files.client;
        let request = client.request().putfh(&self.handle).lock(range, false, false, &locker);
        match client.call(request).await {
            Ok(mut results) => {
                self.lock = Some(results.stateid()?);
                Ok(())
            }
            Err(ClientError::Failed(Failure { denied: Some(denied), .. })) => Err(FilesError::Locked(denied)),
            Err(error) => Err(error.into()),
        }
    }

    /// Unlocks a range; does nothing if nothing was ever locked.
    pub async fn unlock(&mut self, range: LockRange) -> Result<(), FilesError> {
        let Some(lock) = self.lock else { return Ok(()) };
        let client = &self.files.client;
        let request = client.request().putfh(&self.handle).locku(range, lock);
        self.lock = Some(client.call(request).await?.stateid()?);
        Ok(())
    }

    /// The lock that is in the way of this one, if there is one.
    pub async fn find_lock(&self, range: LockRange) -> Result<Option<Denied>, FilesError> {
        let client = &self.files.client;
        match client.call(client.request().putfh(&self.handle).lockt(range, &self.files.owner)).await {
            Ok(_) => Ok(None),
            Err(ClientError::Failed(failure)) if failure.denied.is_some() => Ok(failure.denied),
            Err(error) => Err(error.into()),
        }
    }

    /// Closes it. Locks that its owner still has on it are let go first.
    pub async fn close(mut self) -> Result<(), FilesError> {
        if self.lock.is_some() {
            self.unlock(LockRange { exclusive: false, offset: 0, length: u64::MAX }).await?;
        }
        let client = &self.files.client;
        client.call(client.request().putfh(&self.handle).close(self.stateid)).await?;
        Ok(())
    }
}
