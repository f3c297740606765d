//! Operations on names: drawn, done, and entered in the model when they have come to their ends.
//!
//! Several may be in flight. The engine's results are as if one after another, in the order in which they end; the model is
//! told in that order, and says so if a result cannot be.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use block_device::BlockDevice;
use filesystem::engine::{Created, Failure, NewFile, Place, Rename};
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::timestamp::Timestamp;
use filesystem::{InodeNumber, TransactionId};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::attributes;
use super::model::{self, Model, Node};
use super::work::Work;

/// Names longer than this make directories of many blocks out of few names.
const LONG_NAME: usize = 200;

/// What one operation came to: the transaction that makes it durable, if it changed something.
pub(super) type Outcome = Result<Option<TransactionId>>;

/// One drawn operation on names.
pub(super) async fn operate<D: BlockDevice>(work: &Work<'_, D>, rng: &mut ChaCha8Rng, number: usize) -> Outcome {
    let now = Timestamp { seconds: 1_700_000_000 + number as i64, nanoseconds: 7 };
    let fresh = fresh_place(work, rng, number);
    let existing = existing_place(work, rng);
    let removes = if work.is_full() { 6 } else { 3 };
    let Some((place, inode)) = existing else { return create(work, rng, fresh, now).await };
    match rng.random_range(0..9 + removes) {
        0..=3 => create(work, rng, fresh, now).await,
        4 => link(work, inode, fresh, now).await,
        5 | 6 => rename(work, rng, place, fresh, now).await,
        7 => group(work, place, fresh, now).await,
        8 => attributes::operate(work, rng, inode, now).await,
        _ => remove(work, place, now).await,
    }
}

fn fresh_place<D: BlockDevice>(work: &Work<'_, D>, rng: &mut ChaCha8Rng, number: usize) -> model::Place {
    let model = work.model.borrow();
    let directories = model.tree().directories();
    // A crowded directory gets an index, and blocks are split.
    let crowded = work.is_crowded && rng.random_range(0..5) > 0;
    let directory = if crowded { directories.first() } else { directories.choose(rng) };
    let length = if crowded || rng.random_range(0..4) == 0 { LONG_NAME } else { 6 };
    (directory.copied().unwrap_or(2), format!("{number:0length$}").into_bytes())
}

fn existing_place<D: BlockDevice>(work: &Work<'_, D>, rng: &mut ChaCha8Rng) -> Option<(model::Place, u32)> {
    let model = work.model.borrow();
    let names: Vec<_> = model.tree().names.iter().filter(|((_, name), _)| name != b"lost+found").collect();
    names.choose(rng).map(|(place, inode)| ((*place).clone(), **inode))
}

/// What is refused, or has no room, has not happened.
pub(super) fn unless_refused<T>(result: Result<T, Failure>) -> Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(Failure::Refused(_) | Failure::NoSpace) => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

fn place(at: &model::Place) -> Place<'_> {
    Place { directory: InodeNumber(at.0), name: &at.1 }
}

async fn create<D: BlockDevice>(work: &Work<'_, D>, rng: &mut ChaCha8Rng, at: model::Place, now: Timestamp) -> Outcome {
    let kinds = [FileKind::Regular, FileKind::Regular, FileKind::Directory, FileKind::Symlink, FileKind::Fifo];
    let kind = *kinds.choose(rng).context("there are some")?;
    let target = match kind {
        FileKind::Symlink => vec![b'x'; *[3, 59, 60, 500].choose(rng).context("there are some")?],
        _ => Vec::new(),
    };
    let new = NewFile { mode: Mode::new(kind, 0o755), user: 5, group: 6, device: None, target: &target };
    let done = work.mounted.run(|handle| handle.create(place(&at), &new, now)).await;
    let Some(done) = unless_refused(done)? else { return Ok(None) };
    created(&mut work.model.borrow_mut(), at, done.value, &new)?;
    work.end_of_operation(done.transaction)
}

async fn link<D: BlockDevice>(work: &Work<'_, D>, inode: u32, at: model::Place, now: Timestamp) -> Outcome {
    let done = work.mounted.run(|handle| handle.link(InodeNumber(inode), place(&at), now)).await;
    let Some(done) = unless_refused(done)? else { return Ok(None) };
    let mut model = work.model.borrow_mut();
    add_links(&mut model, inode, 1)?;
    enter(&mut model, at, inode)?;
    drop(model);
    work.end_of_operation(done.transaction)
}

async fn remove<D: BlockDevice>(work: &Work<'_, D>, at: model::Place, now: Timestamp) -> Outcome {
    let is_directory = {
        let model = work.model.borrow();
        let inode = model.tree().names.get(&at).context("it was there a moment ago")?;
        model.tree().nodes.get(inode).is_some_and(Node::is_directory)
    };
    let done = work.mounted.run(|handle| handle.remove(place(&at), is_directory, now)).await;
    let Some(done) = unless_refused(done)? else { return Ok(None) };
    let (inode, orphan) = done.value;
    {
        let mut model = work.model.borrow_mut();
        ensure!(leave(&mut model, &at)? == inode.0, "the name named another inode");
        if is_directory {
            add_links(&mut model, at.0, -1)?;
        }
        ensure!(lose(&mut model, inode.0)? == orphan, "the last name of {} is gone, or is not", inode.0);
    }
    work.end_of_operation(done.transaction)
}

async fn rename<D: BlockDevice>(
    work: &Work<'_, D>,
    rng: &mut ChaCha8Rng,
    from: model::Place,
    fresh: model::Place,
    now: Timestamp,
) -> Outcome {
    let other = existing_place(work, rng).map_or_else(|| fresh.clone(), |(place, _)| place);
    let (to, how) = match rng.random_range(0..4) {
        0 => (fresh, Rename::NoReplace),
        1 => (fresh, Rename::Replace),
        2 => (other, Rename::Replace),
        _ => (other, Rename::Exchange),
    };
    let done = work.mounted.run(|handle| handle.rename(place(&from), place(&to), how, now)).await;
    let Some(done) = unless_refused(done)? else { return Ok(None) };
    renamed(&mut work.model.borrow_mut(), &from, &to, how, done.value)?;
    work.end_of_operation(done.transaction)
}

/// Several operations of which a loss of power leaves all or none: a directory, a file in it, something moved there.
async fn group<D: BlockDevice>(work: &Work<'_, D>, from: model::Place, at: model::Place, now: Timestamp) -> Outcome {
    let new = |kind| NewFile { mode: Mode::new(kind, 0o700), user: 1, group: 2, device: None, target: b"" };
    let (directory, file) = (new(FileKind::Directory), new(FileKind::Regular));
    let done = work
        .mounted
        .run(|handle| {
            let home = handle.create(place(&at), &directory, now)?;
            let inside = |name| Place { directory: home.inode, name };
            let made = handle.create(inside(b"made"), &file, now)?;
            handle.link(made.inode, inside(b"twice"), now)?;
            handle.rename(place(&from), inside(b"moved"), Rename::NoReplace, now)?;
            Ok((home, made))
        })
        .await;
    let Some(done) = unless_refused(done)? else { return Ok(None) };
    let (home, made) = done.value;
    let inside = |name: &[u8]| (home.inode.0, name.to_vec());
    {
        let mut model = work.model.borrow_mut();
        created(&mut model, at, home, &directory)?;
        created(&mut model, inside(b"made"), made, &file)?;
        add_links(&mut model, made.inode.0, 1)?;
        enter(&mut model, inside(b"twice"), made.inode.0)?;
        renamed(&mut model, &from, &inside(b"moved"), Rename::NoReplace, None)?;
    }
    work.end_of_operation(done.transaction)
}

fn created(model: &mut Model, at: model::Place, made: Created, new: &NewFile<'_>) -> Result<()> {
    let inode = made.inode.0;
    ensure!(!model.tree().nodes.contains_key(&inode), "inode {inode} was in use, and is taken for another file");
    let kind = new.mode.kind();
    let is_directory = kind == Some(FileKind::Directory);
    let is_short = kind == Some(FileKind::Symlink) && new.target.len() < 60;
    let node = Node {
        mode: new.mode.0,
        links: if is_directory { 2 } else { 1 },
        generation: made.generation,
        size: new.target.len() as u64,
        target: is_short.then(|| new.target.to_vec()),
        user: new.user,
        group: new.group,
        attributes: BTreeMap::new(),
    };
    model.set_node(inode, Some(node));
    if is_directory {
        add_links(model, at.0, 1)?;
    }
    enter(model, at, inode)
}

fn renamed(
    model: &mut Model,
    from: &model::Place,
    to: &model::Place,
    how: Rename,
    replaced: Option<(InodeNumber, bool)>,
) -> Result<()> {
    let named = |model: &Model, at| model.tree().names.get(at).copied();
    let inode = named(model, from).context("what was moved had no such name")?;
    let other = named(model, to);
    ensure!(how != Rename::NoReplace || other.is_none(), "a rename without replacing replaced something");
    ensure!(how != Rename::Exchange || other.is_some(), "a name was exchanged with none");
    if other == Some(inode) {
        return Ok(());
    }
    let is_directory = |model: &Model, inode: u32| model.tree().nodes.get(&inode).is_some_and(Node::is_directory);
    if is_directory(model, inode) {
        add_links(model, from.0, -1)?;
        add_links(model, to.0, 1)?;
    }
    if let Some(other) = other.filter(|other| is_directory(model, *other)) {
        add_links(model, to.0, -1)?;
        if how == Rename::Exchange && is_directory(model, other) {
            add_links(model, from.0, 1)?;
        }
    }
    match (how, other) {
        (Rename::Exchange, Some(other)) => model.set_name(from.clone(), Some(other)),
        (_, Some(other)) => {
            let orphan = lose(model, other)?;
            ensure!(replaced == Some((InodeNumber(other), orphan)), "it says that it replaced {replaced:?}");
            model.set_name(from.clone(), None);
        }
        (_, None) => model.set_name(from.clone(), None),
    }
    model.set_name(to.clone(), Some(inode));
    Ok(())
}

fn enter(model: &mut Model, at: model::Place, inode: u32) -> Result<()> {
    ensure!(!model.tree().names.contains_key(&at), "the name was there");
    ensure!(model.tree().nodes.get(&at.0).is_some_and(Node::is_directory), "it is no directory's");
    model.set_name(at, Some(inode));
    Ok(())
}

fn leave(model: &mut Model, at: &model::Place) -> Result<u32> {
    let inode = model.tree().names.get(at).copied().context("the name was not there")?;
    model.set_name(at.clone(), None);
    Ok(inode)
}

fn add_links(model: &mut Model, inode: u32, by: i16) -> Result<()> {
    let node = model.tree().nodes.get(&inode).context("it had lost its last name")?;
    let links = node.links.checked_add_signed(by).context("fewer links than none")?;
    let node = Node { links, ..node.clone() };
    model.set_node(inode, Some(node));
    Ok(())
}

/// An inode has a name fewer; true when it was the last.
fn lose(model: &mut Model, inode: u32) -> Result<bool> {
    let node = model.tree().nodes.get(&inode).context("it had lost its last name")?;
    if node.is_directory() || node.links == 1 {
        model.set_node(inode, None);
        return Ok(true);
    }
    add_links(model, inode, -1)?;
    Ok(false)
}
