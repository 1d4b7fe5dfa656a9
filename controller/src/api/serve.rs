//! HTTPS for the API: TLS, a bound on connections, time-outs.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anteroom_transport::exchange::KeyExchange;
use axum::Router;
use axum_server::Handle;
use hyper_util::rt::TokioTimer;
use rustls::ServerConfig;
use rustls::version;
use tokio::sync::mpsc;

use super::handshakes::Handshakes;
use super::slots::Slots;
use super::sorting::Sorting;
use crate::agents::Newcomer;
use crate::directory::Https;

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

/// Serves `router` on `listener` until `handle` says to stop. Gateways that come there are handed to `gateways`.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    connections: usize,
    router: Router,
    handle: Handle<SocketAddr>,
    gateways: Option<mpsc::Sender<Newcomer>>,
) -> io::Result<()> {
    let acceptor = Sorting::new(Slots::new(connections), tls, gateways);
    let mut server =
        axum_server::from_tcp(listener)?.acceptor(Handshakes::new(acceptor)).http1_only();
    server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    server.handle(handle).serve(router.into_make_service_with_connect_info::<SocketAddr>()).await
}
