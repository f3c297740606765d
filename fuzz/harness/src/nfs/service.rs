//! Messages to a whole service in memory. An input is a list: a byte that says by which connection and door, a length, a message.
//!
//! The session's name and a slot of its own are put into a compound before it is sent, unless its first byte says not to, as
//! checksums are put right in images: otherwise hardly anything would come further than its SEQUENCE. Behind the messages, another
//! service goes on from what is on the volume.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use gateway_nfs::port_mapper::Protocol;
use gateway_nfs::rpc::call::is_reply;
use gateway_nfs::service::Door;
use gateway_nfs::state::back_channel::ConnectionId;
use gateway_nfs::state::service::ServiceState;
use tokio::sync::mpsc;

use super::messages::session_at;
use super::world::{NOW, in_time, origin, prepared, run as run_world, serve};
use crate::{ImageDevice, Reached};

/// Messages of an input.
const MESSAGES_MAX: usize = 16;
/// Connections that messages come by.
const CONNECTIONS: u64 = 4;
/// The message is sent as it is.
const AS_IT_IS: u8 = 0x80;
/// It is not waited for the answer before the next one is sent.
const AT_ONCE: u8 = 0x40;
const NULL: [u32; 10] = [1, 0, 2, 100_003, 3, 0, 0, 0, 0, 0];

/// Messages over one connection as an input.
pub(super) fn pack(messages: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        let length = message.len().min(usize::from(u16::MAX));
        out.push(1);
        out.extend((length as u16).to_be_bytes());
        out.extend(&message[..length]);
    }
    out
}

fn unpack(mut bytes: &[u8]) -> Vec<(u8, BytesMut)> {
    let mut messages = Vec::new();
    while let [how, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (message, rest) = rest.split_at(length);
        messages.push((*how, BytesMut::from(message)));
        bytes = rest;
        if messages.len() == MESSAGES_MAX {
            break;
        }
    }
    messages
}

fn door(how: u8) -> Door {
    match how >> 3 & 7 {
        0..=4 => Door::Service,
        5 => Door::Datagrams,
        6 => Door::PortMapper(Protocol::Tcp),
        _ => Door::PortMapper(Protocol::Udp),
    }
}

/// Puts the session and a slot that nobody used in place.
fn repair(message: &mut BytesMut, slot: u32) {
    let Some(at) = session_at(&Bytes::copy_from_slice(message)) else { return };
    message[at..at + 16].copy_from_slice(&prepared().messages.session);
    message[at + 16..at + 20].copy_from_slice(&1u32.to_be_bytes());
    message[at + 20..at + 24].copy_from_slice(&slot.to_be_bytes());
}

/// Sends the messages, takes over, and asks whether the service is still there.
///
/// # Panics
/// A request is never answered; the service has nothing to say any more though its volume is sound; or what it recorded
/// cannot be restored.
pub(super) fn run(bytes: &[u8], to: &mut Reached) {
    let prepared = prepared();
    let device = Rc::new(ImageDevice::new(prepared.image.clone()));
    run_world(async {
        let (service, files, _) = serve(&device).await;
        let mut calls = Vec::new();
        for connection in 0..CONNECTIONS {
            let (sender, receiver) = mpsc::channel(4);
            service.connection_opened(ConnectionId(connection), sender);
            calls.push(receiver);
        }
        let mut under_way = tokio::task::JoinSet::new();
        for (place, (how, mut message)) in unpack(bytes).into_iter().enumerate() {
            if how & AS_IT_IS == 0 {
                // The seeds' own requests went over the first slots.
                repair(&mut message, 8 + place as u32);
            }
            let (message, origin) = (message.freeze(), origin(how & 3, door(how)));
            if is_reply(&message) {
                service.answered(origin.connection, message);
                continue;
            }
            let asked = Rc::clone(&service);
            under_way.spawn_local(async move { asked.call(origin, message).await });
            if how & AT_ONCE == 0 {
                ended(&mut under_way, to).await;
            }
        }
        ended(&mut under_way, to).await;
        let null: Vec<u8> = NULL.iter().flat_map(|word| word.to_be_bytes()).collect();
        let alive = in_time("the last answer", service.call(origin(1, Door::Service), null.into())).await;
        assert!(matches!(alive, Ok(Some(_))), "the service has ended");
        in_time("what time brings", service.tend()).await.expect("the volume is there");
        calls.clear();
        in_time("the end", files.close()).await.expect("the volume is sound");
    });
    run_world(async {
        let after = Rc::new(ImageDevice::new(device.to_image()));
        let (_, _, records) = serve(&after).await;
        let of_state: Vec<_> = records.into_iter().filter(|record| record.id.kind < 20).collect();
        if let Err(why) = ServiceState::restore(&of_state, NOW) {
            panic!("what was recorded cannot be restored: {why}");
        }
    });
}

type Answer = Result<Option<Vec<Bytes>>, gateway_nfs::service::Gone>;

/// All that was asked is answered.
async fn ended(under_way: &mut tokio::task::JoinSet<Answer>, to: &mut Reached) {
    while let Some(answer) = in_time("an answer", under_way.join_next()).await {
        match answer {
            Ok(Ok(Some(_))) => {
                to.opened = true;
                to.done += 1;
            }
            Ok(Ok(None)) => to.broken += 1,
            Ok(Err(gone)) => panic!("the service has ended: {:?}", gone.0),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
