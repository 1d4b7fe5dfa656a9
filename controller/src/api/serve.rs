//! HTTPS for the API: TLS, a bound on connections, time-outs.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use hyper_util::rt::TokioTimer;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::directory::Https;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a connection may be without a request.
const IDLE: Duration = Duration::from_secs(30);

/// TLS 1.3 with the controller's certificate.
///
/// # Errors
/// When certificate and key don't fit each other.
pub fn tls(https: Https) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
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
    let slots = Slots(Arc::new(Semaphore::new(connections)));
    let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(tls))
        .handshake_timeout(HANDSHAKE)
        .acceptor(slots);
    let mut server = axum_server::from_tcp(listener)?.acceptor(acceptor).http1_only();
    server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    server.handle(handle).serve(router.into_make_service_with_connect_info::<SocketAddr>()).await
}

/// Lets so many connections in at once and drops the others.
#[derive(Debug, Clone)]
struct Slots(Arc<Semaphore>);

impl<S> Accept<TcpStream, S> for Slots {
    type Stream = Slot;
    type Service = S;
    type Future = std::future::Ready<io::Result<(Slot, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let admitted = self.0.clone().try_acquire_owned().map_err(io::Error::other);
        std::future::ready(admitted.and_then(|permit| {
            stream.set_nodelay(true)?;
            Ok((Slot { stream, _permit: permit }, service))
        }))
    }
}

/// A connection and its place among those that there may be.
#[derive(Debug)]
struct Slot {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Slot {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Slot {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
