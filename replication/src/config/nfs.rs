//! What the cluster holds of NFS: for each volume at most one service, where it is reached, and which clients may do what.
//!
//! Values and the rules that need one service only; what concerns several is in `apply/nfs.rs`. Nothing here serves NFS.

use proto::ServiceVersion;

use super::network::{IpAddress, Network};

/// Floating addresses of a service, at most.
pub const ADDRESSES_MAX: usize = 8;
/// Export rules of a service, at most.
pub const EXPORT_RULES_MAX: usize = 64;
/// Bytes in the name of a network interface, at most (Linux: IFNAMSIZ without the final zero).
pub const INTERFACE_BYTES_MAX: usize = 15;
/// The port of NFS (RFC 8881 §2.9.1).
pub const NFS_PORT: u16 = 2049;
/// User and group of a client whose own are not taken, unless a rule says otherwise: nobody's, as on other servers.
pub const ANONYMOUS_ID: u32 = 65534;

/// Feature level of the oldest software that knows NFS services. No node may be older once there was one.
pub const NFS_LEVEL: u32 = 3;

/// An address that is on the interface of whichever box serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FloatingAddress {
    /// The address.
    pub address: IpAddress,
    /// Length of the prefix that it is added with.
    pub prefix_length: u8,
    /// Name of the network interface, the same on every box.
    pub interface: String,
}

impl FloatingAddress {
    /// Errors: a box cannot be given this address, or has no interface of that name.
    pub fn check(&self) -> Result<(), &'static str> {
        if !self.address.is_of_a_host(self.prefix_length) {
            return Err("a floating address must be one that a box can have, with a prefix of at least 1 bit");
        }
        if !interface_is_valid(&self.interface) {
            return Err("the name of a network interface has 1 to 15 bytes without spaces, '/' and ':'");
        }
        Ok(())
    }
}

/// True for a name that a network interface may have, by the kernel's rules (`dev_valid_name`) and without control
/// characters, which it would take.
pub fn interface_is_valid(name: &str) -> bool {
    // The kernel looks at bytes: 0xa0 is a space to it, also as a part of a longer character.
    let refused = |byte: u8| byte.is_ascii_control() || matches!(byte, b' ' | b'/' | b':' | 0xa0);
    (1..=INTERFACE_BYTES_MAX).contains(&name.len()) && name != "." && name != ".." && !name.bytes().any(refused)
}

/// Whom a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// Everybody, IPv4 and IPv6.
    Any,
    /// Those with an address in that network.
    Network(Network),
}

impl Client {
    /// True if the rule is about a client with that address.
    pub fn is(self, address: IpAddress) -> bool {
        match self {
            Client::Any => true,
            Client::Network(network) => network.contains(address),
        }
    }

    /// Grows as the client is told more precisely; everybody is less precise than every network.
    fn precision(self) -> Option<u8> {
        match self {
            Client::Any => None,
            Client::Network(network) => Some(network.prefix_length()),
        }
    }
}

/// What a client may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Read.
    #[default]
    ReadOnly,
    /// Read and change.
    ReadWrite,
}

/// Whose word about their user is not taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Squash {
    /// Root's.
    #[default]
    Root,
    /// Everybody's.
    All,
    /// Nobody's: root is root.
    None,
}

/// What the clients of one network may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportRule {
    /// Whom it is about; there is one rule for each.
    pub client: Client,
    /// What they may do.
    pub access: Access,
    /// Which of their users become anonymous.
    pub squash: Squash,
    /// The user that these become.
    pub anonymous_uid: u32,
    /// The group that these become.
    pub anonymous_gid: u32,
}

impl ExportRule {
    /// The user as whom a caller with that one acts.
    pub fn user(&self, uid: u32) -> u32 {
        if self.is_squashed(uid) { self.anonymous_uid } else { uid }
    }

    /// The group as which a caller with that one acts; each of a caller's groups is looked at by itself. With
    /// [`Squash::All`] the supplementary ones are to be dropped.
    pub fn group(&self, gid: u32) -> u32 {
        if self.is_squashed(gid) { self.anonymous_gid } else { gid }
    }

    fn is_squashed(&self, id: u32) -> bool {
        match self.squash {
            Squash::Root => id == 0,
            Squash::All => true,
            Squash::None => false,
        }
    }
}

/// The rules of one service, in the order of their clients and one for each: two lists that say the same are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExportRules(Vec<ExportRule>);

impl ExportRules {
    /// Errors: too many rules, or two for the same client.
    pub fn new(mut rules: Vec<ExportRule>) -> Result<Self, &'static str> {
        if rules.len() > EXPORT_RULES_MAX {
            return Err("a service has 64 export rules at most");
        }
        rules.sort_unstable();
        if rules.windows(2).any(|pair| pair[0].client == pair[1].client) {
            return Err("two export rules name the same client");
        }
        Ok(Self(rules))
    }

    /// The rule that holds for a client with this address: the one with the longest prefix of those that name it. `None`:
    /// no rule names it, and it has no access.
    pub fn for_client(&self, address: IpAddress) -> Option<&ExportRule> {
        self.0.iter().filter(|rule| rule.client.is(address)).max_by_key(|rule| rule.client.precision())
    }

    /// All of them, in the order of their clients.
    pub fn as_slice(&self) -> &[ExportRule] {
        &self.0
    }
}

/// How one volume is served over NFS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NfsService {
    /// Compare-and-swap version of the service; unlike [`proto::ConfigVersion`] no replica looks at it.
    pub version: ServiceVersion,
    /// The version with which it began; another one after it was stopped. Never above `version`.
    pub since: ServiceVersion,
    /// Where it is reached, the first one told to clients that are sent here. None: on the own address of the primary.
    pub addresses: Vec<FloatingAddress>,
    /// TCP port.
    pub port: u16,
    /// Who may do what.
    pub exports: ExportRules,
}

impl NfsService {
    /// Errors: the first bound or rule that this place breaks.
    pub(super) fn check_place(addresses: &[FloatingAddress], port: u16) -> Result<(), &'static str> {
        if addresses.len() > ADDRESSES_MAX {
            return Err("a service has 8 floating addresses at most");
        }
        if port == 0 {
            return Err("port 0 is no port that clients could name");
        }
        for (index, address) in addresses.iter().enumerate() {
            address.check()?;
            if addresses[..index].iter().any(|other| other.address == address.address) {
                return Err("a floating address is given twice");
            }
        }
        Ok(())
    }

    /// What keeps two services from being reached at their places both; `None` if nothing does.
    pub fn conflict(&self, addresses: &[FloatingAddress], port: u16) -> Option<PlaceConflict> {
        let taken = |address: &&FloatingAddress| self.addresses.iter().any(|own| own.address == address.address);
        match addresses.iter().find(taken) {
            Some(address) => Some(PlaceConflict::Address(address.address)),
            None if addresses.is_empty() && self.addresses.is_empty() && self.port == port => Some(PlaceConflict::Port),
            None => None,
        }
    }
}

/// Why two services cannot be reached both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceConflict {
    /// They have a floating address in common.
    Address(IpAddress),
    /// Neither has a floating address, and their ports are the same.
    Port,
}
