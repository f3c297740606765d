//! Bytes of NFS services, and of the commands about them. A value that its type cannot hold is damage.

use proto::ServiceVersion;

use super::{ApplyError, Wire};
use crate::config::command::NfsCommand;
use crate::config::network::{IpAddress, IpBits, Network};
use crate::config::nfs::{Access, Client, ExportRule, ExportRules, FloatingAddress, NfsService, Squash};

wire_newtype!(ServiceVersion);

impl Wire for IpAddress {
    fn put(&self, out: &mut Vec<u8>) {
        match self.bits() {
            IpBits::V4(bits) => {
                out.push(4);
                bits.put(out);
            }
            IpBits::V6(bits) => {
                out.push(6);
                bits.put(out);
            }
        }
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        match u8::get(input)? {
            4 => Ok(IpAddress::v4(Wire::get(input)?)),
            6 => {
                let address = IpAddress::v6(Wire::get(input)?);
                // Each address has one form: a mapped one is written as the IPv4 address.
                if matches!(address.bits(), IpBits::V6(_)) { Ok(address) } else { Err(ApplyError::Malformed) }
            }
            _ => Err(ApplyError::Malformed),
        }
    }
}

impl Wire for Network {
    fn put(&self, out: &mut Vec<u8>) {
        self.address().put(out);
        self.prefix_length().put(out);
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        Network::new(Wire::get(input)?, Wire::get(input)?).ok_or(ApplyError::Malformed)
    }
}

impl Wire for Client {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Client::Any => out.push(0),
            Client::Network(network) => {
                out.push(1);
                network.put(out);
            }
        }
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        match u8::get(input)? {
            0 => Ok(Client::Any),
            1 => Ok(Client::Network(Wire::get(input)?)),
            _ => Err(ApplyError::UnknownCommand),
        }
    }
}

impl Wire for ExportRules {
    fn put(&self, out: &mut Vec<u8>) {
        (self.as_slice().len() as u32).put(out);
        self.as_slice().iter().for_each(|rule| rule.put(out));
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        ExportRules::new(Wire::get(input)?).map_err(|_| ApplyError::Malformed)
    }
}

wire_enum!(Access { 0 => ReadOnly {}, 1 => ReadWrite {} });
wire_enum!(Squash { 0 => Root {}, 1 => All {}, 2 => None {} });
wire_struct!(FloatingAddress { address, prefix_length, interface });
wire_struct!(ExportRule { client, access, squash, anonymous_uid, anonymous_gid });
wire_struct!(NfsService { version, since, addresses, port, exports });
wire_enum!(NfsCommand {
    1 => Serve { addresses, port },
    2 => Stop {},
    3 => SetExports { rules },
});
