//! Times of an inode: 32 bits of seconds, and, in larger inodes, nanoseconds and two more bits of seconds (ext4 on-disk
//! format, "Inode Timestamps").

/// A moment, as seconds and nanoseconds of Unix time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds after the second, below a thousand million.
    pub nanoseconds: u32,
}

const EPOCH_BITS: u32 = 2;
const EPOCH_MASK: u32 = (1 << EPOCH_BITS) - 1;
const NANOSECONDS_MAX: u32 = 999_999_999;

impl Timestamp {
    /// The earliest that an inode can hold: December 1901.
    pub const MIN: Self = Self { seconds: i32::MIN as i64, nanoseconds: 0 };
    /// The latest that an inode with extra fields can hold: May 2446.
    pub const MAX: Self = Self { seconds: i32::MAX as i64 + ((EPOCH_MASK as i64) << 32), nanoseconds: NANOSECONDS_MAX };

    /// From the 32 bits of seconds and, where the inode has them, the extra ones. The seconds are signed, and the epoch
    /// adds 2^32 each: a time before 1970 is a negative number with the epoch 0. More nanoseconds than a second has are
    /// taken for the most that it has.
    pub fn decode(seconds: u32, extra: Option<u32>) -> Self {
        let base = i64::from(seconds as i32);
        let Some(extra) = extra else { return Self { seconds: base, nanoseconds: 0 } };
        Self {
            seconds: base + (i64::from(extra & EPOCH_MASK) << 32),
            nanoseconds: (extra >> EPOCH_BITS).min(NANOSECONDS_MAX),
        }
    }

    /// The two numbers of [`Timestamp::decode`]. What the inode cannot hold becomes the nearest that it can.
    pub fn encode(self, has_extra: bool) -> (u32, u32) {
        if !has_extra {
            let seconds = self.seconds.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
            return (seconds as u32, 0);
        }
        let time = self.clamp(Self::MIN, Self::MAX);
        let epoch = ((time.seconds - i64::from(time.seconds as i32)) >> 32) as u32 & EPOCH_MASK;
        (time.seconds as u32, epoch | time.nanoseconds.min(NANOSECONDS_MAX) << EPOCH_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, nanoseconds: u32) -> Timestamp {
        Timestamp { seconds, nanoseconds }
    }

    #[test]
    fn the_documented_ranges_begin_and_end_where_they_should() {
        // ext4 on-disk format, "Inode Timestamps": epoch bits, sign bit of the seconds, and what they add up to.
        let rows: [(u32, u32, i64); 8] = [
            (0, 0x8000_0000, -0x8000_0000),
            (0, 0x7fff_ffff, 0x7fff_ffff),
            (1, 0x8000_0000, 0x8000_0000),
            (1, 0x7fff_ffff, 0x1_7fff_ffff),
            (2, 0x8000_0000, 0x1_8000_0000),
            (2, 0x7fff_ffff, 0x2_7fff_ffff),
            (3, 0x8000_0000, 0x2_8000_0000),
            (3, 0x7fff_ffff, 0x3_7fff_ffff),
        ];
        for (epoch, seconds, unix) in rows {
            assert_eq!(Timestamp::decode(seconds, Some(epoch)), at(unix, 0));
            assert_eq!(at(unix, 0).encode(true), (seconds, epoch));
        }
    }

    #[test]
    fn nanoseconds_are_above_the_epoch() {
        assert_eq!(Timestamp::decode(5, Some(7 << 2 | 1)), at(5 + (1 << 32), 7));
        assert_eq!(at(-1, NANOSECONDS_MAX).encode(true), (u32::MAX, NANOSECONDS_MAX << 2));
        assert_eq!(Timestamp::decode(0, Some(u32::MAX)).nanoseconds, NANOSECONDS_MAX);
    }

    #[test]
    fn what_does_not_fit_is_the_nearest_that_does() {
        assert_eq!(at(i64::MIN, 3).encode(true), Timestamp::MIN.encode(true));
        assert_eq!(at(i64::MAX, 3).encode(true), Timestamp::MAX.encode(true));
        assert_eq!(at(1 << 40, 5).encode(false), (i32::MAX as u32, 0));
        assert_eq!(at(-(1 << 40), 5).encode(false), (i32::MIN as u32, 0));
        assert_eq!(Timestamp::decode(u32::MAX, None), at(-1, 0));
    }
}
