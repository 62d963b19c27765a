//! The sandbox from outside: real guests, real graphs.

mod cache;
mod command;
mod evict;
mod hostile;
mod http;
mod imports;
mod initialise;
mod isolation;
mod load;
mod model;
mod opened;
mod reuse;
mod support;
mod wat;
