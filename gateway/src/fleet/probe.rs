//! Golden probes: the manifest's test input is sent to every replica now and then, the gateway's own and those of foreign
//! servers among them, and the answer compared. A replica that answers wrongly is ejected like one that is down; only a
//! right answer brings it back.
//!
//! They have a budget: each gateway sends at most one probe to a replica in [`EVERY`], and [`PER_ROUND`] in all. They obey
//! the law of the model's data, where they are sent from as well, are never retried or hedged, and count as no client's
//! request. A model that acts outside is never probed.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, StatusCode, Version};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use windrose_route::{Jurisdiction, Probe};

use super::follow::{fetch, get, read};
use super::upstream::{Answer, Outgoing, Upstream};
use super::wire::Forwarded;
use super::{Fleet, Place, Replicated, To};
use crate::config::tenants::PROBER;
use crate::control::manifest::SelfTest;
use crate::control::prepare::compare_golden;
use crate::control::store::hex_digest;
use crate::http::Received;
use crate::snapshot::Served;
use crate::telemetry::Probed;

/// Asks a model of this gateway, as [`PROBER`]: what the data plane answers to the input.
pub type Own = Box<dyn Fn(Arc<Served>, Bytes, Duration) -> Asking + Send + Sync>;
/// An answer on its way; `None` when it broke off.
pub type Asking = Pin<Box<dyn Future<Output = Option<(StatusCode, Bytes)>> + Send>>;

/// Where a peer has the files of golden tests.
pub const GOLDEN: &str = "/windrose/golden/";

/// How often each replica is probed.
const EVERY: Duration = Duration::from_millis(750);
/// The most probes of one round; the next round begins where this one ended.
const PER_ROUND: usize = 64;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Files that are kept.
const KEPT: usize = 1024;

/// What has been read of golden tests, by digest.
type Files = Arc<Mutex<HashMap<String, Bytes>>>;

/// Probes until the fleet has gone. None waits for another, so that a silent site holds up nobody else's.
pub(super) async fn run(fleet: Weak<Fleet>) {
    let files = Files::default();
    let mut running: HashMap<(String, String, Arc<str>), JoinHandle<()>> = HashMap::new();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut at = 0;
    loop {
        tick.tick().await;
        let Some(fleet) = fleet.upgrade() else { return };
        running.retain(|_, probe| !probe.is_finished());
        let (table, here) = (fleet.table(), fleet.jurisdiction_of(&fleet.config.site));
        let all: Vec<(&Arc<Replicated>, &Place)> = table.all().flat_map(|found| due(found, here.as_ref())).collect();
        for step in 0..all.len().min(PER_ROUND) {
            let (found, place) = all[(at + step) % all.len()];
            let site = place.site.name.clone();
            running.entry((found.model.clone(), found.version.clone(), site.clone())).or_insert_with(|| {
                let (fleet, found, files) = (fleet.clone(), found.clone(), files.clone());
                tokio::spawn(async move { one(&fleet, &found, &site, &files).await })
            });
        }
        at = at.wrapping_add(PER_ROUND) % all.len().max(1);
    }
}

/// The replicas that a probe may go to from here: a golden test is data of its model.
fn due<'a>(found: &'a Arc<Replicated>, here: Option<&Jurisdiction>) -> Vec<(&'a Arc<Replicated>, &'a Place)> {
    if !found.repeatable || found.rules.permit(here).is_err() {
        return Vec::new();
    }
    let lawful = |place: &Place| found.rules.permit(place.site.jurisdiction.as_ref()).is_ok();
    let tested = |place: &&Place| found.golden_of(place).is_some() && lawful(place);
    found.places.values().filter(tested).map(|place| (found, place)).collect()
}

/// Probes one replica, if the files of its test can be had.
async fn one(fleet: &Fleet, found: &Replicated, site: &str, files: &Files) {
    let Some(place) = found.places.get(site) else { return };
    let Some(test) = found.golden_of(place) else { return };
    if let Some(pair) = of_test(fleet, found, test, files).await {
        probe(fleet, found, place, test, pair).await;
    }
}

/// Input and output of a test: from here, or from any peer that has it, and then only with the digest that it must have.
async fn of_test(fleet: &Fleet, found: &Replicated, test: &SelfTest, files: &Files) -> Option<(Bytes, Bytes)> {
    let kept = || files.lock().unwrap_or_else(PoisonError::into_inner);
    let output = test.output.as_ref()?;
    let mut pair = Vec::new();
    for digest in [&test.input, output] {
        let known = kept().get(digest).cloned();
        if let Some(bytes) = known {
            pair.push(bytes);
            continue;
        }
        let bytes = match fleet.golden(digest).await {
            Some(bytes) => bytes,
            None => from_peers(found, digest).await?,
        };
        let mut kept = kept();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(digest.clone(), bytes.clone());
        drop(kept);
        pair.push(bytes);
    }
    let output = pair.pop()?;
    Some((pair.pop()?, output))
}

async fn from_peers(found: &Replicated, digest: &str) -> Option<Bytes> {
    for place in found.places.values() {
        let To::There(upstream) = &place.to else { continue };
        let Upstream::Peer(peer) = &**upstream else { continue };
        let asked = timeout(PATIENCE, get(peer, &format!("{GOLDEN}{digest}"))).await;
        if let Ok(Ok(bytes)) = asked
            && hex_digest(&bytes) == digest
        {
            return Some(bytes);
        }
    }
    None
}

/// Sends one probe, and says what came of it.
async fn probe(fleet: &Fleet, found: &Replicated, place: &Place, test: &SelfTest, (input, output): (Bytes, Bytes)) {
    let Some(asking) = asking(fleet, found, place, input) else { return };
    place.metrics.probes();
    let ended = timeout(PATIENCE, asking).await;
    let probe = match ended {
        Ok(Some((StatusCode::OK, answer))) => match compare_golden(&answer, &output, test.tolerance) {
            Ok(()) => Probe::Right,
            Err(why) => {
                tracing::warn!(site = &*place.site.name, model = found.model, why, "a golden answer is wrong");
                Probe::Wrong
            }
        },
        // It has too much to do, or no longer serves this: that says nothing about its answers.
        Ok(Some((StatusCode::TOO_MANY_REQUESTS | StatusCode::MISDIRECTED_REQUEST, _))) => return,
        // A foreign server may not take what a test of ours says beside its tensors.
        Ok(Some((status, _))) if place.digest.is_none() && status.is_client_error() => return,
        Ok(Some(_) | None) | Err(_) => Probe::Failed,
    };
    let now = found.replicas.now();
    let mut router = found.replicas.lock();
    if let Some(id) = router.find(&place.site.name) {
        router.probed(id, probe, now);
    }
}

/// The question to a replica, wherever it is; `None` where nothing can be asked.
fn asking<'a>(fleet: &'a Fleet, found: &'a Replicated, place: &'a Place, input: Bytes) -> Option<AskingOf<'a>> {
    match &place.to {
        To::Here(served) => {
            let own = fleet.own.get()?;
            fleet.telemetry.site(&place.site.name).probed(Probed::Golden);
            Some(own(served.clone(), input, PATIENCE))
        }
        To::There(upstream) => Some(Box::pin(ask(upstream, found, place, input))),
    }
}

type AskingOf<'a> = Pin<Box<dyn Future<Output = Option<(StatusCode, Bytes)>> + Send + 'a>>;

async fn ask(upstream: &Upstream, found: &Replicated, place: &Place, input: Bytes) -> Option<(StatusCode, Bytes)> {
    let question = |uri: String, version| {
        let request = Request::builder().method(Method::POST).uri(uri).version(version);
        request.header(CONTENT_TYPE, HeaderValue::from_static("application/json")).body(()).ok()
    };
    match upstream {
        Upstream::Peer(peer) => {
            let uri = format!("https://windrose/v2/models/{}/versions/{}/infer", found.model, found.version);
            let mut request = question(uri, Version::HTTP_2)?;
            let told = Forwarded {
                remaining: PATIENCE,
                digest: place.digest?,
                rules: found.shared_rules.clone(),
                attempt: 0,
                // A share of the engine of its own: it must not wait behind everything that clients have queued there.
                tenant: PROBER.into(),
                probe: true,
            };
            told.stamp(request.headers_mut());
            fetch(peer, request, Outgoing::Whole(Arc::new([input]))).await.ok()
        }
        Upstream::Foreign(server) => {
            let head = question(format!("/v2/models/{}/infer", found.model), Version::HTTP_11)?;
            let (head, body) = server.send(head, || Some(Received::whole(&[input]))).await.ok()?;
            Some((head.status, read(Answer::Foreign(body)).await.ok()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;
    use windrose_route::{Hedging, Jurisdiction, Price, Random, Router, Rules, Settings, Site, Source};

    use super::super::addresses::Addresses;
    use super::super::catalog::Facts;
    use super::super::upstream::Foreign;
    use super::*;
    use crate::dispatch::replicas::Replicas;

    fn jurisdictions(names: &[&str]) -> Vec<Jurisdiction> {
        names.iter().map(|name| Jurisdiction::new(name).unwrap()).collect()
    }

    fn place(at: usize, jurisdiction: &str, digest: Option<[u8; 32]>) -> Place {
        let site = Arc::new(Site {
            name: format!("site/{at}").into(),
            cloud: "c".into(),
            region: "r".into(),
            jurisdiction: Jurisdiction::new(jurisdiction).ok(),
            price: Price::default(),
        });
        Place {
            site,
            name: HeaderValue::from_static("site"),
            facts: Facts::unverified("m"),
            digest,
            to: To::There(Arc::new(Upstream::Foreign(Foreign::new(String::new(), Addresses::of("m", &[]), None)))),
            metrics: Arc::default(),
        }
    }

    fn test(digest: u8) -> SelfTest {
        serde_json::from_value(serde_json::json!({"input": format!("in {digest}"), "output": "out"})).unwrap()
    }

    fn replicated(rules: Rules, unheard: &[&str], places: Vec<Place>, repeatable: bool) -> Arc<Replicated> {
        Arc::new(Replicated {
            model: "m".to_owned(),
            version: "1".to_owned(),
            replicas: Replicas::new(Router::new(Settings::default(), Random::seeded(1))),
            reads: Replicas::new(Router::new(Settings::default(), Random::seeded(1))),
            places: places.into_iter().map(|place| (place.site.name.clone(), place)).collect(),
            shared_rules: Arc::new(rules.clone()),
            unversioned: Arc::new(rules.clone()),
            alone: super::super::table::Alone::default(),
            rules,
            unheard: unheard.iter().map(|&name| name.into()).collect(),
            repeatable,
            hedging: Hedging::default(),
            timeouts: (PATIENCE, PATIENCE),
            golden: [1, 2].map(|digest| ([digest; 32], test(digest))).to_vec(),
        })
    }

    proptest! {
        #[test]
        fn a_golden_input_goes_only_where_the_law_and_the_digest_allow_it(
            sites in prop::collection::vec(("(eu|us|ch)?", prop::option::of(0u8..4)), 0..12),
            allow in prop::option::of(prop::sample::subsequence(vec!["eu", "us", "ch"], 0..3)),
            deny in prop::sample::subsequence(vec!["eu", "us", "ch"], 0..2),
            repeatable in prop::bool::weighted(0.8),
            unheard in prop::sample::subsequence(vec!["site/far"], 0..2),
            here in "(eu|us|ch)?",
        ) {
            let places: Vec<Place> =
                sites.iter().enumerate().map(|(at, (law, digest))| place(at, law, digest.map(|d| [d; 32]))).collect();
            let rules = Rules::none().and(Source::Manifest, allow.as_deref().map(jurisdictions), jurisdictions(&deny));
            let bound = allow.is_some() || !deny.is_empty();
            let lawful = |law: &str| match law {
                "" => !bound,
                law => allow.as_ref().is_none_or(|allow| allow.contains(&law)) && !deny.contains(&law),
            };
            let may = |(law, digest): &(String, Option<u8>)| {
                let same = digest.map_or(unheard.is_empty(), |digest| [1, 2].contains(&digest));
                repeatable && lawful(&here) && lawful(law) && same
            };
            let found = replicated(rules, &unheard, places, repeatable);
            let own = Jurisdiction::new(&here).ok();
            let due = due(&found, own.as_ref());
            for (found, place) in &due {
                // Its own test, and the first where nobody knows which is its own.
                let own = place.digest.map_or(1, |digest| digest[0]);
                prop_assert_eq!(found.golden_of(place), Some(&test(own)));
            }
            let mut due: Vec<&str> = due.into_iter().map(|(_, place)| &*place.site.name).collect();
            due.sort_unstable();
            let named = sites.iter().enumerate().filter(|(_, site)| may(site)).map(|(at, _)| format!("site/{at}"));
            let mut named: Vec<String> = named.collect();
            named.sort_unstable();
            prop_assert_eq!(due, named);
        }
    }
}
