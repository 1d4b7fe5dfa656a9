//! Devices on trial, as the engine has them: what trials are looked at by, and how devices go back.

use std::net::Ipv4Addr;
use std::time::Instant;

use anteroom_proto::approval::HeldBack;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::rollout::HeldBackReport;

use super::Engine;
use crate::flow::{Flow, FlowKey, FlowTable, State};
use crate::policy::{Peers, Policy};
use crate::station::{StationId, Stations};
use crate::trial::{Far, Progress, Surroundings, TrialState};
use crate::wire::FiveTuple;

/// Most flows of a device that are looked at when its trial begins, and when things have settled.
const MOST_FLOWS: usize = 8_192;

impl Engine {
    /// Tells the trials of an earlier run, before a view that orders them.
    pub fn restore_trials(&mut self, kept: Vec<TrialState>) {
        self.recorder.trials.restore(kept);
    }

    /// The trials that the view in force orders, as they are kept over a restart.
    #[must_use]
    pub fn trials(&self) -> Vec<TrialState> {
        self.recorder.trials.states()
    }

    /// Devices that aren't in the mode that operators signed, since two must have approved of that, and haven't.
    pub(super) fn held_back(&self) -> Vec<HeldBackReport> {
        let Some(policy) = &self.policy else { return Vec::new() };
        let told = |back: &HeldBack| {
            // On the terms of before it may be on a trial, and that may be over.
            let mode = self.recorder.trials.gone_back(back.member).unwrap_or(back.mode);
            let HeldBack { member, signed, .. } = *back;
            (mode != signed).then_some(HeldBackReport { member, signed, mode })
        };
        policy.view.upheld.held_back.iter().filter_map(told).collect()
    }

    /// When trials are to be looked at.
    pub(super) fn trial_due(&self) -> Option<Instant> {
        self.recorder.trials.due()
    }

    /// Has devices go back whose trial is over. Their flows stay, and are judged anew. Peers stay what they are: other gateways
    /// go by the modes that were signed.
    pub(super) fn look_at_trials(&mut self, now: Instant) {
        let around = Around {
            flows: &self.flows,
            stations: &self.stations,
            policy: self.policy.as_ref(),
            peers: &self.peer_states,
        };
        if !self.recorder.trials.look(&self.clock, &around, now) {
            return;
        }
        let Some(mut policy) = self.policy.take() else { return };
        self.seat(&mut policy);
        self.policy = Some(policy);
        self.reconcile_holdings(now);
        self.epoch += 1;
        self.find_boundary(now);
    }
}

/// What trials are looked at by.
struct Around<'a> {
    flows: &'a FlowTable,
    stations: &'a Stations,
    policy: Option<&'a Policy>,
    peers: &'a Peers,
}

impl Around<'_> {
    fn progress(&self, flow: &Flow) -> Progress {
        Progress {
            answered: flow.is_answered(),
            done: matches!(flow.state, State::Reset | State::Finished),
            picked_up: flow.state == State::PickedUp,
            packets: flow.totals().map(|count| count.packets),
            peer: self.flows.judgement_of(flow).and_then(|judgement| judgement.peer),
            tcp: flow.tuple().protocol == 6,
        }
    }
}

impl Surroundings for Around<'_> {
    fn flow(&self, key: &FlowKey) -> Option<Progress> {
        let flow = self.flows.get(self.flows.find(key)?)?;
        Some(self.progress(flow))
    }

    fn flows_of(
        &self,
        station: StationId,
        unanswered: bool,
        show: &mut dyn FnMut(FlowKey, &FiveTuple, bool, Progress),
    ) {
        let share = self.stations.share(station);
        for (_, flow) in self.flows.of_share(share).take(MOST_FLOWS) {
            let lasts = match flow.state {
                State::Dropped => false,
                State::HalfOpen | State::OneWay => unanswered,
                _ => true,
            };
            if flow.station == station && lasts {
                show(flow.key, &flow.tuple(), flow.outbound, self.progress(flow));
            }
        }
    }

    fn far(&self, address: Ipv4Addr) -> Far {
        let Some(policy) = self.policy else { return Far::default() };
        let Some(far) = policy.at(address).and_then(|index| policy.member(index)) else {
            return Far::default();
        };
        let gateway = (!far.is_here()).then_some(far.gateway);
        Far { closed: far.suspended || far.quarantined, gateway }
    }

    fn is_quarantined(&self, member: MemberId) -> bool {
        let Some(policy) = self.policy else { return false };
        let found = policy.find(member).and_then(|index| policy.member(index));
        found.is_some_and(|device| device.quarantined)
    }

    fn is_live(&self, gateway: GatewayId) -> bool {
        self.peers.get(&gateway).is_some_and(|state| state.live)
    }

    fn live(&self) -> Vec<GatewayId> {
        self.peers.iter().filter(|(_, state)| state.live).map(|(gateway, _)| *gateway).collect()
    }
}
