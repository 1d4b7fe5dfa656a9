//! How this gateway and its peers look from outside: see [`crate::peer::outside`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anteroom_proto::id::GatewayId;
use anteroom_proto::relay::mirror;
use anteroom_proto::verdict::DropReason;

use super::{CONTROL, Peers, write};
use crate::peer::Silence;
use crate::peer::outside::Outside;
use crate::sink::Sink;
use crate::target::{RelayId, Target};

/// Peers that are asked at a time while a relay doesn't answer.
const ASKED: usize = 16;
/// How long nothing comes back until relays are asked, too.
const DOUBT: Duration = Duration::from_millis(300);

impl Peers {
    /// Says where a relay may be asked how this gateway looks from outside; `None` where it no longer can be.
    pub fn set_mirror(&mut self, relay: RelayId, at: Option<SocketAddr>, now: Instant) {
        self.mirrors.set(relay, at, now);
    }

    /// For how long nothing has come back, from whomever. Where that is so for a moment, relays are asked, too: peers may
    /// all be gone, and the underlay none the less be there.
    pub fn silence(&mut self, now: Instant) -> Silence {
        let silence = self.hearing.silence(now);
        if silence.lasts >= DOUBT {
            self.mirrors.hasten(now);
        }
        silence
    }

    /// A connection to a relay has waited for an answer since `since`: others are asked at once whether anything comes back. Those
    /// that said something since, or owe an answer themselves, aren't; nor are more than a few at a time.
    pub fn note_owing(&mut self, since: Instant, now: Instant) {
        self.hearing.note_owing(since, now);
        self.mirrors.hasten(now);
        let is_asked = |number: &u32| {
            self.peers.get(*number).is_some_and(|peer| {
                let silent = peer.heard().is_none_or(|heard| heard < since);
                !peer.client && peer.sending.is_some() && silent && peer.questions().is_none()
            })
        };
        let asked = self.peers.numbers().into_iter().filter(is_asked).take(ASKED);
        for number in asked.collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get_mut(number) {
                peer.next_probe = peer.next_probe.min(now);
                self.wake(number, now);
            }
        }
    }

    /// For how long nobody who should answer has, and how many questions that were.
    #[must_use]
    pub fn unanswered(&self, now: Instant) -> (Duration, u32) {
        self.hearing.silence(now).unanswered
    }

    /// How this gateway looks from outside, as far as relays said.
    #[must_use]
    pub fn outside(&self) -> Outside {
        self.mirrors.outside()
    }

    /// Peers that packets reach by a relay, and whose NAT is known to let no direct path come to be together with this
    /// gateway's: each gives every destination another port, so that neither knows where to knock.
    #[must_use]
    pub fn shut_off(&self) -> Vec<GatewayId> {
        if self.outside().varies != Some(true) {
            return Vec::new();
        }
        let all = self.peers.iter().map(|(_, peer)| peer);
        all.filter(|peer| peer.route.via().is_some() && peer.outside().varies == Some(true))
            .map(|peer| peer.gateway)
            .collect()
    }

    /// Peers on a relay of which another one is clearly nearer, and its number.
    #[must_use]
    pub fn nearer(&self) -> BTreeMap<GatewayId, u16> {
        let all = self.peers.iter().map(|(_, peer)| peer);
        all.filter_map(|peer| Some((peer.gateway, peer.route.nearer.clear()?.0))).collect()
    }

    /// Whether packets for any peer take a relay.
    const fn relies_on_relays(&self) -> bool {
        self.on_relays > 0
    }

    /// Counts by hand.
    #[cfg(test)]
    pub(in crate::peer) fn assert_counted(&self) {
        let all = self.peers.iter().filter(|(_, peer)| peer.route.via().is_some());
        assert_eq!(self.on_relays, all.count(), "peers that a relay reaches");
    }

    /// Asks relays how this gateway looks, where that is due.
    pub(super) fn ask_mirrors(&mut self, now: Instant, out: &mut impl Sink) {
        if self.mirrors.due().is_none_or(|due| due > now) {
            return;
        }
        let relied = self.relies_on_relays();
        for (to, question) in self.mirrors.ask(relied, now) {
            write(out, to.into(), CONTROL, &question);
        }
    }

    /// Takes a datagram that says how this gateway looks from outside. None: it is something else.
    pub(super) fn hear_mirror(
        &mut self,
        from: Target,
        datagram: &[u8],
        now: Instant,
    ) -> Option<Result<(), DropReason>> {
        let (nonce, place) = mirror::parse_answer(datagram)?;
        let Target::Udp(from) = from else { return Some(Err(DropReason::PeerUnknown)) };
        let relied = self.relies_on_relays();
        let Some(news) = self.mirrors.hear(from, nonce, place, relied, now) else {
            return Some(Err(DropReason::PeerUnauthenticated));
        };
        self.hearing.note_answered(now);
        if news {
            tracing::debug!(%from, %place, "how the tunnels look from outside");
            self.tell_places(now);
        }
        Some(Ok(()))
    }

    /// Has peers that packets reach by a relay told at once how this gateway looks. The others are within two seconds.
    fn tell_places(&mut self, now: Instant) {
        for number in self.peers.numbers() {
            let peer = self.peers.get_mut(number);
            if let Some(peer) = peer.filter(|peer| peer.route.via().is_some()) {
                peer.next_probe = now;
                self.wake(number, now);
            }
        }
    }
}
