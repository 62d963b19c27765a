//! The memory that bodies take, of requests and of answers, counted against one total. Requests wait for nothing here: what
//! would go beyond the total is refused. An answer that is there already is counted, and what comes next pays for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::DataPlane;
use crate::error::Error;
use crate::telemetry::Telemetry;

/// Bytes that somebody holds, given back when dropped.
pub(super) struct Lease {
    telemetry: Arc<Telemetry>,
    max_total: usize,
    held: usize,
}

/// The bytes of an answer, counted until the last of them has been taken.
struct Counted {
    bytes: Bytes,
    _lease: Lease,
}

impl Lease {
    /// Holds nothing yet.
    pub fn new(plane: &DataPlane) -> Lease {
        Lease { telemetry: plane.telemetry.clone(), max_total: plane.config.max_body_total, held: 0 }
    }

    /// Another of the same total, for what goes its own way.
    pub fn another(&self) -> Lease {
        Lease { telemetry: self.telemetry.clone(), max_total: self.max_total, held: 0 }
    }

    /// Holds `bytes` more, before they are there.
    ///
    /// # Errors
    /// [`Error::no_memory`] where all together then hold more than they may.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        if self.count(bytes) > self.max_total as u64 {
            return Err(Error::no_memory());
        }
        Ok(())
    }

    /// Holds what the other one does.
    pub fn absorb(&mut self, mut other: Lease) {
        self.held += std::mem::take(&mut other.held);
    }

    /// These bytes of an answer, which hold a part of the memory until the last copy of them has gone.
    pub fn of_answer(plane: &DataPlane, bytes: Bytes) -> Bytes {
        let mut lease = Lease::new(plane);
        lease.count(bytes.len());
        Bytes::from_owner(Counted { bytes, _lease: lease })
    }

    /// Holds `bytes` more; what all together hold then.
    fn count(&mut self, bytes: usize) -> u64 {
        self.held += bytes;
        let before = self.telemetry.connections.body_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        before.saturating_add(bytes as u64)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.telemetry.connections.body_bytes.fetch_sub(self.held as u64, Ordering::Relaxed);
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
pub(super) mod tests {
    use arc_swap::ArcSwap;

    use super::*;
    use crate::error::Kind;
    use crate::http::HttpConfig;
    use crate::snapshot::Snapshot;

    /// A data plane that serves nothing, with so much memory for bodies.
    pub fn plane(max_body_total: usize) -> Arc<DataPlane> {
        let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        DataPlane::new(current, Telemetry::new(), HttpConfig { max_body_total, ..HttpConfig::default() })
    }

    /// What is counted as held.
    pub fn held(plane: &DataPlane) -> u64 {
        plane.telemetry.connections.body_bytes.load(Ordering::Relaxed)
    }

    #[test]
    fn what_is_refused_and_what_is_dropped_holds_nothing() {
        let plane = plane(10);
        let (mut one, mut other) = (Lease::new(&plane), Lease::new(&plane));
        one.grow(6).unwrap();
        assert_eq!(other.grow(5).unwrap_err().kind, Kind::Overloaded);
        drop(other);
        let mut other = one.another();
        other.grow(4).unwrap();
        one.absorb(other);
        assert_eq!(held(&plane), 10);
        drop(one);
        assert_eq!(held(&plane), 0);
    }

    #[test]
    fn an_answer_is_never_refused_and_holds_its_part_until_its_last_piece_has_gone() {
        let plane = plane(10);
        let mut answer = Lease::of_answer(&plane, Bytes::from_static(b"longer than the memory"));
        assert_eq!(held(&plane), 22);
        assert_eq!(Lease::new(&plane).grow(0).unwrap_err().kind, Kind::Overloaded);
        let piece = answer.split_to(6);
        drop(answer);
        assert_eq!((&*piece, held(&plane)), (&b"longer"[..], 22));
        drop(piece);
        assert_eq!(held(&plane), 0);
        Lease::new(&plane).grow(10).unwrap();
    }
}
