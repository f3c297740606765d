//! Fault points: named places before and after each durable step, at which a test kills the real process.
//!
//! Only builds with the feature `fault-points` contain them; in all others [`point`] is empty and nothing reads the
//! environment. The program `tandem-torture` is such a build. Its environment variables:
//!
//! - `TANDEM_FAULT_POINT=name:count`: the process kills itself (SIGKILL) when it passes the point `name` for the
//!   `count`-th time.
//! - `TANDEM_FAULT_LIST=path`: a line `name count` is appended when a point is passed for the 1st, 2nd, 4th, 8th, … time
//!   in a process, and `killed name count` before the process kills itself. A process that finds such a line there when
//!   it starts no longer kills itself: the successor of the killed one lives.
//! - `TANDEM_TEST_BOOT_ID`: what counts as the kernel's boot id, so that a test can cut the power of a box.

#[cfg(not(feature = "fault-points"))]
mod absent {
    /// Passes the point `name`: nothing, without the feature `fault-points`.
    #[inline(always)]
    pub fn point(_name: &'static str) {}

    /// The boot id that a test has set: never one, without the feature `fault-points`.
    #[inline(always)]
    pub fn boot_id() -> Option<String> {
        None
    }
}

#[cfg(feature = "fault-points")]
mod present {
    use std::collections::HashMap;
    use std::fs::{File, OpenOptions};
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::{Mutex, OnceLock, PoisonError};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    /// What the environment asks for, and what was passed so far.
    struct Points {
        target: Option<(String, u64)>,
        list: Option<File>,
        passed: Mutex<HashMap<&'static str, u64>>,
    }

    /// Passes the point `name`. Ends the process if it is the one that the environment names.
    pub fn point(name: &'static str) {
        static POINTS: OnceLock<Points> = OnceLock::new();
        POINTS.get_or_init(Points::from_environment).pass(name);
    }

    /// The boot id that a test has set.
    pub fn boot_id() -> Option<String> {
        std::env::var("TANDEM_TEST_BOOT_ID").ok()
    }

    impl Points {
        fn from_environment() -> Self {
            let path = std::env::var_os("TANDEM_FAULT_LIST").map(PathBuf::from);
            let before = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
            let done = before.lines().any(|line| line.starts_with("killed "));
            let target = std::env::var("TANDEM_FAULT_POINT").ok().filter(|_| !done).map(|text| parse(&text));
            let list = path.map(|path| {
                let opened = OpenOptions::new().append(true).create(true).open(&path);
                opened.unwrap_or_else(|error| panic!("TANDEM_FAULT_LIST: {}: {error}", path.display()))
            });
            Self { target, list, passed: Mutex::default() }
        }

        fn pass(&self, name: &'static str) {
            if self.target.is_none() && self.list.is_none() {
                return;
            }
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            let count = passed.entry(name).or_default();
            *count += 1;
            let count = *count;
            if count.is_power_of_two() {
                self.note(&format!("{name} {count}\n"));
            }
            if self.target.as_ref().is_some_and(|(wanted, at)| wanted == name && *at == count) {
                self.note(&format!("killed {name} {count}\n"));
                let _ = kill(Pid::this(), Signal::SIGKILL);
                // The lock is still held: no other thread passes a point while the signal is on its way.
                loop {
                    std::thread::park();
                }
            }
        }

        fn note(&self, line: &str) {
            if let Some(mut list) = self.list.as_ref() {
                // One write each, so that lines of several processes do not mix.
                let _ = list.write_all(line.as_bytes());
            }
        }
    }

    fn parse(text: &str) -> (String, u64) {
        let parsed = text.rsplit_once(':').and_then(|(name, count)| Some((name.to_owned(), count.parse().ok()?)));
        parsed.unwrap_or_else(|| panic!("TANDEM_FAULT_POINT is name:count, not {text}"))
    }
}

#[cfg(not(feature = "fault-points"))]
pub use absent::{boot_id, point};
#[cfg(feature = "fault-points")]
pub use present::{boot_id, point};
