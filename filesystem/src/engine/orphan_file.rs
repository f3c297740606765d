//! Orphans in the file that newer kernels keep them in (ext4 on-disk format, "Orphan file"): brought to the list.
//!
//! Ours are always on the list, which every kernel reads, too. What becomes of them is decided in `open`.

use block_device::BlockDevice;

use super::filesystem::{Failure, Filesystem};
use super::handle::Handle;
use crate::layout::features::ro_compat;
use crate::layout::orphan::file;
use crate::layout::{Corrupt, Structure};
use crate::map::{FileMap, Mapping};
use crate::store::{BlockStore, Stop};
use crate::units::{BlockNumber, FileBlock, InodeNumber};

impl Handle<'_> {
    /// Moves the orphans of one block of the file to the list. False when the file has no such block.
    fn adopt_orphans(&mut self, orphan_file: InodeNumber, at: FileBlock) -> Result<bool, Stop> {
        let inode = self.inode(orphan_file)?;
        let geometry = self.geometry();
        if u64::from(at.0) >= inode.size / u64::from(geometry.block_size) {
            return Ok(false);
        }
        let map = FileMap::of_inode(&inode, orphan_file, &self.inode_rules(), BlockNumber(0));
        let Mapping::Mapped { run, unwritten: false } = map.lookup(self, at)? else {
            let what = "the file of orphans has a hole";
            return Err(Corrupt::new(Structure::Inode, u64::from(orphan_file.0), what).into());
        };
        let seed = geometry.checksum_seed.map(|seed| seed.of_inode(orphan_file, inode.generation));
        let block = self.block(run.start)?;
        file::check(block, run.start, seed)?;
        let orphans: Vec<_> = file::orphans(block).collect();
        for (slot, orphan) in orphans {
            file::clear(self.block_mut(run.start)?, slot, orphan, run.start, seed)?;
            self.add_orphan(orphan)?;
        }
        Ok(true)
    }
}

impl<D: BlockDevice> Filesystem<D> {
    /// Brings the orphans of the file to the list, where the superblock says that there may be some. Errors: the file is
    /// broken; the volume's.
    pub(super) async fn adopt_orphan_file(&self) -> Result<(), Failure> {
        let orphan_file = {
            let state = self.state.borrow();
            let is_used = state.superblock.features().has_ro_compat(ro_compat::ORPHAN_PRESENT);
            state.superblock.orphan_file_inode().filter(|_| is_used)
        };
        let Some(orphan_file) = orphan_file else { return Ok(()) };
        let mut at = FileBlock(0);
        while self.run(|handle| handle.adopt_orphans(orphan_file, at)).await?.value {
            at = FileBlock(at.0 + 1);
        }
        // It goes into the log with the next transaction, which is not before those that emptied the file.
        self.state.borrow_mut().superblock.set_orphan_present(false);
        Ok(())
    }
}
