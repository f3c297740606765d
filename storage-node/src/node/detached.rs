//! The list of copies that this node must not use until an operator attaches them: failed ones, and detached ones.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use proto::{DiskId, VolumeId};
use serde::{Deserialize, Serialize};

use super::data_dir::{DataDirError, read_small, replace_durably, to_json};

/// Why a copy is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The copy.
    pub disk_id: DiskId,
    /// An error caused it: the copy may lack writes that it acknowledged.
    pub failed: bool,
    /// The error, or who asked.
    pub why: String,
    /// A failed copy that an operator has attached: it is used again, as a resync target, and keeps its mark until it
    /// is whole.
    pub attached: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    volume: String,
    disk_id: String,
    failed: bool,
    why: String,
    attached: bool,
}

/// The list, on disk and in memory.
#[derive(Debug)]
pub struct DetachedDisks {
    path: PathBuf,
    marks: Mutex<BTreeMap<VolumeId, Mark>>,
}

impl DetachedDisks {
    /// Reads the list; a missing file is an empty list, a damaged one is an error.
    pub fn open(path: PathBuf) -> Result<Self, DataDirError> {
        let mut marks = BTreeMap::new();
        if let Some(bytes) = read_small(&path)? {
            let damaged = |why: String| DataDirError::Damaged { path: path.clone(), why };
            let entries: Vec<Entry> = serde_json::from_slice(&bytes)
                .map_err(|why| damaged(format!("it is no list of detached disks: {why}")))?;
            for Entry { volume, disk_id, failed, why, attached } in entries {
                let id = |text: &str| u128::from_str_radix(text, 16).map_err(|_| damaged(format!("`{text}` is no id")));
                let mark = Mark { disk_id: DiskId(id(&disk_id)?), failed, why, attached };
                marks.insert(VolumeId(id(&volume)?), mark);
            }
        }
        Ok(Self { path, marks: Mutex::new(marks) })
    }

    /// The mark of that copy.
    pub fn get(&self, volume: VolumeId, disk_id: DiskId) -> Option<Mark> {
        self.lock().get(&volume).filter(|mark| mark.disk_id == disk_id).cloned()
    }

    /// Adds a mark, durably. A failed copy stays failed.
    pub fn add(&self, volume: VolumeId, mark: Mark) -> Result<(), DataDirError> {
        let mut marks = self.lock();
        let had_failed = marks.get(&volume).is_some_and(|held| held.disk_id == mark.disk_id && held.failed);
        let failed = mark.failed || had_failed;
        marks.insert(volume, Mark { failed, ..mark });
        self.write(&marks)
    }

    /// An operator has attached the copy: a failed one stays marked until it is whole, another is forgotten.
    pub fn attached(&self, volume: VolumeId) -> Result<(), DataDirError> {
        let mut marks = self.lock();
        match marks.get_mut(&volume) {
            Some(mark) if mark.failed => mark.attached = true,
            Some(_) => drop(marks.remove(&volume)),
            None => return Ok(()),
        }
        self.write(&marks)
    }

    /// Forgets the mark of a volume, durably.
    pub fn remove(&self, volume: VolumeId) -> Result<(), DataDirError> {
        let mut marks = self.lock();
        match marks.remove(&volume) {
            Some(_) => self.write(&marks),
            None => Ok(()),
        }
    }

    fn write(&self, marks: &BTreeMap<VolumeId, Mark>) -> Result<(), DataDirError> {
        let entry = |(volume, mark): (&VolumeId, &Mark)| Entry {
            volume: volume.to_string(),
            disk_id: mark.disk_id.to_string(),
            failed: mark.failed,
            why: mark.why.clone(),
            attached: mark.attached,
        };
        replace_durably(&self.path, &to_json(&marks.iter().map(entry).collect::<Vec<_>>()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<VolumeId, Mark>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_survive_and_a_failed_copy_is_not_forgiven_by_a_later_detach() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("detached.json");
        let (volume, disk_id) = (VolumeId(1), DiskId(2));
        let mark = |failed| Mark { disk_id, failed, why: "x".into(), attached: false };
        let list = DetachedDisks::open(path.clone()).expect("empty");
        list.add(volume, mark(true)).expect("written");
        list.add(volume, mark(false)).expect("written");
        let list = DetachedDisks::open(path.clone()).expect("readable");
        assert!(list.get(volume, disk_id).expect("marked").failed);
        assert_eq!(list.get(volume, DiskId(3)), None);
        list.attached(volume).expect("written");
        assert!(DetachedDisks::open(path.clone()).expect("readable").get(volume, disk_id).expect("kept").attached);
        list.remove(volume).expect("written");
        assert_eq!(DetachedDisks::open(path).expect("readable").get(volume, disk_id), None);
    }
}
