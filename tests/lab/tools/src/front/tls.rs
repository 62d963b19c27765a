//! Mutual TLS on both sides of the front.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{BoxStream, Identities};
use crate::peer;

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
        let mut roots = RootCertStore::empty();
        for authority in peer::chain(&files.ca).context("read the authority")? {
            roots.add(authority)?;
        }
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build()?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(peer::chain(&files.cert)?, PrivateKeyDer::from_pem_file(&files.key)?)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let connector = peer::connector(&files.client_cert, &files.client_key)?;
        Ok(Tls { acceptor: Arc::new(server).into(), connector })
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
        Ok(Box::new(peer::connect(&self.connector, stream).await?))
    }
}
