//! Bodies of requests, read whole: within their bounds, before their deadline, decompressed where they are compressed.

use std::future::{Future, poll_fn};
use std::io::Read;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body::Body;
use http_body_util::BodyExt;

use super::HttpConfig;
use super::received::Received;
use crate::error::{Error, Kind};
use crate::telemetry::Telemetry;

/// The most that is reserved on a client's word alone, bytes.
const TRUSTED_LENGTH: u64 = 1 << 20;

/// The largest window that a zstd body may ask for, as a power of two.
const ZSTD_WINDOW_LOG: u32 = 26;

/// A compression of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
    Zstd,
}

/// Bytes of bodies that a request holds, counted against the total of all; given back when dropped.
pub(super) struct Lease {
    telemetry: Arc<Telemetry>,
    max_total: usize,
    held: usize,
}

impl Lease {
    /// Holds nothing yet.
    pub fn new(telemetry: Arc<Telemetry>, config: &HttpConfig) -> Lease {
        Lease { telemetry, max_total: config.max_body_total, held: 0 }
    }

    /// Holds `bytes` more.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let total = self.telemetry.connections.body_bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        self.held += bytes;
        if total > self.max_total as u64 {
            return Err(Error::new(Kind::Overloaded, "request bodies fill the memory that is set aside for them"));
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.telemetry.connections.body_bytes.fetch_sub(self.held as u64, Ordering::Relaxed);
    }
}

/// Reads a body whole and decompresses it.
///
/// # Errors
/// [`Kind::TooLarge`], [`Kind::UnsupportedMedia`], [`Kind::Malformed`], [`Kind::Deadline`], [`Kind::Overloaded`].
pub(super) async fn read(
    headers: &HeaderMap,
    body: Received,
    config: &HttpConfig,
    lease: &mut Lease,
    deadline: Instant,
) -> Result<Bytes, Error> {
    let coding = content_coding(headers)?;
    let max = config.max_body;
    if body.size_hint().lower() > max as u64 {
        return Err(too_large(max));
    }
    let received = before(deadline, collect(body, max, lease))
        .await
        .unwrap_or_else(|| Err(Error::new(Kind::Deadline, "the deadline passed before the body had arrived")))?;
    let Some(coding) = coding else { return Ok(received) };
    // Decompressing is work without a pause; it must not hold up the other requests of this thread.
    let plain = tokio::task::spawn_blocking(move || decompress(coding, &received, max))
        .await
        .map_err(|e| Error::new(Kind::Internal, "internal error").with_detail(e.to_string()))??;
    lease.grow(plain.len())?;
    Ok(plain)
}

/// Runs `future` until `deadline`; `None` when that comes first. A timer is set only when the future is not ready
/// after it was polled twice: a body mostly arrives with its head.
pub(super) async fn before<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polled = false;
    let early = poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending if polled => Poll::Ready(None),
        Poll::Pending => {
            polled = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    });
    match early.await {
        Some(value) => Some(value),
        None => tokio::time::timeout_at(deadline.into(), future).await.ok(),
    }
}

async fn collect(mut body: Received, max: usize, lease: &mut Lease) -> Result<Bytes, Error> {
    let declared = body.size_hint().exact();
    let mut first = Bytes::new();
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Error::new(Kind::Malformed, "body: broke off").with_detail(e.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        lease.grow(data.len())?;
        if first.len() + all.len() + data.len() > max {
            return Err(too_large(max));
        }
        if first.is_empty() && all.is_empty() {
            // A body in one piece is passed on as it is.
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve(declared.unwrap_or(0).min(TRUSTED_LENGTH) as usize);
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

fn too_large(max: usize) -> Error {
    Error::new(Kind::TooLarge, format!("body: is over {max} bytes"))
}

/// The compression that the headers name.
fn content_coding(headers: &HeaderMap) -> Result<Option<Coding>, Error> {
    let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(None) };
    let name = value.as_bytes().trim_ascii();
    if name.is_empty() || name.eq_ignore_ascii_case(b"identity") {
        return Ok(None);
    }
    Coding::from_name(name).map(Some).ok_or_else(|| {
        let name = String::from_utf8_lossy(&name[..name.len().min(64)]).into_owned();
        Error::new(Kind::UnsupportedMedia, format!("Content-Encoding: {name:?} is not gzip, deflate or zstd"))
    })
}

impl Coding {
    fn from_name(name: &[u8]) -> Option<Coding> {
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

/// Decompresses to at most `max` bytes.
fn decompress(coding: Coding, body: &[u8], max: usize) -> Result<Bytes, Error> {
    let limit = max as u64 + 1;
    let mut out = Vec::new();
    let read = match coding {
        Coding::Gzip => flate2::bufread::MultiGzDecoder::new(body).take(limit).read_to_end(&mut out),
        // Some clients send the bare stream where the name means one in zlib's frame.
        Coding::Deflate if is_zlib(body) => flate2::bufread::ZlibDecoder::new(body).take(limit).read_to_end(&mut out),
        Coding::Deflate => flate2::bufread::DeflateDecoder::new(body).take(limit).read_to_end(&mut out),
        Coding::Zstd => zstd::stream::read::Decoder::with_buffer(body).and_then(|mut decoder| {
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            decoder.take(limit).read_to_end(&mut out)
        }),
    };
    let name = coding.name();
    read.map_err(|e| Error::new(Kind::Malformed, format!("body: is not {name}")).with_detail(e.to_string()))?;
    if out.len() > max {
        return Err(too_large(max));
    }
    Ok(out.into())
}

fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [first, second, ..] if first & 0x0f == 8 && (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0)
}

/// Compresses an answer.
pub(super) fn compress(coding: Coding, parts: &[Bytes]) -> std::io::Result<Vec<u8>> {
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

    #[test]
    fn bodies_round_trip_within_their_bound() {
        let plain: Bytes = (0..100_000u32).flat_map(|i| (i % 251).to_le_bytes()).collect::<Vec<_>>().into();
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd] {
            let parts = [plain.slice(..1000), plain.slice(1000..)];
            let packed = compress(coding, &parts).unwrap();
            assert!(packed.len() < plain.len() / 4);
            assert_eq!(decompress(coding, &packed, plain.len()).unwrap(), plain);
            let over = decompress(coding, &packed, plain.len() - 1).unwrap_err();
            assert_eq!(over.kind, Kind::TooLarge);
            let cut = decompress(coding, &packed[..packed.len() / 2], plain.len()).unwrap_err();
            assert_eq!(cut.kind, Kind::Malformed, "{coding:?}");
            assert_eq!(decompress(coding, b"not compressed", 100).unwrap_err().kind, Kind::Malformed, "{coding:?}");
        }
    }

    #[test]
    fn a_bare_deflate_stream_is_taken() {
        use std::io::Write;
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"hello").unwrap();
        assert_eq!(decompress(Coding::Deflate, &encoder.finish().unwrap(), 100).unwrap(), "hello");
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
