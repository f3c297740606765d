//! The node's own directory: its lock, who it is, and small files that are replaced as a whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use proto::{ClusterId, NodeId, RequestId};
use rand::Rng;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::fault::point;

/// Largest small file read, in bytes; a larger one is not ours.
const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// Why the directory cannot be used. The text names the path and what to do.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// Another worker runs on it.
    #[error("{path} is in use by another tandem process (pid {pid}); two nodes cannot share a data directory")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the lock file says.
        pid: String,
    },
    /// A file holds what this software did not write.
    #[error("{path}: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The directory, locked for this process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Who this node is; kept from `init` or `join` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// True until this node's Raft log is made: only then may a missing one be made.
    pub founding: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    format: u32,
    cluster: String,
    node: u64,
    founding: bool,
}

const IDENTITY_FORMAT: u32 = 1;
const OUT_OF_SERVICE_NAME: &str = "out-of-service";
const RECOVERY_NAME: &str = "recover-quorum";
/// Former lives of a node that may be kept in its directory.
const SET_ASIDE_MAX: u32 = 100;

impl DataDir {
    /// Makes the directory if it is missing, and locks it. Waits a few seconds for a former run that is still ending.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        Self::open_while(path, crate::lock_wait::patience())
    }

    /// `look_again` is asked each time the lock is found held.
    fn open_while(path: &Path, mut look_again: impl FnMut() -> bool) -> Result<Self, DataDirError> {
        std::fs::create_dir_all(path).map_err(|source| DataDirError::Io { path: path.to_path_buf(), source })?;
        let lock_path = path.join("lock");
        let at_lock = |source| DataDirError::Io { path: lock_path.clone(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path).map_err(at_lock)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) => {
                    let pid = std::process::id().to_string();
                    lock.set_len(0)
                        .and_then(|()| lock.rewind())
                        .and_then(|()| lock.write_all(pid.as_bytes()))
                        .map_err(at_lock)?;
                    return Ok(Self { path: path.to_path_buf(), _lock: lock });
                }
                Err((held, Errno::EWOULDBLOCK)) if look_again() => file = held,
                Err((mut held, Errno::EWOULDBLOCK)) => {
                    let mut pid = String::new();
                    let _ = Read::by_ref(&mut held).take(32).read_to_string(&mut pid);
                    let pid = if pid.is_empty() { "unknown".into() } else { pid };
                    return Err(DataDirError::InUse { path: path.to_path_buf(), pid });
                }
                Err((_, errno)) => return Err(at_lock(errno.into())),
            }
        }
    }

    /// Where the Raft log lives.
    pub fn raft(&self) -> PathBuf {
        self.path.join("raft")
    }

    /// Where the stores of volumes live.
    pub fn stores(&self) -> PathBuf {
        self.path.join("stores")
    }

    /// The fence file.
    pub fn fences(&self) -> PathBuf {
        self.path.join("fences")
    }

    /// The list of detached disks.
    pub fn detached(&self) -> PathBuf {
        self.path.join("detached.json")
    }

    /// Why this node takes no part any more, as kept by [`DataDir::set_out_of_service`].
    pub fn out_of_service(&self) -> Result<Option<String>, DataDirError> {
        let bytes = read_small(&self.path.join(OUT_OF_SERVICE_NAME))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Keeps, durably, why this node takes no part any more; only [`DataDir::set_aside`] ends that.
    pub fn set_out_of_service(&self, why: &str) -> Result<(), DataDirError> {
        replace_durably(&self.path.join(OUT_OF_SERVICE_NAME), why.as_bytes())
    }

    /// The id that a recovery of the quorum gives this node's cluster; drawn once and kept until
    /// [`Self::end_recovery`], so that an interrupted one goes on under the same.
    pub fn recovery(&self) -> Result<Option<ClusterId>, DataDirError> {
        let path = self.path.join(RECOVERY_NAME);
        let Some(bytes) = read_small(&path)? else { return Ok(None) };
        match u128::from_str_radix(String::from_utf8_lossy(&bytes).trim(), 16) {
            Ok(id) => Ok(Some(ClusterId(id))),
            Err(_) => Err(DataDirError::Damaged { path, why: "it is no hexadecimal id".into() }),
        }
    }

    /// Draws and keeps that id.
    pub fn begin_recovery(&self) -> Result<ClusterId, DataDirError> {
        let cluster = ClusterId(rand::rng().random_range(1..=u128::MAX));
        replace_durably(&self.path.join(RECOVERY_NAME), cluster.to_string().as_bytes())?;
        Ok(cluster)
    }

    /// The recovery is done.
    pub fn end_recovery(&self) -> Result<(), DataDirError> {
        let path = self.path.join(RECOVERY_NAME);
        std::fs::remove_file(&path).map_err(|source| DataDirError::Io { path, source })
    }

    /// Moves everything that makes this node a member into a new directory below, stores included, and gives its path.
    /// The node is in no cluster then. Interrupted, it may be repeated: a part of a member never runs.
    pub fn set_aside(&self) -> Result<PathBuf, DataDirError> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| DataDirError::Io { path, source }
        };
        let aside = (1..=SET_ASIDE_MAX)
            .map(|number| self.path.join(format!("set-aside-{number}")))
            .find(|path| !path.exists())
            .ok_or_else(|| DataDirError::Damaged {
                path: self.path.clone(),
                why: format!("{SET_ASIDE_MAX} former lives of this node are set aside here; delete some of them"),
            })?;
        std::fs::create_dir(&aside).map_err(at(&aside))?;
        for name in [
            "identity.json",
            "raft",
            "join-request",
            "fences",
            "detached.json",
            "stores",
            RECOVERY_NAME,
            OUT_OF_SERVICE_NAME,
        ] {
            let from = self.path.join(name);
            match std::fs::rename(&from, aside.join(name)) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(at(&from)(why)),
                _ => {}
            }
        }
        for directory in [&aside, &self.path] {
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))?;
        }
        Ok(aside)
    }

    /// Who this node is; `None` before `init` or `join`.
    pub fn identity(&self) -> Result<Option<NodeIdentity>, DataDirError> {
        let path = self.identity_path();
        let Some(bytes) = read_small(&path)? else { return Ok(None) };
        let damaged = |why: String| DataDirError::Damaged { path: path.clone(), why };
        let file: IdentityFile =
            serde_json::from_slice(&bytes).map_err(|why| damaged(format!("it is not a node's identity: {why}")))?;
        if file.format != IDENTITY_FORMAT {
            return Err(damaged(format!(
                "its format is {}; this version of tandem knows {IDENTITY_FORMAT}",
                file.format
            )));
        }
        let cluster =
            u128::from_str_radix(&file.cluster, 16).map_err(|_| damaged("its cluster is no hexadecimal id".into()))?;
        if cluster == 0 || file.node == 0 {
            return Err(damaged("its cluster or node is 0".into()));
        }
        Ok(Some(NodeIdentity { cluster: ClusterId(cluster), node: NodeId(file.node), founding: file.founding }))
    }

    /// Keeps who this node is, durably.
    pub fn set_identity(&self, identity: NodeIdentity) -> Result<(), DataDirError> {
        let NodeIdentity { cluster, node, founding } = identity;
        let file = IdentityFile { format: IDENTITY_FORMAT, cluster: cluster.to_string(), node: node.0, founding };
        replace_durably(&self.identity_path(), &to_json(&file))
    }

    /// The request under which this node joins: drawn once, so that a repeated join is recognised.
    pub fn join_request(&self) -> Result<RequestId, DataDirError> {
        let path = self.path.join("join-request");
        if let Some(bytes) = read_small(&path)? {
            let text = String::from_utf8_lossy(&bytes);
            return match u128::from_str_radix(text.trim(), 16) {
                Ok(id) => Ok(RequestId(id)),
                Err(_) => Err(DataDirError::Damaged { path, why: "it is no hexadecimal id".into() }),
            };
        }
        let request = RequestId(rand::rng().random());
        replace_durably(&path, request.to_string().as_bytes())?;
        Ok(request)
    }

    fn identity_path(&self) -> PathBuf {
        self.path.join("identity.json")
    }
}

/// The whole content of a small file; `None` when there is none.
pub(crate) fn read_small(path: &Path) -> Result<Option<Vec<u8>>, DataDirError> {
    let at_path = |source| DataDirError::Io { path: path.to_path_buf(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(at_path(why)),
    };
    let mut bytes = Vec::new();
    file.take(SMALL_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(at_path)?;
    if bytes.len() as u64 > SMALL_FILE_BYTES_MAX {
        return Err(DataDirError::Damaged { path: path.to_path_buf(), why: "it is too large to be ours".into() });
    }
    Ok(Some(bytes))
}

/// Replaces a file as a whole: after a crash it holds the old or the new content.
pub(crate) fn replace_durably(path: &Path, content: &[u8]) -> Result<(), DataDirError> {
    let at = |at: &Path| {
        let at = at.to_path_buf();
        move |source| DataDirError::Io { path: at, source }
    };
    let temporary = path.with_extension("new");
    point("small-file.write.before");
    let mut file = File::create(&temporary).map_err(at(&temporary))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(at(&temporary))?;
    point("small-file.rename.before");
    std::fs::rename(&temporary, path).map_err(at(path))?;
    point("small-file.rename.after");
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))?;
    point("small-file.directory-sync.after");
    Ok(())
}

pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("plain data has a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_told_who_holds_the_directory() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let first = DataDir::open(directory.path()).expect("free");
        let text = DataDir::open_while(directory.path(), || false).expect_err("locked").to_string();
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        DataDir::open(directory.path()).expect("free again");
    }

    #[test]
    fn a_former_run_that_is_still_ending_is_waited_for() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut former = Some(DataDir::open(directory.path()).expect("free"));
        let mut looks = 0;
        let patience = || {
            looks += 1;
            if looks == 3 {
                former = None;
            }
            looks < 10
        };
        DataDir::open_while(directory.path(), patience).expect("free in the end");
        assert_eq!(looks, 3, "as soon as it is free");
    }

    #[test]
    fn identity_survives_and_a_damaged_one_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let data = DataDir::open(directory.path()).expect("free");
        assert_eq!(data.identity().expect("readable"), None);
        let identity = NodeIdentity { cluster: ClusterId(7 << 100), node: NodeId(3), founding: true };
        data.set_identity(identity).expect("writable");
        assert_eq!(data.identity().expect("readable"), Some(identity));
        std::fs::write(data.identity_path(), b"{\"format\":1,\"cluster\":\"zz\",\"node\":1,\"founding\":false}")
            .expect("written");
        assert!(data.identity().is_err());
        std::fs::write(data.identity_path(), b"{\"format\":9,\"cluster\":\"1\",\"node\":1,\"founding\":false}")
            .expect("written");
        assert!(data.identity().expect_err("newer").to_string().contains("format is 9"));
    }

    #[test]
    fn what_is_set_aside_leaves_a_node_without_a_cluster_and_loses_nothing() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let data = DataDir::open(directory.path()).expect("free");
        let identity = NodeIdentity { cluster: ClusterId(7), node: NodeId(3), founding: false };
        for life in 1..=2 {
            let request = data.join_request().expect("drawn");
            data.set_identity(identity).expect("writable");
            data.set_out_of_service("removed").expect("writable");
            std::fs::create_dir_all(data.stores()).expect("made");
            std::fs::write(data.stores().join("a"), [life]).expect("written");
            assert_eq!(data.out_of_service().expect("readable").as_deref(), Some("removed"));
            let aside = data.set_aside().expect("moved");
            assert_eq!(data.identity().expect("readable"), None);
            assert_eq!(data.out_of_service().expect("readable"), None);
            assert_ne!(data.join_request().expect("drawn anew"), request);
            assert_eq!(std::fs::read(aside.join("stores/a")).expect("kept"), [life]);
        }
    }

    #[test]
    fn the_join_request_is_drawn_once() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let data = DataDir::open(directory.path()).expect("free");
        let first = data.join_request().expect("drawn");
        assert_eq!(data.join_request().expect("kept"), first);
    }
}
