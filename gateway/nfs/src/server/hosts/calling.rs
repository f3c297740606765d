//! One call to a host: its port mapper is asked where the program is, and then that is called; by a stream, and where that does not
//! work by datagrams. Comes from the address that the host knows, by which it tells whom it waits for.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tracing::debug;

use crate::port_mapper::lookup::Lookup;
use crate::port_mapper::{PROGRAM as PORT_MAPPER, Protocol};
use crate::rpc::auth::Credential;
use crate::rpc::call::Call;
use crate::rpc::record::{RecordReader, mark};
use crate::rpc::reply;
use crate::service::HostCall;
use crate::xdr::{Decoder, Encoder};

/// Times that a host is tried by each protocol.
const ATTEMPTS_MAX: u32 = 3;
/// How long one message and its answer may take, the connection included.
const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(3);
/// Between two attempts, and behind the last.
const PAUSE: Duration = Duration::from_secs(2);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// A message to be sent, and from where to where.
struct Message {
    protocol: Protocol,
    from: IpAddr,
    to: SocketAddr,
    program: u32,
    version: u32,
    procedure: u32,
}

/// Calls, whose port mapper is on this port. None if the host cannot be reached, or does not do it.
pub(super) async fn call(call: &HostCall, port_mapper: u16) -> Option<Bytes> {
    for _ in 0..ATTEMPTS_MAX {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            match call_by(call, port_mapper, protocol).await {
                Ok(result) => return Some(result),
                Err(why) => debug!(host = %call.host.address(), ?protocol, subject = ?call.subject, "no answer: {why}"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    None
}

async fn call_by(call: &HostCall, port_mapper: u16, protocol: Protocol) -> io::Result<Bytes> {
    let host = call.host.address();
    let lookup = Lookup { host, program: call.program, version: call.version, protocol };
    let port = port_of(call.from, port_mapper, &lookup).await?;
    let message = Message {
        protocol,
        from: call.from,
        to: SocketAddr::new(host, port),
        program: call.program,
        version: call.version,
        procedure: call.procedure,
    };
    message.exchange(&call.arguments).await
}

/// Asks the host's port mapper.
async fn port_of(from: IpAddr, port_mapper: u16, lookup: &Lookup) -> io::Result<u16> {
    let to = SocketAddr::new(lookup.host, port_mapper);
    let (version, procedure) = lookup.procedure();
    let arguments = lookup.arguments().to_bytes();
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let message = Message { protocol, from, to, program: PORT_MAPPER, version, procedure };
        match message.exchange(&arguments).await {
            Ok(result) => {
                let port = lookup.port(&mut Decoder::new(result)).map_err(invalid)?;
                return port.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the program is not there"));
            }
            Err(why) => failed = why,
        }
    }
    Err(failed)
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Message {
    /// Sends it, and gives the result. Errors: also that there is none.
    async fn exchange(&self, arguments: &[u8]) -> io::Result<Bytes> {
        let exchanged = async {
            match self.protocol {
                Protocol::Tcp => self.by_stream(arguments).await,
                Protocol::Udp => self.by_datagrams(arguments).await,
            }
        };
        tokio::time::timeout(EXCHANGE_TIME_MAX, exchanged).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// The number of the call, which a stranger cannot guess, and its bytes.
    fn bytes(&self, arguments: &[u8]) -> (u32, Bytes) {
        let xid = RandomState::new().build_hasher().finish() as u32;
        let (program, version, procedure) = (self.program, self.version, self.procedure);
        let mut out = Encoder::new();
        Call { xid, program, version, procedure, credential: Credential::None }.encode(&mut out);
        out.encoded(arguments);
        (xid, out.to_bytes())
    }

    async fn by_stream(&self, arguments: &[u8]) -> io::Result<Bytes> {
        let socket = if self.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(self.from, 0))?;
        let mut stream = socket.connect(self.to).await?;
        let (xid, message) = self.bytes(arguments);
        stream.write_all(&[&mark(message.len())[..], &message].concat()).await?;
        let mut records = RecordReader::new(ANSWER_BYTES_MAX);
        let mut received = BytesMut::new();
        loop {
            if let Some(record) = records.next(&mut received).map_err(invalid)? {
                return result_of(xid, record)?.ok_or_else(|| invalid("an answer to something else"));
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn by_datagrams(&self, arguments: &[u8]) -> io::Result<Bytes> {
        let socket = UdpSocket::bind(SocketAddr::new(self.from, 0)).await?;
        socket.connect(self.to).await?;
        let (xid, message) = self.bytes(arguments);
        socket.send(&message).await?;
        let mut buffer = [0; ANSWER_BYTES_MAX];
        loop {
            let length = socket.recv(&mut buffer).await?;
            let answer = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
            if let Some(result) = result_of(xid, answer)? {
                return Ok(result);
            }
        }
    }
}

/// What follows the head of a reply; none for one to another call. Errors: it is no reply with a result.
fn result_of(xid: u32, reply: Bytes) -> io::Result<Option<Bytes>> {
    let mut decoder = Decoder::new(reply);
    match reply::decode(&mut decoder).map_err(invalid)? {
        (number, _) if number != xid => Ok(None),
        (_, true) => Ok(Some(decoder.between(decoder.position(), usize::MAX))),
        (_, false) => Err(invalid("the call was refused")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::service::Subject;
    use crate::state::holder::Host;
    use crate::state::hosts::GrantNumber;

    /// A host that answers on its loopback address.
    fn to_call() -> HostCall {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        HostCall {
            subject: Subject::Granted(GrantNumber(1)),
            host: Host::new(b"host", here).unwrap(),
            from: "127.0.0.9".parse().unwrap(),
            program: 100_021,
            version: 4,
            procedure: 5,
            arguments: Bytes::from_static(b"args"),
        }
    }

    /// The head of a reply to a call, and its result.
    fn reply_to(call: &[u8], result: &[u8]) -> Vec<u8> {
        let mut reply = call[..4].to_vec();
        reply.extend([0, 0, 0, 1]);
        reply.extend([0; 16]);
        reply.extend(result);
        reply
    }

    /// Answers one call of a stream; gives it, and where it came from.
    async fn answer_stream(listener: &TcpListener, result: &[u8]) -> (Vec<u8>, IpAddr) {
        let (mut stream, from) = listener.accept().await.unwrap();
        let length = stream.read_u32().await.unwrap() & !(1 << 31);
        let mut call = vec![0; length as usize];
        stream.read_exact(&mut call).await.unwrap();
        let reply = reply_to(&call, result);
        stream.write_all(&[&mark(reply.len())[..], &reply].concat()).await.unwrap();
        (call, from.ip())
    }

    #[tokio::test]
    async fn the_port_mapper_is_asked_and_the_program_called_from_the_address_that_the_host_knows() {
        let (mapper, program) = tokio::join!(TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
        let (mapper, program) = (mapper.unwrap(), program.unwrap());
        let port = u32::from(program.local_addr().unwrap().port()).to_be_bytes();
        let to_call = to_call();
        let (asked, called, result) = tokio::join!(
            answer_stream(&mapper, &port),
            answer_stream(&program, b"result!!"),
            call(&to_call, mapper.local_addr().unwrap().port()),
        );
        assert_eq!(result.unwrap(), "result!!");
        assert_eq!((asked.1, called.1), (to_call.from, to_call.from));
        assert_eq!(asked.0[12..24], [100_000_u32, 2, 3].map(u32::to_be_bytes).concat());
        assert_eq!(called.0[12..24], [100_021_u32, 4, 5].map(u32::to_be_bytes).concat());
        assert!(called.0.ends_with(b"args"));
    }

    #[tokio::test]
    async fn a_host_with_datagrams_only_is_called_by_them_and_strangers_answers_are_passed_over() {
        let mapper = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let program = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = u32::from(program.local_addr().unwrap().port()).to_be_bytes();
        let answering = async {
            let mut buffer = [0; 1024];
            // By streams the program is not there.
            for result in [[0; 4], port] {
                let (length, from) = mapper.recv_from(&mut buffer).await.unwrap();
                mapper.send_to(&reply_to(&buffer[..length], &result), from).await.unwrap();
            }
            let (length, from) = program.recv_from(&mut buffer).await.unwrap();
            let right = reply_to(&buffer[..length], b"done");
            let mut wrong = right.clone();
            wrong[0] ^= 1;
            program.send_to(&wrong, from).await.unwrap();
            program.send_to(&right, from).await.unwrap();
        };
        let to_call = to_call();
        let mapper_port = mapper.local_addr().unwrap().port();
        let ((), result) = tokio::join!(answering, call(&to_call, mapper_port));
        assert_eq!(result.unwrap(), "done");
    }

    #[tokio::test]
    async fn a_host_that_is_not_there_has_no_answer() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = unused.local_addr().unwrap().port();
        drop(unused);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert!(call_by(&to_call(), port, protocol).await.is_err());
        }
    }
}
