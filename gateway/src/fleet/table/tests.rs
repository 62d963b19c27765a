//! Tables of small fleets, as requests find them.

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::json;
use windrose_route::{Action, Attempts, Call, Event, Jurisdiction, Price, Probe, SECOND};

use super::super::addresses::Addresses;
use super::super::laws::Laws;
use super::super::upstream::Foreign;
use super::*;
use crate::config::fleet::{self as config, FleetFile, FleetSite};
use crate::control::manifest::Jurisdictions;
use crate::snapshot::{NotReady, Unready};

fn site(name: &str) -> SiteState {
    let site = Arc::new(Site {
        name: name.into(),
        cloud: "".into(),
        region: "".into(),
        jurisdiction: None,
        price: Price::default(),
    });
    SiteState {
        entry: FleetSite { site, addresses: Vec::new(), distance: Duration::ZERO, weight: 1, foreign: None },
        // No request is sent.
        upstream: Arc::new(Upstream::Foreign(Foreign::new(String::new(), Addresses::of(name, &[]), None))),
        offers: None,
        relayed: Laws::new(),
        round_trip: None,
        follower: None,
    }
}

/// A fleet of this gateway, where so much is deployed, and other sites.
fn built(sites: Vec<SiteState>, snapshot: Snapshot, before: &Table) -> Table {
    of_told(sites, Laws::new(), (FleetModel::default(), &[]), snapshot, before)
}

/// The same, where sites told so much, the fleet file says so much of a model, and these have not been heard of.
fn of_told(
    sites: Vec<SiteState>,
    laws: Laws,
    (model, unheard): (FleetModel, &[&str]),
    snapshot: Snapshot,
    before: &Table,
) -> Table {
    of_time(sites, laws, (model, unheard), (snapshot, Instant::now()), before)
}

/// The same, at a point in time.
fn of_time(
    sites: Vec<SiteState>,
    laws: Laws,
    (model, unheard): (FleetModel, &[&str]),
    (snapshot, now): (Snapshot, Instant),
    before: &Table,
) -> Table {
    let file = FleetFile { sites: Vec::new(), models: HashMap::from([("m".to_owned(), model)]) };
    let named = |site: SiteState| (site.entry.site.name.clone(), site);
    let building = Building { file, sites: sites.into_iter().map(named).collect(), laws };
    let config = FleetConfig {
        file: PathBuf::new(),
        site: "here".into(),
        listen: None,
        certificate: PathBuf::new(),
        key: PathBuf::new(),
        authority: PathBuf::new(),
        hold: 0,
        allow: None,
        deny: Vec::new(),
    };
    let (ceiling, telemetry) = (windrose_sandbox::Grants::default(), Telemetry::new());
    let (config, ceiling, telemetry, building) = (&config, &ceiling, &telemetry, &building);
    let unheard = unheard.iter().map(|&site| site.into()).collect();
    Builder { config, ceiling, telemetry, building, before, snapshot: Arc::new(snapshot), unheard, now }.build()
}

/// What a peer offers of a model `m` whose module and golden test are these.
fn offer(version: &str, module: &str, test: serde_json::Value) -> Offer {
    let parts = json!({"module": module, "graphs": {}, "assets": {}, "command": "", "test": test});
    let offer = json!({"model": "m", "version": version, "parts": parts, "infers": true, "engine": "",
        "granted": 0, "timeout_ms": [1000, 1000]});
    serde_json::from_value(offer).unwrap()
}

/// The same under a law, and with such limits of time in milliseconds.
fn bound_offer(version: &str, jurisdictions: Jurisdictions, timeout_ms: (u64, u64)) -> Offer {
    let mut offer = serde_json::to_value(offer(version, "", json!(null))).unwrap();
    offer["jurisdictions"] = serde_json::to_value(jurisdictions).unwrap();
    offer["timeout_ms"] = json!(timeout_ms);
    serde_json::from_value(offer).unwrap()
}

fn peer(name: &str, offers: Vec<Offer>) -> SiteState {
    SiteState { offers: Some(Arc::new(offers)), ..site(name) }
}

fn peer_in(jurisdiction: &str, offers: Vec<Offer>) -> SiteState {
    let mut peer = peer(jurisdiction, offers);
    let jurisdiction = Jurisdiction::new(jurisdiction).ok();
    peer.entry.site = Arc::new(Site { jurisdiction, ..Site::clone(&peer.entry.site) });
    peer
}

/// A fleet of this gateway and one peer that serves these versions of a model.
fn table(versions: &[&str], before: &Table) -> Table {
    let offers = versions.iter().map(|version| offer(version, "", json!(null))).collect();
    built(vec![peer("peer", offers)], Snapshot::default(), before)
}

fn eu() -> Jurisdictions {
    Jurisdictions { allow: Some(vec!["eu".into()]), deny: Vec::new() }
}

fn triton() -> SiteState {
    let models = HashSet::from(["m".to_owned()]);
    let mut site = site("triton");
    site.entry.foreign = Some(config::Foreign { models, repeatable: false, authority: None });
    site
}

#[test]
fn the_law_of_a_model_that_no_gateway_offers_binds_a_foreign_server() {
    let laws = Laws::from([("peer".into(), Arc::new(Told::from([("m".to_owned(), vec![("1".to_owned(), eu())])])))]);
    let loading = || {
        let unready = Unready { version: "1".into(), why: NotReady::Failed, jurisdictions: eu() };
        Snapshot::default().with_unready([("m".to_owned(), unready)])
    };
    let is_free = |table: Table| table.find("m", None).unwrap().rules.permit(None).is_ok();
    let nothing = Table::default();
    assert!(is_free(built(vec![triton()], Snapshot::default(), &nothing)), "nobody has said anything");
    let gone = of_told(vec![triton(), site("peer")], laws, (FleetModel::default(), &[]), Snapshot::default(), &nothing);
    assert!(!is_free(gone), "a peer had, before it went");
    assert!(!is_free(built(vec![triton()], loading(), &nothing)), "what is deployed here says so");
}

#[test]
fn a_foreign_server_waits_for_the_word_of_every_site_unless_the_fleet_file_has_it() {
    let bound = FleetModel { deny: vec![Jurisdiction::new("us").unwrap()], ..FleetModel::default() };
    let cases = [
        (FleetModel::default(), &[][..], Serves::Unverified),
        (FleetModel::default(), &["far"], Serves::Unheard),
        (bound, &["far"], Serves::Unverified),
    ];
    for (model, unheard, expected) in cases {
        let told = (model, unheard);
        let table = of_told(vec![triton()], Laws::new(), told, Snapshot::default(), &Table::default());
        let found = table.find("m", None).unwrap();
        let router = found.replicas.lock();
        let serves = router.find("triton").and_then(|id| router.replica(id)).unwrap().serves;
        assert_eq!((serves, found.unheard.is_empty()), (expected, expected == Serves::Unverified));
    }
}

fn retries_left(table: &Table, version: &str) -> f64 {
    table.find("m", Some(version)).unwrap().replicas.lock().budgets().0
}

/// One request that fails as often as it is sent.
fn fails(replicas: &Replicas) {
    let (mut router, mut now) = (replicas.lock(), 0);
    let mut attempts = Attempts::new(Call::until(SECOND));
    loop {
        match attempts.poll(&mut router, now) {
            Action::Send { attempt, .. } => attempts.on(&mut router, attempt, Event::Reset, now),
            Action::Wait { until } => now = until,
            Action::Done => break,
            Action::Cancel { .. } | Action::Finish { .. } | Action::Fail(_) => {}
        }
    }
}

#[tokio::test]
async fn a_new_version_begins_with_what_the_model_has_left_of_its_budget() {
    let first = table(&["1"], &Table::default());
    let whole = retries_left(&first, "1");
    fails(&first.find("m", None).unwrap().replicas);
    let left = retries_left(&first, "1");
    assert!(left < whole, "{left} of {whole}");
    // Beside the old version, and in its place.
    assert_eq!(retries_left(&table(&["1", "2"], &first), "2"), left);
    assert_eq!(retries_left(&table(&["2"], &first), "2"), left);
    assert_eq!(retries_left(&table(&["2"], &Table::default()), "2"), whole);
}

#[test]
fn each_digest_that_may_answer_has_its_own_golden_test() {
    let test = |name: &str| json!({"input": format!("{name} in"), "output": format!("{name} out")});
    let (old, new) = (offer("1", "old", test("old")), offer("1", "new", test("new")));
    let (bare, other) = (offer("1", "bare", json!(null)), offer("1", "other", test("other")));
    // Every digest but that of `other` may answer, and the newer one is named first.
    let digests = Some([&bare, &new, &old].map(|offer| offer.parts.digest()).to_vec());
    let model = FleetModel { digests, ..FleetModel::default() };
    let offers = [("a", old), ("b", new), ("c", bare), ("d", other)];
    let mut sites: Vec<_> = offers.into_iter().map(|(name, offer)| peer(name, vec![offer])).collect();
    sites.push(triton());
    let table = of_told(sites, Laws::new(), (model, &[]), Snapshot::default(), &Table::default());
    let found = table.find("m", Some("1")).unwrap();
    let input = |site: &str| found.golden_of(&found.places[site]).map(|test| test.input.as_str());
    let inputs = ["a", "b", "c", "d", "triton"].map(input);
    assert_eq!(inputs, [Some("old in"), Some("new in"), None, None, Some("new in")]);
}

#[tokio::test]
async fn reads_have_a_router_and_budgets_of_their_own_that_stay() {
    let first = table(&["1"], &Table::default());
    let found = first.find("m", None).unwrap();
    let of_calls = retries_left(&first, "1");
    // What reads spend is none of the calls', and what they come to buys calls nothing.
    fails(&found.reads);
    assert_eq!(retries_left(&first, "1"), of_calls);
    let left = found.reads.lock().budgets().0;
    assert!(left < of_calls, "{left} of {of_calls}");
    // Another table has the same, and a new version shares what is left with the old one.
    let second = table(&["1", "2"], &first);
    let reads = |version| &second.find("m", Some(version)).unwrap().reads;
    assert!(Arc::ptr_eq(reads("1"), &found.reads));
    assert_eq!(reads("2").lock().budgets().0, left);
}

/// Where a call of `m` may go by law that names this version, or none.
fn lawful(table: &Table, version: Option<&str>) -> Vec<&'static str> {
    let law = table.find("m", version).unwrap().law(version);
    let permits = |place: &&str| law.permit(Jurisdiction::new(place).ok().as_ref()).is_ok();
    ["eu", "us"].into_iter().filter(permits).collect()
}

#[test]
fn a_call_without_a_version_is_bound_by_every_version_that_is_known() {
    let nothing = Table::default();
    let unbound = || peer_in("us", vec![offer("2", "", json!(null))]);
    let is_kept = |table: &Table| {
        assert_eq!(lawful(table, None), ["eu"]);
        // Whoever names a version is bound by its law.
        assert_eq!(lawful(table, Some("2")), ["eu", "us"]);
    };
    let first = peer_in("eu", vec![bound_offer("1", eu(), (1, 1))]);
    is_kept(&built(vec![unbound(), first], Snapshot::default(), &nothing));
    // What is not ready here binds as well, and what a site had that is silent: a foreign server with the others.
    let unready = Unready { version: "1".into(), why: NotReady::Failed, jurisdictions: eu() };
    let loading = Snapshot::default().with_unready([("m".to_owned(), unready)]);
    is_kept(&built(vec![unbound(), triton()], loading, &nothing));
    let laws = Laws::from([("eu".into(), Arc::new(Told::from([("m".to_owned(), vec![("1".to_owned(), eu())])])))]);
    let sites = vec![unbound(), triton(), site("eu")];
    is_kept(&of_told(sites, laws, (FleetModel::default(), &[]), Snapshot::default(), &nothing));
}

#[test]
fn what_a_peer_knows_of_a_silent_site_binds_until_that_is_heard_of() {
    let told = Arc::new(Told::from([("m".to_owned(), vec![("1".to_owned(), eu())])]));
    let sites = || {
        let relayed = Laws::from([("silent".into(), told.clone())]);
        vec![SiteState { relayed, ..peer("peer", vec![offer("1", "", json!(null))]) }, site("silent")]
    };
    let of = |laws, unheard: &[&str]| {
        let told = (FleetModel::default(), unheard);
        of_told(sites(), laws, told, Snapshot::default(), &Table::default())
    };
    let table = of(Laws::new(), &["silent"]);
    assert_eq!([lawful(&table, Some("1")), lawful(&table, None)], [["eu"]; 2]);
    // A peer cannot speak for a site that is heard of.
    let heard = Laws::from([("silent".into(), Arc::default())]);
    assert_eq!(lawful(&of(heard, &[]), Some("1")), ["eu", "us"]);
}

/// Which version a call means that names none.
fn meant(table: &Table) -> &str {
    &table.find("m", None).unwrap().version
}

#[test]
fn a_call_without_a_version_means_the_highest_that_can_answer() {
    let nothing = Table::default();
    let (old, new) = (offer("1", "old", json!(null)), offer("2", "new", json!(null)));
    let both = |model: FleetModel| {
        let sites = vec![peer_in("eu", vec![old.clone()]), peer_in("us", vec![new.clone()])];
        of_told(sites, Laws::new(), (model, &[]), Snapshot::default(), &nothing)
    };
    let table = both(FleetModel::default());
    assert_eq!(meant(&table), "2");
    // Nobody may answer for the new one: by its digest, by the law of the model, by that of the request.
    let named = FleetModel { digests: Some(vec![old.parts.digest()]), ..FleetModel::default() };
    assert_eq!(meant(&both(named)), "1");
    let law = FleetModel { deny: vec![Jurisdiction::new("us").unwrap()], ..FleetModel::default() };
    assert_eq!(meant(&both(law)), "1");
    let found = table.find("m", None).unwrap();
    let rules = Rules::none().and(Source::Request, None, vec![Jurisdiction::new("us").unwrap()]);
    assert_eq!(table.meant(found, None, &rules).version, "1");
    assert_eq!(table.meant(found, Some("2"), &rules).version, "2");
    let below = |found: &Replicated, rules: &Rules| table.below(found, rules).map(|below| below.version.as_str());
    let first = table.find("m", Some("1")).unwrap();
    assert_eq!((below(found, &rules), below(first, &rules)), (Some("1"), None));
    assert_eq!(below(found, &Rules::none().and(Source::Request, Some(Vec::new()), Vec::new())), None);
    // Peers disagree about it.
    let other = peer("other", vec![offer("2", "other", json!(null))]);
    let sites = vec![peer("a", vec![old.clone(), new.clone()]), other];
    assert_eq!(meant(&built(sites, Snapshot::default(), &nothing)), "1");
    // Its only replica is out, until it is back.
    let probed = |probe| {
        let (mut router, now) = (found.replicas.lock(), found.replicas.now());
        let id = router.find("us").unwrap();
        router.probed(id, probe, now);
    };
    probed(Probe::Wrong);
    assert_eq!(meant(&table), "1");
    // Where the law leaves no other, it is asked all the same.
    let rules = Rules::none().and(Source::Request, None, vec![Jurisdiction::new("eu").unwrap()]);
    assert_eq!(table.meant(table.find("m", Some("1")).unwrap(), None, &rules).version, "2");
    probed(Probe::Right);
    assert_eq!(meant(&table), "2");
    // Where nobody can answer for any of them, it is the highest that is told of.
    let law = FleetModel { allow: Some(Vec::new()), ..FleetModel::default() };
    assert_eq!(meant(&both(law)), "2");
}

#[test]
fn a_foreign_server_has_the_highest_version_that_a_gateway_may_answer_for() {
    let (old, new) = (offer("1", "old", json!(null)), offer("2", "new", json!(null)));
    let with = |model: FleetModel| {
        let sites = vec![peer_in("eu", vec![old.clone()]), peer_in("us", vec![new.clone()]), triton()];
        of_told(sites, Laws::new(), (model, &[]), Snapshot::default(), &Table::default())
    };
    let joined =
        |table: &Table| table.versions("m").map(|found| found.places.contains_key("triton")).collect::<Vec<_>>();
    assert_eq!(joined(&with(FleetModel::default())), [true, false]);
    let named = || FleetModel { digests: Some(vec![old.parts.digest()]), ..FleetModel::default() };
    assert_eq!(joined(&with(named())), [false, true]);
    let law = FleetModel { deny: vec![Jurisdiction::new("us").unwrap()], ..FleetModel::default() };
    assert_eq!(joined(&with(law)), [false, true]);
    assert_eq!(joined(&with(FleetModel { digests: Some(Vec::new()), ..named() })), [true, false]);
}

#[test]
fn only_those_that_may_answer_say_how_long_calls_may_take() {
    let free = Jurisdictions::default;
    let sites = || {
        let mut other = bound_offer("1", free(), (1, 900_000));
        other.parts = offer("1", "other", json!(null)).parts;
        let own = |times| vec![bound_offer("1", free(), times)];
        vec![peer("a", vec![other]), peer("b", own((1000, 2000))), peer("c", own((500, 3000)))]
    };
    let timeouts = |digests| {
        let model = FleetModel { digests: Some(digests), ..FleetModel::default() };
        let table = of_told(sites(), Laws::new(), (model, &[]), Snapshot::default(), &Table::default());
        table.find("m", Some("1")).unwrap().timeouts
    };
    let allowed = offer("1", "", json!(null)).parts.digest();
    assert_eq!(timeouts(vec![allowed]), (Duration::from_secs(1), Duration::from_secs(3)));
    assert_eq!(timeouts(Vec::new()), TIMEOUTS);
}

#[test]
fn a_site_with_another_digest_takes_the_place_of_none_that_answered_before() {
    let began = Instant::now();
    let at = |sites: &[(&str, &str)], seconds: u64, before: &Table| {
        let sites = sites.iter().map(|(name, module)| peer(name, vec![offer("1", module, json!(null))])).collect();
        let when = (Snapshot::default(), began + Duration::from_secs(seconds));
        of_time(sites, Laws::new(), (FleetModel::default(), &[]), when, before)
    };
    let answering = |table: &Table| table.find("m", Some("1")).unwrap().replicas.lock().settings().digests.clone();
    let [old, new] = ["old", "new"].map(|module| offer("1", module, json!(null)).parts.digest());
    let first = at(&[("a", "old")], 0, &Table::default());
    // A gateway that has just started cannot know which is meant.
    assert!(answering(&at(&[("a", "old"), ("b", "new")], 1, &first)).is_empty());
    let first = at(&[("a", "old")], 0, &Table::default());
    let both = at(&[("a", "old"), ("b", "new")], 10, &first);
    assert_eq!(answering(&both), [old]);
    let both = at(&[("a", "old"), ("b", "new"), ("c", "new")], 11, &both);
    assert_eq!(answering(&both), [old], "however many");
    // While the only one is away the other answers, and no longer.
    let away = at(&[("b", "new")], 12, &both);
    assert_eq!(answering(&away), [new]);
    let back = at(&[("a", "old"), ("b", "new")], 15, &away);
    assert_eq!(answering(&back), [old]);
    // All have the new one, for as long as it takes to be meant.
    let agreed = at(&[("a", "new"), ("b", "new")], 20, &back);
    assert_eq!(answering(&agreed), [new]);
    assert_eq!(answering(&at(&[("a", "new"), ("b", "old")], 30, &agreed)), [new]);
}
