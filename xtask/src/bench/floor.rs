//! What the network alone costs on this machine: a bare round trip on loopback, blocking sockets and nothing else.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A 4 KiB write's request, and its acknowledgement, both with a small header.
const REQUEST_BYTES: usize = 4096 + 28;
const ANSWER_BYTES: usize = 16;
/// Not counted at the start.
const WARM_UP: Duration = Duration::from_millis(100);

/// Microseconds that a 4 KiB request and its small answer take on loopback: the mean over `duration`.
pub(super) fn round_trip_us(duration: Duration) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
    let mut asking = TcpStream::connect(listener.local_addr()?).context("connecting on loopback")?;
    let (mut answering, _) = listener.accept()?;
    asking.set_nodelay(true)?;
    answering.set_nodelay(true)?;
    let echo = thread::spawn(move || {
        let (mut request, answer) = ([0; REQUEST_BYTES], [0; ANSWER_BYTES]);
        // Ends with the connection.
        while answering.read_exact(&mut request).is_ok() && answering.write_all(&answer).is_ok() {}
    });
    let (request, mut answer) = ([0; REQUEST_BYTES], [0; ANSWER_BYTES]);
    let mut exchange = |until: Duration| -> Result<f64> {
        let (started, mut times) = (Instant::now(), 0u32);
        while times == 0 || started.elapsed() < until {
            asking.write_all(&request)?;
            asking.read_exact(&mut answer)?;
            times += 1;
        }
        Ok(started.elapsed().as_secs_f64() * 1e6 / f64::from(times))
    };
    exchange(WARM_UP)?;
    let mean = exchange(duration)?;
    drop(asking);
    let _ = echo.join();
    Ok(mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_takes_some_time() {
        let mean = round_trip_us(Duration::from_millis(20)).expect("loopback works");
        assert!(mean > 0.0 && mean.is_finite(), "{mean}");
    }
}
