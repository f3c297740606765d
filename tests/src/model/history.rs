//! What clients may see of one block: an online judgement of linearizability.
//!
//! Every write stores a value of its own. The state is the set of all worlds that the answers so far permit: the value
//! stored, which open writes have taken effect, and what each open read has seen. An answer that no world permits is a
//! violation. A write without an answer stays open for ever: it may take effect at any time or never.

/// Writes to one block, at most; also their largest value.
pub const VALUES_MAX: u8 = 7;
/// Reads of one block, at most.
pub const READS_MAX: u8 = 4;

/// One world: value in byte 0, writes that took effect in byte 1, then what each read has seen (value + 1; 0: nothing).
type World = u64;

/// The worlds of one block.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Register {
    worlds: Vec<World>,
    /// Writes without an answer.
    writing: u8,
    /// Reads without an answer.
    reading: u8,
    /// Values that a loss of everything unflushed may leave.
    survivors: u8,
}

impl Default for Register {
    fn default() -> Self {
        Self { worlds: vec![0], writing: 0, reading: 0, survivors: 1 }
    }
}

fn seen_shift(read: u8) -> u32 {
    16 + 8 * u32::from(read)
}

impl Register {
    /// A write of `value` (1 to [`VALUES_MAX`]) was asked for.
    pub fn write_begins(&mut self, value: u8) {
        assert!((1..=VALUES_MAX).contains(&value), "a write has a value of its own");
        self.writing |= 1 << (value - 1);
        self.survivors |= 1 << value;
        self.close();
    }

    /// It was acknowledged.
    pub fn write_ends(&mut self, value: u8) {
        let bit = 1 << (value - 1);
        self.writing &= !bit;
        self.worlds.retain(|world| world & (u64::from(bit) << 8) != 0);
        self.worlds.iter_mut().for_each(|world| *world &= !(u64::from(bit) << 8));
        self.tidy();
    }

    /// A read was asked for.
    pub fn read_begins(&mut self, read: u8) {
        assert!(read < READS_MAX, "reads are few");
        self.reading |= 1 << read;
        self.close();
    }

    /// It returned `value`; false if no world permits that.
    pub fn read_ends(&mut self, read: u8, value: u8) -> bool {
        let shift = seen_shift(read);
        self.worlds.retain(|world| (world >> shift) as u8 == value + 1);
        self.forget(read);
        !self.worlds.is_empty()
    }

    /// A read was refused, or its process died.
    pub fn forget(&mut self, read: u8) {
        self.reading &= !(1 << read);
        let shift = seen_shift(read);
        self.worlds.iter_mut().for_each(|world| *world &= !(0xff << shift));
        self.tidy();
    }

    /// The values that the block may hold now, as bits.
    pub fn values(&self) -> u8 {
        self.worlds.iter().fold(0, |bits, world| bits | 1 << (*world as u8))
    }

    /// A flush has ended: only these values, or later ones, may be left by a loss of what is not flushed.
    pub fn flushed(&mut self, since: u8) {
        self.survivors &= since;
    }

    /// A start was declared that may lose what was not flushed.
    pub fn lose_unflushed(&mut self) {
        let survivors = self.survivors;
        self.worlds = (0..=VALUES_MAX).filter(|value| survivors >> value & 1 == 1).map(u64::from).collect();
        self.close();
    }

    /// Adds every world that follows when open operations take effect.
    fn close(&mut self) {
        let (writing, reading) = (self.writing, self.reading);
        let mut at = 0;
        while at < self.worlds.len() {
            let world = self.worlds[at];
            at += 1;
            for value in (1..=VALUES_MAX).filter(|value| writing >> (value - 1) & 1 == 1) {
                let bit = 1u64 << (7 + value);
                if world & bit == 0 {
                    self.add((world & !0xff) | bit | u64::from(value));
                }
            }
            for read in (0..READS_MAX).filter(|read| reading >> read & 1 == 1) {
                let shift = seen_shift(read);
                if (world >> shift) as u8 == 0 {
                    self.add(world | ((world & 0xff) + 1) << shift);
                }
            }
        }
        self.tidy();
    }

    fn add(&mut self, world: World) {
        if !self.worlds.contains(&world) {
            self.worlds.push(world);
        }
    }

    fn tidy(&mut self) {
        self.worlds.sort_unstable();
        self.worlds.dedup();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledged_write_must_be_read() {
        let mut register = Register::default();
        register.write_begins(1);
        register.write_ends(1);
        register.read_begins(0);
        assert!(!register.clone().read_ends(0, 0), "the write is lost");
        assert!(register.read_ends(0, 1));
    }

    #[test]
    fn an_open_write_may_be_read_or_not_but_never_undone() {
        let mut register = Register::default();
        register.write_begins(1);
        register.read_begins(0);
        assert!(register.clone().read_ends(0, 0));
        assert!(register.read_ends(0, 1));
        register.read_begins(1);
        assert!(!register.read_ends(1, 0), "it was seen before");
    }

    #[test]
    fn a_read_beside_an_acknowledged_write_may_see_either() {
        let mut register = Register::default();
        register.read_begins(0);
        register.write_begins(1);
        register.write_ends(1);
        assert!(register.clone().read_ends(0, 0));
        assert!(register.read_ends(0, 1));
    }

    #[test]
    fn a_declared_loss_spares_what_was_flushed() {
        let mut register = Register::default();
        register.write_begins(1);
        register.write_ends(1);
        let since = register.values();
        register.flushed(since);
        register.write_begins(2);
        register.write_ends(2);
        register.lose_unflushed();
        register.read_begins(0);
        assert!(register.clone().read_ends(0, 1) && register.clone().read_ends(0, 2));
        assert!(!register.read_ends(0, 0), "write 1 was flushed");
    }
}
