//! Paths and headers of requests.
#[path = "../../../gateway/src/http/identity.rs"]
mod identity;
#[path = "../../../gateway/src/http/route.rs"]
mod route;

use http::{HeaderMap, HeaderValue};

/// Reads the path, the request id, the trace context and its states, one a line, and checks what goes on from them.
pub fn check(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    if let Some(path) = lines.next().and_then(|line| std::str::from_utf8(line).ok()) {
        check_path(path);
    }
    let mut headers = HeaderMap::new();
    let names = ["x-request-id", "traceparent"].into_iter().chain(std::iter::repeat("tracestate"));
    for (name, line) in names.zip(lines) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(name, value);
        }
    }
    let identity = identity::Identity::of(&headers);
    assert!(!identity.request_id.is_empty() && identity.request_id.len() <= 128);
    let mut stamped = headers.clone();
    identity.stamp(&mut stamped);
    assert_eq!(stamped["x-request-id"].as_bytes(), identity.request_id.as_bytes());
    let parent = stamped["traceparent"].as_bytes();
    assert!(parent.len() == 55 && parent.starts_with(b"00-"));
    assert!(stamped.get_all("tracestate").iter().count() <= 1);
    // What goes on is a trace that the next one takes over.
    let mut next = stamped.clone();
    identity::Identity::of(&stamped).stamp(&mut next);
    assert_eq!(next["traceparent"].as_bytes()[..36], parent[..36]);
    assert_eq!(next.get("tracestate"), stamped.get("tracestate"));
}

/// What a path names is a part of it.
fn check_path(path: &str) {
    use route::Route;
    let Some(route) = Route::parse(path) else { return };
    assert_eq!(route.methods().is_none(), matches!(route, Route::Guest(..)));
    let target = match route {
        Route::Server | Route::Live | Route::Ready | Route::Statistics(None) => return,
        Route::Statistics(Some(target))
        | Route::Metadata(target)
        | Route::ModelReady(target)
        | Route::Infer(target)
        | Route::Guest(target, _) => target,
    };
    let whole = match target.version {
        Some(version) => format!("/models/{}/versions/{version}", target.model),
        None => format!("/models/{}", target.model),
    };
    assert!(path.contains(&whole), "{path}");
    for part in [Some(target.model), target.version].into_iter().flatten() {
        assert!(!part.is_empty() && !part.contains('/'), "{path}");
    }
    match route.rest() {
        Some(rest) => assert_eq!(path, whole + rest),
        None => assert!(path.starts_with("/v2/models/")),
    }
}
