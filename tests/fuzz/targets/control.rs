//! The control plane's part that reads manifests.

#[path = "../../../gateway/src/control/manifest.rs"]
pub mod manifest;

/// What the control API answers.
pub mod api {
    /// What the manifest names of it.
    pub mod types {
        /// Only a name for the API's description.
        #[derive(utoipa::ToSchema)]
        pub struct GrantsView {}
    }
}
