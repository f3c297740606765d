//! Who has mounted what, as far as clients say so.

use std::collections::VecDeque;

use bytes::Bytes;

/// Mounts that are remembered; a new one drives out the oldest.
pub const MOUNTS_MAX: usize = 1024;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// By whom: an address.
    pub client: String,
    /// What: a path as it came.
    pub path: Bytes,
}

/// All of them, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Mounts(VecDeque<Mount>);

impl Mounts {
    /// MNT. One that is there already stays where it is.
    pub fn add(&mut self, mount: Mount) {
        if self.0.contains(&mount) {
            return;
        }
        if self.0.len() >= MOUNTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(mount);
    }

    /// UMNT.
    pub fn remove(&mut self, mount: &Mount) {
        self.0.retain(|other| other != mount);
    }

    /// UMNTALL.
    pub fn remove_all_of(&mut self, client: &str) {
        self.0.retain(|mount| mount.client != client);
    }

    /// The oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(client: usize, path: &'static [u8]) -> Mount {
        Mount { client: client.to_string(), path: Bytes::from_static(path) }
    }

    #[test]
    fn mounts_are_counted_once_and_bounded() {
        let mut mounts = Mounts::default();
        for client in 0..MOUNTS_MAX + 5 {
            mounts.add(mount(client, b"/vol"));
            mounts.add(mount(client, b"/vol"));
        }
        assert_eq!(mounts.iter().count(), MOUNTS_MAX);
        assert_eq!(mounts.iter().next(), Some(&mount(5, b"/vol")));
        mounts.add(mount(5, b"/vol/a"));
        mounts.remove(&mount(6, b"/vol"));
        mounts.remove_all_of("7");
        mounts.remove_all_of("5");
        assert_eq!(mounts.iter().next(), Some(&mount(8, b"/vol")));
    }
}
