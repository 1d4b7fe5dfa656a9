//! HTTPS for the API: TLS, a bound on connections, time-outs.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anteroom_transport::exchange::KeyExchange;
use axum::Router;
use axum_server::Handle;
use hyper_util::rt::TokioTimer;
use rustls::server::ClientHello;
use rustls::{NamedGroup, ServerConfig, version};
use tokio::sync::mpsc;

use super::handshakes::Handshakes;
use super::slots::Slots;
use super::sorting::Sorting;
use crate::agents::Newcomer;
use crate::directory::Https;

/// How long a connection may be without a request.
const IDLE: Duration = Duration::from_secs(30);

/// How the controller shows itself to operators.
#[derive(Debug, Clone)]
pub struct Tls {
    /// To whoever can do the hybrid key exchange.
    hybrid: Arc<ServerConfig>,
    /// To whoever can't, where the configuration takes those.
    classic: Option<Arc<ServerConfig>>,
}

impl Tls {
    /// TLS 1.3 with the controller's certificate and these key exchanges.
    ///
    /// # Errors
    /// When certificate and key don't fit each other.
    pub fn new(https: &Https, exchange: KeyExchange) -> Result<Self, rustls::Error> {
        let config = |exchange: KeyExchange| -> Result<_, rustls::Error> {
            let mut config = ServerConfig::builder_with_provider(exchange.provider())
                .with_protocol_versions(&[&version::TLS13])?
                .with_no_client_auth()
                .with_single_cert(https.chain.clone(), https.key.clone_key())?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(Arc::new(config))
        };
        let classic = match exchange {
            KeyExchange::Hybrid => None,
            KeyExchange::ClassicToo => Some(config(exchange)?),
        };
        Ok(Self { hybrid: config(KeyExchange::Hybrid)?, classic })
    }

    /// What fits whoever says this. A listener goes by the other end's order of key exchanges, so who can do the hybrid
    /// one isn't offered another: it may come last in their order.
    pub(super) fn fitting(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        let groups = hello.named_groups().unwrap_or_default();
        match &self.classic {
            Some(classic) if !groups.contains(&NamedGroup::X25519MLKEM768) => classic.clone(),
            _ => self.hybrid.clone(),
        }
    }
}

/// Serves `router` on `listener` until `handle` says to stop. Gateways that come there are handed to `gateways`.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Tls,
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
