//! What a request's attempts and their caller tell each other.

use crate::explain::Purpose;
use crate::law::Breach;
use crate::replica::ReplicaId;
use crate::time::Nanos;
use crate::verdict::Verdict;

/// One attempt of a request: 0 is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttemptId(pub u8);

/// What the caller is to do now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Send the request to this replica, and poll again.
    Send {
        /// The name of this attempt in events.
        attempt: AttemptId,
        /// Where to.
        replica: ReplicaId,
        /// What the attempt is for.
        purpose: Purpose,
    },
    /// Reset this attempt's stream, drop what it holds, and poll again. It needs no further event.
    Cancel {
        /// Which.
        attempt: AttemptId,
    },
    /// Poll again at this time, or after the next event.
    Wait {
        /// When; [`NEVER`](crate::NEVER) if only an event can change anything.
        until: Nanos,
    },
    /// Give this attempt's answer to the client. Comes once; [`Action::Fail`] does not come then.
    Finish {
        /// Whose.
        attempt: AttemptId,
    },
    /// Tell the client that there is no answer. Comes once.
    Fail(Failure),
    /// Nothing is left to do.
    Done,
}

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Failure {
    /// What is said.
    pub reason: Reason,
    /// Where replicas have too much to do: when the first of them may be asked, as far as they said.
    pub retry_at: Option<Nanos>,
    /// The attempt whose error could be shown, if one got as far as a head.
    pub attempt: Option<AttemptId>,
    /// How many attempts were sent.
    pub attempts: u8,
}

/// The reason of a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No replica is lawful. Nothing was sent.
    Law(Breach),
    /// No lawful replica serves what the deployment allows, with the grants that it needs.
    NoReplica,
    /// Those that could answer have too much to do.
    Overloaded,
    /// The deadline passed.
    Deadline,
    /// Attempts failed, and another may not be made or would not help.
    Failed,
    /// Attempts failed, and the budget allows no other.
    Budget,
}

/// What happened to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// No connection: nothing was sent.
    ConnectFailed,
    /// The server says that it did not process the request: a refused stream, or a stream above the last one that a
    /// GOAWAY names.
    Refused,
    /// The connection or the stream broke before a head; perhaps something ran.
    Reset,
    /// The head of an answer.
    Head(Verdict),
    /// The whole body came within the bound of what is held; so many bytes.
    Whole {
        /// The body's size.
        bytes: u64,
    },
    /// The body is larger than what is held, or is not held at all: from here on it goes to the client.
    Overflow,
    /// A body that had overflowed came to its end.
    Complete,
    /// The body broke off.
    Cut,
    /// The caller's own limit for this attempt passed.
    TimedOut,
    /// Since it was sent it has waited so long altogether for more of the request's body, which is none of the replica's time.
    /// The caller tells it before each poll and event for as long as it grows.
    Waited {
        /// The sum so far.
        client: Nanos,
    },
}
