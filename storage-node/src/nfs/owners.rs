//! Names of users and groups for NFS, as the node's own name service has them (nsswitch), for `name@domain` in the attributes of
//! files. Owns what was found of late, and looks up the rest on other threads: a directory server that hangs holds up those
//! requests that need it, for a moment, and nobody else.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{LocalBoxFuture, join_all};
use gateway_nfs::service::names::OwnerNames;
use gateway_nfs::v4::owner::{OwnerKind, Owners};
use nix::unistd::{Gid, Group, Uid, User};
use tokio::sync::Semaphore;
use tracing::warn;

/// What is remembered of a service; of more, what ends first is forgotten.
const FOUND_MAX: usize = 8_192;
/// What is looked up for one group of operations; the rest comes with its next attempt.
const MISSING_MAX: usize = 256;
/// Lookups at once, of the whole node; each has a thread while it lasts.
const LOOKUPS_MAX: usize = 8;
/// How long what was found holds.
const FOUND_FOR: Duration = Duration::from_secs(600);
/// How long it holds that there is no such name, or that it could not be found out.
const NOT_FOUND_FOR: Duration = Duration::from_secs(60);
/// How long a request waits for its names.
const PATIENCE: Duration = Duration::from_secs(3);
/// A longer name is none.
const NAME_BYTES_MAX: usize = 256;

/// Something to be looked up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    Name(OwnerKind, u32),
    Id(OwnerKind, String),
}

/// What came out of it.
#[derive(Clone, Debug)]
enum Found {
    Name(Rc<str>),
    Id(u32),
    Nothing,
}

/// Asks the name service; may block for as long as it likes. Gives the name, or the number as digits. Errors: it could not be
/// found out.
type Ask = fn(&Question) -> Result<Option<String>, nix::Error>;

/// The names of a service.
#[derive(Debug)]
pub(super) struct NameService {
    domain: String,
    ask: Ask,
    lookups: Arc<Semaphore>,
    found: RefCell<BTreeMap<Question, (Found, Instant)>>,
    missing: RefCell<BTreeSet<Question>>,
    is_missing: Cell<bool>,
}

/// The places of lookups that the services of a node share.
#[derive(Clone, Debug)]
pub struct Lookups(Arc<Semaphore>);

impl Default for Lookups {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKUPS_MAX)))
    }
}

impl NameService {
    pub(super) fn new(domain: String, lookups: &Lookups) -> Self {
        Self::asking(domain, lookups, ask)
    }

    fn asking(domain: String, Lookups(lookups): &Lookups, ask: Ask) -> Self {
        let (found, missing) = (RefCell::default(), RefCell::default());
        Self { domain, ask, lookups: Arc::clone(lookups), found, missing, is_missing: Cell::new(false) }
    }

    /// What is known; notes what is not.
    fn known(&self, question: Question) -> Found {
        if let Some((found, until)) = self.found.borrow().get(&question)
            && *until > Instant::now()
        {
            return found.clone();
        }
        self.is_missing.set(true);
        let mut missing = self.missing.borrow_mut();
        if missing.len() < MISSING_MAX {
            missing.insert(question);
        }
        Found::Nothing
    }

    fn remember(&self, question: Question, found: Found) {
        let now = Instant::now();
        let holds = if matches!(found, Found::Nothing) { NOT_FOUND_FOR } else { FOUND_FOR };
        let mut all = self.found.borrow_mut();
        if all.len() >= FOUND_MAX && !all.contains_key(&question) {
            all.retain(|_, (_, until)| *until > now);
            let first = all.iter().min_by_key(|(_, (_, until))| *until).map(|(question, _)| question.clone());
            if let Some(first) = first.filter(|_| all.len() >= FOUND_MAX) {
                all.remove(&first);
            }
        }
        all.insert(question, (found, now + holds));
    }

    async fn look_up(&self, question: Question) {
        let ask = self.ask;
        let asked = question.clone();
        let asking = async {
            let place = Arc::clone(&self.lookups).acquire_owned().await.ok()?;
            let asking = tokio::task::spawn_blocking(move || {
                // Held until the thread is free again, also when nobody waits for it any more.
                let _place = place;
                ask(&asked)
            });
            asking.await.ok()
        };
        let answer = match tokio::time::timeout(PATIENCE, asking).await {
            Ok(Some(Ok(answer))) => answer,
            Ok(Some(Err(why))) => {
                warn!("NFS: the name service cannot tell about {question:?}: {why}");
                None
            }
            Ok(None) | Err(_) => {
                warn!("NFS: the name service does not answer about {question:?}");
                None
            }
        };
        let found = match (&question, answer) {
            (Question::Name(..), Some(name)) if is_fit(&name) => Found::Name(format!("{name}@{}", self.domain).into()),
            (Question::Id(..), Some(id)) => id.parse().map_or(Found::Nothing, Found::Id),
            _ => Found::Nothing,
        };
        self.remember(question, found);
    }
}

/// A name that means the same when it comes back.
fn is_fit(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains('@') && !name.chars().any(char::is_control)
}

impl Owners for NameService {
    fn domain(&self) -> Option<&str> {
        Some(&self.domain)
    }

    fn name_of(&self, kind: OwnerKind, id: u32) -> Option<Rc<str>> {
        match self.known(Question::Name(kind, id)) {
            Found::Name(name) => Some(name),
            Found::Id(_) | Found::Nothing => None,
        }
    }

    fn id_of(&self, kind: OwnerKind, name: &str) -> Option<u32> {
        if !is_fit(name) {
            return None;
        }
        match self.known(Question::Id(kind, name.to_owned())) {
            Found::Id(id) => Some(id),
            Found::Name(_) | Found::Nothing => None,
        }
    }

    fn begin(&self) {
        self.is_missing.set(false);
        self.missing.borrow_mut().clear();
    }

    fn is_missing(&self) -> bool {
        self.is_missing.get()
    }
}

impl OwnerNames for NameService {
    fn as_known(&self) -> &dyn Owners {
        self
    }

    fn find(&self) -> LocalBoxFuture<'_, ()> {
        let missing = std::mem::take(&mut *self.missing.borrow_mut());
        Box::pin(async move {
            join_all(missing.into_iter().map(|question| self.look_up(question))).await;
        })
    }
}

/// By getpwuid_r, getpwnam_r and their like for groups.
fn ask(question: &Question) -> Result<Option<String>, nix::Error> {
    Ok(match question {
        Question::Name(OwnerKind::User, id) => User::from_uid(Uid::from_raw(*id))?.map(|user| user.name),
        Question::Name(OwnerKind::Group, id) => Group::from_gid(Gid::from_raw(*id))?.map(|group| group.name),
        Question::Id(OwnerKind::User, name) => User::from_name(name)?.map(|user| user.uid.to_string()),
        Question::Id(OwnerKind::Group, name) => Group::from_name(name)?.map(|group| group.gid.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn root_has_its_name_and_the_name_its_number() {
        run(async {
            let names = NameService::new("example.org".into(), &Lookups::default());
            names.begin();
            assert_eq!(names.name_of(OwnerKind::User, 0), None);
            assert_eq!(names.id_of(OwnerKind::Group, "root"), None);
            assert!(names.is_missing(), "not known yet");
            names.find().await;
            names.begin();
            assert_eq!(names.name_of(OwnerKind::User, 0).as_deref(), Some("root@example.org"));
            assert_eq!(names.id_of(OwnerKind::Group, "root"), Some(0));
            assert!(!names.is_missing());
        });
    }

    #[test]
    fn who_has_no_name_is_asked_about_once() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        fn nobody(_: &Question) -> Result<Option<String>, nix::Error> {
            ASKED.fetch_add(1, Ordering::Relaxed);
            Ok(None)
        }
        run(async {
            let names = NameService::asking("d".into(), &Lookups::default(), nobody);
            for _ in 0..3 {
                names.begin();
                assert_eq!(names.name_of(OwnerKind::User, 4_000_000), None);
                names.find().await;
            }
            assert_eq!(ASKED.load(Ordering::Relaxed), 1);
            assert!(!names.is_missing());
            assert_eq!(names.id_of(OwnerKind::User, "a@b"), None);
            assert!(!names.is_missing(), "no name is ever so");
        });
    }

    #[test]
    fn names_that_would_not_come_back_are_not_told() {
        fn awkward(_: &Question) -> Result<Option<String>, nix::Error> {
            Ok(Some("DOMAIN@ann".into()))
        }
        run(async {
            let names = NameService::asking("d".into(), &Lookups::default(), awkward);
            names.begin();
            names.name_of(OwnerKind::User, 5);
            names.find().await;
            assert_eq!(names.name_of(OwnerKind::User, 5), None, "its number is told");
        });
    }

    #[test]
    fn what_is_remembered_and_missing_is_bounded() {
        let names = NameService::asking("d".into(), &Lookups::default(), |_| Ok(None));
        for id in 0..FOUND_MAX as u32 + 10 {
            names.remember(Question::Name(OwnerKind::User, id), Found::Nothing);
        }
        assert_eq!(names.found.borrow().len(), FOUND_MAX);
        for id in 1_000_000..1_001_000 {
            names.name_of(OwnerKind::User, id);
        }
        assert_eq!(names.missing.borrow().len(), MISSING_MAX);
    }

    #[test]
    fn a_name_service_that_hangs_is_waited_for_in_vain_once() {
        static GATE: Mutex<()> = Mutex::new(());
        fn hangs(_: &Question) -> Result<Option<String>, nix::Error> {
            drop(GATE.lock());
            Ok(Some("late".into()))
        }
        let closed = GATE.lock();
        run(async {
            let names = NameService::asking("d".into(), &Lookups::default(), hangs);
            names.begin();
            names.name_of(OwnerKind::User, 5);
            let began = Instant::now();
            names.find().await;
            assert!(began.elapsed() >= PATIENCE);
            names.begin();
            assert_eq!(names.name_of(OwnerKind::User, 5), None);
            assert!(!names.is_missing(), "for a while it is not asked about again");
            // The runtime waits for its threads.
            drop(closed);
        });
    }
}
