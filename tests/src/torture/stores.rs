//! What lies in the stores of a rig, compared, and what the product says of its copies.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::image::Image;
use super::pattern::{BLOCK_BYTES, versions_of};
use super::rig::{POLL, Rig, VOLUME};
use crate::e2e::cluster::{ALPHA, BETA};

/// How long two copies may differ after the load has paused and the volume was flushed, and how long what is made cold by
/// itself may contradict itself for a reader of the whole file.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);
/// The longest that it may take until every extent of a paused load is cold.
const COLD_LIMIT: Duration = Duration::from_secs(60);
/// How long a scrub is repeated that was cut short by another primary.
const SCRUB_LIMIT: Duration = Duration::from_secs(90);
const STORE_SUFFIX: &str = ".tandem";

/// What `volume show` tells of one copy, counted since its store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyState {
    /// Blocks that did not match their checksum.
    pub mismatches: u64,
    /// Checksum and index pages that were damaged.
    pub pages_damaged: u64,
    /// Blocks whose checksum was unknown and was taken from the data.
    pub unverified: u64,
    /// Extents that are hot now.
    pub hot_extents: u64,
}

impl Rig {
    /// The file of a box's store.
    pub fn store_path(&self, index: usize) -> Result<PathBuf, String> {
        let directory = self.mount_point(index).join("stores");
        let at = |error: std::io::Error| format!("{}: {error}", directory.display());
        let mut largest = None;
        for entry in std::fs::read_dir(&directory).map_err(at)? {
            let entry = entry.map_err(at)?;
            let bytes = entry.metadata().map_err(at)?.len();
            if entry.path().to_string_lossy().ends_with(STORE_SUFFIX) {
                // A volume that a campaign makes and deletes is smaller.
                largest = largest.max(Some((bytes, entry.path())));
            }
        }
        largest.map(|(_, path)| path).ok_or_else(|| format!("{}: no store", directory.display()))
    }

    /// A box's store, read whole.
    pub fn image(&self, index: usize) -> Result<Image, String> {
        let image = Image::read(&self.store_path(index)?)?;
        let bytes = image.layout().data.length;
        match bytes == self.size_bytes() {
            true => Ok(image),
            false => Err(format!("the store has {bytes} bytes of data")),
        }
    }

    /// Compares the data of both stores byte by byte, and in each what is cold with its checksums.
    pub fn compare_copies(&self) -> Result<(), String> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let (alpha, beta) = (self.image(ALPHA)?, self.image(BETA)?);
            let why = match differing_blocks(alpha.data(), beta.data())[..] {
                [] => None,
                [block, ..] => Some(told(&alpha, &beta, block)),
            };
            let faults =
                || [("alpha", &alpha), ("beta", &beta)].map(|(name, image)| (name, image.faults(self.metadata_lost)));
            let why = why.or_else(|| {
                let (name, faults) = faults().into_iter().find(|(_, faults)| !faults.is_empty())?;
                Some(format!("the store of {name}: {}", faults.join("; ")))
            });
            match why {
                None => return Ok(()),
                Some(why) if Instant::now() >= deadline => return Err(why),
                Some(_) => std::thread::sleep(POLL),
            }
        }
    }

    /// What the product says of the copy on a box; nothing if it does not answer or has none open.
    pub fn copy_state(&self, index: usize) -> Option<CopyState> {
        let outcome = self.cluster.cli(index, &["volume", "show", VOLUME]);
        let json: Value = serde_json::from_str(&outcome.stdout).ok()?;
        let name = self.cluster.nodes[index].name.as_str();
        let copy = &json["replicas"].as_array()?.iter().find(|replica| replica["node_name"] == name)?["copy"];
        let count = |field: &str| copy[field].as_u64();
        Some(CopyState {
            mismatches: count("checksum_errors")?,
            pages_damaged: count("checksum_pages_damaged")?,
            unverified: count("blocks_unverified")?,
            hot_extents: count("hot_extents")?,
        })
    }

    /// Waits until the product says that no extent of a paused load is hot on either copy.
    pub fn wait_cold(&self) -> Result<(), String> {
        let deadline = Instant::now() + COLD_LIMIT;
        loop {
            let states = [ALPHA, BETA].map(|index| self.copy_state(index));
            if states.iter().all(|state| state.is_some_and(|state| state.hot_extents == 0)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("some extent is hot for {COLD_LIMIT:?} without a client: {states:?}"));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Scrubs to the end. Fails if something was not mended, or differed where both copies call it good.
    pub fn scrub(&self) -> Result<(), String> {
        let deadline = Instant::now() + SCRUB_LIMIT;
        loop {
            let outcome = self.cluster.cli(ALPHA, &["volume", "scrub", VOLUME]);
            let text = format!("scrub: code {}: {}{}", outcome.code, outcome.stdout, outcome.stderr);
            let json: Value = serde_json::from_str(&outcome.stdout).unwrap_or(Value::Null);
            let ended = json["skipped_parts"] == 0 && json["done_blocks"] == json["blocks"];
            match ended {
                true if outcome.code == 0 && json["differing"] == 0 => return Ok(()),
                true => return Err(text),
                false if Instant::now() >= deadline => return Err(format!("not within {SCRUB_LIMIT:?}: {text}")),
                false => std::thread::sleep(POLL),
            }
        }
    }
}

fn told(alpha: &Image, beta: &Image, block: u64) -> String {
    let [alpha, beta] = [alpha, beta].map(|image| format!("{:?}", versions_of(block, image.block(block))));
    format!("the copies differ though both are in sync; first in block {block}: alpha {alpha}, beta {beta}")
}

/// Numbers of the blocks that differ.
pub fn differing_blocks(first: &[u8], second: &[u8]) -> Vec<u64> {
    let pairs = first.chunks(BLOCK_BYTES).zip(second.chunks(BLOCK_BYTES));
    (0..).zip(pairs).filter(|(_, (first, second))| first != second).map(|(block, _)| block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_differing_byte_names_its_block() {
        let first = vec![0; 3 * BLOCK_BYTES];
        let mut second = first.clone();
        assert!(differing_blocks(&first, &second).is_empty());
        second[2 * BLOCK_BYTES - 1] = 1;
        assert_eq!(differing_blocks(&first, &second), [1]);
    }
}
