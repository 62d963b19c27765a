//! Which replica answers a request, and what happens when it does not.
//!
//! This crate reads no clock, does no I/O and knows no runtime: the caller tells the time in nanoseconds and gives the
//! seed. So the gateway and a simulator run the same code, and a decision can be had again from its seed.
//!
//! A [`Router`] is what one gateway knows about one model's replicas. [`Attempts`] is one request: a machine that says
//! whom to ask, when to ask another, whom to cancel, and whose answer the client gets. It takes `&mut Router` for each
//! step, so that a caller can keep the router behind a mutex that it holds for a microsecond.
//!
//! # How to drive a request
//!
//! ```
//! use windrose_route::{Action, AttemptId, Attempts, Call, Event, MILLISECOND, Random, Router, SECOND, Settings, Verdict};
//! # use std::sync::Arc;
//! # use windrose_route::{Grants, Nature, Price, Replica, Serves, Site};
//! # let digest = [7; 32];
//! # let site = |name: &str| Arc::new(Site {
//! #     name: name.into(), cloud: "c".into(), region: "r".into(), jurisdiction: None, price: Price::default() });
//! # let replica = |name: &str, distance| Replica {
//! #     site: site(name), nature: Nature::Peer, serves: Serves::Digest(digest), grants: Grants::NONE, distance, weight: 1 };
//! let mut router = Router::new(Settings { digests: vec![digest], ..Settings::default() }, Random::seeded(1));
//! router.update(vec![replica("near", MILLISECOND), replica("far", 30 * MILLISECOND)], 0);
//!
//! let mut attempts = Attempts::new(Call::until(10 * SECOND));
//! // Poll until it says to wait, and do what it says.
//! let Action::Send { attempt, replica, .. } = attempts.poll(&mut router, 0) else { unreachable!() };
//! assert_eq!(router.replica(replica).map(|r| &*r.site.name), Some("near"));
//! let Action::Wait { until } = attempts.poll(&mut router, 0) else { unreachable!() };
//! // Then wait until that time or for what happens to an attempt, say so, and poll again.
//! attempts.on(&mut router, attempt, Event::ConnectFailed, MILLISECOND);
//! let Action::Send { attempt, .. } = attempts.poll(&mut router, MILLISECOND) else { unreachable!() };
//! attempts.on(&mut router, attempt, Event::Head(Verdict::of(200, None)), 31 * MILLISECOND);
//! attempts.on(&mut router, attempt, Event::Whole { bytes: 200 }, 32 * MILLISECOND);
//! assert_eq!(attempts.poll(&mut router, 32 * MILLISECOND), Action::Finish { attempt: AttemptId(1) });
//! assert_eq!(attempts.poll(&mut router, 32 * MILLISECOND), Action::Done);
//! ```
//!
//! - **Answers are held.** The caller keeps an answer's body until [`Event::Whole`], or until it is larger than its bound:
//!   [`Event::Overflow`]. An answer that must flow at once overflows with its head. [`Action::Finish`] follows, and no
//!   attempt is made after it. After an overflow the caller still tells the end: [`Event::Complete`] or [`Event::Cut`].
//! - **An error status is not an answer** unless it is the caller's ([`Verdict::Rejected`]) or the module's own
//!   ([`Verdict::Module`]). The bodies of failed
//!   attempts can be dropped, except that of the last one with a head, which [`Failure::attempt`] may name.
//! - **A deadline is the client's** ([`Verdict::TooLate`]): no other replica has more time, so nothing is tried again. It says
//!   of a replica what a lost race says.
//! - **A body that comes slowly** is waited for by the attempt that sends it on: [`Event::Waited`] says how much of its time
//!   was the client's.
//! - **Cancelled attempts** are reset; events that still come from them change nothing.
//! - **A request that is dropped** before [`Action::Done`] must be [abandoned](Attempts::abandon), or its replicas keep
//!   it in their count of requests in flight.
//! - **Time** never goes back. Two calls may have the same time.
//!
//! Beside requests, the caller tells the router what it learns: the fleet ([`Router::update`]), what is ready where
//! ([`Router::serves`]), loads ([`Router::report`]) and probes ([`Router::probed`]); and it takes what a log should show
//! ([`Router::take_changes`]).
//!
//! # How a replica is chosen
//!
//! Filters first, and each fails closed: the law of the data, digests, grants, readiness, health, limits. What is left has
//! a score, the latency to expect: the quickest answer of late, plus what answers of late took beyond that in proportion
//! to the requests in flight now, and no less than its reported queue would take. Among scores as good as the best the
//! price decides, and among equals the better of two drawn at random.
//!
//! # What is said about a replica
//!
//! Failures in a row eject it; then one request at a time tries whether it is back, and its share grows from a tenth. An
//! attempt that was cancelled counts against its replica only as far as it was late against that replica's own history:
//! losing a race is no fault by itself, so a far site that is asked as a hedge is never ejected for being far. A request
//! to which every replica that was asked, and more than one was, answered with an error is to blame itself, and so is one
//! that failed at some and that another then says is wrong, or that the graphs of two fail at, one of which had just
//! answered another. An ejection that such failures made is taken back: the replica
//! stands as if they had not been. When every replica is out, the best one is asked all
//! the same; but one that answers golden inputs wrongly only if all do.

mod action;
mod attempts;
mod budget;
mod call;
mod choose;
mod explain;
mod health;
mod history;
mod hot;
mod law;
mod limit;
mod random;
mod replica;
mod router;
mod settings;
mod shares;
mod tally;
mod time;
mod verdict;

pub use action::{Action, AttemptId, Event, Failure, Reason};
pub use attempts::{Attempts, MAX_ATTEMPTS};
pub use budget::Budgets;
pub use call::{Call, Hedging};
pub use explain::{Candidate, Considered, Decision, Explanation, Purpose, Refusal, SHOWN};
pub use health::Ejection;
pub use law::{Breach, Jurisdiction, NotAJurisdiction, Rules, Source};
pub use random::Random;
pub use replica::{Digest, Grants, Load, Nature, Price, Replica, ReplicaId, Serves, Site};
pub use router::{Change, Probe, Router, Standing};
pub use settings::{Policy, Settings};
pub use time::{MILLISECOND, NEVER, Nanos, SECOND};
pub use verdict::Verdict;
