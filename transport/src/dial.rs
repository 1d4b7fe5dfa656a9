//! Connecting whichever way gets through.

use std::net::SocketAddr;
use std::time::Duration;

use anteroom_proto::key::{IdentityKey, PublicKey};
use tokio::time::{sleep, timeout};

use crate::endpoint::{self, TransportError};
use crate::link::{Carrier, Link};
use crate::tcp;
use crate::tls::Protocol;

/// How long what is tried first is ahead of the other.
pub const AHEAD: Duration = Duration::from_secs(2);
/// How long each may take.
pub const ANSWER: Duration = Duration::from_secs(5);

/// Connects to `address` over `carrier` alone, within [`ANSWER`].
///
/// # Errors
/// [`TransportError`].
pub async fn over(
    carrier: Carrier,
    address: SocketAddr,
    identity: &IdentityKey,
    servers: &[PublicKey],
    protocol: Protocol,
) -> Result<Link, TransportError> {
    let connecting = async {
        match carrier {
            Carrier::Quic => endpoint::connect_for(address, identity, servers, protocol).await,
            Carrier::Tcp => tcp::connect(address, identity, servers, protocol).await,
        }
    };
    let connected = timeout(ANSWER, connecting).await;
    connected.unwrap_or_else(|_| Err(TransportError::Silent { address, carrier }))
}

/// Connects to `address` over `first` or, where that has no answer within [`AHEAD`], whichever of QUIC and TCP answers
/// first.
///
/// # Errors
/// [`TransportError`]: of both, or that it is the wrong one that answers at one and nobody at the other.
pub async fn either(
    first: Carrier,
    address: SocketAddr,
    identity: &IdentityKey,
    servers: &[PublicKey],
    protocol: Protocol,
) -> Result<Link, TransportError> {
    let mut one = std::pin::pin!(over(first, address, identity, servers, protocol));
    let mut failed = tokio::select! {
        connected = &mut one => match connected {
            Err(error) if !is_final(&error) => Some(error),
            ended => return ended,
        },
        () = sleep(AHEAD) => None,
    };
    let mut two = std::pin::pin!(over(first.other(), address, identity, servers, protocol));
    let mut failed_too = None;
    loop {
        tokio::select! {
            connected = &mut one, if failed.is_none() => match connected {
                Err(error) if !is_final(&error) => failed = Some(error),
                ended => return ended,
            },
            connected = &mut two, if failed_too.is_none() => match connected {
                Err(error) if !is_final(&error) => failed_too = Some(error),
                ended => return ended,
            },
        }
        if let (Some(_), Some(_)) = (&failed, &failed_too)
            && let (Some(one), Some(two)) = (failed.take(), failed_too.take())
        {
            // Something else may have one of the two ports, behind the same address.
            return Err(match (one, two) {
                (one @ TransportError::WrongKey { .. }, _) => one,
                (_, two @ TransportError::WrongKey { .. }) => two,
                (one, two) => TransportError::Neither(Box::new([one, two])),
            });
        }
    }
}

/// Whether the other way would lead to the same.
const fn is_final(error: &TransportError) -> bool {
    matches!(error, TransportError::Tls(_))
}
