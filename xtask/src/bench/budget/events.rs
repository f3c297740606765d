//! Reading the kernel's trace, as text, into system calls, wake-ups and requests of the disk.

use std::collections::BTreeMap;

use nix::libc;

/// Microseconds of the trace's clock.
pub(super) type Micros = u64;
/// A thread's number, as the kernel knows it.
pub(super) type Tid = u32;

/// What a system call is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Send,
    Receive,
    /// `io_uring_enter`.
    Submit,
    /// Waiting and everything else.
    Other,
}

/// The numbers of system calls: each architecture has its own.
pub(super) struct Numbers {
    pub(super) send: [i64; 4],
    pub(super) receive: [i64; 4],
    pub(super) submit: i64,
}

impl Numbers {
    /// Of the machine that this program is compiled for.
    pub(super) const HERE: Self = Self {
        send: [libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_writev, libc::SYS_write],
        receive: [libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_readv, libc::SYS_read],
        submit: libc::SYS_io_uring_enter,
    };

    fn kind(&self, number: i64) -> Kind {
        match number {
            number if self.send.contains(&number) => Kind::Send,
            number if self.receive.contains(&number) => Kind::Receive,
            number if number == self.submit => Kind::Submit,
            _ => Kind::Other,
        }
    }
}

/// A system call from its beginning to its end.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Call {
    pub(super) tid: Tid,
    pub(super) kind: Kind,
    /// Its first argument: the descriptor, in calls that take one.
    pub(super) descriptor: u64,
    pub(super) enter: Micros,
    pub(super) exit: Micros,
    /// What it gave: bytes, or a negative error.
    pub(super) result: i64,
}

/// Somebody makes a sleeping thread runnable.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Waking {
    pub(super) by: Tid,
    pub(super) woken: Tid,
    pub(super) at: Micros,
}

/// A request of the disk. One that is never completed in the trace is left out.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Request {
    /// The thread in whose system call it was issued.
    pub(super) tid: Tid,
    pub(super) issued: Micros,
    pub(super) completed: Micros,
}

/// Everything of one trace, each in order of time.
#[derive(Default)]
pub(super) struct Trace {
    calls: BTreeMap<Tid, Vec<Call>>,
    pub(super) wakings: Vec<Waking>,
    pub(super) requests: Vec<Request>,
}

impl Trace {
    /// Reads the text of tracefs's `trace`. Lines that are not understood are passed over, as are calls whose beginning or
    /// end is not in it.
    pub(super) fn parse(text: &str, numbers: &Numbers) -> Self {
        let mut trace = Self::default();
        let mut entered: BTreeMap<Tid, (i64, u64, Micros)> = BTreeMap::new();
        let mut issued: BTreeMap<&str, (Tid, Micros)> = BTreeMap::new();
        for line in text.lines().filter_map(Line::parse) {
            match line.event {
                "sys_enter" => {
                    if let Some((number, descriptor)) = enter_of(line.fields) {
                        entered.insert(line.tid, (number, descriptor, line.at));
                    }
                }
                "sys_exit" => {
                    let Some((number, result)) = exit_of(line.fields) else { continue };
                    let Some((begun, descriptor, enter)) = entered.remove(&line.tid) else { continue };
                    if begun == number {
                        let (tid, kind) = (line.tid, numbers.kind(number));
                        let call = Call { tid, kind, descriptor, enter, exit: line.at, result };
                        trace.calls.entry(tid).or_default().push(call);
                    }
                }
                "sched_waking" => {
                    let woken = line.fields.split_whitespace().find_map(|field| field.strip_prefix("pid="));
                    if let Some(woken) = woken.and_then(|woken| woken.parse().ok()) {
                        trace.wakings.push(Waking { by: line.tid, woken, at: line.at });
                    }
                }
                "block_rq_issue" => {
                    if let Some(sector) = sector_of(line.fields) {
                        issued.insert(sector, (line.tid, line.at));
                    }
                }
                "block_rq_complete" => {
                    let of = sector_of(line.fields).and_then(|sector| issued.remove(sector));
                    if let Some((tid, issued)) = of {
                        trace.requests.push(Request { tid, issued, completed: line.at });
                    }
                }
                _ => {}
            }
        }
        trace
    }

    /// A thread's calls.
    pub(super) fn calls(&self, tid: Tid) -> &[Call] {
        self.calls.get(&tid).map_or(&[], Vec::as_slice)
    }

    /// A thread's calls that end at a moment or later.
    pub(super) fn calls_ending_from(&self, tid: Tid, moment: Micros) -> &[Call] {
        let calls = self.calls(tid);
        &calls[calls.partition_point(|call| call.exit < moment)..]
    }

    /// Wake-ups at a moment or later.
    pub(super) fn wakings_from(&self, moment: Micros) -> &[Waking] {
        &self.wakings[self.wakings.partition_point(|waking| waking.at < moment)..]
    }

    /// Requests of the disk that were completed at a moment or later.
    pub(super) fn requests_completed_from(&self, moment: Micros) -> &[Request] {
        &self.requests[self.requests.partition_point(|request| request.completed < moment)..]
    }
}

/// `comm-tid [cpu] flags seconds.micros: event: fields`
struct Line<'a> {
    tid: Tid,
    at: Micros,
    event: &'a str,
    fields: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        // A thread's name may hold blanks and dashes, so its number is looked for from the right.
        let (thread, rest) = line.split_once(" [")?;
        let tid = thread.trim_end().rsplit_once('-')?.1.parse().ok()?;
        let (before, rest) = rest.split_once(": ")?;
        let (event, fields) = rest.split_once(": ")?;
        let (seconds, micros) = before.split_whitespace().last()?.split_once('.')?;
        let at = seconds.parse::<Micros>().ok()? * 1_000_000 + micros.parse::<Micros>().ok()?;
        Some(Self { tid, at, event, fields })
    }
}

/// `NR 45 (1e, 7f0548000cc0, …)`: the number and the first argument.
fn enter_of(fields: &str) -> Option<(i64, u64)> {
    let (number, arguments) = fields.strip_prefix("NR ")?.split_once(" (")?;
    let first = arguments.split(',').next()?;
    Some((number.parse().ok()?, u64::from_str_radix(first.trim_end_matches(')'), 16).ok()?))
}

/// `NR 45 = 4124`: the number and the result.
fn exit_of(fields: &str) -> Option<(i64, i64)> {
    let (number, result) = fields.strip_prefix("NR ")?.split_once(" = ")?;
    Some((number.parse().ok()?, result.trim().parse().ok()?))
}

/// `254,0 WS 4096 () 436424864 + 8 …`: the first sector.
fn sector_of(fields: &str) -> Option<&str> {
    fields.split_once(" + ")?.0.rsplit(' ').next()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Of x86-64, where the sample was recorded.
    pub(in crate::bench::budget) const RECORDED: Numbers =
        Numbers { send: [44, 46, 20, 1], receive: [45, 47, 19, 0], submit: 426 };

    /// A few writes of one client to a pair, recorded as the command does it: the client is 14100, the primary's thread
    /// 13030, the peer's 13038.
    pub(in crate::bench::budget) const SAMPLE: &str = include_str!("sample.txt");

    #[test]
    fn every_kind_of_line_is_read() {
        let trace = Trace::parse(SAMPLE, &RECORDED);
        let received = trace.calls(13030).iter().find(|call| call.result == 4124).expect("a request");
        let wanted = Call {
            tid: 13030,
            kind: Kind::Receive,
            descriptor: 0x1e,
            enter: 68_256_511_923,
            exit: 68_256_511_926,
            result: 4124,
        };
        assert_eq!(*received, wanted);
        assert!(trace.wakings.contains(&Waking { by: 14100, woken: 13030, at: 68_256_511_912 }));
        let own = Request { tid: 13030, issued: 68_256_511_969, completed: 68_256_512_018 };
        assert_eq!(trace.requests[0], own);
        assert!(trace.calls(13038).iter().any(|call| call.kind == Kind::Submit));
        assert!(trace.calls(1).is_empty());
    }

    #[test]
    fn lines_that_are_cut_off_or_foreign_are_passed_over() {
        let text = "# tracer: nop\n shard-0-7 [000] ..... 1.000001: sys_enter: NR 45 (1e, 0)\n\
            a b-c-7 [001] d.s1. 1.000009: sys_exit: NR 45 = -11\n\
            shard-0-7 [000] ..... 1.000010: sys_exit: NR 45 = 5\n\
            <idle>-0 [001] ..s1. 2.000000: block_rq_complete: 254,0 WS () 8 + 8 be,0,4 [0]\n\
            shard-0-7 [000] ..... 3.0000";
        let trace = Trace::parse(text, &RECORDED);
        assert_eq!(trace.calls(7).len(), 1);
        assert_eq!((trace.calls(7)[0].enter, trace.calls(7)[0].result), (1_000_001, -11));
        assert!(trace.requests.is_empty());
    }
}
