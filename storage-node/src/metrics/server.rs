//! `GET /metrics` by HTTP/1.1, and nothing else. A connection has one request and one reply; few at a time, each within a deadline,
//! so whoever is slow or many hinders nobody but others who ask.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::admin::NodeOperations;
use crate::net::transport::{Listener, Stream};

/// Connections at once; more are closed.
pub(super) const CONNECTIONS_MAX: usize = 8;
/// Bytes of a request.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// How long a request may take to come.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a reply may take to be read.
const REPLY_TIME_MAX: Duration = Duration::from_secs(10);
/// Whoever asks within this gets the same text as the one before.
const KEPT: Duration = Duration::from_millis(500);
/// Rest after a failed accept (out of descriptors).
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// What the text is.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The newest text, and when it was made.
type Kept = Mutex<Option<(Instant, Arc<str>)>>;

/// Serves until `closing` is cancelled.
pub(crate) async fn serve(listener: Listener, operations: Arc<dyn NodeOperations>, closing: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let shared = Arc::new((operations, Kept::default()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "the metrics listener cannot accept");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (shared, closing) = (Arc::clone(&shared), closing.clone());
        tokio::spawn(async move {
            let (operations, kept) = (&*shared.0, &shared.1);
            tokio::select! {
                () = answer(stream, operations, kept) => {}
                () = closing.cancelled() => {}
            }
            drop(place);
        });
    }
}

/// One request and its reply.
async fn answer(mut stream: Stream, operations: &dyn NodeOperations, kept: &Kept) {
    let Ok(Some(head)) = tokio::time::timeout(REQUEST_TIME_MAX, read_head(&mut stream)).await else {
        debug!("metrics: no request came");
        return;
    };
    let reply = match parse(&head) {
        Asked::Metrics { only_head } => reply("200 OK", &text(operations, kept).await, only_head),
        Asked::Other => reply("404 Not Found", "metrics are at /metrics\n", false),
        Asked::Change => reply("405 Method Not Allowed", "only GET and HEAD are answered\n", false),
        Asked::Nonsense => reply("400 Bad Request", "this is no HTTP/1 request\n", false),
    };
    let sending = async {
        stream.write_all(reply.as_bytes()).await?;
        stream.shutdown().await
    };
    match tokio::time::timeout(REPLY_TIME_MAX, sending).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "metrics: the reply was not read"),
        Err(_) => debug!("metrics: the reply was not read in time"),
    }
}

/// The metrics; made by one at a time.
async fn text(operations: &dyn NodeOperations, kept: &Kept) -> Arc<str> {
    let mut kept = kept.lock().await;
    if let Some((made, text)) = &*kept
        && made.elapsed() < KEPT
    {
        return Arc::clone(text);
    }
    let text: Arc<str> = super::collect(operations).await.into();
    *kept = Some((Instant::now(), Arc::clone(&text)));
    text
}

/// Bytes up to the empty line; none if there is no such line within the bound.
async fn read_head(stream: &mut Stream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    loop {
        let count = stream.read(&mut part).await.ok().filter(|count| *count > 0)?;
        head.extend_from_slice(part.get(..count)?);
        if head.len() > REQUEST_BYTES_MAX {
            return None;
        }
        if head.windows(4).any(|window| window == b"\r\n\r\n") || head.windows(2).any(|window| window == b"\n\n") {
            return Some(head);
        }
    }
}

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Metrics { only_head: bool },
    Other,
    Change,
    Nonsense,
}

fn parse(head: &[u8]) -> Asked {
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words.as_slice() else { return Asked::Nonsense };
    if !version.starts_with(b"HTTP/1.") {
        return Asked::Nonsense;
    }
    let only_head = *method == b"HEAD";
    if !only_head && *method != b"GET" {
        return Asked::Change;
    }
    match target.split(|byte| *byte == b'?').next() {
        Some(b"/metrics") => Asked::Metrics { only_head },
        _ => Asked::Other,
    }
}

fn reply(status: &str, body: &str, only_head: bool) -> String {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    if only_head { head } else { head + body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_metrics_are_there_and_only_to_be_read() {
        let table: [(&[u8], Asked); 8] = [
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Asked::Metrics { only_head: false }),
            (b"GET /metrics?x=1 HTTP/1.0\n\n", Asked::Metrics { only_head: false }),
            (b"HEAD /metrics HTTP/1.1\r\n\r\n", Asked::Metrics { only_head: true }),
            (b"GET / HTTP/1.1\r\n\r\n", Asked::Other),
            (b"POST /metrics HTTP/1.1\r\n\r\n", Asked::Change),
            (b"GET /metrics HTTP/2\r\n\r\n", Asked::Nonsense),
            (b"\xff\xfe\r\n\r\n", Asked::Nonsense),
            (b"", Asked::Nonsense),
        ];
        for (head, expected) in table {
            assert_eq!(parse(head), expected, "{}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn a_reply_tells_its_length_and_ends_the_connection() {
        let whole = reply("200 OK", "x 1\n", false);
        assert!(whole.contains("Content-Length: 4\r\n") && whole.ends_with("\r\n\r\nx 1\n"));
        assert!(reply("200 OK", "x 1\n", true).ends_with("Connection: close\r\n\r\n"));
    }
}
