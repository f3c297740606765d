//! The slots of a session as its client uses them (RFC 8881 §2.10.6.1): which are free, and at which sequence each is.

use std::collections::BTreeSet;

/// Slots that are used at most, however many are granted.
pub(super) const SLOTS_MAX: u32 = 1024;

#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Of the next request of each slot.
    sequences: Vec<u32>,
    free: BTreeSet<u32>,
    busy: BTreeSet<u32>,
    /// The highest that the server would like to be used.
    target: u32,
}

impl Slots {
    /// Those of a new session.
    pub(super) fn new(granted: u32) -> Self {
        let count = granted.min(SLOTS_MAX);
        Self {
            // The first request of a slot has sequence 1 (§2.10.6.1).
            sequences: vec![1; count as usize],
            free: (0..count).collect(),
            busy: BTreeSet::new(),
            target: count.saturating_sub(1),
        }
    }

    /// Takes the lowest free slot, with the sequence of its request; none if all that may be used are busy.
    pub(super) fn take(&mut self) -> Option<(u32, u32)> {
        let slot = *self.free.first().filter(|slot| **slot <= self.target)?;
        self.free.remove(&slot);
        self.busy.insert(slot);
        Some((slot, *self.sequences.get(slot as usize)?))
    }

    /// The highest slot that has a request.
    pub(super) fn highest_busy(&self) -> u32 {
        self.busy.last().copied().unwrap_or(0)
    }

    /// True if a slot could be taken.
    pub(super) fn has_free(&self) -> bool {
        self.free.first().is_some_and(|slot| *slot <= self.target)
    }

    /// True without any that could ever be used again.
    pub(super) fn is_worn_out(&self) -> bool {
        self.free.is_empty() && self.busy.is_empty()
    }

    /// The server has taken the slot's request: the next one has the next sequence.
    pub(super) fn answered(&mut self, slot: u32) {
        if let Some(sequence) = self.sequences.get_mut(slot as usize) {
            *sequence = sequence.wrapping_add(1);
        }
        self.released(slot);
    }

    /// The server has not looked at the slot's request.
    pub(super) fn released(&mut self, slot: u32) {
        if self.busy.remove(&slot) {
            self.free.insert(slot);
        }
    }

    /// Nobody knows what the server thinks of the slot: it is not used again.
    pub(super) fn retire(&mut self, slot: u32) {
        self.busy.remove(&slot);
    }

    /// The server would like no slot above this one to be used. Slot 0 always may be.
    pub(super) fn set_target(&mut self, highest: u32) {
        self.target = highest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_counts_by_itself() {
        let mut slots = Slots::new(2);
        assert_eq!((slots.take(), slots.take(), slots.take()), (Some((0, 1)), Some((1, 1)), None));
        assert_eq!(slots.highest_busy(), 1);
        slots.answered(1);
        assert_eq!(slots.take(), Some((1, 2)));
        slots.released(0);
        assert_eq!(slots.take(), Some((0, 1)), "the server never saw the first");
    }

    #[test]
    fn no_slot_above_the_target_is_taken_and_a_retired_one_never_again() {
        let mut slots = Slots::new(3);
        slots.set_target(0);
        assert_eq!((slots.take(), slots.take()), (Some((0, 1)), None));
        slots.set_target(2);
        assert_eq!((slots.take(), slots.take()), (Some((1, 1)), Some((2, 1))));
        (0..3).for_each(|slot| slots.retire(slot));
        assert!(slots.is_worn_out());
        assert_eq!(slots.take(), None);
    }

    #[test]
    fn a_sequence_goes_from_the_last_to_0() {
        let mut slots = Slots::new(1);
        slots.sequences[0] = u32::MAX;
        assert_eq!(slots.take(), Some((0, u32::MAX)));
        slots.answered(0);
        assert_eq!(slots.take(), Some((0, 0)));
    }

    #[test]
    fn more_slots_than_are_ever_used_may_be_granted() {
        assert_eq!(Slots::new(u32::MAX).sequences.len(), SLOTS_MAX as usize);
    }
}
