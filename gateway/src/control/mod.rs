//! The control plane: deploy API, registry, store, and applying what was deployed.

pub mod api;
pub mod deployer;
pub(crate) mod folder;
mod known;
pub mod load;
pub mod log;
pub mod manifest;
pub mod prepare;
pub mod registry;
pub mod store;
pub mod token;

pub use folder::{AssetFolders, make_private};
