//! Trials: devices that are enforced until somebody confirms it, and go back by themselves otherwise.
//!
//! It is all decided here, with no controller: when the time is over, and whether the device's connections fail. What
//! it goes back to, and by which connections that is measured, stands in the leaf that operators signed.
//!
//! A connection fails when a packet of it is dropped for want of a rule or of a path, or when it was opened and
//! nobody answers. Failures count that are at least a second apart, so that one burst is one; an answer to
//! any connection of the same kind begins the count anew. [`ATTEMPTS`] in a row end the trial.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anteroom_proto::id::MemberId;
use anteroom_proto::intent::Device;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::rollout::{
    Expected, Failing, MAX_EXPECTED, Over, TRIAL_RANGE, Trial, TrialReport, Why,
};
use anteroom_proto::verdict::DropReason;
use anteroom_proto::view::View;

use crate::clock::Clock;
use crate::flow::FlowKey;
use crate::station::StationId;
use crate::wire::{FiveTuple, icmp};

/// Failures in a row that end a trial.
pub const ATTEMPTS: u8 = 3;
/// How far apart failures are that count as two.
const APART: Duration = Duration::from_secs(1);
/// For how long packets of the same ports are one attempt: TCP sends a SYN again after 1, 3, 7 and 15 s.
const AGAIN: Duration = Duration::from_secs(20);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(8);
/// For how long after its beginning only missing rules count: tunnels have to come up, and flows to find their new
/// path.
const SETTLE: Duration = Duration::from_secs(10);

/// A trial at this gateway, as it is kept over a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The device.
    pub member: MemberId,
    /// The trial: [`Trial::since`].
    pub since: u64,
    /// When it ends at the latest.
    pub ends: Instant,
    /// Why and when the device went back, if it did.
    pub over: Option<Over>,
}

/// `view` with its devices in the modes that they are in: those whose trial is over have gone back.
#[must_use]
pub fn effective<'a>(view: &'a View, trials: &[Standing]) -> Cow<'a, View> {
    let over = |device: &Device| {
        let trial = trial_of(device)?;
        let same =
            |known: &&Standing| known.member == device.member.id && known.since == trial.since;
        trials.iter().find(same)?.over.as_ref().map(|_| trial.back_to)
    };
    if view.intent.devices.iter().all(|device| over(device).is_none()) {
        return Cow::Borrowed(view);
    }
    let mut view = view.clone();
    for device in &mut view.intent.devices {
        if let Some(mode) = over(device) {
            device.member.mode = mode;
        }
    }
    Cow::Owned(view)
}

/// The trial that a device is on, as far as this gateway can follow it.
#[must_use]
pub fn trial_of(device: &Device) -> Option<&Trial> {
    let trial = device.rollout.trial.as_ref()?;
    (device.member.mode == Mode::Enforce && trial.is_known()).then_some(trial)
}

/// What became of one connection.
#[derive(Debug, Default)]
struct Attempts {
    failed: u8,
    last: Option<Instant>,
    /// The newest reason for a drop; none where nobody answered.
    reason: Option<DropReason>,
    /// What was dropped last: a packet that is sent again is the same attempt for [`AGAIN`].
    dropped: Option<FiveTuple>,
    /// A flow of it whose answer is awaited, and since when.
    awaited: Option<(FlowKey, Instant)>,
}

impl Attempts {
    /// A packet of it was dropped.
    fn drop(&mut self, tuple: FiveTuple, reason: DropReason, now: Instant) {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        if self.dropped == Some(tuple) && since.is_some_and(|since| since < AGAIN) {
            return;
        }
        self.dropped = Some(tuple);
        self.fail(Some(reason), now);
    }

    fn fail(&mut self, reason: Option<DropReason>, now: Instant) {
        let counts = self.last.is_none_or(|last| now.saturating_duration_since(last) >= APART);
        if counts {
            self.failed = self.failed.saturating_add(1);
            (self.last, self.reason) = (Some(now), reason);
        }
    }
}

/// A trial that the view in force orders.
#[derive(Debug)]
struct Running {
    standing: Standing,
    port: Name,
    back_to: Mode,
    begun: Instant,
    expects: BTreeMap<Expected, Attempts>,
}

/// The trials of the devices here.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    running: Vec<Running>,
    /// Where their devices are.
    places: BTreeMap<StationId, usize>,
    /// Those of an earlier run, until a view is in force.
    kept: Vec<Standing>,
}

impl Trials {
    /// Takes back what an earlier run had.
    pub(crate) fn restore(&mut self, kept: Vec<Standing>) {
        self.kept = kept;
    }

    /// Takes over what a view orders. A trial that is known goes on, or is over, as it was.
    pub(crate) fn renew(&mut self, devices: &[Device], now: Instant) {
        let before: Vec<Running> = std::mem::take(&mut self.running);
        let mut before: BTreeMap<(MemberId, u64), Running> = before
            .into_iter()
            .map(|known| ((known.standing.member, known.standing.since), known))
            .collect();
        self.places.clear();
        for device in devices {
            let Some(trial) = trial_of(device) else { continue };
            let key = (device.member.id, trial.since);
            let mut running = before.remove(&key).unwrap_or_else(|| {
                let within = trial.within.clamp(TRIAL_RANGE.0, TRIAL_RANGE.1);
                let ends = now.checked_add(Duration::from_millis(within)).unwrap_or(now);
                let kept = self.kept.iter().find(|kept| (kept.member, kept.since) == key);
                let fresh = Standing { member: key.0, since: key.1, ends, over: None };
                Running {
                    // What was kept can only be shorter.
                    standing: kept.map_or(fresh, |kept| Standing {
                        ends: kept.ends.min(ends),
                        ..kept.clone()
                    }),
                    port: device.port.clone(),
                    back_to: trial.back_to,
                    begun: now,
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
            self.running.push(running);
        }
        self.kept.clear();
    }

    /// Says where a device on trial is.
    pub(crate) fn place(&mut self, member: MemberId, station: StationId) {
        let at = self.running.iter().position(|running| running.standing.member == member);
        if let Some(at) = at {
            self.places.insert(station, at);
        }
    }

    /// The mode that a device has gone back to.
    pub(crate) fn gone_back(&self, member: MemberId) -> Option<Mode> {
        let known = self.running.iter().find(|running| running.standing.member == member)?;
        known.standing.over.as_ref().map(|_| known.back_to)
    }

    fn at(&mut self, station: StationId) -> Option<&mut Running> {
        let at = *self.places.get(&station)?;
        self.running.get_mut(at).filter(|running| running.standing.over.is_none())
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
        if let Some(attempts) = expects.get_mut(&expected) {
            attempts.drop(*tuple, reason, now);
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
        let attempts = running.expects.get_mut(&reading(tuple, outbound));
        if let Some(attempts) = attempts.filter(|attempts| attempts.awaited.is_none()) {
            attempts.awaited = Some((key, now));
        }
    }

    /// Looks for answers and ends. `answered`: whether the responder of a flow has sent anything; none where it isn't
    /// known any more. Says whether a device is to go back.
    pub(crate) fn look(
        &mut self,
        clock: &Clock,
        now: Instant,
        answered: impl Fn(&FlowKey) -> Option<bool>,
    ) -> bool {
        let mut gone: Vec<(Name, Over)> = Vec::new();
        for running in &mut self.running {
            if running.standing.over.is_some() {
                continue;
            }
            for attempts in running.expects.values_mut() {
                let Some((key, since)) = attempts.awaited else { continue };
                let late = now.saturating_duration_since(since) >= ANSWER;
                match answered(&key) {
                    Some(true) => *attempts = Attempts::default(),
                    Some(false) if late => {
                        attempts.awaited = None;
                        attempts.fail(None, now);
                    }
                    Some(false) => {}
                    None => attempts.awaited = None,
                }
            }
            let failing = running.expects.iter().find(|(_, attempts)| attempts.failed >= ATTEMPTS);
            let why = match failing {
                Some((what, attempts)) => Why::Failing(Failing {
                    what: *what,
                    reason: attempts.reason.map(|reason| reason.as_str().to_owned()),
                    attempts: attempts.failed,
                }),
                None if running.standing.ends <= now => Why::Unconfirmed,
                None => continue,
            };
            let over = Over { why, at: clock.wall(now) };
            gone.push((running.port.clone(), over.clone()));
            running.standing.over = Some(over);
        }
        // Devices that share a port have one mode, the strictest: one alone goes nowhere.
        for running in self.running.iter_mut().filter(|running| running.standing.over.is_none()) {
            let neighbour = gone.iter().find(|(port, _)| *port == running.port);
            running.standing.over = neighbour.map(|(_, over)| over.clone());
        }
        !gone.is_empty()
    }

    /// When [`Self::look`] is wanted at the latest. Answers and failures are looked for with each sweep.
    pub(crate) fn due(&self) -> Option<Instant> {
        let running = self.running.iter().filter(|running| running.standing.over.is_none());
        running.map(|running| running.standing.ends).min()
    }

    /// All of them, as they are kept over a restart.
    pub(crate) fn standing(&self) -> Vec<Standing> {
        self.running.iter().map(|running| running.standing.clone()).collect()
    }

    /// All of them, as they are told.
    pub(crate) fn reports(&self, now: Instant) -> Vec<TrialReport> {
        let told = |Running { standing, .. }: &Running| {
            let left = standing.ends.saturating_duration_since(now).as_millis();
            let left = if standing.over.is_some() { 0 } else { left };
            TrialReport {
                member: standing.member,
                since: standing.since,
                left: u64::try_from(left).unwrap_or(u64::MAX),
                over: standing.over.clone(),
            }
        };
        self.running.iter().map(told).collect()
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
