//! The statistics extension of the protocol: what was counted for each version of a model since it was loaded.

use std::collections::BTreeMap;

use serde::Serialize;
use windrose_engine::SizeCounts;

use crate::snapshot::Served;
use crate::telemetry::Totals;

/// The answer.
#[derive(Serialize)]
struct Statistics<'a> {
    model_stats: Vec<ModelStatistics<'a>>,
}

#[derive(Serialize)]
struct ModelStatistics<'a> {
    name: &'a str,
    version: &'a str,
    /// Milliseconds since 1970; 0 for never.
    last_inference: u64,
    /// Rows that were computed.
    inference_count: u64,
    /// Runs of an engine that computed them.
    execution_count: u64,
    inference_stats: InferenceStatistics,
    batch_stats: Vec<BatchStatistics>,
}

/// How often, and how long altogether.
#[derive(Clone, Copy, Default, Serialize)]
struct Duration {
    count: u64,
    ns: u64,
}

#[derive(Default, Serialize)]
struct InferenceStatistics {
    success: Duration,
    fail: Duration,
    queue: Duration,
    compute_input: Duration,
    compute_infer: Duration,
    compute_output: Duration,
    /// There is no cache.
    cache_hit: Duration,
    cache_miss: Duration,
}

#[derive(Serialize)]
struct BatchStatistics {
    batch_size: usize,
    compute_input: Duration,
    compute_infer: Duration,
    compute_output: Duration,
}

/// The statistics of these versions, as JSON.
pub(super) fn of<'a>(served: impl Iterator<Item = &'a Served>) -> Result<Vec<u8>, serde_json::Error> {
    let mut model_stats: Vec<_> = served.map(|served| one(served, served.metrics.totals())).collect();
    model_stats.sort_by(|a, b| (a.name, a.version).cmp(&(b.name, b.version)));
    serde_json::to_vec(&Statistics { model_stats })
}

/// One version. Engine times and counts are its own, whoever shares its graphs; only [`BatchStatistics`] are of whole runs,
/// in which others' rows may have been.
fn one(served: &Served, totals: Totals) -> ModelStatistics<'_> {
    let mut inference_stats = InferenceStatistics {
        success: Duration { count: totals.succeeded, ns: totals.succeeded_ns },
        fail: Duration { count: totals.failed, ns: totals.failed_ns },
        ..InferenceStatistics::default()
    };
    let (mut inference_count, mut execution_count) = (0, 0);
    let mut sizes: BTreeMap<usize, SizeCounts> = BTreeMap::new();
    for (_, graph) in &served.graphs {
        let counts = graph.counts();
        let jobs = counts.inferences + counts.failures;
        inference_count += counts.rows;
        execution_count += counts.executions;
        inference_stats.queue.add(jobs, counts.queue_ns);
        inference_stats.compute_infer.add(jobs, counts.compute_ns);
        // A job alone is run on its own tensors, and its outputs are the run's.
        inference_stats.compute_input.add(counts.gathered, counts.gather_ns);
        inference_stats.compute_output.add(counts.gathered, counts.scatter_ns);
        for (size, own) in counts.sizes {
            let all = sizes.entry(size).or_default();
            all.executions += own.executions;
            all.compute_ns += own.compute_ns;
            all.gathered += own.gathered;
            all.gather_ns += own.gather_ns;
            all.scatter_ns += own.scatter_ns;
        }
    }
    if served.graphs.is_empty() {
        (inference_count, execution_count) = (totals.succeeded, totals.succeeded);
    }
    ModelStatistics {
        name: &served.manifest.name,
        version: &served.manifest.version,
        last_inference: totals.last_ms,
        inference_count,
        execution_count,
        inference_stats,
        batch_stats: sizes.into_iter().map(BatchStatistics::from).collect(),
    }
}

impl Duration {
    fn add(&mut self, count: u64, ns: u64) {
        self.count += count;
        self.ns += ns;
    }
}

impl From<(usize, SizeCounts)> for BatchStatistics {
    fn from((batch_size, counts): (usize, SizeCounts)) -> BatchStatistics {
        BatchStatistics {
            batch_size,
            compute_input: Duration { count: counts.gathered, ns: counts.gather_ns },
            compute_infer: Duration { count: counts.executions, ns: counts.compute_ns },
            compute_output: Duration { count: counts.gathered, ns: counts.scatter_ns },
        }
    }
}
