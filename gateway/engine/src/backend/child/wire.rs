//! What both ends say to each other about one run. A frame of fixed size goes over the session's socket; names of types,
//! shapes and places lie in the session's shared memory, where the tensors are, and are copied out before they are read.
//! What a child says about its graph comes over its own socket, as one message.

use std::collections::BTreeMap;

use crate::{DataType, EngineError};

/// Bytes of a frame.
pub(super) const FRAME: usize = 24;
/// Tensors start at multiples of this, as every element type likes it.
const ALIGN: u64 = 64;
/// Longest message of an error, bytes.
const MAX_MESSAGE: usize = 4_096;
/// Bytes that are always free behind a run's inputs: an error has its place there, whatever the inputs took.
pub(super) const ROOM: u64 = 2 * MAX_MESSAGE as u64;
/// Most dimensions of a tensor.
const MAX_RANK: usize = crate::onnx::MAX_RANK;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// To the child: run what the header describes.
    Run = 1,
    /// To the child: the memory has grown as asked.
    Grown = 2,
    /// To the child: it may not grow so far; the run's outputs are given up.
    Refused = 3,
    /// From the child: the outputs are where the header says.
    Done = 4,
    /// From the child: the run failed; the header is the error.
    Failed = 5,
    /// From the child: the outputs need memory up to `size`.
    Grow = 6,
}

/// One message about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub kind: Kind,
    /// Bytes of the header.
    pub length: u32,
    /// Where the header starts.
    pub at: u64,
    /// Bytes of the memory as it is, or as it is wanted.
    pub size: u64,
}

impl Frame {
    pub fn to_bytes(self) -> [u8; FRAME] {
        let mut bytes = [0; FRAME];
        bytes[..4].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.at.to_le_bytes());
        bytes[16..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Frame> {
        let mut bytes = Reader(bytes);
        let kinds = [Kind::Run, Kind::Grown, Kind::Refused, Kind::Done, Kind::Failed, Kind::Grow];
        let kind = bytes.u32()?;
        let kind = kinds.into_iter().find(|k| *k as u32 == kind)?;
        let frame = Frame { kind, length: bytes.u32()?, at: bytes.u64()?, size: bytes.u64()? };
        bytes.0.is_empty().then_some(frame)
    }
}

/// A tensor in shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub datatype: DataType,
    pub shape: Vec<usize>,
    /// Where its bytes start.
    pub at: u64,
    /// How many they are.
    pub length: u64,
}

/// Where the byte after `at + length` may be used again.
pub(super) fn after(at: u64, length: u64) -> Option<u64> {
    at.checked_add(length)?.checked_next_multiple_of(ALIGN)
}

/// Bytes of a header for tensors of these ranks and as many outputs.
pub(super) fn header_length(ranks: impl Iterator<Item = usize>, outputs: usize) -> u64 {
    8 + 4 * outputs as u64 + ranks.map(|rank| 18 + 8 * rank as u64).sum::<u64>()
}

/// A header: tensors, and the outputs that are wanted of them.
pub(super) fn encode(places: &[Place], outputs: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&(places.len() as u32).to_le_bytes());
    for place in places {
        bytes.extend_from_slice(&[place.datatype as u8, place.shape.len() as u8]);
        for number in place.shape.iter().map(|d| *d as u64).chain([place.at, place.length]) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    bytes.extend_from_slice(&(outputs.len() as u32).to_le_bytes());
    for output in outputs {
        bytes.extend_from_slice(&(*output as u32).to_le_bytes());
    }
    bytes
}

/// Reads a header; `None` for anything that [`encode`] does not write.
pub(super) fn decode(bytes: &[u8]) -> Option<(Vec<Place>, Vec<usize>)> {
    let mut bytes = Reader(bytes);
    let count = bytes.count(18)?;
    let mut places = Vec::with_capacity(count);
    for _ in 0..count {
        let datatype = *DataType::ALL.get(usize::from(bytes.u8()?))?;
        let rank = usize::from(bytes.u8()?);
        if rank > MAX_RANK {
            return None;
        }
        let shape = (0..rank).map(|_| usize::try_from(bytes.u64()?).ok()).collect::<Option<_>>()?;
        places.push(Place { datatype, shape, at: bytes.u64()?, length: bytes.u64()? });
    }
    let count = bytes.count(4)?;
    let outputs = (0..count).map(|_| Some(bytes.u32()? as usize)).collect::<Option<_>>()?;
    bytes.0.is_empty().then_some((places, outputs))
}

/// What a child's message begins with when it has loaded its graph: no error begins so.
const LOADED: &[u8] = b"loaded";

/// That the graph is loaded, and its nodes by provider.
pub(super) fn encode_loaded(nodes: &BTreeMap<String, usize>) -> serde_json::Result<Vec<u8>> {
    let nodes = serde_json::to_vec(nodes)?;
    Ok([LOADED, &nodes[..]].concat())
}

/// What a child says of the load.
///
/// # Errors
/// With what it says went wrong, or where it says what cannot be.
pub(super) fn decode_loaded(bytes: &[u8]) -> Result<BTreeMap<String, usize>, EngineError> {
    let nodes = bytes.strip_prefix(LOADED).ok_or_else(|| decode_error(bytes))?;
    let garbled = |_| EngineError::InvalidGraph("the process that loaded it says what cannot be".into());
    serde_json::from_slice(nodes).map_err(garbled)
}

/// An error of a load or a run, as bytes.
pub(super) fn encode_error(error: &EngineError) -> Vec<u8> {
    let code = match error {
        EngineError::InvalidInput(_) => 1,
        EngineError::InvalidGraph(_) => 2,
        EngineError::Unsupported(_) => 3,
        EngineError::Unavailable(_) => 4,
        _ => 0,
    };
    let message = error.to_string();
    let mut bytes = vec![code];
    bytes.extend_from_slice(&message.as_bytes()[..message.len().min(MAX_MESSAGE)]);
    bytes
}

/// What a child says went wrong. Whatever the bytes are, it is an error of the graph, the input or the engine, and its
/// message is bounded text.
pub(super) fn decode_error(bytes: &[u8]) -> EngineError {
    let (code, text) = bytes.split_first().map_or((0, &[][..]), |(code, text)| (*code, text));
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_MESSAGE)]);
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    match code {
        1 => EngineError::InvalidInput(text),
        2 => EngineError::InvalidGraph(text),
        3 => EngineError::Unsupported(text),
        4 => EngineError::Unavailable(text),
        _ => EngineError::Failed(text),
    }
}

/// Little-endian numbers, one after the other.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `each` bytes of what is left.
    fn count(&mut self, each: usize) -> Option<usize> {
        let count = self.u32()? as usize;
        (count <= self.0.len() / each).then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> impl Strategy<Value = Place> {
        let shape = prop::collection::vec(any::<usize>(), 0..5);
        (0..14usize, shape, any::<u64>(), any::<u64>()).prop_map(|(kind, shape, at, length)| Place {
            datatype: DataType::ALL[kind],
            shape,
            at,
            length,
        })
    }

    proptest! {
        #[test]
        fn headers_survive(places in prop::collection::vec(place(), 0..6), outputs in prop::collection::vec(0..9usize, 0..6)) {
            let bytes = encode(&places, &outputs);
            prop_assert_eq!(bytes.len() as u64, header_length(places.iter().map(|p| p.shape.len()), outputs.len()));
            prop_assert_eq!(decode(&bytes), Some((places, outputs)));
            prop_assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
        }

        #[test]
        fn any_bytes_are_a_header_or_none(bytes: Vec<u8>) {
            if let Some((places, outputs)) = decode(&bytes) {
                prop_assert_eq!(encode(&places, &outputs), bytes);
            }
        }

        #[test]
        fn any_bytes_are_a_frame_or_none(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(frame) = Frame::from_bytes(&bytes) {
                prop_assert_eq!(&frame.to_bytes()[..], &bytes[..]);
            }
        }

        #[test]
        fn any_bytes_are_a_bounded_error(bytes: Vec<u8>) {
            let error = decode_error(&bytes);
            prop_assert!(error.to_string().len() <= 3 * MAX_MESSAGE && !error.to_string().contains('\n'));
        }
    }

    #[test]
    fn types_are_where_their_numbers_say() {
        for (number, datatype) in DataType::ALL.into_iter().enumerate() {
            assert_eq!(datatype as usize, number);
        }
    }

    #[test]
    fn errors_keep_their_kind() {
        let text = || "why".to_string();
        for error in [
            EngineError::InvalidInput(text()),
            EngineError::InvalidGraph(text()),
            EngineError::Unsupported(text()),
            EngineError::Unavailable(text()),
            EngineError::Failed(text()),
        ] {
            assert_eq!(decode_error(&encode_error(&error)), error);
        }
        assert_eq!(after(u64::MAX, 1), None);
        assert_eq!(after(60, 10), Some(128));
    }
}
