//! What a test writes into a block, so that any later reading tells which write it came from.

/// Bytes per block.
pub const BLOCK_BYTES: usize = 4096;

/// Fills a block: its index and version in front, and a sequence derived from both behind.
pub fn fill(block: u64, version: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    bytes.extend_from_slice(&block.to_le_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    let mut word = block.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ version;
    while bytes.len() < BLOCK_BYTES {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The version that a block holds: 0 for all zeroes, nothing if it is not a whole write of that block.
pub fn version_of(block: u64, bytes: &[u8]) -> Option<u64> {
    if bytes.len() == BLOCK_BYTES && bytes.iter().all(|&byte| byte == 0) {
        return Some(0);
    }
    let version = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    (fill(block, version) == bytes).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_its_version_and_a_torn_or_misplaced_one_is_noticed() {
        assert_eq!(version_of(7, &fill(7, 3)), Some(3));
        assert_eq!(version_of(7, &[0; BLOCK_BYTES]), Some(0));
        assert_eq!(version_of(8, &fill(7, 3)), None);
        let mut torn = fill(7, 4);
        torn[2048..].copy_from_slice(&fill(7, 3)[2048..]);
        assert_eq!(version_of(7, &torn), None);
        assert_eq!(version_of(7, &[]), None);
    }
}
