//! Clients that mean harm or are broken: nothing panics, and memory stays within the connection's limits.

mod common;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use common::{Client, Directory, RamDevice, VOLUME, info_request, meta_queries, with_session};
use gateway_nbd::codec::{Cookie, OptionHeader, ProtocolError, RequestHeader, command, command_flag, option, reply};
use gateway_nbd::session::{Decision, Handshake, Operation, Outcome, ReplyQueue, Request, request};
use gateway_nbd::{
    Agreed, BYTES_IN_FLIGHT_MAX, Ended, NegotiateError, OPTIONS_MAX, REQUESTS_IN_FLIGHT_MAX, Statistics,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SIZE: u64 = 1 << 20;

fn agreed(size: u64) -> Agreed {
    Agreed { export: Directory { size }.export(), structured_replies: true, base_allocation: true }
}

#[test]
fn random_option_payloads_are_answered_without_a_panic() {
    let directory = Directory { size: SIZE };
    for seed in 0..20_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut handshake = Handshake::default();
        handshake.on_client_flags(3).unwrap();
        for _ in 0..4 {
            let option = random.random_range(0..13);
            let mut payload = match random.random_range(0..3) {
                0 => info_request(VOLUME, &[random.random(), 3]),
                1 => meta_queries(VOLUME, &["base:allocation", "base:"]),
                _ => (0..random.random_range(0..64)).map(|_| random.random()).collect(),
            };
            for _ in 0..random.random_range(0..3) {
                let at = random.random_range(0..payload.len().max(1));
                if let Some(byte) = payload.get_mut(at) {
                    *byte = random.random();
                }
            }
            payload.truncate(random.random_range(0..=payload.len() * 2));
            let mut out = Vec::new();
            let header = OptionHeader { option, length: payload.len() as u32 };
            assert_eq!(handshake.on_option_header(header), Ok(()));
            drop(handshake.on_option(option, &payload, &directory, &mut out));
            assert!(out.len() < 4096, "seed {seed}: {} bytes of reply", out.len());
        }
    }
}

#[test]
fn random_request_headers_start_only_inside_the_export() {
    let agreed = agreed(64 << 20);
    let mut random = StdRng::seed_from_u64(7);
    let mut started = 0;
    for _ in 0..200_000 {
        let header = RequestHeader {
            flags: if random.random() { random.random::<u16>() & 31 } else { 0 },
            command: random.random_range(0..10),
            cookie: Cookie(random.random()),
            offset: random.random::<u64>() >> random.random_range(0..64),
            length: random.random::<u32>() >> random.random_range(0..32),
        };
        let mut bytes = BytesMut::new();
        header.encode(&mut bytes);
        let decoded = RequestHeader::decode(bytes[..].first_chunk().unwrap());
        assert_eq!(decoded, Ok(header));
        match request::decide(&header, &agreed) {
            Decision::Start(request) => {
                started += 1;
                assert!(request.range.offset + request.range.length <= agreed.export.size_bytes);
                assert!(request.cost_bytes() <= 32 << 20);
            }
            Decision::Reject { payload_bytes, .. } => {
                assert_eq!(payload_bytes, if header.command == command::WRITE { header.length } else { 0 });
            }
            Decision::Disconnect => assert_eq!(header.command, command::DISC),
        }
    }
    assert!(started > 1000, "the test reaches little: {started}");
}

#[test]
fn odd_extents_from_a_device_never_leave_the_asked_range() {
    let mut random = StdRng::seed_from_u64(11);
    for _ in 0..20_000 {
        let range =
            block_device::ByteRange { offset: random.random_range(0..5000), length: random.random_range(1..5000) };
        let extents = (0..random.random_range(0..6))
            .map(|_| block_device::Allocation {
                range: block_device::ByteRange {
                    offset: random.random_range(0..9000),
                    length: random.random::<u64>() >> random.random_range(0..64),
                },
                hole: random.random(),
            })
            .collect();
        let operation = Operation::BlockStatus { one: random.random() };
        let request = Request { cookie: Cookie(1), operation, range, fua: false };
        let mut queue = ReplyQueue::default();
        gateway_nbd::session::reply::push_reply(&mut queue, true, &request, Outcome::Extents(extents));
        let mut slices = [std::io::IoSlice::new(&[]); 4];
        let used = queue.gather(&mut slices);
        let reply: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.iter().copied()).collect();
        if reply[6..8] == [0, 5] {
            let lengths = reply[24..].chunks(8).map(|extent| u32::from_be_bytes(*extent.first_chunk().unwrap()));
            let total: u64 = lengths.inspect(|length| assert!(*length > 0)).map(u64::from).sum();
            assert!(total <= range.length);
        }
    }
}

#[tokio::test]
async fn random_streams_never_panic() {
    for seed in 0..400 {
        let mut random = StdRng::seed_from_u64(seed);
        let device = RamDevice::new(SIZE);
        with_session(&device, 1 << 16, async |mut client| {
            let transmit = random.random();
            if transmit {
                client.go(random.random()).await;
            }
            let mut out = BytesMut::new();
            if !transmit && random.random() {
                out.put_u32(3);
            }
            for _ in 0..random.random_range(0..40) {
                if transmit {
                    let header = RequestHeader {
                        flags: random.random_range(0..4),
                        command: random.random_range(0..9),
                        cookie: Cookie(1),
                        offset: random.random_range(0..SIZE),
                        length: random.random::<u32>() >> random.random_range(16..32),
                    };
                    header.encode(&mut out);
                } else {
                    out.put_slice(b"IHAVEOPT");
                    out.put_u32(random.random_range(0..12));
                    out.put_u32(random.random_range(0..30));
                }
                out.put_bytes(random.random(), random.random_range(0..30));
            }
            drop(client.stream.write_all(&out).await);
        })
        .await;
    }
}

#[tokio::test]
async fn wrong_magic_and_unknown_flags_close() {
    let device = RamDevice::new(SIZE);
    let refused = with_session(&device, 4096, async |mut client| {
        client.hello(4).await;
        client.closed().await;
    })
    .await;
    assert_eq!(refused, None);
    let refused = with_session(&device, 4096, async |mut client| {
        client.hello(3).await;
        client.stream.write_all(b"IHAVEOPX\0\0\0\x03\0\0\0\0").await.unwrap();
        client.closed().await;
    })
    .await;
    assert_eq!(refused, None);
    let refused = with_session(&device, 4096, async |mut client| {
        client.hello(0).await;
        client.option(option::LIST, &[]).await;
        client.closed().await;
    })
    .await;
    assert_eq!(refused, None);
    let ended = with_session(&device, 4096, async |mut client| {
        client.go(true).await;
        client.stream.write_all(&[0x25; 28]).await.unwrap();
        client.closed().await;
    })
    .await;
    assert_eq!(ended, Some(Ended::Protocol(ProtocolError::RequestMagic(0x2525_2525))));
}

#[tokio::test]
async fn a_long_option_is_refused_and_a_huge_one_closes() {
    let device = RamDevice::new(SIZE);
    with_session(&device, 4096, async |mut client| {
        client.hello(3).await;
        let replies = client.ask(option::SET_META_CONTEXT, &vec![0xff; (64 << 10) + 1]).await;
        assert_eq!(replies[0].0, reply::ERR_TOO_BIG);
        assert_eq!(client.ask(option::LIST, &[]).await.len(), 2);
        client.stream.write_all(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").await.unwrap();
        client.closed().await;
    })
    .await;
}

#[tokio::test]
async fn endless_options_close() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let client = async {
        let mut client = Client { stream: near };
        client.hello(3).await;
        for _ in 0..OPTIONS_MAX {
            assert_eq!(client.ask(99, &[]).await[0].0, reply::ERR_UNSUP);
        }
        client.option(99, &[]).await;
        client.closed().await;
    };
    let directory = Directory { size: SIZE };
    let (negotiated, ()) = tokio::join!(gateway_nbd::negotiate(far, &directory), client);
    assert!(matches!(negotiated, Err(NegotiateError::Protocol(ProtocolError::OptionCount))));
}

#[tokio::test]
async fn half_messages_are_never_acted_on() {
    let device = RamDevice::new(SIZE);
    let mut whole = BytesMut::new();
    RequestHeader { flags: 0, command: command::WRITE, cookie: Cookie(1), offset: 0, length: 40 }.encode(&mut whole);
    whole.put_bytes(b'x', 40);
    for cut in 0..whole.len() {
        let ended = with_session(&device, 4096, async |mut client| {
            client.go(false).await;
            client.stream.write_all(&whole[..cut]).await.unwrap();
            client.stream.shutdown().await.unwrap();
            client.closed().await;
        })
        .await;
        assert_eq!(ended, Some(Ended::Gone));
    }
    assert!(device.contents().iter().all(|byte| *byte == 0));
    let mut negotiation = vec![0, 0, 0, 3];
    negotiation.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x09");
    negotiation.extend(info_request(VOLUME, &[]));
    for cut in 0..negotiation.len() {
        let (mut near, far) = tokio::io::duplex(4096);
        near.write_all(&negotiation[..cut]).await.unwrap();
        near.shutdown().await.unwrap();
        let ended = gateway_nbd::negotiate(far, &Directory { size: SIZE }).await;
        assert!(matches!(ended, Err(NegotiateError::Left | NegotiateError::Io(_))), "{cut}");
    }
}

#[tokio::test]
async fn a_silent_client_runs_out_of_time_to_negotiate() {
    let (near, far) = tokio::io::duplex(4096);
    let directory = Directory { size: SIZE };
    let ended = gateway_nbd::negotiate_within(far, &directory, Duration::from_millis(1)).await;
    assert!(matches!(ended, Err(NegotiateError::Timeout)));
    drop(near);
}

#[tokio::test]
async fn a_client_that_never_takes_its_last_replies_cannot_hold_the_connection() {
    let device = RamDevice::new(SIZE);
    let (near, far) = tokio::io::duplex(4096);
    let statistics = Statistics::default();
    let server = async {
        let negotiated = gateway_nbd::negotiate(far, &Directory { size: SIZE }).await.unwrap();
        gateway_nbd::serve(negotiated.stream, &negotiated.agreed, &device, std::future::pending(), &statistics).await
    };
    let client = async {
        let mut client = Client { stream: near };
        client.go(true).await;
        client.request(command_flag::DF, command::READ, 1, 0, 1 << 20).await;
        client.request(0, command::DISC, 2, 0, 0).await;
        client
    };
    let (ended, mut client) = tokio::join!(server, client);
    assert_eq!(ended, Ended::Disconnected);
    let mut cut_short = Vec::new();
    client.stream.read_to_end(&mut cut_short).await.unwrap();
    assert!(!cut_short.is_empty() && cut_short.len() < 1 << 20);
}

/// Runs `server` and `client` side by side until neither has moved for many turns, as told by `progress`.
async fn run_until_stalled(server: impl Future, client: impl Future, progress: impl Fn() -> u64) {
    let (mut server, mut client) = (pin!(server), pin!(client));
    let (mut seen, mut idle) = (0, 0);
    while idle < 1000 {
        poll_fn(|cx| {
            assert!(server.as_mut().poll(cx).is_pending(), "the server gave up");
            assert!(client.as_mut().poll(cx).is_pending(), "the server took everything");
            Poll::Ready(())
        })
        .await;
        tokio::task::yield_now().await;
        let now = progress();
        idle = if now == seen { idle + 1 } else { 0 };
        seen = now;
    }
}

/// Sends `count` requests without reading a reply, and gives how many the server took before it stopped reading.
async fn flood(device: &RamDevice, count: u64, header: RequestHeader, payload: &[u8]) -> u64 {
    let (near, far) = tokio::io::duplex(1 << 12);
    let (taken, sent_bytes) = (Cell::new(0), Cell::new(0));
    let statistics = Statistics::default();
    let server = async {
        let negotiated = gateway_nbd::negotiate(far, &Directory { size: 64 << 20 }).await.unwrap();
        gateway_nbd::serve(negotiated.stream, &negotiated.agreed, device, std::future::pending(), &statistics).await
    };
    let client = async {
        let mut client = Client { stream: near };
        client.go(false).await;
        let mut message = BytesMut::new();
        header.encode(&mut message);
        message.put_slice(payload);
        for _ in 0..count {
            for part in message.chunks(4096) {
                client.stream.write_all(part).await.unwrap();
                sent_bytes.set(sent_bytes.get() + part.len() as u64);
            }
            taken.set(taken.get() + 1);
        }
    };
    run_until_stalled(server, client, || sent_bytes.get() + statistics.snapshot().reads).await;
    taken.get()
}

#[tokio::test]
async fn a_million_requests_with_unread_replies_stop_at_the_limit() {
    let device = RamDevice::new(64 << 20);
    let header = RequestHeader { flags: 0, command: command::READ, cookie: Cookie(1), offset: 0, length: 1 };
    let taken = flood(&device, 1_000_000, header, &[]).await;
    // Beyond those in flight: replies and requests that lie in the two 4 KiB streams and the 64 KiB input buffer.
    let buffered = (4096 / 17 + (4096 + (64 << 10)) / 28 + 2) as u64;
    assert!(taken >= REQUESTS_IN_FLIGHT_MAX as u64, "{taken}");
    assert!(taken <= REQUESTS_IN_FLIGHT_MAX as u64 + buffered, "{taken}");
    assert!(device.bytes_read.get() <= REQUESTS_IN_FLIGHT_MAX as u64 + 4096 / 17 + 1);
}

#[tokio::test]
async fn a_million_bad_requests_with_unread_replies_stop_at_the_limit() {
    let device = RamDevice::new(64 << 20);
    let header = RequestHeader { flags: 0, command: 77, cookie: Cookie(1), offset: 0, length: 1 };
    let taken = flood(&device, 1_000_000, header, &[]).await;
    let buffered = (4096 / 16 + (4096 + (64 << 10)) / 28 + 2) as u64;
    assert!(taken <= REQUESTS_IN_FLIGHT_MAX as u64 + buffered, "{taken}");
}

#[tokio::test]
async fn large_reads_with_unread_replies_stop_at_the_byte_limit() {
    let device = RamDevice::new(64 << 20);
    let header = RequestHeader { flags: 0, command: command::READ, cookie: Cookie(1), offset: 0, length: 9 << 20 };
    flood(&device, 1_000_000, header, &[]).await;
    assert_eq!(device.bytes_read.get(), BYTES_IN_FLIGHT_MAX / (9 << 20) * (9 << 20));
}

#[tokio::test]
async fn large_writes_on_a_stuck_device_stop_at_the_byte_limit() {
    let device = RamDevice::new(64 << 20);
    device.hold_writes.set(true);
    let payload = vec![1; 5 << 20];
    let length = payload.len() as u32;
    let header = RequestHeader { flags: 0, command: command::WRITE, cookie: Cookie(1), offset: 0, length };
    let taken = flood(&device, 1000, header, &payload).await;
    assert_eq!(device.in_flight_peak.get() as u64, BYTES_IN_FLIGHT_MAX / (5 << 20));
    assert!(taken <= BYTES_IN_FLIGHT_MAX / (5 << 20) + 1, "{taken}");
}
