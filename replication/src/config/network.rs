//! IP addresses and networks as values: which network holds an address, and which of two is the narrower one.
//!
//! Own types, because a core names nothing of `std::net`; text forms are the shell's affair.

/// An IP address. An IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2) is the IPv4 address: a client that comes in by a
/// socket for both families is the same client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpAddress(IpBits);

/// The bits of an [`IpAddress`], the most significant first in the text form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpBits {
    /// IPv4.
    V4(u32),
    /// IPv6, and no mapped IPv4 address.
    V6(u128),
}

/// The upper 96 bits of IPv4-mapped addresses, `::ffff:0:0/96`.
const MAPPED: u128 = 0xffff;

impl IpAddress {
    /// An IPv4 address from its bits.
    pub const fn v4(bits: u32) -> Self {
        Self(IpBits::V4(bits))
    }

    /// An IPv6 address from its bits; a mapped one becomes the IPv4 address.
    pub const fn v6(bits: u128) -> Self {
        if bits >> 32 == MAPPED { Self(IpBits::V4(bits as u32)) } else { Self(IpBits::V6(bits)) }
    }

    /// Its family and bits.
    pub const fn bits(self) -> IpBits {
        self.0
    }

    /// Bits in an address of its family: 32 or 128.
    pub const fn width(self) -> u8 {
        match self.0 {
            IpBits::V4(_) => 32,
            IpBits::V6(_) => 128,
        }
    }

    /// The bits after the first `prefix_length` ones; 0 where there are none.
    fn host_bits(self, prefix_length: u8) -> u128 {
        let (bits, width) = match self.0 {
            IpBits::V4(bits) => (u128::from(bits), 32),
            IpBits::V6(bits) => (bits, 128),
        };
        match 1u128.checked_shl(u32::from(u8::saturating_sub(width, prefix_length))) {
            Some(beyond) => bits & (beyond - 1),
            None => bits,
        }
    }

    /// True if a box may be given this address on a network of that prefix length: one of a single host, and in IPv4
    /// neither the network's own nor its broadcast address (RFC 1122 §3.2.1.3; a prefix of 31 has none, RFC 3021).
    pub fn is_of_a_host(self, prefix_length: u8) -> bool {
        if prefix_length == 0 || prefix_length > self.width() {
            return false;
        }
        match self.0 {
            IpBits::V4(bits) => {
                let host = self.host_bits(prefix_length);
                let ones = (1u128 << (32 - prefix_length)) - 1;
                (1..=223).contains(&(bits >> 24)) && (prefix_length >= 31 || (host != 0 && host != ones))
            }
            IpBits::V6(bits) => bits != 0 && bits >> 120 != 0xff,
        }
    }
}

/// An IP network: an address whose bits beyond the prefix are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddress,
    prefix_length: u8,
}

impl Network {
    /// The network of that address and prefix length; `None` if the prefix is longer than the address, or the address has
    /// bits beyond it.
    pub fn new(address: IpAddress, prefix_length: u8) -> Option<Self> {
        let whole = prefix_length <= address.width() && address.host_bits(prefix_length) == 0;
        whole.then_some(Self { address, prefix_length })
    }

    /// The narrowest network that holds `address` with that prefix; `None` if the prefix is longer than the address.
    pub fn around(address: IpAddress, prefix_length: u8) -> Option<Self> {
        let host = address.host_bits(prefix_length);
        let address = match address.bits() {
            IpBits::V4(bits) => IpAddress::v4(bits & !(host as u32)),
            IpBits::V6(bits) => IpAddress(IpBits::V6(bits & !host)),
        };
        Self::new(address, prefix_length)
    }

    /// Its first address.
    pub fn address(self) -> IpAddress {
        self.address
    }

    /// Leading bits that all its addresses share.
    pub fn prefix_length(self) -> u8 {
        self.prefix_length
    }

    /// True if the address is in the network. One of the other family never is.
    pub fn contains(self, address: IpAddress) -> bool {
        address.width() == self.address.width() && Self::around(address, self.prefix_length) == Some(self)
    }
}
