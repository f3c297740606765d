//! Inputs made of sound ones: cut, spliced, with words that are lengths or counts made wrong, with bits turned.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Bytes of an input.
const INPUT_BYTES_MAX: usize = 16 << 10;
/// Changes of one input.
const CHANGES_MAX: usize = 6;
/// Earlier inputs that new ones are made of.
const KEPT_MAX: usize = 256;
/// Bytes that are put in, taken out or copied at once.
const PIECE_BYTES_MAX: usize = 64;

/// Makes inputs, always the same ones from the same numbers.
pub struct MessageMaker {
    random: ChaCha8Rng,
    seeds: Vec<Vec<u8>>,
    kept: Vec<Vec<u8>>,
}

impl MessageMaker {
    /// From these sound inputs, of which there is one at least.
    pub fn new(random: ChaCha8Rng, seeds: Vec<Vec<u8>>) -> Self {
        assert!(!seeds.is_empty(), "there is a seed");
        Self { random, seeds, kept: Vec::new() }
    }

    /// The next input.
    pub fn make(&mut self) -> Vec<u8> {
        let mut input = match self.random.random_range(0..8) {
            0..=1 if !self.kept.is_empty() => self.kept[self.random.random_range(0..self.kept.len())].clone(),
            2 if self.random.random_ratio(1, 8) => {
                let mut bytes = vec![0; self.random.random_range(0..256)];
                self.random.fill(&mut bytes[..]);
                bytes
            }
            _ => self.seed().clone(),
        };
        // One change more often than many: those come further.
        let changes = self.random.random_range(1..=CHANGES_MAX).min(self.random.random_range(1..=CHANGES_MAX));
        for _ in 0..changes {
            self.change(&mut input);
        }
        input.truncate(INPUT_BYTES_MAX);
        let place = self.random.random_range(0..KEPT_MAX * 8);
        if let Some(kept) = self.kept.get_mut(place) {
            kept.clone_from(&input);
        } else if self.kept.len() < KEPT_MAX {
            self.kept.push(input.clone());
        }
        input
    }

    fn seed(&mut self) -> &Vec<u8> {
        &self.seeds[self.random.random_range(0..self.seeds.len())]
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        if input.is_empty() {
            input.push(self.random.random());
            return;
        }
        let at = self.random.random_range(0..input.len());
        let piece = self.random.random_range(0..PIECE_BYTES_MAX).min(input.len() - at);
        match self.random.random_range(0..14) {
            0 | 12 => input[at] ^= 1 << self.random.random_range(0..8),
            1 | 13 => input[at] = self.random.random(),
            2..=4 => self.word(input, at),
            5 => input.truncate(at),
            6 => drop(input.drain(at..at + piece)),
            7 => {
                let again = input[at..at + piece].to_vec();
                input.splice(at..at, again);
            }
            8 => {
                let word: [u8; 4] = self.random.random::<u32>().to_be_bytes();
                input.splice(at..at, word);
            }
            9 => self.splice(input, at),
            10 => {
                let to = self.random.random_range(0..input.len());
                let piece = piece.min(input.len() - to);
                input.copy_within(at..at + piece, to);
            }
            _ => input.extend((0..self.random.random_range(0..PIECE_BYTES_MAX)).map(|_| 0)),
        }
    }

    /// A word becomes one that is worth a try. Words stand at places that differ by fours, from one of the first bytes on.
    fn word(&mut self, input: &mut [u8], at: usize) {
        let phase = if self.random.random_ratio(1, 2) { self.random.random_range(0..4) } else { 0 };
        let at = (at & !3) + phase;
        let Some(place) = input.get_mut(at..at + 4) else { return };
        let was = place.iter().fold(0u32, |all, byte| all << 8 | u32::from(*byte));
        let random = &mut self.random;
        let word = match random.random_range(0..10) {
            0 => 0,
            1 => u32::MAX,
            2 => u32::MAX - random.random_range(0..8),
            3 => 1 << random.random_range(0..32),
            4 => (1 << random.random_range(0..32)) - 1,
            5 => was.wrapping_add(random.random_range(1..8)),
            6 => was.wrapping_sub(random.random_range(1..8)),
            7 => random.random_range(0..100),
            8 => (1 << 31) | random.random_range(0..4096),
            _ => random.random(),
        };
        place.copy_from_slice(&word.to_be_bytes());
    }

    /// From somewhere on it goes on as another one does.
    fn splice(&mut self, input: &mut Vec<u8>, at: usize) {
        let other = self.seeds[self.random.random_range(0..self.seeds.len())].clone();
        if other.is_empty() {
            return;
        }
        let from = self.random.random_range(0..other.len());
        let same_phase = (from & !3) | (at & 3);
        input.truncate(at);
        input.extend(other.get(same_phase..).unwrap_or_default());
    }
}
