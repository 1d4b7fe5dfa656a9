//! The table of peers: what comes in, what goes out, and what the engine asks.

mod find;
mod gone;
mod heard;
mod keys;
mod moved;
mod outside;
mod paths;
mod roster;
mod said;
mod secrets;
mod sizes;
mod upkeep;
mod way;

use std::collections::VecDeque;
use std::time::Instant;

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::TunnelPublicKey;
use anteroom_proto::verdict::DropReason;
use hashbrown::{HashMap, HashSet};
use sha2::{Digest, Sha256};

use super::agenda::Agenda;
use super::front::Kind;
use super::hearing::Hearing;
use super::message;
use super::outside::Mirrors;
use super::own::Owns;
use super::random::Random;
use super::slots::Slots;
use super::tunnel::{MAX_PACKET_LEN, Received, Tunnel};
use super::{Config, Local, Opened, Peer, PeerEvent, PeerSlot, SCRATCH_LEN, Sent, open_room};
use crate::sink::Sink;
use crate::size::join::Joiner;
use crate::target::{RelayPath, Target, Whose};
use crate::wire::array;
use gone::Gone;
pub(super) use gone::Knows;
use heard::{Proof, Said};
pub(super) use moved::Calls;
use sizes::Sizes;
pub use way::Way;
pub(super) use way::dscp;
use way::{seal, write};

/// Most tunnels: 19 of the 24 bits that boringtun leaves of a receiver index. Four others name the owner.
const MAX_TUNNELS: usize = PSK_BIT as usize;
pub(super) const OWNER_SHIFT: u32 = 20;
/// The bit of a receiver index that says that the tunnel has a pre-shared key. Whoever answers an initiation must know
/// that before it is answered, and nothing else in there says so.
const PSK_BIT: u32 = 1 << (OWNER_SHIFT - 1);
/// Most peers.
const MAX_PEERS: usize = 1 << 16;
/// DSCP of what keeps the tunnels up: network control (CS6).
pub(super) const CONTROL: u8 = 0xc0;

/// Most peers that are looked at in one turn, as packets wait meanwhile. Each may cost a handshake's first message.
const TENDED_AT_ONCE: usize = 32;

/// All peers of one engine instance.
pub struct Peers {
    own: Owns,
    pub(super) config: Config,
    random: Random,
    peers: Slots<Peer>,
    by_gateway: HashMap<GatewayId, u32, foldhash::fast::RandomState>,
    tunnels: Slots<Tunnel>,
    /// By the number of the own key, the peer's key, and whether there is a pre-shared key.
    by_key: HashMap<(u32, TunnelPublicKey, bool), u32, foldhash::fast::RandomState>,
    /// With whom packets went under a pre-shared key, peers or not.
    agreed: HashSet<GatewayId, foldhash::fast::RandomState>,
    /// Whether packets for other gateways never go without a pre-shared key.
    never_classic: bool,
    local: Option<Local>,
    sequence: u64,
    next_generation: u32,
    /// Before when no new peer is initiated to.
    next_first_attempt: Instant,
    /// Peers with something to tell, each once.
    events: VecDeque<u32>,
    /// What peers said that isn't about their tunnels.
    inbox: VecDeque<(GatewayId, message::Message)>,
    /// What peers said about their lanes, and by which of their keys.
    offers: VecDeque<(PeerSlot, TunnelPublicKey, message::LaneOffer)>,
    /// Watched peers that are to be looked at anew, by their numbers.
    reviews: VecDeque<u32>,
    drops: [u64; DropReason::ALL.len()],
    /// How often there was no room for a peer, or for a tunnel.
    turned_away: u64,
    agenda: Agenda,
    /// How often peers were looked at because it was time to.
    #[cfg(test)]
    pub(super) tended: u64,
    scratch: Box<[u8]>,
    sizes: Sizes,
    /// Packets of which parts are here.
    joiner: Joiner,
    part_id: u32,
    part: Vec<u8>,
    /// Which relays reach whom, peers or not.
    relayed: HashMap<GatewayId, Vec<RelayPath>, foldhash::fast::RandomState>,
    /// How many peers packets reach by a relay: whoever answers a question has nobody count them.
    on_relays: usize,
    /// What the keys of knocks grow from.
    knock_secret: [u8; 32],
    /// Nonce of the last knock.
    knocked: u64,
    /// Relays that say how this gateway looks from outside.
    mirrors: Mirrors,
    hearing: Hearing,
    /// Relays that operators took out.
    gone: Gone,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers")
            .field("own_key", &self.own.newest())
            .field("local", &self.local)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

impl Peers {
    /// A table without peers.
    #[must_use]
    pub fn new(mut config: Config, now: Instant) -> Self {
        let mut random = Random::new(&config.seed);
        config.capabilities.retain(|one| one.len() <= message::MAX_CAPABILITY_LEN);
        config.capabilities.truncate(message::MAX_CAPABILITIES);
        #[expect(clippy::cast_possible_truncation, reason = "any 32 bits of it will do")]
        let part_id = random.next() as u32;
        let knock_secret = Sha256::new_with_prefix(b"knocks").chain_update(config.seed).finalize();
        let knock_secret: [u8; 32] = knock_secret.into();
        Self {
            own: Owns::new(&config.secret, &mut random, now),
            config,
            random,
            peers: Slots::new(MAX_PEERS),
            by_gateway: HashMap::default(),
            tunnels: Slots::new(MAX_TUNNELS),
            by_key: HashMap::default(),
            agreed: HashSet::default(),
            never_classic: false,
            local: None,
            sequence: 0,
            next_generation: 0,
            next_first_attempt: now,
            events: VecDeque::new(),
            inbox: VecDeque::new(),
            offers: VecDeque::new(),
            reviews: VecDeque::new(),
            drops: [0; DropReason::ALL.len()],
            turned_away: 0,
            agenda: Agenda::default(),
            #[cfg(test)]
            tended: 0,
            scratch: vec![0; SCRATCH_LEN].into_boxed_slice(),
            sizes: Sizes::default(),
            joiner: Joiner::default(),
            part_id,
            part: Vec::new(),
            relayed: HashMap::default(),
            on_relays: 0,
            mirrors: Mirrors::new(knock_secret),
            hearing: Hearing::default(),
            gone: Gone::default(),
            knock_secret,
            knocked: 0,
        }
    }

    /// Says what peers are told about this gateway from now on. They are told at once when it changed.
    pub fn set_local(&mut self, local: Local, now: Instant) {
        let told = |local: &Local| {
            (local.overlay, local.revision, local.authority, local.confirmed_time.is_some())
        };
        let changed = self.local.as_ref().map(told) != Some(told(&local));
        self.local = Some(local);
        if changed {
            for number in self.peers.numbers() {
                if let Some(peer) = self.peers.get_mut(number) {
                    peer.next_probe = now;
                }
                self.wake(number, now);
            }
        }
    }

    /// The slot of a gateway, if it is a peer.
    #[must_use]
    pub fn slot(&self, gateway: GatewayId) -> Option<PeerSlot> {
        let index = *self.by_gateway.get(&gateway)?;
        let generation = self.peers.get(index)?.generation;
        Some(PeerSlot { index, generation })
    }

    /// The peer in a slot.
    #[must_use]
    pub fn get(&self, slot: PeerSlot) -> Option<&Peer> {
        self.peers.get(slot.index).filter(|peer| peer.generation == slot.generation)
    }

    /// How many tunnels' keys were multiplied.
    #[cfg(test)]
    pub(crate) fn made_tunnels(&self) -> usize {
        self.tunnels.iter().filter(|(_, tunnel)| tunnel.is_made()).count()
    }

    /// How often a peer, or a tunnel with one more pair of keys, was turned away for want of room since the start.
    #[must_use]
    pub const fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// Leaves room for no more than so many peers and tunnels.
    #[cfg(test)]
    pub(crate) const fn bound_for_tests(&mut self, peers: usize, tunnels: usize) {
        self.peers.set_max(peers);
        self.tunnels.set_max(tunnels);
    }

    /// All peers.
    pub fn iter(&self) -> impl Iterator<Item = (PeerSlot, &Peer)> {
        self.peers.iter().map(|(index, peer)| {
            let generation = peer.generation;
            (PeerSlot { index, generation }, peer)
        })
    }

    /// The way to a peer, while it is open: found once for packets that follow each other at once.
    pub fn way(&mut self, slot: PeerSlot) -> Option<Way<'_>> {
        let peer = self.peers.get(slot.index).filter(|peer| peer.generation == slot.generation)?;
        if peer.secrecy.withholds {
            return None;
        }
        let tunnel = self.tunnels.get_mut(peer.sending?)?;
        Some(Way { tunnel, to: peer.way()? })
    }

    /// Seals an IP packet for a peer and gives it to the sink. The packet's DSCP goes to the outer header as well.
    pub fn send(
        &mut self,
        slot: PeerSlot,
        packet: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Sent {
        self.send_for(Whose::of(packet), slot, packet, now, out)
    }

    /// As [`Self::send`], for a packet that may not bear the address of whose it is.
    pub(crate) fn send_for(
        &mut self,
        whose: Whose,
        slot: PeerSlot,
        packet: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Sent {
        if packet.is_empty() || packet.len() > MAX_PACKET_LEN {
            return Sent::Dropped(DropReason::TooBig);
        }
        let generation = slot.generation;
        if let Some(way) = self.way(slot) {
            seal(way.tunnel, way.to, (whose, packet), out);
            return Sent::Sealed;
        }
        let peer = self.peers.get_mut(slot.index).filter(|peer| peer.generation == generation);
        let Some(peer) = peer else { return Sent::Dropped(DropReason::TunnelDown) };
        if peer.tunnels.is_empty() {
            return Sent::Dropped(DropReason::TunnelDown);
        }
        let Some(lost) = peer.queue.push(whose, packet, now) else {
            return Sent::Dropped(DropReason::QueueFull);
        };
        let wake_at = if peer.client { now } else { now + super::queue::MAX_AGE };
        self.count(DropReason::QueueFull, lost);
        self.wake(slot.index, wake_at);
        Sent::Queued
    }

    /// Opens one datagram. A packet that was in it is written to the beginning of `room`, which must have
    /// [`open_room`] bytes.
    pub fn open<'a>(
        &mut self,
        from: impl Into<Target>,
        datagram: &[u8],
        room: &'a mut [u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Opened<'a> {
        let from = from.into();
        if room.len() < open_room(datagram.len()) {
            return Opened::Dropped(DropReason::TooBig);
        }
        let (kind, number) = match self.route(from, datagram, now, out) {
            Ok(Some(found)) => found,
            Ok(None) => return Opened::Handled,
            Err(reason) => return Opened::Dropped(reason),
        };
        let leads = self.leads(number);
        let Some(tunnel) = self.tunnels.get_mut(number) else {
            return Opened::Dropped(DropReason::PeerUnknown);
        };
        if kind == Kind::Initiation && leads && tunnel.is_calling(now) {
            return Opened::Dropped(DropReason::HandshakeLimit);
        }
        let said = Said { kind, tunnel: number, len: datagram.len() };
        match (kind, tunnel.open(datagram, room)) {
            (_, Received::Refused(reason)) => return Opened::Dropped(reason),
            (_, Received::Stale) => {
                if tunnel.may_heal(now) {
                    self.initiate(number, now, out);
                }
                return Opened::Dropped(DropReason::PeerUnauthenticated);
            }
            (Kind::Cookie { .. }, _) => {
                tunnel.note_cookie(now);
                let peer = tunnel.peer;
                self.wake(peer, now);
            }
            (kind, Received::Handshake(reply)) => {
                let initiator = matches!(kind, Kind::Response { .. });
                tunnel.note_handshake(initiator, &mut self.random, now);
                if !initiator && let Some(index) = array(reply, 4).map(u32::from_le_bytes) {
                    tunnel.note_answered(index, from.relay());
                    if !leads {
                        tunnel.give_way(now);
                    }
                }
                write(out, from, CONTROL, reply);
                let proof = if initiator { Proof::Established } else { Proof::Alive };
                self.note_heard(said, proof, from, now, out);
            }
            (_, Received::Nothing) => self.note_heard(said, Proof::Keys, from, now, out),
            (_, Received::Nonsense) => {
                self.note_heard(said, Proof::Keys, from, now, out);
                return Opened::Dropped(DropReason::Malformed);
            }
            (_, Received::Ipv4(packet)) => {
                self.note_heard(said, Proof::Keys, from, now, out);
                if self.is_refused(number) {
                    return Opened::Dropped(DropReason::Classic);
                }
                return match self.slot_of(number) {
                    Some(peer) => Opened::Packet { peer, packet },
                    None => Opened::Dropped(DropReason::PeerUnknown),
                };
            }
            (_, Received::Ipv6(packet)) => {
                self.note_heard(said, Proof::Keys, from, now, out);
                match self.hear(number, packet, now, out) {
                    Ok(None) => {}
                    Ok(Some(packet)) => {
                        return match self.slot_of(number) {
                            Some(peer) => Opened::Whole { peer, packet },
                            None => Opened::Dropped(DropReason::PeerUnknown),
                        };
                    }
                    Err(reason) => return Opened::Dropped(reason),
                }
            }
        }
        Opened::Handled
    }

    /// Does what is due: handshakes, probes, expiry. Where that is much, some of it; the rest is due then.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Sink) {
        self.expire_parts(now);
        self.ask_mirrors(now, out);
        for number in self.agenda.due(now, TENDED_AT_ONCE) {
            if self.peers.get(number).is_some_and(|peer| peer.wake_at <= now) {
                #[cfg(test)]
                {
                    self.tended += 1;
                }
                self.tend(number, now, out);
            }
        }
        let peers = &self.peers;
        self.agenda.tidy(|number| peers.get(number).map(|peer| peer.wake_at));
    }

    /// When [`Self::handle_timeout`] has something to do, and what.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let parts = self.joiner.poll_timeout().map(|at| (at, "parts of packets"));
        let tunnels = self.agenda.next().map(|at| (at, "tunnels"));
        let mirrors = self.mirrors.due().map(|at| (at, "how this gateway looks"));
        [tunnels, parts, mirrors].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// The next thing that happened. What happened twice to one peer is told once, as it is now.
    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        while let Some(number) = self.events.front().copied() {
            if let Some(peer) = self.peers.get_mut(number) {
                if let Some(event) = peer.next_event() {
                    return Some(event);
                }
                peer.listed = false;
            }
            self.events.pop_front();
        }
        None
    }

    /// Drops that no return value told: packets that waited too long for a handshake, or for a peer that was
    /// removed. Counted since the call before.
    pub fn drain_drops(&mut self, mut count: impl FnMut(DropReason, u64)) {
        for (reason, counted) in DropReason::ALL.iter().zip(&mut self.drops) {
            if *counted > 0 {
                count(*reason, std::mem::take(counted));
            }
        }
    }

    fn count(&mut self, reason: DropReason, times: u64) {
        if let Some(counted) = self.drops.get_mut(reason.index()) {
            *counted += times;
        }
    }

    fn slot_of(&self, tunnel: u32) -> Option<PeerSlot> {
        let index = self.tunnels.get(tunnel)?.peer;
        let generation = self.peers.get(index)?.generation;
        Some(PeerSlot { index, generation })
    }

    fn wake(&mut self, index: u32, at: Instant) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        if at < peer.wake_at {
            peer.wake_at = at;
            self.agenda.note(index, at);
        }
    }

    /// Finds out whether a peer lives, and lists it if that changed.
    fn look(&mut self, index: u32, now: Instant) {
        if self.peers.get_mut(index).is_some_and(|peer| peer.look(now)) {
            self.list(index);
        }
    }

    fn list(&mut self, index: u32) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        if !std::mem::replace(&mut peer.listed, true) {
            self.events.push_back(index);
        }
    }
}
