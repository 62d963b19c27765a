//! Time, as the caller tells it.

/// A point in time or a span, in nanoseconds. Points are monotonic and count from whatever moment the caller likes; the
/// caller never goes back.
pub type Nanos = u64;

/// A millisecond.
pub const MILLISECOND: Nanos = 1_000_000;

/// A second.
pub const SECOND: Nanos = 1_000_000_000;

/// A point that never comes.
pub const NEVER: Nanos = Nanos::MAX;
