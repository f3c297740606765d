//! What the load writes: every sector of 512 bytes tells its place and its version, so that a block that a power cut has
//! torn between sectors can be judged sector by sector.

/// Bytes of a block, the unit of the load.
pub const BLOCK_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;
const SECTORS: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;

/// The bytes of one block.
pub fn fill(block: u64, version: u64) -> Vec<u8> {
    (0..SECTORS).flat_map(|sector| fill_sector(block * SECTORS + sector, version)).collect()
}

/// The lowest and the highest version among the sectors of a block; 0 where nothing was ever written. The error tells
/// the first sector that is nothing that was written there.
pub fn versions_of(block: u64, bytes: &[u8]) -> Result<(u64, u64), String> {
    let mut found: Option<(u64, u64)> = None;
    for (number, sector) in (block * SECTORS..).zip(bytes.chunks(SECTOR_BYTES)) {
        let version = version_of_sector(number, sector)
            .ok_or_else(|| format!("sector {} of block {block} holds {}", number % SECTORS, describe(sector)))?;
        let (lowest, highest) = found.unwrap_or((version, version));
        found = Some((lowest.min(version), highest.max(version)));
    }
    found.ok_or_else(|| format!("block {block} is empty"))
}

fn fill_sector(number: u64, version: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SECTOR_BYTES);
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    let mut word = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ version;
    while bytes.len() < SECTOR_BYTES {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn version_of_sector(number: u64, bytes: &[u8]) -> Option<u64> {
    if bytes.len() == SECTOR_BYTES && bytes.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let version = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    (version != 0 && fill_sector(number, version) == bytes).then_some(version)
}

/// Says what a sector claims to be, for a report.
fn describe(bytes: &[u8]) -> String {
    let word = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (number, version) = (word(0), word(8));
    match version_of_sector(number, bytes) {
        Some(_) => format!("version {version} of block {}, sector {}", number / SECTORS, number % SECTORS),
        None => format!("nothing that was ever written ({number:#x}, {version:#x}, …)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_its_versions_also_when_it_is_torn_between_sectors() {
        assert_eq!(versions_of(7, &fill(7, 3)), Ok((3, 3)));
        assert_eq!(versions_of(7, &[0; BLOCK_BYTES]), Ok((0, 0)));
        let mut torn = fill(7, 4);
        torn[1024..1536].copy_from_slice(&fill(7, 3)[1024..1536]);
        assert_eq!(versions_of(7, &torn), Ok((3, 4)));
    }

    #[test]
    fn misplaced_and_damaged_sectors_are_noticed() {
        assert!(versions_of(8, &fill(7, 3)).is_err_and(|why| why.contains("version 3 of block 7")));
        let mut damaged = fill(7, 3);
        damaged[4000] ^= 1;
        assert!(versions_of(7, &damaged).is_err());
        assert!(versions_of(7, &[]).is_err());
    }
}
