//! Where stock clients look for this gateway: their configuration names one address of it, and nothing changes that by itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Client;
use crate::plane::Plane;

/// How long a gateway that was off may be without the address that it had: leases and links take a moment.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 120 });

/// Where clients that were configured so far look for this gateway.
#[derive(Debug)]
pub(super) struct Places {
    known: Option<SocketAddr>,
    /// Until when an address that a run before this one had may still come.
    patient: Option<Instant>,
}

/// That they look where it isn't.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moved {
    /// Where they look; none where this is the first address at all.
    from: Option<SocketAddr>,
    to: SocketAddr,
}

impl Places {
    /// At the start of a run, with what the one before it left.
    pub(super) fn new(left: Option<SocketAddr>, now: Instant) -> Self {
        Self { known: left, patient: left.map(|_| now + PATIENCE) }
    }

    /// Compares with the addresses that this gateway has, best first.
    fn look(&mut self, endpoints: &[SocketAddr], now: Instant) -> Option<Moved> {
        if self.known.is_some_and(|known| endpoints.contains(&known)) {
            self.patient = None;
            return None;
        }
        let to = *endpoints.first()?;
        if self.patient.is_some_and(|until| now < until) {
            return None;
        }
        self.patient = None;
        Some(Moved { from: self.known.replace(to), to })
    }
}

impl<P: Plane> Client<P> {
    /// Raises an alarm where the address that clients' configurations name isn't this gateway's any more. Those that speak with it
    /// now are told inside their tunnels; one that starts anew, or is behind a NAT, doesn't find it.
    pub(super) fn note_places(&mut self) {
        let found = self.places.look(&self.reach.borrow().endpoints, Instant::now());
        let Some(Moved { from, to }) = found else { return };
        self.keeping.place(to);
        let clients = self.view.as_ref().map_or(0, |view| view.intent.clients.len());
        if let Some(from) = from
            && clients > 0
        {
            self.alarm(&format!(
                "WireGuard clients ({clients}) were configured with {from}, which isn't this gateway's any more: those that speak with it now \
                 are told that it is at {to}; one that starts anew, or is behind a NAT, needs another configuration \
                 (`anteroom client show NAME`), or this gateway its address again"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 51_820))
    }

    #[test]
    fn the_first_address_of_all_is_known_at_once_and_another_one_is_a_move() {
        let now = Instant::now();
        let mut places = Places::new(None, now);
        assert_eq!(places.look(&[], now), None);
        assert_eq!(places.look(&[at(1), at(2)], now), Some(Moved { from: None, to: at(1) }));
        assert_eq!(places.look(&[at(2), at(1)], now), None, "it is there, second or not");
        assert_eq!(places.look(&[at(2)], now), Some(Moved { from: Some(at(1)), to: at(2) }));
        assert_eq!(places.look(&[], now), None, "nowhere is no other place");
    }

    #[test]
    fn the_address_of_an_earlier_run_has_a_while_to_come() {
        let now = Instant::now();
        let late = now + PATIENCE;
        let mut places = Places::new(Some(at(1)), now);
        assert_eq!(places.look(&[at(2)], now), None);
        assert_eq!(places.look(&[at(2)], late), Some(Moved { from: Some(at(1)), to: at(2) }));
        assert_eq!(places.look(&[at(2)], late), None, "it is told once");
        // Once it was there, nothing is waited for.
        let mut places = Places::new(Some(at(1)), now);
        assert_eq!(places.look(&[at(1)], now), None);
        assert_eq!(places.look(&[at(2)], now), Some(Moved { from: Some(at(1)), to: at(2) }));
        // Without any address nothing is known, however late.
        let mut places = Places::new(Some(at(1)), now);
        assert_eq!(places.look(&[], late), None);
        assert_eq!(places.look(&[at(2)], late), Some(Moved { from: Some(at(1)), to: at(2) }));
    }
}
