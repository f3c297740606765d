//! What the tree is to be: names and inodes, as plain maps.

use std::collections::BTreeMap;

use block_device::BlockDevice;
use filesystem::InodeNumber;
use filesystem::directory::Cookie;
use filesystem::engine::Filesystem;
use filesystem::units::ROOT_INODE;

/// A name in a directory.
pub(crate) type Place = (u32, Vec<u8>);

/// What of an inode is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) mode: u16,
    pub(crate) links: u16,
    pub(crate) generation: u32,
    pub(crate) size: u64,
    pub(crate) target: Option<Vec<u8>>,
}

/// A whole tree. The size of a directory is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) names: BTreeMap<Place, u32>,
    pub(crate) nodes: BTreeMap<u32, Node>,
}

impl Tree {
    /// Reads the tree of a filesystem from its root.
    pub(crate) async fn read<D: BlockDevice>(mounted: &Filesystem<D>) -> Self {
        let mut tree = Self::default();
        tree.read_node(mounted, ROOT_INODE).await;
        let mut waiting = vec![ROOT_INODE];
        while let Some(directory) = waiting.pop() {
            let mut after = Cookie::START;
            loop {
                let batch =
                    mounted.run(|handle| handle.read_directory(directory, after, 50)).await.expect("readable").value;
                for entry in batch.entries {
                    after = entry.cookie;
                    if entry.name == b"." || entry.name == b".." {
                        continue;
                    }
                    let is_new = tree.read_node(mounted, entry.inode).await;
                    if is_new && tree.nodes[&entry.inode.0].mode & 0xf000 == 0x4000 {
                        waiting.push(entry.inode);
                    }
                    tree.names.insert((directory.0, entry.name), entry.inode.0);
                }
                if batch.at_end {
                    break;
                }
            }
        }
        tree
    }

    async fn read_node<D: BlockDevice>(&mut self, mounted: &Filesystem<D>, number: InodeNumber) -> bool {
        if self.nodes.contains_key(&number.0) {
            return false;
        }
        let inode = mounted.run(|handle| handle.live(number)).await.expect("a name names an inode in use").value;
        let is_directory = inode.mode.0 & 0xf000 == 0x4000;
        let node = Node {
            mode: inode.mode.0,
            links: inode.links,
            generation: inode.generation,
            size: if is_directory { 0 } else { inode.size },
            target: inode.fast_symlink().map(<[u8]>::to_vec),
        };
        self.nodes.insert(number.0, node);
        true
    }

    /// All directories.
    pub(crate) fn directories(&self) -> Vec<u32> {
        let is_directory = |(_, node): &(&u32, &Node)| node.mode & 0xf000 == 0x4000;
        self.nodes.iter().filter(is_directory).map(|(number, _)| *number).collect()
    }
}
