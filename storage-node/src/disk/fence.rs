//! The fence file: for each volume the highest (epoch, configuration version) this node has promised. Blocking.
//!
//! Rewritten whole for every raise: a temporary file, made durable and renamed over the old one, whose directory is then
//! made durable. A damaged file is refused: reading it as "no fence" would let a former primary write again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use proto::{ConfigVersion, Epoch, VolumeId};

use super::StoreError;
use super::backing::{io_at, read_small, refused, sync_directory};
use crate::fault::point;

/// Volumes a fence file holds.
pub const FENCES_MAX: usize = 65_536;

const MAGIC: [u8; 16] = *b"TANDEM-FENCE\r\n\x1a\0";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 32;

type Fences = BTreeMap<VolumeId, (Epoch, ConfigVersion)>;

/// The node's fence file: per volume a durable (epoch, version) that only grows.
#[derive(Debug)]
pub struct FenceFile {
    path: PathBuf,
    fences: Fences,
    /// A write failed: what the disk holds is not known, and must not be guessed by another write.
    broken: bool,
}

impl FenceFile {
    /// Opens or creates it; a damaged file is refused.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let bytes = read_small(path, (HEADER_BYTES + FENCES_MAX * ENTRY_BYTES) as u64).map_err(io_at(path))?;
        let Some(bytes) = bytes else {
            let file = Self { path: path.to_owned(), fences: Fences::new(), broken: false };
            file.replace(&file.fences)?;
            return Ok(file);
        };
        let fences = decode(&bytes).map_err(|what| {
            refused(
                path,
                format!(
                    "the fence file cannot be used: {what}; do not delete it while this box may have been primary of a \
                     volume: remove the box from the cluster and add it again, so that its copies are rebuilt"
                ),
            )
        })?;
        Ok(Self { path: path.to_owned(), fences, broken: false })
    }

    /// The fence of a volume, zeros if none.
    pub fn get(&self, volume: VolumeId) -> (Epoch, ConfigVersion) {
        self.fences.get(&volume).copied().unwrap_or_default()
    }

    /// Raises it durably (blocking; group several with one call).
    ///
    /// Epoch and version grow each by itself; a lower value leaves the higher one. After an error nothing of the call
    /// counts, and every later raise fails: the node has to be started again and read what the disk holds.
    pub fn raise(&mut self, fences: &[(VolumeId, Epoch, ConfigVersion)]) -> Result<(), StoreError> {
        if self.broken {
            return Err(refused(&self.path, "an earlier write of the fence file failed; start the node again"));
        }
        let mut raised = self.fences.clone();
        for (volume, epoch, version) in fences {
            let fence = raised.entry(*volume).or_default();
            *fence = (fence.0.max(*epoch), fence.1.max(*version));
        }
        if raised == self.fences {
            return Ok(());
        }
        if raised.len() > FENCES_MAX {
            return Err(refused(&self.path, format!("the fence file holds at most {FENCES_MAX} volumes")));
        }
        if let Err(error) = self.replace(&raised) {
            self.broken = true;
            return Err(error);
        }
        self.fences = raised;
        Ok(())
    }

    fn replace(&self, fences: &Fences) -> Result<(), StoreError> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let temporary = self.path.with_file_name(name);
        point("fence.write.before");
        let mut file = File::create(&temporary).map_err(io_at(&temporary))?;
        file.write_all(&encode(fences)).and_then(|()| file.sync_all()).map_err(io_at(&temporary))?;
        point("fence.rename.before");
        fs::rename(&temporary, &self.path).map_err(io_at(&self.path))?;
        point("fence.rename.after");
        let directory = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_directory(directory)?;
        point("fence.directory-sync.after");
        Ok(())
    }
}

/// Layout: `docs/disk-format.md`, "Fence file".
fn encode(fences: &Fences) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + fences.len() * ENTRY_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&(fences.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for (volume, (epoch, version)) in fences {
        out.extend_from_slice(&volume.0.to_le_bytes());
        out.extend_from_slice(&epoch.0.to_le_bytes());
        out.extend_from_slice(&version.0.to_le_bytes());
    }
    let crc = crc32fast::hash(&out);
    out[16..20].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(bytes: &[u8]) -> Result<Fences, String> {
    let (header, entries) = bytes.split_at_checked(HEADER_BYTES).ok_or("it is shorter than its header")?;
    if header[..16] != MAGIC {
        return Err("it does not begin as a fence file does".into());
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..16]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[20..]);
    if hasher.finalize() != word(16) {
        return Err("its checksum is wrong".into());
    }
    if word(20) != FORMAT_VERSION {
        return Err(format!("it has format version {}, this program reads {FORMAT_VERSION}", word(20)));
    }
    let count = word(24) as usize;
    if count > FENCES_MAX || entries.len() != count * ENTRY_BYTES {
        return Err("its length does not fit its number of entries".into());
    }
    let mut fences = Fences::new();
    for entry in entries.chunks_exact(ENTRY_BYTES) {
        let mut volume = [0; 16];
        volume.copy_from_slice(&entry[..16]);
        let half = |at: usize| {
            let mut out = [0; 8];
            out.copy_from_slice(&entry[at..at + 8]);
            u64::from_le_bytes(out)
        };
        let fence = (Epoch(half(16)), ConfigVersion(half(24)));
        if fences.insert(VolumeId(u128::from_le_bytes(volume)), fence).is_some() {
            return Err("it names a volume twice".into());
        }
    }
    Ok(fences)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId(7);

    #[test]
    fn fences_survive_and_only_grow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        let mut file = FenceFile::open(&path).unwrap();
        assert_eq!(file.get(V), (Epoch(0), ConfigVersion(0)));
        file.raise(&[(V, Epoch(3), ConfigVersion(10)), (VolumeId(8), Epoch(1), ConfigVersion(1))]).unwrap();
        file.raise(&[(V, Epoch(2), ConfigVersion(12))]).unwrap();
        file.raise(&[(V, Epoch(1), ConfigVersion(1))]).unwrap();
        for file in [file, FenceFile::open(&path).unwrap()] {
            assert_eq!(file.get(V), (Epoch(3), ConfigVersion(12)));
            assert_eq!(file.get(VolumeId(8)), (Epoch(1), ConfigVersion(1)));
        }
    }

    #[test]
    fn any_damage_is_refused_and_nothing_panics() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        FenceFile::open(&path).unwrap().raise(&[(V, Epoch(3), ConfigVersion(10))]).unwrap();
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            let error = FenceFile::open(&path).unwrap_err();
            assert!(matches!(&error, StoreError::Refused { .. }), "length {length}");
            assert!(error.to_string().contains("fence file cannot be used"));
        }
        fs::write(&path, [&good[..], &good[..]].concat()).unwrap();
        assert!(FenceFile::open(&path).is_err());
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_fences() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        FenceFile::open(&path).unwrap().raise(&[(V, Epoch(3), ConfigVersion(10))]).unwrap();
        fs::write(dir.path().join("fence.new"), b"half").unwrap();
        let mut file = FenceFile::open(&path).unwrap();
        assert_eq!(file.get(V), (Epoch(3), ConfigVersion(10)));
        file.raise(&[(V, Epoch(4), ConfigVersion(11))]).unwrap();
        assert_eq!(FenceFile::open(&path).unwrap().get(V), (Epoch(4), ConfigVersion(11)));
    }

    #[test]
    fn after_a_failed_write_no_raise_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        let mut file = FenceFile::open(&path).unwrap();
        // A directory where the temporary file belongs makes the write fail.
        fs::create_dir(dir.path().join("fence.new")).unwrap();
        assert!(file.raise(&[(V, Epoch(1), ConfigVersion(1))]).is_err());
        assert_eq!(file.get(V), (Epoch(0), ConfigVersion(0)));
        fs::remove_dir(dir.path().join("fence.new")).unwrap();
        assert!(file.raise(&[(V, Epoch(1), ConfigVersion(1))]).is_err());
        assert_eq!(FenceFile::open(&path).unwrap().get(V), (Epoch(0), ConfigVersion(0)));
    }

    #[test]
    fn a_full_fence_file_refuses_another_volume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence");
        let mut file = FenceFile::open(&path).unwrap();
        let all: Vec<_> = (0..FENCES_MAX as u128).map(|v| (VolumeId(v), Epoch(1), ConfigVersion(1))).collect();
        file.raise(&all).unwrap();
        let more = [(VolumeId(u128::MAX), Epoch(1), ConfigVersion(1))];
        assert!(file.raise(&more).unwrap_err().to_string().contains("at most"));
        file.raise(&[(V, Epoch(2), ConfigVersion(1))]).unwrap();
        assert_eq!(FenceFile::open(&path).unwrap().get(V), (Epoch(2), ConfigVersion(1)));
    }
}
