//! What goes wrong, where and when.

use windrose_route::Nanos;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The process is killed: what it held is reset, and connections are refused.
    Killed,
    /// Every packet is dropped, both ways.
    Silent,
    /// Each answer is lost with this probability and sent again after 200 ms, doubled each time.
    Loss(f64),
    /// Answers leave so much later.
    Late(Nanos),
    /// This share of requests is answered with 500; at once, or after the work.
    Errors {
        /// From 0 to 1.
        share: f64,
        /// Before any work.
        fast: bool,
    },
    /// Requests are taken and never answered.
    Mute,
    /// This share of answers breaks off after the head.
    Cut(f64),
    /// Answers are wrong.
    Wrong,
    /// Somebody else sends so many requests a second, which wait in the same queue.
    Crowded(f64),
    /// Streams are refused: it is about to stop.
    Draining,
    /// Everything takes longer by this factor.
    Slow(f64),
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// The index of the site.
    pub site: usize,
    /// The index of the one gateway that it stands between, for a fault of the network; `None` for all.
    pub gateway: Option<usize>,
    /// When it begins.
    pub from: Nanos,
    /// When it ends.
    pub to: Nanos,
    /// What.
    pub kind: Kind,
}

impl Fault {
    /// Whether it is there at this time, as this gateway sees it.
    pub fn is_on(&self, gateway: usize, now: Nanos) -> bool {
        (self.from..self.to).contains(&now) && self.gateway.is_none_or(|one| one == gateway)
    }
}
