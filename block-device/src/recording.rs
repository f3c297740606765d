//! A block device that remembers what it was told, to show what a power loss may leave.
//!
//! It behaves as a disk with a volatile write cache: a write that has returned can be read back, and is lost by a power
//! loss unless a flush returned after it or it was a FUA write. From the record a test takes any image such a loss may
//! leave, at any moment: every write made durable by then, and of the others any subset of their 512-byte sectors.
//!
//! Overlapping writes reach the medium in the order of their issue or not at all, which gives every content a sector may
//! have: that of any of its writes since the last durable one, or of the durable one.

use std::cell::RefCell;

use bytes::Bytes;

use crate::{Allocation, BatchWrite, BlockDevice, BlockError, ByteRange, RamDevice};

/// Unit that a disk writes whole or not at all, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// Events one device records; past that its writes and flushes fail with [`BlockError::OutOfSpace`].
pub const RECORDED_EVENTS_MAX: usize = 1 << 20;

/// What a recorded write does to its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Stores these bytes.
    Data(Bytes),
    /// Zeroes this many bytes, and frees their space unless `keep_allocated`.
    Clear {
        /// Bytes zeroed.
        length: u64,
        /// The space stays reserved.
        keep_allocated: bool,
    },
}

/// One recorded write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedWrite {
    /// First byte.
    pub offset: u64,
    /// What it does there.
    pub effect: Effect,
    /// Durable at its completion.
    pub fua: bool,
}

impl RecordedWrite {
    /// Bytes it covers.
    pub fn length(&self) -> u64 {
        match &self.effect {
            Effect::Data(data) => data.len() as u64,
            Effect::Clear { length, .. } => *length,
        }
    }

    /// The 512-byte sectors it touches, numbered from the start of the device.
    pub fn sectors(&self) -> std::ops::Range<u64> {
        self.offset / SECTOR_BYTES..(self.offset + self.length()).div_ceil(SECTOR_BYTES)
    }

    /// Does the part of this write that lies in `start .. end` (bytes).
    fn apply_part(&self, image: &RamDevice, start: u64, end: u64) {
        let start = start.max(self.offset);
        let end = end.min(self.offset + self.length());
        match &self.effect {
            Effect::Data(data) => {
                image.store(start, &data[(start - self.offset) as usize..(end - self.offset) as usize]);
            }
            Effect::Clear { keep_allocated, .. } => image.clear(start, end - start, *keep_allocated),
        }
    }

    fn apply(&self, image: &RamDevice) {
        self.apply_part(image, self.offset, self.offset + self.length());
    }
}

/// One recorded event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A write, zeroing or discard.
    Write(RecordedWrite),
    /// A flush: every write before it is durable.
    Flush,
}

/// A RAM device that records its writes and flushes.
#[derive(Debug)]
pub struct RecordingDevice {
    first: RamDevice,
    current: RamDevice,
    events: RefCell<Vec<Event>>,
}

impl RecordingDevice {
    /// A device of `size_bytes` (a multiple of 4096), all holes, nothing recorded.
    pub fn new(size_bytes: u64) -> Self {
        Self::over(RamDevice::new(size_bytes))
    }

    /// A device that starts with the content of `image`, all of it durable; nothing recorded.
    pub fn over(image: RamDevice) -> Self {
        Self { current: image.clone(), first: image, events: RefCell::default() }
    }

    /// Number of events recorded so far: the moment "now" for [`Self::crash_image`].
    pub fn position(&self) -> usize {
        self.events.borrow().len()
    }

    /// A copy of the record.
    pub fn events(&self) -> Vec<Event> {
        self.events.borrow().clone()
    }

    /// The image that a power loss after the first `position` events may leave: every durable write, and of the others
    /// the sectors for which `keep(write, sector)` says so. `write` is the event's number; the order of calls is that
    /// of the events, and within one of its sectors.
    pub fn crash_image(&self, position: usize, keep: impl FnMut(usize, u64) -> bool) -> RamDevice {
        let mut cursor = self.cursor();
        cursor.advance_to(position);
        cursor.crash_image(keep)
    }

    /// A walk over the moments of the record, cheaper than [`Self::crash_image`] from the start for each.
    pub fn cursor(&self) -> CrashCursor {
        CrashCursor { events: self.events(), position: 0, durable: self.first.clone(), pending: Vec::new() }
    }

    fn record(&self, event: Event) -> Result<(), BlockError> {
        let mut events = self.events.borrow_mut();
        if events.len() >= RECORDED_EVENTS_MAX {
            return Err(BlockError::OutOfSpace);
        }
        if let Event::Write(write) = &event {
            write.apply(&self.current);
        }
        events.push(event);
        Ok(())
    }
}

/// A moment in a record: what is durable there, and what may yet be lost.
#[derive(Clone, Debug)]
pub struct CrashCursor {
    events: Vec<Event>,
    position: usize,
    durable: RamDevice,
    /// Writes since the last flush, with their event numbers; also the FUA ones that follow one of them, since what is
    /// kept of the earlier must not show over the later.
    pending: Vec<(usize, RecordedWrite)>,
}

impl CrashCursor {
    /// Number of events before this moment.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Moves one event on; false at the end of the record.
    pub fn advance(&mut self) -> bool {
        let Some(event) = self.events.get(self.position) else { return false };
        match event {
            Event::Flush => {
                for (_, write) in self.pending.drain(..) {
                    write.apply(&self.durable);
                }
            }
            Event::Write(write) if write.fua && self.pending.is_empty() => write.apply(&self.durable),
            Event::Write(write) => self.pending.push((self.position, write.clone())),
        }
        self.position += 1;
        true
    }

    /// Moves on to the moment after the first `position` events, or to the end of the record.
    pub fn advance_to(&mut self, position: usize) {
        while self.position < position && self.advance() {}
    }

    /// The writes that a power loss here may lose, with their event numbers.
    pub fn losable(&self) -> impl Iterator<Item = (usize, &RecordedWrite)> {
        self.pending.iter().filter(|(_, write)| !write.fua).map(|(number, write)| (*number, write))
    }

    /// As [`RecordingDevice::crash_image`], at this moment.
    pub fn crash_image(&self, mut keep: impl FnMut(usize, u64) -> bool) -> RamDevice {
        let image = self.durable.clone();
        for (number, write) in &self.pending {
            if write.fua {
                write.apply(&image);
                continue;
            }
            for sector in write.sectors() {
                if keep(*number, sector) {
                    write.apply_part(&image, sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
                }
            }
        }
        image
    }
}

impl BlockDevice for RecordingDevice {
    fn size_bytes(&self) -> u64 {
        self.current.size_bytes()
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, BlockError> {
        self.current.read(range).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BlockError> {
        self.current.check(offset, data.len() as u64)?;
        self.record(Event::Write(RecordedWrite { offset, effect: Effect::Data(data), fua }))
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.record(Event::Flush)
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn discard(&self, range: ByteRange, fua: bool) -> Result<(), BlockError> {
        self.write_zeroes(range, false, fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, keep_allocated: bool, fua: bool) -> Result<(), BlockError> {
        self.current.check(range.offset, range.length)?;
        let effect = Effect::Clear { length: range.length, keep_allocated };
        self.record(Event::Write(RecordedWrite { offset: range.offset, effect, fua }))
    }

    async fn write_batch(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        for group in groups {
            for write in &group {
                self.current.check(write.offset, write.data.len() as u64)?;
            }
            for BatchWrite { offset, data } in group {
                self.write(offset, data, false).await?;
            }
            self.flush().await?;
        }
        Ok(())
    }

    async fn allocation(&self, range: ByteRange) -> Result<Vec<Allocation>, BlockError> {
        self.current.allocation(range).await
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Runs a future that never waits.
    pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("a device in memory never waits"),
        }
    }

    fn block(byte: u8) -> Bytes {
        Bytes::from(vec![byte; 4096])
    }

    /// A small generator, so that this crate needs no dependency for its tests.
    struct Draws(u64);

    impl Draws {
        fn next(&mut self, below: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % below
        }
    }

    #[test]
    fn an_unflushed_write_can_be_lost_kept_or_torn() {
        let device = RecordingDevice::new(8192);
        now(device.write(0, block(1), false)).unwrap();
        let at = device.position();
        assert_eq!(device.crash_image(at, |_, _| false).to_vec(), vec![0; 8192]);
        assert_eq!(&device.crash_image(at, |_, _| true).to_vec()[..4096], &[1; 4096]);
        let torn = device.crash_image(at, |_, sector| sector % 2 == 1).to_vec();
        for sector in 0..8 {
            assert!(torn[sector * 512..(sector + 1) * 512].iter().all(|b| *b == (sector % 2) as u8));
        }
    }

    #[test]
    fn a_flushed_write_is_never_lost_and_earlier_moments_stay_reachable() {
        let device = RecordingDevice::new(8192);
        now(device.write(0, block(1), false)).unwrap();
        now(device.flush()).unwrap();
        now(device.write(0, block(2), false)).unwrap();
        assert_eq!(device.crash_image(1, |_, _| false).to_vec()[0], 0);
        for position in 2..=3 {
            assert_eq!(device.crash_image(position, |_, _| false).to_vec()[0], 1);
        }
        assert_eq!(device.crash_image(3, |_, _| true).to_vec()[0], 2);
    }

    #[test]
    fn a_fua_write_is_durable_alone_and_covers_what_it_overwrote() {
        let device = RecordingDevice::new(8192);
        now(device.write(0, block(1), false)).unwrap();
        now(device.write(4096, block(2), false)).unwrap();
        now(device.write(0, block(3), true)).unwrap();
        let at = device.position();
        let lost = device.crash_image(at, |_, _| false).to_vec();
        assert_eq!((lost[0], lost[4096]), (3, 0));
        let kept = device.crash_image(at, |_, _| true).to_vec();
        assert_eq!((kept[0], kept[4096]), (3, 2));
        let mut cursor = device.cursor();
        cursor.advance_to(at);
        assert_eq!(cursor.losable().map(|(number, _)| number).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_later_group_of_a_batch_never_survives_an_earlier_one() {
        let device = RecordingDevice::new(8192);
        let write = |offset, byte| BatchWrite { offset, data: block(byte) };
        now(device.write_batch(vec![vec![write(0, 1)], vec![write(4096, 2)]])).unwrap();
        for position in 0..=device.position() {
            for keep in [false, true] {
                let image = device.crash_image(position, |_, _| keep).to_vec();
                assert!(image[4096] == 0 || image[..4096].iter().all(|b| *b == 1), "moment {position}");
            }
        }
        assert_eq!(device.crash_image(device.position(), |_, _| false).to_vec()[4096], 2);
    }

    #[test]
    fn a_discard_is_lost_like_a_write() {
        let device = RecordingDevice::over(RamDevice::from_image(&[9; 8192]));
        now(device.discard(ByteRange { offset: 0, length: 4096 }, false)).unwrap();
        assert_eq!(device.crash_image(1, |_, _| false).to_vec()[0], 9);
        assert_eq!(device.crash_image(1, |_, _| true).to_vec()[0], 0);
        assert_eq!(now(device.read(ByteRange { offset: 0, length: 1 })).unwrap()[0], 0);
    }

    /// Every sector of a random image holds its last durable content or that of a later write.
    #[test]
    fn random_images_are_flush_legal() {
        const BLOCKS: u64 = 8;
        let seed = 0x9e37_79b9_7f4a_7c15;
        let mut draws = Draws(seed);
        let device = RecordingDevice::new(BLOCKS * 4096);
        for round in 1..400u32 {
            let first = draws.next(BLOCKS * 8);
            let count = 1 + draws.next((BLOCKS * 8 - first).min(12));
            let data = Bytes::from(round.to_le_bytes().repeat((count * 128) as usize));
            now(device.write(first * 512, data, draws.next(10) == 0)).unwrap();
            if draws.next(8) == 0 {
                now(device.flush()).unwrap();
            }
        }
        let mut legal: Vec<Vec<u32>> = vec![vec![0]; BLOCKS as usize * 8];
        let mut cursor = device.cursor();
        let events = device.events();
        while cursor.advance() {
            match &events[cursor.position() - 1] {
                Event::Flush => legal.iter_mut().for_each(|values| *values = vec![*values.last().unwrap()]),
                Event::Write(write) => {
                    let Effect::Data(data) = &write.effect else { panic!("only data was written") };
                    let value = u32::from_le_bytes(data[..4].try_into().unwrap());
                    for sector in write.sectors() {
                        let values = &mut legal[sector as usize];
                        if write.fua {
                            values.clear();
                        }
                        values.push(value);
                    }
                }
            }
            let image = cursor.crash_image(|_, _| draws.next(2) == 0).to_vec();
            for (sector, values) in legal.iter().enumerate() {
                let bytes = &image[sector * 512..(sector + 1) * 512];
                let value = u32::from_le_bytes(bytes[..4].try_into().unwrap());
                assert!(values.contains(&value), "seed {seed:#x} moment {} sector {sector}", cursor.position());
                assert!(bytes.chunks(4).all(|c| c == value.to_le_bytes()), "a sector is never torn");
            }
        }
    }
}
