//! A client of NFSv3 that speaks by hand: what it sends and what it expects is written out here from RFC 1813, by none of the
//! server's own codecs.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use block_device::RamDevice;
use bytes::Bytes;
use gateway_nfs::service::{Origin, Service};
use gateway_nfs::xdr::{Decoder, Encoder};

use crate::world::{VOLUME, local_origin};

pub(super) const GETATTR: u32 = 1;
pub(super) const SETATTR: u32 = 2;
pub(super) const LOOKUP: u32 = 3;
pub(super) const ACCESS: u32 = 4;
pub(super) const READLINK: u32 = 5;
pub(super) const READ: u32 = 6;
pub(super) const WRITE: u32 = 7;
pub(super) const CREATE: u32 = 8;
pub(super) const MKDIR: u32 = 9;
pub(super) const SYMLINK: u32 = 10;
pub(super) const MKNOD: u32 = 11;
pub(super) const REMOVE: u32 = 12;
pub(super) const RMDIR: u32 = 13;
pub(super) const RENAME: u32 = 14;
pub(super) const LINK: u32 = 15;
pub(super) const READDIR: u32 = 16;
pub(super) const READDIRPLUS: u32 = 17;
pub(super) const FSSTAT: u32 = 18;
pub(super) const FSINFO: u32 = 19;
pub(super) const PATHCONF: u32 = 20;
pub(super) const COMMIT: u32 = 21;

pub(super) const NO_ENTRY: u32 = 2;
pub(super) const ACCES: u32 = 13;
pub(super) const EXISTS: u32 = 17;
pub(super) const NOT_DIRECTORY: u32 = 20;
pub(super) const IS_DIRECTORY: u32 = 21;
pub(super) const INVALID: u32 = 22;
pub(super) const READ_ONLY: u32 = 30;
pub(super) const NOT_EMPTY: u32 = 66;
pub(super) const STALE: u32 = 70;
pub(super) const BAD_HANDLE: u32 = 10_001;
pub(super) const NOT_SYNC: u32 = 10_002;
pub(super) const TOO_SMALL: u32 = 10_005;
pub(super) const JUKEBOX: u32 = 10_008;

const NFS: (u32, u32) = (100_003, 3);

/// A client: an address, a user, and a number that goes up.
pub(super) struct V3 {
    pub(super) service: Rc<Service<Rc<RamDevice>>>,
    pub(super) user: u32,
    /// It does not even say who it is (AUTH_NONE).
    pub(super) nameless: bool,
    pub(super) address: IpAddr,
    pub(super) xid: Cell<u32>,
}

/// A result as it came.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u32,
    /// Behind the status.
    pub(super) body: Decoder,
    /// All of it, with the RPC head.
    pub(super) whole: Bytes,
}

/// `fattr3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) kind: u32,
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) owner: (u32, u32),
    pub(super) size: u64,
    pub(super) device: (u32, u32),
    pub(super) fileid: u64,
    pub(super) modified: (u32, u32),
    pub(super) changed: (u32, u32),
}

/// `wcc_data`: size and times before, attributes after.
pub(super) type Change = (Option<(u64, (u32, u32), (u32, u32))>, Option<Attributes>);

/// What is to be set.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Set {
    pub(super) mode: Option<u32>,
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) modified: Option<(u32, u32)>,
}

impl Set {
    pub(super) fn mode(mode: u32) -> Self {
        Self { mode: Some(mode), ..Self::default() }
    }

    pub(super) fn size(size: u64) -> Self {
        Self { size: Some(size), ..Self::default() }
    }

    pub(super) fn put(&self, out: &mut Encoder) {
        out.option(self.mode, Encoder::u32);
        out.option(self.user, Encoder::u32);
        out.option(self.group, Encoder::u32);
        out.option(self.size, Encoder::u64);
        out.u32(0);
        match self.modified {
            None => out.u32(0),
            Some((seconds, nanoseconds)) => [2, seconds, nanoseconds].into_iter().for_each(|word| out.u32(word)),
        }
    }
}

/// Arguments written out.
pub(super) fn arguments(put: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut out = Encoder::new();
    put(&mut out);
    out.to_bytes().to_vec()
}

pub(super) fn of(handle: &[u8]) -> Vec<u8> {
    arguments(|out| out.opaque(handle))
}

pub(super) fn named(directory: &[u8], name: &str) -> Vec<u8> {
    arguments(|out| {
        out.opaque(directory);
        out.opaque(name.as_bytes());
    })
}

pub(super) fn set(file: &[u8], set: Set, guard: Option<(u32, u32)>) -> Vec<u8> {
    arguments(|out| {
        out.opaque(file);
        set.put(out);
        out.option(guard, |out, (seconds, nanoseconds)| {
            out.u32(seconds);
            out.u32(nanoseconds);
        });
    })
}

pub(super) fn create(directory: &[u8], name: &str, guarded: bool, set: Set) -> Vec<u8> {
    let mut bytes = named(directory, name);
    bytes.extend(arguments(|out| {
        out.u32(u32::from(guarded));
        set.put(out);
    }));
    bytes
}

pub(super) fn create_exclusive(directory: &[u8], name: &str, verifier: [u8; 8]) -> Vec<u8> {
    let mut bytes = named(directory, name);
    bytes.extend(arguments(|out| {
        out.u32(2);
        out.fixed(&verifier);
    }));
    bytes
}

pub(super) fn make_directory(directory: &[u8], name: &str, mode: u32) -> Vec<u8> {
    let mut bytes = named(directory, name);
    bytes.extend(arguments(|out| Set::mode(mode).put(out)));
    bytes
}

pub(super) fn symlink(directory: &[u8], name: &str, target: &str) -> Vec<u8> {
    let mut bytes = named(directory, name);
    bytes.extend(arguments(|out| {
        Set::default().put(out);
        out.opaque(target.as_bytes());
    }));
    bytes
}

pub(super) fn rename(from: (&[u8], &str), to: (&[u8], &str)) -> Vec<u8> {
    [named(from.0, from.1), named(to.0, to.1)].concat()
}

pub(super) fn link(file: &[u8], to: (&[u8], &str)) -> Vec<u8> {
    [of(file), named(to.0, to.1)].concat()
}

pub(super) fn read(file: &[u8], offset: u64, count: u32) -> Vec<u8> {
    arguments(|out| {
        out.opaque(file);
        out.u64(offset);
        out.u32(count);
    })
}

pub(super) fn write(file: &[u8], offset: u64, stable: u32, data: &[u8]) -> Vec<u8> {
    arguments(|out| {
        out.opaque(file);
        out.u64(offset);
        out.u32(data.len() as u32);
        out.u32(stable);
        out.opaque(data);
    })
}

pub(super) fn list(directory: &[u8], cookie: u64, counts: &[u32]) -> Vec<u8> {
    arguments(|out| {
        out.opaque(directory);
        out.u64(cookie);
        out.u64(0);
        counts.iter().for_each(|count| out.u32(*count));
    })
}

impl V3 {
    pub(super) fn new(service: &Rc<Service<Rc<RamDevice>>>) -> Self {
        let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        Self { service: Rc::clone(service), user: 0, nameless: false, address, xid: Cell::new(0) }
    }

    /// The same client as another user.
    pub(super) fn user(&self, user: u32) -> Self {
        let (service, address) = (Rc::clone(&self.service), self.address);
        Self { service, user, nameless: false, address, xid: Cell::new(user * 1000) }
    }

    /// The handle of the volume's root, as MNT gives it.
    pub(super) async fn root(&self) -> Bytes {
        let mut reply = self.mount("/vol").await;
        assert_eq!(reply.status, 0);
        reply.body.opaque(64).unwrap()
    }

    pub(super) async fn mount(&self, path: &str) -> Reply {
        self.xid.set(self.xid.get() + 1);
        self.send((100_005, 3), 1, &arguments(|out| out.opaque(path.as_bytes()))).await
    }

    /// A new call.
    pub(super) async fn call(&self, procedure: u32, arguments: &[u8]) -> Reply {
        self.xid.set(self.xid.get() + 1);
        self.again(procedure, arguments).await
    }

    /// A new call that succeeds.
    pub(super) async fn done(&self, procedure: u32, arguments: &[u8]) -> Reply {
        let reply = self.call(procedure, arguments).await;
        assert_eq!(reply.status, 0, "procedure {procedure}");
        reply
    }

    /// A call with the number of the last one.
    pub(super) async fn again(&self, procedure: u32, arguments: &[u8]) -> Reply {
        self.send(NFS, procedure, arguments).await
    }

    async fn send(&self, program: (u32, u32), procedure: u32, arguments: &[u8]) -> Reply {
        let whole = self.raw(program, procedure, arguments).await;
        let mut body = Decoder::new(whole.clone());
        for expected in [self.xid.get(), 1, 0, 0, 0, 0] {
            assert_eq!(body.u32(), Ok(expected), "an accepted reply with a result");
        }
        let status = body.u32().unwrap();
        Reply { status, body, whole }
    }

    /// The reply with its RPC head, whatever it is.
    pub(super) async fn raw(&self, (program, version): (u32, u32), procedure: u32, arguments: &[u8]) -> Bytes {
        let mut out = Encoder::new();
        for word in [self.xid.get(), 0, 2, program, version, procedure] {
            out.u32(word);
        }
        let mut credential = Encoder::new();
        credential.u32(0);
        credential.opaque(b"client");
        for word in [self.user, self.user, 0] {
            credential.u32(word);
        }
        match self.nameless {
            true => out.u64(0),
            false => {
                out.u32(1);
                out.opaque(&credential.to_bytes());
            }
        }
        out.u64(0);
        out.encoded(arguments);
        let origin = Origin { address: self.address, ..local_origin() };
        let reply = self.service.call(origin, out.to_bytes()).await.expect("the volume is there");
        Bytes::from(reply.expect("a call has an answer").concat())
    }

    /// The handle that a name stands for.
    pub(super) async fn look_up(&self, directory: &[u8], name: &str) -> Bytes {
        self.done(LOOKUP, &named(directory, name)).await.body.opaque(64).unwrap()
    }

    /// A new file, with its handle.
    pub(super) async fn file(&self, directory: &[u8], name: &str, mode: u32) -> Bytes {
        self.done(CREATE, &create(directory, name, true, Set::mode(mode))).await.handle()
    }

    pub(super) async fn attributes(&self, file: &[u8]) -> Attributes {
        self.done(GETATTR, &of(file)).await.attributes()
    }
}

impl Reply {
    pub(super) fn attributes(&mut self) -> Attributes {
        let body = &mut self.body;
        let mut word = || body.u32().unwrap();
        let (kind, mode, links, owner) = (word(), word(), word(), (word(), word()));
        let (size, _used) = (body.u64().unwrap(), body.u64().unwrap());
        let device = (body.u32().unwrap(), body.u32().unwrap());
        assert_eq!(body.u64(), Ok(VOLUME), "one filesystem");
        let fileid = body.u64().unwrap();
        let mut time = || (body.u32().unwrap(), body.u32().unwrap());
        let (_accessed, modified, changed) = (time(), time(), time());
        Attributes { kind, mode, links, owner, size, device, fileid, modified, changed }
    }

    /// `post_op_attr`.
    pub(super) fn after(&mut self) -> Option<Attributes> {
        self.body.bool().unwrap().then(|| self.attributes())
    }

    /// `post_op_fh3`, which is there.
    pub(super) fn handle(&mut self) -> Bytes {
        assert_eq!(self.body.bool(), Ok(true), "a handle");
        self.body.opaque(64).unwrap()
    }

    /// `wcc_data`.
    pub(super) fn change(&mut self) -> Change {
        let body = &mut self.body;
        let before = body.bool().unwrap().then(|| {
            let size = body.u64().unwrap();
            let mut time = || (body.u32().unwrap(), body.u32().unwrap());
            (size, time(), time())
        });
        (before, self.after())
    }

    /// Nothing is left.
    pub(super) fn end(&self) {
        assert_eq!(self.body.finish(), Ok(()));
    }

    /// Entries of a READDIR or READDIRPLUS: names and cookies; and whether that is the end.
    pub(super) fn entries(&mut self, plus: bool) -> (Vec<(String, u64)>, bool) {
        self.after().expect("the directory's attributes");
        assert_eq!(self.body.u64(), Ok(0), "the verifier is constant");
        let mut entries = Vec::new();
        while self.body.bool().unwrap() {
            let fileid = self.body.u64().unwrap();
            let name = String::from_utf8(self.body.opaque(255).unwrap().to_vec()).unwrap();
            entries.push((name, self.body.u64().unwrap()));
            if plus {
                assert_eq!(self.after().expect("attributes").fileid, fileid);
                self.handle();
            }
        }
        let at_end = self.body.bool().unwrap();
        self.end();
        (entries, at_end)
    }
}
