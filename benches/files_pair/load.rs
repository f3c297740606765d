//! What clients do while a primary is killed: tasks that make directories, write small files and remove some of what they made,
//! each durably, and remember what was acknowledged; and whether that is there afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use proto::admin as pb;
use tokio::task::JoinSet;

use super::{Files, file_parts};

/// Operations in flight.
const TASKS: usize = 16;
/// Bytes of a file that is written.
const FILE_BYTES: usize = 64 << 10;

/// What the names of a directory have to be. A name whose last change was not answered is not in it.
#[derive(Default)]
pub(crate) struct Acknowledged {
    /// True: it is there; false: it is gone.
    names: BTreeMap<String, bool>,
    /// Operations that were answered.
    pub(crate) operations: u64,
}

/// Works below `/round` until the node does not answer any more, or for so long.
pub(crate) async fn run(files: &Files, round: &str, time: Duration) -> Result<Acknowledged> {
    let path = format!("/{round}").into_bytes();
    let request = pb::MakeDirectoryRequest { volume: files.volume.clone(), path, parents: true };
    files.client.clone().make_directory(request).await?;
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (files, round) = (files.clone(), round.to_owned());
        tasks.spawn(async move {
            let mut known = Acknowledged::default();
            // Either end is as good: the time is over, or the primary is dead.
            let _ = tokio::time::timeout(time, work(&files, &round, task, &mut known)).await;
            known
        });
    }
    let mut all = Acknowledged::default();
    while let Some(known) = tasks.join_next().await {
        let known = known?;
        all.names.extend(known.names);
        all.operations += known.operations;
    }
    Ok(all)
}

/// Two directories and a file, and one of the directories is removed: again and again, until an operation fails.
async fn work(files: &Files, round: &str, task: usize, known: &mut Acknowledged) {
    let (volume, mut client) = (&files.volume, files.client.clone());
    for number in 0.. {
        let name = match number % 4 {
            3 => format!("{task}-{}", number - 2),
            _ => format!("{task}-{number}"),
        };
        let path = format!("/{round}/{name}").into_bytes();
        known.names.remove(&name);
        let volume = volume.clone();
        let done = match number % 4 {
            2 => client.put(tokio_stream::iter(file_parts(&volume, path, FILE_BYTES))).await.map(drop),
            3 => {
                let request = pb::RemoveFileRequest { volume, path, recursive: false, directory: true };
                client.remove(request).await.map(drop)
            }
            _ => {
                let request = pb::MakeDirectoryRequest { volume, path, parents: false };
                client.make_directory(request).await.map(drop)
            }
        };
        if done.is_err() {
            return;
        }
        known.names.insert(name, number % 4 != 3);
        known.operations += 1;
    }
}

/// Fails unless what was acknowledged is in `/round`, files with all their bytes.
pub(crate) async fn check(files: &Files, round: &str, known: &Acknowledged) -> Result<()> {
    let request = pb::ListFilesRequest { volume: files.volume.clone(), path: format!("/{round}").into_bytes() };
    let mut parts = files.client.clone().list(request).await?.into_inner();
    let mut there = BTreeMap::new();
    while let Some(part) = parts.message().await? {
        there.extend(part.entries.into_iter().map(|entry| {
            let whole = entry.kind() != pb::FileKind::Regular || entry.size_bytes == FILE_BYTES as u64;
            (String::from_utf8_lossy(&entry.name).into_owned(), whole)
        }));
    }
    let wrong = known.names.iter().find(|(name, is_there)| there.get(*name).copied() != is_there.then_some(true));
    match wrong {
        Some((name, true)) => bail!("/{round}/{name} was acknowledged, and is not there as a whole"),
        Some((name, false)) => bail!("/{round}/{name} was removed, and is there"),
        None => Ok(()),
    }
}
