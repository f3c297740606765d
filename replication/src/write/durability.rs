//! Which completed writes a flush has still to bring to the media, and whether the next write had better be durable by itself.
//!
//! A write that every required copy has written through needs no flush; with none but those a flush has nothing to do. A
//! client that flushes after each write (a database's log, a filesystem's journal) is recognised, and its writes are
//! written through, so that both copies do at once what would otherwise take another round to each of them.
//! It knows nothing of copies or of what the writes are; a new primary knows of no write whether it was flushed.

/// As many times in a row one flush must have followed one write before the next write is expected to be followed by one.
const PAIRS_MIN: u32 = 2;

/// See the module's header.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Durability {
    /// Completed writes that are not durable by themselves, counted; what former primaries left counts as one.
    volatile: u64,
    /// As many of them as a flush has brought to the media of every copy.
    flushed: u64,
    /// Writes completed since the last flush began; all that matters is whether there was none, one, or more.
    since_flush: u8,
    pairs: u32,
}

/// What a flush covers when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mark(u64);

impl Default for Durability {
    fn default() -> Self {
        Self { volatile: 1, flushed: 0, since_flush: 0, pairs: 0 }
    }
}

impl Durability {
    /// A write begins, `alone` or with others in flight; true when it should be written through.
    pub(crate) fn on_write(&mut self, alone: bool) -> bool {
        if !alone || self.since_flush > 0 {
            self.pairs = 0;
        }
        self.pairs >= PAIRS_MIN
    }

    /// A write is complete.
    pub(crate) fn on_written(&mut self, durable: bool) {
        self.volatile += u64::from(!durable);
        self.since_flush = self.since_flush.saturating_add(1).min(2);
    }

    /// A client flushes: what to bring to the media, or `None` when everything is there.
    pub(crate) fn on_flush(&mut self) -> Option<Mark> {
        match std::mem::take(&mut self.since_flush) {
            // A second flush in a row says nothing about the next write.
            0 => {}
            1 => self.pairs = self.pairs.saturating_add(1).min(PAIRS_MIN),
            _ => self.pairs = 0,
        }
        (self.volatile > self.flushed).then_some(Mark(self.volatile))
    }

    /// What a flush that is not a client's covers.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.volatile)
    }

    /// A flush is complete on every copy.
    pub(crate) fn on_flushed(&mut self, mark: Mark) {
        self.flushed = self.flushed.max(mark.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flush(durability: &mut Durability) -> bool {
        let mark = durability.on_flush();
        if let Some(mark) = mark {
            durability.on_flushed(mark);
        }
        mark.is_some()
    }

    #[test]
    fn first_flush_of_a_role_flushes_and_a_second_has_nothing_to_do() {
        let mut durability = Durability::default();
        assert!(flush(&mut durability));
        assert!(!flush(&mut durability));
        durability.on_written(true);
        assert!(!flush(&mut durability));
        durability.on_written(false);
        assert!(flush(&mut durability));
        assert!(!flush(&mut durability));
    }

    #[test]
    fn flush_covers_only_what_was_complete_when_it_began() {
        let mut durability = Durability::default();
        durability.on_written(false);
        let mark = durability.on_flush().expect("a write is not flushed");
        durability.on_written(false);
        durability.on_flushed(mark);
        let second = durability.on_flush().expect("the second write is not flushed");
        // An older flush that ends late takes nothing back.
        durability.on_flushed(second);
        durability.on_flushed(mark);
        assert_eq!(durability.on_flush(), None);
    }

    #[test]
    fn pairs_of_write_and_flush_are_foreseen_until_the_first_that_is_none() {
        let mut durability = Durability::default();
        let mut foreseen = Vec::new();
        for _ in 0..4 {
            foreseen.push(durability.on_write(true));
            durability.on_written(*foreseen.last().expect("pushed"));
            flush(&mut durability);
        }
        assert_eq!(foreseen, [false, false, true, true]);
        assert!(durability.on_write(true));
        durability.on_written(true);
        // No flush came.
        assert!(!durability.on_write(true));
        durability.on_written(false);
        assert!(flush(&mut durability));
        assert!(!durability.on_write(true));
    }

    #[test]
    fn writes_beside_others_are_left_to_the_flush() {
        let mut durability = Durability::default();
        for _ in 0..PAIRS_MIN {
            durability.on_write(true);
            durability.on_written(false);
            flush(&mut durability);
        }
        assert!(!durability.on_write(false));
        assert!(!durability.on_write(true));
    }
}
