//! Compressed bodies of requests: the first byte says how.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| gateway::body::check(data));
