//! Compressions of bodies: how headers name them, which one a client prefers, and decompressing within a bound.

use std::io::Read;

use bytes::Bytes;

/// The largest window that a zstd body may ask for, as a power of two.
const ZSTD_WINDOW_LOG: u32 = 26;

/// How much room is made at first for what is decompressed, bytes.
const FIRST_STEP: usize = 16 << 10;

/// A compression of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// With its header and checksum; several may follow each other.
    Gzip,
    /// In zlib's frame, or bare.
    Deflate,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// The compression of this name, in any case.
    pub fn from_name(name: &[u8]) -> Option<Coding> {
        match name {
            n if n.eq_ignore_ascii_case(b"gzip") || n.eq_ignore_ascii_case(b"x-gzip") => Some(Coding::Gzip),
            n if n.eq_ignore_ascii_case(b"deflate") => Some(Coding::Deflate),
            n if n.eq_ignore_ascii_case(b"zstd") => Some(Coding::Zstd),
            _ => None,
        }
    }

    /// As headers name it.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Deflate => "deflate",
            Coding::Zstd => "zstd",
        }
    }

    /// What an `Accept-Encoding` prefers among those that are known here; `None` for no compression.
    pub fn negotiate(accept: &str) -> Option<Coding> {
        let mut best: Option<(f32, Coding)> = None;
        for entry in accept.split(',') {
            let (name, rest) = entry.split_once(';').unwrap_or((entry, ""));
            let Some(coding) = Coding::from_name(name.trim().as_bytes()) else { continue };
            let quality = rest.trim().strip_prefix("q=").map_or(1.0, |q| q.trim().parse().unwrap_or(0.0));
            let better = best.is_none_or(|(q, c)| quality > q || (quality == q && coding.rank() > c.rank()));
            if quality > 0.0 && better {
                best = Some((quality, coding));
            }
        }
        best.map(|(_, coding)| coding)
    }

    /// Which is taken among equals.
    fn rank(self) -> u8 {
        match self {
            Coding::Deflate => 0,
            Coding::Gzip => 1,
            Coding::Zstd => 2,
        }
    }
}

/// Why a body was not decompressed.
#[derive(Debug)]
pub enum Refused {
    /// It is more than may be.
    TooLarge,
    /// There is no memory for it now.
    NoMemory,
    /// It is not what its headers say.
    Malformed(std::io::Error),
}

/// Decompresses to at most `max` bytes. `memory` is asked for every bit of memory before it is taken.
///
/// # Errors
/// As [`Refused`] says.
pub fn decompress(
    coding: Coding,
    body: &[u8],
    max: usize,
    memory: &mut dyn FnMut(usize) -> bool,
) -> Result<Bytes, Refused> {
    match coding {
        Coding::Gzip => read(flate2::bufread::MultiGzDecoder::new(body), max, memory),
        // Some clients send the bare stream where the name means one in zlib's frame.
        Coding::Deflate if is_zlib(body) => read(flate2::bufread::ZlibDecoder::new(body), max, memory),
        Coding::Deflate => read(flate2::bufread::DeflateDecoder::new(body), max, memory),
        Coding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(Refused::Malformed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(Refused::Malformed)?;
            read(decoder, max, memory)
        }
    }
}

/// Reads to the end. What holds it grows to twice its size each time.
fn read(mut from: impl Read, max: usize, memory: &mut dyn FnMut(usize) -> bool) -> Result<Bytes, Refused> {
    let mut out: Vec<u8> = Vec::new();
    loop {
        let step = out.len().max(FIRST_STEP).min(max - out.len());
        if step > 0 && !memory(step) {
            return Err(Refused::NoMemory);
        }
        out.reserve_exact(step);
        let read = from.by_ref().take(step as u64).read_to_end(&mut out).map_err(Refused::Malformed)?;
        if read < step {
            return Ok(out.into());
        }
        if out.len() == max {
            let over = from.read(&mut [0]).map_err(Refused::Malformed)?;
            return if over > 0 { Err(Refused::TooLarge) } else { Ok(out.into()) };
        }
    }
}

fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [first, second, ..] if first & 0x0f == 8 && (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0)
}

/// Compresses an answer.
///
/// # Errors
/// As the encoder says.
pub fn compress(coding: Coding, parts: &[Bytes]) -> std::io::Result<Vec<u8>> {
    use std::io::Write;
    let quick = flate2::Compression::fast();
    match coding {
        Coding::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), quick);
            parts.iter().try_for_each(|part| encoder.write_all(part))?;
            encoder.finish()
        }
        Coding::Deflate => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), quick);
            parts.iter().try_for_each(|part| encoder.write_all(part))?;
            encoder.finish()
        }
        Coding::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
            parts.iter().try_for_each(|part| encoder.write_all(part))?;
            encoder.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(coding: Coding, body: &[u8], max: usize) -> Result<Bytes, Refused> {
        decompress(coding, body, max, &mut |_| true)
    }

    #[test]
    fn memory_is_asked_for_before_it_is_taken_and_never_more_than_the_bound() {
        let packed = compress(Coding::Zstd, &[vec![0; 1 << 20].into()]).unwrap();
        for (room, max) in [(0, 1 << 20), (FIRST_STEP, 1 << 20), ((1 << 20) - 1, 1 << 20), (100, 0)] {
            let mut asked = 0;
            let refused = decompress(Coding::Zstd, &packed, max, &mut |bytes| {
                asked += bytes;
                asked <= room
            });
            match refused.unwrap_err() {
                Refused::NoMemory => assert!(asked > room && asked <= (2 * room).max(FIRST_STEP), "{asked} of {room}"),
                Refused::TooLarge => assert_eq!((max, asked), (0, 0)),
                Refused::Malformed(error) => panic!("{error}"),
            }
        }
        let mut asked = 0;
        let count = &mut |bytes: usize| {
            asked += bytes;
            true
        };
        assert_eq!(decompress(Coding::Zstd, &packed, 1 << 20, count).unwrap().len(), 1 << 20);
        assert_eq!(asked, 1 << 20);
    }

    #[test]
    fn bodies_round_trip_within_their_bound() {
        let plain: Bytes = (0..100_000u32).flat_map(|i| (i % 251).to_le_bytes()).collect::<Vec<_>>().into();
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd] {
            let parts = [plain.slice(..1000), plain.slice(1000..)];
            let packed = compress(coding, &parts).unwrap();
            assert!(packed.len() < plain.len() / 4);
            assert_eq!(whole(coding, &packed, plain.len()).unwrap(), plain);
            let over = whole(coding, &packed, plain.len() - 1).unwrap_err();
            assert!(matches!(over, Refused::TooLarge));
            let cut = whole(coding, &packed[..packed.len() / 2], plain.len()).unwrap_err();
            assert!(matches!(cut, Refused::Malformed(_)), "{coding:?}");
            let other = whole(coding, b"not compressed", 100).unwrap_err();
            assert!(matches!(other, Refused::Malformed(_)), "{coding:?}");
        }
    }

    #[test]
    fn a_bare_deflate_stream_is_taken() {
        use std::io::Write;
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"hello").unwrap();
        assert_eq!(whole(Coding::Deflate, &encoder.finish().unwrap(), 100).unwrap(), "hello");
    }

    #[test]
    fn the_client_chooses() {
        let cases = [
            ("gzip", Some(Coding::Gzip)),
            ("gzip, deflate", Some(Coding::Gzip)),
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("zstd;q=0.5, deflate", Some(Coding::Deflate)),
            ("gzip;q=0", None),
            ("br", None),
            ("identity", None),
            ("*", None),
            ("", None),
            ("gzip;q=x", None),
        ];
        for (accept, expected) in cases {
            assert_eq!(Coding::negotiate(accept), expected, "{accept}");
        }
    }
}
