//! Connecting over TCP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use anteroom_proto::key::{IdentityKey, PublicKey};
use rustls::pki_types::ServerName;
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{carry, narrow, prepare};
use crate::egress;
use crate::endpoint::{IDLE_TIMEOUT, NAME, TransportError};
use crate::exchange;
use crate::link::Link;
use crate::tls::{self, Protocol, ServerPin};

/// Connects to `address` as `identity` over TCP, to speak `protocol`, if one of `servers` answers there. Takes up to
/// [`IDLE_TIMEOUT`].
///
/// # Errors
/// [`TransportError`], which names the address and, where somebody else answered, their key.
pub async fn connect(
    address: SocketAddr,
    identity: &IdentityKey,
    servers: &[PublicKey],
    protocol: Protocol,
) -> Result<Link, TransportError> {
    let pin = ServerPin::new(servers.to_vec());
    let config = tls::client_config(identity, &pin, protocol)?;
    connect_with(address, config, &pin, protocol).await
}

pub(super) async fn connect_with(
    address: SocketAddr,
    config: rustls::ClientConfig,
    pin: &ServerPin,
    protocol: Protocol,
) -> Result<Link, TransportError> {
    let failed = |error: io::Error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match pin.refused() {
            Some(key) => TransportError::WrongKey { address, key },
            None if inner.is_some_and(exchange::refused_as_client) => {
                TransportError::KeyExchange { address }
            }
            None => TransportError::Tcp { address, error },
        }
    };
    let mut turns = egress::turns();
    let mut moves = egress::moves();
    let connecting = async {
        let began = Instant::now();
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        egress::lead(socket.as_fd())?;
        narrow(&socket);
        let stream = socket.connect(address).await?;
        let round_trip = began.elapsed();
        prepare(&stream);
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok((stream, round_trip))
    };
    let connected = timeout(IDLE_TIMEOUT, connecting).await;
    let (stream, round_trip) =
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
    let tls = stream.get_ref().1;
    let key = tls.peer_certificates().and_then(|keys| tls::key_of_spki(keys.first()?));
    let agreed = tls.alpn_protocol().and_then(Protocol::of_name);
    let (Some(key), true) = (key, agreed == Some(protocol)) else {
        return Err(failed(io::Error::other("whoever answers doesn't speak this protocol")));
    };
    let own = stream.get_ref().0.local_addr();
    let connection = carry(stream, (key, protocol), address, round_trip);
    let shared = connection.0.shared.clone();
    tokio::spawn(async move {
        let gone = async {
            while moves.changed().await.is_ok() {
                if own.as_ref().is_ok_and(|own| egress::is_gone(*own)) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // Its packets would go on by the way that was left.
            Ok(()) = turns.changed() => shared.leave(0, b"another uplink is used"),
            // Nobody answers to where it isn't any more, and only silence would tell.
            () = gone => shared.leave(0, b"its own address is gone"),
            _ = shared.ended() => {}
        }
    });
    Ok(Link::over_tcp(connection))
}
