//! What an answer's head says about who gave it, and what a client is told where nobody answered.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::header::{HeaderMap, RETRY_AFTER};
use windrose_engine::default_tenant;
use windrose_route::{Breach, Failure, Nanos, Reason, Rules, Verdict};

use super::answer;
use crate::error::{Error, Kind};
use crate::fleet::{Replicated, wire};

/// How many sites are named that would break one rule.
const NAMED: usize = 4;

/// What the answer of a gateway says, whichever it is.
pub(super) fn of_peer(status: StatusCode, headers: &HeaderMap, now: Nanos) -> Verdict {
    let is = |kind: Kind| headers.get(answer::ERROR).is_some_and(|value| value == kind.as_str());
    match status.as_u16() {
        _ if wire::is_of_module(headers) => Verdict::Module,
        504 if is(Kind::Deadline) => Verdict::TooLate,
        421 | 503 if is(Kind::NotHere) || is(Kind::NotReady) => Verdict::NotHere,
        503 if is(Kind::Unlawful) => Verdict::Unlawful,
        502 if is(Kind::GraphFailed) || is(Kind::GraphCrashed) => Verdict::Graph,
        status => Verdict::of(status, wire::rest_of(headers).map(|rest| after(now, rest)).or(retry_at(headers, now))),
    }
}

/// What a gateway's verdict says where tenants are told apart: each has a share of a model, and what is refused to one is not
/// to be kept from the others.
pub(super) fn of_tenant(verdict: Verdict, tenant: &str) -> Verdict {
    match verdict {
        Verdict::Overloaded { until } if *tenant != *default_tenant() => Verdict::OverShare { until },
        verdict => verdict,
    }
}

/// What the answer of a foreign server says.
pub(super) fn of_foreign(status: StatusCode, headers: &HeaderMap, now: Nanos) -> Verdict {
    match status.as_u16() {
        404 => Verdict::NotHere,
        status => Verdict::of(status, retry_at(headers, now)),
    }
}

/// A point in time after a span.
pub(super) fn after(now: Nanos, span: Duration) -> Nanos {
    now.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(Nanos::MAX))
}

/// `Retry-After`: seconds, or a date.
fn retry_at(headers: &HeaderMap, now: Nanos) -> Option<Nanos> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let span = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).unwrap_or_default(),
    };
    Some(after(now, span))
}

/// Why no replica answered a call of `found` that `rules` bind.
pub(super) fn unanswered(failure: &Failure, found: &Replicated, rules: &Rules, now: Nanos) -> Error {
    let model = &found.model;
    let unavailable = |message: String| Error::new(Kind::Unavailable, message);
    match failure.reason {
        Reason::Law(_) => {
            Error::new(Kind::Unlawful, format!("no site may answer for model {model:?}: {}", breaches(found, rules)))
        }
        Reason::NoReplica => unavailable(format!("no replica of model {model:?} may answer now")),
        Reason::Overloaded => {
            let free = failure.retry_at.map(|at| Duration::from_nanos(at.saturating_sub(now)));
            Error::new(Kind::Overloaded, format!("every replica of model {model:?} is busy")).retry_in(free)
        }
        Reason::Deadline => Error::new(Kind::Deadline, "the deadline passed"),
        Reason::Failed | Reason::Budget => {
            unavailable(format!("no replica of model {model:?} answered; {} were asked", failure.attempts))
        }
    }
}

/// Which rule each site would break, the sites of one rule together.
fn breaches(found: &Replicated, rules: &Rules) -> String {
    let mut sites: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for place in found.places.values() {
        let breach = match rules.permit(place.site.jurisdiction.as_ref()) {
            Err(breach) => breach.to_string(),
            Ok(()) if place.digest.is_none() && !found.unheard.is_empty() => {
                format!("{} ({})", Breach::Unheard, named(found.unheard.iter().map(|site| &**site).collect()))
            }
            Ok(()) => continue,
        };
        sites.entry(breach).or_default().push(&place.site.name);
    }
    let told = sites.into_iter().map(|(breach, sites)| format!("{}: {breach}", named(sites)));
    told.collect::<Vec<_>>().join("; ")
}

/// Names of sites, of many only some.
fn named(mut sites: Vec<&str>) -> String {
    sites.sort_unstable();
    let more = sites.len().saturating_sub(NAMED);
    sites.truncate(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", sites.join(", "))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::HeaderName;
    use windrose_route::{Load, MILLISECOND, SECOND};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn what_a_peer_says_is_told_from_what_its_module_did() {
        let mut of_module = headers(&[("windrose-error", "guest_trapped")]);
        wire::of_module(&mut of_module);
        let cases: [(u16, HeaderMap, Verdict); 12] = [
            (200, headers(&[]), Verdict::Answer),
            (400, headers(&[("windrose-error", "invalid_input")]), Verdict::Rejected),
            (502, of_module, Verdict::Module),
            // What its graph did may be the input's doing or the site's.
            (502, headers(&[("windrose-error", "graph_failed")]), Verdict::Graph),
            (502, headers(&[("windrose-error", "graph_crashed")]), Verdict::Graph),
            // It may name a kind, and still not say whose it is.
            (504, headers(&[("windrose-error", "wall_limit")]), Verdict::Failed),
            (504, headers(&[("windrose-error", "deadline")]), Verdict::TooLate),
            (500, headers(&[]), Verdict::Failed),
            (421, headers(&[("windrose-error", "not_here")]), Verdict::NotHere),
            (503, headers(&[("windrose-error", "not_ready"), ("retry-after", "1")]), Verdict::NotHere),
            (503, headers(&[("windrose-error", "unlawful")]), Verdict::Unlawful),
            (429, headers(&[]), Verdict::Overloaded { until: None }),
        ];
        for (status, headers, expected) in cases {
            assert_eq!(of_peer(StatusCode::from_u16(status).unwrap(), &headers, 5), expected, "{status} {headers:?}");
        }
        let marked = headers(&[("windrose-origin", "module")]);
        assert_eq!(of_foreign(StatusCode::BAD_GATEWAY, &marked, 5), Verdict::Failed, "nobody proved a foreign server");
        let late = headers(&[("windrose-error", "deadline")]);
        assert_eq!(of_foreign(StatusCode::GATEWAY_TIMEOUT, &late, 5), Verdict::Failed, "nor what it means");
        let graph = headers(&[("windrose-error", "graph_failed")]);
        assert_eq!(of_foreign(StatusCode::BAD_GATEWAY, &graph, 5), Verdict::Failed);
    }

    #[test]
    fn what_is_refused_to_a_tenant_is_not_kept_from_others() {
        let busy = Verdict::Overloaded { until: Some(5) };
        assert_eq!(
            (of_tenant(busy, "acme"), of_tenant(busy, "default")),
            (Verdict::OverShare { until: Some(5) }, busy)
        );
        assert_eq!(of_tenant(Verdict::Failed, "acme"), Verdict::Failed);
    }

    #[test]
    fn when_to_come_back_is_believed_of_both() {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let until = |verdict| match verdict {
            Verdict::Overloaded { until: Some(until) } => until,
            other => panic!("{other:?}"),
        };
        let seconds = headers(&[("retry-after", "7")]);
        assert_eq!(until(of_peer(status, &seconds, 5)), 7 * SECOND + 5);
        assert_eq!(until(of_foreign(status, &seconds, 5)), 7 * SECOND + 5);
        assert_eq!(until(of_foreign(StatusCode::SERVICE_UNAVAILABLE, &seconds, 5)), 7 * SECOND + 5);
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        let at = until(of_foreign(status, &headers(&[("retry-after", &date)]), 0));
        assert!((57 * SECOND..=61 * SECOND).contains(&at), "{at}");
        // A gateway knows it better than in seconds.
        let mut told = headers(&[("retry-after", "1")]);
        wire::say_rest(&mut told, &Load { engine_time: 600 * MILLISECOND, parallel: 2, ..Load::default() });
        assert_eq!(until(of_peer(status, &told, 5)), 300 * MILLISECOND + 5);
        assert_eq!(until(of_foreign(status, &told, 5)), SECOND + 5);
    }
}
