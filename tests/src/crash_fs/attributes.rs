//! Operations on what an inode says of its file: modes, owners and extended attributes.

use anyhow::{Context, Result};
use block_device::BlockDevice;
use filesystem::InodeNumber;
use filesystem::engine::AttributeChanges;
use filesystem::layout::timestamp::Timestamp;
use filesystem::layout::xattr::SetMode;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::model::Node;
use super::names::{Outcome, unless_refused};
use super::work::Work;

/// Names that attributes have; few, so that they are replaced.
const NAMES: u32 = 4;

/// One drawn operation on an inode's attributes.
pub(super) async fn operate<D: BlockDevice>(
    work: &Work<'_, D>,
    rng: &mut ChaCha8Rng,
    inode: u32,
    now: Timestamp,
) -> Outcome {
    match rng.random_range(0..5) {
        0 | 1 => set_mode_and_owner(work, rng, inode, now).await,
        2 | 3 => set(work, rng, inode, now).await,
        _ => remove(work, rng, inode, now).await,
    }
}

/// The inode of an operation that has ended is another one now.
fn changed(node: Option<&Node>, change: impl FnOnce(&mut Node)) -> Result<Node> {
    let mut node = node.context("it had lost its last name")?.clone();
    change(&mut node);
    Ok(node)
}

async fn set_mode_and_owner<D: BlockDevice>(
    work: &Work<'_, D>,
    rng: &mut ChaCha8Rng,
    inode: u32,
    now: Timestamp,
) -> Outcome {
    let (mode, user, group) = (rng.random_range(0o400..0o1000), rng.random_range(0..100_000), rng.random_range(0..9));
    let changes = AttributeChanges { mode: Some(mode), user: Some(user), group: Some(group), ..Default::default() };
    // Whoever sets them has found it by a name.
    let done = work
        .mounted
        .run(|handle| {
            handle.live(InodeNumber(inode))?;
            handle.set_attributes(InodeNumber(inode), &changes, now)
        })
        .await;
    let Some(done) = unless_refused(done)? else { return Ok(None) };
    let mut model = work.model.borrow_mut();
    let node = changed(model.tree().nodes.get(&inode), |node| {
        node.mode = node.mode & !0o7777 | mode;
        (node.user, node.group) = (user, group);
    })?;
    model.set_node(inode, Some(node));
    drop(model);
    work.end_of_operation(done.transaction)
}

async fn set<D: BlockDevice>(work: &Work<'_, D>, rng: &mut ChaCha8Rng, inode: u32, now: Timestamp) -> Outcome {
    let name = format!("user.{}", rng.random_range(0..NAMES)).into_bytes();
    let length = [4, 30, 200, 600][rng.random_range(0..4)];
    // Few values, so that files share blocks of attributes.
    let value = vec![rng.random_range(b'a'..b'd'); length];
    let done = work
        .mounted
        .run(|handle| {
            handle.live(InodeNumber(inode))?;
            handle.set_attribute(InodeNumber(inode), (&name, &value), SetMode::Any, now)
        })
        .await;
    let Some(done) = unless_refused(done)? else { return Ok(None) };
    let mut model = work.model.borrow_mut();
    let node = changed(model.tree().nodes.get(&inode), |node| drop(node.attributes.insert(name, value)))?;
    model.set_node(inode, Some(node));
    drop(model);
    work.end_of_operation(done.transaction)
}

async fn remove<D: BlockDevice>(work: &Work<'_, D>, rng: &mut ChaCha8Rng, inode: u32, now: Timestamp) -> Outcome {
    let name = format!("user.{}", rng.random_range(0..NAMES)).into_bytes();
    let done = work
        .mounted
        .run(|handle| {
            handle.live(InodeNumber(inode))?;
            handle.remove_attribute(InodeNumber(inode), &name, now)
        })
        .await;
    let Some(done) = unless_refused(done)? else { return Ok(None) };
    let mut model = work.model.borrow_mut();
    let node = changed(model.tree().nodes.get(&inode), |node| drop(node.attributes.remove(&name)))?;
    model.set_node(inode, Some(node));
    drop(model);
    work.end_of_operation(done.transaction)
}
