//! The fuzzer's way to [`NfsTarget::Record`].
#![no_main]

use fuzz_harness::nfs::NfsTarget;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    NfsTarget::Record.run(bytes);
});
