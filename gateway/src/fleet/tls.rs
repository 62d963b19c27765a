//! TLS between gateways: version 1.3, certificates on both sides, read again when their files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{CertificateError, CipherSuite, ClientConfig, Error, RootCertStore, ServerConfig, version};

use super::certificate::name_of;
use crate::config::fleet::FleetConfig;

/// What both sides say that they speak.
const ALPN: &[u8] = b"h2";

/// How many bytes may be encrypted and not written, and with that how many go out in one call: sixteen records.
pub const SEND_BUFFER: usize = 256 << 10;

/// The largest HTTP/2 frame that a gateway takes from another. Larger ones cost less processor time, but what shares the
/// connection waits for the end of a frame that has begun. Beside one body of 1 MB after the other, at 100 Mbit/s, nine of ten
/// small requests were answered within 0.09 to 0.12 s with frames of 16 to 256 KiB, and within 0.14 to 0.16 s with frames of
/// 1 MiB. For 600 KB a gateway takes 1.6 times the time with frames of 16 KiB that it takes with those of 1 MiB, and 1.3 times
/// with 256 KiB.
pub const MAX_FRAME: u32 = 256 << 10;

/// Later than any certificate can say, seconds after 1970.
const NEVER: Duration = Duration::from_secs(1 << 40);

/// How often the clock is looked at while a certificate is good: it may be set meanwhile.
const LOOK: Duration = Duration::from_secs(10);

/// Why there is no TLS. The message names the setting.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// This gateway's side of connections to and from peers.
#[derive(Clone)]
pub struct Identity {
    /// To connect.
    pub client: Arc<ClientConfig>,
    /// To be connected to.
    pub server: Arc<ServerConfig>,
    /// When the certificate has expired that it shows.
    pub until: SystemTime,
    /// Who judges those that connect, and those that are connected to.
    callers: Arc<dyn ClientCertVerifier>,
    called: Arc<WebPkiServerVerifier>,
    /// The files as they were read.
    pub stamp: Stamp,
}

/// When the files were last written: another stamp means another content.
pub type Stamp = Vec<Option<(SystemTime, u64)>>;

impl Identity {
    /// Reads the three files.
    ///
    /// # Errors
    /// Names the setting and the file.
    pub fn load(config: &FleetConfig) -> Result<Identity, TlsError> {
        let stamp = stamp(config);
        let chain = certificates(&config.certificate, "fleet.certificate")?;
        let key = PrivateKeyDer::from_pem_file(&config.key)
            .map_err(|error| TlsError(format!("fleet.key: {}: {error}", config.key.display())))?;
        let roots = Arc::new(roots(&config.authority, "fleet.authority")?);
        let wrong = |error: &dyn std::fmt::Display| TlsError(format!("fleet.certificate and fleet.key: {error}"));
        let provider = Arc::new(quickest());
        let called = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| wrong(&error))?;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| wrong(&error))?
            .with_webpki_verifier(called.clone())
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| wrong(&error))?;
        // A resumed session would not look at the certificates again.
        client.resumption = tokio_rustls::rustls::client::Resumption::disabled();
        client.alpn_protocols = vec![ALPN.to_vec()];
        let callers = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| wrong(&error))?;
        let until = good_until(|at| judged(&*callers, &chain, at));
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| wrong(&error))?
            .with_client_cert_verifier(callers.clone())
            .with_single_cert(chain, key)
            .map_err(|error| wrong(&error))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        Ok(Identity { client: Arc::new(client), server: Arc::new(server), until, callers, called, stamp })
    }

    /// When the certificates have expired with which somebody connected; `None` where they are not, or no longer, of this
    /// fleet.
    pub fn believes(&self, chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
        let judge = |at| judged(&*self.callers, chain, at);
        judge(UnixTime::now()).ok().map(|()| good_until(judge))
    }

    /// When the certificates have expired that the site of this name showed; `None` where it showed none.
    pub fn believes_in(&self, name: &ServerName<'_>, chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
        let (own, between) = chain.split_first()?;
        Some(good_until(|at| self.called.verify_server_cert(own, between, name, &[], at).map(drop)))
    }

    /// Whether the files are other ones by now.
    pub fn is_stale(&self, config: &FleetConfig) -> bool {
        stamp(config) != self.stamp
    }
}

fn judged(callers: &dyn ClientCertVerifier, chain: &[CertificateDer<'_>], at: UnixTime) -> Result<(), Error> {
    let (own, between) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    callers.verify_client_cert(own, between, at).map(drop)
}

/// The first second in which one of the certificates has expired that `judge` looks at. It says which has, and so is asked
/// about a day that is far off, and again about the last one that was good of it.
fn good_until(judge: impl Fn(UnixTime) -> Result<(), Error>) -> SystemTime {
    let mut until = UnixTime::since_unix_epoch(NEVER);
    while let Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) = judge(until) {
        if not_after >= until {
            break;
        }
        until = not_after;
    }
    UNIX_EPOCH + Duration::from_secs(until.as_secs().saturating_add(1))
}

/// Waits until the system's clock says so.
pub async fn until(end: SystemTime) {
    while let Ok(left) = end.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.clamp(Duration::from_millis(1), LOOK)).await;
    }
}

/// The authority of a foreign server's certificate, read again when its file changes.
pub struct Authority {
    file: PathBuf,
    /// The file as it was read.
    stamp: Mutex<Option<(SystemTime, u64)>>,
    /// To connect; `None` as long as it could not be read.
    client: ArcSwapOption<ClientConfig>,
}

impl Authority {
    /// Reads the file, and says so in the log where it is none.
    pub fn of(file: &Path) -> Authority {
        let stamp = Mutex::new(modified(file));
        let authority = Authority { file: file.to_owned(), stamp, client: ArcSwapOption::empty() };
        authority.read();
        authority
    }

    /// How to connect now.
    pub fn client(&self) -> Option<Arc<ClientConfig>> {
        self.client.load_full()
    }

    /// Reads the file where it is another one by now; whether another authority is believed since.
    pub fn renew(&self) -> bool {
        let now = modified(&self.file);
        let before = std::mem::replace(&mut *self.stamp.lock().unwrap_or_else(PoisonError::into_inner), now);
        now != before && self.read()
    }

    fn read(&self) -> bool {
        match foreign(&self.file) {
            Ok(client) => {
                self.client.store(Some(client));
                true
            }
            Err(error) => {
                tracing::error!(%error, "the authority of a foreign server is wrong: one before stays in use");
                false
            }
        }
    }
}

/// TLS to a foreign server, which shows a certificate and asks for none.
fn foreign(authority: &Path) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| TlsError(error.to_string()))?
        .with_root_certificates(roots(authority, "authority")?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The name that a site's certificate must have.
///
/// # Errors
/// Never for a checked name.
pub fn server_name(site: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name_of(site)).map_err(|error| TlsError(error.to_string()))
}

/// Whether a verified certificate is this site's.
pub fn is_site(certificate: &CertificateDer<'_>, site: &str) -> bool {
    let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else { return false };
    server_name(site).is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok())
}

/// What gateways encrypt with: AES with keys of 128 bits before those of 256, which take more rounds.
fn quickest() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |error: &dyn std::fmt::Display| TlsError(format!("{key}: {}: {error}", path.display()));
    let list = CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))?;
    let list = list.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(&error))?;
    if list.is_empty() { Err(wrong(&"holds no certificate")) } else { Ok(list) }
}

fn roots(path: &Path, key: &str) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path, key)? {
        store.add(certificate).map_err(|error| TlsError(format!("{key}: {}: {error}", path.display())))?;
    }
    Ok(store)
}

fn stamp(config: &FleetConfig) -> Stamp {
    let files: [&PathBuf; 3] = [&config.certificate, &config.key, &config.authority];
    files.map(|file| modified(file)).to_vec()
}

/// When a file was written, and how long it is.
pub fn modified(path: &Path) -> Option<(SystemTime, u64)> {
    let about = std::fs::metadata(path).ok()?;
    Some((about.modified().ok()?, about.len()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::certificate;
    use super::*;

    /// A site's settings, with a certificate that is good for so many seconds.
    pub fn config(folder: &Path, site: &str, seconds: i64) -> FleetConfig {
        let (certificate, key) = certificate::issue(folder, site, seconds).unwrap();
        FleetConfig {
            file: PathBuf::new(),
            site: site.to_owned(),
            listen: None,
            certificate,
            key,
            authority: folder.join("authority.pem"),
            hold: 0,
            allow: None,
            deny: Vec::new(),
        }
    }

    fn load(config: &FleetConfig) -> (Identity, Vec<CertificateDer<'static>>) {
        (Identity::load(config).unwrap(), certificates(&config.certificate, "certificate").unwrap())
    }

    #[test]
    fn a_certificate_is_believed_until_it_expires_and_by_its_own_authority() {
        let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        certificate::init(ours.path()).unwrap();
        certificate::init(other.path()).unwrap();
        let (identity, chain) = load(&config(ours.path(), "a/b", 100));
        let left = identity.until.duration_since(SystemTime::now()).unwrap();
        assert!((98..=101).contains(&left.as_secs()), "{left:?}");
        assert_eq!(identity.believes(&chain), Some(identity.until));
        assert_eq!(identity.believes_in(&server_name("a/b").unwrap(), &chain), Some(identity.until));
        assert_eq!(identity.believes(&[]), None);
        let (stranger, _) = load(&config(other.path(), "a/b", 100));
        assert_eq!(stranger.believes(&chain), None);
        let (late, expired) = load(&config(ours.path(), "a/b", -1));
        assert!(late.until < SystemTime::now());
        assert_eq!(late.believes(&expired), None);
        assert_eq!(late.believes(&chain), Some(identity.until));
    }
}
