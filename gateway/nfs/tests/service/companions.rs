//! The ports beside that of files, over sockets: what the port mapper tells, and which programs answer to datagrams.

use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use gateway_nfs::port_mapper::Protocol;
use gateway_nfs::server::{serve_datagrams, serve_port_mapper};
use gateway_nfs::service::Door;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::spawn_local;

use crate::world::{rpc, run, serve, volume};

const PORT_MAPPER: u32 = 100_000;
const NFS: u32 = 100_003;
const NLM: u32 = 100_021;
const NSM: u32 = 100_024;

/// The ports of a service.
struct Ports {
    stop: watch::Sender<bool>,
    mapper: SocketAddr,
    mapper_datagrams: SocketAddr,
    datagrams: SocketAddr,
}

async fn ports() -> Ports {
    let service = serve(&volume()).await;
    let (stop, stopped) = watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mapper = listener.local_addr().unwrap();
    spawn_local(serve_port_mapper(Rc::clone(&service), listener, stopped.clone()));
    let mut at = Vec::new();
    for door in [Door::PortMapper(Protocol::Udp), Door::Datagrams] {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        at.push(socket.local_addr().unwrap());
        spawn_local(serve_datagrams(Rc::clone(&service), socket, door, stopped.clone()));
    }
    Ports { stop, mapper, mapper_datagrams: at[0], datagrams: at[1] }
}

async fn by_stream(to: SocketAddr, message: &[u8]) -> Bytes {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let mark = (message.len() as u32 | 1 << 31).to_be_bytes();
    stream.write_all(&[&mark, message].concat()).await.unwrap();
    let length = stream.read_u32().await.unwrap() & !(1 << 31);
    let mut reply = vec![0; length as usize];
    stream.read_exact(&mut reply).await.unwrap();
    reply.into()
}

async fn by_datagram(to: SocketAddr, message: &[u8]) -> Bytes {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to).await.unwrap();
    socket.send(message).await.unwrap();
    let mut reply = vec![0; 10_000];
    let length = socket.recv(&mut reply).await.unwrap();
    reply.truncate(length);
    reply.into()
}

/// What follows the head of an accepted reply; none for a refusal.
fn result(reply: &Bytes) -> Option<Bytes> {
    assert_eq!(reply[..4], 77_u32.to_be_bytes());
    (reply.get(8..24) == Some(&[0; 16])).then(|| reply.slice(24..))
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[test]
fn the_port_mapper_tells_ports_by_both_protocols() {
    run(async {
        let ports = ports().await;
        for (program, version, protocol, port) in
            [(NFS, 4, 6, 2049), (NFS, 3, 6, 2049), (NFS, 3, 17, 0), (NLM, 4, 17, 2049), (NSM, 1, 6, 2049), (1, 1, 6, 0)]
        {
            let message = rpc((PORT_MAPPER, 2, 3), "host", 0, &words(&[program, version, protocol, 0]));
            for reply in [by_stream(ports.mapper, &message).await, by_datagram(ports.mapper_datagrams, &message).await]
            {
                assert_eq!(result(&reply).unwrap(), words(&[port]), "{program} {version} {protocol}");
            }
        }
        // Version 4, by text: each family its own transports, the address that was asked.
        let arguments = [&words(&[NLM, 4, 0])[..], &[0; 8]].concat();
        let message = rpc((PORT_MAPPER, 4, 3), "host", 0, &arguments);
        let reply = by_stream(ports.mapper, &message).await;
        assert_eq!(result(&reply).unwrap(), b"\0\0\0\x0d127.0.0.1.8.1\0\0\0"[..]);
        ports.stop.send_replace(true);
    });
}

#[test]
fn nobody_changes_the_list_or_has_others_called() {
    run(async {
        let ports = ports().await;
        for procedure in [1, 2] {
            let message = rpc((PORT_MAPPER, 2, procedure), "host", 0, &words(&[NLM, 4, 6, 9]));
            assert_eq!(result(&by_stream(ports.mapper, &message).await).unwrap(), words(&[0]));
        }
        let call = rpc((PORT_MAPPER, 2, 5), "host", 0, &words(&[NFS, 4, 0, 0]));
        let reply = by_datagram(ports.mapper_datagrams, &call).await;
        assert_eq!(result(&reply), None);
        assert!(reply.len() <= call.len(), "a refusal is no longer than what it refuses");
        let other = rpc((NLM, 4, 0), "host", 0, b"");
        assert_eq!(result(&by_stream(ports.mapper, &other).await), None, "it is all there is on this port");
        ports.stop.send_replace(true);
    });
}

#[test]
fn datagrams_reach_the_companions_and_no_files_and_junk_is_passed_over() {
    run(async {
        let ports = ports().await;
        let junk = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for bytes in [&b""[..], b"junk", &[0xff; 9_000], &words(&[77, 1, 0, 0, 0, 0])] {
            junk.send_to(bytes, ports.datagrams).await.unwrap();
            junk.send_to(bytes, ports.mapper_datagrams).await.unwrap();
        }
        for program in [(NLM, 4, 0), (NSM, 1, 0)] {
            let reply = by_datagram(ports.datagrams, &rpc(program, "host", 0, b"")).await;
            assert_eq!(result(&reply), Some(Bytes::new()), "{program:?}");
        }
        for program in [(NFS, 4, 0), (PORT_MAPPER, 2, 0)] {
            let reply = by_datagram(ports.datagrams, &rpc(program, "host", 0, b"")).await;
            assert_eq!(result(&reply), None, "{program:?}");
        }
        assert_eq!(
            junk.try_recv(&mut [0; 100]).map_err(|error| error.kind()),
            Err(std::io::ErrorKind::WouldBlock),
            "no answer"
        );
        ports.stop.send_replace(true);
    });
}
