//! The checker must see what is wrong, and only that.

use super::*;

const E: Epoch = Epoch(1);

struct Bench(History);

impl Bench {
    fn new() -> Self {
        Self(History::new(false))
    }

    fn write(&mut self, value: u32, start: SimTime, end: SimTime) -> &mut Self {
        self.write_in(value, start, end, E)
    }

    fn write_in(&mut self, value: u32, start: SimTime, end: SimTime, epoch: Epoch) -> &mut Self {
        let op = self.0.begin(OpKind::Write { first: 0, count: 2, value, flushed: false }, start, epoch);
        if end != NEVER {
            self.0.complete(op, end, epoch);
        }
        self
    }

    fn read(&mut self, value: u32, start: SimTime, end: SimTime) -> &mut Self {
        self.read_in([value, value], start, end, E)
    }

    fn read_in(&mut self, content: Block, start: SimTime, end: SimTime, epoch: Epoch) -> &mut Self {
        let op = self.0.begin(OpKind::Read { range: BlockRange::new(0, 1), data: Vec::new() }, start, epoch);
        self.0.set_data(op, vec![content]);
        self.0.complete(op, end, epoch);
        self
    }

    fn flush(&mut self, start: SimTime, end: SimTime) -> &mut Self {
        let op = self.0.begin(OpKind::Flush, start, E);
        self.0.complete(op, end, E);
        self
    }

    fn loss(&mut self, epoch: u64, any: bool, at: SimTime) -> &mut Self {
        self.0.loss_declared(Epoch(epoch), any, at);
        self
    }

    fn rule(&self) -> Option<&'static str> {
        self.0.check().err().map(|fault| fault.rule)
    }
}

#[test]
fn a_sequential_history_is_fine() {
    let mut bench = Bench::new();
    bench.read(0, 1, 2).write(7, 3, 4).read(7, 5, 6).write(8, 7, 8).read(8, 9, 10);
    assert_eq!(bench.rule(), None);
}

#[test]
fn a_lost_write_is_found() {
    assert_eq!(Bench::new().write(7, 1, 2).write(8, 3, 4).read(7, 5, 6).rule(), Some("not_linearizable"));
    assert_eq!(Bench::new().write(7, 1, 2).read(0, 5, 6).rule(), Some("stale_read"));
}

#[test]
fn concurrent_writes_may_land_in_either_order_but_stay_there() {
    assert_eq!(Bench::new().write(7, 1, 5).write(8, 2, 6).read(7, 7, 8).rule(), None);
    assert_eq!(
        Bench::new().write(7, 1, 5).write(8, 2, 6).read(8, 7, 8).read(7, 9, 10).rule(),
        Some("not_linearizable")
    );
}

#[test]
fn an_unacknowledged_write_may_appear_late_but_not_vanish_again() {
    assert_eq!(Bench::new().write(7, 1, 2).write(8, 3, NEVER).read(7, 4, 5).read(8, 6, 7).rule(), None);
    let mut bench = Bench::new();
    bench.write(7, 1, 2).write(8, 3, NEVER).read(8, 4, 5).read(7, 6, 7);
    assert_eq!(bench.rule(), Some("not_linearizable"));
    assert_eq!(Bench::new().write(8, 3, NEVER).read(8, 4, 5).read(0, 6, 7).rule(), Some("stale_read"));
}

#[test]
fn a_value_from_nowhere_or_the_future_is_found() {
    assert_eq!(Bench::new().read(9, 1, 2).rule(), Some("value_never_written"));
    assert_eq!(Bench::new().read(9, 1, 2).write(9, 5, 6).rule(), Some("read_before_write"));
}

#[test]
fn a_torn_block_of_an_acknowledged_write_is_found() {
    let mut bench = Bench::new();
    bench.write(7, 1, 2).write(8, 3, 4).read_in([8, 7], 5, 6, E);
    assert_eq!(bench.rule(), Some("not_linearizable"));
    let mut bench = Bench::new();
    bench.write(7, 1, 2).write(8, 3, NEVER).read_in([8, 7], 5, 6, E);
    assert_eq!(bench.rule(), None, "unacknowledged, a torn block is legal");
}

#[test]
fn zeros_with_several_writers() {
    assert_eq!(Bench::new().write(7, 1, 2).write(0, 3, 4).read(0, 5, 6).write(8, 7, 8).read(8, 9, 10).rule(), None);
    assert_eq!(Bench::new().write(0, 1, 2).write(7, 3, 4).read(0, 5, 6).rule(), Some("stale_read"));
    assert_eq!(Bench::new().write(7, 1, 2).write(0, 3, 4).read(7, 5, 6).rule(), Some("not_linearizable"));
}

#[test]
fn a_declared_loss_spares_unflushed_writes_only() {
    let lossy = |flush: bool, value: u32, any: bool| {
        let mut bench = Bench::new();
        bench.write(7, 1, 2).write(8, 3, 4);
        if flush {
            bench.flush(5, 6);
        }
        bench.loss(2, any, 10).read_in([value, value], 11, 12, Epoch(2));
        bench.rule()
    };
    assert_eq!(lossy(false, 8, false), None);
    assert_eq!(lossy(false, 7, false), None);
    assert_eq!(lossy(false, 0, false), None);
    assert_eq!(lossy(true, 8, false), None);
    assert_eq!(lossy(true, 7, false), Some("flushed_write_lost_or_undone"));
    assert_eq!(lossy(true, 0, false), Some("stale_read"));
    assert_eq!(lossy(true, 7, true), None);
}

#[test]
fn after_a_loss_the_register_has_one_value() {
    let mut bench = Bench::new();
    bench.write(7, 1, 2).write(8, 3, 4).loss(2, false, 10);
    bench.read_in([7, 7], 11, 12, Epoch(2)).read_in([8, 8], 13, 14, Epoch(2));
    assert_eq!(bench.rule(), Some("not_linearizable"));
    let mut bench = Bench::new();
    bench.write(7, 1, 2).loss(2, false, 10).write_in(9, 11, 12, Epoch(2)).read_in([7, 7], 13, 14, Epoch(2));
    assert_eq!(bench.rule(), Some("not_linearizable"));
}
