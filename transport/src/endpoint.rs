//! QUIC endpoints as both ends set them up.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anteroom_proto::key::{Hash, IdentityKey, PublicKey};
use aws_lc_rs::hmac;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, SndBuf, SndBufForce};
use nix::sys::socket::{getsockopt, setsockopt};
use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{
    AsyncUdpSocket, Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, Runtime, TokioRuntime, TransportConfig, TransportErrorCode, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::AlertDescription;
use rustls::pki_types::CertificateDer;

use crate::answers::{Counting, RECEIVE_WINDOW};
use crate::egress;
use crate::exchange;
use crate::gather::Gathering;
use crate::link::Carrier;
pub use crate::link::Link;
use crate::mirror::Mirror;
use crate::sifted::Sifted;
use crate::tls::{self, Protocol, ServerPin};

/// How often a quiet connection is kept warm.
pub const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// After how long without a word the other end counts as gone.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of datagrams that wait for whoever reads them: some milliseconds at a gigabit a second.
const DATAGRAMS_IN: usize = 256 * 1024;
/// Bytes of datagrams that wait for the congestion window. Whoever sends many queues them where it can choose which
/// to let go; what is in here is late already.
const DATAGRAMS_OUT: usize = 64 * 1024;

/// The longest datagram that is tried where packets are carried: what Ethernet takes over IPv4. And how near to the longest that
/// gets through the search comes: over IPv6 and where something encloses them it is shorter.
const LONGEST: u16 = 1_472;
const GRAIN: u16 = 8;

/// The socket's own buffers where packets are carried, in each direction. The system's default holds some hundred
/// packets: less than what a few gateways send in the time that a busy machine takes to come back to a socket. Whoever
/// connects has one for each connection, which carries one gateway's packets.
pub(crate) const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
pub(crate) const SOCKET_BUFFER_OF_ONE: usize = 1024 * 1024;

/// The server's name in TLS. It isn't sent and nothing hangs on it: ends are known by their keys.
pub(crate) const NAME: &str = "anteroom";

/// How the TLS library says that there is no key exchange in common. QUIC hands on its words only.
const NOTHING_IN_COMMON: &str = "NoKxGroupsInCommon";

/// Why there is no endpoint or no connection.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// TLS can't be set up with this key.
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The socket can't be opened.
    #[error("no UDP socket at {address}: {error}")]
    Socket {
        /// Where it was to be bound.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The QUIC library refuses the configuration.
    #[error("QUIC can't be set up: {0}")]
    Setup(String),
    /// The two ends have no key exchange in common.
    #[error("{address}: no handshake: {}", exchange::NOT_THERE)]
    KeyExchange {
        /// Where.
        address: SocketAddr,
    },
    /// Nobody answered there, or whoever did doesn't speak the protocol.
    #[error("{address}: {error}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What the QUIC library says.
        error: ConnectionError,
    },
    /// Nobody answered over TCP, or whoever did doesn't speak the protocol.
    #[error("{address}: TCP: {error}")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// What TLS or the system says.
        error: io::Error,
    },
    /// Nobody answered in time.
    #[error("{address}: {carrier}: no answer within {} s", crate::dial::ANSWER.as_secs())]
    Silent {
        /// Where.
        address: SocketAddr,
        /// Over what.
        carrier: Carrier,
    },
    /// Neither QUIC nor TCP leads there.
    #[error("{}; {}", .0[0], .0[1])]
    Neither(Box<[TransportError; 2]>),
    /// Somebody else answered.
    #[error("{address}: the key there is {}, which isn't the one expected", key.fingerprint())]
    WrongKey {
        /// Where.
        address: SocketAddr,
        /// The key that was offered.
        key: PublicKey,
    },
}

/// What tells apart the two ends' limits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Listens,
    Connects,
}

fn transport_config(end: End, protocols: &[Protocol]) -> Result<TransportConfig, TransportError> {
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT)
        .map_err(|error| TransportError::Setup(error.to_string()))?;
    let mut config = TransportConfig::default();
    config
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(idle))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .congestion_controller_factory(Arc::new(Counting(Arc::new(CubicConfig::default()))))
        .datagram_receive_buffer_size(None);
    match end {
        // What one agent can make a controller hold: a telemetry message.
        End::Listens => config
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .stream_receive_window(VarInt::from_u32(1024 * 1024))
            .receive_window(VarInt::from_u32(2 * 1024 * 1024)),
        End::Connects => config
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(4 * 1024 * 1024))
            .receive_window(VarInt::from_u32(RECEIVE_WINDOW)),
    };
    if protocols.contains(&Protocol::Relay) || protocols.contains(&Protocol::Direct) {
        carry_packets(&mut config);
    }
    if protocols == [Protocol::Direct] {
        // Nothing is said there.
        config.max_concurrent_bidi_streams(VarInt::from_u32(0));
    }
    Ok(config)
}

/// What suits connections that carry tunnelled packets.
fn carry_packets(config: &mut TransportConfig) {
    let mut sizes = MtuDiscoveryConfig::default();
    sizes.upper_bound(LONGEST).minimum_change(GRAIN);
    config
        .mtu_discovery_config(Some(sizes))
        .datagram_receive_buffer_size(Some(DATAGRAMS_IN))
        .datagram_send_buffer_size(DATAGRAMS_OUT)
        // What is carried has a congestion control of its own. One that took each loss for congestion as well would
        // stall a tunnel on a path that just loses some.
        .congestion_controller_factory(Arc::new(Counting(Arc::new(BbrConfig::default()))));
}

/// What a listener derives from its identity, so that it is the same after a restart: clients of the run before
/// then learn at their next word that their connection is gone, and not by waiting for [`IDLE_TIMEOUT`].
fn endpoint_config(listener: Option<&IdentityKey>) -> EndpointConfig {
    let mut config = match listener {
        None => EndpointConfig::default(),
        Some(identity) => {
            let seed = identity.to_seed();
            let derive = |domain| Hash::of(domain, &[seed.as_slice()]);
            let reset = derive("anteroom quic stateless reset");
            let mut config =
                EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset.as_bytes())));
            let ids = derive("anteroom quic connection ids");
            let ids = ids.as_bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
            config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
            config
        }
    };
    // The fixed bit tells QUIC from WireGuard where both share a port.
    config.grease_quic_bit(false);
    config
}

/// Makes the socket's buffers larger: beyond what the system allows everyone, where this process may do that.
pub(crate) fn enlarge_buffers(socket: &UdpSocket, bytes: usize) {
    // The system says twice as much as it was told. Smaller ones work too.
    let is_less = |size: nix::Result<usize>| size.is_ok_and(|size| size / 2 < bytes);
    if is_less(getsockopt(socket, RcvBuf)) {
        let _ =
            setsockopt(socket, RcvBufForce, &bytes).or_else(|_| setsockopt(socket, RcvBuf, &bytes));
    }
    if is_less(getsockopt(socket, SndBuf)) {
        let _ =
            setsockopt(socket, SndBufForce, &bytes).or_else(|_| setsockopt(socket, SndBuf, &bytes));
    }
}

fn endpoint(
    address: SocketAddr,
    config: EndpointConfig,
    server: Option<quinn::ServerConfig>,
    protocols: &[Protocol],
) -> Result<Endpoint, TransportError> {
    let failed = |error| TransportError::Socket { address, error };
    let socket = UdpSocket::bind(address).map_err(failed)?;
    let endpoint = over(socket, config, server, protocols);
    endpoint.map_err(failed)
}

fn over(
    socket: UdpSocket,
    config: EndpointConfig,
    server: Option<quinn::ServerConfig>,
    protocols: &[Protocol],
) -> io::Result<Endpoint> {
    let carries_packets = protocols.contains(&Protocol::Relay);
    if carries_packets {
        let one = server.is_none();
        enlarge_buffers(&socket, if one { SOCKET_BUFFER_OF_ONE } else { SOCKET_BUFFER });
    }
    let runtime: Arc<dyn Runtime> =
        if carries_packets { Arc::new(Gathering) } else { Arc::new(TokioRuntime) };
    let socket = runtime.wrap_udp_socket(socket)?;
    // A relay's gateways ask it how they look from outside.
    let asked = server.is_some() && carries_packets;
    let socket: Arc<dyn AsyncUdpSocket> = if asked {
        let mirror = Arc::new(Mirror::new(Arc::clone(&socket)));
        Arc::new(Sifted::new(socket, mirror))
    } else {
        socket
    };
    Endpoint::new_with_abstract_socket(config, server, socket, runtime)
}

/// A controller's endpoint at `address`. Each client proves an Ed25519 key: see [`peer_key`]. The client
/// opens the one stream that a connection has. Call from within a tokio runtime.
///
/// # Errors
/// [`TransportError`] when the socket can't be bound or the key isn't taken.
pub fn listen(address: SocketAddr, identity: &IdentityKey) -> Result<Endpoint, TransportError> {
    listen_for(address, identity, &[Protocol::Control])
}

/// An endpoint at `address` for all of `protocols`: see [`protocol`]. Otherwise as [`listen`].
///
/// # Errors
/// [`TransportError`] when the socket can't be bound or the key isn't taken.
pub fn listen_for(
    address: SocketAddr,
    identity: &IdentityKey,
    protocols: &[Protocol],
) -> Result<Endpoint, TransportError> {
    let server = server_config(tls::server_config(identity, protocols)?, protocols)?;
    endpoint(address, endpoint_config(Some(identity)), Some(server), protocols)
}

pub(crate) fn server_config(
    tls: rustls::ServerConfig,
    protocols: &[Protocol],
) -> Result<quinn::ServerConfig, TransportError> {
    let crypto = QuicServerConfig::try_from(tls)
        .map_err(|error| TransportError::Setup(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(End::Listens, protocols)?));
    Ok(config)
}

pub(crate) fn client_config(
    tls: rustls::ClientConfig,
    protocol: Protocol,
) -> Result<quinn::ClientConfig, TransportError> {
    let crypto = QuicClientConfig::try_from(tls)
        .map_err(|error| TransportError::Setup(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(End::Connects, &[protocol])?));
    Ok(config)
}

/// Connects to `address` as `identity`, if one of `servers` answers there. Takes up to [`IDLE_TIMEOUT`].
///
/// # Errors
/// [`TransportError`], which names the address and, where somebody else answered, their key.
pub async fn connect(
    address: SocketAddr,
    identity: &IdentityKey,
    servers: &[PublicKey],
) -> Result<Link, TransportError> {
    connect_for(address, identity, servers, Protocol::Control).await
}

/// Connects to `address` as `identity` to speak `protocol`. Otherwise as [`connect`].
///
/// # Errors
/// [`TransportError`], which names the address and, where somebody else answered, their key.
pub async fn connect_for(
    address: SocketAddr,
    identity: &IdentityKey,
    servers: &[PublicKey],
    protocol: Protocol,
) -> Result<Link, TransportError> {
    let pin = ServerPin::new(servers.to_vec());
    let config = client_config(tls::client_config(identity, &pin, protocol)?, protocol)?;
    connect_with(address, config, &pin, protocol).await
}

async fn connect_with(
    address: SocketAddr,
    config: quinn::ClientConfig,
    pin: &ServerPin,
    protocol: Protocol,
) -> Result<Link, TransportError> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let failed = |error| TransportError::Socket { address: any, error };
    let socket = UdpSocket::bind(any).map_err(failed)?;
    let follows = egress::follow(&socket).map_err(failed)?;
    let endpoint = over(socket, endpoint_config(None), None, &[protocol]).map_err(failed)?;
    let connecting = endpoint
        .connect_with(config, address, NAME)
        .map_err(|error| TransportError::Setup(error.to_string()))?;
    match connecting.await {
        Ok(connection) => Ok(Link::over_quic(connection, endpoint, follows)),
        Err(error) => Err(failure(pin, address, error)),
    }
}

/// Why a handshake with `address` failed.
pub(crate) fn failure(
    pin: &ServerPin,
    address: SocketAddr,
    error: ConnectionError,
) -> TransportError {
    match pin.refused() {
        Some(key) => TransportError::WrongKey { address, key },
        None if nothing_in_common(&error) => TransportError::KeyExchange { address },
        None => TransportError::Connect { address, error },
    }
}

/// Whether a handshake failed because the two ends have no key exchange in common, as far as this end can tell: the
/// listener knows, whoever connects hears of "handshake failure" alone, and has nothing else that could cause it.
#[must_use]
pub fn nothing_in_common(error: &ConnectionError) -> bool {
    let alert = TransportErrorCode::crypto(AlertDescription::HandshakeFailure.into());
    match error {
        ConnectionError::ConnectionClosed(close) => close.error_code == alert,
        ConnectionError::TransportError(error) => {
            error.code == alert && error.reason.contains(NOTHING_IN_COMMON)
        }
        _ => false,
    }
}

/// The key that the other end proved. There always is one once the handshake is through.
#[must_use]
pub fn peer_key(connection: &Connection) -> Option<PublicKey> {
    let identity = connection.peer_identity()?;
    let certificates = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::key_of_spki(certificates.first()?)
}

/// What both ends agreed to speak. There always is something once the handshake is through.
#[must_use]
pub fn protocol(connection: &Connection) -> Option<Protocol> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    Protocol::of_name(&data.protocol?)
}

#[cfg(test)]
mod tests;
