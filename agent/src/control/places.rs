//! Where stock clients look for this gateway: their configuration names one address of it, and nothing changes that by itself.

use std::net::SocketAddr;

use super::Client;
use crate::plane::Plane;

impl<P: Plane> Client<P> {
    /// Raises an alarm where the address that clients' configurations name isn't this gateway's any more. Those that speak with it
    /// now are told inside their tunnels; one that starts anew, or is behind a NAT, doesn't find it.
    pub(super) fn note_places(&mut self, endpoints: &[SocketAddr]) {
        let Some(first) = endpoints.first().copied() else { return };
        let Some(before) = self.known_at else {
            self.known_at = Some(first);
            return;
        };
        if endpoints.contains(&before) {
            return;
        }
        self.known_at = Some(first);
        let clients = self.view.as_ref().map_or(0, |view| view.intent.clients.len());
        if clients > 0 {
            self.alarm(&format!(
                "WireGuard clients ({clients}) were configured with {before}, which isn't this gateway's any more: those that speak with it now \
                 are told that it is at {first}; one that starts anew, or is behind a NAT, needs another configuration \
                 (`anteroom client show NAME`), or this gateway its address again"
            ));
        }
    }
}
