//! The device against a model: a task stands in for the actor and keeps whole blocks, the model keeps bytes.

use std::future::Future;

use proto::EXTENT_BYTES;
use rand::{Rng, SeedableRng, rngs::StdRng};
use replication::event::PayloadId;

use super::*;
use crate::volume::payloads::{Payloads, merge};

const SIZE: u64 = 2 * EXTENT_BYTES;
const VOLUME: VolumeId = VolumeId(0x77);

/// Blocks as a replica would hold them, served from the inbox.
struct Blocks {
    content: Vec<u8>,
    payloads: Payloads,
    /// Requests taken, in order.
    taken: Vec<Request>,
    batches: Vec<Vec<Vec<BlockRange>>>,
}

impl Blocks {
    fn at(&mut self, range: BlockRange) -> &mut [u8] {
        let start = range.offset_bytes() as usize;
        &mut self.content[start..start + range.length_bytes() as usize]
    }

    fn serve(&mut self, op: OpId, request: Request) -> Answer {
        let id = PayloadId::Client(op);
        self.taken.push(request.clone());
        match request {
            Request::Read { range } => return Ok(Some(Bytes::copy_from_slice(self.at(range)))),
            Request::Write { range, kind: WriteKind::Data, coverage: Coverage::Whole, .. } => {
                let (data, sums) = self.payloads.blocks(id).expect("held with its checksums");
                assert_eq!(*sums, Salt::of(VOLUME).sums(range, data));
                let data = data.clone();
                assert_eq!(data.len() as u64, range.length_bytes(), "a whole write is exactly its range");
                self.at(range).copy_from_slice(&data);
            }
            Request::Write { range, kind: WriteKind::Data, coverage: Coverage::Partial, .. } => {
                let (skip, data) = self.payloads.partial(id).expect("held");
                let old = |edge: BlockRange, blocks: &mut Self| (edge.start, Bytes::copy_from_slice(blocks.at(edge)));
                let edges: Vec<_> =
                    cut::edge_blocks(range, skip, data.len()).into_iter().map(|e| old(e, self)).collect();
                let merged = merge(range, skip, &data, &edges);
                self.at(range).copy_from_slice(&merged);
            }
            Request::Write { range, .. } => self.at(range).fill(0),
            Request::WriteBatch { groups } => {
                let (data, sums) = self.payloads.blocks(id).expect("held with its checksums");
                let blocks = groups.iter().flatten().flat_map(|range| range.blocks()).zip(data.chunks(4096));
                assert!(blocks.zip(sums).all(|((block, data), sum)| Salt::of(VOLUME).sum(block, data) == *sum));
                let data = data.clone();
                let mut at = 0;
                for range in groups.iter().flatten() {
                    let part = data.slice(at..at + range.length_bytes() as usize);
                    at += part.len();
                    self.at(*range).copy_from_slice(&part);
                }
                assert_eq!(at, data.len(), "a batch's data is exactly its ranges");
                self.batches.push(groups);
            }
            Request::Flush | Request::Confirm => {}
        }
        self.payloads.release(id);
        Ok(None)
    }
}

fn shared() -> Rc<Shared> {
    let (_, cluster) = watch::channel(Arc::<ClusterState>::default());
    Rc::new(Shared::new(Rc::new(Inbox::default()), VOLUME, SIZE, cluster))
}

fn blocks() -> Blocks {
    let content = (0..SIZE as usize).map(|at| (at / 4096) as u8 ^ 0x5a).collect();
    Blocks { content, payloads: Payloads::default(), taken: Vec::new(), batches: Vec::new() }
}

/// Answers everything that the device asks for until `work` is done.
fn with_actor<T>(shared: &Rc<Shared>, blocks: &mut Blocks, work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = std::future::poll_fn(|cx| shared.inbox.poll_pushed(cx)) => while let Some(input) = shared.inbox.pop() {
                    let Input::Client { op, request, payload, open } = input else { panic!("only clients here") };
                    if let Some(held) = payload {
                        blocks.payloads.hold(PayloadId::Client(op), held);
                    }
                    open.end(blocks.serve(op, request));
                },
            }
        }
    })
}

#[test]
fn bytes_at_any_offset_are_those_of_the_model() {
    let (shared, mut blocks) = (shared(), blocks());
    let mut model = blocks.content.clone();
    let device = VolumeDevice::new(Rc::clone(&shared));
    let seed = 0x007a_6e64;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for step in 0..400 {
        let offset = random.random_range(0..SIZE);
        let most = if step % 40 == 0 { SIZE - offset } else { (SIZE - offset).min(20_000) };
        let length = random.random_range(0..=most);
        let run = offset as usize..(offset + length) as usize;
        let range = ByteRange { offset, length };
        match step % 5 {
            0 | 1 => {
                let data: Vec<u8> = (0..length).map(|_| random.random()).collect();
                model[run].copy_from_slice(&data);
                with_actor(&shared, &mut blocks, device.write(offset, data.into(), false)).expect("written");
            }
            2 => {
                model[run].fill(0);
                with_actor(&shared, &mut blocks, device.discard(range, false)).expect("discarded");
            }
            3 => {
                model[run].fill(0);
                with_actor(&shared, &mut blocks, device.write_zeroes(range, true, true)).expect("zeroed");
            }
            _ => {
                let read = with_actor(&shared, &mut blocks, device.read(range)).expect("read");
                assert!(read == model[run], "step {step}: {offset}+{length}");
            }
        }
        assert!(blocks.content == model, "step {step}: {offset}+{length}");
    }
}

#[test]
fn outside_the_device_nothing_is_asked_of_the_replica() {
    let (shared, mut blocks) = (shared(), blocks());
    let device = VolumeDevice::new(Rc::clone(&shared));
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 2)] {
        let range = ByteRange { offset, length };
        let error = with_actor(&shared, &mut blocks, device.read(range)).expect_err("refused");
        assert_eq!(error, BlockError::OutOfRange { offset, length, size: SIZE });
        with_actor(&shared, &mut blocks, device.discard(range, false)).expect_err("refused");
    }
    assert!(blocks.taken.is_empty());
}

#[test]
fn a_batch_keeps_its_order_and_parts_what_overlaps() {
    let (shared, mut blocks) = (shared(), blocks());
    let device = VolumeDevice::new(Rc::clone(&shared));
    let write = |block: u64, count: usize, byte: u8| BatchWrite {
        offset: block * BLOCK_BYTES,
        data: Bytes::from(vec![byte; count * BLOCK_BYTES as usize]),
    };
    let groups = vec![vec![write(0, 2, 1), write(1, 1, 2), write(9, 1, 3)], vec![write(0, 1, 4)], vec![]];
    with_actor(&shared, &mut blocks, device.write_batch(groups)).expect("written");
    let range = BlockRange::new;
    assert_eq!(blocks.batches, [vec![vec![range(0, 2)], vec![range(1, 1), range(9, 1)], vec![range(0, 1)]]]);
    assert_eq!([0, 1, 9].map(|block: usize| blocks.content[block * 4096]), [4, 2, 3]);
    let misaligned = vec![vec![BatchWrite { offset: 1, data: Bytes::from(vec![0; 4096]) }]];
    with_actor(&shared, &mut blocks, device.write_batch(misaligned)).expect_err("refused");
}

#[test]
fn a_full_admission_makes_callers_wait_and_a_dropped_caller_frees_nothing_early() {
    let shared = shared();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    // Unconstrained: polling so many in one go would exhaust the task's budget, which looks like waiting.
    runtime.block_on(tokio::task::unconstrained(async {
        let device = VolumeDevice::new(Rc::clone(&shared));
        let range = ByteRange { offset: 0, length: 4096 };
        let mut callers: Vec<_> = (0..OPERATIONS_OPEN_MAX).map(|_| Box::pin(device.read(range))).collect();
        for caller in &mut callers {
            assert!(futures_util::poll!(caller).is_pending());
        }
        let mut next = Box::pin(device.read(range));
        assert!(futures_util::poll!(&mut next).is_pending());
        // Everyone leaves, but what they asked for is still with the replica.
        drop(callers);
        assert!(futures_util::poll!(&mut next).is_pending());
        let Some(Input::Client { open, .. }) = shared.inbox.pop() else { panic!("asked") };
        open.end(Ok(None));
        assert!(futures_util::poll!(&mut next).is_pending());
        let asked = std::iter::from_fn(|| shared.inbox.pop()).count();
        assert_eq!(asked, OPERATIONS_OPEN_MAX, "one place was freed, one caller took it");
    }));
}

#[test]
fn a_refusal_names_the_primary_and_an_ended_volume_is_closed() {
    let (cluster, seen) = watch::channel(Arc::<ClusterState>::default());
    let mut state = ClusterState::default();
    state.nodes.insert(NodeId(2), replication::config::NodeRecord { name: "beta".into(), ..Default::default() });
    cluster.send_replace(Arc::new(state));
    let shared = Rc::new(Shared::new(Rc::new(Inbox::default()), VOLUME, SIZE, seen));
    assert_eq!(
        shared.error_of(Refusal::NotPrimary(NodeId(2))),
        BlockError::NotPrimary { primary: Some("beta".into()) }
    );
    shared.inbox.close();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let device = VolumeDevice::new(shared);
    assert_eq!(runtime.block_on(device.flush()), Err(BlockError::Closed));
}

#[test]
fn allocation_is_cut_to_the_bytes_asked_for_and_merged() {
    let described = [(BlockRange::new(1, 1), false), (BlockRange::new(2, 2), true), (BlockRange::new(4, 1), true)];
    let cut = cut_allocation(ByteRange { offset: 5000, length: 12_000 }, &described);
    let run = |offset, length, hole| Allocation { range: ByteRange { offset, length }, hole };
    assert_eq!(cut, [run(5000, 3192, false), run(8192, 8808, true)]);
}
