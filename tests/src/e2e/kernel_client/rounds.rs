//! A script in a guest that does the same again and again, and says `round N` each time.

use std::fs;
use std::time::Duration;

use super::{KernelClient, ScriptNumber};
use crate::e2e::eventually;

/// For programs of an emulated kernel on a busy machine.
pub const KERNEL_LIMIT: Duration = Duration::from_secs(300);
/// How long a kernel's program may stand still: less than the minute after which a kernel sends again what was not answered on a
/// connection that seems to be there.
const STANDSTILL_LIMIT: Duration = Duration::from_secs(45);
/// Rounds that count as getting on.
const ROUNDS: usize = 5;

/// Such a script, which ends when it sees `$SHARE/enough`.
#[derive(Debug)]
pub struct Rounds<'a> {
    client: &'a mut KernelClient,
    script: ScriptNumber,
    seen: usize,
}

impl<'a> Rounds<'a> {
    /// Starts it.
    pub fn start(client: &'a mut KernelClient, script: &str) -> Self {
        let script = client.start(script);
        Self { client, script, seen: 0 }
    }

    /// Waits until it has got on, with no word of an error.
    ///
    /// # Panics
    /// If it stands still, or says so.
    #[track_caller]
    pub fn get_on(&mut self) {
        let target = self.seen + ROUNDS;
        eventually(STANDSTILL_LIMIT, "the kernel's program gets on", || {
            let output = self.client.output(self.script);
            assert!(!output.contains("rror"), "{output}");
            self.seen = output.lines().filter(|line| line.starts_with("round ")).count();
            self.seen >= target
        });
    }

    /// Tells it that this was enough, and waits for its end.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn end(self) {
        fs::write(self.client.share().join("enough"), "").expect("the shared directory");
        let outcome = self.client.finish(self.script, KERNEL_LIMIT);
        assert_eq!(outcome.status, 0, "{}\n{}", outcome.output, self.client.console());
    }
}
