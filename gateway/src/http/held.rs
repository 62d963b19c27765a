//! A body in memory as it came, in pieces, without more of them than pay: a piece takes memory of its own, however little is in
//! it.

use bytes::Bytes;

/// Pieces that are kept as they come. What comes after them is copied into one.
const PIECES: usize = 64;

/// What has come of a body.
#[derive(Default)]
pub(super) struct Held {
    pieces: Vec<Bytes>,
    rest: Vec<u8>,
    length: usize,
}

impl Held {
    /// Adds what came next.
    pub fn push(&mut self, piece: Bytes) {
        self.length += piece.len();
        if self.pieces.len() < PIECES {
            self.pieces.push(piece);
        } else {
            self.rest.extend_from_slice(&piece);
        }
    }

    /// Bytes so far.
    pub fn length(&self) -> usize {
        self.length
    }

    /// All of it, in order.
    pub fn pieces(mut self) -> Vec<Bytes> {
        if !self.rest.is_empty() {
            self.pieces.push(self.rest.into());
        }
        self.pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pieces_stay_what_they_are_and_many_small_ones_become_one() {
        for (pieces, length) in [(0, 7), (1, 7), (PIECES, 7), (PIECES + 1, 7), (10_000, 1)] {
            let all: Vec<u8> = (0..pieces * length).map(|byte| byte as u8).collect();
            let mut held = Held::default();
            let came: Vec<Bytes> = all.chunks(length).map(Bytes::copy_from_slice).collect();
            came.iter().for_each(|piece| held.push(piece.clone()));
            assert_eq!(held.length(), all.len());
            let kept = held.pieces();
            assert_eq!(kept.concat(), all);
            assert!(kept.len() <= PIECES + 1);
            assert!(kept.iter().zip(&came).take(PIECES).all(|(kept, came)| kept.as_ptr() == came.as_ptr()));
        }
    }
}
