//! What follows from something authentic that came through a tunnel.

use std::time::Instant;

use super::Peers;
use super::paths::Agreed;
use crate::peer::front::Kind;
use crate::sink::Sink;
use crate::target::Target;

/// What something authentic proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// That the peer is there: an initiation.
    Alive,
    /// That it has the session's keys: data, or a keepalive.
    Keys,
    /// That a handshake of ours is complete: a response.
    Established,
}

/// A datagram that came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    pub(super) kind: Kind,
    /// The tunnel that it is for.
    pub(super) tunnel: u32,
    pub(super) len: usize,
}

impl Peers {
    /// Whether this end of a tunnel between gateways is the one whose initiation counts, of two that cross.
    pub(super) fn leads(&self, tunnel: u32) -> bool {
        let peer = self.tunnels.get(tunnel).and_then(|tunnel| self.peers.get(tunnel.peer));
        let (Some(local), Some(peer)) = (self.local, peer) else { return false };
        !peer.client && local.overlay < peer.overlay
    }

    /// Something authentic came through a tunnel.
    pub(super) fn note_heard(
        &mut self,
        said: Said,
        proof: Proof,
        from: Target,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let Said { kind, tunnel: number, len } = said;
        self.hearing.note_heard(now);
        let at_home = self.is_at_home(number, from, now);
        let Some(tunnel) = self.tunnels.get_mut(number) else { return };
        let fresh = tunnel.note_heard(proof != Proof::Alive, now) || proof == Proof::Established;
        let index = tunnel.peer;
        let agreed = match kind {
            Kind::Data { receiver } => tunnel.confirm(receiver),
            Kind::Response { .. } if proof == Proof::Established => {
                tunnel.note_established();
                Some(from.relay())
            }
            _ => None,
        };
        if let Some(via) = agreed {
            tunnel.note_agreed(via, now);
        }
        if fresh {
            self.hearing.note_answered(now);
            self.choose_sending(index);
            self.judge(index, now);
        }
        let Some(peer) = self.peers.get_mut(index) else { return };
        if matches!((kind, from), (Kind::Data { .. }, Target::Udp(_))) {
            peer.route.doubt.note_sealed(len);
        }
        // A copy of an initiation proves nothing about where a client is.
        let moved = (!peer.client || proof != Proof::Alive) && peer.note_heard(from, at_home, now);
        if proof != Proof::Alive {
            peer.route.note_heard(at_home && from.relay().is_none(), now);
        }
        if fresh {
            peer.note_session(now);
        }
        if moved {
            self.fit(index, true, now);
            self.review(index);
        }
        if let Some(via) = agreed {
            let ours = proof == Proof::Established;
            self.session_agreed((index, number), via, Agreed { ours, fresh }, now);
        }
        if fresh {
            self.begin(number, now, out);
        }
        self.look(index, now);
    }
}
