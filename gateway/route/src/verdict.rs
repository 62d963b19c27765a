//! What the head of an answer says about who gave it.

use crate::time::Nanos;

/// What an answer's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An answer for the client.
    Answer,
    /// An error that is the caller's, and that another replica would give as well: it is the answer, and what others failed
    /// at was the request. It says nothing about this one, neither that it is well nor how quick it is: to refuse takes less
    /// than to answer.
    Rejected,
    /// An error that is the module's own: the client gets it, for another replica would give it as well, and it says nothing
    /// about this one, neither that it failed nor how quick it is.
    Module,
    /// The server failed.
    Failed,
    /// The graph failed at it. Mostly that is the input's doing, at times the machine's: another replica is asked, and
    /// where that says the same, and one of them was well just before, it is the answer.
    Graph,
    /// The server has too much to do; nothing is to come before that time, if it said one.
    Overloaded {
        /// From `Retry-After`.
        until: Option<Nanos>,
    },
    /// Whose request it is has its share of the server, which may have room for others: it may try elsewhere, and no other's
    /// request is kept from the server for it.
    OverShare {
        /// From `Retry-After`: until then that tenant's requests are.
        until: Option<Nanos>,
    },
    /// The server says that the client's deadline passed: there is no more time anywhere else, and it counts as a lost race
    /// does.
    TooLate,
    /// The server says that it does not serve this model or digest. A gateway then did not run it; of another server nobody
    /// knows who says so.
    NotHere,
    /// A gateway says that the law does not let it answer, and so did not run it: it has another fleet file, as for a
    /// while when that changes. Another replica is asked, which costs no budget, and it says nothing about this one.
    Unlawful,
}

impl Verdict {
    /// What a status means when nothing else is known about the server: 429, and 503 with `Retry-After`, are overload,
    /// every other 5xx a failure, every other 4xx the caller's, the rest an answer. `retry_at` is `Retry-After` as a point in
    /// time.
    pub fn of(status: u16, retry_at: Option<Nanos>) -> Verdict {
        match (status, retry_at) {
            (429, until) => Verdict::Overloaded { until },
            (503, Some(until)) => Verdict::Overloaded { until: Some(until) },
            (500.., _) => Verdict::Failed,
            (400.., _) => Verdict::Rejected,
            _ => Verdict::Answer,
        }
    }
}
