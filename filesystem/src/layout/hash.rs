//! Hashes of names, by which an indexed directory is ordered (ext4 on-disk format, "Hash Tree Directories").
//!
//! Knows nothing of blocks. Hashes of case-folded or encrypted names are not here: such filesystems are refused.

/// The kinds of hashes that a directory's root may name, with the numbers they have there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashVersion {
    /// The first one; has no minor hash.
    Legacy,
    /// MD4, cut to three rounds of eight steps.
    HalfMd4,
    /// The Tiny Encryption Algorithm, used as a hash.
    Tea,
}

impl HashVersion {
    /// The version of this number; none when the number is unknown.
    pub fn from_disk(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Legacy),
            1 => Some(Self::HalfMd4),
            2 => Some(Self::Tea),
            _ => None,
        }
    }

    /// Its number on disk.
    pub fn to_disk(self) -> u8 {
        match self {
            Self::Legacy => 0,
            Self::HalfMd4 => 1,
            Self::Tea => 2,
        }
    }
}

/// How names of a filesystem are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashing {
    /// Which hash. The superblock names that of new indexes, and each index its own.
    pub version: HashVersion,
    /// Whether bytes from 0x80 on count as negative numbers: the superblock's flags tell, for all directories.
    pub signed: bool,
    /// The superblock's seed; all zero stands for the initial values of MD4.
    pub seed: [u32; 4],
}

/// Where a name stands in the order of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameHash {
    /// What the index knows. Its lowest bit is 0: the index marks collisions with it.
    pub major: u32,
    /// Orders what has the same major hash, for the positions of a reader.
    pub minor: u32,
}

/// What no name's major hash may be: it would stand for the end of a directory.
const MAJOR_OF_END: u32 = 0xffff_fffe;
/// What MD4 starts from.
const INITIAL: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

impl Hashing {
    /// The same with the hash that an index names.
    pub fn with_version(self, version: HashVersion) -> Self {
        Self { version, ..self }
    }

    /// The hash of a name.
    pub fn hash(&self, name: &[u8]) -> NameHash {
        let start = if self.seed == [0; 4] { INITIAL } else { self.seed };
        let (major, minor) = match self.version {
            HashVersion::Legacy => (self.legacy(name), 0),
            HashVersion::HalfMd4 => {
                let state = name.chunks(32).enumerate().fold(start, |state, (index, chunk)| {
                    half_md4(state, &self.words::<8>(chunk, name.len() - index * 32))
                });
                (state[1], state[2])
            }
            HashVersion::Tea => {
                let state = name
                    .chunks(16)
                    .enumerate()
                    .fold(start, |state, (index, chunk)| tea(state, &self.words::<4>(chunk, name.len() - index * 16)));
                (state[0], state[1])
            }
        };
        let major = match major & !1 {
            MAJOR_OF_END => MAJOR_OF_END - 2,
            major => major,
        };
        NameHash { major, minor }
    }

    /// A byte as the number it counts as.
    fn number(&self, byte: u8) -> u32 {
        if self.signed { i32::from(byte as i8) as u32 } else { u32::from(byte) }
    }

    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut last, mut before) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
        for &byte in name {
            let mut next = before.wrapping_add(last ^ self.number(byte).wrapping_mul(7_152_373));
            if next & 0x8000_0000 != 0 {
                next = next.wrapping_sub(0x7fff_ffff);
            }
            (before, last) = (last, next);
        }
        last << 1
    }

    /// The words that a part of a name gives: bytes from the highest down, and what is missing filled with the length of
    /// the name from here on, in each byte.
    fn words<const COUNT: usize>(&self, chunk: &[u8], length: usize) -> [u32; COUNT] {
        let length = length as u32;
        let mut fill = length | (length << 8);
        fill |= fill << 16;
        let mut words = [fill; COUNT];
        for (word, bytes) in words.iter_mut().zip(chunk.chunks(4)) {
            for &byte in bytes {
                *word = (*word << 8).wrapping_add(self.number(byte));
            }
        }
        words
    }
}

fn half_md4(state: [u32; 4], words: &[u32; 8]) -> [u32; 4] {
    /// Of each round: its order of words, its constant, and its shifts.
    const ROUNDS: [([usize; 8], u32, [u32; 4]); 3] = [
        ([0, 1, 2, 3, 4, 5, 6, 7], 0, [3, 7, 11, 19]),
        ([1, 3, 5, 7, 0, 2, 4, 6], 0x5a82_7999, [3, 5, 9, 13]),
        ([3, 7, 2, 6, 1, 5, 0, 4], 0x6ed9_eba1, [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = state;
    for (round, (order, constant, shifts)) in ROUNDS.iter().enumerate() {
        for (step, &word) in order.iter().enumerate() {
            let mixed = match round {
                0 => d ^ (b & (c ^ d)),
                1 => (b & c).wrapping_add((b ^ c) & d),
                _ => b ^ c ^ d,
            };
            let sum = a.wrapping_add(mixed).wrapping_add(words[word]).wrapping_add(*constant);
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    [state[0].wrapping_add(a), state[1].wrapping_add(b), state[2].wrapping_add(c), state[3].wrapping_add(d)]
}

fn tea(state: [u32; 4], key: &[u32; 4]) -> [u32; 4] {
    let (mut left, mut right, mut sum) = (state[0], state[1], 0_u32);
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        let change = |half: u32, low: u32, high: u32| {
            (half << 4).wrapping_add(low) ^ half.wrapping_add(sum) ^ (half >> 5).wrapping_add(high)
        };
        left = left.wrapping_add(change(right, key[0], key[1]));
        right = right.wrapping_add(change(left, key[2], key[3]));
    }
    [state[0].wrapping_add(left), state[1].wrapping_add(right), state[2], state[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_disk_are_those_of_the_format() {
        for number in 0..=u8::MAX {
            match HashVersion::from_disk(number) {
                Some(version) => assert_eq!(version.to_disk(), number),
                None => assert!(number > 2),
            }
        }
    }

    #[test]
    fn signedness_matters_only_to_bytes_from_0x80_on() {
        for version in [HashVersion::Legacy, HashVersion::HalfMd4, HashVersion::Tea] {
            let signed = Hashing { version, signed: true, seed: [1, 2, 3, 4] };
            let unsigned = Hashing { signed: false, ..signed };
            assert_eq!(signed.hash(b"plain"), unsigned.hash(b"plain"));
            assert_ne!(signed.hash(b"pl\xe4in"), unsigned.hash(b"pl\xe4in"));
        }
    }

    #[test]
    fn a_seed_of_zeros_is_that_of_md4() {
        let zeros = Hashing { version: HashVersion::HalfMd4, signed: true, seed: [0; 4] };
        let md4 = Hashing { seed: INITIAL, ..zeros };
        assert_eq!(zeros.hash(b"name"), md4.hash(b"name"));
    }
}
