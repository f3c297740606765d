//! Locks of hosts that use NFSv3, beside each other and beside NFSv4: who waits is called back, who restarts has nothing any more,
//! and a takeover changes none of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;

use block_device::RamDevice;
use bytes::Bytes;
use gateway_nfs::service::{HostCall, Origin, Service, Subject};
use gateway_nfs::xdr::{Decoder, Encoder};

use crate::world::{
    Client, REFUSED, SEQUENCE_BYTES, close, get_handle, local_origin, lock, open, operation, put_handle, rpc, run,
    serve, spoil, volume,
};

const NLM: u32 = 100_021;
const NSM: u32 = 100_024;
const TEST: u32 = 1;
const LOCK: u32 = 2;
const CANCEL: u32 = 3;
const UNLOCK: u32 = 4;
const SHARE: u32 = 20;
const UNSHARE: u32 = 21;
const FREE_ALL: u32 = 23;
const SM_NOTIFY: u32 = 6;

const GRANTED: u32 = 0;
const DENIED: u32 = 1;
const BLOCKED: u32 = 3;
const GRACE: u32 = 4;
const READ_ONLY: u32 = 6;
const STALE: u32 = 7;
const FAILED: u32 = 9;
/// NFS4ERR_DENIED.
const V4_DENIED: u32 = 10_010;

type Ram = Service<Rc<RamDevice>>;

/// What a host asks of the bytes of a file.
#[derive(Clone, Copy)]
struct Bits {
    exclusive: bool,
    waits: bool,
    reclaims: bool,
    offset: u64,
    length: u64,
    state: u32,
}

const WHOLE: Bits = Bits { exclusive: true, waits: false, reclaims: false, offset: 0, length: 0, state: 3 };
const WAITING: Bits = Bits { waits: true, ..WHOLE };

/// A host, and one process of it.
#[derive(Clone)]
struct Host {
    service: Rc<Ram>,
    name: &'static str,
    address: IpAddr,
    user: u32,
    svid: u32,
}

impl Host {
    fn new(service: &Rc<Ram>, name: &'static str, address: &str) -> Self {
        Self { service: Rc::clone(service), name, address: address.parse().unwrap(), user: 0, svid: 7 }
    }

    fn origin(&self) -> Origin {
        Origin { address: self.address, ..local_origin() }
    }

    /// The reply without its RPC head; none if there is no result.
    async fn call(&self, (program, version): (u32, u32), procedure: u32, arguments: &[u8]) -> Option<Bytes> {
        let message = rpc((program, version, procedure), self.name, self.user, arguments);
        let reply = self.service.call(self.origin(), message).await.expect("the volume is there");
        let reply = Bytes::from(reply.expect("a call has an answer").concat());
        (reply.get(8..24) == Some(&[0; 16])).then(|| reply.slice(24..))
    }

    fn put_lock(&self, out: &mut Encoder, file: &[u8], bits: Bits) {
        out.opaque(self.name.as_bytes());
        out.opaque(file);
        out.opaque(format!("{}@{}", self.svid, self.name).as_bytes());
        out.u32(self.svid);
        out.u64(bits.offset);
        out.u64(bits.length);
    }

    /// A request of locks, and its result behind the cookie.
    async fn ask(&self, procedure: u32, file: &[u8], bits: Bits) -> Decoder {
        let mut out = Encoder::new();
        out.opaque(b"cookie");
        if [LOCK, CANCEL].contains(&procedure) {
            out.bool(bits.waits);
        }
        if procedure != UNLOCK {
            out.bool(bits.exclusive);
        }
        self.put_lock(&mut out, file, bits);
        if procedure == LOCK {
            out.bool(bits.reclaims);
            out.u32(bits.state);
        }
        let result = self.call((NLM, 4), procedure, &out.to_bytes()).await.expect("a result");
        let mut result = Decoder::new(result);
        assert_eq!(result.opaque(32).unwrap(), "cookie");
        result
    }

    async fn stat(&self, procedure: u32, file: &[u8], bits: Bits) -> u32 {
        let mut result = self.ask(procedure, file, bits).await;
        let stat = result.u32().unwrap();
        assert_eq!(result.finish(), Ok(()));
        stat
    }

    async fn share(&self, procedure: u32, file: &[u8], (deny, access): (u32, u32)) -> u32 {
        let mut out = Encoder::new();
        [b"c", self.name.as_bytes(), file, b"owner"].iter().for_each(|part| out.opaque(part));
        [deny, access, 0].into_iter().for_each(|word| out.u32(word));
        let mut result = Decoder::new(self.call((NLM, 4), procedure, &out.to_bytes()).await.expect("a result"));
        result.opaque(32).unwrap();
        result.u32().unwrap()
    }

    async fn named(&self, program: (u32, u32), procedure: u32, name: &str, state: u32) {
        let mut out = Encoder::new();
        out.opaque(name.as_bytes());
        out.u32(state);
        assert!(self.call(program, procedure, &out.to_bytes()).await.is_some_and(|result| result.is_empty()));
    }

    async fn restarted(&self, name: &str, state: u32) {
        self.named((NSM, 1), SM_NOTIFY, name, state).await;
    }
}

/// Makes a file by NFSv4, and gives its handle and the stateid of its open.
async fn file(client: &mut Client) -> (Bytes, [u8; 16]) {
    let root = client.root().await;
    let answer = client.call(&[put_handle(&root), open("me", "file", true), get_handle()]).await;
    assert_eq!(answer.status, 0);
    let mut body = answer.body(&[SEQUENCE_BYTES, 0]);
    let stateid = body.fixed::<16>().unwrap();
    body.fixed::<{ 20 + 4 + 12 + 4 + 8 }>().unwrap();
    (body.opaque(128).unwrap(), stateid)
}

fn unlock_v4(stateid: &[u8; 16]) -> Vec<u8> {
    operation(14, |out| {
        out.u32(2);
        out.u32(0);
        out.fixed(stateid);
        out.u64(0);
        out.u64(u64::MAX);
    })
}

/// What the service has to say to hosts now.
async fn calls(service: &Ram) -> Vec<HostCall> {
    service.give_to_waiters().await.unwrap();
    let mut busy = BTreeSet::new();
    let mut calls = Vec::new();
    while let Some(call) = service.next_call(&busy) {
        busy.insert(call.host.clone());
        calls.push(call);
    }
    calls
}

/// The only call there is.
async fn the_call(service: &Ram) -> HostCall {
    let mut calls = calls(service).await;
    assert_eq!(calls.len(), 1, "{calls:?}");
    calls.remove(0)
}

/// A host's answer to NLM_GRANTED.
fn answer(stat: u32) -> Option<Bytes> {
    let mut out = Encoder::new();
    out.opaque(&[0; 8]);
    out.u32(stat);
    Some(out.to_bytes())
}

async fn take_over(device: &Rc<RamDevice>, hosts: &mut [&mut Host]) -> (Rc<RamDevice>, Rc<Ram>) {
    let found = Rc::new(RamDevice::from_image(&device.to_vec()));
    let service = serve(&found).await;
    hosts.iter_mut().for_each(|host| host.service = Rc::clone(&service));
    (found, service)
}

/// A service with a file, and two hosts.
struct Scene {
    device: Rc<RamDevice>,
    service: Rc<Ram>,
    client: Client,
    file: Bytes,
    open: [u8; 16],
    one: Host,
    two: Host,
}

async fn scene() -> Scene {
    let device = volume();
    let service = serve(&device).await;
    let mut client = Client::new(&service, "client").await;
    let (file, open) = file(&mut client).await;
    let (one, two) = (Host::new(&service, "one", "192.0.2.1"), Host::new(&service, "two", "192.0.2.2"));
    Scene { device, service, client, file, open, one, two }
}

#[test]
fn hosts_lock_beside_each_other_and_a_test_tells_who_is_in_the_way() {
    run(async {
        let Scene { file, one, two, service, .. } = scene().await;
        let low = Bits { length: 10, ..WHOLE };
        let high = Bits { offset: 10, length: 10, ..WHOLE };
        assert_eq!(one.stat(LOCK, &file, low).await, GRANTED);
        assert_eq!(one.stat(LOCK, &file, low).await, GRANTED, "asked again");
        assert_eq!(two.stat(LOCK, &file, high).await, GRANTED);
        assert_eq!(two.stat(LOCK, &file, low).await, DENIED);
        let mut found = two.ask(TEST, &file, WHOLE).await;
        assert_eq!((found.u32(), found.bool(), found.u32()), (Ok(DENIED), Ok(true), Ok(7)));
        assert_eq!(found.opaque(32).unwrap(), "7@one");
        assert_eq!((found.u64(), found.u64(), found.finish()), (Ok(0), Ok(10), Ok(())));
        let other = Host { svid: 8, ..one.clone() };
        assert_eq!(other.stat(LOCK, &file, low).await, DENIED, "another process");
        let impostor = Host::new(&service, "one", "192.0.2.66");
        assert_eq!(impostor.stat(UNLOCK, &file, WHOLE).await, GRANTED);
        assert_eq!(two.stat(LOCK, &file, low).await, DENIED, "its name alone unlocks nothing");
        for _ in 0..2 {
            assert_eq!(one.stat(UNLOCK, &file, WHOLE).await, GRANTED);
        }
        assert_eq!(two.stat(TEST, &file, low).await, GRANTED);
        assert_eq!(two.stat(LOCK, &file, low).await, GRANTED);
    });
}

#[test]
fn who_waits_is_given_the_lock_in_order_and_called_back() {
    run(async {
        let Scene { file, one, two, service, .. } = scene().await;
        let three = Host::new(&service, "three", "192.0.2.3");
        assert_eq!(one.stat(LOCK, &file, WHOLE).await, GRANTED);
        for _ in 0..2 {
            assert_eq!(two.stat(LOCK, &file, WAITING).await, BLOCKED);
            assert_eq!(three.stat(LOCK, &file, WAITING).await, BLOCKED);
        }
        assert!(calls(&service).await.is_empty());
        assert_eq!(one.stat(UNLOCK, &file, WHOLE).await, GRANTED);
        let call = the_call(&service).await;
        assert_eq!((call.host.address(), call.program, call.version, call.procedure), (two.address, NLM, 4, 5));
        assert_eq!(call.from, local_origin().local, "whom it asked");
        let mut arguments = Decoder::new(call.arguments.clone());
        arguments.opaque(8).unwrap();
        assert_eq!((arguments.bool(), arguments.opaque(8).unwrap()), (Ok(true), "two".into()));
        assert_eq!(arguments.opaque(64).unwrap(), file);
        assert_eq!((arguments.opaque(8).unwrap(), arguments.u32()), ("7@two".into(), Ok(7)));
        assert_eq!((arguments.u64(), arguments.u64(), arguments.finish()), (Ok(0), Ok(0), Ok(())));
        service.call_ended(&call, answer(GRANTED)).await.unwrap();
        assert_eq!(one.stat(LOCK, &file, WHOLE).await, DENIED, "it is taken");
        assert_eq!(two.stat(UNLOCK, &file, WHOLE).await, GRANTED);
        assert_eq!(the_call(&service).await.host.address(), three.address);
    });
}

#[test]
fn a_lock_that_its_host_does_not_take_is_given_back_as_it_was() {
    run(async {
        let Scene { file, one, two, service, .. } = scene().await;
        let shared = Bits { exclusive: false, length: 5, ..WHOLE };
        for result in [None, answer(DENIED), Some(Bytes::from_static(b"junk"))] {
            assert_eq!(two.stat(LOCK, &file, shared).await, GRANTED);
            assert_eq!(one.stat(LOCK, &file, shared).await, GRANTED);
            assert_eq!(two.stat(LOCK, &file, WAITING).await, BLOCKED);
            assert_eq!(one.stat(UNLOCK, &file, WHOLE).await, GRANTED);
            let call = the_call(&service).await;
            assert_eq!(one.stat(LOCK, &file, Bits { offset: 5, ..WHOLE }).await, DENIED);
            service.call_ended(&call, result).await.unwrap();
            assert!(calls(&service).await.is_empty());
            let mut left = one.ask(TEST, &file, WHOLE).await;
            assert_eq!((left.u32(), left.bool()), (Ok(DENIED), Ok(false)), "shared again");
            assert_eq!(one.stat(LOCK, &file, Bits { offset: 5, ..WHOLE }).await, GRANTED);
            assert_eq!(one.stat(UNLOCK, &file, WHOLE).await, GRANTED);
        }
    });
}

#[test]
fn who_asked_again_or_unlocked_meanwhile_keeps_what_it_was_told() {
    run(async {
        let Scene { file, one, two, service, .. } = scene().await;
        assert_eq!(one.stat(LOCK, &file, WHOLE).await, GRANTED);
        assert_eq!(two.stat(LOCK, &file, WAITING).await, BLOCKED);
        assert_eq!(one.stat(UNLOCK, &file, WHOLE).await, GRANTED);
        let call = the_call(&service).await;
        assert_eq!(two.stat(LOCK, &file, WAITING).await, GRANTED, "it asks again by itself");
        service.call_ended(&call, answer(DENIED)).await.unwrap();
        assert_eq!(one.stat(LOCK, &file, WHOLE).await, DENIED, "it has the lock all the same");
        assert!(calls(&service).await.is_empty());
    });
}

#[test]
fn who_waits_no_more_gets_nothing() {
    run(async {
        let Scene { file, one, two, service, .. } = scene().await;
        assert_eq!(one.stat(LOCK, &file, WHOLE).await, GRANTED);
        assert_eq!(two.stat(CANCEL, &file, WAITING).await, DENIED, "it does not wait");
        assert_eq!(two.stat(LOCK, &file, WAITING).await, BLOCKED);
        assert_eq!(two.stat(CANCEL, &file, WAITING).await, GRANTED);
        assert_eq!(one.stat(UNLOCK, &file, WHOLE).await, GRANTED);
        assert!(calls(&service).await.is_empty());
        assert_eq!(one.stat(LOCK, &file, WHOLE).await, GRANTED);
        // Cancelled when it could be given, but was not yet; and when it was given, but not told.
        for is_given in [false, true] {
            assert_eq!(two.stat(LOCK, &file, WAITING).await, BLOCKED);
            assert_eq!(one.stat(UNLOCK, &file, WHOLE).await, GRANTED);
            let given = if is_given { Some(the_call(&service).await) } else { None };
            assert_eq!(two.stat(CANCEL, &file, WAITING).await, GRANTED);
            assert!(calls(&service).await.is_empty());
            assert_eq!(one.stat(LOCK, &file, WHOLE).await, GRANTED);
            if let Some(call) = given {
                service.call_ended(&call, answer(GRANTED)).await.unwrap();
                assert_eq!(two.stat(LOCK, &file, WHOLE).await, DENIED);
            }
        }
    });
}

#[test]
fn locks_of_both_protocols_keep_each_other_out() {
    run(async {
        let Scene { mut client, file, open, one, service, .. } = scene().await;
        let mine = client.call(&[put_handle(&file), lock(&open, "me", 0, u64::MAX)]).await;
        assert_eq!(mine.status, 0);
        let stateid = mine.body(&[SEQUENCE_BYTES, 0]).fixed::<16>().unwrap();
        let mut found = one.ask(TEST, &file, WHOLE).await;
        assert_eq!((found.u32(), found.bool(), found.u32()), (Ok(DENIED), Ok(true), Ok(0)));
        assert_eq!(one.stat(LOCK, &file, WHOLE).await, DENIED);
        assert_eq!(one.stat(LOCK, &file, WAITING).await, BLOCKED);
        assert!(calls(&service).await.is_empty());
        assert_eq!(client.call(&[put_handle(&file), unlock_v4(&stateid)]).await.status, 0);
        let call = the_call(&service).await;
        service.call_ended(&call, answer(GRANTED)).await.unwrap();
        let refused = client.call(&[put_handle(&file), lock(&open, "me", 3, 1)]).await;
        assert_eq!(refused.status, V4_DENIED);
        assert_eq!(one.stat(UNLOCK, &file, WHOLE).await, GRANTED);
        assert_eq!(client.call(&[put_handle(&file), lock(&open, "me", 3, 1)]).await.status, 0);
    });
}

#[test]
fn a_takeover_keeps_locks_and_goes_on_calling_and_asks_nobody_to_reclaim() {
    run(async {
        let Scene { device, file, open, mut client, mut one, mut two, service, .. } = scene().await;
        assert_eq!(client.call(&[put_handle(&file), close(&open)]).await.status, 0);
        let low = Bits { length: 10, ..WHOLE };
        assert_eq!(one.stat(LOCK, &file, low).await, GRANTED);
        assert_eq!(one.share(SHARE, &file, (2, 1)).await, GRANTED);
        let (device, taken_over) = take_over(&device, &mut [&mut one, &mut two]).await;
        assert!(calls(&taken_over).await.is_empty(), "nothing is lost");
        assert_eq!(two.stat(LOCK, &file, low).await, DENIED);
        assert_eq!(two.share(SHARE, &file, (0, 3)).await, DENIED);
        assert_eq!(one.stat(LOCK, &file, Bits { reclaims: true, ..low }).await, GRACE, "there is no grace period");
        // A lock is taken for who waited, and then the box dies before its host hears of it.
        assert_eq!(two.stat(LOCK, &file, Bits { waits: true, ..low }).await, BLOCKED);
        assert_eq!(one.stat(UNLOCK, &file, low).await, GRANTED);
        assert_eq!(the_call(&taken_over).await.host.address(), two.address);
        let (device, next) = take_over(&device, &mut [&mut one, &mut two]).await;
        let call = the_call(&next).await;
        assert_eq!(one.stat(LOCK, &file, low).await, DENIED);
        next.call_ended(&call, answer(DENIED)).await.unwrap();
        assert_eq!(one.stat(LOCK, &file, low).await, GRANTED, "it was not wanted any more");
        // Who waits asks again by itself.
        assert_eq!(two.stat(LOCK, &file, Bits { waits: true, ..low }).await, BLOCKED);
        let (_, last) = take_over(&device, &mut [&mut one, &mut two]).await;
        assert_eq!(one.stat(UNLOCK, &file, low).await, GRANTED);
        assert!(calls(&last).await.is_empty());
        assert_eq!(two.stat(LOCK, &file, Bits { waits: true, ..low }).await, GRANTED);
        drop(service);
    });
}

#[test]
fn a_host_that_restarted_has_nothing_and_nobody_else_can_say_so() {
    run(async {
        let Scene { device, file, open, mut client, mut one, mut two, service, .. } = scene().await;
        assert_eq!(client.call(&[put_handle(&file), close(&open)]).await.status, 0);
        let mut stranger = Host::new(&service, "stranger", "192.0.2.66");
        assert_eq!(one.stat(LOCK, &file, WHOLE).await, GRANTED);
        assert_eq!(one.share(SHARE, &file, (0, 1)).await, GRANTED);
        stranger.restarted("one", 5).await;
        stranger.named((NLM, 4), FREE_ALL, "one", 5).await;
        one.restarted("one", 3).await;
        assert_eq!(two.stat(LOCK, &file, WHOLE).await, DENIED, "in that state it took its locks");
        take_over(&device, &mut [&mut one, &mut two, &mut stranger]).await;
        assert_eq!(two.stat(LOCK, &file, WAITING).await, BLOCKED);
        one.restarted("one", 5).await;
        assert_eq!(the_call(&one.service).await.host.address(), two.address, "whoever waits is next");
        assert_eq!(two.stat(UNLOCK, &file, WHOLE).await, GRANTED);
        assert_eq!(two.share(SHARE, &file, (3, 3)).await, GRANTED);
        assert_eq!(two.share(UNSHARE, &file, (3, 3)).await, GRANTED);
        // It locks again, and what it said comes once more.
        assert_eq!(one.stat(LOCK, &file, Bits { state: 5, ..WHOLE }).await, GRANTED);
        one.restarted("one", 5).await;
        assert_eq!(two.stat(LOCK, &file, WHOLE).await, DENIED);
        one.named((NLM, 4), FREE_ALL, "one", 5).await;
        assert_eq!(two.stat(LOCK, &file, WHOLE).await, GRANTED);
    });
}

#[test]
fn more_than_one_transaction_can_tell_of_is_dropped_whole() {
    run(async {
        let Scene { file, one, two, .. } = scene().await;
        for svid in 0..100 {
            let process = Host { svid, ..one.clone() };
            let bits = Bits { offset: u64::from(svid), length: 1, ..WHOLE };
            assert_eq!(process.stat(LOCK, &file, bits).await, GRANTED);
        }
        assert_eq!(two.stat(LOCK, &file, WHOLE).await, DENIED);
        one.restarted("one", 9).await;
        assert_eq!(two.stat(LOCK, &file, WHOLE).await, GRANTED);
    });
}

#[test]
fn hosts_hear_that_state_was_lost_and_reclaim_what_they_had() {
    run(async {
        let Scene { device, file, mut one, mut two, .. } = scene().await;
        assert_eq!(one.stat(LOCK, &file, WHOLE).await, GRANTED);
        let device = spoil(&device).await;
        let (device, service) = take_over(&device, &mut [&mut one, &mut two]).await;
        let call = the_call(&service).await;
        assert_eq!((call.subject, call.host.address()), (Subject::Lost, one.address));
        assert_eq!((call.program, call.version, call.procedure), (NSM, 1, SM_NOTIFY));
        let mut arguments = Decoder::new(call.arguments.clone());
        assert_eq!(arguments.opaque(64).unwrap(), "127.0.0.1", "by the address that it knows");
        assert_eq!(arguments.u32().unwrap() % 2, 1);
        service.call_ended(&call, None).await.unwrap();
        assert_eq!(the_call(&service).await, call, "it is told again until it answers");
        // A takeover does not forget whom to tell.
        let (_, service) = take_over(&device, &mut [&mut one, &mut two]).await;
        let call = the_call(&service).await;
        assert_eq!((call.subject, call.host.address()), (Subject::Lost, one.address));
        service.call_ended(&call, Some(Bytes::new())).await.unwrap();
        assert!(calls(&service).await.is_empty());
        assert_eq!(two.stat(LOCK, &file, WHOLE).await, GRACE);
        assert_eq!(two.stat(LOCK, &file, WAITING).await, GRACE);
        assert_eq!(two.stat(TEST, &file, WHOLE).await, GRACE);
        assert_eq!(one.stat(LOCK, &file, Bits { reclaims: true, ..WHOLE }).await, GRANTED);
        assert_eq!(two.stat(LOCK, &file, Bits { reclaims: true, ..WHOLE }).await, DENIED, "it did not have it");
        assert_eq!(one.stat(UNLOCK, &file, WHOLE).await, GRANTED);
    });
}

#[test]
fn who_may_not_have_a_file_may_not_lock_it() {
    run(async {
        let Scene { mut client, file, one, service, .. } = scene().await;
        let root = client.root().await;
        let user = Host { user: 1000, ..one.clone() };
        assert_eq!(user.stat(LOCK, &file, WHOLE).await, GRANTED, "it may read it");
        assert_eq!(user.stat(LOCK, &root, WHOLE).await, FAILED, "no file");
        let private = operation(34, |out| {
            out.fixed(&[0; 16]);
            crate::world::put_mode(out, 0o600);
        });
        assert_eq!(client.call(&[put_handle(&file), private]).await.status, 0);
        assert_eq!(user.stat(LOCK, &file, WHOLE).await, FAILED);
        assert_eq!(user.stat(TEST, &file, WHOLE).await, FAILED);
        assert_eq!(user.stat(UNLOCK, &file, WHOLE).await, GRANTED, "what it has it may give back");
        assert_eq!(one.stat(LOCK, &file, WHOLE).await, GRANTED);
        let reader = Host { user: crate::world::READER, ..one.clone() };
        assert_eq!(reader.stat(LOCK, &file, WHOLE).await, READ_ONLY);
        let mut gone = file.to_vec();
        gone[19] ^= 1;
        for stale in [&gone[..], b"junk", &[]] {
            assert_eq!(one.stat(LOCK, stale, WHOLE).await, STALE);
        }
        let refused = Host { user: REFUSED, ..one };
        assert_eq!(refused.call((NLM, 4), 0, b"").await, None);
        assert_eq!(refused.call((NSM, 1), 0, b"").await, None);
        drop(service);
    });
}

#[test]
fn what_is_not_there_is_refused_as_rpc_has_it() {
    run(async {
        let Scene { one, .. } = scene().await;
        for version in [1, 3, 5] {
            assert_eq!(one.call((NLM, version), 0, b"").await, None);
        }
        for procedure in (5..20).chain([24]) {
            assert_eq!(one.call((NLM, 4), procedure, b"").await, None, "{procedure}");
        }
        for procedure in [0, 23] {
            let named = [&[0, 0, 0, 1, b'x', 0, 0, 0][..], &[0; 4]].concat();
            let arguments = if procedure == 0 { &[][..] } else { &named };
            assert_eq!(one.call((NLM, 4), procedure, arguments).await, Some(Bytes::new()));
        }
        for procedure in 1..24 {
            for length in 0..64 {
                let junk: Vec<u8> = (0..length).map(|at| (at * 37 + procedure) as u8).collect();
                let _ = one.call((NLM, 4), procedure, &junk).await;
                let _ = one.call((NSM, 1), procedure, &junk).await;
            }
        }
    });
}
