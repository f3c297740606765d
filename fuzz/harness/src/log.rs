//! A journal with a log of hostile blocks: forms and checksums are right as often as the input says, contents are anybody's.

use filesystem::journal::JournalSuperblock;
use filesystem::layout::checksum::Seed as ChecksumSeed;

use crate::ImageDevice;
use crate::input::Input;
use crate::mutate::number;
use crate::seal;
use crate::seed::Seed;
use crate::survey::Survey;

/// Log blocks that one input writes at most.
const BLOCKS_MAX: usize = 64;
const MAGIC: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();
/// Features of the journal that inputs choose among: none, revoke, 64bit, checksums of version 2 and 3, and any.
const FEATURES: [u32; 8] = [0, 1, 0x13, 0x11, 0xb, 0x9, 0x3, 0x12];

/// What the blocks of a log are made with.
struct Form {
    wide: bool,
    version_2: bool,
    version_3: bool,
    seed: ChecksumSeed,
}

/// Writes a journal as the input says.
pub(crate) fn write(device: &ImageDevice, seed: &Seed, input: &mut Input<'_>) {
    let survey = &seed.survey;
    let size = survey.geometry.block_size as usize;
    let place = |index: u32| survey.journal.get(index as usize).map(|block| block.0 * size as u64);
    let Some(mut superblock) = place(0).and_then(|at| device.get(at, size as u64)).map(|bytes| bytes.to_vec()) else {
        return;
    };
    let choice = input.u8();
    let features = FEATURES[usize::from(choice & 7)];
    let mut put = |at: usize, value: u32| superblock[at..at + 4].copy_from_slice(&value.to_be_bytes());
    let start = 1 + u32::from(input.u16()) % (survey.journal.len() as u32 - 1);
    let sequence = if choice & 0x80 == 0 { 7 } else { number(survey, input) as u32 };
    put(0x18, sequence);
    put(0x1c, start);
    put(0x24, u32::from(features == 0 && choice & 0x40 != 0));
    put(0x28, features);
    superblock[0x50] = 4;
    for _ in 0..input.below(4) {
        let (at, value) = (input.below(0x60) & !3, number(survey, input) as u32);
        superblock[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    seal::journal_superblock(&mut superblock);
    place(0).and_then(|at| device.put(at, &superblock));
    // What is refused at its superblock does not get blocks.
    let Ok(decoded) = JournalSuperblock::decode(&superblock, size as u32, survey.journal.len() as u32) else { return };
    let form = Form {
        wide: features & 2 != 0,
        version_2: features & 8 != 0,
        version_3: features & 0x10 != 0,
        seed: decoded.format().seed,
    };
    let blocks = blocks(survey, device, input, &form, sequence);
    for (index, block) in blocks.iter().enumerate() {
        let ring = survey.journal.len() as u32 - 1;
        let at = 1 + (start - 1 + index as u32) % ring;
        place(at).and_then(|at| device.put(at, block));
    }
}

fn blocks(survey: &Survey, device: &ImageDevice, input: &mut Input<'_>, form: &Form, first: u32) -> Vec<Vec<u8>> {
    let size = survey.geometry.block_size as usize;
    let mut blocks = Vec::new();
    let mut sequence = first;
    while blocks.len() < BLOCKS_MAX && !input.is_empty() {
        let how = input.u8();
        let stated =
            if how & 0xf0 == 0xf0 { sequence.wrapping_add(input.u8().into()).wrapping_sub(1) } else { sequence };
        let start = |kind: u32| {
            let mut block = vec![0; size];
            block[..4].copy_from_slice(&MAGIC);
            block[4..8].copy_from_slice(&kind.to_be_bytes());
            block[8..12].copy_from_slice(&stated.to_be_bytes());
            block
        };
        match how % 8 {
            0..=2 => descriptor(survey, device, input, form, (stated, start(1)), &mut blocks),
            3 | 4 => {
                blocks.push(commit(input, form, start(2)));
                sequence = sequence.wrapping_add(1);
            }
            5 | 6 => blocks.push(revoke(survey, input, form, start(5))),
            _ => {
                let mut block = start(input.u8().into());
                let at = input.below(size);
                let count = input.below(64);
                let given = input.bytes(count);
                block.iter_mut().skip(at).zip(given).for_each(|(to, from)| *to = *from);
                blocks.push(block);
            }
        }
    }
    blocks
}

/// A descriptor block and its copies.
fn descriptor(
    survey: &Survey,
    device: &ImageDevice,
    input: &mut Input<'_>,
    form: &Form,
    (sequence, mut block): (u32, Vec<u8>),
    blocks: &mut Vec<Vec<u8>>,
) {
    let size = block.len();
    let count = 1 + input.below(6);
    let mut copies = Vec::new();
    let mut at = 12;
    for index in 0..count {
        let how = input.u8();
        let home = match how & 3 {
            0 => number(survey, input),
            _ => survey.spots[input.below(survey.spots.len())].offset / size as u64,
        };
        let copy = copy(device, input, home, size);
        let sum = form.seed.then(&sequence.to_be_bytes()).sum(&copy);
        let last = if index + 1 == count { 8 } else { 0 };
        let same_uuid = if index > 0 { 2 } else { 0 };
        let other_end = u32::from(how >> 4 & 3 == 3) * 2;
        let flags = u32::from(how >> 6 == 3) | same_uuid | (last ^ other_end);
        let mut tag = (home as u32).to_be_bytes().to_vec();
        if form.version_3 {
            tag.extend(flags.to_be_bytes());
        } else {
            tag.extend((sum as u16).to_be_bytes());
            tag.extend((flags as u16).to_be_bytes());
        }
        if form.wide || form.version_3 {
            tag.extend(((home >> 32) as u32).to_be_bytes());
        }
        if form.version_3 {
            tag.extend(sum.to_be_bytes());
        } else if form.version_2 {
            tag.extend([0; 2]);
        }
        if flags & 2 == 0 {
            tag.extend([0; 16]);
        }
        block.iter_mut().skip(at).zip(&tag).for_each(|(to, from)| *to = *from);
        at += tag.len();
        copies.push(copy);
    }
    set_tail(input, form, &mut block);
    blocks.push(block);
    blocks.extend(copies);
}

/// A copy: of the block that is at home, with some of it changed.
fn copy(device: &ImageDevice, input: &mut Input<'_>, home: u64, size: usize) -> Vec<u8> {
    let home = home.checked_mul(size as u64).and_then(|at| device.get(at, size as u64));
    let mut copy = home.map_or_else(|| vec![0; size], |bytes| bytes.to_vec());
    if input.u8() & 1 == 1 {
        let at = input.below(size);
        let count = input.below(32);
        let given = input.bytes(count);
        copy.iter_mut().skip(at).zip(given).for_each(|(to, from)| *to = *from);
    }
    copy
}

fn revoke(survey: &Survey, input: &mut Input<'_>, form: &Form, mut block: Vec<u8>) -> Vec<u8> {
    let width = if form.wide { 8 } else { 4 };
    let count = input.below(16);
    let used = if input.u8() < 0xf0 { 16 + width * count } else { number(survey, input) as usize };
    block[12..16].copy_from_slice(&(used as u32).to_be_bytes());
    for index in 0..count {
        let home = number(survey, input).to_be_bytes();
        let at = 16 + width * index;
        block[at..at + width].copy_from_slice(&home[8 - width..]);
    }
    set_tail(input, form, &mut block);
    block
}

fn commit(input: &mut Input<'_>, form: &Form, mut block: Vec<u8>) -> Vec<u8> {
    let how = input.u8();
    block[0x30..0x38].copy_from_slice(&(1_600_000_000 + u64::from(how & 7)).to_be_bytes());
    if form.version_2 || form.version_3 {
        block[0x10..0x14].fill(0);
        let sum = form.seed.sum(&block).wrapping_add(u32::from(how >= 0xf0));
        block[0x10..0x14].copy_from_slice(&sum.to_be_bytes());
    }
    block
}

fn set_tail(input: &mut Input<'_>, form: &Form, block: &mut [u8]) {
    if !(form.version_2 || form.version_3) {
        return;
    }
    let body = block.len() - 4;
    let sum = form.seed.then(&block[..body]).sum(&[0; 4]).wrapping_add(u32::from(input.u8() >= 0xf8));
    block[body..].copy_from_slice(&sum.to_be_bytes());
}
