//! The control plane's parts that read manifests and what is stored.

use std::collections::BTreeMap;

#[path = "../../../gateway/src/control/log.rs"]
pub mod log;

#[path = "../../../gateway/src/control/manifest/mod.rs"]
pub mod manifest;

/// What the control API answers.
pub mod api {
    /// What the manifest names of it.
    pub mod types {
        /// Only a name for the API's description.
        #[derive(utoipa::ToSchema)]
        pub struct GrantsView {}

        /// Only a name for the API's description.
        #[derive(utoipa::ToSchema)]
        pub struct CalibrationView {}
    }
}

/// Digests, of which reading what is stored does not depend.
pub mod store {
    /// Stands for sha256.
    pub fn hex_digest(bytes: &[u8]) -> String {
        format!("{:064x}", bytes.len())
    }
}

/// Reads an object of the store in every way there is; what was accepted survives being written again.
pub fn check_stored(data: &[u8]) {
    if let Ok(revision) = log::Revision::from_json(data) {
        assert_eq!(log::Revision::from_json(&revision.to_json()).expect("it was just written"), revision);
        let versions: usize = revision.models.values().map(BTreeMap::len).sum();
        assert_eq!(revision.versions().len(), versions);
    }
    if let Ok(record) = serde_json::from_slice::<log::Record>(data) {
        let written = serde_json::to_vec(&record).expect("memory takes everything");
        let again: log::Record = serde_json::from_slice(&written).expect("it was just written");
        assert_eq!(again, record);
    }
}
