//! The superblock's codec and the choice between its two slots. Pure; `docs/disk-format.md` lists every field.

use proto::{BLOCK_BYTES, Boot, ClusterId, ConfigVersion, DiskId, EXTENT_BYTES, VolumeId};

use super::layout::{Area, BITMAPS, Layout};
use super::scrubs::Scrubs;

/// Bytes of one slot.
pub(super) const SLOT_BYTES: usize = 4096;
/// Format version written, and the only one read. Version 1 had no checksums and no log, and shorter bitmaps.
const FORMAT_VERSION: u32 = 2;

const MAGIC: [u8; 16] = *b"TANDEM-STORE\r\n\x1a\0";
const CRC_AT: usize = 16;
const VERSION_AT: usize = 20;
const INCOMPATIBLE_AT: usize = 24;
const GENERATION_AT: usize = 40;
const CLUSTER_AT: usize = 48;
const VOLUME_AT: usize = 64;
const DISK_AT: usize = 80;
const SIZE_AT: usize = 96;
const LAST_IN_SYNC_AT: usize = 104;
const BOOT_AT: usize = 112;
const STATE_AT: usize = 128;
const BITMAPS_AT: usize = 132;
const BLOCK_BYTES_AT: usize = 136;
const EXTENT_BYTES_AT: usize = 140;
const AREAS_AT: usize = 144;
const SCRUBS_AT: usize = 240;

const STATE_CLEAN: u32 = 1;
const STATE_SUSPECT: u32 = 2;
const STATE_FAILED: u32 = 4;

/// Feature bits that a reader must know to open the store. None are defined.
const INCOMPATIBLE_KNOWN: u64 = 0;

/// What a store says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Grows with every write of the superblock; the slot with the higher one counts.
    pub(super) generation: u64,
    pub(super) cluster: ClusterId,
    pub(super) volume: VolumeId,
    pub(super) disk_id: DiskId,
    pub(super) size_bytes: u64,
    pub(super) last_in_sync: ConfigVersion,
    pub(super) boot: Boot,
    pub(super) clean: bool,
    pub(super) suspect: bool,
    pub(super) failed: bool,
    pub(super) layout: Layout,
    pub(super) scrubs: Scrubs,
}

/// What is wrong with one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SlotProblem {
    /// All zeros.
    Blank,
    /// No magic of ours.
    Foreign,
    /// Ours, but the checksum or a value is wrong.
    Damaged(String),
    /// Ours and intact, but of a format that is not read any more.
    Older(u32),
    /// Ours and intact, but of a format this program does not know.
    Newer(String),
}

impl Superblock {
    /// One slot's bytes.
    pub(super) fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        out[..16].copy_from_slice(&MAGIC);
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(VERSION_AT, &FORMAT_VERSION.to_le_bytes());
        put(GENERATION_AT, &self.generation.to_le_bytes());
        put(CLUSTER_AT, &self.cluster.0.to_le_bytes());
        put(VOLUME_AT, &self.volume.0.to_le_bytes());
        put(DISK_AT, &self.disk_id.0.to_le_bytes());
        put(SIZE_AT, &self.size_bytes.to_le_bytes());
        put(LAST_IN_SYNC_AT, &self.last_in_sync.0.to_le_bytes());
        put(BOOT_AT, &self.boot.0.to_le_bytes());
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let state = flag(self.clean, STATE_CLEAN) | flag(self.suspect, STATE_SUSPECT) | flag(self.failed, STATE_FAILED);
        put(STATE_AT, &state.to_le_bytes());
        put(BITMAPS_AT, &BITMAPS.to_le_bytes());
        put(BLOCK_BYTES_AT, &(BLOCK_BYTES as u32).to_le_bytes());
        put(EXTENT_BYTES_AT, &(EXTENT_BYTES as u32).to_le_bytes());
        let l = &self.layout;
        let areas = [l.activity_log, l.bitmaps, l.index_first, l.index_second, l.checksums, l.data];
        for (number, area) in areas.iter().enumerate() {
            put(AREAS_AT + 16 * number, &area.offset.to_le_bytes());
            put(AREAS_AT + 16 * number + 8, &area.length.to_le_bytes());
        }
        put(SCRUBS_AT, &self.scrubs.encode());
        let crc = checksum(&out);
        out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads one slot.
    pub(super) fn decode(slot: &[u8; SLOT_BYTES]) -> Result<Superblock, SlotProblem> {
        if slot.iter().all(|byte| *byte == 0) {
            return Err(SlotProblem::Blank);
        }
        if slot[..16] != MAGIC {
            return Err(SlotProblem::Foreign);
        }
        if u32_at(slot, CRC_AT) != checksum(slot) {
            return Err(SlotProblem::Damaged("its checksum is wrong".into()));
        }
        let version = u32_at(slot, VERSION_AT);
        if version > FORMAT_VERSION {
            return Err(SlotProblem::Newer(format!("format version {version}, this program reads {FORMAT_VERSION}")));
        }
        if version < FORMAT_VERSION {
            return Err(SlotProblem::Older(version));
        }
        let unknown = u64_at(slot, INCOMPATIBLE_AT) & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(SlotProblem::Newer(format!("features {unknown:#x} that this program does not know")));
        }
        let area = |number: usize| {
            let at = AREAS_AT + 16 * number;
            Area { offset: u64_at(slot, at), length: u64_at(slot, at + 8) }
        };
        let layout = Layout {
            activity_log: area(0),
            bitmaps: area(1),
            index_first: area(2),
            index_second: area(3),
            checksums: area(4),
            data: area(5),
        };
        let state = u32_at(slot, STATE_AT);
        let superblock = Superblock {
            generation: u64_at(slot, GENERATION_AT),
            cluster: ClusterId(u128_at(slot, CLUSTER_AT)),
            volume: VolumeId(u128_at(slot, VOLUME_AT)),
            disk_id: DiskId(u128_at(slot, DISK_AT)),
            size_bytes: u64_at(slot, SIZE_AT),
            last_in_sync: ConfigVersion(u64_at(slot, LAST_IN_SYNC_AT)),
            boot: Boot(u128_at(slot, BOOT_AT)),
            clean: state & STATE_CLEAN != 0,
            suspect: state & STATE_SUSPECT != 0,
            failed: state & STATE_FAILED != 0,
            layout,
            scrubs: Scrubs::decode(&slot[SCRUBS_AT..], u64_at(slot, SIZE_AT) / BLOCK_BYTES),
        };
        let constants = [
            (u32_at(slot, BITMAPS_AT) == BITMAPS, "number of bitmaps"),
            (u64::from(u32_at(slot, BLOCK_BYTES_AT)) == BLOCK_BYTES, "block size"),
            (u64::from(u32_at(slot, EXTENT_BYTES_AT)) == EXTENT_BYTES, "extent size"),
        ];
        if let Some((_, name)) = constants.iter().find(|(holds, _)| !holds) {
            return Err(SlotProblem::Damaged(format!("its {name} makes no sense")));
        }
        match superblock.layout.problem(superblock.size_bytes) {
            Some(problem) => Err(SlotProblem::Damaged(problem)),
            None => Ok(superblock),
        }
    }
}

/// The slot that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) superblock: Superblock,
    /// Its number, 0 or 1.
    pub(super) slot: usize,
}

/// Chooses between two slots, or says why neither is to be used.
pub(super) fn choose(slots: [Result<Superblock, SlotProblem>; 2]) -> Result<Chosen, SlotProblem> {
    let [first, second] = slots;
    match (first, second) {
        // A half-made upgrade belongs to the newer program.
        (Err(newer @ SlotProblem::Newer(_)), _) | (_, Err(newer @ SlotProblem::Newer(_))) => Err(newer),
        (Err(older @ SlotProblem::Older(_)), _) | (_, Err(older @ SlotProblem::Older(_))) => Err(older),
        (Ok(a), Ok(b)) => {
            if (a.cluster, a.volume, a.disk_id) != (b.cluster, b.volume, b.disk_id) {
                return Err(SlotProblem::Damaged("its two superblocks belong to different stores".into()));
            }
            let slot = usize::from(b.generation > a.generation);
            Ok(Chosen { superblock: if slot == 1 { b } else { a }, slot })
        }
        (Ok(superblock), Err(_)) => Ok(Chosen { superblock, slot: 0 }),
        (Err(_), Ok(superblock)) => Ok(Chosen { superblock, slot: 1 }),
        (Err(damaged @ SlotProblem::Damaged(_)), Err(_)) | (Err(_), Err(damaged @ SlotProblem::Damaged(_))) => {
            Err(damaged)
        }
        (Err(SlotProblem::Blank), Err(SlotProblem::Blank)) => Err(SlotProblem::Blank),
        _ => Err(SlotProblem::Foreign),
    }
}

/// CRC-32 of a slot, its own field taken as zero.
fn checksum(slot: &[u8; SLOT_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&slot[..CRC_AT]);
    hasher.update(&[0; 4]);
    hasher.update(&slot[CRC_AT + 4..]);
    hasher.finalize()
}

fn array_at<const N: usize>(slot: &[u8; SLOT_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&slot[at..at + N]);
    out
}

fn u32_at(slot: &[u8; SLOT_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(array_at(slot, at))
}

fn u64_at(slot: &[u8; SLOT_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(array_at(slot, at))
}

fn u128_at(slot: &[u8; SLOT_BYTES], at: usize) -> u128 {
    u128::from_le_bytes(array_at(slot, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(generation: u64) -> Superblock {
        Superblock {
            generation,
            cluster: ClusterId(1),
            volume: VolumeId(2),
            disk_id: DiskId(3),
            size_bytes: 1 << 30,
            last_in_sync: ConfigVersion(9),
            boot: Boot(4),
            clean: true,
            suspect: false,
            failed: true,
            layout: Layout::for_volume(1 << 30),
            scrubs: Scrubs { scrubbed_unix_micros: 5, ..Scrubs::default() },
        }
    }

    /// A sealed slot with one value replaced.
    fn with(at: usize, bytes: &[u8]) -> [u8; SLOT_BYTES] {
        let mut slot = sample(1).encode();
        slot[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = checksum(&slot);
        slot[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    #[test]
    fn a_superblock_comes_back() {
        assert_eq!(Superblock::decode(&sample(7).encode()), Ok(sample(7)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = sample(1).encode();
        for bit in 0..SLOT_BYTES * 8 {
            let mut slot = good;
            slot[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&slot).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_a_slot_holds_is_told_apart() {
        assert_eq!(Superblock::decode(&[0; SLOT_BYTES]), Err(SlotProblem::Blank));
        assert_eq!(Superblock::decode(&[7; SLOT_BYTES]), Err(SlotProblem::Foreign));
        let newer = [with(VERSION_AT, &3u32.to_le_bytes()), with(INCOMPATIBLE_AT, &4u64.to_le_bytes())];
        for slot in newer {
            assert!(matches!(Superblock::decode(&slot), Err(SlotProblem::Newer(_))));
        }
        let older = with(VERSION_AT, &1u32.to_le_bytes());
        assert_eq!(Superblock::decode(&older), Err(SlotProblem::Older(1)));
        let nonsense = [
            with(BITMAPS_AT, &4u32.to_le_bytes()),
            with(BLOCK_BYTES_AT, &512u32.to_le_bytes()),
            with(EXTENT_BYTES_AT, &0u32.to_le_bytes()),
            with(SIZE_AT, &u64::MAX.to_le_bytes()),
            with(AREAS_AT, &u64::MAX.to_le_bytes()),
        ];
        for slot in nonsense {
            assert!(matches!(Superblock::decode(&slot), Err(SlotProblem::Damaged(_))));
        }
    }

    #[test]
    fn the_higher_generation_counts_and_one_bad_slot_is_borne() {
        let slot = |choice: Result<Chosen, _>| choice.map(|c| c.slot);
        assert_eq!(slot(choose([Ok(sample(1)), Ok(sample(2))])), Ok(1));
        assert_eq!(slot(choose([Ok(sample(3)), Ok(sample(2))])), Ok(0));
        assert_eq!(slot(choose([Err(SlotProblem::Blank), Ok(sample(2))])), Ok(1));
        assert_eq!(slot(choose([Ok(sample(2)), Err(SlotProblem::Foreign)])), Ok(0));
        assert_eq!(choose([Err(SlotProblem::Blank), Err(SlotProblem::Foreign)]), Err(SlotProblem::Foreign));
        let newer = SlotProblem::Newer("2".into());
        assert_eq!(choose([Ok(sample(2)), Err(newer.clone())]), Err(newer));
        let other = Superblock { disk_id: DiskId(8), ..sample(5) };
        assert!(matches!(choose([Ok(sample(2)), Ok(other)]), Err(SlotProblem::Damaged(_))));
    }
}
