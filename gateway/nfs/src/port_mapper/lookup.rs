//! What the service asks the port mapper of a client that is to be called back: where a program is.

use super::Protocol;
use super::universal_address::{TEXT_BYTES_MAX, network_id, parse};
use crate::address::{IpAddr, SocketAddr};
use crate::xdr::{Decoder, Encoder, XdrError};

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Where.
    pub host: IpAddr,
    /// Program.
    pub program: u32,
    /// Its version.
    pub version: u32,
    /// By which protocol.
    pub protocol: Protocol,
}

impl Lookup {
    /// Version and procedure: GETPORT for IPv4, which every port mapper has, and GETADDR where version 2 has no words for it.
    pub fn procedure(&self) -> (u32, u32) {
        match self.host {
            IpAddr::V4(_) => (2, 3),
            IpAddr::V6(_) => (4, 3),
        }
    }

    /// The arguments.
    pub fn arguments(&self) -> Encoder {
        let mut out = Encoder::new();
        out.u32(self.program);
        out.u32(self.version);
        match self.host {
            IpAddr::V4(_) => {
                out.u32(self.protocol.number());
                out.u32(0);
            }
            IpAddr::V6(_) => {
                out.opaque(network_id(self.protocol, self.host).as_bytes());
                out.opaque(b"");
                out.opaque(b"");
            }
        }
        out
    }

    /// The port, from the answer; none if the program is not there. The address in the answer is not looked at: only the host
    /// itself is called. Errors: bytes that are no answer.
    pub fn port(&self, from: &mut Decoder) -> Result<Option<u16>, XdrError> {
        let port = match self.host {
            IpAddr::V4(_) => {
                let port = from.u32()?;
                u16::try_from(port).map_err(|_| XdrError::BadValue { of: "port", value: port })?
            }
            IpAddr::V6(_) => parse(&from.opaque(TEXT_BYTES_MAX)?).as_ref().map_or(0, SocketAddr::port),
        };
        Ok((port != 0).then_some(port))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Asked, offers, rpcbind, version2};
    use super::*;

    fn lookup(host: &str, program: u32) -> Lookup {
        Lookup { host: host.parse().unwrap(), program, version: 4, protocol: Protocol::Udp }
    }

    #[test]
    fn a_port_mapper_understands_it_and_its_answer_is_understood() {
        for (host, program, port) in [
            ("192.0.2.7", 100_021, Some(2049)),
            ("192.0.2.7", 7, None),
            ("2001:db8::7", 100_021, Some(2049)),
            ("2001:db8::7", 7, None),
        ] {
            let lookup = lookup(host, program);
            let asked = Asked { local: lookup.host, protocol: Protocol::Tcp, seconds: 0 };
            let mut arguments = Decoder::new(lookup.arguments().to_bytes());
            let mut out = Encoder::new();
            match lookup.procedure() {
                (2, procedure) => {
                    let request = version2::Request::decode(procedure, &mut arguments).unwrap().unwrap();
                    request.answer(&offers(2049), &mut out);
                }
                (version, procedure) => {
                    let request = rpcbind::Request::decode(version, procedure, &mut arguments).unwrap().unwrap();
                    request.answer(&offers(2049), &asked, &mut out);
                }
            }
            assert_eq!(lookup.port(&mut Decoder::new(out.to_bytes())), Ok(port), "{host}");
        }
    }

    #[test]
    fn answers_that_make_no_sense_are_no_ports() {
        let of = |host, bytes: &'static [u8]| lookup(host, 1).port(&mut Decoder::new(bytes.into()));
        assert!(of("192.0.2.7", &[0, 1, 0, 0]).is_err() && of("192.0.2.7", &[0, 1]).is_err());
        assert_eq!(of("2001:db8::7", b"\0\0\0\x04junk"), Ok(None));
        assert!(of("2001:db8::7", b"\xff\0\0\x04junk").is_err());
    }
}
