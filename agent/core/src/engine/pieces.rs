//! Packets in pieces, whichever way they come: later fragments follow their first.

use std::time::Instant;

use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::Engine;
use super::passage::{Decision, Passage, Via};
use crate::flow::FlowKey;
use crate::fragment::{Outcome, Whose};
use crate::station::StationId;
use crate::wire::{Fragment, Ipv4Packet, Transport};

/// What becomes of a packet that may be a piece of one.
#[derive(Debug)]
pub(super) enum Pieces {
    /// It goes as decided, and so do the fragments that waited for it.
    Go(Decision, Vec<Box<[u8]>>),
    /// It waits for its first fragment.
    Held,
    /// It goes no further.
    Drop(DropReason),
}

impl Engine {
    /// Decides what becomes of a packet. `station` is the device here whose share of the table a fragment uses up,
    /// `bytes` what is kept of a fragment that has to wait.
    pub(super) fn decide_pieces(
        &mut self,
        passage: &Passage,
        station: StationId,
        packet: &Ipv4Packet<'_>,
        bytes: &[u8],
        now: Instant,
    ) -> Pieces {
        // A wire passes pieces on as they come.
        let wire = passage.is_observed();
        let owner = self.owner(passage.via, station);
        if packet.transport == Transport::LaterFragment {
            if wire {
                return Pieces::Go(
                    Decision::of(passage.refuse(DropReason::FragmentNoFirst)),
                    vec![],
                );
            }
            return match self.fragments.later(owner, packet, bytes, now) {
                Outcome::Follow(decision) => {
                    if decision.lane == 0 && passage.via == Via::Port {
                        self.pace_rest(station, packet.bytes.len(), now);
                    }
                    Pieces::Go(decision, Vec::new())
                }
                Outcome::Held => Pieces::Held,
                Outcome::Drop(reason) => Pieces::Go(Decision::of(passage.refuse(reason)), vec![]),
            };
        }
        let mut decision = self.decide(passage, packet, now);
        if decision.verdict == Verdict::Tunnel && passage.via == Via::Port {
            decision.lane = self.lane_for(passage, station, packet, decision, now);
        }
        if wire || !packet.fragment.is_some_and(Fragment::is_first) {
            return Pieces::Go(decision, Vec::new());
        }
        match self.fragments.first(owner, packet, decision, now) {
            Ok(waiting) => Pieces::Go(decision, waiting),
            Err(reason) => match passage.refuse(reason) {
                Verdict::Drop(reason) => Pieces::Drop(reason),
                _ => Pieces::Go(decision, Vec::new()),
            },
        }
    }

    /// The lane that a device's packet takes. Its later fragments follow it there.
    fn lane_for(
        &mut self,
        passage: &Passage,
        station: StationId,
        packet: &Ipv4Packet<'_>,
        decision: Decision,
        now: Instant,
    ) -> u8 {
        let peer = decision.peer.and_then(|gateway| self.peers.slot(gateway));
        let (Some(peer), Some((zone, _))) = (peer, passage.zone()) else { return 0 };
        if matches!(packet.transport, Transport::IcmpError { .. }) {
            return 0;
        }
        let (key, _) = FlowKey::new(zone, &packet.tuple());
        self.choose_lane_of(&key, (station, peer), packet.bytes.len(), now)
    }

    /// Fragments that came by different ways, or out of different peers' tunnels, never meet, and use up different
    /// shares of the table.
    pub(super) fn owner(&self, via: Via, station: StationId) -> Whose {
        let (way, peer) = match via {
            Via::Port => (0, 0),
            Via::Uplink => (1, 0),
            Via::Tunnel(gateway) => {
                (2, self.peers.slot(gateway).map_or(0, |slot| slot.number().saturating_add(1)))
            }
        };
        Whose { device: (way << 24) | self.stations.share(station).0, peer }
    }
}

impl Passage {
    /// Whether it is a wire between ends that are at most observed.
    fn is_observed(&self) -> bool {
        let strictest = self.source.stance.max(self.destination.stance);
        strictest == Mode::Observe && !matches!(self.via, Via::Tunnel(_))
    }
}
