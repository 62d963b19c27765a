//! The immutable state of the data plane. The control plane publishes a new one in a single pointer store; a request
//! loads it once and finishes on it.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use windrose_engine::{Graph, GraphSpec};
use windrose_sandbox::{ModuleKind, Program};

use crate::admit::Calls;
use crate::control::manifest::{Jurisdictions, Manifest};
use crate::telemetry::MetricsSlot;

/// One version of a model, ready to answer.
pub struct Served {
    /// The manifest as it was deployed. What it names is kept on the disk for as long as somebody has it.
    pub manifest: Arc<Manifest>,
    /// sha256 of the module's bytes, hex; that of the built-in pass-through module where the manifest names none.
    pub module_digest: String,
    /// What the module is served as.
    pub kind: ModuleKind,
    /// The module bound to its graphs.
    pub program: Program,
    /// The module's graphs, for metadata and counts; the same handles as the program's.
    pub graphs: Vec<(String, Graph)>,
    /// Inputs and outputs; `None` for http components and commands, which have none.
    pub signature: Option<GraphSpec>,
    /// Calls at the same time.
    pub calls: Arc<Calls>,
    /// What a call may use: the smaller of manifest and ceiling.
    pub limits: windrose_sandbox::Limits,
    /// Deadline of a request that names none.
    pub default_timeout: Duration,
    /// The longest deadline that a request may ask for.
    pub max_timeout: Duration,
    /// Its metrics; `Default::default()` when it is made.
    pub metrics: MetricsSlot,
}

/// The versions of one model.
#[derive(Clone, Default)]
pub struct Versions {
    /// Highest first.
    versions: Vec<Arc<Served>>,
}

/// A version that is deployed and does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unready {
    /// The version.
    pub version: String,
    /// Why.
    pub why: NotReady,
    /// Where its data may be, which binds whoever answers in its place.
    pub jurisdictions: Jurisdictions,
}

/// Why a version that is deployed does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// It is being loaded after a start.
    Loading,
    /// It could not be loaded; what went wrong is for the operator.
    Failed,
}

/// Everything that is served.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// The revision that this state is made of; 0 when nothing was ever deployed.
    pub revision: u64,
    models: HashMap<String, Versions>,
    unready: HashMap<String, Vec<Unready>>,
}

/// The pointer that the data plane reads and the control plane stores.
pub type Current = Arc<ArcSwap<Snapshot>>;

impl Snapshot {
    /// A state with these versions of models, in any order.
    pub fn new(revision: u64, served: impl IntoIterator<Item = Arc<Served>>) -> Snapshot {
        let mut models: HashMap<String, Versions> = HashMap::new();
        for version in served {
            models.entry(version.manifest.name.clone()).or_default().versions.push(version);
        }
        for model in models.values_mut() {
            model.versions.sort_by(|a, b| compare_versions(&b.manifest.version, &a.manifest.version));
        }
        Snapshot { revision, models, unready: HashMap::new() }
    }

    /// The same with versions of models that are deployed and do not answer.
    pub fn with_unready(mut self, unready: impl IntoIterator<Item = (String, Unready)>) -> Snapshot {
        for (model, version) in unready {
            self.unready.entry(model).or_default().push(version);
        }
        self
    }

    /// The versions of a model that are deployed and do not answer.
    pub fn unready(&self, name: &str) -> &[Unready] {
        self.unready.get(name).map_or(&[], Vec::as_slice)
    }

    /// Every version of every model that is deployed and does not answer, in no order.
    pub fn all_unready(&self) -> impl Iterator<Item = (&str, &Unready)> {
        self.unready.iter().flat_map(|(model, versions)| versions.iter().map(|version| (model.as_str(), version)))
    }

    /// All versions of a model.
    pub fn model(&self, name: &str) -> Option<&Versions> {
        self.models.get(name)
    }

    /// The models, in no order.
    pub fn models(&self) -> impl Iterator<Item = (&str, &Versions)> {
        self.models.iter().map(|(name, versions)| (name.as_str(), versions))
    }
}

impl Versions {
    /// The version that an unversioned call gets: the highest.
    pub fn highest(&self) -> Option<&Arc<Served>> {
        self.versions.first()
    }

    /// The version with this name.
    pub fn get(&self, version: &str) -> Option<&Arc<Served>> {
        self.versions.iter().find(|v| v.manifest.version == version)
    }

    /// Highest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.versions.iter()
    }
}

/// The order of versions: an unversioned call gets the highest. A run of digits is a number, of any length, and stands above
/// anything else in its place; the rest is text. What goes on is higher than what ends, but for a hyphen: 2.0-rc.1 comes
/// before 2.0. Only equal texts are equal.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    pieces(a).cmp(pieces(b)).then_with(|| a.cmp(b))
}

/// A piece of a version, in the order of what may stand in one place.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Piece<'a> {
    Hyphen,
    End,
    Other(char),
    /// Its digits without leading zeros: more of them are a larger number.
    Number(usize, &'a str),
}

/// The pieces of a version, the end among them.
fn pieces(version: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut left = Some(version);
    std::iter::from_fn(move || {
        let text = left?;
        let Some(first) = text.chars().next() else {
            left = None;
            return Some(Piece::End);
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (piece, length) = match first {
            _ if digits > 0 => {
                let number = text[..digits].trim_start_matches('0');
                (Piece::Number(number.len(), number), digits)
            }
            '-' => (Piece::Hyphen, 1),
            other => (Piece::Other(other), other.len_utf8()),
        };
        left = Some(&text[length..]);
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_go_from_low_to_high() {
        let all = [
            "beta",
            "v2",
            "v10",
            "0",
            "00",
            "1-rc.2",
            "1-rc.10",
            "01",
            "1",
            "1.0",
            "1.9.0",
            "1.9.1",
            "1.10.0-2",
            "1.10.0",
            "1a",
            "2",
            "2.0.0",
            "10",
            "20240131",
            "18446744073709551615",
            "18446744073709551616",
            "99999999999999999999.1",
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(compare_versions(a, b), i.cmp(&j), "{a} {b}");
            }
        }
    }

    const VERSION: &str = "[0-2a-b._-]{0,5}|[0-9]{18,22}";

    proptest! {
        #[test]
        fn versions_have_one_order(a in VERSION, b in VERSION, c in VERSION) {
            prop_assert_eq!(compare_versions(&a, &b), compare_versions(&b, &a).reverse());
            prop_assert_eq!(compare_versions(&a, &b) == Ordering::Equal, a == b);
            if compare_versions(&a, &b).is_le() && compare_versions(&b, &c).is_le() {
                prop_assert!(compare_versions(&a, &c).is_le(), "{} {} {}", a, b, c);
            }
        }

        #[test]
        fn numbers_compare_as_numbers(a in any::<u64>(), b in any::<u64>()) {
            prop_assume!(a != b);
            prop_assert_eq!(compare_versions(&format!("v{a}.x"), &format!("v{b}.x")), a.cmp(&b));
        }
    }
}
