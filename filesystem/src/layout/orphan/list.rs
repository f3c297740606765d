//! The classic list of orphans.

use std::collections::BTreeSet;

use crate::layout::{Corrupt, Structure};
use crate::store::Stop;
use crate::units::InodeNumber;

/// Access to where the list is kept. A link is `InodeNumber(0)` where the list ends.
pub trait Links {
    /// `s_last_orphan`.
    fn first(&mut self) -> Result<InodeNumber, Stop>;

    /// Sets `s_last_orphan`.
    fn set_first(&mut self, first: InodeNumber) -> Result<(), Stop>;

    /// `i_dtime` of an orphan, as the number it is on the list.
    fn next(&mut self, orphan: InodeNumber) -> Result<InodeNumber, Stop>;

    /// Sets `i_dtime` of an orphan.
    fn set_next(&mut self, orphan: InodeNumber, next: InodeNumber) -> Result<(), Stop>;
}

/// Which inodes can be orphans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The first that is not reserved, `s_first_ino`.
    pub first: InodeNumber,
    /// The last, `s_inodes_count`.
    pub last: InodeNumber,
}

/// The end of the list.
pub const END: InodeNumber = InodeNumber(0);

/// Puts `orphan`, which is not on the list, at its head. Errors: those of the accessors.
pub fn add<L: Links>(links: &mut L, orphan: InodeNumber) -> Result<(), Stop> {
    let first = links.first()?;
    links.set_next(orphan, first)?;
    links.set_first(orphan)
}

/// Takes `orphan` from the list and clears its link; the caller may put a time of deletion there. False when it was not on
/// the list. Errors: those of the accessors; a broken list.
pub fn remove<L: Links>(links: &mut L, orphan: InodeNumber, bounds: Bounds) -> Result<bool, Stop> {
    let mut before = None;
    let found = visit(links, bounds, |there| {
        let stop = there == orphan;
        if !stop {
            before = Some(there);
        }
        !stop
    })?;
    if found {
        remove_after(links, before, orphan)?;
    }
    Ok(found)
}

/// Takes `orphan` from behind `before`, or from the head, for a caller that knows the order. Errors: those of the
/// accessors; the list is not as the caller says.
pub fn remove_after<L: Links>(links: &mut L, before: Option<InodeNumber>, orphan: InodeNumber) -> Result<(), Stop> {
    let link = match before {
        Some(before) => links.next(before)?,
        None => links.first()?,
    };
    if link != orphan {
        return Err(broken(orphan, "it is not where it should be").into());
    }
    let after = links.next(orphan)?;
    match before {
        Some(before) => links.set_next(before, after)?,
        None => links.set_first(after)?,
    }
    links.set_next(orphan, END)
}

/// All orphans, the newest first. Errors: those of the accessors; a list with a loop or a number that cannot be.
pub fn walk<L: Links>(links: &mut L, bounds: Bounds) -> Result<Vec<InodeNumber>, Stop> {
    let mut orphans = Vec::new();
    visit(links, bounds, |orphan| {
        orphans.push(orphan);
        true
    })?;
    Ok(orphans)
}

/// Shows each orphan to `go_on` until that says no; true then.
fn visit<L: Links>(links: &mut L, bounds: Bounds, mut go_on: impl FnMut(InodeNumber) -> bool) -> Result<bool, Stop> {
    let mut seen = BTreeSet::new();
    let mut orphan = links.first()?;
    while orphan != END {
        if orphan < bounds.first || orphan > bounds.last {
            return Err(broken(orphan, "no such inode can be on the list").into());
        }
        if !seen.insert(orphan) {
            return Err(broken(orphan, "the list runs in a circle").into());
        }
        if !go_on(orphan) {
            return Ok(true);
        }
        orphan = links.next(orphan)?;
    }
    Ok(false)
}

fn broken(at: InodeNumber, what: &'static str) -> Corrupt {
    Corrupt::new(Structure::Orphans, at.0.into(), what)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const BOUNDS: Bounds = Bounds { first: InodeNumber(11), last: InodeNumber(40) };

    #[derive(Default)]
    struct Memory {
        first: InodeNumber,
        next: BTreeMap<InodeNumber, InodeNumber>,
    }

    impl Links for Memory {
        fn first(&mut self) -> Result<InodeNumber, Stop> {
            Ok(self.first)
        }

        fn set_first(&mut self, first: InodeNumber) -> Result<(), Stop> {
            self.first = first;
            Ok(())
        }

        fn next(&mut self, orphan: InodeNumber) -> Result<InodeNumber, Stop> {
            Ok(self.next.get(&orphan).copied().unwrap_or_default())
        }

        fn set_next(&mut self, orphan: InodeNumber, next: InodeNumber) -> Result<(), Stop> {
            self.next.insert(orphan, next);
            Ok(())
        }
    }

    #[test]
    fn random_edits_agree_with_a_model() {
        let seed = 0x0b10_ca04;
        println!("seed {seed:#x}");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (mut links, mut model) = (Memory::default(), Vec::new());
        for _ in 0..20_000 {
            let orphan = InodeNumber(random.random_range(11..=40));
            let there = model.iter().position(|other| *other == orphan);
            match there {
                Some(at) => {
                    model.remove(at);
                    assert!(remove(&mut links, orphan, BOUNDS).unwrap());
                    assert_eq!(links.next[&orphan], END);
                }
                None => {
                    assert!(!remove(&mut links, orphan, BOUNDS).unwrap());
                    model.insert(0, orphan);
                    add(&mut links, orphan).unwrap();
                }
            }
            assert_eq!(walk(&mut links, BOUNDS).unwrap(), model);
        }
    }

    #[test]
    fn a_circle_is_found() {
        let mut links = Memory::default();
        for orphan in 20..30 {
            add(&mut links, InodeNumber(orphan)).unwrap();
        }
        links.next.insert(InodeNumber(20), InodeNumber(25));
        let found = walk(&mut links, BOUNDS).unwrap_err();
        assert_eq!(found, broken(InodeNumber(25), "the list runs in a circle").into());
        assert!(remove(&mut links, InodeNumber(35), BOUNDS).is_err());
        assert!(remove(&mut links, InodeNumber(22), BOUNDS).unwrap(), "what comes before the circle can be removed");
    }

    #[test]
    fn reserved_and_impossible_inodes_are_refused() {
        for number in [1, 10, 41, u32::MAX] {
            let mut links = Memory { first: InodeNumber(number), ..Memory::default() };
            assert!(matches!(walk(&mut links, BOUNDS), Err(Stop::Corrupt(_))));
        }
    }

    #[test]
    fn a_wrong_place_is_refused_and_nothing_changed() {
        let mut links = Memory::default();
        for orphan in [20, 21, 22] {
            add(&mut links, InodeNumber(orphan)).unwrap();
        }
        assert!(remove_after(&mut links, None, InodeNumber(21)).is_err());
        assert!(remove_after(&mut links, Some(InodeNumber(21)), InodeNumber(22)).is_err());
        assert_eq!(walk(&mut links, BOUNDS).unwrap().len(), 3);
        remove_after(&mut links, Some(InodeNumber(21)), InodeNumber(20)).unwrap();
        assert_eq!(walk(&mut links, BOUNDS).unwrap(), [InodeNumber(22), InodeNumber(21)]);
    }
}
