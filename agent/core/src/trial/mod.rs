//! Trials: devices that are enforced until somebody confirms it, and go back by themselves otherwise.
//!
//! It is all decided here, with no controller: when the time is over, and whether the device's connections fail
//! (`attempts`). What it goes back to, and by which connections that is measured, stands in the leaf that operators signed.
//!
//! Failures count that are at least a second apart, so that one burst is one; an answer begins the count anew.
//! [`ATTEMPTS`] in a row end the trial. What a controller brought about doesn't count: peers that it suspended, devices that it
//! quarantined, and tunnels that came down since the trial began.

mod attempts;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::approval::Place;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::intent::Device;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::rollout::{
    Expected, Failing, MAX_EXPECTED, Over, TRIAL_RANGE, Trial, TrialReport, Why,
};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::DropReason;
use anteroom_proto::view::View;

pub(crate) use attempts::Progress;
use attempts::{Attempts, Judge};

use crate::clock::Clock;
use crate::flow::FlowKey;
use crate::station::StationId;
use crate::wire::{FiveTuple, icmp};

/// Failures in a row that end a trial.
pub const ATTEMPTS: u8 = 3;
/// For how long after its beginning only missing rules count: tunnels have to come up, and flows to find their new
/// path.
const SETTLE: Duration = Duration::from_secs(10);

/// A trial at this gateway, as it is kept over a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialState {
    /// The device.
    pub member: MemberId,
    /// The trial: [`Trial::since`].
    pub since: Place,
    /// When it ends at the latest.
    pub ends: Instant,
    /// Why and when the device went back, if it did.
    pub over: Option<Over>,
}

/// `view` with its devices in the modes that they are in: those whose trial is over have gone back.
#[must_use]
pub fn effective<'a>(view: &'a View, trials: &[TrialState]) -> Cow<'a, View> {
    let firm = firm_ports(&view.intent.devices);
    let over = |device: &Device| {
        let trial = trial_of(device).filter(|_| !firm.contains_key(&device.port))?;
        let same =
            |known: &&TrialState| known.member == device.member.id && known.since == trial.since;
        trials.iter().find(same)?.over.as_ref().map(|_| trial.back_to)
    };
    if view.intent.devices.iter().all(|device| over(device).is_none()) {
        return Cow::Borrowed(view);
    }
    let mut changed = view.clone();
    for (device, signed) in changed.intent.devices.iter_mut().zip(&view.intent.devices) {
        if let Some(mode) = over(signed) {
            device.member.mode = mode;
        }
    }
    Cow::Owned(changed)
}

/// The ports with a device that is enforced for good, and which: a port has one mode, the strictest, so nobody there can go
/// back.
#[must_use]
pub fn firm_ports(devices: &[Device]) -> BTreeMap<&Name, MemberId> {
    let firm = |device: &&Device| device.member.mode == Mode::Enforce && trial_of(device).is_none();
    devices.iter().filter(firm).map(|device| (&device.port, device.member.id)).collect()
}

/// The trial that a device is on, as far as this gateway can follow it.
#[must_use]
pub fn trial_of(device: &Device) -> Option<&Trial> {
    let trial = device.rollout.trial.as_ref()?;
    (device.member.mode == Mode::Enforce && trial.is_known()).then_some(trial)
}

/// What trials are looked at by.
pub(crate) trait Surroundings {
    /// What is known of a flow; none where it is gone.
    fn flow(&self, key: &FlowKey) -> Option<Progress>;
    /// Shows some of a station's flows, with the tuple of their first packet and whether the station opened them; with `unanswered`
    /// those that nobody has answered yet as well.
    fn flows_of(
        &self,
        station: StationId,
        unanswered: bool,
        show: &mut dyn FnMut(FlowKey, &FiveTuple, bool, Progress),
    );
    /// The other end of a connection.
    fn far(&self, address: Ipv4Addr) -> Far;
    /// Whether a device here is quarantined.
    fn is_quarantined(&self, member: MemberId) -> bool;
    /// Whether there is a tunnel to a gateway that carries packets.
    fn is_live(&self, gateway: GatewayId) -> bool;
    /// The gateways to which there is one.
    fn live(&self) -> Vec<GatewayId>;
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Far {
    /// Whether the controller cut it off, or it is quarantined.
    pub(crate) closed: bool,
    /// The gateway that it is behind, where it is another gateway's member.
    pub(crate) gateway: Option<GatewayId>,
}

/// A trial that the view in force orders.
#[derive(Debug)]
struct Running {
    state: TrialState,
    port: Name,
    back_to: Mode,
    begun: Instant,
    /// Whether somebody on its port is enforced for good: it stays as it is for as long.
    stuck: bool,
    /// Where it is, and when its flows are to be looked for: as the trial begins, for those that were there before, and once
    /// [`SETTLE`] is over, for those that began meanwhile or were picked up after a restart; after a quarantine likewise.
    station: Option<StationId>,
    survey: Option<Instant>,
    expects: BTreeMap<Expected, Attempts>,
}

/// The trials of the devices here.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    running: Vec<Running>,
    /// Their devices, and where these are.
    members: BTreeMap<MemberId, usize>,
    places: BTreeMap<StationId, usize>,
    /// When there was last a tunnel to a gateway that carries packets, since the first of them began.
    live: BTreeMap<GatewayId, Instant>,
    /// Those of an earlier run, until a view is in force.
    kept: Vec<TrialState>,
}

impl Trials {
    /// Takes back what an earlier run had.
    pub(crate) fn restore(&mut self, kept: Vec<TrialState>) {
        self.kept = kept;
    }

    /// Takes over what a view orders. A trial that is known goes on, or is over, as it was.
    pub(crate) fn renew(&mut self, devices: &[Device], now: Instant) {
        let before: Vec<Running> = std::mem::take(&mut self.running);
        let mut before: BTreeMap<(MemberId, Place), Running> = before
            .into_iter()
            .map(|known| ((known.state.member, known.state.since), known))
            .collect();
        self.places.clear();
        self.members.clear();
        let firm = firm_ports(devices);
        for device in devices {
            let Some(trial) = trial_of(device) else { continue };
            let key = (device.member.id, trial.since);
            let mut running = before.remove(&key).unwrap_or_else(|| {
                let within = trial.within.clamp(TRIAL_RANGE.0, TRIAL_RANGE.1);
                let ends = now.checked_add(Duration::from_millis(within)).unwrap_or(now);
                let kept = self.kept.iter().find(|kept| (kept.member, kept.since) == key);
                let fresh = TrialState { member: key.0, since: key.1, ends, over: None };
                Running {
                    // What was kept can only be shorter.
                    state: kept.map_or(fresh, |kept| TrialState {
                        ends: kept.ends.min(ends),
                        ..kept.clone()
                    }),
                    port: device.port.clone(),
                    back_to: trial.back_to,
                    begun: now,
                    stuck: false,
                    station: None,
                    survey: Some(now),
                    expects: trial
                        .expects
                        .iter()
                        .take(MAX_EXPECTED)
                        .map(|expected| (*expected, Attempts::default()))
                        .collect(),
                }
            });
            // Where it is now, and not where it began.
            running.port.clone_from(&device.port);
            running.back_to = trial.back_to;
            running.stuck = firm.contains_key(&device.port);
            running.station = None;
            self.members.insert(device.member.id, self.running.len());
            self.running.push(running);
        }
        if self.running.is_empty() {
            self.live.clear();
        }
        self.kept.clear();
    }

    /// Says where a device on trial is.
    pub(crate) fn place(&mut self, member: MemberId, station: StationId) {
        let Some(at) = self.members.get(&member) else { return };
        self.places.insert(station, *at);
        if let Some(running) = self.running.get_mut(*at) {
            running.station = Some(station);
        }
    }

    /// The mode that a device has gone back to.
    pub(crate) fn gone_back(&self, member: MemberId) -> Option<Mode> {
        let known = self.running.get(*self.members.get(&member)?)?;
        known.over().map(|_| known.back_to)
    }

    fn at(&mut self, station: StationId) -> Option<&mut Running> {
        let at = *self.places.get(&station)?;
        self.running.get_mut(at).filter(|running| running.goes_on())
    }

    /// Notes that a packet was dropped. Only what the device itself sent counts: anybody can send in another's name to it.
    pub(crate) fn dropped(
        &mut self,
        station: StationId,
        reason: DropReason,
        tuple: &FiveTuple,
        now: Instant,
    ) {
        if self.places.is_empty() {
            return;
        }
        let Some(running) = self.at(station) else { return };
        let settled = now.saturating_duration_since(running.begun) >= SETTLE;
        if !(lacks_rule(reason) || (settled && lacks_path(reason))) {
            return;
        }
        let expects = &mut running.expects;
        let Some(expected) = readings(tuple).into_iter().find(|read| expects.contains_key(read))
        else {
            return;
        };
        match expects.get_mut(&expected) {
            Some(attempts) if lacks_path(reason) => attempts.stranded(*tuple, reason, now),
            Some(attempts) => attempts.dropped(*tuple, reason, now),
            None => {}
        }
    }

    /// Notes that a flow begins that passes.
    pub(crate) fn opened(
        &mut self,
        station: StationId,
        key: FlowKey,
        (tuple, outbound): (&FiveTuple, bool),
        now: Instant,
    ) {
        if self.places.is_empty() {
            return;
        }
        let Some(running) = self.at(station) else { return };
        if now.saturating_duration_since(running.begun) < SETTLE {
            return;
        }
        if let Some(attempts) = running.expects.get_mut(&reading(tuple, outbound)) {
            attempts.opened(key, now);
        }
    }

    /// Looks for answers and ends. Says whether a device is to go back.
    pub(crate) fn look(&mut self, clock: &Clock, around: &impl Surroundings, now: Instant) -> bool {
        if !self.running.iter().any(Running::goes_on) {
            return false;
        }
        let live = around.live().into_iter().map(|gateway| (gateway, now));
        self.live.extend(live);
        let mut gone: Vec<(Name, MemberId, UnixMillis)> = Vec::new();
        for running in self.running.iter_mut().filter(|running| running.goes_on()) {
            running.judge(&self.live, around, now);
            let Some(why) = running.end(now) else { continue };
            let at = clock.wall(now);
            gone.push((running.port.clone(), running.state.member, at));
            running.state.over = Some(Over { why, at });
        }
        // Devices that share a port have one mode, the strictest: one alone goes nowhere.
        for running in self.running.iter_mut().filter(|running| running.goes_on()) {
            let neighbour = gone.iter().find(|(port, ..)| *port == running.port);
            running.state.over = neighbour
                .map(|(_, member, at)| Over { why: Why::Neighbour { member: *member }, at: *at });
        }
        !gone.is_empty()
    }

    /// When [`Self::look`] is wanted at the latest. Answers and failures are looked for with each sweep.
    pub(crate) fn due(&self) -> Option<Instant> {
        let running = self.running.iter().filter(|running| running.goes_on());
        running.map(|running| running.state.ends).min()
    }

    /// All of them, as they are kept over a restart.
    pub(crate) fn states(&self) -> Vec<TrialState> {
        self.running.iter().map(|running| running.state.clone()).collect()
    }

    /// All of them, as they are told.
    pub(crate) fn reports(&self, now: Instant) -> Vec<TrialReport> {
        let told = |running: &Running| {
            let state = &running.state;
            let over = running.over().cloned();
            let left = state.ends.saturating_duration_since(now).as_millis();
            let left = if over.is_some() { 0 } else { left };
            TrialReport {
                member: state.member,
                since: state.since,
                left: u64::try_from(left).unwrap_or(u64::MAX),
                over,
            }
        };
        self.running.iter().map(told).collect()
    }
}

impl Running {
    /// Whether it may still end.
    const fn goes_on(&self) -> bool {
        self.state.over.is_none() && !self.stuck
    }

    /// Why its device has gone back.
    fn over(&self) -> Option<&Over> {
        self.state.over.as_ref().filter(|_| !self.stuck)
    }

    /// Looks what became of its connections.
    fn judge(
        &mut self,
        live: &BTreeMap<GatewayId, Instant>,
        around: &impl Surroundings,
        now: Instant,
    ) {
        if around.is_quarantined(self.state.member) {
            self.expects.values_mut().for_each(Attempts::forget);
            // Its flows are taken for dropped until they say something again.
            self.survey = now.checked_add(SETTLE);
            return;
        }
        let due = self.survey.is_some_and(|due| due <= now);
        if let Some(station) = self.station.filter(|_| due) {
            self.survey = self.begun.checked_add(SETTLE).filter(|settled| *settled > now);
            let settled = self.survey.is_none();
            let expects = &mut self.expects;
            // What nobody answered before it began isn't the trial's doing.
            around.flows_of(station, settled, &mut |key, tuple, outbound, progress| {
                if let Some(attempts) = expects.get_mut(&reading(tuple, outbound)) {
                    attempts.is_there(key, &progress);
                }
            });
        }
        let begun = self.begun;
        for (expected, attempts) in &mut self.expects {
            let judge = Judge {
                flow: |key: &FlowKey| around.flow(key),
                path_counts: || {
                    let far = around.far(expected.remote);
                    // A tunnel that carried packets since then shows that there is a path, and that it is lost now is
                    // nothing that the policy did.
                    let worked =
                        |gateway| live.get(&gateway).is_some_and(|heard: &Instant| *heard >= begun);
                    !far.closed && !far.gateway.is_some_and(worked)
                },
                silence_counts: |peer: Option<GatewayId>| {
                    !around.far(expected.remote).closed
                        && peer.is_none_or(|peer| around.is_live(peer))
                },
            };
            attempts.look(&judge, now);
        }
    }

    /// Why it ends, if it does.
    fn end(&self, now: Instant) -> Option<Why> {
        let failed = self.expects.iter().map(|(what, attempts)| (what, attempts.failed()));
        let failing = failed.into_iter().find(|(_, (failed, _))| *failed >= ATTEMPTS);
        match failing {
            Some((what, (attempts, reason))) => {
                let reason = reason.map(|reason| reason.as_str().to_owned());
                Some(Why::Failing(Failing { what: *what, reason, attempts }))
            }
            None if self.state.ends <= now => Some(Why::Unconfirmed),
            None => None,
        }
    }
}

/// Whether a drop is the policy's.
const fn lacks_rule(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::NoRule
            | DropReason::NotVisible
            | DropReason::ClearNotAllowed
            | DropReason::ClientOfObserved
            | DropReason::NoState
    )
}

/// Whether a drop is for want of a way to the other end. Clear packets from where the tunnel is the path don't count:
/// anybody can send them.
const fn lacks_path(reason: DropReason) -> bool {
    matches!(reason, DropReason::TunnelDown | DropReason::TunnelNotReady | DropReason::NoNextHop)
}

/// The connection of a packet that its initiator sends.
const fn reading(tuple: &FiveTuple, outbound: bool) -> Expected {
    let FiveTuple { source, destination, destination_port, protocol, .. } = *tuple;
    Expected {
        remote: if outbound { destination } else { source },
        outbound,
        protocol,
        port: if protocol == icmp::PROTOCOL { 0 } else { destination_port },
    }
}

/// The connections that a packet which the device sent may belong to, whoever of the two opened it.
const fn readings(tuple: &FiveTuple) -> [Expected; 2] {
    let FiveTuple { source, destination, source_port, destination_port, protocol } = *tuple;
    let back = FiveTuple {
        source: destination,
        destination: source,
        source_port: destination_port,
        destination_port: source_port,
        protocol,
    };
    [reading(tuple, true), reading(&back, false)]
}
