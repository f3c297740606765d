//! Exactly once, seen from the wire: our own client changes names at random, loses replies, and sends requests again as they were.
//! No change is made twice, and every reply that comes again is the first one byte for byte, also from the box that has taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use filesystem::layout::file_kind::FileKind;
use gateway_nfs::client::Handle;
use gateway_nfs::client::arguments::{Channel, Claim, Creation, NewKind, Open};
use gateway_nfs::client::attributes::{AttributesToSet, OF_A_FILE};
use gateway_nfs::client::connection::Options;
use gateway_nfs::client::number::{ACCESS_BOTH, DENY_NONE, WANT_NO_DELEGATION};
use gateway_nfs::client::request::Request;
use gateway_nfs::client::result::Results;
use gateway_nfs::client::session::Identity;
use gateway_nfs::rpc::auth::SysCredential;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::locks::PORT;
use super::rig::VOLUME;
use super::wire::{Exchange, Wire};
use crate::e2e::eventually;
use crate::e2e::network::Network;

const MINOR: u32 = 2;
/// Names that may be there, and those that are drawn from.
const NAMES: u32 = 60;
const ENTRIES_BYTES: u32 = 64 << 10;
/// How long one operation and its repetitions may keep the one who wants them to pause.
const PAUSE_LIMIT: Duration = Duration::from_secs(120);
/// Between two looks of one who pauses.
const LOOK: Duration = Duration::from_millis(2);

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Changes of names.
    pub operations: u64,
    /// Replies that came again and were compared.
    pub replays: u64,
    /// Of these, to a request that one box has answered and the next was asked again.
    pub replays_after_takeover: u64,
    /// Replies that were never read.
    pub lost: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Somebody wants that nothing is under way.
    pause: AtomicBool,
    paused: AtomicBool,
    done: AtomicU64,
}

/// The client, in a thread of its own.
pub struct Replays {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Figures, String>>>,
}

impl Replays {
    /// Begins to change names in a directory of its own, and goes on until it is told to end, for so many operations at least.
    pub fn start(network: &Network, seed: u64, operations: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let (network, of_thread) = (network.clone(), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let mut work = Work::begin(network, seed)?;
            let outcome = work.run(operations, &of_thread);
            outcome.map_err(|why| format!("after {:?}: {why}", work.figures))?;
            work.verify()?;
            Ok(work.figures)
        });
        Self { shared, thread: Some(thread) }
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.shared.done.load(Ordering::Acquire)
    }

    /// Returns when its newest request is answered and nothing is under way: what happens until [`Self::go_on`] happens between
    /// two requests, and the older one is the first to be sent after it.
    pub fn pause(&self) {
        self.shared.pause.store(true, Ordering::Release);
        eventually(PAUSE_LIMIT, "our client's request is answered", || {
            self.is_finished() || self.shared.paused.load(Ordering::Acquire)
        });
    }

    /// After [`Self::pause`].
    pub fn go_on(&self) {
        self.shared.pause.store(false, Ordering::Release);
    }

    /// Ends it once it has done enough, and says what was done or what was wrong.
    pub fn finish(mut self) -> Result<Figures, String> {
        self.shared.stop.store(true, Ordering::Release);
        self.go_on();
        let thread = self.thread.take().ok_or("it was finished already")?;
        thread.join().map_err(|_| "our client panicked".to_owned())?
    }
}

impl Drop for Replays {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.pause.store(false, Ordering::Release);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    /// With a number that all names of one file share.
    File(u64),
}

struct Work {
    wire: Wire,
    rng: ChaCha8Rng,
    directory: Handle,
    place: String,
    names: BTreeMap<String, Kind>,
    newest: Option<Exchange>,
    figures: Figures,
}

impl Work {
    fn begin(network: Network, seed: u64) -> Result<Self, String> {
        let address = SocketAddr::new(network.floating_ip(), PORT);
        let owner = Bytes::from(format!("replay-{seed}"));
        let credential = SysCredential { machine: owner.clone(), ..SysCredential::default() };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let fore = Channel { requests_max: 4, ..Options::default().channel };
        let identity = Identity { owner, verifier: rng.random(), credential, minor: MINOR, fore };
        let mut wire = Wire::new(network, address, identity, rng.random());
        let place = format!("replay-{seed}");
        let make = Request::new(MINOR).putrootfh().lookup(VOLUME.as_bytes());
        let make = make.create(&NewKind::Directory, place.as_bytes(), &AttributesToSet::mode(0o755)).getfh();
        let (reply, _) = wire.call(make, false)?;
        let mut results = reply.into_results().map_err(|failure| format!("making {place}: {failure}"))?;
        let directory = results.handle().map_err(|error| error.to_string())?;
        let (names, figures) = (BTreeMap::new(), Figures::default());
        Ok(Self { wire, rng, directory, place, names, newest: None, figures })
    }

    fn run(&mut self, operations: u64, shared: &Shared) -> Result<(), String> {
        while self.figures.operations < operations || !shared.stop.load(Ordering::Acquire) {
            self.step()?;
            shared.done.store(self.figures.operations, Ordering::Release);
            if shared.pause.load(Ordering::Acquire) {
                shared.paused.store(true, Ordering::Release);
                while shared.pause.load(Ordering::Acquire) {
                    std::thread::sleep(LOOK);
                }
                shared.paused.store(false, Ordering::Release);
                // The connection is that to the box from before, if it is still there: its end is noticed in time.
                if self.rng.random() {
                    self.wire.disconnect();
                }
                self.repeat(1)?;
                self.figures.replays_after_takeover += 1;
            }
        }
        Ok(())
    }

    /// One change, and what is done with its request afterwards.
    fn step(&mut self) -> Result<(), String> {
        let crowded = self.names.len() > NAMES as usize;
        match self.rng.random_range(0..100) {
            draw if draw < 20 && !crowded || self.names.is_empty() => {
                let name = self.fresh();
                let make = self.here().create(&NewKind::Directory, name.as_bytes(), &AttributesToSet::mode(0o755));
                self.change("mkdir", &name, make.getfh())?;
                self.names.insert(name, Kind::Directory);
            }
            20..40 if !crowded => self.create()?,
            40..55 if !crowded => {
                let Some(name) = self.pick(false) else { return Ok(()) };
                let other = self.fresh();
                let link = self.here().lookup(name.as_bytes()).savefh().putfh(&self.directory).link(other.as_bytes());
                self.change("link", &other, link)?;
                self.names.insert(other, self.names[&name]);
            }
            0..80 => {
                let is_directory = self.rng.random();
                let Some(name) = self.pick(is_directory) else { return Ok(()) };
                let other = self.fresh();
                let rename = self.here().savefh().rename(name.as_bytes(), other.as_bytes());
                self.change("rename", &name, rename)?;
                let kind = self.names.remove(&name).ok_or("the name was picked")?;
                self.names.insert(other, kind);
            }
            _ => {
                let is_directory = self.rng.random();
                let Some(name) = self.pick(is_directory) else { return Ok(()) };
                let remove = self.here().remove(name.as_bytes());
                self.change("remove", &name, remove)?;
                self.names.remove(&name);
            }
        }
        Ok(())
    }

    /// A file that must be new, by one of the ways to say so; and its close.
    fn create(&mut self) -> Result<(), String> {
        let name = self.fresh();
        let attributes = AttributesToSet::mode(0o644);
        let creation = match self.rng.random_range(0..3) {
            0 => Creation::Guarded(attributes),
            1 => Creation::Exclusive(self.rng.random()),
            _ => Creation::ExclusiveWith(self.rng.random(), attributes),
        };
        let open = Open {
            access: ACCESS_BOTH | WANT_NO_DELEGATION,
            deny: DENY_NONE,
            owner: Bytes::from_static(b"replay"),
            creation,
            claim: Claim::Null(Bytes::copy_from_slice(name.as_bytes())),
        };
        let request = self.here().open(&open).getfh();
        let mut results = self.change("exclusive create", &name, request)?;
        let opened = results.opened().map_err(|error| error.to_string())?;
        let handle = results.handle().map_err(|error| error.to_string())?;
        self.change("close", &name, Request::new(MINOR).putfh(&handle).close(opened.stateid))?;
        self.names.insert(name, Kind::File(self.figures.operations));
        Ok(())
    }

    fn here(&self) -> Request {
        Request::new(MINOR).putfh(&self.directory)
    }

    /// A name that is free, and was perhaps in use before.
    fn fresh(&mut self) -> String {
        loop {
            let name = format!("r{}", self.rng.random_range(0..NAMES * 3));
            if !self.names.contains_key(&name) {
                return name;
            }
        }
    }

    fn pick(&mut self, is_directory: bool) -> Option<String> {
        let of_kind = |kind: &Kind| (*kind == Kind::Directory) == is_directory;
        let fitting: Vec<&String> = self.names.iter().filter(|(_, kind)| of_kind(kind)).map(|(name, _)| name).collect();
        if fitting.is_empty() { None } else { Some(fitting[self.rng.random_range(0..fitting.len())].clone()) }
    }

    /// Sends a change, whose reply may be lost the first time, and mostly sends it again.
    fn change(&mut self, what: &str, name: &str, request: Request) -> Result<Results, String> {
        let is_lost = self.rng.random_range(0..20) == 0;
        self.figures.lost += u64::from(is_lost);
        let (reply, exchange) = self.wire.call(request, is_lost)?;
        let results = reply.into_results().map_err(|failure| format!("{what} {name}: {failure}"))?;
        self.newest = Some(exchange);
        self.figures.operations += 1;
        match self.rng.random_range(0..10) {
            0 => self.repeat(1)?,
            1 => self.repeat(2)?,
            2 => {
                self.wire.disconnect();
                self.repeat(1)?;
            }
            _ => {}
        }
        Ok(results)
    }

    /// Sends the newest request again as it was; each reply must be the first one.
    fn repeat(&mut self, times: usize) -> Result<(), String> {
        let Some(Exchange { request, reply }) = self.newest.clone() else { return Ok(()) };
        for again in self.wire.replay(&request, times)? {
            self.figures.replays += 1;
            if again != reply {
                return Err(format!("another reply than before:\n{reply:02x?}\n{again:02x?}\nto\n{request:02x?}"));
            }
        }
        Ok(())
    }

    /// The directory holds what it must, and the server has never forgotten the client.
    fn verify(&mut self) -> Result<(), String> {
        let found = self.list()?;
        let kinds: BTreeMap<&String, bool> = found.iter().map(|(name, (kind, _))| (name, *kind)).collect();
        let expected: BTreeMap<&String, bool> =
            self.names.iter().map(|(name, kind)| (name, *kind == Kind::Directory)).collect();
        if kinds != expected {
            return Err(format!("{} holds {kinds:?}, not {expected:?}", self.place));
        }
        let mut files: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (name, kind) in &self.names {
            if let (Kind::File(file), Some((_, identity))) = (kind, found.get(name)) {
                files.entry(*file).or_default().insert(*identity);
            }
        }
        let distinct: BTreeSet<u64> = files.values().flatten().copied().collect();
        if files.values().any(|identities| identities.len() != 1) || distinct.len() != files.len() {
            return Err(format!("in {} names of one file are not of one file: {files:?}", self.place));
        }
        let statistics = self.wire.session().statistics();
        match (statistics.clients, statistics.sessions) {
            (1, 1) => Ok(()),
            _ => Err(format!("the server forgot its client: {statistics:?}")),
        }
    }

    /// Names with whether they are directories, and their identity.
    fn list(&mut self) -> Result<BTreeMap<String, (bool, u64)>, String> {
        let mut found = BTreeMap::new();
        let (mut cookie, mut verifier) = (0, [0; 8]);
        loop {
            let request = self.here().readdir(cookie, verifier, ENTRIES_BYTES, OF_A_FILE);
            let (reply, _) = self.wire.call(request, false)?;
            let mut results = reply.into_results().map_err(|failure| format!("listing {}: {failure}", self.place))?;
            let part = results.entries().map_err(|error| error.to_string())?;
            verifier = part.verifier;
            for entry in part.entries {
                cookie = entry.cookie;
                let attributes = entry.attributes.read().map_err(|error| error.to_string())?;
                let is_directory = attributes.kind == Some(FileKind::Directory);
                let identity = attributes.fileid.unwrap_or_default();
                found.insert(String::from_utf8_lossy(&entry.name).into_owned(), (is_directory, identity));
            }
            if part.at_end {
                return Ok(found);
            }
        }
    }
}
