//! How often the engines ran what is served, whosever rows the runs held.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Labels;
use crate::snapshot::Snapshot;

/// Runs by a graph's digest and its engine.
pub(super) type Runs = BTreeMap<Labels<2>, u64>;

/// What was counted so far. Models that share a graph's sessions share its runs: these count once.
pub(super) fn runs(snapshot: &Snapshot) -> Runs {
    let (mut runs, mut seen) = (Runs::new(), HashSet::new());
    for served in snapshot.models().flat_map(|(_, versions)| versions.iter()) {
        for (name, graph) in &served.graphs {
            if seen.insert(graph.sessions_id()) {
                let digest = served.manifest.graphs.get(name).map(|entry| entry.digest.clone()).unwrap_or_default();
                let labels = [("digest", digest), ("engine", graph.info().engine.clone())];
                *runs.entry(labels).or_default() += graph.runs();
            }
        }
    }
    runs
}

pub(super) fn encode(runs: &Runs, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let help = "Runs of an engine, by the digest of the graph that it ran";
    let mut family = encoder.encode_descriptor("windrose_engine_runs", help, None, MetricType::Counter)?;
    for (labels, count) in runs {
        family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
    }
    Ok(())
}
