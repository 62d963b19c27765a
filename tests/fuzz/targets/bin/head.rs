//! What comes before a body: the path, and the headers that go on to logs, guests and answers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| gateway::head::check(data));
