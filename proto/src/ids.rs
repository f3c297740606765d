//! Identifiers. Each is a newtype, so that an epoch is never taken for a version or a node for a disk.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $hex:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                if $hex { write!(f, "{:0width$x}", self.0, width = size_of::<$inner>() * 2) } else { write!(f, "{}", self.0) }
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

id!(
    /// A cluster; drawn at random by `cluster init` and carried by every frame and superblock.
    ClusterId, u128, true
);
id!(
    /// A box in the cluster; also its Raft id. Assigned in order from 1, never reused. 0 is nobody.
    NodeId, u64, false
);
id!(
    /// A volume; drawn at random at creation, never reused.
    VolumeId, u128, true
);
id!(
    /// One copy of one volume on one box; drawn at random when its store is created. A new store has a new id.
    DiskId, u128, true
);
id!(
    /// Fencing number of a volume's configuration: grows with every change of primary.
    Epoch, u64, false
);
id!(
    /// Version of a volume's configuration: grows by one with every applied command, the compare-and-swap subject.
    ConfigVersion, u64, false
);
id!(
    /// Version of a volume's NFS service: drawn from one counter of the cluster, so none is ever used twice. 0 is no service.
    ServiceVersion, u64, false
);
id!(
    /// One run of a worker process; random, drawn at its start. 0 is none.
    Incarnation, u64, true
);
id!(
    /// One power-on of a box: derived from the kernel's boot id. What a disk's volatile cache held survives a new
    /// incarnation but not a new boot.
    Boot, u128, true
);
id!(
    /// One replication session between a primary and a peer, drawn by the primary, unique within its incarnation.
    SessionId, u64, false
);
id!(
    /// One client's command to the configuration; used to recognise a retry.
    RequestId, u128, true
);

impl NodeId {
    /// Nobody: the absence of a node.
    pub const NONE: NodeId = NodeId(0);
}

impl Epoch {
    /// The epoch after this one.
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl ConfigVersion {
    /// The version after this one.
    pub fn next(self) -> ConfigVersion {
        ConfigVersion(self.0 + 1)
    }
}

impl ServiceVersion {
    /// The version after this one.
    pub fn next(self) -> ServiceVersion {
        ServiceVersion(self.0 + 1)
    }
}
