//! The law of the fleet's models, as the gateways of each site told it when they were last heard of.
//!
//! It binds a foreign server for as long as no gateway can say anything else. It is kept in a file as well, so that a gateway
//! that starts while a site is silent knows that site's law; and a site that was never heard of is known as one, since
//! nobody can tell what its manifests forbid.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::catalog::Catalog;
use crate::control::folder;
use crate::control::manifest::Jurisdictions;

/// By model: the law of each of its versions.
pub(super) type Told = BTreeMap<String, Vec<(String, Jurisdictions)>>;

/// What the sites told, by their names. A site that is not there was never heard of.
pub(super) type Laws = BTreeMap<Arc<str>, Arc<Told>>;

/// The law of everything that is deployed at a site.
pub(super) fn of(catalog: &Catalog) -> Told {
    let mut told = Told::new();
    let ready = catalog.ready.iter().map(|offer| (&offer.model, &offer.version, &offer.jurisdictions));
    let unready = catalog.unready.iter().map(|other| (&other.model, &other.version, &other.jurisdictions));
    for (model, version, law) in ready.chain(unready) {
        told.entry(model.clone()).or_default().push((version.clone(), law.clone()));
    }
    told
}

/// What the file says. One that cannot be read is as good as none: whatever is not known is closed.
pub(super) fn read(file: &Path) -> Laws {
    let laws = match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice::<BTreeMap<String, Told>>(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Laws::new(),
        Err(error) => Err(error),
    };
    match laws {
        Ok(laws) => laws.into_iter().map(|(site, told)| (site.into(), Arc::new(told))).collect(),
        Err(error) => {
            tracing::error!(file = %file.display(), %error, "the law of other sites' models cannot be read");
            Laws::new()
        }
    }
}

/// Writes what becomes known, until nobody can say anything new.
pub(super) async fn keep(file: PathBuf, mut laws: watch::Receiver<Laws>) {
    while laws.changed().await.is_ok() {
        let (now, path) = (laws.borrow_and_update().clone(), file.clone());
        let written = tokio::task::spawn_blocking(move || write(&path, &now)).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::error!(file = %file.display(), %error, "the law of other sites' models cannot be kept");
        }
    }
}

/// A file of this name is always whole, and is there after a power loss.
fn write(file: &Path, laws: &Laws) -> io::Result<()> {
    let named: BTreeMap<&str, &Told> = laws.iter().map(|(site, told)| (&**site, &**told)).collect();
    let unfinished = file.with_extension("new");
    let mut writing = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    writing.write_all(&serde_json::to_vec(&named)?)?;
    writing.sync_all()?;
    std::fs::rename(&unfinished, file)?;
    folder::sync(file.parent())
}

#[cfg(test)]
mod tests {
    use super::super::catalog::Unoffered;
    use super::*;

    fn eu() -> Jurisdictions {
        Jurisdictions { allow: Some(vec!["eu".into()]), deny: Vec::new() }
    }

    #[test]
    fn what_is_not_ready_binds_as_well() {
        let unready = Unoffered { model: "m".into(), version: "2".into(), jurisdictions: eu() };
        let told = of(&Catalog::of(Vec::new(), vec![unready]));
        assert_eq!(told, Told::from([("m".to_owned(), vec![("2".to_owned(), eu())])]));
    }

    #[tokio::test]
    async fn a_gateway_that_starts_again_knows_what_it_knew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("laws.json");
        assert_eq!(read(&file), Laws::new());
        let told = |version: &str| Arc::new(Told::from([("m".to_owned(), vec![(version.to_owned(), eu())])]));
        let known = watch::Sender::new(Laws::new());
        let keeping = tokio::spawn(keep(file.clone(), known.subscribe()));
        for version in ["1", "2"] {
            known.send_modify(|laws| drop(laws.insert("aws/eu-west-1".into(), told(version))));
        }
        drop(known);
        keeping.await.unwrap();
        assert_eq!(read(&file), Laws::from([("aws/eu-west-1".into(), told("2"))]));
        std::fs::write(&file, "{\"aws/eu-west-1\": {").unwrap();
        assert_eq!(read(&file), Laws::new(), "nothing is known of a file that is broken");
    }
}
