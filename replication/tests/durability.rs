//! Which writes are written through, and which flushes have anything to do.

mod common;

use common::{A, Pair, is_local_flush, write};
use proto::NodeId;
use replication::Action;
use replication::event::Request;

#[test]
fn writes_of_a_client_that_flushes_each_are_written_through_and_the_flush_costs_nothing() {
    let mut pair = Pair::serving();
    let through = |pair: &Pair| {
        let fua = |(_, action): &(NodeId, Action)| match action {
            Action::WriteLocal { fua, .. } => Some(*fua),
            _ => None,
        };
        pair.orders.iter().filter_map(fua).collect::<Vec<bool>>()
    };
    let flushes = |pair: &Pair| pair.orders.iter().filter(|(_, action)| is_local_flush(action)).count();
    let pair_of_both = |pair: &mut Pair, op: u64| {
        pair.orders.clear();
        pair.client(A, op, write(0, 1));
        assert_eq!(pair.answer(op), Some(Ok(())));
        pair.client(A, op + 1, Request::Flush);
        assert_eq!(pair.answer(op + 1), Some(Ok(())));
        (through(pair), flushes(pair))
    };
    for op in [1, 3] {
        assert_eq!(pair_of_both(&mut pair, op), (vec![false, false], 2), "on both boxes");
    }
    assert_eq!(pair_of_both(&mut pair, 5), (vec![true, true], 0), "both boxes write it through at once");
    assert_eq!(pair_of_both(&mut pair, 7), (vec![true, true], 0));
    // Two in a row: the client does something else now.
    pair.orders.clear();
    pair.client(A, 9, write(0, 1));
    pair.client(A, 10, write(1, 1));
    assert_eq!(through(&pair), [true, true, false, false]);
    pair.client(A, 11, Request::Flush);
    assert_eq!((pair.answer(11), flushes(&pair)), (Some(Ok(())), 2));
    pair.client(A, 12, Request::Flush);
    assert_eq!((pair.answer(12), flushes(&pair)), (Some(Ok(())), 2), "nothing was written since");
}

#[test]
fn new_primary_does_not_take_for_flushed_what_a_former_one_has_written() {
    let mut pair = Pair::serving();
    pair.orders.clear();
    pair.client(A, 1, Request::Flush);
    assert_eq!(pair.answer(1), Some(Ok(())));
    assert_eq!(pair.orders.iter().filter(|(_, action)| is_local_flush(action)).count(), 2);
}
