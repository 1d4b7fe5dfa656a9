//! The stages between port security and sending: flow lookup, verdict on a miss, account.

use std::time::Instant;

use anteroom_proto::id::GatewayId;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::Engine;
use crate::flow::{Beginning, FlowIndex, FlowKey, Judgement, Passed, State, Tracker, Zone};
use crate::policy::{Ask, End, refuse};
use crate::station::StationId;
use crate::wire::tcp::TcpFlags;
use crate::wire::{FiveTuple, Ipv4Packet, Transport, icmp};

/// Which way a packet came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// From a device port.
    Port,
    /// From the uplink, in the clear: an address isn't an identity.
    Uplink,
    /// Out of the tunnel of this gateway.
    Tunnel(GatewayId),
}

/// What becomes of a packet, and of the fragments that follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) verdict: Verdict,
    /// The gateway at the other end, where the verdict is a tunnel.
    pub(super) peer: Option<GatewayId>,
    /// The lane to there that it takes.
    pub(super) lane: u8,
}

impl Decision {
    pub(super) const fn of(verdict: Verdict) -> Self {
        Self { verdict, peer: None, lane: 0 }
    }
}

/// A packet on its way: from where, to where, how much of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passage {
    pub(super) via: Via,
    pub(super) source: End,
    pub(super) destination: End,
    /// Packets that it stands for: a super-frame is many.
    pub(super) packets: u64,
    /// Their bytes, the headers of each included.
    pub(super) bytes: u64,
}

impl Passage {
    /// How strictly the strictest device among the two ends is treated.
    fn stance(&self) -> Mode {
        self.source.stance.max(self.destination.stance)
    }

    /// What becomes of a packet that fits no flow and may not begin one.
    pub(super) fn refuse(&self, reason: DropReason) -> Verdict {
        // What a tunnel carries has no other way to go.
        if matches!(self.via, Via::Tunnel(_)) {
            return Verdict::Drop(reason);
        }
        let both = self.source.here.is_some() && self.destination.here.is_some();
        refuse(self.stance(), reason, if both { Verdict::Local } else { Verdict::Clear })
    }

    pub(super) fn zone(&self) -> Option<(Zone, StationId)> {
        match (self.source.here, self.destination.here) {
            (Some(a), Some(b)) => Some((Zone::between(a, b), a)),
            (Some(a), None) | (None, Some(a)) => Some((Zone::outside(a), a)),
            (None, None) => None,
        }
    }
}

/// A verdict with the orientation that it is for.
#[derive(Debug, Clone, Copy)]
struct Oriented {
    /// Whether the packet at hand comes from the initiator.
    forward: bool,
    judgement: Judgement,
}

impl Engine {
    /// Decides what becomes of a packet that isn't a later fragment, and accounts for it.
    pub(super) fn decide(
        &mut self,
        passage: &Passage,
        packet: &Ipv4Packet<'_>,
        now: Instant,
    ) -> Decision {
        let Some((zone, _)) = passage.zone() else { return Decision::of(Verdict::Clear) };
        if let Transport::IcmpError { kind, quoted, .. } = packet.transport {
            return self.decide_error(passage, packet, zone, (kind, quoted), now);
        }
        let tuple = packet.tuple();
        let (key, upwards) = FlowKey::new(zone, &tuple);
        let known = |at| Some((at, self.flows.get(at)?, self.flows.judgement(at)?));
        let Some((at, flow, judgement)) = self.flows.find(&key).and_then(known) else {
            return self.begin(passage, packet, key, upwards, now);
        };
        let (forward, fresh) = (flow.is_forward(upwards), flow.epoch == self.epoch);
        let flags = packet.tcp_flags();
        if passage.via == Via::Uplink && judgement.verdict == Verdict::Tunnel {
            let current = if fresh {
                judgement
            } else {
                let renewed = self.judge(passage, packet, forward, true, now);
                self.renew(at, renewed)
            };
            if current.peer.is_some() {
                // An unauthenticated packet for a flow that is tunnelled: it changes nothing about it.
                return Self::finish(passage, current);
            }
        }
        let held_back = judgement.verdict.reason().is_some();
        if held_back && (flags.opens() || !forward || matches!(passage.via, Via::Tunnel(_))) {
            // What was refused one way may be allowed the other, or by the other path.
            let oriented = self.orient(passage, packet, false, now);
            let allowed = oriented.judgement.verdict.reason().is_none();
            if allowed || flags.opens() {
                return self.reopen(at, passage, packet, upwards, now);
            }
            if matches!(passage.via, Via::Tunnel(_)) {
                // A flow that is known has state, whatever an unknown one would lack.
                let current = self.judge(passage, packet, forward, true, now);
                return Self::finish(passage, current);
            }
        } else if flags.opens() && !forward {
            // A connection the other way on the same ports: another flow, with a verdict of its own.
            let oriented = self.orient(passage, packet, false, now);
            if oriented.judgement.verdict.reason().is_some() {
                return Self::finish(passage, oriented.judgement);
            }
            return self.reopen(at, passage, packet, upwards, now);
        } else if flags.answers() && forward {
            let verdict = passage.refuse(DropReason::NoState);
            if verdict.reason().is_some() {
                return Decision::of(verdict);
            }
        }
        let tunnelled = judgement.verdict == Verdict::Tunnel;
        let by_tunnel = matches!(passage.via, Via::Tunnel(_));
        let may_switch = !tunnelled
            && (by_tunnel
                || (passage.via == Via::Port
                    && judgement.peer.is_some_and(|gateway| {
                        self.peer_states.get(&gateway).is_some_and(|state| state.live)
                    })));
        let judgement = if fresh && !may_switch {
            judgement
        } else {
            let renewed = self.judge(passage, packet, forward, tunnelled || by_tunnel, now);
            self.renew(at, renewed)
        };
        let decision = Self::finish(passage, judgement);
        if decision.verdict.passes() || !judgement.verdict.passes() {
            self.account(at, forward, packet, passage, now);
        }
        decision
    }

    /// The first packet of a flow.
    fn begin(
        &mut self,
        passage: &Passage,
        packet: &Ipv4Packet<'_>,
        key: FlowKey,
        upwards: bool,
        now: Instant,
    ) -> Decision {
        let mut oriented = self.orient(passage, packet, false, now);
        let decision = Self::finish(passage, oriented.judgement);
        let clear_of_tunnel = passage.via == Via::Uplink && oriented.judgement.peer.is_some();
        if clear_of_tunnel {
            if !decision.verdict.passes() {
                return decision;
            }
            oriented.judgement.verdict = Verdict::Clear;
        }
        if !decision.verdict.passes()
            && passage.via != Via::Port
            && (oriented.judgement.verdict.passes() || passage.via != Via::Uplink)
        {
            return decision;
        }
        let Oriented { forward, judgement } = oriented;
        let initiator = if forward { &passage.source } else { &passage.destination };
        let station = match (initiator.here, passage.zone()) {
            (Some(own), _) => own,
            (None, Some((_, station))) => station,
            (None, None) => return decision,
        };
        let (tracker, state) = Tracker::first(packet.protocol, packet.tcp_flags(), forward);
        let state = if judgement.verdict.passes() { state } else { State::Dropped };
        let beginning = Beginning {
            key,
            initiator_low: upwards == forward,
            station,
            share: self.stations.share(station),
            outbound: initiator.here.is_some(),
            judgement,
            epoch: self.epoch,
            tracker,
            state,
            now: self.flows.moment(now),
        };
        let (recorder, stations) = (&mut self.recorder, &self.stations);
        let inserted = self.flows.insert(&beginning, |mut gone, judgement| {
            recorder.flush(stations, &mut gone, judgement);
        });
        match inserted {
            Ok(at) => {
                let Passage { packets, bytes, .. } = *passage;
                let passed = Passed { forward, packets, bytes };
                self.flows.account(at, &passed, now, |flow| flow.state);
                if decision.verdict.passes() {
                    let opening = key.tuple(beginning.initiator_low);
                    let opening = (&opening, beginning.outbound);
                    self.recorder.trials.opened(station, key, opening, now);
                }
                decision
            }
            Err(_) if passage.stance() >= Mode::Enforce => {
                Decision::of(Verdict::Drop(DropReason::FlowTableFull))
            }
            Err(_) => {
                self.recorder.overflow();
                decision
            }
        }
    }

    /// A flow that is there begins anew, with another verdict or the other way round.
    fn reopen(
        &mut self,
        at: FlowIndex,
        passage: &Passage,
        packet: &Ipv4Packet<'_>,
        upwards: bool,
        now: Instant,
    ) -> Decision {
        let Some((mut gone, judgement)) = self.flows.remove(at) else {
            return Decision::of(Verdict::Clear);
        };
        self.recorder.flush(&self.stations, &mut gone, &judgement);
        self.begin(passage, packet, gone.key, upwards, now)
    }

    /// Puts a renewed verdict on a flow. What was counted under the old one is reported under it.
    fn renew(&mut self, at: FlowIndex, renewed: Judgement) -> Judgement {
        if self.flows.judgement(at) != Some(renewed) {
            self.record(at);
            self.flows.judge(at, renewed);
        }
        if let Some(flow) = self.flows.get_mut(at) {
            flow.epoch = self.epoch;
        }
        renewed
    }

    fn account(
        &mut self,
        at: FlowIndex,
        forward: bool,
        packet: &Ipv4Packet<'_>,
        passage: &Passage,
        now: Instant,
    ) {
        let flags = packet.tcp_flags();
        let passed = Passed { forward, packets: passage.packets, bytes: passage.bytes };
        let much = self.flows.account(at, &passed, now, |flow| {
            if !flow.verdict.passes() {
                State::Dropped
            } else if flow.state == State::Dropped {
                let (tracker, state) = Tracker::first(packet.protocol, flags, forward);
                flow.tracker = tracker;
                state
            } else {
                flow.tracker.next(flow.state, packet.protocol, flags, forward)
            }
        });
        if much {
            self.record(at);
        }
    }

    /// Moves what a flow has counted to its edge.
    pub(super) fn record(&mut self, at: FlowIndex) {
        let (recorder, stations) = (&mut self.recorder, &self.stations);
        self.flows.report_one(at, |flow, judgement| recorder.flush(stations, flow, judgement));
    }

    /// An ICMP error belongs to the flow that it quotes.
    fn decide_error(
        &self,
        passage: &Passage,
        packet: &Ipv4Packet<'_>,
        zone: Zone,
        (kind, quoted): (u8, Option<FiveTuple>),
        now: Instant,
    ) -> Decision {
        const REDIRECT: u8 = 5;
        let unrelated = Decision::of(passage.refuse(DropReason::IcmpUnrelated));
        let judgement = quoted
            .filter(|quoted| quoted.source == packet.destination && kind != REDIRECT)
            .and_then(|quoted| self.judge_quoted(passage, zone, &quoted, now))
            .filter(|judgement| judgement.verdict.passes());
        let Some(judgement) = judgement else {
            return match (passage.via, unrelated.verdict) {
                (Via::Tunnel(_), _) => Decision::of(Verdict::Drop(DropReason::IcmpUnrelated)),
                _ => unrelated,
            };
        };
        match passage.via {
            Via::Tunnel(gateway) if judgement.owner != Some(gateway) => {
                Decision::of(Verdict::Drop(DropReason::IcmpUnrelated))
            }
            // Nobody on the campus saw the packet that is quoted.
            Via::Uplink if judgement.verdict == Verdict::Tunnel && !judgement.clear_taken => {
                unrelated
            }
            _ => Decision { verdict: judgement.verdict, peer: judgement.peer, lane: 0 },
        }
    }

    /// The verdict that holds now on the flow that an ICMP error quotes a packet of.
    fn judge_quoted(
        &self,
        passage: &Passage,
        zone: Zone,
        quoted: &FiveTuple,
        now: Instant,
    ) -> Option<Judgement> {
        let (key, upwards) = FlowKey::new(zone, quoted);
        let at = self.flows.find(&key)?;
        let flow = self.flows.get(at)?;
        if flow.epoch == self.epoch {
            return self.flows.judgement(at);
        }
        let sender = passage.destination;
        let receiver = match passage.source.here {
            _ if passage.source.address == quoted.destination => passage.source,
            Some(id) => self.end_here(id, quoted.destination),
            // Somebody on the way sent the error.
            None => End::elsewhere(quoted.destination, self.who(quoted.destination)),
        };
        let (sent, answered) = (quoted.source_port, quoted.destination_port);
        let (ends, ports) = if flow.is_forward(upwards) {
            ((sender, receiver), (sent, answered))
        } else {
            ((receiver, sender), (answered, sent))
        };
        let service = match quoted.protocol {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            icmp::PROTOCOL => Some(Protocol::IcmpEcho),
            _ => None,
        };
        let tunnelled = flow.verdict == Verdict::Tunnel;
        Some(self.judge_flow(ends, ports, service, tunnelled, now))
    }

    /// What a verdict means for a packet that came this way.
    pub(super) fn finish(passage: &Passage, judgement: Judgement) -> Decision {
        let verdict = match (passage.via, judgement.verdict) {
            // What is authentic is no worse than the same in the clear.
            (Via::Tunnel(gateway), Verdict::Tunnel | Verdict::Clear | Verdict::WouldDrop(_))
                if judgement.owner == Some(gateway) =>
            {
                judgement.verdict
            }
            (Via::Tunnel(_), Verdict::Tunnel) => Verdict::Drop(DropReason::PeerSource),
            (Via::Tunnel(_), verdict) => {
                Verdict::Drop(verdict.reason().unwrap_or(DropReason::TunnelNotReady))
            }
            (Via::Uplink, verdict) if judgement.peer.is_some() => {
                if passage.destination.shared >= Mode::Enforce && !judgement.clear_taken {
                    Verdict::Drop(DropReason::ClearFromTunnelPeer)
                } else if verdict.passes() {
                    Verdict::Clear
                } else {
                    verdict
                }
            }
            (_, verdict) => verdict,
        };
        Decision { verdict, peer: judgement.peer, lane: 0 }
    }

    /// Finds out who opened the flow of a packet that none is known for, and judges it.
    fn orient(
        &self,
        passage: &Passage,
        packet: &Ipv4Packet<'_>,
        tunnelled: bool,
        now: Instant,
    ) -> Oriented {
        let tunnelled = tunnelled || matches!(passage.via, Via::Tunnel(_));
        let judge = |forward| self.judge(passage, packet, forward, tunnelled, now);
        let refused = |forward| {
            let judgement = judge(forward);
            // What is dropped for a better reason keeps that.
            let verdict = match judgement.verdict {
                Verdict::Drop(reason) => Verdict::Drop(reason),
                _ => passage.refuse(DropReason::NoState),
            };
            Oriented { forward, judgement: Judgement { verdict, peer: None, ..judgement } }
        };
        let observed = passage.stance() == Mode::Observe;
        let forward = match packet.transport {
            Transport::Tcp { flags, .. } if flags.opens() => true,
            Transport::Tcp { flags, .. } if flags.answers() => return refused(false),
            Transport::Tcp { flags, .. }
                if flags.has(TcpFlags::ACK) || flags.has(TcpFlags::RST) =>
            {
                let there = judge(true);
                let back = judge(false);
                let open = (there.verdict.passes(), back.verdict.passes());
                if observed && open == (true, true) {
                    let known = (there.rule.is_some(), back.rule.is_some());
                    let forward = match known {
                        (true, false) => true,
                        (false, true) => false,
                        _ => looks_like_request(packet),
                    };
                    let judgement = if forward { there } else { back };
                    return Oriented { forward, judgement };
                }
                return match (there.verdict.reason(), back.verdict.reason()) {
                    (None, _) => Oriented { forward: true, judgement: there },
                    (_, None) => Oriented { forward: false, judgement: back },
                    (Some(DropReason::NoRule), Some(DropReason::NoRule)) => refused(true),
                    // The orientation that a rule comes closest to allowing tells more.
                    (Some(DropReason::NoRule), _) => Oriented { forward: false, judgement: back },
                    _ => Oriented { forward: true, judgement: there },
                };
            }
            Transport::Tcp { .. } => return refused(true),
            Transport::IcmpEcho { reply: true } => return refused(false),
            Transport::Udp if observed => looks_like_request(packet),
            _ => true,
        };
        Oriented { forward, judgement: judge(forward) }
    }

    /// Judges the flow of a packet. `forward`: the packet comes from the flow's initiator.
    fn judge(
        &self,
        passage: &Passage,
        packet: &Ipv4Packet<'_>,
        forward: bool,
        tunnelled: bool,
        now: Instant,
    ) -> Judgement {
        let (source, destination) = (passage.source, passage.destination);
        let (from, to) = (packet.source_port, packet.destination_port);
        let (ends, ports) = if forward {
            ((source, destination), (from, to))
        } else {
            ((destination, source), (to, from))
        };
        self.judge_flow(ends, ports, service_of(packet), tunnelled, now)
    }

    /// Judges a flow by its ends and their ports, the initiator's first.
    fn judge_flow(
        &self,
        (initiator, responder): (End, End),
        (from_port, port): (u16, u16),
        service: Option<Protocol>,
        tunnelled: bool,
        now: Instant,
    ) -> Judgement {
        let Some(policy) = &self.policy else {
            let both = initiator.here.is_some() && responder.here.is_some();
            let verdict = if both { Verdict::Local } else { Verdict::Clear };
            return Judgement::of(verdict, None);
        };
        policy.judge(&Ask {
            initiator,
            responder,
            service,
            port,
            from_port,
            tunnelled,
            peers: &self.peer_states,
            clock: &self.clock,
            now,
        })
    }
}

/// The protocol as rules know it.
const fn service_of(packet: &Ipv4Packet<'_>) -> Option<Protocol> {
    match packet.transport {
        Transport::Tcp { .. } => Some(Protocol::Tcp),
        Transport::Udp => Some(Protocol::Udp),
        Transport::IcmpEcho { .. } => Some(Protocol::IcmpEcho),
        _ => None,
    }
}

/// Whether a packet of an observed flow that nobody saw begin looks as if it went to a server.
const fn looks_like_request(packet: &Ipv4Packet<'_>) -> bool {
    packet.destination_port <= packet.source_port || packet.protocol == icmp::PROTOCOL
}
