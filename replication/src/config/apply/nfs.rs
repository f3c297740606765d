//! The guards of commands about NFS services. They leave a volume's own version alone: no replica has to know of them, and
//! no proposal of one may die of them.

use proto::{ServiceVersion, VolumeId};

use super::{Guard, require};
use crate::config::command::NfsCommand;
use crate::config::nfs::{ExportRules, FloatingAddress, NFS_LEVEL, NfsService, PlaceConflict};
use crate::config::state::ClusterState;

impl ClusterState {
    pub(super) fn apply_nfs(&mut self, volume: VolumeId, expect: ServiceVersion, command: &NfsCommand) -> Guard {
        let config = self.volumes.get(&volume).ok_or("no such volume")?;
        let service = config.nfs.as_ref();
        let since = service.map(|service| service.since);
        require(config.nfs_version() == expect, "the volume's NFS service has changed meanwhile; look at it again")?;
        let changed = match command {
            NfsCommand::Serve { addresses, port } => {
                let known = self.nodes.values().all(|node| node.feature_levels.1 >= NFS_LEVEL);
                require(
                    known,
                    "a node's software does not know NFS services; install the newer version on every node",
                )?;
                NfsService::check_place(addresses, *port)?;
                self.require_free(volume, addresses, *port)?;
                let exports = service.map(|service| service.exports.clone()).unwrap_or_default();
                Some((addresses.clone(), *port, exports))
            }
            NfsCommand::Stop => {
                service.ok_or("the volume has no NFS service")?;
                None
            }
            NfsCommand::SetExports { rules } => {
                let service = service.ok_or("the volume has no NFS service; it must be served first")?;
                Some((service.addresses.clone(), service.port, ExportRules::new(rules.clone())?))
            }
        };
        self.nfs_version = self.nfs_version.next();
        let version = self.nfs_version;
        let since = since.unwrap_or(version);
        let changed = changed.map(|(addresses, port, exports)| NfsService { version, since, addresses, port, exports });
        if let Some(config) = self.volumes.get_mut(&volume) {
            config.nfs = changed;
        }
        Ok(())
    }

    /// No other volume's service is in the way of one there.
    fn require_free(&self, volume: VolumeId, addresses: &[FloatingAddress], port: u16) -> Guard {
        let others = self.volumes.values().filter(|other| other.id != volume);
        match others.filter_map(|other| other.nfs.as_ref()).find_map(|service| service.conflict(addresses, port)) {
            Some(PlaceConflict::Address(_)) => {
                Err("a floating address is in use by another volume; stop that service or choose another address")
            }
            Some(PlaceConflict::Port) => {
                Err("another service without a floating address has that port; choose another")
            }
            None => Ok(()),
        }
    }

    /// True if the services are what the guards let through, as those of a snapshot must be.
    pub(in crate::config) fn services_are_sound(&self) -> bool {
        self.volumes.values().all(|volume| {
            volume.nfs.as_ref().is_none_or(|service| {
                let versions = ServiceVersion(1)..=self.nfs_version;
                versions.contains(&service.version)
                    && (ServiceVersion(1)..=service.version).contains(&service.since)
                    && NfsService::check_place(&service.addresses, service.port).is_ok()
                    && self.require_free(volume.id, &service.addresses, service.port).is_ok()
            })
        })
    }
}
