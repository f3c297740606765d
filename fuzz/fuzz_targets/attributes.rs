//! The fuzzer's way to [`Target::Attributes`].
#![no_main]

use fuzz_harness::Target;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    Target::Attributes.run(bytes);
});
