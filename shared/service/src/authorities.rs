//! The trusted certificate authorities: the system's, and the user's own. A server's certificate is always verified.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// The setting that names a file of the user's own authorities.
pub(crate) const TLS_CA_FILE: &str = "TLS_CA_FILE";

/// The authorities that are trusted.
#[derive(Clone, Debug, Default)]
pub struct Authorities {
    own: Option<Own>,
}

#[derive(Clone, Debug)]
struct Own {
    pem: String,
    certificates: Vec<Certificate<'static>>,
}

impl Authorities {
    /// Returns the system's authorities and those in this file (PEM).
    pub fn with(path: &Path) -> Result<Authorities, String> {
        let shown = path.display();
        let pem = std::fs::read_to_string(path).map_err(|error| {
            format!("{shown} cannot be read: {error}, expected a file of certificates (PEM)")
        })?;
        let certificates = parse_pem(pem.as_bytes())
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(usable(certificate)),
                Ok(_) => None,
                Err(error) => Some(Err(error.to_string())),
            })
            .zip(1..)
            .map(|(certificate, nth)| {
                certificate.map_err(|problem| format!("{shown}: certificate {nth} cannot be used: {problem}"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() {
            Err(format!("{shown} has no certificate in it, expected -----BEGIN CERTIFICATE-----"))
        } else {
            Ok(Authorities { own: Some(Own { pem, certificates }) })
        }
    }

    /// Reads the file that a setting names, if it names one.
    pub(crate) fn read(path: Option<&PathBuf>) -> Result<Authorities, String> {
        path.map_or_else(|| Ok(Authorities::default()), |path| Authorities::with(path))
    }

    /// Returns the user's own authorities, as the file has them.
    pub fn own_pem(&self) -> Option<&str> {
        self.own.as_ref().map(|own| own.pem.as_str())
    }

    /// Returns a TLS configuration with these authorities, for an HTTP client.
    pub fn tls(&self) -> TlsConfig {
        let roots = match &self.own {
            None => RootCerts::PlatformVerifier,
            Some(own) => {
                let system = rustls_native_certs::load_native_certs().certs;
                let system = system.iter().map(|certificate| Certificate::from_der(certificate).to_owned());
                RootCerts::Specific(Arc::new(system.chain(own.certificates.iter().cloned()).collect()))
            }
        };
        TlsConfig::builder().root_certs(roots).build()
    }

    /// Returns a rustls configuration with these authorities, for an HTTP client that takes one.
    pub fn rustls(&self) -> Result<ClientConfig, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let own = self.own.iter().flat_map(|own| &own.certificates);
        roots.add_parsable_certificates(own.map(|own| CertificateDer::from(own.der().to_vec())));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }
}

/// Checks that it can be an authority. A TLS client would silently leave it out otherwise.
fn usable(certificate: Certificate<'static>) -> Result<Certificate<'static>, String> {
    let added = RootCertStore::empty().add(CertificateDer::from(certificate.der()));
    added.map(|()| certificate).map_err(|error| error.to_string())
}

/// Describes a failure of an HTTP client. If the server's authority is unknown, names the setting that would add it.
pub fn explain_http(error: &ureq::Error) -> String {
    let text = error.to_string();
    // The second kind occurs if another authority has the same name, such as an older one.
    if ["UnknownIssuer", "BadSignature"].iter().any(|kind| text.contains(kind)) {
        format!("{text}: expected {TLS_CA_FILE} to name the file of its authority")
    } else {
        text
    }
}
