//! Floating addresses: put on an interface, announced to the neighbours, taken off, and the clients nudged.
//!
//! # Order
//! `handover` gives the steps as plain lists, and [`take_over`] keeps to them:
//! - **Takeover: listen, add the address, announce, nudge.** From the moment a box has the address it answers every SYN.
//!   Without a listener the answer is a reset, and a Linux NFS client then waits 3 s (6, 12); a SYN that nobody answers
//!   costs it 1 s. So the listener is bound first, to an address that is not there yet (IP_FREEBIND).
//! - **Release: remove the address, say goodbye, close the connections.** A connection that is closed while its address
//!   is there sends a FIN or a reset, which ends at the client what the next primary could have continued.
//!
//! # Parts
//! - `rtnetlink`, `packet`, `handover`: pure: messages for the kernel, packets, steps and their times.
//! - `interface`: rtnetlink. `announce`: the packet socket. `tickle`: the raw sockets. `close`: what ends in silence.
//!
//! It holds no state between calls: the kernel's list of addresses is the truth. It does not decide who is primary, does
//! not look for another box that still has the address (the lease has fenced it, and looking costs time), and changes no
//! address but the one it is given. It needs the capabilities NET_ADMIN and NET_RAW, and no others (NET_BIND_SERVICE for
//! listeners below port 1024).

mod announce;
mod close;
mod handover;
mod interface;
mod packet;
mod rtnetlink;
mod tickle;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use nix::errno::Errno;
use thiserror::Error;

pub use announce::Announcer;
pub use close::{close_listener_silently, close_silently};
pub use handover::{FollowUp, RELEASE_STEPS, ReleaseStep, TakeoverError, TakeoverStep, take_over, takeover_steps};
pub use interface::{add, is_present, remove};
pub use tickle::{CLIENTS_TICKLED_MAX, ClientConnection, Tickler};

/// Longest name of an interface, in bytes (`IFNAMSIZ` without its terminator).
const INTERFACE_NAME_BYTES_MAX: usize = 15;

/// An address that moves between boxes, and where it is put.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FloatingAddress {
    address: IpAddr,
    prefix_length: u8,
    interface: String,
}

impl FloatingAddress {
    /// `address` with a network prefix of `prefix_length` bits, on the interface of that name. Errors: a text that says
    /// what cannot be.
    pub fn new(address: IpAddr, prefix_length: u8, interface: &str) -> Result<Self, InvalidAddress> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if !(1..=bits).contains(&prefix_length) {
            return Err(InvalidAddress::PrefixLength { prefix_length, bits });
        }
        if address.is_unspecified() || address.is_multicast() || address.to_canonical() != address {
            return Err(InvalidAddress::NotOfAHost { address });
        }
        // As the kernel's dev_valid_name.
        let is_name = (1..=INTERFACE_NAME_BYTES_MAX).contains(&interface.len())
            && !matches!(interface, "." | "..")
            && !interface
                .chars()
                .any(|letter| letter == '/' || letter == ':' || letter == '\0' || letter.is_whitespace());
        if !is_name {
            return Err(InvalidAddress::InterfaceName { interface: interface.to_owned() });
        }
        Ok(Self { address, prefix_length, interface: interface.to_owned() })
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits of its network's prefix.
    pub fn prefix_length(&self) -> u8 {
        self.prefix_length
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

/// As `ip address` writes it, with the interface: `192.0.2.7/24 on eth0`.
impl fmt::Display for FloatingAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on {}", self.address, self.prefix_length, self.interface)
    }
}

/// Why something cannot be a floating address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidAddress {
    /// Longer than the address, or nothing.
    #[error("a prefix length of {prefix_length} is not between 1 and {bits}")]
    PrefixLength {
        /// As given.
        prefix_length: u8,
        /// Of the address.
        bits: u8,
    },
    /// Unspecified, multicast, or an IPv4 address in IPv6 form.
    #[error("{address} is not the address of a host")]
    NotOfAHost {
        /// As given.
        address: IpAddr,
    },
    /// Not a name that an interface can have.
    #[error("`{interface}` cannot be the name of an interface")]
    InterfaceName {
        /// As given.
        interface: String,
    },
}

/// A right that the process lacks (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// To change addresses.
    NetAdmin,
    /// To send packets of one's own making.
    NetRaw,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
        })
    }
}

/// What adding or removing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was done.
    Done,
    /// It was so already.
    Already,
}

/// Why an address could not be changed or announced.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// The administrator has to name another interface, or wait until this one is made.
    #[error("there is no interface `{interface}`")]
    NoInterface {
        /// As configured.
        interface: String,
    },
    /// Whoever starts the process has to give it the capability.
    #[error("not permitted: the process lacks {capability}")]
    NotPermitted {
        /// What is missing.
        capability: Capability,
    },
    /// Something else on this box has configured the address: it must be taken off there.
    #[error("the address is in use on `{interface}` with prefix length {prefix_length}")]
    InUse {
        /// Where it is.
        interface: String,
        /// How it is configured there.
        prefix_length: u8,
    },
    /// The administrator has to enable IPv6 there (`net.ipv6.conf.*.disable_ipv6`).
    #[error("IPv6 is off on `{interface}`")]
    Ipv6Off {
        /// As configured.
        interface: String,
    },
    /// The link is down: nobody hears anything until it is up.
    #[error("the interface `{interface}` is down")]
    LinkDown {
        /// As configured.
        interface: String,
    },
    /// The kernel refuses for another reason, or did not answer; another try may succeed.
    #[error("the kernel refuses: {errno}")]
    Refused {
        /// Its reason.
        errno: Errno,
    },
}
