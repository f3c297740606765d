//! Addresses on this box's interfaces, asked of the kernel and changed there. It keeps nothing.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::{if_indextoname, if_nametoindex};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use tracing::debug;

use super::rtnetlink::{self, Answer, InterfaceAddress};
use super::{AddressError, Capability, Change, FloatingAddress};

/// A datagram of the kernel's is never longer (it fills at most 32 KiB of a list at a time).
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// How long the kernel may take to answer: it does so within the call, so only a failed one takes longer.
const ANSWER_SECONDS_MAX: i64 = 5;
/// Readings of a list that changes while it is read.
const LISTINGS_MAX: usize = 8;

/// Puts it on its interface, without duplicate address detection. It can be used when this returns. Errors: as
/// [`AddressError`]; nothing was changed then.
pub fn add(floating: &FloatingAddress) -> Result<Change, AddressError> {
    let interface_index = index_of(floating)?;
    let mut kernel = Kernel::open()?;
    let found = kernel.list(floating.address)?;
    if found.contains(&entry(floating, interface_index)) {
        return Ok(Change::Already);
    }
    if let Some(other) = found.first() {
        let interface = name_of(other.interface_index);
        return Err(AddressError::InUse { interface, prefix_length: other.prefix_length });
    }
    match kernel.request(|sequence| rtnetlink::add(sequence, entry(floating, interface_index)))? {
        Ok(()) => Ok(Change::Done),
        // Another process was faster.
        Err(Errno::EEXIST) => Ok(Change::Already),
        Err(errno) => Err(refused(floating, errno)),
    }
}

/// Takes it off its interface; other addresses stay. Nothing to do where the interface is gone. Errors: as
/// [`AddressError`]; it may be there still.
pub fn remove(floating: &FloatingAddress) -> Result<Change, AddressError> {
    let interface_index = match index_of(floating) {
        Err(AddressError::NoInterface { .. }) => return Ok(Change::Already),
        other => other?,
    };
    let mut kernel = Kernel::open()?;
    if floating.address.is_ipv4() {
        let promoted = kernel.request(|sequence| rtnetlink::promote_secondaries(sequence, interface_index))?;
        // Such a kernel is unknown; and an address that stays is worse than one that is missed.
        promoted.unwrap_or_else(|errno| debug!("{}: promote_secondaries: {errno}", floating.interface));
    }
    match kernel.request(|sequence| rtnetlink::remove(sequence, entry(floating, interface_index)))? {
        Ok(()) => Ok(Change::Done),
        Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => Ok(Change::Already),
        Err(errno) => Err(refused(floating, errno)),
    }
}

/// Whether it is on its interface, with its prefix. Errors: the kernel does not answer.
pub fn is_present(floating: &FloatingAddress) -> Result<bool, AddressError> {
    match index_of(floating) {
        Ok(index) => Ok(Kernel::open()?.list(floating.address)?.contains(&entry(floating, index))),
        Err(AddressError::NoInterface { .. }) => Ok(false),
        Err(why) => Err(why),
    }
}

fn entry(floating: &FloatingAddress, interface_index: u32) -> InterfaceAddress {
    InterfaceAddress { address: floating.address, prefix_length: floating.prefix_length, interface_index }
}

fn index_of(floating: &FloatingAddress) -> Result<u32, AddressError> {
    if_nametoindex(floating.interface.as_str()).map_err(|errno| refused(floating, errno))
}

fn name_of(interface_index: u32) -> String {
    match if_indextoname(interface_index) {
        Ok(name) => name.to_string_lossy().into_owned(),
        // It went since.
        Err(_) => format!("interface {interface_index}"),
    }
}

fn refused(floating: &FloatingAddress, errno: Errno) -> AddressError {
    let interface = floating.interface.clone();
    match errno {
        Errno::ENODEV | Errno::ENXIO => AddressError::NoInterface { interface },
        Errno::EPERM => AddressError::NotPermitted { capability: Capability::NetAdmin },
        // Of an interface, or of the whole kernel.
        Errno::EACCES | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT if floating.address.is_ipv6() => {
            AddressError::Ipv6Off { interface }
        }
        errno => AddressError::Refused { errno },
    }
}

impl From<Errno> for AddressError {
    fn from(errno: Errno) -> Self {
        Self::Refused { errno }
    }
}

impl From<io::Error> for AddressError {
    fn from(error: io::Error) -> Self {
        Self::Refused { errno: error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw) }
    }
}

/// A conversation with the kernel.
struct Kernel {
    socket: OwnedFd,
    sequence: u32,
}

impl Kernel {
    fn open() -> Result<Self, Errno> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS_MAX, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and gives the kernel's verdict; the outer error is that of the conversation.
    fn request(&mut self, message: impl FnOnce(u32) -> Vec<u8>) -> Result<Result<(), Errno>, Errno> {
        self.ask(message, |_| {})
    }

    /// Where `address` is configured on this box.
    fn list(&mut self, address: IpAddr) -> Result<Vec<InterfaceAddress>, Errno> {
        for _ in 0..LISTINGS_MAX {
            let (mut found, mut interrupted) = (Vec::new(), false);
            let listed = self.ask(
                |sequence| rtnetlink::list(sequence, address),
                |answer| match answer {
                    Answer::Address(entry) if entry.address == address => found.push(entry),
                    Answer::Interrupted => interrupted = true,
                    _ => {}
                },
            )?;
            listed?;
            if !interrupted {
                return Ok(found);
            }
        }
        Err(Errno::EINTR)
    }

    fn ask(
        &mut self,
        message: impl FnOnce(u32) -> Vec<u8>,
        mut visit: impl FnMut(Answer),
    ) -> Result<Result<(), Errno>, Errno> {
        self.sequence += 1;
        send(self.socket.as_raw_fd(), &message(self.sequence), MsgFlags::empty())?;
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let (length, from) = recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut datagram)?;
            // Port 0 is the kernel; any process may send to a netlink socket that it guesses.
            if from.is_none_or(|from| from.pid() != 0) {
                continue;
            }
            for answer in rtnetlink::answers(&datagram[..length], self.sequence) {
                match answer {
                    Answer::Done => return Ok(Ok(())),
                    Answer::Failed(errno) => return Ok(Err(errno)),
                    other => visit(other),
                }
            }
        }
    }
}
