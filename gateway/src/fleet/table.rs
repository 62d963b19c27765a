//! Which replicas each model has: built whenever anything changes, and read by every request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use windrose_route::{Digest, Grants, Hedging, Nature, Random, Replica, Router, Rules, Serves, Settings, Site, Source};

use super::catalog::{Facts, Offer};
use super::laws::Told;
use super::upstream::Upstream;
use super::{Building, SiteState};
use crate::config::fleet::{FleetConfig, FleetModel};
use crate::control::manifest::{Jurisdictions, SelfTest};
use crate::control::store::hex;
use crate::dispatch::replicas::Replicas;
use crate::snapshot::{Served, Snapshot, compare_versions};
use crate::telemetry::{SiteMetrics, Telemetry};

/// How long a request may take that names no deadline, where nobody who serves the model could say.
const TIMEOUTS: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(120));

/// For how long a digest answers alone before it counts as the one that answered, when peers come to disagree. A
/// gateway that starts hears of its peers one after the other, and a site that stops comes back.
const ESTABLISHED: Duration = Duration::from_secs(10);

/// Everything that a request can find.
#[derive(Default)]
pub struct Table {
    snapshot: Option<Arc<Snapshot>>,
    models: HashMap<String, Versions>,
}

/// The versions of a model, the highest first.
type Versions = Vec<(String, Arc<Replicated>)>;

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
    /// What binds requests that name no version: the law of every version that is known. Whoever adds a version cannot
    /// loosen what others bind.
    pub unversioned: Arc<Rules>,
    /// Which digest has answered alone.
    pub(super) alone: Alone,
    /// Whether a request may run twice.
    pub repeatable: bool,
    /// Where a second try may go.
    pub hedging: Hedging,
    /// Deadline of a request that names none, and the longest.
    pub timeouts: (Duration, Duration),
    /// The golden tests of what is allowed to answer, each with the digest whose it is, in the order in which digests are named.
    pub golden: Vec<(Digest, SelfTest)>,
}

/// Which digest of a version has answered while no other might.
#[derive(Clone, Copy, Default)]
pub(super) struct Alone {
    /// The last one that did for long enough.
    established: Option<Digest>,
    /// The one that does now, and since when.
    lately: Option<(Digest, Instant)>,
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
    pub now: Instant,
}

/// What holds for all versions of a model.
struct Model<'a> {
    name: &'a str,
    told: FleetModel,
    unversioned: Arc<Rules>,
}

/// One version of a model before its replicas are placed.
struct Version<'a> {
    name: String,
    found: Vec<Found>,
    /// What may answer.
    digests: Vec<Digest>,
    alone: Alone,
    before: Option<&'a Replicated>,
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
    /// A version of a model; where the caller names none, the one that a request means which adds no rules.
    pub fn find(&self, model: &str, version: Option<&str>) -> Option<&Arc<Replicated>> {
        match version {
            None => {
                let highest = self.versions(model).next()?;
                Some(self.meant(highest, None, &highest.unversioned))
            }
            Some(version) => self.models.get(model)?.iter().find(|(name, _)| name == version).map(|(_, found)| found),
        }
    }

    /// What a request means that these rules bind: `found`; or, where it names no version, the highest of which there
    /// is a replica that may answer and is not out, or else one that may. So a version that is new takes no requests
    /// that it cannot answer.
    pub fn meant<'a>(
        &'a self,
        found: &'a Arc<Replicated>,
        version: Option<&str>,
        rules: &Rules,
    ) -> &'a Arc<Replicated> {
        match self.models.get(&found.model) {
            Some(versions) if version.is_none() && versions.len() > 1 => {
                let all = || versions.iter().map(|(_, found)| found);
                let able = || all().find(|found| found.replicas.lock().is_able(rules));
                all().find(|found| found.is_fit(rules)).or_else(able).unwrap_or(found)
            }
            _ => found,
        }
    }

    /// Where a request goes that names no version and that nobody answered who has `found`: the next version below of
    /// which there is a replica that may answer and is not out.
    pub fn below(&self, found: &Replicated, rules: &Rules) -> Option<&Arc<Replicated>> {
        let above = |other: &&Arc<Replicated>| other.version != found.version;
        self.versions(&found.model).skip_while(above).skip(1).find(|found| found.is_fit(rules))
    }

    /// Every version of a model, the highest first.
    pub fn versions(&self, model: &str) -> impl Iterator<Item = &Arc<Replicated>> {
        self.models.get(model).into_iter().flat_map(|versions| versions.iter().map(|(_, found)| found))
    }

    /// Whether it was built of this snapshot.
    pub fn is_of(&self, snapshot: &Arc<Snapshot>) -> bool {
        self.snapshot.as_ref().is_some_and(|mine| Arc::ptr_eq(mine, snapshot))
    }

    /// Every version of every model.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Replicated>> {
        self.models.values().flat_map(|versions| versions.iter().map(|(_, found)| found))
    }
}

impl Replicated {
    /// What binds a request that names this version, or none.
    pub fn law(&self, version: Option<&str>) -> &Arc<Rules> {
        if version.is_some() { &self.shared_rules } else { &self.unversioned }
    }

    /// Whether a call that these rules bind has somewhere to go.
    fn is_fit(&self, rules: &Rules) -> bool {
        let now = self.replicas.now();
        self.replicas.lock().is_fit(rules, !self.repeatable, now)
    }

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

// === impl Alone ===

impl Alone {
    /// The digest that has answered alone for long enough to be the one that is meant.
    fn established(&self, now: Instant) -> Option<Digest> {
        let long = |(_, since): &(Digest, Instant)| now.saturating_duration_since(*since) >= ESTABLISHED;
        self.lately.filter(long).map(|(digest, _)| digest).or(self.established)
    }

    /// The same once these digests may answer.
    fn then(&self, digests: &[Digest], now: Instant) -> Alone {
        let lately = match *digests {
            [one] => self.lately.filter(|(digest, _)| *digest == one).or(Some((one, now))),
            _ => None,
        };
        Alone { established: self.established(now), lately }
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

    fn versions(&self, name: &str, mut found: BTreeMap<String, Vec<Found>>) -> Versions {
        if found.is_empty() {
            found.insert(String::new(), Vec::new());
        }
        let told = self.building.file.models.get(name).cloned().unwrap_or_default();
        let offered = found.values().flatten().map(|found| &found.offer.jurisdictions);
        let unversioned = Arc::new(self.rules((name, None), &told, offered));
        let model = Model { name, told, unversioned };
        let of = |(version, found)| self.version(&model, version, found);
        let mut all: Vec<Version<'_>> = found.into_iter().map(of).collect();
        all.sort_by(|a, b| compare_versions(&b.name, &a.name));
        // A foreign server is taken to have the highest version that a gateway may answer for.
        let joined = all.iter().position(|version| version.is_able(&model.unversioned)).unwrap_or(0);
        let mut versions = Versions::new();
        // One that was there before, or the first of those that are new: its budgets are the model's.
        let mut beside = self.before.versions(name).next().cloned();
        for (at, version) in all.into_iter().enumerate() {
            let name = version.name.clone();
            let replicated = Arc::new(self.replicated(&model, version, at == joined, beside.as_deref()));
            beside.get_or_insert_with(|| replicated.clone());
            versions.push((name, replicated));
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

    fn version(&self, model: &Model<'_>, name: String, found: Vec<Found>) -> Version<'_> {
        let before = self.before.find(model.name, Some(&name)).map(|before| &**before);
        let alone = before.map(|before| before.alone).unwrap_or_default();
        let digests = allowed((model.name, &name), &model.told, &found, alone.established(self.now));
        let alone = alone.then(&digests, self.now);
        Version { name, found, digests, alone, before }
    }

    /// `joined` is whether foreign servers have this version.
    fn replicated(
        &self,
        model: &Model<'_>,
        version: Version<'_>,
        joined: bool,
        beside: Option<&Replicated>,
    ) -> Replicated {
        let Model { name: model, told, unversioned } = model;
        let Version { name: version, found, digests, alone, before } = version;
        let may = || found.iter().filter(|f| digests.contains(&f.offer.parts.digest()));
        // Where one site grants the module what another does not, it would do other things there.
        let needs = may().fold(Grants::NONE, |all, f| Grants(all.0 | f.offer.grants().0));
        // Where no gateway offers the model at all, and foreign servers are left, the law of all its versions binds.
        let named = (!found.is_empty()).then_some(version.as_str());
        let rules = self.rules((model, named), told, found.iter().map(|found| &found.offer.jurisdictions));
        let foreign = || self.building.sites.values().filter(|s| joined && s.serves_foreign(model));
        let unheard = if told.is_bound() { Arc::default() } else { self.unheard.clone() };
        // A foreign server's models may have side effects that no manifest tells of.
        let repeatable = may().all(|f| f.offer.repeatable())
            && foreign().all(|s| s.entry.foreign.as_ref().is_some_and(|f| f.repeatable));
        let golden = |digest: &Digest| {
            let test = found.iter().find(|f| f.offer.parts.digest() == *digest)?.offer.golden()?;
            Some((*digest, test.clone()))
        };
        let golden = digests.iter().filter_map(golden).collect();
        let longest = may().map(|f| f.offer.timeouts()).reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)));
        let timeouts = longest.unwrap_or(TIMEOUTS);
        let mut replicas: Vec<Replica> = found.iter().map(Found::replica).collect();
        let serves = if unheard.is_empty() { Serves::Unverified } else { Serves::Unheard };
        replicas.extend(foreign().map(|s| s.foreign_replica(serves)));
        let mut places: HashMap<Arc<str>, Place> = found.into_iter().map(|f| f.place(self.telemetry)).collect();
        places.extend(foreign().map(|s| s.foreign_place(model, self.telemetry)));
        let settings = Settings { policy: told.policy, digests, needs, ..Settings::default() };
        let elsewhere = replicas.iter().filter(|replica| replica.nature != Nature::Local).cloned().collect();
        let reads = shared(before.map(|b| &b.reads), beside.map(|b| &b.reads), &settings, elsewhere);
        let replicas = shared(before.map(|b| &b.replicas), beside.map(|b| &b.replicas), &settings, replicas);
        Replicated {
            model: (*model).to_owned(),
            version,
            replicas,
            reads,
            places,
            shared_rules: Arc::new(rules.clone()),
            rules,
            unversioned: unversioned.clone(),
            alone,
            unheard,
            repeatable,
            hedging: told.hedging,
            timeouts,
            golden,
        }
    }

    /// Every rule of every manifest that goes by this name binds: a peer can make the law stricter, and nobody laxer. Those of
    /// versions that do not answer bind as well: what is not ready here, and what a site served that is heard of no
    /// more. It is the law of one version, beside what is offered, or of all of them.
    fn rules<'b>(
        &'b self,
        (model, version): (&str, Option<&str>),
        told: &FleetModel,
        offered: impl Iterator<Item = &'b Jurisdictions>,
    ) -> Rules {
        let mut rules = self.config.bind(Rules::none()).and(Source::Fleet, told.allow.clone(), told.deny.clone());
        let mut seen = Vec::new();
        let unready = self.snapshot.unready(model).iter().map(|unready| (&unready.version, &unready.jurisdictions));
        let remembered = self.building.laws.values().filter_map(|told| told.get(model)).flatten();
        // Of sites that were never heard of, what others know.
        let silent = |(site, _): &(&Arc<str>, &Arc<Told>)| self.unheard.contains(site);
        let relayed = self.building.sites.values().flat_map(|site| &site.relayed).filter(silent);
        let relayed = relayed.filter_map(|(_, told)| told.get(model)).flatten();
        let others = unready.chain(remembered.chain(relayed).map(|(version, law)| (version, law)));
        let others = others.filter(|(of, _)| version.is_none_or(|version| *of == version)).map(|(_, law)| law);
        for law in offered.chain(others) {
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
/// on. Where they do not it is the one that answered before, so that no site can stop the others, and none where nobody
/// knows.
fn allowed(
    (model, version): (&str, &str),
    told: &FleetModel,
    found: &[Found],
    established: Option<Digest>,
) -> Vec<Digest> {
    if let Some(digests) = &told.digests {
        return digests.clone();
    }
    if let Some(here) = found.iter().find(|f| matches!(f.to, To::Here(_))) {
        return vec![here.offer.parts.digest()];
    }
    let all: BTreeSet<Digest> = found.iter().map(|f| f.offer.parts.digest()).collect();
    if all.len() > 1 {
        let kept = established.filter(|digest| all.contains(digest));
        let (digests, answers) = (all.len(), kept.as_ref().map(|digest| hex(digest)));
        tracing::warn!(model, version, digests, answers, "peers serve different digests: name one in the fleet file");
        return kept.into_iter().collect();
    }
    all.into_iter().collect()
}

impl Version<'_> {
    /// Whether a gateway may answer for it a call that these rules bind.
    fn is_able(&self, rules: &Rules) -> bool {
        let lawful = |found: &Found| rules.permit(found.site.jurisdiction.as_ref()).is_ok();
        self.found.iter().any(|found| self.digests.contains(&found.offer.parts.digest()) && lawful(found))
    }
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
mod tests;
