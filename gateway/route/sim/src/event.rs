//! The list of what happens next.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use windrose_route::{Event as Fate, Nanos};

/// Something that happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// A request comes in at a gateway.
    Arrive { gateway: usize },
    /// A request's machine wants to be polled.
    Timer { request: usize, until: Nanos },
    /// A job reaches its site.
    AtSite { job: usize },
    /// A site has done a job.
    Served { job: usize, epoch: u32 },
    /// News of a job reach its gateway.
    Back { job: usize, fate: Fate, wrong: bool },
    /// A withdrawal reaches a job's site.
    Withdraw { job: usize },
    /// A gateway probes a site.
    Probe { gateway: usize, site: usize },
    /// A probe has taken too long.
    ProbeOver { job: usize },
    /// A rule's own probe comes back.
    RuleProbe { gateway: usize, site: usize, in_flight: u32, latency: Nanos },
    /// Somebody else's request comes in at a site, as this fault says.
    Other { fault: usize },
    /// A fault begins, or ends.
    Edge { fault: usize, begins: bool },
}

#[derive(Debug)]
struct Entry {
    at: Nanos,
    number: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    // The heap gives the greatest: the earliest, and of one time the first that was put in.
    fn cmp(&self, other: &Entry) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// Events in the order of time; of one time in the order in which they were put in.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    heap: BinaryHeap<Entry>,
    number: u64,
}

impl Agenda {
    pub(crate) fn put(&mut self, at: Nanos, event: Event) {
        self.number += 1;
        self.heap.push(Entry { at, number: self.number, event });
    }

    pub(crate) fn next(&mut self) -> Option<(Nanos, Event)> {
        self.heap.pop().map(|entry| (entry.at, entry.event))
    }
}
