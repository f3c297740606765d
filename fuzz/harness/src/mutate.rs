//! Damage to an image as an input says, with the checksums put right behind it.

use filesystem::layout::checksum::Seed as ChecksumSeed;
use filesystem::units::{BlockNumber, InodeNumber};

use crate::ImageDevice;
use crate::input::Input;
use crate::seal;
use crate::seed::Seed;
use crate::survey::{Kind, Spot, Survey};

/// Structures that one input damages at most.
const DAMAGED_MAX: usize = 8;
/// Changes to one structure at most.
const CHANGES_MAX: usize = 8;

/// Damages structures of the image; those of `wanted` kinds three times out of four. Gives the inodes they belong to.
pub(crate) fn damage(
    device: &ImageDevice,
    seed: &Seed,
    input: &mut Input<'_>,
    wanted: fn(&Kind) -> bool,
) -> Vec<InodeNumber> {
    let mut owners = Vec::new();
    let survey = &seed.survey;
    let near: Vec<&Spot> = survey.spots.iter().filter(|spot| wanted(&spot.kind)).collect();
    let count = 1 + input.below(DAMAGED_MAX);
    for _ in 0..count {
        if input.is_empty() {
            break;
        }
        let how = input.u8();
        let spot = match how & 3 {
            0 => &survey.spots[input.below(survey.spots.len())],
            _ => near[input.below(near.len())],
        };
        change(device, survey, input, spot);
        // Broken checksums are seen, too.
        if how & 0xf0 != 0xf0 {
            seal(device, survey, spot);
        }
        owners.extend(spot.owner);
    }
    owners
}

fn change(device: &ImageDevice, survey: &Survey, input: &mut Input<'_>, spot: &Spot) {
    let mut bytes = device.get(spot.offset, spot.length).unwrap_or_default().to_vec();
    let length = bytes.len();
    for _ in 0..1 + input.below(CHANGES_MAX) {
        let how = input.u8();
        let at = input.below(length);
        match how % 8 {
            0 => write(&mut bytes, at, &[input.u8()]),
            1 => write(&mut bytes, at & !1, &(number(survey, input) as u16).to_le_bytes()),
            2 => write(&mut bytes, at & !3, &(number(survey, input) as u32).to_le_bytes()),
            3 => write(&mut bytes, at & !3, &number(survey, input).to_le_bytes()),
            4 => write(&mut bytes, at & !3, &(number(survey, input) as u32).to_be_bytes()),
            5 => {
                let count = input.below(64);
                write(&mut bytes, at, &vec![input.u8(); count]);
            }
            6 => {
                let count = input.below(64);
                let given = input.bytes(count);
                write(&mut bytes, at, given);
            }
            _ => {
                let other = survey.spots[input.below(survey.spots.len())];
                let other = device.get(other.offset, other.length).unwrap_or_default();
                let from = input.below(other.len());
                let count = input.below(length);
                write(&mut bytes, at, &other[from..(from + count).min(other.len())]);
            }
        }
    }
    device.put(spot.offset, &bytes);
}

fn write(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes.iter_mut().skip(at).zip(new).for_each(|(to, from)| *to = *from);
}

/// A number that is worth a try: at a limit, or the place of something.
pub(crate) fn number(survey: &Survey, input: &mut Input<'_>) -> u64 {
    let geometry = &survey.geometry;
    match input.u8() % 16 {
        0 => input.u8().into(),
        1 => input.u16().into(),
        2 => input.u32().into(),
        3 => input.u64(),
        4 => 0_u64.wrapping_sub(input.u8().into()),
        5 => 1 << (input.u8() % 64),
        6 => (1 << (input.u8() % 64)) - 1,
        7 => geometry.block_count.wrapping_sub(input.u8().into()),
        8 => u64::from(geometry.inode_count).wrapping_sub(input.u8().into()),
        9 => u64::from(geometry.block_size).wrapping_add(input.u8().into()).wrapping_sub(128),
        10 => u64::from(geometry.blocks_per_group).wrapping_sub(input.u8().into()),
        11 => u64::from(u32::MAX).wrapping_sub(input.u8().into()),
        12 => 0x8000 - u64::from(input.u8() % 4) * 0x2000,
        13 => survey.journal.get(input.below(survey.journal.len())).map_or(0, |block| block.0),
        _ => survey.spots[input.below(survey.spots.len())].offset / u64::from(geometry.block_size),
    }
}

/// Puts a structure's checksum right. With a damaged superblock or inode, those that begin with numbers of it stay as they
/// are in what is not damaged.
pub(crate) fn seal(device: &ImageDevice, survey: &Survey, spot: &Spot) {
    let geometry = &survey.geometry;
    let at = BlockNumber(spot.offset / u64::from(geometry.block_size));
    let mut bytes = device.get(spot.offset, spot.length).unwrap_or_default().to_vec();
    let of_inode = |number: InodeNumber| -> Option<ChecksumSeed> {
        let spot = survey.spots.iter().find(|spot| spot.kind == Kind::Inode(number))?;
        let inode = device.get(spot.offset, spot.length)?;
        Some(geometry.checksum_seed?.of_inode(number, seal::generation(&inode)))
    };
    match (spot.kind, geometry.checksum_seed) {
        (Kind::Superblock, Some(_)) => seal::superblock(&mut bytes),
        (Kind::Descriptor(group), _) => seal::descriptor(geometry, group, &mut bytes),
        (Kind::BlockBitmap(group) | Kind::InodeBitmap(group), Some(_)) => {
            seal_bitmap(device, survey, group, matches!(spot.kind, Kind::BlockBitmap(_)), &bytes);
        }
        (Kind::Inode(number), Some(seed)) => seal::inode(seed, number, &mut bytes),
        (Kind::Attributes, Some(seed)) => seal::attributes(seed, at, &mut bytes),
        (Kind::Entries(number), Some(_)) => {
            of_inode(number).into_iter().for_each(|seed| seal::entries(seed, &mut bytes))
        }
        (Kind::Index(number, from), Some(_)) => {
            of_inode(number).into_iter().for_each(|seed| seal::index(seed, from, &mut bytes));
        }
        (Kind::Extents(number), Some(_)) => {
            of_inode(number).into_iter().for_each(|seed| seal::extents(seed, &mut bytes))
        }
        (Kind::Orphans(number), Some(_)) => {
            of_inode(number).into_iter().for_each(|seed| seal::orphans(seed, at, &mut bytes));
        }
        // It has a checksum once it has the feature for it.
        (Kind::JournalSuperblock, _) if bytes[0x28..0x2c] != [0; 4] && bytes[0x2b] & 0x18 != 0 => {
            seal::journal_superblock(&mut bytes);
        }
        _ => {}
    }
    device.put(spot.offset, &bytes);
}

fn seal_bitmap(device: &ImageDevice, survey: &Survey, group: u32, blocks: bool, bitmap: &[u8]) {
    let Some(spot) = survey.spots.iter().find(|spot| spot.kind == Kind::Descriptor(group)) else { return };
    let mut descriptor = device.get(spot.offset, spot.length).unwrap_or_default().to_vec();
    // A bitmap that was never written has no checksum, until a mutation of the descriptor says otherwise.
    let never_written = descriptor[0x12] & if blocks { 2 } else { 1 } != 0;
    if never_written {
        return;
    }
    seal::bitmap(&survey.geometry, blocks, bitmap, &mut descriptor);
    seal::descriptor(&survey.geometry, group, &mut descriptor);
    device.put(spot.offset, &descriptor);
}
