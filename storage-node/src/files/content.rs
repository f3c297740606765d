//! The content of regular files, in and out: a file is read as the parts that hold data, and written anew in a directory that
//! nobody sees before it takes its place, so that a broken transfer leaves the old one, and a node that dies only something
//! that the next one finds.

use block_device::BlockDevice;
use bytes::Bytes;
use filesystem::directory::Cookie;
use filesystem::engine::{Filesystem, Handle, NewFile, Place, Rename, Seek, is_hidden_name};
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::timestamp::Timestamp;
use filesystem::units::ROOT_INODE;
use filesystem::{InodeNumber, Refusal, Stop};
use tokio::sync::mpsc;

use super::error::{FilesError, shown};
use super::now;
use super::path::{self, Follow, LINKS_MAX, PathProblem, Walked};
use super::shell::{durable, fresh, on_path};

/// Bytes in one part.
pub const PART_BYTES: u64 = 1 << 20;
/// Parts that may wait between the engine and its client.
pub const PARTS_QUEUED_MAX: usize = 4;
/// Where a file is while it is written: a directory at the root, hidden like all that is the node's own.
const UNFINISHED_DIRECTORY: &[u8] = b".tandem-put";
/// Begins its name there; 16 digits follow.
const UNFINISHED: &str = ".tandem-put-";
/// Unfinished files that are removed at one opening; more wait for the next.
const UNFINISHED_REMOVED_MAX: usize = 4096;
/// Entries of that directory that are read in one operation.
const BATCH: usize = 256;

/// Part of a file that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Of the whole file, when the reading began.
    pub size: u64,
    /// The lower twelve bits of its mode.
    pub permissions: u16,
    /// Where the data belongs.
    pub offset: u64,
    /// Empty only in the first part.
    pub data: Bytes,
}

/// What a client sends of a file that is to be written, after its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewPart {
    /// Data at an offset; what lies between two of them becomes a hole.
    Data {
        /// Its first byte.
        offset: u64,
        /// Not empty.
        data: Bytes,
    },
    /// That was all: the file has so many bytes.
    End {
        /// Its size.
        size: u64,
    },
}

/// A file that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewContent {
    /// Where.
    pub path: Vec<u8>,
    /// Its name, if that is a directory.
    pub name: Vec<u8>,
    /// Of a new file; one that is replaced keeps its own.
    pub permissions: u16,
}

/// A file that is in use while this exists, so that its removal does not take it away.
struct Open<'a, D> {
    engine: &'a Filesystem<D>,
    file: InodeNumber,
}

impl<'a, D> Open<'a, D> {
    fn new(engine: &'a Filesystem<D>, file: InodeNumber) -> Self {
        engine.hold(file);
        Self { engine, file }
    }
}

impl<D> Drop for Open<'_, D> {
    fn drop(&mut self) {
        self.engine.let_go(self.file);
    }
}

/// Reads a regular file. First comes a part without data, then all that is no hole, in order. It ends early when nobody takes
/// the parts any more. A file that others change meanwhile is read as it is at each part.
pub async fn get<D: BlockDevice>(
    engine: &Filesystem<D>,
    path: &[u8],
    parts: &mpsc::Sender<Part>,
) -> Result<(), FilesError> {
    let found = on_path(engine, path, |handle| match path::walk(handle, path, Follow::Always)? {
        Ok(file) => Ok(Ok((file, regular(handle, file)?))),
        Err(problem) => Ok(Err(problem)),
    });
    let ((file, (size, permissions)), _) = found.await?;
    let _open = Open::new(engine, file);
    let at = |why| FilesError::at(path, why);
    if parts.send(Part { size, permissions, offset: 0, data: Bytes::new() }).await.is_err() {
        return Ok(());
    }
    let mut from = 0;
    while let Some(offset) = engine.seek(file, from, Seek::Data).await.map_err(at)? {
        let hole = engine.seek(file, offset, Seek::Hole).await.map_err(at)?;
        let length = hole.map_or(PART_BYTES, |hole| (hole - offset).min(PART_BYTES));
        let data = engine.read(file, offset, usize::try_from(length).unwrap_or(usize::MAX)).await.map_err(at)?.value;
        if data.is_empty() {
            break;
        }
        from = offset + data.len() as u64;
        if parts.send(Part { size, permissions, offset, data }).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Size and permissions of a regular file.
fn regular(handle: &mut Handle<'_>, file: InodeNumber) -> Result<(u64, u16), Stop> {
    let fields = handle.stat(file)?;
    match fields.mode.kind() {
        Some(FileKind::Regular) => Ok((fields.size, fields.mode.permissions())),
        Some(FileKind::Directory) => Err(Refusal::IsDirectory.into()),
        _ => Err(Refusal::WrongKind.into()),
    }
}

/// Where a file shall be, and what of a file that is there already passes to it.
#[derive(Clone, Debug)]
struct Destination {
    directory: InodeNumber,
    name: Vec<u8>,
    /// For people.
    path: Vec<u8>,
    mode: Mode,
    user: u32,
    group: u32,
}

/// Writes a regular file and gives its path. It is there, durably and as a whole, when this returns; before that, and if it
/// fails, what was there before is.
pub async fn put<D: BlockDevice>(
    engine: &Filesystem<D>,
    new: &NewContent,
    parts: &mut mpsc::Receiver<NewPart>,
) -> Result<Vec<u8>, FilesError> {
    let (to, _) = on_path(engine, &new.path, |handle| destination(handle, new)).await?;
    let name = format!("{UNFINISHED}{:016x}", rand::random::<u64>());
    let at = |why| FilesError::at(&to.path, why);
    let when = now();
    let begun = engine.run(|handle| begin(handle, &to, name.as_bytes(), when)).await;
    let (directory, file) = begun.map_err(at)?.value;
    let place = Place { directory, name: name.as_bytes() };
    let _open = Open::new(engine, file);
    let moved = async {
        fill(engine, &to.path, file, parts).await?;
        let when = now();
        let into = Place { directory: to.directory, name: &to.name };
        let moving = engine.run(|handle| handle.rename(place, into, Rename::Replace, when)).await;
        durable(engine, &to.path, moving.map_err(at)?.transaction).await
    };
    if let Err(why) = moved.await {
        // It may have its name already, and then this finds nothing.
        let when = now();
        let _ = engine.run(|handle| handle.remove(place, false, when)).await;
        return Err(why);
    }
    Ok(to.path)
}

/// Makes an empty file where it is going to be, so that it has what files there inherit, and moves it away until it is whole.
/// Gives the directory that has it meanwhile, and the file.
fn begin(
    handle: &mut Handle<'_>,
    to: &Destination,
    name: &[u8],
    when: Timestamp,
) -> Result<(InodeNumber, InodeNumber), Stop> {
    let directory = match handle.lookup(ROOT_INODE, UNFINISHED_DIRECTORY) {
        Err(Stop::Refused(Refusal::NotFound)) => {
            let place = Place { directory: ROOT_INODE, name: UNFINISHED_DIRECTORY };
            handle.create(place, &fresh(FileKind::Directory, 0o700), when)?.inode
        }
        found => found?,
    };
    let new = NewFile { mode: to.mode, user: to.user, group: to.group, device: None, target: &[] };
    let made = Place { directory: to.directory, name };
    let file = handle.create(made, &new, when)?.inode;
    handle.rename(made, Place { directory, name }, Rename::NoReplace, when)?;
    Ok((directory, file))
}

/// Takes away the files that were being written when a node ended, at most [`UNFINISHED_REMOVED_MAX`]; to be called before any
/// is written. Tells how many. Errors: the engine's.
pub(super) async fn remove_unfinished<D: BlockDevice>(engine: &Filesystem<D>) -> Result<usize, FilesError> {
    let at = |why| FilesError::at(UNFINISHED_DIRECTORY, why);
    let found = engine.run(|handle| match handle.lookup(ROOT_INODE, UNFINISHED_DIRECTORY) {
        Ok(found) if handle.live(found)?.mode.kind() == Some(FileKind::Directory) => Ok(Some(found)),
        Ok(_) | Err(Stop::Refused(Refusal::NotFound)) => Ok(None),
        Err(why) => Err(why),
    });
    let Some(directory) = found.await.map_err(at)?.value else { return Ok(0) };
    let (mut removed, mut after, when) = (0, Cookie::DOT_DOT, now());
    while removed < UNFINISHED_REMOVED_MAX {
        let batch = engine.run(|handle| handle.read_directory(directory, after, BATCH)).await.map_err(at)?.value;
        let Some(last) = batch.entries.last() else { break };
        after = last.cookie;
        for entry in batch.entries.iter().filter(|entry| entry.name.starts_with(UNFINISHED.as_bytes())) {
            let place = Place { directory, name: &entry.name };
            engine.run(|handle| handle.remove(place, false, when)).await.map_err(at)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Writes the parts, and makes them durable.
async fn fill<D: BlockDevice>(
    engine: &Filesystem<D>,
    path: &[u8],
    file: InodeNumber,
    parts: &mut mpsc::Receiver<NewPart>,
) -> Result<(), FilesError> {
    let at = |why| FilesError::at(path, why);
    loop {
        match parts.recv().await {
            Some(NewPart::Data { offset, data }) => {
                let length = data.len();
                let written = engine.write(file, offset, data, now()).await.map_err(at)?.value;
                if written < length {
                    return Err(at(filesystem::engine::Failure::NoSpace));
                }
            }
            Some(NewPart::End { size }) => {
                engine.truncate(file, size, now()).await.map_err(at)?;
                return engine.fsync(file).await.map_err(at);
            }
            None => {
                let why = "the transfer broke off; what was there before is still there";
                return Err(FilesError::BadPath { path: shown(path), why });
            }
        }
    }
}

/// Where a new file goes: into a directory under its own name, or where a symbolic link leads, or to the name that the path
/// ends with.
fn destination(handle: &mut Handle<'_>, new: &NewContent) -> Result<Walked<Destination>, Stop> {
    let mut path = new.path.clone();
    for _ in 0..=LINKS_MAX {
        match path::walk(handle, &path, Follow::Always) {
            Ok(Ok(found)) if handle.live(found)?.mode.kind() == Some(FileKind::Directory) => {
                if !path.is_empty() && path.last() != Some(&b'/') {
                    path.push(b'/');
                }
                path.extend_from_slice(&new.name);
                return at_name(handle, path, new.permissions);
            }
            Ok(Ok(_)) | Err(Stop::Refused(Refusal::NotFound)) => {}
            Ok(Err(problem)) => return Ok(Err(problem)),
            Err(why) => return Err(why),
        }
        let Some((before, _)) = path::split(&path) else { return Ok(Err(PathProblem::NoName)) };
        match path::walk(handle, &path, Follow::NotLast) {
            Ok(Ok(found)) if handle.live(found)?.mode.kind() == Some(FileKind::Symlink) => {
                let target = handle.read_link(found)?;
                path = if target.first() == Some(&b'/') { target } else { [before, &target].concat() };
            }
            Ok(Err(problem)) => return Ok(Err(problem)),
            _ => return at_name(handle, path, new.permissions),
        }
    }
    Ok(Err(PathProblem::TooManyLinks))
}

/// The place that a path names, and what is there now.
fn at_name(handle: &mut Handle<'_>, path: Vec<u8>, permissions: u16) -> Result<Walked<Destination>, Stop> {
    if path.last() == Some(&b'/') {
        return Err(Refusal::NotFound.into());
    }
    let (directory, name) = match path::parent(handle, &path)? {
        Ok(place) => place,
        Err(problem) => return Ok(Err(problem)),
    };
    if is_hidden_name(directory, &name) {
        return Ok(Err(PathProblem::NoName));
    }
    let mode = Mode::new(FileKind::Regular, permissions & 0o7777);
    let fresh = Destination { directory, name: name.clone(), path, mode, user: 0, group: 0 };
    match handle.lookup(directory, &name) {
        Ok(old) => {
            let old_fields = handle.live(old)?;
            regular(handle, old)?;
            let (mode, user, group) = (old_fields.mode, old_fields.user, old_fields.group);
            Ok(Ok(Destination { mode, user, group, ..fresh }))
        }
        Err(Stop::Refused(Refusal::NotFound)) => Ok(Ok(fresh)),
        Err(why) => Err(why),
    }
}

#[cfg(test)]
#[path = "content_tests.rs"]
mod tests;
