//! A connection to a gateway, over which a request is asked as a peer forwards it.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use windrose_route::{Event, Load, Nanos, SECOND, Verdict};

use crate::peer;

/// The model: `models/test/loop.onnx`, which takes as long as it is asked to.
const PATH: &str = "https://gateway.invalid/v2/models/loop/infer";
/// Where a gateway tells its peers how much it has to do.
const LOAD: &str = "https://gateway.invalid/windrose/load";

/// A connection; clones share it.
#[derive(Clone)]
pub struct Gateway {
    sender: http2::SendRequest<Full<Bytes>>,
    /// What a peer says of each request.
    headers: HeaderMap,
}

// === impl Gateway ===

impl Gateway {
    /// Connects. Requests ask for the model by its digest, in hex.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn connect(address: SocketAddr, tls: &TlsConnector, digest: &str, patience_ms: u64) -> Result<Gateway> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(peer::connect(tls, stream).await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        // However it ends, the requests that it leaves without an answer tell.
        tokio::spawn(async move { drop(connection.await) });
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("windrose-digest", digest.parse()?);
        headers.insert("windrose-remaining-ms", patience_ms.into());
        headers.insert("windrose-attempt", HeaderValue::from_static("0"));
        headers.insert("windrose-hops", HeaderValue::from_static("1"));
        // One tenant for all: a gateway would not let those of one wait behind those of another.
        headers.insert("windrose-tenant", HeaderValue::from_static("default"));
        Ok(Gateway { sender, headers })
    }

    /// Asks for so many loops. Gives what became of it, as a router wants to know, and the load that the answer told;
    /// `now` is the time when it was asked.
    pub async fn ask(&self, loops: u64, now: Nanos) -> (Event, Option<Load>) {
        let mut request = Request::new(Full::new(body(loops)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = hyper::Uri::from_static(PATH);
        *request.headers_mut() = self.headers.clone();
        let Ok(answer) = self.sender.clone().send_request(request).await else { return (Event::Reset, None) };
        let (head, body) = answer.into_parts();
        let load = load_of(&head.headers);
        let event = match (head.status.as_u16(), body.collect().await) {
            (200, Ok(body)) => Event::Whole { bytes: body.to_bytes().len() as u64 },
            (200, Err(_)) => Event::Cut,
            (status, _) => Event::Head(Verdict::of(status, retry_at(&head.headers, now))),
        };
        (event, load)
    }

    /// Asks for the load.
    ///
    /// # Errors
    /// When the answer is none.
    pub async fn load(&self) -> Result<Load> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = hyper::Uri::from_static(LOAD);
        let answer = self.sender.clone().send_request(request).await?;
        ensure!(answer.status().is_success(), "{LOAD}: {}", answer.status());
        loads(&answer.into_body().collect().await?.to_bytes())
    }
}

fn body(loops: u64) -> Bytes {
    let times = format!(r#"{{"name":"times","datatype":"INT64","shape":[],"data":[{loops}]}}"#);
    let x = r#"{"name":"x","datatype":"FP32","shape":[1],"data":[0.0]}"#;
    format!(r#"{{"inputs":[{times},{x}]}}"#).into()
}

fn retry_at(headers: &HeaderMap, now: Nanos) -> Option<Nanos> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(now.saturating_add(seconds.saturating_mul(SECOND)))
}

/// The load in an answer's header.
fn load_of(headers: &HeaderMap) -> Option<Load> {
    let text = headers.get("windrose-load")?.to_str().ok()?;
    let numbers: Vec<u64> = text.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(load(numbers.try_into().ok()?))
}

/// The load of the one model that a gateway serves.
fn loads(body: &[u8]) -> Result<Load> {
    let all: Vec<(String, String, [u64; 4])> = serde_json::from_slice(body)?;
    let [(_, _, numbers)] = all[..] else { anyhow::bail!("there are {} models", all.len()) };
    Ok(load(numbers))
}

fn load([in_flight, queued, parallel, micros]: [u64; 4]) -> Load {
    let small = |number| u32::try_from(number).unwrap_or(u32::MAX);
    Load {
        in_flight: small(in_flight),
        queued: small(queued),
        parallel: small(parallel),
        engine_time: micros.saturating_mul(1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_read() {
        let expected = Load { in_flight: 3, queued: 2, parallel: 1, engine_time: 5_000 };
        let mut headers = HeaderMap::new();
        assert_eq!(load_of(&headers), None);
        headers.insert("windrose-load", HeaderValue::from_static("3 2 1 5"));
        assert_eq!(load_of(&headers), Some(expected));
        headers.insert("windrose-load", HeaderValue::from_static("3 2 1"));
        assert_eq!(load_of(&headers), None);
        assert_eq!(loads(br#"[["loop","1",[3,2,1,5]]]"#).unwrap(), expected);
        assert!(loads(b"[]").is_err() && loads(b"nonsense").is_err());
    }

    #[test]
    fn a_time_to_come_again_counts_from_now() {
        let mut headers = HeaderMap::new();
        assert_eq!(retry_at(&headers, 5), None);
        headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        assert_eq!(retry_at(&headers, 5), Some(2 * SECOND + 5));
    }
}
