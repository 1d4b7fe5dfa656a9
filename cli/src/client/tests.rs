use std::net::TcpListener;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::*;

#[test]
fn addresses_are_https_and_nothing_more() {
    for good in
        ["https://10.0.0.1:8443", "https://controller.example:8443/", "https://[fd00::1]:8443"]
    {
        assert!(parse_address(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "10.0.0.1:8443",
        "http://10.0.0.1:8443",
        "https://10.0.0.1/admin",
        "https://a@b",
        "https://a?b",
    ] {
        assert!(parse_address(bad).is_err(), "{bad} was taken");
    }
}

#[test]
fn nobody_there_is_said_with_the_address() {
    // Bound, and closed again: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let client =
        Client::new(&[format!("https://127.0.0.1:{port}")], Hash::ZERO, KeyExchange::Hybrid)
            .unwrap();
    let error = client.get::<()>("/v1/controller", &(), None).unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("can't reach the controller at https://127.0.0.1:{port}: ")),
        "{text}"
    );
    assert!(text.contains("refused"), "{text}");
}

/// Somebody with a certificate who takes classic key exchanges only, and one connection.
fn classic() -> (String, Hash, std::thread::JoinHandle<()>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let der = made.cert.der().clone();
    let hash = tls::certificate_hash(&der).unwrap();
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![der],
            PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let serve = std::thread::spawn(move || {
        use std::io::Write as _;
        let (stream, _) = listener.accept().unwrap();
        let connection = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut tls = rustls::StreamOwned::new(connection, stream);
        let mut request = [0; 4096];
        if tls.read(&mut request).is_ok() {
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnull";
            tls.write_all(answer.as_bytes()).unwrap();
            tls.flush().unwrap();
        }
    });
    (address, hash, serve)
}

#[test]
fn a_controller_without_ml_kem_is_refused_with_what_to_do() {
    let (address, certificate, serve) = classic();
    let client =
        Client::new(std::slice::from_ref(&address), certificate, KeyExchange::Hybrid).unwrap();
    let error = client.get::<()>("/v1/controller", &(), None).unwrap_err();
    assert!(matches!(error, ClientError::Classic { .. }), "{error:?}");
    let text = error.to_string();
    for part in [address.as_str(), "X25519MLKEM768", "update", "--allow-classic"] {
        assert!(text.contains(part), "{part} isn't in: {text}");
    }
    serve.join().unwrap();
}

#[test]
fn a_controller_without_ml_kem_is_taken_where_that_is_allowed() {
    let (address, certificate, serve) = classic();
    let client = Client::new(&[address], certificate, KeyExchange::ClassicToo).unwrap();
    client.get::<()>("/v1/controller", &(), None).unwrap();
    serve.join().unwrap();
}
