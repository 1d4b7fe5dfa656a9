//! The engine: batches in, frames and datagrams out, in an explicit order of stages.
//!
//! parse -> port security -> flow lookup -> on a miss, policy verdict -> account -> seal, forward or drop.
//! One lookup and one verdict serve a whole super-frame. Nothing fails per packet: what can't go on ends in a
//! counted [`DropReason`].

mod admit;
mod ahead;
mod answer;
mod bulk;
mod claims;
mod deliver;
mod from_port;
mod from_tunnel;
mod from_uplink;
mod hit;
mod neighbours;
mod passage;
mod peering;
mod pieces;
mod prepared;
mod record;
mod relayed;
mod seal;
mod seat;
mod shared;
mod sizes;
mod status;
#[cfg(test)]
mod tests;
mod trials;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_proto::id::{BootId, MemberId};
use anteroom_proto::intent::PeerGateway;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::DropReason;
use anteroom_proto::view::View;

use crate::alarm::Alarms;
use crate::batch::{RxDatagram, RxFrame};
use crate::bridge::Bridge;
use crate::bypass::{Bypasses, LoadedBypass};
use crate::clock::Clock;
use crate::coalesce::Held;
use crate::config::{Config, TunnelIdentity};
use crate::contest::Contests;
use crate::echo::Echoes;
use crate::flow::{FlowTable, Origin};
use crate::holding::Holdings;
use crate::peer::{self, PeerConfig, Silence};
use crate::policy::Policy;
use crate::port::PortId;
use crate::security::Guarded;
use crate::sink::Sink;
use crate::station::Stations;
use crate::table::Seeds;
use crate::wire::{EthernetFrame, Ipv4Packet, Transport, ethernet, udp};
use crate::{fragment, policy, size};
pub use bulk::Runner;
use passage::Decision;
pub use prepared::{Prepared, Retired};
use record::Recorder;

/// How often flows and tables are swept.
const SWEEP: Duration = Duration::from_secs(1);
/// Most flows that one sweep removes.
const SWEEP_BUDGET: usize = 4_096;

/// What fragments that aren't the first follow.
type Token = Decision;

/// One gateway's packet engine. It owns its peers with both directions of their flows.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    identity: TunnelIdentity,
    seeds: Seeds,
    clock: Clock,
    stations: Stations,
    bridge: Bridge,
    echoes: Echoes,
    alarms: Alarms,
    guarded: Guarded,
    /// Who has which shared address.
    holders: BTreeMap<Ipv4Addr, shared::Holder>,
    policy: Option<Policy>,
    bypasses: Bypasses,
    /// Counts whatever makes cached verdicts void.
    epoch: u64,
    flows: FlowTable,
    fragments: fragment::Tracker<Token>,
    fragment_id: u16,
    peers: peer::Peers,
    peer_states: policy::Peers,
    holdings: Holdings,
    /// Where clients of the view were last heard when it came into force, in this run or before it.
    clients_were: BTreeMap<MemberId, SocketAddr>,
    contests: Contests,
    recorder: Recorder,
    authority: u64,
    next_sweep: Instant,
    /// Peers of the view in force that aren't admitted yet, and when more are.
    joining: std::vec::IntoIter<PeerConfig>,
    next_admission: Option<Instant>,
    /// Policies that aren't in force any more, and may still be looked up for peers that lag.
    retired: Vec<Arc<Policy>>,
    /// How many peers were admitted.
    #[cfg(test)]
    admitted: u64,
    /// When more counters are gathered for a report.
    next_gathering: Option<Instant>,
    /// Whether what flows have counted was gathered for the next report.
    gathered: bool,
    /// When a rule's condition changes next.
    boundary: Option<Instant>,
    /// Whether pairs may still be changing their path.
    settling: bool,
    held: Held,
    /// Lanes, where they are used.
    bulk: Option<Box<bulk::Bulk>>,
    too_big_told: sizes::Told,
    part: Vec<u8>,
    /// Whether every packet goes through all stages, as if nothing were known of it.
    #[cfg(test)]
    long_way: bool,
    /// How many packets took the short cut.
    #[cfg(test)]
    short_cuts: u64,
}

impl Engine {
    /// An engine without a view: a wire that records what it sees.
    #[must_use]
    pub fn new(config: Config, identity: TunnelIdentity, now: Instant) -> Self {
        let mut seeds = Seeds::new(&identity.seed);
        let origin = Origin(now);
        let limits = &config.limits;
        let mut boot = [0; BootId::LEN];
        boot[..8].copy_from_slice(&seeds.next().to_be_bytes());
        boot[8..].copy_from_slice(&seeds.next().to_be_bytes());
        let mut peer_seed = [0; 32];
        for chunk in peer_seed.chunks_exact_mut(8) {
            chunk.copy_from_slice(&seeds.next().to_be_bytes());
        }
        let peers = peer::Config {
            secret: identity.secret.clone(),
            boot: BootId::from_bytes(boot),
            seed: peer_seed,
            owner: 0,
            capabilities: vec![size::CAPABILITY.to_owned()],
        };
        Self {
            clock: Clock::new(now),
            stations: Stations::new(&config.ports, limits, seeds.map()),
            bridge: Bridge::new(limits.bridge_entries, seeds.map()),
            echoes: Echoes::new(seeds.hasher()),
            alarms: Alarms::new(config.ports.len()),
            guarded: Guarded::default(),
            holders: BTreeMap::new(),
            policy: None,
            bypasses: Bypasses::default(),
            epoch: 0,
            flows: FlowTable::new(limits.flows, limits.flows_per_device, seeds.hasher(), origin),
            fragments: fragment::Tracker::new(fragment::Limits::default()),
            #[expect(clippy::cast_possible_truncation, reason = "any 16 bits of it will do")]
            fragment_id: seeds.next() as u16,
            peers: peer::Peers::new(peers, now),
            peer_states: seeds.map(),
            contests: Contests::default(),
            holdings: Holdings::new(identity.gateway, identity.identity.clone(), &mut seeds),
            clients_were: BTreeMap::new(),
            recorder: Recorder::new(limits, seeds.hasher(), origin),
            authority: 0,
            next_sweep: now + SWEEP,
            joining: Vec::new().into_iter(),
            next_admission: None,
            retired: Vec::new(),
            #[cfg(test)]
            admitted: 0,
            next_gathering: None,
            gathered: false,
            boundary: None,
            settling: false,
            held: Held::default(),
            bulk: None,
            too_big_told: sizes::Told::default(),
            part: Vec::new(),
            #[cfg(test)]
            long_way: false,
            #[cfg(test)]
            short_cuts: 0,
            seeds,
            config,
            identity,
        }
    }

    /// Takes frames that came in on `port`.
    pub fn handle_frames(
        &mut self,
        port: PortId,
        frames: &mut [RxFrame<'_>],
        now: Instant,
        out: &mut impl Sink,
    ) {
        let Some(state) = self.stations.ports.get_mut(port.index()) else { return };
        state.frames_in += frames.len() as u64;
        for group in frames.chunks_mut(ahead::GROUP) {
            self.look_ahead(port, group);
            for frame in group {
                if port.is_uplink() {
                    self.uplink_frame(frame, now, out);
                } else {
                    self.port_frame(port, frame, now, out);
                }
            }
        }
        self.tend_lanes(now, out);
    }

    /// Takes datagrams that came in on the underlay.
    pub fn handle_datagrams(
        &mut self,
        datagrams: &mut [RxDatagram<'_>],
        now: Instant,
        out: &mut impl Sink,
    ) {
        let mut held = std::mem::take(&mut self.held);
        for datagram in datagrams {
            self.underlay_datagrams(datagram, &mut held, now, out);
        }
        self.let_go(&mut held, now, out);
        self.held = held;
        self.take_events(now);
        self.take_messages(now, out);
        self.tend_lanes(now, out);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Sink) {
        if self.next_admission.is_some_and(|at| at <= now) {
            self.admit_some(now);
        }
        self.peers.handle_timeout(now, out);
        self.tend_lanes(now, out);
        self.take_events(now);
        if self.boundary.is_some_and(|at| at <= now) {
            self.epoch += 1;
            self.find_boundary(now);
        }
        if self.next_sweep <= now {
            let (recorder, stations) = (&mut self.recorder, &self.stations);
            let more = self.flows.expire(now, SWEEP_BUDGET, |mut gone, judgement| {
                recorder.flush(stations, &mut gone, judgement);
            });
            self.bridge.age(now);
            self.settle(now);
            self.look_at_trials(now);
            self.look_after_holdings(now);
            self.next_sweep = if more { now + SWEEP / 20 } else { now + SWEEP };
        }
        if self.trial_due().is_some_and(|at| at <= now) {
            self.look_at_trials(now);
        }
        if self.next_gathering.is_some_and(|at| at <= now) {
            self.gather(now);
        }
        if self.holdings.poll_timeout().is_some_and(|at| at <= now) {
            self.tell_claims(now, out);
        }
        if self.contests.poll_timeout().is_some_and(|at| at <= now) {
            self.settle_contests(now, out);
        }
        let lost = self.fragments.expire(now);
        self.recorder.drops(DropReason::FragmentNoFirst, lost);
        let recorder = &mut self.recorder;
        self.peers.drain_drops(|reason, count| recorder.drops(reason, count));
    }

    /// When [`Self::handle_timeout`] is wanted next, and what for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        [
            self.peers.poll_timeout(),
            self.lanes_due().map(|at| (at, "lanes")),
            self.boundary.map(|at| (at, "a rule's or a bypass's end")),
            self.fragments.poll_timeout().map(|at| (at, "fragments")),
            self.holdings.poll_timeout().map(|at| (at, "claims")),
            self.contests.poll_timeout().map(|at| (at, "next hops")),
            self.next_admission.map(|at| (at, "new peers")),
            self.next_gathering.map(|at| (at, "counters for a report")),
            self.trial_due().map(|at| (at, "a trial's end")),
            Some((self.next_sweep, "sweep")),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    /// Takes over a view, whatever time that takes: see [`Self::put_in_force`].
    #[expect(clippy::needless_pass_by_value, reason = "a view is handed over, not lent")]
    pub fn apply(&mut self, view: Arc<View>, now: Instant) {
        let ports = &self.config.ports;
        let has_port = |name: &_| ports.iter().any(|port| port.name == *name);
        let prepared = Prepared::with(&view, has_port, &mut self.seeds);
        self.put_in_force(prepared, now);
        while self.joining.len() > 0 {
            self.admit_some(now);
        }
        drop(self.take_retired());
    }

    /// What the seeds of a view's tables are to grow from, for [`Prepared::new`].
    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        for chunk in seed.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.seeds.next().to_be_bytes());
        }
        seed
    }

    /// What is void since a view was put in force, to be dropped where nobody waits for that.
    pub fn take_retired(&mut self) -> Option<Retired> {
        if self.retired.is_empty() {
            return None;
        }
        let void = |policy: &Arc<Policy>| Arc::strong_count(policy) == 1;
        let (policies, held) = std::mem::take(&mut self.retired).into_iter().partition(void);
        self.retired = held;
        let retired = Retired { policies };
        (!retired.is_empty()).then_some(retired)
    }

    /// Puts a view in force. Flows stay; their verdicts are found again as their packets come. What it takes doesn't
    /// grow with rules; with peers it does as far as each is looked up.
    ///
    /// New peers are admitted, and handshakes with them begun, in [`Self::handle_timeout`], which is due at once.
    pub fn put_in_force(&mut self, prepared: Prepared, now: Instant) {
        let Prepared { mut policy, peers } = prepared;
        let view = Arc::clone(&policy.view);
        self.recorder.trials.renew(&view.intent.devices, now);
        self.seat(&mut policy);
        let before = self.policy.take().map(Arc::new);
        self.policy = Some(policy);
        let signed = view.operation.issued_at.max(view.signed_at);
        if before.as_ref().is_some_and(|before| before.view.incarnation < view.incarnation) {
            self.clock.begin_anew(signed, now);
        }
        self.clock.raise_floor(signed, now);
        self.set_peers(peers, before.as_ref(), now);
        self.retired.extend(before);
        self.reconcile_holdings(now);
        self.epoch += 1;
        self.find_boundary(now);
        self.take_events(now);
    }

    /// Tells the wall clock. `confirmed`: a controller has said so, whose word overrules what peers said; else it is the machine's own.
    pub fn set_time(&mut self, wall: UnixMillis, confirmed: bool, now: Instant) {
        self.clock.set(wall, confirmed, now);
        self.epoch += 1;
        self.find_boundary(now);
        self.tell_peers(now);
    }

    /// Has packets for other gateways wait for a pre-shared key by ML-KEM-768 however long that takes. To be called before the first view is
    /// applied.
    pub const fn refuse_classic(&mut self) {
        self.peers.refuse_classic();
    }

    /// Tells a time that was confirmed before this start: it is no earlier than that, whatever a peer says.
    pub fn hold_time(&mut self, floor: UnixMillis, now: Instant) {
        self.clock.raise_floor(floor, now);
        self.find_boundary(now);
    }

    /// Tells the bypass orders that were loaded from files: all of them, each time.
    pub fn set_bypasses(&mut self, loaded: Vec<LoadedBypass>, now: Instant) {
        self.bypasses.loaded = loaded;
        self.find_boundary(now);
    }

    /// Tells the gateway's own addresses when they change.
    pub fn set_own_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.config.own_addresses = addresses;
        self.epoch += 1;
    }

    /// For how long nothing has come back from any peer or relay.
    pub fn silence(&mut self, now: Instant) -> Silence {
        self.peers.silence(now)
    }

    /// A connection to a relay has waited for an answer since `since`: peers and other relays are asked whether anything
    /// comes back.
    pub fn note_owing(&mut self, since: Instant, now: Instant) {
        self.peers.note_owing(since, now);
    }

    /// For how long nobody who should answer has, and how many questions that were. Costs nothing to ask.
    #[must_use]
    pub fn unanswered(&self, now: Instant) -> (Duration, u32) {
        self.peers.unanswered(now)
    }

    /// The machine's addresses changed, so that it may look different from outside: relays are asked anew.
    pub fn note_moved(&mut self, now: Instant) {
        self.peers.note_moved(now);
    }

    /// Tells the number of the newest authority document held, which peers are told.
    pub fn set_authority(&mut self, number: u64, now: Instant) {
        self.authority = number;
        self.tell_peers(now);
    }

    /// Whether ports and uplink may merge packets. Not while a device is observed: merging isn't reversible for
    /// every sender.
    #[must_use]
    pub fn wants_gro(&self) -> bool {
        let all_left_observe =
            self.device_ports().filter_map(|port| self.stations.port(port)).all(|state| {
                state.holds() || (state.unknown == 0 && state.mode != Some(Mode::Observe))
            });
        self.policy.as_ref().is_some_and(|policy| !policy.view.intent.devices.is_empty())
            && all_left_observe
            && self.stations.iter().all(|(_, station)| {
                station.device.as_ref().is_none_or(|device| device.mode != Mode::Observe)
            })
    }

    /// Finds out which bypasses are in force, and when time next changes what is allowed.
    fn find_boundary(&mut self, now: Instant) {
        let orders = self.policy.as_ref().map(|policy| policy.view.intent.bypasses.as_slice());
        let orders = orders.unwrap_or_default();
        let peers = self.policy.as_ref().map(|policy| policy.view.intent.peers.as_slice());
        let concerns = |gateway| {
            let known = |peer: &PeerGateway| peer.gateway == gateway;
            gateway == self.identity.gateway || peers.unwrap_or_default().iter().any(known)
        };
        if self.bypasses.renew(orders, concerns, &self.clock, now) {
            self.epoch += 1;
        }
        let bypass_changes = self.bypasses.next_change(orders, &self.clock, now);
        let policy = self.policy.as_ref().filter(|_| self.clock.is_confirmed());
        let moment = policy.and_then(|policy| policy.next_boundary(self.clock.wall(now)));
        let rule_ends = moment.and_then(|moment| self.clock.instant(moment, now));
        self.boundary = [rule_ends, bypass_changes].into_iter().flatten().min();
        if let Some(policy) = &mut self.policy {
            policy.bypassed = self.bypasses.in_force.iter().map(|open| open.gateway).collect();
        }
    }
}

/// What a frame's header says, without borrowing its bytes.
#[derive(Debug, Clone, Copy)]
struct Header {
    destination: MacAddr,
    source: MacAddr,
    ethertype: u16,
    vlan: Option<u16>,
    /// Whether it belongs to a VLAN, or bears more than one tag.
    tagged: bool,
    /// Where the payload begins.
    at: usize,
}

impl Header {
    fn of(frame: &EthernetFrame<'_>) -> Self {
        Self {
            destination: frame.destination,
            source: frame.source,
            ethertype: frame.ethertype,
            vlan: frame.vlan(),
            tagged: frame.vlan().is_some() || frame.tags > 1,
            at: frame.payload_offset,
        }
    }

    const fn kind(&self) -> Kind {
        match self.ethertype {
            _ if self.tagged => Kind::Tagged,
            ethernet::IPV4 => Kind::Ipv4,
            ethernet::ARP => Kind::Arp,
            ethernet::IPV6 => Kind::Ipv6,
            _ => Kind::NonIp,
        }
    }

    /// How many packets a frame stands for, and their bytes with all their headers.
    fn amount(&self, frame: &RxFrame<'_>, packet: &Ipv4Packet<'_>) -> (u64, u64) {
        let whole = packet.bytes.len() as u64;
        if !frame.vnet.is_super_frame() || frame.vnet.gso_size == 0 {
            return (1, whole);
        }
        let transport = match packet.transport {
            Transport::Tcp { header_len, .. } => header_len,
            _ => udp::HEADER_LEN,
        };
        let headers = (packet.header_len + transport) as u64;
        let payload = whole.saturating_sub(headers);
        let packets = payload.div_ceil(u64::from(frame.vnet.gso_size)).max(1);
        (packets, whole + (packets - 1) * headers)
    }
}

/// Kinds of frames, as enforce tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ipv4,
    Arp,
    Ipv6,
    Tagged,
    NonIp,
}

impl Kind {
    /// Why an enforced device neither sends nor gets it.
    const fn reason(self, header: &Header) -> DropReason {
        match self {
            Self::Tagged => DropReason::Tagged,
            Self::Ipv6 => DropReason::Ipv6,
            Self::Arp => DropReason::Arp,
            Self::Ipv4 if header.destination.is_group() => DropReason::Broadcast,
            Self::Ipv4 => DropReason::NoRule,
            Self::NonIp => DropReason::NonIp,
        }
    }
}
