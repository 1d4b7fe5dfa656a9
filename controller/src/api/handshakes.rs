//! What becomes of TLS handshakes: one that failed for want of a post-quantum key exchange is said in the log, since
//! TLS tells the other end nothing but "handshake failure".

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_transport::exchange;
use axum_server::accept::Accept;
use tokio::net::TcpStream;

use crate::rate::Rate;

/// How often one address is written of.
const EVERY: Duration = Duration::from_secs(60);

/// An acceptor, and the words for what it refuses.
#[derive(Debug, Clone)]
pub(super) struct Handshakes<A> {
    inner: A,
    said: Arc<Rate>,
}

impl<A> Handshakes<A> {
    pub(super) fn new(inner: A) -> Self {
        Self { inner, said: Arc::new(Rate::new(1, EVERY)) }
    }
}

impl<A, S> Accept<TcpStream, S> for Handshakes<A>
where
    A: Accept<TcpStream, S>,
    A::Future: Send + 'static,
{
    type Stream = A::Stream;
    type Service = A::Service;
    type Future =
        Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send + 'static>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let from = stream.peer_addr();
        let accepted = self.inner.accept(stream, service);
        let said = Arc::clone(&self.said);
        Box::pin(async move {
            let result = accepted.await;
            if let (Err(error), Ok(from)) = (&result, from)
                && is_classic(error)
                && said.allow(from.ip(), Instant::now())
            {
                tracing::warn!(
                    "{from} was refused: {}. Where that can't be, `allow_classic = true` under [https] in controller.toml takes it all the same",
                    exchange::NOT_OFFERED
                );
            }
            result
        })
    }
}

/// Whether the TLS library refused a handshake for its key exchange.
fn is_classic(error: &io::Error) -> bool {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .is_some_and(exchange::refused_as_listener)
}

#[cfg(test)]
mod tests {
    use rustls::{Error, PeerIncompatible};

    use super::*;

    #[test]
    fn just_a_missing_key_exchange_is_told() {
        let classic = Error::from(PeerIncompatible::NoKxGroupsInCommon);
        assert!(is_classic(&io::Error::new(io::ErrorKind::InvalidData, classic)));
        let other = Error::from(PeerIncompatible::Tls13RequiredForQuic);
        assert!(!is_classic(&io::Error::new(io::ErrorKind::InvalidData, other)));
        assert!(!is_classic(&io::ErrorKind::TimedOut.into()));
    }
}
