//! The fuzzer's way to [`NfsTarget::V3`].
#![no_main]

use fuzz_harness::nfs::NfsTarget;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    NfsTarget::V3.run(bytes);
});
