//! Programs without a post-quantum key exchange.

use std::sync::Arc;

use anteroom_proto::api::{ControllerInfo, paths};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::support::Service;

/// What a program with classic groups only gets.
async fn ask(service: &Service) -> Result<reqwest::Response, reqwest::Error> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP384R1];
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(service.directory().certificate()).unwrap();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
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
    let _: ControllerInfo = service.client().get(paths::CONTROLLER).await;
}
