//! The fuzzer's way to [`Target::Readdir`].
#![no_main]

use fuzz_harness::Target;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    Target::Readdir.run(bytes);
});
