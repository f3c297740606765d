//! What `tandem fs` does with names and attributes: each function takes paths, works on an open engine, and returns when what
//! it changed is durable. No permissions are looked at: whoever reaches the admin API is root here.

use block_device::BlockDevice;
use filesystem::directory::{Cookie, ReadEntry};
use filesystem::engine::{Filesystem, Handle, NewFile, Place, is_hidden_name};
use filesystem::layout::file_kind::{DeviceNumber, FileKind, Mode};
use filesystem::layout::inode::Inode;
use filesystem::layout::timestamp::Timestamp;
use filesystem::{InodeNumber, Refusal, Stop, TransactionId};

use super::error::{FilesError, shown};
use super::now;
use super::path::{self, Follow, Walked};

/// Entries of a directory that are read in one operation.
const BATCH: usize = 256;

/// A file, as `stat` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Its inode.
    pub inode: InodeNumber,
    /// What it is.
    pub kind: FileKind,
    /// Its fields.
    pub fields: Inode,
    /// Of a symbolic link: where it leads.
    pub target: Vec<u8>,
    /// Of a device.
    pub device: Option<DeviceNumber>,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// What it names.
    pub file: FileInfo,
}

/// What a removal took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names of files, links and everything else that is no directory.
    pub files: u64,
    /// Directories.
    pub directories: u64,
}

/// Runs an operation that begins with a path; what is wrong with that is an error that names it. Gives the transaction, too.
pub(super) async fn on_path<T, D: BlockDevice>(
    engine: &Filesystem<D>,
    path: &[u8],
    mut op: impl FnMut(&mut Handle<'_>) -> Result<Walked<T>, Stop>,
) -> Result<(T, Option<TransactionId>), FilesError> {
    let done = engine.run(&mut op).await.map_err(|why| FilesError::at(path, why))?;
    match done.value {
        Ok(value) => Ok((value, done.transaction)),
        Err(problem) => Err(FilesError::BadPath { path: shown(path), why: problem.text() }),
    }
}

pub(super) async fn durable<D: BlockDevice>(
    engine: &Filesystem<D>,
    path: &[u8],
    transaction: Option<TransactionId>,
) -> Result<(), FilesError> {
    match transaction {
        Some(transaction) => engine.durable(transaction).await.map_err(|why| FilesError::at(path, why)),
        None => Ok(()),
    }
}

fn info(handle: &mut Handle<'_>, inode: InodeNumber) -> Result<FileInfo, Stop> {
    let fields = handle.stat(inode)?;
    let kind = fields.mode.kind().ok_or(Refusal::Stale)?;
    let target = if kind == FileKind::Symlink { handle.read_link(inode)? } else { Vec::new() };
    let device = match kind {
        FileKind::CharacterDevice | FileKind::BlockDevice => fields.device(),
        _ => None,
    };
    Ok(FileInfo { inode, kind, fields, target, device })
}

/// A file's attributes.
pub async fn stat<D: BlockDevice>(engine: &Filesystem<D>, path: &[u8], follow: Follow) -> Result<FileInfo, FilesError> {
    let found = on_path(engine, path, |handle| match path::walk(handle, path, follow)? {
        Ok(inode) => Ok(Ok(info(handle, inode)?)),
        Err(problem) => Ok(Err(problem)),
    });
    Ok(found.await?.0)
}

/// Part of a directory's entries, behind `after`, and where to go on; no entries: it is at its end. What is no directory is
/// its only entry, without a name.
pub async fn list<D: BlockDevice>(
    engine: &Filesystem<D>,
    path: &[u8],
    after: Cookie,
) -> Result<(Vec<Entry>, Cookie), FilesError> {
    let found = on_path(engine, path, |handle| {
        let at = match path::walk(handle, path, Follow::Always)? {
            Ok(at) => at,
            Err(problem) => return Ok(Err(problem)),
        };
        let file = info(handle, at)?;
        if file.kind != FileKind::Directory {
            let all = if after == Cookie::START { vec![Entry { name: Vec::new(), file }] } else { Vec::new() };
            return Ok(Ok((all, Cookie::DOT)));
        }
        let batch = handle.read_directory(at, after, BATCH)?;
        let next = batch.entries.last().map_or(after, |last| last.cookie);
        let mut entries = Vec::with_capacity(batch.entries.len());
        for entry in batch.entries.into_iter().filter(|entry| is_shown(at, entry)) {
            entries.push(Entry { name: entry.name, file: info(handle, entry.inode)? });
        }
        Ok(Ok((entries, next)))
    });
    Ok(found.await?.0)
}

/// Neither `.` nor `..`, nor the node's own.
fn is_shown(directory: InodeNumber, entry: &ReadEntry) -> bool {
    entry.name != b"." && entry.name != b".." && !is_hidden_name(directory, &entry.name)
}

/// A new file of root's.
pub(super) fn fresh(kind: FileKind, permissions: u16) -> NewFile<'static> {
    NewFile { mode: Mode::new(kind, permissions), user: 0, group: 0, device: None, target: &[] }
}

/// Makes a directory; with `parents` those on the way to it, too, and none of them has to be new.
pub async fn make_directory<D: BlockDevice>(
    engine: &Filesystem<D>,
    path: &[u8],
    parents: bool,
) -> Result<(), FilesError> {
    let when = now();
    let (_, transaction) = match parents {
        true => on_path(engine, path, |handle| make_all(handle, path, when)).await?,
        false => on_path(engine, path, |handle| make_one(handle, path, when)).await?,
    };
    durable(engine, path, transaction).await
}

fn make_one(handle: &mut Handle<'_>, path: &[u8], when: Timestamp) -> Result<Walked<()>, Stop> {
    let (directory, name) = match path::parent(handle, path)? {
        Ok(place) => place,
        Err(problem) => return Ok(Err(problem)),
    };
    handle.create(Place { directory, name: &name }, &fresh(FileKind::Directory, 0o755), when)?;
    Ok(Ok(()))
}

fn make_all(handle: &mut Handle<'_>, path: &[u8], when: Timestamp) -> Result<Walked<()>, Stop> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for prefix in slashes.chain([path.len()]).filter_map(|end| path.get(..end)) {
        match path::walk(handle, prefix, Follow::Always) {
            // What is on the way, and is no directory, is refused by the step after it; the last one here.
            Ok(Ok(found)) if handle.live(found)?.mode.kind() != Some(FileKind::Directory) => {
                return Err(Refusal::NotDirectory.into());
            }
            Ok(Ok(_)) => {}
            Ok(Err(problem)) => return Ok(Err(problem)),
            Err(Stop::Refused(Refusal::NotFound)) => {
                if let Err(problem) = make_one(handle, prefix, when)? {
                    return Ok(Err(problem));
                }
            }
            Err(why) => return Err(why),
        }
    }
    Ok(Ok(()))
}

/// Takes a name away, and what it names if that was its last. A directory has to be empty, unless `recursive`: then it goes
/// with all that is in it, in many steps, and what is gone when it fails in the middle stays gone. Symbolic links are not
/// followed. What it gives back is free a little later.
pub async fn remove<D: BlockDevice>(
    engine: &Filesystem<D>,
    path: &[u8],
    recursive: bool,
    directory: bool,
) -> Result<Removed, FilesError> {
    let (place, _) = on_path(engine, path, |handle| path::parent(handle, path)).await?;
    let mut removed = Removed::default();
    let mut last = None;
    // Directories that are being emptied, the innermost last.
    let mut stack = vec![place];
    while let Some((parent, name)) = stack.pop() {
        let place = Place { directory: parent, name: &name };
        let looked = engine.run(|handle| look(handle, place)).await.map_err(|why| FilesError::at(path, why))?.value;
        let is_directory = looked.is_some();
        let inside = looked.unwrap_or_default();
        if is_directory && !recursive && !directory {
            return Err(FilesError::Refused { path: shown(path), why: Refusal::IsDirectory });
        }
        if recursive && !inside.is_empty() {
            stack.push((parent, name));
            stack.extend(inside);
            continue;
        }
        let when = now();
        let done = engine.run(|handle| handle.remove(place, is_directory, when)).await;
        let done = done.map_err(|why| FilesError::at(path, why))?;
        last = done.transaction.or(last);
        match is_directory {
            true => removed.directories += 1,
            false => removed.files += 1,
        }
    }
    durable(engine, path, last).await?;
    Ok(removed)
}

/// A directory, and a name in it.
type Name = (InodeNumber, Vec<u8>);

/// Of a directory some of the names in it; none for anything else.
fn look(handle: &mut Handle<'_>, place: Place<'_>) -> Result<Option<Vec<Name>>, Stop> {
    let number = handle.lookup(place.directory, place.name)?;
    if handle.live(number)?.mode.kind() != Some(FileKind::Directory) {
        return Ok(None);
    }
    let batch = handle.read_directory(number, Cookie::DOT_DOT, BATCH)?;
    Ok(Some(batch.entries.into_iter().map(|entry| (number, entry.name)).collect()))
}

#[cfg(test)]
#[path = "shell_tests.rs"]
pub(super) mod tests;
