//! What the store holds of deployments: revisions, and the records that they name.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| gateway::control::check_stored(data));
