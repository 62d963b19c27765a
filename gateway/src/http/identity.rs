//! Who a request is: its id and its W3C trace context, both on every answer.

use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// A caller's id for the request, echoed; generated where there is none or it is not sane.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The longest request id that is taken over.
const MAX_REQUEST_ID: usize = 128;

/// The longest `tracestate` that is passed on, all its headers together.
const MAX_TRACESTATE: usize = 512;

/// The id and the trace context of one request.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// For log lines.
    pub request_id: Arc<str>,
    request_id_header: HeaderValue,
    traceparent: HeaderValue,
    /// Only where the `traceparent` was valid.
    tracestate: Option<HeaderValue>,
}

impl Identity {
    /// Takes over what the caller sent where it is sane, and makes the rest.
    pub fn of(headers: &HeaderMap) -> Identity {
        let (request_id, request_id_header) = match headers.get(&REQUEST_ID).and_then(sane_id) {
            Some((text, header)) => (Arc::from(text), header.clone()),
            None => {
                let mut hex = [0; 32];
                write_hex(&mut hex, &rand::random::<[u8; 16]>());
                (Arc::from(std::str::from_utf8(&hex).unwrap_or_default()), header(&hex))
            }
        };
        let request_id_header = passing(request_id_header);
        let parent = headers.get(&TRACEPARENT).and_then(|value| Parent::parse(value.as_bytes()));
        let tracestate = parent.as_ref().and_then(|_| tracestate(headers));
        let traceparent = parent.unwrap_or_else(Parent::new).child();
        Identity { request_id, request_id_header, traceparent, tracestate }
    }

    /// Puts id and trace context on a message's headers.
    pub fn stamp(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.request_id_header.clone());
        headers.insert(TRACEPARENT, self.traceparent.clone());
        match &self.tracestate {
            Some(state) => drop(headers.insert(TRACESTATE, state.clone())),
            None => drop(headers.remove(TRACESTATE)),
        }
    }
}

/// A value that no other message has: HPACK need not remember it in its table, which costs more than to send it.
pub fn passing(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// A header of bytes that are known to be visible ASCII.
fn header(visible: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(visible).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// An id of visible ASCII without what logs and JSON would have to escape.
fn sane_id(value: &HeaderValue) -> Option<(&str, &HeaderValue)> {
    let text = value.to_str().ok()?;
    let sane = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'<' | b'>' | b'`');
    (!text.is_empty() && text.len() <= MAX_REQUEST_ID && text.bytes().all(sane)).then_some((text, value))
}

fn tracestate(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(&TRACESTATE).iter();
    let first = values.next()?;
    let mut joined = first.as_bytes().to_vec();
    for value in values {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    if joined.len() > MAX_TRACESTATE || !joined.iter().all(|b| (0x20..0x7f).contains(b) || *b == b'\t') {
        return None;
    }
    HeaderValue::from_bytes(&joined).ok()
}

/// The parts of a `traceparent` that are passed on.
struct Parent {
    trace: [u8; 32],
    flags: [u8; 2],
}

impl Parent {
    /// A new trace, not sampled by anybody yet.
    fn new() -> Parent {
        let mut trace = [0; 32];
        write_hex(&mut trace, &rand::random::<[u8; 16]>());
        Parent { trace, flags: *b"00" }
    }

    /// `00-<32 hex>-<16 hex>-<2 hex>`; a later version may have more behind it.
    fn parse(value: &[u8]) -> Option<Parent> {
        let (version, rest) = (value.get(..2)?, value.get(55..)?);
        let parts = [value.get(3..35)?, value.get(36..52)?, value.get(53..55)?];
        let lower_hex = |text: &[u8]| text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let dashes = [2, 35, 52].iter().all(|at| value[*at] == b'-');
        let known = match version {
            b"ff" => false,
            b"00" => rest.is_empty(),
            _ => rest.is_empty() || rest[0] == b'-',
        };
        let zero = |text: &[u8]| text.iter().all(|b| *b == b'0');
        if !known || !dashes || !lower_hex(version) || !parts.iter().all(|p| lower_hex(p)) {
            return None;
        }
        if zero(parts[0]) || zero(parts[1]) {
            return None;
        }
        Some(Parent { trace: parts[0].try_into().ok()?, flags: parts[2].try_into().ok()? })
    }

    /// The header with a span of our own.
    fn child(&self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        text[3..35].copy_from_slice(&self.trace);
        let span = rand::random::<[u8; 8]>();
        write_hex(&mut text[36..52], if span == [0; 8] { b"windrose" } else { &span });
        text[53..].copy_from_slice(&self.flags);
        passing(header(&text))
    }
}

fn write_hex(out: &mut [u8], bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = HEX[usize::from(byte >> 4)];
        pair[1] = HEX[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let mut out = HeaderMap::new();
        Identity::of(&headers).stamp(&mut out);
        out
    }

    #[test]
    fn a_sane_id_is_echoed_and_another_replaced() {
        assert_eq!(identity(&[("x-request-id", "a-1:b/c")])["x-request-id"], "a-1:b/c");
        for bad in ["", "a b", "a\"b", &"x".repeat(129)] {
            let id = identity(&[("x-request-id", bad)])["x-request-id"].clone();
            assert_eq!(id.len(), 32, "{bad}");
        }
        assert_ne!(identity(&[])["x-request-id"], identity(&[])["x-request-id"]);
    }

    #[test]
    fn a_valid_trace_goes_on() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let parent = format!("00-{trace}-b7ad6b7169203331-01");
        let out = identity(&[("traceparent", &parent), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        let text = out["traceparent"].to_str().unwrap();
        assert!(text.starts_with(&format!("00-{trace}-")) && text.ends_with("-01") && text != parent);
        assert_eq!(out["tracestate"], "a=1,b=2");
        let later = identity(&[("traceparent", &format!("01-{trace}-b7ad6b7169203331-01-more"))]);
        assert!(later["traceparent"].to_str().unwrap().starts_with(&format!("00-{trace}-")));
    }

    #[test]
    fn an_invalid_trace_is_replaced_with_its_state() {
        let zeros = "0".repeat(32);
        for bad in [
            "garbage".to_owned(),
            format!("00-{zeros}-b7ad6b7169203331-01"),
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01".to_owned(),
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01".to_owned(),
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more".to_owned(),
        ] {
            let out = identity(&[("traceparent", &bad), ("tracestate", "a=1")]);
            let text = out["traceparent"].to_str().unwrap();
            assert!(Parent::parse(text.as_bytes()).is_some(), "{text}");
            assert!(!text.contains("0af7651916cd43dd8448eb211c80319c"), "{bad}");
            assert!(!out.contains_key("tracestate"));
        }
    }
}
