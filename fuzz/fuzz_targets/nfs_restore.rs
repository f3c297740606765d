//! The fuzzer's way to [`NfsTarget::Restore`].
#![no_main]

use fuzz_harness::nfs::NfsTarget;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    NfsTarget::Restore.run(bytes);
});
