//! Every metric name, and what is counted under it.
//!
//! Labels only ever hold names that were deployed: a request for an unknown model is counted without one. What a
//! version counted goes when the version is no longer served.

mod engines;
mod histogram;
mod memory;
mod sites;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use windrose_engine::{GraphCounts, Released};

use self::histogram::Histogram;
pub use self::memory::MemoryMetrics;
pub use self::sites::{Attempt, AttemptTrack, Probed, SiteMetrics};
use crate::error::Kind;
use crate::snapshot::{Current, Served, Snapshot};

/// How a request ended, beyond the kinds of [`Kind`].
const OK: usize = Kind::ALL.len();
const CANCELLED: usize = OK + 1;

/// Versions that are served no longer and may wait for a scrape to be forgotten.
const UNSERVED: usize = 64;

type Models = HashMap<(String, String), Arc<ModelMetrics>>;

/// The process's metrics.
#[derive(Default)]
pub struct Telemetry {
    /// What is served, for the gauges that are gathered at each scrape.
    current: OnceLock<Current>,
    /// By model and version. Locked at the first request of a version and at a scrape.
    models: Mutex<Models>,
    /// Requests that named no deployed model.
    unrouted: Arc<ModelMetrics>,
    /// The listener's.
    pub connections: ConnectionMetrics,
    /// By site. Locked when a site is new and at a scrape.
    sites: Mutex<BTreeMap<String, Arc<SiteMetrics>>>,
    /// What can leave memory.
    pub memory: MemoryMetrics,
}

/// Counts of the listener.
#[derive(Default)]
pub struct ConnectionMetrics {
    /// Open now.
    pub open: AtomicI64,
    /// Accepted so far.
    pub accepted: AtomicU64,
    /// Bytes of bodies that are held now, of requests and of answers.
    pub body_bytes: AtomicU64,
}

/// What is counted for one version of a model.
pub struct ModelMetrics {
    /// By the index of the kind, then [`OK`] and [`CANCELLED`].
    outcomes: [AtomicU64; CANCELLED + 1],
    in_flight: AtomicI64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    /// From the request's head to the answer's last byte handed over.
    request: Histogram,
    /// In the sandbox and its engine.
    call: Histogram,
}

/// Requests of one version since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that were answered.
    pub succeeded: u64,
    /// Their time from head to end, nanoseconds.
    pub succeeded_ns: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Their time.
    pub failed_ns: u64,
    /// When a call last ended, milliseconds since 1970; 0 for never.
    pub last_ms: u64,
}

/// [`Totals`] while they are counted.
#[derive(Default)]
struct SinceLoaded {
    succeeded: AtomicU64,
    succeeded_ns: AtomicU64,
    failed: AtomicU64,
    failed_ns: AtomicU64,
    last_ms: AtomicU64,
}

/// The metrics of one served version. `Default` is what a new [`Served`] gets.
#[derive(Default)]
pub struct MetricsSlot {
    /// Those of its name, found at its first request: they go on where it has replaced another.
    named: OnceLock<Arc<ModelMetrics>>,
    /// Its own, which begin with it as the counts of its graphs do.
    own: Arc<SinceLoaded>,
}

/// A request being counted; when it is dropped without [`Track::finish`], the client went away.
pub struct Track {
    metrics: Arc<ModelMetrics>,
    /// Of the version that was asked.
    own: Option<Arc<SinceLoaded>>,
    started: Instant,
    outcome: usize,
}

// === impl Telemetry ===

impl Telemetry {
    /// Metrics that start at zero.
    pub fn new() -> Arc<Telemetry> {
        Arc::new(Telemetry::default())
    }

    /// Gathers gauges of what `current` points at from now on. Only the first call counts.
    pub fn attach(&self, current: Current) {
        let _ = self.current.set(current);
    }

    /// Begins to count a request that arrived at `started`.
    pub fn track(&self, served: Option<&Served>, started: Instant) -> Track {
        let metrics = match served {
            Some(served) => served.metrics.named.get_or_init(|| self.model(served)).clone(),
            None => self.unrouted.clone(),
        };
        metrics.in_flight.fetch_add(1, Ordering::Relaxed);
        Track { metrics, own: served.map(|served| served.metrics.own.clone()), started, outcome: CANCELLED }
    }

    /// Follows what is nobody's request, and counts it nowhere: a probe.
    pub fn untracked(&self, started: Instant) -> Track {
        Track { metrics: Arc::default(), own: None, started, outcome: CANCELLED }
    }

    /// The metrics of a site.
    pub fn site(&self, name: &str) -> Arc<SiteMetrics> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default().clone()
    }

    fn model(&self, served: &Served) -> Arc<ModelMetrics> {
        let key = (served.manifest.name.clone(), served.manifest.version.clone());
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = self.current.get() {
            // Where nobody scrapes, versions that were called once and deleted would stay for ever.
            let snapshot = current.load();
            let versions: usize = snapshot.models().map(|(_, versions)| versions.iter().count()).sum();
            if models.len() > UNSERVED + 2 * versions {
                drop_unserved(&mut models, &snapshot);
            }
        }
        models.entry(key).or_default().clone()
    }

    /// Everything as Prometheus' text format.
    pub fn encode(&self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.scrape()));
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }

    /// Drops what is served no longer, and gathers the rest.
    fn scrape(&self) -> Scrape {
        let snapshot = self.current.get().map(|current| current.load_full()).unwrap_or_default();
        let mut graphs = Vec::new();
        let (mut permits, mut outside, mut pressed) = (Vec::new(), Vec::new(), Vec::new());
        for (model, versions) in snapshot.models() {
            for served in versions.iter() {
                let labels = [("model", model.to_owned()), ("version", served.manifest.version.clone())];
                permits.push((labels.clone(), served.calls.free() as i64));
                outside.push((labels.clone(), served.calls.outside() as i64));
                pressed.push((labels.clone(), i64::from(served.calls.is_pressed())));
                for (graph, handle) in &served.graphs {
                    let [model, version] = labels.clone();
                    graphs.push(([model, version, ("graph", graph.clone())], handle.counts()));
                }
            }
        }
        permits.sort();
        outside.sort();
        pressed.sort();
        graphs.sort_by(|a, b| a.0.cmp(&b.0));
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        drop_unserved(&mut models, &snapshot);
        let mut rows: Vec<_> = models.iter().map(|((m, v), metrics)| (labels(m, v), metrics.clone())).collect();
        drop(models);
        rows.push((labels("", ""), self.unrouted.clone()));
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        Scrape {
            rows,
            graphs,
            runs: engines::runs(&snapshot),
            permits,
            outside,
            pressed,
            sites: self.sites.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            revision: snapshot.revision,
            served: snapshot.models().map(|(_, versions)| versions.iter().count() as i64).sum(),
            open: self.connections.open.load(Ordering::Relaxed),
            accepted: self.connections.accepted.load(Ordering::Relaxed),
            body_bytes: self.connections.body_bytes.load(Ordering::Relaxed),
            memory: self.memory.counts(),
        }
    }
}

/// Drops what counted for versions that are served no longer.
fn drop_unserved(models: &mut Models, snapshot: &Snapshot) {
    models.retain(|(model, version), _| snapshot.model(model).is_some_and(|v| v.get(version).is_some()));
}

// === impl MetricsSlot ===

impl MetricsSlot {
    /// What was counted since this version was loaded.
    pub fn totals(&self) -> Totals {
        let SinceLoaded { succeeded, succeeded_ns, failed, failed_ns, last_ms } = &*self.own;
        Totals {
            succeeded: succeeded.load(Ordering::Relaxed),
            succeeded_ns: succeeded_ns.load(Ordering::Relaxed),
            failed: failed.load(Ordering::Relaxed),
            failed_ns: failed_ns.load(Ordering::Relaxed),
            last_ms: last_ms.load(Ordering::Relaxed),
        }
    }
}

// === impl SinceLoaded ===

impl SinceLoaded {
    fn ended(&self, is_ok: bool, time: Duration) {
        let (count, ns) = if is_ok { (&self.succeeded, &self.succeeded_ns) } else { (&self.failed, &self.failed_ns) };
        count.fetch_add(1, Ordering::Relaxed);
        ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

// === impl Track ===

impl Track {
    /// Says how the request ends; it is counted when the track is dropped, which is after its answer has gone.
    pub fn finish(&mut self, failed: Option<Kind>) {
        self.outcome = failed.map_or(OK, |kind| kind as usize);
    }

    /// Counts bytes of the request's body.
    pub fn received(&self, bytes: usize) {
        self.metrics.request_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes of the answer's body.
    pub fn sent(&self, bytes: usize) {
        self.metrics.response_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts the time that a call spent in the sandbox and its engine.
    pub fn called(&self, time: Duration) {
        self.metrics.call.observe(time);
        if let Some(own) = &self.own {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            own.last_ms.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        self.metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.metrics.outcomes[self.outcome].fetch_add(1, Ordering::Relaxed);
        let time = self.started.elapsed();
        self.metrics.request.observe(time);
        if let Some(own) = &self.own {
            own.ended(self.outcome == OK, time);
        }
    }
}

impl Default for ModelMetrics {
    fn default() -> ModelMetrics {
        ModelMetrics {
            outcomes: std::array::from_fn(|_| AtomicU64::new(0)),
            in_flight: AtomicI64::new(0),
            request_bytes: AtomicU64::new(0),
            response_bytes: AtomicU64::new(0),
            request: Histogram::default(),
            call: Histogram::default(),
        }
    }
}

type Labels<const N: usize> = [(&'static str, String); N];

fn labels(model: &str, version: &str) -> Labels<2> {
    [("model", model.to_owned()), ("version", version.to_owned())]
}

/// The word for an outcome in the label `kind`.
fn outcome(index: usize) -> &'static str {
    match index {
        OK => "ok",
        CANCELLED => "cancelled",
        _ => Kind::ALL[index].as_str(),
    }
}

/// Everything of one scrape.
struct Scrape {
    rows: Vec<(Labels<2>, Arc<ModelMetrics>)>,
    graphs: Vec<(Labels<3>, GraphCounts)>,
    runs: engines::Runs,
    permits: Vec<(Labels<2>, i64)>,
    outside: Vec<(Labels<2>, i64)>,
    pressed: Vec<(Labels<2>, i64)>,
    sites: BTreeMap<String, Arc<SiteMetrics>>,
    revision: u64,
    served: i64,
    open: i64,
    accepted: u64,
    body_bytes: u64,
    memory: memory::Kinds,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.encode_requests(&mut encoder)?;
        self.encode_graphs(&mut encoder)?;
        engines::encode(&self.runs, &mut encoder)?;
        sites::encode(&self.sites, &mut encoder)?;
        memory::encode(&self.memory, &mut encoder)?;
        self.encode_process(&mut encoder)
    }
}

impl Scrape {
    fn encode_requests(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "windrose_requests",
            "Requests by how they ended: ok, cancelled by the client, or the kind of error",
            None,
            MetricType::Counter,
        )?;
        for ([model, version], metrics) in &self.rows {
            for (index, count) in metrics.outcomes.iter().enumerate() {
                let count = count.load(Ordering::Relaxed);
                if count > 0 || index == OK {
                    let labels = [model.clone(), version.clone(), ("kind", outcome(index).to_owned())];
                    family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        self.counters(encoder, "windrose_request_bytes", "Bytes of request bodies", |m| &m.request_bytes)?;
        self.counters(encoder, "windrose_response_bytes", "Bytes of answer bodies", |m| &m.response_bytes)?;
        self.histograms(
            encoder,
            "windrose_request_duration_seconds",
            "From the head of a request to the end of its answer",
            |m| &m.request,
        )?;
        self.histograms(
            encoder,
            "windrose_call_duration_seconds",
            "In the sandbox and its engine, the engine's queue included",
            |m| &m.call,
        )?;
        let mut family = encoder.encode_descriptor(
            "windrose_requests_in_flight",
            "Requests that have arrived and are not answered",
            None,
            MetricType::Gauge,
        )?;
        for (labels, metrics) in &self.rows {
            family.encode_family(labels)?.encode_gauge(&metrics.in_flight.load(Ordering::Relaxed))?;
        }
        Ok(())
    }

    fn counters(
        &self,
        encoder: &mut DescriptorEncoder,
        name: &str,
        help: &str,
        of: impl Fn(&ModelMetrics) -> &AtomicU64,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, metrics) in &self.rows {
            let count = of(metrics).load(Ordering::Relaxed);
            family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    fn histograms(
        &self,
        encoder: &mut DescriptorEncoder,
        name: &str,
        help: &str,
        of: impl Fn(&ModelMetrics) -> &Histogram,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, metrics) in &self.rows {
            of(metrics).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn encode_graphs(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        type Count = fn(&GraphCounts) -> u64;
        let counts: [(&str, &str, Count); 6] = [
            ("windrose_graph_inferences", "Jobs of a model that a graph's engine answered", |c| c.inferences),
            ("windrose_graph_rows", "Rows of the jobs that a graph's engine answered", |c| c.rows),
            ("windrose_graph_executions", "Runs of a graph's engine that held rows of a model", |c| c.executions),
            ("windrose_graph_failures", "Jobs that failed in a graph's engine", |c| c.failures),
            ("windrose_graph_withdrawn", "Jobs that left a graph's queue without having run", |c| c.withdrawn),
            ("windrose_graph_separated", "Runs of several jobs that failed, so that each ran alone", |c| c.separated),
        ];
        for (name, help, read) in counts {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, counts) in &self.graphs {
                family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&read(counts), None)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "windrose_graph_batches",
            "Batches by why they ran when they did: full, delay, idle, deadline",
            None,
            MetricType::Counter,
        )?;
        for ([model, version, graph], counts) in &self.graphs {
            for (reason, count) in Released::ALL.into_iter().zip(&counts.released) {
                let reason = ("released", reason.as_str().to_owned());
                let labels = [model.clone(), version.clone(), graph.clone(), reason];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
            }
        }
        let times: [(&str, &str, Count); 2] = [
            ("windrose_graph_queue_seconds", "Time that jobs waited for a graph", |c| c.queue_ns),
            (
                "windrose_graph_compute_seconds",
                "Time of a graph's engine, by rows where a run held several models'",
                |c| c.compute_ns,
            ),
        ];
        for (name, help, read) in times {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, counts) in &self.graphs {
                let seconds = read(counts) as f64 * 1e-9;
                family.encode_family(labels)?.encode_counter::<NoLabelSet, _, f64>(&seconds, None)?;
            }
        }
        Ok(())
    }

    fn encode_process(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let of_models = [
            (
                "windrose_permits_available",
                "Calls that a model could take at once, besides those in flight",
                &self.permits,
            ),
            ("windrose_calls_waiting", "Calls that wait for one of a model's places", &self.outside),
            (
                "windrose_model_pressed",
                "1 while a model that is asked for more than it can do admits only what it answers soon",
                &self.pressed,
            ),
        ];
        for (name, help, values) in of_models {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, value) in values {
                family.encode_family(labels)?.encode_gauge(value)?;
            }
        }
        let gauges: [(&str, &str, i64); 4] = [
            ("windrose_revision", "The revision that is served", i64::try_from(self.revision).unwrap_or(i64::MAX)),
            ("windrose_models_served", "Versions of models that are served", self.served),
            ("windrose_connections_open", "Connections to the data listener", self.open),
            (
                "windrose_body_bytes_held",
                "Bytes of request bodies, and of answers not taken yet, in memory",
                i64::try_from(self.body_bytes).unwrap_or(i64::MAX),
            ),
        ];
        for (name, help, value) in gauges {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        encoder
            .encode_descriptor(
                "windrose_connections_accepted",
                "Connections that the data listener accepted",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, u64>(&self.accepted, None)
    }
}
