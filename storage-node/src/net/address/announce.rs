//! Tells the neighbours on a link where a floating address is now. It holds a packet socket; the caller has the schedule.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, bind, send, socket};

use super::packet::{GratuitousArp, gratuitous_arp, neighbour_advertisement};
use super::{AddressError, Capability, FloatingAddress};

/// Links whose neighbours are found by ARP and neighbour discovery with addresses of six bytes (`ARPHRD_ETHER`): also
/// bridges, bonds, VLANs and veth pairs.
const HARDWARE_ETHERNET: u16 = 1;
const MAC_BYTES: usize = 6;

/// Ready to announce one address on one link.
#[derive(Debug)]
pub struct Announcer {
    floating: FloatingAddress,
    socket: OwnedFd,
    frames: Vec<Vec<u8>>,
}

impl Announcer {
    /// For `floating`; `None` where a link has no neighbours that would want to know (loopback, a tunnel). Errors: no
    /// such interface, no NET_RAW.
    pub fn open(floating: &FloatingAddress) -> Result<Option<Self>, AddressError> {
        let Some(link) = link_address(&floating.interface)? else {
            return Err(AddressError::NoInterface { interface: floating.interface.clone() });
        };
        let mac = match link.addr() {
            Some(mac) if link.hatype() == HARDWARE_ETHERNET && link.halen() == MAC_BYTES => mac,
            _ => return Ok(None),
        };
        let frames = match floating.address {
            IpAddr::V4(address) => {
                [GratuitousArp::Request, GratuitousArp::Reply].map(|form| gratuitous_arp(form, mac, address)).to_vec()
            }
            IpAddr::V6(address) => vec![neighbour_advertisement(mac, address)],
        };
        // Protocol 0: it takes nothing in. A packet socket also for IPv6, so that neither routes nor the choice of a
        // source address have a say in what goes out.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| refused(floating, errno))?;
        bind(socket.as_raw_fd(), &link).map_err(|errno| refused(floating, errno))?;
        Ok(Some(Self { floating: floating.clone(), socket, frames }))
    }

    /// Sends every form once. Does not block. Errors: the link is down, or its queue is full; the next round is worth a
    /// try.
    pub fn announce(&self) -> Result<(), AddressError> {
        for frame in &self.frames {
            send(self.socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT)
                .map_err(|errno| refused(&self.floating, errno))?;
        }
        Ok(())
    }
}

/// Of the interface with that name. A socket address of a link cannot be made without `unsafe`, but the kernel's list
/// contains one for each link, and `bind` takes it as it is.
fn link_address(interface: &str) -> Result<Option<LinkAddr>, Errno> {
    Ok(getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address.as_ref().and_then(|address| address.as_link_addr()).copied()))
}

fn refused(floating: &FloatingAddress, errno: Errno) -> AddressError {
    let interface = floating.interface.clone();
    match errno {
        Errno::EPERM => AddressError::NotPermitted { capability: Capability::NetRaw },
        Errno::ENETDOWN => AddressError::LinkDown { interface },
        Errno::ENODEV | Errno::ENXIO => AddressError::NoInterface { interface },
        errno => AddressError::Refused { errno },
    }
}
