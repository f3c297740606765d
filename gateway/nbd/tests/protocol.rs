//! The protocol, message by message, against a RAM device.

mod common;

use std::rc::Rc;

use block_device::BlockError;
use bytes::{BufMut, BytesMut};
use common::{COLD_MESSAGE, Client, Directory, FAR_MESSAGE, RamDevice, Reply, VOLUME, error_chunk, pattern};
use common::{info_request, meta_queries, with_session};
use gateway_nbd::codec::{Cookie, RequestHeader, chunk, command, command_flag, info, option, reply};
use gateway_nbd::{Ended, Statistics};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SIZE: u64 = 1 << 20;
const FLAGS_SIMPLE: u16 = 0b1_0110_1101;
const FLAGS_STRUCTURED: u16 = 0b1_1110_1101;

#[tokio::test]
async fn export_name_sends_the_zeroes_only_when_they_were_not_waived() {
    for (client_flags, zeroes) in [(1, 124), (3, 0), (0, 124)] {
        let device = RamDevice::new(SIZE);
        let ended = with_session(&device, 4096, async |mut client| {
            client.hello(client_flags).await;
            client.option(option::EXPORT_NAME, VOLUME.as_bytes()).await;
            let mut expected = SIZE.to_be_bytes().to_vec();
            expected.put_u16(FLAGS_SIMPLE);
            expected.put_bytes(0, zeroes);
            assert_eq!(client.bytes(expected.len()).await, expected);
            client.request(0, command::READ, 7, 0, 4).await;
            client.done(7).await;
            assert_eq!(client.bytes(4).await, [0; 4]);
            client.request(0, command::DISC, 8, 0, 0).await;
            client.closed().await;
        })
        .await;
        assert_eq!(ended, Some(Ended::Disconnected));
    }
}

#[tokio::test]
async fn export_name_of_a_foreign_volume_just_closes() {
    let device = RamDevice::new(SIZE);
    let ended = with_session(&device, 4096, async |mut client| {
        client.hello(3).await;
        client.option(option::EXPORT_NAME, b"far").await;
        client.closed().await;
    })
    .await;
    assert_eq!(ended, None);
}

#[tokio::test]
async fn options_are_answered_by_the_book() {
    let device = RamDevice::new(SIZE);
    with_session(&device, 4096, async |mut client| {
        client.hello(3).await;
        let mut entry = vec![0, 0, 0, 3];
        entry.extend(b"voltwo copies");
        assert_eq!(client.ask(option::LIST, &[]).await, [(reply::SERVER, entry), (reply::ACK, vec![])]);
        assert_eq!(client.ask(option::LIST, b"x").await[0].0, reply::ERR_INVALID);
        for unsupported in [option::STARTTLS, option::EXTENDED_HEADERS, 4, 99, u32::MAX] {
            assert_eq!(client.ask(unsupported, b"payload").await[0].0, reply::ERR_UNSUP);
        }
        let foreign = client.ask(option::INFO, &info_request("far", &[])).await;
        assert_eq!(foreign, [(reply::ERR_UNKNOWN, FAR_MESSAGE.as_bytes().to_vec())]);
        let frozen = client.ask(option::GO, &info_request("cold", &[])).await;
        assert_eq!(frozen, [(reply::ERR_SHUTDOWN, COLD_MESSAGE.as_bytes().to_vec())]);
        for malformed in
            [&b""[..], b"\0\0\0\x05vol\0\0", b"\0\0\0\x03vol\0\x01", b"\0\0\0\x03vol\0\0x", b"\xff\xff\xff\xff"]
        {
            assert_eq!(client.ask(option::GO, malformed).await[0].0, reply::ERR_INVALID);
        }
        assert_eq!(client.ask(option::ABORT, &[]).await, [(reply::ACK, vec![])]);
        client.closed().await;
    })
    .await;
}

#[tokio::test]
async fn info_and_go_tell_size_flags_and_limits() {
    let device = RamDevice::new(SIZE);
    with_session(&device, 4096, async |mut client| {
        client.hello(3).await;
        for (asked, flags) in [(option::INFO, FLAGS_SIMPLE), (option::GO, FLAGS_STRUCTURED)] {
            if asked == option::GO {
                assert_eq!(client.ask(option::STRUCTURED_REPLY, b"x").await[0].0, reply::ERR_INVALID);
                assert_eq!(client.ask(option::STRUCTURED_REPLY, &[]).await[0].0, reply::ACK);
            }
            let mut export = vec![0, 0];
            export.put_u64(SIZE);
            export.put_u16(flags);
            let block_size = [&[0, 3][..], &[0, 0, 0, 1], &[0, 0, 16, 0], &[2, 0, 0, 0]].concat();
            let replies = client.ask(asked, &info_request(VOLUME, &[info::DESCRIPTION, info::NAME, 77])).await;
            assert_eq!(
                replies,
                [
                    (reply::INFO, export),
                    (reply::INFO, block_size),
                    (reply::INFO, b"\0\x01vol".to_vec()),
                    (reply::INFO, b"\0\x02two copies".to_vec()),
                    (reply::ACK, vec![]),
                ]
            );
        }
    })
    .await;
}

#[tokio::test]
async fn metadata_contexts_follow_their_last_selection() {
    let device = RamDevice::new(SIZE);
    let base = meta_queries(VOLUME, &["other:x", "base:allocation", "base:allocation"]);
    let context = |id: u32| [&id.to_be_bytes()[..], b"base:allocation"].concat();
    for (last, works) in [(&base, true), (&meta_queries(VOLUME, &["base:"]), false), (&meta_queries("far", &[]), false)]
    {
        with_session(&device, 4096, async |mut client| {
            client.hello(3).await;
            assert_eq!(client.ask(option::SET_META_CONTEXT, &base).await[0].0, reply::ERR_INVALID);
            for listed in [meta_queries(VOLUME, &[]), meta_queries(VOLUME, &["base:"])] {
                let replies = client.ask(option::LIST_META_CONTEXT, &listed).await;
                assert_eq!(replies, [(reply::META_CONTEXT, context(0)), (reply::ACK, vec![])]);
            }
            client.ask(option::STRUCTURED_REPLY, &[]).await;
            let selected = client.ask(option::SET_META_CONTEXT, &base).await;
            assert_eq!(selected, [(reply::META_CONTEXT, context(1)), (reply::ACK, vec![])]);
            client.ask(option::SET_META_CONTEXT, last).await;
            client.ask(option::GO, &info_request(VOLUME, &[])).await;
            client.request(0, command::BLOCK_STATUS, 5, 4096, 8192).await;
            let Reply::Chunk { done: true, kind, cookie: 5, payload } = client.reply().await else { panic!() };
            if works {
                assert_eq!(kind, chunk::BLOCK_STATUS);
                assert_eq!(payload, [[0, 0, 0, 1], [0, 0, 32, 0], [0, 0, 0, 3]].concat());
            } else {
                assert_eq!(kind, chunk::ERROR);
                assert_eq!(payload[..4], [0, 0, 0, 22]);
            }
        })
        .await;
    }
}

#[tokio::test]
async fn requests_complete_out_of_order_and_a_goodbye_waits_for_them() {
    let device = RamDevice::new(SIZE);
    device.hold_writes.set(true);
    let ended = with_session(&device, 4096, async |mut client| {
        client.go(true).await;
        client.write(command_flag::FUA, 1, 8192, b"late").await;
        client.request(0, command::FLUSH, 2, 0, 0).await;
        client.request(0, command::READ, 3, 8192, 4).await;
        let Reply::Chunk { cookie: 3, payload, .. } = client.reply().await else { panic!() };
        assert_eq!(payload[8..], [0; 4]);
        client.request(0, command::DISC, 4, 0, 0).await;
        device.release_writes();
        client.done(1).await;
        client.done(2).await;
        client.closed().await;
    })
    .await;
    assert_eq!(ended, Some(Ended::Disconnected));
    assert_eq!((device.fua_writes.get(), device.flushes.get()), (1, 1));
}

#[tokio::test]
async fn a_client_that_closed_its_sending_half_still_gets_its_replies() {
    let device = RamDevice::new(SIZE);
    device.hold_writes.set(true);
    let ended = with_session(&device, 4096, async |mut client| {
        client.go(false).await;
        client.write(0, 1, 0, b"data").await;
        client.stream.shutdown().await.unwrap();
        tokio::task::yield_now().await;
        device.release_writes();
        client.done(1).await;
        client.closed().await;
    })
    .await;
    assert_eq!(ended, Some(Ended::Gone));
}

#[tokio::test]
async fn serving_outlives_the_client_until_the_device_is_done() {
    let device = RamDevice::new(SIZE);
    device.hold_writes.set(true);
    let ended = with_session(&device, 1 << 16, async |mut client| {
        client.go(false).await;
        client.write(0, 1, 0, b"data").await;
        while device.in_flight.get() == 0 {
            tokio::task::yield_now().await;
        }
        drop(client);
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert_eq!(device.in_flight.get(), 1, "the write was dropped");
        }
        device.release_writes();
    })
    .await;
    assert_eq!(ended, Some(Ended::Gone));
    assert_eq!(device.contents()[..4], *b"data");
}

#[tokio::test]
async fn shutdown_finishes_what_is_in_flight_and_reads_no_more() {
    let device = RamDevice::new(SIZE);
    device.hold_writes.set(true);
    let (near, far) = tokio::io::duplex(4096);
    let stop = tokio::sync::Notify::new();
    let statistics = Statistics::default();
    let server = async {
        let negotiated = gateway_nbd::negotiate(far, &Directory { size: SIZE }).await.unwrap();
        gateway_nbd::serve(negotiated.stream, &negotiated.agreed, &device, stop.notified(), &statistics).await
    };
    let client = async {
        let mut client = Client { stream: near };
        client.go(false).await;
        client.write(0, 1, 0, b"data").await;
        while device.in_flight.get() == 0 {
            tokio::task::yield_now().await;
        }
        stop.notify_one();
        tokio::task::yield_now().await;
        client.write(0, 2, 4096, b"more").await;
        device.release_writes();
        client.done(1).await;
        client.closed().await;
    };
    let (ended, ()) = tokio::join!(server, client);
    assert_eq!(ended, Ended::Shutdown);
    assert_eq!(device.contents()[4096..4100], [0; 4]);
    assert_eq!(statistics.snapshot().writes, 1);
}

#[tokio::test]
async fn a_lost_device_answers_with_silence() {
    for error in [BlockError::NotPrimary { primary: Some("b".into()) }, BlockError::Closed] {
        for command in [command::READ, command::WRITE, command::FLUSH, command::TRIM, command::BLOCK_STATUS] {
            let device = RamDevice::new(SIZE);
            let ended = with_session(&device, 4096, async |mut client| {
                client.go(true).await;
                *device.failure.borrow_mut() = Some(error.clone());
                let length = if command == command::FLUSH { 0 } else { 4 };
                client.request(0, command, 1, 0, length).await;
                if command == command::WRITE {
                    client.stream.write_all(b"data").await.unwrap();
                }
                client.closed().await;
            })
            .await;
            assert_eq!(ended, Some(Ended::DeviceLost));
        }
    }
}

#[tokio::test]
async fn a_lost_device_closes_at_once_but_serving_waits_for_what_is_in_flight() {
    let device = RamDevice::new(SIZE);
    device.hold_writes.set(true);
    let ended = with_session(&device, 4096, async |mut client| {
        client.go(true).await;
        client.write(0, 1, 0, b"data").await;
        while device.in_flight.get() == 0 {
            tokio::task::yield_now().await;
        }
        *device.failure.borrow_mut() = Some(BlockError::Closed);
        client.request(0, command::READ, 2, 0, 4).await;
        client.closed().await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert_eq!(device.in_flight.get(), 1, "the write was dropped");
        }
        device.release_writes();
    })
    .await;
    assert_eq!(ended, Some(Ended::DeviceLost));
}

#[tokio::test]
async fn a_device_lost_during_the_goodbye_is_silent_too() {
    let device = RamDevice::new(SIZE);
    device.hold_writes.set(true);
    let ended = with_session(&device, 4096, async |mut client| {
        client.go(true).await;
        client.write(0, 1, 0, b"data").await;
        client.request(0, command::DISC, 2, 0, 0).await;
        while device.in_flight.get() == 0 {
            tokio::task::yield_now().await;
        }
        *device.failure.borrow_mut() = Some(BlockError::Closed);
        device.release_writes();
        client.closed().await;
    })
    .await;
    assert_eq!(ended, Some(Ended::DeviceLost));
}

#[tokio::test]
async fn device_errors_become_the_protocols_and_the_connection_goes_on() {
    for (error, number) in [(BlockError::Io, 5), (BlockError::OutOfSpace, 28)] {
        let device = RamDevice::new(SIZE);
        with_session(&device, 4096, async |mut client| {
            client.go(true).await;
            *device.failure.borrow_mut() = Some(error.clone());
            for (cookie, command) in [(1, command::READ), (2, command::WRITE_ZEROES), (3, command::TRIM)] {
                client.request(0, command, cookie, 0, 4096).await;
                let payload = error_chunk(number, &error.to_string());
                assert_eq!(client.reply().await, Reply::Chunk { done: true, kind: chunk::ERROR, cookie, payload });
            }
            *device.failure.borrow_mut() = None;
            client.write(0, 4, 0, b"fine").await;
            client.done(4).await;
        })
        .await;
    }
}

#[tokio::test]
async fn bad_requests_get_their_error_and_the_connection_goes_on() {
    const EINVAL: u32 = 22;
    const ENOSPC: u32 = 28;
    const EOVERFLOW: u32 = 75;
    const MAX: u32 = 32 << 20;
    let size = 40 << 20;
    let cases = [
        (0, command::READ, size - 1, 2, EINVAL),
        (0, command::READ, u64::MAX, 2, EINVAL),
        (0, command::READ, 0, MAX + 1, EINVAL),
        (command_flag::DF, command::READ, 0, MAX + 1, EOVERFLOW),
        (0, command::WRITE, size - 1, 2, ENOSPC),
        (0, command::WRITE, u64::MAX - 1, 2, ENOSPC),
        (0, command::WRITE, 0, MAX + 1, EINVAL),
        (command_flag::DF, command::WRITE, 0, 5, EINVAL),
        (0, command::WRITE_ZEROES, size, 1, ENOSPC),
        (command_flag::FAST_ZERO, command::WRITE_ZEROES, 0, 1, EINVAL),
        (0, command::TRIM, size, u32::MAX, EINVAL),
        (0, command::FLUSH, 0, 1, EINVAL),
        (0, command::FLUSH, 1, 0, EINVAL),
        (0, command::CACHE, 0, 4096, EINVAL),
        (0, command::BLOCK_STATUS, 0, 0, EINVAL),
        (0, command::BLOCK_STATUS, size, 1, EINVAL),
        (1 << 5, command::READ, 0, 1, EINVAL),
        (0, 300, 0, 1, EINVAL),
    ];
    for structured in [true, false] {
        let device = RamDevice::new(size);
        with_session(&device, 1 << 16, async |mut client| {
            client.go(structured).await;
            for (cookie, &(flags, command, offset, length, mut error)) in (0..).zip(&cases) {
                client.request(flags, command, cookie, offset, length).await;
                if command == command::WRITE {
                    client.stream.write_all(&vec![0xee; length as usize]).await.unwrap();
                }
                if structured {
                    let Reply::Chunk { done: true, kind: chunk::ERROR, cookie: of, payload } = client.reply().await
                    else {
                        panic!("{command} {offset} {length}")
                    };
                    assert_eq!((of, &payload[..4]), (cookie, &error.to_be_bytes()[..]));
                    assert!(payload.len() > 6, "no text");
                } else {
                    // DF does not exist without structured replies.
                    error = if error == EOVERFLOW { EINVAL } else { error };
                    assert_eq!(client.reply().await, Reply::Simple { error, cookie });
                }
            }
        })
        .await;
        assert!(device.contents().iter().all(|byte| *byte == 0));
    }
}

#[tokio::test]
async fn the_largest_request_and_empty_ones_work() {
    let length = gateway_nbd::PAYLOAD_BYTES_MAX;
    let device = RamDevice::new(u64::from(length) + 4096);
    let data = pattern(3, length as usize);
    with_session(&device, 1 << 16, async |mut client| {
        client.go(false).await;
        client.write(0, 1, 1000, &data).await;
        client.done(1).await;
        client.request(0, command::READ, 2, 1000, length).await;
        client.done(2).await;
        assert!(client.bytes(data.len()).await == data);
        for (cookie, command) in
            [(3, command::READ), (4, command::WRITE), (5, command::TRIM), (6, command::WRITE_ZEROES)]
        {
            client.request(0, command, cookie, 17, 0).await;
            client.done(cookie).await;
        }
    })
    .await;
    with_session(&device, 1 << 16, async |mut client| {
        client.go(true).await;
        client.request(0, command::READ, 1, 0, 0).await;
        assert_eq!(client.reply().await, Reply::Chunk { done: true, kind: chunk::NONE, cookie: 1, payload: vec![] });
    })
    .await;
}

/// Random reads, writes, zeroes and trims of odd ranges, many in flight, against a plain vector. Streams of several
/// sizes cut the messages at every place.
#[tokio::test]
async fn random_requests_match_a_model() {
    for seed in 0..12 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let device = RamDevice::new(SIZE);
        let mut model = vec![0u8; SIZE as usize];
        let buffer = [1, 27, 29, 4096, 70_000, 1 << 20][seed as usize % 6];
        let rounds = if buffer < 100 { 4 } else { 40 };
        with_session(&device, buffer, async |mut client| {
            client.go(false).await;
            for round in 0..rounds {
                let mut out = BytesMut::new();
                // Disjoint ranges within a round: overlapping ones in flight have no order.
                let slots = random.random_range(1..32u64);
                let span = SIZE / slots;
                for slot in 0..slots {
                    let offset = slot * span + random.random_range(0..span / 2);
                    let longest = if buffer < 100 { 600 } else { span / 2 };
                    let length = random.random_range(0..=longest) as u32;
                    let range = offset as usize..offset as usize + length as usize;
                    let command = [command::WRITE, command::WRITE, command::TRIM, command::WRITE_ZEROES]
                        [random.random_range(0..4)];
                    RequestHeader { flags: 0, command, cookie: Cookie(slot), offset, length }.encode(&mut out);
                    if command == command::WRITE {
                        random.fill(&mut model[range.clone()]);
                        out.put_slice(&model[range]);
                    } else {
                        model[range].fill(0);
                    }
                }
                let (mut reader, mut writer) = tokio::io::split(&mut client.stream);
                let sending = async { writer.write_all(&out).await.unwrap() };
                let receiving = async {
                    for _ in 0..slots {
                        assert_eq!(reader.read_u64().await.unwrap() as u32, 0, "an error in round {round}");
                        assert!(reader.read_u64().await.unwrap() < slots);
                    }
                };
                tokio::join!(sending, receiving);
                let offset = random.random_range(0..SIZE);
                let length = random.random_range(0..=(SIZE - offset).min(200_000)) as u32;
                client.request(0, command::READ, 99, offset, length).await;
                client.done(99).await;
                assert!(client.bytes(length as usize).await == model[offset as usize..][..length as usize]);
            }
        })
        .await;
        assert!(device.contents() == model, "seed {seed}");
    }
}

/// Negotiation on one runtime, transmission on another, with a request already sent when the socket moves.
#[test]
fn a_socket_moves_between_runtimes_without_losing_a_byte() {
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let shard = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let mut out = BytesMut::new();
        out.put_u32(3);
        out.put_slice(b"IHAVEOPT");
        out.put_u32(option::EXPORT_NAME);
        out.put_u32(3);
        out.put_slice(b"vol");
        for (command, length) in [(command::WRITE, 4), (command::DISC, 0)] {
            RequestHeader { flags: 0, command, cookie: Cookie(9), offset: 5, length }.encode(&mut out);
            out.put_bytes(b'x', length as usize);
        }
        stream.write_all(&out).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    });
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let (stream, agreed) = control.block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        let negotiated = gateway_nbd::negotiate(stream, &Directory { size: SIZE }).await.unwrap();
        (negotiated.stream.into_std().unwrap(), negotiated.agreed)
    });
    let device = Rc::new(RamDevice::new(SIZE));
    let ended = shard.block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        let statistics = Statistics::default();
        gateway_nbd::serve(stream, &agreed, &*device, std::future::pending(), &statistics).await
    });
    assert_eq!(ended, Ended::Disconnected);
    assert_eq!(device.contents()[4..10], *b"\0xxxx\0");
    assert_eq!(client.join().unwrap().len(), 18 + 10 + 16);
}
