//! Manifests: any bytes are one that keeps the reader's promises, or an error that names a field.
#![no_main]

use std::path::{Component, Path};

use gateway::control::manifest::{Manifest, is_digest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let manifest = match Manifest::from_json(data) {
        Ok(manifest) => manifest,
        Err(error) => return assert!(!error.field.is_empty() && !error.message.is_empty()),
    };
    let json = manifest.to_json();
    assert_eq!(Manifest::from_json(&json).as_ref(), Ok(&manifest));
    // Names become paths of the API and names of files.
    for name in [&manifest.name, &manifest.version] {
        assert!(!name.is_empty() && name.len() <= 128 && !name.starts_with('.'));
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
    }
    for path in manifest.assets.keys() {
        assert!(Path::new(path).components().all(|part| matches!(part, Component::Normal(_))), "{path}");
        assert!(!path.is_empty() && !path.contains(['\0', '\n', '\\']));
    }
    assert!(manifest.blobs().iter().all(|(field, digest)| !field.is_empty() && is_digest(digest)));
    assert!(manifest.module.is_some() || manifest.graphs.contains_key("model"));
    assert!(manifest.timeout.default_ms > 0 && manifest.timeout.default_ms <= manifest.timeout.max_ms);
});
