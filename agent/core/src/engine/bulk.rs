//! Bulk flows and their lanes: who takes which, and what is to be done for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::TunnelSecret;
use anteroom_proto::verdict::DropReason;

use super::Engine;
use crate::flow::{FlowIndex, FlowKey};
use crate::gso::Packets;
use crate::lane::book::{Book, Standing};
use crate::lane::pace::Millis;
use crate::lane::{
    self, Doorman, Event, Job, LaneId, Lanes, LanesConfig, OpenedInLane, Order, Taken,
};
use crate::peer::message::Message;
use crate::peer::{Opened, OwnKey, Peer, PeerSlot, Peers, Sent};
use crate::sink::Sink;
use crate::station::StationId;
use crate::target::Target;

/// Most lanes that are open at once. Each takes some 11 KB.
const MOST: usize = 256;

/// Who runs the lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// The engine, within its own calls. Datagrams are owner 1's.
    Engine,
    /// So many threads of the shell, from owner 1 on. The shell carries [`Engine::poll_lane_order`], [`Sink::job`] and
    /// [`Sink::hand_on`] there, and brings back [`Engine::note_lane_event`], [`Engine::take_back`] and
    /// [`Engine::handle_opened`].
    Shell(u8),
}

/// Where lanes are run.
#[derive(Debug)]
enum Place {
    Here(Box<Lanes>),
    Elsewhere,
}

/// What an engine with lanes has of them.
#[derive(Debug)]
pub(super) struct Bulk {
    book: Book,
    doorman: Doorman,
    place: Place,
    owners: u8,
    /// From when milliseconds are counted.
    start: Instant,
}

#[cfg(test)]
impl Bulk {
    /// Hears what no peer of this crate's would say.
    pub(super) fn hear_for_tests(
        &mut self,
        peer: PeerSlot,
        via: anteroom_proto::key::TunnelPublicKey,
        offer: &crate::peer::message::LaneOffer,
        peers: &mut crate::peer::Peers,
        now: Instant,
    ) {
        self.book.hear(peer, via, offer, peers, now);
    }

    /// This gateway's lane key for a peer.
    pub(super) fn own_key_for_tests(
        &mut self,
        peer: PeerSlot,
        peers: &mut crate::peer::Peers,
        now: Instant,
    ) -> anteroom_proto::key::TunnelPublicKey {
        self.book.own_key_for_tests(peer, peers, now)
    }

    /// When a peer is to be told something again.
    pub(super) fn notices_due_for_tests(&self) -> Option<Instant> {
        self.book.poll_timeout()
    }

    /// How many peers something is kept of.
    pub(super) fn peers_for_tests(&self) -> usize {
        self.book.len()
    }
}

impl Engine {
    /// Has bulk flows take lanes to peers that can use them too. `secret` is what its lane keys are made from, with the newest
    /// tunnel key: fresh at each start, and kept in memory only. To be called before the first view is applied.
    pub fn use_lanes(&mut self, secret: &TunnelSecret, lanes: u8, runner: Runner, now: Instant) {
        self.peers.announce_lanes();
        let mut seed = || {
            let mut seed = [0; 32];
            for chunk in seed.chunks_exact_mut(8) {
                chunk.copy_from_slice(&self.seeds.next().to_be_bytes());
            }
            seed
        };
        let doorman = Doorman::new(&seed(), now);
        let (place, owners) = match runner {
            Runner::Shell(owners) => (Place::Elsewhere, owners.clamp(1, lane::MAX)),
            Runner::Engine => {
                let config = LanesConfig { owner: 1, seed: seed(), most: MOST };
                (Place::Here(Box::new(Lanes::new(&config, now))), 1)
            }
        };
        self.bulk = Some(Box::new(Bulk {
            book: Book::new(secret, self.peers.boot(), lanes),
            doorman,
            place,
            owners,
            start: now,
        }));
    }

    /// Has lane keys be others where the newest tunnel key for other gateways is.
    pub(super) fn change_lane_keys(&mut self, keys: &[OwnKey], now: Instant) {
        let newest = keys.iter().find(|key| key.gateways);
        if let (Some(bulk), Some(newest)) = (&mut self.bulk, newest) {
            bulk.book.change_keys(&newest.secret, now);
        }
    }

    /// How it stands with the lanes to peers with which there are any.
    pub(super) fn lanes(&self) -> BTreeMap<GatewayId, Standing> {
        let Some(bulk) = &self.bulk else { return BTreeMap::new() };
        let standing = |(slot, peer): (PeerSlot, &Peer)| (peer.gateway(), bulk.book.standing(slot));
        self.peers.iter().map(standing).filter(|(_, standing)| standing.agreed > 0).collect()
    }

    /// How often a key, or a lane more, was turned away.
    pub(super) fn lanes_turned_away(&self) -> u64 {
        self.bulk.as_ref().map_or(0, |bulk| bulk.book.turned_away())
    }

    /// The lane that a packet of a flow takes, or the packets of a super-frame, of `bytes` in all: 0 unless the flow is
    /// bulk and has one.
    pub(super) fn choose_lane(
        &mut self,
        at: FlowIndex,
        (station, peer): (StationId, PeerSlot),
        bytes: usize,
        now: Instant,
    ) -> u8 {
        let Some(bulk) = &mut self.bulk else { return 0 };
        // First of all: with a peer that has none, bulk is to cost what it costs without lanes. They lead where a peer is directly.
        if !self.peers.get(peer).is_some_and(Peer::can_use_lanes) || self.peers.is_relayed(peer) {
            return 0;
        }
        let Some(flow) = self.flows.get_mut(at) else { return 0 };
        let Some(own) = self.stations.get_mut(station) else { return 0 };
        if !flow.pace.add(bytes, &mut own.pace, Millis::between(bulk.start, now)) {
            return 0;
        }
        let lane = flow.pace.lane();
        if lane != 0 && bulk.book.is_ready(LaneId { peer, lane }) {
            return lane;
        }
        let key = flow.key;
        let lane = bulk.book.want((peer, station), self.flows.hash(&key), &mut self.peers, now);
        if let Some(flow) = self.flows.get_mut(at) {
            flow.pace.take(lane);
        }
        lane
    }

    /// The same for a packet of the flow with this key, if there is one.
    pub(super) fn choose_lane_of(
        &mut self,
        key: &FlowKey,
        ends: (StationId, PeerSlot),
        bytes: usize,
        now: Instant,
    ) -> u8 {
        let can = || self.peers.get(ends.1).is_some_and(Peer::can_use_lanes);
        let at = (self.bulk.is_some() && can()).then(|| self.flows.find(key)).flatten();
        at.map_or(0, |at| self.choose_lane(at, ends, bytes, now))
    }

    /// Counts what takes lane 0 without a flow of its own: later fragments.
    pub(super) fn pace_rest(&mut self, station: StationId, bytes: usize, now: Instant) {
        let Some(bulk) = &self.bulk else { return };
        if let Some(station) = self.stations.get_mut(station) {
            station.pace.add(bytes, Millis::between(bulk.start, now));
        }
    }

    /// Takes packets that the shell's lane threads opened, in the order in which they came through each lane. Whatever
    /// came to the socket of lane 0 before them is to be handled first.
    pub fn handle_opened<'a>(
        &mut self,
        opened: impl Iterator<Item = (LaneId, &'a [u8])>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let mut held = std::mem::take(&mut self.held);
        for (at, packet) in opened {
            if self.peers.get(at.peer).is_none() {
                self.recorder.drop(None, DropReason::PeerUnknown, None, now);
            } else if packet.first().is_some_and(|first| first >> 4 == 6) {
                match self.peers.join(at.peer, packet, now) {
                    Ok(None) => {}
                    Ok(Some(whole)) => {
                        self.take_packet(at.peer, &whole, &mut held, now, out);
                        self.peers.give_back(whole);
                    }
                    Err(reason) => self.recorder.drop(None, reason, None, now),
                }
            } else {
                self.take_packet(at.peer, packet, &mut held, now, out);
            }
        }
        self.let_go(&mut held, now, out);
        self.held = held;
        self.tend_lanes(now, out);
    }

    /// Sends through lane 0 what a lane thread had no session for. What the thread told beside that is to be
    /// [noted](Self::note_lane_event) first: the flow takes lane 0 from then on.
    pub fn take_back(&mut self, job: &mut Job<'_>, now: Instant, out: &mut impl Sink) {
        let peer = job.at.peer;
        let mut packets = match Packets::new(job.packet, job.network, &job.vnet, job.limit) {
            Ok(packets) => packets,
            Err(reason) => return self.recorder.drop(None, reason, None, now),
        };
        while let Some(packet) = packets.next() {
            if let Sent::Dropped(reason) = self.peers.send(peer, packet, now, out) {
                self.recorder.drop(None, reason, None, now);
            }
        }
    }

    /// Opens a datagram, whoever's it is.
    pub(super) fn open<'a>(
        &mut self,
        from: Target,
        datagram: &[u8],
        room: &'a mut [u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Opened<'a> {
        // Lanes are no relay's matter.
        let Target::Udp(from) = from else {
            return self.peers.open(from, datagram, room, now, out);
        };
        let owner = match self.owner_of(from, datagram, now, out) {
            Ok(Some(owner)) => owner,
            Ok(None) => return self.peers.open(from, datagram, room, now, out),
            Err(reason) => return Opened::Dropped(reason),
        };
        let Some(bulk) = &mut self.bulk else { return Opened::Dropped(DropReason::PeerUnknown) };
        let Place::Here(lanes) = &mut bulk.place else {
            if owner <= bulk.owners {
                out.hand_on(owner, from, datagram);
                return Opened::Handled;
            }
            return Opened::Dropped(DropReason::PeerUnknown);
        };
        match lanes.open_datagram(from, datagram, room, now, out) {
            OpenedInLane::Packet { at, packet } => Opened::Packet { peer: at.peer, packet },
            OpenedInLane::Part { at, packet } => match self.peers.join(at.peer, packet, now) {
                Ok(None) => Opened::Handled,
                Ok(Some(packet)) => Opened::Whole { peer: at.peer, packet },
                Err(reason) => Opened::Dropped(reason),
            },
            OpenedInLane::Handled => Opened::Handled,
            OpenedInLane::Dropped(reason) => Opened::Dropped(reason),
        }
    }

    /// Who runs the lane that a datagram is for. None for lane 0, and for what is nobody's.
    fn owner_of(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<Option<u8>, DropReason> {
        if self.bulk.is_none() {
            return Ok(None);
        }
        match lane::owner_of(datagram) {
            Some(0) => Ok(None),
            Some(owner) => Ok(Some(owner)),
            None => {
                // What was said right before a handshake says whether it is expected.
                if self.peers.has_lane_offers() {
                    self.tend_lanes(now, out);
                }
                let Some(bulk) = &mut self.bulk else { return Ok(None) };
                let at = bulk.doorman.admit(from, datagram, now, out)?;
                Ok(at.map(|at| lane::owner(at, bulk.owners)))
            }
        }
    }

    /// Tells peers and whoever runs lanes what they are to know, and takes note of what they said.
    pub(super) fn tend_lanes(&mut self, now: Instant, out: &mut impl Sink) {
        let Some(bulk) = &mut self.bulk else { return };
        while let Some(number) = self.peers.poll_review() {
            bulk.book.review(number, &self.peers, now);
        }
        while let Some((peer, via, offer)) = self.peers.poll_lane_offer() {
            bulk.book.hear(peer, via, &offer, &mut self.peers, now);
        }
        bulk.book.handle_timeout(&self.peers, now);
        while let Some((peer, offer)) = bulk.book.poll_offer() {
            if let Some(gateway) = self.peers.get(peer).map(Peer::gateway) {
                self.peers.tell(gateway, &Message::Lanes(offer), out);
            }
        }
        let Place::Here(lanes) = &mut bulk.place else { return };
        while let Some(order) = bulk.book.poll_order() {
            bulk.doorman.note(&order);
            lanes.carry_out(order, now, out);
        }
        lanes.handle_timeout(now, out);
        while let Some(event) = lanes.poll_event() {
            note(&mut bulk.book, &mut self.peers, event, now, out);
        }
    }

    /// Looks whether any of those that were just admitted is back, having gone with lanes.
    pub(super) fn meet_lanes(
        &mut self,
        admitted: impl IntoIterator<Item = GatewayId>,
        now: Instant,
    ) {
        let Some(bulk) = &mut self.bulk else { return };
        // Those that went are forgotten first.
        while let Some(number) = self.peers.poll_review() {
            bulk.book.review(number, &self.peers, now);
        }
        for gateway in admitted {
            bulk.book.meet(gateway, &mut self.peers, now);
        }
    }

    /// Lanes that are open here.
    #[cfg(test)]
    pub(super) fn open_lanes(&self) -> usize {
        match self.bulk.as_ref().map(|bulk| &bulk.place) {
            Some(Place::Here(lanes)) => lanes.open_lanes(),
            _ => 0,
        }
    }

    /// When lanes that run here, or what is to be said about any, want to be looked at.
    pub(super) fn lanes_due(&self) -> Option<Instant> {
        let bulk = self.bulk.as_ref()?;
        let here = match &bulk.place {
            Place::Here(lanes) => lanes.poll_timeout(),
            Place::Elsewhere => None,
        };
        here.into_iter().chain(bulk.book.poll_timeout()).min()
    }

    /// The next order for whoever runs lanes in the shell's threads, and its owner. One that concerns all lanes of a
    /// peer is for every owner: it has none. To be called after each of the engine's calls until there is no more.
    pub fn poll_lane_order(&mut self) -> Option<(Option<u8>, Order)> {
        let bulk = self.bulk.as_mut().filter(|bulk| matches!(bulk.place, Place::Elsewhere))?;
        let order = bulk.book.poll_order()?;
        bulk.doorman.note(&order);
        let owner = match order {
            Order::Open(at) => Some(lane::owner(at, bulk.owners)),
            _ => None,
        };
        Some((owner, order))
    }

    /// Takes what the shell's lane threads have to tell.
    pub fn note_lane_event(&mut self, event: Event, now: Instant, out: &mut impl Sink) {
        if let Some(bulk) = &mut self.bulk {
            note(&mut bulk.book, &mut self.peers, event, now, out);
        }
    }
}

/// Takes what whoever runs lanes has to tell.
fn note(book: &mut Book, peers: &mut Peers, event: Event, now: Instant, out: &mut impl Sink) {
    match event {
        Event::Elsewhere { peer, from } => peers.ask_at(peer, from, now, out),
        event => book.note(event, now),
    }
}

/// Has a job done by whoever runs its lane.
pub(super) fn job(
    bulk: &mut Option<Box<Bulk>>,
    mut job: Job<'_>,
    now: Instant,
    out: &mut impl Sink,
) -> Result<Taken, DropReason> {
    let Some(bulk) = bulk else { return Ok(Taken::NoSession) };
    match &mut bulk.place {
        Place::Here(lanes) => lanes.seal(&mut job, now, out),
        Place::Elsewhere => Ok(out.job(lane::owner(job.at, bulk.owners), job)),
    }
}
