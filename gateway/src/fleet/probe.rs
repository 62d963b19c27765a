//! Golden probes: the manifest's test input is sent to every replica now and then, the gateway's own and those of
//! foreign servers among them, and the answer compared where the test has an output. A replica that answers wrongly is
//! ejected like one that is down; only a right answer brings it back.
//!
//! They have a budget, by which [`Rota`] says whose turn it is. They obey the law of the model's data, where they are
//! sent from as well, are never retried or hedged, and count as no client's request. A model that acts outside is never
//! probed.

mod rota;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, StatusCode, Version};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use windrose_route::{Jurisdiction, Probe, Standing};

use self::rota::{Ended, Key, Known, LOOK, Rota};
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

/// How long an answer may take at least, and at most: within that, as long as the model lets a request take that names
/// no deadline.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// An answer is late that takes so many times as long as the last one did.
const LATE: u32 = 4;
/// How long a file of a test may take to come from a peer.
const FILE: Duration = Duration::from_secs(2);
/// Files that are kept.
const KEPT: usize = 1024;

/// What has been read of golden tests, by digest.
type Files = Arc<Mutex<HashMap<String, Bytes>>>;

/// One probe under way. However it ends, and should its task break down, the replica's next turn comes.
struct Turn {
    rota: Arc<Mutex<Rota>>,
    key: Key,
    ended: Ended,
}

impl Turn {
    async fn take(mut self, fleet: Arc<Fleet>, found: Arc<Replicated>, usual: Option<Duration>, files: Files) {
        self.ended = one(&fleet, &found, &self.key.site, usual, &files).await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.rota).over(&self.key, self.ended);
    }
}

/// Nothing that is done under such a lock leaves half of it behind.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Probes until the fleet has gone. None waits for another, so that a silent site holds up nobody else's.
pub(super) async fn run(fleet: Weak<Fleet>) {
    let (files, rota): (Files, Arc<Mutex<Rota>>) = Default::default();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(fleet) = fleet.upgrade() else { return };
        let (table, here) = (fleet.table(), fleet.jurisdiction_of(&fleet.config.site));
        let (mut all, mut versions) = (Vec::new(), Vec::new());
        for found in table.all() {
            let known = known(found, here.as_ref());
            versions.extend(std::iter::repeat_n(found, known.len()));
            all.extend(known);
        }
        let turns = lock(&rota).turn(&all, Instant::now());
        for at in turns {
            let (fleet, found, files) = (fleet.clone(), versions[at].clone(), files.clone());
            let key = all[at].key.clone();
            let usual = lock(&rota).usual(&key);
            let turn = Turn { rota: rota.clone(), key, ended: Ended::Otherwise };
            tokio::spawn(turn.take(fleet, found, usual, files));
        }
    }
}

/// How the replicas of a version stand that a probe may go to from here.
fn known(found: &Replicated, here: Option<&Jurisdiction>) -> Vec<Known> {
    let places = due(found, here);
    if places.is_empty() {
        return Vec::new();
    }
    let now = (Instant::now(), found.replicas.now());
    let router = found.replicas.lock();
    let named = |id| Some((&*router.replica(id)?.site.name, router.standing(id)?));
    let standing: HashMap<&str, Standing> = router.ids().filter_map(named).collect();
    let known = |place: &Place| {
        let standing = standing.get(&*place.site.name);
        let key = Key {
            model: found.model.clone(),
            version: found.version.clone(),
            site: place.site.name.clone(),
            digest: place.digest,
        };
        let ago = |at| Duration::from_nanos(now.1.saturating_sub(at));
        let answered = standing.and_then(|standing| now.0.checked_sub(ago(standing.answered?)));
        Known { key, ejected: standing.is_some_and(|standing| standing.ejected.is_some()), answered }
    };
    places.into_iter().map(known).collect()
}

/// The replicas that a probe may go to from here: a golden test is data of its model.
fn due<'a>(found: &'a Replicated, here: Option<&Jurisdiction>) -> Vec<&'a Place> {
    if !found.repeatable || found.rules.permit(here).is_err() {
        return Vec::new();
    }
    let lawful = |place: &Place| found.rules.permit(place.site.jurisdiction.as_ref()).is_ok();
    let tested = |place: &&Place| found.golden_of(place).is_some() && lawful(place);
    found.places.values().filter(tested).collect()
}

/// Probes one replica, if the files of its test can be had. `usual` is how long it took the last time that it answered.
async fn one(fleet: &Fleet, found: &Replicated, site: &str, usual: Option<Duration>, files: &Files) -> Ended {
    let Some(place) = found.places.get(site) else { return Ended::Otherwise };
    let Some(test) = found.golden_of(place) else { return Ended::Otherwise };
    let Some((input, output)) = of_test(fleet, found, test, files).await else { return Ended::Otherwise };
    let patience = patience(found, usual);
    let Some(asking) = asking(fleet, found, place, (input, patience)) else { return Ended::Otherwise };
    place.metrics.probes();
    probe(found, place, asking, &Expected { output, tolerance: test.tolerance, patience, usual }).await
}

/// How long an answer is waited for. Where it is known how long it takes, whoever does not answer is found out soon.
fn patience(found: &Replicated, usual: Option<Duration>) -> Duration {
    let most = found.timeouts.0.clamp(PATIENCE.0, PATIENCE.1);
    usual.map_or(most, |usual| (usual * LATE).clamp(PATIENCE.0, most))
}

/// Input and output of a test: from here, or from any peer that has it, and then only with the digest that it must have.
async fn of_test(fleet: &Fleet, found: &Replicated, test: &SelfTest, files: &Files) -> Option<(Bytes, Option<Bytes>)> {
    let input = file(fleet, found, &test.input, files).await?;
    let output = match &test.output {
        Some(digest) => Some(file(fleet, found, digest, files).await?),
        None => None,
    };
    Some((input, output))
}

async fn file(fleet: &Fleet, found: &Replicated, digest: &str, files: &Files) -> Option<Bytes> {
    let known = lock(files).get(digest).cloned();
    if known.is_some() {
        return known;
    }
    let bytes = match fleet.golden(digest).await {
        Some(bytes) => bytes,
        None => from_peers(found, digest).await?,
    };
    let mut kept = lock(files);
    if kept.len() >= KEPT {
        kept.clear();
    }
    kept.insert(digest.to_owned(), bytes.clone());
    Some(bytes)
}

async fn from_peers(found: &Replicated, digest: &str) -> Option<Bytes> {
    for place in found.places.values() {
        let To::There(upstream) = &place.to else { continue };
        let Upstream::Peer(peer) = &**upstream else { continue };
        let asked = timeout(FILE, get(peer, &format!("{GOLDEN}{digest}"))).await;
        if let Ok(Ok(bytes)) = asked
            && hex_digest(&bytes) == digest
        {
            return Some(bytes);
        }
    }
    None
}

/// What a probe of a replica waits for.
struct Expected {
    /// The right answer; without one, any answer will do.
    output: Option<Bytes>,
    tolerance: f64,
    /// How long it is waited for.
    patience: Duration,
    /// How long the last one took.
    usual: Option<Duration>,
}

impl Expected {
    /// Whether an answer that has not come in time says something of its replica: by its own answers to the same input,
    /// and by nothing else. How long a model may take is nobody's failure.
    fn makes_late(&self) -> bool {
        self.usual.is_some_and(|usual| usual * LATE <= self.patience)
    }

    /// Whether that error of the caller's says nothing of the replica.
    fn is_free(&self, place: &Place, status: StatusCode) -> bool {
        place.digest.is_none() || self.output.is_none() && status != StatusCode::TOO_MANY_REQUESTS
    }

    /// What an answer says of its replica.
    fn compare(&self, place: &Place, model: &str, answer: &Bytes) -> Probe {
        let Some(output) = &self.output else { return Probe::Answered };
        match compare_golden(answer, output, self.tolerance) {
            Ok(()) => Probe::Right,
            Err(why) => {
                tracing::warn!(site = &*place.site.name, model, why, "a golden answer is wrong");
                Probe::Wrong
            }
        }
    }
}

/// Waits for the answer of a probe, and tells the router what came of it.
async fn probe(found: &Replicated, place: &Place, asking: AskingOf<'_>, expected: &Expected) -> Ended {
    let site = &*place.site.name;
    let distance = || {
        let router = found.replicas.lock();
        router.find(site).and_then(|id| router.replica(id)).map_or(0, |replica| replica.distance)
    };
    // What is the network's keeps no engine busy.
    let (sent, network) = (Instant::now(), Duration::from_nanos(distance()));
    let answer = timeout(expected.patience, asking).await;
    let took = sent.elapsed().saturating_sub(network);
    let (probe, ended) = match answer {
        Ok(Some((StatusCode::OK, answer))) => {
            (Some(expected.compare(place, &found.model, &answer)), Ended::Answered(took))
        }
        // A foreign server may have too much to do, or not take what a test of ours says beside its tensors; and what has no
        // golden answer may have none that can be written as JSON.
        Ok(Some((status, _))) if status.is_client_error() && expected.is_free(place, status) => {
            (None, Ended::Otherwise)
        }
        // That says nothing about its answers, and neither does it that it no longer serves this.
        Ok(Some((StatusCode::TOO_MANY_REQUESTS, _))) => (None, Ended::NoRoom),
        Ok(Some((StatusCode::MISDIRECTED_REQUEST, _))) => (None, Ended::Otherwise),
        Ok(Some((StatusCode::GATEWAY_TIMEOUT, _))) | Err(_) => {
            (expected.makes_late().then_some(Probe::Failed), Ended::GivenUp(took))
        }
        Ok(Some(_) | None) => (Some(Probe::Failed), Ended::Otherwise),
    };
    let now = found.replicas.now();
    let mut router = found.replicas.lock();
    if let (Some(id), Some(probe)) = (router.find(site), probe) {
        router.probed(id, probe, now);
    }
    ended
}

/// The question to a replica, wherever it is, and for how long it may take; `None` where nothing can be asked.
fn asking<'a>(
    fleet: &'a Fleet,
    found: &'a Replicated,
    place: &'a Place,
    (input, patience): (Bytes, Duration),
) -> Option<AskingOf<'a>> {
    match &place.to {
        To::Here(served) => {
            let own = fleet.own.get()?;
            fleet.telemetry.site(&place.site.name).probed(Probed::Golden);
            Some(own(served.clone(), input, patience))
        }
        To::There(upstream) => Some(Box::pin(ask(upstream, found, place, (input, patience)))),
    }
}

type AskingOf<'a> = Pin<Box<dyn Future<Output = Option<(StatusCode, Bytes)>> + Send + 'a>>;

async fn ask(
    upstream: &Upstream,
    found: &Replicated,
    place: &Place,
    (input, patience): (Bytes, Duration),
) -> Option<(StatusCode, Bytes)> {
    let question = |uri: String, version| {
        let request = Request::builder().method(Method::POST).uri(uri).version(version);
        request.header(CONTENT_TYPE, HeaderValue::from_static("application/json")).body(()).ok()
    };
    match upstream {
        Upstream::Peer(peer) => {
            let uri = format!("https://windrose/v2/models/{}/versions/{}/infer", found.model, found.version);
            let mut request = question(uri, Version::HTTP_2)?;
            let told = Forwarded {
                remaining: patience,
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
    use windrose_route::{
        Call, Ejection, Grants, Hedging, Jurisdiction, Nature, Price, Random, Replica, Router, Rules, SECOND, Serves,
        Settings, Site, Source, Verdict,
    };

    use super::super::addresses::Addresses;
    use super::super::catalog::Facts;
    use super::super::upstream::Foreign;
    use super::*;
    use crate::dispatch::replicas::{Outcome, Replicas, run as run_call};

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
            timeouts: (PATIENCE.1, PATIENCE.1),
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
            for place in &due {
                // Its own test, and the first where nobody knows which is its own.
                let own = place.digest.map_or(1, |digest| digest[0]);
                prop_assert_eq!(found.golden_of(place), Some(&test(own)));
            }
            let mut due: Vec<&str> = due.into_iter().map(|place| &*place.site.name).collect();
            due.sort_unstable();
            let named = sites.iter().enumerate().filter(|(_, site)| may(site)).map(|(at, _)| format!("site/{at}"));
            let mut named: Vec<String> = named.collect();
            named.sort_unstable();
            prop_assert_eq!(due, named);
        }
    }

    /// A version with one replica, as its router has it.
    fn one_replica() -> Arc<Replicated> {
        let found = replicated(Rules::none(), &[], vec![place(0, "eu", Some([1; 32]))], true);
        found.replicas.lock().configure(Settings { digests: vec![[1; 32]], ..Settings::default() });
        let replica = |place: &Place| Replica {
            site: place.site.clone(),
            nature: Nature::Peer,
            serves: Serves::Digest([1; 32]),
            grants: Grants::NONE,
            distance: 0,
            weight: 1,
        };
        found.replicas.lock().update(found.places.values().map(replica).collect(), 0);
        found
    }

    fn ejected(found: &Replicated) -> Option<Ejection> {
        let router = found.replicas.lock();
        router.find("site/0").and_then(|id| router.standing(id)).and_then(|standing| standing.ejected)
    }

    fn answer(value: u8) -> Bytes {
        let output = serde_json::json!({"name": "y", "shape": [1], "datatype": "UINT8", "data": [value]});
        serde_json::json!({"model_name": "m", "outputs": [output]}).to_string().into()
    }

    /// One probe of the replica, which answers with that after so long; the golden answer is 1, if there is one. Whole
    /// seconds are told.
    async fn probed(
        found: &Replicated,
        usual: Option<Duration>,
        has_output: bool,
        (after, status, value): (Duration, StatusCode, u8),
    ) -> Ended {
        let asking = Box::pin(async move {
            tokio::time::sleep(after).await;
            Some((status, answer(value)))
        });
        let output = has_output.then(|| answer(1));
        let expected = Expected { output, tolerance: 0.0, patience: patience(found, usual), usual };
        let whole = |took: Duration| Duration::from_secs(took.as_secs());
        match probe(found, &found.places["site/0"], asking, &expected).await {
            Ended::Answered(took) => Ended::Answered(whole(took)),
            Ended::GivenUp(took) => Ended::GivenUp(whole(took)),
            other => other,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn how_long_a_model_takes_ejects_no_replica_of_it() {
        let found = one_replica();
        let (slow, never) = (Duration::from_secs(7), Duration::from_secs(900));
        for (after, expected) in [(slow, Ended::Answered(slow)), (never, Ended::GivenUp(PATIENCE.1))] {
            for _ in 0..5 {
                assert_eq!(probed(&found, None, true, (after, StatusCode::OK, 1)).await, expected);
                assert_eq!(ejected(&found), None);
            }
        }
        // Nor does its site's word that it took too long, nor that it is late by less than it is late for.
        for _ in 0..5 {
            let late = probed(&found, Some(slow * 2), true, (slow, StatusCode::GATEWAY_TIMEOUT, 1)).await;
            assert_eq!((late, ejected(&found)), (Ended::GivenUp(slow), None));
        }
    }

    /// Such as that its numbers have no form in JSON.
    #[tokio::test(start_paused = true)]
    async fn an_error_of_the_callers_ejects_nobody_whose_answer_is_not_known() {
        let (found, quick) = (one_replica(), Duration::from_millis(10));
        assert!(found.places["site/0"].digest.is_some());
        for _ in 0..5 {
            let ended = probed(&found, None, false, (quick, StatusCode::BAD_REQUEST, 1)).await;
            assert_eq!((ended, ejected(&found)), (Ended::Otherwise, None));
            let busy = probed(&found, None, false, (quick, StatusCode::TOO_MANY_REQUESTS, 1)).await;
            assert_eq!(busy, Ended::NoRoom);
        }
        for _ in 0..5 {
            probed(&found, None, true, (quick, StatusCode::BAD_REQUEST, 1)).await;
        }
        assert!(ejected(&found).is_some(), "it answered that once");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_answer_as_it_did_is_ejected() {
        let (found, quick) = (one_replica(), Duration::from_millis(10));
        for turn in 0..3 {
            assert_eq!(ejected(&found), None, "{turn}");
            let late = probed(&found, Some(quick), true, (Duration::from_secs(900), StatusCode::OK, 1)).await;
            assert_eq!(late, Ended::GivenUp(PATIENCE.0));
        }
        assert_eq!(ejected(&found), Some(Ejection::Failures));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_says_what_there_is_to_compare_it_with() {
        let (found, quick) = (one_replica(), Duration::from_millis(10));
        // Without an output any answer is one: it brings back what had failed, and nothing that was wrong.
        for _ in 0..3 {
            probed(&found, None, false, (quick, StatusCode::INTERNAL_SERVER_ERROR, 1)).await;
        }
        assert_eq!(ejected(&found), Some(Ejection::Failures));
        tokio::time::advance(Duration::from_secs(1)).await;
        probed(&found, None, false, (quick, StatusCode::OK, 7)).await;
        assert_eq!(ejected(&found), None);
        probed(&found, None, true, (quick, StatusCode::OK, 7)).await;
        assert_eq!(ejected(&found), Some(Ejection::Wrong));
        probed(&found, None, false, (quick, StatusCode::OK, 1)).await;
        assert_eq!(ejected(&found), Some(Ejection::Wrong));
        let busy = probed(&found, None, true, (quick, StatusCode::TOO_MANY_REQUESTS, 1)).await;
        assert_eq!((busy, ejected(&found)), (Ended::NoRoom, Some(Ejection::Wrong)));
        probed(&found, None, true, (quick, StatusCode::OK, 1)).await;
        assert_eq!(ejected(&found), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_answers_requests_and_what_is_out_is_known() {
        let found = one_replica();
        let look = || known(&found, None).pop().unwrap();
        assert!(!look().ejected && look().answered.is_none());
        let sent = Instant::now();
        let call = Call::until(found.replicas.now() + 10 * SECOND);
        let answers = run_call(&found.replicas, call, None, |_, _, _| {
            Box::pin(async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Outcome::Answer { verdict: Verdict::Answer, whole: Some(1), answer: () }
            })
        });
        assert!(answers.await.is_ok());
        assert!(look().answered.is_some_and(|at| at > sent && at <= Instant::now()), "{:?}", look());
        probed(&found, None, true, (Duration::ZERO, StatusCode::OK, 7)).await;
        assert!(look().ejected);
    }
}
