//! HTTPS for the API: TLS, a bound on connections, time-outs.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anteroom_transport::exchange::KeyExchange;
use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use hyper_util::rt::TokioTimer;
use rustls::ServerConfig;
use rustls::version;

use super::handshakes::Handshakes;
use super::slots::Slots;
use crate::directory::Https;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a connection may be without a request.
const IDLE: Duration = Duration::from_secs(30);

/// TLS 1.3 with the controller's certificate and these key exchanges.
///
/// # Errors
/// When certificate and key don't fit each other.
pub fn tls(https: Https, exchange: KeyExchange) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(exchange.provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(https.chain, https.key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves `router` on `listener` until `handle` says to stop.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    connections: usize,
    router: Router,
    handle: Handle<SocketAddr>,
) -> io::Result<()> {
    let slots = Slots::new(connections);
    let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(tls))
        .handshake_timeout(HANDSHAKE)
        .acceptor(slots);
    let mut server =
        axum_server::from_tcp(listener)?.acceptor(Handshakes::new(acceptor)).http1_only();
    server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    server.handle(handle).serve(router.into_make_service_with_connect_info::<SocketAddr>()).await
}
