//! QUIC between two gateways: see [`anteroom_proto::direct`].
//!
//! One socket serves both ways: connections that this gateway makes and those that it takes. `guard` stands between
//! it and QUIC, so that nobody but peers is ever answered. Where tunnels have the same port, `shared` takes theirs out
//! before.

mod guard;
pub mod shared;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_proto::direct::Knock;
use anteroom_proto::key::{Hash, IdentityKey, PublicKey};
use aws_lc_rs::{hmac, rand};
use quinn::{
    AsyncUdpSocket, Connection, Endpoint, EndpointConfig, Incoming, Runtime, TokioRuntime, VarInt,
};
use quinn_proto::ConnectionId;

use crate::egress;
use crate::endpoint::{self, NAME, TransportError, peer_key};
use crate::sifted::Sifted;
use crate::tls::{self, Protocol, ServerPin};
use guard::{Guard, Ids, RUN_LEN};
use shared::{OnePort, Shared};

/// One that may connect.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its identity key.
    pub key: PublicKey,
    /// Its addresses, as far as they are known beforehand. It may come from others.
    pub addresses: Vec<IpAddr>,
}

/// Where a gateway's direct connections come and go.
pub struct Direct {
    endpoint: Endpoint,
    guard: Arc<Guard>,
    identity: IdentityKey,
    listens: bool,
    /// Has the socket leave by the way that is good, for as long as it is kept.
    _follows: Arc<UdpSocket>,
}

impl Direct {
    /// Takes a bound socket. `listens`: peers' connections are taken, too, as soon as [`Direct::set_peers`] named
    /// them. `shared`: others than QUIC have the same port, by sockets of their own. Call from within a tokio runtime.
    ///
    /// # Errors
    /// [`TransportError`] when the socket or the key isn't taken.
    pub fn open(
        socket: UdpSocket,
        identity: &IdentityKey,
        listens: bool,
        shared: Option<Arc<Shared>>,
    ) -> Result<Self, TransportError> {
        let mut run = [0; RUN_LEN];
        rand::fill(&mut run)
            .map_err(|_| TransportError::Setup("the system gives no random bytes".into()))?;
        Self::open_in(run, socket, identity, listens, shared)
    }

    /// The same in a run of the program with this number.
    fn open_in(
        run: [u8; RUN_LEN],
        socket: UdpSocket,
        identity: &IdentityKey,
        listens: bool,
        shared: Option<Arc<Shared>>,
    ) -> Result<Self, TransportError> {
        // Whoever listens has one socket for all peers.
        let buffer = if listens { endpoint::SOCKET_BUFFER } else { endpoint::SOCKET_BUFFER_OF_ONE };
        endpoint::enlarge_buffers(&socket, buffer);
        let bound = socket.local_addr();
        let failed = |error| TransportError::Socket {
            address: bound.as_ref().copied().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0))),
            error,
        };
        // The same after a restart: peers then learn at their next word that their connection is gone.
        let seed = identity.to_seed();
        let derive = |domain| *Hash::of(domain, &[seed.as_slice()]).as_bytes();
        let ids = Ids::new(derive("anteroom direct connection ids"), run);
        let reset = derive("anteroom direct stateless reset");
        let guard = Arc::new(Guard::new(ids.clone()));
        let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset)));
        // The fixed bit tells QUIC from WireGuard where both share a port.
        config.grease_quic_bit(false).cid_generator(move || Box::new(ids.clone()));
        let tls = tls::server_config(identity, &[Protocol::Direct])?;
        let mut server = endpoint::server_config(tls, &[Protocol::Direct])?;
        if !listens {
            // Without a server QUIC would answer whoever begins a connection with a reset.
            server.max_incoming(0);
        }
        let follows = egress::follow(&socket).map_err(failed)?;
        let mut socket = TokioRuntime.wrap_udp_socket(socket).map_err(failed)?;
        if let Some(shared) = shared {
            let one_port: Arc<dyn AsyncUdpSocket> =
                Arc::new(OnePort::over(socket, shared).map_err(failed)?);
            socket = one_port;
        }
        let socket = Arc::new(Sifted::new(socket, guard.clone()));
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime);
        let (endpoint, identity) = (endpoint.map_err(failed)?, identity.clone());
        Ok(Self { endpoint, guard, identity, listens, _follows: follows })
    }

    /// Whose connections are taken from now on; nobody else gets an answer. Connections that are there stay. Takes a
    /// while for many that are new.
    pub fn set_peers(&self, peers: &[Caller]) {
        if self.listens {
            let knock = |peer: &PublicKey| Knock::from(&self.identity, peer);
            self.guard.set_peers(peers, knock, Instant::now());
        }
    }

    /// Says where the other ends of all connections are, as far as that has changed since they were made.
    pub fn set_live(&self, addresses: impl Iterator<Item = SocketAddr>) {
        self.guard.set_live(addresses);
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
        self.guard.calls(address, Instant::now());
        let connecting = self
            .endpoint
            .connect_with(config, address, NAME)
            .map_err(|error| TransportError::Setup(error.to_string()))?;
        connecting.await.map_err(|error| endpoint::failure(&pin, address, error))
    }

    /// The next that comes with a good knock of a peer; none once the socket is closed.
    pub async fn accept(&self) -> Option<Guest> {
        loop {
            let incoming = self.endpoint.accept().await?;
            // The guard has let more through: handshakes go on by ids of this end's.
            match self.guard.whose(&incoming.orig_dst_cid()) {
                Some(peer) => return Some(Guest { peer, incoming }),
                None => {
                    self.guard.turn_away();
                    incoming.ignore();
                }
            }
        }
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

    /// Ends all connections, and waits until the other ends were told, for so long at most.
    pub async fn close(&self, reason: &str, most: Duration) {
        self.endpoint.close(VarInt::from_u32(0), reason.as_bytes());
        // Who doesn't hear of it finds out.
        let _ = tokio::time::timeout(most, self.endpoint.wait_idle()).await;
    }
}

/// One that knocked as a peer does.
#[derive(Debug)]
pub struct Guest {
    peer: PublicKey,
    incoming: Incoming,
}

impl Guest {
    /// Who it says that it is, by its knock.
    #[must_use]
    pub const fn peer(&self) -> PublicKey {
        self.peer
    }

    /// Shakes hands. None where that fails, or whoever came isn't the one that knocked.
    pub async fn greet(self) -> Option<Connection> {
        let connection = self.incoming.await.ok()?;
        if peer_key(&connection) != Some(self.peer) {
            connection.close(VarInt::from_u32(0), b"");
            return None;
        }
        Some(connection)
    }

    /// Leaves it without an answer.
    pub fn ignore(self) {
        self.incoming.ignore();
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
