//! What a sound client says, and what it is answered: that of NFSv4 as our own client puts it, NFSv3 and its companions by hand.

use std::rc::Rc;

use bytes::Bytes;
use gateway_nfs::client::Handle;
use gateway_nfs::client::arguments::{Channel, Claim, Creation, LockRange, Locker, NewKind, Open, Stable};
use gateway_nfs::client::attributes::AttributesToSet;
use gateway_nfs::client::request::Request;
use gateway_nfs::client::result::Reply;
use gateway_nfs::client::session::{Event, Identity, Session};
use gateway_nfs::ids::{ClientId, SessionId, Stateid};
use gateway_nfs::rpc::auth::{Credential, SysCredential};
use gateway_nfs::rpc::call::Call;
use gateway_nfs::service::Door;
use gateway_nfs::v4::bitmap::Bitmap;
use gateway_nfs::xdr::{Decoder, Encoder};

use super::world::{NOW, Served, origin};

const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;
const NLM: u32 = 100_021;
const NSM: u32 = 100_024;
/// Of attributes that an answer is asked for: all numbers that there may be.
const ATTRIBUTES_END: u32 = 83;

/// A call of another program than NFSv4.
#[derive(Clone, Debug)]
pub(super) struct Spoken {
    pub(super) program: u32,
    pub(super) procedure: u32,
    pub(super) arguments: Vec<u8>,
}

/// All that was said.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// Compounds with their RPC head, and the replies to them.
    pub(super) compounds: Vec<(Bytes, Bytes)>,
    /// The client's session.
    pub(super) session: [u8; 16],
    pub(super) others: Vec<Spoken>,
}

impl Spoken {
    /// With its head.
    pub(super) fn message(&self) -> Bytes {
        let version = match self.program {
            NLM => 4,
            NSM => 1,
            _ => 3,
        };
        let credential = Credential::Sys(SysCredential { machine: Bytes::from_static(b"box"), ..Default::default() });
        let call = Call { xid: 9, program: self.program, version, procedure: self.procedure, credential };
        let mut out = Encoder::new();
        call.encode(&mut out);
        out.encoded(&self.arguments);
        out.to_bytes()
    }
}

struct Client<'a> {
    service: &'a Rc<Served>,
    session: Session,
    messages: Messages,
}

impl Client<'_> {
    /// Sends a request; gives its answer.
    async fn ask(&mut self, request: Request) -> Reply {
        self.session.submit(request);
        loop {
            while let Some(message) = self.session.next_outgoing() {
                let message = Bytes::from(message.concat());
                let reply = self.service.call(origin(1, Door::Service), message.clone()).await;
                let reply = Bytes::from(reply.expect("the volume is there").expect("a reply").concat());
                self.messages.compounds.push((message, reply.clone()));
                self.session.on_message(reply, NOW).expect("a reply to it");
            }
            while let Some(event) = self.session.next_event() {
                if let Event::Completed(_, reply) = event {
                    return reply.expect("an answer");
                }
            }
        }
    }

    async fn done(&mut self, request: Request) -> gateway_nfs::client::result::Results {
        self.ask(request).await.into_results().expect("it is done")
    }
}

/// Has a client leave state, and say one of everything.
pub(super) async fn exchange(service: &Rc<Served>) -> Messages {
    let bytes_max = 1 << 20;
    let fore = Channel {
        request_bytes_max: bytes_max,
        reply_bytes_max: bytes_max,
        cached_reply_bytes_max: 2048,
        operations_max: 16,
        requests_max: 64,
    };
    let owner = Bytes::from_static(b"a client");
    let credential = SysCredential { machine: Bytes::from_static(b"box"), ..Default::default() };
    let identity = Identity { owner, verifier: [1; 8], credential, minor: 2, fore };
    let mut client = Client { service, session: Session::new(identity, 1), messages: Messages::default() };
    client.session.connected();
    let root = || Request::new(2).putrootfh().lookup(b"vol");
    let handle = client.done(root().getfh()).await.handle().expect("a handle");
    let file = client.done(root().lookup(b"file").getfh()).await.handle().expect("a handle");
    let open = |creation| Open {
        access: 3,
        deny: 0,
        owner: Bytes::from_static(b"opener"),
        creation,
        claim: Claim::Null(Bytes::from_static(b"opened")),
    };
    let made = open(Creation::Guarded(AttributesToSet::mode(0o644)));
    let mut results = client.done(root().open(&made).getfh()).await;
    let (opened, its) = (results.opened().expect("it is open").stateid, results.handle().expect("a handle"));
    let range = LockRange { exclusive: true, offset: 5, length: 10 };
    let lock = Request::new(2).putfh(&its).lock(range, false, false, &Locker::New(opened, "locker".into()));
    let locked = client.done(lock).await.stateid().expect("it is locked");
    for request in requests(&handle, &its, opened, locked) {
        client.ask(request).await;
    }
    let creation = [
        Creation::No,
        Creation::Unchecked(AttributesToSet::size(0)),
        Creation::Exclusive([3; 8]),
        Creation::ExclusiveWith([4; 8], AttributesToSet::mode(0o600)),
    ];
    for creation in creation {
        client.ask(root().open(&open(creation)).getfh()).await;
    }
    let mut messages = client.messages;
    let sequenced = messages.compounds.iter().find_map(|(message, _)| session_of(message));
    messages.session = sequenced.expect("there was a session");
    messages.others = others(&handle.0, &file.0);
    messages
}

/// Where in a call of NFSv4 the session's name stands: behind its SEQUENCE.
pub(super) fn session_at(message: &Bytes) -> Option<usize> {
    let mut decoder = Decoder::new(message.clone());
    let call = Call::decode(&mut decoder).ok()?;
    decoder.opaque(1024).ok()?;
    let (_minor, count, number) = (decoder.u32().ok()?, decoder.u32().ok()?, decoder.u32().ok()?);
    let is_it = (call.program, call.version, call.procedure) == (NFS, 4, 1) && count > 0 && number == 53;
    (is_it && decoder.remaining() >= 24).then(|| decoder.position())
}

fn session_of(message: &Bytes) -> Option<[u8; 16]> {
    let at = session_at(message)?;
    message.get(at..at + 16)?.try_into().ok()
}

/// One of every operation, on a directory and a file of it.
fn requests(root: &Handle, file: &Handle, open: Stateid, lock: Stateid) -> Vec<Request> {
    let all = Bitmap::of(&(0..ATTRIBUTES_END).collect::<Vec<_>>());
    let new = || Request::new(2);
    let (here, there) = (|| new().putfh(root), || new().putfh(file));
    let range = LockRange { exclusive: false, offset: 100, length: u64::MAX };
    let mode = AttributesToSet::mode(0o640);
    let session = SessionId::from_bytes([1; 16]);
    let mut requests = vec![
        there().access(0x3f).getattr(all).getfh(),
        here().readdir(0, [0; 8], 4096, all),
        here().lookup(b"directory").lookupp().getfh(),
        there().write(open, 3, Stable::Unstable, Bytes::from_static(b"some data")).commit(0, 0),
        there().write(open, 1 << 20, Stable::File, Bytes::from_static(&[7; 700])),
        there().read(open, 0, 4096).read_plus(open, 0, 1 << 21),
        there().seek(open, 0, true).seek(open, 0, false),
        there().allocate(open, 0, 9000).deallocate(open, 100, 5000),
        there().savefh().copy((open, 0), (open, 9000), 500),
        there().setattr(Stateid::ANONYMOUS, &mode),
        there().setattr(open, &AttributesToSet::size(77)),
        there().verify(&mode.to_raw()),
        there().nverify(&mode.to_raw()),
        there().setxattr(0, b"name", b"value").getxattr(b"name").listxattrs(0, 1000).removexattr(b"name"),
        there().lockt(range, b"another").locku(LockRange { offset: 7, length: 1, ..range }, lock),
        there().lock(range, true, false, &Locker::Known(lock)),
        there().savefh().putfh(root).link(b"linked").restorefh().getfh(),
        here().savefh().rename(b"linked", b"moved"),
        here().remove(b"moved"),
        here().secinfo(b"file"),
        here().secinfo_no_name(false),
        here().lookup(b"symlink").readlink(),
        new().putpubfh().getattr(all),
        new().putrootfh().readdir(0, [0; 8], 1000, all),
        new().test_stateid(&[open, lock, Stateid::CURRENT]),
        there().free_stateid(lock),
        there().open_downgrade(open, 1, 0),
        there().delegreturn(open),
        there().close(open),
        here().open(&Open {
            access: 1 | 0x100,
            deny: 0,
            owner: "reader".into(),
            creation: Creation::No,
            claim: Claim::Null("file".into()),
        }),
        there().open(&Open { access: 1, deny: 2, owner: "again".into(), creation: Creation::No, claim: Claim::File }),
        new().backchannel_ctl((0x4000_0000, &SysCredential::default())),
        new().bind_conn_to_session(session, 7),
        new().destroy_session(session),
        new().destroy_clientid(ClientId(99)),
        new().reclaim_complete(false),
        new().exchange_id([2; 8], b"another client", 0),
        new().create_session(
            ClientId(3),
            1,
            3,
            (&Channel::default(), &Channel::default()),
            (0x4000_0000, &SysCredential::default()),
        ),
    ];
    let kinds = [
        NewKind::Directory,
        NewKind::BlockDevice(1, 2),
        NewKind::CharacterDevice(3, 4),
        NewKind::Symlink("target".into()),
        NewKind::Socket,
        NewKind::Fifo,
    ];
    for (number, kind) in kinds.iter().enumerate() {
        requests.push(here().create(kind, format!("new-{number}").as_bytes(), &mode));
    }
    requests
}

fn arguments(put: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut out = Encoder::new();
    put(&mut out);
    out.to_bytes().to_vec()
}

/// Nothing to set.
const NO_WISHES: [u32; 6] = [0; 6];

/// One of every procedure of NFSv3, MOUNT, NLM and NSM.
fn others(root: &[u8], file: &[u8]) -> Vec<Spoken> {
    let words = |out: &mut Encoder, words: &[u32]| words.iter().for_each(|word| out.u32(*word));
    let place = |out: &mut Encoder, name: &[u8]| {
        out.opaque(root);
        out.opaque(name);
    };
    let range = |out: &mut Encoder, rest: &[u32]| {
        out.opaque(file);
        out.u64(3);
        words(out, rest);
    };
    let mut spoken: Vec<(u32, u32, Vec<u8>)> = Vec::new();
    let mut say = |program, procedure, put: &dyn Fn(&mut Encoder)| spoken.push((program, procedure, arguments(put)));
    for procedure in [0, 1, 5, 18, 19, 20] {
        say(NFS, procedure, &|out| {
            if procedure > 0 {
                out.opaque(if procedure == 5 { root } else { file })
            }
        });
    }
    say(NFS, 2, &|out| {
        out.opaque(file);
        words(out, &[1, 0o600, 0, 0, 1, 0, 9, 1, 2, 5, 6, 0]);
    });
    say(NFS, 3, &|out| place(out, b"file"));
    say(NFS, 4, &|out| {
        out.opaque(file);
        out.u32(0x3f);
    });
    say(NFS, 6, &|out| range(out, &[4096]));
    for stable in [0, 2] {
        say(NFS, 7, &|out| {
            range(out, &[3, stable]);
            out.opaque(b"abc");
        });
    }
    for how in [0, 1] {
        say(NFS, 8, &|out| {
            place(out, b"created");
            words(out, &[how]);
            words(out, &NO_WISHES);
        });
    }
    say(NFS, 8, &|out| {
        place(out, b"exclusive");
        words(out, &[2, 7, 8]);
    });
    say(NFS, 9, &|out| {
        place(out, b"made");
        words(out, &NO_WISHES);
    });
    say(NFS, 10, &|out| {
        place(out, b"linked");
        words(out, &NO_WISHES);
        out.opaque(b"target");
    });
    say(NFS, 11, &|out| {
        place(out, b"node");
        words(out, &[4]);
        words(out, &NO_WISHES);
        out.u64(9);
    });
    say(NFS, 12, &|out| place(out, b"created"));
    say(NFS, 13, &|out| place(out, b"made"));
    say(NFS, 14, &|out| {
        place(out, b"exclusive");
        place(out, b"renamed");
    });
    say(NFS, 15, &|out| {
        out.opaque(file);
        place(out, b"hard");
    });
    for procedure in [16, 17] {
        say(NFS, procedure, &|out| {
            out.opaque(root);
            out.u64(0);
            out.u64(0);
            (15..procedure).for_each(|_| out.u32(4096));
        });
    }
    say(NFS, 21, &|out| range(out, &[0]));
    for procedure in 0..6 {
        say(MOUNT, procedure, &|out| {
            if [1, 3].contains(&procedure) {
                out.opaque(b"/vol/directory/below");
            }
        });
    }
    companions(file, &mut say);
    spoken.into_iter().map(|(program, procedure, arguments)| Spoken { program, procedure, arguments }).collect()
}

/// Takes a program, a procedure, and what puts its arguments.
type Say<'a> = &'a mut dyn FnMut(u32, u32, &dyn Fn(&mut Encoder));

/// What belongs to the locks of NFSv3.
fn companions(file: &[u8], say: Say<'_>) {
    for procedure in [0, 1, 2, 3, 4, 22] {
        say(NLM, procedure, &|out| {
            if procedure == 0 {
                return;
            }
            out.opaque(b"cookie");
            if procedure != 1 && procedure != 4 {
                out.bool(procedure == 2);
            }
            if procedure != 4 {
                out.bool(true);
            }
            out.opaque(b"box");
            out.opaque(file);
            out.opaque(b"7@box");
            out.u32(7);
            out.u64(0);
            out.u64(0);
            if procedure % 20 == 2 {
                out.bool(false);
                out.u32(3);
            }
        });
    }
    for procedure in [20, 21] {
        say(NLM, procedure, &|out| {
            out.opaque(b"cookie");
            out.opaque(b"box");
            out.opaque(file);
            out.opaque(b"7@box");
            out.u32(1);
            out.u32(2);
            out.bool(false);
        });
    }
    for (program, procedure) in [(NLM, 23), (NSM, 6)] {
        say(program, procedure, &|out| {
            out.opaque(b"box");
            out.u32(5);
        });
    }
    say(NSM, 1, &|out| out.opaque(b"box"));
}
