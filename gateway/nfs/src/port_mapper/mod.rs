//! The port mapper (RFC 1833): which programs a service offers, and where. Versions 2, 3 and 4, for Linux finds the lock manager
//! and the status monitor through nothing else. Pure.
//!
//! The list is fixed. Nobody can add to it (SET, UNSET), and nothing is called for somebody (CALLIT and its kin), which would make
//! the server an amplifier.

pub mod lookup;
pub mod rpcbind;
pub mod universal_address;
pub mod version2;

use crate::address::IpAddr;

/// RPC program.
pub const PROGRAM: u32 = 100_000;
/// The port that everybody knows.
pub const PORT: u16 = 111;
/// The oldest version here.
pub const VERSION_MIN: u32 = 2;
/// The newest.
pub const VERSION_MAX: u32 = 4;

const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// On a stream.
    Tcp,
    /// As datagrams.
    Udp,
}

/// A program that is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its number.
    pub program: u32,
    /// Its version.
    pub version: u32,
    /// By which protocol.
    pub protocol: Protocol,
    /// On which port.
    pub port: u16,
}

/// A request, with what its answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The address that it came to.
    pub local: IpAddr,
    /// The protocol that it came by.
    pub protocol: Protocol,
    /// Seconds since 1970.
    pub seconds: u32,
}

impl Protocol {
    /// Its number in IP.
    pub fn number(self) -> u32 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// The one of a number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Tcp, Self::Udp].into_iter().find(|protocol| protocol.number() == number)
    }
}

/// All that a service offers whose files are on this port, in order. What goes over datagrams is small: never files.
pub fn offers(service_port: u16) -> Vec<Offer> {
    use Protocol::{Tcp, Udp};
    let of = |program: u32, versions: &'static [u32], protocols: &'static [Protocol], port: u16| {
        let with = move |version: &u32| {
            let version = *version;
            protocols.iter().map(move |protocol| Offer { program, version, protocol: *protocol, port })
        };
        versions.iter().flat_map(with)
    };
    of(PROGRAM, &[2, 3, 4], &[Tcp, Udp], PORT)
        .chain(of(NFS, &[3, 4], &[Tcp], service_port))
        .chain(of(MOUNT, &[3], &[Tcp, Udp], service_port))
        .chain(of(crate::nlm::PROGRAM, &[crate::nlm::VERSION], &[Tcp, Udp], service_port))
        .chain(of(crate::nsm::PROGRAM, &[crate::nsm::VERSION], &[Tcp, Udp], service_port))
        .collect()
}

/// The port of a program; none if it is not offered so.
pub fn port_of(offers: &[Offer], program: u32, version: u32, protocol: Protocol) -> Option<u16> {
    let mut of_program = offers.iter().filter(|offer| offer.program == program && offer.protocol == protocol);
    of_program.find(|offer| offer.version == version).map(|offer| offer.port)
}

/// The same; where it is offered in other versions only, the port of one of them, which says which there are. So clients find out
/// what they can speak (RFC 1833 §2.2.1, "RPCBPROC_GETVERSADDR", tells the two apart).
pub fn port_of_any(offers: &[Offer], program: u32, version: u32, protocol: Protocol) -> Option<u16> {
    let mut of_program = offers.iter().filter(|offer| offer.program == program && offer.protocol == protocol);
    port_of(offers, program, version, protocol).or_else(|| of_program.next().map(|offer| offer.port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_offered_on_streams_only_and_the_companions_on_both() {
        let offers = offers(2049);
        assert_eq!(port_of(&offers, NFS, 3, Protocol::Tcp), Some(2049));
        assert_eq!(port_of(&offers, NFS, 4, Protocol::Udp), None);
        for (program, version, port) in [(MOUNT, 3, 2049), (100_021, 4, 2049), (100_024, 1, 2049), (PROGRAM, 4, 111)] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                assert_eq!(port_of(&offers, program, version, protocol), Some(port));
            }
        }
        assert_eq!(port_of(&offers, 100_021, 3, Protocol::Tcp), None);
        assert_eq!(port_of_any(&offers, 100_021, 3, Protocol::Tcp), Some(2049));
        assert_eq!(port_of_any(&offers, NFS, 3, Protocol::Udp), None);
        assert_eq!(offers.len(), 6 + 2 + 2 + 2 + 2);
    }
}
