//! The fleet as this gateway sees it: its sites, what is ready at each of them, and for every model the replicas that a
//! request may go to.
//!
//! Tasks follow the fleet file, the certificates and the peers. Whatever changes, they build one new [`Table`] and store
//! it behind one pointer; a request loads that once.

mod addresses;
pub mod catalog;
pub mod certificate;
pub(crate) mod follow;
mod foreign;
mod keeper;
mod laws;
pub(crate) mod probe;
mod table;
pub mod tls;
pub mod upstream;
pub mod wire;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::CertificateDer;
use windrose_route::{Ejection, Jurisdiction};
use windrose_sandbox::Grants;

pub use self::table::{Place, Replicated, Table, To};

use self::addresses::Addresses;
use self::catalog::{Catalog, Offer};
use self::follow::Follower;
use self::laws::Laws;
use self::probe::Own;
use self::tls::{Authority, Identity, TlsError};
use self::upstream::{Foreign, Peer, Upstream};
use crate::config::ConfigError;
use crate::config::fleet::{FleetConfig, FleetFile, FleetSite};
use crate::control::registry::Registry;
use crate::snapshot::{Current, Snapshot};
use crate::telemetry::Telemetry;

/// How long the start waits for peers.
const SETTLE: Duration = Duration::from_secs(2);

/// Why there is no fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The settings or the fleet file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// One gateway's fleet.
pub struct Fleet {
    /// The settings.
    pub config: FleetConfig,
    /// What the certificates are now.
    identity: watch::Sender<Arc<Identity>>,
    /// The names of the sites, but this one, whose gateways may connect.
    peers: watch::Sender<Vec<Arc<str>>>,
    /// What this gateway serves, for peers.
    catalog: watch::Sender<Arc<Catalog>>,
    /// The snapshot that peers were told of last.
    told: Mutex<Option<Arc<Snapshot>>>,
    /// What peers are told from the beginning of the shutdown on: nothing is ready.
    leaving: AtomicBool,
    table: ArcSwap<Table>,
    /// Held while a new table is built; no request waits for it.
    building: Mutex<Building>,
    /// What is to be kept of the sites' laws.
    laws: watch::Sender<Laws>,
    /// What is served here.
    current: Current,
    /// What modules may be granted here.
    ceiling: Grants,
    telemetry: Arc<Telemetry>,
    /// Where the files of golden tests are.
    registry: Arc<Registry>,
    /// How this gateway's own replicas are probed.
    own: OnceLock<Own>,
}

/// What tables are built from.
struct Building {
    file: FleetFile,
    sites: HashMap<Arc<str>, SiteState>,
    /// The law of what each site's gateways have, or had when they were last heard of.
    laws: Laws,
}

/// What is known of another site.
struct SiteState {
    entry: FleetSite,
    upstream: Arc<Upstream>,
    /// What it serves; `None` while nobody knows.
    offers: Option<Arc<Vec<Offer>>>,
    /// What it knows of the law at other sites, as far as it was asked.
    relayed: Laws,
    /// The shortest round trip to it that was seen.
    round_trip: Option<Duration>,
    follower: Option<Follower>,
}

impl Fleet {
    /// Reads the fleet file and the certificates, and begins to follow both and the peers. What is known of the law of other
    /// sites' models is kept in this folder.
    ///
    /// # Errors
    /// Names the setting.
    pub fn start(
        config: FleetConfig,
        dir: &Path,
        current: Current,
        registry: Arc<Registry>,
        telemetry: Arc<Telemetry>,
    ) -> Result<Arc<Fleet>, FleetError> {
        let file = FleetFile::load(&config.file, &config.site)?;
        let identity = Identity::load(&config)?;
        let kept = dir.join("laws.json");
        let known = laws::read(&kept);
        let ceiling = registry.loader.ceiling.grants.clone();
        // What is deployed here binds from the first moment on, ready or not.
        let catalog = Catalog::of_snapshot(&current.load(), &ceiling);
        let fleet = Arc::new(Fleet {
            identity: watch::Sender::new(Arc::new(identity)),
            peers: watch::Sender::default(),
            catalog: watch::Sender::new(Arc::new(catalog)),
            told: Mutex::default(),
            leaving: AtomicBool::new(false),
            table: ArcSwap::from_pointee(Table::default()),
            building: Mutex::new(Building { file: file.clone(), sites: HashMap::new(), laws: known.clone() }),
            laws: watch::Sender::new(known),
            current,
            ceiling,
            registry,
            telemetry,
            own: OnceLock::new(),
            config,
        });
        tokio::spawn(laws::keep(kept, fleet.laws.subscribe()));
        fleet.take_file(file);
        follow::start(&fleet);
        Ok(fleet)
    }

    /// What a request finds.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// The certificates as they are now.
    pub fn identity(&self) -> Arc<Identity> {
        self.identity.borrow().clone()
    }

    /// What this gateway serves, and when that changes.
    pub fn catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.catalog.subscribe()
    }

    /// The generation of what peers are told.
    pub fn generation(&self) -> u64 {
        self.catalog.borrow().generation
    }

    /// What is known of the law at the sites that a peer asks for: the query of [`follow::LAWS`].
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn laws_of(&self, query: Option<&str>) -> serde_json::Result<Vec<u8>> {
        laws::written(laws::asked(&self.laws.borrow(), query))
    }

    /// Whether peers are told that something is ready here; not in the shutdown.
    pub fn is_serving(&self) -> bool {
        !self.leaving.load(Ordering::Relaxed)
    }

    /// Tells the peers that nothing is ready here any more. The shutdown begins with it.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        self.catalog.send_replace(Arc::new(Catalog::of_leaving()));
    }

    /// A file of a golden test of something that is served here. No other file is handed out.
    pub async fn golden(&self, digest: &str) -> Option<Bytes> {
        let snapshot = self.current.load_full();
        let mut served = snapshot.models().flat_map(|(_, versions)| versions.iter());
        if !served.any(|served| served.manifest.test.as_ref().is_some_and(|test| test.names(digest))) {
            return None;
        }
        self.registry.store.read_blob(digest).await.ok()
    }

    /// How this gateway's own replicas are probed from now on. Only the first call counts.
    pub fn probe_own(&self, own: Own) {
        let _ = self.own.set(own);
    }

    /// Whose law holds at a site.
    pub fn jurisdiction_of(&self, site: &str) -> Option<Jurisdiction> {
        self.building().file.site(site).and_then(|entry| entry.site.jurisdiction.clone())
    }

    /// Whether a site may have a file of a golden test, which is data of its model: by the law of every model served here
    /// whose test names it.
    pub fn may_have_golden(&self, digest: &str, site: &str) -> bool {
        let (at, table, snapshot) = (self.jurisdiction_of(site), self.table(), self.current.load_full());
        let mut served = snapshot.models().flat_map(|(_, versions)| versions.iter());
        served.all(|served| {
            let (name, version) = (&served.manifest.name, &served.manifest.version);
            let lawful =
                || table.find(name, Some(version)).is_some_and(|found| found.rules.permit(at.as_ref()).is_ok());
            !served.manifest.test.as_ref().is_some_and(|test| test.names(digest)) || lawful()
        })
    }

    /// Whether another site has a model, or this version of it, ready or not, or had it when it was last heard of.
    pub fn has_heard_of(&self, model: &str, version: Option<&str>) -> bool {
        let laws = self.laws.borrow();
        let told = laws.values().filter_map(|told| told.get(model));
        told.flatten().any(|(known, _)| version.is_none_or(|version| known == version))
    }

    /// The site whose certificate this is, which was verified.
    pub fn peer_of(&self, certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
        self.peers.borrow().iter().find(|site| tls::is_site(certificate, site)).cloned()
    }

    /// Waits until what proved a connection to be a site's no longer does, and says why.
    pub async fn doubts(&self, site: &str, chain: &[CertificateDer<'_>]) -> &'static str {
        let (mut identity, mut peers) = (self.identity.subscribe(), self.peers.subscribe());
        loop {
            let now = identity.borrow_and_update().clone();
            let Some(until) = now.believes(chain) else { return "its certificate is not one of this fleet any more" };
            if !peers.borrow_and_update().iter().any(|peer| **peer == *site) {
                return "it is no site of this fleet any more";
            }
            tokio::select! {
                () = tls::until(until) => return "its certificate has expired",
                () = tls::until(now.until) => return "the certificate of this gateway has expired",
                _ = identity.changed() => {}
                _ = peers.changed() => {}
            }
        }
    }

    fn building(&self) -> std::sync::MutexGuard<'_, Building> {
        self.building.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over another fleet file: connects to sites that are new or have moved, and leaves those that have gone.
    fn take_file(self: &Arc<Fleet>, file: FleetFile) {
        let mut building = self.building();
        let mut before = std::mem::take(&mut building.sites);
        for entry in &file.sites {
            if *entry.site.name == *self.config.site {
                continue;
            }
            let kept = before.remove(&entry.site.name);
            let kept = kept.filter(|s| s.entry.addresses == entry.addresses && s.entry.foreign == entry.foreign);
            let state = match kept {
                Some(state) => SiteState { entry: entry.clone(), ..state },
                None => self.connect(entry),
            };
            building.sites.insert(entry.site.name.clone(), state);
        }
        let gateways = building.sites.values().filter(|site| site.entry.foreign.is_none());
        self.peers.send_replace(gateways.map(|site| site.entry.site.name.clone()).collect());
        // Whoever leaves the file and comes back is not known any more.
        building.laws.retain(|site, _| file.sites.iter().any(|entry| entry.site.name == *site));
        building.file = file;
        self.rebuild(&building);
    }

    fn connect(self: &Arc<Fleet>, entry: &FleetSite) -> SiteState {
        let name = entry.site.name.clone();
        let addresses = Addresses::of(&name, &entry.addresses);
        let upstream = match &entry.foreign {
            None => Upstream::Peer(Peer::new(name.clone(), addresses, self.identity.subscribe())),
            Some(foreign) => {
                let authority = foreign.authority.as_deref().map(Authority::of);
                let host = entry.addresses.first().cloned().unwrap_or_default();
                Upstream::Foreign(Foreign::new(host, addresses, authority))
            }
        };
        let upstream = Arc::new(upstream);
        let follows = entry.foreign.is_none() && !entry.addresses.is_empty();
        let follower = follows.then(|| Follower::start(Arc::downgrade(self), name, upstream.clone()));
        let (entry, relayed) = (entry.clone(), Laws::new());
        SiteState { entry, upstream, offers: None, relayed, round_trip: None, follower }
    }

    /// Takes over what a peer says it serves; `None` when nobody knows any more.
    fn take_offers(&self, site: &str, told: Option<Catalog>) {
        let mut building = self.building();
        let Building { sites, laws, .. } = &mut *building;
        let Some(state) = sites.get_mut(site) else { return };
        let law = told.as_ref().filter(|told| !told.leaving).map(laws::of);
        let law = law.filter(|law| laws.get(site).is_none_or(|known| **known != *law));
        let serves_other = state.offers.as_deref() != told.as_ref().map(|told| &told.ready);
        if !serves_other && law.is_none() {
            return;
        }
        let (ready, generation) = told.as_ref().map(|told| (told.ready.len(), told.generation)).unzip();
        state.offers = told.map(|told| Arc::new(told.ready));
        if let Some(law) = law {
            laws.insert(state.entry.site.name.clone(), Arc::new(law));
            self.laws.send_replace(laws.clone());
        }
        self.rebuild(&building);
        if serves_other {
            tracing::info!(site, ready, generation, "what a peer serves has changed");
        }
    }

    /// The gateways' sites, but this one, that have never been heard of.
    fn unheard(&self) -> Arc<[Arc<str>]> {
        self.building().unheard(&self.config.site)
    }

    /// Takes over what a peer knows of the law at other sites.
    fn take_relayed(&self, from: &str, laws: Laws) {
        let mut building = self.building();
        let Some(state) = building.sites.get_mut(from) else { return };
        if state.relayed != laws {
            state.relayed = laws;
            self.rebuild(&building);
        }
    }

    /// A round trip to a peer was measured.
    fn take_round_trip(&self, site: &str, took: Duration) {
        let mut building = self.building();
        let Some(state) = building.sites.get_mut(site) else { return };
        let shorter = state.round_trip.is_none_or(|known| took < known * 3 / 4);
        if shorter {
            state.round_trip = Some(took);
            self.rebuild(&building);
        }
    }

    /// Looks whether something else is served here by now, and tells it.
    fn take_snapshot(&self) {
        let snapshot = self.current.load_full();
        if !self.table.load().is_of(&snapshot) {
            self.rebuild(&self.building());
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.leaving.load(Ordering::Relaxed) && !told.as_ref().is_some_and(|told| Arc::ptr_eq(told, &snapshot)) {
            *told = Some(snapshot.clone());
            self.publish(Catalog::of_snapshot(&snapshot, &self.ceiling));
        }
    }

    /// The table of what is served here at this moment, for a request that came before the tasks had seen it.
    pub fn refreshed(&self) -> Arc<Table> {
        if let Ok(building) = self.building.try_lock() {
            self.rebuild(&building);
        }
        self.table()
    }

    /// Waits until every peer has said what it serves, but not for one that does not answer.
    pub async fn settled(&self) {
        let end = tokio::time::Instant::now() + SETTLE;
        let waits = || self.building().sites.values().any(|site| site.follower.is_some() && site.offers.is_none());
        while waits() && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Logs and counts what became of replicas since the last time.
    fn take_changes(&self) {
        for found in self.table.load().all() {
            let changes = found.replicas.lock().take_changes();
            for change in changes {
                let (site, model, version) = (&*change.site, &found.model, &found.version);
                match change.ejected {
                    Some(why) => {
                        let wrong = why == Ejection::Wrong;
                        self.telemetry.site(site).ejected(wrong);
                        let why = if wrong { "its answer to a golden input was wrong" } else { "it failed too often" };
                        tracing::warn!(site, model, version, why, "a replica is ejected");
                    }
                    None => tracing::info!(site, model, version, "a replica is back"),
                }
            }
        }
    }

    fn publish(&self, catalog: Catalog) {
        self.catalog.send_if_modified(|now| {
            let other = **now != catalog;
            if other {
                let (ready, generation) = (catalog.ready.len(), catalog.generation);
                *now = Arc::new(catalog);
                tracing::info!(ready, generation, "peers are told what is served here");
            }
            other
        });
    }

    fn rebuild(&self, building: &Building) {
        let before = self.table.load_full();
        let (config, ceiling, telemetry) = (&self.config, &self.ceiling, &*self.telemetry);
        let snapshot = self.current.load_full();
        let unheard = building.unheard(&config.site);
        let now = Instant::now();
        let builder = table::Builder { config, ceiling, telemetry, building, before: &before, snapshot, unheard, now };
        self.table.store(Arc::new(builder.build()));
    }
}

// === impl Building ===

impl Building {
    /// The gateways' sites, but the one that this is, whose law nobody knows.
    fn unheard(&self, here: &str) -> Arc<[Arc<str>]> {
        let gateways = self.file.sites.iter().filter(|entry| entry.foreign.is_none() && !entry.addresses.is_empty());
        let names = gateways.map(|entry| &entry.site.name);
        names.filter(|name| ***name != *here && !self.laws.contains_key(*name)).cloned().collect()
    }
}
