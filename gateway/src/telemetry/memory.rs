//! The metrics of what can leave memory and come back.

use std::fmt;
use std::sync::OnceLock;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use windrose_engine::{Residency, ResidencyCounts};

/// The kinds of what can leave memory, by the word in the label `kind`, and what was counted of each.
pub(super) type Kinds = Vec<(&'static str, ResidencyCounts)>;

/// What can leave memory.
#[derive(Default)]
pub struct MemoryMetrics {
    modules: OnceLock<Residency>,
    weights: OnceLock<Residency>,
}

impl MemoryMetrics {
    /// Shows what is counted of compiled modules and of weights from now on. Only the first call counts.
    pub fn attach(&self, modules: Residency, weights: Residency) {
        let _ = self.modules.set(modules);
        let _ = self.weights.set(weights);
    }

    /// What is counted now, zeros where nothing is attached.
    pub(super) fn counts(&self) -> Kinds {
        [("modules", &self.modules), ("weights", &self.weights)]
            .into_iter()
            .map(|(kind, residency)| (kind, residency.get().map(Residency::counts).unwrap_or_default()))
            .collect()
    }
}

pub(super) fn encode(kinds: &Kinds, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let help = "Bytes in memory of what can leave it: compiled modules, weights";
    let mut family = encoder.encode_descriptor("windrose_memory_bytes", help, None, MetricType::Gauge)?;
    for (kind, counts) in kinds {
        let bytes = i64::try_from(counts.bytes).unwrap_or(i64::MAX);
        family.encode_family(&[("kind", *kind)])?.encode_gauge(&bytes)?;
    }
    type Count = fn(&ResidencyCounts) -> u64;
    let counters: [(&str, &str, Count); 2] = [
        ("windrose_memory_evictions", "How often something left memory to make room", |c| c.evictions),
        ("windrose_memory_reloads", "How often something that had left memory came back", |c| c.reloads),
    ];
    for (name, help, read) in counters {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (kind, counts) in kinds {
            family.encode_family(&[("kind", *kind)])?.encode_counter::<NoLabelSet, _, u64>(&read(counts), None)?;
        }
    }
    Ok(())
}
