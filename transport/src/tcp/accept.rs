//! Who is taken in over TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anteroom_proto::key::IdentityKey;
use rustls::ServerConfig;
use rustls::server::ClientHello;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, StartHandshake, TlsAcceptor};

use super::{Tcp, carry, prepare};
use crate::endpoint::{IDLE_TIMEOUT, TransportError};
use crate::exchange;
use crate::tls::{self, Protocol};

/// Why there is no connection with somebody who came over TCP.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// No key exchange in common.
    #[error("{}", exchange::NOT_OFFERED)]
    KeyExchange,
    /// It came without a key or without a protocol.
    #[error("it doesn't say which protocol it speaks, or proves no Ed25519 key")]
    Nobody,
    /// TLS or the system.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

/// Whether a newcomer wants to speak what gateways speak. What one listener serves is told apart by it.
#[must_use]
pub fn offers_ours(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut names| names.any(|name| Protocol::of_name(name).is_some()))
}

/// Takes connections in, as one identity.
#[derive(Debug, Clone)]
pub struct Acceptor {
    pub(super) tls: Arc<ServerConfig>,
}

impl Acceptor {
    /// Accepts as `identity` whoever proves an Ed25519 key and speaks one of `protocols`.
    ///
    /// # Errors
    /// [`TransportError`] where the key isn't taken.
    pub fn new(identity: &IdentityKey, protocols: &[Protocol]) -> Result<Self, TransportError> {
        Ok(Self { tls: Arc::new(tls::server_config(identity, protocols)?) })
    }

    /// The handshake with whoever is at the other end of `stream`. It takes as long as that one likes.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub async fn accept(&self, stream: TcpStream) -> Result<Tcp, AcceptError> {
        let remote = stream.peer_addr()?;
        prepare(&stream);
        Self::end(TlsAcceptor::from(self.tls.clone()).accept(stream), remote).await
    }

    /// The rest of a handshake whose first word was read already. Otherwise as [`Self::accept`].
    ///
    /// # Errors
    /// [`AcceptError`].
    pub async fn go_on(&self, started: StartHandshake<TcpStream>) -> Result<Tcp, AcceptError> {
        let remote = started.io.peer_addr()?;
        prepare(&started.io);
        Self::end(started.into_stream(self.tls.clone()), remote).await
    }

    async fn end(handshake: Accept<TcpStream>, remote: SocketAddr) -> Result<Tcp, AcceptError> {
        let stream: TlsStream<TcpStream> = handshake.await.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
            if inner.is_some_and(exchange::refused_as_listener) {
                AcceptError::KeyExchange
            } else {
                AcceptError::Failed(error)
            }
        })?;
        let tls = stream.get_ref().1;
        let key = tls.peer_certificates().and_then(|keys| tls::key_of_spki(keys.first()?));
        let protocol = tls.alpn_protocol().and_then(Protocol::of_name);
        let (Some(key), Some(protocol)) = (key, protocol) else { return Err(AcceptError::Nobody) };
        Ok(carry(stream, (key, protocol), remote, IDLE_TIMEOUT))
    }
}
