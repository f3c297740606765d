//! A client against a server on the loopback that does what the test says: it breaks connections, answers twice, in any order, or
//! not at all.

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::client::number::operation as op;
use crate::client::scripted::{Asked, SLOTS, callback, recall};

/// One connection, from the server's side.
struct Line {
    stream: TcpStream,
    records: RecordReader,
    received: BytesMut,
}

impl Line {
    async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        Self { stream, records: RecordReader::new(1 << 20), received: BytesMut::new() }
    }

    /// The next message; none when the client has closed the connection.
    async fn message(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = self.records.next(&mut self.received).unwrap() {
                return Some(message);
            }
            if self.stream.read_buf(&mut self.received).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn asked(&mut self) -> Asked {
        Asked::read(self.message().await.expect("a call"))
    }

    async fn send(&mut self, message: Bytes) {
        self.stream.write_all(&record::mark(message.len())).await.unwrap();
        self.stream.write_all(&message).await.unwrap();
    }

    async fn answer_well(&mut self) -> Asked {
        let asked = self.asked().await;
        self.send(asked.well()).await;
        asked
    }

    /// Gives the client its session, and answers the request by which [`Client::connect`] learns of it.
    async fn give_session(&mut self) {
        for first in [op::EXCHANGE_ID, op::CREATE_SESSION, op::SEQUENCE, op::SEQUENCE] {
            assert_eq!(self.answer_well().await.first, first);
        }
    }
}

fn options() -> Options {
    Options {
        pauses: (Duration::from_millis(1), Duration::from_millis(5)),
        stall: Duration::ZERO,
        silence: Duration::from_secs(60),
        ..Options::default()
    }
}

/// A client with a session, and the server's side of its connection.
async fn connected(options: Options) -> (Client, Line, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = tokio::spawn(Client::connect(address, options));
    let mut line = Line::accept(&listener).await;
    line.give_session().await;
    (client.await.unwrap().unwrap(), line, listener)
}

fn spawn_call(client: &Client, request: Request) -> tokio::task::JoinHandle<Result<Results, ClientError>> {
    let client = client.clone();
    tokio::spawn(async move { client.call(request).await })
}

fn reading(client: &Client) -> Request {
    client.request().putrootfh()
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_reply_is_made_again_and_the_request_sent_again() {
    let (client, mut line, listener) = connected(options()).await;
    let call = spawn_call(&client, client.request().savefh());
    let mut first = line.asked().await;
    for _ in 0..3 {
        drop(line);
        line = Line::accept(&listener).await;
        assert_eq!(line.answer_well().await.first, op::BIND_CONN_TO_SESSION);
        let again = line.asked().await;
        assert_eq!(again, first, "byte for byte");
        first = again;
    }
    line.send(first.done()).await;
    call.await.unwrap().unwrap();
    let statistics = client.statistics().await.unwrap();
    assert_eq!((statistics.connections, statistics.resent, statistics.sessions), (4, 3, 1));
    assert!(statistics.stall_count > 0);
}

#[tokio::test]
async fn a_service_without_a_floating_address_is_found_where_it_went() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let alternatives = vec![other.local_addr().unwrap()];
    let (client, line, listener) = connected(Options { alternatives, ..options() }).await;
    let call = spawn_call(&client, client.request().savefh());
    drop((line, listener));
    let mut line = Line::accept(&other).await;
    assert_eq!(line.answer_well().await.first, op::BIND_CONN_TO_SESSION);
    let asked = line.asked().await;
    line.send(asked.done()).await;
    call.await.unwrap().unwrap();
    // And back.
    let first = other.local_addr().unwrap();
    drop((line, other));
    let other = TcpListener::bind(first).await.unwrap();
    let call = spawn_call(&client, client.request().savefh());
    let mut line = Line::accept(&other).await;
    assert_eq!(line.answer_well().await.first, op::BIND_CONN_TO_SESSION);
    let asked = line.asked().await;
    line.send(asked.done()).await;
    call.await.unwrap().unwrap();
    assert_eq!(client.statistics().await.unwrap().sessions, 1);
}

#[tokio::test]
async fn answers_out_of_order_and_twice_reach_their_callers_once() {
    let (client, mut line, _listener) = connected(options()).await;
    let calls: Vec<_> = (0..SLOTS).map(|_| spawn_call(&client, reading(&client))).collect();
    let mut asked = Vec::new();
    for _ in 0..SLOTS {
        asked.push(line.asked().await);
    }
    for asked in asked.iter().rev() {
        line.send(asked.done()).await;
        line.send(asked.done()).await;
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    // The last answer's double may be under way still; this one is behind it.
    let last = spawn_call(&client, reading(&client));
    line.answer_well().await;
    last.await.unwrap().unwrap();
    let statistics = client.statistics().await.unwrap();
    assert_eq!((statistics.answered, statistics.unexpected), (u64::from(SLOTS) + 2, u64::from(SLOTS)));
}

#[tokio::test]
async fn many_more_requests_than_slots_are_all_answered() {
    let (client, mut line, _listener) = connected(options()).await;
    let server = tokio::spawn(async move {
        let mut most = 0;
        while let Some(message) = line.message().await {
            let asked = Asked::read(message);
            most = most.max(asked.slot);
            line.send(asked.well()).await;
        }
        most
    });
    let mut calls = JoinSet::new();
    for _ in 0..500 {
        let client = client.clone();
        calls.spawn(async move { client.call(reading(&client)).await.map(drop) });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap();
    }
    drop(client);
    assert!(server.await.unwrap() < SLOTS);
}

/// Never answers what it has not been asked over two connections, as long as that is a request of files.
async fn be_silent_at_first(listener: TcpListener, calls: mpsc::Sender<Asked>) {
    let mut silent: Vec<Line> = Vec::new();
    let mut seen: Option<Asked> = None;
    loop {
        let mut line = Line::accept(&listener).await;
        while let Some(message) = line.message().await {
            let asked = Asked::read(message);
            if asked.second == op::PUTROOTFH {
                calls.send(asked.clone()).await.unwrap();
                if seen.replace(asked.clone()).is_none() {
                    break;
                }
            }
            line.send(asked.well()).await;
        }
        // The connection stays, as far as the server goes.
        silent.push(line);
    }
}

#[tokio::test]
async fn a_server_that_is_silent_is_left_for_another_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut calls) = mpsc::channel(100);
    let server = tokio::spawn(be_silent_at_first(listener, sender));
    let options = Options { silence: Duration::from_millis(100), ..options() };
    let client = Client::connect(address, options).await.unwrap();
    client.call(reading(&client)).await.unwrap();
    assert_eq!(calls.recv().await, calls.recv().await, "byte for byte");
    assert!(client.statistics().await.unwrap().silences >= 1);
    server.abort();
}

#[tokio::test]
async fn an_idle_client_says_over_its_connection_that_it_is_still_there() {
    let options = Options { renewal: Duration::from_millis(20), ..options() };
    let (client, mut line, _listener) = connected(options).await;
    let renewal = line.answer_well().await;
    assert_eq!((renewal.first, renewal.count), (op::SEQUENCE, 1));
    assert_eq!(client.statistics().await.unwrap().connections, 1);
}

#[tokio::test]
async fn what_is_no_rpc_ends_the_connection_and_the_next_one_goes_on() {
    let (client, mut line, listener) = connected(options()).await;
    let call = spawn_call(&client, reading(&client));
    let asked = line.asked().await;
    let long = u32::MAX.to_be_bytes();
    for garbage in
        [&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0][..], &[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]]
    {
        line.send(Bytes::copy_from_slice(garbage)).await;
        line = Line::accept(&listener).await;
        line.asked().await;
        assert_eq!(line.asked().await, asked);
    }
    line.stream.write_all(&long).await.unwrap();
    line = Line::accept(&listener).await;
    line.answer_well().await;
    line.answer_well().await;
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_that_breaks_at_once_again_and_again_is_given_up_some_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
        }
    });
    let options = Options { patience: Some(Duration::from_millis(50)), ..options() };
    assert_eq!(Client::connect(address, options).await.unwrap_err(), ClientError::Unreachable);
    server.abort();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_given_up_some_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let options = Options { patience: Some(Duration::from_millis(20)), ..options() };
    assert_eq!(Client::connect(address, options).await.unwrap_err(), ClientError::Unreachable);
}

#[tokio::test]
async fn a_recall_is_answered_told_and_obeyed() {
    let (client, mut line, _listener) = connected(options()).await;
    let mut notices = client.notices();
    line.send(callback(5, (1, 0), &[&recall()])).await;
    let answer = line.message().await.unwrap();
    assert_eq!(answer[..8], [0, 0, 0, 5, 0, 0, 0, 1]);
    let back = line.answer_well().await;
    assert_eq!((back.second, back.count), (op::PUTFH, 3));
    assert!(matches!(notices.recv().await, Ok(Notice::Recall(..))));
}

#[tokio::test]
async fn a_client_that_is_closed_gives_all_back() {
    let (client, mut line, _listener) = connected(options()).await;
    let other = client.clone();
    let close = tokio::spawn(client.close());
    assert_eq!(line.answer_well().await.first, op::DESTROY_SESSION);
    assert_eq!(line.answer_well().await.first, op::DESTROY_CLIENTID);
    close.await.unwrap().unwrap();
    assert_eq!(line.message().await, None);
    assert!(other.call(reading(&other)).await.is_err());
}

#[tokio::test]
async fn a_client_that_nobody_has_any_more_gives_all_back_too() {
    let (client, mut line, _listener) = connected(options()).await;
    drop(client);
    assert_eq!(line.answer_well().await.first, op::DESTROY_SESSION);
    assert_eq!(line.answer_well().await.first, op::DESTROY_CLIENTID);
    assert_eq!(line.message().await, None);
}

#[tokio::test]
async fn a_failure_says_which_operation_and_why() {
    let (client, mut line, _listener) = connected(options()).await;
    let call = spawn_call(&client, client.request().lookup(b"a"));
    let asked = line.asked().await;
    line.send(asked.ended(2, 2)).await;
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.status(), Some(Status::NoEntry));
    assert!(matches!(error, ClientError::Failed(Failure { index: 1, number: op::LOOKUP, .. })));
}
