//! A map for operations in flight: keys come in ascending order and go in about that order.
//!
//! A queue of entries in the order of their keys; what is removed from the middle leaves a gap until what is older has gone,
//! or until most of the queue is gaps. Nothing is moved on the usual way, unlike in a tree, whose nodes shift large values
//! with every insertion and removal.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A queue up to this long is not searched for gaps to be closed.
const SHORT: usize = 64;

/// See the module's header.
#[derive(Clone)]
pub struct Window<K, V> {
    /// Ascending by key.
    entries: VecDeque<(K, Option<V>)>,
    live: usize,
}

impl<K, V> Default for Window<K, V> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), live: 0 }
    }
}

impl<K: Copy + Ord, V> Window<K, V> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.live
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    fn find(&self, key: K) -> Result<usize, usize> {
        self.entries.binary_search_by(|(other, _)| other.cmp(&key))
    }

    /// Adds an entry; what was there under this key is returned. Cheap if no key so far is greater.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let newest = self.entries.back().is_none_or(|(last, _)| *last < key);
        let former = match if newest { Err(self.entries.len()) } else { self.find(key) } {
            Ok(at) => self.entries[at].1.replace(value),
            Err(at) if at == self.entries.len() => {
                self.entries.push_back((key, Some(value)));
                None
            }
            Err(at) => {
                self.entries.insert(at, (key, Some(value)));
                None
            }
        };
        self.live += usize::from(former.is_none());
        former
    }

    /// The entry of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries[self.find(*key).ok()?].1.as_ref()
    }

    /// The entry of a key, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.find(*key).ok()?;
        self.entries[at].1.as_mut()
    }

    /// True when there is an entry of this key.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(*key).ok()?;
        let value = self.entries[at].1.take()?;
        self.live -= 1;
        self.close_gaps();
        Some(value)
    }

    fn close_gaps(&mut self) {
        while let Some((_, None)) = self.entries.front() {
            self.entries.pop_front();
        }
        while let Some((_, None)) = self.entries.back() {
            self.entries.pop_back();
        }
        if self.entries.len() > SHORT && self.entries.len() / 4 > self.live {
            self.entries.retain(|(_, value)| value.is_some());
        }
    }

    /// Keeps those for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        self.entries.retain_mut(|(key, value)| value.as_mut().is_some_and(|value| keep(key, value)));
        self.live = self.entries.len();
    }

    /// All, by ascending key.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)))
    }

    /// All, by ascending key, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.entries.iter_mut().filter_map(|(key, value)| Some((&*key, value.as_mut()?)))
    }

    /// The keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// The values, by ascending key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The values, by ascending key, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.iter_mut().map(|(_, value)| value)
    }

    /// Takes all out, by ascending key.
    pub fn drain(&mut self) -> impl Iterator<Item = (K, V)> + use<K, V> {
        self.live = 0;
        std::mem::take(&mut self.entries).into_iter().filter_map(|(key, value)| Some((key, value?)))
    }
}

/// By what is in it; gaps do not count.
impl<K: Copy + Ord + Hash, V: Hash> Hash for Window<K, V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.live.hash(state);
        self.iter().for_each(|entry| entry.hash(state));
    }
}

impl<K: Copy + Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for Window<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::hash::DefaultHasher;

    use super::*;

    fn hash(window: &Window<u64, u64>) -> u64 {
        let mut hasher = DefaultHasher::new();
        window.hash(&mut hasher);
        hasher.finish()
    }

    /// The same calls on a tree; keys ascend mostly, removals come from everywhere.
    #[test]
    fn does_what_a_tree_does() {
        let (mut window, mut tree) = (Window::default(), BTreeMap::new());
        let (mut next, mut random) = (0u64, 1u64);
        for step in 0..200_000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let dice = random >> 33;
            let known = || tree.keys().nth((dice / 16) as usize % tree.len().max(1)).copied().unwrap_or(dice);
            // Long phases of growth and of decline.
            let grows = (step / 500) % 2 == 0;
            match dice % 16 {
                0..9 if grows => {
                    next += 1 + dice % 3;
                    assert_eq!(window.insert(next, step), tree.insert(next, step));
                }
                9 => {
                    let key = next.saturating_sub(dice % 100);
                    assert_eq!(window.insert(key, step), tree.insert(key, step));
                }
                10 => {
                    let key = known();
                    assert_eq!(
                        (window.get(&key), window.contains_key(&key)),
                        (tree.get(&key), tree.contains_key(&key))
                    );
                    assert_eq!(window.get_mut(&key), tree.get_mut(&key));
                }
                11 if dice % 5000 == 11 => {
                    window.retain(|key, _| key % 3 == 0);
                    tree.retain(|key, _| key % 3 == 0);
                }
                _ => {
                    let key = known();
                    assert_eq!(window.remove(&key), tree.remove(&key));
                    assert_eq!(window.remove(&key), None);
                }
            }
            assert_eq!((window.len(), window.is_empty()), (tree.len(), tree.is_empty()));
            assert!(window.entries.len() <= SHORT + 1 || window.entries.len() / 4 <= window.live);
            if step % 1000 == 0 {
                assert!(
                    window.iter().eq(tree.iter()) && window.values().eq(tree.values()) && window.keys().eq(tree.keys())
                );
            }
        }
        assert!(window.drain().eq(tree));
        assert!(window.is_empty());
    }

    #[test]
    fn gaps_are_not_seen() {
        let mut window: Window<u64, u64> = (0..4).fold(Window::default(), |mut window, key| {
            window.insert(key, key);
            window
        });
        window.remove(&1);
        window.remove(&2);
        let mut other = Window::default();
        other.insert(0, 0);
        other.insert(3, 3);
        assert_eq!(hash(&window), hash(&other));
        assert_eq!(format!("{window:?}"), format!("{other:?}"));
        assert_eq!(window.insert(2, 9), None);
        assert_eq!(window.values().copied().collect::<Vec<_>>(), [0, 9, 3]);
    }
}
