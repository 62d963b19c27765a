//! Compressed bodies.
#[path = "../../../gateway/src/http/coding.rs"]
mod coding;

use coding::{Coding, Refused, compress};

/// The most that a body may become, bytes.
const MAX: usize = 1 << 20;

/// Decompresses in the way that the first byte names, within a bound; and compresses the same bytes, which come back.
pub fn check(data: &[u8]) {
    let Some((way, body)) = data.split_first() else { return };
    let coding = [Coding::Gzip, Coding::Deflate, Coding::Zstd][usize::from(*way) % 3];
    assert_eq!(Coding::from_name(coding.name().as_bytes()), Some(coding));
    if let Ok(accept) = std::str::from_utf8(body) {
        let _ = Coding::negotiate(accept);
    }
    match decompress(coding, body, MAX) {
        Ok(plain) => {
            // One byte less is refused for its size alone.
            if let Some(less) = plain.len().checked_sub(1) {
                assert!(matches!(decompress(coding, body, less), Err(Refused::TooLarge)));
            }
        }
        Err(Refused::Malformed(error)) => assert!(!error.to_string().is_empty()),
        Err(Refused::TooLarge) => {}
        Err(Refused::NoMemory) => panic!("there was memory"),
    }
    let packed = compress(coding, &[body.to_vec().into()]).expect("memory takes everything");
    assert_eq!(decompress(coding, &packed, body.len()).expect("it was just written"), body);
}

/// As [`coding::decompress`]; what comes out is no more than may be, and than was asked for.
fn decompress(coding: Coding, body: &[u8], max: usize) -> Result<bytes::Bytes, Refused> {
    let mut asked = 0;
    let plain = coding::decompress(coding, body, max, &mut |bytes| {
        asked += bytes;
        true
    });
    assert!(asked <= max);
    if let Ok(plain) = &plain {
        assert!(plain.len() <= asked);
    }
    plain
}
