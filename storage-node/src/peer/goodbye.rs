//! A supervisor's goodbye. Blocking, since the supervisor has no runtime: it must stay small enough never to fail itself.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use proto::NodeId;
use proto::peer::handshake::{ANSWER_BYTES, Answer, LinkKind};

use super::handshake::{agreed, offer_of, refused};
use super::{Identity, LinkError};

/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// For the answer: its coming means that the goodbye was delivered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Blocking: tells `address` that `identity`'s worker was reaped. Used by the supervisor, which alone may say so, and
/// only of a worker that it has waited for. Returns once the other side has taken note. Errors: it is unreachable,
/// silent for a second, or refuses.
pub fn say_goodbye(address: &str, identity: Identity) -> Result<(), LinkError> {
    let mut unreachable = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
    for candidate in address.to_socket_addrs()?.take(ADDRESSES_MAX) {
        match connect(candidate) {
            Ok(stream) => return exchange(stream, identity),
            Err(error) => unreachable = error,
        }
    }
    Err(unreachable.into())
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

fn exchange(mut stream: TcpStream, identity: Identity) -> Result<(), LinkError> {
    stream.write_all(&offer_of(identity, NodeId::NONE, LinkKind::Goodbye).encode())?;
    let mut head = [0; ANSWER_BYTES];
    stream.read_exact(&mut head)?;
    let mut reason = vec![0; Answer::reason_bytes(&head).map_err(refused)?];
    stream.read_exact(&mut reason)?;
    agreed(Answer::decode(&head, &reason).map_err(refused)?).map(|_| ())
}
