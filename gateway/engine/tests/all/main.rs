//! The crate from outside, on real engines and the graphs of `models/test`.

mod apart;
mod batching;
mod calibrate;
mod contract;
mod engines;
mod hand_off;
mod isolated;
mod refusals;
mod setup;
mod weights;
