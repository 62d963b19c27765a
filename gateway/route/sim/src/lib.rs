//! Gateways and sites in simulated time, around the very machine that the gateway runs.
//!
//! A [`Plan`] says what there is and what goes wrong; [`run`] lets it happen and gives a [`Record`]. One plan gives one
//! record: every number comes from the plan's seed. Each gateway has a [`Router`](windrose_route::Router) of its own and
//! drives one [`Attempts`](windrose_route::Attempts) for each request, as the gateway's dispatch loop does; the other
//! [rules] are there to be compared with.
//!
//! What is simulated: one-way delays with jitter, bandwidth, packets dropped or answers lost and sent again; queues with
//! a bound in front of engines with uneven inferences, other people's load in the same queue, cold starts; kills, resets,
//! refusals, errors, silence, broken and wrong answers; withdrawals that come too late; golden probes.

mod event;
pub mod fault;
mod gate;
mod record;
pub mod rules;
pub mod scenario;
mod site;
mod world;

pub use record::{Outcome, Record};
pub use site::{Model, exponential, normal};
pub use world::{Brain, Plan, run};
