//! By which of a service's ports a request came, and what is answered there.

use crate::port_mapper;
use crate::port_mapper::Protocol;

/// RPC program of files, which no datagram gets at.
const NFS: u32 = 100_003;

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Streams on the service's port.
    Service,
    /// Datagrams on the service's port.
    Datagrams,
    /// The port mapper's port.
    PortMapper(Protocol),
}

impl Door {
    /// True if a program is answered here.
    pub(super) fn admits(self, program: u32) -> bool {
        match self {
            Self::Service => program != port_mapper::PROGRAM,
            Self::Datagrams => ![NFS, port_mapper::PROGRAM].contains(&program),
            Self::PortMapper(_) => program == port_mapper::PROGRAM,
        }
    }

    /// True where anybody can call in anybody's name: nothing is said to whom no export names.
    pub(super) fn is_datagram(self) -> bool {
        matches!(self, Self::Datagrams | Self::PortMapper(Protocol::Udp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nlm, nsm};

    #[test]
    fn files_go_over_streams_only_and_the_port_mapper_has_its_own_port() {
        let by = Door::PortMapper(Protocol::Tcp);
        for (program, expected) in [
            (NFS, [true, false, false]),
            (nlm::PROGRAM, [true, true, false]),
            (nsm::PROGRAM, [true, true, false]),
            (port_mapper::PROGRAM, [false, false, true]),
        ] {
            assert_eq!([Door::Service, Door::Datagrams, by].map(|door| door.admits(program)), expected);
        }
    }
}
