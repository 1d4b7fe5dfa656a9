//! TLS 1.3 to exactly one certificate: the one whose hash was pinned, whoever signed it and whatever it says.

use std::error::Error;
use std::sync::{Arc, Mutex};

use anteroom_proto::key::Hash;
use anteroom_transport::exchange::{self, KeyExchange};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme, version};
use sha2::{Digest, Sha256};

/// The last certificate that wasn't the pinned one.
#[derive(Debug, Clone, Default)]
pub(super) struct Stranger(Arc<Mutex<Option<Hash>>>);

impl Stranger {
    /// Its hash, if there was one since the last call.
    pub(super) fn take(&self) -> Option<Hash> {
        self.0.lock().ok()?.take()
    }

    fn set(&self, found: Hash) {
        if let Ok(mut slot) = self.0.lock() {
            *slot = Some(found);
        }
    }
}

/// TLS settings that accept the certificate with this SHA-256 and no other, and these key exchanges.
pub(super) fn config(
    pinned: Hash,
    stranger: Stranger,
    exchange: KeyExchange,
) -> Result<ClientConfig, rustls::Error> {
    let provider = exchange.provider();
    let verifier = Pinned { pinned, stranger, provider: Arc::clone(&provider) };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Whether the other end refused the handshake for its key exchange.
pub(super) fn is_classic(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<rustls::Error>().is_some_and(exchange::refused_as_client) {
            return true;
        }
        // What an I/O error was made of isn't its source, but stands in its place.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// The SHA-256 of a certificate in DER form.
pub(super) fn certificate_hash(der: &[u8]) -> Option<Hash> {
    Hash::try_from(<[u8; 32]>::from(Sha256::digest(der))).ok()
}

#[derive(Debug)]
struct Pinned {
    pinned: Hash,
    stranger: Stranger,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = certificate_hash(end_entity);
        if found == Some(self.pinned) {
            return Ok(ServerCertVerified::assertion());
        }
        if let Some(found) = found {
            self.stranger.set(found);
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 isn't spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
