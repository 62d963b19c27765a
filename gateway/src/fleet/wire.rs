//! What gateways tell each other about a request, in headers of their own: written and read only on connections that
//! proved a peer's certificate. Whatever a client sends under these names is dropped.

use std::sync::Arc;
use std::time::Duration;

use http::header::{
    CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use serde::{Deserialize, Serialize};
use windrose_engine::default_tenant;
use windrose_route::{Digest, Jurisdiction, Load, Rules, Source};

use crate::config::fleet::parse_digest;
use crate::control::store::hex;
use crate::error::{Error, Kind};
use crate::http::identity::passing;

/// Headers that belong to one connection and not to the message.
pub static HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Milliseconds that are left of the deadline. Clocks differ; spans do not.
const REMAINING: HeaderName = HeaderName::from_static("windrose-remaining-ms");
/// The digest that must answer.
pub const DIGEST: HeaderName = HeaderName::from_static("windrose-digest");
/// Every rule that binds the request.
const RULES: HeaderName = HeaderName::from_static("windrose-rules");
/// How many attempts there were before this one.
const ATTEMPT: HeaderName = HeaderName::from_static("windrose-attempt");
/// How many gateways the request has passed.
const HOPS: HeaderName = HeaderName::from_static("windrose-hops");
/// Whose request it is.
const TENANT: HeaderName = HeaderName::from_static("windrose-tenant");
/// That it is nobody's request but a probe, and of which kind.
const PROBE: HeaderName = HeaderName::from_static("windrose-probe");
/// How a site stands that answered: [`Report`].
pub const LOAD: HeaderName = HeaderName::from_static("windrose-load");

/// Milliseconds for which nothing is to come after a refusal for having too much to do.
const REST: HeaderName = HeaderName::from_static("windrose-rest-ms");
/// Whose the error is that an answer has, where it is the module's own.
const ORIGIN: HeaderName = HeaderName::from_static("windrose-origin");

/// The names that only gateways use.
static INTERNAL: [HeaderName; 10] = [REMAINING, DIGEST, RULES, ATTEMPT, HOPS, TENANT, PROBE, LOAD, REST, ORIGIN];

/// What resets the stream of an answer whose module failed after its head, as the number of an HTTP/2 error.
const MODULE_FAILED: u32 = u32::from_be_bytes(*b"wrmf");

/// A client's wishes; each can only make the rules stricter.
const ALLOW: HeaderName = HeaderName::from_static("windrose-allow");
const DENY: HeaderName = HeaderName::from_static("windrose-deny");
const VERIFIED: HeaderName = HeaderName::from_static("windrose-verified");
const HEDGE: HeaderName = HeaderName::from_static("windrose-hedge");

/// The longest list of rules that is read, bytes.
const MAX_RULES: usize = 4096;
/// The longest name of a tenant, bytes.
const MAX_TENANT: usize = 128;
/// The shortest and the longest rest: others come as well, and who asks again costs little.
const RESTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// The one kind of probe that is an inference.
const GOLDEN: &str = "golden";
/// Whether a digest is ready.
const READY: &str = "ready";
const UNREADY: &str = "unready";
/// The one origin that is told.
const MODULE: &str = "module";

/// What a peer says about a request that it forwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// What is left of the client's patience.
    pub remaining: Duration,
    /// What must answer.
    pub digest: Digest,
    /// What binds it.
    pub rules: Arc<Rules>,
    /// How many attempts there were before this one.
    pub attempt: u8,
    /// Whose request it is.
    pub tenant: Arc<str>,
    /// Whether it is a golden probe, and no client's request.
    pub probe: bool,
}

/// What a client wishes for, beside its deadline.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Nothing but these, where there is a list.
    pub allow: Option<Vec<Jurisdiction>>,
    /// None of these.
    pub deny: Vec<Jurisdiction>,
    /// Only a verified digest will do.
    pub verified: bool,
    /// No second try beside a late one.
    pub unhedged: bool,
}

/// Takes off what only gateways may say.
pub fn drop_internal(headers: &mut HeaderMap) {
    drop_all(headers, |name| INTERNAL.contains(name));
}

/// Takes off the headers of such names. Few messages have any, so that a look at each costs less than to ask for each name.
fn drop_all(headers: &mut HeaderMap, is_one: impl Fn(&HeaderName) -> bool) {
    let named: Vec<HeaderName> = headers.keys().filter(|name| is_one(name)).cloned().collect();
    for name in &named {
        headers.remove(name);
    }
}

/// The headers of a message that goes on: none of one connection's own, and none that only gateways use.
pub fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    strip(&mut headers);
    headers
}

/// Takes off what belongs to one connection, and what only gateways use.
pub fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        let named: Vec<HeaderName> =
            values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
        for name in &named {
            headers.remove(name);
        }
    }
    let is_ours = |name: &HeaderName| name == HOST || name == EXPECT || INTERNAL.contains(name);
    drop_all(headers, |name| HOP_BY_HOP.contains(name) || is_ours(name));
}

/// Takes off what says something to a gateway and nothing to a foreign server.
pub fn drop_ours(headers: &mut HeaderMap) {
    for name in [ALLOW, DENY, VERIFIED, HEDGE] {
        headers.remove(name);
    }
}

/// What a client wishes for.
///
/// # Errors
/// [`Kind::Malformed`]: a rule with a slip in it must not be ignored.
pub fn wishes(headers: &HeaderMap) -> Result<Wishes, Error> {
    let mut wishes = Wishes::default();
    if headers.contains_key(&ALLOW) {
        wishes.allow = Some(list(headers, &ALLOW)?);
    }
    wishes.deny = list(headers, &DENY)?;
    wishes.verified = word(headers, &VERIFIED, "true")?;
    wishes.unhedged = word(headers, &HEDGE, "never")?;
    Ok(wishes)
}

fn list(headers: &HeaderMap, name: &HeaderName) -> Result<Vec<Jurisdiction>, Error> {
    let malformed = || Error::new(Kind::Malformed, format!("{name}: is no list of jurisdictions"));
    let mut all = Vec::new();
    for value in headers.get_all(name) {
        let text = value.to_str().map_err(|_| malformed())?;
        for name in text.split(',').filter(|name| !name.trim().is_empty()) {
            all.push(Jurisdiction::new(name).map_err(|_| malformed())?);
        }
    }
    Ok(all)
}

fn word(headers: &HeaderMap, name: &HeaderName, known: &str) -> Result<bool, Error> {
    match headers.get(name) {
        None => Ok(false),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(known.as_bytes()) => Ok(true),
        Some(_) => Err(Error::new(Kind::Malformed, format!("{name}: takes nothing but {known:?}"))),
    }
}

impl Forwarded {
    /// Puts it on the headers of a request to a peer.
    pub fn stamp(&self, headers: &mut HeaderMap) {
        let millis = u64::try_from(self.remaining.as_millis()).unwrap_or(u64::MAX).max(1);
        headers.insert(REMAINING, passing(HeaderValue::from(millis)));
        headers.insert(ATTEMPT, HeaderValue::from(u16::from(self.attempt)));
        headers.insert(HOPS, HeaderValue::from_static("1"));
        let mut insert = |name: HeaderName, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        };
        insert(DIGEST, &hex(&self.digest));
        insert(TENANT, &self.tenant);
        if self.probe {
            insert(PROBE, GOLDEN);
        }
        if !self.rules.is_empty() {
            insert(RULES, &written(&self.rules));
        }
    }

    /// Reads it from a peer's request, and takes it off.
    ///
    /// # Errors
    /// [`Kind::Malformed`] where anything is missing or not as [`Forwarded::stamp`] writes it.
    pub fn take(headers: &mut HeaderMap) -> Result<Forwarded, Error> {
        let malformed = |name: HeaderName| Error::new(Kind::Malformed, format!("{name}: is missing or wrong"));
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let remaining = text(&REMAINING).and_then(|t| t.parse().ok()).ok_or_else(|| malformed(REMAINING))?;
        let digest = text(&DIGEST).and_then(parse_digest).ok_or_else(|| malformed(DIGEST))?;
        if text(&HOPS) != Some("1") {
            return Err(malformed(HOPS));
        }
        let attempt = text(&ATTEMPT).and_then(|t| t.parse().ok()).ok_or_else(|| malformed(ATTEMPT))?;
        let tenant = text(&TENANT).and_then(tenant_of).ok_or_else(|| malformed(TENANT))?;
        let probe = headers.contains_key(&PROBE);
        if probe && text(&PROBE) != Some(GOLDEN) {
            return Err(malformed(PROBE));
        }
        let rules = match headers.get(&RULES) {
            None => Rules::none(),
            Some(_) => text(&RULES).and_then(read).ok_or_else(|| malformed(RULES))?,
        };
        drop_internal(headers);
        let (remaining, rules) = (Duration::from_millis(remaining), Arc::new(rules));
        Ok(Forwarded { remaining, digest, rules, attempt, tenant, probe })
    }
}

/// A tenant's name as a peer writes it.
fn tenant_of(text: &str) -> Option<Arc<str>> {
    let default = default_tenant();
    let sane = (1..=MAX_TENANT).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    sane.then(|| if text == &*default { default } else { text.into() })
}

/// Rules as one line: `manifest allow=eu,ch deny=; request deny=us`.
fn written(rules: &Rules) -> String {
    let names = |list: &[Jurisdiction]| list.iter().map(Jurisdiction::as_str).collect::<Vec<_>>().join(",");
    let layers = rules.layers().map(|(source, allow, deny)| {
        let allow = allow.map(|list| format!(" allow={}", names(list))).unwrap_or_default();
        format!("{}{allow} deny={}", source.as_str(), names(deny))
    });
    layers.collect::<Vec<_>>().join("; ")
}

/// Reads what [`written`] writes.
fn read(text: &str) -> Option<Rules> {
    if text.len() > MAX_RULES {
        return None;
    }
    let mut rules = Rules::none();
    for layer in text.split("; ") {
        let mut words = layer.split(' ');
        let word = words.next()?;
        let source = Source::ALL.into_iter().find(|source| source.as_str() == word)?;
        let (mut allow, mut deny) = (None, Vec::new());
        for word in words {
            let (key, names) = word.split_once('=')?;
            let names = names.split(',').filter(|name| !name.is_empty());
            let names = names.map(|name| Jurisdiction::new(name).ok()).collect::<Option<Vec<_>>>()?;
            match key {
                "allow" => allow = Some(names),
                "deny" => deny = names,
                _ => return None,
            }
        }
        rules = rules.and(source, allow, deny);
    }
    Some(rules)
}

/// For how long a replica that refused wants to be left alone: about until another of its requests is done.
pub fn rest(load: &Load) -> Duration {
    Duration::from_nanos(load.engine_time / u64::from(load.parallel.max(1))).clamp(RESTS.0, RESTS.1)
}

/// Says that on a refusal.
pub fn say_rest(headers: &mut HeaderMap, load: &Load) {
    let millis = u64::try_from(rest(load).as_millis()).unwrap_or(u64::MAX);
    headers.insert(REST, passing(HeaderValue::from(millis)));
}

/// Reads what [`say_rest`] writes.
pub fn rest_of(headers: &HeaderMap) -> Option<Duration> {
    headers.get(&REST)?.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

/// Says on an answer to a peer that its error is the module's own.
pub fn of_module(headers: &mut HeaderMap) {
    headers.insert(ORIGIN, HeaderValue::from_static(MODULE));
}

/// Whether a peer's answer says that its error is the module's own.
pub fn is_of_module(headers: &HeaderMap) -> bool {
    headers.get(&ORIGIN).is_some_and(|origin| origin == MODULE)
}

/// The reset of an answer whose module failed after its head, or whose request turned out too large then, so that it is
/// told from a site that broke off.
pub fn module_failed() -> h2::Reason {
    MODULE_FAILED.into()
}

/// What a site says of itself with every answer to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Load of the model that was asked for.
    pub load: Load,
    /// Of the site's catalogue: another number means that something else is ready there than before.
    pub generation: u64,
    /// Whether the digest that was asked for is ready.
    pub ready: bool,
}

impl Report {
    /// It as one header: requests in flight, of these queued, how many run at once, engine time in microseconds, the
    /// catalogue's generation, and a word.
    pub fn header(&self) -> HeaderValue {
        let [in_flight, queued, parallel, micros] = load_numbers(&self.load);
        let (generation, word) = (self.generation, if self.ready { READY } else { UNREADY });
        let text = format!("{in_flight} {queued} {parallel} {micros} {generation} {word}");
        passing(HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("0 0 0 0 0 unready")))
    }

    /// Reads what [`Report::header`] writes.
    pub fn of(headers: &HeaderMap) -> Option<Report> {
        let mut words = headers.get(&LOAD)?.to_str().ok()?.split(' ');
        let mut next = || words.next()?.parse::<u64>().ok();
        let (load, generation) = (load_from([next()?, next()?, next()?, next()?]), next()?);
        let ready = match words.next()? {
            READY => true,
            UNREADY => false,
            _ => return None,
        };
        Some(Report { load, generation, ready })
    }
}

/// What a site says of itself to a peer that asks for nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Of the site's catalogue.
    pub generation: u64,
    /// What is ready: model, version, digest, and the four numbers of its load.
    pub ready: Vec<(String, String, String, [u64; 4])>,
}

/// A load from its four numbers.
pub fn load_from([in_flight, queued, parallel, micros]: [u64; 4]) -> Load {
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Load {
        in_flight: small(in_flight),
        queued: small(queued),
        parallel: small(parallel),
        engine_time: micros.saturating_mul(1000),
    }
}

/// The four numbers of a load.
pub fn load_numbers(load: &Load) -> [u64; 4] {
    [load.in_flight.into(), load.queued.into(), load.parallel.into(), load.engine_time / 1000]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Jurisdiction {
        Jurisdiction::new(name).unwrap()
    }

    #[test]
    fn a_forwarded_request_is_told_whole() {
        let rules = Source::ALL.into_iter().fold(Rules::none(), |rules, source| match source {
            Source::Manifest => rules.and(source, Some(vec![place("eu"), place("us-ca")]), vec![]),
            _ => rules.and(source, Some(vec![]), vec![place("us")]),
        });
        for (attempt, tenant, probe) in [(2, default_tenant(), false), (0, "acme/eu".into(), true)] {
            let (remaining, rules) = (Duration::from_millis(1500), Arc::new(rules.clone()));
            let told = Forwarded { remaining, digest: [7; 32], rules, attempt, tenant, probe };
            let mut headers = HeaderMap::new();
            told.stamp(&mut headers);
            assert_eq!(Forwarded::take(&mut headers).unwrap(), told);
            assert!(headers.is_empty(), "{headers:?}");
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_refused() {
        let whole = || {
            let mut headers = HeaderMap::new();
            let rules = Rules::none().and(Source::Tenant, None, vec![place("us")]);
            let (remaining, rules) = (Duration::from_secs(1), Arc::new(rules));
            let told = Forwarded { remaining, digest: [1; 32], rules, attempt: 0, tenant: "t".into(), probe: false };
            told.stamp(&mut headers);
            headers
        };
        for name in [REMAINING, DIGEST, HOPS, ATTEMPT, TENANT] {
            let mut headers = whole();
            headers.remove(&name);
            assert_eq!(Forwarded::take(&mut headers).unwrap_err().kind, Kind::Malformed);
        }
        let long = "t".repeat(MAX_TENANT + 1);
        for (name, wrong) in [(ATTEMPT, "256"), (TENANT, ""), (TENANT, "a b"), (TENANT, &long), (PROBE, "load")] {
            let mut headers = whole();
            headers.insert(name, HeaderValue::from_str(wrong).unwrap());
            assert!(Forwarded::take(&mut headers).is_err(), "{wrong}");
        }
        for rules in ["tenant deny=u s", "somebody deny=us", "tenant permit=us", "tenant", ""] {
            let mut headers = whole();
            headers.insert(RULES, HeaderValue::from_str(rules).unwrap());
            let read = Forwarded::take(&mut headers);
            assert!(read.is_err() || rules == "tenant", "{rules}");
        }
    }

    #[test]
    fn a_client_can_wish_and_not_command() {
        let mut headers = HeaderMap::new();
        headers.insert(ALLOW, HeaderValue::from_static("EU, ch"));
        headers.append(ALLOW, HeaderValue::from_static("is"));
        headers.insert(HOPS, HeaderValue::from_static("1"));
        headers.insert("x-own", HeaderValue::from_static("1"));
        headers.insert(CONNECTION, HeaderValue::from_static("x-own"));
        let wishes = wishes(&headers).unwrap();
        assert_eq!(wishes.allow, Some(vec![place("eu"), place("ch"), place("is")]));
        let on = end_to_end(&headers);
        assert!(!on.contains_key(HOPS) && !on.contains_key("x-own") && on.contains_key(ALLOW));
        headers.insert(DENY, HeaderValue::from_static("u s"));
        assert!(super::wishes(&headers).is_err());
    }

    #[test]
    fn what_a_site_says_of_itself_round_trips() {
        let load = Load { in_flight: 3, queued: 1, parallel: 2, engine_time: 5_000 };
        let mut headers = HeaderMap::new();
        for ready in [true, false] {
            let report = Report { load, generation: u64::MAX, ready };
            headers.insert(LOAD, report.header());
            assert_eq!(Report::of(&headers), Some(report));
        }
        for wrong in ["1 2 x 4 5 ready", "1 2 3 4", "1 2 3 4 5 perhaps", ""] {
            headers.insert(LOAD, HeaderValue::from_static(wrong));
            assert_eq!(Report::of(&headers), None, "{wrong}");
        }
    }
}
