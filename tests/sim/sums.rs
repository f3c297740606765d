//! Checksums of simulated blocks: those of the shipped [`Salt`] over a 4096-byte image of a block's two tokens.
//!
//! The image holds each token in the first bytes of its half and zeros elsewhere. CRC-32 is linear, so a block's sum is
//! that of zeros at its place, which is kept in a table, with what each byte of the tokens adds to it.

use std::sync::OnceLock;

use proto::checksum::{BlockSums, Salt};
use proto::{BLOCK_BYTES, BlockRange};

use super::cluster::volume_id;
use super::disk::Block;
use super::setup::{VOLUME_BLOCKS_MAX, VOLUMES_MAX};

const BYTES: usize = BLOCK_BYTES as usize;

struct Tables {
    /// Sums of zeros, by volume and block.
    zeros: Vec<Vec<u32>>,
    /// By half of the block, byte of the token and its value: what it adds.
    adds: [[[u32; 256]; 4]; 2],
}

/// What a block that holds `tokens` looks like.
fn image(tokens: Block) -> [u8; BYTES] {
    let mut image = [0; BYTES];
    image[..4].copy_from_slice(&tokens[0].to_le_bytes());
    image[BYTES / 2..BYTES / 2 + 4].copy_from_slice(&tokens[1].to_le_bytes());
    image
}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let salt = Salt::of(volume_id(0));
        let zeros = |volume| (0..VOLUME_BLOCKS_MAX).map(|block| Salt::of(volume_id(volume)).zeros(block)).collect();
        let mut adds = [[[0; 256]; 4]; 2];
        for (half, bytes) in adds.iter_mut().enumerate() {
            for (byte, values) in bytes.iter_mut().enumerate() {
                for (value, add) in values.iter_mut().enumerate() {
                    let mut tokens = [0, 0];
                    tokens[half] = (value as u32) << (8 * byte);
                    *add = salt.sum(0, &image(tokens)) ^ salt.zeros(0);
                }
            }
        }
        Tables { zeros: (0..VOLUMES_MAX).map(zeros).collect(), adds }
    })
}

/// The checksum of `block` of the volume numbered `volume` when it holds `tokens`.
pub fn sum(volume: usize, block: u64, tokens: Block) -> u32 {
    let tables = tables();
    let mut sum = tables.zeros[volume][block as usize];
    for (half, token) in tokens.into_iter().enumerate().filter(|(_, token)| *token != 0) {
        for (byte, value) in token.to_le_bytes().into_iter().enumerate() {
            sum ^= tables.adds[half][byte][value as usize];
        }
    }
    sum
}

/// The checksums of the blocks of `range` that hold `content`.
pub fn sums(volume: usize, range: BlockRange, content: &[Block]) -> BlockSums {
    range.blocks().zip(content).map(|(block, tokens)| sum(volume, block, *tokens)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_tokens_are_those_of_their_image() {
        for volume in 0..VOLUMES_MAX {
            let salt = Salt::of(volume_id(volume));
            for (block, tokens) in [(0, [0, 0]), (5, [1, 1]), (1023, [0, 77]), (1024, [u32::MAX, 3]), (2000, [9, 0])] {
                assert_eq!(sum(volume, block, tokens), salt.sum(block, &image(tokens)));
            }
        }
    }

    #[test]
    fn other_content_and_other_places_have_other_sums() {
        let mut seen = std::collections::BTreeSet::new();
        for block in 0..64 {
            for value in 0..64 {
                assert!(seen.insert(sum(0, block, [value, value])));
                assert!(value == 0 || seen.insert(sum(0, block, [value, 0])));
            }
        }
    }
}
