//! What may be in a file after a loss of power: for each of its sectors every content that it has had since the last one that
//! is promised.
//!
//! The engine keeps a file's newest blocks in memory and writes them whole, so a sector on the device holds what the file had
//! there at some time. What was synced must be there unless something later is; of what a truncation, a punch or the zeroing
//! of a range removed, nothing may come back once that was acknowledged.

use std::collections::BTreeMap;
use std::ops::Range;

use filesystem::TransactionId;

/// Unit that a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// One content of a sector; nothing for zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    /// The change that brought it.
    step: u32,
    bytes: Vec<u8>,
}

/// All contents of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// The newest, as everybody sees it.
    content: Vec<u8>,
    step: u32,
    /// Oldest first; before the first of them a sector held zeros.
    sectors: BTreeMap<usize, Vec<Value>>,
    /// Lengths after changes that changed them, oldest first.
    sizes: Vec<(u32, usize)>,
    /// Transactions with which changes became durable as a whole.
    transactions: BTreeMap<u32, TransactionId>,
    /// Moments of the record, and the change up to which all was synced by then.
    synced: Vec<(usize, u32)>,
}

/// Why a content may not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Illegal {
    /// It is older than what is promised.
    Old(String),
    /// The file never had it.
    Foreign(String),
}

impl History {
    /// Of a file that has had this content all the time.
    pub(super) fn new(content: &[u8]) -> Self {
        let mut history = Self { sizes: vec![(0, 0)], ..Self::default() };
        let step = history.change(content.to_vec(), None);
        history.synced.push((0, step));
        history
    }

    /// The newest content.
    pub(super) fn content(&self) -> &[u8] {
        &self.content
    }

    /// The number of the last change.
    pub(super) fn last_step(&self) -> u32 {
        self.step
    }

    /// A change begins that leads to this content; any part of it may be on the device from now on. With `cleared` it zeros this
    /// range whatever is there, and it may do so to a content that is older than the newest. Gives its number.
    pub(super) fn change(&mut self, content: Vec<u8>, cleared: Option<Range<usize>>) -> u32 {
        self.step += 1;
        let step = self.step;
        for sector in 0..self.content.len().max(content.len()).div_ceil(SECTOR) {
            let (before, after) = (sector_of(&self.content, sector), sector_of(&content, sector));
            let start = sector * SECTOR;
            let overlap = cleared.as_ref().map(|range| {
                range.start.clamp(start, start + SECTOR) - start..range.end.clamp(start, start + SECTOR) - start
            });
            let in_part = overlap.filter(|overlap| !overlap.is_empty() && overlap.len() < SECTOR);
            if before == after && in_part.is_none() {
                continue;
            }
            let values = self.sectors.entry(sector).or_insert_with(|| vec![Value { step: 0, bytes: Vec::new() }]);
            if let Some(overlap) = in_part {
                let older: Vec<Value> =
                    values.iter().map(|value| Value { step, bytes: zeroed(&value.bytes, &overlap) }).collect();
                values.extend(older);
            }
            values.push(Value { step, bytes: after });
        }
        if self.content.len() != content.len() {
            self.sizes.push((step, content.len()));
        }
        self.content = content;
        step
    }

    /// A change is durable as a whole with this transaction.
    pub(super) fn belongs_to(&mut self, step: u32, transaction: TransactionId) {
        self.transactions.insert(step, transaction);
    }

    /// At this moment of the record all changes up to one were durable.
    pub(super) fn synced(&mut self, position: usize, step: u32) {
        let before = self.synced.last().map_or(0, |(_, step)| *step);
        self.synced.push((position, step.max(before)));
    }

    /// Judges what was found after a loss of power at a moment of the record, by when `acknowledged` was said to be durable.
    pub(super) fn judge(
        &self,
        found: &[u8],
        position: usize,
        acknowledged: Option<TransactionId>,
    ) -> Result<(), Illegal> {
        let before = self.synced.partition_point(|(moment, _)| *moment <= position);
        let synced = self.synced[..before].last().map_or(0, |(_, step)| *step);
        let is_durable = |step: u32| {
            let transaction = self.transactions.get(&step);
            transaction.zip(acknowledged).is_some_and(|(one, last)| !last.is_before(*one))
        };
        self.judge_size(found.len(), synced, is_durable)?;
        for (number, bytes) in found.chunks(SECTOR).enumerate() {
            let none = [Value { step: 0, bytes: Vec::new() }];
            let values = self.sectors.get(&number).map_or(&none[..], |values| values);
            let by_sync = values.iter().rposition(|value| value.step <= synced).unwrap_or(0);
            let by_commit = values.iter().rfind(|value| is_durable(value.step)).map(|value| value.step);
            let by_commit = values.iter().position(|value| Some(value.step) == by_commit).unwrap_or(0);
            let least = by_sync.max(by_commit);
            if values[least..].iter().any(|value| is_prefix(bytes, &value.bytes)) {
                continue;
            }
            let what = format!("sector {number} of {} bytes holds {}", found.len(), describe(bytes));
            let steps: Vec<u32> = values[least..].iter().map(|value| value.step).collect();
            let what = format!("{what}, not what changes {steps:?} of {} left", self.step);
            return Err(match values[..least].iter().any(|value| is_prefix(bytes, &value.bytes)) {
                true => Illegal::Old(what),
                false => Illegal::Foreign(what),
            });
        }
        Ok(())
    }

    /// A length is one of those since the last that is promised, or between them.
    fn judge_size(&self, found: usize, synced: u32, is_durable: impl Fn(u32) -> bool) -> Result<(), Illegal> {
        let least = self.sizes.iter().rposition(|(step, _)| *step <= synced || is_durable(*step)).unwrap_or(0);
        let sizes = self.sizes[least..].iter().map(|(_, size)| *size);
        let (shortest, longest) = (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0));
        match found {
            _ if found < shortest => Err(Illegal::Old(format!("it has {found} bytes, and never had under {shortest}"))),
            _ if found > longest => {
                Err(Illegal::Foreign(format!("it has {found} bytes, and never had over {longest}")))
            }
            _ => Ok(()),
        }
    }
}

/// A sector of a content, whole; nothing for zeros.
fn sector_of(content: &[u8], sector: usize) -> Vec<u8> {
    let start = (sector * SECTOR).min(content.len());
    let bytes = &content[start..content.len().min(start + SECTOR)];
    if bytes.iter().all(|byte| *byte == 0) {
        return Vec::new();
    }
    let mut whole = bytes.to_vec();
    whole.resize(SECTOR, 0);
    whole
}

fn zeroed(bytes: &[u8], range: &Range<usize>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.get_mut(range.clone()).unwrap_or_default().fill(0);
    if bytes.iter().all(|byte| *byte == 0) { Vec::new() } else { bytes }
}

fn is_prefix(found: &[u8], value: &[u8]) -> bool {
    match value.is_empty() {
        true => found.iter().all(|byte| *byte == 0),
        false => value.starts_with(found),
    }
}

/// What a write of a file is filled with from byte `offset` on: every 16 bytes say whose they are, and of which write.
pub(super) fn pattern(inode: u32, generation: u32, write: usize, offset: usize, length: usize) -> Vec<u8> {
    let at = |position: usize| {
        let word = match position % 16 / 4 {
            0 => inode | 0xf000_0000,
            1 => generation,
            2 => write as u32 | 0x8000_0000,
            _ => (position / SECTOR) as u32 | 0xaa00_0000,
        };
        word.to_le_bytes()[position % 4]
    };
    (offset..offset + length).map(at).collect()
}

/// Whose bytes these are, for people.
fn describe(bytes: &[u8]) -> String {
    let mut words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap_or_default()));
    let stamp = [words.next(), words.next(), words.next(), words.next()];
    match stamp {
        [Some(0), Some(0), Some(0), Some(0)] => "zeros at its start".to_owned(),
        [Some(inode), Some(generation), Some(write), Some(sector)] => format!(
            "{bytes:02x?} (inode {}, generation {generation}, write {}, sector {})",
            inode & 0xfff_ffff,
            write & 0x7fff_ffff,
            sector & 0xff_ffff,
            bytes = &bytes[..16]
        ),
        _ => format!("{bytes:02x?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(write: usize, length: usize) -> Vec<u8> {
        pattern(11, 1, write, 0, length)
    }

    #[test]
    fn what_was_synced_is_there_or_something_later_per_sector() {
        let mut history = History::new(&[]);
        let first = history.change(content(1, 2048), None);
        history.synced(10, first);
        history.change(content(2, 2048), None);
        let mixed = [&content(1, 512)[..], &content(2, 2048)[512..]].concat();
        for fine in [content(1, 2048), content(2, 2048), mixed] {
            assert_eq!(history.judge(&fine, 10, None), Ok(()));
        }
        assert_eq!(history.judge(&[], 9, None), Ok(()));
        assert!(matches!(history.judge(&[], 10, None), Err(Illegal::Old(_))));
        assert!(matches!(history.judge(&[0; 2048], 10, None), Err(Illegal::Old(_))));
        assert!(matches!(history.judge(&content(3, 2048), 10, None), Err(Illegal::Foreign(_))));
        assert!(matches!(history.judge(&content(2, 2049), 10, None), Err(Illegal::Foreign(_))));
    }

    #[test]
    fn what_was_removed_does_not_come_back_once_that_is_acknowledged() {
        let mut history = History::new(&content(1, 2048));
        let mut punched = content(1, 2048);
        punched[512..1300].fill(0);
        let step = history.change(punched.clone(), Some(512..1300));
        history.belongs_to(step, TransactionId(7));
        assert_eq!(history.judge(&content(1, 2048), 5, Some(TransactionId(6))), Ok(()));
        assert!(matches!(history.judge(&content(1, 2048), 5, Some(TransactionId(7))), Err(Illegal::Old(_))));
        assert_eq!(history.judge(&punched, 5, Some(TransactionId(7))), Ok(()));
    }

    #[test]
    fn a_cut_says_nothing_of_what_was_not_synced_before_it() {
        let mut history = History::new(&content(1, 512));
        history.change(content(2, 512), None);
        let step = history.change(content(2, 300), Some(300..512));
        history.belongs_to(step, TransactionId(7));
        for fine in [content(1, 300), content(2, 300)] {
            assert_eq!(history.judge(&fine, 5, Some(TransactionId(7))), Ok(()));
        }
        assert!(matches!(history.judge(&content(2, 512), 5, Some(TransactionId(7))), Err(Illegal::Foreign(_))));
    }
}
