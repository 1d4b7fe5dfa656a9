//! TLS 1.3 between Ed25519 keys. There are no certificates, no names and nothing that expires.

use std::sync::{Arc, OnceLock};

use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_proto::{direct, relay, v1};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, Error,
    SignatureScheme, version,
};

use crate::exchange::KeyExchange;

/// What is spoken over a connection. Both ends agree on it in TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Between agent and controller: [`anteroom_proto::v1`].
    Control,
    /// Between agent and relay: [`anteroom_proto::relay`].
    Relay,
    /// Between two gateways: [`anteroom_proto::direct`].
    Direct,
}

impl Protocol {
    #[cfg(feature = "quic")]
    const ALL: [Self; 3] = [Self::Control, Self::Relay, Self::Direct];

    const fn name(self) -> &'static [u8] {
        match self {
            Self::Control => v1::ALPN,
            Self::Relay => relay::ALPN,
            Self::Direct => direct::ALPN,
        }
    }

    #[cfg(feature = "quic")]
    pub(crate) fn of_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }
}

/// `SubjectPublicKeyInfo` of an Ed25519 key, up to the key itself (RFC 8410).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The Ed25519 key in a raw public key as TLS carries it.
#[must_use]
pub fn key_of_spki(spki: &[u8]) -> Option<PublicKey> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    PublicKey::try_from(<[u8; 32]>::try_from(key).ok()?).ok()
}

/// A key as TLS carries it.
#[must_use]
pub fn spki_of_key(key: PublicKey) -> Vec<u8> {
    let mut spki = SPKI_PREFIX.to_vec();
    spki.extend_from_slice(key.as_bytes());
    spki
}

fn certified(identity: &IdentityKey) -> Result<Arc<CertifiedKey>, Error> {
    let pkcs8 = identity.to_pkcs8();
    let key = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))?;
    let spki = spki_of_key(identity.public());
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key)))
}

/// TLS for whoever listens as `identity` and speaks `protocols`. Every client must prove some Ed25519 key; who may say
/// what with it is decided after the handshake.
///
/// # Errors
/// When the TLS library doesn't take the key.
pub fn server_config(
    identity: &IdentityKey,
    protocols: &[Protocol],
) -> Result<rustls::ServerConfig, Error> {
    server_config_with(KeyExchange::Hybrid.provider(), identity, protocols)
}

pub(crate) fn server_config_with(
    provider: Arc<CryptoProvider>,
    identity: &IdentityKey,
    protocols: &[Protocol],
) -> Result<rustls::ServerConfig, Error> {
    let algorithms = provider.signature_verification_algorithms;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyClient { algorithms }))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(identity)?)));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.name().to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// TLS for whoever connects as `identity`, speaks `protocol`, and only to the server that `pin` names.
///
/// # Errors
/// When the TLS library doesn't take the key.
pub fn client_config(
    identity: &IdentityKey,
    pin: &Arc<ServerPin>,
    protocol: Protocol,
) -> Result<rustls::ClientConfig, Error> {
    let mut provider = KeyExchange::Hybrid.provider();
    if matches!(protocol, Protocol::Relay | Protocol::Direct) {
        prefer_aes_128(Arc::make_mut(&mut provider));
    }
    client_config_with(provider, identity, pin, protocol)
}

/// Puts AES-128-GCM first, which costs a quarter less than AES-256: for what is carried sealed already, so that this cipher
/// hides from others on the way who speaks with whom, and nothing else. Whoever listens goes by this order.
fn prefer_aes_128(provider: &mut CryptoProvider) {
    let suites = &mut provider.cipher_suites;
    suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
}

pub(crate) fn client_config_with(
    provider: Arc<CryptoProvider>,
    identity: &IdentityKey,
    pin: &Arc<ServerPin>,
    protocol: Protocol,
) -> Result<rustls::ClientConfig, Error> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(pin.clone())
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(
            identity,
        )?)));
    config.alpn_protocols = vec![protocol.name().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(config)
}

/// The keys that a client takes for its server, and the one that it met instead, if it did.
#[derive(Debug)]
pub struct ServerPin {
    keys: Vec<PublicKey>,
    refused: OnceLock<PublicKey>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerPin {
    /// A pin to any of `keys`.
    #[must_use]
    pub fn new(keys: Vec<PublicKey>) -> Arc<Self> {
        let algorithms = KeyExchange::Hybrid.provider().signature_verification_algorithms;
        Arc::new(Self { keys, refused: OnceLock::new(), algorithms })
    }

    /// The first key that a server offered and that isn't one of the pinned ones.
    #[must_use]
    pub fn refused(&self) -> Option<PublicKey> {
        self.refused.get().copied()
    }
}

/// What the verifiers of both ends have in common: TLS 1.3, raw public keys, Ed25519.
macro_rules! raw_ed25519_only {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 isn't spoken here".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify(message, cert, dss, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for ServerPin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key = key_of_spki(end_entity).ok_or(CertificateError::BadEncoding)?;
        if self.keys.contains(&key) {
            Ok(ServerCertVerified::assertion())
        } else {
            self.refused.get_or_init(|| key);
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    raw_ed25519_only!();
}

#[derive(Debug)]
struct AnyClient {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        key_of_spki(end_entity).ok_or(CertificateError::BadEncoding)?;
        Ok(ClientCertVerified::assertion())
    }

    raw_ed25519_only!();
}

fn verify(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
    rustls::crypto::verify_tls13_signature_with_raw_key(message, &spki, dss, algorithms)
}

#[cfg(test)]
mod cost;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn our_form_of_a_key_is_the_libraries() {
        let identity = IdentityKey::from_seed(&[7; 32]);
        let key = certified(&identity).unwrap();
        let spki = key.key.public_key().expect("Ed25519 keys have a raw form");
        assert_eq!(spki.as_ref(), spki_of_key(identity.public()));
        assert_eq!(key_of_spki(&spki), Some(identity.public()));
    }

    #[test]
    fn packets_go_by_the_cheaper_cipher_and_messages_by_the_stronger() {
        let server = IdentityKey::from_seed(&[1; 32]);
        let (public, all) = (server.public(), [Protocol::Control, Protocol::Relay]);
        let server = Arc::new(server_config(&server, &all).unwrap());
        let agreed = |protocol| {
            let (us, pin) = (IdentityKey::from_seed(&[2; 32]), ServerPin::new(vec![public]));
            let client = Arc::new(client_config(&us, &pin, protocol).unwrap());
            let name = ServerName::try_from("anteroom").unwrap();
            let mut client = rustls::ClientConnection::new(client, name).unwrap();
            let mut server = rustls::ServerConnection::new(server.clone()).unwrap();
            let (mut there, mut back) = (Vec::new(), Vec::new());
            client.write_tls(&mut there).unwrap();
            server.read_tls(&mut there.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            server.write_tls(&mut back).unwrap();
            client.read_tls(&mut back.as_slice()).unwrap();
            client.process_new_packets().unwrap();
            client.negotiated_cipher_suite().unwrap().suite()
        };
        assert_eq!(agreed(Protocol::Relay), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(agreed(Protocol::Control), CipherSuite::TLS13_AES_256_GCM_SHA384);
    }

    proptest! {
        #[test]
        fn only_a_whole_key_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(key_of_spki(&bytes), None);
            let mut spki = spki_of_key(IdentityKey::from_seed(&[1; 32]).public());
            spki.extend_from_slice(&bytes);
            prop_assert_eq!(key_of_spki(&spki).is_some(), bytes.is_empty());
            prop_assert_eq!(key_of_spki(&spki[..20]), None);
        }
    }
}
