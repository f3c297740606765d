//! Cutting a trace into single writes, and each write into phases.
//!
//! A write is followed along the way through the peer: the client's request, the primary's frame to the peer, the peer's
//! disk, its acknowledgement, the reply. The primary's own disk works beside that way; what it makes the reply wait is a
//! phase of its own. Only one write may be in flight at a time.

use std::collections::BTreeMap;

use super::events::{Call, Kind, Micros, Request, Tid, Trace};

/// NBD's request and reply, and what is written.
const HEADER_BYTES: i64 = 28;
const PAYLOAD_BYTES: i64 = 4096;
const REPLY_BYTES: i64 = 16;

/// The phases, in order: where the time goes, and what is done.
pub(super) const PHASES: [(&str, &str); 21] = [
    ("TCP", "client sends, until the primary has it"),
    ("wake-up", "primary wakes up"),
    ("primary", "primary: out of its wait, receives"),
    ("primary", "primary: request to frame"),
    ("TCP", "primary sends, until the peer has it"),
    ("wake-up", "peer wakes up"),
    ("peer", "peer: out of its wait, receives"),
    ("peer", "peer: frame to submission"),
    ("submission", "peer: io_uring_enter, until the disk has it"),
    ("disk", "peer's disk"),
    ("completion", "peer: the kernel completes, until it is woken"),
    ("wake-up", "peer wakes up, once more"),
    ("peer", "peer: completion to acknowledgement"),
    ("TCP", "peer sends, until the primary has it"),
    ("wake-up", "primary wakes up, once more"),
    ("primary", "primary: out of its wait, receives once more"),
    ("own disk", "primary waits for its own disk"),
    ("primary", "primary: acknowledgement to reply"),
    ("TCP", "primary sends, until the client has it"),
    ("wake-up", "client wakes up"),
    ("client", "client: out of its wait, receives"),
];

/// Who a thread belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Client,
    /// One of the storage nodes, by its place in a list. Which is the primary shows in what it does.
    Node(usize),
}

/// One write: the moments between its phases.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Write {
    moments: [Micros; PHASES.len() + 1],
    own: OwnDisk,
}

/// What the primary's own disk did beside the way through the peer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct OwnDisk {
    /// From `io_uring_enter` until the disk has it.
    pub(super) submission: Micros,
    pub(super) disk: Micros,
    /// From there until the primary runs.
    pub(super) completion: Micros,
    /// Whether the reply waited for it.
    pub(super) was_last: bool,
}

impl Write {
    /// Microseconds of each phase, in the order of `PHASES`.
    pub(super) fn phases(&self) -> impl Iterator<Item = Micros> + '_ {
        self.moments.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// From the client's sending until it has the reply, in microseconds.
    pub(super) fn whole(&self) -> Micros {
        self.moments[PHASES.len()] - self.moments[0]
    }

    pub(super) fn own_disk(&self) -> OwnDisk {
        self.own
    }
}

/// The writes of a trace.
pub(super) struct Cut {
    /// Those whose every step was found.
    pub(super) writes: Vec<Write>,
    /// Writes that the client began, and another after them.
    pub(super) begun: usize,
}

/// Cuts a trace of the given threads.
pub(super) fn cut(trace: &Trace, threads: &BTreeMap<Tid, Side>) -> Cut {
    let mut writes = Vec::new();
    let mut begun = 0;
    for client in threads.iter().filter(|(_, side)| **side == Side::Client).map(|(tid, _)| *tid) {
        let begins = |call: &&Call| {
            call.kind == Kind::Send && (call.result == HEADER_BYTES || call.result == HEADER_BYTES + PAYLOAD_BYTES)
        };
        let requests: Vec<&Call> = trace.calls(client).iter().filter(begins).collect();
        for pair in requests.windows(2) {
            begun += 1;
            writes.extend(Follower { trace, threads, client, end: pair[1].enter }.follow(pair[0]));
        }
    }
    Cut { writes, begun }
}

/// What is known while one write is followed.
struct Follower<'a> {
    trace: &'a Trace,
    threads: &'a BTreeMap<Tid, Side>,
    client: Tid,
    /// The next write begins.
    end: Micros,
}

impl Follower<'_> {
    /// None if a step is missing.
    fn follow(&self, request: &Call) -> Option<Write> {
        let sent = self.sent_last(request)?;
        let arrived = self.first_received(request.enter, HEADER_BYTES + PAYLOAD_BYTES, |_| true)?;
        let primary = self.threads.get(&arrived.tid)?;
        let frame =
            self.find(arrived.tid, arrived.exit, |call| call.kind == Kind::Send && call.result > PAYLOAD_BYTES)?;
        let taken = self.first_received(frame.enter, frame.result, |side| side != primary)?;
        let reply =
            self.find(arrived.tid, arrived.exit, |call| call.kind == Kind::Send && call.result == REPLY_BYTES)?;
        let (ack, acked) = self.acknowledgement(&frame, &taken, &reply)?;
        let (submitted, far) = self.written(taken.tid, taken.exit, ack.enter)?;
        let (own_submitted, near) = self.written(arrived.tid, arrived.exit, reply.enter)?;
        let done =
            self.find(self.client, reply.enter, |call| call.kind == Kind::Receive && call.result == REPLY_BYTES)?;

        let (request_at, primary_runs) = self.hop(&sent, &arrived);
        let (frame_at, peer_runs) = self.hop(&frame, &taken);
        let (completion_at, peer_sees) = self.completion(taken.tid, far.completed, ack.enter);
        let (ack_at, primary_runs_again) = self.hop(&ack, &acked);
        let (_, primary_sees) = self.completion(arrived.tid, near.completed, reply.enter);
        let (reply_at, client_runs) = self.hop(&reply, &done);
        let moments = [
            request.enter,
            request_at,
            primary_runs,
            arrived.exit,
            frame.enter,
            frame_at,
            peer_runs,
            taken.exit,
            submitted.enter,
            far.issued,
            far.completed,
            completion_at,
            peer_sees,
            ack.enter,
            ack_at,
            primary_runs_again,
            acked.exit,
            primary_sees.max(acked.exit),
            reply.enter,
            reply_at,
            client_runs,
            done.exit,
        ];
        let own = OwnDisk {
            submission: near.issued - own_submitted.enter,
            disk: near.completed - near.issued,
            completion: primary_sees - near.completed,
            was_last: primary_sees > acked.exit,
        };
        moments.is_sorted().then_some(Write { moments, own })
    }

    /// A call of a thread that begins and ends within this write, the first from a moment on.
    fn find(&self, tid: Tid, from: Micros, wanted: impl Fn(&Call) -> bool) -> Option<Call> {
        let calls = self.trace.calls_ending_from(tid, from).iter();
        calls
            .filter(|call| call.enter >= from)
            .take_while(|call| call.exit <= self.end)
            .find(|call| wanted(call))
            .copied()
    }

    /// The client's call that sends the payload: the same as the header's, or the next.
    fn sent_last(&self, request: &Call) -> Option<Call> {
        match request.result {
            HEADER_BYTES => {
                self.find(self.client, request.exit, |call| call.kind == Kind::Send && call.result == PAYLOAD_BYTES)
            }
            _ => Some(*request),
        }
    }

    /// The first time that a node receives so many bytes. It may wait for them in the call, so only the end counts.
    fn first_received(&self, from: Micros, bytes: i64, side: impl Fn(&Side) -> bool) -> Option<Call> {
        let nodes = self.threads.iter().filter(|(_, of)| **of != Side::Client && side(of));
        let of = |tid: Tid| {
            let calls = self.trace.calls_ending_from(tid, from).iter().take_while(|call| call.exit <= self.end);
            calls.copied().find(|call| call.kind == Kind::Receive && call.result == bytes)
        };
        nodes.filter_map(|(tid, _)| of(*tid)).min_by_key(|call| call.exit)
    }

    /// The peer's sending of the acknowledgement, and the primary's receiving of it: the last before the reply that came on
    /// the connection which took the frame. Other messages pass there as well.
    fn acknowledgement(&self, frame: &Call, taken: &Call, reply: &Call) -> Option<(Call, Call)> {
        let calls = self.trace.calls_ending_from(frame.tid, frame.exit);
        let before = &calls[..calls.partition_point(|call| call.exit <= reply.enter)];
        let received = before.iter().rev().filter(|call| {
            call.kind == Kind::Receive
                && call.descriptor == frame.descriptor
                && (1..PAYLOAD_BYTES).contains(&call.result)
        });
        let sent = |acked: &Call| {
            self.find(taken.tid, taken.exit, |call| {
                let same = call.kind == Kind::Send && call.descriptor == taken.descriptor;
                same && call.result == acked.result && call.enter < acked.exit
            })
        };
        received.filter_map(|acked| Some((sent(acked)?, *acked))).next()
    }

    /// What a thread submitted to its disk between two moments, and how the disk did it: from the first request's issue to
    /// the last one's completion.
    fn written(&self, tid: Tid, from: Micros, until: Micros) -> Option<(Call, Request)> {
        let completed =
            self.trace.requests_completed_from(from).iter().take_while(|request| request.completed <= until);
        let of = completed.filter(|request| request.tid == tid && request.issued >= from);
        let all = of.copied().reduce(|one, other| Request {
            tid,
            issued: one.issued.min(other.issued),
            completed: one.completed.max(other.completed),
        })?;
        let submitted = self.trace.calls_ending_from(tid, all.issued).first()?;
        (submitted.kind == Kind::Submit && submitted.enter <= all.issued).then_some((*submitted, all))
    }

    /// When something sent is with its receiver, and when the receiver runs: it is woken by the sender, on whose processor
    /// loopback delivers, or was not asleep.
    fn hop(&self, sent: &Call, received: &Call) -> (Micros, Micros) {
        let wakings = self.trace.wakings_from(sent.enter).iter().take_while(|waking| waking.at <= sent.exit);
        let woken = wakings.filter(|waking| waking.by == sent.tid && waking.woken == received.tid).last();
        // A receiver that was in its call already has taken the bytes only at the call's end.
        let limit = if received.enter < sent.enter { received.exit } else { received.enter };
        let at = woken.map_or(sent.exit, |waking| waking.at).min(limit);
        (at, self.runs(received.tid, at, limit))
    }

    /// When a thread is woken for what its disk has done, and when it runs.
    fn completion(&self, tid: Tid, completed: Micros, limit: Micros) -> (Micros, Micros) {
        let runs = self.runs(tid, completed, limit);
        let wakings = self.trace.wakings_from(completed).iter().take_while(|waking| waking.at <= limit);
        let woken = wakings.copied().find(|waking| waking.woken == tid).map(|waking| waking.at);
        match woken {
            Some(at) if at <= runs => (at, runs),
            // It was not asleep, or had been woken for something else, and comes to it later.
            _ => (completed, runs),
        }
    }

    /// The thread's first return from the kernel from a moment on.
    fn runs(&self, tid: Tid, from: Micros, limit: Micros) -> Micros {
        self.trace.calls_ending_from(tid, from).first().map_or(limit, |call| call.exit.min(limit)).max(from)
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::tests::{RECORDED, SAMPLE};
    use super::*;

    fn threads() -> BTreeMap<Tid, Side> {
        BTreeMap::from([(14100, Side::Client), (13030, Side::Node(0)), (13038, Side::Node(1))])
    }

    fn cut_text(text: &str) -> Cut {
        cut(&Trace::parse(text, &RECORDED), &threads())
    }

    #[test]
    fn a_recorded_write_is_cut_into_its_phases() {
        let found = cut_text(SAMPLE);
        assert_eq!((found.begun, found.writes.len()), (2, 2));
        let write = &found.writes[0];
        let phases: Vec<Micros> = write.phases().collect();
        let wanted = [11, 8, 6, 15, 9, 8, 7, 13, 9, 36, 8, 4, 17, 13, 7, 6, 0, 13, 11, 8, 5];
        assert_eq!(phases, wanted);
        assert_eq!(write.whole(), wanted.iter().sum::<Micros>());
        let own = OwnDisk { submission: 13, disk: 49, completion: 17, was_last: false };
        assert_eq!(write.own_disk(), own);
    }

    #[test]
    fn a_write_with_a_missing_step_is_left_out() {
        let without = |part: &str| {
            let begin = SAMPLE.find("NR 44 = 28").expect("a request");
            let at = begin + SAMPLE[begin..].find(part).expect("the step");
            cut_text(&format!("{}{}", &SAMPLE[..at], &SAMPLE[at + part.len()..]))
        };
        for part in ["block_rq_complete", "= 4124", "= 4176", "NR 20 = 72", "NR 45 = 72", "NR 20 = 16"] {
            let found = without(part);
            assert_eq!((found.begun, found.writes.len()), (2, 1), "without {part}");
        }
    }

    #[test]
    fn a_receiver_that_nobody_has_to_wake_has_it_when_it_is_sent() {
        let text: Vec<&str> = SAMPLE.lines().filter(|line| !line.contains("sched_waking")).collect();
        let found = cut_text(&text.join("\n"));
        assert_eq!(found.writes.len(), 2);
        let (with, without) = (&cut_text(SAMPLE).writes[0], &found.writes[0]);
        assert_eq!(with.whole(), without.whole());
        assert!(without.phases().next() > with.phases().next());
    }

    #[test]
    fn reply_that_waits_for_the_own_disk_says_so() {
        // The first write's own disk is done only after the acknowledgement.
        let late = SAMPLE.replacen("68256.512018: block_rq_complete", "68256.512080: block_rq_complete", 1);
        let mut lines: Vec<&str> = late.lines().collect();
        lines.sort_by_key(|line| line.split(" 68256.").nth(1).and_then(|rest| rest.split(':').next()));
        let found = cut_text(&lines.join("\n"));
        assert!(found.writes[0].own_disk().was_last);
        assert!(!found.writes[1].own_disk().was_last);
    }
}
