//! The peer listener against proper, broken and hostile diallers, and the Raft links and goodbyes that dial it.

use bytes::Bytes;
use proto::peer::handshake::{ANSWER_BYTES, Answer, LinkKind, Offer};
use proto::peer::raft_frame::{RAFT_MESSAGE_BYTES_MAX, RaftFrameKind, encode_head};
use proto::peer::version::{ProtocolVersion, SUPPORTED, VersionRange};
use proto::{ClusterId, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::handshake::{self, offer_of};
use super::test_peers::{Listening, PLAIN, VOLUME, identity, listen, listen_at};
use super::{
    HANDSHAKES_MAX, Identity, Incoming, LinkError, RAFT_QUEUE_MESSAGES_MAX, RaftLinks, ReadyLink, say_goodbye,
};
use crate::net::transport::Stream;

const REPLICATION: LinkKind = LinkKind::Replication { volume: VOLUME };

async fn dial(listening: &Listening, me: Identity, to: u64) -> Result<ReadyLink, LinkError> {
    ReadyLink::dial(&PLAIN, &listening.address, me, NodeId(to), VOLUME).await
}

/// Dials properly, and sees that it works and is the next that arrives.
async fn assert_still_welcoming(listening: &mut Listening) {
    dial(listening, identity(2), 1).await.expect("a proper dialler is welcome");
    match listening.incoming.recv().await {
        Some(Incoming::Replication(link)) => assert_eq!((link.peer, link.volume), (NodeId(2), VOLUME)),
        other => panic!("expected a link: {other:?}"),
    }
}

/// Everything that the other side sends until it closes, however it does that.
async fn rest_of(stream: &mut Stream) -> Vec<u8> {
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received).await;
    received
}

async fn refusal_of(listening: &Listening, offer: Offer) -> String {
    let mut stream = PLAIN.connect(&listening.address).await.unwrap();
    stream.write_all(&offer.encode()).await.unwrap();
    let received = rest_of(&mut stream).await;
    let (head, reason) = received.split_first_chunk::<ANSWER_BYTES>().expect("an answer");
    match Answer::decode(head, reason) {
        Ok(Answer::Refused { reason }) => reason,
        other => panic!("expected a refusal: {other:?}"),
    }
}

async fn raft_message(listening: &mut Listening) -> (NodeId, Vec<u8>) {
    match listening.incoming.recv().await {
        Some(Incoming::Raft { from, message }) => (from, message),
        other => panic!("expected a Raft message: {other:?}"),
    }
}

#[tokio::test]
async fn garbage_is_closed_without_an_answer_and_others_are_served() {
    let mut listening = listen(Some(identity(1))).await;
    for garbage in [&b"GET / HTTP/1.1\r\nHost: a-host-name-long-enough-to-fill-the-offer\r\n\r\n......"[..], &[0; 500]]
    {
        let mut stream = PLAIN.connect(&listening.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        assert_eq!(rest_of(&mut stream).await, b"");
    }
    assert_still_welcoming(&mut listening).await;
}

#[tokio::test]
async fn half_handshakes_neither_block_nor_stay_over_the_bound() {
    let mut listening = listen(Some(identity(1))).await;
    let mut silent = Vec::new();
    for _ in 0..2 * HANDSHAKES_MAX {
        let mut stream = PLAIN.connect(&listening.address).await.unwrap();
        stream.write_all(&offer_of(identity(3), NodeId(1), REPLICATION).encode()[..40]).await.unwrap();
        silent.push(stream);
    }
    assert_still_welcoming(&mut listening).await;
    // The oldest is ended by the bound, not by its timeout: the newest still waits.
    assert_eq!(rest_of(&mut silent[0]).await, b"");
    let newest = silent.last_mut().unwrap();
    newest.write_all(&offer_of(identity(3), NodeId(1), REPLICATION).encode()[40..]).await.unwrap();
    let mut head = [0; ANSWER_BYTES];
    newest.read_exact(&mut head).await.unwrap();
    assert!(matches!(Answer::decode(&head, &[]), Ok(Answer::Accepted { .. })));
}

#[tokio::test]
async fn a_silent_dialler_is_ended_by_the_handshake_timeout() {
    let listening = listen(Some(identity(1))).await;
    let mut stream = PLAIN.connect(&listening.address).await.unwrap();
    assert_eq!(rest_of(&mut stream).await, b"");
}

#[tokio::test]
async fn the_wrong_cluster_node_or_dialler_is_refused_with_a_reason() {
    let mut listening = listen(Some(identity(1))).await;
    let stranger = Identity { cluster: ClusterId(5), ..identity(2) };
    for (me, to, why) in
        [(stranger, 1, "wrong cluster"), (identity(2), 7, "wrong node"), (identity(1), 1, "wrong dialler")]
    {
        let error = dial(&listening, me, to).await.unwrap_err();
        assert!(matches!(&error, LinkError::Refused(reason) if reason.contains(why)), "{error}");
    }
    assert_still_welcoming(&mut listening).await;
}

#[tokio::test]
async fn no_common_version_is_refused_and_both_ranges_are_named() {
    let mut listening = listen(Some(identity(1))).await;
    let good = offer_of(identity(2), NodeId(1), REPLICATION);
    let versions = VersionRange { min: ProtocolVersion(200), max: ProtocolVersion(201) };
    let reason = refusal_of(&listening, Offer { versions, ..good }).await;
    assert!(reason.contains("200 to 201") && reason.contains(&format!("speaks {SUPPORTED}")), "{reason}");
    let inverted = VersionRange { min: ProtocolVersion(2), max: ProtocolVersion(1) };
    refusal_of(&listening, Offer { versions: inverted, ..good }).await;
    assert_still_welcoming(&mut listening).await;
}

#[tokio::test]
async fn before_the_node_has_a_cluster_everything_is_refused() {
    let mut listening = listen(None).await;
    let error = dial(&listening, identity(2), 1).await.unwrap_err();
    assert!(error.to_string().contains("does not belong to a cluster yet"), "{error}");
    listening.identity.send(Some(identity(1))).unwrap();
    assert_still_welcoming(&mut listening).await;
}

#[tokio::test]
async fn an_answer_from_something_else_is_an_error_for_the_dialler() {
    let other = PLAIN.listen("127.0.0.1:0").await.unwrap();
    let address = other.local_address().unwrap().to_string();
    let answering = async {
        let (mut stream, _) = other.accept().await.unwrap();
        stream.write_all(&[b'x'; 200]).await.unwrap();
        stream
    };
    let me = identity(2);
    let (dialled, _stream) = tokio::join!(ReadyLink::dial(&PLAIN, &address, me, NodeId(1), VOLUME), answering);
    assert!(matches!(dialled, Err(LinkError::Refused(_))), "{dialled:?}");
}

#[tokio::test]
async fn raft_messages_and_reports_arrive_in_order_under_the_handshakes_name() {
    let mut listening = listen(Some(identity(1))).await;
    let links = RaftLinks::new(PLAIN, identity(2));
    links.set_address(NodeId(1), &listening.address);
    links.send(NodeId(1), vec![]);
    links.send(NodeId(1), vec![7; 3_000_000]);
    links.send_liveness(NodeId(1), &[(NodeId(1), true), (NodeId(3), false)]);
    links.send(NodeId(9), b"to nobody".to_vec());
    assert_eq!(raft_message(&mut listening).await, (NodeId(2), vec![]));
    assert_eq!(raft_message(&mut listening).await, (NodeId(2), vec![7; 3_000_000]));
    match listening.incoming.recv().await {
        Some(Incoming::Liveness { leader, heard }) => {
            assert_eq!((leader, heard), (NodeId(2), vec![(NodeId(1), true), (NodeId(3), false)]));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn hostile_raft_frames_end_their_connection_only() {
    let mut listening = listen(Some(identity(1))).await;
    let proper = RaftLinks::new(PLAIN, identity(2));
    proper.set_address(NodeId(1), &listening.address);
    proper.send(NodeId(1), vec![1]);
    assert_eq!(raft_message(&mut listening).await, (NodeId(2), vec![1]));
    let mut oversized = encode_head(SUPPORTED.max, RaftFrameKind::Message, b"").unwrap();
    oversized[8..12].copy_from_slice(&(RAFT_MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes());
    let crc = crc32fast::hash(&oversized[..16]);
    oversized[16..].copy_from_slice(&crc.to_le_bytes());
    let mut damaged = encode_head(SUPPORTED.max, RaftFrameKind::Message, b"abcd").unwrap().to_vec();
    damaged.extend_from_slice(b"abce");
    let mut report = encode_head(SUPPORTED.max, RaftFrameKind::Liveness, b"short").unwrap().to_vec();
    report.extend_from_slice(b"short");
    for hostile in [&oversized[..], &damaged, &report, b"garbage that is no frame"] {
        let dialled = handshake::dial(&PLAIN, &listening.address, identity(3), NodeId(1), LinkKind::Raft).await;
        let (mut stream, _) = dialled.unwrap();
        stream.write_all(hostile).await.unwrap();
        assert_eq!(rest_of(&mut stream).await, b"");
    }
    proper.send(NodeId(1), vec![2]);
    assert_eq!(raft_message(&mut listening).await, (NodeId(2), vec![2]));
}

#[tokio::test]
async fn a_raft_link_comes_back_after_its_listener_did_and_follows_a_new_address() {
    let mut first = listen(Some(identity(1))).await;
    let links = RaftLinks::new(PLAIN, identity(2));
    links.set_address(NodeId(1), &first.address);
    links.send(NodeId(1), vec![1]);
    assert_eq!(raft_message(&mut first).await.1, vec![1]);
    let address = first.address.clone();
    drop(first);
    let mut again = relisten(&address).await;
    assert_eq!(send_until_received(&links, &mut again, 2).await, vec![2]);
    let mut moved = listen(Some(identity(1))).await;
    links.set_address(NodeId(1), &moved.address);
    assert_eq!(send_until_received(&links, &mut moved, 3).await, vec![3]);
}

/// The former listener's socket closes when its task has ended, which is soon but not at once.
async fn relisten(address: &str) -> Listening {
    while PLAIN.listen(address).await.is_err() {
        tokio::task::yield_now().await;
    }
    listen_at(address, Some(identity(1))).await
}

/// Raft repeats itself, since links are lossy; so does this.
async fn send_until_received(links: &RaftLinks, listening: &mut Listening, number: u8) -> Vec<u8> {
    let mut again = tokio::time::interval(std::time::Duration::from_millis(20));
    loop {
        tokio::select! {
            (_, message) = raft_message(listening) => return message,
            _ = again.tick() => links.send(NodeId(1), vec![number]),
        }
    }
}

#[tokio::test]
async fn a_full_raft_queue_drops_the_oldest() {
    let silent = PLAIN.listen("127.0.0.1:0").await.unwrap();
    let links = RaftLinks::new(PLAIN, identity(2));
    links.set_address(NodeId(1), &silent.local_address().unwrap().to_string());
    let total = RAFT_QUEUE_MESSAGES_MAX as u32 + 100;
    for number in 0..total {
        links.send(NodeId(1), number.to_le_bytes().to_vec());
    }
    // The dialler waits for its answer while the queue overflows; then the newest are sent.
    let (mut stream, _) = silent.accept().await.unwrap();
    let (_, version, me) = handshake::receive(&mut stream, Some(identity(1))).await.unwrap();
    handshake::accept(&mut stream, me, version).await.unwrap();
    for number in 100..total {
        let mut frame = [0; 24];
        stream.read_exact(&mut frame).await.unwrap();
        assert_eq!(frame[20..], number.to_le_bytes());
    }
}

#[tokio::test]
async fn a_goodbye_is_delivered_before_it_is_confirmed() {
    let mut listening = listen(Some(identity(1))).await;
    let address = listening.address.clone();
    tokio::task::spawn_blocking(move || say_goodbye(&address, identity(2))).await.unwrap().unwrap();
    match listening.incoming.try_recv() {
        Ok(Incoming::Goodbye { node, incarnation }) => {
            assert_eq!((node, incarnation), (identity(2).node, identity(2).incarnation));
        }
        other => panic!("{other:?}"),
    }
    let address = listening.address.clone();
    let stranger = Identity { cluster: ClusterId(5), ..identity(2) };
    let refused = tokio::task::spawn_blocking(move || say_goodbye(&address, stranger)).await.unwrap();
    assert!(matches!(refused, Err(LinkError::Refused(_))), "{refused:?}");
}

#[tokio::test]
async fn a_goodbye_to_a_silent_or_absent_node_ends_by_itself() {
    let silent = PLAIN.listen("127.0.0.1:0").await.unwrap();
    let address = silent.local_address().unwrap().to_string();
    let (gone, waiting) = (address.clone(), address);
    assert!(tokio::task::spawn_blocking(move || say_goodbye(&waiting, identity(2))).await.unwrap().is_err());
    drop(silent);
    assert!(tokio::task::spawn_blocking(move || say_goodbye(&gone, identity(2))).await.unwrap().is_err());
}

#[tokio::test]
async fn dropping_the_listener_frees_its_port_and_leaves_routed_links_alone() {
    let mut listening = listen(Some(identity(1))).await;
    let dialled = dial(&listening, identity(2), 1).await.unwrap();
    let Some(Incoming::Replication(accepted)) = listening.incoming.recv().await else { panic!("no link") };
    let address = listening.address.clone();
    drop(listening.listener);
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let mut one = super::test_peers::start(dialled);
            let two = super::test_peers::start(accepted);
            let none = smallvec::SmallVec::<[Bytes; 1]>::new();
            two.send(&proto::peer::message::Message::PreSync, none);
            assert_eq!(one.frame().await.0, proto::peer::message::Message::PreSync);
        })
        .await;
    relisten(&address).await;
}
