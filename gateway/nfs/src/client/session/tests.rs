//! What a session sends, and when, whatever its server says.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::client::result::Failure;
use crate::client::scripted::{Asked, CLIENT, SESSION, SLOTS, callback, recall};
use crate::ids::Stateid;
use crate::v4::bitmap::Bitmap;

const OTHER_SESSION: [u8; 16] = *b"another session!";
const NOW: Moment = Moment(1000);

fn session() -> Session {
    let identity = Identity {
        owner: Bytes::from_static(b"test"),
        verifier: *b"verifier",
        credential: SysCredential::default(),
        minor: 2,
        fore: Channel {
            request_bytes_max: 1 << 20,
            reply_bytes_max: 1 << 20,
            cached_reply_bytes_max: 4096,
            operations_max: 16,
            requests_max: 64,
        },
    };
    Session::new(identity, 100)
}

fn sent(session: &mut Session) -> Vec<Asked> {
    std::iter::from_fn(|| session.next_outgoing()).map(|message| Asked::read(message.concat().into())).collect()
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.next_event()).collect()
}

/// The only message that is sent.
fn one(session: &mut Session) -> Asked {
    let mut all = sent(session);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn hear(session: &mut Session, message: Bytes) {
    session.on_message(message, NOW).unwrap();
}

/// Answers until nothing more is asked.
fn settle(session: &mut Session) {
    loop {
        let all = sent(session);
        if all.is_empty() {
            return;
        }
        for asked in all {
            hear(session, asked.well());
        }
    }
}

fn ready() -> Session {
    let mut session = session();
    session.connected();
    settle(&mut session);
    assert_eq!(session.phase, Phase::Ready);
    session
}

fn reading() -> Request {
    Request::new(2).putrootfh()
}

fn changing() -> Request {
    Request::new(2).savefh().remove(b"a")
}

fn completed(id: RequestId) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Completed(of, _) if *of == id)
}

#[test]
fn a_session_is_made_in_order_and_asked_to_last() {
    let mut session = session();
    let id = session.submit(reading());
    assert!(sent(&mut session).is_empty(), "without a connection");
    session.connected();
    let exchange = one(&mut session);
    assert_eq!((exchange.first, exchange.count), (op::EXCHANGE_ID, 1));
    hear(&mut session, exchange.exchanged(CLIENT, 5));
    let create = one(&mut session);
    assert_eq!(create.first, op::CREATE_SESSION);
    // Behind the heads of RPC (15 words, without a machine's name) and the compound, the number: client, sequence, flags.
    let arguments = &create.message[19 * 4..];
    assert_eq!(arguments[..16], [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 5, 0, 0, 0, 3]);
    hear(&mut session, create.created(SESSION));
    let reclaim = one(&mut session);
    assert_eq!((reclaim.second, reclaim.slot, reclaim.sequence), (op::RECLAIM_COMPLETE, 0, 1));
    assert!(events(&mut session).is_empty());
    hear(&mut session, reclaim.done());
    let request = one(&mut session);
    assert_eq!((request.second, request.slot, request.sequence, request.session), (op::PUTROOTFH, 0, 2, SESSION));
    hear(&mut session, request.done());
    assert!(matches!(&events(&mut session)[..], [Event::Completed(of, Ok(_))] if *of == id));
    assert_eq!(session.limits().map(|(_, persists)| persists), Some(true));
}

#[test]
fn as_many_requests_as_slots_are_under_way_and_answered_in_any_order() {
    let mut session = ready();
    let ids: Vec<_> = (0..6).map(|_| session.submit(reading())).collect();
    let first = sent(&mut session);
    assert_eq!(first.iter().map(|asked| asked.slot).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(first.iter().map(|asked| asked.sequence).collect::<Vec<_>>(), [2, 1, 1, 1]);
    hear(&mut session, first[2].done());
    assert_eq!(events(&mut session).len(), 1);
    let fifth = one(&mut session);
    assert_eq!((fifth.slot, fifth.sequence), (2, 2));
    for asked in [&first[3], &fifth, &first[0], &first[1]] {
        hear(&mut session, asked.done());
    }
    let sixth = one(&mut session);
    hear(&mut session, sixth.done());
    let events = events(&mut session);
    for id in [ids[0], ids[1], ids[3], ids[4], ids[5]] {
        assert_eq!(events.iter().filter(|event| completed(id)(event)).count(), 1, "{id:?}");
    }
}

#[test]
fn what_had_no_answer_is_sent_again_byte_for_byte() {
    let mut session = ready();
    let (a, b) = (session.submit(changing()), session.submit(reading()));
    let before = sent(&mut session);
    session.disconnected();
    assert!(sent(&mut session).is_empty());
    session.connected();
    let again = sent(&mut session);
    assert_eq!(again[0].first, op::BIND_CONN_TO_SESSION);
    assert_eq!(again[1..], before[..]);
    hear(&mut session, again[0].bound(SESSION));
    // Both answers come, and one of them twice.
    for asked in [&before[1], &before[0], &before[1]] {
        hear(&mut session, asked.done());
    }
    let events = events(&mut session);
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events.iter().any(completed(a)) && events.iter().any(completed(b)));
    assert_eq!((session.statistics.resent, session.statistics.unexpected), (2, 1));
}

#[test]
fn a_handshake_goes_on_over_the_next_connection() {
    let mut session = session();
    session.connected();
    let exchange = one(&mut session);
    session.disconnected();
    session.connected();
    assert_eq!(one(&mut session), exchange);
    hear(&mut session, exchange.exchanged(CLIENT, 1));
    let create = one(&mut session);
    session.disconnected();
    session.connected();
    assert_eq!(one(&mut session), create, "the same sequence, so it makes no second session");
}

#[test]
fn only_changing_requests_ask_for_their_reply_to_be_kept() {
    let mut session = ready();
    session.submit(changing());
    session.submit(reading());
    let kept: Vec<_> = sent(&mut session).iter().map(|asked| asked.cached).collect();
    assert_eq!(kept, [true, false]);
}

/// What becomes of requests when the server has forgotten the session: of one that was sent once and refused, of one that may
/// have been done, and of one that changes nothing.
#[test]
fn a_forgotten_session_is_made_anew_and_nothing_is_done_twice() {
    for status in [Status::BadSession, Status::DeadSession] {
        let mut session = ready();
        let (refused, doubtful, harmless) =
            (session.submit(changing()), session.submit(changing()), session.submit(reading()));
        let all = sent(&mut session);
        hear(&mut session, all[0].refused(status.code()));
        let events_now = events(&mut session);
        assert_eq!(events_now, [Event::Completed(doubtful, Err(RequestError::Uncertain))]);
        let create = one(&mut session);
        assert_eq!(create.first, op::CREATE_SESSION, "for the same client");
        hear(&mut session, create.created(OTHER_SESSION));
        let again = sent(&mut session);
        assert_eq!(again.iter().map(|asked| asked.second).collect::<Vec<_>>(), [op::SAVEFH, op::PUTROOTFH]);
        for asked in &again {
            assert_eq!((asked.session, asked.sequence), (OTHER_SESSION, 1));
            hear(&mut session, asked.done());
        }
        let events = events(&mut session);
        assert!(events.iter().any(completed(harmless)));
        // SAVEFH and REMOVE: the script answers with one number, so it is no answer to that.
        assert!(events.iter().any(completed(refused)));
    }
}

#[test]
fn a_change_that_was_sent_twice_and_lost_its_session_is_uncertain() {
    let mut session = ready();
    let id = session.submit(changing());
    sent(&mut session);
    session.disconnected();
    session.connected();
    let again = sent(&mut session);
    hear(&mut session, again[1].refused(Status::BadSession.code()));
    assert_eq!(events(&mut session), [Event::Completed(id, Err(RequestError::Uncertain))]);
}

#[test]
fn a_forgotten_client_gets_another_id_and_says_that_it_reclaims_nothing() {
    let mut session = ready();
    session.submit(reading());
    let request = one(&mut session);
    hear(&mut session, request.refused(Status::BadSession.code()));
    let create = one(&mut session);
    hear(&mut session, create.refused(Status::StaleClientId.code()));
    let exchange = one(&mut session);
    assert_eq!(exchange.first, op::EXCHANGE_ID);
    hear(&mut session, exchange.exchanged(CLIENT + 1, 1));
    let create = one(&mut session);
    hear(&mut session, create.created(OTHER_SESSION));
    assert_eq!(one(&mut session).second, op::RECLAIM_COMPLETE);
    assert_eq!((session.statistics.clients, session.statistics.sessions), (2, 2));
}

#[test]
fn a_server_that_forgets_every_session_at_once_is_given_up() {
    let mut session = ready();
    let id = session.submit(reading());
    for _ in 0..10 * ATTEMPTS_MAX {
        for asked in sent(&mut session) {
            let answer = match asked.first {
                op::SEQUENCE => asked.refused(Status::BadSession.code()),
                _ => asked.well(),
            };
            hear(&mut session, answer);
        }
    }
    assert_eq!(events(&mut session), [Event::Completed(id, Err(RequestError::NoSession(Status::BadSession)))]);
    let later = session.submit(reading());
    assert!(events(&mut session).iter().any(completed(later)));
}

#[test]
fn a_misordered_slot_is_told_and_not_used_again() {
    let mut session = ready();
    let id = session.submit(reading());
    let asked = one(&mut session);
    assert_eq!(asked.slot, 0);
    hear(&mut session, asked.refused(Status::SequenceMisordered.code()));
    let failure = Failure { index: 0, number: op::SEQUENCE, status: Status::SequenceMisordered, denied: None };
    let reply = Reply { outcomes: Vec::new(), failure: Some(failure) };
    assert_eq!(events(&mut session), [Event::Completed(id, Ok(reply))]);
    session.submit(reading());
    assert_eq!(one(&mut session).slot, 1);
}

#[test]
fn without_a_usable_slot_another_session_is_made() {
    let mut session = ready();
    for _ in 0..SLOTS {
        session.submit(reading());
        let asked = one(&mut session);
        hear(&mut session, asked.refused(Status::SequenceMisordered.code()));
    }
    assert_eq!(one(&mut session).first, op::CREATE_SESSION);
}

#[test]
fn what_is_delayed_comes_again_later_with_the_next_sequence() {
    for status in [Status::Delay, Status::Grace] {
        let mut session = ready();
        let id = session.submit(reading());
        let asked = one(&mut session);
        hear(&mut session, asked.ended(status.code(), 2));
        assert!(events(&mut session).is_empty());
        assert!(sent(&mut session).is_empty(), "not at once");
        let at = session.next_timer().unwrap();
        assert!(at > NOW);
        session.on_time(at);
        let again = one(&mut session);
        assert_eq!((again.slot, again.sequence), (asked.slot, asked.sequence + 1));
        hear(&mut session, again.done());
        assert!(events(&mut session).iter().any(completed(id)));
    }
}

#[test]
fn a_sequence_that_is_delayed_stays_on_its_slot() {
    let mut session = ready();
    session.submit(changing());
    let asked = one(&mut session);
    hear(&mut session, asked.refused(Status::Delay.code()));
    session.submit(reading());
    assert_eq!(one(&mut session).slot, 1, "its slot is not free");
    session.on_time(session.next_timer().unwrap());
    assert_eq!(one(&mut session), asked);
}

#[test]
fn a_delay_behind_a_change_is_told() {
    let mut session = ready();
    let id = session.submit(Request::new(2).remove(b"a").remove(b"b"));
    let asked = one(&mut session);
    // REMOVE has a result, so this answer is written out.
    let mut head = asked.ended(0, 1).to_vec();
    let status = Status::Delay.code().to_be_bytes();
    // Behind the head of RPC (6 words): the status, the tag, the count.
    head[24..28].copy_from_slice(&status);
    head[32..36].copy_from_slice(&3u32.to_be_bytes());
    let change = [&28u32.to_be_bytes()[..], &[0; 4], &[0, 0, 0, 1], &[0; 16]].concat();
    let delayed = [&28u32.to_be_bytes()[..], &status].concat();
    hear(&mut session, [head, change, delayed].concat().into());
    let events = events(&mut session);
    let [Event::Completed(of, Ok(reply))] = &events[..] else { panic!("{events:?}") };
    assert_eq!((*of, reply.failure.as_ref().map(|failure| failure.status)), (id, Some(Status::Delay)));
}

#[test]
fn a_reply_that_was_not_kept_is_asked_for_again_if_it_changed_nothing() {
    let mut session = ready();
    let (harmless, change) = (session.submit(reading()), session.submit(changing()));
    let all = sent(&mut session);
    for asked in &all {
        hear(&mut session, asked.refused(Status::RetryUncachedReply.code()));
    }
    assert_eq!(events(&mut session), [Event::Completed(change, Err(RequestError::Uncertain))]);
    let again = one(&mut session);
    assert_eq!((again.slot, again.sequence), (all[0].slot, all[0].sequence + 1));
    hear(&mut session, again.done());
    assert!(events(&mut session).iter().any(completed(harmless)));
}

#[test]
fn an_answer_for_another_slot_is_not_believed() {
    let mut session = ready();
    let id = session.submit(reading());
    let asked = one(&mut session);
    hear(&mut session, Asked { slot: 3, ..asked }.done());
    let events = events(&mut session);
    assert!(matches!(&events[..], [Event::Completed(of, Err(RequestError::Garbled(_)))] if *of == id), "{events:?}");
}

#[test]
fn fewer_slots_are_used_when_the_server_says_so() {
    let mut session = ready();
    session.submit(reading());
    let asked = one(&mut session);
    hear(&mut session, asked.answered(0, 2, 0));
    session.submit(reading());
    session.submit(reading());
    assert_eq!(sent(&mut session).len(), 1);
}

#[test]
fn what_is_larger_than_the_session_takes_is_not_sent() {
    let mut session = ready();
    let long =
        Request::new(2).write(Stateid::ANONYMOUS, 0, crate::client::arguments::Stable::File, vec![0; 65_536].into());
    let mut many = Request::new(2);
    for _ in 0..16 {
        many = many.putrootfh();
    }
    let ids = [session.submit(long), session.submit(many)];
    assert!(sent(&mut session).is_empty());
    let too_big = |id| Event::Completed(id, Err(RequestError::TooBig));
    assert_eq!(events(&mut session), ids.map(too_big));
}

#[test]
fn a_recalled_delegation_is_given_back_once() {
    let mut session = ready();
    let call = callback(77, (1, 0), &[&recall()]);
    hear(&mut session, call.clone());
    let answer = session.next_outgoing().unwrap().concat();
    assert_eq!(answer[..4], 77u32.to_be_bytes());
    let back = one(&mut session);
    assert_eq!((back.count, back.second), (3, op::PUTFH));
    assert!(matches!(&events(&mut session)[..], [Event::Told(Notice::Recall(..))]));
    // The server did not get the answer, and calls again.
    hear(&mut session, call);
    assert_eq!(session.next_outgoing().unwrap().concat(), answer);
    assert!(events(&mut session).is_empty());
    assert!(sent(&mut session).is_empty());
}

#[test]
fn closing_gives_back_session_and_client_behind_what_is_under_way() {
    let mut session = ready();
    let id = session.submit(reading());
    let asked = one(&mut session);
    session.close();
    assert!(sent(&mut session).is_empty());
    hear(&mut session, asked.done());
    let destroy = one(&mut session);
    assert_eq!(destroy.first, op::DESTROY_SESSION);
    hear(&mut session, destroy.well());
    let destroy = one(&mut session);
    assert_eq!(destroy.first, op::DESTROY_CLIENTID);
    hear(&mut session, destroy.well());
    let events = events(&mut session);
    assert!(completed(id)(&events[0]) && events[1] == Event::Closed);
    session.submit(reading());
    assert!(matches!(session.next_event(), Some(Event::Completed(_, Err(RequestError::Closed)))));
}

#[test]
fn an_idle_client_says_that_it_is_still_there() {
    let mut session = ready();
    session.renew();
    let renewal = one(&mut session);
    assert_eq!((renewal.first, renewal.count), (op::SEQUENCE, 1));
    session.renew();
    assert!(sent(&mut session).is_empty(), "one is under way");
}

/// Whatever a server sends: no panic, each request is completed at most once, and a slot never carries two.
#[test]
fn a_hostile_server_breaks_nothing() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut session = session();
        session.connected();
        let mut done = std::collections::BTreeSet::new();
        let mut known: Vec<Asked> = Vec::new();
        for step in 0..200 {
            if random.random_bool(0.3) && session.has_room() {
                session.submit(if random.random_bool(0.5) { reading() } else { changing() });
            }
            known.extend(sent_any(&mut session));
            let statuses = [0, 10_008, 10_052, 10_063, 10_078, 10_022, 10_068, 10_013, 2];
            let status = statuses[random.random_range(0..statuses.len())];
            if !known.is_empty() {
                let asked = known[random.random_range(0..known.len())].clone();
                let mut answer = match random.random_range(0..4) {
                    0 => asked.refused(status),
                    1 => asked.ended(status, random.random_range(1..=3)),
                    _ => asked.well(),
                }
                .to_vec();
                if random.random_bool(0.2) {
                    let at = random.random_range(0..answer.len());
                    answer[at] ^= 1 << random.random_range(0..8);
                }
                if session.on_message(answer.into(), Moment(step)).is_err() || random.random_bool(0.05) {
                    session.disconnected();
                    session.connected();
                }
            }
            session.on_time(Moment(step * 100));
            for event in events(&mut session) {
                if let Event::Completed(id, _) = event {
                    assert!(done.insert(id), "seed {seed}: {id:?} is completed twice");
                }
            }
            let slots: std::collections::BTreeSet<u32> = session.sent.values().map(|sent| sent.slot).collect();
            assert_eq!(slots.len(), session.sent.len(), "seed {seed}");
        }
    }
}

/// What is sent, answers to callbacks left out.
fn sent_any(session: &mut Session) -> Vec<Asked> {
    let all: Vec<Bytes> = std::iter::from_fn(|| session.next_outgoing()).map(|parts| parts.concat().into()).collect();
    all.into_iter().filter(|message| !is_reply(message)).map(Asked::read).collect()
}

#[test]
fn a_request_of_nothing_but_attributes_changes_nothing() {
    assert!(!Request::new(2).putrootfh().getattr(Bitmap::of(&[1])).is_changing());
}
