//! The log of revisions: each is the whole state of what is deployed, names the digest of the one before, and says who
//! changed what, when and from where.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use windrose_engine::Calibration;

use super::manifest::Manifest;
use super::store::hex_digest;
use crate::snapshot::compare_versions;

/// One immutable state of everything deployed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revision {
    /// From 1, without gaps.
    pub number: u64,
    /// sha256 of the bytes of the revision before; none for the first.
    pub previous: Option<String>,
    /// When, as RFC 3339 in UTC.
    pub at: String,
    /// Who.
    pub by: Actor,
    /// What was done.
    pub change: Change,
    /// The state: digests of deployment records by model and version.
    pub models: BTreeMap<String, BTreeMap<String, String>>,
}

/// Who made a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    /// Whose token or key it was: `operator`, or a deployer's name.
    pub name: String,
    /// The address that the call came from.
    pub from: String,
    /// The program that made the call, as it calls itself.
    pub agent: String,
}

/// What a revision changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Change {
    /// A version was deployed, or replaced.
    Deploy { model: String, version: String },
    /// One version was removed, or all of them.
    Delete { model: String, version: Option<String> },
}

/// What the store keeps of one deployed version: a blob that the revision names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The manifest as it was deployed.
    pub manifest: Manifest,
    /// When, as RFC 3339 in UTC.
    pub deployed: String,
    /// The deployer whose key it was; none where it was the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployer: Option<String>,
    /// How its preparation went.
    pub preparation: Preparation,
}

/// What the store keeps beside a record whose version was prepared again at a start, for other engines than those of
/// the record. Nobody deployed anything then: the record stays what was deployed, and there is no revision of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreparedAgain {
    /// sha256 of the record.
    pub record: String,
    /// When, as RFC 3339 in UTC.
    pub at: String,
    /// How it went, and with which engines.
    pub preparation: Preparation,
}

/// How a preparation went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Preparation {
    /// Milliseconds by stage: `compile`, `graphs`, `describe`, `test`, `batching`, and `total`.
    pub timings_ms: BTreeMap<String, u64>,
    /// What a person should know although it stopped nothing.
    pub warnings: Vec<String>,
    /// By graph, what running several rows together has shown: not measured again after a restart.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, super::api::types::CalibrationView>)]
    pub batching: BTreeMap<String, Calibration>,
    /// By graph, the engine that it was loaded and tested with, and its version. With another one it is prepared again.
    #[serde(default)]
    pub engines: BTreeMap<String, String>,
}

impl Preparation {
    /// The graphs that a longer trial with several rows may tell more about.
    pub fn cut_short(&self) -> Vec<&str> {
        self.batching.iter().filter(|(_, found)| found.cut_short).map(|(name, _)| &**name).collect()
    }
}

impl Revision {
    /// The bytes of its object.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From the bytes of its object.
    ///
    /// # Errors
    /// When they are no revision.
    pub fn from_json(bytes: &[u8]) -> Result<Revision, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// What the next revision names as its predecessor.
    pub fn digest(&self) -> String {
        hex_digest(&self.to_json())
    }

    /// Every version: model, version, digest of its record; each model's highest version first.
    pub fn versions(&self) -> Vec<(&str, &str, &str)> {
        let mut all = Vec::new();
        for (model, versions) in &self.models {
            let mut sorted: Vec<_> = versions.iter().collect();
            sorted.sort_by(|a, b| compare_versions(b.0, a.0));
            all.extend(sorted.into_iter().map(|(version, record)| (model.as_str(), version.as_str(), record.as_str())));
        }
        all
    }
}

/// Now, as RFC 3339 in UTC.
pub fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}
