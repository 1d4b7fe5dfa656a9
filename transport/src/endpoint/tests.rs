use anteroom_proto::cbor::CborError;
use anteroom_proto::v1::frame::{MAX_FIRST, MAX_TO_AGENT};
use anteroom_proto::v1::{Refusal, RefusalCode, ToAgent, ToController};
use rustls::crypto::aws_lc_rs;
use tokio::time::timeout;

use super::*;
use crate::link;
use crate::message::{MessageError, MessageReader, MessageWriter};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const DEADLINE: Duration = Duration::from_secs(20);

fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

fn refusal(message: &str) -> ToAgent {
    ToAgent::Refused(Refusal {
        code: RefusalCode::Unknown,
        message: message.to_owned(),
        fatal: false,
    })
}

/// Accepts one connection and gives the key that it proved, or why it failed.
async fn accept(endpoint: &Endpoint) -> Result<(Connection, Option<PublicKey>), String> {
    let incoming = endpoint.accept().await.ok_or("closed")?;
    let connection = incoming.await.map_err(|error| error.to_string())?;
    let key = peer_key(&connection);
    Ok((connection, key))
}

async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    timeout(DEADLINE, async { tokio::join!(a, b) }).await.expect("took too long")
}

#[tokio::test]
async fn ends_meet_by_their_keys_and_speak() {
    let server = listen(LOOPBACK, &key(1)).unwrap();
    let address = server.local_addr().unwrap();
    let serve = async {
        let (connection, client) = accept(&server).await.unwrap();
        assert_eq!(client, Some(key(2).public()));
        let (send, receive) = connection.accept_bi().await.unwrap();
        let mut reader = MessageReader::<ToAgent>::new(receive, MAX_FIRST);
        let mut writer = MessageWriter::new(send);
        while let Some(message) = reader.next().await.unwrap() {
            writer.send(&message).await.unwrap();
        }
        writer.finish().await;
        connection.closed().await
    };
    let client = async {
        let link = connect(address, &key(2), &[key(9).public(), key(1).public()]).await.unwrap();
        assert_eq!(link.connection().peer_key(), Some(key(1).public()));
        let (send, receive) = link.connection().open_bi().await.unwrap();
        let mut reader = MessageReader::<ToAgent>::new(receive, MAX_TO_AGENT);
        let mut writer = MessageWriter::new(send);
        for length in [0, 1, 1000, 60_000] {
            let message = refusal(&"x".repeat(length));
            writer.send(&message).await.unwrap();
            assert_eq!(reader.next().await.unwrap(), Some(message));
        }
        let ((), rest) = tokio::join!(writer.finish(), reader.next());
        assert_eq!(rest.unwrap(), None);
        link.close("done").await;
    };
    let (closed, ()) = both(serve, client).await;
    assert!(closed.to_string().contains("done"), "{closed}");
}

#[tokio::test]
async fn another_servers_key_is_refused_and_named() {
    let server = listen(LOOPBACK, &key(1)).unwrap();
    let address = server.local_addr().unwrap();
    let wanted = [key(3).public()];
    let (served, connected) = both(accept(&server), connect(address, &key(2), &wanted)).await;
    match connected {
        Err(TransportError::WrongKey { key: found, .. }) => {
            assert_eq!(found, key(1).public());
        }
        other => panic!("{other:?}"),
    }
    assert!(served.is_err(), "the server took a client that refused it");
}

#[tokio::test]
async fn nobody_there_is_an_error_that_names_the_address() {
    // A bound socket that nobody reads: silence, as from a firewall.
    let silent = UdpSocket::bind(LOOPBACK).unwrap();
    let address = silent.local_addr().unwrap();
    let servers = [key(1).public()];
    let error = timeout(DEADLINE, connect(address, &key(2), &servers))
        .await
        .expect("gives up by itself")
        .unwrap_err();
    assert!(error.to_string().starts_with(&address.to_string()), "{error}");
}

/// A provider that can't do the hybrid key exchange.
fn classic() -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    Arc::new(provider)
}

/// A client with classic groups only.
async fn connect_classic(address: SocketAddr) -> Result<Link, TransportError> {
    let pin = ServerPin::new(vec![key(1).public()]);
    let tls = tls::client_config_with(classic(), &key(2), &pin, Protocol::Control).unwrap();
    let config = client_config(tls, Protocol::Control).unwrap();
    connect_with(address, config, &pin, Protocol::Control).await
}

/// A listener with classic groups only.
fn listen_classic() -> Endpoint {
    let protocols = [Protocol::Control];
    let tls = tls::server_config_with(classic(), &key(1), &protocols).unwrap();
    let server = server_config(tls, &protocols).unwrap();
    endpoint(LOOPBACK, endpoint_config(None), Some(server), &protocols).unwrap()
}

/// A client that has sent something has seen a handshake through.
async fn accept_error(server: &Endpoint) -> ConnectionError {
    match server.accept().await.unwrap().await {
        Ok(connection) => connection.closed().await,
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_client_without_ml_kem_is_refused_and_both_ends_know_why() {
    let server = listen(LOOPBACK, &key(1)).unwrap();
    let address = server.local_addr().unwrap();
    let (served, connected) = both(accept_error(&server), connect_classic(address)).await;
    assert!(matches!(connected, Err(TransportError::KeyExchange { .. })), "{connected:?}");
    assert!(nothing_in_common(&served), "{served:?}");
}

#[tokio::test]
async fn a_server_without_ml_kem_is_refused_with_what_to_do() {
    let server = listen_classic();
    let address = server.local_addr().unwrap();
    let servers = [key(1).public()];
    let (served, connected) =
        both(accept_error(&server), connect(address, &key(2), &servers)).await;
    let text = connected.unwrap_err().to_string();
    for part in [address.to_string().as_str(), "X25519MLKEM768", "update the program there"] {
        assert!(text.contains(part), "{part} isn't in: {text}");
    }
    assert!(nothing_in_common(&served), "{served:?}");
}

#[tokio::test]
async fn another_failure_isnt_taken_for_that_of_a_key_exchange() {
    let server = listen(LOOPBACK, &key(1)).unwrap();
    let address = server.local_addr().unwrap();
    let wanted = [key(3).public()];
    let (served, _) = both(accept_error(&server), connect(address, &key(2), &wanted)).await;
    assert!(!nothing_in_common(&served), "{served:?}");
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let server = listen(LOOPBACK, &key(1)).unwrap();
    let address = server.local_addr().unwrap();
    let pin = ServerPin::new(vec![key(1).public()]);
    let mut tls = tls::client_config(&key(2), &pin, Protocol::Control).unwrap();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let config = client_config(tls, Protocol::Control).unwrap();
    let (served, connected) =
        both(accept(&server), connect_with(address, config, &pin, Protocol::Control)).await;
    assert!(connected.is_err() && served.is_err(), "{connected:?}");
}

#[tokio::test]
async fn a_client_without_a_key_gets_nowhere() {
    let server = listen(LOOPBACK, &key(1)).unwrap();
    let address = server.local_addr().unwrap();
    let pin = ServerPin::new(vec![key(1).public()]);
    let mut tls =
        rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(pin.clone())
            .with_no_client_auth();
    tls.alpn_protocols = vec![anteroom_proto::v1::ALPN.to_vec()];
    let config = client_config(tls, Protocol::Control).unwrap();
    let client = async {
        let link = connect_with(address, config, &pin, Protocol::Control).await;
        let link = link.map_err(|error| error.to_string())?;
        Err::<(), String>(link.connection().closed().await.to_string())
    };
    let (served, connected) = both(accept(&server), client).await;
    assert!(served.is_err() && connected.is_err(), "{connected:?}");
}

/// What a reader says to `bytes` on a stream that ends behind them.
async fn read(bytes: Vec<u8>) -> Result<Option<ToController>, MessageError> {
    let server = listen(LOOPBACK, &key(1)).unwrap();
    let address = server.local_addr().unwrap();
    let serve = async {
        let (connection, _) = accept(&server).await.unwrap();
        let (_send, receive) = connection.accept_bi().await.unwrap();
        MessageReader::<ToController>::new(receive, MAX_FIRST).next().await
    };
    let client = async {
        let link = connect(address, &key(2), &[key(1).public()]).await.unwrap();
        let (mut send, _receive) = link.connection().open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        send.finish().await;
        link
    };
    both(serve, client).await.0
}

#[tokio::test]
async fn what_is_no_message_is_refused_where_it_stands() {
    assert!(matches!(read(vec![0, 0]).await, Err(MessageError::CutShort)));
    assert!(matches!(read(vec![0, 0, 0, 9, 1]).await, Err(MessageError::CutShort)));
    assert!(matches!(read(vec![0, 0, 0, 0]).await, Err(MessageError::Malformed(_))));
    assert!(matches!(read(vec![0, 0, 0, 1, 0xff]).await, Err(MessageError::Malformed(_))));
    let long = read(vec![0xff; 100]).await;
    assert!(matches!(long, Err(MessageError::Malformed(CborError::TooLong { .. }))), "{long:?}");
}

/// How a connection ends whose listener was killed and is back.
async fn ends_after_a_kill() -> ConnectionError {
    // A runtime of its own, so that dropping it ends the server without a word, as a kill does.
    let killed =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (ready, address) = tokio::sync::oneshot::channel();
    killed.spawn(async move {
        let server = listen(LOOPBACK, &key(1)).unwrap();
        ready.send(server.local_addr().unwrap()).unwrap();
        let connection = accept(&server).await.unwrap();
        std::future::pending::<()>().await;
        drop(connection);
    });
    let address = address.await.unwrap();
    let link = connect(address, &key(2), &[key(1).public()]).await.unwrap();
    let link::Connection::Quic(connection) = link.connection() else { panic!("{link:?}") };
    // The handshake is confirmed and connection ids have been exchanged once something came back and forth.
    timeout(DEADLINE, async {
        while connection.stats().frame_rx.handshake_done == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the handshake ends");
    killed.shutdown_background();
    let back = timeout(DEADLINE, async {
        loop {
            match listen(address, &key(1)) {
                Ok(back) => return back,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
    .expect("the port is free again");
    let reason = timeout(DEADLINE, connection.closed()).await.expect("noticed");
    drop(back);
    reason
}

#[tokio::test]
async fn a_listener_that_was_killed_and_is_back_is_noticed_before_the_time_out() {
    let mut ends = Vec::new();
    // A test that is kept from running for long finds that time is up first.
    while ends.len() < 3 {
        match ends_after_a_kill().await {
            ConnectionError::Reset => return,
            other => ends.push(other),
        }
    }
    panic!("it was never told: {ends:?}");
}

#[tokio::test]
async fn one_endpoint_speaks_both_protocols_and_carries_datagrams_in_one() {
    let (client, servers) = (key(2), [key(1).public()]);
    let server = listen_for(LOOPBACK, &key(1), &[Protocol::Control, Protocol::Relay]).unwrap();
    let address = server.local_addr().unwrap();
    for wanted in [Protocol::Control, Protocol::Relay] {
        let connecting = connect_for(address, &client, &servers, wanted);
        let (accepted, link) = both(accept(&server), connecting).await;
        let ((accepted, _), link) = (accepted.unwrap(), link.unwrap());
        assert_eq!(protocol(&accepted), Some(wanted));
        assert_eq!(link.connection().protocol(), Some(wanted));
        let datagrams = wanted == Protocol::Relay;
        assert_eq!(accepted.max_datagram_size().is_some(), datagrams);
        if datagrams {
            assert!(link.connection().max_datagram_size().is_some());
        }
    }
    let control = listen(LOOPBACK, &key(1)).unwrap();
    let address = control.local_addr().unwrap();
    let connecting = connect_for(address, &client, &servers, Protocol::Relay);
    let (accepted, link) = both(accept(&control), connecting).await;
    assert!(accepted.is_err() && link.is_err(), "a controller that doesn't relay: {link:?}");
}
