//! A file on a disk with a volatile cache: what it reads as now, what a power cut cannot take, and what lies between.
//!
//! The model of the cache is the weakest that a Linux program may rely on (fsync(2), and a disk with 512-byte sectors):
//! until the file is flushed, each change survives a cut, is lost, or is torn between sectors, each by itself and whatever
//! becomes of the others; but of two changes to one sector the older never comes back over the newer.

use std::collections::{BTreeSet, HashMap};

use rand::Rng;

use super::content::{Content, pages_of};

/// What a disk writes whole or not at all, in bytes.
pub const SECTOR: u64 = 512;
/// Bytes that wait unflushed; past that the oldest become durable, as a kernel writes back by itself.
const PENDING_BYTES_MAX: usize = 64 << 20;

/// A change that is not flushed.
#[derive(Clone, Debug)]
enum Change {
    Write {
        offset: u64,
        bytes: Vec<u8>,
    },
    /// A range that reads as zeros.
    Zero {
        offset: u64,
        end: u64,
    },
    /// Cut off, or grown by a hole.
    Length(u64),
    /// Grown by a hole, never cut off.
    Reserve(u64),
}

/// What became of the unflushed changes at a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// Changes that survived whole.
    pub kept: u64,
    /// Changes that are gone.
    pub lost: u64,
    /// Changes of which each sector had its own fate.
    pub torn: u64,
}

/// A file with its cache.
#[derive(Debug, Default)]
pub struct VolatileFile {
    current: Content,
    durable: Content,
    pending: Vec<Change>,
    pending_bytes: usize,
    /// Number of changes that left `pending` at its front.
    retired: u64,
    /// Pages that differ between `current` and `durable`.
    touched: BTreeSet<u64>,
    /// Sectors written durably: changes with a lower number are older than what is there.
    stamps: HashMap<u64, u64>,
}

impl VolatileFile {
    /// What it reads as.
    pub fn current(&self) -> &Content {
        &self.current
    }

    /// Changes that a cut may take.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Writes. A durable write (O_DSYNC, RWF_DSYNC) survives every cut; those before it gain nothing by it.
    pub fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) {
        self.current.write(offset, bytes);
        if durable {
            self.durable.write(offset, bytes);
            let number = self.retired + self.pending.len() as u64;
            let end = offset + bytes.len() as u64;
            for sector in offset.div_ceil(SECTOR)..end / SECTOR {
                self.stamps.insert(sector, number);
            }
            return;
        }
        self.touched.extend(pages_of(offset, offset + bytes.len() as u64));
        self.push(Change::Write { offset, bytes: bytes.to_vec() });
    }

    /// Makes a range read as zeros; grows the file to its end unless `keep_length`.
    pub fn zero(&mut self, offset: u64, length: u64, keep_length: bool) {
        let end = offset.saturating_add(length);
        if !keep_length {
            self.reserve(end);
        }
        let end = end.min(self.current.length());
        self.current.zero(offset, end);
        self.touched.extend(pages_of(offset, end));
        self.push(Change::Zero { offset, end });
    }

    /// Grows the file to at least `length`.
    pub fn reserve(&mut self, length: u64) {
        if length > self.current.length() {
            self.current.set_length(length);
            self.push(Change::Reserve(length));
        }
    }

    /// Cuts the file off or lets it grow.
    pub fn set_length(&mut self, length: u64) {
        let before = self.current.length();
        self.current.set_length(length);
        self.touched.extend(pages_of(length, before));
        self.push(Change::Length(length));
    }

    /// Makes everything durable.
    pub fn sync(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        self.durable.take_pages(&self.current, touched);
        self.pending.clear();
        self.pending_bytes = 0;
        self.retired = 0;
        self.stamps.clear();
    }

    /// The power goes and comes back.
    pub fn cut(&mut self, rng: &mut impl Rng) -> Fates {
        let mut fates = Fates::default();
        for (number, change) in (self.retired..).zip(std::mem::take(&mut self.pending)) {
            match rng.random_range(0..3) {
                0 => fates.lost += 1,
                1 => {
                    fates.kept += 1;
                    self.make_durable(number, &change, |_| true);
                }
                _ => {
                    fates.torn += 1;
                    self.make_durable(number, &change, |_| rng.random());
                }
            }
        }
        self.current = self.durable.clone();
        self.sync();
        fates
    }

    fn push(&mut self, change: Change) {
        if let Change::Write { bytes, .. } = &change {
            self.pending_bytes += bytes.len();
        }
        self.pending.push(change);
        if self.pending_bytes > PENDING_BYTES_MAX {
            // The older half at once, so that long loads do not move the vector for every write.
            let half = self.pending.len() / 2;
            for change in self.pending.drain(..half).collect::<Vec<_>>() {
                if let Change::Write { bytes, .. } = &change {
                    self.pending_bytes -= bytes.len();
                }
                self.make_durable(self.retired, &change, |_| true);
                self.retired += 1;
            }
        }
    }

    /// Takes over what is chosen of a change, except sectors that were written durably after it.
    fn make_durable(&mut self, number: u64, change: &Change, mut chosen: impl FnMut(u64) -> bool) {
        let stamps = &self.stamps;
        let mut takes = |sector: u64| stamps.get(&sector).is_none_or(|stamp| *stamp <= number) && chosen(sector);
        match change {
            Change::Write { offset, bytes } => {
                for (sector, from, to) in sectors(*offset, *offset + bytes.len() as u64) {
                    if takes(sector) {
                        self.durable.write(from, &bytes[(from - offset) as usize..(to - offset) as usize]);
                    }
                }
            }
            Change::Zero { offset, end } => {
                for (sector, from, to) in sectors(*offset, *end) {
                    if takes(sector) {
                        self.durable.zero(from, to);
                    }
                }
            }
            Change::Length(length) if chosen(0) => self.durable.set_length(*length),
            Change::Reserve(length) if chosen(0) => self.durable.set_length(self.durable.length().max(*length)),
            Change::Length(_) | Change::Reserve(_) => {}
        }
    }
}

/// Splits a range at the borders of sectors: sector, first byte, one past the last.
fn sectors(offset: u64, end: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    (offset / SECTOR..end.div_ceil(SECTOR))
        .map(move |sector| (sector, offset.max(sector * SECTOR), end.min((sector + 1) * SECTOR)))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// What a page holds after the cut of many seeds.
    fn outcomes(prepare: impl Fn(&mut VolatileFile)) -> BTreeSet<Vec<u8>> {
        let cut = |seed| {
            let mut file = VolatileFile::default();
            prepare(&mut file);
            file.cut(&mut ChaCha8Rng::seed_from_u64(seed));
            file.current().read(0, 1024)
        };
        (0..200).map(cut).collect()
    }

    #[test]
    fn a_flushed_write_survives_every_cut_and_an_unflushed_one_may_be_lost_kept_or_torn() {
        let flushed = outcomes(|file| {
            file.write(0, &[1; 1024], false);
            file.sync();
        });
        assert_eq!(flushed.into_iter().collect::<Vec<_>>(), [vec![1; 1024]]);
        let unflushed = outcomes(|file| {
            file.write(0, &[1; 1024], true);
            file.write(0, &[2; 1024], false);
        });
        let torn = |first: u8, second: u8| [vec![first; 512], vec![second; 512]].concat();
        assert_eq!(unflushed, [torn(1, 1), torn(1, 2), torn(2, 1), torn(2, 2)].into());
    }

    #[test]
    fn a_later_write_may_survive_an_earlier_one_but_never_falls_back_behind_a_durable_one() {
        let reordered = outcomes(|file| {
            file.write(0, &[0; 1024], true);
            file.write(0, &[1; 512], false);
            file.write(512, &[2; 512], false);
        });
        assert!(reordered.contains(&[vec![0; 512], vec![2; 512]].concat()));
        let overwritten = outcomes(|file| {
            file.write(0, &[1; 1024], false);
            file.write(0, &[2; 512], true);
        });
        assert!(overwritten.iter().all(|bytes| bytes[..512] == [2; 512]), "{overwritten:?}");
        assert!(overwritten.iter().any(|bytes| bytes.len() == 512));
    }

    #[test]
    fn lengths_and_zeroed_ranges_are_volatile_too() {
        let lengths = outcomes(|file| {
            file.write(0, &[1; 1024], true);
            file.set_length(100);
        });
        assert_eq!(lengths, [vec![1; 1024], vec![1; 100]].into());
        let zeroed = outcomes(|file| {
            file.write(0, &[1; 1024], true);
            file.zero(0, 512, true);
        });
        assert_eq!(zeroed, [vec![1; 1024], [vec![0; 512], vec![1; 512]].concat()].into());
    }

    #[test]
    fn a_full_cache_writes_back_its_oldest_changes() {
        let mut file = VolatileFile::default();
        let chunk = vec![7; 1 << 20];
        for number in 0..=64 {
            file.write(number << 20, &chunk, false);
        }
        assert!(file.pending() < 64);
        file.cut(&mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!(file.current().read(0, 1 << 20), chunk);
    }
}
