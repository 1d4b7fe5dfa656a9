//! Programs without a post-quantum key exchange.

use std::sync::Arc;

use anteroom_proto::api::{ControllerInfo, paths};
use rustls::crypto::{SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{NamedGroup, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::{Service, soon};

/// TLS of a program that has these key exchanges, in this order.
fn client(service: &Service, groups: &[&'static dyn SupportedKxGroup]) -> rustls::ClientConfig {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = groups.to_vec();
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(service.directory().certificate()).unwrap();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// What a program with classic groups only gets.
async fn ask(service: &Service) -> Result<reqwest::Response, reqwest::Error> {
    let tls = client(service, &[aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP384R1]);
    let http = reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap();
    let address = service.running().https();
    http.get(format!("https://{address}{}", paths::CONTROLLER)).send().await
}

#[tokio::test]
async fn programs_without_ml_kem_are_refused_unless_the_configuration_takes_them() {
    let mut service = Service::new().await;
    let refused = ask(&service).await.unwrap_err();
    assert!(format!("{refused:?}").contains("HandshakeFailure"), "{refused:?}");
    // Nothing is wrong with the controller: one that can is served.
    let _: ControllerInfo = service.client().get(paths::CONTROLLER).await;

    service.stop().await;
    let file = service.directory().config();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("# allow_classic = false", "allow_classic = true")).unwrap();
    service.start().await;
    assert_eq!(ask(&service).await.unwrap().status(), 200);
    // Whoever can do the hybrid one does, in whatever order it names them.
    let (classic, hybrid) = (aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::X25519MLKEM768);
    for (groups, agreed) in [
        (vec![classic, hybrid], NamedGroup::X25519MLKEM768),
        (vec![hybrid, classic], NamedGroup::X25519MLKEM768),
        (vec![classic], NamedGroup::X25519),
    ] {
        assert_eq!(shake_hands(&service, &groups).await, agreed, "{groups:?}");
    }
    let _: ControllerInfo = service.client().get(paths::CONTROLLER).await;
}

/// The key exchange that a program with these comes to.
async fn shake_hands(service: &Service, groups: &[&'static dyn SupportedKxGroup]) -> NamedGroup {
    let address = service.running().https();
    let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
    let name = ServerName::try_from(address.ip().to_string()).unwrap();
    let connector = TlsConnector::from(Arc::new(client(service, groups)));
    let stream = soon("a handshake", connector.connect(name, stream)).await.unwrap();
    stream.get_ref().1.negotiated_key_exchange_group().unwrap().name()
}
