//! The gateway from outside: real listeners, real sandboxes, real graphs.

mod batching;
mod cli;
mod deploy;
mod oip;
mod oip_bad_input;
mod oip_life;
mod server;
mod setup;
