//! Which replicas each model has: built whenever anything changes, and read by every request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use windrose_route::{Digest, Grants, Hedging, Nature, Random, Replica, Router, Rules, Serves, Settings, Site, Source};

use super::catalog::{Facts, Offer};
use super::upstream::Upstream;
use super::{Building, SiteState};
use crate::config::fleet::{FleetConfig, FleetModel};
use crate::control::manifest::SelfTest;
use crate::dispatch::replicas::Replicas;
use crate::snapshot::{Served, Snapshot, compare_versions};
use crate::telemetry::{SiteMetrics, Telemetry};

/// How long a request may take that names no deadline, where nobody who serves the model could say.
const TIMEOUTS: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(120));

/// Everything that a request can find.
#[derive(Default)]
pub struct Table {
    snapshot: Option<Arc<Snapshot>>,
    models: HashMap<String, Versions>,
}

#[derive(Default)]
struct Versions {
    highest: Option<Arc<Replicated>>,
    all: Vec<(String, Arc<Replicated>)>,
}

/// One version of a model and its replicas.
pub struct Replicated {
    /// The model's name.
    pub model: String,
    /// The version; empty where only foreign servers have the model.
    pub version: String,
    /// What chooses for calls.
    pub replicas: Arc<Replicas>,
    /// What chooses for reads, among the replicas elsewhere: how long reads take says nothing about calls, and must not be learned
    /// as if it did, and what is read all the time must not pay for calls that are sent again.
    pub reads: Arc<Replicas>,
    /// By the name of the site.
    pub places: HashMap<Arc<str>, Place>,
    /// What binds every request: manifest, fleet file and settings.
    pub rules: Rules,
    /// The sites that may bind it beside that and have not been heard of: foreign servers wait for their word.
    pub unheard: Arc<[Arc<str>]>,
    /// `rules`, shared by requests that add nothing.
    pub shared_rules: Arc<Rules>,
    /// Whether a request may run twice.
    pub repeatable: bool,
    /// Where a second try may go.
    pub hedging: Hedging,
    /// Deadline of a request that names none, and the longest.
    pub timeouts: (Duration, Duration),
    /// The golden tests of what is allowed to answer, each with the digest whose it is, in the order in which digests are named.
    pub golden: Vec<(Digest, SelfTest)>,
}

/// A replica, and how it is reached.
pub struct Place {
    /// The site.
    pub site: Arc<Site>,
    /// Its name, for answers.
    pub name: HeaderValue,
    /// What answers from there say.
    pub facts: Facts,
    /// What it serves; `None` for a foreign server.
    pub digest: Option<Digest>,
    /// How it is reached.
    pub to: To,
    /// What is counted of it.
    pub metrics: Arc<SiteMetrics>,
}

/// Where a replica is.
pub enum To {
    /// Here.
    Here(Arc<Served>),
    /// At another site.
    There(Arc<Upstream>),
}

/// Builds a table.
pub(super) struct Builder<'a> {
    pub config: &'a FleetConfig,
    /// What modules may be granted here.
    pub ceiling: &'a windrose_sandbox::Grants,
    pub telemetry: &'a Telemetry,
    pub building: &'a Building,
    pub before: &'a Table,
    /// What is deployed here.
    pub snapshot: Arc<Snapshot>,
    /// The sites that nobody has heard of.
    pub unheard: Arc<[Arc<str>]>,
}

/// One replica before it is placed.
struct Found {
    site: Arc<Site>,
    distance: Duration,
    weight: u32,
    offer: Offer,
    to: To,
}

// === impl Table ===

impl Table {
    /// A version of a model; the highest where the caller names none.
    pub fn find(&self, model: &str, version: Option<&str>) -> Option<&Arc<Replicated>> {
        let versions = self.models.get(model)?;
        match version {
            None => versions.highest.as_ref(),
            Some(version) => versions.all.iter().find(|(name, _)| name == version).map(|(_, found)| found),
        }
    }

    /// Every version of a model.
    pub fn versions(&self, model: &str) -> impl Iterator<Item = &Arc<Replicated>> {
        self.models.get(model).into_iter().flat_map(|versions| versions.all.iter().map(|(_, found)| found))
    }

    /// Whether it was built of this snapshot.
    pub fn is_of(&self, snapshot: &Arc<Snapshot>) -> bool {
        self.snapshot.as_ref().is_some_and(|mine| Arc::ptr_eq(mine, snapshot))
    }

    /// Every version of every model.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Replicated>> {
        self.models.values().flat_map(|versions| versions.all.iter().map(|(_, found)| found))
    }
}

impl Replicated {
    /// Whether any other site could answer.
    pub fn is_elsewhere(&self) -> bool {
        self.places.values().any(|place| matches!(place.to, To::There(_)))
    }

    /// Whether calls may be answered at this gateway, the site of this name.
    pub fn answers_at(&self, site: &str) -> bool {
        let here = self.places.get(site).filter(|place| matches!(place.to, To::Here(_)));
        let digest = here.and_then(|place| place.digest);
        digest.is_some_and(|digest| self.replicas.lock().settings().digests.contains(&digest))
    }

    /// The golden test for a replica: that of its digest, for another would be another model's. A foreign server has no digest: it
    /// is said to serve the model, and so the first that is named; nothing is sent there before every site has been heard of.
    pub fn golden_of(&self, place: &Place) -> Option<&SelfTest> {
        if place.digest.is_none() && !self.unheard.is_empty() {
            return None;
        }
        let is_its_own = |digest: &Digest| place.digest.is_none_or(|own| own == *digest);
        self.golden.iter().find(|(digest, _)| is_its_own(digest)).map(|(_, test)| test)
    }
}

// === impl Builder ===

impl Builder<'_> {
    pub fn build(&self) -> Table {
        let mut models: BTreeMap<String, BTreeMap<String, Vec<Found>>> = BTreeMap::new();
        for found in self.here(&self.snapshot).into_iter().chain(self.there()) {
            let versions = models.entry(found.offer.model.clone()).or_default();
            versions.entry(found.offer.version.clone()).or_default().push(found);
        }
        let foreign = self.building.sites.values().filter_map(|site| Some((site, site.entry.foreign.as_ref()?)));
        for name in foreign.flat_map(|(_, foreign)| &foreign.models) {
            models.entry(name.clone()).or_default();
        }
        let mut table = Table { snapshot: Some(self.snapshot.clone()), models: HashMap::new() };
        for (model, found) in models {
            table.models.insert(model.clone(), self.versions(&model, found));
        }
        table
    }

    fn versions(&self, model: &str, mut found: BTreeMap<String, Vec<Found>>) -> Versions {
        if found.is_empty() {
            found.insert(String::new(), Vec::new());
        }
        let mut names: Vec<String> = found.keys().cloned().collect();
        names.sort_by(|a, b| compare_versions(b, a));
        let mut versions = Versions::default();
        // One that was there before, or the first of those that are new: its budgets are the model's.
        let mut beside = self.before.versions(model).next().cloned();
        for (at, name) in names.into_iter().enumerate() {
            let found = found.remove(&name).unwrap_or_default();
            let replicated = Arc::new(self.replicated((model, &name), found, at == 0, beside.as_deref()));
            beside.get_or_insert_with(|| replicated.clone());
            if at == 0 {
                versions.highest = Some(replicated.clone());
            }
            versions.all.push((name, replicated));
        }
        versions
    }

    /// What this gateway serves itself.
    fn here(&self, snapshot: &Snapshot) -> Vec<Found> {
        let Some(entry) = self.building.file.site(&self.config.site) else { return Vec::new() };
        let served = snapshot.models().flat_map(|(_, versions)| versions.iter());
        let found = |served: &Arc<Served>| Found {
            site: entry.site.clone(),
            distance: Duration::ZERO,
            weight: entry.weight,
            offer: Offer::of(served, self.ceiling),
            to: To::Here(served.clone()),
        };
        served.map(found).collect()
    }

    /// What peers say that they serve.
    fn there(&self) -> Vec<Found> {
        let mut all = Vec::new();
        for state in self.building.sites.values() {
            for offer in state.offers.iter().flat_map(|offers| offers.iter()) {
                all.push(Found {
                    site: state.entry.site.clone(),
                    distance: state.distance(),
                    weight: state.entry.weight,
                    offer: offer.clone(),
                    to: To::There(state.upstream.clone()),
                });
            }
        }
        all.sort_by(|a, b| a.site.name.cmp(&b.site.name));
        all
    }

    fn replicated(
        &self,
        (model, version): (&str, &str),
        found: Vec<Found>,
        highest: bool,
        beside: Option<&Replicated>,
    ) -> Replicated {
        let told = self.building.file.models.get(model).cloned().unwrap_or_default();
        let digests = allowed(model, version, &told, &found);
        let may = || found.iter().filter(|f| digests.contains(&f.offer.parts.digest()));
        // Where one site grants the module what another does not, it would do other things there.
        let needs = may().fold(Grants::NONE, |all, f| Grants(all.0 | f.offer.grants().0));
        let rules = self.rules((model, version), &told, &found);
        let foreign = || self.building.sites.values().filter(|s| highest && s.serves_foreign(model));
        let unheard = if told.is_bound() { Arc::default() } else { self.unheard.clone() };
        // A foreign server's models may have side effects that no manifest tells of.
        let repeatable = may().all(|f| f.offer.repeatable())
            && foreign().all(|s| s.entry.foreign.as_ref().is_some_and(|f| f.repeatable));
        let golden = |digest: &Digest| {
            let test = found.iter().find(|f| f.offer.parts.digest() == *digest)?.offer.golden()?;
            Some((*digest, test.clone()))
        };
        let golden = digests.iter().filter_map(golden).collect();
        let timeouts = found.first().map_or(TIMEOUTS, |f| f.offer.timeouts());
        let mut replicas: Vec<Replica> = found.iter().map(Found::replica).collect();
        let serves = if unheard.is_empty() { Serves::Unverified } else { Serves::Unheard };
        replicas.extend(foreign().map(|s| s.foreign_replica(serves)));
        let mut places: HashMap<Arc<str>, Place> = found.into_iter().map(|f| f.place(self.telemetry)).collect();
        places.extend(foreign().map(|s| s.foreign_place(model, self.telemetry)));
        let settings = Settings { policy: told.policy, digests, needs, ..Settings::default() };
        let before = self.before.find(model, Some(version)).map(|before| &**before);
        let elsewhere = replicas.iter().filter(|replica| replica.nature != Nature::Local).cloned().collect();
        let reads = shared(before.map(|b| &b.reads), beside.map(|b| &b.reads), &settings, elsewhere);
        let replicas = shared(before.map(|b| &b.replicas), beside.map(|b| &b.replicas), &settings, replicas);
        Replicated {
            model: model.to_owned(),
            version: version.to_owned(),
            replicas,
            reads,
            places,
            shared_rules: Arc::new(rules.clone()),
            rules,
            unheard,
            repeatable,
            hedging: told.hedging,
            timeouts,
            golden,
        }
    }

    /// Every rule of every manifest that goes by this name binds: a peer can make the law stricter, and nobody laxer. Those of
    /// versions that do not answer bind as well: what is not ready here, and what a site served that is heard of no more. Where
    /// no gateway offers the model at all, and foreign servers are left, all its versions do.
    fn rules(&self, (model, version): (&str, &str), told: &FleetModel, found: &[Found]) -> Rules {
        let mut rules = self.config.bind(Rules::none()).and(Source::Fleet, told.allow.clone(), told.deny.clone());
        let mut seen = Vec::new();
        let unready = self.snapshot.unready(model).iter().map(|unready| (&unready.version, &unready.jurisdictions));
        let remembered = self.building.laws.values().filter_map(|told| told.get(model)).flatten();
        let others = unready.chain(remembered.map(|(version, law)| (version, law)));
        let others = others.filter(|(of, _)| found.is_empty() || *of == version).map(|(_, law)| law);
        for law in found.iter().map(|found| &found.offer.jurisdictions).chain(others) {
            if !seen.contains(&law) {
                rules = law.bind(rules);
                seen.push(law);
            }
        }
        rules
    }
}

/// What chooses among these replicas from now on: what did so before, or else one with the budgets of another version.
fn shared(
    before: Option<&Arc<Replicas>>,
    beside: Option<&Arc<Replicas>>,
    settings: &Settings,
    replicas: Vec<Replica>,
) -> Arc<Replicas> {
    let random = || Random::seeded(rand::random());
    let shared = match (before, beside) {
        (Some(before), _) => before.clone(),
        (None, Some(other)) => other.beside(|budgets| Router::sharing(settings.clone(), random(), budgets)),
        (None, None) => Replicas::new(Router::new(settings.clone(), random())),
    };
    let now = shared.now();
    let mut router = shared.lock();
    if router.settings() != settings {
        router.configure(settings.clone());
    }
    router.update(replicas, now);
    drop(router);
    shared
}

/// The digests that may answer: what the fleet file names; else what is served here; else the one that all peers agree
/// on, and none where they do not.
fn allowed(model: &str, version: &str, told: &FleetModel, found: &[Found]) -> Vec<Digest> {
    if let Some(digests) = &told.digests {
        return digests.clone();
    }
    if let Some(here) = found.iter().find(|f| matches!(f.to, To::Here(_))) {
        return vec![here.offer.parts.digest()];
    }
    let all: BTreeSet<Digest> = found.iter().map(|f| f.offer.parts.digest()).collect();
    if all.len() > 1 {
        tracing::warn!(
            model,
            version,
            digests = all.len(),
            "peers serve different digests: name one in the fleet file"
        );
        return Vec::new();
    }
    all.into_iter().collect()
}

impl Found {
    fn replica(&self) -> Replica {
        let here = matches!(self.to, To::Here(_));
        Replica {
            site: self.site.clone(),
            nature: if here { Nature::Local } else { Nature::Peer },
            serves: Serves::Digest(self.offer.parts.digest()),
            grants: self.offer.grants(),
            distance: nanos(self.distance),
            weight: self.weight,
        }
    }

    fn place(self, telemetry: &Telemetry) -> (Arc<str>, Place) {
        let digest = Some(self.offer.parts.digest());
        let (name, facts) = (header(&self.site.name), self.offer.facts());
        let metrics = telemetry.site(&self.site.name);
        let place = Place { name, facts, digest, to: self.to, site: self.site, metrics };
        (place.site.name.clone(), place)
    }
}

impl SiteState {
    fn distance(&self) -> Duration {
        self.round_trip.unwrap_or(self.entry.distance)
    }

    fn serves_foreign(&self, model: &str) -> bool {
        self.entry.foreign.as_ref().is_some_and(|foreign| foreign.models.contains(model))
    }

    fn foreign_replica(&self, serves: Serves) -> Replica {
        Replica {
            site: self.entry.site.clone(),
            nature: Nature::Foreign,
            serves,
            grants: Grants::NONE,
            distance: nanos(self.distance()),
            weight: self.entry.weight,
        }
    }

    fn foreign_place(&self, model: &str, telemetry: &Telemetry) -> (Arc<str>, Place) {
        let site = self.entry.site.clone();
        let to = To::There(self.upstream.clone());
        let (name, facts, metrics) = (header(&site.name), Facts::unverified(model), telemetry.site(&site.name));
        let place = Place { name, facts, digest: None, to, site, metrics };
        (place.site.name.clone(), place)
    }
}

fn header(site: &str) -> HeaderValue {
    HeaderValue::from_str(site).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
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
        let laws =
            Laws::from([("peer".into(), Arc::new(Told::from([("m".to_owned(), vec![("1".to_owned(), eu())])])))]);
        let loading = || {
            let unready = Unready { version: "1".into(), why: NotReady::Failed, jurisdictions: eu() };
            Snapshot::default().with_unready([("m".to_owned(), unready)])
        };
        let is_free = |table: Table| table.find("m", None).unwrap().rules.permit(None).is_ok();
        let nothing = Table::default();
        assert!(is_free(built(vec![triton()], Snapshot::default(), &nothing)), "nobody has said anything");
        let gone =
            of_told(vec![triton(), site("peer")], laws, (FleetModel::default(), &[]), Snapshot::default(), &nothing);
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
}
