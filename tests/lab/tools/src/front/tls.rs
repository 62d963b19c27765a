//! Mutual TLS on both sides of the front.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{BoxStream, Identities};

/// What both sides need.
pub struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Tls {
    /// Reads the certificates.
    ///
    /// # Errors
    /// When a file is missing or holds none.
    pub fn load(files: &Identities) -> Result<Tls> {
        let provider = Arc::new(ring::default_provider());
        let chain = |path| -> Result<Vec<CertificateDer<'static>>> {
            Ok(CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?)
        };
        let mut roots = RootCertStore::empty();
        for authority in chain(&files.ca).context("read the authority")? {
            roots.add(authority)?;
        }
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build()?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain(&files.cert)?, PrivateKeyDer::from_pem_file(&files.key)?)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyName(provider)))
            .with_client_auth_cert(chain(&files.client_cert)?, PrivateKeyDer::from_pem_file(&files.client_key)?)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Tls { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
    }

    /// Is the site to a client.
    ///
    /// # Errors
    /// When the client has no certificate of the authority.
    pub async fn accept(&self, stream: TcpStream) -> Result<BoxStream> {
        Ok(Box::new(self.acceptor.accept(stream).await?))
    }

    /// Is a client to the gateway behind.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn connect(&self, stream: TcpStream) -> Result<BoxStream> {
        let name = ServerName::try_from("behind.invalid")?;
        Ok(Box::new(self.connector.connect(name, stream).await?))
    }
}

/// Takes any certificate of the gateway behind, which the harness has started itself a moment ago on this very machine.
#[derive(Debug)]
struct AnyName(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
