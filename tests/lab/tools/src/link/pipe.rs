//! One direction of one link: how long a packet takes, and which are lost.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

/// A link in one direction. As it begins it is down.
#[derive(Clone, Debug, Default)]
pub struct Pipe {
    /// Whether it carries anything.
    pub up: bool,
    /// How long a packet takes once it was sent.
    pub delay: Duration,
    /// Bytes a second; no limit where 0.
    pub rate: u64,
    /// Bytes that may wait to be sent; what finds no room is lost.
    pub queue: u64,
    /// The share of packets that is lost, 0 to 1.
    pub loss: f64,
    /// Packets that were carried.
    pub packets: u64,
    /// Their bytes, IP headers included.
    pub bytes: u64,
    /// Packets that were not.
    pub lost: u64,
    /// When the last packet will have been sent.
    free: Option<Instant>,
}

impl Pipe {
    /// When a packet of so many bytes that enters now arrives; `None` when it is lost. `luck` is in `0..1`.
    pub fn enter(&mut self, length: usize, now: Instant, luck: f64) -> Option<Instant> {
        let length = length as u64;
        let begins = self.free.map_or(now, |free| free.max(now));
        let room = self.rate == 0 || self.bytes_in(begins - now) + length <= self.queue;
        if !self.up || !room || luck < self.loss {
            self.lost += 1;
            return None;
        }
        let sent = begins + self.time_for(length);
        self.free = Some(sent);
        self.packets += 1;
        self.bytes += length;
        Some(sent + self.delay)
    }

    fn time_for(&self, bytes: u64) -> Duration {
        match self.rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(bytes as f64 / rate as f64),
        }
    }

    fn bytes_in(&self, time: Duration) -> u64 {
        (time.as_secs_f64() * self.rate as f64) as u64
    }
}

/// A packet on its way.
pub struct Packet {
    /// When it arrives.
    pub due: Instant,
    /// Of two that arrive together, the one with the lower number goes first.
    pub sequence: u64,
    /// The site that it is for.
    pub to: usize,
    /// The packet, from its IP header on.
    pub bytes: Vec<u8>,
}

// === impl Packet ===

/// The greatest packet is the one that arrives first, since `BinaryHeap` has the greatest on top.
impl Ord for Packet {
    fn cmp(&self, other: &Packet) -> Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Packet) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Packet {
    fn eq(&self, other: &Packet) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Packet {}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pipe() -> Pipe {
        Pipe { up: true, delay: 15 * MS, ..Pipe::default() }
    }

    #[test]
    fn a_packet_arrives_after_the_delay() {
        let now = Instant::now();
        assert_eq!(pipe().enter(1_500, now, 0.5), Some(now + 15 * MS));
    }

    #[test]
    fn a_rate_makes_packets_wait_for_each_other_and_a_full_queue_loses_them() {
        let now = Instant::now();
        let mut pipe = Pipe { rate: 1_000_000, queue: 3_000, ..pipe() };
        let arrivals: Vec<_> = (0..4).map(|_| pipe.enter(1_000, now, 0.5)).collect();
        let after = |ms| Some(now + ms * MS);
        assert_eq!(arrivals, [after(16), after(17), after(18), None]);
        assert_eq!((pipe.packets, pipe.bytes, pipe.lost), (3, 3_000, 1));
        assert_eq!(pipe.enter(1_000, now + 10 * MS, 0.5), after(26), "the queue is empty again");
    }

    #[test]
    fn a_link_that_is_down_or_unlucky_carries_nothing() {
        let now = Instant::now();
        assert_eq!(Pipe::default().enter(100, now, 0.99), None);
        let mut pipe = Pipe { loss: 0.2, ..pipe() };
        assert_eq!(pipe.enter(100, now, 0.19), None);
        assert!(pipe.enter(100, now, 0.2).is_some());
        assert_eq!((pipe.packets, pipe.lost), (1, 1));
    }

    #[test]
    fn the_heap_gives_packets_in_the_order_of_their_arrival() {
        let now = Instant::now();
        let packet = |ms, sequence| Packet { due: now + ms * MS, sequence, to: 1, bytes: Vec::new() };
        let mut heap = std::collections::BinaryHeap::from([packet(5, 1), packet(1, 2), packet(5, 0), packet(3, 3)]);
        let order: Vec<u64> = std::iter::from_fn(|| heap.pop()).map(|packet| packet.sequence).collect();
        assert_eq!(order, [2, 3, 0, 1]);
    }
}
