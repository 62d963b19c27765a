//! The law of the fleet's models, as the gateways of each site told it when they were last heard of.
//!
//! It binds a foreign server for as long as no gateway can say anything else. It is kept in a file as well, so that a gateway
//! that starts while a site is silent knows that site's law; and a site that was never heard of is known as one, since
//! nobody can tell what its manifests forbid. What peers know of such a site binds in its place.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::catalog::Catalog;
use super::follow::LAWS;
use crate::control::folder;
use crate::control::manifest::Jurisdictions;

/// The most sites whose law is asked for at a time. Those that are heard of soon need not be asked for.
const ASKED: usize = 64;

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

/// Where a peer says what it knows of the law of these sites but itself; `None` where there is nothing to ask.
pub(super) fn path(sites: &[Arc<str>], peer: &str) -> Option<String> {
    let names: Vec<&str> = sites.iter().map(|site| &**site).filter(|site| *site != peer).take(ASKED).collect();
    (!names.is_empty()).then(|| format!("{LAWS}?of={}", names.join(",")))
}

/// What is known of the sites that such a path's query asks for.
pub(super) fn asked<'a>(laws: &'a Laws, query: Option<&str>) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<Told>)> {
    let names = query.and_then(|query| query.strip_prefix("of=")).unwrap_or_default();
    names.split(',').filter_map(move |name| laws.get_key_value(name))
}

/// Laws as text.
pub(super) fn written<'a>(laws: impl Iterator<Item = (&'a Arc<str>, &'a Arc<Told>)>) -> serde_json::Result<Vec<u8>> {
    let named: BTreeMap<&str, &Told> = laws.map(|(site, told)| (&**site, &**told)).collect();
    serde_json::to_vec(&named)
}

/// Reads such text.
pub(super) fn parse(text: &[u8]) -> serde_json::Result<Laws> {
    let laws: BTreeMap<String, Told> = serde_json::from_slice(text)?;
    Ok(laws.into_iter().map(|(site, told)| (site.into(), Arc::new(told))).collect())
}

/// What the file says. One that cannot be read is as good as none: whatever is not known is closed.
pub(super) fn read(file: &Path) -> Laws {
    let laws = match std::fs::read(file) {
        Ok(bytes) => parse(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Laws::new(),
        Err(error) => Err(error),
    };
    laws.unwrap_or_else(|error| {
        tracing::error!(file = %file.display(), %error, "the law of other sites' models cannot be read");
        Laws::new()
    })
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
    let unfinished = file.with_extension("new");
    let mut writing = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    writing.write_all(&written(laws.iter())?)?;
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

    #[test]
    fn a_peer_is_asked_for_the_law_of_others_that_are_silent() {
        let sites = ["a/1", "b", "c"].map(Arc::<str>::from);
        let path = path(&sites, "b").unwrap();
        assert_eq!(path, "/windrose/laws?of=a/1,c");
        assert_eq!(super::path(&sites[1..2], "b"), None);
        let told = Arc::new(Told::from([("m".to_owned(), vec![("1".to_owned(), eu())])]));
        let known = Laws::from(["a/1", "d"].map(|site| (site.into(), told.clone())));
        let text = written(asked(&known, path.split_once('?').map(|(_, query)| query))).unwrap();
        assert_eq!(parse(&text).unwrap(), Laws::from([("a/1".into(), told)]));
        assert_eq!(asked(&known, None).count(), 0);
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
