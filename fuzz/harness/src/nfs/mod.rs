//! Hostile messages and records for the NFS gateway: one target for each decoder, and one for the whole service.
//!
//! An input of a decoder is what the decoder reads, with a byte or two before it that say by which procedure or of which kind.
//! An input of the service is a list of messages ([`service`]).

mod decoders;
mod maker;
mod messages;
mod records;
mod seeds;
mod service;
mod world;

pub use maker::MessageMaker;

use crate::Reached;

/// A way into the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NfsTarget {
    /// Records of a stream, heads of calls and replies, credentials.
    Rpc,
    /// The arguments of COMPOUND, with all operations.
    Compound,
    /// The procedures of NFSv3.
    V3,
    /// Those of MOUNT.
    Mount,
    /// Those of the lock manager.
    Nlm,
    /// Those of the status monitor.
    Nsm,
    /// Those of the port mapper, in all versions, and what another one answers.
    PortMapper,
    /// What clients answer to callbacks.
    Callback,
    /// Payloads of the records in the state ring.
    Record,
    /// The records of a whole service.
    Restore,
    /// What servers answer to our client, and call.
    Client,
    /// Messages to a service in memory, and a takeover behind them.
    Service,
}

impl NfsTarget {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Rpc,
        Self::Compound,
        Self::V3,
        Self::Mount,
        Self::Nlm,
        Self::Nsm,
        Self::PortMapper,
        Self::Callback,
        Self::Record,
        Self::Restore,
        Self::Client,
        Self::Service,
    ];

    /// As it is called in commands and in the names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rpc => "nfs-rpc",
            Self::Compound => "nfs-compound",
            Self::V3 => "nfs-v3",
            Self::Mount => "nfs-mount",
            Self::Nlm => "nfs-nlm",
            Self::Nsm => "nfs-nsm",
            Self::PortMapper => "nfs-port-mapper",
            Self::Callback => "nfs-callback",
            Self::Record => "nfs-record",
            Self::Restore => "nfs-restore",
            Self::Client => "nfs-client",
            Self::Service => "nfs-service",
        }
    }

    /// The one with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }

    /// Inputs that are sound.
    pub fn seeds(self) -> Vec<Vec<u8>> {
        seeds::of(self)
    }

    /// Does what an input says, and tells how far that came: `opened` when something of it was understood.
    ///
    /// # Panics
    /// When the gateway does: that is what is looked for. Also when a request is never answered, when what was read is written in
    /// another way, and when a service cannot go on from what the one before it recorded.
    pub fn run(self, bytes: &[u8]) -> Reached {
        let mut reached = Reached::default();
        let to = &mut reached;
        match self {
            Self::Rpc => decoders::rpc(bytes, to),
            Self::Compound => decoders::compound(bytes, to),
            Self::V3 => decoders::v3(bytes, to),
            Self::Mount => decoders::mount(bytes, to),
            Self::Nlm => decoders::nlm(bytes, to),
            Self::Nsm => decoders::nsm(bytes, to),
            Self::PortMapper => decoders::port_mapper(bytes, to),
            Self::Callback => decoders::callback(bytes, to),
            Self::Record => decoders::record(bytes, to),
            Self::Restore => decoders::restore(bytes, to),
            Self::Client => decoders::client(bytes, to),
            Self::Service => service::run(bytes, to),
        }
        reached
    }
}
