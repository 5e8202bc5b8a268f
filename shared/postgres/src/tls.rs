//! TLS: what `sslmode` and `sslrootcert` mean here. A certificate is always verified if there is one.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// The meaning of `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// No TLS. This is the default.
    Disable,
    /// TLS if the server offers it. An attacker between the two can suppress the offer.
    Prefer,
    /// Always TLS, with a certificate of a known authority for the host's name (also `verify-full`).
    Verified,
    /// Always TLS, with a certificate of a known authority for any name.
    VerifiedAuthority,
}

impl Mode {
    pub(crate) fn read(value: &str) -> Result<Mode, String> {
        match value {
            "disable" => Ok(Mode::Disable),
            "prefer" => Ok(Mode::Prefer),
            "require" | "verify-full" => Ok(Mode::Verified),
            "verify-ca" => Ok(Mode::VerifiedAuthority),
            other => Err(format!(
                "sslmode: got \"{}\", expected disable, prefer, require, verify-ca or verify-full",
                other.escape_debug()
            )),
        }
    }

    pub(crate) fn negotiated(self) -> SslMode {
        match self {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Verified | Mode::VerifiedAuthority => SslMode::Require,
        }
    }
}

/// Returns a TLS connector. Without a file, the authorities are the system's and the user's own (PEM).
pub(crate) fn connector(
    mode: Mode,
    authorities: Option<&Path>,
    own: Option<&str>,
) -> Result<MakeRustlsConnect, String> {
    let roots = Arc::new(roots(authorities, own)?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring knows the default protocol versions");
    let config = match mode {
        Mode::VerifiedAuthority => {
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
            let verifier = verifier.map_err(|error| format!("sslmode=verify-ca: {error}"))?;
            config.dangerous().with_custom_certificate_verifier(Arc::new(AnyName(verifier)))
        }
        Mode::Disable | Mode::Prefer | Mode::Verified => config.with_root_certificates(roots),
    };
    Ok(MakeRustlsConnect::new(config.with_no_client_auth()))
}

fn roots(authorities: Option<&Path>, own: Option<&str>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = authorities else {
        // One unreadable certificate of the system's must not prevent the use of the others.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let own = CertificateDer::pem_slice_iter(own.unwrap_or_default().as_bytes());
        roots.add_parsable_certificates(own.filter_map(Result::ok));
        return Ok(roots);
    };
    let wrong = |problem: String| {
        format!("sslrootcert: {} {problem}, expected a file of certificates (PEM)", path.display())
    };
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(format!("cannot be read: {error}")))?;
        roots
            .add(certificate)
            .map_err(|error| wrong(format!("has a certificate that cannot be used: {error}")))?;
    }
    if roots.is_empty() {
        return Err(wrong("has no certificate".to_owned()));
    }
    Ok(roots)
}

/// The verifier for `verify-ca`, which checks everything except the name.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name is checked last, when everything else is valid.
        match self.0.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
