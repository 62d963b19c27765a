//! TLS between gateways: version 1.3, certificates on both sides, read again when their files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig, version};

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
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| wrong(&error))?;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| wrong(&error))?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| wrong(&error))?;
        // A resumed session would not look at the certificates again.
        client.resumption = tokio_rustls::rustls::client::Resumption::disabled();
        client.alpn_protocols = vec![ALPN.to_vec()];
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| wrong(&error))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| wrong(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| wrong(&error))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        Ok(Identity { client: Arc::new(client), server: Arc::new(server), stamp })
    }

    /// Whether the files are other ones by now.
    pub fn is_stale(&self, config: &FleetConfig) -> bool {
        stamp(config) != self.stamp
    }
}

/// TLS to a foreign server, which shows a certificate and asks for none.
///
/// # Errors
/// When the authority's file is none.
pub fn foreign(authority: &Path) -> Result<Arc<ClientConfig>, TlsError> {
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
