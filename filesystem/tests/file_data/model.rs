//! A client: random operations on one file, and on a vector beside it.

use std::rc::Rc;

use bytes::Bytes;
use filesystem::InodeNumber;
use filesystem::engine::{Failure, Seek};
use filesystem::store::Refusal;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Mounted, NOW};

/// Longest file, in bytes.
const SIZE_MAX: u64 = 900 << 10;

/// One file, what is in it, and who changes it.
pub(crate) struct Client {
    mounted: Rc<Mounted>,
    file: InodeNumber,
    content: Vec<u8>,
    rng: ChaCha8Rng,
}

impl Client {
    pub(crate) fn new(mounted: Rc<Mounted>, file: InodeNumber, seed: u64) -> Self {
        Self { mounted, file, content: Vec::new(), rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Does so many operations. Gives the file and what is in it.
    pub(crate) async fn work(mut self, operations: usize) -> (InodeNumber, Vec<u8>) {
        for number in 0..operations {
            let what = format!("{:?} operation {number}", self.file);
            match self.rng.random_range(0..20) {
                0..=6 => self.write(&what, number).await,
                7 => self.append(&what, number).await,
                8 | 9 => self.truncate(&what).await,
                10 => self.punch(&what).await,
                11 => self.allocate(&what).await,
                12 => self.zero(&what).await,
                13 => self.mounted.fsync(self.file).await.unwrap_or_else(|failure| panic!("{what}: {failure}")),
                14 if number % 8 == 0 => {
                    self.mounted.sync().await.unwrap_or_else(|failure| panic!("{what}: {failure}"));
                }
                15 => self.expect_seek(&what).await,
                _ => self.expect_part(&what).await,
            }
            if number % 16 == 0 {
                expect_content(&self.mounted, self.file, &self.content, &what).await;
            }
        }
        expect_content(&self.mounted, self.file, &self.content, "at the end").await;
        (self.file, self.content)
    }

    fn range(&mut self) -> std::ops::Range<u64> {
        let start = match self.rng.random_range(0..4) {
            0 => self.rng.random_range(0..SIZE_MAX),
            1 => self.rng.random_range(0..SIZE_MAX) / 4096 * 4096,
            _ => self.rng.random_range(0..=self.content.len() as u64),
        };
        let length = match self.rng.random_range(0..4) {
            0 => self.rng.random_range(1..100),
            1 => self.rng.random_range(1..200_000),
            2 => self.rng.random_range(1..10) * 4096,
            _ => self.rng.random_range(1..9000),
        };
        start..(start + length).min(SIZE_MAX).max(start + 1)
    }

    async fn write(&mut self, what: &str, number: usize) {
        let range = self.range();
        self.write_at(range, what, number).await;
    }

    async fn append(&mut self, what: &str, number: usize) {
        let start = self.content.len() as u64;
        let length = self.rng.random_range(1..5000);
        if start + length <= SIZE_MAX {
            self.write_at(start..start + length, what, number).await;
        }
    }

    async fn write_at(&mut self, range: std::ops::Range<u64>, what: &str, number: usize) {
        let data: Vec<u8> = range.clone().map(|at| (at as usize ^ number.wrapping_mul(37)) as u8 | 1).collect();
        match self.mounted.write(self.file, range.start, Bytes::from(data.clone()), NOW).await {
            Ok(done) => {
                let end = range.start as usize + done.value;
                self.content.resize(self.content.len().max(end), 0);
                self.content[range.start as usize..end].copy_from_slice(&data[..done.value]);
            }
            Err(Failure::NoSpace) => {}
            Err(failure) => panic!("{what}: write {range:?}: {failure}"),
        }
    }

    async fn truncate(&mut self, what: &str) {
        let size = match self.rng.random_range(0..3) {
            0 => self.rng.random_range(0..SIZE_MAX),
            1 => self.rng.random_range(0..=self.content.len() as u64),
            _ => (self.content.len() as u64).saturating_sub(self.rng.random_range(0..5000)),
        };
        self.mounted.truncate(self.file, size, NOW).await.unwrap_or_else(|failure| panic!("{what}: {failure}"));
        self.content.resize(size as usize, 0);
    }

    async fn punch(&mut self, what: &str) {
        let range = self.range();
        match self.mounted.punch(self.file, range.clone(), NOW).await {
            Ok(_) => self.clear(range),
            Err(failure) => panic!("{what}: punch {range:?}: {failure}"),
        }
    }

    async fn allocate(&mut self, what: &str) {
        let (range, keep) = (self.range(), self.rng.random());
        match self.mounted.allocate(self.file, range.clone(), keep, NOW).await {
            Ok(_) if !keep => self.content.resize(self.content.len().max(range.end as usize), 0),
            Ok(_) | Err(Failure::NoSpace | Failure::Refused(Refusal::NotSupported)) => {}
            Err(failure) => panic!("{what}: allocate {range:?}: {failure}"),
        }
    }

    async fn zero(&mut self, what: &str) {
        let (range, keep) = (self.range(), self.rng.random());
        match self.mounted.zero(self.file, range.clone(), keep, NOW).await {
            Ok(_) => {
                if !keep {
                    self.content.resize(self.content.len().max(range.end as usize), 0);
                }
                self.clear(range);
            }
            Err(Failure::NoSpace | Failure::Refused(Refusal::NotSupported)) => {}
            Err(failure) => panic!("{what}: zero {range:?}: {failure}"),
        }
    }

    fn clear(&mut self, range: std::ops::Range<u64>) {
        let end = self.content.len().min(range.end as usize);
        if let Some(bytes) = self.content.get_mut(range.start as usize..end) {
            bytes.fill(0);
        }
    }

    async fn expect_part(&mut self, what: &str) {
        let range = self.range();
        let length = (range.end - range.start) as usize;
        let read = self.mounted.read(self.file, range.start, length).await;
        let read = read.unwrap_or_else(|failure| panic!("{what}: read {range:?}: {failure}")).value;
        let end = self.content.len().min(range.end as usize);
        let expected = self.content.get(range.start as usize..end).unwrap_or_default();
        assert_eq!(first_difference(&read, expected), None, "{what}: read {range:?}");
    }

    /// What is found as a hole has nothing but zeros in it, and what is found as data follows such a hole.
    async fn expect_seek(&mut self, what: &str) {
        let from = self.rng.random_range(0..=self.content.len() as u64);
        let data = self.mounted.seek(self.file, from, Seek::Data).await.expect("readable");
        let hole = self.mounted.seek(self.file, from, Seek::Hole).await.expect("readable");
        let size = self.content.len();
        let skipped = &self.content[from as usize..data.map_or(size, |data| data as usize)];
        assert!(skipped.iter().all(|byte| *byte == 0), "{what}: data was skipped from {from} to {data:?}");
        assert!(hole.is_none_or(|hole| hole <= size as u64 && hole >= from), "{what}: {hole:?} of {size}");
        assert_eq!(hole.is_none(), from as usize >= size, "{what}: a hole from {from} of {size}");
    }
}

/// Reads all of a file.
pub(crate) async fn expect_content(mounted: &Mounted, file: InodeNumber, content: &[u8], what: &str) {
    let read = mounted.read(file, 0, 4 << 20).await.unwrap_or_else(|failure| panic!("{what}: {failure}")).value;
    assert_eq!(first_difference(&read, content), None, "{what}: {file:?}");
}

/// Where two contents differ first, and the bytes there and lengths of both.
fn first_difference(read: &[u8], expected: &[u8]) -> Option<(usize, [Option<u8>; 2], [usize; 2])> {
    let at = (0..read.len().max(expected.len())).find(|at| read.get(*at) != expected.get(*at))?;
    Some((at, [read.get(at).copied(), expected.get(at).copied()], [read.len(), expected.len()]))
}
