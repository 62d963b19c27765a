//! The parts of the network tests that must be cheap on CPU; `tests/lab` starts them.

mod due;
mod front;
mod link;
mod load;
mod peer;
mod rules;
mod storm;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// What the network tests drive.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Carries packets between sites, with delays, bandwidth limits and loss. Commands arrive on standard input, a
    /// sequenced-packet socket; ends when that closes.
    Link(link::Arguments),
    /// Stands before a gateway and misbehaves when told to. Commands arrive as lines on standard input; ends when that
    /// closes.
    Front(front::Arguments),
    /// Sends requests at a fixed rate and writes what became of each.
    Load(load::Arguments),
    /// Sends requests to gateways that are slowed, each to the one that a rule chooses, by one rule after the other.
    Rules(rules::Arguments),
    /// Sends the same request again and again, as fast as it is answered.
    Storm(storm::Arguments),
}

fn main() -> Result<()> {
    match Arguments::parse().part {
        Part::Link(arguments) => link::run(&arguments),
        Part::Front(arguments) => front::run(arguments),
        Part::Load(arguments) => load::run(arguments),
        Part::Rules(arguments) => rules::run(arguments),
        Part::Storm(arguments) => storm::run(&arguments),
    }
}
