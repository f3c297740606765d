//! The product's own client against a service over a loopback socket: each was written from the protocol by itself, so each checks
//! what the other makes of it.

use std::cell::Cell;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use block_device::RamDevice;
use bytes::Bytes;
use gateway_nfs::client::Handle;
use gateway_nfs::client::arguments::{Claim, Creation, LockRange, NewKind, Open, Stable};
use gateway_nfs::client::attributes::AttributesToSet;
use gateway_nfs::client::callback::Notice;
use gateway_nfs::client::connection::{Client, ClientError, Options};
use gateway_nfs::client::files::{Files, FilesError};
use gateway_nfs::client::number::{ACCESS_BOTH, ACCESS_READ, CALLBACK_PROGRAM, WANT_READ_DELEGATION};
use gateway_nfs::client::result::{Delegation, Piece};
use gateway_nfs::ids::Stateid;
use gateway_nfs::rpc::auth::SysCredential;
use gateway_nfs::server;
use gateway_nfs::v4::attributes::number as n;
use gateway_nfs::v4::bitmap::Bitmap;
use gateway_nfs::v4::status::Status;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};

use crate::world::{run, serve, volume};

const WHOLE: LockRange = LockRange { exclusive: true, offset: 0, length: u64::MAX };

/// A box that serves the volume at an address.
struct Primary {
    device: Rc<RamDevice>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    server: JoinHandle<server::Ended>,
}

impl Primary {
    async fn start(device: Rc<RamDevice>, address: &str) -> Self {
        // Nobody keeps its connections for a successor: they break when it ends.
        Self::keeping(device, address, Rc::new(|_| Ok(Box::new(())))).await
    }

    async fn keeping(device: Rc<RamDevice>, address: &str, hold: server::Hold) -> Self {
        let service = serve(&device).await;
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let server = spawn_local(server::serve(service, vec![listener], hold, stopped));
        Self { device, address, stop, server }
    }

    /// Another box goes on with what the device holds, at the same address.
    async fn take_over(self) -> Self {
        self.stop.send(true).unwrap();
        assert_eq!(self.server.await.unwrap(), server::Ended::Stopped);
        let found = Rc::new(RamDevice::from_image(&self.device.to_vec()));
        Self::start(found, &self.address.to_string()).await
    }

    async fn client(&self, name: &'static str) -> Client {
        let options = Options {
            owner: Bytes::from_static(name.as_bytes()),
            pauses: (Duration::from_millis(1), Duration::from_millis(10)),
            ..Options::default()
        };
        Client::connect(self.address, options).await.expect("a session")
    }

    async fn files(&self, name: &'static str) -> Files {
        Files::new(self.client(name).await, name)
    }
}

async fn start() -> Primary {
    Primary::start(volume(), "127.0.0.1:0").await
}

#[test]
fn files_by_their_paths() {
    run(async {
        let server = start().await;
        let files = server.files("one").await;
        files.make_directories("/vol/a/b/c/d/e/f/g/h", 0o755).await.unwrap();
        files.make_directories("/vol/a/b/c/d/e/f/g/h", 0o755).await.unwrap();
        let data: Bytes = (0..1_500_001u32).map(|at| (at % 251) as u8).collect();
        files.write_file("/vol/a/file", data.clone()).await.unwrap();
        assert_eq!(files.read_file("/vol/a/file").await.unwrap(), data);
        assert_eq!(files.stat("/vol/a/file").await.unwrap().size, Some(data.len() as u64));
        files.write_file("/vol/a/file", Bytes::from_static(b"short")).await.unwrap();
        assert_eq!(files.read_file("/vol/a/file").await.unwrap(), &b"short"[..]);

        files.rename("/vol/a/file", "/vol/a/b/moved").await.unwrap();
        files.link("/vol/a/b/moved", "/vol/a/linked").await.unwrap();
        let to = NewKind::Symlink(Bytes::from_static(b"b/moved"));
        files.create("/vol/a/symbolic", &to, &AttributesToSet::default()).await.unwrap();
        assert_eq!(files.read_link("/vol/a/symbolic").await.unwrap(), &b"b/moved"[..]);
        let mut names: Vec<_> =
            files.read_directory("/vol/a").await.unwrap().into_iter().map(|(name, _)| name).collect();
        names.sort();
        assert_eq!(names, [&b"b"[..], b"linked", b"symbolic"]);
        assert_eq!(files.stat("/vol/a/linked").await.unwrap().links, Some(2));
        files.set_attributes("/vol/a/linked", &AttributesToSet::mode(0o400)).await.unwrap();
        assert_eq!(files.stat("/vol/a/b/moved").await.unwrap().mode, Some(0o400));

        let not_empty = files.remove("/vol/a/b").await.unwrap_err();
        assert_eq!(not_empty.status(), Some(Status::NotEmpty));
        files.remove("/vol/a/linked").await.unwrap();
        assert_eq!(files.stat("/vol/a/linked").await.unwrap_err().status(), Some(Status::NoEntry));
        assert_eq!(files.remove("/").await, Err(FilesError::NoName));
    });
}

#[test]
fn a_directory_of_many_names_is_read_whole() {
    run(async {
        let server = start().await;
        let files = server.files("one").await;
        let mut made = Vec::new();
        for number in 0..900 {
            let name = format!("a name that is long enough to need several replies {number:04}");
            files.make_directory(&format!("/vol/{name}"), 0o755).await.unwrap();
            made.push(Bytes::from(name));
        }
        let mut names: Vec<_> = files.read_directory("/vol").await.unwrap().into_iter().map(|(name, _)| name).collect();
        names.retain(|name| name.as_ref() != b"lost+found");
        names.sort();
        assert_eq!(names, made);
    });
}

#[test]
fn locks_are_seen_by_other_clients() {
    run(async {
        let server = start().await;
        let (one, two) = (server.files("one").await, server.files("two").await);
        let mut mine = one.open_or_create("/vol/file", 0o644).await.unwrap();
        let mut theirs = two.open_or_create("/vol/file", 0o644).await.unwrap();
        mine.lock(LockRange { exclusive: true, offset: 10, length: 5 }).await.unwrap();
        let Err(FilesError::Locked(denied)) = theirs.lock(WHOLE).await else { panic!("it is locked") };
        assert_eq!((denied.offset, denied.length, denied.exclusive), (10, 5, true));
        assert_eq!(denied.owner, &b"one"[..]);
        assert_eq!(theirs.find_lock(WHOLE).await.unwrap(), Some(denied));
        theirs.lock(LockRange { exclusive: true, offset: 0, length: 10 }).await.unwrap();
        mine.unlock(WHOLE).await.unwrap();
        theirs.lock(WHOLE).await.unwrap();
        theirs.close().await.unwrap();
        assert_eq!(mine.find_lock(WHOLE).await.unwrap(), None);
        mine.close().await.unwrap();
    });
}

/// Boxes change while a client works: it sees no error, keeps its session and its lock, and nothing is done twice.
#[test]
fn takeovers_are_no_more_than_pauses() {
    run(async {
        let mut server = start().await;
        let files = server.files("one").await;
        assert_eq!(files.client().limits().await.unwrap().map(|(_, persists)| persists), Some(true));
        let mut locked = files.open_or_create("/vol/locked", 0o644).await.unwrap();
        locked.lock(WHOLE).await.unwrap();
        let (progress, mut made) = watch::channel(0);
        let worker = files.clone();
        let work = spawn_local(async move {
            for number in 0..200 {
                let (first, last) = (format!("/vol/made{number}"), format!("/vol/done{number}"));
                worker.make_directory(&first, 0o755).await.unwrap();
                worker.rename(&first, &last).await.unwrap();
                progress.send(number).unwrap();
            }
        });
        for at in [40, 80, 120] {
            made.wait_for(|number| *number >= at).await.unwrap();
            server = server.take_over().await;
        }
        work.await.unwrap();
        let names = files.read_directory("/vol").await.unwrap();
        assert_eq!(names.iter().filter(|(name, _)| name.starts_with(b"done")).count(), 200);
        assert!(!names.iter().any(|(name, _)| name.starts_with(b"made")));
        let mut theirs = server.files("two").await.open_or_create("/vol/locked", 0o644).await.unwrap();
        assert!(matches!(theirs.lock(WHOLE).await, Err(FilesError::Locked(_))), "it is held still");
        locked.close().await.unwrap();
        theirs.lock(WHOLE).await.unwrap();
        let statistics = files.client().statistics().await.unwrap();
        assert_eq!((statistics.connections, statistics.sessions, statistics.clients), (4, 1, 1), "{statistics:?}");
    });
}

#[test]
fn a_client_that_ends_leaves_nothing_behind() {
    run(async {
        let server = start().await;
        let client = server.client("one").await;
        client.close().await.unwrap();
        // The same name with another verifier is the same client restarted.
        let again = server.client("one").await;
        again.call(again.request().putrootfh()).await.unwrap();
    });
}

/// An open file of its own.
async fn opened(client: &Client, name: &'static [u8], creation: Creation) -> (Stateid, Handle) {
    let open = Open {
        access: ACCESS_BOTH,
        deny: 0,
        owner: Bytes::from_static(b"me"),
        creation,
        claim: Claim::Null(Bytes::from_static(name)),
    };
    let request = client.request().putrootfh().lookup(b"vol").open(&open).getfh();
    let mut results = client.call(request).await.unwrap();
    (results.opened().unwrap().stateid, results.handle().unwrap())
}

#[test]
fn operations_on_data_are_understood() {
    run(async {
        let server = start().await;
        let client = server.client("one").await;
        let mode = AttributesToSet::mode(0o644);
        let (open, file) = opened(&client, b"file", Creation::Guarded(mode.clone())).await;
        let (other_open, other) = opened(&client, b"other", Creation::ExclusiveWith(*b"verifier", mode)).await;
        let at = || client.request().putfh(&file);
        let data = Bytes::from(vec![7; 8192]);
        let written =
            client.call(at().write(open, 0, Stable::Unstable, data.clone())).await.unwrap().written().unwrap();
        assert_eq!(written.count, 8192);
        let committed = client.call(at().commit(0, 0)).await.unwrap().committed().unwrap();
        assert_eq!(committed, written.verifier);
        client.call(at().setattr(open, &AttributesToSet::size(1 << 20))).await.unwrap();
        client.call(at().allocate(open, 1 << 19, 4096)).await.unwrap();
        client.call(at().deallocate(open, 4096, 4096)).await.unwrap();
        let hole = client.call(at().seek(open, 0, true)).await.unwrap().found().unwrap();
        assert_eq!(hole, (false, 4096));
        let (_, pieces) = client.call(at().read_plus(open, 0, 4096)).await.unwrap().pieces().unwrap();
        assert_eq!(pieces, [Piece::Data(0, data.slice(..4096))]);
        let (_, pieces) = client.call(at().read_plus(open, 4096, 4096)).await.unwrap().pieces().unwrap();
        assert_eq!(pieces, [Piece::Hole(4096, 4096)]);
        let copy = at().savefh().putfh(&other).copy((open, 0), (other_open, 0), 4096);
        assert_eq!(client.call(copy).await.unwrap().written().unwrap().count, 4096);
        let read = client.call(client.request().putfh(&other).read(other_open, 0, 100)).await.unwrap().read().unwrap();
        assert_eq!(read, (false, data.slice(..100)));

        client.call(at().setxattr(1, b"key", b"value")).await.unwrap();
        assert_eq!(client.call(at().getxattr(b"key")).await.unwrap().value().unwrap(), &b"value"[..]);
        let (_, names, all) = client.call(at().listxattrs(0, 4096)).await.unwrap().names().unwrap();
        assert_eq!((names, all), (vec![Bytes::from_static(b"key")], true));
        client.call(at().removexattr(b"key")).await.unwrap();
        let gone = client.call(at().getxattr(b"key")).await.unwrap_err();
        assert_eq!(gone.status(), Some(Status::NoXattr));

        let tested = client.call(client.request().test_stateid(&[open, Stateid { seqid: 1, other: *b"none such at" }]));
        let tested = tested.await.unwrap().tested().unwrap();
        assert!(tested[0].is_none() && tested[1].is_some(), "{tested:?}");
        // Only what was opened once can be left of an open (RFC 8881 §18.18.3).
        let refused = client.call(at().open_downgrade(open, ACCESS_READ, 0)).await.unwrap_err();
        assert_eq!(refused.status(), Some(Status::Invalid));
        let owner = Bytes::from_static(b"me");
        let read = Open { access: ACCESS_READ, deny: 0, owner, creation: Creation::No, claim: Claim::File };
        let both = client.call(at().open(&read)).await.unwrap().opened().unwrap().stateid;
        let open = client.call(at().open_downgrade(both, ACCESS_READ, 0)).await.unwrap().stateid().unwrap();
        assert_eq!((open.other, open.seqid), (both.other, both.seqid + 1));
        client.call(at().close(open)).await.unwrap();
    });
}

#[test]
fn a_read_behind_its_handle_is_answered_as_the_two_would_be() {
    run(async {
        let server = start().await;
        let client = server.client("one").await;
        let (open, file) = opened(&client, b"file", Creation::Guarded(AttributesToSet::mode(0o644))).await;
        let at = || client.request().putfh(&file);
        client.call(at().write(open, 0, Stable::Unstable, Bytes::from_static(b"0123456789"))).await.unwrap();
        let directory =
            client.call(client.request().putrootfh().lookup(b"vol").getfh()).await.unwrap().handle().unwrap();

        // What follows finds the file that was put, whatever was before.
        let sizes = Bitmap::of(&[n::SIZE]);
        let request = client.request().putfh(&directory).savefh().putfh(&file).read(open, 6, 100).getattr(sizes);
        let mut results = client.call(request).await.unwrap();
        assert_eq!(results.read().unwrap(), (true, Bytes::from_static(b"6789")));
        assert_eq!(results.attributes().unwrap().read().unwrap().size, Some(10));
        let mut results = client.call(at().read(open, 0, 3).putfh(&file).read(open, 10, 3)).await.unwrap();
        assert_eq!(results.read().unwrap(), (false, Bytes::from_static(b"012")));
        assert_eq!(results.read().unwrap(), (true, Bytes::new()));

        let failure = async |request| match client.call(request).await {
            Err(ClientError::Failed(failure)) => (failure.index, failure.status),
            other => panic!("{other:?}"),
        };
        let of = |handle: &Handle| client.request().putfh(handle).read(open, 0, 10).getattr(sizes);
        assert_eq!(failure(of(&directory)).await, (2, Status::IsDirectory));
        assert_eq!(failure(of(&Handle(Bytes::from_static(b"none")))).await, (1, Status::BadHandle));
        client.call(at().close(open)).await.unwrap();
        assert_eq!(failure(at().read(open, 0, 10)).await, (2, Status::BadStateid));
        client.call(client.request().putfh(&directory).remove(b"file")).await.unwrap();
        assert_eq!(failure(of(&file)).await, (1, Status::Stale));
    });
}

#[test]
fn operations_on_names_and_sessions_are_understood() {
    run(async {
        let server = start().await;
        let client = server.client("one").await;
        let root = || client.request().putrootfh().lookup(b"vol");
        let all = Bitmap::of(&[n::TYPE, n::FSID, n::LEASE_TIME, n::MAXREAD, n::TIME_DELTA, n::SUPPORTED_ATTRS]);
        let raw = client.call(root().getattr(all)).await.unwrap().attributes().unwrap();
        let read = raw.read().unwrap();
        assert_eq!((read.named, read.lease_seconds), (all, Some(90)));
        let everything = client.call(root().getattr(read.supported.unwrap())).await.unwrap().attributes().unwrap();
        everything.read().expect("whatever it supports can be read");
        let same = client.call(root().nverify(&raw)).await.unwrap_err();
        assert_eq!(same.status(), Some(Status::Same));
        client.call(root().verify(&raw).getfh()).await.unwrap();

        assert_eq!(client.call(root().access(0x1f)).await.unwrap().access().unwrap(), (0x1f, 0x1f));
        let kinds = [NewKind::Socket, NewKind::Fifo, NewKind::BlockDevice(8, 1), NewKind::CharacterDevice(1, 3)];
        for (number, kind) in kinds.iter().enumerate() {
            let make = root().create(kind, &[b'a' + number as u8], &AttributesToSet::mode(0o600));
            client.call(make).await.unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        }
        client.call(root().create(&NewKind::Directory, b"e", &AttributesToSet::mode(0o700))).await.unwrap();
        client.call(root().savefh().putpubfh().restorefh().lookup(b"e").lookupp().lookup(b"a")).await.unwrap();
        let flavors = client.call(root().secinfo(b"a")).await.unwrap().flavors().unwrap();
        assert!(flavors.contains(&1), "AUTH_SYS: {flavors:?}");
        client.call(root().secinfo_no_name(false)).await.unwrap().flavors().unwrap();
        let refused = client.call(root().setattr(Stateid::ANONYMOUS, &AttributesToSet::size(1))).await.unwrap_err();
        assert!(refused.status().is_some(), "a directory has no length: {refused}");
        client.call(client.request().backchannel_ctl((CALLBACK_PROGRAM, &SysCredential::default()))).await.unwrap();
    });
}

/// OPEN of a file for reading, with a delegation if there may be one; gives the open and the delegation.
async fn opened_to_read(client: &Client, name: &'static str) -> (Stateid, Handle, Delegation) {
    let open = Open {
        access: ACCESS_READ | WANT_READ_DELEGATION,
        deny: 0,
        owner: Bytes::from_static(b"reader"),
        creation: Creation::No,
        claim: Claim::Null(Bytes::from_static(name.as_bytes())),
    };
    let request = client.request().putrootfh().lookup(b"vol").open(&open).getfh();
    let mut results = client.call(request).await.unwrap();
    let opened = results.opened().unwrap();
    (opened.stateid, results.handle().unwrap(), opened.delegation)
}

/// Opens it until there is a delegation: the server has to learn first that the client answers.
async fn delegated(client: &Client, name: &'static str) {
    loop {
        let (stateid, file, delegation) = opened_to_read(client, name).await;
        client.call(client.request().putfh(&file).close(stateid)).await.unwrap();
        if matches!(delegation, Delegation::Read(..)) {
            return;
        }
    }
}

#[test]
fn clients_that_want_each_others_delegated_files_get_them_at_once() {
    run(async {
        let server = start().await;
        let (one, two) = (server.files("one").await, server.files("two").await);
        for name in ["/vol/a", "/vol/b"] {
            one.write_file(name, Bytes::from_static(b"data")).await.unwrap();
        }
        let mut told = one.client().notices();
        delegated(one.client(), "a").await;
        delegated(two.client(), "b").await;
        let remove = |files: &Files, name: &'static str| {
            let files = files.clone();
            spawn_local(async move { files.remove(name).await })
        };
        let removed = [remove(&one, "/vol/b"), remove(&two, "/vol/a")];
        for removed in removed {
            removed.await.unwrap().unwrap();
        }
        assert!(matches!(told.recv().await, Ok(Notice::Recall(..))));
        for files in [&one, &two] {
            let statistics = files.client().statistics().await.unwrap();
            assert_eq!((statistics.delayed, statistics.callbacks), (0, 2), "{statistics:?}");
        }
    });
}

/// Clients read and write the same few files while boxes change: nobody sees an error, and everybody what was written last.
#[test]
fn delegations_and_takeovers_go_together() {
    run(async {
        let mut server = start().await;
        let names = ["a", "b", "c"];
        let all = [server.files("one").await, server.files("two").await, server.files("three").await];
        for name in names {
            all[0].write_file(&format!("/vol/{name}"), Bytes::from_static(b"00000000")).await.unwrap();
        }
        let (progress, mut done) = watch::channel(0);
        let progress = Rc::new(progress);
        let mut work = Vec::new();
        for (number, files) in all.iter().cloned().enumerate() {
            let progress = Rc::clone(&progress);
            work.push(spawn_local(async move {
                for round in 0..60 {
                    let name = names[(round + number) % names.len()];
                    if (round + number) % 5 == 0 {
                        let data = Bytes::from(format!("{number:02}{round:06}"));
                        files.write_file(&format!("/vol/{name}"), data).await.unwrap();
                    } else {
                        let (stateid, file, delegation) = opened_to_read(files.client(), name).await;
                        let by = match delegation {
                            Delegation::Read(delegation, _) if round % 2 == 0 => delegation,
                            _ => stateid,
                        };
                        let read = files.client().request().putfh(&file).read(by, 0, 8);
                        match files.client().call(read).await {
                            Ok(mut results) => assert!([0, 8].contains(&results.read().unwrap().1.len())),
                            // Given back in between.
                            Err(error) => {
                                assert!(by != stateid && error.status() == Some(Status::BadStateid), "{error}")
                            }
                        }
                        files.client().call(files.client().request().putfh(&file).close(stateid)).await.unwrap();
                    }
                    progress.send_modify(|rounds| *rounds += 1);
                }
            }));
        }
        for at in [50, 100] {
            done.wait_for(|rounds| *rounds >= at).await.unwrap();
            server = server.take_over().await;
        }
        for work in work {
            work.await.unwrap();
        }
        for name in names {
            let path = format!("/vol/{name}");
            let content = all[0].read_file(&path).await.unwrap();
            assert_eq!((content.len(), &all[1].read_file(&path).await.unwrap()), (8, &content));
        }
    });
}

/// What is kept with a connection: counts those that were closed, and those that were left while they could be written to.
struct Counted {
    own: std::net::TcpStream,
    closed: Rc<Cell<u32>>,
    left: Rc<Cell<u32>>,
}

impl server::Held for Counted {
    fn closed(self: Box<Self>) {
        self.closed.set(self.closed.get() + 1);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let is_whole = (&self.own).write(b"?").is_ok();
        self.left.set(self.left.get() + u32::from(is_whole));
    }
}

#[test]
fn what_is_kept_hears_of_clients_that_leave_and_goes_before_connections_that_end_with_the_service() {
    run(async {
        let (closed, left) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let counts = (Rc::clone(&closed), Rc::clone(&left));
        let hold: server::Hold = Rc::new(move |stream| {
            let own = stream.as_fd().try_clone_to_owned()?.into();
            Ok(Box::new(Counted { own, closed: Rc::clone(&counts.0), left: Rc::clone(&counts.1) }))
        });
        let server = Primary::keeping(volume(), "127.0.0.1:0", hold).await;
        let stays = TcpStream::connect(server.address).await.unwrap();
        let leaves = TcpStream::connect(server.address).await.unwrap();
        drop(leaves);
        while closed.get() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((closed.get(), left.get()), (1, 0));
        server.stop.send(true).unwrap();
        assert_eq!(server.server.await.unwrap(), server::Ended::Stopped);
        assert_eq!((closed.get(), left.get()), (1, 1));
        drop(stays);
    });
}
