//! A private certificate authority, and a TLS front for a server that has no TLS.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::AbortOnDropHandle;

use crate::services::unique_name;

/// An authority that no system trusts by default.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A server's certificate files, in PEM.
pub struct ServerCertificate {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// The server's own certificate.
    pub chain: PathBuf,
    /// The server's private key.
    pub key: PathBuf,
}

impl Authority {
    /// Creates an authority.
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, format!("authority {}", unique_name()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let authority = Authority { issuer, folder: TempDir::new().expect("a folder") };
        fs::write(authority.file(), authority.issuer.pem()).expect("written");
        authority
    }

    /// Returns the file of the authority's certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// Issues a certificate for a server of this name.
    pub fn certificate(&self, name: &str) -> ServerCertificate {
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |kind: &str| self.folder.path().join(format!("{name}.{kind}.pem"));
        let files = ServerCertificate { authority: self.file(), chain: path("chain"), key: path("key") };
        fs::write(&files.chain, certificate.pem()).expect("written");
        fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }

    /// Opens a connection to a server (`host:port`), verified by this authority. The client offers this protocol (ALPN), or
    /// none.
    pub async fn connect(&self, address: &str, offered: Option<&str>) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.file()).expect("a certificate")).expect("an authority");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map(|config| config.with_root_certificates(roots).with_no_client_auth());
        let mut config = config.expect("versions of TLS");
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let (host, _) = address.rsplit_once(':').expect("a port");
        let host = ServerName::try_from(host.to_owned()).expect("a name");
        let stream = TcpStream::connect(address).await.expect("a connection");
        TlsConnector::from(Arc::new(config)).connect(host, stream).await.expect("TLS")
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}

/// TLS in front of a service; it stops when this is dropped.
pub struct TlsFront {
    /// The port it listens on.
    pub port: u16,
    _serving: AbortOnDropHandle<()>,
}

impl TlsFront {
    /// Starts in front of the service at this address (`host:port`).
    pub async fn to(target: &str, certificate: &ServerCertificate) -> TlsFront {
        let chain = CertificateDer::from_pem_file(&certificate.chain).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(vec![chain], key));
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a certificate and its key")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let target = target.to_owned();
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, target) = (acceptor.clone(), target.clone());
                tokio::spawn(async move {
                    // A client that does not trust the certificate ends the connection.
                    let mut client = acceptor.accept(client).await.ok()?;
                    let mut server = TcpStream::connect(target).await.ok()?;
                    copy_bidirectional(&mut client, &mut server).await.ok()
                });
            }
        });
        TlsFront { port, _serving: AbortOnDropHandle::new(serving) }
    }
}
