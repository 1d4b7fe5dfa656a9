//! Coming back to QUIC where a connection had to take TCP.

use std::net::SocketAddr;
use std::time::Duration;

use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_transport::dial;
use anteroom_transport::link::{Carrier, Connection, Link};
use anteroom_transport::tls::Protocol;
use tokio::time::sleep;

/// First and longest time between two tries.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);

/// What worked last, and how often something better was tried since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Again {
    first: Carrier,
    wait: Duration,
}

impl Default for Again {
    fn default() -> Self {
        Self { first: Carrier::Quic, wait: FIRST }
    }
}

impl Again {
    /// What to try first.
    pub(crate) const fn first(&self) -> Carrier {
        self.first
    }

    /// A connection over this one was greeted.
    pub(crate) fn worked(&mut self, carrier: Carrier) {
        if carrier == Carrier::Quic {
            *self = Self::default();
        } else {
            self.first = carrier;
        }
    }

    /// A connection over QUIC is there to be greeted. Where that fails, the next isn't tried as soon.
    pub(crate) fn tried(&mut self) {
        self.next();
    }

    /// The time until the next try. It grows, whatever becomes of that, until a connection over QUIC is greeted.
    fn next(&mut self) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST);
        wait
    }

    /// A connection over QUIC to where `held` leads over TCP, as soon as one can be had. It is tried now and then, and
    /// when `moved` says that something may have changed. Never, where `held` is over QUIC already.
    pub(crate) async fn quic<F: Future<Output = ()>>(
        &mut self,
        held: &Connection,
        identity: &IdentityKey,
        protocol: Protocol,
        mut moved: impl FnMut() -> F,
    ) -> (Link, SocketAddr) {
        let (Carrier::Tcp, Some(key)) = (held.carrier(), held.peer_key()) else {
            return std::future::pending().await;
        };
        let (address, keys): (_, [PublicKey; 1]) = (held.remote_address(), [key]);
        loop {
            tokio::select! {
                () = sleep(self.next()) => {}
                () = moved() => {}
            }
            match dial::over(Carrier::Quic, address, identity, &keys, protocol).await {
                Ok(link) => return (link, address),
                Err(error) => tracing::debug!("QUIC doesn't get through yet: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_worked_is_first_and_tries_become_rare() {
        let mut again = Again::default();
        assert_eq!(again.first(), Carrier::Quic);
        again.worked(Carrier::Tcp);
        assert_eq!(again.first(), Carrier::Tcp);
        let waits: Vec<Duration> = (0..10).map(|_| again.next()).collect();
        assert_eq!((waits[0], waits[9]), (FIRST, LONGEST));
        assert!(waits.windows(2).all(|two| two[0] <= two[1]), "{waits:?}");
        again.worked(Carrier::Tcp);
        assert_eq!(again.next(), LONGEST, "another connection over TCP is no reason to hurry");
        again.worked(Carrier::Quic);
        assert_eq!((again.first(), again.next()), (Carrier::Quic, FIRST));
    }
}
