//! Preparation: what is deployed is compiled, loaded and tested in a child process with limits first. Only what
//! survived there is loaded by the server.

pub mod child;
mod explain;
pub mod job;
mod parent;
mod selftest;

pub use job::{Event, GraphReport, Host, Job, Prepared, Status};
pub use parent::run;
pub use selftest::compare_golden;

/// The stage that may fail without the deployment failing.
const BATCHING: &str = "batching";

/// Why a preparation failed. The message is for the person who deploys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// The module, a graph or the test.
    #[error("{0}")]
    Refused(String),
    /// This machine; says nothing about where things are on it.
    #[error("the preparation could not be run: {0}")]
    Host(String),
}
