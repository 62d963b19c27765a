//! Tables of small fleets, as requests find them.

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::json;
use windrose_route::{Action, Attempts, Call, Event, Jurisdiction, Price, SECOND};

use super::super::addresses::Addresses;
use super::super::laws::{Laws, Told};
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
    Builder { config, ceiling, telemetry, building, before, snapshot: Arc::new(snapshot), unheard }.build()
}

/// What a peer offers of a model `m` whose module and golden test are these.
fn offer(version: &str, module: &str, test: serde_json::Value) -> Offer {
    let parts = json!({"module": module, "graphs": {}, "assets": {}, "command": "", "test": test});
    let offer = json!({"model": "m", "version": version, "parts": parts, "infers": true, "engine": "",
        "granted": 0, "timeout_ms": [1000, 1000]});
    serde_json::from_value(offer).unwrap()
}

fn peer(name: &str, offers: Vec<Offer>) -> SiteState {
    SiteState { offers: Some(Arc::new(offers)), ..site(name) }
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
