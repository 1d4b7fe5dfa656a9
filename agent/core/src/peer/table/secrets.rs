//! Agreeing on pre-shared keys with peers: see [`crate::peer::secret`].

use std::time::{Duration, Instant};

use anteroom_proto::cbor::Blob;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::{Hash, TunnelPublicKey};
use anteroom_proto::verdict::DropReason;
use zeroize::Zeroizing;

use super::paths::Agreed;
use super::{CONTROL, PSK_BIT, Peers, Tunnel};
use crate::peer::message::{self, Message, SecretHeld, SecretPart};
use crate::peer::secret::{Agreement, SHORT};
use crate::peer::tunnel::sealed_room;
use crate::sink::Sink;

/// Most gateways of which is remembered that there was a pre-shared key. Those that aren't peers any more make room first.
const MOST_REMEMBERED: usize = 4096;
/// Pairs of keys that are agreed on at once, the best first, beside that of the tunnel that packets take.
const AT_ONCE: usize = 2;
/// How long two that hold the same key have to speak by it, until it is offered once more.
const TO_SPEAK: Duration = Duration::from_secs(4);
/// How often it is, until there is another one.
const ROUNDS: u32 = 3;
/// A tunnel through which something came so lately is one that the peer still has.
const FRESH: Duration = Duration::from_secs(2);
/// Two that have a pre-shared key say something by it more often than that.
const SILENT: Duration = Duration::from_millis(2500);
/// How long the one that opened a ciphertext has to shake hands first, as it does in the same breath with its answer: two that do
/// so at once only do more than they need.
const FOR_OTHER: Duration = Duration::from_millis(300);

impl Peers {
    /// Has packets for other gateways wait for a pre-shared key however long that takes, and takes none of theirs without. To be
    /// called before there are peers.
    pub const fn refuse_classic(&mut self) {
        self.never_classic = true;
    }

    /// Whether packets of devices that come through a tunnel aren't taken. What gateways say to each other is: they agree on a
    /// key by that.
    pub(super) fn is_refused(&self, tunnel: u32) -> bool {
        let tunnel = self.tunnels.get(tunnel).filter(|_| self.never_classic);
        let bare = tunnel.filter(|tunnel| !tunnel.has_psk());
        bare.and_then(|tunnel| self.peers.get(tunnel.peer)).is_some_and(|peer| !peer.client)
    }

    /// Finds out whether packets for a peer may go.
    pub(super) fn judge(&mut self, index: u32, now: Instant) {
        let rules = (self.own.has_kem(), self.never_classic);
        let Some(peer) = self.peers.get_mut(index).filter(|peer| !peer.client) else { return };
        let sending = peer.sending.and_then(|number| self.tunnels.get(number));
        let awaited = peer.secrecy.is_awaited;
        let reached = peer.secrecy.reached;
        let wakes = peer.secrecy.judge(sending.map(Tunnel::has_psk), rules, now) || !awaited;
        // What waits goes, or what it waits for is begun.
        let wakes = wakes && (peer.secrecy.is_awaited || peer.waiting() > 0);
        let (gateway, has_had) = (peer.gateway, peer.secrecy.reached);
        if has_had != reached {
            self.remember(gateway, has_had);
        }
        if wakes {
            self.wake(index, now);
        }
    }

    /// Notes whether packets went under a pre-shared key with a gateway, for when it is a peer again, and for the next run.
    fn remember(&mut self, gateway: GatewayId, has_had: bool) {
        if !has_had {
            self.agreed.remove(&gateway);
            return;
        }
        if self.agreed.len() >= MOST_REMEMBERED {
            let peers = &self.by_gateway;
            self.agreed.retain(|one| peers.contains_key(one));
        }
        if self.agreed.len() < MOST_REMEMBERED {
            self.agreed.insert(gateway);
        }
    }

    /// The gateways with which packets went under a pre-shared key, in this run or before it.
    #[must_use]
    pub fn agreed(&self) -> Vec<GatewayId> {
        let mut agreed: Vec<GatewayId> = self.agreed.iter().copied().collect();
        agreed.sort_unstable();
        agreed
    }

    /// Takes back what an earlier run knew of these: with them packets don't go without.
    pub fn restore_agreed(&mut self, gateways: Vec<GatewayId>) {
        for gateway in gateways {
            self.remember(gateway, true);
            let index = self.by_gateway.get(&gateway).copied();
            if let Some(peer) = index.and_then(|index| self.peers.get_mut(index)) {
                peer.secrecy.reached = true;
            }
        }
    }

    /// Offers pre-shared keys where that is this end's part, and says when to come again.
    pub(super) fn tend_secrets(
        &mut self,
        index: u32,
        now: Instant,
        out: &mut impl Sink,
    ) -> Option<Instant> {
        let local = self.local?;
        let peer = self.peers.get_mut(index).filter(|peer| !peer.client)?;
        // One that wasn't heard yet is offered what its binding says that it can do: the first word of a session has it along.
        if local.overlay >= peer.overlay || peer.secrecy.can == Some(false) {
            return None;
        }
        let number = peer.sending?;
        let tunnel = self.tunnels.get(number)?;
        let (own, key, psk) = (tunnel.own, tunnel.key, tunnel.has_psk());
        if psk {
            let best = peer.keys.first() == Some(&key) && self.own.rank(own) == Some(0);
            peer.secrecy.note_success(own, &key, best);
            if best {
                return None;
            }
        }
        if let Some(rests) = peer.secrecy.rests.filter(|rests| *rests > now) {
            return Some(rests);
        }
        let better = self.pairs_with_kems(index);
        let end = better.iter().position(|pair| psk && *pair == (own, key));
        let better = &better[..end.unwrap_or(better.len())];
        let used = better.iter().skip(AT_ONCE).find(|pair| **pair == (own, key));
        let wanted: Vec<_> = better.iter().take(AT_ONCE).chain(used).copied().collect();
        wanted
            .into_iter()
            .filter_map(|pair| self.offer_secret((index, number), pair, now, out))
            .min()
    }

    /// Pairs of keys that may have a pre-shared one, best first.
    fn pairs_with_kems(&self, index: u32) -> Vec<(u32, TunnelPublicKey)> {
        let Some(peer) = self.peers.get(index) else { return Vec::new() };
        let mut pairs = Vec::new();
        for (rank, own) in self.own.iter().filter(|own| own.is_for(false)).enumerate() {
            for (place, key) in peer.keys.iter().enumerate() {
                let theirs = peer.secrecy.kems.iter().any(|kem| kem.key == *key);
                if own.kem().is_some() && theirs {
                    pairs.push(((rank.max(place), rank + place, rank), (own.number, *key)));
                }
            }
        }
        pairs.sort_unstable_by_key(|(order, _)| *order);
        pairs.into_iter().map(|(_, pair)| pair).collect()
    }

    /// Has a peer hold a pre-shared key for a pair of keys.
    fn offer_secret(
        &mut self,
        (index, number): (u32, u32),
        (own, key): (u32, TunnelPublicKey),
        now: Instant,
        out: &mut impl Sink,
    ) -> Option<Instant> {
        let peer = self.peers.get_mut(index)?;
        if peer.secrecy.agreement(own, &key).is_none() {
            let theirs = peer.secrecy.kems.iter().find(|kem| kem.key == key)?;
            let ours = self.own.iter().find(|one| one.number == own)?.kem()?;
            let Some((ciphertext, secret)) = ours.kem.encapsulate(&theirs.encapsulation) else {
                tracing::warn!(gateway = %peer.gateway, %key, "nothing can be encapsulated to this key");
                return Some(peer.secrecy.rest(now));
            };
            let bindings = (&ours.binding, &theirs.binding);
            let made = Agreement::new((own, key), bindings, &ciphertext, &secret, now);
            let psk = made.psk.clone();
            peer.secrecy.agreements.push(made.with_ciphertext(ciphertext));
            // The peer shakes hands as soon as it has opened the ciphertext, whether its answer comes before that or not.
            self.install(index, (own, key), psk, now + TO_SPEAK, now);
        }
        let shaken = self.tunnels.get(number).filter(|by| !by.has_psk()).map(Tunnel::since);
        let peer = self.peers.get_mut(index)?;
        let agreement = peer.secrecy.agreement(own, &key)?;
        if let Some(held) = agreement.held {
            // One that has shaken hands without it since then has it no more.
            if now < held + TO_SPEAK && shaken.is_none_or(|shaken| shaken <= held) {
                return Some(held + TO_SPEAK);
            }
            if agreement.rounds >= ROUNDS {
                return self.give_up(index, (own, key), now);
            }
            agreement.renew(now);
        }
        if agreement.next <= now {
            let parts = agreement.offer(now);
            let next = agreement.next;
            for part in parts {
                self.tell_by(number, &Message::SecretPart(part), out);
            }
            return Some(next);
        }
        Some(agreement.next)
    }

    /// A peer sent a part of a ciphertext.
    pub(super) fn hear_part(
        &mut self,
        (index, number): (u32, u32),
        part: &SecretPart,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let malformed = DropReason::Malformed;
        let local = self.local.ok_or(DropReason::PeerDestination)?;
        let peer = self.peers.get_mut(index).ok_or(DropReason::PeerUnknown)?;
        let of: [u8; SHORT] = part.of.0.as_slice().try_into().map_err(|_| malformed)?;
        if part.pair.0.len() != 2 * SHORT || local.overlay <= peer.overlay {
            return Err(malformed);
        }
        let (theirs, ours) = part.pair.0.split_at(SHORT);
        let theirs = peer.secrecy.kem_of(theirs).map(|kem| (kem.key, kem.binding));
        let ours = self
            .own
            .iter()
            .find(|own| own.kem().is_some_and(|kem| kem.binding.as_bytes().starts_with(ours)));
        let (Some((key, binding)), Some(ours)) = (theirs, ours) else {
            // One of the two keys is gone, or isn't known yet: the view that names it may be under way.
            return Ok(());
        };
        let own = ours.number;
        if let Some(held) = peer.secrecy.agreement(own, &key).filter(|held| held.of == of) {
            let proof = held.proof;
            self.answer_held((index, number), (own, &key), (part, proof), now, out);
            return Ok(());
        }
        // One that has shaken hands without since something last came under the key runs anew: its hello, which says so, may be
        // lost or late.
        let shaken = self.tunnels.get(number).map(Tunnel::since);
        let live = self.by_key.get(&(own, key, true)).is_some_and(|psk| {
            let tunnel = self.tunnels.get(*psk).filter(|tunnel| tunnel.has_session());
            let fresh = |heard| {
                now.saturating_duration_since(heard) < FRESH && shaken.is_none_or(|at| at <= heard)
            };
            *psk == number || tunnel.map(Tunnel::last_heard).is_some_and(fresh)
        });
        if live {
            return Ok(());
        }
        let Some(whole) = peer.secrecy.join(of, (part.number, &part.bytes.0), now) else {
            return Ok(());
        };
        let Some(kem) = ours.kem() else { return Ok(()) };
        let secret = kem.kem.decapsulate(&whole).ok_or(malformed)?;
        let bindings: (&Hash, &Hash) = (&binding, &kem.binding);
        let made = Agreement::new((own, key), bindings, &whole, &secret, now).held(now);
        let (psk, proof) = (made.psk.clone(), made.proof);
        peer.secrecy.forget(own, &key);
        peer.secrecy.agreements.push(made);
        self.install(index, (own, key), psk, now, now);
        self.answer_held((index, number), (own, &key), (part, proof), now, out);
        Ok(())
    }

    /// Tells a peer that a ciphertext was opened, by the tunnel that it came through: it may know no better one.
    fn answer_held(
        &mut self,
        (index, number): (u32, u32),
        (own, key): (u32, &TunnelPublicKey),
        (part, proof): (&SecretPart, [u8; SHORT]),
        now: Instant,
        out: &mut impl Sink,
    ) {
        let psk = self.peers.get_mut(index).and_then(|peer| {
            let agreement = peer.secrecy.agreement(own, key)?;
            Some(agreement.psk.clone())
        });
        if let Some(psk) = psk.filter(|_| !self.by_key.contains_key(&(own, *key, true))) {
            self.install(index, (own, *key), psk, now, now);
        }
        let (pair, of) = (part.pair.clone(), Some(part.of.clone()));
        let held = SecretHeld { pair, of, proof: Blob(proof.to_vec()) };
        self.tell_by(number, &Message::SecretHeld(held), out);
    }

    /// A peer says that it holds a pre-shared key.
    pub(super) fn hear_held(&mut self, index: u32, held: &SecretHeld, now: Instant) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        // An answer to another ciphertext, which was late, says nothing of this one.
        let same = |of: &[u8; SHORT]| held.of.as_ref().is_none_or(|said| said.0 == of);
        let open = |one: &&mut Agreement| {
            one.held.is_none() && one.pair.as_slice() == held.pair.0 && same(&one.of)
        };
        let Some(agreement) = peer.secrecy.agreements.iter_mut().find(open) else { return };
        let pair = (agreement.own, agreement.key);
        if agreement.proof.as_slice() != held.proof.0 {
            tracing::warn!(gateway = %peer.gateway, "two ends made different pre-shared keys");
            self.give_up(index, pair, now);
            return;
        }
        agreement.held = Some(now);
        let psk = agreement.psk.clone();
        let at = now + FOR_OTHER;
        let tunnel = self.by_key.get(&(pair.0, pair.1, true)).copied();
        match tunnel.and_then(|number| self.tunnels.get_mut(number)) {
            Some(tunnel) => {
                tunnel.hurry(at);
                self.wake(index, at);
            }
            None => self.install(index, pair, psk, at, now),
        }
    }

    /// What was agreed on for a pair of keys leads nowhere. Says when there is another try.
    fn give_up(
        &mut self,
        index: u32,
        (own, key): (u32, TunnelPublicKey),
        now: Instant,
    ) -> Option<Instant> {
        if let Some(number) = self.by_key.get(&(own, key, true)).copied() {
            self.remove_tunnels(index, &[number]);
            self.choose_again(index, now);
        }
        let rests = self.peers.get_mut(index).map(|peer| {
            peer.secrecy.forget(own, &key);
            peer.secrecy.rest(now)
        });
        self.judge(index, now);
        rests
    }

    /// Makes a tunnel with a pre-shared key, in the place of any before it.
    fn install(
        &mut self,
        index: u32,
        (own, key): (u32, TunnelPublicKey),
        psk: Zeroizing<[u8; 32]>,
        first_attempt: Instant,
        now: Instant,
    ) {
        if let Some(number) = self.by_key.get(&(own, key, true)).copied() {
            self.remove_tunnels(index, &[number]);
        }
        let bits = self.owner_bits() | PSK_BIT;
        let Some(ours) = self.own.iter().find(|one| one.number == own) else { return };
        let made = self.tunnels.insert(|number| {
            let times = (now, Some(first_attempt));
            let who = (index, key, false);
            let tunnel = Tunnel::new(&ours.secret, who, bits | number, ours.limiter(), times);
            tunnel.of(own).under(psk)
        });
        match made {
            Some(number) => drop(self.by_key.insert((own, key, true), number)),
            None => self.turned_away += 1,
        }
        self.pair(index, None, now);
        self.choose_again(index, now);
        self.judge(index, now);
        self.wake(index, now);
    }

    /// An initiation came for a tunnel with a pre-shared key that isn't here, from somebody who may be the peer with that key:
    /// this end runs anew, or has lost it. It is shaken hands with without.
    pub(super) fn miss_psk(
        &mut self,
        (own, key): (u32, TunnelPublicKey),
        now: Instant,
        out: &mut impl Sink,
    ) {
        let Some(number) = self.by_key.get(&(own, key, false)).copied() else { return };
        if self.tunnels.get_mut(number).is_some_and(|tunnel| tunnel.may_heal(now)) {
            self.initiate(number, now, out);
        }
    }

    /// Whether packets for a peer take a tunnel with a pre-shared key, and nothing came through that for longer than a peer
    /// that has it is ever silent.
    pub(super) fn is_silent_under_psk(&self, index: u32, now: Instant) -> bool {
        let number = self.peers.get(index).and_then(|peer| peer.sending);
        let tunnel = number.and_then(|number| self.tunnels.get(number));
        tunnel.is_some_and(|tunnel| {
            tunnel.has_psk() && now.saturating_duration_since(tunnel.last_heard()) > SILENT
        })
    }

    /// A peer runs anew, or has forgotten this one meanwhile: it has no pre-shared key any more that was made until `end`.
    pub(super) fn forget_agreements(&mut self, index: u32, end: Instant, now: Instant) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        peer.secrecy.forget_until(end);
        let secrecy = &mut peer.secrecy;
        let mut gone = |number: &&u32| {
            let tunnel = self.tunnels.get(**number).filter(|tunnel| tunnel.has_psk());
            tunnel.is_some_and(|tunnel| secrecy.agreement(tunnel.own, &tunnel.key).is_none())
        };
        let gone: Vec<u32> = peer.tunnels.iter().filter(&mut gone).copied().collect();
        if !gone.is_empty() {
            self.remove_tunnels(index, &gone);
            self.choose_again(index, now);
        }
        self.judge(index, now);
    }

    /// Finds the tunnel that packets take after one is gone. Where the peer has just shaken hands for that, and as long as packets took
    /// another nothing was made of it, they go the way that it came.
    fn choose_again(&mut self, index: u32, now: Instant) {
        let sending = |peers: &Self| peers.peers.get(index).and_then(|peer| peer.sending);
        let before = sending(self);
        self.choose_sending(index);
        let Some(number) = sending(self).filter(|number| Some(*number) != before) else { return };
        let via = self.tunnels.get(number).and_then(|tunnel| tunnel.lately_agreed(now));
        if let Some(via) = via {
            // As after any restart of its.
            let how = Agreed { ours: false, fresh: true };
            self.session_agreed((index, number), via, how, now);
        }
    }

    /// Forgets what was agreed on for keys that are no more.
    pub(super) fn drop_stale_agreements(&mut self, index: u32) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        let keys = &peer.keys;
        let own = &self.own;
        peer.secrecy
            .agreements
            .retain(|one| keys.contains(&one.key) && own.rank(one.own).is_some());
    }

    /// Tells a peer something by one of its tunnels.
    fn tell_by(&mut self, number: u32, message: &Message, out: &mut impl Sink) {
        let Some(local) = self.local else { return };
        let Some(tunnel) = self.tunnels.get_mut(number) else { return };
        let Some(peer) = self.peers.get(tunnel.peer) else { return };
        let Some(to) = peer.way() else { return };
        let packet = message::pack(local.overlay, peer.overlay, message);
        to.put(out, CONTROL, sealed_room(packet.len()), |buffer| tunnel.seal(&packet, buffer));
    }

    /// Has all pre-shared keys forgotten here.
    #[cfg(test)]
    pub(crate) fn forget_agreements_for_tests(&mut self, now: Instant) {
        for index in self.peers.numbers() {
            self.forget_agreements(index, now, now);
        }
    }

    /// An initiation of the tunnel with a pre-shared key that leads to a gateway.
    #[cfg(test)]
    pub(crate) fn initiation_for_tests(&mut self, to: anteroom_proto::id::GatewayId) -> Vec<u8> {
        let peer = self.by_gateway.get(&to).and_then(|index| self.peers.get(*index));
        let mut tunnels = peer.map(|peer| peer.tunnels.clone()).unwrap_or_default().into_iter();
        let number = tunnels.find(|one| self.tunnels.get(*one).is_some_and(Tunnel::has_psk));
        let mut datagram = vec![0; 148];
        let tunnel = number.and_then(|number| self.tunnels.get_mut(number));
        let len = tunnel.map_or(0, |tunnel| tunnel.initiate(&mut datagram));
        datagram.truncate(len);
        datagram
    }
}
