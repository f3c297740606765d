//! Owners by name, where the service has a domain: names that are not known yet are looked up before anything is answered or
//! changed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use gateway_nfs::service::names::OwnerNames;
use gateway_nfs::v4::owner::{OwnerKind, Owners};

use crate::world::{Client, SEQUENCE_BYTES, begin, make_directory, operation, put_handle, run, volume};

const BAD_OWNER: u32 = 10_039;

/// Ann is 7, and that is known once it was looked up.
#[derive(Debug, Default)]
struct Names {
    known: RefCell<BTreeSet<String>>,
    asked: RefCell<BTreeSet<String>>,
    lookups: Rc<Cell<usize>>,
}

impl Names {
    fn know(&self, what: String) -> bool {
        let is_known = self.known.borrow().contains(&what);
        if !is_known {
            self.asked.borrow_mut().insert(what);
        }
        is_known
    }
}

impl Owners for Names {
    fn domain(&self) -> Option<&str> {
        Some("example.org")
    }

    fn name_of(&self, kind: OwnerKind, id: u32) -> Option<Rc<str>> {
        let is_ann = self.know(format!("{kind:?} {id}")) && kind == OwnerKind::User && id == 7;
        is_ann.then(|| "ann@example.org".into())
    }

    fn id_of(&self, kind: OwnerKind, name: &str) -> Option<u32> {
        (self.know(format!("{kind:?} {name}")) && kind == OwnerKind::User && name == "ann").then_some(7)
    }

    fn begin(&self) {
        self.asked.borrow_mut().clear();
    }

    fn is_missing(&self) -> bool {
        !self.asked.borrow().is_empty()
    }
}

impl OwnerNames for Names {
    fn as_known(&self) -> &dyn Owners {
        self
    }

    fn find(&self) -> LocalBoxFuture<'_, ()> {
        async {
            tokio::task::yield_now().await;
            self.lookups.set(self.lookups.get() + 1);
            self.known.borrow_mut().append(&mut self.asked.borrow_mut());
        }
        .boxed_local()
    }
}

/// SETATTR of the owner alone, without a stateid.
fn set_owner(owner: &str) -> Vec<u8> {
    operation(34, |out| {
        out.fixed(&[0; 16]);
        out.u32(2);
        out.u32(0);
        out.u32(1 << (36 - 32));
        let padded = owner.len().next_multiple_of(4);
        out.u32(4 + padded as u32);
        out.opaque(owner.as_bytes());
    })
}

fn get_owners() -> Vec<u8> {
    operation(9, |out| {
        out.u32(2);
        out.u32(0);
        out.u32(1 << (36 - 32) | 1 << (37 - 32));
    })
}

async fn owners(client: &mut Client, file: &[u8]) -> (String, String) {
    let answer = client.call(&[put_handle(file), get_owners()]).await;
    assert_eq!(answer.status, 0);
    let mut body = answer.body(&[SEQUENCE_BYTES, 0]);
    for _ in 0..4 {
        body.u32().unwrap();
    }
    let mut text = || String::from_utf8(body.opaque(100).unwrap().to_vec()).unwrap();
    (text(), text())
}

#[test]
fn owners_are_set_and_told_by_name_and_looked_up_once() {
    run(async {
        let names = Names::default();
        let lookups = Rc::clone(&names.lookups);
        let service = Rc::new(begin(&volume()).await.with_owners(Box::new(names)));
        let mut client = Client::new(&service, "one").await;
        let root = client.root().await;
        let set = [put_handle(&root), make_directory("a"), set_owner("ann@example.org")];
        let done = client.call(&set).await;
        assert_eq!((done.status, lookups.get()), (0, 1), "the directory is made once, with her as its owner");
        assert_eq!(client.again(&set).await.whole, done.whole);
        let found = client.call(&[put_handle(&root), crate::world::lookup("a"), crate::world::get_handle()]).await;
        let directory = found.body(&[SEQUENCE_BYTES, 0, 0]).opaque(128).unwrap();
        assert_eq!(owners(&mut client, &directory).await, ("ann@example.org".into(), "0".into()));
        assert_eq!(lookups.get(), 2, "user and group together");
        assert_eq!(owners(&mut client, &directory).await.0, "ann@example.org");
        assert_eq!(lookups.get(), 2);
        for (owner, status) in [("bob@example.org", BAD_OWNER), ("ann@example.com", BAD_OWNER), ("8", 0)] {
            assert_eq!(client.call(&[put_handle(&directory), set_owner(owner)]).await.status, status, "{owner}");
        }
        assert_eq!(owners(&mut client, &directory).await.0, "8", "who has no name goes as a number");
    });
}
