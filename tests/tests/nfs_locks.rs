//! Locks of NFSv3's hosts on a real pair behind a floating address: found through port 111, kept when a box dies, and told to whom
//! waited by the box that is there then. What is sent here is written out by none of the server's own codecs.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use gateway_nfs::client::connection::{Client, Options};
use gateway_nfs::client::files::Files;
use gateway_nfs::rpc::auth::SysCredential;
use tandem_tests::e2e::cluster::{ALPHA, BETA};
use tandem_tests::e2e::network::Network;
use tandem_tests::e2e::{Cluster, Need, require};

const NFS_PORT: u16 = 2049;
const PORT_MAPPER_PORT: u16 = 111;
const PORT_MAPPER: u32 = 100_000;
const NLM: u32 = 100_021;
const LOCK: u32 = 2;
const UNLOCK: u32 = 4;
const GRANTED: u32 = 0;
const DENIED: u32 = 1;
const BLOCKED: u32 = 3;
/// For an answer of a box that takes over meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn opaque(bytes: &[u8]) -> Vec<u8> {
    let mut out = words(&[bytes.len() as u32]);
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn call((program, version, procedure): (u32, u32, u32), arguments: &[u8]) -> Vec<u8> {
    let credential = [words(&[0]), opaque(b"host"), words(&[0, 0, 0])].concat();
    let head = words(&[7, 0, 2, program, version, procedure, 1]);
    [head, opaque(&credential), words(&[0, 0]), arguments.to_vec()].concat()
}

/// What follows the head of an accepted reply.
fn result(reply: &[u8]) -> Vec<u8> {
    assert_eq!(reply[..24], words(&[7, 1, 0, 0, 0, 0]), "an accepted reply");
    reply[24..].to_vec()
}

fn read_record(stream: &mut TcpStream) -> Vec<u8> {
    let mut mark = [0; 4];
    stream.read_exact(&mut mark).expect("a message");
    let mut message = vec![0; (u32::from_be_bytes(mark) & !(1 << 31)) as usize];
    stream.read_exact(&mut message).expect("the whole message");
    message
}

fn write_record(stream: &mut TcpStream, message: &[u8]) {
    let mark = (message.len() as u32 | 1 << 31).to_be_bytes();
    stream.write_all(&[&mark, message].concat()).expect("it is sent");
}

fn by_stream(to: SocketAddr, message: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write_record(&mut stream, message);
    result(&read_record(&mut stream))
}

/// Sent again until it is answered, as who sends datagrams does.
fn by_datagram(to: SocketAddr, message: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect(to).expect("connected");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let mut reply = vec![0; 10_000];
    for _ in 0..PATIENCE.as_secs() {
        // The box may be away, and say so.
        let _ = socket.send(message);
        if let Ok(length) = socket.recv(&mut reply) {
            return result(&reply[..length]);
        }
    }
    panic!("no answer");
}

/// LOCK or UNLOCK of the whole file, by a process of a host.
fn lock(procedure: u32, name: &str, file: &[u8], waits: bool) -> Vec<u8> {
    let lock = [opaque(name.as_bytes()), opaque(file), opaque(b"1"), words(&[1, 0, 0, 0, 0])].concat();
    let arguments = match procedure {
        LOCK => [opaque(b"ck"), words(&[u32::from(waits), 1]), lock, words(&[0, 3])].concat(),
        _ => [opaque(b"ck"), lock].concat(),
    };
    call((NLM, 4, procedure), &arguments)
}

fn stat(result: &[u8]) -> u32 {
    assert_eq!(result[..8], opaque(b"ck"));
    u32::from_be_bytes(result[8..].try_into().expect("one word"))
}

fn file_of(network: &Network) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let credential = SysCredential { machine: "maker".into(), ..SysCredential::default() };
        let options = Options { owner: "maker".into(), credential, patience: Some(PATIENCE), ..Options::default() };
        let client =
            Client::connect(SocketAddr::new(network.floating_ip(), NFS_PORT), options).await.expect("connected");
        let files = Files::new(client, "maker");
        files.write_file("vol/file", "content".into()).await.expect("it is made");
        files.find("vol/file").await.expect("it is there").0.to_vec()
    })
}

/// A client's port mapper and lock manager, as far as they are needed: takes one lock that is granted, and gives who granted it.
fn take_granted(mapper: TcpListener) -> IpAddr {
    let manager = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = u32::from(manager.local_addr().expect("an address").port());
    let (mut asking, _) = mapper.accept().expect("the server asks");
    let asked = read_record(&mut asking);
    assert_eq!(asked[12..24], words(&[PORT_MAPPER, 2, 3]));
    write_record(&mut asking, &[&asked[..4], &words(&[1, 0, 0, 0, 0, port])].concat());
    let (mut calling, from) = manager.accept().expect("the server calls");
    let called = read_record(&mut calling);
    assert_eq!(called[12..24], words(&[NLM, 4, 5]), "NLM_GRANTED");
    write_record(&mut calling, &[&called[..4], &words(&[1, 0, 0, 0, 0, 0, GRANTED])].concat());
    // The server closes the connection when it has the answer.
    let _ = calling.read(&mut [0; 1]);
    from.ip()
}

#[test]
fn locks_of_nfsv3_are_found_through_port_111_and_outlive_the_box_that_gave_them() {
    let name = "locks_of_nfsv3_are_found_through_port_111_and_outlive_the_box_that_gave_them";
    if !require(name, &[Need::Namespaces, Need::Program("mke2fs")]) {
        return;
    }
    let mut cluster = Cluster::with_files();
    let network = cluster.network.clone();
    let (told, heard) = std::sync::mpsc::channel();
    let (go_on, waits) = std::sync::mpsc::channel();
    let host = std::thread::spawn(move || {
        network.namespaces().enter_hub().expect("a namespace");
        let at = |port| SocketAddr::new(network.floating_ip(), port);
        let file = file_of(&network);
        let where_is = call((PORT_MAPPER, 2, 3), &words(&[NLM, 4, 17, 0]));
        for port in [by_stream(at(PORT_MAPPER_PORT), &where_is), by_datagram(at(PORT_MAPPER_PORT), &where_is)] {
            assert_eq!(port, words(&[u32::from(NFS_PORT)]));
        }
        assert_eq!(stat(&by_datagram(at(NFS_PORT), &lock(LOCK, "one", &file, false))), GRANTED);
        assert_eq!(stat(&by_stream(at(NFS_PORT), &lock(LOCK, "two", &file, true))), BLOCKED);
        told.send(()).expect("the test listens");
        waits.recv().expect("the test goes on");
        // The other box knows of the lock. Who waits asks again by itself.
        assert_eq!(stat(&by_datagram(at(NFS_PORT), &lock(LOCK, "two", &file, true))), BLOCKED);
        let mapper = TcpListener::bind(("0.0.0.0", PORT_MAPPER_PORT)).expect("nobody has it here");
        assert_eq!(stat(&by_datagram(at(NFS_PORT), &lock(UNLOCK, "one", &file, false))), GRANTED);
        assert_eq!(take_granted(mapper), network.floating_ip(), "it comes from the address that the host knows");
        assert_eq!(stat(&by_datagram(at(NFS_PORT), &lock(LOCK, "one", &file, false))), DENIED);
    });
    heard.recv_timeout(PATIENCE).expect("the lock is granted");
    cluster.nodes[ALPHA].kill();
    cluster.wait_primary("vol", BETA);
    go_on.send(()).expect("the host waits");
    host.join().expect("no panic");
}
