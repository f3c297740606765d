//! The way from the admin API to the filesystems of volumes that this node serves.

use std::sync::Arc;

use proto::VolumeId;
use tokio::sync::mpsc;
use tracing::info;

use super::core::Core;
use super::membership::Membership;
use crate::files::check::{self, Verdict};
use crate::files::error::FilesError;
use crate::files::make::{self, Clearing, Content, Progress};
use crate::files::mke2fs::FreshImage;
use crate::files::mounted::FilesHandle;
use crate::volume::VolumeHandle;

/// A volume that runs here, and what the cluster holds of it.
struct Served {
    membership: Arc<Membership>,
    handle: VolumeHandle,
    name: String,
    size_bytes: u64,
    preallocate: bool,
}

/// Fails unless this run is primary of the volume.
fn served(core: &Core, volume: VolumeId) -> Result<Served, FilesError> {
    let membership = core.membership().ok_or(FilesError::Ended)?;
    let handle = membership.volumes.handle(volume).ok_or(FilesError::Ended)?;
    let state = membership.raft.state().borrow().clone();
    let config = state.volumes.get(&volume).ok_or(FilesError::Ended)?;
    let me = membership.identity;
    if config.primary != me.node || config.primary_incarnation != me.incarnation {
        return Err(FilesError::Ended);
    }
    let (name, size_bytes, preallocate) = (config.name.clone(), config.size_bytes, config.preallocate);
    Ok(Served { membership, handle, name, size_bytes, preallocate })
}

/// The engine of a volume.
pub(super) async fn open(core: &Core, volume: VolumeId) -> Result<FilesHandle, FilesError> {
    let served = served(core, volume)?;
    served.membership.files.get(&served.name, &served.handle).await
}

/// Makes a filesystem in a volume.
pub(super) async fn make(
    core: &Core,
    volume: VolumeId,
    force: bool,
    progress: mpsc::Sender<Progress>,
) -> Result<(), FilesError> {
    let Served { membership, handle, name, size_bytes, preallocate } = served(core, volume)?;
    let directory = core.config.data_dir.clone();
    let image = tokio::task::spawn_blocking(move || FreshImage::make(&directory, size_bytes)).await;
    let image = Arc::new(image.map_err(|_| FilesError::Ended)??);
    let options = membership.files.options(false);
    let clearing = if preallocate { Clearing::KeepAllocated } else { Clearing::Discard };
    let making = membership.files.alone(&handle, move |device| async move {
        let held = make::content(&*device).await.map_err(make::MakeError::Device)?;
        match held {
            Content::Filesystem if !force => return Err(FilesError::NotEmpty("a filesystem")),
            Content::Data if !force => return Err(FilesError::NotEmpty("data")),
            _ => {}
        }
        // Who watches gets what it can take.
        let tell = move |at| {
            let _ = progress.try_send(at);
        };
        make::make(device, image, clearing, &options, &tell).await?;
        Ok(())
    });
    making.await?;
    info!(volume = %name, "filesystem made");
    Ok(())
}

/// Has e2fsck look at the filesystem. It is opened and closed first, so that its log is empty; where that fails e2fsck gets it
/// as it is, and why it failed is told, too.
pub(super) async fn check(core: &Core, volume: VolumeId) -> Result<(Verdict, Option<String>), FilesError> {
    let Served { membership, handle, .. } = served(core, volume)?;
    let not_opened = match open(core, volume).await {
        Ok(_) => None,
        Err(FilesError::Open(why)) => Some(why.to_string()),
        Err(why) => return Err(why),
    };
    let directory = core.config.data_dir.clone();
    let collecting =
        membership.files.alone(&handle, move |device| async move { check::collect(&*device, directory).await });
    let (image, bytes) = collecting.await?;
    let judging = tokio::task::spawn_blocking(move || check::judge(&image, bytes));
    Ok((judging.await.map_err(|_| FilesError::Ended)??, not_opened))
}
