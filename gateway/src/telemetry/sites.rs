//! What is counted for each site of a fleet.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// How an attempt at a site ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    Answered,
    Failed,
    Overloaded,
    NotHere,
    TooLate,
    ConnectFailed,
    Refused,
    Reset,
    Cut,
    Cancelled,
}

/// What is counted for one site of a fleet.
#[derive(Default)]
pub struct SiteMetrics {
    /// By [`Attempt`].
    attempts: [AtomicU64; Attempt::ALL.len()],
    /// Ejections after failures, and for wrong golden answers.
    ejections: [AtomicU64; 2],
    /// Golden probes sent there.
    probes: AtomicU64,
    /// By [`Probed`].
    probed: [AtomicU64; 2],
}

/// What a probe that another site sent here was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// An inference whose answer is known.
    Golden,
    /// The question how much there is to do.
    Load,
}

/// An attempt being counted; when it is dropped without [`AttemptTrack::end`], it was cancelled.
pub struct AttemptTrack {
    metrics: Arc<SiteMetrics>,
    ended: Attempt,
}

// === impl SiteMetrics ===

impl Attempt {
    const ALL: [Attempt; 10] = [
        Attempt::Answered,
        Attempt::Failed,
        Attempt::Overloaded,
        Attempt::NotHere,
        Attempt::TooLate,
        Attempt::ConnectFailed,
        Attempt::Refused,
        Attempt::Reset,
        Attempt::Cut,
        Attempt::Cancelled,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Attempt::Answered => "answered",
            Attempt::Failed => "failed",
            Attempt::Overloaded => "overloaded",
            Attempt::NotHere => "not_here",
            Attempt::TooLate => "too_late",
            Attempt::ConnectFailed => "connect_failed",
            Attempt::Refused => "refused",
            Attempt::Reset => "reset",
            Attempt::Cut => "cut",
            Attempt::Cancelled => "cancelled",
        }
    }
}

impl SiteMetrics {
    /// Begins to count an attempt.
    pub fn attempt(self: &Arc<SiteMetrics>) -> AttemptTrack {
        AttemptTrack { metrics: self.clone(), ended: Attempt::Cancelled }
    }

    /// Counts an ejection.
    pub fn ejected(&self, wrong: bool) {
        self.ejections[usize::from(wrong)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a golden probe that is sent there.
    pub fn probes(&self) {
        self.probes.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a probe that came from there.
    pub fn probed(&self, what: Probed) {
        self.probed[what as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl AttemptTrack {
    /// Says how it ended.
    pub fn end(mut self, ended: Attempt) {
        self.ended = ended;
    }
}

impl Drop for AttemptTrack {
    fn drop(&mut self) {
        self.metrics.attempts[self.ended as usize].fetch_add(1, Ordering::Relaxed);
    }
}

// === metrics ===

/// Writes what is counted of these sites, by name.
pub(super) fn encode(sites: &BTreeMap<String, Arc<SiteMetrics>>, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let help = "Attempts at the sites of the fleet, this one included, by how they ended";
    let mut family = encoder.encode_descriptor("windrose_site_attempts", help, None, MetricType::Counter)?;
    for (site, metrics) in sites {
        for ended in Attempt::ALL {
            let count = metrics.attempts[ended as usize].load(Ordering::Relaxed);
            let labels = [("site", site.clone()), ("ended", ended.as_str().to_owned())];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    let help = "Ejections of replicas at a site, after failures or for wrong golden answers";
    let mut family = encoder.encode_descriptor("windrose_site_ejections", help, None, MetricType::Counter)?;
    for (site, metrics) in sites {
        for (why, count) in ["failures", "wrong"].into_iter().zip(&metrics.ejections) {
            let labels = [("site", site.clone()), ("why", why.to_owned())];
            let count = count.load(Ordering::Relaxed);
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    let help = "Golden probes sent to a site, which no other metric counts";
    let mut family = encoder.encode_descriptor("windrose_site_probes", help, None, MetricType::Counter)?;
    for (site, metrics) in sites {
        let count = metrics.probes.load(Ordering::Relaxed);
        family.encode_family(&[("site", site.clone())])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
    }
    let help = "Probes that a site sent here, by what they were; only the runs of engines count golden ones as well";
    let mut family = encoder.encode_descriptor("windrose_site_probed", help, None, MetricType::Counter)?;
    for (site, metrics) in sites {
        for (probe, count) in ["golden", "load"].into_iter().zip(&metrics.probed) {
            let labels = [("site", site.clone()), ("probe", probe.to_owned())];
            let count = count.load(Ordering::Relaxed);
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::telemetry::{Attempt, Probed, Telemetry};

    #[test]
    fn each_site_has_its_own_counts() {
        let telemetry = Telemetry::new();
        let (one, two) = (telemetry.site("one"), telemetry.site("two"));
        one.attempt().end(Attempt::Answered);
        drop(one.attempt());
        one.ejected(true);
        two.probes();
        two.probed(Probed::Golden);
        telemetry.site("two").probed(Probed::Load);
        let text = telemetry.encode();
        for line in [
            r#"windrose_site_attempts_total{site="one",ended="answered"} 1"#,
            r#"windrose_site_attempts_total{site="one",ended="cancelled"} 1"#,
            r#"windrose_site_attempts_total{site="two",ended="answered"} 0"#,
            r#"windrose_site_ejections_total{site="one",why="wrong"} 1"#,
            r#"windrose_site_ejections_total{site="one",why="failures"} 0"#,
            r#"windrose_site_probes_total{site="two"} 1"#,
            r#"windrose_site_probed_total{site="two",probe="golden"} 1"#,
            r#"windrose_site_probed_total{site="two",probe="load"} 1"#,
            r#"windrose_site_probed_total{site="one",probe="golden"} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "no {line}\n{text}");
        }
    }
}
