//! Everything that needs no more than the crate's public face.

mod attempts;
mod budgets;
mod choice;
mod fleet;
mod law;
mod poison;
mod upload;
