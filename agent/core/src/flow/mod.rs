//! Flows: who opened them, what was decided about them, and what passed.

mod key;
mod state;
mod table;

use std::time::Instant;

use anteroom_proto::id::{GatewayId, MemberId, RuleId};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::verdict::Verdict;

pub(crate) use key::{FlowKey, Zone};
pub(crate) use state::{State, Tracker};
pub(crate) use table::{FlowIndex, FlowTable};

use crate::lane::pace::Pace;
use crate::peer::PeerSlot;
use crate::station::{Share, StationId};
use crate::wire::FiveTuple;

/// What was decided about a flow, and holds until the epoch changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) verdict: Verdict,
    /// The rule that allows it, or would if its conditions were met.
    pub(crate) rule: Option<RuleId>,
    /// The gateway at the other end of the tunnel, where the verdict is one.
    pub(crate) peer: Option<GatewayId>,
    /// The member at the other end, where there is one.
    pub(crate) remote: Option<MemberId>,
    /// The gateway that owns the member at the other end: its tunnel may deliver what passes, whatever path packets
    /// take from here.
    pub(crate) owner: Option<GatewayId>,
    /// Whether clear packets are taken, too, though an enforced device's path is the tunnel: the other end hasn't
    /// followed yet.
    pub(crate) clear_taken: bool,
}

impl Judgement {
    /// A verdict that has nothing to do with a peer.
    pub(crate) const fn of(verdict: Verdict, rule: Option<RuleId>) -> Self {
        Self { verdict, rule, peer: None, remote: None, owner: None, clear_taken: false }
    }
}

/// Packets and bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Count {
    pub(crate) const fn add(&mut self, packets: u64, bytes: u64) {
        self.packets = self.packets.saturating_add(packets);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// Counters of a flow since it was last reported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unreported {
    /// Whether the flow itself hasn't been counted yet.
    pub(crate) opened: bool,
    /// From the initiator, and from the responder.
    pub(crate) counts: [Count; 2],
    pub(crate) first: Instant,
    pub(crate) last: Instant,
}

/// That a packet of one direction came through all stages, and what of it they looked at besides the flow's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proof {
    /// Void once what stages go by has another stamp.
    pub(crate) stamp: u64,
    /// The peer whose tunnel it took, or none.
    pub(crate) peer: PeerSlot,
    /// The Ethernet address at the other end, as the packet named it.
    pub(crate) mac: MacAddr,
}

impl Proof {
    /// Proves nothing.
    pub(crate) const NONE: Self =
        Self { stamp: u64::MAX, peer: PeerSlot::NONE, mac: MacAddr([0; 6]) };
}

/// A flow.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    /// Whether the initiator is the key's lower end.
    pub(crate) initiator_low: bool,
    /// The device that the flow belongs to: of two, the initiator.
    pub(crate) station: StationId,
    /// Whose share of the table it uses up.
    pub(crate) share: Share,
    /// The other device, where both are here.
    pub(crate) other: Option<StationId>,
    /// Whether the initiator is `station`.
    pub(crate) outbound: bool,
    pub(crate) judgement: Judgement,
    /// The epoch that the judgement belongs to.
    pub(crate) epoch: u64,
    /// Of packets from the device.
    pub(crate) leaving: Proof,
    /// Of packets to the device.
    pub(crate) coming: Proof,
    /// How much the device sends, and by which lane.
    pub(crate) pace: Pace,
    pub(crate) tracker: Tracker,
    pub(crate) state: State,
    pub(crate) created: Instant,
    pub(crate) last: Instant,
    /// From the initiator, and from the responder.
    pub(crate) totals: [Count; 2],
    pub(crate) unreported: Unreported,
}

impl Flow {
    /// The tuple of its first packet.
    pub(crate) const fn tuple(&self) -> FiveTuple {
        self.key.tuple(self.initiator_low)
    }

    /// Whether a packet in this direction of the key comes from the initiator.
    pub(crate) const fn is_forward(&self, upwards: bool) -> bool {
        upwards == self.initiator_low
    }

    /// Counts packets of one direction.
    pub(crate) fn count(&mut self, forward: bool, packets: u64, bytes: u64, now: Instant) {
        let side = usize::from(!forward);
        self.totals[side].add(packets, bytes);
        let fresh =
            self.unreported.counts[0].packets == 0 && self.unreported.counts[1].packets == 0;
        if fresh {
            self.unreported.first = now;
        }
        self.unreported.last = now;
        self.unreported.counts[side].add(packets, bytes);
    }
}
