//! Bodies of requests, read whole: within their bounds, before their deadline, decompressed where they are compressed. Or
//! passed on as they come, within the same bound.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::Semaphore;
use windrose_sandbox::HttpBody;

use super::HttpConfig;
use super::coding::{self, Coding, Refused};
use super::lease::Lease;
use super::received::Received;
use crate::error::{Error, Kind};

/// The most that is reserved on a client's word alone, bytes.
const TRUSTED_LENGTH: u64 = 1 << 20;

/// Bodies that are decompressed at the same time, in the whole process: a decoder of zstd has a window of its own, of up to
/// 64 MiB, which is not counted.
static DECOMPRESSING: Semaphore = Semaphore::const_new(8);

/// Whether more came of a body than is taken, for whoever hears of it only from the one that reads it.
#[derive(Clone, Debug)]
pub(super) struct Overrun {
    max: usize,
    hit: Arc<AtomicBool>,
}

impl Overrun {
    /// The error of a request whose body was too large, once that has come out.
    pub fn error(&self) -> Option<Error> {
        self.hit.load(Ordering::Relaxed).then(|| too_large(self.max))
    }
}

/// A body that is passed on as it comes: one that announces too much is refused, and one that turns out to be too large
/// breaks off.
///
/// # Errors
/// [`Kind::TooLarge`].
pub(super) fn passed_on<B>(body: B, max: usize) -> Result<(HttpBody, Overrun), Error>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Send + 'static,
{
    if body.size_hint().lower() > max as u64 {
        return Err(too_large(max));
    }
    let overrun = Overrun { max, hit: Arc::default() };
    let hit = overrun.hit.clone();
    let body = Limited::new(body, max).map_err(move |error| {
        if error.is::<LengthLimitError>() {
            hit.store(true, Ordering::Relaxed);
        }
        error
    });
    Ok((body.boxed_unsync(), overrun))
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
    // Also one without a body makes an answer.
    lease.grow(0)?;
    if body.size_hint().lower() > max as u64 {
        return Err(too_large(max));
    }
    let received = before(deadline, collect(body, max, lease))
        .await
        .unwrap_or_else(|| Err(Error::new(Kind::Deadline, "the deadline passed before the body had arrived")))?;
    let Some(coding) = coding else { return Ok(received) };
    let turn = before(deadline, DECOMPRESSING.acquire()).await;
    let _turn = turn.ok_or_else(|| Error::new(Kind::Deadline, "the deadline passed before the body was read"))?;
    // Decompressing is work without a pause; it must not hold up the other requests of this thread.
    let mut own = lease.another();
    let plain = tokio::task::spawn_blocking(move || decompress(coding, &received, max, &mut own).map(|all| (all, own)));
    let (plain, own) =
        plain.await.map_err(|e| Error::new(Kind::Internal, "internal error").with_detail(e.to_string()))??;
    lease.absorb(own);
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

/// Decompresses to at most `max` bytes, which the lease holds.
fn decompress(coding: Coding, body: &[u8], max: usize, lease: &mut Lease) -> Result<Bytes, Error> {
    coding::decompress(coding, body, max, &mut |bytes| lease.grow(bytes).is_ok()).map_err(|refused| match refused {
        Refused::TooLarge => too_large(max),
        Refused::NoMemory => Error::no_memory(),
        Refused::Malformed(error) => {
            Error::new(Kind::Malformed, format!("body: is not {}", coding.name())).with_detail(error.to_string())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::lease::tests::{held, plane};
    use super::*;

    #[test]
    fn what_is_refused_of_a_compressed_body_has_its_kind() {
        let packed = coding::compress(Coding::Gzip, &[Bytes::from_static(b"hello")]).unwrap();
        let plane = plane(10);
        let decompress = |body: &[u8], max, lease: &mut Lease| decompress(Coding::Gzip, body, max, lease);
        assert_eq!(decompress(&packed, 5, &mut Lease::new(&plane)).unwrap(), "hello");
        assert_eq!(decompress(&packed, 4, &mut Lease::new(&plane)).unwrap_err().kind, Kind::TooLarge);
        assert_eq!(decompress(b"hello", 5, &mut Lease::new(&plane)).unwrap_err().kind, Kind::Malformed);
        let mut others = Lease::new(&plane);
        others.grow(8).unwrap();
        assert_eq!(decompress(&packed, 5, &mut Lease::new(&plane)).unwrap_err().kind, Kind::Overloaded);
        assert_eq!(held(&plane), 8);
    }

    /// What is counted is what there is, however much more comes out than went in.
    #[tokio::test]
    async fn a_small_body_that_becomes_a_large_one_is_refused_before_it_is_there() {
        let packed: Bytes = coding::compress(Coding::Zstd, &[vec![0; 4 << 20].into()]).unwrap().into();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static("zstd"));
        let later = Instant::now() + std::time::Duration::from_secs(60);
        for (memory, fits) in [(9 << 20, true), (4 << 20, false), (1 << 20, false)] {
            let plane = plane(memory);
            let mut lease = Lease::new(&plane);
            let body = Received::whole(std::slice::from_ref(&packed));
            match read(&headers, body, &plane.config, &mut lease, later).await {
                Ok(plain) => assert!(fits && held(&plane) >= plain.len() as u64),
                Err(error) => assert!(!fits && error.kind == Kind::Overloaded, "{memory}: {error:?}"),
            }
            drop(lease);
            assert_eq!(held(&plane), 0);
        }
    }

    #[tokio::test]
    async fn a_body_that_is_passed_on_tells_whether_it_was_too_large() {
        let announced = || Received::whole(&[Bytes::from_static(b"abc"), Bytes::from_static(b"de")]);
        assert_eq!(passed_on(announced(), 4).err().map(|error| error.kind), Some(Kind::TooLarge));
        // A mapped body no longer says how long it is.
        let unannounced = || announced().map_frame(|frame| frame);
        let (body, overrun) = passed_on(unannounced(), 5).unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcde");
        assert!(overrun.error().is_none());
        let (mut body, overrun) = passed_on(unannounced(), 4).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
        assert!(overrun.error().is_none());
        assert!(body.frame().await.unwrap().is_err());
        assert_eq!(overrun.error().unwrap().kind, Kind::TooLarge);
    }
}
