//! Bodies of JSON with binary data behind it: two bytes say how long the JSON is.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((length, body)) = data.split_first_chunk::<2>() else { return };
    gateway::check(&body.to_vec().into(), Some(usize::from(u16::from_le_bytes(*length))));
});
