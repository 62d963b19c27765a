// How the build script and the module place tokens in the table; both include this file.

/// Places in the table, more than twice the tokens.
const SLOTS: usize = 1 << 16;
/// A place without a token.
const EMPTY: u16 = u16::MAX;
/// Where a hash starts.
const SEED: u32 = 0x811c_9dc5;

/// The hash (FNV-1a) of a string with one byte more.
fn mix(hash: u32, byte: u8) -> u32 {
    (hash ^ byte as u32).wrapping_mul(0x0100_0193)
}

/// Where a hash belongs.
fn slot(hash: u32) -> usize {
    ((hash >> 16) ^ hash) as usize % SLOTS
}
