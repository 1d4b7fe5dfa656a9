//! Coming back to QUIC where a connection had to take TCP, and leaving it where it begins well and doesn't last.

use std::net::SocketAddr;
use std::time::Duration;

use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_transport::dial;
use anteroom_transport::link::{Carrier, Connection, Link};
use anteroom_transport::tls::Protocol;
use tokio::time::{Instant, sleep};

/// First and longest time between two tries.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);
/// Longest, where connections over QUIC were greeted and then died: each such try costs what was on its way.
const RAREST: Duration = Duration::from_secs(3_600);
/// How long a connection has to have lasted for the network to be trusted with the next like it. Some let a handshake through,
/// or a few packets, and then nothing.
const LASTS: Duration = Duration::from_secs(60);
/// The same where it then died in silence: others cut what has been there for a minute or for five, again and again.
const TRUSTED: Duration = Duration::from_secs(600);

/// How soon after QUIC died TCP has to get through for that to be QUIC's fault.
const SOON: Duration = Duration::from_secs(5);

/// What worked last, and how often something better was tried since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Again {
    first: Carrier,
    wait: Duration,
    /// When a connection over QUIC died that was greeted.
    died: Option<Instant>,
}

impl Default for Again {
    fn default() -> Self {
        Self { first: Carrier::Quic, wait: FIRST, died: None }
    }
}

impl Again {
    /// What to try first.
    pub(crate) const fn first(&self) -> Carrier {
        self.first
    }

    /// A connection over this one was greeted. Where that is TCP soon after QUIC died, it wasn't the network that was gone.
    pub(crate) fn greeted(&mut self, carrier: Carrier) {
        self.first = carrier;
        let died = self.died.take();
        if carrier == Carrier::Tcp && died.is_some_and(|at| at.elapsed() <= SOON) {
            self.wait = (self.wait * 4).min(RAREST);
        }
    }

    /// The network may be another one: what was learned of the one before says nothing of it. What worked is still first, since
    /// the other is tried soon.
    pub(crate) const fn moved(&mut self) {
        self.wait = FIRST;
        self.died = None;
    }

    /// One over this one has ended, so long after it was greeted, if it was. `silent` where nothing was heard of the other end any
    /// more, as opposed to its having said something.
    pub(crate) fn ended(&mut self, carrier: Carrier, lasted: Option<Duration>, silent: bool) {
        let quic = carrier == Carrier::Quic;
        if let Some(lasted) = lasted.filter(|lasted| *lasted >= LASTS) {
            if quic && (lasted >= TRUSTED || !silent) {
                *self = Self::default();
            }
        } else if silent {
            self.first = carrier.other();
            if quic && lasted.is_some() {
                self.died = Some(Instant::now());
            }
        }
    }

    /// One over QUIC that was greeted so long ago is left for one over TCP, since nothing gets through it. `at_once` where TCP got
    /// through as soon as it was tried.
    pub(crate) fn fell(&mut self, lasted: Duration, at_once: bool) {
        self.ended(Carrier::Quic, Some(lasted), true);
        self.died = self.died.filter(|_| at_once);
    }

    /// A connection over QUIC is there to be greeted. Where that fails, the next isn't tried as soon.
    pub(crate) fn tried(&mut self) {
        self.next();
    }

    /// The time until the next try. It grows, whatever becomes of that, until a connection over QUIC has lasted.
    fn next(&mut self) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST).max(wait);
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
                () = moved() => self.moved(),
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
        again.greeted(Carrier::Tcp);
        assert_eq!(again.first(), Carrier::Tcp);
        let waits: Vec<Duration> = (0..10).map(|_| again.next()).collect();
        assert_eq!((waits[0], waits[9]), (FIRST, LONGEST));
        assert!(waits.windows(2).all(|two| two[0] <= two[1]), "{waits:?}");
        again.greeted(Carrier::Tcp);
        assert_eq!(again.next(), LONGEST, "another connection over TCP is no reason to hurry");
        again.greeted(Carrier::Quic);
        assert_eq!((again.first(), again.next()), (Carrier::Quic, LONGEST), "it may not last");
        again.ended(Carrier::Quic, Some(TRUSTED), true);
        assert_eq!((again.first(), again.next()), (Carrier::Quic, FIRST));
    }

    #[test]
    fn a_network_that_cuts_quic_every_minute_has_it_tried_ever_more_rarely() {
        let mut again = Again::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            waits.push(again.next());
            again.greeted(Carrier::Quic);
            again.fell(LASTS + Duration::from_secs(1), true);
            again.greeted(Carrier::Tcp);
        }
        assert_eq!((waits[0], waits[7]), (FIRST, LONGEST), "{waits:?}");
        again.greeted(Carrier::Quic);
        again.ended(Carrier::Quic, Some(LASTS), false);
        assert_eq!(again.next(), FIRST, "whoever says so only stops");
    }

    #[test]
    fn what_begins_well_and_doesnt_last_isnt_first_the_next_time() {
        let mut again = Again::default();
        again.ended(Carrier::Quic, None, false);
        assert_eq!(again.first(), Carrier::Quic, "whoever refuses was heard");
        again.ended(Carrier::Quic, None, true);
        assert_eq!(again.first(), Carrier::Tcp);
        again.ended(Carrier::Tcp, None, true);
        assert_eq!(again.first(), Carrier::Quic, "each in turn");
        let mut waits = Vec::new();
        for _ in 0..10 {
            waits.push(again.next());
            again.greeted(Carrier::Quic);
            again.ended(Carrier::Quic, Some(Duration::from_secs(2)), true);
            assert_eq!(again.first(), Carrier::Tcp);
            again.greeted(Carrier::Tcp);
            again.ended(Carrier::Tcp, Some(LASTS), true);
            assert_eq!(again.first(), Carrier::Tcp, "TCP that lasts says nothing of QUIC");
        }
        assert_eq!((waits[0], waits[9]), (FIRST, RAREST), "what costs something is done seldom");
        assert!(waits.windows(2).all(|two| two[0] <= two[1]), "{waits:?}");
        again.ended(Carrier::Quic, Some(Duration::from_secs(2)), false);
        assert_eq!(again.first(), Carrier::Tcp, "a controller that stops says so");
        again.moved();
        assert_eq!((again.first(), again.next()), (Carrier::Tcp, FIRST), "in another network");
    }

    #[test]
    fn where_the_network_was_gone_quic_isnt_held_to_have_died() {
        let mut again = Again::default();
        for _ in 0..10 {
            again.greeted(Carrier::Quic);
            again.ended(Carrier::Quic, Some(Duration::from_secs(20)), true);
            again.died = again.died.and_then(|at| at.checked_sub(SOON * 2));
            assert!(again.died.is_some());
            again.ended(Carrier::Tcp, None, true);
            again.greeted(Carrier::Tcp);
        }
        assert_eq!(again.next(), FIRST);
        again.greeted(Carrier::Quic);
        again.ended(Carrier::Quic, Some(Duration::from_secs(20)), true);
        again.greeted(Carrier::Tcp);
        assert_eq!(again.next(), 8 * FIRST, "TCP got through at once");
        let mut again = Again::default();
        for at_once in [false, true] {
            again.greeted(Carrier::Quic);
            again.fell(Duration::from_secs(20), at_once);
            again.greeted(Carrier::Tcp);
            assert_eq!(again.first(), Carrier::Tcp);
            assert_eq!(again.wait, if at_once { 4 * FIRST } else { FIRST });
        }
    }
}
