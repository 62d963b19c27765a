//! Certificates of a fleet: a private authority, and one certificate for each site, bound to its name.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::config::fleet::check_site_name;

/// Under this, every site's name stands in its certificate.
const SUFFIX: &str = "site.windrose";

/// For how long an authority is good, days.
const AUTHORITY_DAYS: i64 = 3650;

/// The last second that a certificate can name, of the year 9999, seconds after 1970.
const LATEST: i64 = 253_402_300_799;

/// A day, seconds.
pub const DAY: i64 = 24 * 60 * 60;

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The site cannot have this name.
    #[error("{0}")]
    Name(String),
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: std::io::Error },
    /// The authority's files are none, or the certificate cannot be made.
    #[error("{0}")]
    Certificate(#[from] rcgen::Error),
}

/// The name in a site's certificate. `/` becomes `.`, which no site's name has, so that no two sites share one.
pub fn name_of(site: &str) -> String {
    format!("{}.{SUFFIX}", site.replace('/', "."))
}

/// Makes the authority of a fleet in `folder`: `authority.pem` for everybody and `authority-key.pem` for whoever signs.
///
/// # Errors
/// When one of the files is there already or cannot be written.
pub fn init(folder: &Path) -> Result<PathBuf, CertificateError> {
    std::fs::create_dir_all(folder).map_err(|error| CertificateError::File { path: folder.into(), error })?;
    let key = KeyPair::generate()?;
    let params = authority()?;
    let certificate = params.self_signed(&key)?;
    write(&folder.join("authority-key.pem"), &key.serialize_pem(), 0o600)?;
    let path = folder.join("authority.pem");
    write(&path, &certificate.pem(), 0o644)?;
    Ok(path)
}

/// Signs a certificate for `site`, good for so many seconds from now; an expired one where that is not positive. Writes it
/// and its key into `folder`, replacing those that are there.
///
/// # Errors
/// When the authority's files cannot be read, or the new ones not be written.
pub fn issue(folder: &Path, site: &str, seconds: i64) -> Result<(PathBuf, PathBuf), CertificateError> {
    check_site_name(site).map_err(CertificateError::Name)?;
    let issuer = Issuer::new(authority()?, authority_key(folder)?);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name_of(site)])?;
    params.distinguished_name.push(DnType::CommonName, site);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params, seconds);
    let certificate = params.signed_by(&key, &issuer)?;
    let file = site.replace('/', "-");
    let paths = (folder.join(format!("{file}.pem")), folder.join(format!("{file}-key.pem")));
    replace(&paths.1, &key.serialize_pem(), 0o600)?;
    replace(&paths.0, &certificate.pem(), 0o644)?;
    Ok(paths)
}

/// What every authority that is made here says of itself, but for its key.
fn authority() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "Windrose fleet authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, AUTHORITY_DAYS * DAY);
    Ok(params)
}

fn authority_key(folder: &Path) -> Result<KeyPair, CertificateError> {
    Ok(KeyPair::from_pem(&read(&folder.join("authority-key.pem"))?)?)
}

/// Good from a day ago, since clocks differ, and for so many seconds from now.
fn valid(params: &mut CertificateParams, seconds: i64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed());
    let to = now.saturating_add(if seconds > 0 { seconds } else { seconds.saturating_sub(60) }).min(LATEST);
    let from = if seconds > 0 { now - DAY } else { now - 3 * DAY };
    let from = from.min(to - DAY);
    let at = |seconds: i64| {
        let unix = rcgen::date_time_ymd(1970, 1, 1);
        unix + Duration::from_secs(seconds.max(0).unsigned_abs())
    };
    (params.not_before, params.not_after) = (at(from), at(to));
}

fn read(path: &Path) -> Result<String, CertificateError> {
    std::fs::read_to_string(path).map_err(|error| CertificateError::File { path: path.into(), error })
}

/// Writes a file that is not there.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = written.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| CertificateError::File { path: path.into(), error })
}

/// Writes a file beside and moves it into place, so that a gateway that reads it sees a whole one.
fn replace(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    let beside = path.with_extension("new");
    let _ = std::fs::remove_file(&beside);
    write(&beside, text, mode)?;
    std::fs::rename(&beside, path).map_err(|error| CertificateError::File { path: path.into(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_and_signs_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        init(folder.path()).unwrap();
        assert!(matches!(init(folder.path()), Err(CertificateError::File { .. })));
        let (certificate, key) = issue(folder.path(), "aws/eu-west-1", 30 * DAY).unwrap();
        assert!(certificate.ends_with("aws-eu-west-1.pem") && key.ends_with("aws-eu-west-1-key.pem"));
        let first = read(&certificate).unwrap();
        issue(folder.path(), "aws/eu-west-1", 30 * DAY).unwrap();
        assert_ne!(read(&certificate).unwrap(), first);
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&key).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(issue(folder.path(), "aws.eu", 1), Err(CertificateError::Name(_))));
    }

    #[test]
    fn no_two_sites_share_a_name() {
        assert_eq!(name_of("aws/eu-west-1"), "aws.eu-west-1.site.windrose");
        assert_ne!(name_of("a/b-c"), name_of("a-b/c"));
    }
}
