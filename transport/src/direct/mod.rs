//! QUIC between two gateways: see [`anteroom_proto::direct`].
//!
//! One socket serves both ways: connections that this gateway makes and those that it takes. `guard` stands between
//! it and QUIC, so that nobody but peers is ever answered.

mod guard;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use anteroom_proto::direct::Knock;
use anteroom_proto::key::{IdentityKey, PublicKey};
use aws_lc_rs::rand;
use quinn::{Connection, Endpoint, EndpointConfig, Incoming, Runtime, TokioRuntime, VarInt};
use quinn_proto::ConnectionId;

use crate::endpoint::{self, NAME, TransportError};
use crate::sifted::Sifted;
use crate::tls::{self, Protocol, ServerPin};
use guard::{Guard, Ids};

/// Where a gateway's direct connections come and go.
pub struct Direct {
    endpoint: Endpoint,
    guard: Arc<Guard>,
    identity: IdentityKey,
}

impl Direct {
    /// Takes a bound socket. `listens`: peers' connections are taken, too, as soon as [`Direct::set_peers`] named
    /// them. Call from within a tokio runtime.
    ///
    /// # Errors
    /// [`TransportError`] when the socket or the key isn't taken.
    pub fn open(
        socket: UdpSocket,
        identity: &IdentityKey,
        listens: bool,
    ) -> Result<Self, TransportError> {
        endpoint::enlarge_buffers(&socket, endpoint::SOCKET_BUFFER_OF_ONE);
        let bound = socket.local_addr();
        let failed = |error| TransportError::Socket {
            address: bound.as_ref().copied().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0))),
            error,
        };
        let random = || {
            let mut key = [0; 32];
            rand::fill(&mut key).map(|()| key)
        };
        let no_random = |_| TransportError::Setup("the system gives no random bytes".into());
        let ids = Ids::new(random().map_err(no_random)?);
        let guard = Arc::new(Guard::new(ids.clone()));
        let mut config = EndpointConfig::default();
        // The fixed bit tells QUIC from WireGuard where both share a port.
        config.grease_quic_bit(false).cid_generator(move || Box::new(ids.clone()));
        let server = if listens {
            let tls = tls::server_config(identity, &[Protocol::Direct])?;
            Some(endpoint::server_config(tls, &[Protocol::Direct])?)
        } else {
            None
        };
        let socket = TokioRuntime.wrap_udp_socket(socket).map_err(failed)?;
        let socket = Arc::new(Sifted::new(socket, guard.clone()));
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(config, server, socket, runtime);
        Ok(Self { endpoint: endpoint.map_err(failed)?, guard, identity: identity.clone() })
    }

    /// Whose connections are taken from now on; nobody else gets an answer. Connections that are there stay. Takes a
    /// while for many that are new.
    pub fn set_peers(&self, peers: &[PublicKey]) {
        self.guard.set_peers(peers, |peer| Knock::from(&self.identity, peer));
    }

    /// Connects to `peer` at `address`. Takes up to [`endpoint::IDLE_TIMEOUT`].
    ///
    /// # Errors
    /// [`TransportError`], which names the address and, where somebody else answered, their key.
    pub async fn connect(
        &self,
        address: SocketAddr,
        peer: &PublicKey,
    ) -> Result<Connection, TransportError> {
        let pin = ServerPin::new(vec![*peer]);
        let tls = tls::client_config(&self.identity, &pin, Protocol::Direct)?;
        let mut config = endpoint::client_config(tls, Protocol::Direct)?;
        let knock = Knock::at(&self.identity, peer)
            .ok_or_else(|| TransportError::Setup("nothing can be agreed on with its key".into()))?;
        config.initial_dst_cid_provider(Arc::new(move || {
            let mut nonce = [0; 8];
            // Without random bytes the handshake fails anyhow.
            let _ = rand::fill(&mut nonce);
            ConnectionId::new(&knock.with(nonce))
        }));
        let connecting = self
            .endpoint
            .connect_with(config, address, NAME)
            .map_err(|error| TransportError::Setup(error.to_string()))?;
        connecting.await.map_err(|error| endpoint::failure(&pin, address, error))
    }

    /// The next connection of a peer; none once the socket is closed. Who it is, [`endpoint::peer_key`] says after the
    /// handshake.
    pub async fn accept(&self) -> Option<Incoming> {
        self.endpoint.accept().await
    }

    /// Where the socket is bound.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Datagrams that got no answer, since they were no peer's.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        self.guard.turned_away()
    }

    /// Ends all connections at once.
    pub fn close(&self, reason: &str) {
        self.endpoint.close(VarInt::from_u32(0), reason.as_bytes());
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
