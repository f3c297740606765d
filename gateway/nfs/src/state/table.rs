//! A map whose newest changes can be taken back, and told.

use std::collections::BTreeMap;
use std::ops::RangeBounds;

/// Entries by key, and those that the operation under way has changed, as they were before it.
#[derive(Clone, Debug)]
pub struct Table<K, V> {
    entries: BTreeMap<K, V>,
    before: BTreeMap<K, Option<V>>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), before: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// True if the key has an entry.
    pub fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// The entry of a key, to be changed. It counts as changed whatever becomes of it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        if !self.before.contains_key(key) {
            self.before.insert(key.clone(), Some(entry.clone()));
        }
        Some(entry)
    }

    /// Sets the entry of a key, and gives the former one.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let former = self.entries.insert(key.clone(), value);
        self.before.entry(key).or_insert_with(|| former.clone());
        former
    }

    /// Drops the entry of a key, and gives it.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let former = self.entries.remove(key)?;
        self.before.entry(key.clone()).or_insert_with(|| Some(former.clone()));
        Some(former)
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.entries.iter()
    }

    /// Those with keys in a range, in order.
    pub fn range(&self, keys: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.entries.range(keys)
    }

    /// What was changed since [`Self::commit`] or [`Self::take_back`], and what it is now: none if it was dropped. Entries that
    /// were made and dropped since are among them.
    pub fn changes(&self) -> impl Iterator<Item = (&K, Option<&V>)> {
        self.before.keys().map(|key| (key, self.entries.get(key)))
    }

    /// True if there are changes.
    pub fn is_changed(&self) -> bool {
        !self.before.is_empty()
    }

    /// The changes count.
    pub fn commit(&mut self) {
        // Most have none, each time that anybody looks at the state; emptying a map takes longer than asking it.
        if self.is_changed() {
            self.before.clear();
        }
    }

    /// All is as it was before the changes.
    pub fn take_back(&mut self) {
        if !self.is_changed() {
            return;
        }
        for (key, former) in std::mem::take(&mut self.before) {
            match former {
                Some(value) => drop(self.entries.insert(key, value)),
                None => drop(self.entries.remove(&key)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<u32, &'static str> {
        let mut table = Table::default();
        for (key, value) in [(1, "one"), (2, "two"), (3, "three")] {
            table.insert(key, value);
        }
        table.commit();
        table
    }

    #[test]
    fn what_was_changed_is_taken_back_whole() {
        let mut table = table();
        *table.get_mut(&1).unwrap() = "1";
        *table.get_mut(&1).unwrap() = "uno";
        table.remove(&2);
        table.insert(2, "dos");
        table.remove(&3);
        table.insert(4, "four");
        assert!(table.is_changed());
        table.take_back();
        let all: Vec<_> = table.iter().map(|(key, value)| (*key, *value)).collect();
        assert_eq!(all, [(1, "one"), (2, "two"), (3, "three")]);
        assert!(!table.is_changed());
    }

    #[test]
    fn changes_tell_the_newest_values_once() {
        let mut table = table();
        *table.get_mut(&1).unwrap() = "1";
        *table.get_mut(&1).unwrap() = "uno";
        table.remove(&3);
        table.insert(4, "four");
        table.remove(&4);
        let changes: Vec<_> = table.changes().map(|(key, value)| (*key, value.copied())).collect();
        assert_eq!(changes, [(1, Some("uno")), (3, None), (4, None)]);
        table.commit();
        assert_eq!(table.changes().count(), 0);
        assert_eq!(table.get(&1), Some(&"uno"));
    }

    #[test]
    fn looking_changes_nothing() {
        let mut table = table();
        assert_eq!(table.get_mut(&9), None);
        assert_eq!(table.remove(&9), None);
        assert!(!table.is_changed());
    }
}
