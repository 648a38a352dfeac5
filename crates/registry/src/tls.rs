//! TLS settings per host: the system's roots, a host's own, client certificates, and no checking where asked for.
//!
//! Invariant: without `skip_verify` no connection is made to a server whose certificate does not lead to a trusted
//! root and its name.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::hosts::{Host, HostsError};

/// The system's roots, shared while some client uses them. They take a few hundred KiB, so they are not kept.
static SYSTEM: Mutex<Weak<RootCertStore>> = Mutex::new(Weak::new());

/// The TLS settings of a host. Reads files.
pub fn config(host: &Host) -> Result<ClientConfig, HostsError> {
    client(&host.ca, host.client.first(), host.skip_verify)
}

/// TLS settings that trust the system's roots and those in the files `ca`, and show a certificate with its key. Reads files.
///
/// # Errors
/// A file cannot be read, or is not what it should be.
pub fn client(
    ca: &[PathBuf],
    shown: Option<&(PathBuf, PathBuf)>,
    skip_verify: bool,
) -> Result<ClientConfig, HostsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|err| bad(Path::new("tls"), err))?;
    let builder = if skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
    } else {
        let (roots, named) = roots(ca)?;
        // A machine without any roots trusts nobody.
        let chain = if roots.is_empty() {
            None
        } else {
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
            Some(verifier.build().map_err(|err| bad(Path::new("tls"), err))?)
        };
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Trusted {
            chain,
            named,
            signatures: Anyone(provider),
        }))
    };
    let Some((cert, key)) = shown else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(cert)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|err| bad(key, err))?;
    builder.with_client_auth_cert(chain, secret).map_err(|err| bad(cert, err))
}

/// The roots to trust, and those of them that were named for this host.
fn roots(ca: &[PathBuf]) -> Result<(Arc<RootCertStore>, Vec<CertificateDer<'static>>), HostsError> {
    let system = system_roots();
    if ca.is_empty() {
        return Ok((system, Vec::new()));
    }
    let mut roots = (*system).clone();
    let mut named = Vec::new();
    for file in ca {
        for certificate in certificates(file)? {
            roots.add(certificate.clone()).map_err(|err| bad(file, err))?;
            named.push(certificate);
        }
    }
    Ok((Arc::new(roots), named))
}

fn system_roots() -> Arc<RootCertStore> {
    let mut shared = SYSTEM.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(roots) = shared.upgrade() {
        return roots;
    }
    let mut roots = RootCertStore::empty();
    // Single bad certificates in a system's store are common and harmless.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let roots = Arc::new(roots);
    *shared = Arc::downgrade(&roots);
    roots
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, HostsError> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|err| bad(file, err))
}

fn bad(path: &Path, err: impl std::fmt::Display) -> HostsError {
    HostsError::Value { path: path.into(), what: err.to_string() }
}

/// Certificates that lead to a trusted root, and those that were named for the host themselves: who makes a certificate with one call of
/// `openssl req -x509` has one that calls itself an authority, and the strict reading takes no authority for a server.
#[derive(Debug)]
struct Trusted {
    chain: Option<Arc<WebPkiServerVerifier>>,
    named: Vec<CertificateDer<'static>>,
    /// Whether the peer holds the key of its certificate is checked for these as for any other.
    signatures: Anyone,
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        match chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // Its dates were looked at before what it calls itself; they have errors of their own.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if self.named.iter().any(|named| named == certificate) =>
            {
                let parsed = ParsedCertificate::try_from(certificate)?;
                verify_server_name(&parsed, name).map(|()| ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_verify_schemes()
    }
}

/// Takes any certificate, as `skip_verify` asks. Signatures are still checked.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl Anyone {
    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.0.signature_verification_algorithms
    }
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, self.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

/// A TLS failure in the words Docker's users search for.
pub fn describe(err: &rustls::Error) -> String {
    use rustls::CertificateError as Cert;
    match err {
        rustls::Error::InvalidCertificate(cert) => match cert {
            Cert::UnknownIssuer => {
                "tls: failed to verify certificate: x509: certificate signed by unknown authority".into()
            }
            Cert::Expired
            | Cert::ExpiredContext { .. }
            | Cert::NotValidYet
            | Cert::NotValidYetContext { .. } => {
                "tls: failed to verify certificate: x509: certificate has expired or is not yet valid".into()
            }
            Cert::NotValidForName | Cert::NotValidForNameContext { .. } => {
                format!(
                    "tls: failed to verify certificate: x509: certificate is not valid for that name: {cert}"
                )
            }
            // A certificate that calls itself an authority and that nobody named: Go says of it that it knows no such authority.
            Cert::Other(_) => {
                "tls: failed to verify certificate: x509: certificate signed by unknown authority".into()
            }
            other => format!("tls: failed to verify certificate: {other}"),
        },
        rustls::Error::InvalidMessage(_) => "http: server gave HTTP response to HTTPS client".into(),
        other => format!("tls: {other}"),
    }
}
