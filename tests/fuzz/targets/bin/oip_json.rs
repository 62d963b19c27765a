//! Bodies of JSON alone, as requests and as answers of the Open Inference Protocol.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| gateway::check(&data.to_vec().into(), None));
